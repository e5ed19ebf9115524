"""A deterministic simulator: the shipped Lua and the shipped protocol, one seed a run.

===============  =================================================================================
``store``        a server's data: just the commands that the scripts use (and nothing else, loudly)
``scripting``    runs the shipped ``.lua`` bytes over it, in Lua 5.1
``world``        virtual time, the server, what is recorded
``network``      processes, and the driver that carries the protocol out
``requests``     requests and their replies; a request without a reply is sent again
``connections``  for calls: two streams that keep their order, and the ends of them
``subscriber``   connections for messages, and the inboxes of waiters
``orphans``      requests that run after their caller has stopped waiting
``clients``      what clients do: the only module that knows how the library is called
``jobs``         producers, a queue and workers; ``job_api``: the locks that they use
``faults``       faults of processes and server; each seed draws its own mix, then there is calm
``accidents``    one fault at a time, with no other near it: one seed in twenty
``checker``      judges the recorded history; it also reads logs of real processes
``job_rules``    the same for jobs
``contract``     compares the data around each script with its header; ``job_contract`` and
                 ``multi_contract``: for other families; ``contracts``: which judges which script
``audit``        judges what only the server's data show: the contracts, and orphaned requests
``probes``       random calls of the scripts on random data, judged by their contracts
``run``          a seed, from its drawing to its verdict; ``many``: seeds on all cores
``planted``      bugs that are planted on purpose, in scripts and in the simulated driver
``mutants``      removes every guard, one at a time
``regressions``  seeds that have found a bug
===============  =================================================================================

``python -m tests.simulation --seeds 20000`` runs seeds and as many probes, ``--seed 17`` replays
one with its trace (``--around 2``: only the two seconds before it failed), ``mutants`` tries the
mutants, ``residues`` lists the seeds that a new kind of run may take.

What is simulated:

- threads (a connection for each call under way) and event loops (one connection for all calls);
- requests and replies that take any time; connections that break under a request or a reply, or
  become silent; requests that arrive after their sender gave up, or in two copies;
- replies that are dropped, doubled or swapped, or that follow an error for another request; writes
  that are interrupted in the middle;
- processes that are paused, killed, cut off, or forked by C code; tasks that are cancelled at any
  step;
- a server that stalls, restarts, loses its data or its scripts, is out of memory or read-only, is
  replaced by a replica without the last writes, or has its clock stepped; keys that are deleted or
  overwritten.

What is not: the drivers' own code (``lualock/_transport``), which has tests on real servers, and a
cluster.
"""

"""A deterministic simulator: the shipped Lua and the shipped protocol, one seed a run.

=============  ===================================================================================
``store``      a server's data: just the commands that the scripts use (and nothing else, loudly)
``scripting``  runs the shipped ``.lua`` bytes over it, in Lua 5.1
``world``      virtual time, the server, what is recorded
``network``    processes, and the driver that carries the protocol out
``asking``     requests and their replies; what is sent again where no reply comes
``lines``      connections for calls: two streams that keep their order, and the ends of them
``ear``        connections for messages
``orphans``     requests that run when their caller waits no more
``clients``    what clients do: the one place that knows how the library is called
``faults``     what is done to them; each seed draws its own mix, and then there is calm
``accidents``  one misfortune at a time, with nothing else near it: one seed in twenty
``checker``    judges the recorded history; knows nothing of the rest, reads logs of real processes
``audit``      judges what only the server's side shows: ``contract`` after each script, orphans
``probes``     random calls of the scripts on random data, judged by their contracts
``run``        a seed, from its drawing to its verdict; ``many``: seeds on all cores
``planted``    bugs that are planted on purpose, in scripts and in the simulated driver
``mutants``    every guard removed, one at a time
``regressions``  seeds that found something
=============  ===================================================================================

``python -m tests.simulation --seeds 20000`` runs seeds and as many probes, ``--seed 17`` replays
one with its trace (``--around 2``: only the two seconds before it failed), ``mutants`` tries the
mutants.

What is simulated: threads (a connection for each call under way), event loops (one for all);
requests and replies that take any time, connections that break on the way there or back or fall
silent, requests that arrive after their sender gave up, or in two copies; replies that are dropped,
doubled, swapped, or follow an error that answers another request; writes that are interrupted in
the middle; processes that stand still, die, are cut off, are forked by C code;
tasks that are cancelled at any step; a server that stands still, restarts, loses its data or its
scripts, is out of memory or read-only, is replaced by a replica without the last writes, has its
clock stepped; keys that are deleted or written over. What is not: the drivers' own code
(``lualock/drive``; the tests on real servers are for that), and a cluster.
"""

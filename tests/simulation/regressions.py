"""Seeds that found something, with a line each. ``tests/test_simulation.py`` plays them all.

A seed means a run only as long as the simulator and the library draw the same numbers in the same
order, so an old one may not meet its old bug any more; it costs a few milliseconds all the same.
"""

from __future__ import annotations

REGRESSIONS: dict[int, str] = {
    29666: "a ghost's place in the queue stayed: its abandon had no ticket",
    21979: "no ghost was laid after a lease that was found lost",
    8817: "a lease was renewed for ever after a release that failed (a bug of the simulator's)",
    6886: "what was interrupted was sent again after it had been abandoned (the simulator's too)",
    33404: "who asked for its place while it could not be told anything was dropped as gone",
    35609: "a lease that was passed on left a ghost's place in the queue",
    67350: "of two lost requests only the later one's ghost was laid, and that one needed none",
    936: "a ticket that a ghost had put elsewhere: either place may be told",
    363367: "who was first, and too young to be told, slept on after one of higher priority",
    377580: "a look whose reply had not been read was forgotten when listening failed: no abandon",
    239389: "an ended lease was taken again by its own ghost, and then released (excused)",
    953086: "a ghost was judged when another of its token had not expired yet (the simulator's)",
    573785: "a dropped lease in a cycle was renewed until the collector came (the simulator's)",
    196428: "the first of two requests to adopt was lost, the second refused: no ghost was laid",
    7157: "a clock that was put back let in what was too late",
    22689: "a lease that was forgotten or passed on was taken again by its own ghost",
    7026551: "a waiter had the lock by its own lost first try, and its place in the queue still",
    5001423: "a start that was lost came again, and the place of the job's retry with it (excused)",
    174900: "a lease in trust that nobody adopted ended by itself (the checker's)",
    120075: "who had the lock first heard of it last (the checker's)",
    131655: "a lease began at the server long after it was asked for (the checker's)",
    190591: "a lease that was forgotten left a ghost's place in the queue",
    2009012: "a job that was interrupted on its way back to the queue kept its place",
    2020502: "a job that ran without its lock could not give up its place (excused)",
    2040613: "who was refused for a lease whose release was not heard of (the simulator's)",
    160073: "workers that all waited for a lock that was kept for a job's retry (takes long)",
    265092: "who replaced another, and was interrupted taking its request back, kept the lock",
    265903: "a lost reservation that came when the job had run: for a few seconds (excused)",
    362553: "who kept its lock for a retry, which had it already, was told that it had expired",
    488603: "a job's second delivery, that came later than its first had run (the simulator's)",
    556333: "a retry that began before the other worker knew that the lock was kept (its too)",
    63235: "a lease that was forgotten while its renewal was under way (the simulator's)",
    608160: "who had the lock by a lost request, and asked again in the same ms (the simulator's)",
    743379: "who had the lock first was paused until another had it, its data lost (excused)",
    765852: "a retry that was interrupted on its way left the lock that was kept for it",
    4004875: "a lease that promises less than it is renewed for was renewed without a pause",
    108916: "a refused request for a sooner end was believed",
    69276: "a lease that outlasts what a clock that was set excuses (the simulator's)",
    44880: "a renewal that nobody wrote down (the simulator's)",
    829244: "a sooner end that nobody was told of: a claim was not known to have come before it",
    956819: "a look that one that was refused had overtaken had a place, and nobody gave it back",
    670934: "all who waited heard of their turn elsewhere, and the next had the fence of the first",
    94: "who could not be told of its turn, and heard of it elsewhere, shared its fence",
    27321: "a holder that heard of its lease too late to have it, and wrote all the same",
}

"""Bugs that are planted on purpose: each must be found within 1,000 seeds.

no owner check in release    ``release`` and ``hand_over`` free a lock of any token: a release after
                             the end of its lease frees the lock of another holder (*overlap*).
no check after subscribing   ``wait`` queues without checking whether the lock has become free since
                             the first try: no release follows, and the waiter waits (*prompt*,
                             *ends*).
no new fence on hand-over    the next holder gets the fence of the previous one: a resource takes
                             the two for one (*fence*, *resource*).
no new fence for the next    a waiter that got no message leaves its fence to the next one; but it
                             may get the message from a replica (*fence*).
start ends any reservation   a job that begins ends the reservation of its lock, whichever job has
                             it: a second job can then be queued (*queued*, *reservation*).
start notifies no waiter     the head of the queue of a lock kept for a retry gets no message that
                             the lease now ends earlier (*contract*).
start leaves no tombstone    the reservation of a job that begins is deleted without a tombstone: a
                             late copy of the request takes it again (*contract*).
withdraw checks no token     a caller that gives up its stop request withdraws those of all callers
                             (*contract*).
reserve ignores the runner   ``reserve`` gives a job with ``unique="both"`` a reservation while
                             another one runs (*alone*).
force_release names no lease ``force_release`` ends the lease of any holder: a repetition ends that
                             of the next one (*contract*).

Bugs of the simulated driver (:data:`DRIVER`):

a reply is believed          a driver does not check the proof of a reply: two holders (*overlap*).
a torn write is ignored      the connection stays in use after an interruption during a write:
                             proofs protect, but the order is lost (*order*).
a fork is ignored            a process that C code forked uses its parent's connections (*order*).
a torn write, and believed   a torn write without proofs, and without a broken proxy (*overlap*).
a fork, and believed         the same with a fork (*overlap*).
silence is ignored           no request is sent again if no reply comes (*silence*).
"""

from __future__ import annotations

from lualock.scripts import every
from tests.simulation.many import hunt

Replacement = tuple[str, str, str]  # a family and verb, the shipped text, the planted text

PLANTED: dict[str, tuple[Replacement, ...]] = {
    "no owner check in release": tuple(
        (path, "if string.sub(record, 40 - #lease, 39) == lease then", "if true then")
        for path in ("lock/release", "lock/hand_over")
    ),
    "no check after subscribing": (
        (
            "lock/wait",
            "if not held then\n  local other_waiters",
            "if false then\n  local other_waiters",
        ),
        (
            "lock/wait",
            "\nif not held then\n  local next_holder",
            "\nif not held then\n"
            "  do return {proof, 'queued', 60000, 0, '', last_fence or fence, 0, score} end\n"
            "  local next_holder",
        ),
    ),
    "no new fence on hand-over": (
        ("lock/hand_over", "HELD_WAITED .. fence .. waiter", "HELD_WAITED .. last_fence .. waiter"),
    ),
    "no new fence for the next": tuple(
        (path, "fence = string.format('%016.0f', tonumber(fence) + 1)", "")
        for path in ("lock/abandon", "lock/wait", "lock/hand_over", "jobs/died")
    ),
    "start ends any reservation": (
        ("jobs/start", "queued and string.sub(queued, 18, 39) == reservation_token", "queued"),
    ),
    "start notifies no waiter": (("jobs/start", "if has_waiters then", "if false then"),),
    "start leaves no tombstone": (
        (
            "jobs/start",
            "redis.call('SET', reservation, tombstone, 'PX', TOMBSTONE_MS)",
            "redis.call('DEL', reservation)",
        ),
    ),
    "withdraw checks no token": (("lock/withdraw", "if requester == token then", "if true then"),),
    "reserve ignores the runner": (
        ("jobs/reserve", "elseif alone == '1' and is_running", "elseif false and is_running"),
    ),
    "force_release names no lease": (
        ("lock/force_release", " or string.sub(record, 2, 17) ~= lease_fence", ""),
    ),
}

DRIVER: dict[str, tuple[frozenset[str], str]] = {
    "a reply is believed": (frozenset({"unproved"}), "overlap"),
    "a torn write is ignored": (frozenset({"torn"}), "order"),
    "a fork is ignored": (frozenset({"forked"}), "order"),
    "a torn write, and believed": (frozenset({"torn", "unproved", "straight"}), "overlap"),
    "a fork, and believed": (frozenset({"forked", "unproved", "straight"}), "overlap"),
    "silence is ignored": (frozenset({"patient"}), "silence"),
}
"""Each with the bugs of the driver and the rule that they break."""


def sources(replacements: tuple[Replacement, ...]) -> dict[bytes, bytes]:
    """Return the changed scripts, by the shipped ones."""
    changed: dict[bytes, bytes] = {}
    for path, shipped, planted in replacements:
        source = every()[path].source
        text = changed.get(source, source).decode()
        if text.count(shipped) != 1:
            raise ValueError(f"{path}.lua has {shipped!r} {text.count(shipped)} times")
        changed[source] = text.replace(shipped, planted).encode()
    return changed


def find(name: str, most: int = 1000) -> tuple[int, str] | None:
    """Return the first seed that finds a planted bug, and by which rule; None if none of ``most``
    does."""
    if name in DRIVER:
        bugs, rule = DRIVER[name]
        return hunt({}, most, bugs=bugs, rule=rule)
    return hunt(sources(PLANTED[name]), most)

"""Bugs that are planted on purpose: each must be found within 1,000 seeds.

no owner check in release    ``release`` and ``hand_over`` free a lock of any token: the end of a
                             lease that had expired ends that of another holder (*overlap*).
no look after subscribing    ``wait`` takes its place in the queue, and does not check whether the
                             lock has become free since the first try: no release will hand it
                             over, and the waiter waits (*prompt*, *ends*).
no new fence on hand-over    the next holder gets the fence of the one before: what the lock
                             protects takes the two for one (*fence*, *resource*).
no new fence for the next    a waiter that could not be told of its lock leaves the fence to
                             the next one; but it may hear of it on a replica (*fence*).
start takes any place        a job that begins to run ends the reservation beside its lock, of any
                             job: a second one is queued beside one that is (*queued*, *place*).
start tells nobody           the head of the queue of a lock kept for a retry does not hear
                             that its lease ends earlier now (*contract*).
start leaves no trace        the reservation of a job that begins is deleted, and does not say any
                             more which request had it: a late copy takes it again (*contract*).
withdraw asks nobody         a caller that does not run in the place of another takes back the stop
                             request of any caller (*contract*).
no look at who runs          ``reserve`` gives a job that wants to be alone its reservation beside
                             one that runs (*alone*).

And those of the simulated driver (:data:`DRIVER`):

a reply is believed          a driver takes a reply for what its oldest request is owed, and does
                             not check its proof: two holders (*overlap*).
a torn write is no end       an interruption comes while a request is written, and the connection is
                             used on: proofs protect, but the order is lost (*order*).
a child does not notice      a process that C code forked uses its parent's connections (*order*).
a torn write, and believed   both together, and no broken proxy: only proofs protected (*overlap*).
a child, and believed        the same.
silence is waited for        no request is sent again where no reply comes (*silence*).
"""

from __future__ import annotations

from lualock.jobs import verbs
from lualock.scripts import SCRIPTS
from tests.simulation.many import hunt

Replacement = tuple[str, str, str]  # a verb, what stands there, what stands there instead

PLANTED: dict[str, tuple[Replacement, ...]] = {
    "no owner check in release": tuple(
        (verb, "if string.sub(record, 40 - #lease, 39) == lease then", "if true then")
        for verb in ("release", "hand_over")
    ),
    "no look after subscribing": (
        ("wait", "if not held then\n  local other_waiters", "if false then\n  local other_waiters"),
        (
            "wait",
            "\nif not held then\n  local next_holder",
            "\nif not held then\n"
            "  do return {proof, 'queued', 60000, 0, '', last_fence or fence, 0, score} end\n"
            "  local next_holder",
        ),
    ),
    "no new fence on hand-over": (
        ("hand_over", "HELD_WAITED .. fence .. waiter", "HELD_WAITED .. last_fence .. waiter"),
    ),
    "no new fence for the next": tuple(
        (verb, "fence = string.format('%016.0f', tonumber(fence) + 1)", "")
        for verb in ("abandon", "wait", "hand_over", "died")
    ),
    "start takes any place": (
        ("start", "queued and string.sub(queued, 18, 39) == reservation_token", "queued"),
    ),
    "start tells nobody": (("start", "if has_waiters then", "if false then"),),
    "start leaves no trace": (
        (
            "start",
            "redis.call('SET', reservation, tombstone, 'PX', TOMBSTONE_MS)",
            "redis.call('DEL', reservation)",
        ),
    ),
    "withdraw asks nobody": (("withdraw", "if requester == token then", "if true then"),),
    "no look at who runs": (
        ("reserve", "elseif alone == '1' and is_running", "elseif false and is_running"),
    ),
}

DRIVER: dict[str, tuple[frozenset[str], str]] = {
    "a reply is believed": (frozenset({"unproved"}), "overlap"),
    "a torn write is no end": (frozenset({"torn"}), "order"),
    "a child does not notice": (frozenset({"forked"}), "order"),
    "a torn write, and believed": (frozenset({"torn", "unproved", "straight"}), "overlap"),
    "a child, and believed": (frozenset({"forked", "unproved", "straight"}), "overlap"),
    "silence is waited for": (frozenset({"patient"}), "silence"),
}
"""Each with the rule that it breaks."""


def sources(replacements: tuple[Replacement, ...]) -> dict[bytes, bytes]:
    """The changed scripts, by the shipped ones."""
    changed: dict[bytes, bytes] = {}
    for verb, shipped, planted in replacements:
        source = (SCRIPTS | verbs.SCRIPTS)[verb].source
        text = changed.get(source, source).decode()
        if text.count(shipped) != 1:
            raise ValueError(f"{verb}.lua has {shipped!r} {text.count(shipped)} times")
        changed[source] = text.replace(shipped, planted).encode()
    return changed


def find(name: str, most: int = 1000) -> tuple[int, str] | None:
    """The first seed that finds a planted bug, and by which rule; None: none of ``most`` did."""
    if name in DRIVER:
        bugs, rule = DRIVER[name]
        return hunt({}, most, bugs=bugs, rule=rule)
    return hunt(sources(PLANTED[name]), most)

"""Make random calls of the scripts on random data, and judge each by its contract.

A seed runs whole clients, and so meets rare data rarely: a foreign value at a key, a server without
memory, a request that is late by a microsecond. A *probe* is one small draw: the values at the keys
of two locks, the channels with a subscriber, what the server allows, and some calls, one after the
other, with arguments that often fit. Probes do not test the protocol; some thousands take a second.
The number of a probe decides its draw.

:func:`random_call` also makes the calls of ``test_conformance``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from lupa import lua51  # type: ignore[import-untyped]  # it has no type hints

from lualock._core.keys import waiters_key
from lualock._protocol import RunScript, stop_request
from lualock._transport import codec, errors
from lualock.jobs import verbs
from lualock.scripts import Script, every, with_keys
from tests.simulation import contract
from tests.simulation.contracts import contract_of
from tests.simulation.scripting import Broke, Interpreter
from tests.simulation.store import Refused, SortedSet, Store
from tests.simulation.world import EPOCH_US, US
from tests.support.proving import proof_of

ALL = [*every().values()]
CALLS = 4
"""How many calls a probe makes."""

BAND = 2**44
LOCK = b"{k}"
RESERVATION, STOP_REQUESTS = verbs.reservation_key(LOCK), stop_request.stop_requests_key(LOCK)
KEYS = {
    "lock": LOCK,
    "waiters": waiters_key(LOCK),
    "stop_requests": STOP_REQUESTS,
    "reservation": RESERVATION,
    "reservation_waiters": waiters_key(RESERVATION),
}
LOCKS = tuple(KEYS[key] for key in ("lock", "waiters", "reservation", "reservation_waiters"))
CHANNEL, NO_RECEIVER = b"{k}channel", b"{k}nobody"
JOBS = (b"", b"web", b"web\njob a", b"web\njob b", b"another\njob a")


@dataclass(frozen=True)
class Words:
    """The values that the arguments of random calls are drawn from."""

    tickets: Sequence[bytes]  # each begins with the token of its waiter
    fences: Sequence[bytes]  # of leases and requests
    deadlines: Sequence[bytes]
    scores: Sequence[bytes]
    ttls_ms: Sequence[bytes]
    whole: bool = True  # whether a lease may be named with its fence


def random_call(chance: Random, script: Script, words: Words) -> RunScript:
    """Draw a call of a script, with arguments that often fit the data."""
    choice = chance.choice
    ticket, other = choice(words.tickets), choice(words.tickets)
    token, ttl_ms = ticket[:22], choice(words.ttls_ms)
    lease = choice(words.fences) + token
    values = {
        "token": token,
        "lease": lease
        if words.whole and (script.path == "lock/claim" or chance.random() < 0.5)
        else token,
        "next_holder": other[:22],
        "reservation_token": other[:22],
        "job": b"job a",
        "alone": choice((b"0", b"1")),
        "holder": choice((b"", b"web", b"another")),
        "fence": choice(words.fences),
        "lease_fence": choice(words.fences),
        "ttl_ms": ttl_ms,
        "holder_info": choice(JOBS),
        "deadline": choice(words.deadlines),
        "sent_us": choice((*words.deadlines, *words.fences)),
        "ticket": b"" if script.path == "lock/abandon" and chance.random() < 0.2 else ticket,
        "score": choice(words.scores),
        "max_waiters": choice((b"0", b"0", b"2")),
        "kept_lease": choice((b"", b"", lease)),
        "shorten": choice((b"0", b"1")),
        "yielding": choice((b"", other[:22] * 2, other[:22] + token)),
    }
    if script.keys == ("keys",):  # of any number of locks
        keys = LOCKS[: choice((2, 4))]
        script = with_keys(script, len(keys))
    elif script.keys == ("lock",) and chance.random() < 0.3:
        keys = (RESERVATION,)  # a reservation is a lock like any other
    else:
        keys = tuple(KEYS[key] for key in script.keys)
    parts = [*keys] + [values[arg] for arg in script.args if arg != "proof"]
    return RunScript(script, tuple(parts))


class Bench:
    """A store with the scripts, shipped or changed, on which calls are made."""

    def __init__(self, changed: dict[bytes, bytes] | None = None, version: Any = lua51) -> None:
        self.store = Store()
        self._lua = Interpreter(self.store, version)
        self._changed = changed or {}
        self._messages: list[tuple[bytes, int]] = []
        self._receivers: dict[bytes, int] = {}
        self.store.publish, self.store.numsub = self._publish, self._numsub
        # Unchanged scripts cannot show a difference.
        self._scripts = [one for one in ALL if not changed or one.source in changed]

    def probe(self, number: int) -> Iterator[str]:
        """Draw some data and make some calls; yield how they break their contracts."""
        chance, store = Random(number), self.store
        store.reset()
        store.now_us = EPOCH_US + chance.randrange(1000 * US)
        words = self._draw(chance)
        for _ in range(CALLS):
            call = random_call(chance, chance.choice(self._scripts), words)
            if not self._outside(call):
                yield from self._judged(call)
            store.now_us += chance.choice((0, 0, 1, 1000, 70_000, 3 * US, -1000))

    def _draw(self, chance: Random) -> Words:
        """Draw the data."""
        store, choice, draw = self.store, chance.choice, chance.random
        now_us = store.now_us
        fences = [b"%016d" % (now_us + by) for by in (-20 * US, -90_000, choice((-1, 0, 1, US)))]
        self._receivers = {CHANNEL: choice((0, 1, 1, 2))}
        tickets = [
            b"%022d%b %b %b"
            % (at, choice((b"300", b"9000")), choice((CHANNEL, NO_RECEIVER)), choice(JOBS))
            for at in range(4)
        ]
        for lock in (LOCK, RESERVATION):
            self._put(chance, lock, _record(chance, tickets, fences), _set((5.0, b"x")))
            self._put(chance, waiters_key(lock), _queue(chance, now_us, tickets), b"x")
        self._put(chance, STOP_REQUESTS, _requests(chance, tickets, fences), b"x")
        store.oom, store.read_only, store.silent = draw() < 0.1, draw() < 0.05, draw() < 0.1
        waiters = store.data.get(KEYS["waiters"])
        taken = [int(score) for score, _ in waiters.order] if type(waiters) is SortedSet else []
        return Words(
            tickets,
            fences,
            [b"%016d" % (now_us + by) for by in (-US, -1, 0, US, 60 * US)],
            [b"%d" % score for score in (100 * BAND, 101 * BAND, *taken)],
            (b"1", b"700", b"60000"),
        )

    def _put(self, chance: Random, key: bytes, value: Any, foreign: Any) -> None:
        """Store a value for some time, or rarely a foreign one."""
        if chance.random() < 0.05:
            value = foreign
        if value is not None:
            left_ms = chance.choice((1, 200, 2000, 50_000, 100_000))
            self.store.data[key] = value
            self.store.ends[key] = self.store.now_us // 1000 + left_ms

    def _outside(self, call: RunScript) -> bool:
        """Whether no caller makes this call: a holder that is still queued first calls ``wait``, or
        leaves the queue as well, and the token of ``force_release`` does not wait."""
        if call.script.path == "lock/force_release":
            waiting = contract.read(self.store, call).tickets
            return any(one[:22] == call.parts[2] for one in waiting)
        if call.script.path not in ("lock/hand_over", "jobs/died", "lock/abandon"):
            return False
        seen = contract.read(self.store, call)
        return any(one[:22] == seen.owner and one not in call.parts for one in seen.tickets)

    def _judged(self, call: RunScript) -> list[str]:
        """Make a call; return how it broke its contract."""
        store, script, self._messages = self.store, call.script, []
        contract = contract_of(script)
        before = contract.read(store, call)
        reply: Any
        try:
            source = self._changed.get(script.source, script.source)
            proof, words = proof_of(script, call.parts)
            reply = codec.strip_proof(self._lua.run(source, len(script.keys), words), proof)
        except Refused as error:
            reply = error
        except (Broke, errors.CrossedReply) as error:
            return [f"script: {script.path} {error}"]
        after = contract.read(store, call)
        found = contract.judge(call, before, after, reply, self._messages, store)
        seen = f"before: {before}, after: {after}, messages: {self._messages}"
        return [f"contract: {script.path}{call.parts} -> {reply}: {text}; {seen}" for text in found]

    def _publish(self, channel: bytes, message: bytes) -> int:
        receivers = self._numsub(channel)
        self._messages.append((message, receivers))
        return receivers

    def _numsub(self, channel: bytes) -> int:
        return self._receivers.get(channel, 0)


def _record(chance: Random, tickets: list[bytes], fences: list[bytes]) -> bytes | None:
    """Draw the value at a lock's key."""
    if chance.random() < 0.2:
        return None
    if chance.random() < 0.08:
        return chance.choice((b"X" + fences[0], b"H" + b"?" * 16)) + b"f" * 44
    state, fence = chance.choice((b"H", b"W", b"R", b"F")), chance.choice(fences)
    token, previous_token = (chance.choice(tickets)[:22] for _ in range(2))
    if state in (b"R", b"F"):
        return state + fence + token
    previous_token = chance.choice((previous_token, b"-" * 22))
    return state + fence + token + previous_token + chance.choice(JOBS)


def _queue(chance: Random, now_us: int, tickets: list[bytes]) -> SortedSet | None:
    """Draw some waiters, in any order, some of them young."""
    waits = chance.sample(tickets, chance.choice((0, 0, 1, 2, 3)))
    ticks = (now_us - 1_735_689_600 * US) // 100
    scores = [
        (float(chance.choice((100, 100, 101)) * BAND + ticks - by), ticket)
        for by, ticket in zip(chance.sample((-5, 10, 700, 5000), len(waits)), waits, strict=True)
    ]
    return _set(*scores) if scores else None


def _requests(chance: Random, tickets: list[bytes], fences: list[bytes]) -> bytes | None:
    """Draw some stop requests, the latest first."""
    requesters = chance.sample(tickets, chance.choice((0, 0, 1, 2, 3)))
    times = sorted(
        (int(chance.choice(fences)) + at for at, _ in enumerate(requesters)), reverse=True
    )
    pairs = zip(times, requesters, strict=True)
    return b"".join(b"%016d%b" % (time, requester[:22]) for time, requester in pairs) or None


def _set(*pairs: tuple[float, bytes]) -> SortedSet:
    found = SortedSet()
    for score, member in pairs:
        found.add(member, score)
    return found


def find(changed: dict[bytes, bytes] | None, numbers: Iterable[int]) -> tuple[int, str] | None:
    """Return the first probe that finds a violation, and its text; None if none does."""
    bench = Bench(changed)
    for number in numbers:
        for text in bench.probe(number):
            return number, text
    return None

"""Virtual time, the server, and the recorded history. One seed decides all that happens."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from lualock._protocol import MultiRequest, RunScript
from lualock._transport import codec, errors
from lualock.scripts import Script
from tests.simulation.checker import OVERLAPS, Event, Violation
from tests.simulation.scripting import Broke, Interpreter
from tests.simulation.store import Refused, Store

if TYPE_CHECKING:
    from tests.simulation.clients import Client
    from tests.simulation.connections import Link
    from tests.simulation.network import Process
    from tests.simulation.subscriber import SubscriberConnection

US = 1_000_000
EPOCH_US = 1_800_000_000 * US
"""The server's clock when a run begins."""


MOST_EVENTS = 50_000
"""The limit of one run; the busiest has far fewer."""


class World:
    """All that belongs to a run. Time is in whole microseconds and moves from event to event."""

    def __init__(self, seed: int, server: Server, *, trace: bool = False) -> None:
        self.random = Random(seed)
        self.now = 0
        self.history: list[Event] = []
        self.found: list[Violation] = []  # violations that are seen while the run lasts
        self.disowned: dict[bytes, int] = {}  # when a token's owner released it or gave up
        self.ended: dict[bytes, int] = {}  # the same, also if the owner only forgot to release
        # Until when a fault keeps a process from the server ('': the server from answering); and
        # the same without silently dead connections.
        self._troubled: dict[str, float] = {}
        self._shaken: dict[str, float] = {}
        self.requested_by: dict[
            bytes, tuple[str, float]
        ] = {}  # which process under a token, and when
        self.orphans_until: dict[bytes, float] = {}
        # Late requests that took a lock only because the server's clock was put back: for how
        # long they may have it.
        self.let_in: dict[bytes, float] = {}
        self.known: set[bytes] = set()  # the tokens whose owners know that they have a lock
        # The tokens under which a client waits for several locks: its process, and the request
        # for the lease that it wants.
        self.turns: dict[bytes, tuple[Process, MultiRequest]] = {}
        self.turn_ends: dict[bytes, int] = {}  # when the server lets their locks end
        self.turn_fences: Counter[bytes] = Counter()  # the last one of each
        self.lost_turns: Counter[bytes] = Counter()  # how often one lost its lock
        self.kept: set[str] = set()  # the jobs for whose retry a lock may be kept
        self.faults: Counter[str] = Counter()
        self.trace: list[str] | None = [] if trace else None
        self.latency_us = 150  # of a message, on average
        self.flaky = 0.0  # the share of requests that meet a fault
        self.fate = self._fate  # decides what becomes of a request
        self.crossing = 0.0  # the share of replies that are put out of order
        self.torn: Client | None = None  # is interrupted while it writes its next request
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self.server = server
        server.enter(self)

    @property
    def t(self) -> float:
        """The time in seconds."""
        return self.now / US

    def at(self, when: int, act: Callable[..., None], *args: Any) -> None:
        """Call ``act`` at that time."""
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, act, args))

    def after(self, us: int, act: Callable[..., None], *args: Any) -> None:
        """Call ``act`` after that time."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + us, self._count, act, args))

    def run(self, until: int) -> None:
        """Run all that is planned until then, in order."""
        heap, pop, left = self._heap, heapq.heappop, MOST_EVENTS
        while heap and heap[0][0] <= until:
            self.now, _, act, args = pop(heap)
            act(*args)
            left -= 1
            if not left:
                self.wrong("ends", f"{MOST_EVENTS} events, and no end")
                return

    @property
    def still(self) -> bool:
        """Whether nothing more is planned."""
        return not self._heap

    def waits_as(self, token: bytes) -> str:
        """Return the id of what a client has at one lock while it waits for the others: a new one
        each time that it has lost the lock."""
        return f"{token.decode().rstrip('.')}.{self.lost_turns[token]}"

    def record(self, kind: str, **fields: Any) -> None:
        """Record an event."""
        event = Event(self.now / US, kind, **fields)
        self.history.append(event)
        if self.trace is not None:
            self.say(_described(event))

    def say(self, text: str) -> None:
        """Add a line to the trace."""
        if self.trace is not None:
            self.trace.append(f"{self.now / US:12.6f}  {text}")

    def excused(self, process: str, for_s: float) -> bool:
        """Whether, in the last so many seconds, a fault kept this process from the server, or made
        the server forget."""
        return max(self._troubled.get(process, 0.0), self._troubled.get("", 0.0)) >= self.t - for_s

    def shaken(self, process: str, for_s: float) -> bool:
        """The same without silently dead connections, which must cost little time."""
        return max(self._shaken.get(process, 0.0), self._shaken.get("", 0.0)) >= self.t - for_s

    def fault(self, what: str, lasts_us: int = 0, **fields: Any) -> None:
        """Record a fault."""
        self.faults[what] += 1
        if what != "orphan":
            process = fields.get("process", "")
            end_s = (self.now + lasts_us) / US + (1e9 if what in OVERLAPS else 0)
            self._troubled[process] = max(self._troubled.get(process, 0.0), end_s)
            if what != "silent":
                self._shaken[process] = max(self._shaken.get(process, 0.0), end_s)
        self.record("cause", what=what, until=(self.now + lasts_us) / US, **fields)

    def _fate(self) -> str:
        if self.random.random() >= self.flaky:
            return ""
        return self.random.choice(("late", "late", "lost", "silent", "reply_lost", "reply_lost"))

    def orphans(self, call: RunScript, expires: float) -> None:
        """Note that an orphaned request ran; it is cleaned up when it has expired."""
        for part in call.parts:
            token = part[:22]
            self.orphans_until[token] = max(self.orphans_until.get(token, 0.0), expires)

    def wrong(self, rule: str, text: str) -> None:
        """Record a violation."""
        self.found.append(Violation(rule, self.now / US, text))
        self.say(f"!!! {rule}: {text}")


class Server:
    """A server: a store, the scripts that it knows, its connections.

    One object serves many runs, because compiling the scripts takes longer than a run.
    """

    world: World

    def __init__(self) -> None:
        self.store = Store()
        self.lua = Interpreter(self.store)
        self.sources: dict[bytes, bytes] = {}  # changed scripts, by the shipped source
        self.bugs: frozenset[str] = frozenset()  # of the simulated driver: see planted.py
        self.messages: list[tuple[bytes, int]] = []  # the messages of the script that runs
        self.before_script: Callable[[RunScript], None] = lambda call: None
        self.after_script: Callable[[RunScript, Any], None] = lambda call, reply: None

    def enter(self, world: World) -> None:
        """Begin a run."""
        self.world = world
        self.store.reset()
        self.store.publish, self.store.numsub = self._publish, self._numsub
        self.offset_us = 0
        self.grain_us = 1
        self.known: set[str] = set()
        self.subscribers: dict[bytes, list[SubscriberConnection]] = {}
        self.astray: list[SubscriberConnection] = []  # connected to the earlier primary
        self.links: list[Link] = []
        self.stalled_until = 0
        self.down = False

    def clock_us(self) -> int:
        """The server's own clock."""
        now = EPOCH_US + self.world.now + self.offset_us
        return now - now % self.grain_us

    def execute(
        self, call: RunScript, whole: bool, proof: bytes, words: tuple[bytes, ...]
    ) -> tuple[Any, Any]:
        """Run a script. ``whole``: its source was sent, not only its hash.

        Returns the reply with its proof, and without. An error is a reply that has no proof.
        """
        script: Script = call.script
        reply: Any
        answer: Any
        if not whole and script.sha not in self.known:
            reply = answer = Refused("NOSCRIPT No matching script. Please use EVAL.")
            return reply, answer
        self.known.add(script.sha)
        self.store.now_us = self.clock_us()
        self.messages = []
        self.before_script(call)
        source = self.sources.get(script.source, script.source)
        try:
            reply = self.lua.run(source, len(script.keys), words)
            answer = codec.strip_proof(reply.copy() if type(reply) is list else reply, proof)
        except Refused as error:
            reply = answer = error
        except (Broke, errors.CrossedReply) as error:
            self.world.wrong("script", f"{script.name}: {error}")
            reply = answer = Refused(f"ERR user_script: {error}")
        if self.world.trace is not None:
            self.world.say(f"     server {script.name}{_shown(call.parts)} -> {_shown(answer)}")
        self.after_script(call, answer)
        return reply, answer

    def check_deadline(self, key: bytes, token: bytes, until: float) -> None:
        """Report a violation if a holder relies on its lease for longer than the server does."""
        world = self.world
        record = self.store.data.get(key)
        if any(world.faults[what] for what in (*OVERLAPS, "clock_back")):
            return  # another holder may have come in between
        if type(record) is bytes and record[17:39] == token and record[:1] in (b"H", b"W"):
            end_us = (self.store.ends[key] + 1) * 1000 - EPOCH_US - self.offset_us
            if until * US > end_us + 1:
                text = f"{_shown(token)} relies on its lease until {until:.6f}"
                world.wrong("validity", f"{text}, and the server until {end_us / US:.6f}")

    def tick(self) -> None:
        """Let the store expire what has ended by now."""
        self.store.now_us = self.clock_us()
        self.store.expire()

    def _publish(self, channel: bytes, message: bytes) -> int:
        subscribers = self.subscribers.get(channel, ())
        self.messages.append((message, len(subscribers)))
        for subscriber in subscribers:
            subscriber.carry(message)
        for subscriber in self.astray:
            subscriber.repeat(channel, message)
        if self.world.trace is not None:
            self.world.say(f"     PUBLISH {_shown(message)}: {len(subscribers)}")
        return len(subscribers)

    def _numsub(self, channel: bytes) -> int:
        return len(self.subscribers.get(channel, ()))

    def break_all(
        self, spare: Callable[[SubscriberConnection], bool] = lambda subscriber: False
    ) -> None:
        """End every connection, as the end of the server's process does.

        Connections for messages that ``spare`` chooses stay open, but this server forgets them.
        """
        for link in self.links:
            link.broken()
        self.links = []
        for subscribers in list(self.subscribers.values()):
            for subscriber in list(subscribers):
                if not spare(subscriber):
                    subscriber.broken()
        self.subscribers = {}
        self.known = set()


def _described(event: Event) -> str:
    words = [event.kind.upper(), event.lock, event.what]
    if event.fence:
        words.append(f"fence {str(event.fence)[5:]}")
    if event.until is not None:
        words.append(f"until {event.until:.6f}")
    if event.kind == "acquire":
        words.append("for ever" if event.wait_s is None else f"for {event.wait_s:.3f} s")
    return f"{event.process:>4} {event.id:<5} " + " ".join(filter(None, words))


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1").replace("......", "")
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_shown, value)) + ")"
    return str(value)

"""Virtual time, the server, and what is recorded. One seed decides everything that happens."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from lualock._protocol import RunScript
from lualock._transport import codec, errors
from lualock.scripts import Script
from tests.simulation.checker import OVERLAPS, Event, Violation
from tests.simulation.scripting import Broke, Interpreter
from tests.simulation.store import Refused, Store

if TYPE_CHECKING:
    from tests.simulation.clients import Client
    from tests.simulation.ear import EarLine
    from tests.simulation.lines import Link

US = 1_000_000
EPOCH_US = 1_800_000_000 * US
"""The server's clock when a run begins."""


MOST_EVENTS = 50_000
"""In one run; the busiest has far less."""


class World:
    """What a run is made of. Time is in whole microseconds and moves only from event to event."""

    def __init__(self, seed: int, server: Server, *, trace: bool = False) -> None:
        self.random = Random(seed)
        self.now = 0
        self.history: list[Event] = []
        self.found: list[Violation] = []  # what is wrong at sight
        self.disowned: dict[bytes, int] = {}  # when a token's owner was done with it
        self.ended: dict[bytes, int] = {}  # the same, also for who only forgot to release
        # Until when something keeps each process from the server, or '' the server from answering;
        # and the same without lines that are dead without a word.
        self._troubled: dict[str, float] = {}
        self._shaken: dict[str, float] = {}
        self.asked: dict[bytes, tuple[str, float]] = {}  # which process under a token, and when
        self.ghost_until: dict[bytes, float] = {}
        # What only a clock that was put back let in, when its caller had long gone: for how long
        # it may have the lock.
        self.let_in: dict[bytes, float] = {}
        self.known: set[bytes] = set()  # the tokens whose owners know that they got a lock
        self.kept: set[str] = set()  # the jobs for whose retry a lock may be kept
        self.faults: Counter[str] = Counter()
        self.trace: list[str] | None = [] if trace else None
        self.latency_us = 150  # of a message, in the middle
        self.flaky = 0.0  # which share of the requests meets a connection that breaks
        self.fate = self._fate  # what becomes of a request
        self.crossing = 0.0  # which share of the replies loses its place in the order
        self.torn: Client | None = None  # who is interrupted while it writes its next request
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self.server = server
        server.enter(self)

    @property
    def t(self) -> float:
        """The time in seconds."""
        return self.now / US

    def at(self, when: int, act: Callable[..., None], *args: Any) -> None:
        """Let something happen then."""
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, act, args))

    def after(self, us: int, act: Callable[..., None], *args: Any) -> None:
        """Let something happen after that time."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + us, self._count, act, args))

    def run(self, until: int) -> None:
        """Let happen what happens, in order; whatever is left at ``until`` does not."""
        heap, pop, left = self._heap, heapq.heappop, MOST_EVENTS
        while heap and heap[0][0] <= until:
            self.now, _, act, args = pop(heap)
            act(*args)
            left -= 1
            if not left:
                self.wrong("ends", f"{MOST_EVENTS} events, and no end: somebody turns in circles")
                return

    @property
    def still(self) -> bool:
        """Whether nothing more will happen."""
        return not self._heap

    def record(self, kind: str, **fields: Any) -> None:
        """Write down what happened."""
        event = Event(self.now / US, kind, **fields)
        self.history.append(event)
        if self.trace is not None:
            self.say(_told(event))

    def say(self, text: str) -> None:
        """A line for whoever reads the trace."""
        if self.trace is not None:
            self.trace.append(f"{self.now / US:12.6f}  {text}")

    def excused(self, who: str, for_s: float) -> bool:
        """Whether anything kept this process from the server in the last so many seconds, or made
        the server forget."""
        return max(self._troubled.get(who, 0.0), self._troubled.get("", 0.0)) >= self.t - for_s

    def shaken(self, who: str, for_s: float) -> bool:
        """The same, but for lines that are dead without a word: that much is survived quickly."""
        return max(self._shaken.get(who, 0.0), self._shaken.get("", 0.0)) >= self.t - for_s

    def fault(self, what: str, lasts_us: int = 0, **fields: Any) -> None:
        """Write down a fault."""
        self.faults[what] += 1
        if what != "orphan":
            who = fields.get("who", "")
            end_s = (self.now + lasts_us) / US + (1e9 if what in OVERLAPS else 0)
            self._troubled[who] = max(self._troubled.get(who, 0.0), end_s)
            if what != "silent":
                self._shaken[who] = max(self._shaken.get(who, 0.0), end_s)
        self.record("cause", what=what, until=(self.now + lasts_us) / US, **fields)

    def _fate(self) -> str:
        if self.random.random() >= self.flaky:
            return ""
        return self.random.choice(("late", "late", "lost", "mute", "unheard", "unheard"))

    def orphans(self, call: RunScript, expires: float) -> None:
        """A request runs that nobody waits for any more; it is laid when it expires."""
        for part in call.parts:
            token = part[:22]
            self.ghost_until[token] = max(self.ghost_until.get(token, 0.0), expires)

    def wrong(self, rule: str, text: str) -> None:
        """Write down what must not be."""
        self.found.append(Violation(rule, self.now / US, text))
        self.say(f"!!! {rule}: {text}")


class Server:
    """One server: a store, the scripts it knows, who is connected. Lives for many runs, because
    compiling the scripts takes longer than a run."""

    world: World

    def __init__(self) -> None:
        self.store = Store()
        self.lua = Interpreter(self.store)
        self.sources: dict[bytes, bytes] = {}  # mutants: by the shipped source
        self.bugs: frozenset[str] = frozenset()  # of the simulated driver: see planted.py
        self.told: list[tuple[bytes, int]] = []  # the messages of the script that runs
        self.before: Callable[[RunScript], None] = lambda call: None
        self.watch: Callable[[RunScript, Any], None] = lambda call, reply: None

    def enter(self, world: World) -> None:
        """Begin a run."""
        self.world = world
        self.store.reset()
        self.store.publish, self.store.numsub = self._publish, self._numsub
        self.offset_us = 0
        self.grain_us = 1
        self.known: set[str] = set()
        self.ears: dict[bytes, list[EarLine]] = {}
        self.astray: list[EarLine] = []  # that are connected to what was the primary before
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
        """Run a script; ``whole``: its source came along. Returns its reply, and what that says
        behind its proof. An error is a reply too, and has none."""
        script: Script = call.script
        reply: Any
        said: Any
        if not whole and script.sha not in self.known:
            reply = said = Refused("NOSCRIPT No matching script. Please use EVAL.")
            return reply, said
        self.known.add(script.sha)
        self.store.now_us = self.clock_us()
        self.told = []
        self.before(call)
        source = self.sources.get(script.source, script.source)
        try:
            reply = self.lua.run(source, len(script.keys), words)
            said = codec.strip_proof(reply.copy() if type(reply) is list else reply, proof)
        except Refused as error:
            reply = said = error
        except (Broke, errors.CrossedReply) as error:
            self.world.wrong("script", f"{script.name}: {error}")
            reply = said = Refused(f"ERR user_script: {error}")
        if self.world.trace is not None:
            self.world.say(f"     server {script.name}{_shown(call.parts)} -> {_shown(said)}")
        self.watch(call, said)
        return reply, said

    def check_deadline(self, key: bytes, token: bytes, until: float) -> None:
        """Whoever believes to have a lock until then must have it until then."""
        world = self.world
        record = self.store.data.get(key)
        if any(world.faults[what] for what in (*OVERLAPS, "clock_back")):
            return  # it may have come in between
        if type(record) is bytes and record[17:39] == token and record[:1] in (b"H", b"W"):
            end_us = (self.store.ends[key] + 1) * 1000 - EPOCH_US - self.offset_us
            if until * US > end_us + 1:
                text = f"{_shown(token)} believes in its lease until {until:.6f}"
                world.wrong("validity", f"{text}, and the server until {end_us / US:.6f}")

    def tick(self) -> None:
        """Bring the store to this moment."""
        self.store.now_us = self.clock_us()
        self.store.expire()

    def _publish(self, channel: bytes, message: bytes) -> int:
        ears = self.ears.get(channel, ())
        self.told.append((message, len(ears)))
        for ear in ears:
            ear.carry(message)
        for ear in self.astray:
            ear.repeat(channel, message)
        if self.world.trace is not None:
            self.world.say(f"     PUBLISH {_shown(message)}: {len(ears)}")
        return len(ears)

    def _numsub(self, channel: bytes) -> int:
        return len(self.ears.get(channel, ()))

    def break_all(self, spare: Callable[[EarLine], bool] = lambda ear: False) -> None:
        """Every connection ends, as when the process does; but those for messages that are spared
        are just no longer ours."""
        for link in self.links:
            link.broken()
        self.links = []
        for ears in list(self.ears.values()):
            for ear in list(ears):
                if not spare(ear):
                    ear.broken()
        self.ears = {}
        self.known = set()


def _told(event: Event) -> str:
    words = [event.kind.upper(), event.lock, event.what]
    if event.fence:
        words.append(f"fence {str(event.fence)[5:]}")
    if event.until is not None:
        words.append(f"until {event.until:.6f}")
    if event.kind == "ask":
        words.append("for ever" if event.wait_s is None else f"for {event.wait_s:.3f} s")
    return f"{event.who:>4} {event.id:<5} " + " ".join(filter(None, words))


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1").replace("......", "")
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_shown, value)) + ")"
    return str(value)

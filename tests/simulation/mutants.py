"""Remove each guard, one at a time, and check whether the simulator notices.

*Lua*: each condition of an ``if`` or ``elseif`` becomes true, and false; each write is left out.
*Protocol*: each compensating step, each repeated request and each doubt about a reply is left out
(:data:`PROTOCOL`). A mutant that no seed kills *survives*. Then either it makes no difference to a
user, and :data:`REASONS` explains that, or a rule is missing.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import lualock
from lualock.scripts import every as scripts_by_path
from lualock.scripts import parse
from tests.simulation import probes
from tests.simulation.many import hunt, in_parallel
from tests.simulation.run import has_accidents, has_multi, has_silence, has_streams
from tests.simulation.store import COMMANDS

PROBES = 4000
"""How many probes are tried before any seed: they take a second."""

FOLDER = Path(lualock.__file__).parent
SCRIPTS = FOLDER / "scripts"

_IF = re.compile(r"^( *)(if|elseif) (.*) then$", re.MULTILINE)
_WRITES = [name.decode() for name, command in COMMANDS.items() if command.writes]
_WRITE = re.compile(rf"redis\.p?call\('(?:{'|'.join([*_WRITES, 'PUBLISH'])})'[^\n]*")


@dataclass(frozen=True)
class Mutant:
    """A removed guard: in a script, an include, or a module of Python."""

    file: str
    line: int
    what: str
    shipped: str  # the whole text of the file
    changed: str  # and the same without the guard

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.what}"


def lua_mutants() -> Iterator[Mutant]:
    """Yield the mutants of every Lua file, includes too."""
    for name, text in _files().items():
        for found in _IF.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            for value in ("true", "false"):
                start, end = found.span(3)
                changed = text[:start] + value + text[end:]
                yield Mutant(name, line, f"{value}: {found[3]}", text, changed)
        for found in _WRITE.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            start, end = _call(text, found.start())
            alone = not text[text.rfind("\n", 0, start) + 1 : start].strip()
            changed = text[:start] + ("do end" if alone else _NOTHING) + text[end:]
            yield Mutant(name, line, f"left out: {text[start:end]}", text, changed)


_NOTHING = "(function() return {ok = 'OK', n = 0} end)()"


def _files() -> dict[str, str]:
    """Return the text of every Lua file, by its path in the folder of the scripts."""
    paths = sorted(SCRIPTS.glob("*/*.lua"))
    return {str(path.relative_to(SCRIPTS)): path.read_text("utf-8") for path in paths}


def _call(text: str, start: int) -> tuple[int, int]:
    """Return where a call begins and its parentheses end."""
    depth = 0
    for at in range(text.index("(", start), len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            return start, at + 1
    raise ValueError(f"a call without an end: {text[start : start + 60]}")


PROTOCOL: tuple[tuple[str, str, str, str], ...] = (
    (
        "_protocol.resend",
        "a request whose reply was lost is not repeated",
        "    if not error.outcome_unknown:\n        raise error\n    try:",
        "    raise error\n    try:",
    ),
    (
        "_protocol.release",
        "an interrupted release gives nothing back",
        'state.mark_released()\n        yield from give_back(request, b"", None)',
        "state.mark_released()",
    ),
    (
        "_protocol.release",
        "a failed release is not cleaned up",
        'if state.fence:\n            yield from give_back(request, b"", None)',
        "pass",
    ),
    (
        "_protocol.abandon",
        "an interruption abandons nothing",
        "yield abandon_request(part, ticket, until)",
        "pass",
    ),
    (
        "_protocol.abandon",
        "an interruption does not clean up the orphan",
        "    if orphan is not None:  # first, because it cannot fail\n",
        "    if False:\n",
    ),
    (
        "_protocol.abandon",
        "an orphan's place in the queue stays",
        'orphan.parts[2] if orphan.script is WAIT else b""',
        'b""',
    ),
    (
        "_protocol.release",
        "a repeated release believes that its lease had ended",
        'if repeated and reply[0] != b"conflict":',
        "if False:",
    ),
    (
        "_protocol.release",
        "a release that has waiters is taken for done",
        'if reply == b"waited":',
        "if False:",
    ),
    (
        "_protocol.extend",
        "the end of an extended lease is counted from the reply",
        "    return state.certain_until(sent_at, ttl_s)\n",
        "    return clock() + ttl_s\n",
    ),
    (
        "_core.lease",
        "a lock that is held at least for a time is free at once",
        "ttl_ms = math.ceil((self._keep_until - self._clock()) * 1000)",
        "ttl_ms = 1",
    ),
    (
        "_protocol.lease_state",
        "a sooner end without an answer is ignored",
        "            self.claim, self.deadline = None, min(self.deadline, until)\n",
        "",
    ),
    (
        "_protocol.extend",
        "any extension may shorten",
        "shorten = state.may_outlast(",
        "shorten = True or state.may_outlast(",
    ),
    (
        "_protocol.extend",
        "the end of a renewed lease is counted from the reply",
        "outcomes.append(state.certain_until(sent_at,",
        "outcomes.append(state.certain_until(clock(),",
    ),
    (
        "_protocol.extend",
        "a lease on several locks is extended if one of them is",
        "return errors[0] if errors else min(ends)",
        "return max(ends) if ends else errors[0]",
    ),
    (
        "_protocol.request",
        "a caller waits for several locks under one token",
        "self.turns = tuple(sorted(requests, key=lambda request: request.key))",
        "self.turns = tuple(\n            replace(one, token=requests[0].token)\n"
        "            for one in sorted(requests, key=lambda request: request.key)\n        )",
    ),
    (
        "_protocol.multi",
        "a later try for all has the token of a refused one",
        "        request.renew_token()\n",
        "",
    ),
    (
        "_protocol.multi",
        "what a waiting caller has is not extended",
        "yield from self._extend()",
        "pass",
    ),
    (
        "_protocol.multi",
        "what a caller has is not given back when it gives up",
        'yield from give_back(turn, b"", None, until)',
        "yield from ()",
    ),
    (
        "_protocol.multi",
        "the locks that a caller has waited for are not made one lease",
        'yielding = b"".join(turn.token for turn in request.turns)',
        "request.state = request.turns[-1].state\n        assert request.state\n"
        "        return request.state",
    ),
    (
        "_protocol.multi",
        "a lock that was lost during the wait ends the wait",
        "if server.clock() >= give_up_at:",
        "if True:",
    ),
    (
        "_protocol.multi",
        "an interrupted release leaves the other locks",
        'yield from give_back(other, b"", None)',
        "pass",
    ),
    (
        "_protocol.multi",
        "the caller's time does not bound its requests",
        "until = give_up_at if wait_s else None",
        "until = None",
    ),
    (
        "_protocol.acquire",
        "a timeout abandons nothing",
        "refusal = yield from abandon(attempt)",
        "refusal = None",
    ),
    (
        "_protocol.acquire",
        "an interruption gives nothing back",
        "yield from give_back(request, attempt.ticket, orphan, attempt.requests_end_at)",
        "pass",
    ),
    (
        "_protocol.acquire",
        "the orphan of a won lease is not cleaned up",
        "yield from schedule_cleanup(request, attempt.orphan)",
        "pass",
    ),
    (
        "_protocol.abandon",
        "the cleanup of an orphan takes away what has been won",
        'b"" if request.state is None else request.state.lease_id',
        'b""',
    ),
    (
        "_protocol.acquire",
        "a lease that was won is not undone",
        'yield from give_back(request, b"", None)',
        "yield from ()",
    ),
    (
        "_protocol.wait",
        "an old message is believed",
        "elif message[:16] > attempt.seen_fence:",
        "elif message:",
    ),
    (
        "_protocol.wait",
        "a claim that was refused is taken for a lease",
        'if reply != b"claimed":',
        "if False:",
    ),
    (
        "_protocol.wait",
        "a late hand-over is taken for certain",
        "if alive and certain_until - now > min(ttl_s, CLAIM_MS / 1000) / 2:",
        "if True:",
    ),
    (
        "_protocol.attempt",
        "the end of a lease is counted from the reply",
        "deadline = sent.sent_at + self.request.ttl_ms / 1000\n",
        "deadline = self.clock() + self.request.ttl_ms / 1000\n",
    ),
    (
        "_protocol.attempt",
        "the end of a waiter's lease is counted from the reply",
        "deadline = self.sent_at + self.request.ttl_ms / 1000\n",
        "deadline = self.clock() + self.request.ttl_ms / 1000\n",
    ),
    (
        "_protocol.attempt",
        "an interrupted waiter keeps its place",
        'turn yet."""\n        self.needs_cleanup = True\n',
        'turn yet."""\n',
    ),
    (
        "_protocol.acquire",
        "a late request is not repeated",
        'if type(reply) is list and reply[0] == b"late":',
        "if False:",
    ),
    (
        "_protocol.adopt",
        "the orphan of an adoption is not cleaned up",
        "yield from schedule_cleanup(request, exchange.orphan)",
        "pass",
    ),
    (
        "_protocol.adopt",
        "an interrupted adoption gives nothing back",
        'yield from give_back(request, b"", orphan)',
        "pass",
    ),
    (
        "_protocol.attempt",
        "the copy of a try is forgotten",
        "  self.mark_lost()\n        self.in_flight = None\n        if type(reply) is bytes:",
        "  pass\n        self.in_flight = None\n        if type(reply) is bytes:",
    ),
    (
        "_protocol.in_flight",
        "a request that was not sent replaces the orphan",
        "if lost is not None and lost.expires < math.inf:",
        "if lost is not None:",
    ),
    (
        "_protocol.in_flight",
        "the copy of a queue request is forgotten",
        "            self.mark_lost()\n        self.in_flight = None\n\n    def possible_orphan",
        "            pass\n        self.in_flight = None\n\n    def possible_orphan",
    ),
    (
        "_protocol.exchange",
        "the copy of an adoption is forgotten",
        "if step.doubled:",
        "if False:",
    ),
    (
        "_protocol.release",
        "the copy of a release is forgotten",
        "repeated = repeated or step.doubled",
        "pass",
    ),
    (
        "_protocol.extend",
        "the copy of an extension is forgotten",
        "certain = certain and not step.doubled",
        "pass",
    ),
    (
        "_protocol.wait",
        "an error is believed that may answer another request",
        "    return None if isinstance(reply, LockError) else reply",
        "    if isinstance(reply, LockError):\n        raise reply\n    return reply",
    ),
    (
        "_protocol.acquire",
        "the lease of a late try is counted from the last of them",
        "attempt.in_flight.sent_at = first.sent_at",
        "pass",
    ),
    (
        "_protocol.wait",
        "a claim is posted on a connection that may be dead",
        "if alive and certain_until",
        "if certain_until",
    ),
    (
        "_core.lease",
        "a refused claim is taken for a lease",
        'elif reply == b"claimed":',
        "elif True:",
    ),
    (
        "_protocol.lease_state",
        "a refused claim does not mark the lease lost",
        "            self.claim = None\n            self.lost = True\n",
        "            self.claim = None\n",
    ),
)


def protocol_mutants() -> Iterator[Mutant]:
    """Yield the mutants of the Python under test."""
    for name, what, shipped, changed in PROTOCOL:
        path = FOLDER / (name.replace(".", "/") + ".py")
        text = path.read_text()
        if shipped not in text:
            raise ValueError(f"{name} has changed: there is no {shipped!r}")
        line = text.count("\n", 0, text.index(shipped)) + 1
        yield Mutant(f"lualock.{name}", line, what, text, text.replace(shipped, changed))


def every() -> list[Mutant]:
    """Return all mutants, in order."""
    return [*lua_mutants(), *protocol_mutants()]


def _scripts(mutant: Mutant) -> dict[bytes, bytes]:
    """Return the scripts that a mutant of Lua changes."""
    texts = _files()
    texts[mutant.file] = mutant.changed
    include = {
        name[len("include/") : -len(".lua")]: text
        for name, text in texts.items()
        if name.startswith("include/")
    }
    changed = {}
    for path, script in scripts_by_path().items():
        source = parse(script.name, texts[f"{path}.lua"], include, proved=False).source
        if source != script.source:
            changed[script.source] = source
    return changed


def _functions(names: dict[str, Any], module: str) -> Iterator[tuple[str, FunctionType]]:
    for name, value in names.items():
        if isinstance(value, FunctionType) and value.__module__ == module:
            yield name, value
        elif isinstance(value, type) and value.__module__ == module:
            for inner, method in vars(value).items():
                if isinstance(method, FunctionType):
                    yield f"{name}.{inner}", method


@contextmanager
def _patched(module: ModuleType, text: str) -> Iterator[None]:
    """Let a module's functions run the changed text, wherever they have been imported to."""
    names: dict[str, Any] = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(text, str(module.__file__), "exec"), names)
    changed = dict(_functions(names, module.__name__))
    swapped = []
    try:
        for name, function in _functions(vars(module), module.__name__):
            if name in changed and not function.__code__.co_freevars:
                swapped.append((function, function.__code__))
                function.__code__ = changed[name].__code__
        yield
    finally:
        for function, code in swapped:
            function.__code__ = code


def probe(mutant: Mutant) -> str:
    """Return the first probe that notices a mutant of Lua, and by which rule; '' if it survives."""
    found = probes.find(_scripts(mutant), range(PROBES))
    return "" if found is None else f"probe {found[0]:<5} {found[1].partition(':')[0]:<8}"


def kill(mutant: Mutant, seeds: int, only: Callable[[int], bool] | None = None) -> str:
    """Return the first probe or seed that notices a mutant, and by which rule; '' if it survives.

    ``only``: chooses the seeds. Without it all seeds are tried, then those with accidents.
    """
    if mutant.file.endswith(".lua"):
        if by_probe := probe(mutant):
            return by_probe
        found = hunt(_scripts(mutant), seeds)
    else:
        with _patched(importlib.import_module(mutant.file), mutant.changed):
            found = hunt({}, seeds, only)
            for kind in (
                (has_accidents, has_silence, has_streams, has_multi) if only is None else ()
            ):
                found = found or hunt({}, 2 * seeds, kind)
    return "" if found is None else f"seed  {found[0]:<5} {found[1]:<8}"


def _try(job: tuple[int, int]) -> tuple[int, str]:
    number, seeds = job
    return number, kill(every()[number], seeds)


REASONS: dict[tuple[str, str], str] = {
    (
        "lock/abandon.lua",
        "true: ahead",
    ): "equivalent: ZREM of a ticket that is not there does nothing",
    ("lock/wait.lua", "true: state == HELD"): "equivalent: writes the letter that is there already",
    ("lock/wait.lua", "true: last_score and last_score >= given_score + BAND"): (
        "equivalent but for the cost: reads again what the first command answered"
    ),
    ("lualock._protocol.lease_state", "a sooner end without an answer is ignored"): (
        "needs both replies to one extension lost, and another holder between the "
        "two ends; ``test_a_sooner_end_without_an_answer`` notices it"
    ),
    ("lualock._protocol.extend", "any extension may shorten"): (
        "needs an extension that arrives after a longer one, and another holder between the two "
        "ends; ``test_only_a_shortening_extension_shortens`` notices it"
    ),
    ("lualock._protocol.extend", "the copy of an extension is forgotten"): (
        "needs a sooner end that was sent twice, an extension after it, and then the other copy; "
        "``test_a_sooner_end_that_was_sent_twice`` notices it"
    ),
    ("lualock._protocol.extend", "a lease on several locks is extended if one of them is"): (
        "one of the locks must be lost, which excuses the second holder that follows; "
        "``test_a_renewed_lease_that_lost_one_lock`` notices it"
    ),
    ("lualock._protocol.wait", "an error is believed that may answer another request"): (
        "needs a stray error for the queue check of a waiter without a timeout, rarely drawn; "
        "``test_an_error_is_believed_only_with_a_proof`` notices it"
    ),
    ("lualock._protocol.acquire", "the lease of a late try is counted from the last of them"): (
        "needs a late request whose reply is doubled; "
        "``test_a_late_try_counts_from_its_first`` notices it"
    ),
    ("lualock._protocol.wait", "a claim is posted on a connection that may be dead"): (
        "breaks no rule: a lease that is not claimed ends with what was certain, and its holder "
        "knows"
    ),
    ("lualock._core.lease", "a refused claim is taken for a lease"): (
        "the rules exist (claim, overlap), but a claim is refused only if it is 2.5 s late while "
        "its holder works on, and claims, sent right after a message, rarely meet a fault"
    ),
}
"""Why a mutant may survive, by its file and what it does."""


def reason(mutant: Mutant) -> str:
    """Return why a mutant may survive; '' if it may not."""
    return REASONS.get((mutant.file, mutant.what), "")


def main(seeds: int, workers: int, first: int = 0) -> int:
    """Try all mutants, or those from ``first`` on; print the survivors."""
    mutants = every()
    killed, survivors = 0, []
    jobs = [(number, seeds) for number in range(first, len(mutants))]
    for number, found in in_parallel(_try, jobs, workers):
        mutant = mutants[number]
        if found:
            killed += 1
        else:
            survivors.append(mutant)
        print(f"{found or 'SURVIVES':<20} {mutant}")
        sys.stdout.flush()
    share = killed / len(jobs)
    print(f"\n{len(jobs)} mutants, {killed} killed ({share:.1%}); the survivors:")
    for mutant in survivors:
        print(f"  {mutant}\n      {reason(mutant) or 'NO REASON'}")
    return 0 if share >= 0.95 else 1

"""Requests that run when their caller waits no more: what they may do, and what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lualock._core.keys import waiters_key
from lualock._protocol import WAIT, RunScript
from tests.simulation.contract import Seen
from tests.simulation.world import US

if TYPE_CHECKING:
    from tests.simulation.network import Process

LAID_S = 3.0  # the longest pause of a clean-up, and a little


def token_of(call: RunScript) -> bytes:
    """For whom a request that has a deadline takes something."""
    at = max(2, len(call.script.keys))  # (of an adoption: the heir)
    token: bytes = call.parts[at][:22] if len(call.parts) > 5 else call.parts[1]
    return token


def lock_of(call: RunScript) -> str:
    """The name of the lock that a call is about."""
    key: bytes = call.parts[0]
    return name_at(key)


def name_at(key: bytes) -> str:
    """The name of a lock, or of a job's place beside it, by its key."""
    return key.decode().partition("{")[2].replace("}", "")


def runs(process: Process, call: RunScript) -> None:
    """A request is about to run whose caller is gone."""
    world = process.world
    world.fault("orphan", lock=lock_of(call))
    expires = call.expires - process.offset_s
    world.orphans(call, expires)
    if world.t < expires < 1e6 and not process.dead:
        world.at(int((expires + LAID_S) * US), _is_laid, process, call)


def ran(process: Process, call: RunScript, reply: Any) -> None:
    """It ran. When it has expired it takes nothing any more, unless the server's clock was put back
    meanwhile."""
    took = type(reply) is bytes and reply.isdigit()
    queued = type(reply) is list and reply[0] == b"queued" and call.script is WAIT
    world, expires = process.world, call.expires - process.offset_s
    if took and call.script.name == "start":
        # The job's place goes with it, which by now may be that of its retry.
        world.record("cause", what="orphan", lock=f"{lock_of(call)}:reservation")
    if not (took or queued) or world.t <= expires:
        return
    token = token_of(call)
    world.record("cause", what="let_in", lock=lock_of(call), id=token.decode().rstrip("._"))
    if call.script is WAIT:
        ttl_ms = call.parts[2][22:].split(b" ")[0]
    else:
        ttl_ms = call.parts[call.parts.index(token) + 1]
    world.let_in[token] = int(ttl_ms) / 1000
    if not world.faults["clock_back"]:
        world.wrong("late", f"{call.script.name} of {token!r} ran after its deadline")


def _is_laid(process: Process, call: RunScript) -> None:
    """A orphan has expired, and its owner was done with it before: it has nothing any more."""
    world = process.world
    token = token_of(call)
    ended = world.disowned.get(token)
    if process.dead or ended is None or ended > world.now - LAID_S * US:
        return
    if token in world.let_in:
        return  # by another of its requests, and a clock that was put back
    if world.ghost_until.get(token, 0.0) > world.t - LAID_S:
        return  # another of its requests expires later, and is judged then
    if world.excused(process.name, LAID_S):
        return
    store, lock = world.server.store, call.parts[0]
    seen = Seen.look(store, lock, waiters_key(lock))
    if seen.owner == token or any(ticket[:22] == token for ticket in seen.tickets):
        world.wrong("orphan", f"what {token.decode().rstrip('.')} once asked for was not laid")

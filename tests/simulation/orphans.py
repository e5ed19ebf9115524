"""Requests that run after their caller has stopped waiting: what they may do and leave behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lualock._core.keys import waiters_key
from lualock._protocol import WAIT, RunScript
from tests.simulation.contract import Seen
from tests.simulation.contracts import contract_of
from tests.simulation.world import US

if TYPE_CHECKING:
    from tests.simulation.network import Process

CLEANUP_S = 3.0  # a little more than the longest pause of a clean-up


def token_of(call: RunScript) -> bytes:
    """Return the token that a request with a deadline acts for."""
    at = max(2, len(call.script.keys))  # (of an adoption: the next holder)
    token: bytes = call.parts[at][:22] if len(call.parts) > 5 else call.parts[1]
    return token


def lock_of(call: RunScript) -> str:
    """Return the name of the lock that a call is about."""
    key: bytes = call.parts[0]
    return name_at(key)


def locks_of(call: RunScript) -> list[str]:
    """Return the names of the locks that a call is about."""
    if call.script.path != "multi/acquire_all":
        return [lock_of(call)]
    return [name_at(key) for key in call.parts[: len(call.script.keys) : 2]]


def name_at(key: bytes) -> str:
    """Return the name of a lock or a reservation by its key."""
    return key.decode().partition("{")[2].replace("}", "")


def about_to_run(process: Process, call: RunScript) -> None:
    """Note that an orphaned request is about to run."""
    world = process.world
    for lock in locks_of(call):
        world.fault("orphan", lock=lock)
    expires = call.expires - process.offset_s
    world.orphans(call, expires)
    if world.t < expires < 1e6 and not process.dead:
        world.at(int((expires + CLEANUP_S) * US), _check_cleaned_up, process, call)


def has_run(process: Process, call: RunScript, reply: Any) -> None:
    """Note that it ran, and check that it took nothing after its deadline, unless the server's
    clock was put back."""
    world, expires = process.world, call.expires - process.offset_s
    contract, token = contract_of(call.script), token_of(call)
    after = contract.read(world.server.store, call)
    # A reply of digits is a fence, if the script is one that takes locks.
    took = type(reply) is bytes and reply.isdigit()
    took = took and token in (owner for _, owner in contract.owners(call, after))
    queued = type(reply) is list and reply[0] == b"queued" and call.script is WAIT
    if took and call.script.path == "jobs/start":
        # It ends the job's reservation, which by now may be that of its retry.
        world.record("cause", what="orphan", lock=f"{lock_of(call)}:reservation")
    if not (took or queued) or world.t <= expires:
        return
    for lock in locks_of(call):
        world.record("cause", what="let_in", lock=lock, id=token.decode().rstrip("._"))
    if call.script is WAIT:
        ttl_ms = call.parts[2][22:].split(b" ")[0]
    else:
        ttl_ms = call.parts[call.parts.index(token) + 1]
    world.let_in[token] = int(ttl_ms) / 1000
    if not world.faults["clock_back"]:
        world.wrong("late", f"{call.script.path} of {token!r} ran after its deadline")


def _check_cleaned_up(process: Process, call: RunScript) -> None:
    """Check that nothing is left of an expired orphan whose owner gave up earlier."""
    world = process.world
    token = token_of(call)
    ended = world.disowned.get(token)
    if process.dead or ended is None or ended > world.now - CLEANUP_S * US:
        return
    if token in world.let_in:
        return  # another request of its owner took it, because the clock was put back
    if world.orphans_until.get(token, 0.0) > world.t - CLEANUP_S:
        return  # another request of its owner expires later, and is judged then
    if world.excused(process.name, CLEANUP_S):
        return
    contract, store = contract_of(call.script), world.server.store
    for lock, owner in contract.owners(call, contract.read(store, call)):
        tickets = Seen.read(store, lock, waiters_key(lock)).tickets
        if owner == token or any(ticket[:22] == token for ticket in tickets):
            text = f"what an orphan took for {token.decode().rstrip('.')} was not cleaned up"
            world.wrong("orphan", text)

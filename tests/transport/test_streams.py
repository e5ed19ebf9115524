"""Streams of replies that lost their order, and requests that were half written."""

from __future__ import annotations

import asyncio
import functools
import itertools
import signal
from asyncio import selector_events
from collections.abc import Iterator
from typing import Any

import pytest

import lualock
from lualock import aio
from lualock._transport import codec
from tests.support.servers import Server
from tests.support.streams import Crossed, Spoil
from tests.support.tiers import full
from tests.support.world import World, settle

QUICK = "&socket_timeout=0.8"  # a lost reply is missed after a quarter of this


def _once(nth: int, act: Spoil) -> Spoil:
    """Change the replies once, from the nth reply of a script on."""
    left = itertools.count(nth, -1)
    kept: list[bytes] = []

    def spoil(replies: list[bytes]) -> list[bytes]:
        sent: list[bytes] = []
        for reply in replies:
            counts = reply[:1] in b"$*-" and b"subscribe" not in reply
            kept.append(reply)
            if not counts or next(left) != 1:
                sent += kept
                kept.clear()
            elif act is _swap:
                continue  # it comes after the next one
            else:
                sent += act(kept)
                kept.clear()
            if len(kept) > 1:
                sent += act(kept)
                kept.clear()
        return sent

    return spoil


def _twice(replies: list[bytes]) -> list[bytes]:
    return [*replies, *replies]


def _never(_: list[bytes]) -> list[bytes]:
    return []


def _swap(replies: list[bytes]) -> list[bytes]:
    return replies[::-1]


def _refused(replies: list[bytes]) -> list[bytes]:
    return [b"-ERR it was for another request\r\n", *replies]


async def _use(locks: Any, truth: Any, name: str) -> None:
    """Use a lock; check that each verb reports the truth, or an unknown outcome."""
    holder = truth.lock("taken").inspect()
    try:
        info = await settle(locks.lock("taken").inspect())
        assert info.fence == holder.fence, "the answer of another inspection was believed"
    except lualock.LockUnavailable:
        pass
    try:
        lease = await settle(locks.lock("taken", ttl=9).try_acquire())
        assert lease is None, "two holders: the lock has another one"
    except lualock.LockUnavailable:
        pass
    try:
        lease = await settle(locks.lock(name, ttl=9).acquire(timeout=3))
    except lualock.LockUnavailable:
        return
    assert lease.held
    assert truth.lock(name).inspect().fence == lease.fence
    try:
        await settle(lease.extend(60))
        assert (truth.lock(name).inspect().remaining_s or 0) > 50, (
            "an extension that did not happen"
        )
    except lualock.LockUnavailable:
        pass
    try:
        await settle(lease.release())
        assert not truth.lock(name).locked(), "a release that did not happen"
    except lualock.LockUnavailable:
        pass


async def _spoilt(world: World, act: Spoil, nth: int) -> None:
    """Use locks over connections that are spoilt at the nth reply."""
    with Crossed(world.server.socket) as proxy, lualock.connect(world.server.url) as truth:
        taken = truth.lock("taken", ttl=60).acquire()
        locks = world.connect(f"{proxy.url}?x=0{QUICK}".replace("?x=0&", "?"))
        await settle(locks.lock("warm", ttl=5).locked())  # the handshake is over
        proxy.spoil = _once(nth, act)
        if world.asynchronous:
            await asyncio.gather(
                *(_use(locks, truth, f"free {nth} {number}") for number in range(3))
            )
        for number in range(3, 6):
            await _use(locks, truth, f"free {nth} {number}")
        if world.asynchronous:
            await locks.aclose()
        else:
            locks.close()
        taken.release()


@pytest.mark.parametrize(
    "act", [_twice, _never, *full(_swap), _refused], ids=lambda act: act.__name__
)
async def test_no_reply_to_another_request_is_believed(api: World, act: Spoil) -> None:
    """A reply that is doubled, dropped, late or an error makes no second holder, and no verb
    reports what did not happen."""
    for nth in range(1, 8):
        await _spoilt(api, act, nth)


async def test_without_proofs_another_reply_is_believed(
    api: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without proofs a stream that is one reply behind is believed, so the test above depends on
    them."""

    def believed(reply: Any, proof: bytes) -> Any:
        if type(reply) is bytes:
            return reply[len(proof) :]
        return reply[1:] if type(reply) is list else reply

    monkeypatch.setattr(codec, "strip_proof", believed)
    wrong = []
    for act, nth in itertools.product((_twice, _never, _refused), range(1, 8)):
        try:
            await _spoilt(api, act, nth)
        except Exception as error:
            wrong.append(repr(error)[:200])
            break
    assert wrong


class TimeLimit(Exception):
    """The error of a signal handler."""


@pytest.fixture
def interrupted_write(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Let a signal handler raise just as the next ``send()`` returns."""
    armed: list[bool] = []
    write: Any = selector_events._SelectorSocketTransport.write  # type: ignore[attr-defined]

    @functools.wraps(write)
    def interrupted(transport: Any, data: bytes) -> None:
        write(transport, data)
        if armed:
            armed.clear()
            signal.raise_signal(signal.SIGALRM)

    def limit(*_: object) -> None:
        raise TimeLimit

    monkeypatch.setattr(selector_events._SelectorSocketTransport, "write", interrupted)  # type: ignore[attr-defined]
    before = signal.signal(signal.SIGALRM, limit)
    yield armed
    signal.signal(signal.SIGALRM, before)


async def test_a_write_that_was_interrupted_ends_its_connection(
    one_server: Server, interrupted_write: list[bool]
) -> None:
    """An interrupted write is not repeated: requests go on over another connection, and each task
    gets only its own replies."""
    logged: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: logged.append(what))
    with lualock.connect(one_server.url) as truth:
        taken = truth.lock("taken", ttl=60).acquire()
        async with aio.connect(one_server.url) as locks:
            await (await locks.lock("warm", ttl=5).acquire()).release()
            interrupted_write.append(True)
            first = asyncio.ensure_future(locks.lock("a", ttl=9).acquire())
            held = asyncio.ensure_future(locks.lock("taken", ttl=9).try_acquire())
            other = asyncio.ensure_future(locks.lock("c", ttl=9).acquire())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            other.cancel()  # gives back at once, on the same connection
            assert await held is None
            lease = await first
            assert truth.lock("a").inspect().fence == lease.fence
            await lease.release()
            async with locks.lock("b", ttl=9):
                assert truth.lock("b").locked()
            assert not truth.lock("c").locked()
        taken.release()
    assert [type(what["exception"]) for what in logged] == [TimeLimit]  # asyncio logged it

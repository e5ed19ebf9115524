"""Every documented reply of every script, from each server."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lualock.scripts import SCRIPTS
from tests.support import proving
from tests.support.servers import Server

KEY, MINE, OTHERS = b"lualock:{x}", b"m" * 22, b"o" * 22
QUEUE = KEY + b":waiters"
BAND = b"%d" % (100 * 2**44)
CHANNEL = b"a-channel"
TOMBSTONE_MS = 5000
ALWAYS = b"9" * 16  # a deadline


class Raw(proving.Raw):
    """Runs the scripts of locks."""

    def wait(
        self,
        token: bytes,
        place: bytes = BAND,
        *,
        most: int = 0,
        deadline: bytes = ALWAYS,
    ) -> Any:
        """Request a place; the ticket is as the protocol makes it."""
        return self("wait", ticket(token), place, most, deadline)

    def waiters(self) -> list[bytes]:
        """Return the tokens in the queue, the first in line first."""
        return [member[:22] for member in self.client.zrange(QUEUE, 0, -1)]


def ticket(token: bytes) -> bytes:
    """Return a ticket as it stands in the queue."""
    return token + b"30000 " + CHANNEL + b" about " + token[:1]


@pytest.fixture
def raw(server: Server) -> Any:
    """Return the scripts on an empty server."""
    with server.client() as client:
        yield Raw(client, SCRIPTS, {"lock": KEY, "waiters": QUEUE})


def test_acquire(raw: Raw) -> None:
    """``acquire`` answers the fence, owned or held, and writes only the first time."""
    fence = raw("acquire", MINE, 30_000, ALWAYS, b"me")
    assert fence.isdigit()
    assert len(fence) == 16
    raw.client.pexpire(KEY, 10_000)
    owned = raw("acquire", MINE, 30_000, ALWAYS, b"me")
    assert owned[0] == b"owned"
    assert 0 < owned[1] <= 10_000
    assert owned[2] == fence
    held = raw("acquire", OTHERS, 30_000, ALWAYS, b"other")
    assert held[0] == b"held"
    assert 0 < held[1] <= 10_000
    assert 0 <= held[2] < 10_000
    assert held[3] == b"me"
    assert 0 < raw.client.pttl(KEY) <= 10_000


def test_late(raw: Raw, listening: Any) -> None:
    """A request after its deadline takes nothing, and answers the server's time."""
    past = b"%016d" % (time.time_ns() // 1000 - 1000)
    late = raw("acquire", MINE, 30_000, past, b"me")
    assert late[0] == b"late"
    assert int(late[1]) > int(past)
    assert raw.wait(MINE, deadline=past)[0] == b"late"
    assert raw.client.keys() == []
    take(raw, listening)
    assert raw("acquire", OTHERS, 30_000, past, b"other")[0] == b"held"
    assert raw.wait(OTHERS, deadline=past)[0] == b"late"
    assert raw.waiters() == []
    raw.client.pexpire(KEY, 1000)
    assert raw.wait(MINE, deadline=past)[0] == b"late"  # claims nothing, either
    assert raw.client.pttl(KEY) <= 1000
    future = b"%016d" % (time.time_ns() // 1000 + 60_000_000)
    assert raw.wait(OTHERS, deadline=future)[0] == b"queued"


def test_release(raw: Raw) -> None:
    """``release`` answers "", already, missing or held, and writes only the first time."""
    assert raw("release", MINE) == b"missing"
    fence = raw("acquire", MINE, 30_000, ALWAYS, b"me")
    assert raw("release", OTHERS) == [b"held", b"me"]
    assert raw("release", MINE) == b""
    assert raw.client.get(KEY) == b"R" + fence + MINE
    raw.client.pexpire(KEY, 100)
    assert raw("release", MINE) == b"already"
    assert raw("release", OTHERS) == b"missing"
    assert raw.client.pttl(KEY) <= 100  # a repeat does not keep the tombstone alive
    raw("acquire", OTHERS, 30_000, ALWAYS, b"other")
    assert raw("release", MINE) == b"already"  # remembered while the next holder has it
    assert raw("hand_over", MINE) == b"already"
    raw("release", OTHERS)
    raw("acquire", b"n" * 22, 30_000, ALWAYS, b"next")
    assert raw("release", MINE) == [b"held", b"next"]  # and no longer


def test_extend(raw: Raw) -> None:
    """``extend`` answers extended, already, missing or held, and writes only the first time."""
    assert raw("extend", MINE, 9000, 0) == b"missing"
    raw("acquire", MINE, 30_000, ALWAYS, b"me")
    assert raw("extend", OTHERS, 90_000, 0) == [b"held", b"me"]
    assert raw.client.pttl(KEY) <= 30_000
    assert raw("extend", MINE, 90_000, 0) == b"extended"
    assert 30_000 < raw.client.pttl(KEY) <= 90_000
    raw("release", MINE)
    assert raw("extend", MINE, 90_000, 0) == b"already"
    assert raw("extend", OTHERS, 90_000, 0) == b"missing"
    raw("acquire", OTHERS, 3000, ALWAYS, b"other")
    assert raw("extend", MINE, 90_000, 0) == b"already"
    assert raw.client.pttl(KEY) <= TOMBSTONE_MS


def test_a_late_request_does_not_shorten_a_lease(raw: Raw, listening: Any) -> None:
    """A late claim, renewal or queue check does not shorten a lease; only an explicit ``shorten``
    does."""
    take(raw, listening)
    raw.wait(A)
    raw("hand_over", MINE)
    lease = raw.client.get(KEY)[1:17] + A
    assert raw("extend", lease, 90_000, 0) == b"extended"
    assert raw("claim", lease, 5000) == b"claimed"
    assert raw("extend", lease, 5000, 0) == b"extended"
    word, left_ms, _ = raw.wait(A)
    assert (word, left_ms > 80_000) == (b"owned", True)
    assert raw.client.pttl(KEY) > 80_000
    assert raw("extend", lease, 5000, 1) == b"extended"
    assert raw.client.pttl(KEY) <= 5000


def test_the_head_gets_a_message_about_a_sooner_end(raw: Raw, listening: Any) -> None:
    """The head gets a message about a sooner end, because it plans its check for the old one."""
    take(raw, listening)
    raw.wait(A, _old(1))
    assert raw("extend", MINE, 60_000, 0) == b"extended"
    assert next_message(listening) is None
    assert raw("extend", MINE, 700, 1) == b"extended"
    assert next_message(listening) == A + b"=700"


def test_a_lease_is_known_by_its_fence(raw: Raw, listening: Any) -> None:
    """A lock that the same token takes again after its lease ended is another lease."""
    fence = raw("acquire", MINE, 30_000, ALWAYS, b"me")
    raw.client.delete(KEY)
    again = raw("acquire", MINE, 30_000, ALWAYS, b"me")
    record = raw.client.get(KEY)
    assert raw("extend", fence + MINE, 90_000, 0) == [b"held", b"me"]
    assert raw("release", fence + MINE) == [b"held", b"me"]
    assert raw("hand_over", fence + MINE) == [b"held", b"me"]
    assert raw.client.get(KEY) == record
    assert 0 < raw.client.pttl(KEY) <= 30_000
    assert raw("extend", again + MINE, 90_000, 0) == b"extended"
    assert raw("release", again + MINE) == b""
    assert raw("release", again + MINE) == b"already"
    assert raw("release", fence + MINE) == b"missing"
    raw.client.delete(KEY)
    again = take(raw, listening)
    raw.wait(A)
    assert raw("release", fence + MINE) == [b"held", b"about m"]
    assert raw("release", again + MINE) == b"waited"
    assert raw("hand_over", fence + MINE) == [b"held", b"about m"]
    assert raw("hand_over", again + MINE) == b"handed_over"
    assert raw("release", again + MINE) == b"already"


def test_claim(raw: Raw, listening: Any) -> None:
    """``claim`` answers claimed to the token that was granted the lock, and missing to others."""
    fence = take(raw, listening)
    assert raw("claim", fence + MINE, 90_000) == b"missing"  # it was not granted from the queue
    raw.wait(A)
    assert raw("hand_over", MINE) == b"handed_over"
    granted = raw.client.get(KEY)[1:17]
    assert raw("claim", granted + B, 90_000) == b"missing"
    assert raw("claim", fence + A, 90_000) == b"missing"
    assert raw.client.pttl(KEY) <= 2500
    assert raw("claim", granted + A, 90_000) == b"claimed"
    assert 30_000 < raw.client.pttl(KEY) <= 90_000
    raw("hand_over", A)
    assert raw("claim", granted + A, 90_000) == b"missing"
    assert raw.client.pttl(KEY) <= TOMBSTONE_MS
    raw.client.delete(KEY)
    assert raw("claim", granted + A, 90_000) == b"missing"
    assert raw.client.keys() == []


def test_adopt(raw: Raw) -> None:
    """``adopt`` answers the fence, owned, late, already, missing or held, and writes only the first
    time."""
    assert raw("adopt", MINE, A, 9000, ALWAYS, b"heir") == b"missing"
    before = raw("acquire", MINE, 30_000, ALWAYS, b"me")
    assert raw("adopt", OTHERS, A, 9000, ALWAYS, b"heir") == [b"held", b"me"]
    assert raw("adopt", MINE, A, 9000, b"0" * 16, b"heir")[0] == b"late"
    assert raw.client.get(KEY)[17:39] == MINE
    fence = raw("adopt", MINE, A, 9000, ALWAYS, b"heir")
    assert fence > before
    assert raw.client.get(KEY) == b"H" + fence + A + MINE + b"heir"
    assert 0 < raw.client.pttl(KEY) <= 9000
    raw.client.pexpire(KEY, 1000)
    owned = raw("adopt", MINE, A, 9000, ALWAYS, b"heir")
    assert owned[0] == b"owned"
    assert 0 < owned[1] <= 1000
    assert owned[2] == fence
    assert raw("adopt", MINE, B, 9000, ALWAYS, b"another") == b"already"
    assert raw("release", MINE) == b"already"
    assert raw("extend", MINE, 9000, 0) == b"already"
    assert raw("acquire", OTHERS, 9000, ALWAYS, b"other")[3] == b"heir"
    raw.wait(B)
    assert raw("adopt", A, C, 9000, ALWAYS, b"heir") > fence
    assert raw.client.get(KEY)[:1] == b"W"  # the waiters stay in the queue
    assert raw("release", C) == b"waited"
    raw("hand_over", C)
    assert raw("adopt", C, A, 9000, ALWAYS, b"heir") == b"already"


def test_inspect(raw: Raw) -> None:
    """``inspect`` answers free or held, writes nothing, and keeps the token secret."""
    assert raw("inspect") == [b"free", 0]
    fence = raw("acquire", MINE, 30_000, ALWAYS, b"me")
    held = raw("inspect")
    assert held[0] == b"held"
    assert 0 < held[1] <= 30_000
    assert 0 <= held[2] < 10_000
    assert held[3:] == [fence, b"me", 0]
    raw.client.persist(KEY)
    assert raw("inspect")[1] == -1
    raw.wait(OTHERS)
    assert raw("inspect")[5] == 1
    raw("abandon", OTHERS, ticket(OTHERS), b"")
    raw("hand_over", MINE)
    assert raw("inspect") == [b"free", 0]


@pytest.mark.parametrize("value", [b"H1", b"X" + b"1" * 80, b"H" + b"x" * 80])
def test_conflict(raw: Raw, value: bytes) -> None:
    """A value that is not a record is a conflict for every verb, and stays unchanged."""
    raw.client.set(KEY, value)
    for verb, *args in (
        ("acquire", MINE, 30_000, ALWAYS, b"me"),
        ("release", MINE),
        ("extend", MINE, 30_000, 1),
        ("adopt", MINE, OTHERS, 30_000, ALWAYS, b"other"),
        ("inspect",),
        ("wait", ticket(MINE), BAND, 0, ALWAYS),
        ("hand_over", MINE),
        ("abandon", MINE, ticket(MINE), b""),
    ):
        assert raw(str(verb), *args) == [b"conflict"]
    assert raw.client.get(KEY) == value
    assert raw.client.pttl(KEY) == -1


@pytest.fixture
def listening(raw: Raw) -> Any:
    """Return a subscriber of the channel."""
    subscriber = raw.client.pubsub()
    subscriber.subscribe(CHANNEL)
    assert subscriber.get_message(timeout=5)["type"] == "subscribe"
    yield subscriber
    subscriber.close()


def next_message(listening: Any) -> bytes | None:
    """Return the next message, if there is one."""
    message = listening.get_message(timeout=0.2)
    return None if message is None else message["data"]


def take(raw: Raw, listening: Any) -> bytes:
    """Take the free lock by ``wait``, which also sends a message."""
    fence: bytes = raw.wait(MINE)
    assert next_message(listening) == MINE + fence + b"+"
    return fence


A, B, C = b"a" * 22, b"b" * 22, b"c" * 22


def test_wait(raw: Raw) -> None:
    """``wait`` answers the fence, owned or queued, with the holder, the fence, the rank and the
    place."""
    fence = raw.wait(MINE)
    assert fence.isdigit()
    assert raw.client.get(KEY)[:1] == b"H"
    raw.client.pexpire(KEY, 1000)
    assert raw.wait(MINE) == [b"owned", 30_000, fence]
    assert raw.client.pttl(KEY) > 1000  # a repeated request is a claim

    first, second = raw.wait(A), raw.wait(B)
    assert raw.client.get(KEY)[:1] == b"W"
    assert first[0] == second[0] == b"queued"
    assert 0 < first[1] <= 30_000
    assert 0 <= first[2] < 10_000
    assert first[3:6] == [b"about m", fence, 0]
    assert second[5] == 1
    assert int(second[6]) > int(first[6]) > int(BAND)
    assert raw.wait(A)[5:] == first[5:]  # the same place, even without its number
    assert raw.waiters() == [A, B]
    assert 60_000 < raw.client.pttl(QUEUE) <= 180_000
    raw.client.zrem(QUEUE, ticket(A))
    raw.wait(A, first[6])
    assert raw.waiters() == [A, B]  # it kept its place


def test_a_clock_that_steps_back_changes_no_order(raw: Raw) -> None:
    """A later waiter is behind the earlier ones, even if the server's clock has stepped back."""
    raw.wait(MINE)
    ahead = b"%d" % (int(BAND) + 2**43)
    raw.wait(A, ahead)
    assert raw.wait(B)[6] == b"%d" % (int(ahead) + 1)
    higher = b"%d" % (99 * 2**44)
    raw.wait(C, higher)
    assert raw.waiters() == [C, A, B]


def test_full(raw: Raw, listening: Any) -> None:
    """A full queue refuses newcomers, lets its waiters check again, and does not count dead
    ones."""
    raw.wait(MINE)
    raw.wait(A, most=1)
    assert raw.wait(A, most=1)[0] == b"queued"
    full = raw.wait(B, most=1)
    assert full[0] == b"full"
    assert full[3:] == [b"about m", 1]
    assert raw.waiters() == [A]
    listening.close()
    assert raw.wait(B, most=1)[0] == b"queued"
    assert raw.waiters() == [B]


def test_hand_over(raw: Raw, listening: Any) -> None:
    """The first waiter that can be reached gets the lock, with a new fence, for the claim
    window."""
    assert raw("hand_over", MINE) == b"missing"
    before = take(raw, listening)
    assert raw("release", OTHERS) == [b"held", b"about m"]
    raw.wait(A)
    raw.wait(B)
    assert raw("release", MINE) == b"waited"
    assert raw("hand_over", OTHERS) == [b"held", b"about m"]
    assert raw("hand_over", MINE) == b"handed_over"
    record = raw.client.get(KEY)
    assert (record[:1], record[17:39], record[61:]) == (b"W", A, b"about a")
    assert record[1:17] > before
    assert raw("hand_over", MINE) == b"already"
    message = next_message(listening)
    assert message is not None
    assert message[:38] == A + record[1:17]
    assert message[38:] == record[1:17]  # the server's time: the fence, unless that was raised
    assert 0 < raw.client.pttl(KEY) <= 2500
    assert raw.waiters() == [B]
    assert raw("extend", A, 30_000, 0) == b"extended"

    listening.close()  # no subscriber: B is gone, and the lock is free
    assert raw("hand_over", A) == b"released"
    assert raw.waiters() == []
    # B may get its message at a replica, so the next fence is greater than B's.
    tombstone = raw.client.get(KEY)
    assert (tombstone[:1], tombstone[17:]) == (b"R", A + A)
    assert tombstone[1:17] > record[1:17]
    for lease in (A, record[1:39]):
        for verb in (("hand_over", lease), ("release", lease)):
            assert raw(*verb) == b"already"


def test_hand_over_without_memory(raw: Raw) -> None:
    """``hand_over`` leaves its tombstone without memory as well: it has made a write before."""
    fence = raw("acquire", MINE, 30_000, ALWAYS, b"me")
    raw.client.config_set("maxmemory", "1")
    try:
        assert raw("hand_over", MINE) == b"released"
    finally:
        raw.client.config_set("maxmemory", "0")
    assert raw.client.get(KEY) == b"R" + fence + MINE


def _old(number: int) -> bytes:
    """Return the place of a waiter that has waited for long."""
    return b"%d" % (int(BAND) + number)


def test_a_new_head_gets_a_message(raw: Raw, listening: Any) -> None:
    """A call that makes a waiter the head sends it a message with the length of the lease."""
    take(raw, listening)
    for number, token in enumerate((A, B, C), start=1):
        raw.wait(token, _old(number))
    assert raw("hand_over", MINE) == b"handed_over"
    assert next_message(listening)[:22] == A  # type: ignore[index]  # None would fail, and should
    assert next_message(listening) == B + b"=2500"
    raw("extend", A, 9000, 0)
    raw("abandon", C, ticket(C), b"")  # it was not first
    assert next_message(listening) is None
    raw.wait(C, _old(3))
    raw("abandon", B, ticket(B), b"")
    message = next_message(listening)
    assert message is not None
    assert message[:23] == C + b"="
    assert 0 < int(message[23:]) <= 9000
    raw.wait(B, _old(4))
    raw.client.delete(KEY)
    assert raw.wait(OTHERS, _old(6))[0] == b"queued"  # the lease ended, and it is C's turn
    assert next_message(listening)[:22] == C  # type: ignore[index]  # None would fail, and should
    assert next_message(listening) == B + b"=2500"


def test_a_young_head_gets_no_message(raw: Raw, listening: Any) -> None:
    """A young waiter that becomes the head gets no message, since it checks on its own."""
    take(raw, listening)
    raw.wait(A)
    raw.wait(B)
    raw("hand_over", MINE)
    assert next_message(listening)[:22] == A  # type: ignore[index]  # None would fail, and should
    assert next_message(listening) is None
    time.sleep(0.25)  # 60 ms make it old, by the server's clock
    raw.wait(C)
    raw("hand_over", A)
    assert next_message(listening)[:22] == B  # type: ignore[index]  # None would fail, and should
    assert next_message(listening) is None
    raw("abandon", B, ticket(B), b"")
    assert next_message(listening)[:22] == C  # type: ignore[index]  # None would fail, and should


def test_a_caller_that_becomes_the_head_is_not_dropped(raw: Raw, listening: Any) -> None:
    """A caller that becomes the head by its own call keeps its place without a message."""
    take(raw, listening)
    deaf = ticket(B).replace(CHANNEL, b"no-subscriber")
    raw.wait(A, _old(1))
    raw("wait", deaf, _old(2), 0, ALWAYS)
    raw.client.delete(KEY)
    reply = raw("wait", deaf, _old(2), 0, ALWAYS)  # the lease has ended, and it is A's turn
    assert (reply[0], reply[5]) == (b"queued", 0)
    assert raw.waiters() == [B]


def test_a_head_that_is_gone_is_dropped(raw: Raw, listening: Any) -> None:
    """A head that no message reaches is dropped for one that can be reached."""
    take(raw, listening)
    raw.wait(A, _old(1))
    raw("wait", B + b"30000 nobody about b", _old(2), 0, ALWAYS)
    raw.wait(C, _old(3))
    raw("hand_over", MINE)
    assert next_message(listening)[:22] == A  # type: ignore[index]  # None would fail, and should
    assert next_message(listening) == C + b"=2500"
    assert raw.waiters() == [C]


def test_a_waiter_that_checks_is_not_dropped(raw: Raw, listening: Any) -> None:
    """A waiter that checks while no message reaches it keeps its place, and learns its rank."""
    take(raw, listening)
    raw.wait(A, _old(1))
    own_ticket = B + b"30000 nobody about b"
    raw("wait", own_ticket, _old(2), 0, ALWAYS)
    raw.client.delete(KEY)
    reply = raw("wait", own_ticket, _old(2), 0, ALWAYS)  # gives the lock to the first
    assert reply[0] == b"queued"
    assert reply[5] == 0
    assert raw.waiters() == [B]


def test_a_waiter_comes_back_to_its_place(raw: Raw, listening: Any) -> None:
    """A waiter that was dropped comes back to its place, even if the queue is full."""
    take(raw, listening)
    place = raw.wait(A)[6]
    raw.wait(B)
    raw.client.zrem(QUEUE, ticket(A))
    assert raw.wait(A, place, most=1)[5:] == [0, place]
    assert raw.waiters() == [A, B]


def test_a_head_that_leaves_a_free_lock(raw: Raw, listening: Any) -> None:
    """If the head leaves while the lock is free, the next waiter gets a message."""
    take(raw, listening)
    for number, token in enumerate((A, B, C), start=1):
        raw.wait(token, _old(number))
    raw.client.delete(KEY)
    assert raw("abandon", C, ticket(C), b"") == [b"left"]
    assert next_message(listening) is None
    assert raw("abandon", A, ticket(A), b"") == [b"left"]
    assert next_message(listening) == B + b"=0"


def test_abandon(raw: Raw, listening: Any) -> None:
    """``abandon`` leaves the queue; or releases and hands over, if the caller was granted the
    lock."""
    assert raw("abandon", A, ticket(A), b"") == [b"left"]
    take(raw, listening)
    raw.wait(A)
    raw.wait(B)
    left = raw("abandon", B, ticket(B), b"")
    assert left[0] == b"left"
    assert 0 < left[1] <= 30_000
    assert 0 <= left[2] < 10_000
    assert left[3:] == [b"about m", 1]
    assert raw("abandon", B, ticket(B), b"")[4] == -1
    raw.wait(B)
    raw("hand_over", MINE)
    assert raw("abandon", A, ticket(A), b"") == b"released"
    assert raw.client.get(KEY)[17:39] == B
    assert next_message(listening)[:22] == A  # type: ignore[index]  # None would fail, and should
    assert next_message(listening)[:22] == B  # type: ignore[index]  # as above


def test_abandon_all_but_one_lease(raw: Raw, listening: Any) -> None:
    """``abandon`` keeps the named lease, and ends its place and any other lease of that token."""
    fence = raw("acquire", MINE, 30_000, ALWAYS, b"me")
    raw.client.zadd(QUEUE, {ticket(MINE): 1})
    raw.wait(A)
    record = raw.client.get(KEY)
    left = raw("abandon", MINE, ticket(MINE), fence + MINE)
    assert left[0] == b"left"
    assert left[3:] == [b"me", 0]
    assert raw.client.get(KEY) == record
    assert raw.waiters() == [A]
    assert raw("abandon", MINE, b"", b"%016d" % (int(fence) - 1) + MINE) == b"released"
    assert raw.client.get(KEY)[17:39] == A


def test_a_lease_that_ended_while_others_wait(raw: Raw, listening: Any) -> None:
    """The first check after the end of a lease grants the lock to the head."""
    take(raw, listening)
    raw.wait(A)
    raw.wait(B)
    raw.client.delete(KEY)
    state, lease_left_ms, ahead, about, *_ = raw.wait(B)
    assert (state, ahead, about) == (b"queued", 0, b"about a")
    assert 0 < lease_left_ms <= 2500
    assert next_message(listening)[:22] == A  # type: ignore[index]  # None would fail, and should
    raw.client.delete(KEY)
    assert raw.wait(B).isdigit()
    assert raw.waiters() == []


def test_a_lease_shorter_than_the_claim_window(raw: Raw, listening: Any) -> None:
    """A granted lock lasts no longer than its waiter's ttl."""
    raw.wait(MINE)
    raw("wait", A + b"700 " + CHANNEL + b" me", BAND, 0, ALWAYS)
    assert raw("hand_over", MINE) == b"handed_over"
    assert 0 < raw.client.pttl(KEY) <= 700

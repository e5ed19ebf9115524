"""Get every reply of every script of jobs that its header documents, straight from each server."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import redis

from lualock.jobs import verbs
from lualock.scripts import SCRIPTS
from tests.support import proving
from tests.support.servers import Server

LOCK, RESERVATION, STOP_REQUESTS = (
    b"lualock:{x}",
    b"lualock:{x}:reservation",
    b"lualock:{x}:stop_requests",
)
A, B, C, D = (letter * 22 for letter in (b"a", b"b", b"c", b"d"))
ALWAYS, NEVER = b"9" * 16, b"0" * 16  # deadlines
WAITERS, RESERVATION_WAITERS = LOCK + b":waiters", RESERVATION + b":waiters"
KEYS = {
    "lock": LOCK,
    "waiters": WAITERS,
    "stop_requests": STOP_REQUESTS,
    "reservation": RESERVATION,
    "reservation_waiters": RESERVATION_WAITERS,
}


class Raw(proving.Raw):
    """Run the scripts of locks and jobs."""

    def acquire(self, token: bytes) -> int:
        return int(self("acquire", token, 30_000, ALWAYS, b"me"))

    def reserve(
        self, token: bytes, alone: int = 0, deadline: bytes = ALWAYS, sent: bytes = ALWAYS
    ) -> Any:
        return self("reserve", token, 10_000, deadline, b"job " + token[:1], alone, sent)

    def start(self, token: bytes, owner: bytes, deadline: bytes = ALWAYS) -> Any:
        return self("start", token, 30_000, deadline, b"me", owner)


@pytest.fixture
def raw(server: Server) -> Any:
    """The scripts on an empty server."""
    with server.client() as client:
        yield Raw(client, {**SCRIPTS, **verbs.SCRIPTS}, KEYS)


def test_reserve(raw: Raw) -> None:
    """The first job is reserved for its ttl, also if it repeats; another job gets its id."""
    fence = raw.reserve(A)
    assert fence.isdigit()
    assert 9_000 < raw.client.pttl(RESERVATION) <= 10_000
    word, left_ms, again = raw.reserve(A)
    assert (word, again) == (b"owned", fence)
    assert 9_000 < left_ms <= 10_000
    word, left_ms, held_ms, about = raw.reserve(B)
    assert (word, about) == (b"queued", b"job a")
    assert 9_000 < left_ms <= 10_000
    assert 0 <= held_ms < 5_000
    assert not raw.client.exists(LOCK)


def test_reserve_while_one_runs(raw: Raw) -> None:
    """Only with `alone` a job is refused while the lock is held, and then nothing is written."""
    raw.acquire(C)
    word, left_ms, held_ms, about = raw.reserve(A, 1)
    assert (word, about) == (b"running", b"me")
    assert 29_000 < left_ms <= 30_000
    assert 0 <= held_ms < 5_000
    assert not raw.client.exists(RESERVATION)
    assert raw.reserve(A, 0).isdigit()
    assert raw.reserve(B, 1)[0] == b"queued"  # of both, the job that comes first
    raw("release", C)
    raw.client.delete(RESERVATION)
    assert raw.reserve(A, 1).isdigit()


def test_reserve_beside_a_lock_kept_for_the_same_job(raw: Raw) -> None:
    """The lock that a job keeps for its own retry does not refuse its reservation."""
    raw.acquire(A)
    assert raw.reserve(A, 1).isdigit()


def test_reserve_too_late(raw: Raw) -> None:
    """A request that arrives after its deadline takes nothing."""
    word, time_us = raw.reserve(A, 0, NEVER)
    assert (word, len(time_us)) == (b"late", 16)
    assert raw.client.keys() == []


@pytest.mark.parametrize("given_up", ["begun", "cancelled"])
def test_a_late_copy_of_a_reservation_takes_nothing(raw: Raw, given_up: str) -> None:
    """A copy that arrives when its job has begun, or was cancelled, is refused: no job would end
    that reservation, and other jobs would be dropped for it. A new request gets it."""
    sent = raw("acquire", C, 30_000, ALWAYS, b"me")  # some time of the server's
    raw("release", C)
    assert raw.reserve(A, sent=sent) > sent
    if given_up == "begun":
        assert raw.start(B, A).isdigit()
    else:
        assert proving.run(raw.client.eval, SCRIPTS["release"], RESERVATION, A) == b""
    word, now = raw.reserve(A, sent=sent)
    assert word == b"late"
    assert raw.reserve(B, sent=sent).isdigit()  # another job has nothing to do with it
    assert proving.run(raw.client.eval, SCRIPTS["release"], RESERVATION, B) == b""
    raw.client.delete(RESERVATION)
    assert raw.reserve(A, sent=sent).isdigit()
    assert proving.run(raw.client.eval, SCRIPTS["release"], RESERVATION, A) == b""
    assert raw.reserve(A, sent=b"%016d" % (int(now) + 1_000_000)).isdigit()


def test_a_reservation_is_a_lock_like_any_other(raw: Raw) -> None:
    """The verbs of a holder work on it, and its tombstone lets the next job reserve."""
    raw.reserve(A)
    extend, release = (
        partial(proving.run, raw.client.eval, SCRIPTS[verb]) for verb in ("extend", "release")
    )
    assert extend(RESERVATION, RESERVATION + b":waiters", A, 60_000, 0) == b"extended"
    assert raw.client.pttl(RESERVATION) > 50_000
    assert release(RESERVATION, B) == [b"held", b"job a"]
    assert release(RESERVATION, A) == b""
    assert release(RESERVATION, A) == b"already"
    assert raw.reserve(A).isdigit()  # for the same job's retry
    assert release(RESERVATION, A) == b""
    assert raw.reserve(B).isdigit()
    assert release(RESERVATION, A) == b"already"  # also where another has it by now


def test_start(raw: Raw) -> None:
    """The lock is acquired and the reservation ended in one script; a repeat answers the same
    lease."""
    raw.reserve(A)
    fence = raw.start(B, A)
    assert fence.isdigit()
    assert raw.client.get(RESERVATION)[17:39] == A
    assert 0 < raw.client.pttl(RESERVATION) <= 5_000
    assert 29_000 < raw.client.pttl(LOCK) <= 30_000
    raw.reserve(C)  # the next one is queued meanwhile
    word, left_ms, again = raw.start(B, A)
    assert (word, again) == (b"owned", fence)
    assert 29_000 < left_ms <= 30_000
    assert raw.client.exists(RESERVATION)
    assert raw("release", B) == b""


def test_start_without_a_reservation(raw: Raw) -> None:
    """A job runs also if its reservation expired, or is another job's by now; that one stays."""
    raw.reserve(C)
    assert raw.start(B, A).isdigit()
    assert raw.client.get(RESERVATION)[17:39] == C


def test_start_while_it_is_held(raw: Raw) -> None:
    """The holder keeps the lock, and the job keeps its reservation."""
    raw.acquire(C)
    raw.reserve(A)
    word, left_ms, held_ms, about = raw.start(B, A)
    assert (word, about) == (b"held", b"me")
    assert 29_000 < left_ms <= 30_000
    assert 0 <= held_ms < 5_000
    assert raw.client.get(RESERVATION)[17:39] == A
    assert raw("release", C) == b""


def test_start_again_for_a_retry(raw: Raw) -> None:
    """The lock that the last attempt kept goes over to the next one, with a new fence."""
    fence = raw.start(B, A)
    raw("adopt", B, A, 60_000, ALWAYS, b"waits for its retry")
    assert raw.start(C, D)[0] == b"held"  # for other jobs it is held
    second = raw.start(C, A)
    assert second > fence
    assert raw.client.pttl(LOCK) <= 30_000
    assert raw.start(D, A)[0] == b"held"  # delivered twice: the lock is that of the first delivery
    assert raw.start(C, A)[0] == b"owned"
    assert raw("release", A) == b"already"
    assert raw("release", C) == b""


def test_start_with_waiters(raw: Raw) -> None:
    """The state still says that the lock has waiters: the release must find them."""
    raw.acquire(C)
    raw.client.setrange(LOCK, 0, "W")
    raw("adopt", C, A, 60_000, ALWAYS, b"me")
    raw.start(B, A)
    assert raw.client.get(LOCK)[:1] == b"W"
    raw.client.setrange(LOCK, 0, "F")
    raw.start(D, A)
    assert raw.client.get(LOCK)[:1] == b"W"


def test_start_notifies_the_first_waiter(raw: Raw) -> None:
    """The heads learn how long the lock is held from now on, and that the reservation is free; dead
    waiters are dropped. A young waiter checks on its own; without waiters no queue is read."""
    gone, first = (token + b"1000 %s me" for token in (C, D))
    gone, first = gone % b"elsewhere", first % b"ear"
    for place, state in ((1, b"W"), (1, b"F"), (2**43, b"W"), (1, b"H")):
        for key, queue in ((LOCK, WAITERS), (RESERVATION, RESERVATION_WAITERS)):
            held = b"F" if state == b"F" and key == LOCK else state
            held = b"W" if state == b"F" and key == RESERVATION else held
            raw.client.set(key, held + b"1" * 16 + A + B + b"me", px=60_000)
            raw.client.zadd(queue, {gone: place, first: place})
        with raw.client.pubsub(ignore_subscribe_messages=True) as ear:
            ear.subscribe("ear")
            ear.get_message(timeout=5)
            assert raw.start(B, A).isdigit()
            messages = [ear.get_message(timeout=0.1) for _ in range(2)]
        said = [message["data"] for message in messages if message]
        tells = place == 1 and state != b"H"
        assert said == ([D + b"=30000", D + b"=0"] if tells else [])
        left = [first] if tells else [gone, first]
        assert raw.client.zrange(WAITERS, 0, -1) == left
        assert raw.client.zrange(RESERVATION_WAITERS, 0, -1) == left
        raw.client.flushall()


@pytest.mark.parametrize("queue", [WAITERS, RESERVATION_WAITERS])
def test_start_beside_a_queue_that_is_not_lualock_s(raw: Raw, queue: bytes) -> None:
    """It fails before anything is written."""
    for key in (LOCK, RESERVATION):
        raw.client.set(key, b"W" + b"1" * 16 + A + B + b"me", px=60_000)
    raw.client.set(queue, b"not lualock's")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        raw.start(C, A)
    assert raw.client.get(LOCK)[17:39] == A
    assert raw.client.exists(RESERVATION)


def test_reserve_with_waiters(raw: Raw) -> None:
    """The state still says that the reservation has waiters: its release must find them."""
    raw.client.set(RESERVATION, b"F" + b"1" * 16 + C, px=5_000)
    assert raw.reserve(A).isdigit()
    assert raw.client.get(RESERVATION)[:1] == b"W"


def test_start_without_waiters(raw: Raw) -> None:
    """A lock that is free, with an empty queue, does not say that it has waiters."""
    raw.acquire(C)
    raw("release", C)
    raw.start(B, A)
    assert raw.client.get(LOCK)[:1] == b"H"


def test_start_too_late(raw: Raw) -> None:
    """A request that arrives after its deadline neither takes the lock nor ends the reservation."""
    raw.reserve(A)
    assert raw.start(B, A, NEVER)[0] == b"late"
    assert not raw.client.exists(LOCK)
    assert raw.client.exists(RESERVATION)


def test_start_out_of_memory(raw: Raw) -> None:
    """When the memory is full the lock is not acquired, and the reservation stays."""
    raw.reserve(A)
    raw.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.ResponseError, match=r"OOM|maxmemory"):
            raw.start(B, A)
    finally:
        raw.client.config_set("maxmemory", "0")
    assert not raw.client.exists(LOCK)
    assert raw.client.exists(RESERVATION)


def test_fences_grow(raw: Raw) -> None:
    """A fence is greater than that of the previous lease or tombstone, also when a lock is kept."""
    first = raw.acquire(C)
    ahead = b"%016d" % (first + 10**12)
    for key, take, args in ((LOCK, raw.start, (B, A)), (RESERVATION, raw.reserve, (B,))):
        raw.client.set(key, b"R" + ahead + C, px=5_000)
        assert int(take(*args)) == int(ahead) + 1
        assert int(raw.client.get(key)[1:17]) == int(ahead) + 1


def test_died(raw: Raw) -> None:
    """The lock of the dead run is free; another holder keeps it."""
    assert raw("died", b"job 1", A, b"") == b"missing"
    about = b"host:7:Main\njob 1"
    raw("start", B, 30_000, ALWAYS, about, A)
    for job, holder in ((b"job 2", b""), (b"job", b""), (b"job 1", b"host:70:"), (b"", b"")):
        assert raw("died", job, A, holder) == b"another"
    assert raw("died", b"job 1", A, b"host:7:") == b"released"
    assert raw.client.get(LOCK)[:1] == b"R"
    assert raw("extend", B, 30_000, 0) == b"already"  # if it lives after all
    assert raw("died", b"job 1", A, b"host:7:") == b"missing"
    raw.acquire(C)
    assert raw("died", b"job 1", A, b"") == b"another"


def test_died_with_waiters(raw: Raw) -> None:
    """The first waiter has the lock of the dead run, or it is free."""
    for subscribed in (True, False):
        raw("start", B, 30_000, ALWAYS, b"me\njob 1", A)
        with raw.client.pubsub() as messages:
            if subscribed:
                messages.subscribe("channel")
                assert messages.get_message(timeout=5)
            raw("wait", D + b"1000 channel me", 0, 0, ALWAYS)
            reply = raw("died", b"job 1", A, b"")
            assert reply == (b"handed_over" if subscribed else b"released")
        assert (raw.client.get(LOCK)[17:39] == D) == subscribed
        raw.client.setrange(LOCK, 0, "F")
        assert raw("died", b"job 1", A, b"") == b"missing"
        assert raw("request_release", A, 5_000, ALWAYS) == b"free"
        raw.client.flushall()


def test_died_while_it_waits_for_its_retry(raw: Raw) -> None:
    """A lock that is kept for the job's retry is not that of a run."""
    raw("start", B, 30_000, ALWAYS, b"me\njob 1", A)
    raw("adopt", B, A, 60_000, ALWAYS, b"me\njob 1")
    assert raw("died", b"job 1", A, b"") == b"kept"
    assert raw.start(C, A).isdigit()


def test_request_release(raw: Raw) -> None:
    """The holder is requested to stop, for a while; a repeated request counts once."""
    assert raw("request_release", A, 5_000, ALWAYS) == b"free"
    fence = raw.acquire(C)
    assert raw("release_requested", fence, C) == b"not_requested"
    assert raw("request_release", A, 5_000, NEVER)[0] == b"late"
    assert raw("request_release", A, 5_000, ALWAYS) == [b"asked", b"me"]
    request = raw.client.get(STOP_REQUESTS)
    assert 4_000 < raw.client.pttl(STOP_REQUESTS) <= 5_000
    assert raw("request_release", A, 5_000, ALWAYS) == [b"asked", b"me"]
    assert raw.client.get(STOP_REQUESTS) == request
    assert raw("release_requested", fence, C) == b"requested"
    raw("release", C)
    assert raw("request_release", B, 5_000, ALWAYS) == b"free"


def test_a_request_is_for_the_holder_of_its_time(raw: Raw) -> None:
    """A stop request does not reach a holder that gets the lock after it, and none reaches its own
    sender."""
    raw.acquire(C)
    raw("request_release", A, 5_000, ALWAYS)
    raw("release", C)
    fence = raw.acquire(D)
    assert raw("release_requested", fence, D) == b"not_requested"
    raw("request_release", D, 5_000, ALWAYS)
    assert raw("release_requested", fence, D) == b"not_requested"
    raw.client.set(STOP_REQUESTS, b"%016d" % fence + A)  # in the very microsecond before
    assert raw("release_requested", fence, D) == b"not_requested"


def test_a_request_reaches_a_fence_from_the_future(raw: Raw) -> None:
    """A stop request reaches the holder also if the server's clock stepped back."""
    fence = raw.acquire(C) + 10**12
    raw.client.set(LOCK, b"H" + b"%016d" % fence + C + C + b"me", px=5_000)
    raw("request_release", A, 5_000, ALWAYS)
    assert raw("release_requested", fence, C) == b"requested"
    first = raw.client.get(STOP_REQUESTS)
    raw("request_release", B, 5_000, ALWAYS)
    assert raw.client.get(STOP_REQUESTS)[:16] > first[:16]
    raw.client.set(STOP_REQUESTS, b"1" * 16 + A, px=5_000)  # meant for a holder before it
    raw("request_release", B, 5_000, ALWAYS)
    assert raw("release_requested", fence, C) == b"requested"


def test_withdraw(raw: Raw) -> None:
    """The caller's own request is withdrawn; a later one of another caller stands, and counts while
    that caller waits and is alive."""
    assert raw("withdraw", A) == b"missing"
    raw.acquire(C)
    raw("request_release", A, 5_000, ALWAYS)
    assert raw("withdraw", A) == b"withdrawn"
    assert not raw.client.exists(STOP_REQUESTS)
    raw("request_release", A, 5_000, ALWAYS)
    raw("request_release", B, 5_000, ALWAYS)
    assert raw("withdraw", A) == b"alone"
    ticket = B + b"1000 ear me"
    raw("wait", D + b"1000 elsewhere me", 0, 0, ALWAYS)
    raw("wait", ticket, 0, 0, ALWAYS)
    assert raw("withdraw", A) == b"alone"  # its process is gone
    with raw.client.pubsub() as ear:
        ear.subscribe("ear")
        assert ear.get_message(timeout=5)
        assert raw("withdraw", A) == b"superseded"
        raw.client.zrem(LOCK + b":waiters", ticket)
        assert raw("withdraw", A) == b"alone"
    assert raw.client.get(STOP_REQUESTS)[16:] == B


def test_a_request_stands_when_a_later_one_is_withdrawn(raw: Raw) -> None:
    """An earlier request stands until its own end."""
    fence = raw.acquire(C)
    raw("request_release", A, 60_000, ALWAYS)
    first = raw.client.get(STOP_REQUESTS)
    raw("request_release", B, 5_000, ALWAYS)
    raw("request_release", C, 70_000, ALWAYS)
    assert 65_000 < raw.client.pttl(STOP_REQUESTS) <= 70_000
    assert raw("request_release", A, 5_000, ALWAYS) == [b"asked", b"me"]  # a repeated request
    assert raw("withdraw", C) == b"withdrawn"
    assert raw("withdraw", B) == b"withdrawn"
    assert raw.client.get(STOP_REQUESTS) == first
    assert 65_000 < raw.client.pttl(STOP_REQUESTS) <= 70_000
    assert raw("release_requested", fence, C) == b"requested"
    assert raw("withdraw", A) == b"withdrawn"
    assert not raw.client.exists(STOP_REQUESTS)


def test_of_several_that_wait_only_the_last_replaces(raw: Raw) -> None:
    """A request before that of a live waiter is superseded; also if the latest caller is gone."""
    raw.acquire(C)
    for token in (A, B, D):
        raw("request_release", token, 5_000, ALWAYS)
    with raw.client.pubsub() as ear:
        ear.subscribe("ear")
        assert ear.get_message(timeout=5)
        for token in (A, B):
            raw("wait", token + b"1000 ear me", 0, 0, ALWAYS)
        assert raw("withdraw", A) == b"superseded"
        assert raw("withdraw", B) == b"alone"
    assert raw.client.get(STOP_REQUESTS)[16:] == D


def test_requests_to_an_earlier_holder_are_forgotten(raw: Raw) -> None:
    """Requests to an earlier holder are dropped, and at most sixteen are kept, so the value is
    bounded."""
    raw.acquire(C)
    raw("request_release", A, 5_000, ALWAYS)
    raw("release", C)
    raw.acquire(D)
    for number in range(40):
        raw("request_release", b"%022d" % number, 5_000, ALWAYS)
        request = raw.client.get(STOP_REQUESTS)
        assert A not in request
        assert len(request) == 38 * min(number + 1, 16)
    assert request[16:38] == b"%022d" % 39
    assert request[38 + 16 : 76] == b"%022d" % 38
    assert request[:16] > request[38 : 38 + 16]
    assert 4_000 < raw.client.pttl(STOP_REQUESTS) <= 5_000


def test_a_request_is_withdrawn_out_of_memory(raw: Raw) -> None:
    """A request is withdrawn without memory if no other must be written again; otherwise all
    stand."""
    raw.acquire(C)
    raw("request_release", A, 5_000, ALWAYS)
    raw("request_release", B, 5_000, ALWAYS)
    raw.client.config_set("maxmemory", "1")
    before = raw.client.get(STOP_REQUESTS)
    try:
        with pytest.raises(redis.ResponseError, match=r"OOM|maxmemory"):
            raw("withdraw", B)
        assert raw.client.get(STOP_REQUESTS) == before
        raw.client.config_set("maxmemory", "0")
        assert raw("withdraw", B) == b"withdrawn"
        raw.client.config_set("maxmemory", "1")
        assert raw("withdraw", A) == b"withdrawn"
    finally:
        raw.client.config_set("maxmemory", "0")
    assert not raw.client.exists(STOP_REQUESTS)


@pytest.mark.parametrize(
    ("key", "verb", "args"),
    [
        (LOCK, "reserve", (A, 1000, ALWAYS, b"job", 1, ALWAYS)),
        (RESERVATION, "reserve", (A, 1000, ALWAYS, b"job", 0, ALWAYS)),
        (LOCK, "start", (A, 1000, ALWAYS, b"me", B)),
        (RESERVATION, "start", (A, 1000, ALWAYS, b"me", B)),
        (LOCK, "died", (b"job 1", A, b"")),
        (LOCK, "request_release", (A, 1000, ALWAYS)),
        (STOP_REQUESTS, "request_release", (A, 1000, ALWAYS)),
        (STOP_REQUESTS, "release_requested", (b"1" * 16, A)),
    ],
)
@pytest.mark.parametrize(
    "data",
    [
        b"not lualock's",
        b"H" + b"x" * 60,
        b"H" + b"1" * 16 + b"x" * 21,  # too short by one
        b"?" + b"1" * 16 + b"x" * 30,
        b"1" * 16 + b"x" * 21,
        b"x" * 38,
    ],
)
def test_data_that_is_not_lualock_s(
    raw: Raw, key: bytes, verb: str, args: Any, data: bytes
) -> None:
    """A key that holds what lualock did not write is left alone, and nothing else is changed."""
    if key == STOP_REQUESTS:
        raw.acquire(C)
    raw.client.set(key, data)
    before = sorted(raw.client.keys())
    assert raw(verb, *args) == [b"conflict"]
    assert raw.client.get(key) == data
    assert sorted(raw.client.keys()) == before

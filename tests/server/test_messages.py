"""Every message of an error: it names the object, the cause, and what to do.

``pytest -s tests/server/test_messages.py`` prints them all.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import lualock
from lualock import _protocol as protocol
from lualock import fencing, jobs
from lualock._core.lease import LeaseBase
from lualock._protocol import AcquireRequest, LeaseState, ServerClock
from lualock._transport import codec, errors
from lualock.embedded import binaries
from lualock.integrations._adapters import adapter_in, innermost_adapter
from lualock.jobs.acquire import Attempt, Run
from lualock.jobs.actions import drive
from tests.support.proxy import Proxy
from tests.support.servers import Server


class Message(NamedTuple):
    """One error, and what its text must contain."""

    error: BaseException
    names: str  # the object
    cause: str
    advice: str

    def is_in(self, text: str) -> bool:
        """Return whether a text contains all of it."""
        return all(re.search(part, text) for part in self[1:])


def _error(call: Callable[[], Any]) -> BaseException:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def _request() -> AcquireRequest:
    return AcquireRequest("report", b"k", b"q", b"t" * 22, 30_000, b"me", b"0", b"0", crowded=False)


def _answered(steps: protocol.Steps[Any], *replies: Any) -> BaseException:
    """Return the error of a protocol that gets these replies; an exception is thrown in."""
    next(steps)

    def answer() -> None:
        for reply in replies:
            if isinstance(reply, BaseException):
                steps.throw(reply)
            else:
                steps.send(reply)

    return _error(answer)


def _refusals(locks: lualock.Locks) -> Iterator[Message]:
    lock = locks.lock("report", ttl=30, metadata="monthly run", max_waiters=1)
    lease = lock.acquire()
    held = r'held by .+:\d+:MainThread \("monthly run"\) for .+ m?s'
    until = r"expires in .+ s unless renewed"
    now = _error(lambda: lock.acquire(timeout=0))
    yield Message(now, "could not acquire lock 'report': held", held, until)
    late = _error(lambda: lock.acquire(timeout=0.05))
    yield Message(
        late, "could not acquire lock 'report' within", held, f"{until}; no waiter is ahead$"
    )

    waiter = threading.Thread(target=lambda: lock.acquire().release())
    waiter.start()
    while not lock.inspect().waiters:
        pass
    behind = _error(lambda: locks.lock("report", ttl=30).acquire(timeout=0.05))
    yield Message(behind, "within 0.05 s", held, f"{until}; 1 waiter is ahead$")
    full = _error(lambda: lock.acquire(timeout=5))
    cause = r"its queue is full \(1 waiting, max_waiters=1\); " + held
    yield Message(full, "could not wait for lock 'report'", cause, "or raise max_waiters")
    lease.release()
    waiter.join()

    released = protocol.acquire(_request(), _server(), 0)
    free = _answered(released, [b"held", -1, 0, b""])
    yield Message(free, "could not acquire lock 'report'", "just released", "has priority")
    with lock:
        itself = _error(lock.acquire)
    yield Message(itself, "could not wait for lock 'report'", "would wait for itself", "Release it")


def _losses(locks: lualock.Locks, client: Any) -> Iterator[Message]:
    other = lualock.Locks(client, holder="web-2").lock("report")
    lock = locks.lock("report", ttl=30)
    for verb, call, advice in (
        ("released", lambda lease: lease.release(), "Check the work"),
        ("extended", lambda lease: lease.extend(5), "Stop the work"),
        ("adopted", lambda lease: locks.adopt(lease.handle()), "Acquire the lock"),
    ):
        lease = lock.acquire()
        client.delete(lock.key)
        expired = f"ended by force, before it was {verb}"
        error = _error(lambda call=call, lease=lease: call(lease))  # type: ignore[misc]
        yield Message(error, "lease on 'report'", f"{expired}; the lock is now free", advice)
        lease = lock.acquire()
        client.delete(lock.key)
        with other:
            error = _error(lambda call=call, lease=lease: call(lease))  # type: ignore[misc]
        yield Message(error, "lease on 'report'", f"{expired}; web-2 holds the lock now", advice)

    lease = lock.acquire()
    handle = lease.handle()
    passed = _error(lease.check)
    yield Message(passed, "could not use the lease on 'report'", r"handle\(\) was called", "Adopt")
    adopted = locks.adopt(handle)
    again = _error(lambda: locks.adopt(handle))
    adopted.release()
    yield Message(again, "lease on 'report'", "released or passed on before", "Acquire the lock")

    lease = lock.acquire()
    lease.release()
    over = _error(lambda: lease.extend(5))
    yield Message(over, "could not extend the lease on 'report'", "was released", "Acquire")
    lease = locks.lock("report", ttl=0.001).acquire()
    while lease.held:
        pass
    over = _error(lease.check)
    yield Message(over, "could not use the lease on 'report'", r"expired \d", "Stop the work")
    lease = lock.acquire()
    lease._pid += 1
    forked = _error(lease.check)
    yield Message(forked, "the lease on 'report'", "a forked child owns nothing", "in this process")
    lease._pid -= 1
    lease.release()
    body = LeaseBase._cancelled_error(lease)
    yield Message(body, "body under lock 'report'", "the lease was lost", "Acquire the lock again")


def _server() -> ServerClock:
    server = ServerClock(lambda: 0.0, 5.0)
    server.compare(0.0, 0.0, 10**15)
    return server


def _unavailable(proxy: Proxy, server: Server) -> Iterator[Message]:
    lost = lualock.LockUnavailable("the reply was lost", outcome_unknown=True)
    release = protocol.release(_request(), LeaseState(1, b"", 30.0))
    unsure = _answered(release, lost, b"missing")
    yield Message(unsure, "release of lock 'report'", "reply was lost", "Check the last work")
    adopt = protocol.adopt(_request(), b"o" * 22, _server(), fresh=False)
    next(adopt).doubled = True  # type: ignore[union-attr]
    unsure = _error(lambda: adopt.send(b"missing"))
    yield Message(unsure, "could not acquire lock 'report'", "reply was lost", "Try again")
    times = iter((0.0, 9.0))
    slow = ServerClock(lambda: next(times), 5.0)
    slow.compare(0.0, 0.0, 10**15)
    late = _answered(protocol.acquire(_request(), slow, 2.0), [b"late", b"1"])
    yield Message(late, "could not acquire lock 'report'", "too late", "wait longer")
    steps = protocol.acquire(_request(), _server(), None)
    jumps = _answered(steps, *[[b"late", b"1000000000000000"]] * 9)
    yield Message(jumps, "the server", "its clock is unstable", "NTP")

    with lualock.connect(proxy.url) as locks:
        lock = locks.lock("report")
        lock.acquire().release()
        proxy.lose_reply = 2
        yield Message(_error(lock.acquire), "the server at", "broke|lost", "may or may not")
    nowhere = lualock.connect("unix:///tmp/lualock-no-such-socket").lock("report")
    yield Message(_error(nowhere.try_acquire), "no-such-socket", "No such file", "running")
    wrong = lualock.connect(server.tcp_url.replace("//", "//nobody:guess@")).lock("report")
    yield Message(_error(wrong.try_acquire), "this user", "WRONGPASS|invalid", "password")
    for reply, cause in (
        ("NOPERM this user has no permissions", "NOPERM"),
        ("OOM command not allowed", "memory"),
        ("READONLY You can't write against a read only replica.", "replica"),
        ("MOVED 1 x:1", "cluster"),
        ("ERR unknown command", "unknown command"),
        ("ERR something else", "something else"),
    ):
        yield Message(errors.reply_error(reply), "server", cause, "[a-z]")
    old = _error(lambda: codec.check_hello([b"server", b"redis", b"version", b"5.0.0"]))
    yield Message(old, "server", r"redis 5\.0\.0", r"Redis 6\.2, Valkey 7\.2")


def _conflicts(locks: lualock.Locks, client: Any) -> Iterator[Message]:
    lock = locks.lock("report")
    client.set(lock.key, "something else")
    error = _error(lock.acquire)
    yield Message(error, r"key 'lualock:\{report\}'", "did not write", "Delete the key")
    fencing.fenced_set(client, "stock", "7", fence=12)
    error = _error(lambda: fencing.fenced_set(client, "stock", "8", fence=11))
    yield Message(error, "key 'stock'", "fence 11 is stale, 12 has been seen", "Discard this write")
    client.set(fencing.fence_key(b"stock"), "no number")
    error = _error(lambda: fencing.fenced_set(client, "stock", "8", fence=13))
    yield Message(error, "key 'stock'", "does not hold a fence", "Delete that key")


async def _coroutine(_: object) -> None: ...


def _bad_arguments(locks: lualock.Locks, client: Any) -> Iterator[Message]:
    lock: Any = locks.lock
    adopt: Any = locks.adopt
    lease = lock("b").acquire()
    damaged = f"lualock1.{'t' * 22}.1000.0.bHVhbG9jazp7fX0="
    foreign = f"lualock1.{'t' * 22}.1000.0.b3RoZXI6e3h9"
    for call, names, cause, advice in (
        (lambda: lock("x", ttl=0), "ttl", "not 0", r"must be from 0\.001"),
        (lambda: lock("x", ttl="5"), "ttl", "not str", "must be a number"),
        (lambda: lock("x").acquire(timeout=-1), "timeout", "not -1", "must be 0"),
        (lambda: lock("x", max_hold=5, ttl=9), "max_hold", "without renewal", "renew=True"),
        (lambda: lock("x", max_hold=0), "max_hold", "not 0", "must be at least"),
        (lambda: lock("x", priority=101), "priority", "not 101", "must be from -100"),
        (lambda: lock("x", max_waiters=0), "max_waiters", "not 0", "must be a whole number"),
        (lambda: lock("x", renew="no"), "renew", "not 'no'", "must be True or False"),
        (lambda: lock("x", on_lost=5), "on_lost", "not int", "must be a function"),
        (lambda: lock("x", on_lost=_coroutine), "on_lost", "plain lock", "must be a plain"),
        (lambda: lock("x", metadata="m" * 300), "metadata", "more than the 256", "keep a ref"),
        (lambda: lock(""), "a lock's name", "empty", "must not"),
        (lambda: lock(5), "a lock's name", "not int", "must be str or bytes"),
        (lambda: lock("x" * 2000), "a lock's name", "2000 bytes", "use a digest"),
        (lambda: lualock.Locks(client, prefix="{"), "prefix", "hash tag", "must not contain"),
        (lambda: lualock.Locks(client, holder="a\nb"), "holder", "empty", "must be one line"),
        (lambda: adopt(5), "adopt", "not int", "Pass what"),
        (lambda: locks.adopt("x"), "adopt", "not a handle", "Pass what"),
        (lambda: locks.adopt(damaged), "adopt", "is damaged", "Pass what"),
        (lambda: locks.adopt(foreign), "adopt", "another prefix", "Use Locks with"),
        (lambda: lock("x").__exit__(None, None, None), "block", "not entered", "Use the lease"),
        (lambda: fencing.fenced_set(client, "k", "v", fence=0), "fence", "above 0", "must be"),
        (lambda: fencing.fenced_set(None, "k", "v", fence=1), "client", "NoneType", "must be"),
        (lambda: fencing.fenced_set(client, "a}", "v", fence=1), "key 'a}'", "no hash", "Choose"),
        (lambda: lock("x")(5), "decorate this int", "decorates functions", "Use a with"),
        (lambda: lock("x")(_generator), "decorate _generator", "before the body", "Use a with"),
        (lambda: lock("x")(_coroutine), "decorate _coroutine", "before the body", r"lualock\.aio"),
        (lambda: lock("x")(staticmethod(_job)), "decorate _job", "goes above", "Swap"),
        (lambda: lock("x")(_generator_of)(), "_generator_of", "without the lock", "iterate"),
        (lambda: locks.job(lambda: 1), "lock name", "for a lambda", "pass key="),
    ):
        error = _error(call)
        assert isinstance(error, lualock.InvalidArgument), error
        yield Message(error, names, cause, advice)
    for thing, names in ((lease, "a lease"), (lock("x"), "a lock"), (locks, "a Locks")):
        error = _error(thing.__reduce__)
        yield Message(error, names, "cannot be pickled", "handle|make another|connect in")
    lease.release()


def _jobs(locks: lualock.Locks) -> Iterator[Message]:
    @locks.job(key="report", policy=jobs.Retry(7))
    def job() -> None: ...

    with locks.lock("report"):
        yield Message(_error(job), "lock 'report'", "held by", "tried again in 7 s")
        yield from _superseded(locks)
    lost = _error(job.refresh_lock)
    yield Message(lost, "could not refresh lock 'report'", "part of no run", "inside the run")
    ended = _error(lambda: jobs.adapter(job).run((), {}, jobs.Delivery("7", ended=lambda: True)))
    yield Message(ended, "could not run job", "its job system gave it up", "while it waited")


def _superseded(locks: lualock.Locks) -> Iterator[Message]:
    """The lock is held, and so is the reservation."""
    adapter = jobs.adapter(locks.job(key="report", unique="queued")(_job))
    adapter.reserve(job_id="7")
    attempt = Attempt(Run(adapter.job, locks, (), {}, None))
    error = _error(lambda: drive(jobs.Coalesce(1).take(attempt)))
    cause = r"another one \(job 7\) already waits for lock 'report'"
    yield Message(error, "could not run the job", cause, "nothing to do")

    free = jobs.adapter(locks.job(key="other")(_job))
    steps = jobs.Replace(5).take(Attempt(Run(free.job, locks, (), {}, None)))
    next(steps)  # the stop request
    lease = steps.send(None)()
    steps.send(lease)  # withdraws the stop request
    release = steps.send(False)
    release()
    error = _error(lambda: steps.send(None))
    cause = "a later job asked to replace the same run under lock 'other'"
    yield Message(error, "could not run the job", cause, "nothing to do")


def _job(value: object = None) -> object:
    """A job that returns its argument."""
    return value


def _generator() -> Iterator[int]:
    yield 1


def _generator_of() -> Iterator[int]:
    return _generator()


class _Nothing(lualock.LockedJob):
    """A job without a body."""


def _bad_jobs(locks: lualock.Locks) -> Iterator[Message]:
    made: Any = locks.job
    job = made(_job)
    adapter = jobs.adapter(job)

    def above(value: object) -> None: ...

    above.__lualock__ = adapter  # type: ignore[attr-defined]
    for call, names, cause, advice in (
        (lambda: made(5), "this int", "decorates functions", r"Write locks.job\(ttl=5\)"),
        (lambda: made(staticmethod(_job)), "this staticmethod", "goes above", "Swap"),
        (lambda: made(job), "job of _job", "a job already", "Use locks.job once"),
        (lambda: made(_generator), "_generator", "a generator function", "Iterate inside"),
        (lambda: made(key="x")(max), "max", "what its arguments are", "Wrap it"),
        (lambda: made(key="x", key_version=1)(_job), "key='x'", "whole name", "Change the name"),
        (lambda: made(policy=5)(_job), "a policy", "not 5", "must be"),
        (lambda: made(unique="no")(_job), "unique", "not 'no'", "must be"),
        (lambda: made(ttl=_coroutine)(_job), "ttl", "nothing awaits it", "must be a plain"),
        (lambda: job(object()), "argument 'value' of job", "no form", "Pass an id"),
        (
            lambda: made(key="x")(_job)(_generator()),
            "could not finish job",
            "without the lock",
            "'async def'",
        ),
        (lambda: jobs.adapter(5), "use 5", "not a job of lualock", "Decorate"),
        (lambda: adapter.cancel(), "cancel a job", "nothing says which", "Pass its job_id"),
        (lambda: jobs.Delivery("7", "no token").owner, "the token", "not a job's", "unchanged"),
        (lambda: adapter.enqueue(_coroutine, job_id="7"), "_coroutine", "coroutine, ", "async def"),
        (lambda: innermost_adapter(above), "job .*_job", "never be called", "Put it below"),
        (
            lambda: adapter_in("rq", job),
            "job .*_job",
            "for this system",
            r"Decorate it with lualock\.",
        ),
        (_Nothing.run, "_Nothing", "no perform", "Define it"),
        (
            lambda: type("Misspelt", (lualock.LockedJob,), {"lock_timout": 5}),
            *("Misspelt.lock_timout", "not a setting", "Did you mean lock_timeout"),
        ),
    ):
        error = _error(call)
        assert isinstance(error, lualock.InvalidArgument), error
        yield Message(error, names, cause, advice)


def _no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Message]:
    monkeypatch.setenv("LUALOCK_SERVER", "/nowhere")
    error = _error(binaries.every)
    yield Message(error, "LUALOCK_SERVER", "not an executable file", "[a-z]")
    error = lualock.EmbeddedUnavailable(binaries.NONE_FOUND)
    yield Message(error, "server", "no|not", "install|LUALOCK")
    monkeypatch.setenv("LUALOCK_EMBEDDED", "0")
    error = _error(lambda: lualock.connect("embedded://"))
    yield Message(error, "the embedded server", "forbids it", "Set LUALOCK_URL or pass the URL")


def test_every_message(
    locks: lualock.Locks,
    one_client: Any,
    one_server: Server,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each text contains what its error class requires, and nothing that belongs to another
    class."""
    messages = [
        *_refusals(locks),
        *_losses(locks, one_client),
        *_unavailable(proxy, one_server),
        *_jobs(locks),
        *_conflicts(locks, one_client),
        *_bad_arguments(locks, one_client),
        *_bad_jobs(locks),
        *_no_server(monkeypatch),
    ]
    for message in messages:
        text = str(message.error)
        sys.stdout.write(f"{type(message.error).__name__}: {text}\n")
        for part in message[1:]:
            assert re.search(part, text), f"{text!r} does not say {part!r}"
    raised = {type(message.error).__name__ for message in messages}
    assert raised >= {*lualock.errors.__dict__} & {*lualock.__all__} - {"LockError"}
    for one in messages:
        for other in messages:
            if type(one.error) is not type(other.error):
                assert str(one.error) != str(other.error)


def test_each_class_has_a_text_of_its_own(locks: lualock.Locks) -> None:
    """The first words of a refusal show whether the time was over or the queue was full."""
    refusals = [*_refusals(locks)]
    for one in refusals:
        for other in refusals:
            if type(one.error) is not type(other.error):
                assert not one.is_in(str(other.error))

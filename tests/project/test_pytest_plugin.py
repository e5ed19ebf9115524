"""The pytest plugin, in separate pytest runs, as users run it."""

from __future__ import annotations

import pytest

from tests.project.test_docs import PYTHON, ROOT

pytest_plugins = ["pytester"]


def passes(pytester: pytest.Pytester, code: str, tests: int) -> None:
    """Run the tests of a program, which all pass, in a process that finds the plugin
    automatically."""
    pytester.makepyfile(code)
    pytester.runpytest_subprocess("-q", "-W", "error").assert_outcomes(passed=tests)


def test_each_test_has_an_empty_server(pytester: pytest.Pytester) -> None:
    """Each test has an empty server, and ``connect()`` finds it."""
    passes(
        pytester,
        """
        import pytest, lualock

        @pytest.mark.parametrize("time", [1, 2])
        def test_empty(locks, lock_kit, time):
            lock_kit.assert_free("x")
            locks.lock("x", ttl=60).acquire()
            lock_kit.assert_locked("x")

        def test_connect(lualock_url, lock_kit):
            with lualock.connect() as locks:
                locks.lock("y", ttl=60, metadata="why").acquire()
                lock_kit.assert_locked(locks.lock("y"), metadata="why")
        """,
        tests=3,
    )


def test_another_process_holds_the_lock(pytester: pytest.Pytester) -> None:
    """The other process refuses callers, releases the lock, and can be killed and paused."""
    passes(
        pytester,
        """
        import pytest, lualock

        def test_held(locks, lock_kit):
            with lock_kit.held_elsewhere("x", metadata="the other") as other:
                with pytest.raises(lualock.NotAcquired) as refused:
                    locks.lock("x").acquire(timeout=0)
                assert f":{other.pid}:" in refused.value.holder
                lock_kit.assert_locked("x", metadata="the other")
                with pytest.raises(lualock.LockError, match="held by"):
                    lock_kit.held_elsewhere("x")
            lock_kit.assert_free("x")
            assert locks.lock("x", ttl=60).acquire(timeout=0).fence > other.fence

        def test_killed(locks, lock_kit):
            lock_kit.held_elsewhere("x").kill()
            lock_kit.assert_locked("x")
            lock_kit.expire("x")
            assert locks.lock("x", ttl=60).try_acquire()

        def test_paused(locks, lock_kit):
            with lock_kit.held_elsewhere(locks.lock("x", ttl=60), ttl=60) as other:
                other.pause()
                lock_kit.advance(59)
                lock_kit.assert_locked("x")
                lock_kit.advance(1)
                with pytest.raises(lualock.InvalidArgument, match="0 or more, not -3"):
                    lock_kit.advance(-3)
                locks.lock("x", ttl=60).acquire(timeout=0)
            lock_kit.assert_locked("x")  # not by the other process, which lost it
        """,
        tests=3,
    )


@pytest.mark.full
def test_the_page(pytester: pytest.Pytester) -> None:
    """The examples of the how-to page pass."""
    page = (ROOT / "docs" / "howto" / "testing.md").read_text("utf-8")
    alone, tasks, program = (block for _, block in PYTHON.findall(page))
    pytester.makepyfile(tasks=tasks, test_alone=alone, test_program=program)
    pytester.runpytest_subprocess("-q", "-W", "error").assert_outcomes(passed=4)


@pytest.mark.full
def test_losses_and_waiters(pytester: pytest.Pytester) -> None:
    """The kit shows a lost lease of a job and the waiters, in both APIs."""
    passes(
        pytester,
        """
        def test_expired(locks, lock_kit):
            expired = []

            @locks.job(key="x", on_expired=lambda shop: expired.append(shop))
            def rebuild(shop):
                lock_kit.assert_locked(rebuild.lock_for(shop))
                lock_kit.expire("x")

            rebuild(7)
            assert expired == [7]

        def test_waiting(locks, lock_kit):
            import threading

            with locks.lock("x"):
                waiting = threading.Thread(target=lambda: locks.lock("x").acquire().release())
                waiting.start()
                lock_kit.assert_waiters("x", 1)
            waiting.join(10)
            lock_kit.assert_free("x")

        def test_asyncio(lock_kit):  # the kit is plain code there too
            import asyncio
            from lualock import aio

            async def main():
                async with aio.connect() as locks:
                    lock = locks.lock("x")
                    lock_kit.assert_free(lock)
                    async with lock:
                        lock_kit.assert_locked(lock)

            asyncio.run(main())
        """,
        tests=3,
    )


@pytest.mark.full
def test_a_lock_of_another_server(pytester: pytest.Pytester) -> None:
    """The kit does not answer for a server that it does not have; a reservation keeps its key."""
    passes(
        pytester,
        """
        import lualock, pytest, redis
        from lualock import jobs
        from lualock.testing import LockKit

        def test_elsewhere(lock_kit):
            theirs = lualock.connect("redis://localhost:1/0").lock("x")
            with pytest.raises(lualock.InvalidArgument, match="LUALOCK_URL"):
                lock_kit.assert_free(theirs)

        @pytest.mark.parametrize("url", ["redis://", "redis://localhost/0", "redis://:6379?db=0"])
        def test_the_same_said_otherwise(url):
            ours = lualock.Locks(redis.Redis()).lock("x")
            with LockKit(url) as kit:
                assert kit.lock(ours).key == ours.key
                with pytest.raises(lualock.InvalidArgument, match="LUALOCK_URL"):
                    kit.lock(lualock.connect("redis://localhost/1").lock("x"))

        def test_place(locks, lock_kit):
            @locks.job(key="x", unique="queued")
            def rebuild(): ...

            reservation = jobs.adapter(rebuild).reservation()
            lock_kit.assert_free(reservation)
            jobs.adapter(rebuild).reserve(job_id="mine")
            lock_kit.assert_locked(reservation)
            lock_kit.assert_free("x")

        def test_a_place_elsewhere(locks, lock_kit):
            @locks.job(key="x", unique="queued")
            def rebuild(): ...

            work = jobs.adapter(rebuild)
            with lock_kit.held_elsewhere(work.reservation(), metadata="job 7"):
                lock_kit.assert_free("x")
                assert work.reserve(job_id="8").job_id == "7"
            assert work.reserve(job_id="8")
        """,
        tests=6,
    )


FAILS = {
    "lock_kit.assert_locked('x')": "*lock 'x' is not held*",
    "locks.lock('x').acquire(); lock_kit.assert_free('x')": "*not free: *x*held*",
    "locks.lock('x').acquire(); lock_kit.assert_locked('x', metadata='a')": "*metadata ''*",
}


@pytest.mark.full
def test_a_failed_assertion_states_the_facts(pytester: pytest.Pytester) -> None:
    """Each assertion can fail, and its error states the facts."""
    tests = [f"def test_{n}(locks, lock_kit): {line}" for n, line in enumerate(FAILS)]
    pytester.makepyfile("\n".join(tests))
    result = pytester.runpytest_subprocess("-q")
    result.assert_outcomes(failed=len(FAILS))
    result.stdout.fnmatch_lines(list(FAILS.values()))


def test_without_fixtures_no_server_starts(pytester: pytest.Pytester) -> None:
    """Without its fixtures the plugin starts no server."""
    passes(
        pytester,
        """
        import os, sys

        def test_nothing(request):
            assert request.config.pluginmanager.has_plugin("lualock")
            assert "lualock.embedded" not in sys.modules
            assert "LUALOCK_URL" not in os.environ
        """,
        tests=1,
    )

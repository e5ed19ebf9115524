"""Jobs: producers, a queue that delivers at least once, and workers.

The actions are the shipped ones (``lualock.jobs``). This module is to them what an integration is,
for a queue that loses replies, delivers twice, and notices late that a worker is dead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lualock import jobs
from lualock._protocol import AwaitMessage, Steps
from lualock.errors import LockError
from lualock.jobs.acquire import Run
from lualock.jobs.declaration import Job, JobOptions
from lualock.jobs.delivery import Delivery, Enqueued, RetryLater
from lualock.jobs.enqueue import Entry
from lualock.jobs.identity import encode_token
from lualock.jobs.run import current_lease, execute
from tests.simulation.clients import Lock, Renewal
from tests.simulation.job_api import Actor, Lease, carry_out
from tests.simulation.network import Interrupted, Process
from tests.simulation.world import US, World

MAX_DELIVERIES = 12
"""After so many deliveries the queue gives a job up."""


class Failed(Exception):
    """A job failed, or the queue could not take it."""


@dataclass(eq=False, slots=True)
class Work:
    """One job, as drawn, and its state."""

    id: str
    lock: Lock
    job: Job
    idle_s: float  # before it is enqueued
    delay_s: float  # before it is delivered
    hold_s: float
    fails: int  # how many of its runs fail
    tries: int  # how often the queue tries a job that fails
    retry_s: float
    stops_on_request: bool  # whether it obeys stop requests
    push: str  # the fault of its push: before, after, lost, or none
    token: str = ""
    pushed: bool = False
    deliveries: int = 0
    attempts: int = 0
    in_hand: int = 0  # how many deliveries are under way
    ready: int = 0  # how many deliveries are planned
    over: bool = False
    ended: str = ""  # "ok" if the last run ended well

    @property
    def owner(self) -> str:
        """The token that its producer gives it."""
        return self.id.ljust(22, "_")

    def again_s(self, error: BaseException) -> float | None:
        """Return after what time the queue tries it again; None: never."""
        return self.retry_s if self.attempts < self.tries else None


class Producer(Actor):
    """Enqueues jobs, one after the other."""

    works: list[Work]
    calm_works: list[Work]
    queue: Queue

    def life(self) -> Steps[None]:
        """Enqueue all jobs."""
        for work in (*self.works, *self.calm_works):
            try:
                while work in self.calm_works and self.world.t < self.calm_at_s:
                    yield AwaitMessage(self.calm_at_s - self.world.t + 1e-6)
                yield AwaitMessage(work.idle_s)
                yield from self._enqueue(work)
            except Interrupted:
                continue
        self.done = True

    def _enqueue(self, work: Work) -> Steps[None]:
        self.job = work.id
        self.alone = work.job.options.unique == "both"
        key = work.lock.key
        entry = Entry(work.job, self.locks, (work, None), {})  # type: ignore[arg-type]  # a third API
        self.note("enqueue", key, what=work.job.options.unique or "")
        result: Any = None
        try:
            steps = entry.enqueue(partial(self._push, work), work.id, work.owner, work.delay_s)
            result = yield from carry_out(steps)
        except (LockError, Failed):
            pass
        finally:
            if not self.process.dead and not work.pushed:
                self.queue.forget(work, self.process)
        if isinstance(result, Enqueued):
            self.note("enqueued", key)
        elif result is not None:
            self.note("refused", key, what=result.state, other=result.job_id or "")
            if result.job_id == work.id:
                self.world.wrong("refusal", f"{work.id} was refused because of itself")

    def _push(self, work: Work, token: str) -> Steps[None]:
        yield AwaitMessage(self.world.latency_us / US)
        if work.push == "before":
            raise Failed("the queue is away")
        work.token = token
        work.pushed = True
        self.note("pushed", work.lock.key)
        if work.push == "lost":
            self.queue.forget(work, self.process, purged=True)
        else:
            self.queue.put(work, work.delay_s)
        if work.push == "after":
            raise Failed("the queue did not answer")


class Worker(Actor):
    """Runs jobs."""

    queue: Queue
    delivery: tuple[Work, int] | None = None  # the one in hand

    def deliver(self, work: Work) -> Steps[None]:
        """Run one delivery of a job."""
        self.job, self.lease = work.id, None
        self.careful = work.stops_on_request
        delivery = Delivery(work.id, work.token or None, work.again_s)
        delay_s: float | None = None
        counts = True
        work.ended = ""
        try:
            run = Run(work.job, self.locks, (work, self), {}, delivery)  # type: ignore[arg-type]
            yield from carry_out(execute(run))
        except RetryLater as later:
            delay_s, counts = later.delay_s, False
        except (LockError, Failed, Interrupted) as error:
            delay_s = work.again_s(error)
        finally:
            if not self.process.dead:
                self.queue.settled(self, work, delay_s, counts=counts)

    def body(self, work: Work) -> Steps[None]:
        """Do the work of a job."""
        lease = current_lease()
        assert lease is None or isinstance(lease, Lease)
        return self._works(work, lease)

    def _works(self, work: Work, lease: Lease | None) -> Steps[None]:
        self.note("began", work.lock.key, what="" if lease is not None else "unlocked")
        for _ in range(3):
            if lease is not None:
                lease.holding.work()
            yield AwaitMessage(work.hold_s / 3)
            if work.stops_on_request and lease is not None and work.job.options.policy is not None:
                try:
                    if (yield from lease._release_requested()):
                        yield from lease.release()
                        break
                except LockError:
                    pass
        if work.fails:
            work.fails -= 1
            raise Failed("the job")
        work.ended = "ok"


@dataclass(eq=False)
class Queue:
    """Delivers jobs to workers, at least once."""

    world: World
    workers: list[Worker]
    patience_s: float  # after this time an unfinished delivery may be repeated
    twice: bool  # repeats it even if its worker is alive
    reports_deaths: bool  # whether a worker's death is reported
    waiting: deque[Work] = field(default_factory=deque)

    def put(self, work: Work, delay_s: float) -> None:
        """Deliver a job after that time."""
        work.ready += 1
        self.world.after(int(delay_s * US) + 1, self._ready, work)

    def _ready(self, work: Work) -> None:
        self.waiting.append(work)
        self._dispatch()

    def _dispatch(self) -> None:
        while self.waiting:
            idle = [one for one in self.workers if one.delivery is None and not one.process.dead]
            if not idle:
                return
            worker, work = self.world.random.choice(idle), self.waiting.popleft()
            work.ready -= 1
            if work.over or work.deliveries >= MAX_DELIVERIES:
                self._check(work, worker.process)
                continue
            work.deliveries += 1
            work.in_hand += 1
            worker.delivery = delivery = work, work.deliveries
            worker.process.soon(self.world.latency_us, self._begin, worker, work)
            self.world.after(int(self.patience_s * US), self._check_settled, worker, *delivery)

    def _begin(self, worker: Worker, work: Work) -> None:
        worker.task = worker.process.start(worker.deliver(work))

    def unfinished(self) -> Iterator[str]:
        """Yield what should be done and is not."""
        alive = [worker for worker in self.workers if not worker.process.dead]
        for worker in alive:
            if worker.delivery is not None:
                yield f"{worker.name} never finished {worker.delivery[0].id}"
        for work in self.waiting if alive else ():
            yield f"{work.id} was never delivered"

    def _check_settled(self, worker: Worker, work: Work, delivery: int) -> None:
        """Deliver again if that delivery is unfinished."""
        if worker.delivery != (work, delivery):
            return
        if worker.process.dead:
            worker.delivery = None
            work.in_hand -= 1
            work.ended = ""
            alive = [one for one in self.workers if not one.process.dead]
            if self.reports_deaths and alive:
                reporter = self.world.random.choice(alive)
                late = int(self.world.random.random() ** 2 * 3 * US)
                reporter.process.soon(late, self._notice, reporter, worker, work)
            self.put(work, 0.0)
        elif self.twice and work.deliveries < MAX_DELIVERIES:
            self.put(work, 0.0)
        else:
            self.world.after(int(self.patience_s * US), self._check_settled, worker, work, delivery)

    def _notice(self, reporter: Worker, dead: Worker, work: Work) -> None:
        reporter.process.start(self._report_death(reporter, dead, work))

    def _report_death(self, reporter: Worker, dead: Worker, work: Work) -> Steps[None]:
        """Release the lock of a dead worker, as its main process does."""
        actor = Actor(reporter.process, f"{reporter.name}s{work.deliveries}", reporter.renewal, [])
        actor.job = work.id
        entry = Entry(work.job, actor.locks, (work, None), {})  # type: ignore[arg-type]
        with suppress(LockError, Interrupted):
            yield from carry_out(entry.died(work.id, work.token or None, dead.pid))

    def settled(self, worker: Worker, work: Work, delay_s: float | None, *, counts: bool) -> None:
        """Note that a delivery has ended."""
        worker.delivery = None
        work.in_hand -= 1
        work.attempts += counts
        if delay_s is not None:
            self.put(work, delay_s)
        self._check(work, worker.process)
        self._dispatch()

    def _check(self, work: Work, process: Process) -> None:
        if work.ready or work.in_hand or work.over:
            return
        work.over = True
        what = work.ended if work.deliveries < MAX_DELIVERIES else ""
        where = {"lock": work.lock.name, "process": process.name, "id": work.id}
        self.world.record("done", what=what, **where)
        if not work.job.options.keep_lock_on_failure and work.deliveries < MAX_DELIVERIES:
            self.forget(work, process)

    def forget(self, work: Work, process: Process, *, purged: bool = False) -> None:
        """Note that this job is over, so no lock or reservation may be left."""
        work.over = True
        if not purged:
            token = Delivery(work.id, work.token or None).owner if work.pushed else None
            token = token or encode_token(work.owner)
            self.world.requested_by[token] = process.name, self.world.t
            self.world.disowned[token] = self.world.ended[token] = self.world.now


def _declare(draw: Callable[[], float], choice: Callable[[Any], Any], body: Any) -> Job:
    """Draw a declaration, as ``locks.job`` makes it."""
    retry = jobs.Retry(choice((0.05, 0.5, 2.0)))
    unique = choice((None, "queued", "queued", "running", "both", "both"))
    policy = choice(
        (
            None,
            retry,
            jobs.Coalesce(None, None),
            jobs.Replace(2.0),
            jobs.Wait(choice((0.2, 2.0, None)), choice((None, retry))),
            jobs.Replace(choice((0.5, 3.0)), choice((None, retry))),
            jobs.Coalesce(choice((None, 0, 1.0)), retry),
        )
    )
    options = JobOptions(
        policy=policy,
        unique=unique,
        keep_lock_on_retry=choice((False, True)),
        keep_lock_on_failure=choice((False, False, False, True)),
        when_unavailable=choice(("raise", "raise", "run", "skip")),
        queue_ttl=choice((3.0, 20.0, 60.0)),
    )
    ttl_s = choice((None, None, 0.3 + draw(), 3.0))
    return Job("job", body, lambda work, _: work.lock.name, lambda *_: ttl_s, options=options)


def draw_jobs(
    world: World,
    locks: list[Lock],
    renewals: list[tuple[Process, Renewal]],
    calm_at_s: float,
) -> tuple[list[Producer], Queue]:
    """Draw the producers, the queue and the workers of a run."""
    draw, choice = world.random.random, world.random.choice
    workers: list[Worker] = []
    for number in range(1, choice((3, 4, 5))):
        process, renewal = choice(renewals)
        workers.append(Worker(process, f"w{number}", renewal, locks))
    patience_s = choice((0.1, 1.0, 5.0))
    queue = Queue(world, workers, patience_s, draw() < 0.2, draw() < 0.5)

    def body(work: Work, worker: Worker) -> Steps[None]:
        return worker.body(work)

    declared = [_declare(draw, choice, body) for _ in range(choice((1, 1, 2)))]
    hold_s = choice((0.01, 0.1, 0.5, 1.0))
    late_s = choice((0.0, 0.0, 0.5))
    idle_s = choice((0.001, 0.02, 0.2, 2.0))
    number = 0

    def make() -> Work:
        nonlocal number
        number += 1
        return Work(
            f"j{number}",
            lock=choice(locks),
            job=choice(declared),
            idle_s=draw() * idle_s,
            delay_s=draw() * late_s,
            hold_s=hold_s * draw() * 2,
            fails=choice((0, 0, 0, 1, 2)),
            tries=choice((1, 2, 3)),
            retry_s=draw() * choice((0.01, 1.0)),
            stops_on_request=draw() < 0.5,
            push=choice(("", "", "", "", "", "", "before", "after", "lost")),
        )

    producers = []
    for at in range(1, choice((2, 3, 4))):
        process, renewal = choice(renewals)
        producer = Producer(process, f"e{at}", renewal, locks)
        producer.queue = queue
        producer.works = [make() for _ in range(choice((1, 2, 4, 6)))]
        producer.calm_works = [make() for _ in range(choice((0, 1, 2)) if calm_at_s else 0)]
        producer.calm_at_s = calm_at_s
        producers.append(producer)
    for worker in workers:
        worker.queue = queue
    return producers, queue

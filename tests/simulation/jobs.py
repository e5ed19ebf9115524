"""Jobs: who enqueues them, a queue that delivers them at least once, and workers that run them.

The order of events is the shipped one (``lualock.jobs``): what an integration does for a job system
is done here for a queue that loses replies, delivers twice, and notices late that a worker is dead.
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
from lualock.jobs.declaration import Job, JobOptions, Run
from lualock.jobs.delivery import Delivery, Enqueued, RetryLater
from lualock.jobs.enqueue import Entry
from lualock.jobs.identity import encode_token
from lualock.jobs.run import current_lease, execute
from tests.simulation.clients import Lock, Renewal
from tests.simulation.job_shell import Actor, Lease, carry_out
from tests.simulation.network import Interrupted, Process
from tests.simulation.world import US, World

MOST_DELIVERIES = 12
"""Then a job system puts a job aside."""


class Failed(Exception):
    """A job, or the queue that it was to be put into, failed."""


@dataclass(eq=False, slots=True)
class Work:
    """One job: what is done with it, and what has become of it."""

    id: str
    lock: Lock
    job: Job
    idle_s: float  # before it is enqueued
    delay_s: float  # before it is delivered
    hold_s: float
    fails: int  # how many of its runs
    tries: int  # of the queue, if they fail
    retry_s: float
    listens: bool  # stops when it is asked to
    push: str  # what goes wrong when it is pushed: before, after, lost, or nothing
    token: str = ""
    pushed: bool = False
    deliveries: int = 0
    attempts: int = 0
    in_hand: int = 0  # how many deliveries are under way
    ready: int = 0  # how many are to come
    over: bool = False
    ended: str = ""  # how the last run did

    @property
    def owner(self) -> str:
        """The token that its producer gives it."""
        return self.id.ljust(22, "_")

    def again_s(self, error: BaseException) -> float | None:
        """When the queue tries it again after an error."""
        return self.retry_s if self.attempts < self.tries else None


class Producer(Actor):
    """Enqueues jobs, one after the other."""

    works: list[Work]
    calm_works: list[Work]
    queue: Queue

    def life(self) -> Steps[None]:
        """All of them."""
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
        entry = Entry(work.job, self.locks, (work, None), {})  # type: ignore[arg-type]  # a third shell
        self.note("enqueue", key, what=work.job.options.unique or "")
        said: Any = None
        try:
            steps = entry.enqueue(partial(self._push, work), work.id, work.owner, work.delay_s)
            said = yield from carry_out(steps)
        except (LockError, Failed):
            pass
        finally:
            if not self.process.dead and not work.pushed:
                self.queue.forget(work, self.process)
        if isinstance(said, Enqueued):
            self.note("enqueued", key)
        elif said is not None:
            self.note("refused", key, what=said.state, other=said.job_id or "")
            if said.job_id == work.id:
                self.world.wrong("refusal", f"{work.id} was refused for its own sake")

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
        """One delivery of a job."""
        self.job, self.lease = work.id, None
        self.careful = work.listens
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
        """What the job does."""
        lease = current_lease()
        assert lease is None or isinstance(lease, Lease)
        return self._works(work, lease)

    def _works(self, work: Work, lease: Lease | None) -> Steps[None]:
        self.note("began", work.lock.key, what="" if lease is not None else "unlocked")
        for _ in range(3):
            if lease is not None:
                lease.holding.work()
            yield AwaitMessage(work.hold_s / 3)
            if work.listens and lease is not None and work.job.options.policy is not None:
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
    """What delivers jobs to workers, at least once."""

    world: World
    workers: list[Worker]
    patience_s: float  # after so long a delivery that is not settled may be made again
    twice: bool  # also if its worker is alive
    tells: bool  # whether it says that a worker has died
    lines: deque[Work] = field(default_factory=deque)

    def put(self, work: Work, delay_s: float) -> None:
        """Deliver it after that time."""
        work.ready += 1
        self.world.after(int(delay_s * US) + 1, self._ready, work)

    def _ready(self, work: Work) -> None:
        self.lines.append(work)
        self._dispatch()

    def _dispatch(self) -> None:
        while self.lines:
            idle = [one for one in self.workers if one.delivery is None and not one.process.dead]
            if not idle:
                return
            worker, work = self.world.random.choice(idle), self.lines.popleft()
            work.ready -= 1
            if work.over or work.deliveries >= MOST_DELIVERIES:
                self._check(work, worker.process)
                continue
            work.deliveries += 1
            work.in_hand += 1
            worker.delivery = delivery = work, work.deliveries
            worker.process.soon(self.world.latency_us, self._begin, worker, work)
            self.world.after(int(self.patience_s * US), self._look, worker, *delivery)

    def _begin(self, worker: Worker, work: Work) -> None:
        worker.task = worker.process.start(worker.deliver(work))

    def unfinished(self) -> Iterator[str]:
        """What is not done when it should be."""
        alive = [worker for worker in self.workers if not worker.process.dead]
        for worker in alive:
            if worker.delivery is not None:
                yield f"{worker.name} never finished {worker.delivery[0].id}"
        for work in self.lines if alive else ():
            yield f"{work.id} was never delivered"

    def _look(self, worker: Worker, work: Work, delivery: int) -> None:
        """Is that delivery settled?"""
        if worker.delivery != (work, delivery):
            return
        if worker.process.dead:
            worker.delivery = None
            work.in_hand -= 1
            work.ended = ""
            alive = [one for one in self.workers if not one.process.dead]
            if self.tells and alive:
                teller = self.world.random.choice(alive)
                late = int(self.world.random.random() ** 2 * 3 * US)
                teller.process.soon(late, self._notice, teller, worker, work)
            self.put(work, 0.0)
        elif self.twice and work.deliveries < MOST_DELIVERIES:
            self.put(work, 0.0)
        else:
            self.world.after(int(self.patience_s * US), self._look, worker, work, delivery)

    def _notice(self, teller: Worker, dead: Worker, work: Work) -> None:
        teller.process.start(self._tell(teller, dead, work))

    def _tell(self, teller: Worker, dead: Worker, work: Work) -> Steps[None]:
        """Somebody who cares for workers frees what a dead one had."""
        actor = Actor(teller.process, f"{teller.name}s{work.deliveries}", teller.renewal, [])
        actor.job = work.id
        entry = Entry(work.job, actor.locks, (work, None), {})  # type: ignore[arg-type]
        with suppress(LockError, Interrupted):
            yield from carry_out(entry.died(work.id, work.token or None, dead.pid))

    def settled(self, worker: Worker, work: Work, delay_s: float | None, *, counts: bool) -> None:
        """A delivery has ended."""
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
        what = work.ended if work.deliveries < MOST_DELIVERIES else ""
        where = {"lock": work.lock.name, "who": process.name, "id": work.id}
        self.world.record("done", what=what, **where)
        if not work.job.options.keep_lock_on_failure and work.deliveries < MOST_DELIVERIES:
            self.forget(work, process)

    def forget(self, work: Work, process: Process, *, purged: bool = False) -> None:
        """Nobody will ever do anything for this job again, so it should have nothing."""
        work.over = True
        if not purged:
            token = Delivery(work.id, work.token or None).owner if work.pushed else None
            token = token or encode_token(work.owner)
            self.world.asked[token] = process.name, self.world.t
            self.world.disowned[token] = self.world.ended[token] = self.world.now


def _declare(draw: Callable[[], float], choice: Callable[[Any], Any], body: Any) -> Job:
    """A declaration, as ``locks.job`` makes it."""
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


def cast(
    world: World,
    locks: list[Lock],
    renewals: list[tuple[Process, Renewal]],
    calm_at_s: float,
) -> tuple[list[Producer], Queue]:
    """Who enqueues and runs jobs in this run."""
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
            listens=draw() < 0.5,
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

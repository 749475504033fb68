"""The Celery workers of an installation, asked and told over the broker, on whichever machines they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from amqp.exceptions import AMQPError, RecoverableConnectionError
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from provision.errors import ProvisionError
from provision.workers import Worker

# A worker that is healthy answers within milliseconds; a loaded machine may take a moment.
ANSWER_S = 2.0
# A broker that has stopped, but keeps its connections, is waited for this long.
SILENCE_S = 10
# Celery starts the processes that a pool has grown by every 5 s (celery/concurrency/asynpool.py, 5.7.0).
RESIZED_S = 20
# Redis' client and RabbitMQ's each take the names that they know.
TIMEOUTS = {"socket_connect_timeout": ANSWER_S, "socket_timeout": SILENCE_S, "read_timeout": SILENCE_S, "write_timeout": SILENCE_S}
PREFIX = "celery@"
# What it is called, by the system and by either client, that the other side of a connection is gone.
LOST = (ConnectionError, RecoverableConnectionError, RedisConnectionError)


@dataclass(frozen=True)
class Size:
    """How many processes a worker says it has, and for one that scales by itself the range."""

    processes: int
    at_least: int | None = None
    at_most: int | None = None

    @classmethod
    def read(cls, stats: Mapping[str, Any]) -> Size:
        """Return the size that a worker's statistics tell."""
        scaler = stats.get("autoscaler") or {}
        return cls(len(stats["pool"]["processes"]), scaler.get("min"), scaler.get("max"))

    def fits(self, worker: Worker) -> bool:
        """Return whether a worker of this size is as `worker` says."""
        if worker.at_least is None:
            return self.at_most is None and self.processes == worker.concurrency
        # It may have less than its least for as long as its new processes take to start.
        return (self.at_least, self.at_most) == (worker.at_least, worker.concurrency) and self.processes <= worker.concurrency


def tasks_in_hand(workers: Iterable[Worker], taken: Mapping[str, int], waiting: Mapping[str, int]) -> int:
    """Return how many tasks the workers run or could run now, when they have `taken` so many and so many wait in their queues."""
    workers = list(workers)
    running = sum(min(taken[worker.name], worker.concurrency) for worker in workers)
    left = dict(waiting)
    for worker in workers:
        room = worker.concurrency - min(taken[worker.name], worker.concurrency)
        for queue in worker.queues:
            fetched = min(room, left.get(queue, 0))
            running, room, left[queue] = running + fetched, room - fetched, left.get(queue, 0) - fetched
    return running


class Fleet:
    """What a broker's workers say of themselves; every call raises ProvisionError if the broker cannot be reached."""

    def __init__(self, broker_url: str) -> None:
        self._broker_url = broker_url
        self._app = self._connected()

    def reachable(self) -> bool:
        """Return True; a broker that does not answer, or refuses the password, raises ProvisionError."""
        with self._connection() as connection:
            return connection.default_channel is not None

    def answering(self, names: Iterable[str]) -> set[str]:
        """Return those of the workers called `names` that answer now."""
        return set(self._ask("ping", list(names)))

    def queues(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return the queues that each answering worker serves, sorted, by worker."""
        return {name: sorted(q["name"] for q in served) for name, served in self._ask("active_queues", list(names)).items()}

    def concurrency(self, names: Iterable[str]) -> dict[str, int]:
        """Return how many processes each answering worker has, by worker."""
        return {name: size.processes for name, size in self._sizes(list(names)).items()}

    def in_hand(self, workers: Iterable[Worker]) -> int | None:
        """Return how many tasks the workers run or could run now; None unless all of them answer.

        These are the tasks that a worker has taken, and those that wait in the broker while one of their queue's
        workers has room. What a worker has reserved beyond its concurrency does not count: it cannot start yet.
        """
        capacity = {worker.name: worker for worker in workers}
        if not capacity:
            return 0
        # In the order in which a task goes its way, so that none is missed by moving on meanwhile.
        waiting = self.waiting({queue for worker in capacity.values() for queue in worker.queues})
        taken = self._taken(list(capacity))
        if set(taken) != set(capacity):
            return None
        return tasks_in_hand(capacity.values(), taken, waiting)

    def tasks_of(self, name: str) -> int:
        """Return how many tasks the worker called `name` has taken and not finished; 0 if it does not answer."""
        return self._taken([name]).get(name, 0)

    def reserved(self, names: Iterable[str]) -> dict[str, int]:
        """Return how many messages each answering worker holds that it has not begun to run, by worker."""
        return {name: len(tasks) for name, tasks in self._ask("reserved", list(names)).items()}

    def _taken(self, names: list[str]) -> dict[str, int]:
        """Return how many tasks each worker has taken and not finished, by worker; none that does not answer both questions."""
        # A task is reserved first and active then: asked in this order, none is missed, and one may be counted twice.
        reserved, active = self._ask("reserved", names), self._ask("active", names)
        return {name: len(reserved[name]) + len(active[name]) for name in names if name in reserved and name in active}

    def _sizes(self, names: list[str]) -> dict[str, Size]:
        return {name: Size.read(stats) for name, stats in self._ask("stats", names).items()}

    def waiting(self, queues: Iterable[str]) -> dict[str, int]:
        """Return how many messages wait in the broker, by queue; messages that a worker has taken do not count."""
        with self._connection() as connection:
            return {queue: _count(connection, lambda channel, queue=queue: _depth(channel, queue)) for queue in queues}

    def resize(self, worker: Worker) -> None:
        """Give a running worker the concurrency and queues that `worker` says, without stopping a task; return once it has them.

        Raises ProvisionError if it does not answer, or has not become idle enough to shrink; it is as it was then.
        """
        now, served = self._sizes([worker.name]).get(worker.name), self.queues([worker.name]).get(worker.name)
        if now is None or served is None:
            raise ProvisionError(f"Worker {worker.name} did not change: no answer.", f"fab logs {worker.name}")
        if max(now.processes, now.at_most or 0) > worker.concurrency:
            self._shrink(worker, now, served)
        elif worker.at_least:
            self._tell(worker, "autoscale", worker.concurrency, worker.at_least)
        elif now.processes < worker.concurrency:
            self._tell(worker, "pool_grow", worker.concurrency - now.processes)
        self._serve(worker, worker.queues)
        self._wait_for(worker)

    def _shrink(self, worker: Worker, now: Size, served: list[str]) -> None:
        """Take processes from a worker, which takes no messages meanwhile: one that came now would find its process gone."""
        try:
            self._serve(worker, ())
            self._wait_for_idle(worker, now.processes)
            if worker.at_least:
                self._tell(worker, "autoscale", worker.concurrency, worker.at_least)
            else:
                self._tell(worker, "pool_shrink", now.processes - worker.concurrency)
        except BaseException:
            # Said whether or not it still serves them: what it was told before, it may not have done yet.
            for queue in served:
                self._tell(worker, "add_consumer", queue)
            raise

    def _serve(self, worker: Worker, queues: Iterable[str]) -> None:
        """Make the worker take messages from exactly these queues, as soon as it comes to it."""
        served = self.queues([worker.name]).get(worker.name, [])
        for queue in queues:
            if queue not in served:
                self._tell(worker, "add_consumer", queue)
        for queue in served:
            if queue not in queues:
                self._tell(worker, "cancel_consumer", queue)

    def memory(self) -> tuple[int, int] | None:
        """Return the bytes that a Redis broker uses and may use; None for another broker."""
        with self._connection() as connection:
            if not hasattr(connection.default_channel, "client"):
                return None
            figures = connection.default_channel.client.info("memory")
            return int(figures["used_memory"]), int(figures["maxmemory"])

    def close(self) -> None:
        """Close every connection."""
        self._app.close()

    def _ask(self, what: str, names: list[str]) -> dict[str, Any]:
        if not names:
            return {}
        with _broker_errors():
            try:
                return self._asked(what, names)
            except LOST:
                # A connection that was kept is of no use when the broker was restarted since.
                self.close()
                self._app = self._connected()
                return self._asked(what, names)

    def _connected(self) -> Celery:
        app = Celery("airflow-executor-labs", broker=self._broker_url, set_as_current=False)
        app.conf.broker_connection_timeout = ANSWER_S
        app.conf.broker_transport_options = TIMEOUTS
        return app

    def _asked(self, what: str, names: list[str]) -> dict[str, Any]:
        inspect = self._app.control.inspect(destination=[PREFIX + name for name in names], timeout=ANSWER_S, limit=len(names))
        return {node.removeprefix(PREFIX): answer for node, answer in (getattr(inspect, what)() or {}).items()}

    def _tell(self, worker: Worker, command: str, *arguments: Any) -> None:
        with _broker_errors():
            send = getattr(self._app.control, command)
            replies = send(*arguments, destination=[PREFIX + worker.name], reply=True, timeout=SILENCE_S)
        answers = [answer for reply in replies or [] for answer in reply.values()]
        if not answers or any("error" in answer for answer in answers):
            said = "; ".join(str(answer["error"]) for answer in answers if "error" in answer) or "no answer"
            raise ProvisionError(f"Worker {worker.name} did not change: {said}.", f"fab logs {worker.name}")

    def _wait_for_idle(self, worker: Worker, processes: int) -> None:
        # A pool with fewer idle processes than it should lose ends those, goes on taking messages for them, and says
        # that it failed (billiard/pool.py, shrink; celery/worker/control.py, pool_shrink; Celery 5.7.0). An autoscaler
        # does not even say so (celery/worker/autoscale.py, _shrink), and keeps more processes than its range allows.
        deadline = time.monotonic() + RESIZED_S
        while self.queues([worker.name]).get(worker.name) or not self._idle(worker):
            if time.monotonic() > deadline:
                busy = self._taken([worker.name]).get(worker.name, "an unknown number of")
                raise ProvisionError(
                    f"{worker.name} has {busy} tasks in hand and {processes} processes; {worker.concurrency} are wanted, "
                    "and none is ended while it runs a task.",
                    "wait until tasks have ended, then run the same command again",
                )
            time.sleep(0.1)

    def _idle(self, worker: Worker) -> bool:
        """Return whether all tasks in hand run, in no more processes than the worker will have.

        To the pool a process is idle until it has said that it runs a task: one that was just given a task would be
        ended with it (billiard/pool.py, _iterinactive).
        """
        reserved, active = self._ask("reserved", [worker.name]), self._ask("active", [worker.name])
        known = worker.name in reserved and worker.name in active
        return known and not reserved[worker.name] and len(active[worker.name]) <= worker.concurrency

    def _wait_for(self, worker: Worker) -> None:
        # A worker says yes to a change first and makes it then.
        deadline = time.monotonic() + RESIZED_S
        while not self._has_become(worker):
            if time.monotonic() > deadline:
                raise ProvisionError(f"Worker {worker.name} has not become {worker} within {RESIZED_S} s.", f"fab logs {worker.name}")
            time.sleep(0.1)

    def _has_become(self, worker: Worker) -> bool:
        size, queues = self._sizes([worker.name]).get(worker.name), self.queues([worker.name]).get(worker.name)
        return size is not None and queues == sorted(worker.queues) and size.fits(worker)

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        with _broker_errors(), self._app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=ANSWER_S)
            yield connection


@contextmanager
def _broker_errors() -> Iterator[None]:
    try:
        yield
    except (OperationalError, AMQPError, RedisError, OSError) as error:
        raise ProvisionError(f"The broker does not answer ({error}).", "fab status") from error


def _depth(channel: Any, queue: str) -> int:
    return channel.queue_declare(queue=queue, passive=True).message_count


def _count(connection: Any, count: Callable[[Any], int]) -> int:
    # A queue that nobody has used yet does not exist; RabbitMQ closes the channel on which it is asked for.
    try:
        with connection.channel() as channel:
            return count(channel)
    except connection.channel_errors:
        return 0

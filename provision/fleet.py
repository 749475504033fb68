"""The Celery workers of an installation, asked and told over the broker, on whichever machines they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from provision.errors import ProvisionError
from provision.workers import Worker

# A worker that is healthy answers within milliseconds; a loaded machine may take a moment.
ANSWER_S = 2.0
PREFIX = "celery@"


class Fleet:
    """What a broker's workers say of themselves; every call raises ProvisionError if the broker cannot be reached."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("airflow-executor-labs", broker=broker_url, set_as_current=False)
        self._app.conf.broker_connection_timeout = ANSWER_S
        self._app.conf.broker_transport_options = {"socket_connect_timeout": ANSWER_S, "socket_timeout": 10}

    def reachable(self) -> bool:
        """Return True; a broker that does not answer, or refuses the password, raises ProvisionError."""
        with self._channel():
            return True

    def answering(self, names: Iterable[str]) -> set[str]:
        """Return those of the workers called `names` that answer now."""
        return set(self._ask("ping", list(names)))

    def queues(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return the queues that each answering worker serves, sorted, by worker."""
        return {name: sorted(q["name"] for q in served) for name, served in self._ask("active_queues", list(names)).items()}

    def concurrency(self, names: Iterable[str]) -> dict[str, int]:
        """Return how many processes each answering worker has, by worker."""
        return {name: len(stats["pool"]["processes"]) for name, stats in self._ask("stats", list(names)).items()}

    def in_hand(self, workers: Iterable[Worker]) -> int | None:
        """Return how many tasks the workers have taken that they run or could run now; None unless all of them answer.

        What a worker has reserved beyond its concurrency does not count: it cannot start yet.
        """
        capacity = {worker.name: worker.concurrency for worker in workers}
        if not capacity:
            return 0
        active, reserved = self._ask("active", list(capacity)), self._ask("reserved", list(capacity))
        if set(active) != set(capacity) or set(reserved) != set(capacity):
            return None
        return sum(min(len(active[name]) + len(reserved[name]), capacity[name]) for name in capacity)

    def tasks_of(self, name: str) -> int:
        """Return how many tasks the worker called `name` has taken and not finished; 0 if it does not answer."""
        return sum(len(self._ask(what, [name]).get(name, [])) for what in ("active", "reserved"))

    def waiting(self, queues: Iterable[str]) -> dict[str, int]:
        """Return how many messages wait in the broker, by queue; messages that a worker has taken do not count."""
        with self._channel() as channel:
            return {queue: _depth(channel, queue) for queue in queues}

    def resize(self, worker: Worker) -> None:
        """Give a running worker the concurrency and queues that `worker` says, without stopping a task."""
        here = [PREFIX + worker.name]
        control = self._app.control
        if worker.at_least:
            self._told(control.autoscale(worker.concurrency, worker.at_least, destination=here, reply=True, timeout=ANSWER_S), worker)
        now = self.concurrency([worker.name]).get(worker.name)
        if now is not None and not worker.at_least and now != worker.concurrency:
            change = control.pool_grow if now < worker.concurrency else control.pool_shrink
            self._told(change(abs(worker.concurrency - now), destination=here, reply=True, timeout=10), worker)
        served = self.queues([worker.name]).get(worker.name, [])
        for queue in worker.queues:
            if queue not in served:
                self._told(control.add_consumer(queue, destination=here, reply=True, timeout=ANSWER_S), worker)
        for queue in served:
            if queue not in worker.queues:
                self._told(control.cancel_consumer(queue, destination=here, reply=True, timeout=ANSWER_S), worker)

    def purge(self, queues: Iterable[str]) -> int:
        """Throw away the messages that wait in these queues; return how many there were."""
        with self._channel() as channel:
            return sum(_ignoring_absence(channel, lambda queue=queue: channel.queue_purge(queue) or 0) for queue in queues)

    def memory(self) -> tuple[int, int] | None:
        """Return the bytes that a Redis broker uses and may use; None for another broker."""
        with self._channel() as channel:
            if not hasattr(channel, "client"):
                return None
            figures = channel.client.info("memory")
            return int(figures["used_memory"]), int(figures["maxmemory"])

    def close(self) -> None:
        """Close every connection."""
        self._app.close()

    def _ask(self, what: str, names: list[str]) -> dict[str, Any]:
        if not names:
            return {}
        with _broker_errors():
            inspect = self._app.control.inspect(destination=[PREFIX + name for name in names], timeout=ANSWER_S, limit=len(names))
            return {node.removeprefix(PREFIX): answer for node, answer in (getattr(inspect, what)() or {}).items()}

    @staticmethod
    def _told(replies: list[dict[str, Any]] | None, worker: Worker) -> None:
        answers = [answer for reply in replies or [] for answer in reply.values()]
        if not answers or any("error" in answer for answer in answers):
            said = "; ".join(str(answer["error"]) for answer in answers if "error" in answer) or "no answer"
            raise ProvisionError(f"Worker {worker.name} did not change: {said}.", f"fab logs {worker.name}")

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        with _broker_errors(), self._app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=ANSWER_S)
            yield connection.default_channel


@contextmanager
def _broker_errors() -> Iterator[None]:
    try:
        yield
    except (OperationalError, OSError) as error:
        raise ProvisionError(f"The broker does not answer ({error}).", "fab status") from error


def _depth(channel: Any, queue: str) -> int:
    return _ignoring_absence(channel, lambda: channel.queue_declare(queue=queue, passive=True).message_count)


def _ignoring_absence(channel: Any, count: Callable[[], int]) -> int:
    # A queue that nobody has used yet does not exist.
    try:
        return count()
    except channel.connection.client.channel_errors:
        return 0

"""The Celery fleet of what is installed: the broker and the workers that the installation file lists, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from provision.errors import ProvisionError, UsageError
from provision.fleet import Fleet
from provision.workers import Worker, listed_workers

Document = Mapping[str, Any]


class InstalledFleet:
    """The broker and workers of whatever is installed now: the file is read anew each time, as every install changes it."""

    def __init__(self, installed: Callable[[], Document | None], broker_url: Callable[[Document], str], command: str) -> None:
        """`broker_url` returns the address of the broker that is described to it; `command` installs Celery on this target."""
        self._installed, self._broker_url, self._command = installed, broker_url, command
        self._fleets: dict[str, Fleet] = {}

    def broker(self) -> str:
        """Return the kind of broker, empty without one."""
        return (self._document().get("broker") or {}).get("kind", "")

    def workers(self) -> tuple[Worker, ...]:
        """Return the workers, none without Celery."""
        return listed_workers(self._document().get("workers") or [])

    def fleet(self) -> Fleet:
        """Return the fleet that can be asked, the same one for the same broker; raises UsageError where there is no Celery."""
        broker = self._document().get("broker")
        if not broker:
            raise UsageError("The installed variant has no Celery workers.", self._command)
        url = self._broker_url(broker)
        if self._fleets.get(url) is None:
            self._fleets = {url: Fleet(url)}
        return self._fleets[url]

    def tasks_in_hand(self) -> int | None:
        """Return how many tasks the workers run or could run now; None unless all of them answer."""
        return self.fleet().in_hand(self.workers())

    def messages_waiting(self, also: Iterable[str] = ()) -> dict[str, int]:
        """Return how many task messages wait in the broker, by queue that a worker serves or that `also` names; empty without one."""
        queues = {queue for worker in self.workers() for queue in worker.queues} | set(also)
        return self.fleet().waiting(sorted(queues)) if self.broker() else {}

    def workers_seen(self) -> dict[str, dict[str, Any]]:
        """Return what each worker that answers says of itself: its `concurrency` and its `queues`, by name."""
        names = [worker.name for worker in self.workers()]
        queues, concurrency = self.fleet().queues(names), self.fleet().concurrency(names)
        return {
            name: {"concurrency": concurrency[name], "queues": queues[name]} for name in names if name in queues and name in concurrency
        }

    def require_room(self, hint: str) -> None:
        """Raise ProvisionError with this hint if the broker's memory is full; nothing happens without a broker."""
        memory = self.fleet().memory() if self.broker() else None
        if memory and memory[1] and memory[0] >= memory[1]:
            raise ProvisionError(
                f"The broker's memory is full: {memory[0] / 2**20:.0f} of {memory[1] / 2**20:.0f} MiB; it refuses new messages, "
                "and Airflow fails the tasks that it cannot send.",
                hint,
            )

    def require_nothing_left(self, broker: str, stop: str, report: Callable[[str], None]) -> None:
        """Raise ProvisionError if task messages wait in a broker whose place another one is to take: nobody would find them there.

        `broker` is the kind that is asked for, `stop` the command that gives the messages up.
        """
        before = self.broker()
        if not before or not broker or before == broker:
            return
        try:
            left = [f"{count} in queue {queue}" for queue, count in self.messages_waiting().items() if count]
            held = self.fleet().reserved(worker.name for worker in self.workers())
            left += [f"{count} held by {name}" for name, count in held.items() if count]
        except ProvisionError:
            report(f"{before} does not say whether task messages wait in it; tasks whose messages do will stay queued")
            return
        if left:
            raise ProvisionError(
                f"Task messages wait in {before}: {', '.join(left)}. {broker} would not know them, and their tasks would stay queued.",
                f"wait until they have run, which fab workers shows, then run the same command again; or give them up: {stop} first",
            )

    def _document(self) -> Document:
        return self._installed() or {}

"""Celery workers: their names, how many tasks each runs at once, and the queues that it serves. All pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from provision.errors import UsageError

DEFAULT_QUEUE = "default"
# A worker process is 150 MB; beyond this, somebody mistyped.
MOST_WORKERS, MOST_CONCURRENCY = 16, 64
EXAMPLE = "for example worker-3=2 or heavy-1=1@heavy,default"


@dataclass(frozen=True)
class Worker:
    """One Celery worker; `at_least` below `concurrency` lets it shrink and grow by itself (autoscale)."""

    name: str
    concurrency: int = 2
    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    at_least: int | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for what Celery would misread or ignore."""
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", self.name):
            raise UsageError(f"{self.name!r} cannot be a worker's name.", f"use lower-case letters, digits and -, {EXAMPLE}")
        if type(self.concurrency) is not int or not 1 <= self.concurrency <= MOST_CONCURRENCY:
            raise UsageError(
                f"Worker {self.name} cannot have concurrency {self.concurrency!r}"
                + (": Celery would take 0 for the number of cores." if self.concurrency == 0 else "."),
                f"give a whole number from 1 to {MOST_CONCURRENCY}, or remove the worker",
            )
        for queue in self.queues:
            if not isinstance(queue, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", queue):
                raise UsageError(f"{queue!r} cannot be a queue of worker {self.name}.", "use letters, digits, _ . and -")
        if not self.queues or len(set(self.queues)) != len(self.queues):
            raise UsageError(f"Worker {self.name} has no queue, or one of them twice.", EXAMPLE)
        if self.at_least is not None and (type(self.at_least) is not int or not 1 <= self.at_least <= self.concurrency):
            raise UsageError(
                f"Worker {self.name} cannot scale between {self.at_least!r} and {self.concurrency}.",
                f"give two whole numbers, the smaller one first: {self.name}=1-{max(self.concurrency, 2)}",
            )

    def __str__(self) -> str:
        """Return the worker as people write it: name=concurrency@queues."""
        most = f"{self.at_least}-{self.concurrency}" if self.at_least else str(self.concurrency)
        return f"{self.name}={most}@{','.join(self.queues)}"

    def document(self) -> dict[str, Any]:
        """Return the worker as a JSON object, for the installation file."""
        return {**asdict(self), "queues": list(self.queues)}


def worker_from(entry: Mapping[str, Any]) -> Worker:
    """Return the worker that a JSON object or a lab's dict describes; raises UsageError that names a wrong key."""
    unknown = sorted(set(entry) - set(Worker.__dataclass_fields__))
    if unknown or "name" not in entry:
        known = ", ".join(Worker.__dataclass_fields__)
        raise UsageError(f"A worker has no key {unknown[0]!r}." if unknown else "A worker needs a name.", f"known keys: {known}")
    values = dict(entry)
    queues = values.pop("queues", (DEFAULT_QUEUE,))
    if not isinstance(queues, list | tuple):
        raise UsageError(f"queues = {queues!r} of worker {entry['name']} is not a list.", 'give a list, for example ["default"]')
    return Worker(**values, queues=tuple(queues))


def listed_workers(entries: Iterable[Mapping[str, Any]]) -> tuple[Worker, ...]:
    """Return the workers that a list of such objects describes; raises UsageError that names a wrong key."""
    # What an installation says of a worker has its node too.
    return tuple(worker_from({key: value for key, value in entry.items() if key != "node"}) for entry in entries)


def parse_worker(text: str, now: Worker | None = None) -> Worker:
    """Return the worker that NAME=CONCURRENCY@QUEUE,… describes; CONCURRENCY may be a range such as 1-4.

    What is left out is as in `now`, or else as in any new worker. Raises UsageError for any other text.
    """
    found = re.fullmatch(r"([^=@]+)(?:=(?:(\d+)-)?(\d+))?(?:@(.*))?", text.strip())
    if not found:
        raise UsageError(f"{text!r} does not describe a worker.", f"write NAME=CONCURRENCY@QUEUES, {EXAMPLE}")
    name, least, most, queues = found.groups()
    worker = replace(now, name=name) if now else Worker(name)
    if most:
        worker = replace(worker, concurrency=int(most), at_least=int(least) if least else None)
    return replace(worker, queues=tuple(queue.strip() for queue in queues.split(","))) if queues is not None else worker


def changed_workers(now: Iterable[Worker], add: Iterable[str], remove: Iterable[str], resize: Iterable[str]) -> tuple[Worker, ...]:
    """Return the workers after these changes, given as texts; raises UsageError for a name that is taken or unknown."""
    workers = {worker.name: worker for worker in now}

    def known(name: str) -> Worker:
        if name not in workers:
            raise UsageError(f"There is no worker called {name!r}.", f"choose one of: {', '.join(workers) or '(there are none)'}")
        return workers[name]

    for name in remove:
        del workers[known(name).name]
    for text in resize:
        name = re.split("[=@]", text.strip())[0]
        workers[name] = parse_worker(text, known(name))
    for text in add:
        worker = parse_worker(text)
        if worker.name in workers:
            raise UsageError(f"There is a worker called {worker.name} already.", f"fab workers --resize {worker}, or choose another name")
        workers[worker.name] = worker
    return check_together(workers.values())


def check_together(workers: Iterable[Worker]) -> tuple[Worker, ...]:
    """Return the workers; raises UsageError when two have one name, or there are more than a laptop can hold."""
    workers = tuple(workers)
    names = [worker.name for worker in workers]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"There are two workers called {name}.", "give each worker its own name: Celery tells them apart by it")
    if len(workers) > MOST_WORKERS:
        raise UsageError(f"{len(workers)} workers are too many for one machine.", f"use {MOST_WORKERS} at most")
    return workers

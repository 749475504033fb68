"""What Celery workers can run of the tasks that the scheduler has sent: capacities of queues, and who takes what. All pure.

A worker runs at most `concurrency` tasks, from any of its queues; what it cannot take waits in the broker,
where its state is `queued`. For tasks on several queues the capacity of each set of queues counts: that of
all the workers which serve one of them (celery_executor.py and celery_command.py of the Celery provider 3.26).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from labs.admission import Candidate, Limit
from labs.errors import LabError

DEFAULT_QUEUE = "default"
# Beyond this, the ways in which messages can be shared out are too many to look at.
MOST_WAYS = 200_000


@dataclass(frozen=True)
class Capacity:
    """One worker: how many tasks it runs at once, how many messages it takes at once, and from which queues."""

    name: str
    runs: int
    takes: int
    queues: frozenset[str]


def capacities(workers: Iterable[Mapping], settings: Mapping[str, str]) -> list[Capacity]:
    """Return the capacity of each worker of an installation; one that scales by itself counts with its most processes.

    With late acknowledgement a worker holds concurrency x prefetch multiplier messages, running ones included;
    with early acknowledgement those it runs come on top. A multiplier of 0 means no end.
    """
    multiplier = int(settings.get("celery.worker_prefetch_multiplier", 1))
    late = settings.get("celery.task_acks_late", "True").lower() in ("true", "t", "1")
    found = []
    for worker in workers:
        runs = worker["concurrency"]
        takes = max(runs, runs * multiplier if late else runs * (multiplier + 1)) if multiplier else 10**6
        found.append(Capacity(worker["name"], runs, takes, frozenset(worker["queues"])))
    return found


def queue_of(candidate: Candidate) -> str:
    """Return the queue to which a task instance is sent."""
    return candidate.group.queue or DEFAULT_QUEUE


def worker_limits(workers: Sequence[Capacity], queues: Iterable[str]) -> list[Limit]:
    """Return one limit for each queue, and one for each set of queues whose workers are partly the same."""
    used, limits = sorted(set(queues)), []
    for size in range(1, len(used) + 1):
        for chosen in combinations(used, size):
            serving = [worker for worker in workers if worker.queues & set(chosen)]
            cap = sum(worker.runs for worker in serving)
            alone = sum(worker.runs for queue in chosen for worker in workers if queue in worker.queues)
            if size == 1 or cap < alone:
                limits.append(_limit(chosen, cap, [worker.name for worker in serving]))
    return limits


def _limit(queues: tuple[str, ...], cap: int, names: list[str]) -> Limit:
    which = f"queue {queues[0]}" if len(queues) == 1 else f"queues {' and '.join(queues)}"
    words = f"no worker serves {which}" if not names else f"{which}: {', '.join(names)} can run {cap} at once"
    inside = frozenset(queues)
    return Limit(f"worker_concurrency, {which}", cap, words, scope=lambda c: which if queue_of(c) in inside else None, at_workers=True)


def outcomes(waiting: Mapping[str, int], workers: Sequence[Capacity]) -> tuple[int, int]:
    """Return the least and the most tasks that can run when the workers have taken all messages that they can.

    `waiting` is how many messages each queue got. They differ where it depends on chance who takes a message
    first: with workers of which one serves two queues, or that reserve more than they run.
    Raises LabError when there are too many ways to look at.
    """
    counts = {queue: count for queue, count in waiting.items() if count}
    runs = []
    for number, taken in enumerate(_ways(sorted(counts), counts, workers, {worker.name: 0 for worker in workers})):
        if number > MOST_WAYS:
            raise LabError(
                "There are too many ways in which these workers could share the tasks.", "give the workers fewer queues, or each its own"
            )
        runs.append(sum(min(worker.runs, taken[worker.name]) for worker in workers))
    return min(runs), max(runs)


def _ways(
    queues: list[str], counts: Mapping[str, int], workers: Sequence[Capacity], taken: dict[str, int], hungry: frozenset[str] = frozenset()
) -> Iterator[dict[str, int]]:
    """Yield every final state: no worker in `hungry`, those who saw a message left in the broker, has room."""
    if not queues:
        if all(taken[worker.name] >= worker.takes for worker in workers if worker.name in hungry):
            yield taken
        return
    queue, rest = queues[0], queues[1:]
    serving = [worker for worker in workers if queue in worker.queues]
    for shares, left in _shares(counts[queue], [worker.takes - taken[worker.name] for worker in serving]):
        after = taken | {worker.name: taken[worker.name] + share for worker, share in zip(serving, shares, strict=True)}
        yield from _ways(rest, counts, workers, after, hungry | {worker.name for worker in serving} if left else hungry)


def _shares(count: int, room: list[int]) -> Iterator[tuple[tuple[int, ...], int]]:
    if not room:
        yield (), count
        return
    for first in range(min(count, room[0]) + 1):
        for others, left in _shares(count - first, room[1:]):
            yield (first, *others), left

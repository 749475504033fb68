"""What happened, from task instances alone: peak, makespan, latencies, order, counts per host. All pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Attempt:
    """One try of one task instance; times are epoch seconds, None where it did not get that far."""

    task_id: str
    map_index: int
    run_id: str
    try_number: int
    state: str | None
    scheduled: float | None
    queued: float | None
    start: float | None
    end: float | None
    host: str = ""
    pid: int | None = None
    pool: str = "default_pool"
    pool_slots: int = 1
    queue: str = "default"
    priority: int = 1
    # None where the task names none: it is the installation's default then.
    executor: str | None = None

    @property
    def label(self) -> str:
        """The task id, with the map index where there is one."""
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"


def attempt_from_api(row: dict[str, Any]) -> Attempt:
    """Return the attempt that one row of Airflow's REST API (task instance or earlier try) describes."""
    return Attempt(
        task_id=row["task_id"],
        map_index=row.get("map_index", -1),
        run_id=row["dag_run_id"],
        try_number=row.get("try_number") or 0,
        state=row.get("state"),
        scheduled=_epoch(row.get("scheduled_when")),
        queued=_epoch(row.get("queued_when")),
        start=_epoch(row.get("start_date")),
        end=_epoch(row.get("end_date")),
        host=row.get("hostname") or "",
        pid=row.get("pid"),
        pool=row.get("pool") or "default_pool",
        pool_slots=row.get("pool_slots") or 1,
        queue=row.get("queue") or "default",
        priority=1 if row.get("priority_weight") is None else row["priority_weight"],
        executor=row.get("executor"),
    )


def _epoch(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


def steps(attempts: Iterable[Attempt]) -> list[tuple[float, int]]:
    """Return (time, running count from then on) at every change; at equal times ends count before starts.

    An attempt that started and never ended counts as running for good, one without duration not at all.
    """
    events: list[tuple[float, int]] = []
    for attempt in attempts:
        if attempt.start is None or (attempt.end is not None and attempt.end <= attempt.start):
            continue
        events.append((attempt.start, 1))
        if attempt.end is not None:
            events.append((attempt.end, -1))
    events.sort()
    running, result = 0, []
    for time, change in events:
        running += change
        result.append((time, running))
    return result


def peak(attempts: Iterable[Attempt], tolerance_s: float = 0.0) -> int:
    """Return the most attempts running at once; overlaps of at most `tolerance_s` seconds do not count.

    The tolerance is the clock offset between nodes: each end is taken that much earlier.
    """
    trimmed: list[tuple[float, int]] = []
    for attempt in attempts:
        if attempt.start is None:
            continue
        end = float("inf") if attempt.end is None else attempt.end - tolerance_s
        if end > attempt.start:
            trimmed += [(attempt.start, 1), (end, -1)]
    trimmed.sort()
    running = most = 0
    for _, change in trimmed:
        running += change
        most = max(most, running)
    return most


def makespan(attempts: Sequence[Attempt]) -> float | None:
    """Return the seconds from the first start to the last end; None unless something started and ended."""
    started = [a.start for a in attempts if a.start is not None]
    ended = [a.end for a in attempts if a.end is not None]
    return max(ended) - min(started) if started and ended else None


HOPS = {
    "scheduled to queued": ("scheduled", "queued"),
    "queued to running": ("queued", "start"),
    "running to end": ("start", "end"),
}


def hop_latencies(attempts: Iterable[Attempt]) -> dict[str, list[float]]:
    """Return the seconds that each attempt spent in each hop of its life, by hop; incomplete hops are left out."""
    result: dict[str, list[float]] = {hop: [] for hop in HOPS}
    for attempt in attempts:
        for hop, (earlier, later) in HOPS.items():
            before, after = getattr(attempt, earlier), getattr(attempt, later)
            if before is not None and after is not None:
                result[hop].append(after - before)
    return result


def chain_gaps(attempts: Iterable[Attempt]) -> list[float]:
    """Return the seconds between each task's end and the next one's start, for tasks that ran one after another."""
    ordered = sorted((a for a in attempts if a.start is not None and a.end is not None), key=lambda a: a.start)
    return [later.start - earlier.end for earlier, later in pairwise(ordered)]


def start_order(attempts: Iterable[Attempt]) -> list[Attempt]:
    """Return the attempts that started, first starter first."""
    return sorted((a for a in attempts if a.start is not None), key=lambda a: (a.start, a.label))


def per_host(attempts: Iterable[Attempt]) -> dict[str, int]:
    """Return how many attempts ran on each host, by host name."""
    return dict(sorted(Counter(a.host for a in attempts if a.start is not None).items()))


def running_on(attempts: Iterable[Attempt]) -> dict[str, int]:
    """Return how many attempts are running on each host, by host name."""
    return dict(sorted(Counter(a.host for a in attempts if a.state == "running").items()))


def states(attempts: Iterable[Attempt]) -> dict[str, int]:
    """Return how many attempts are in each state, by state; no state yet counts as "none"."""
    return dict(sorted(Counter(a.state or "none" for a in attempts).items()))


def quantile(samples: Sequence[float], fraction: float) -> float:
    """Return the sample below which `fraction` (0 to 1) of them lie, interpolated; raises ValueError if there is none."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    position = fraction * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

"""How the scheduler admits task instances while nothing ends: the rules of Airflow 3.3.2, simulated. All pure.

Source: airflow/jobs/scheduler_job_runner.py, `_executable_task_instances_to_queued`. Highest priority first,
each one only if every limit has room for it, a refused one leaving room for smaller ones behind it. But the
scheduler looks only at the first `max_active_tasks` of each DAG run: if it refuses all of those, what waits
behind them starves, whatever room there is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from labs.spec import Group


@dataclass(frozen=True)
class Candidate:
    """A task instance that is ready to run, as the limits see it."""

    run: int
    group: Group
    index: int

    @property
    def priority(self) -> int:
        """Its priority weight."""
        return self.group.priority[self.index] if isinstance(self.group.priority, tuple) else self.group.priority


@dataclass(frozen=True)
class Limit:
    """A cap: candidates of one `scope` may together weigh at most `cap`; scope None is not limited by it."""

    name: str
    cap: int
    words: str
    scope: Callable[[Candidate], Hashable | None]
    weight: Callable[[Candidate], int] = lambda candidate: 1
    # Some limits act where tasks run, not where they are admitted: what they refuse waits as `queued`.
    at_workers: bool = False
    # The scheduler does not even look at candidates for which such a limit is used up …
    hides: bool = False
    # … and of each scope of this one it looks only at as many as the cap, those included that it then refuses.
    rows: bool = False
    # Free places of this limit are the most that one query of the scheduler asks for.
    shrinks: bool = False


Used = Counter[tuple[int, Hashable]]


def fill(candidates: list[Candidate], limits: list[Limit], batch: int) -> int:
    """Return how many candidates run."""
    return len(started(admitted(candidates, limits, batch), limits))


def started(sent: list[Candidate], limits: list[Limit]) -> list[Candidate]:
    """Return those of the candidates that executors were handed which find a worker."""
    running, _ = _admit(sent, [limit for limit in limits if limit.at_workers], Counter())
    return running


def used_up(sent: list[Candidate], limits: list[Limit]) -> list[Limit]:
    """Return those limits at workers that have no room left for one of the candidates that the executor was handed.

    Only these can have refused one.
    """
    at_workers, used = [limit for limit in limits if limit.at_workers], Counter()
    _admit(sent, at_workers, used)
    full = {number for (number, _), weight in used.items() if weight >= at_workers[number].cap}
    return [limit for number, limit in enumerate(at_workers) if number in full or limit.cap <= 0]


def admitted(candidates: list[Candidate], limits: list[Limit], batch: int) -> list[Candidate]:
    """Return the candidates that the scheduler hands to the executor, first ones first."""
    at_scheduler = [limit for limit in limits if not limit.at_workers]
    used: Used = Counter()
    waiting, sent = candidates, []
    shrinking = [limit for limit in at_scheduler if limit.shrinks]

    def asked() -> int:
        # What an executor that counts has in hand makes the scheduler's next query smaller, whomever that query is for.
        return min([batch, *(limit.cap - sum(limit.scope(c) is not None for c in sent) for limit in shrinking)])

    while taken := _loop(waiting, at_scheduler, used, asked()):
        sent += [candidate for candidate in waiting if candidate in taken]
        waiting = [candidate for candidate in waiting if candidate not in taken]
    return sent


def _loop(waiting: list[Candidate], limits: list[Limit], used: Used, batch: int) -> set[Candidate]:
    """Return what one scheduler loop admits: it queries again, without the refused, only after a full batch of refusals."""
    starved: set[Hashable] = set()
    if batch <= 0:
        return set()
    while True:
        seen = _visible([c for c in waiting if _task(c) not in starved], limits, used)[:batch]
        taken, refused = _admit(seen, limits, used)
        if taken or len(seen) < batch or not refused:
            return set(taken)
        starved |= {_task(candidate) for candidate in refused}


def _task(candidate: Candidate) -> Hashable:
    return (candidate.run, candidate.group.name, None if candidate.group.mapped else candidate.index)


def _visible(waiting: list[Candidate], limits: list[Limit], used: Used) -> list[Candidate]:
    rows: Used = Counter()
    visible = []
    for candidate in waiting:
        keys = [((n, scope), limit) for n, limit in enumerate(limits) if limit.hides and (scope := limit.scope(candidate)) is not None]
        if any(used[key] >= limit.cap for key, limit in keys):
            continue
        rows.update(key for key, limit in keys if limit.rows)
        if all(rows[key] <= limit.cap for key, limit in keys if limit.rows):
            visible.append(candidate)
    return visible


def _admit(candidates: list[Candidate], limits: list[Limit], used: Used) -> tuple[list[Candidate], list[Candidate]]:
    """Return who is admitted and who refused, each one only if every limit has room for it; `used` is updated."""
    admitted, refused = [], []
    for candidate in candidates:
        claims = [
            ((number, scope), limit.weight(candidate), limit.cap)
            for number, limit in enumerate(limits)
            if (scope := limit.scope(candidate)) is not None
        ]
        if all(used[key] + weight <= cap for key, weight, cap in claims):
            admitted.append(candidate)
            used.update({key: weight for key, weight, _ in claims})
        else:
            refused.append(candidate)
    return admitted, refused

"""How many tasks the executors of an installation have in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

# What airflow/executors/local_executor.py (3.3.2) calls its worker processes: the task in hand follows, or <idle>.
WORKER_TITLE, IDLE = "airflow worker -- LocalExecutor", "<idle>"


def busy_local_workers(titles: Iterable[str]) -> int | None:
    """Return how many of the LocalExecutor's worker processes have a task in hand, by the titles of the scheduler's processes.

    None where none of them is such a process: Linux forks all of them at the scheduler's start, elsewhere they have no titles.
    """
    workers = [title for title in titles if title.startswith(WORKER_TITLE)]
    return sum(IDLE not in title for title in workers) if workers else None


def total_in_hand(executor: str, ways: Mapping[str, Callable[[], int | None]]) -> int | None:
    """Return how many tasks all executors of a list such as "LocalExecutor,CeleryExecutor" have in hand together.

    `ways` says how each is asked. None if one of them cannot tell.
    """
    counts = [ways[name]() for name in executor.split(",")]
    return None if None in counts else sum(counts)

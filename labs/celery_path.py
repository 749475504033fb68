"""The way of one task through Celery, put together from Airflow's database, the result backend and two logs. All pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from labs.errors import LabError
from labs.timeline import Attempt

# The scheduler chooses the message's id when it queues the task, and Celery files the result under it.
RESULT_QUERY = (
    "select m.task_id, m.date_done from task_instance ti join celery_taskmeta m on m.task_id = ti.external_executor_id::text "
    "where ti.dag_id = '{dag_id}'"
)


@dataclass(frozen=True)
class Step:
    """One step: when (epoch seconds), where, and what happened."""

    at: float
    where: str
    what: str


def steps(attempt: Attempt, message: str, result_stored: str, logs: Mapping[str, Sequence[str]]) -> list[Step]:
    """Return the steps of one finished try in order of time; `logs` holds the lines of the scheduler and of the worker.

    Raises LabError when a step has left no trace.
    """
    worker = attempt.host
    found = [
        Step(attempt.scheduled or 0.0, "scheduler", "scheduled"),
        Step(attempt.queued or 0.0, "scheduler", "queued"),
        Step(_logged(logs[worker], rf"{message}\] received", f"{worker}'s log"), worker, "received"),
        Step(attempt.start or 0.0, "API server", "running"),
        Step(attempt.end or 0.0, "API server", "ended"),
        Step(_epoch(result_stored), "result backend", "result stored"),
        Step(_logged(logs["scheduler"], "Received executor event with state success", "the scheduler's log"), "scheduler", "result read"),
    ]
    return sorted(found, key=lambda step: step.at)


def _logged(lines: Sequence[str], pattern: str, where: str) -> float:
    for line in lines:
        if re.search(pattern, line):
            return _epoch(line.split(" ", 1)[0])
    raise LabError(f"There is no line with {pattern!r} in {where}.", "run the cell again; the log may not have been written yet")


def _epoch(text: str) -> float:
    when = datetime.fromisoformat(text)
    # PostgreSQL keeps Celery's times without a zone; they are UTC.
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()

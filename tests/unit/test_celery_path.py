"""The way of one task through Celery, from what the database and two logs say."""

from __future__ import annotations

import pytest

from labs.celery_path import steps
from labs.errors import LabError
from labs.timeline import Attempt

MESSAGE = "5a1c7f2e-0000-4000-8000-000000000001"
# 2026-11-21T00:00:00Z
MIDNIGHT = 1795219200.0
ATTEMPT = Attempt(
    "work_000", -1, "r", 1, "success", MIDNIGHT + 1.0, MIDNIGHT + 1.1, MIDNIGHT + 1.5, MIDNIGHT + 1.7, host="worker-2"
)  # fmt: skip
LOGS = {
    "worker-2": [
        "2026-11-21T00:00:01.000000Z [info     ] Task another[00000000] received",
        f"2026-11-21T00:00:01.300000Z [info     ] Task execute_workload[{MESSAGE}] received",
        f"2026-11-21T00:00:01.900000Z [info     ] Task execute_workload[{MESSAGE}] succeeded",
    ],
    "scheduler": ["2026-11-21T01:00:02.500000+01:00 [info     ] Received executor event with state success for task instance"],
}


def test_the_steps_are_in_order_of_time_whatever_clock_format_they_were_written_in():
    found = steps(ATTEMPT, MESSAGE, "2026-11-21 00:00:01.800000", LOGS)
    assert [(round(step.at - MIDNIGHT, 3), step.where, step.what) for step in found] == [
        (1.0, "scheduler", "scheduled"),
        (1.1, "scheduler", "queued"),
        (1.3, "worker-2", "received"),
        (1.5, "API server", "running"),
        (1.7, "API server", "ended"),
        (1.8, "result backend", "result stored"),
        (2.5, "scheduler", "result read"),
    ]


@pytest.mark.parametrize(("silent", "named"), [("worker-2", "worker-2's log"), ("scheduler", "the scheduler's log")])
def test_a_step_that_left_no_trace_is_named(silent, named):
    with pytest.raises(LabError, match=named):
        steps(ATTEMPT, MESSAGE, "2026-11-21 00:00:01.8", {**LOGS, silent: []})


def test_the_message_of_another_task_is_not_taken_for_it():
    with pytest.raises(LabError, match="worker-2's log"):
        steps(ATTEMPT, "6b2d8f3f-0000-4000-8000-000000000002", "2026-11-21 00:00:01.8", LOGS)

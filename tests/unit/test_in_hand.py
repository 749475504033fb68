"""How many tasks all executors of an installation have in hand."""

from __future__ import annotations

import pytest

from provision.in_hand import IDLE, WORKER_TITLE, busy_local_workers, total_in_hand


@pytest.mark.parametrize(
    ("titles", "busy"),
    [
        ([f"{WORKER_TITLE}: {IDLE}", f"{WORKER_TITLE}: probe.work_001", "gunicorn: worker"], 1),
        ([f"{WORKER_TITLE}: {IDLE}"], 0),
        # The scheduler is starting, or titles cannot be set.
        (["airflow scheduler"], None),
    ],
)
def test_worker_processes_say_by_their_titles_whether_they_are_busy(titles, busy):
    assert busy_local_workers(titles) == busy


def test_what_executors_have_in_hand_is_added_up_and_only_those_installed_are_asked():
    ways = {"LocalExecutor": lambda: 2, "CeleryExecutor": lambda: 3, "KubernetesExecutor": lambda: pytest.fail("there is no cluster")}
    assert total_in_hand("LocalExecutor,CeleryExecutor", ways) == 5
    assert total_in_hand("LocalExecutor", ways) == 2


def test_one_executor_that_cannot_tell_leaves_the_sum_unknown():
    assert total_in_hand("LocalExecutor,CeleryExecutor", {"LocalExecutor": lambda: None, "CeleryExecutor": lambda: 3}) is None

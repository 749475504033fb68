"""Pods that are looked at while a probe runs."""

from __future__ import annotations

import time
from dataclasses import replace

from labs.pod_watch import PodWatch, of_dag, starts, task_of, tasks_of
from labs.timeline import Attempt
from provision.errors import ProvisionError
from provision.kube.client import Pod

POD = Pod("probe-a", "worker-1", "Running", 10.0, 11.0, 11.0, 13.0, None, {"dag_id": "probe", "task_id": "work_000", "try_number": "1"})
ATTEMPT = Attempt("work_000", -1, "run", 1, "success", 8.0, 9.5, 15.25, 20.0)


def test_the_task_of_a_pod_is_in_its_annotations():
    assert task_of(POD) == ("work_000", -1, 1)
    assert task_of(replace(POD, annotations={**POD.annotations, "map_index": "3"})) == ("work_000", 3, 1)
    assert tasks_of([ATTEMPT]) == [task_of(POD)]


def test_a_start_is_taken_apart_and_no_part_is_negative():
    parts = starts([POD], [ATTEMPT])["work_000"]
    assert (parts.executor, parts.scheduling, parts.container, parts.airflow) == (0.5, 1.0, 2.0, 2.25)
    # Created within the second in which the task was queued: Kubernetes writes down whole seconds.
    assert starts([replace(POD, created=9.0)], [ATTEMPT])["work_000"].executor == 0.0


def test_a_task_whose_container_was_never_seen_has_no_parts():
    assert starts([replace(POD, started=None)], [ATTEMPT]) == {}
    assert starts([POD], [replace(ATTEMPT, try_number=2)]) == {}


def test_pods_of_other_dags_are_left_out():
    assert of_dag([POD, replace(POD, annotations={"dag_id": "other"})], "probe") == [POD]


def test_what_was_seen_last_is_kept_when_the_pod_is_gone_and_an_api_that_is_away_ends_nothing():
    answers = [[replace(POD, phase="Pending", started=None)], ProvisionError("away"), [POD], []]

    def look():
        answer = answers.pop(0) if answers else []
        if isinstance(answer, ProvisionError):
            raise answer
        return answer

    with PodWatch(look, every_s=0.01) as watch:
        while answers:
            time.sleep(0.01)
    assert watch.pods == [POD]

"""Room for pods and quotas in the limit model: what fits, and what becomes of tasks whose pod is refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from labs.errors import LabError
from labs.limits import Prediction, limits_of, predict
from labs.pod_limits import PodRoom, pods_on, refused_fail
from labs.spec import parse
from provision.variants import variant_named

GIB = 2**30
ROOM = PodRoom({"worker-1": 7, "worker-2": 7})


def predicted(spec: dict, room: PodRoom | None = ROOM, pools: dict | None = None, **settings: object) -> Prediction:
    """Return the prediction on the variant, changed as given; `retries` is task_publish_max_retries."""
    changes = {f"core.{key}": str(value) for key, value in settings.items() if key != "retries"}
    if "retries" in settings:
        changes["kubernetes_executor.task_publish_max_retries"] = str(settings["retries"])
    effective = variant_named("kubernetes").effective_settings(changes)
    return predict(parse(spec), effective, {"default_pool": 128, **(pools or {})}, room=room)


def counts(prediction: Prediction) -> tuple[int, int, int, int]:
    return prediction.peak, prediction.queued, prediction.scheduled, prediction.failed


@pytest.mark.parametrize(
    ("cpu", "memory", "pods", "request_cpu", "request_memory", "expected"),
    [
        (1.9, 2 * GIB, 110, 0.1, GIB / 4, 8),
        (0.7, 2 * GIB, 110, 0.1, GIB / 4, 7),
        (1.9, 2 * GIB, 3, 0.1, GIB / 4, 3),
        (1.9, 2 * GIB - 1, 110, 0.1, GIB / 4, 7),
        # 0.3 / 0.1 is a little less than 3 in floating point; Kubernetes counts in whole thousandths.
        (0.3, GIB, 110, 0.1, 1, 3),
        (0.29, GIB, 110, 0.1, 1, 2),
        # More is asked for by what runs there than there is.
        (-0.2, GIB, 110, 0.1, 1, 0),
        (1.0, GIB, -2, 0.1, 1, 0),
        (0.05, GIB, 110, 0.1, 1, 0),
        # What is not asked for does not count.
        (0.0, GIB, 5, 0, 0, 5),
        (1.0, 0.0, 110, 0.25, 0, 4),
    ],
)
def test_so_many_equal_pods_fit_on_a_node(cpu, memory, pods, request_cpu, request_memory, expected):
    assert pods_on(cpu, memory, pods, request_cpu, request_memory) == expected


def test_what_fits_agrees_with_putting_one_pod_after_another_there():
    drawn = random.Random(5)
    for _ in range(500):
        # In whole thousandths and bytes, as Kubernetes counts.
        cpu, memory, places = drawn.randint(0, 4000), drawn.randint(0, 2**33), drawn.randint(0, 110)
        asked_cpu, asked_memory = drawn.choice((1, 10, 50, 100, 250, 333, 1000)), drawn.choice((2**20, 64 * 2**20, 2**28, 10**8))
        fitted = 0
        while cpu >= asked_cpu * (fitted + 1) and memory >= asked_memory * (fitted + 1) and fitted < places:
            fitted += 1
        assert pods_on(cpu / 1000, float(memory), places, asked_cpu / 1000, float(asked_memory)) == fitted


@pytest.mark.parametrize(
    ("spec", "settings", "expected"),
    [
        # parallelism is 16, max_active_tasks 16: fourteen pods fit, two wait for room and hold their slots.
        ({"tasks": 20}, {}, (14, 2, 4, 0)),
        ({"tasks": 12}, {}, (12, 0, 0, 0)),
        ({"tasks": 14}, {}, (14, 0, 0, 0)),
        ({"tasks": 20}, {"parallelism": 4}, (4, 0, 16, 0)),
        ({"tasks": 20, "max_active_tasks": 5}, {}, (5, 0, 15, 0)),
        ({"tasks": 20, "pool": "narrow"}, {}, (3, 0, 17, 0)),
        ({"tasks": 40, "runs": 2}, {"parallelism": 32}, (14, 18, 48, 0)),
    ],
)
def test_room_on_the_nodes_caps_what_runs_and_pods_that_wait_hold_their_slots(spec, settings, expected):
    assert counts(predicted(spec, pools={"narrow": 3}, **settings)) == expected


def test_the_room_is_named_with_nodes_and_requests():
    prediction = predicted({"tasks": 20})
    assert prediction.binding_names == ("room on the nodes",)
    for words in ("14 pods", "worker-1 for 7", "worker-2 for 7", "100m CPU", "256Mi memory"):
        assert words in prediction.binding


def test_without_room_nothing_runs():
    assert counts(predicted({"tasks": 4}, PodRoom({"worker-1": 0}))) == (0, 4, 0, 0)
    assert counts(predicted({"tasks": 4}, PodRoom({}))) == (0, 4, 0, 0)


@pytest.mark.parametrize(
    ("quota", "tasks", "expected"),
    [(3, 8, (3, 5, 0, 0)), (1, 8, (1, 7, 0, 0)), (8, 8, (8, 0, 0, 0)), (0, 4, (0, 4, 0, 0)), (30, 20, (14, 2, 4, 0))],
)
def test_tasks_whose_pod_is_refused_wait_as_queued_if_it_is_tried_again(quota, tasks, expected):
    room = PodRoom(ROOM.by_node, quota)
    prediction = predicted({"tasks": tasks}, room, retries=-1)
    assert counts(prediction) == expected
    assert ("quota" in prediction.binding_names) == (quota < min(tasks, 14))


@pytest.mark.parametrize(
    ("quota", "tasks", "expected"), [(3, 8, (3, 0, 0, 5)), (1, 30, (1, 0, 0, 29)), (3, 3, (3, 0, 0, 0)), (0, 4, (0, 0, 0, 4))]
)
def test_tasks_whose_pod_is_refused_fail_at_once_if_it_is_not_tried_again(quota, tasks, expected):
    prediction = predicted({"tasks": tasks}, PodRoom(ROOM.by_node, quota), retries=0)
    assert counts(prediction) == expected
    assert prediction.waiting == 0
    assert prediction.exhausted is (tasks <= quota)
    assert "not tried again" in prediction.binding


@pytest.mark.parametrize(
    ("spec", "quota", "settings"),
    [
        # Another limit holds tasks back, which come when a pod has ended: then there may be room in the quota, or not.
        ({"tasks": 20, "max_active_tasks": 2}, 3, {}),
        ({"tasks": 20}, 3, {"parallelism": 2}),
        ({"tasks": 20}, 15, {}),
    ],
    ids=["max_active_tasks", "parallelism", "room"],
)
def test_how_many_a_quota_fails_is_not_predicted_where_it_depends_on_chance(spec, quota, settings):
    with pytest.raises(LabError, match="depends on when pods end") as refused:
        predicted(spec, PodRoom(ROOM.by_node, quota), retries=0, **settings)
    assert "task_publish_max_retries=-1" in refused.value.hint


@pytest.mark.parametrize(("retries", "fails"), [("0", True), ("-1", False)])
def test_no_retries_means_failure(retries, fails):
    assert refused_fail({"kubernetes_executor.task_publish_max_retries": retries}) is fails


def test_what_depends_on_chance_is_not_predicted():
    with pytest.raises(LabError, match="tried again 3 times"):
        predicted({"tasks": 8}, PodRoom(ROOM.by_node, 3), retries=3)
    with pytest.raises(LabError, match="with retries come back"):
        predicted({"tasks": 8, "retries": 1}, PodRoom(ROOM.by_node, 3), retries=0)


def test_no_quota_is_no_limit():
    settings = variant_named("kubernetes").effective_settings({})
    names = [limit.name for limit in limits_of(parse({"tasks": 2}), settings, {"default_pool": 128}, (), ROOM)]
    assert "room on the nodes" in names
    assert "quota" not in names


def test_other_executors_have_no_room_to_run_out_of():
    for variant in ("postgres", "celery"):
        settings = variant_named(variant).effective_settings({})
        names = [limit.name for limit in limits_of(parse({"tasks": 2}), settings, {"default_pool": 128}, (), ROOM)]
        assert "room on the nodes" not in names


def systems() -> Iterator[tuple[int, int, int, int, int, int]]:
    """Return small Airflows: tasks, parallelism, max_active_tasks, slots, room and quota."""
    yield from itertools.product((1, 5, 9), (1, 4, 8), (2, 16), (-1, 3), (0, 2, 6), (1, 3, 20))


def test_the_peak_agrees_with_the_narrowest_of_all_limits():
    # One DAG run of equal tasks: nothing but the smallest number can matter, in each of the two stages.
    for tasks, parallelism, active, slots, room, quota in systems():
        free = tasks if slots < 0 else slots
        sent = min(tasks, parallelism, active, free)
        running = min(sent, room, quota)
        prediction = predicted(
            {"tasks": tasks, "max_active_tasks": active, "pool": "p"}, PodRoom({"a": room - room // 2, "b": room // 2}, quota),
            {"p": slots}, parallelism=parallelism, retries=-1,
        )  # fmt: skip
        assert counts(prediction) == (running, sent - running, tasks - sent, 0), (tasks, parallelism, active, slots, room, quota)

"""The limit model: settings in, the exact count out. Each table row is one small Airflow."""

from __future__ import annotations

import random

import pytest

from labs.errors import LabError
from labs.limits import Prediction, predict
from labs.spec import parse


def predicted(spec: dict, pools: dict | None = None, **settings: object) -> Prediction:
    """Return the prediction on an Airflow with eight worker processes and Airflow's other defaults, changed as given."""
    known = {"executor": "LocalExecutor", "parallelism": 8, "max_active_tasks_per_dag": 16, "max_active_runs_per_dag": 16}
    effective = {f"core.{key}": str(value) for key, value in {**known, **settings}.items()}
    return predict(parse(spec), effective, {"default_pool": 128, **(pools or {})})


def counts(prediction: Prediction) -> tuple[int, int, int]:
    return prediction.peak, prediction.queued, prediction.scheduled


@pytest.mark.parametrize(
    ("tasks", "parallelism", "expected"),
    [
        (12, 4, (4, 8, 0)),
        (12, 1, (1, 11, 0)),
        (5, 4, (4, 1, 0)),
        (4, 4, (4, 0, 0)),
        (3, 4, (3, 0, 0)),
        (1, 1, (1, 0, 0)),
        # The LocalExecutor is handed what max_active_tasks (16) admits: the rest of it waits as queued.
        (30, 4, (4, 12, 14)),
        (30, 16, (16, 0, 14)),
        (30, 32, (16, 0, 14)),
    ],
)
def test_parallelism_caps_what_runs_but_not_what_is_queued(tasks, parallelism, expected):
    assert counts(predicted({"tasks": tasks}, parallelism=parallelism)) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"tasks": 12, "max_active_tasks": 5}, (5, 0, 7)),
        ({"tasks": 12, "max_active_tasks": 1}, (1, 0, 11)),
        ({"tasks": 3, "max_active_tasks": 5}, (3, 0, 0)),
        # It is counted in each DAG run.
        ({"tasks": 10, "max_active_tasks": 3, "runs": 2}, (6, 0, 14)),
        ({"tasks": 10, "max_active_tasks": 3, "runs": 3}, (8, 1, 21)),
        ({"tasks": 2, "max_active_tasks": 3, "runs": 3}, (6, 0, 0)),
        # Groups of one run share it.
        ({"max_active_tasks": 4, "groups": [{"name": "a", "tasks": 3}, {"name": "b", "tasks": 3}]}, (4, 0, 2)),
    ],
)
def test_max_active_tasks_caps_each_dag_run(spec, expected):
    assert counts(predicted(spec)) == expected


def test_max_active_tasks_falls_back_to_the_setting():
    assert counts(predicted({"tasks": 9}, max_active_tasks_per_dag=2)) == (2, 0, 7)
    assert counts(predicted({"tasks": 9, "max_active_tasks": 5}, max_active_tasks_per_dag=2)) == (5, 0, 4)


@pytest.mark.parametrize(
    ("spec", "settings", "expected"),
    [
        ({"tasks": 2, "runs": 4, "max_active_runs": 2}, {}, (4, 0, 0)),
        ({"tasks": 5, "runs": 5, "max_active_runs": 2, "max_active_tasks": 3}, {}, (6, 0, 4)),
        ({"tasks": 5, "runs": 5, "max_active_runs": 1}, {}, (5, 0, 0)),
        ({"tasks": 1, "runs": 20}, {"parallelism": 32}, (16, 0, 0)),
        ({"tasks": 1, "runs": 20}, {"parallelism": 32, "max_active_runs_per_dag": 3}, (3, 0, 0)),
        ({"tasks": 1, "runs": 2, "max_active_runs": 9}, {}, (2, 0, 0)),
    ],
)
def test_task_instances_of_runs_that_wait_for_their_turn_are_not_scheduled(spec, settings, expected):
    assert counts(predicted(spec, **settings)) == expected


@pytest.mark.parametrize(
    ("slots", "spec", "expected"),
    [
        (3, {"tasks": 9}, (3, 0, 6)),
        (1, {"tasks": 9}, (1, 0, 8)),
        (9, {"tasks": 9}, (8, 1, 0)),
        (0, {"tasks": 9}, (0, 0, 9)),
        (-1, {"tasks": 9}, (8, 1, 0)),
        (5, {"tasks": 9, "pool_slots": 2}, (2, 0, 7)),
        (6, {"tasks": 9, "pool_slots": 2}, (3, 0, 6)),
        (3, {"tasks": 9, "pool_slots": 3}, (1, 0, 8)),
        # A task larger than its pool never runs.
        (3, {"tasks": 9, "pool_slots": 4}, (0, 0, 9)),
        # A pool is shared by all DAG runs.
        (3, {"tasks": 2, "runs": 4}, (3, 0, 5)),
        (-1, {"tasks": 9, "pool_slots": 1000}, (8, 1, 0)),
    ],
)
def test_a_pool_caps_the_slots_that_its_tasks_take(slots, spec, expected):
    assert counts(predicted({**spec, "pool": "narrow"}, {"narrow": slots})) == expected


def test_the_default_pool_is_a_pool_like_any_other():
    assert counts(predicted({"tasks": 9}, {"default_pool": 4})) == (4, 0, 5)


def test_each_pool_caps_only_its_own_tasks():
    spec = {"groups": [{"name": "a", "tasks": 6, "pool": "two"}, {"name": "b", "tasks": 6, "pool": "three"}]}
    prediction = predicted(spec, {"two": 2, "three": 3})
    assert counts(prediction) == (5, 0, 7)
    assert prediction.binding_names == ("pool three", "pool two")


@pytest.mark.parametrize(
    ("slots", "big", "small", "expected"),
    [
        # (slots each, priority) of two big and six small tasks.
        (5, (3, 5), (1, 1), (3, 0, 5)),
        (5, (3, 1), (1, 5), (5, 0, 3)),
        (5, (4, 5), (1, 1), (2, 0, 6)),
        (6, (3, 5), (1, 1), (2, 0, 6)),
        (5, (6, 5), (1, 1), (5, 0, 3)),
        (2, (3, 5), (2, 1), (1, 0, 7)),
        (7, (3, 0), (1, -1), (3, 0, 5)),
    ],
)
def test_higher_priority_is_admitted_first_and_leaves_room_to_smaller_tasks(slots, big, small, expected):
    groups = [
        {"name": "small", "tasks": 6, "pool": "mixed", "pool_slots": small[0], "priority": small[1]},
        {"name": "big", "tasks": 2, "pool": "mixed", "pool_slots": big[0], "priority": big[1]},
    ]
    assert counts(predicted({"groups": groups}, {"mixed": slots})) == expected


def test_each_task_of_a_group_may_have_a_priority_of_its_own():
    groups = [
        {"name": "big", "tasks": 3, "pool": "mixed", "pool_slots": 2, "priority": [9, 1, 1]},
        {"name": "small", "tasks": 3, "pool": "mixed", "priority": 5},
    ]
    assert counts(predicted({"groups": groups}, {"mixed": 4})) == (3, 0, 3)


def test_at_equal_priority_unmapped_tasks_go_before_mapped_ones():
    # The scheduler orders by priority, logical date and map index, which is -1 for unmapped tasks:
    # https://github.com/apache/airflow/blob/3.3.2/airflow-core/src/airflow/jobs/scheduler_job_runner.py
    groups = [
        {"name": "heavy", "tasks": 2, "mapped": True, "pool": "mixed", "pool_slots": 2},
        {"name": "light", "tasks": 3, "pool": "mixed"},
    ]
    assert counts(predicted({"groups": groups}, {"mixed": 3})) == (3, 0, 2)


def test_at_equal_priority_mapped_groups_take_turns():
    groups = [
        {"name": "heavy", "tasks": 3, "mapped": True, "pool": "mixed", "pool_slots": 2},
        {"name": "light", "tasks": 3, "mapped": True, "pool": "mixed"},
    ]
    # heavy[0] takes 2 of 6 slots, light[0] 1, heavy[1] 2, light[1] 1.
    assert counts(predicted({"groups": groups}, {"mixed": 6})) == (4, 0, 2)


HEAVY = {"name": "heavy", "tasks": 6, "pool": "mixed", "pool_slots": 2, "priority": 10}
CAPPED = {"name": "capped", "tasks": 6, "mapped": True, "max_active_tis_per_dag": 2, "priority": 10}


@pytest.mark.parametrize(
    ("first", "max_active_tasks", "expected", "binding"),
    [
        # The first three were measured so on Airflow 3.3.2 with the LocalExecutor and parallelism 8.
        (HEAVY, 4, (1, 0, 11), ("max_active_tasks", "pool mixed")),
        (CAPPED, 4, (2, 0, 10), ("max_active_tasks", "max_active_tis_per_dag")),
        (HEAVY, 8, (7, 0, 5), ("pool mixed",)),
        ({**HEAVY, "tasks": 1}, 4, (4, 0, 3), ("max_active_tasks",)),
    ],
)
def test_tasks_behind_refused_ones_starve_when_those_fill_max_active_tasks(first, max_active_tasks, expected, binding):
    # The scheduler looks only at the first max_active_tasks of a run, refused ones included.
    groups = [first, {"name": "light", "tasks": 6}]
    prediction = predicted({"groups": groups, "max_active_tasks": max_active_tasks}, {"mixed": 3})
    assert counts(prediction) == expected
    assert prediction.binding_names == binding


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"tasks": 6, "mapped": True, "max_active_tis_per_dag": 2}, (2, 0, 4)),
        ({"tasks": 6, "mapped": True, "max_active_tis_per_dag": 2, "runs": 3}, (2, 0, 16)),
        ({"tasks": 6, "mapped": True, "max_active_tis_per_dagrun": 2}, (2, 0, 4)),
        ({"tasks": 6, "mapped": True, "max_active_tis_per_dagrun": 2, "runs": 3}, (6, 0, 12)),
        ({"tasks": 4, "mapped": True, "max_active_tis_per_dagrun": 1, "runs": 3, "max_active_runs": 2}, (2, 0, 6)),
        ({"tasks": 6, "mapped": True, "max_active_tis_per_dag": 5, "max_active_tis_per_dagrun": 2, "runs": 3}, (5, 0, 13)),
        # Unmapped tasks are tasks of their own: each counts for itself, over all runs or in each.
        ({"tasks": 6, "max_active_tis_per_dag": 2}, (6, 0, 0)),
        ({"tasks": 2, "max_active_tis_per_dag": 2, "runs": 3}, (4, 0, 2)),
        ({"tasks": 2, "max_active_tis_per_dag": 1, "runs": 4}, (2, 0, 6)),
        ({"tasks": 2, "max_active_tis_per_dagrun": 1, "runs": 3}, (6, 0, 0)),
    ],
)
def test_task_limits_count_the_instances_of_one_task(spec, expected):
    assert counts(predicted(spec)) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"tasks": 5, "chain": True}, (1, 0, 0)),
        ({"tasks": 5, "chain": True, "runs": 3}, (3, 0, 0)),
        ({"tasks": 5, "chain": True, "runs": 3, "max_active_runs": 2}, (2, 0, 0)),
        ({"groups": [{"name": "a", "tasks": 3}, {"name": "b", "tasks": 9, "after": ["a"]}]}, (3, 0, 0)),
        ({"groups": [{"name": "a", "tasks": 3}, {"name": "b", "tasks": 9, "after": ["a"]}, {"name": "c", "tasks": 2}]}, (5, 0, 0)),
        ({"groups": [{"name": "a", "tasks": 3, "chain": True}, {"name": "b", "tasks": 9}]}, (8, 2, 0)),
    ],
)
def test_tasks_that_wait_for_others_are_not_counted(spec, expected):
    assert counts(predicted(spec)) == expected


@pytest.mark.parametrize(
    ("spec", "pools", "settings", "names"),
    [
        ({"tasks": 12}, {}, {}, ("parallelism",)),
        ({"tasks": 12, "max_active_tasks": 5}, {}, {}, ("max_active_tasks",)),
        ({"tasks": 12, "pool": "narrow"}, {"narrow": 3}, {}, ("pool narrow",)),
        ({"tasks": 12, "pool": "narrow", "pool_slots": 2}, {"narrow": 1}, {}, ("pool narrow",)),
        ({"tasks": 12, "mapped": True, "max_active_tis_per_dag": 2}, {}, {}, ("max_active_tis_per_dag",)),
        ({"tasks": 12, "mapped": True, "max_active_tis_per_dagrun": 2}, {}, {}, ("max_active_tis_per_dagrun",)),
        ({"tasks": 20}, {}, {"parallelism": 32}, ("max_active_tasks",)),
        # Ties: the peak would not rise if only one of them were raised.
        ({"tasks": 12, "pool": "narrow"}, {"narrow": 8}, {}, ("parallelism", "pool narrow")),
        ({"tasks": 20}, {"default_pool": 16}, {"parallelism": 16}, ("parallelism", "max_active_tasks", "pool default_pool")),
        ({"tasks": 9}, {"default_pool": 4}, {"parallelism": 4}, ("parallelism", "pool default_pool")),
    ],
)
def test_the_binding_limit_is_the_one_that_caps_the_peak(spec, pools, settings, names):
    prediction = predicted(spec, pools, **settings)
    assert prediction.binding_names == names
    assert not prediction.exhausted
    assert prediction.binding.count(" and ") >= len(names) - 1


def test_the_same_kind_of_limit_on_two_groups_binds_where_it_does():
    groups = [
        {"name": "capped", "tasks": 6, "mapped": True, "max_active_tis_per_dag": 2},
        {"name": "roomy", "tasks": 2, "mapped": True, "max_active_tis_per_dag": 5},
        {"name": "pooled", "tasks": 5, "pool": "narrow"},
    ]
    prediction = predicted({"groups": groups}, {"narrow": 1})
    assert counts(prediction) == (5, 0, 8)
    assert sorted(prediction.binding_names) == ["max_active_tis_per_dag", "pool narrow"]
    assert "max_active_tis_per_dag is 2" in prediction.binding
    assert "is 5" not in prediction.binding


@pytest.mark.parametrize("tasks", [1, 7, 8])
def test_a_probe_with_too_few_tasks_is_exhausted_and_binds_nothing(tasks):
    prediction = predicted({"tasks": tasks})
    assert prediction.exhausted
    assert prediction.binding_names == ()
    assert prediction.waiting == 0
    assert f"only {tasks} tasks" in prediction.binding


def test_one_task_more_than_the_limit_is_not_exhausted():
    assert not predicted({"tasks": 9}).exhausted
    assert predicted({"tasks": 9}).waiting == 1


@pytest.mark.parametrize(
    ("spec", "pools", "words"),
    [
        ({"tasks": 12, "pool": "narrow"}, {"narrow": 1}, "pool narrow has 1 slot"),
        ({"tasks": 12, "pool": "narrow"}, {"narrow": 3}, "pool narrow has 3 slots"),
        ({"tasks": 12, "pool": "narrow", "pool_slots": 2}, {"narrow": 3}, "pool narrow has 3 slots and each task takes 2"),
        ({"tasks": 12, "max_active_tasks": 5}, {}, "max_active_tasks is 5 in each DAG run"),
        ({"tasks": 12}, {}, "parallelism is 8: the LocalExecutor has 8 worker processes"),
    ],
)
def test_the_binding_limit_is_named_in_words(spec, pools, words):
    assert predicted(spec, pools).binding == words


def test_every_limit_that_could_cap_is_listed_with_its_cap():
    caps = predicted({"tasks": 3, "pool": "narrow", "mapped": True, "max_active_tis_per_dag": 7}, {"narrow": 2}).caps
    assert dict(caps) == {"parallelism": 8, "max_active_tasks": 16, "pool narrow": 2, "max_active_tis_per_dag": 7}


def test_a_pool_without_a_limit_is_not_listed():
    assert "pool narrow" not in dict(predicted({"pool": "narrow"}, {"narrow": -1}).caps)


def test_a_pool_that_does_not_exist_is_named_with_how_to_create_it():
    with pytest.raises(LabError, match="Pool 'absent' does not exist") as missing:
        predicted({"pool": "absent"})
    assert "lab.pool('absent'" in missing.value.hint


def test_an_executor_that_the_model_does_not_know_is_refused():
    with pytest.raises(LabError, match="does not know the executor 'SequentialExecutor'"):
        predicted({}, executor="SequentialExecutor")


def worker(name: str, concurrency: int, *queues: str) -> dict:
    return {"name": name, "concurrency": concurrency, "queues": list(queues or ("default",))}


def on_celery(spec: dict, workers: list[dict], **settings: object) -> Prediction:
    known = {"core.executor": "CeleryExecutor", "core.parallelism": "16", "core.max_active_tasks_per_dag": "16"}
    effective = {**known, "core.max_active_runs_per_dag": "16", **{k.replace("__", "."): str(v) for k, v in settings.items()}}
    return predict(parse(spec), effective, {"default_pool": 128}, workers)


TWO, THREE = [worker("w1", 2), worker("w2", 2)], [worker("w1", 2), worker("w2", 2), worker("w3", 2)]
SPECIAL = [worker("l1", 2, "light"), worker("l2", 2, "light"), worker("h1", 1, "heavy")]
BOTH = {"groups": [{"name": "light", "tasks": 6, "queue": "light"}, {"name": "heavy", "tasks": 6, "queue": "heavy"}]}


@pytest.mark.parametrize(
    ("spec", "workers", "settings", "expected"),
    [
        ({"tasks": 12}, TWO, {}, (4, 8, 0)),
        ({"tasks": 12}, THREE, {}, (6, 6, 0)),
        ({"tasks": 3}, TWO, {}, (3, 0, 0)),
        # parallelism counts what waits in the broker too; the rest stays with the scheduler.
        ({"tasks": 12}, TWO, {"core__parallelism": 6}, (4, 2, 6)),
        ({"tasks": 12}, TWO, {"core__parallelism": 3}, (3, 0, 9)),
        ({"tasks": 12, "max_active_tasks": 5}, TWO, {}, (4, 1, 7)),
        ({"tasks": 6, "queue": "gpu"}, TWO, {}, (0, 6, 0)),
        ({"tasks": 6}, [], {}, (0, 6, 0)),
        (BOTH, SPECIAL, {}, (5, 7, 0)),
        # A worker on two queues has its places only once.
        (BOTH, [worker("b", 2, "light", "heavy")], {}, (2, 10, 0)),
        (BOTH, [*SPECIAL, worker("b", 2, "light", "heavy")], {}, (7, 5, 0)),
        # What a worker reserves, it does not run.
        ({"tasks": 9}, TWO, {"celery__worker_prefetch_multiplier": 2}, (4, 5, 0)),
        ({"tasks": 6}, [worker("w1", 1)], {"celery__worker_prefetch_multiplier": 4}, (1, 5, 0)),
        ({"tasks": 6}, [worker("w1", 1)], {"celery__worker_prefetch_multiplier": 0}, (1, 5, 0)),
    ],
)
def test_celery_runs_what_its_workers_can_take_and_the_rest_waits_in_the_broker(spec, workers, settings, expected):
    assert counts(on_celery(spec, workers, **settings)) == expected


@pytest.mark.parametrize(
    ("spec", "workers", "settings", "binding"),
    [
        ({"tasks": 12}, TWO, {}, ("worker_concurrency, queue default",)),
        ({"tasks": 12}, TWO, {"core__parallelism": 3}, ("parallelism",)),
        ({"tasks": 12}, TWO, {"core__parallelism": 4}, ("parallelism", "worker_concurrency, queue default")),
        (BOTH, [worker("b", 2, "light", "heavy")], {}, ("worker_concurrency, queues heavy and light",)),
    ],
)
def test_the_limit_that_binds_on_celery_is_named(spec, workers, settings, binding):
    assert on_celery(spec, workers, **settings).binding_names == binding


def test_a_queue_without_a_worker_is_named():
    assert on_celery({"queue": "gpu", "tasks": 3}, TWO).binding == "no worker serves queue gpu"


@pytest.mark.parametrize(
    ("spec", "workers", "settings", "words"),
    [
        # Two light tasks may fill the shared worker, so that a heavy one finds no place.
        (
            {"groups": [{"name": "l", "tasks": 2, "queue": "light"}, {"name": "h", "tasks": 2, "queue": "heavy"}]},
            [worker("l1", 2, "light"), worker("b", 2, "light", "heavy")],
            {},
            "Between 2 and 4",
        ),
        ({"tasks": 4}, [worker("w1", 1), worker("w2", 1)], {"celery__worker_prefetch_multiplier": 4}, "Between 1 and 2"),
        ({"tasks": 3}, TWO, {"celery__worker_prefetch_multiplier": 0}, "Between 2 and 3"),
    ],
)
def test_what_depends_on_chance_is_not_predicted(spec, workers, settings, words):
    with pytest.raises(LabError, match=f"{words} tasks will run: it depends on chance"):
        on_celery(spec, workers, **settings)


def test_a_uniform_probe_peaks_at_the_smallest_cap():
    chance = random.Random(7)
    for _ in range(500):
        tasks, runs, slots_each = chance.randint(1, 12), chance.randint(1, 5), chance.randint(1, 3)
        parallelism, per_run, active, slots = chance.randint(1, 20), chance.randint(1, 9), chance.randint(1, 4), chance.randint(0, 20)
        per_dag, per_dagrun = chance.randint(1, 20), chance.randint(1, 9)
        spec = {
            "tasks": tasks, "runs": runs, "mapped": True, "pool": "p", "pool_slots": slots_each, "max_active_tasks": per_run,
            "max_active_runs": active, "max_active_tis_per_dag": per_dag, "max_active_tis_per_dagrun": per_dagrun,
        }  # fmt: skip
        prediction = predicted(spec, {"p": slots}, parallelism=parallelism)
        live = min(runs, active)
        caps = {
            "parallelism": parallelism,
            "max_active_tasks": live * min(tasks, per_run),
            "pool p": slots // slots_each,
            "max_active_tis_per_dag": per_dag,
            "max_active_tis_per_dagrun": live * min(tasks, per_dagrun),
        }
        admitted = min(live * tasks, *(cap for name, cap in caps.items() if name != "parallelism"))
        peak = min(admitted, parallelism)
        assert counts(prediction) == (peak, admitted - peak, live * tasks - admitted), spec
        binding = set() if peak == live * tasks else {name for name, cap in caps.items() if cap == peak}
        assert set(prediction.binding_names) == binding, spec


def test_a_roomier_pool_admits_every_probe_of_equal_tasks_no_worse():
    chance = random.Random(8)
    for _ in range(200):
        spec = {"tasks": chance.randint(1, 30), "pool": "p", "pool_slots": chance.randint(1, 4)}
        peaks = [predicted(spec, {"p": slots}).peak for slots in range(0, 40, 3)]
        assert peaks == sorted(peaks), spec


def test_every_task_instance_that_is_ready_runs_or_waits():
    chance = random.Random(9)
    for _ in range(300):
        groups = [
            {
                "name": f"g{number}", "tasks": chance.randint(1, 6), "mapped": chance.random() < 0.5,
                "pool": chance.choice(["p", "default_pool"]), "pool_slots": chance.randint(1, 3),
                "priority": chance.randint(0, 3), "max_active_tis_per_dag": chance.choice([None, 1, 2]),
            }
            for number in range(chance.randint(1, 3))
        ]  # fmt: skip
        runs = chance.randint(1, 3)
        prediction = predicted({"groups": groups, "runs": runs, "max_active_tasks": chance.randint(1, 6)}, {"p": chance.randint(0, 6)})
        assert sum(counts(prediction)) == runs * sum(group["tasks"] for group in groups)
        assert 0 <= prediction.peak <= 8
        assert prediction.exhausted == (prediction.waiting == 0)
        assert prediction.binding

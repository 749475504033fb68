"""Several executors in the limit model: who runs what, and what they share."""

from __future__ import annotations

import itertools
import random
import sys

import pytest

from labs.admission import admitted, started
from labs.errors import LabError
from labs.executors import CELERY, KUBERNETES, LOCAL, executor_of, executors
from labs.installation import Installation
from labs.limits import Prediction, candidates_of, limits_of, predict
from labs.matrix import POOL, draw_cells
from labs.notebook import Bench
from labs.pod_limits import PodRoom
from labs.probe import all_can_be_asked
from labs.spec import parse
from provision.errors import UsageError
from provision.variants import variant_named, wanted

SHORT = {LOCAL: "local", CELERY: "celery", KUBERNETES: "kubernetes"}
ROOMY = PodRoom({"worker-1": 50, "worker-2": 50})


def workers(*concurrency: int) -> list[dict]:
    return [{"name": f"celery-{n}", "concurrency": size, "queues": ["default"]} for n, size in enumerate(concurrency, 1)]


def settings(variant: str = "multiple", parallelism: int = 4, **more: str) -> dict[str, str]:
    changes = {"core.parallelism": str(parallelism), "kubernetes_executor.task_publish_max_retries": "-1", **more}
    return variant_named(variant).effective_settings(changes)


def groups(*order: str, tasks: int = 6) -> dict:
    """Return a spec in which the scheduler sees the tasks of the executors in this order."""
    listed = [{"name": SHORT[e], "executor": e, "tasks": tasks, "priority": len(order) - n} for n, e in enumerate(order)]
    return {"groups": listed}


def predicted(spec: dict, fleet=(), room: PodRoom = ROOMY, pools=None, **more) -> Prediction:
    return predict(parse(spec), settings(**more), {"default_pool": 128, **(pools or {})}, list(fleet) or workers(3, 3), room)


def test_a_task_that_names_no_executor_goes_to_the_first():
    (named, unnamed) = parse({"groups": [{"name": "a", "executor": CELERY}, {"name": "b"}]}).groups
    known = {"core.executor": "LocalExecutor, CeleryExecutor"}
    assert executors(known) == (LOCAL, CELERY)
    assert (executor_of(named, known), executor_of(unnamed, known)) == (CELERY, LOCAL)


def test_an_executor_that_is_not_installed_is_named_with_those_that_are():
    with pytest.raises(LabError, match="group 'work' ask for the KubernetesExecutor") as refused:
        predict(parse({"executor": KUBERNETES}), settings("local-celery"), {"default_pool": 128}, workers(2))
    assert "LocalExecutor, CeleryExecutor" in refused.value.hint


def test_an_executor_that_the_model_does_not_know_is_refused():
    with pytest.raises(LabError, match="does not know the executor 'DaskExecutor'"):
        executors({"core.executor": "LocalExecutor,DaskExecutor"})


@pytest.mark.parametrize(
    ("order", "running"),
    [
        # The LocalExecutor counts nothing: what comes after it has all of parallelism.
        ((LOCAL, CELERY, KUBERNETES), {LOCAL: 4, CELERY: 4}),
        ((LOCAL, KUBERNETES, CELERY), {LOCAL: 4, KUBERNETES: 4}),
        # Those that count fill parallelism, and the LocalExecutor gets nothing.
        ((CELERY, LOCAL, KUBERNETES), {CELERY: 4}),
        ((KUBERNETES, CELERY, LOCAL), {KUBERNETES: 4}),
    ],
)
def test_who_comes_first_decides_whether_parallelism_counts_once_or_twice(order, running):
    prediction = predicted(groups(*order))
    assert dict(prediction.by_executor) == running
    assert prediction.peak == sum(running.values())


def test_few_tasks_of_one_that_counts_leave_the_rest_of_parallelism():
    spec = groups(CELERY, KUBERNETES)
    spec["groups"][0]["tasks"] = 1
    assert dict(predicted(spec).by_executor) == {CELERY: 1, KUBERNETES: 3}


def test_a_backlog_in_the_broker_stops_an_idle_executor():
    prediction = predicted(groups(CELERY, LOCAL), workers(1))
    assert (prediction.peak, prediction.queued, prediction.scheduled) == (1, 3, 8)


def test_a_pool_for_the_slow_executor_lets_the_other_one_run():
    spec = groups(CELERY, LOCAL)
    spec["groups"][0]["pool"] = "celery"
    assert dict(predicted(spec, workers(1), pools={"celery": 1}).by_executor) == {CELERY: 1, LOCAL: 4}


def test_the_room_on_nodes_holds_back_pods_alone():
    prediction = predicted(groups(LOCAL, KUBERNETES), room=PodRoom({"worker-1": 1, "worker-2": 1}))
    assert dict(prediction.by_executor) == {LOCAL: 4, KUBERNETES: 2}
    assert "room on the nodes" in prediction.binding_names


def test_a_queue_that_nobody_serves_matters_to_celery_alone():
    spec = {"groups": [{"name": "here", "executor": LOCAL, "queue": "nobody", "tasks": 3}]}
    assert predicted(spec).peak == 3
    spec["groups"][0]["executor"] = CELERY
    assert predicted(spec).peak == 0


@pytest.mark.parametrize("pair", list(itertools.combinations((LOCAL, CELERY, KUBERNETES), 2)), ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_equal_priorities_are_refused_only_where_they_decide_how_many_run(pair):
    spec = groups(*pair)
    for group in spec["groups"]:
        group["priority"] = 1
    if LOCAL in pair:
        with pytest.raises(LabError, match="depends on chance") as refused:
            predicted(spec)
        assert "priority" in refused.value.hint
    else:
        # Four run in any case, of whom is not known …
        prediction = predicted(spec)
        assert (prediction.peak, prediction.by_executor) == (4, {})
        # … unless a worker has fewer places than it may be handed tasks: between the extremes more may run than in either.
        with pytest.raises(LabError, match="depends on chance"):
            predicted(spec, workers(2), room=PodRoom({"worker-1": 2}))


def test_queues_of_one_executor_are_refused_where_their_order_decides():
    fleet = [{"name": "a", "concurrency": 1, "queues": ["slow"]}, {"name": "b", "concurrency": 4, "queues": ["fast"]}]
    spec = {"groups": [{"name": queue, "queue": queue, "tasks": 6} for queue in ("slow", "fast")]}
    known = variant_named("celery").effective_settings({"core.parallelism": "4"})
    with pytest.raises(LabError, match="depends on chance"):
        predict(parse(spec), known, {"default_pool": 128}, fleet)
    wide = {**known, "core.parallelism": "12"}
    assert predict(parse(spec), wide, {"default_pool": 128}, fleet).peak == 5


def test_a_quota_that_fails_tasks_is_predicted_only_where_every_task_has_a_pod():
    room = PodRoom({"worker-1": 50}, quota=2)
    more = {"kubernetes_executor.task_publish_max_retries": "0"}
    with pytest.raises(LabError, match="every task has a pod"):
        predicted(groups(KUBERNETES, LOCAL), room=room, parallelism=8, **more)
    alone = predicted(groups(KUBERNETES), room=room, parallelism=8, **more)
    assert (alone.peak, alone.failed) == (2, 4)
    # Where no pod is made, and as long as the gate is closed, a quota is nobody's limit.
    later = groups(LOCAL, KUBERNETES)
    later["groups"][1]["after"] = ["local"]
    for spec in (groups(LOCAL), later):
        assert predicted(spec, room=room, **more).peak == 4
        assert predicted(spec, room=room, **{"kubernetes_executor.task_publish_max_retries": "3"}).peak == 4


@pytest.mark.parametrize("variant", ["celery", "local-celery", "multiple"])
def test_what_is_predicted_holds_for_every_order_in_which_equal_tasks_may_come(variant):
    """Shuffled orders of tasks with equal priorities, each played by the rules of admission."""
    rng, accepted = random.Random(variant), 0
    for _ in range(150):
        known = settings(variant, rng.randint(1, 5))
        spec = parse({"groups": _any_groups(rng, variant), "max_active_tasks": rng.choice((None, 2, 4))})
        fleet = [{"name": queue, "concurrency": rng.randint(1, 4), "queues": [queue]} for queue in ("default", "other")]
        room = PodRoom({"worker-1": rng.randint(1, 4)}) if variant == "multiple" else None
        try:
            prediction = predict(spec, known, {"default_pool": 128}, fleet, room)
        except LabError:
            continue
        accepted += 1
        rules = limits_of(spec, known, {"default_pool": 128}, fleet, room)
        for _ in range(12):
            order = candidates_of(spec, known)
            rng.shuffle(order)
            order.sort(key=lambda candidate: -candidate.priority)
            batch = min(16, int(known["core.parallelism"]))
            assert len(started(admitted(order, rules, batch), rules)) == prediction.peak
    assert accepted > 30


def _any_groups(rng: random.Random, variant: str) -> list[dict]:
    places = [(executor, "default") for executor in executors(settings(variant))] + [(CELERY, "other")]
    return [
        {"name": f"g{number}", "executor": executor, "queue": queue, "tasks": rng.randint(1, 5), "priority": rng.randint(1, 2)}
        for number, (executor, queue) in enumerate(rng.sample(places, rng.randint(2, len(places))))
    ]


@pytest.mark.parametrize("seed", range(40))
def test_a_scheduler_played_loop_by_loop_comes_to_the_same(seed):
    """A second model, by counters instead of limits: what each loop asks for, and what each executor does with it."""
    rng = random.Random(seed)
    order = rng.sample((LOCAL, CELERY, KUBERNETES), 3)
    parallelism, celery, pods = rng.randint(1, 6), rng.randint(1, 5), rng.randint(1, 5)
    spec = groups(*order)
    for group in spec["groups"]:
        group["tasks"] = rng.randint(1, 9)
    waiting = [group["executor"] for group in spec["groups"] for _ in range(group["tasks"])][:16]
    handed = dict.fromkeys(order, 0)
    # max_active_tasks (16 of one DAG run) counts what is queued and running; its query never sees more rows than that.
    rest = [group["executor"] for group in spec["groups"] for _ in range(group["tasks"])][16:]
    while (asked := min(16, parallelism - handed[CELERY] - handed[KUBERNETES])) > 0 and waiting:
        for executor in waiting[:asked]:
            handed[executor] += 1
        waiting = waiting[asked:]
    running = {LOCAL: min(handed[LOCAL], parallelism), CELERY: min(handed[CELERY], celery), KUBERNETES: min(handed[KUBERNETES], pods)}
    prediction = predicted(spec, workers(celery), PodRoom({"worker-1": pods}), parallelism=parallelism)
    assert dict(prediction.by_executor) == {executor: count for executor, count in running.items() if count}
    assert prediction.scheduled == len(waiting) + len(rest)


@pytest.mark.parametrize("variant", ["local-celery", "multiple"])
def test_cells_of_the_matrix_name_all_executors_in_an_order_of_their_own(variant):
    known = variant_named(variant).effective_settings({})
    cells = draw_cells(5, 12, known)
    firsts = {max(cell.spec.groups, key=lambda group: group.priority).executor for cell in cells}
    assert len(firsts) > 1
    for cell in cells:
        assert {group.executor for group in cell.spec.groups} == set(executors(known))
        room = PodRoom({"node": 100}, cell.quota) if variant == "multiple" else None
        fleet = [worker.document() for worker in cell.workers]
        assert not predict(cell.spec, {**known, **cell.settings}, {POOL: cell.slots}, fleet, room).exhausted


def bench_of(nodes: list[str], task_nodes: list[str], *names: str) -> Bench:
    """Return what a notebook works with, on an installation with these nodes, nodes of pods, and Celery workers."""
    bench = Bench.__new__(Bench)
    roles = [{"name": name, "roles": ["control"] if number == 0 else ["worker"]} for number, name in enumerate(nodes)]
    listed = [{"name": name, "queues": ["default"], "concurrency": 1, "node": nodes[-1]} for name in names]
    known = settings("multiple" if task_nodes else "local-celery")
    document = {"settings": known, "nodes": roles, "workers": listed, "kubernetes": {"task_nodes": task_nodes}}
    bench.installation = Installation(document)
    return bench


def test_a_host_tells_which_executor_ran_a_task():
    bench = bench_of(["control", "worker-1", "worker-2"], ["worker-1", "worker-2"], "celery-1")
    hosts = ("control", "celery-1", "worker-2", "celery-9")
    assert [bench.executor_at(host) for host in hosts] == [LOCAL, CELERY, KUBERNETES, None]


def test_a_host_of_several_executors_tells_nothing():
    assert bench_of(["control"], ["control"], "celery-1").executor_at("control") is None
    assert bench_of(["control", "worker-1"], ["worker-1"], "worker-1").executor_at("worker-1") is None


def test_on_one_machine_whatever_is_no_worker_is_the_local_executor():
    bench = bench_of(["localhost"], [], "celery-1")
    assert [bench.executor_at(host) for host in ("my-laptop.lan", "celery-1")] == [LOCAL, CELERY]


@pytest.mark.parametrize("name", ["local-celery", "multiple", "postgres", "kubernetes"])
def test_a_second_scheduler_needs_celery_alone(name):
    with pytest.raises(UsageError, match="Celery alone") as refused:
        wanted(name, ha=True)
    assert refused.value.hint == "fab install celery --ha --target vagrant"


@pytest.mark.parametrize(
    ("variant", "platform", "target", "asked"),
    [
        ("postgres", "linux", "local", False),
        ("celery", "darwin", "local", True),
        ("local-celery", "linux", "local", True),
        # Where processes have no titles, a plateau is a matter of time and heartbeats, as with the LocalExecutor alone.
        ("local-celery", "darwin", "local", False),
        ("multiple", "darwin", "vagrant", True),
    ],
)
def test_a_plateau_waits_for_an_answer_only_of_executors_that_can_be_asked(monkeypatch, variant, platform, target, asked):
    monkeypatch.setattr(sys, "platform", platform)
    assert all_can_be_asked(Installation({"settings": settings(variant), "target": target})) is asked

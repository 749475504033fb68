"""What workers can run of the messages in their queues: compared with looking at every way, and quick at every size."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import combinations

import pytest

from labs.errors import LabError
from labs.limits import predict
from labs.spec import parse
from labs.worker_limits import Capacity, outcomes, shared_sets
from provision.workers import MOST_CONCURRENCY, MOST_WORKERS

QUICK_S = 2.0


def capacity(name: str, runs: int, *queues: str, takes: int | None = None) -> Capacity:
    return Capacity(name, runs, runs if takes is None else takes, frozenset(queues))


def every_way(waiting: dict[str, int], workers: list[Capacity]) -> tuple[int, int]:
    """Return the least and the most, by looking at each final state of each worker."""
    found = {
        sum(min(worker.runs, taken[worker.name]) for worker in workers)
        for taken in ways(sorted(waiting), waiting, workers, {worker.name: 0 for worker in workers}, frozenset())
    }
    return min(found), max(found)


def ways(queues, counts, workers, taken, hungry) -> Iterator[dict[str, int]]:
    if not queues:
        if all(taken[worker.name] >= worker.takes for worker in workers if worker.name in hungry):
            yield taken
        return
    serving = [worker for worker in workers if queues[0] in worker.queues]
    for shares, left in shares_of(counts[queues[0]], [worker.takes - taken[worker.name] for worker in serving]):
        after = taken | {worker.name: taken[worker.name] + share for worker, share in zip(serving, shares, strict=True)}
        yield from ways(queues[1:], counts, workers, after, hungry | {worker.name for worker in serving} if left else hungry)


def shares_of(count, room) -> Iterator[tuple[tuple[int, ...], int]]:
    if not room:
        yield (), count
        return
    for first in range(min(count, room[0]) + 1):
        for others, left in shares_of(count - first, room[1:]):
            yield (first, *others), left


def drawn(seed: int, multipliers: tuple[int, ...]) -> tuple[dict[str, int], list[Capacity]]:
    rng = random.Random(seed)
    queues = "abc"[: rng.choice((1, 2, 2, 3, 3))]
    workers = []
    for number in range(rng.choice((1, 2, 3, 4))):
        runs = rng.choice((1, 2, 3))
        workers.append(capacity(f"w{number}", runs, *rng.sample(queues, rng.randint(1, len(queues))), takes=runs * rng.choice(multipliers)))
    return {queue: rng.randint(0, 5) for queue in queues}, workers


@pytest.mark.parametrize("seed", range(150))
def test_workers_that_take_what_they_run_come_out_as_every_way_does(seed):
    waiting, workers = drawn(seed, (1,))
    assert outcomes(waiting, workers) == every_way(waiting, workers)


@pytest.mark.parametrize("seed", range(150))
def test_workers_that_reserve_come_out_as_every_way_does(seed):
    waiting, workers = drawn(seed, (1, 2, 4))
    assert outcomes(waiting, workers) == every_way(waiting, workers)


@pytest.mark.parametrize("seed", range(60))
def test_the_sets_of_queues_cap_as_much_as_all_sets_do(seed):
    rng = random.Random(seed)
    queues = "abcde"
    workers = [
        capacity(f"w{number}", rng.randint(1, 4), *rng.sample(queues, rng.choice((0, 1, 2, 3)))) for number in range(rng.randint(1, 5))
    ]

    def cap(chosen):
        return sum(worker.runs for worker in workers if worker.queues & set(chosen))

    kept = [*((queue,) for queue in queues), *shared_sets(workers, queues)]
    for size in range(1, len(queues) + 1):
        for chosen in combinations(queues, size):
            # The tightest bound that the kept sets give on tasks in `chosen`, each task of one queue being in one set.
            best = {frozenset(): 0}
            for some in kept:
                for covered, total in list(best.items()):
                    union = covered | (frozenset(some) & frozenset(chosen))
                    best[union] = min(best.get(union, 10**6), total + cap(some))
            assert best[frozenset(chosen)] <= cap(chosen)


ONE_QUEUE = [{"name": f"w{n}", "concurrency": 8, "queues": ["default"]} for n in range(8)]
ALL_QUEUES = [f"q{n}" for n in range(16)]


def of(count: int, concurrency: int, queues) -> list[dict]:
    return [{"name": f"w{n}", "concurrency": concurrency, "queues": list(queues(n))} for n in range(count)]


def on(spec: dict, workers: list[dict], **more):
    known = {"core.executor": "CeleryExecutor", "core.max_active_runs_per_dag": "16"}
    known |= {"core.parallelism": "2000", "core.max_active_tasks_per_dag": "2000"}
    settings = known | {key.replace("__", "."): str(value) for key, value in more.items()}
    return predict(parse(spec), settings, {"default_pool": 2000}, workers)


def groups(queues: list[str], tasks: int) -> dict:
    return {"groups": [{"name": queue, "queue": queue, "tasks": tasks} for queue in queues]}


@pytest.mark.parametrize(
    ("spec", "workers", "peak"),
    [
        ({"tasks": 16}, ONE_QUEUE, 16),
        ({"tasks": 80}, ONE_QUEUE, 64),
        ({"tasks": 16}, of(16, 2, lambda n: ["default"]), 16),
        ({"tasks": 40}, of(16, 2, lambda n: ["default"]), 32),
        ({"tasks": 1000}, of(MOST_WORKERS, MOST_CONCURRENCY, lambda n: ["default"]), 1000),
        ({"tasks": 700}, of(10, MOST_CONCURRENCY, lambda n: ["default"]), 640),
        (groups(ALL_QUEUES, 60), of(1, MOST_CONCURRENCY, lambda n: ALL_QUEUES), 64),
        (groups(ALL_QUEUES, 60), of(16, 4, lambda n: ALL_QUEUES), 64),
        (groups(ALL_QUEUES, 2), of(16, 64, lambda n: ALL_QUEUES), 32),
        (groups(ALL_QUEUES, 60), of(16, 4, lambda n: [f"q{n}"]), 64),
        # Every queue alone has enough for both of its workers.
        (groups(ALL_QUEUES, 60), of(15, 4, lambda n: [f"q{n}", f"q{n + 1}"]), 60),
        (groups(ALL_QUEUES[:6], 150), of(16, 20, lambda n: ALL_QUEUES[:6] if n == 0 else [f"q{n % 6}"]), 320),
    ],
)
def test_every_size_that_is_allowed_is_predicted_within_a_second(spec, workers, peak):
    begun = time.process_time()
    assert on(spec, workers).peak == peak
    assert time.process_time() - begun < QUICK_S


@pytest.mark.parametrize("multiplier", [0, 2, 16])
def test_workers_that_reserve_are_answered_at_once_too(multiplier):
    begun = time.process_time()
    with pytest.raises(LabError, match=r"depends on chance"):
        on({"tasks": 200}, of(16, 16, lambda n: ["default"]), celery__worker_prefetch_multiplier=multiplier)
    assert time.process_time() - begun < QUICK_S


@pytest.mark.parametrize("seed", range(12))
def test_workers_that_share_queues_at_random_are_predicted_or_refused_at_once(seed):
    rng = random.Random(seed)
    spec = groups(ALL_QUEUES, rng.randint(1, 60))
    workers = of(16, rng.choice((1, 4, 64)), lambda n: rng.sample(ALL_QUEUES, rng.randint(1, 5)))
    served = {queue for worker in workers for queue in worker["queues"]}
    listed = {"groups": [group for group in spec["groups"] if group["queue"] in served]}
    begun = time.process_time()
    said = answer(listed, workers, celery__worker_prefetch_multiplier=1 + seed % 2)
    assert time.process_time() - begun < QUICK_S
    assert isinstance(said, int) or "too many ways" in said or "depends on chance" in said


def answer(spec: dict, workers: list[dict], **settings) -> int | str:
    """Return the predicted peak, or why there is none."""
    try:
        return on(spec, workers, **settings).peak
    except LabError as refused:
        return refused.message


def test_a_task_that_names_no_queue_goes_to_the_default_queue_of_the_settings():
    workers = [{"name": "a", "concurrency": 3, "queues": ["other"]}, {"name": "b", "concurrency": 2, "queues": ["default"]}]
    assert on({"tasks": 5}, workers).peak == 2
    assert on({"tasks": 5}, workers, operators__default_queue="other").peak == 3
    assert on({"tasks": 5}, workers, operators__default_queue="nobody").binding == "no worker serves queue nobody"

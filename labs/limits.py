"""The limit model: a spec and the settings in, the peak and the limit that binds it out. All pure.

Nothing ends while the model looks, because a probe's tasks hold: what is admitted when nothing more can be
(labs.admission) is what the gate will show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from labs.admission import Candidate, Limit, admitted, fill, started, used_up
from labs.errors import LabError
from labs.executors import CELERY, COUNTING, KUBERNETES, LOCAL, executor_of, executors, only_on
from labs.pod_limits import PodRoom, pod_limits, refused_fail
from labs.spec import Group, Spec
from labs.worker_limits import capacities, default_queue, outcomes, queue_of, worker_limits


@dataclass(frozen=True)
class Prediction:
    """What the model expects of a probe while its gate is closed.

    `queued` and `scheduled` count task instances that wait in these states; `binding` says in words which
    limit caps the peak; `exhausted` is True when the probe has too few tasks to reach any limit. `failed` counts
    those that fail instead of waiting. `by_executor` is how many of the peak run on each executor of the installation.
    """

    peak: int
    queued: int
    scheduled: int
    binding: str
    binding_names: tuple[str, ...]
    exhausted: bool
    caps: tuple[tuple[str, int], ...]
    failed: int = 0
    by_executor: Mapping[str, int] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Task instances that will wait."""
        return self.queued + self.scheduled


def predict(
    spec: Spec,
    settings: Mapping[str, str],
    pools: Mapping[str, int],
    workers: Sequence[Mapping[str, Any]] = (),
    room: PodRoom | None = None,
) -> Prediction:
    """Return the prediction for a probe under these settings ("section.key"), pools, Celery workers and room for pods.

    `pools` are slots by name (-1 = no limit); a worker has a `name`, its `concurrency` and its `queues`.
    Raises LabError for a pool that does not exist, an executor that the model does not know or that is not installed,
    and where chance decides how many run: which worker takes which task, or whose tasks the scheduler sees first.
    """
    limits = limits_of(spec, settings, pools, workers, room)
    candidates = candidates_of(spec, settings)
    batch = _batch(settings, pools)
    sent = admitted(candidates, limits, batch)
    by_executor = _executors_of(started(sent, limits), settings)
    running = by_executor.total()
    queued = len(sent) - running
    _require_certainty(sent, workers, settings)
    # Where nothing is held back, it does not matter who comes first.
    other_orders = _orders(candidates, settings) if len(sent) < len(candidates) else ()
    certain = _same_for_all([sent, *(admitted(order, limits, batch) for order in other_orders)], limits, workers, settings)
    if room is not None and room.quota is not None and _in_pods(spec, settings) and refused_fail(settings):
        return _with_failures(spec, candidates, limits, room, settings)
    binding = _binding(candidates, limits, sent, batch)
    exhausted = running == len(candidates)
    words = f"the probe has only {len(candidates)} tasks that can run at once" if exhausted else " and ".join(l.words for l in binding)
    return Prediction(
        peak=running,
        queued=queued,
        scheduled=len(candidates) - running - queued,
        binding=words or "several limits together",
        binding_names=tuple(limit.name for limit in binding),
        exhausted=exhausted,
        caps=tuple((limit.name, limit.cap) for limit in limits),
        by_executor=dict(by_executor) if certain else {},
    )


def _executors_of(candidates: list[Candidate], settings: Mapping[str, str]) -> Counter[str]:
    return Counter(executor_of(candidate.group, settings) for candidate in candidates)


def _in_pods(spec: Spec, settings: Mapping[str, str]) -> bool:
    return any(executor_of(group, settings) == KUBERNETES for group in spec.groups if not group.after)


def _place(candidate: Candidate, settings: Mapping[str, str]) -> tuple[str, str]:
    """Return where a candidate goes: executor and queue."""
    return executor_of(candidate.group, settings), queue_of(candidate, settings)


def _same_for_all(
    handed: list[list[Candidate]], limits: list[Limit], workers: Sequence[Mapping[str, Any]], settings: Mapping[str, str]
) -> bool:
    """Return whether every order has handed as many candidates to each place; raises LabError if their number decides how many run.

    The orders that were tried are extremes, and what lies between them is possible, too: where they differ, as many must
    run as are handed over, in each of them.
    """
    places = [Counter(_place(candidate, settings) for candidate in sent) for sent in handed]
    if all(place == places[0] for place in places):
        return True
    running = [len(started(sent, limits)) for sent in handed]
    if running != [len(sent) for sent in handed] or len(set(running)) > 1:
        raise LabError(
            f"It depends on chance whose tasks the scheduler sees first, and so how many run: {min(running)} to {max(running)}, or others.",
            'give groups that go to different executors or queues a different "priority"',
        )
    for sent in handed:
        _require_certainty(sent, workers, settings)
    return False


def _orders(candidates: list[Candidate], settings: Mapping[str, str]) -> Iterator[list[Candidate]]:
    """Yield the orders in which the scheduler may see candidates that go to several executors or queues; one place needs no order.

    Its database may return equal rows in any order, and DAG runs that are triggered together may become ready one by one.
    """
    places = sorted({_place(candidate, settings) for candidate in candidates})
    for first in places if len(places) > 1 else ():
        others = [other for other in places if other != first]
        # Of three places these are all orders; of more, each of them is once the first, and once the one that has to wait.
        for order, by_run in product(([first, *others], [first, *others[::-1]]), (False, True)):
            yield sorted(candidates, key=lambda c: (c.run if by_run else 0, *_rank(c), order.index(_place(c, settings))))


def _with_failures(spec: Spec, candidates: list[Candidate], limits: list[Limit], room: PodRoom, settings: Mapping[str, str]) -> Prediction:
    """Return the prediction where a quota fails tasks at once: each failure frees its place for the next, until none waits."""
    if any(executor_of(candidate.group, settings) != KUBERNETES for candidate in candidates):
        raise LabError(
            "How many tasks a quota fails is known only where every task has a pod.",
            "set kubernetes_executor.task_publish_max_retries=-1, or give the probe no other executor",
        )
    if any(group.retries for group in spec.groups):
        raise LabError("Tasks with retries come back after a quota has failed them; when, depends on their delay.", 'leave "retries" out')
    others = [limit for limit in limits if limit.name != "quota"]
    if len(started(admitted(candidates, others, len(candidates)), others)) < room.quota or room.total < room.quota:
        raise LabError(
            "How many tasks a quota fails depends on when pods end, if another limit holds some of them back first.",
            "set kubernetes_executor.task_publish_max_retries=-1, or make the quota the narrowest limit",
        )
    (quota,) = [limit for limit in limits if limit.name == "quota"]
    return Prediction(
        peak=min(room.quota, len(candidates)),
        queued=0,
        scheduled=0,
        binding=f"{quota.words}, and a pod that is refused is not tried again",
        binding_names=(quota.name,),
        exhausted=len(candidates) <= room.quota,
        caps=tuple((limit.name, limit.cap) for limit in limits),
        failed=max(0, len(candidates) - room.quota),
    )


def candidates_of(spec: Spec, settings: Mapping[str, str]) -> list[Candidate]:
    """Return the task instances that are ready at first, in the order in which the scheduler looks at them."""
    active_runs = spec.max_active_runs or int(settings["core.max_active_runs_per_dag"])
    ready = [
        Candidate(run, group, index)
        for run in range(min(spec.runs, active_runs))
        for group in spec.groups
        if not group.after
        for index in range(1 if group.chain else group.tasks)
    ]
    return sorted(ready, key=_rank)


def _rank(candidate: Candidate) -> tuple[int, int, int]:
    # The scheduler's ORDER BY: priority weight, logical date, map index (-1 unless mapped).
    return -candidate.priority, candidate.run, candidate.index if candidate.group.mapped else -1


def limits_of(
    spec: Spec,
    settings: Mapping[str, str],
    pools: Mapping[str, int],
    workers: Sequence[Mapping[str, Any]] = (),
    room: PodRoom | None = None,
) -> list[Limit]:
    """Return every limit that could cap this probe."""
    limits = [*_parallelism(settings), _max_active_tasks(spec, settings)]
    listed = executors(settings)
    first = [group for group in spec.groups if not group.after]
    if CELERY in listed:
        queues = {group.queue or default_queue(settings) for group in first if executor_of(group, settings) == CELERY}
        limits += [only_on(CELERY, limit, settings) for limit in worker_limits(capacities(workers, settings), queues, settings)]
    if KUBERNETES in listed and room is not None:
        if any(group.pod for group in spec.groups):
            raise LabError("The limit model knows pods of one size only.", 'leave "pod" out, and set labs.pod_cpu or labs.pod_memory')
        limits += [only_on(KUBERNETES, limit, settings) for limit in pod_limits(room, settings)]
    for pool in spec.pools():
        if pool not in pools:
            raise LabError(f"Pool {pool!r} does not exist.", f"create it first: lab.pool({pool!r}, slots=3)")
        if pools[pool] >= 0:
            limits.append(_pool(pool, pools[pool], spec))
    for group in spec.groups:
        limits += _task_limits(group)
    return limits


def _parallelism(settings: Mapping[str, str]) -> list[Limit]:
    """Return what `parallelism` means to the executors of an installation."""
    listed, parallelism = executors(settings), int(settings["core.parallelism"])
    limits = []
    if counting := [name for name in listed if name in COUNTING]:
        # The scheduler adds up what these executors were handed and have not seen the end of
        # (`_critical_section_enqueue_task_instances`, scheduler_job_runner.py; slots_occupied,
        # airflow/executors/base_executor.py, 3.3.2).
        whose = f" of the {' and the '.join(counting)}" if len(listed) > 1 else ""
        words = f"parallelism is {parallelism}: no more task instances{whose} are queued and running together"
        limits.append(
            Limit(
                "parallelism",
                parallelism,
                words,
                scope=lambda c: "all" if executor_of(c.group, settings) in counting else None,
                shrinks=True,
            )
        )
    if LOCAL in listed:
        # It starts one worker process per unit of parallelism and hands them whatever it is given, so the scheduler goes on
        # admitting (airflow/executors/local_executor.py, 3.3.2).
        words = f"parallelism is {parallelism}: the LocalExecutor has {_plural(parallelism, 'worker process', 'worker processes')}"
        name = "worker processes" if counting else "parallelism"
        limits.append(only_on(LOCAL, Limit(name, parallelism, words, scope=lambda c: "all", at_workers=True), settings))
    return limits


def _require_certainty(sent: Sequence[Candidate], workers: Sequence[Mapping[str, Any]], settings: Mapping[str, str]) -> None:
    in_queues = Counter(queue_of(candidate, settings) for candidate in sent if executor_of(candidate.group, settings) == CELERY)
    least, most = outcomes(in_queues, capacities(workers, settings))
    if least != most:
        raise LabError(
            f"Between {least} and {most} tasks will run: it depends on chance which worker takes which message first.",
            "submit more tasks on each queue, give each queue its own workers, or set celery.worker_prefetch_multiplier=1",
        )


def _max_active_tasks(spec: Spec, settings: Mapping[str, str]) -> Limit:
    # Counted per DAG run despite the name of the setting (scheduler_job_runner.py, 3.3.2).
    cap = spec.max_active_tasks or int(settings["core.max_active_tasks_per_dag"])
    return Limit("max_active_tasks", cap, f"max_active_tasks is {cap} in each DAG run", scope=lambda c: c.run, hides=True, rows=True)


def _pool(name: str, slots: int, spec: Spec) -> Limit:
    words = f"pool {name} has {_plural(slots, 'slot')}"
    sizes = {group.pool_slots for group in spec.groups if group.pool == name}
    if sizes != {1}:
        words += f" and each task takes {' or '.join(str(s) for s in sorted(sizes))}"
    return Limit(
        f"pool {name}",
        slots,
        words,
        scope=lambda c: name if c.group.pool == name else None,
        weight=lambda c: c.group.pool_slots,
        hides=True,
    )


def _task_limits(group: Group) -> list[Limit]:
    def scope_for(per_run: bool) -> Callable[[Candidate], Hashable | None]:
        # Both count one task: the instances of a mapped task share its id, other tasks have one each.
        def scope(c: Candidate) -> Hashable | None:
            if c.group is not group:
                return None
            return (None if group.mapped else c.index, c.run if per_run else None)

        return scope

    limits = []
    if group.max_active_tis_per_dag is not None:
        cap = group.max_active_tis_per_dag
        limits.append(Limit("max_active_tis_per_dag", cap, f"max_active_tis_per_dag is {cap}", scope_for(per_run=False)))
    if group.max_active_tis_per_dagrun is not None:
        cap = group.max_active_tis_per_dagrun
        limits.append(Limit("max_active_tis_per_dagrun", cap, f"max_active_tis_per_dagrun is {cap}", scope_for(per_run=True)))
    return limits


def _batch(settings: Mapping[str, str], pools: Mapping[str, int]) -> int:
    """Return how many task instances the scheduler looks at in one query at most."""
    parallelism, query = int(settings["core.parallelism"]), int(settings.get("scheduler.max_tis_per_query", 16))
    free = float("inf") if min(pools.values()) < 0 else sum(pools.values())
    return int(min(parallelism, query or parallelism, max(free, 1)))


def _binding(candidates: list[Candidate], limits: list[Limit], sent: list[Candidate], batch: int) -> list[Limit]:
    """Return the limits without which more would run: each one alone, or else those that bind only together."""
    running = len(started(sent, limits))
    if running == len(candidates):
        return []
    full = used_up(sent, limits)

    def without(limit: Limit) -> int:
        if limit.at_workers:
            # What is sent does not depend on it, and a limit with room left refused nothing.
            return len(started(sent, [other for other in full if other is not limit])) if limit in full else running
        return fill(candidates, [other for other in limits if other is not limit], batch)

    if alone := [limit for limit in limits if without(limit) > running]:
        return alone
    # Equal caps hide each other; each of them alone, with no other limit, gives this very peak.
    everything = admitted(candidates, [], batch)
    return [
        limit
        for limit in limits
        if (len(started(everything, [limit])) if limit.at_workers else fill(candidates, [limit], batch)) == running
    ]


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"

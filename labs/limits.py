"""The limit model: a spec and the settings in, the peak and the limit that binds it out. All pure.

Nothing ends while the model looks, because a probe's tasks hold: what is admitted when nothing more can be
(labs.admission) is what the gate will show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labs.admission import Candidate, Limit, admitted, fill, started, used_up
from labs.errors import LabError
from labs.pod_limits import PodRoom, pod_limits, refused_fail
from labs.spec import Group, Spec
from labs.worker_limits import capacities, default_queue, outcomes, queue_of, worker_limits

LOCAL, CELERY, KUBERNETES = "LocalExecutor", "CeleryExecutor", "KubernetesExecutor"


@dataclass(frozen=True)
class Prediction:
    """What the model expects of a probe while its gate is closed.

    `queued` and `scheduled` count task instances that wait in these states; `binding` says in words which
    limit caps the peak; `exhausted` is True when the probe has too few tasks to reach any limit. `failed` counts
    those that fail instead of waiting.
    """

    peak: int
    queued: int
    scheduled: int
    binding: str
    binding_names: tuple[str, ...]
    exhausted: bool
    caps: tuple[tuple[str, int], ...]
    failed: int = 0

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
    Raises LabError for a pool that does not exist, an executor that the model does not know, and where it
    depends on chance which worker takes which task.
    """
    limits = limits_of(spec, settings, pools, workers, room)
    candidates = candidates_of(spec, settings)
    batch = _batch(settings, pools)
    sent = admitted(candidates, limits, batch)
    running = started(sent, limits)
    queued = len(sent) - running
    if settings["core.executor"] == CELERY:
        _require_certainty(sent, workers, settings)
    if room is not None and room.quota is not None and refused_fail(settings):
        return _with_failures(spec, candidates, limits, room)
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
    )


def _with_failures(spec: Spec, candidates: list[Candidate], limits: list[Limit], room: PodRoom) -> Prediction:
    """Return the prediction where a quota fails tasks at once: each failure frees its place for the next, until none waits."""
    if any(group.retries for group in spec.groups):
        raise LabError("Tasks with retries come back after a quota has failed them; when, depends on their delay.", 'leave "retries" out')
    others = [limit for limit in limits if limit.name != "quota"]
    if started(admitted(candidates, others, len(candidates)), others) < room.quota or room.total < room.quota:
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
    # The scheduler's ORDER BY: priority weight, logical date, map index (-1 unless mapped).
    return sorted(ready, key=lambda c: (-c.priority, c.run, c.index if c.group.mapped else -1))


def limits_of(
    spec: Spec,
    settings: Mapping[str, str],
    pools: Mapping[str, int],
    workers: Sequence[Mapping[str, Any]] = (),
    room: PodRoom | None = None,
) -> list[Limit]:
    """Return every limit that could cap this probe."""
    limits = [_parallelism(settings), _max_active_tasks(spec, settings)]
    if settings["core.executor"] == CELERY:
        queues = {group.queue or default_queue(settings) for group in spec.groups if not group.after}
        limits += worker_limits(capacities(workers, settings), queues, settings)
    if settings["core.executor"] == KUBERNETES and room is not None:
        if any(group.pod for group in spec.groups):
            raise LabError("The limit model knows pods of one size only.", 'leave "pod" out, and set labs.pod_cpu or labs.pod_memory')
        limits += pod_limits(room, settings)
    for pool in spec.pools():
        if pool not in pools:
            raise LabError(f"Pool {pool!r} does not exist.", f"create it first: lab.pool({pool!r}, slots=3)")
        if pools[pool] >= 0:
            limits.append(_pool(pool, pools[pool], spec))
    for group in spec.groups:
        limits += _task_limits(group)
    return limits


def _parallelism(settings: Mapping[str, str]) -> Limit:
    executor, parallelism = settings["core.executor"], int(settings["core.parallelism"])
    if executor in (CELERY, KUBERNETES):
        # The CeleryExecutor counts what it has sent until its result is there, running or not
        # (`running` in celery_executor.py; slots_available in airflow/executors/base_executor.py, 3.3.2). The
        # KubernetesExecutor counts what has a pod, or waits for one (labs.pod_limits).
        words = f"parallelism is {parallelism}: no more task instances are queued and running together"
        return Limit("parallelism", parallelism, words, scope=lambda c: "all", shrinks=True)
    if executor != LOCAL:
        raise LabError(
            f"The limit model does not know the executor {executor!r}.",
            f"choose a variant with the {LOCAL}, the {CELERY} or the {KUBERNETES}",
        )
    # LocalExecutor starts one worker process per unit of parallelism and hands them whatever it is given:
    # it never fills `running` (airflow/executors/local_executor.py, 3.3.2), so the scheduler goes on admitting.
    return Limit(
        "parallelism",
        parallelism,
        f"parallelism is {parallelism}: the LocalExecutor has {_plural(parallelism, 'worker process', 'worker processes')}",
        scope=lambda c: "all",
        at_workers=True,
    )


def _require_certainty(sent: Sequence[Candidate], workers: Sequence[Mapping[str, Any]], settings: Mapping[str, str]) -> None:
    least, most = outcomes(Counter(queue_of(candidate, settings) for candidate in sent), capacities(workers, settings))
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
    running = started(sent, limits)
    if running == len(candidates):
        return []
    full = used_up(sent, limits)

    def without(limit: Limit) -> int:
        if limit.at_workers:
            # What is sent does not depend on it, and a limit with room left refused nothing.
            return started(sent, [other for other in full if other is not limit]) if limit in full else running
        return fill(candidates, [other for other in limits if other is not limit], batch)[0]

    if alone := [limit for limit in limits if without(limit) > running]:
        return alone
    # Equal caps hide each other; each of them alone, with no other limit, gives this very peak.
    everything = admitted(candidates, [], batch)
    return [
        limit for limit in limits if (started(everything, [limit]) if limit.at_workers else fill(candidates, [limit], batch)[0]) == running
    ]


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"

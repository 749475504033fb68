"""A probe's life: deliver its spec, trigger it, hold at the gate, release, collect, clean up."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from labs import progress, services, timeline
from labs.airflow_api import AirflowApi
from labs.checks import Plateau
from labs.errors import LabError
from labs.executors import CELERY, COUNTING, LOCAL, executor_of, executors
from labs.installation import Installation
from labs.services import Watcher
from labs.spec import Spec, as_dict
from labs.timeline import Attempt
from labs.waiting import wait_for
from labs.worker_limits import default_queue
from provision.errors import ProvisionError

PREFIX = "probe_"
GATE_PREFIX = "lab_gate_"
SMOKE_DAG = "lab_smoke"
# The description of every pool that a lab makes, by which an interrupted lab's pools are found again.
POOL_NOTE = "made by a lab"
DEFAULT_POOL = "default_pool"
CLOSED, OPEN = "gate closed", "gate open"
OnCollect = Callable[[str, tuple[Attempt, ...]], None]
OnFault = Callable[[str, ProvisionError, tuple[Attempt, ...]], None]
ENDED = frozenset({"success", "failed", "upstream_failed", "skipped", "removed"})

# The plateau must hold for at least this long, and for this many times the longest pause between two
# starts seen so far: a slow machine is given more time by its own slowness.
SHORTEST_HOLD_S = 2.0
PAUSES_TO_HOLD = 3.0
# The scheduler writes a heartbeat from inside its loop: so often it must have looked while the reading stood.
HEARTBEATS_TO_HOLD = 2
LONGEST_SETTLE_S = 180.0
POLL_S = 0.3


@dataclass(frozen=True)
class ProbeResult:
    """What one probe did: its task instances (all tries), and the plateau if it held at the gate.

    `broker` holds readings of how many messages waited in the broker: (epoch seconds, messages by queue);
    none where the executor has no broker. Times of different hosts are compared up to `tolerance_s` seconds.
    """

    spec: Spec
    dag_id: str
    attempts: tuple[Attempt, ...]
    plateau: Plateau | None
    triggered: float
    released: float | None = None
    run_states: dict[str, str] = field(default_factory=dict)
    broker: tuple[tuple[float, dict[str, int]], ...] = ()
    tolerance_s: float = 0.0

    @property
    def peak(self) -> int:
        """Most task instances running at once by start and end times; of a held probe, until the gate opened.

        What comes later may peak higher without breaking any limit, where groups of tasks differ.
        """
        until = float("inf") if self.released is None else self.released
        counted = [a for a in self.attempts if a.start is not None and a.start <= until]
        # One host has one clock.
        return timeline.peak(counted, self.tolerance_s if len({a.host for a in counted}) > 1 else 0.0)


class Probe:
    """One probe on one Airflow; use it as a context manager, so that nothing stays held or running."""

    def __init__(
        self,
        installation: Installation,
        api: AirflowApi,
        spec: Spec,
        watcher: Watcher,
        on_fault: OnFault | None = None,
        on_collect: OnCollect | None = None,
    ) -> None:
        """Prepare it; `on_fault` is told the error and the states of all task instances if something breaks while they run.

        `on_collect` is told the DAG and its task instances whenever they are collected.
        """
        self.spec = spec
        self.dag_id = f"{PREFIX}{spec.name}_{uuid.uuid4().hex[:8]}"
        self.gate = GATE_PREFIX + self.dag_id
        self.run_ids: list[str] = []
        self.triggered = 0.0
        self.released: float | None = None
        self._api = api
        self._watcher = watcher
        # Called at every poll; raises when a service died, so that a lab names it instead of timing out.
        self._watch = watcher.require_alive
        self._on_fault, self._on_collect = on_fault, on_collect
        self._tolerance_s = installation.clock_tolerance_s
        self._workers_answer = all_can_be_asked(installation)
        self.broker: list[tuple[float, dict[str, int]]] = []

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        try:
            if isinstance(error, ProvisionError) and self.run_ids and self._on_fault:
                # The API may be what broke.
                with contextlib.suppress(LabError):
                    self._on_fault(self.dag_id, error, self.collect())
        finally:
            # What broke may be what removing needs; why it broke is what has to be told. The next lab removes what is left.
            with contextlib.suppress(LabError, ProvisionError) if error else contextlib.nullcontext():
                self.remove()

    @property
    def holding(self) -> bool:
        """Whether tasks of the probe may be holding at its gate now."""
        return self.spec.holds and bool(self.run_ids) and self.released is None

    def deliver(self) -> None:
        """Put the spec into the DAG folder and have it parsed at once, not at the DAG processor's leisure."""
        progress.report(f"delivering {self._words()}")
        if self.spec.holds:
            self._api.set_variable(self.gate, CLOSED)
        self._watcher.put_spec(self.dag_id, json.dumps(self.spec.document(self.dag_id, self.gate), indent=1, sort_keys=True) + "\n")
        before = self._import_errors()
        self._parse()
        asked = time.monotonic()

        def known() -> bool:
            nonlocal asked
            self._watch()
            if time.monotonic() - asked > 5:
                self._parse()
                asked = time.monotonic()
                if new := [text for key, text in self._import_errors().items() if key not in before]:
                    raise LabError("\n".join([f"Airflow cannot load DAG {self.dag_id}.", *new]), "correct the spec, and run it again")
            return self._api.dag(self.dag_id) is not None

        wait_for(known, 90, f"Parsing DAG {self.dag_id}", every_s=0.1, hint="fab logs dag-processor")

    def _import_errors(self) -> dict[tuple[int, str], str]:
        # An error that is found again keeps its id and gets a new time.
        return {(e["import_error_id"], e["timestamp"]): e["stack_trace"].strip().splitlines()[-1] for e in self._api.import_errors()}

    def _parse(self) -> None:
        smoke = self._api.dag(SMOKE_DAG)
        if smoke is None:
            raise LabError("Airflow does not know the labs' DAG file.", "fab install VARIANT, which puts it back")
        self._api.parse(smoke["file_token"])

    def trigger(self) -> None:
        """Start every DAG run of the spec."""
        self.triggered = time.time()
        for _ in range(self.spec.runs):
            self.run_ids.append(self._api.trigger(self.dag_id))

    def hold(self) -> Plateau:
        """Return the plateau: the running count once it stayed put while the gate was closed.

        Nothing is known here of any prediction, so that none can decide when to stop looking. The plateau
        is not `settled` if the counts still changed when the time was up.
        """
        watcher = PlateauWatcher(time.monotonic(), must_know=self._workers_answer)
        while True:
            self._watch()
            self._read_broker()
            beat = self._api.health()["scheduler"].get("latest_scheduler_heartbeat")
            plateau = watcher.observe(time.monotonic(), self._counts(), self._starting(), beat)
            progress.report(f"gate closed: {plateau.running} running, {plateau.queued} queued, {plateau.scheduled} scheduled")
            if plateau.settled or watcher.elapsed > LONGEST_SETTLE_S:
                return plateau
            time.sleep(POLL_S)

    def _read_broker(self) -> None:
        if waiting := self._watcher.messages_waiting():
            self.broker.append((time.time(), waiting))

    def _starting(self) -> int | None:
        """Return how many tasks a worker has taken, or is about to, that do not run yet, of all DAGs; None if nobody knows."""
        in_hand = self._watcher.tasks_in_hand()
        return None if in_hand is None else in_hand - self._api.running_count()

    def _counts(self) -> dict[str, int]:
        return timeline.states(timeline.attempt_from_api(row) for row in self._api.task_instances(self.dag_id))

    def release(self) -> None:
        """Open the gate."""
        if self.spec.holds:
            self.released = time.time()
            self._api.set_variable(self.gate, OPEN)

    def wait(self, timeout_s: float = 900) -> dict[str, str]:
        """Return the final state of every DAG run by run id; polls the runs, never their task instances."""
        left = dict.fromkeys(self.run_ids, "")

        def ended() -> bool:
            self._watch()
            self._read_broker()
            for run_id, state in left.items():
                if state not in ENDED:
                    left[run_id] = self._api.dag_run_state(self.dag_id, run_id)
            count = sum(state in ENDED for state in left.values())
            progress.report(f"running {self._words()}: {count} of {len(left)} DAG runs ended")
            return count == len(left)

        # Each poll takes time of the API server that tasks need: every 0.5 s made 100 no-op tasks take 15 % longer.
        every_s = 2.0 if self.spec.task_count > 16 and not self.spec.holds else 0.5
        wait_for(ended, timeout_s, f"The end of {self.dag_id}", every_s=every_s)
        return left

    def collect(self) -> tuple[Attempt, ...]:
        """Return every try of every task instance."""
        rows = self._api.task_instances(self.dag_id)
        earlier = [old for row in rows if (row.get("try_number") or 0) > 1 for old in self._api.earlier_tries(row)]
        attempts = tuple(timeline.attempt_from_api(row) for row in [*rows, *earlier])
        if self._on_collect:
            self._on_collect(self.dag_id, attempts)
        return attempts

    def result(self, plateau: Plateau | None = None, states: dict[str, str] | None = None) -> ProbeResult:
        """Return what the probe has done so far, with a plateau and the states of its DAG runs that were seen."""
        return ProbeResult(
            self.spec,
            self.dag_id,
            self.collect(),
            plateau,
            self.triggered,
            self.released,
            states or {},
            tuple(self.broker),
            self._tolerance_s,
        )

    def remove(self) -> None:
        """Open the gate, end what still runs, and take DAG, spec and gate away; safe to repeat. One step that fails keeps none back."""
        with contextlib.ExitStack() as steps:
            # The last one is the first to be taken.
            if self.spec.holds:
                steps.callback(self._api.delete_variable, self.gate)
            steps.callback(self._api.delete_dag, self.dag_id)
            steps.callback(self._watcher.remove_waiting_pods, self.dag_id)
            steps.callback(self._watcher.remove_spec, self.dag_id)
            if self.run_ids:
                release_dag(self._api, self.dag_id, self.gate if self.spec.holds else None)
                self.released = self.released or (time.time() if self.spec.holds else None)

    def _words(self) -> str:
        first = self.spec.groups[0]
        kinds = "/".join(sorted({group.kind for group in self.spec.groups}))
        return f"probe {self.spec.name} ({self.spec.task_count} {kinds} tasks{f' of {first.seconds:g} s' if first.seconds else ''})"


def all_can_be_asked(installation: Installation) -> bool:
    """Return whether all executors can be asked what they have in hand.

    Celery's workers and Kubernetes can; the LocalExecutor's processes say it by their titles, which only Linux has.
    """
    names = executors(installation.settings)
    titled = installation.target != "local" or sys.platform == "linux"
    return any(name in COUNTING for name in names) and (LOCAL not in names or titled)


class PlateauWatcher:
    """Decides when a running count has stayed put for long enough. Pure: it is told the time.

    One that `must_know` takes no reading for a plateau that does not say how many tasks are about to start.
    """

    def __init__(self, now: float, must_know: bool = False) -> None:
        self._must_know = must_know
        self._begun = self._last_change = self._now = now
        # Time without a change in which nothing was known to be starting: while a pod starts, a pause says nothing.
        self._quiet = self._longest_pause = 0.0
        self._starting: int | None = None
        self._last: tuple[int, int, int] | None = None
        self._polls = 0
        self._beats: set[str | None] = set()

    def _looked_again(self, beat: str | None) -> bool:
        # The first heartbeat seen was written before this reading, so one more is needed.
        return beat is None or len(self._beats) > HEARTBEATS_TO_HOLD

    @property
    def elapsed(self) -> float:
        """Seconds since the watcher began."""
        return self._now - self._begun

    def observe(self, now: float, counts: dict[str, int], starting: int | None = None, beat: str | None = None) -> Plateau:
        """Return what is known after this reading of task instances per state.

        `starting` is how many tasks a worker has taken that do not run yet, None if nobody knows: as long
        as there is one, the running count is not a plateau. `beat` is the scheduler's latest heartbeat, None if
        unknown: a scheduler that has not looked since is no evidence that a limit holds.
        """
        reading = (counts.get("running", 0), counts.get("queued", 0), counts.get("scheduled", 0))
        if not self._starting or self._starting < 0:
            self._quiet += now - self._now
        self._now, self._starting = now, starting
        if reading != self._last:
            self._longest_pause = max(self._longest_pause, self._quiet)
            self._last, self._last_change, self._polls, self._quiet = reading, now, 0, 0.0
            self._beats = set()
        self._beats.add(beat)
        self._polls += 1
        held = now - self._last_change
        running, queued, scheduled = reading
        # Until the scheduler has looked at the run at all, nothing has been measured.
        settled = (
            any(reading)
            and (not self._must_know if starting is None else starting <= 0)
            and self._looked_again(beat)
            and self._quiet >= max(SHORTEST_HOLD_S, PAUSES_TO_HOLD * self._longest_pause)
        )
        return Plateau(running, queued, scheduled, self._polls, held, settled, starting)


def run_probe(probe: Probe, timeout_s: float = 900) -> ProbeResult:
    """Return what an entered probe did, from delivery to collection."""
    probe.deliver()
    probe.trigger()
    plateau = probe.hold() if probe.spec.holds else None
    probe.release()
    states = probe.wait(timeout_s)
    return probe.result(plateau, states)


def require_served(spec: Spec, installation: Installation) -> None:
    """Raise LabError if a task of the probe would wait for ever: its queue has no Celery worker."""
    if not installation.broker:
        return
    served = {queue for worker in installation.workers for queue in worker["queues"]}
    for group in spec.groups:
        queue = group.queue or default_queue(installation.settings)
        if executor_of(group, installation.settings) == CELERY and queue not in served:
            raise LabError(
                f"No worker serves queue {queue!r}, so the tasks of group {group.name!r} would never start.",
                f"choose one of: {', '.join(sorted(served)) or '(there are no workers)'}; or add a worker: fab workers --add {queue}-1=1@{queue}",
            )


def release_dag(api: AirflowApi, dag_id: str, gate: str | None) -> None:
    """Open a DAG's gate and end its runs, so that no task of it goes on."""
    if gate:
        api.set_variable(gate, OPEN)
    for run_id in api.active_runs(dag_id):
        api.fail_run(dag_id, run_id)


def reset(installation: Installation, api: AirflowApi) -> int:
    """Remove every probe and pool that an interrupted lab left behind; return how many probes there were."""
    ours = re.compile(rf"{PREFIX}.+_[0-9a-f]{{8}}")
    left = {dag["dag_id"] for dag in api.dags(PREFIX) if ours.fullmatch(dag["dag_id"])} | {
        name for name in services.spec_names(installation) if name.startswith(PREFIX)
    }
    for dag_id in sorted(left):
        progress.report(f"removing {dag_id}, left by an interrupted lab")
        if api.dag(dag_id):
            release_dag(api, dag_id, GATE_PREFIX + dag_id)
        services.remove_spec(installation, dag_id)
        api.delete_dag(dag_id)
    services.remove_waiting_pods(installation, PREFIX)
    services.remove_quotas(installation)
    for gate in api.variables(GATE_PREFIX):
        api.delete_variable(gate)
    for pool in api.pools_described(POOL_NOTE):
        api.delete_pool(pool)
    default_slots = int(installation.settings["core.default_pool_task_slot_count"])
    if api.pools()[DEFAULT_POOL] != default_slots:
        api.set_pool(DEFAULT_POOL, default_slots, "")
    return len(left)


def describe(spec: Spec) -> str:
    """Return the spec as a lab would write it, for tables."""
    return ", ".join(f"{key}={value}" for key, value in as_dict(spec).items())

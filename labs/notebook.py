"""What a notebook works with: one `Lab` that predicts, runs, checks, records and cleans up after itself."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from IPython.display import SVG, display
from matplotlib.figure import Figure

from labs import catalog, checks, plots, probe, progress, results, sandbox, services, timeline
from labs.checks import Measurement, Plateau
from labs.display import Note, Table, summary, table, verdict_note
from labs.errors import LabError
from labs.installation import read_installation
from labs.limits import Prediction
from labs.probe import Probe, ProbeResult
from labs.session import Bench
from labs.spec import parse
from labs.timeline import Attempt
from provision.errors import ProvisionError
from provision.home import lab_home
from provision.lock import exclusive
from provision.workers import Worker, check_together, listed_workers


class Lab(Bench):
    """One notebook's session with the installed Airflow, and its result record."""

    def __init__(self, name: str, result_path: str = "", parameters: Mapping[str, Any] | None = None, title: str = "") -> None:
        """Open the lab; raises LabError when no Airflow runs. Without `result_path` nothing is written."""
        super().__init__(read_installation())
        self.name, self.title = name, title
        self._result_path = Path(result_path) if result_path else None
        self._parameters = dict(parameters or {})
        self._started = datetime.now(UTC)
        self._measurements: list[Measurement] = []
        self._plots: list[dict[str, str]] = []
        self._plots_drawn = 0
        # By DAG, then by host.
        self._tasks: dict[str, dict[str, int]] = {}
        self._nodes_of_workers: dict[str, str] = {}
        self._changes_before = dict(self.installation.changes)
        self._workers_before = list(self.installation.workers)
        self._dags_before = self.installation.kubernetes.get("dags") or ""
        self._probes: list[Probe] = []
        self._require_variant()
        self._watcher.require_alive()
        with exclusive(lab_home(), "a notebook"):
            probe.reset(self.installation, self.api)
            sandbox.reset(self.installation)
        self._save(complete=False)

    def _require_variant(self) -> None:
        notebook = catalog.NOTEBOOKS / f"{self.name}.ipynb"
        fitting = catalog.LabFile(notebook).variants if notebook.exists() else ()
        if fitting and self.installation.variant not in fitting:
            raise LabError(
                f"Lab {self.name} needs the variant {' or '.join(fitting)}, but {self.installation.variant} is installed.",
                f"fab install {fitting[0]}, then run this cell again",
            )

    # -- acting --------------------------------------------------------------------------------------

    def pool(self, name: str, slots: int) -> Note:
        """Create a pool for this lab, or change its slots; it is as before when the lab finishes."""
        self.set_pool(name, slots)
        return Note(f"Pool {name} has {slots} {'slot' if slots == 1 else 'slots'}.")

    def change_settings(self, changes: Mapping[str, Any]) -> Note:
        """Give Airflow these settings ("section.key": value) on top of the variant's; services concerned restart."""
        wanted = {name: str(value) for name, value in changes.items()}
        words = ", ".join(f"{name} = {value}" for name, value in wanted.items()) or "the settings of its variant"
        progress.report(f"restarting what reads {words}")
        with exclusive(lab_home(), "a notebook"):
            self.installation = services.change_settings(self.installation, wanted, progress.report)
        return Note(f"Airflow runs with {words}.")

    def set_workers(self, workers: Sequence[Mapping[str, Any]]) -> Note:
        """Make exactly these Celery workers run, while tasks run; each is a dict with `name`, `concurrency`, `queues`.

        One that is new joins, one that is not in the list finishes its tasks and leaves, others change without
        stopping. They are as before when the lab finishes. Raises LabError for what does not describe workers, and
        for a worker that would leave while its tasks hold at a gate: it would not end before the gate opens.
        """
        listed = workers_from(workers)
        self._require_free(listed)
        progress.report(f"workers: {', '.join(str(worker) for worker in listed) or 'none'}")
        with exclusive(lab_home(), "a notebook"):
            self._note_nodes()
            self.installation = services.set_workers(self.installation, workers, progress.report)
        words = [f"{w['name']} ({w['concurrency']} on {', '.join(w['queues'])})" for w in self.installation.workers]
        return Note(f"Workers: {'; '.join(words)}.")

    def quota(self, pods: int) -> Note:
        """Let the namespace of tasks have at most so many pods; there is no quota any more when the lab finishes."""
        services.set_quota(self.installation, pods)
        return Note(f"The namespace {self.cluster.namespace} may have {pods} {'pod' if pods == 1 else 'pods'}.")

    def remove_quota(self) -> None:
        """Remove the quota that this lab made."""
        services.set_quota(self.installation, None)

    def distribute_dags(self, way: str) -> Note:
        """Get DAGs into pods another way ("volume", "git" or "image"); it is as before when the lab finishes."""
        progress.report(f"distributing DAGs by {way}")
        with exclusive(lab_home(), "a notebook"):
            self.installation = services.distribute_dags(self.installation, way, progress.report)
        return Note(f"DAGs get into pods by {way}.")

    def _require_free(self, wanted: Sequence[Worker]) -> None:
        """Raise LabError if a worker that has to end, for good or to start anew, has tasks that hold at a gate of this lab."""
        scales = {worker.name: worker.at_least is not None for worker in wanted}
        ending = [w["name"] for w in self.installation.workers if scales.get(w["name"]) is not (w.get("at_least") is not None)]
        self._probes = [held for held in self._probes if held.holding]
        for held in self._probes if ending else []:
            busy = timeline.running_on(held.collect())
            if stuck := [f"{name} runs {busy[name]}" for name in ending if busy.get(name)]:
                raise LabError(
                    f"{' and '.join(stuck)} of the tasks that hold at the gate of {held.dag_id}. A worker finishes its tasks before it ends.",
                    "open the gate first: call release() of the probe",
                )

    def probe(self, spec: Mapping[str, Any]) -> Probe:
        """Return a probe to be driven step by step; if a service fails while it runs, its tasks are accounted for in the record."""
        self._probes.append(Probe(self.installation, self.api, parse(spec), self._watcher, self._account, self._count))
        return self._probes[-1]

    def _count(self, dag_id: str, attempts: Sequence[Attempt]) -> None:
        self._tasks[dag_id] = timeline.per_host(attempts)

    def _note_nodes(self) -> None:
        # A worker that leaves is in no installation file any more, and tasks that it ran are still counted.
        self._nodes_of_workers |= {worker["name"]: worker["node"] for worker in self.installation.workers if worker.get("node")}

    @property
    def tasks_per_node(self) -> dict[str, int]:
        """How many task instances of this lab's probes ran on each node so far, every try counted."""
        counts = Counter({node["name"]: 0 for node in self.installation.nodes})
        for hosts in self._tasks.values():
            for host, count in hosts.items():
                counts[self._nodes_of_workers.get(host) or self.installation.node_of(host)] += count
        return dict(counts)

    def _account(self, dag_id: str, error: ProvisionError, attempts: Sequence[Attempt]) -> None:
        self.info(
            f"tasks of {dag_id} when it broke",
            {"error": error.message.splitlines()[0], "states": timeline.states(attempts), "running on": timeline.running_on(attempts)},
        )

    @contextlib.contextmanager
    def throwaway(self, variant: str, changes: Mapping[str, Any], name: str = "experiment") -> Iterator[Bench]:
        """Lend a second Airflow for an experiment that may break it; it is destroyed at the end of the block."""
        wanted = {key: str(value) for key, value in changes.items()}
        progress.report(f"installing a throw-away {variant}")
        with services.throwaway(self.installation.target, variant, wanted, name, progress.report) as installation:
            # An experiment may leave an API server that takes every request and answers none.
            yield Bench(installation, answer_within_s=10)

    # -- checking ------------------------------------------------------------------------------------

    def check_peak(self, name: str, prediction: Prediction, result: ProbeResult) -> Note:
        """Compare a predicted peak with the gate's plateau and the timeline; the verdict goes on record."""
        return self._verdict(checks.check_peak(name, prediction, result.plateau, result.peak))

    def check(self, name: str, predicted: Any, measured: Any, binding: str = "", evidence: dict[str, Any] | None = None) -> Note:
        """Compare two values exactly; the verdict goes on record."""
        return self._verdict(checks.check_exact(name, predicted, measured, binding=binding, evidence=evidence))

    def check_plateau(self, name: str, predicted: Any, measured: Any, *plateaus: Plateau, binding: str = "") -> Note:
        """Compare what was read while gates were closed; the verdict is `inconclusive` unless the count had settled at each of them."""
        return self._verdict(checks.check_plateau(name, predicted, measured, plateaus, binding=binding))

    def check_bound(
        self, name: str, measured: float | None, at_least: float | None = None, at_most: float | None = None, unit: str = ""
    ) -> Note:
        """Check that a number stays within bounds that hold on every machine; the verdict goes on record."""
        return self._verdict(checks.check_bound(name, measured, at_least=at_least, at_most=at_most, unit=unit))

    def exercise(self, name: str, answer: Any, judge: Callable[[Any], Measurement | bool], hint: str) -> Note:
        """Judge an answer; one that is missing or makes `judge` refuse it shows the hint and fails."""
        full_name = f"exercise: {name}"
        try:
            judged = judge(answer) if answer is not None else False
        except LabError as error:
            judged, hint = False, f"{error.message} {error.hint}"
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            judged, hint = False, f"This answer cannot be judged ({error}). {hint}"
        if isinstance(judged, Measurement):
            verdict, why = judged.verdict, judged.why
        else:
            verdict, why = checks.PASS if judged else checks.FAIL, ""
        # An answer that could not be measured is neither right nor wrong.
        self._record(checks.check_exact(full_name, "solved", {checks.PASS: "solved", checks.FAIL: "not yet"}.get(verdict)))
        words = {checks.PASS: "solved.", checks.FAIL: f"not yet. {hint}"}.get(verdict, "not judged; run this cell again.")
        return Note(f"{full_name}: {words} {why}".strip(), verdict)

    def exercise_peak(self, name: str, spec: Any, peak: int, hint: str, binding: str = "") -> Note:
        """Judge a probe that the learner wrote by running it: its peak must be `peak`, capped by the limit `binding`."""

        def judge(answer: Any) -> Measurement:
            prediction = self.predict(answer)
            if binding and prediction.binding_names != (binding,):
                raise LabError(f"The limit that binds is {', '.join(prediction.binding_names) or 'none'}, not {binding}.", hint)
            result = self.run(answer)
            if result.plateau is None:
                raise LabError("The tasks of this probe do not hold at the gate.", hint)
            if result.plateau.settled and not result.plateau.waiting:
                raise LabError("All tasks ran at once and none waited, so that no limit was reached.", hint)
            return checks.check_plateau(name, peak, result.plateau.running, [result.plateau])

        return self.exercise(name, spec, judge, hint)

    def exercise_workers(
        self, name: str, workers: Any, spec: Mapping[str, Any], running: Mapping[str, int], hint: str, largest: int | None = None
    ) -> Note:
        """Judge Celery workers that the learner chose, by running a probe on them: so many must run at once in each queue.

        The workers must be able to run exactly so many, whatever chance does. The probe must have more tasks on every
        queue than that, or nothing would be proven. No worker may have a concurrency above `largest`.
        """

        def judge(answer: Any) -> Measurement:
            listed = workers_from(answer)
            if not listed:
                raise LabError("There is no worker in this answer.", hint)
            most = max(worker.concurrency for worker in listed)
            if largest and most > largest:
                raise LabError(f"One worker runs {most} tasks at once; {largest} are allowed.", hint)
            for queue, wanted in running.items():
                # Whatever a worker may take is in its reach, also if chance does not let it happen this time.
                could = sum(worker.concurrency for worker in listed if queue in worker.queues)
                if could != wanted:
                    raise LabError(f"These workers could run {could} tasks of queue {queue} at once; {wanted} are wanted.", hint)
            self.set_workers(answer)
            with exclusive(lab_home(), "a notebook"), self.probe(spec) as asked:
                asked.deliver()
                asked.trigger()
                plateau, attempts = asked.hold(), asked.collect()
                asked.release()
                asked.wait()
            seen = {queue: sum(a.state == "running" for a in attempts if a.queue == queue) for queue in running}
            if plateau.settled and not plateau.waiting:
                raise LabError("All tasks ran at once and none waited, so that no limit was reached.", hint)
            return checks.check_plateau(name, dict(running), seen, [plateau])

        return self.exercise(name, workers, judge, hint)

    def exercise_quota(self, name: str, answer: Any, spec: Mapping[str, Any], peak: int, hint: str) -> Note:
        """Judge a quota that the learner chose, with the setting for what it refuses, by running a probe on it.

        The answer has `pods` and `task_publish_max_retries`; the quota must hold the tasks back, `peak` of them must run
        at once, and all must succeed.
        """

        def judge(given: Any) -> Measurement:
            pods, retries = int(given["pods"]), int(given["task_publish_max_retries"])
            self.quota(pods)
            self.change_settings({"kubernetes_executor.task_publish_max_retries": retries})
            prediction, result = self.predict(spec), self.run(spec)
            self.remove_quota()
            ended = timeline.states(result.attempts)
            if set(ended) != {"success"}:
                raise LabError(f"The tasks ended like this: {ended}.", hint)
            if prediction.binding_names != ("quota",):
                raise LabError(f"What held the tasks back was {prediction.binding}.", hint)
            return checks.check_plateau(name, peak, result.plateau.running, [result.plateau])

        return self.exercise(name, answer, judge, hint)

    def timing(self, name: str, samples: Sequence[float], unit: str = "s") -> None:
        """Record raw samples; they are compared only with a baseline from the same machine."""
        self._record(checks.timing(name, samples, unit))

    def info(self, name: str, value: Any) -> None:
        """Record a fact that is never compared."""
        self._record(checks.info(name, value))

    def _verdict(self, measurement: Measurement) -> Note:
        self._record(measurement)
        return verdict_note(measurement)

    def _record(self, measurement: Measurement) -> None:
        # Running a cell again replaces what it recorded before.
        self._measurements = [m for m in self._measurements if m.name != measurement.name] + [measurement]
        progress.report(f"checked {measurement.name}" + (f": {measurement.verdict}" if measurement.verdict else ""))
        self._save(complete=False)

    # -- showing -------------------------------------------------------------------------------------

    def show(self, figure: Figure, see: str) -> None:
        """Show a plot with a sentence that says what to see in it; it also goes into the report."""
        text, title = plots.svg(figure), figure.axes[0].get_title()
        if self._result_path:
            self._plots_drawn += 1
            file = self._result_path.with_suffix("") / f"plot-{self._plots_drawn:02d}.svg"
            file.parent.mkdir(parents=True, exist_ok=True)
            # The report writes the title as text above the plot.
            file.write_text(plots.svg(figure, titled=False))
            self._plots = [p for p in self._plots if p["title"] != title]
            self._plots.append({"title": title, "see": see, "file": str(file.relative_to(self._result_path.parent))})
            self._save(complete=False)
        display(SVG(text), Note(see))

    def finish(self) -> Table:
        """Put pools and settings back as they were, complete the result record, and return the table of verdicts.

        What the lab made on a cluster is removed, too.
        """
        probe.reset(self.installation, self.api)
        sandbox.reset(self.installation)
        # First, or what follows would deliver DAGs in the way that goes.
        if (self.installation.kubernetes.get("dags") or "") != self._dags_before:
            self.distribute_dags(self._dags_before)
        if self.installation.changes != self._changes_before:
            self.change_settings(self._changes_before)
        if self.installation.workers != self._workers_before:
            self.set_workers(self._workers_before)
        self._save(complete=True)
        return summary(self._measurements)

    def _save(self, *, complete: bool) -> None:
        if self._result_path:
            document = results.record(
                self.name, self.installation, self._parameters, self._started, self._measurements,
                complete=complete, plots=self._plots, title=self.title, tasks_per_node=self.tasks_per_node,
            )  # fmt: skip
            results.write(self._result_path, document)


def workers_from(listed: Any) -> tuple[Worker, ...]:
    """Return the workers that a list of dicts describes; raises LabError that names what is wrong in it."""
    if not isinstance(listed, list | tuple) or not all(isinstance(entry, Mapping) for entry in listed):
        raise LabError(f"{listed!r} is not a list of workers.", 'write [{"name": "worker-1", "concurrency": 2, "queues": ["default"]}]')
    return check_together(listed_workers(listed))


@dataclass
class Caught:
    """The text of an error that was provoked on purpose; empty until it came."""

    text: str = ""


@contextlib.contextmanager
def expect_error(*kinds: type[Exception]) -> Iterator[Caught]:
    """Show an error that the lab provokes on purpose, and lend its text; raises AssertionError if it does not come."""
    caught, expected = Caught(), kinds or (LabError, ProvisionError)
    try:
        yield caught
    except expected as error:
        caught.text = str(error)
        display(Note(caught.text))
    else:
        raise AssertionError("an error was expected and did not come")


@contextlib.contextmanager
def may_fail() -> Iterator[Caught]:
    """Go on after an error of an experiment that may break its Airflow, and lend the text of what broke."""
    caught = Caught()
    try:
        yield caught
    except (LabError, ProvisionError) as error:
        caught.text = str(error)


__all__ = ["Bench", "Lab", "Note", "expect_error", "may_fail", "table"]

"""One probe on every variant: peak, start latency, makespan, CPU and memory, measured the same way and shown side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from labs import checks, limits, plots, probe, results, services
from labs.airflow_api import AirflowApi
from labs.checks import Measurement
from labs.errors import UsageError
from labs.executors import executors
from labs.installation import Installation
from labs.spec import parse
from labs.timeline import makespan
from provision.variants import Variant

PREFIX = "side-by-side-"
# More than any variant runs at once, and no limit of the DAG's own.
HELD = {"name": "held", "tasks": 20, "max_active_tasks": 20}
# Short tasks, so that what is measured is what the executor adds.
TIMED = {"name": "timed", "tasks": 16, "max_active_tasks": 16, "kind": "sleep", "seconds": 1}
PEAK, LATENCY, MAKESPAN = "peak", "start latency", "makespan"
CPU, IDLE, EACH = "CPU per task", "memory, idle", "memory per running task"
MIB = 2**20


@dataclass(frozen=True)
class Column:
    """What one variant has to show; None where it was not measured."""

    variant: str
    verdict: str
    peak: int | None
    latency_s: float | None
    makespan_s: float | None
    cpu_s: float | None
    idle_mib: float | None
    task_mib: float | None


def require_one_executor(variant: Variant, target: str) -> None:
    """Raise UsageError for a variant with several executors: the probe names none, so the first would be shown for all of them."""
    listed = executors(variant.effective_settings({}))
    if len(listed) > 1:
        where = target if target in variant.targets else variant.targets[0]
        raise UsageError(
            f"The variant {variant.name} has {len(listed)} executors, and the probe would run on one of them only, the {listed[0]}.",
            f"labs run 11 --variant {variant.name}{'' if where == 'local' else f' --target {where}'}, which measures each of them",
        )


def measure(installation: Installation, report: Callable[[str], None]) -> list[Measurement]:
    """Return the measurements of the two probes on one installation."""
    api, watcher = AirflowApi(installation), services.Watcher(installation)
    held, timed = parse(HELD), parse(TIMED)
    prediction = limits.predict(held, installation.settings, api.pools(), installation.workers, services.pod_room(installation))
    idle = services.memory(installation)
    report("tasks that hold: peak and memory")
    with probe.Probe(installation, api, held, watcher) as running:
        running.deliver()
        running.trigger()
        plateau = running.hold()
        full = services.memory(installation)
        running.release()
        result = running.result(plateau, running.wait())
    report("short tasks: latency, makespan and CPU")
    before = services.cpu_seconds(installation)
    with probe.Probe(installation, api, timed, watcher) as running:
        short = probe.run_probe(running)
    used = services.cpu_seconds(installation) - before
    return [
        checks.check_peak(PEAK, prediction, plateau, result.peak),
        checks.timing(LATENCY, [a.start - a.queued for a in short.attempts if a.start is not None and a.queued is not None]),
        checks.timing(MAKESPAN, [makespan(short.attempts) or 0.0]),
        checks.timing(CPU, [used / timed.task_count]),
        checks.timing(IDLE, [idle / MIB], "MiB"),
        checks.timing(EACH, [(full - idle) / plateau.running / MIB] if plateau.running else [], "MiB"),
    ]


def run_all(
    variants: Sequence[str], target: str, folder: Path, report: Callable[[str], None], ended: Callable[[Mapping[str, Any]], None]
) -> list[dict[str, Any]]:
    """Return the record of each variant, installed one after another, written to `folder` as soon as it is measured."""
    found = []
    for variant in variants:
        started = datetime.now(UTC)
        installation = services.ensure(target, variant, {}, report)
        rows = measure(installation, lambda text, variant=variant: report(f"{variant}: {text}"))
        title = f"One probe on every variant: {variant}"
        document = results.record(PREFIX + variant, installation, {"held": HELD["tasks"], "timed": TIMED["tasks"]}, started, rows,
                                  complete=True, title=title)  # fmt: skip
        results.write(folder / f"{PREFIX}{variant}.json", document)
        found.append(document)
        ended(document)
    return found


def columns(records: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return one column for each record of this kind, in the order in which they were measured; other records are left out."""
    ours = sorted((r for r in records if r["lab"].startswith(PREFIX)), key=lambda r: r["started"])
    return [_column(record) for record in ours]


def _column(record: Mapping[str, Any]) -> Column:
    rows = {row["name"]: row for row in record["measurements"]}

    def middle(name: str) -> float | None:
        samples = rows.get(name, {}).get("samples") or ()
        return median(samples) if samples else None

    return Column(
        variant=record["variant"],
        verdict=rows.get(PEAK, {}).get("verdict") or checks.INCONCLUSIVE,
        peak=rows.get(PEAK, {}).get("measured"),
        latency_s=middle(LATENCY),
        makespan_s=middle(MAKESPAN),
        cpu_s=middle(CPU),
        idle_mib=middle(IDLE),
        task_mib=middle(EACH),
    )


def picture(shown: Sequence[Column]) -> str:
    """Return the columns as one SVG: a panel for each measure, a bar for each variant."""
    panels = {
        "tasks at once": ([c.peak for c in shown], ""),
        "start latency": ([c.latency_s for c in shown], "s"),
        "makespan": ([c.makespan_s for c in shown], "s"),
        "CPU per task": ([c.cpu_s for c in shown], "s"),
        "memory per task": ([c.task_mib for c in shown], "MiB"),
    }
    return plots.svg(plots.panels_plot([c.variant for c in shown], panels, "One probe on every variant"), titled=False)

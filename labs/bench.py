"""How fast our variant is against Airflow as shipped, measured side by side in one run; ratios, never absolute claims."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from labs import first_run, progress, timeline
from labs.airflow_api import AirflowApi
from labs.bench_rows import AIMS, BenchRow, overhead_row, overheads
from labs.errors import LabError, UsageError
from labs.installation import Installation
from labs.probe import Probe
from labs.services import Report, Watcher
from labs.spec import Spec, parse
from labs.stock import StockAirflow
from labs.timeline import Attempt
from provision.home import LabHome, lab_home
from provision.local.processes import cpu_seconds
from provision.target import open_target

EXPERIMENTS = tuple(AIMS)
CHAIN = {"name": "chain", "kind": "noop", "tasks": 20, "chain": True}
MAPPED = {"name": "mapped", "kind": "noop", "tasks": 200, "mapped": True}
SLEEPS = {"name": "sleeps", "kind": "sleep", "seconds": 5, "tasks": 64, "max_active_tasks": 64}
OBSERVED = {"name": "observed", "kind": "noop", "tasks": 100, "mapped": True}
# The first task of each worker process, and the first request of each kind, cost more than all others.
WARM_UP = {"name": "warm", "kind": "noop", "tasks": 64, "mapped": True}
PARALLELISM = 8
IDEAL_S = SLEEPS["tasks"] * SLEEPS["seconds"] / PARALLELISM
ROUNDS, PAIRS, IDLE_S, SETTLE_S = 3, 4, 10.0, 1.5


@dataclass(frozen=True)
class Arm:
    """One of the two Airflows being compared."""

    name: str
    home: LabHome
    installation: Installation
    api: AirflowApi


@dataclass(frozen=True)
class Work:
    """What one probe did: its attempts, and the CPU seconds and wall seconds of the whole installation meanwhile.

    `watching_s` are the CPU seconds of the process that watched it.
    """

    attempts: tuple[Attempt, ...]
    cpu_s: float
    wall_s: float
    watching_s: float = 0.0

    @property
    def makespan_s(self) -> float:
        return timeline.makespan(self.attempts) or 0.0

    @property
    def tasks_per_s(self) -> float:
        return len(self.attempts) / self.makespan_s


def chosen_experiments(only: Sequence[str] | None) -> tuple[str, ...]:
    """Return the experiments to run, in their order; raises UsageError for a name that is none."""
    for name in only or ():
        if name not in EXPERIMENTS:
            raise UsageError(f"Unknown bench row {name!r}.", f"choose from: {', '.join(EXPERIMENTS)}")
    return tuple(name for name in EXPERIMENTS if not only or name in only)


def run_bench(only: Sequence[str] | None, report: Report) -> list[BenchRow]:
    """Return one row or two per chosen experiment; everything that was installed for it is destroyed, also on Ctrl-C."""
    chosen = chosen_experiments(only)
    rows: list[BenchRow] = []
    if "first-run" in chosen:
        rows.append(_first_run(report))
    if set(chosen) - {"first-run"}:
        with _ours(report) as ours:
            if set(chosen) - {"first-run", "observing"}:
                rows += _compared(chosen, ours, report)
            if "observing" in chosen:
                rows += _observing(ours, report)
    return sorted(rows, key=lambda row: EXPERIMENTS.index(row.key))


def _first_run(report: Report) -> BenchRow:
    samples: dict[str, list[float]] = {"ours": [], "stock": []}
    for number in range(ROUNDS):
        for name in ("ours", "stock") if number % 2 == 0 else ("stock", "ours"):
            samples[name].append(first_run.ours(report) if name == "ours" else first_run.stock(report))
    ours, stock = tuple(samples["ours"]), tuple(samples["stock"])
    return BenchRow("first-run", "fresh checkout to first finished DAG run", "s", ours, stock, note="package caches as they were")


def _throwaway(name: str) -> LabHome:
    # Named by process, so that two benches cannot take each other's away; `fab destroy` finds all of them.
    return lab_home().throwaway(f"bench-{os.getpid()}-{name}")


@contextlib.contextmanager
def _ours(report: Report) -> Iterator[Arm]:
    home = _throwaway("ours")
    place = open_target("local", home)
    try:
        place.install("postgres", {}, lambda text: report(f"ours: {text}"))
        installation = Installation(place.installed())
        arm = Arm("ours", home, installation, AirflowApi(installation))
        run_work(arm, WARM_UP, report)
        yield arm
    finally:
        report("removing our throw-away installation")
        place.destroy()


def _compared(chosen: Sequence[str], ours: Arm, report: Report) -> list[BenchRow]:
    rows: list[BenchRow] = []
    stock = StockAirflow(_throwaway("stock"))
    try:
        if {"hop", "throughput", "cpu"} & set(chosen):
            arms = (ours, _started(stock, {}, report))
            rows += _hop(arms, report) if "hop" in chosen else []
            if {"throughput", "cpu"} & set(chosen):
                rows += [row for row in _throughput(arms, report) if row.key in chosen]
        if "makespan" in chosen:
            rows.append(_makespan((ours, _started(stock, {"core.parallelism": str(PARALLELISM)}, report)), report))
    finally:
        report("removing the stock installation")
        stock.destroy()
    return rows


def _started(stock: StockAirflow, settings: dict[str, str], report: Report) -> Arm:
    installation = stock.start(settings, lambda text: report(f"stock: {text}"))
    arm = Arm("stock", stock.home, installation, AirflowApi(installation))
    run_work(arm, WARM_UP, report)
    return arm


def _hop(arms: tuple[Arm, Arm], report: Report) -> list[BenchRow]:
    gaps = [[g for work in works for g in timeline.chain_gaps(work.attempts)] for works in _in_turn(arms, CHAIN, report)]
    ours, stock = (tuple(g) for g in gaps)
    title = "end of a task to start of the next, "
    return [
        BenchRow("hop", title + "median", "s", ours, stock),
        BenchRow("hop", title + "95 of 100", "s", ours, stock, quantile=0.95, judged=False),
    ]


def _throughput(arms: tuple[Arm, Arm], report: Report) -> list[BenchRow]:
    idle = [_idle_rate(arm, report) for arm in arms]
    works = _in_turn(arms, MAPPED, report)
    rates = [tuple(work.tasks_per_s for work in done) for done in works]
    costs = [tuple((work.cpu_s - rate * work.wall_s) / len(work.attempts) for work in done) for done, rate in zip(works, idle, strict=True)]
    return [
        BenchRow("throughput", f"{MAPPED['tasks']} mapped no-op tasks", "tasks/s", *rates),
        BenchRow("cpu", "CPU time per no-op task, idle time deducted", "s", *costs),
    ]


def _makespan(arms: tuple[Arm, Arm], report: Report) -> BenchRow:
    ours, stock = (tuple(IDEAL_S / work.makespan_s for work in works) for works in _in_turn(arms, SLEEPS, report, rounds=1))
    title = f"{SLEEPS['tasks']} sleeps of {SLEEPS['seconds']} s at parallelism {PARALLELISM}: {IDEAL_S:.0f} s / makespan"
    return BenchRow("makespan", title, "", ours, stock)


def _observing(arm: Arm, report: Report) -> list[BenchRow]:
    idle = _idle_rate(arm, report)
    watched, unwatched = [], []
    for pair in range(PAIRS):
        for observe in (True, False) if pair % 2 == 0 else (False, True):
            # Unwatched, nobody asks Airflow anything until the work must be done.
            rest = 0.0 if observe else 2 + 1.5 * max([w.makespan_s for w in (*watched, *unwatched)], default=30.0)
            (watched if observe else unwatched).append(run_work(arm, OBSERVED, report, rest_s=rest))
    makespans, costs = (
        overheads(*([figure(w) for w in works] for works in (watched, unwatched)))
        for figure in (lambda w: w.makespan_s, lambda w: w.cpu_s + w.watching_s - idle * w.wall_s)
    )
    return [
        overhead_row("observing", "longer makespan because progress is watched", makespans),
        overhead_row("observing", "more CPU time because progress is watched", costs),
    ]


def _in_turn(arms: tuple[Arm, Arm], spec: dict, report: Report, rounds: int = ROUNDS) -> tuple[list[Work], list[Work]]:
    done: dict[str, list[Work]] = {arm.name: [] for arm in arms}
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else arms[::-1]:
            done[arm.name].append(run_work(arm, spec, report))
    return done[arms[0].name], done[arms[1].name]


def run_work(arm: Arm, spec: dict, report: Report, rest_s: float = 0.0) -> Work:
    """Return what a probe did on one Airflow; with `rest_s` its progress is not looked at for that many seconds."""
    wanted: Spec = parse(spec)
    report(f"{arm.name}: {wanted.task_count} {wanted.groups[0].kind} tasks ({wanted.name}{', unwatched' if rest_s else ''})")
    with _progress_file(), Probe(arm.installation, arm.api, wanted, Watcher(arm.installation)) as probe:
        probe.deliver()
        cpu, own, begun = cpu_seconds(arm.home), time.process_time(), time.monotonic()
        probe.trigger()
        time.sleep(rest_s)
        probe.wait()
        # Slots are given back, and their CPU time is counted, a moment after the run has ended.
        time.sleep(SETTLE_S)
        used, watching, wall = cpu_seconds(arm.home) - cpu, time.process_time() - own, time.monotonic() - begun
        attempts = probe.collect()
    if timeline.states(attempts) != {"success": wanted.task_count}:
        raise LabError(f"Not every task of {wanted.name} succeeded on {arm.name}: {timeline.states(attempts)}.", "run labs bench again")
    return Work(attempts, used, wall, watching)


@contextlib.contextmanager
def _progress_file() -> Iterator[None]:
    """Watch as a lab is watched: every change of progress is written to a file."""
    before = os.environ.get(progress.PROGRESS_VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[progress.PROGRESS_VARIABLE] = str(Path(folder) / "progress")
        try:
            yield
        finally:
            os.environ.pop(progress.PROGRESS_VARIABLE)
            if before:
                os.environ[progress.PROGRESS_VARIABLE] = before


def _idle_rate(arm: Arm, report: Report) -> float:
    report(f"{arm.name}: measuring what it uses when idle")
    rates = []
    for _ in range(2):
        cpu, begun = cpu_seconds(arm.home), time.monotonic()
        time.sleep(IDLE_S / 2)
        rates.append((cpu_seconds(arm.home) - cpu) / (time.monotonic() - begun))
    return statistics.mean(rates)

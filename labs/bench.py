"""How fast our variants are against Airflow as shipped, measured side by side in one run; ratios, never absolute claims."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median

from labs import bench_nodes, first_run, timeline
from labs.airflow_api import AirflowApi
from labs.bench_arms import ROUNDS, Arm, idle_rate, in_turn, run_work
from labs.bench_rows import AIMS, BenchRow, overhead_row, overheads, throughput_note
from labs.errors import UsageError
from labs.installation import Installation
from labs.services import Report
from labs.stock import COMPOSE, STANDALONE, StockAirflow
from provision.home import LabHome, lab_home
from provision.target import open_target
from provision.variants import wanted

EXPERIMENTS = tuple(AIMS)
CELERY, NODES = "celery", "nodes"
CHAIN = {"name": "chain", "kind": "noop", "tasks": 20, "chain": True}
MAPPED = {"name": "mapped", "kind": "noop", "tasks": 200, "mapped": True}
SLEEPS = {"name": "sleeps", "kind": "sleep", "seconds": 5, "tasks": 64, "max_active_tasks": 64}
OBSERVED = {"name": "observed", "kind": "noop", "tasks": 100, "mapped": True}
# The first task of each worker process, and the first request of each kind, cost more than all others.
WARM_UP = {"name": "warm", "kind": "noop", "tasks": 64, "mapped": True}
PARALLELISM = 8
IDEAL_S = SLEEPS["tasks"] * SLEEPS["seconds"] / PARALLELISM
PAIRS = 4


def chosen_experiments(only: Sequence[str] | None) -> tuple[str, ...]:
    """Return the experiments to run, in their order; `celery` and `nodes` stand for all of their own.

    Those on nodes make machines, and run only if they are named. Raises UsageError for a name that is none.
    """
    groups = {group: {name for name in EXPERIMENTS if name.startswith(f"{group}-")} for group in (CELERY, NODES)}
    for name in only or ():
        if name not in (*EXPERIMENTS, *groups):
            raise UsageError(f"Unknown bench row {name!r}.", f"choose from: {', '.join([*EXPERIMENTS, *groups])}")
    picked = {each for name in only for each in groups.get(name, {name})} if only else set(EXPERIMENTS) - groups[NODES]
    return tuple(name for name in EXPERIMENTS if name in picked)


def run_bench(only: Sequence[str] | None, report: Report) -> list[BenchRow]:
    """Return one row or two per chosen experiment; everything that was installed for it is destroyed, also on Ctrl-C."""
    chosen = set(chosen_experiments(only))
    celery = {name for name in chosen if name.startswith(f"{CELERY}-")}
    nodes = {name for name in chosen if name.startswith(f"{NODES}-")}
    rows: list[BenchRow] = []
    if "first-run" in chosen:
        rows.append(_first_run(report))
    if chosen - {"first-run"} - celery - nodes:
        with _ours("postgres", report) as ours:
            if chosen & {"hop", "throughput", "cpu", "makespan"}:
                rows += _against_standalone(chosen, ours, report)
            if "observing" in chosen:
                rows += _observing(ours, report)
    if celery:
        with _ours("celery", report) as ours, _stock(StockAirflow(_throwaway("stock"), COMPOSE), report) as stock:
            rows += _side_by_side((ours, _started(stock, {}, report)), celery, report, f"{CELERY}-")
    if nodes:
        rows += bench_nodes.measure(nodes, report)
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
def _ours(variant: str, report: Report) -> Iterator[Arm]:
    home = _throwaway("ours")
    place = open_target("local", home)
    try:
        place.install(wanted(variant), lambda text: report(f"ours: {text}"))
        yield _warm("ours", home, Installation(place.installed()), report)
    finally:
        report("removing our throw-away installation")
        place.destroy()


@contextlib.contextmanager
def _stock(stock: StockAirflow, report: Report) -> Iterator[StockAirflow]:
    try:
        yield stock
    finally:
        report("removing the stock installation")
        stock.destroy()


def _started(stock: StockAirflow, settings: Mapping[str, str], report: Report) -> Arm:
    installation = stock.start(settings, lambda text: report(f"stock: {text}"))
    return _warm("stock", stock.home, installation, report)


def _warm(name: str, home: LabHome, installation: Installation, report: Report) -> Arm:
    arm = Arm(name, home, installation, AirflowApi(installation))
    run_work(arm, WARM_UP, report)
    return arm


def _against_standalone(chosen: set[str], ours: Arm, report: Report) -> list[BenchRow]:
    rows: list[BenchRow] = []
    with _stock(StockAirflow(_throwaway("stock"), STANDALONE), report) as stock:
        if chosen & {"hop", "throughput", "cpu"}:
            rows += _side_by_side((ours, _started(stock, {}, report)), chosen, report)
        if "makespan" in chosen:
            rows.append(_makespan((ours, _started(stock, {"core.parallelism": str(PARALLELISM)}, report)), report))
    return rows


def _side_by_side(arms: tuple[Arm, Arm], chosen: set[str], report: Report, prefix: str = "") -> list[BenchRow]:
    rows = _hop(arms, report, f"{prefix}hop") if f"{prefix}hop" in chosen else []
    if chosen & {f"{prefix}throughput", f"{prefix}cpu"}:
        rows += [row for row in _throughput(arms, report, prefix) if row.key in chosen]
    return rows


def _hop(arms: tuple[Arm, Arm], report: Report, key: str) -> list[BenchRow]:
    gaps = [[g for work in works for g in timeline.chain_gaps(work.attempts)] for works in in_turn(arms, CHAIN, report)]
    ours, stock = (tuple(g) for g in gaps)
    title = "end of a task to start of the next, "
    return [
        BenchRow(key, title + "median", "s", ours, stock),
        BenchRow(key, title + "95 of 100", "s", ours, stock, quantile=0.95, judged=False),
    ]


def _throughput(arms: tuple[Arm, Arm], report: Report, prefix: str) -> list[BenchRow]:
    idle = [idle_rate(arm, report) for arm in arms]
    works = in_turn(arms, MAPPED, report)
    rates = [tuple(work.tasks_per_s for work in done) for done in works]
    costs = [tuple((work.cpu_s - rate * work.wall_s) / len(work.attempts) for work in done) for done, rate in zip(works, idle, strict=True)]
    busy = [median(work.cpu_s / work.wall_s for work in done) for done in works]
    row = BenchRow(f"{prefix}throughput", f"{MAPPED['tasks']} mapped no-op tasks", "tasks/s", *rates)
    return [
        replace(row, note=throughput_note(row, (busy[0], busy[1]), median(costs[0]), os.cpu_count() or 1)),
        BenchRow(f"{prefix}cpu", "CPU time per no-op task, idle time deducted", "s", *costs),
    ]


def _makespan(arms: tuple[Arm, Arm], report: Report) -> BenchRow:
    ours, stock = (tuple(IDEAL_S / work.makespan_s for work in works) for works in in_turn(arms, SLEEPS, report, rounds=1))
    title = f"{SLEEPS['tasks']} sleeps of {SLEEPS['seconds']} s at parallelism {PARALLELISM}: {IDEAL_S:.0f} s / makespan"
    return BenchRow("makespan", title, "", ours, stock)


def _observing(arm: Arm, report: Report) -> list[BenchRow]:
    idle = idle_rate(arm, report)
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

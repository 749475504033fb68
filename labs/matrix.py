"""The exactness matrix: random combinations of limits and probe shapes, each predicted and measured."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labs import checks, limits, probe, results, services
from labs.airflow_api import AirflowApi
from labs.checks import Measurement
from labs.errors import LabError
from labs.executors import CELERY, KUBERNETES, executors
from labs.installation import Installation
from labs.pod_limits import PodRoom
from labs.spec import Spec, as_dict, parse
from labs.worker_limits import DEFAULT_QUEUE
from provision.workers import Worker

POOL = "lab_matrix"
# Each parallelism costs a restart of the scheduler, so a matrix uses a few of them, several cells each.
PARALLELISM_CHOICES = (1, 2, 3, 4, 5, 6, 8)
CELLS_PER_PARALLELISM = 6
# More than any cell needs: the nodes' own room is what it is, and is part of every prediction.
MOST_PODS = 100
# Tasks beyond the predicted peak, so that some wait whatever binds.
SURPLUS = 3


@dataclass(frozen=True)
class Cell:
    """One combination: a setting, a pool and a probe."""

    number: int
    parallelism: int
    slots: int
    spec: Spec
    workers: tuple[Worker, ...] = ()
    quota: int | None = None
    in_pods: bool = False

    @property
    def settings(self) -> dict[str, str]:
        """The changes this cell makes to its variant."""
        # What a quota refuses is tried again: the peak is compared, not what fails.
        patient = {"kubernetes_executor.task_publish_max_retries": "-1"} if self.in_pods else {}
        return {"core.parallelism": str(self.parallelism), **patient}

    def words(self) -> dict[str, Any]:
        """Return what the cell varies, for tables and records."""
        return {
            "parallelism": self.parallelism,
            "pool": self.slots,
            **({"workers": " ".join(str(worker) for worker in self.workers)} if self.workers else {}),
            **({} if self.quota is None else {"quota": self.quota}),
            **{k: v for k, v in as_dict(self.spec).items() if k not in ("name", "pool", "poll_seconds")},
        }


def draw_cells(seed: int, count: int, variant_settings: dict[str, str]) -> list[Cell]:
    """Return `count` cells, the same for the same seed, grouped by parallelism and workers; every one can be saturated."""
    rng = random.Random(seed)
    groups = max(1, -(-count // CELLS_PER_PARALLELISM))
    values = sorted(rng.sample(PARALLELISM_CHOICES, min(groups, len(PARALLELISM_CHOICES))))
    celery = CELERY in executors(variant_settings)
    # Beside pods, a worker must not be called like a node.
    prefix = "worker" if len(executors(variant_settings)) == 1 else "celery"
    fleets = [_draw_workers(rng, prefix) if celery else () for _ in values]
    chosen = [number * len(values) // count for number in range(count)]
    cells = [_draw(rng, number, values[i], fleets[i], variant_settings) for number, i in enumerate(chosen)]
    return [replace(cell, number=number) for number, cell in enumerate(cells, 1)]


def _draw_workers(rng: random.Random, prefix: str) -> tuple[Worker, ...]:
    """Return one to three workers on one queue, or on two that they share in part or not at all."""
    served = rng.choice((((DEFAULT_QUEUE,),) * 3, (("light",), ("heavy",), ("light",)), (("light",), ("light", "heavy"), ("heavy",))))
    count = rng.choice((1, 2, 3)) if served[0] == (DEFAULT_QUEUE,) else 3
    return tuple(Worker(f"{prefix}-{n + 1}", rng.choice((1, 2, 3)), served[n]) for n in range(count))


def _draw(rng: random.Random, number: int, parallelism: int, workers: tuple[Worker, ...], variant_settings: dict[str, str]) -> Cell:
    names = executors(variant_settings)
    in_pods = KUBERNETES in names
    while True:
        quota = rng.choice((None, None, 1, 2, 3, 5)) if in_pods else None
        # Runs become ready one by one; that must not decide which executor's tasks come first.
        runs = 1 if len(names) > 1 else rng.choice((1, 1, 1, 2, 3))
        # The executor whose tasks the scheduler sees first comes first.
        order = rng.sample(names, len(names)) if len(names) > 1 else []
        group: dict[str, Any] = {"pool": POOL, "pool_slots": rng.choice((1, 1, 1, 2, 3)), "mapped": rng.random() < 0.4}
        dag = {
            "name": "matrix",
            "runs": runs,
            "max_active_tasks": rng.choice((None, 1, 2, 3, 5, 8)),
            "max_active_runs": rng.choice((None, 1, 2)) if runs > 1 else None,
        }
        if group["mapped"]:
            group["max_active_tis_per_dag"] = rng.choice((None, None, 2, 4))
            group["max_active_tis_per_dagrun"] = rng.choice((None, None, 1, 3))
        slots = rng.choice((2, 3, 4, 6, 9, 12, 40))
        settings = {**variant_settings, **Cell(0, parallelism, slots, parse({}), in_pods=in_pods).settings}
        room = PodRoom({"every node": MOST_PODS}, quota) if in_pods else None
        listed = [worker.document() for worker in workers]
        # Enough tasks in every run that some wait: as many as could run without the probe's own end, and some more.
        try:
            most = limits.predict(_probe(dag, group, workers, order, 40), settings, {POOL: slots}, listed, room).peak
            spec = _probe(dag, group, workers, order, most + SURPLUS)
            limits.predict(spec, settings, {POOL: slots}, listed, room)
        except LabError:
            # Workers that share a queue, tasks without an order: chance would decide.
            continue
        if not most:
            # A task that wants more slots than its pool has waits for ever.
            continue
        return Cell(number, parallelism, slots, spec, workers, quota, in_pods)


def _probe(dag: dict[str, Any], group: dict[str, Any], workers: tuple[Worker, ...], order: list[str], tasks: int) -> Spec:
    queues = sorted({queue for worker in workers for queue in worker.queues} - {DEFAULT_QUEUE})
    if order:
        groups = []
        for place, executor in enumerate(order):
            named = {**group, "executor": executor, "priority": len(order) - place, "tasks": tasks}
            of_celery = [{"name": f"celery-{queue}", "queue": queue} for queue in queues] if executor == CELERY else []
            groups += [{**named, **own} for own in of_celery or [{"name": executor.removesuffix("Executor").lower()}]]
        return parse({**dag, "groups": groups})
    if not queues:
        return parse({**dag, **group, "tasks": tasks})
    return parse({**dag, "groups": [{**group, "name": queue, "queue": queue, "tasks": tasks} for queue in queues]})


def measure_cell(installation: Installation, cell: Cell) -> Measurement:
    """Return the verdict on one cell, measured on an installation that has the cell's settings."""
    api = AirflowApi(installation)
    api.set_pool(POOL, cell.slots, probe.POOL_NOTE)
    if cell.in_pods:
        services.set_quota(installation, cell.quota)
    prediction = limits.predict(cell.spec, installation.settings, api.pools(), installation.workers, services.pod_room(installation))
    with probe.Probe(installation, api, cell.spec, services.Watcher(installation)) as running:
        result = probe.run_probe(running)
    return checks.check_peak(f"cell {cell.number:02d}: {_short(cell.words())}", prediction, result.plateau, result.peak)


def run_matrix(installation: Installation, cells: list[Cell], seed: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Return the result record of a matrix, written to `folder`/matrix.json after every cell.

    The installation's own settings are put back at the end, also after an interruption.
    """
    started, measured, before, workers_before = datetime.now(UTC), [], installation.changes, installation.workers
    parameters = {"seed": seed, "cells": len(cells)}
    try:
        for cell in cells:
            report(f"cell {cell.number} of {len(cells)}: {_short(cell.words())}")
            if installation.changes != cell.settings:
                installation = services.change_settings(installation, cell.settings, report)
            if cell.workers and not _has_workers(installation, cell.workers):
                installation = services.set_workers(installation, [worker.document() for worker in cell.workers], report)
            measured.append(measure_cell(installation, cell))
            report(f"checked {measured[-1].name}: {measured[-1].verdict}")
            _write(installation, parameters, started, measured, folder, complete=len(measured) == len(cells))
    finally:
        try:
            installation = services.change_settings(installation, before, report)
            if workers_before != installation.workers:
                services.set_workers(installation, workers_before, report)
        finally:
            services.set_quota(installation, None)
            AirflowApi(installation).delete_pool(POOL)
    return results.read(folder / "matrix.json")


def _has_workers(installation: Installation, workers: tuple[Worker, ...]) -> bool:
    return [{k: v for k, v in entry.items() if k != "node"} for entry in installation.workers] == [w.document() for w in workers]


def _write(
    installation: Installation, parameters: dict, started: datetime, rows: list[Measurement], folder: Path, *, complete: bool
) -> None:
    record = results.record(
        "matrix", installation, parameters, started, rows, complete=complete, title="Exactness matrix: limits combined at random"
    )
    results.write(folder / "matrix.json", record)


def _short(words: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in words.items())

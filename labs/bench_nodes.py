"""How long the three nodes take: installed against one node, again with nothing to do, switched, and from nothing to a task."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from labs.airflow_api import AirflowApi
from labs.bench_rows import BenchRow
from labs.installation import Installation
from labs.services import Report
from labs.stock import run_smoke
from provision.address_range import free_range
from provision.home import LabHome, lab_home
from provision.machines import Machines
from provision.nodes.target import NodesTarget, nodes_home
from provision.topology import CLUSTER_VARIABLE, NETWORK_VARIABLE, TABLE, read_cluster
from provision.variants import wanted

AGAIN, SWITCHES = 3, 2


def measure(chosen: set[str], report: Report) -> list[BenchRow]:
    """Return the rows of `chosen`; the machines are the bench's own, in a free range, and are destroyed, also on Ctrl-C."""
    rows: list[BenchRow] = []
    one = _one_node(report) if "nodes-install" in chosen else None
    filled = any((lab_home().root / "wheelhouse").glob("*/complete"))
    with _machines("three", {}, report) as target:
        begun = time.monotonic()
        target.machines.up(report=lambda text: report(f"three nodes: {text}"))
        up = time.monotonic() - begun
        installing = _install(target, "celery", report)
        run_smoke(AirflowApi(Installation(target.installed())))
        cold = time.monotonic() - begun
        if one is not None:
            rows.append(BenchRow("nodes-install", "celery on three nodes, against celery on one", "s", (installing,), (one,)))
        if "nodes-cold" in chosen:
            note = f"machines {up:.0f} s, install {installing:.0f} s; the wheelhouse was {'there' if filled else 'filled meanwhile'}"
            rows.append(BenchRow("nodes-cold", "three machines from nothing to the first finished task", "s", (cold,), note=note))
        if "nodes-again" in chosen:
            again = tuple(_install(target, "celery", report) for _ in range(AGAIN))
            rows.append(BenchRow("nodes-again", "install on three nodes with nothing to do", "s", again))
        if "nodes-switch" in chosen:
            # The first time installs packages, which a switch needs only once.
            _install(target, "postgres", report)
            switched = tuple(
                seconds for _ in range(SWITCHES) for seconds in (_install(target, "celery", report), _install(target, "postgres", report))
            )
            rows.append(BenchRow("nodes-switch", "switch between postgres and celery, until healthy", "s", switched))
    return rows


def _one_node(report: Report) -> float:
    table = yaml.safe_load(TABLE.read_text())
    control = next(node for node in table["nodes"] if "control" in node["roles"])
    alone = {**table, "nodes": [{**control, "roles": ["control", "worker"]}]}
    with _machines("one", alone, report) as target:
        target.machines.up(report=lambda text: report(f"one node: {text}"))
        return _install(target, "celery", report)


def _install(target: NodesTarget, variant: str, report: Report) -> float:
    # A connection that is open already would flatter every install but the first.
    target.close()
    begun = time.monotonic()
    target.install(wanted(variant), lambda text: report(f"{variant} on {len(target.cluster.nodes)} nodes: {text}"))
    return time.monotonic() - begun


@contextlib.contextmanager
def _machines(name: str, table: Mapping[str, object], report: Report) -> Iterator[NodesTarget]:
    shared = lab_home()
    home = LabHome(root=shared.root / "throwaway" / f"bench-{os.getpid()}-{name}", shared=shared.root)
    before = {variable: os.environ.get(variable) for variable in (CLUSTER_VARIABLE, NETWORK_VARIABLE)}
    home.prepare()
    own = LabHome(root=home.root, shared=home.root)
    # Downloaded once for all homes.
    (shared.root / "wheelhouse").mkdir(exist_ok=True)
    (home.root / "wheelhouse").symlink_to(shared.root / "wheelhouse")
    try:
        if table:
            os.environ[CLUSTER_VARIABLE] = str(_written(home.root / "cluster.yaml", table))
        os.environ[NETWORK_VARIABLE] = free_range()
        target = NodesTarget(nodes_home(own))
        try:
            yield target
        finally:
            report("removing the bench's machines")
            target.close()
            Machines(own, read_cluster()).destroy()
    finally:
        for variable, value in before.items():
            os.environ.pop(variable, None)
            if value is not None:
                os.environ[variable] = value
        _remove(home)


def _written(file: Path, table: Mapping[str, object]) -> Path:
    file.write_text(yaml.safe_dump(dict(table)))
    return file


def _remove(home: LabHome) -> None:
    (home.root / "wheelhouse").unlink(missing_ok=True)
    shutil.rmtree(home.root, ignore_errors=True)

"""Result records: one JSON file per lab in a run, validated when written and when read."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from labs.checks import FAIL, INCONCLUSIVE, VERDICTS, Measurement, overall
from labs.errors import LabError
from labs.installation import Installation

SCHEMA = 1
KINDS = ("exact", "bound", "timing", "info")
_REQUIRED = {
    "schema": int, "lab": str, "variant": str, "target": str, "versions": dict, "machine": dict, "parameters": dict,
    "started": str, "seconds": (int, float), "verdict": str, "complete": bool, "measurements": list,
}  # fmt: skip


def machine(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a timing depends on: CPU, cores, memory in GiB, operating system, and the nodes.

    How far their clocks are apart is not part of it: that is different at every look.
    """
    nodes = [{key: value for key, value in node.items() if not key.startswith("clock_")} for node in nodes]
    memory = sum(node.get("memory_gib") or 0 for node in nodes)
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "memory_gib": memory, "system": platform.system(), "nodes": nodes}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions(installation: Installation) -> dict[str, str]:
    """Return the versions of what a result depends on."""
    return {**installation.versions, "papermill": version("papermill"), "labs": version_of_labs()}


def version_of_labs() -> str:
    """Return this package's version, "unknown" when it is used without being installed."""
    try:
        return version("airflow-executor-labs")
    except Exception:
        return "unknown"


def record(
    lab: str,
    installation: Installation,
    parameters: Mapping[str, Any],
    started: datetime,
    measurements: Iterable[Measurement],
    *,
    complete: bool,
    plots: Iterable[Mapping[str, str]] = (),
    error: str = "",
    title: str = "",
    tasks_per_node: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return a result record. An incomplete one never passes: what was not measured is not a pass."""
    rows = [measurement.row() for measurement in measurements]
    verdict = overall([row["verdict"] for row in rows if row.get("verdict")])
    if error:
        verdict = FAIL
    elif not complete and verdict != FAIL:
        verdict = INCONCLUSIVE
    return {
        "schema": SCHEMA,
        "lab": lab,
        "title": title,
        "variant": installation.variant,
        "target": installation.target,
        "versions": versions(installation),
        "machine": machine(installation.nodes),
        "broker": installation.broker,
        "settings": installation.settings,
        "parameters": dict(parameters),
        "started": started.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
        "verdict": verdict,
        "complete": complete,
        "error": error,
        "tasks_per_node": dict(tasks_per_node or {}),
        "measurements": rows,
        "plots": [dict(plot) for plot in plots],
    }


def validate(document: Any) -> None:
    """Raise ValueError that names the first thing in which `document` is not a result record."""
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")
    for key, kind in _REQUIRED.items():
        if not isinstance(document.get(key), kind):
            raise ValueError(f"{key} is missing or of the wrong type")
    if document["schema"] != SCHEMA:
        raise ValueError(f"schema {document['schema']} is not {SCHEMA}")
    if document["verdict"] not in VERDICTS:
        raise ValueError(f"verdict {document['verdict']!r} is not one of {', '.join(VERDICTS)}")
    for row in document["measurements"]:
        if not isinstance(row, dict) or not isinstance(row.get("name"), str | None):
            raise ValueError(f"measurement {row!r} is not an object with a name")
        if row.get("kind") not in KINDS or not row.get("name"):
            raise ValueError(f"measurement {row.get('name')!r} has kind {row.get('kind')!r}")
        if row["kind"] in ("exact", "bound") and row.get("verdict") not in VERDICTS:
            raise ValueError(f"measurement {row['name']!r} has no verdict")
    names = [row["name"] for row in document["measurements"]]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"measurement {repeated[0]!r} appears twice")


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a record in one step, keys sorted; raises ValueError if it is not valid."""
    validate(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.new")
    temporary.write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    temporary.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Return a valid record; raises LabError that names file and fault otherwise."""
    try:
        document = json.loads(path.read_text())
        validate(document)
    except (OSError, ValueError) as error:
        raise LabError(f"{path} is not a result record: {error}.", "labs run LAB writes a new one") from error
    return document


def read_run(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run, in the order of their labs; raises LabError if there is none."""
    found = [read(path) for path in sorted(folder.glob("*.json")) if path.name != "run.json"]
    if not found:
        raise LabError(f"{folder} holds no results.", "labs run, then labs report")
    return found

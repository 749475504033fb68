"""Lab after lab: the installation it needs, the notebook through papermill, its result, the report."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labs import catalog, matrix, probe, report, results, sandbox, services, side_by_side
from labs.airflow_api import AirflowApi
from labs.catalog import LabFile
from labs.checks import FAIL, INCONCLUSIVE, overall
from labs.errors import LabError
from labs.execute import CELL_SECONDS, execute
from labs.installation import Installation, read_installation
from labs.watch import Tail, Watch
from provision.errors import ProvisionError
from provision.home import REPOSITORY, lab_home
from provision.lock import exclusive
from provision.variants import require_target, variant_named

# When this lab fails, nothing measured after it could be trusted.
GATEKEEPER = "00-start-here"
EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3}


@dataclass(frozen=True)
class Run:
    """What a run of labs left behind."""

    folder: Path
    records: tuple[dict[str, Any], ...]
    report: Path

    @property
    def verdict(self) -> str:
        """The verdict over all labs."""
        return overall([record["verdict"] for record in self.records])

    @property
    def exit_code(self) -> int:
        """0 when all passed, 1 when one failed, 3 when one is inconclusive and none failed."""
        return EXIT_CODES[self.verdict]


def runs_folder() -> Path:
    """Return where results go: `$LAB_RUNS`, or `runs` in the checkout."""
    return Path(os.environ.get("LAB_RUNS") or REPOSITORY / "runs").expanduser().resolve()


def run_labs(
    labs: list[LabFile],
    target: str,
    variant: str | None,
    parameters: Mapping[str, Mapping[str, Any]],
    watch: Watch,
    *,
    cell_seconds: int = CELL_SECONDS,
) -> Run:
    """Return the finished run; raises UsageError or ProvisionError before anything runs, LabError if nothing could."""
    groups = catalog.group_by_variant((lab, catalog.choose_variant(lab, variant, target)) for lab in labs)
    for name, _ in groups:
        require_target(variant_named(name), target)
    with exclusive(lab_home(), "labs run"):
        folder = new_folder(runs_folder())
        records: list[dict[str, Any]] = []
        try:
            for lab, installation, number in _installed(groups, target, watch):
                watch.lab(lab.name, lab.title, installation.variant, number, len(labs))
                records.append(_run_lab(lab, installation, folder, parameters.get(lab.name, {}), watch, cell_seconds))
                watch.ended(records[-1])
                if lab.name == GATEKEEPER and records[-1]["verdict"] == FAIL:
                    watch.line(f"The series stops here: {GATEKEEPER} found the installation not to be in order.", "red")
                    break
        except KeyboardInterrupt:
            watch.line("Interrupted; releasing what the lab held.", "yellow")
            raise
        finally:
            try:
                _clean_up(watch)
            finally:
                page = _finish(folder, watch)
    return Run(folder, tuple(records), page)


def _installed(groups: list[tuple[str, list[LabFile]]], target: str, watch: Watch) -> Iterable[tuple[LabFile, Installation, int]]:
    number = 0
    for variant, labs in groups:
        for lab in labs:
            number += 1
            # Before each lab, not once: an earlier one may have died with a setting changed or a service gone.
            installation = services.ensure(target, variant, {}, watch.doing)
            yield lab, installation, number


def new_folder(runs: Path) -> Path:
    """Return a new, empty folder for a run, named by its UTC time."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 100))):
        folder = runs / f"{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise LabError(f"No new folder could be made in {runs}.", "remove old runs")


def _run_lab(
    lab: LabFile, installation: Installation, folder: Path, changed: Mapping[str, Any], watch: Watch, cell_seconds: int
) -> dict[str, Any]:
    result = folder / f"{lab.name}.json"
    started, begun = datetime.now(UTC), time.monotonic()
    progress_file = folder / f".{lab.name}.progress"
    with Tail(progress_file, watch):
        error = execute(lab.path, folder / lab.path.name, {**changed, "result_path": str(result)}, progress_file, watch.cell, cell_seconds)
    record = _read_or_none(result)
    if not error and (record is None or not record["complete"]):
        error = "the notebook ended before its last cell and without an error; a cell called sys.exit, or lab.finish() is missing"
    if record is None:
        parameters = catalog.parameter_defaults(lab, changed)
        record = results.record(lab.name, installation, parameters, started, [], complete=False, error=error, title=lab.title)
    if error:
        record = {**record, "verdict": FAIL, "complete": False, "error": error}
        _clean_up(watch)
    record = {**record, "title": lab.title, "seconds": round(time.monotonic() - begun, 1)}
    results.write(result, record)
    return record


def _read_or_none(path: Path) -> dict[str, Any] | None:
    try:
        return results.read(path)
    except LabError:
        return None


def _clean_up(watch: Watch) -> None:
    """Release what a lab held, and say so when that fails: every lab begins with the same cleaning, or not at all."""
    try:
        _release(watch)
    except (LabError, ProvisionError) as error:
        watch.line(f"    could not clean up: {error}", "yellow")


def _release(watch: Watch) -> None:
    """Open gates, end the labs' DAG runs, destroy throw-away installations, remove what labs made on a cluster."""
    services.destroy_throwaways(watch.doing)
    try:
        installation = read_installation()
    except LabError:
        return
    # Airflow's API may be gone: then nothing of it runs either.
    with contextlib.suppress(LabError):
        probe.reset(installation, AirflowApi(installation))
    sandbox.reset(installation)


def _finish(folder: Path, watch: Watch) -> Path:
    watch.doing("writing the report")
    interrupted = _mark_interrupted(folder)
    page = folder / "report.html"
    if interrupted or any(folder.glob("*.json")):
        page = report.write_report(folder)
        latest = folder.parent / "latest"
        latest.unlink(missing_ok=True) if latest.is_symlink() else None
        if not latest.exists():
            latest.symlink_to(folder.name)
    else:
        shutil.rmtree(folder)
    return page


@contextlib.contextmanager
def _run_folder(watch: Watch) -> Iterator[Path]:
    """Lend a new folder for results; afterwards, whatever happens, what was held is released and the report is written."""
    folder = new_folder(runs_folder())
    try:
        yield folder
    finally:
        try:
            _clean_up(watch)
        finally:
            _finish(folder, watch)


def _mark_interrupted(folder: Path) -> list[str]:
    """Give records that were never completed an honest verdict; return their labs."""
    names = []
    for path in folder.glob("*.json"):
        record = _read_or_none(path)
        if record and not record["complete"] and not record["error"]:
            results.write(path, {**record, "error": "interrupted", "verdict": FAIL if record["verdict"] == FAIL else INCONCLUSIVE})
            names.append(record["lab"])
    return names


def run_matrix(seed: int, count: int, target: str, variant: str, watch: Watch) -> tuple[dict[str, Any], Path]:
    """Return the record of an exactness matrix and the run folder that holds it and its report."""
    with exclusive(lab_home(), "labs matrix"):
        installation = services.ensure(target, variant, {}, watch.doing)
        cells = matrix.draw_cells(seed, count, installation.settings)
        with _run_folder(watch) as folder:
            record = matrix.run_matrix(installation, cells, seed, folder, watch.event)
    return record, folder


def run_side_by_side(variants: Sequence[str], target: str, watch: Watch) -> Run:
    """Return the run in which one probe was measured on each of these variants, installed one after another."""
    with exclusive(lab_home(), "labs variants"), _run_folder(watch) as folder:
        records = side_by_side.run_all(variants, target, folder, watch.event, watch.ended)
    return Run(folder, tuple(records), folder / report.PAGE)


def as_json(run: Run) -> str:
    """Return a run as the JSON that `labs run --json` prints."""
    labs = [{key: r[key] for key in ("lab", "variant", "verdict", "seconds", "error")} for r in run.records]
    document = {"run": str(run.folder), "report": str(run.report), "verdict": run.verdict, "labs": labs}
    return json.dumps(document, indent=1, sort_keys=True)

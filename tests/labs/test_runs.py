"""Whole notebooks through the labs command, as a user starts them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from labs import catalog, results
from labs.airflow_api import AirflowApi
from labs.catalog import all_labs
from labs.execute import execute
from labs.installation import read_installation
from labs.runner import runs_folder
from provision.home import REPOSITORY
from provision.variants import wanted

LABS_COMMAND = Path(sys.prefix) / "bin" / "labs"
RUN_HERE, NEED_NODES = catalog.split_by_target(all_labs(), "local")
LABS = [lab.name for lab in RUN_HERE]
# This exercise asks about what its notebook measured; the others stand on the set-up cell alone.
NEEDS_THE_WHOLE_NOTEBOOK = {"01-life-of-a-task"}


@pytest.fixture(scope="module")
def finished():
    """All labs, run once with one command, as `make lab` does."""
    done = subprocess.run(
        [str(LABS_COMMAND), "run", "--json"], capture_output=True, text=True, timeout=2400, cwd=REPOSITORY, stdin=subprocess.DEVNULL
    )
    assert done.stdout, done.stderr
    return done, json.loads(done.stdout)


def test_all_labs_pass_and_the_exit_code_says_so(finished):
    done, run = finished
    assert {lab["lab"]: lab["verdict"] for lab in run["labs"]} == dict.fromkeys(LABS, "pass"), done.stderr[-3000:]
    assert run["verdict"] == "pass"
    assert done.returncode == 0


def test_labs_that_need_nodes_are_left_out_with_a_sentence(finished):
    said = finished[0].stderr.replace("\n", " ")
    for lab in NEED_NODES:
        assert f"Left out: {lab.name}, which runs only on target vagrant." in said


def test_every_record_is_valid_complete_and_has_exact_measurements(finished):
    folder = finished[1]["run"]
    for name in LABS:
        record = results.read(Path(folder) / f"{name}.json")
        assert record["complete"]
        assert sum(row["kind"] == "exact" for row in record["measurements"]) >= 4
        solved = [row["measured"] for row in record["measurements"] if row["name"].startswith("exercise")]
        assert set(solved) == {"solved"}


def test_no_secret_reaches_records_notebooks_or_the_report(finished, lab_folder):
    secret = json.loads((lab_folder / "secrets.json").read_text()).values()
    for path in (Path(finished[1]["run"])).rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not [value for value in secret if value in text], path


def test_the_report_shows_every_lab_and_its_notebook(finished):
    page = Path(finished[1]["report"]).read_text()
    for lab in RUN_HERE:
        assert lab.title in page.replace("&#39;", "'").replace("&amp;", "&")
        assert f'href="{lab.name}.html"' in page


def test_progress_names_lab_section_and_check(finished):
    done, _ = finished
    for name in LABS:
        assert f"] {name}: " in done.stderr.replace("\n", " ")
    assert "✓ peak, pool narrow" in done.stderr
    assert "delivering probe" in done.stderr


@pytest.mark.parametrize("lab", RUN_HERE, ids=lambda lab: lab.name)
def test_a_starter_fails_its_check(lab, target, tmp_path):
    """The notebook without its solution; the whole run above shows that the solution passes."""
    target.install(wanted(catalog.choose_variant(lab, None, "local")))
    notebook = nbformat.read(lab.path, as_version=4)
    cells = [cell for cell in notebook.cells if "solution" not in cell.metadata.get("tags", [])]
    if lab.name not in NEEDS_THE_WHOLE_NOTEBOOK:
        exercise = next(i for i, cell in enumerate(cells) if cell.source.startswith("## Exercise"))
        cells = cells[:3] + cells[exercise:]
    notebook.cells = cells
    student = tmp_path / lab.path.name
    nbformat.write(notebook, student)
    record = tmp_path / "record.json"
    error = execute(student, tmp_path / "executed.ipynb", {"result_path": str(record)}, tmp_path / "progress")
    assert error == ""
    checked = {row["name"]: row["verdict"] for row in results.read(record)["measurements"] if row["name"].startswith("exercise")}
    assert set(checked.values()) == {"fail"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nosuch"], "Unknown lab 'nosuch'"),
        (["run", "04", "--variant", "mysql"], "Unknown variant 'mysql'"),
        (["run", "04", "--variant", "sqlite"], "does not run on variant 'sqlite'"),
        (["run", "--variant", "standalone"], "No lab runs on variant"),
        (["run", "--variant", "kubernetes"], "No lab of variant 'kubernetes' runs on target 'local'"),
        (["run", "09"], "does not run on target 'local'"),
        (["run", "11", "--variant", "multiple"], "The variant multiple needs a cluster of machines"),
        (["run", "04", "--target", "moon"], "Unknown target 'moon'"),
        (["run", "04", "--set", "slot=3"], "Unknown parameter 'slot'"),
        (["run", "04", "--set", "slots=three"], "not of type int"),
        (["run", "04", "--set", "slots"], "not NAME=VALUE"),
    ],
)
def test_wrong_use_is_refused_with_exit_code_2_and_starts_nothing(labs, arguments, said):
    before = set(runs_folder().glob("*"))
    done = labs(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Next:" in done.stderr
    assert "Traceback" not in done.stderr
    assert set(runs_folder().glob("*")) == before


def test_a_parameter_reaches_the_notebook(labs):
    done = labs("run", "01", "--set", "chain_length=4", "--json")
    run = json.loads(done.stdout)
    record = results.read(Path(run["run"]) / "01-life-of-a-task.json")
    assert record["parameters"] == {"chain_length": 4}
    assert done.returncode == 0


def test_an_interrupted_run_releases_everything_and_stays_readable(target):
    target.install(wanted("postgres"))
    before = set(runs_folder().glob("2*"))
    process = subprocess.Popen(
        [str(LABS_COMMAND), "run", "04"],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    for line in process.stderr:
        if "✓ peak, pool narrow" in line:
            break
    time.sleep(1)
    kernels = psutil.Process(process.pid).children(recursive=True)
    assert kernels
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    api = AirflowApi(read_installation())
    assert api.dags("probe_") == []
    assert api.variables("lab_gate_") == []
    assert psutil.wait_procs(kernels, timeout=10)[1] == []
    (folder,) = set(runs_folder().glob("2*")) - before
    record = results.read(folder / "04-pools.json")
    assert (record["complete"], record["error"], record["verdict"]) == (False, "interrupted", "inconclusive")
    assert (folder / "report.html").exists()


def test_doctor_and_list_answer(labs):
    assert labs("doctor").returncode == 0
    listed = json.loads(labs("list", "--json").stdout)
    assert [lab["lab"] for lab in listed] == [lab.name for lab in all_labs()]

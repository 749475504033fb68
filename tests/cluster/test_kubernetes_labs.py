"""The labs of the variant kubernetes on three nodes: they pass, their starters fail, and nothing of them stays on the cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from labs import catalog, results, sandbox
from labs.execute import execute
from labs.installation import read_installation
from provision.home import REPOSITORY
from provision.kube.artifacts import VARIABLE
from provision.variants import wanted

pytestmark = pytest.mark.skipif(
    not os.environ.get(VARIABLE), reason=f"labs of the variant kubernetes run where {VARIABLE} names a folder with K3s"
)
LABS = Path(sys.prefix) / "bin" / "labs"
ON_KUBERNETES = [lab for lab in catalog.all_labs() if lab.variants[0] == "kubernetes"]


def left_on_cluster(target):
    """Return how many objects of labs were on the cluster; there are none afterwards."""
    return sandbox.reset(read_installation(target.home.root))


def test_every_lab_passes_and_leaves_nothing_on_the_cluster(target):
    command = [str(LABS), "run", *(lab.name for lab in ON_KUBERNETES), "--target", "vagrant", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=REPOSITORY, stdin=subprocess.DEVNULL)
    document = json.loads(done.stdout)
    assert [(lab["lab"], lab["verdict"], lab["error"]) for lab in document["labs"] if lab["verdict"] != "pass"] == []
    assert done.returncode == 0
    assert left_on_cluster(target) == 0


def test_three_executors_in_one_installation(target):
    command = [str(LABS), "run", "11", "--variant", "multiple", "--target", "vagrant", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=REPOSITORY, stdin=subprocess.DEVNULL)
    (lab,) = json.loads(done.stdout)["labs"]
    assert (lab["verdict"], lab["error"]) == ("pass", "")
    assert target.install(wanted("multiple")) == []
    assert left_on_cluster(target) == 0


@pytest.mark.parametrize("lab", ON_KUBERNETES, ids=lambda lab: lab.name)
def test_a_starter_fails_its_check(target, tmp_path, lab):
    target.install(wanted("kubernetes"))
    notebook = nbformat.read(lab.path, as_version=4)
    cells = [cell for cell in notebook.cells if "solution" not in cell.metadata.get("tags", [])]
    exercise = next(i for i, cell in enumerate(cells) if cell.source.startswith("## Exercise"))
    notebook.cells = cells[:3] + cells[exercise:]
    nbformat.write(notebook, tmp_path / lab.path.name)
    record = tmp_path / "record.json"
    assert execute(tmp_path / lab.path.name, tmp_path / "executed.ipynb", {"result_path": str(record)}, tmp_path / "progress") == ""
    checked = {row["name"]: row["verdict"] for row in results.read(record)["measurements"] if row["name"].startswith("exercise")}
    assert set(checked.values()) == {"fail"}


def test_what_an_interrupted_lab_made_is_removed(target):
    target.install(wanted("kubernetes"))
    command = [str(LABS), "run", "09", "--target", "vagrant"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in process.stderr:
        if "making PersistentVolumeClaim data" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert left_on_cluster(target) == 0

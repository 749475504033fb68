"""A real Airflow for the tests, in a home of their own: nobody's installation is touched, nothing is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from labs.notebook import Bench
from provision.home import REPOSITORY, LabHome, lab_home
from provision.local.supervisor import owned_processes
from provision.target import open_target
from provision.variants import wanted

BIN = Path(sys.prefix) / "bin"


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/labs" in str(item.path):
            item.add_marker(pytest.mark.airflow)


@pytest.fixture(scope="session", autouse=True)
def lab_folder():
    """A LAB_HOME for the whole session; it borrows the Airflow environment of the checkout, so that it is installed once."""
    environments = lab_home().environments
    environments.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="labs-test-"))
    LabHome(folder, folder).prepare()
    (folder / "environments").symlink_to(environments)
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("LAB_", "AIRFLOW"))}
    os.environ["LAB_HOME"], os.environ["LAB_RUNS"] = str(folder), str(folder / "runs")
    yield folder
    home = lab_home()
    open_target("local").destroy()
    left = owned_processes(home)
    del os.environ["LAB_HOME"], os.environ["LAB_RUNS"]
    os.environ.update(before)
    shutil.rmtree(folder)
    assert left == [], "processes were left behind"


@pytest.fixture
def environments(lab_folder):
    """Where the Airflow environment really is, for a test that destroys the home's link to it."""
    return Path(lab_folder / "environments").resolve()


@pytest.fixture
def target():
    """The local target, in whatever state earlier tests left it."""
    return open_target("local")


@pytest.fixture
def sqlite(target):
    """Probes on the sqlite variant as its table says it."""
    return _bench(target, "sqlite")


@pytest.fixture
def postgres(target):
    """Probes on the postgres variant as its table says it."""
    return _bench(target, "postgres")


def _bench(target, variant):
    from labs.installation import read_installation

    target.install(wanted(variant))
    return Bench(read_installation())


@pytest.fixture
def labs(tmp_path):
    """Run the labs command as a user would; returns the finished process."""

    def run(*arguments, timeout=900, **environment):
        return subprocess.run(
            [str(BIN / "labs"), *arguments], capture_output=True, text=True, timeout=timeout,
            cwd=REPOSITORY, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


@pytest.fixture
def fab():
    """Run a Fabric task as a user would; returns the finished process."""

    def run(*arguments, **environment):
        return subprocess.run(
            [str(BIN / "fab"), *arguments], capture_output=True, text=True, timeout=600,
            cwd=REPOSITORY, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run

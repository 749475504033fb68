"""The cluster for the tests: three machines of their own, in a lab folder and an address range of their own, removed at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from provision.address_range import free_range
from provision.errors import ProvisionError
from provision.home import HOME_VARIABLE, REPOSITORY, lab_home
from provision.inventory import connections
from provision.machines import Machines
from provision.providers import choose_provider, require_vagrant
from provision.target import open_target
from provision.topology import CLUSTER_VARIABLE, NETWORK_VARIABLE, read_cluster

BIN = Path(sys.prefix) / "bin"
OWN = {HOME_VARIABLE, NETWORK_VARIABLE, CLUSTER_VARIABLE, "LAB_RUNS", "VAGRANT_DOTFILE_PATH"}


def pytest_collection_modifyitems(items):
    for item in items:
        if {"cluster", "nodes"} & set(item.path.parts):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def provider():
    """The provider that this machine can use; LAB_TEST_PROVIDER names another."""
    try:
        require_vagrant()
        return choose_provider(os.environ.get("LAB_TEST_PROVIDER") or None, None)
    except ProvisionError as error:
        if os.environ.get("LAB_TEST_PROVIDER"):
            pytest.fail(f"the provider {os.environ['LAB_TEST_PROVIDER']} cannot be used: {error}")
        pytest.skip(f"no machines can be made here: {error}")


@pytest.fixture(scope="session")
def cluster_home(provider):
    """A LAB_HOME without machines, and a free range, for the whole session."""
    folder = Path(tempfile.mkdtemp(prefix="labs-cluster-"))
    before = {name: os.environ.pop(name) for name in OWN if name in os.environ}
    os.environ[HOME_VARIABLE], os.environ["LAB_RUNS"] = str(folder / "home"), str(folder / "runs")
    os.environ[NETWORK_VARIABLE] = free_range()
    yield folder / "home"
    for name in OWN:
        os.environ.pop(name, None)
    os.environ.update(before)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def machines(cluster_home, provider):
    """Three machines that run."""
    made = Machines(lab_home(), read_cluster())
    said: list[str] = []
    try:
        made.up(provider, said.append)
        yield made
    finally:
        made.destroy()
    assert made.ids() == {}, "machines were left behind"


@pytest.fixture
def nodes(machines):
    """An open connection to every node, by name."""
    opened = connections(machines)
    yield opened
    for connection in opened.values():
        connection.close()


@pytest.fixture(scope="session")
def target(machines, cluster_home):
    """The vagrant target, in whatever state earlier tests left it; the wheelhouse is filled once for this checkout."""
    wheelhouse = REPOSITORY / ".lab" / "wheelhouse"
    wheelhouse.mkdir(parents=True, exist_ok=True)
    (cluster_home / "wheelhouse").symlink_to(wheelhouse)
    place = open_target("vagrant")
    yield place
    place.close()


@pytest.fixture
def fab(cluster_home):
    """Run a Fabric task as a user would; returns the finished process."""

    def run(*arguments, timeout=600, **environment):
        return subprocess.run(
            [str(BIN / "fab"), *arguments], capture_output=True, text=True, timeout=timeout,
            cwd=REPOSITORY, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run

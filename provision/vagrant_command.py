"""Vagrant as a command: where it keeps its state, what it is told, and what it says."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from provision.errors import ProvisionError
from provision.home import REPOSITORY, LabHome, write_private
from provision.topology import CLUSTER_VARIABLE, NETWORK_VARIABLE, Cluster

if TYPE_CHECKING:
    import vagrant

DOTFILE_VARIABLE = "VAGRANT_DOTFILE_PATH"
_LINES_OF_AN_ERROR = 12
# Lines of Vagrant's errors that say nothing, or the whole of a long command.
_DULL = ("==>", "An error occurred", "Any errors that occurred", "Command: [", "machine. Please handle", "Stdout:", "Run 'docker")
# What libvirt's plug-in says of every machine: all of its settings, and that the box of a file has no version.
_NO_PROGRESS = ("trigger", "provision", ":  -- ", "no version detected", "generating a local metadata", "see https://www.vagrantup.com")


def vagrant_folder(home: LabHome) -> Path:
    """Return where Vagrant keeps the machines' state: where `vagrant` itself would, or in a lab folder of its own."""
    named = os.environ.get(DOTFILE_VARIABLE)
    if named:
        return (REPOSITORY / Path(named).expanduser()).resolve()
    return REPOSITORY / ".vagrant" if home.root == REPOSITORY / ".lab" else home.root / "vagrant"


def log_path(home: LabHome) -> Path:
    """Return the file with all that Vagrant said last."""
    return home.logs / "vagrant.log"


@contextlib.contextmanager
def vagrant_for(home: LabHome, folder: Path, cluster: Cluster, what: str) -> Iterator[tuple[vagrant.Vagrant, IO[bytes]]]:
    """Give python-vagrant's object and the log that it writes to; when Vagrant fails at `what`, raise ProvisionError."""
    # When it is imported, python-vagrant complains on standard error if there is no Vagrant, which only this here needs.
    import vagrant

    home.prepare()
    with log_path(home).open("wb", buffering=0) as log, tempfile.TemporaryFile() as errors:

        @contextlib.contextmanager
        def to(file: IO[bytes]) -> Iterator[IO[bytes]]:
            yield file

        environment = _environment(folder, cluster)
        try:
            yield vagrant.Vagrant(root=str(REPOSITORY), env=environment, out_cm=lambda: to(log), err_cm=lambda: to(errors)), log
        except subprocess.CalledProcessError as error:
            errors.seek(0)
            said = errors.read()
            log.write(said)
            raise ProvisionError(
                f"vagrant {what} failed (exit code {error.returncode}):\n{essence_of(said.decode(errors='replace'))}",
                f"repair what it says (all of it is in {log_path(home)}), then fab up again",
            ) from error


def _environment(folder: Path, cluster: Cluster) -> dict[str, str]:
    """Return the environment for Vagrant, with the table of this cluster and the folder of this home."""
    table = folder / "cluster.yaml"
    write_private(table, yaml.safe_dump(as_table(cluster), sort_keys=False))
    own = {CLUSTER_VARIABLE: str(table), NETWORK_VARIABLE: "", DOTFILE_VARIABLE: str(folder), "VAGRANT_CHECKPOINT_DISABLE": "1"}
    return {**os.environ, **own}


def as_table(cluster: Cluster) -> dict[str, Any]:
    """Return the cluster as cluster.yaml writes it."""
    first = int(IPv4Network(cluster.network).network_address)
    nodes = [
        {
            "name": node.name,
            "roles": list(node.roles),
            "host": int(IPv4Address(node.address)) - first,
            "cpus": node.cpus,
            "memory_mib": node.memory_mib,
        }
        for node in cluster.nodes
    ]
    return {"network": cluster.network, "nodes": nodes}


def progress_of(line: str) -> str:
    """Return what a line of Vagrant's output says of a machine, for people; empty if it says nothing new."""
    text = line.strip()
    if not text.startswith("==> ") or any(words in text.lower() for words in _NO_PROGRESS):
        return ""
    return text.removeprefix("==> ")


def essence_of(text: str) -> str:
    """Return the lines of Vagrant's errors that say something, each once."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(_DULL)]
    return "\n".join(f"    {line}" for line in dict.fromkeys(lines[-_LINES_OF_AN_ERROR:])) or "    it said nothing"

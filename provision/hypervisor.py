"""What libvirt has of the nodes: their domains, the volumes that are their disks, and networks."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

# Where the Vagrantfile lets Vagrant keep disks.
POOL = "default"
ANSWER_TIMEOUT_S = 120


def prefix_of(folder: Path) -> str:
    """Return what the Vagrantfile puts before the names of the machines whose state is in `folder`."""
    return f"airflow-labs-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}-"


def remove_strays(folder: Path, known: Iterable[str]) -> list[str]:
    """Remove the domains and volumes of nodes that Vagrant does not know; return their names.

    Vagrant was killed at a bad moment, and would refuse to make a machine whose name or disk is already there.
    `known` are the ids of the machines that Vagrant knows.
    """
    listed, prefix, ids = _virsh("list", "--all", "--uuid", "--name"), prefix_of(folder), set(known)
    if listed is None:
        return []
    domains = {name: number for name, number in parse_domains(listed).items() if name.startswith(prefix)}
    strays = sorted(name for name, number in domains.items() if number not in ids)
    for name in strays:
        _virsh("destroy", name)
        _virsh("undefine", name, "--managed-save", "--snapshots-metadata", "--nvram")
    kept = {f"{name}.img" for name in set(domains) - set(strays)}
    disks = [name for name in parse_volumes(_virsh("vol-list", POOL) or "") if name.startswith(prefix) and name not in kept]
    for name in disks:
        _virsh("vol-delete", name, "--pool", POOL)
    return [*strays, *disks]


def remove_networks(folder: Path) -> None:
    """Remove the networks that Vagrant made for machines whose state is in `folder`, unless a machine uses them."""
    made = {number for path in folder.glob("machines/*/libvirt/created_networks") for number in path.read_text().split()}
    for number in sorted(made):
        described = _virsh("net-dumpxml", number)
        if described and "connections=" not in described:
            _virsh("net-destroy", number)
            _virsh("net-undefine", number)


def parse_domains(text: str) -> dict[str, str]:
    """Return the ids of domains by name from the answer of `virsh list --uuid --name`."""
    rows = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return {name.strip(): number for number, name in rows}


def parse_volumes(text: str) -> list[str]:
    """Return the names of volumes from the answer of `virsh --quiet vol-list`."""
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def _virsh(*arguments: str) -> str | None:
    """Return what virsh prints, None if it fails."""
    # The same connection as the plug-in's: virsh alone would ask for the user's own machines.
    command = ["virsh", "--quiet", "--connect", os.environ.get("LIBVIRT_DEFAULT_URI") or "qemu:///system", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None

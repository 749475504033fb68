"""What Docker says of its networks, and of the containers that are nodes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

# The Vagrantfile puts this label on every node; its value is the folder with Vagrant's state.
LABEL = "airflow-executor-labs"
ANSWER_TIMEOUT_S = 120


@dataclass(frozen=True)
class DockerNetwork:
    """A network of Docker's: its id, its name and its ranges."""

    id: str
    name: str
    ranges: tuple[IPv4Network, ...]

    @property
    def interface(self) -> str:
        """The bridge that Docker makes for it on Linux."""
        return f"br-{self.id[:12]}"


def docker_networks() -> list[DockerNetwork]:
    """Return every network that Docker knows; empty when Docker does not answer."""
    ids = _docker("network", "ls", "--quiet", "--no-trunc").split()
    return parse_docker_networks(_docker("network", "inspect", *ids)) if ids else []


def parse_docker_networks(text: str) -> list[DockerNetwork]:
    """Return the networks that have IPv4 ranges from the answer of `docker network inspect`."""
    found = []
    for document in json.loads(text or "[]"):
        subnets = [entry.get("Subnet") or "" for entry in (document.get("IPAM") or {}).get("Config") or ()]
        ranges = tuple(IPv4Network(subnet, strict=False) for subnet in subnets if "." in subnet)
        if ranges:
            found.append(DockerNetwork(document["Id"], document["Name"], ranges))
    return found


def containers_in(network_id: str) -> set[str]:
    """Return the ids of the containers that belong to a Docker network, stopped ones included."""
    return _containers(f"network={network_id}")


def containers_of(folder: Path) -> set[str]:
    """Return the ids of all containers that were made for the machines whose state is in `folder`."""
    return _containers(f"label={LABEL}={folder}")


def remove_containers(ids: Iterable[str]) -> None:
    """Remove containers and their volumes, whatever they do."""
    if listed := list(ids):
        _docker("rm", "--force", "--volumes", *listed)


def remove_network(network: IPv4Network) -> None:
    """Remove the network that Vagrant made for a range, unless a container still uses it."""
    _docker("network", "rm", f"vagrant_network_{network}")


def _containers(condition: str) -> set[str]:
    return set(_docker("ps", "--all", "--quiet", "--no-trunc", "--filter", condition).split())


def _docker(*arguments: str) -> str:
    try:
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""

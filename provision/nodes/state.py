"""The words in which a desired state is told: a file, a folder, a node, and all of them. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from provision.airflow import Placement
from provision.errors import ProvisionError
from provision.kube.state import Kubernetes
from provision.nodes import second, stores
from provision.nodes.layout import USER, Layout
from provision.nodes.units import Unit
from provision.pins import airflow_lock, airflow_version
from provision.topology import Cluster, Node
from provision.variants import Wanted
from provision.workers import Worker


@dataclass(frozen=True)
class RemoteFile:
    """One file of a node."""

    text: str
    owner: str = "root"
    group: str = USER
    mode: str = "0640"

    @property
    def wanted(self) -> dict[str, str]:
        """What the node is asked to compare with: the digest instead of the text."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        return {"sha256": digest, "owner": self.owner, "group": self.group, "mode": self.mode}

    @property
    def document(self) -> dict[str, str]:
        """What the node is told to write."""
        return {"text": self.text, "owner": self.owner, "group": self.group, "mode": self.mode}


@dataclass(frozen=True)
class RemoteFolder:
    """One folder of a node."""

    owner: str = "root"
    group: str = "root"
    mode: str = "0755"

    @property
    def document(self) -> dict[str, str]:
        """What the node is told to make, and asked to compare with."""
        return {"owner": self.owner, "group": self.group, "mode": self.mode}


@dataclass(frozen=True)
class About:
    """What has to be known of the nodes before anything can be planned; the same on all of them."""

    python: str
    machine: str
    distribution: str

    @property
    def postgres_major(self) -> int:
        """The PostgreSQL that the distribution has; raises ProvisionError for one that was never tried."""
        try:
            return stores.POSTGRES_OF_DEBIAN[self.distribution]
        except KeyError:
            known = ", ".join(f"Debian {number}" for number in stores.POSTGRES_OF_DEBIAN)
            raise ProvisionError(f"The nodes run a system that is not known here ({self.distribution}).", f"use a box of {known}") from None


@dataclass(frozen=True)
class NodeState:
    """What one node should have."""

    node: Node
    packages: list[str]
    files: dict[str, RemoteFile]
    units: list[Unit]
    folders: dict[str, RemoteFolder] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    unwanted: list[str] = field(default_factory=list)
    # Users beside Airflow's: home and shell by name, None for one that should not be there.
    accounts: dict[str, dict[str, str] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Desired:
    """Everything that the installed variant should look like on the nodes."""

    wanted: Wanted
    cluster: Cluster
    layout: Layout
    about: About
    placement: Placement
    secrets: Mapping[str, str]
    environment: Mapping[str, str]
    nodes: dict[str, NodeState]
    certificates: str = ""
    kubernetes: Kubernetes | None = None

    @property
    def environment_path(self) -> PurePosixPath:
        """The folder of the Airflow environment; its name says what is in it."""
        return environment_path(self.layout, self.about)

    @property
    def database_mark(self) -> str:
        """What is written down once the database is made and migrated: for which Airflow, and with which password."""
        return f"{airflow_version()} {hashlib.sha256(self.secrets['database_password'].encode()).hexdigest()[:16]}\n"

    @property
    def database_mark_path(self) -> str:
        return f"{self.layout.migrated}/{self.wanted.variant.database}"

    @property
    def api_servers(self) -> dict[str, str]:
        """Return the address of each API server that stands behind HAProxy, by name; empty where there is none."""
        own = second.backends(self.cluster, self.layout) if self.wanted.ha else {}
        return {name: f"http://{address}:{port}" for name, (address, port) in own.items()}

    @property
    def services(self) -> dict[str, str]:
        """Every service, with its node."""
        return {unit.service: state.node.name for state in self.nodes.values() for unit in state.units}

    def unit_of(self, service: str) -> tuple[str, str]:
        """Return node and unit of a service; raises KeyError if there is none of that name."""
        for state in self.nodes.values():
            for unit in state.units:
                if unit.service == service:
                    return state.node.name, unit.name
        raise KeyError(service)


def environment_path(layout: Layout, about: About) -> PurePosixPath:
    """Return the folder of the Airflow environment for this lock and these nodes."""
    digest = hashlib.sha256(airflow_lock().read_bytes() + f"{about.python} {about.machine}".encode()).hexdigest()[:12]
    return layout.software / f"airflow-{airflow_version()}-{digest}"

"""The nodes as Fabric connections, from the one cached ssh-config."""

from __future__ import annotations

from fabric import Connection

from provision.machines import Machines


def connections(machines: Machines) -> dict[str, Connection]:
    """Return an open connection to every node by name; raises ProvisionError that names each node that cannot be reached."""
    raise NotImplementedError

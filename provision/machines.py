"""The cluster's machines: brought up, looked at and destroyed by Vagrant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from provision.home import LabHome
from provision.topology import Cluster

Report = Callable[[str], None]
PROVIDERS = ("virtualbox", "libvirt", "docker")


class Machines:
    """The machines of one home, as its cluster's table says."""

    def __init__(self, home: LabHome, cluster: Cluster) -> None:
        self.home, self.cluster = home, cluster

    def provider(self) -> str:
        """Return the provider that the machines use, or the first that this machine could use."""
        raise NotImplementedError

    def states(self) -> dict[str, str]:
        """Return the state of every node by name, for example `running` or `not created`."""
        raise NotImplementedError

    def up(self, provider: str | None = None, report: Report = lambda text: None) -> list[str]:
        """Make every machine run; return the names of those that had to be started (none, if all ran)."""
        raise NotImplementedError

    def destroy(self, report: Report = lambda text: None) -> list[str]:
        """Remove every machine and its disk; return the names of those that there were."""
        raise NotImplementedError

    def ssh_config(self, refresh: bool = False) -> Path:
        """Return the file with which ssh reaches the nodes by name; Vagrant is asked once and when machines change."""
        raise NotImplementedError

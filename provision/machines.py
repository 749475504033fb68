"""The cluster's machines: brought up, looked at and destroyed by Vagrant."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from provision import hypervisor, inventory
from provision.address_range import require_free_range
from provision.containers import containers_of, remove_containers, remove_network
from provision.errors import ProvisionError
from provision.home import LabHome, read_json, write_private
from provision.inventory import Unreachable
from provision.lock import exclusive
from provision.providers import choose_provider, require_vagrant
from provision.topology import Cluster
from provision.vagrant_command import log_path, progress_of, vagrant_folder, vagrant_for

if TYPE_CHECKING:
    import vagrant

Report = Callable[[str], None]
RUNNING = "running"


class Machines:
    """The machines of one home, as its cluster's table says."""

    def __init__(self, home: LabHome, cluster: Cluster) -> None:
        self.home, self.cluster = home, cluster
        self.folder = vagrant_folder(home)
        # What each node was when it was brought up: its id at its provider, its address and its SSH host key.
        self._record = self.folder / "airflow-labs.json"

    def used_provider(self) -> str | None:
        """Return the provider that the machines were made with, None while there is none."""
        return next((path.parent.name for path in sorted(self.folder.glob("machines/*/*/id"))), None)

    def provider(self) -> str:
        """Return the provider that the machines use, or the first that this machine could use."""
        return self.used_provider() or choose_provider(None, None)

    def ids(self) -> dict[str, str]:
        """Return the id that each machine has at its provider, by node name; only of those that there are."""
        found = {path.parent.parent.name: path.read_text().strip() for path in self.folder.glob("machines/*/*/id")}
        # What Vagrant writes for a container before there is one.
        return {name: number for name, number in found.items() if number not in ("", "preparing")}

    def states(self) -> dict[str, str]:
        """Return the state of every node by name, for example `running` or `not created`."""
        if not self.ids():
            return {node.name: "not created" for node in self.cluster.nodes}
        require_vagrant()
        with self._vagrant("status") as (command, _):
            seen = {status.name: (status.state or "unknown").replace("_", " ") for status in command.status()}
        return {node.name: seen.get(node.name, "not created") for node in self.cluster.nodes}

    def up(self, provider: str | None = None, report: Report = lambda text: None) -> list[str]:
        """Make every machine run; return the names of those that were brought up (none, if all ran).

        Raises ProvisionError before anything is started if it could not work.
        """
        with exclusive(self.home, "fab up"):
            require_vagrant()
            chosen = choose_provider(provider, self.used_provider())
            self.require_same_table()
            states = self.states()
            to_start = [name for name, state in states.items() if state != RUNNING]
            if to_start:
                self._require_room(chosen, to_start, report)
                own = self._remove_strays(chosen)
                require_free_range(self.cluster, own, set(states) - set(to_start), docker=chosen == "docker")
                report(f"bringing up {', '.join(to_start)} with {chosen}")
                self._bring_up(chosen, report)
            remade = self._take_over(chosen, to_start, report)
            restarted = self._reach(report)
            return list(dict.fromkeys([*to_start, *remade, *restarted]))

    def destroy(self, report: Report = lambda text: None) -> list[str]:
        """Remove every machine and its disk; return the names of those that there were."""
        with exclusive(self.home, "fab destroy"):
            there, used = list(self.ids()), self.used_provider()
            if there:
                require_vagrant()
                with self._vagrant("destroy") as (command, _):
                    report(f"removing {', '.join(sorted(there))}")
                    command.destroy()
            if used == "docker":
                self._remove_strays("docker")
                remove_network(IPv4Network(self.cluster.network))
            # Also of a `fab up` that was killed before Vagrant noted down any machine.
            elif any(self.folder.glob("machines/*/libvirt")):
                self._remove_strays("libvirt")
                hypervisor.remove_networks(self.folder)
            for file in (self._record, *inventory.files(self.home)):
                file.unlink(missing_ok=True)
            # A folder that is only ours goes; of one that `vagrant` shares with us, only what it would leave behind.
            shutil.rmtree(self.folder if self.folder == self.home.root / "vagrant" else self.folder / "keys", ignore_errors=True)
            return sorted(there)

    def ssh_config(self, refresh: bool = False) -> Path:
        """Return the file with which ssh reaches the nodes by name; Vagrant is asked once and when machines change."""
        if refresh or not inventory.is_current(self.home, self.ids()):
            if missing := [node.name for node in self.cluster.nodes if node.name not in self.ids()]:
                raise ProvisionError(f"There is no machine for {', '.join(missing)}.", "fab up")
            require_vagrant()
            with self._vagrant("ssh-config") as (command, _):
                inventory.write_ssh_config(self.home, command.ssh_config(), self.ids())
        inventory.write_known_hosts(self.home, {name: entry["host_key"] for name, entry in self.recorded().items()})
        return inventory.ssh_config_path(self.home)

    def recorded(self) -> dict[str, dict[str, str]]:
        """Return what is known of each finished node: `id`, `address` and `host_key`; only of machines that are still the same."""
        ids = self.ids()
        return {
            name: entry for name, entry in read_json(self._record).items() if isinstance(entry, dict) and entry.get("id") == ids.get(name)
        }

    def require_same_table(self) -> None:
        """Raise ProvisionError if machines were made from another table: Vagrant would not move them."""
        known, names = self.recorded(), {node.name for node in self.cluster.nodes}
        moved = [node for node in self.cluster.nodes if node.name in known and known[node.name]["address"] != node.address]
        if moved:
            was, now = known[moved[0].name]["address"], moved[0].address
            raise ProvisionError(
                f"{moved[0].name} was made with the address {was}, but the machine table says {now}.",
                "put the table or LAB_NETWORK back, or: fab destroy --target vagrant, then fab up",
            )
        if gone := sorted(set(self.ids()) - names):
            raise ProvisionError(
                f"There are machines that are not in the machine table: {', '.join(gone)}.",
                "put them back into the table, or: fab destroy --target vagrant, then fab up",
            )

    def _require_room(self, provider: str, to_start: list[str], report: Report) -> None:
        """Raise ProvisionError if the machines to start need more memory than is free; containers reserve none, so only say it."""
        needed = sum(self.cluster.node(name).memory_mib for name in to_start)
        free = psutil.virtual_memory().available // 2**20
        if needed <= free:
            return
        message = f"{', '.join(to_start)} need {needed} MiB of memory, and {free} MiB are free."
        if provider != "docker":
            raise ProvisionError(
                message, "close programs, or give the nodes less memory_mib in the machine table (LAB_CLUSTER names another)"
            )
        report(f"little memory: {message} Containers take only what they use, so this may still work.")

    def _remove_strays(self, provider: str) -> set[str]:
        """Remove what of ours Vagrant does not know, because it was killed at a bad moment; return the ids of the other containers."""
        if provider == "libvirt":
            hypervisor.remove_strays(self.folder, self.ids().values())
        if provider != "docker":
            return set()
        own = containers_of(self.folder)
        strays = own - set(self.ids().values())
        remove_containers(strays)
        return own - strays

    def _take_over(self, provider: str, started: list[str], report: Report) -> list[str]:
        """Note down the machines that are finished, make those again that are not; return the latter's names.

        One that was brought up by `vagrant up` is as good as ours. One whose `up` was killed half-way is not:
        Vagrant calls it running, but it may lack its network or still accept Vagrant's well-known key.
        """
        unfinished = self._check(started)
        if unfinished:
            for name, why in unfinished.items():
                report(f"{name}: {why}; making it again")
            self._remake(list(unfinished), provider, report)
            if still := self._check(started):
                problems = "; ".join(f"{name}: {why}" for name, why in still.items())
                raise ProvisionError(
                    f"Not every machine came up as it should: {problems}.", f"read {log_path(self.home)}, then fab up again"
                )
        return list(unfinished)

    def _reach(self, report: Report) -> list[str]:
        """Restart the machines that run but cannot be reached; return their names, raise Unreachable if that does not help."""
        try:
            inventory.require_reachable(self)
        except Unreachable as error:
            for name, why in error.failed.items():
                report(f"{name}: {why}; restarting it")
                with self._vagrant("reload") as (command, _):
                    command.reload(vm_name=name)
            self.ssh_config(refresh=True)
            try:
                inventory.require_reachable(self)
            except Unreachable as still:
                raise Unreachable(still.failed, "fab destroy --target vagrant, then fab up") from still
            return list(error.failed)
        return []

    def _check(self, started: list[str]) -> dict[str, str]:
        """Write down host keys of machines that are new; return what is wrong with those, by name."""
        self.ssh_config(refresh=bool(started))
        known = self.recorded()
        new = [node for node in self.cluster.nodes if node.name not in known]
        if new:
            ids = self.ids()
            keys, wrong = inventory.examine(self.home, new)
            fresh = {
                node.name: {"id": ids[node.name], "address": node.address, "host_key": keys[node.name]} for node in new if node.name in keys
            }
            write_private(self._record, json.dumps({**known, **fresh}, indent=1, sort_keys=True) + "\n")
            return wrong
        return {}

    def _remake(self, names: list[str], provider: str, report: Report) -> None:
        for name in names:
            with self._vagrant("destroy") as (command, _):
                command.destroy(vm_name=name)
        self._bring_up(provider, report)

    def _bring_up(self, provider: str, report: Report) -> None:
        """Run `vagrant up` for all machines and report its lines; those that run are left alone."""
        with self._vagrant("up") as (command, log):
            for line in command.up(provider=provider, stream_output=True):
                log.write(line.encode())
                if text := progress_of(line):
                    report(text)

    def _vagrant(self, what: str) -> contextlib.AbstractContextManager[tuple[vagrant.Vagrant, IO[bytes]]]:
        return vagrant_for(self.home, self.folder, self.cluster, what)

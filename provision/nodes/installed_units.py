"""The units of what is installed on the nodes: which an install has started, as it wrote them down, and what they do now."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from provision.errors import UsageError
from provision.home import LabHome, read_json, write_private
from provision.nodes.session import Nodes
from provision.nodes.state import Desired
from provision.target import ProcessInfo, ServiceStatus

STATES = {"active": "RUNNING", "activating": "STARTING", "deactivating": "STOPPING", "failed": "FAILED", "inactive": "STOPPED"}


class InstalledUnits:
    """The units of whatever is installed now: the file is read anew each time, as every install changes it."""

    def __init__(self, home: LabHome, nodes: Callable[[], Nodes]) -> None:
        """`nodes` returns the nodes, connected."""
        self._file, self._nodes = home.state / "services.json", nodes

    def units(self) -> dict[str, dict[str, str]]:
        """Return the unit of each service, by node."""
        return read_json(self._file).get("units", {})

    def pids(self) -> dict[str, dict[str, int]]:
        """Return the main process of each service as it was started, by node; empty when nothing runs, or an install was cut off."""
        return read_json(self._file).get("pids", {})

    def delivery(self) -> dict[str, Any] | None:
        """Return how DAGs get to the pods; None where they read the nodes' folders, or there are none."""
        return read_json(self._file).get("delivery")

    def write_down(self, desired: Desired, delivery: Callable[[], dict[str, Any] | None]) -> None:
        """Write down the units that there are, then with which processes they run, and what `delivery` returns."""
        units = {state.node.name: {unit.service: unit.name for unit in state.units} for state in desired.nodes.values()}
        self._write({"units": units})
        states = self._nodes().each(lambda node: node.call("states", units=list(units[node.name].values())))
        pids = {node: {service: states[node][unit]["pid"] for service, unit in services.items()} for node, services in units.items()}
        self._write({"units": units, "pids": pids, "delivery": delivery()})

    def forget(self) -> None:
        """Write down that nothing runs."""
        self._write({})

    def _write(self, document: dict[str, Any]) -> None:
        write_private(self._file, json.dumps(document, sort_keys=True) + "\n")

    def status(self) -> list[ServiceStatus]:
        """Return every service; empty when nothing is installed."""
        units = self.units()
        seen = self._nodes().each(lambda node: node.call("states", units=list(units.get(node.name, {}).values())))
        rows = []
        for node, services in units.items():
            for service, unit in services.items():
                state = seen[node][unit]
                detail = "" if state["active"] == "active" else f"{state['result']}, exit code {state['status']}"
                name = STATES.get(state["active"], state["active"].upper())
                rows.append(ServiceStatus(service, node, name, state["pid"], state["memory"], f"journal of {unit}", detail))
        return rows

    def processes(self) -> list[ProcessInfo]:
        """Return every process, parents before children, node by node."""
        pids = self.pids()
        found = self._nodes().each(lambda node: node.call("process_table", services=pids.get(node.name, {})))
        return [ProcessInfo(**row) for rows in found.values() for row in rows]

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that the running services have used so far, ended processes included."""
        pids = self.pids()
        return sum(self._nodes().each(lambda node: node.call("cpu_seconds", pids=list(pids.get(node.name, {}).values()))).values())

    def ended(self) -> dict[str, list[str]]:
        """Return the services whose main process is not there any more, by node."""
        pids = self.pids()
        return self._nodes().each(lambda node: node.call("alive", pids=pids.get(node.name, {})))

    def log(self, service: str, lines: int) -> str:
        """Return the last lines that a service printed; raises UsageError for one that there is not."""
        for node, services in self.units().items():
            if service in services:
                return self._nodes()[node].call("journal", unit=services[service], lines=lines).rstrip()
        known = sorted(name for services in self.units().values() for name in services)
        raise UsageError(f"There is no service called {service!r}.", f"choose one of: {', '.join(known) or '(nothing is installed)'}")

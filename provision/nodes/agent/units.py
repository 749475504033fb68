"""The units of a node: what systemd says of them, and how they are started and stopped."""

from __future__ import annotations

import os
from typing import Any

from provision.nodes.agent.basics import Failure, read, run
from provision.nodes.agent.processes import memory_of, processes, tree

# Every unit writes down here the digest of what it was started with.
STARTED = "/run/airflow-labs"
UNITS = "/etc/systemd/system"
# What a unit says of itself beside what systemd reads: the program that clears up after it was stopped on purpose.
AFTER_STOP = "X-AirflowLabs-AfterStop="


def unit_state(unit: str) -> dict[str, Any]:
    """Return what systemd says of a unit, and the digest that its main process was started with."""
    keys = "ActiveState,SubState,UnitFileState,MainPID,ExecMainStatus,Result,NRestarts"
    shown = run(["systemctl", "show", unit, "-p", keys], check=False)["out"]
    state = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    pid = int(state.get("MainPID") or 0)
    return {
        "active": state.get("ActiveState", ""),
        "sub": state.get("SubState", ""),
        "enabled": state.get("UnitFileState", "") == "enabled",
        "pid": pid,
        "status": int(state.get("ExecMainStatus") or 0),
        "result": state.get("Result", ""),
        "restarts": int(state.get("NRestarts") or 0),
        "digest": read(os.path.join(STARTED, unit)).strip() if pid else "",
    }


def states(units: list[str]) -> dict[str, dict[str, Any]]:
    """Return the state of each unit, with its memory in bytes."""
    found = {unit: unit_state(unit) for unit in units}
    table = processes()
    for state in found.values():
        state["memory"] = sum(memory_of(pid) for pid in tree(state["pid"], table)) if state["pid"] else 0
    return found


def would_run(unit: str) -> bool:
    """Return whether a unit runs, or will with the next start of the node."""
    state = unit_state(unit)
    return state["enabled"] or state["active"] in ("active", "activating")


def journal(unit: str, lines: int) -> str:
    """Return the last lines that a unit printed, without the journal's own prefix."""
    return run(["journalctl", "-q", "-o", "cat", "-n", str(lines), "-u", unit], check=False)["out"]


def systemctl(verb: str, units: list[str]) -> None:
    """Reload systemd, or start, stop, enable or disable units; stopping waits until they have ended."""
    if verb == "daemon-reload" or units:
        run(["systemctl", verb, *units])


def start(units: list[str], wait: bool = True) -> None:
    """Start units and let them start with the node; those that failed before are given another chance.

    Without `wait` it is somebody else who looks when they are ready, or that they never are.
    """
    if units:
        run(["systemctl", "reset-failed", *units], check=False)
        run(["systemctl", "enable", "--quiet", *units], check=False)
        done = run(["systemctl", "start", *([] if wait else ["--no-block"]), *units], check=False)
        for unit in units if wait else []:
            if unit_state(unit)["active"] not in ("active", "activating"):
                raise Failure(f"{unit} did not start: {done['err'].strip()}\n{journal(unit, 10)}", "read what it printed, above")


def stop(units: list[str]) -> None:
    """Stop units and keep them from starting with the node; returns when they have ended, by themselves or killed for taking too long.

    What a unit says is to be run afterwards is run here: systemd itself runs its own such lines after a crash, too, and
    cannot tell one from the other by the exit code of every program.
    """
    if units:
        run(["systemctl", "stop", *units], check=False)
        for program in dict.fromkeys(after_stop(unit) for unit in units):
            # It may be gone already: an interrupted run goes on here.
            if program and os.path.exists(program):
                run([program], check=False)
        run(["systemctl", "disable", "--quiet", *units], check=False)
        # One that had to be killed counts as failed, also after its file is gone, and the node as degraded.
        run(["systemctl", "reset-failed", *units], check=False)


def after_stop(unit: str) -> str:
    """Return the program that a unit's file says is to be run once it was stopped; empty if there is none."""
    lines = read(os.path.join(UNITS, unit)).splitlines()
    return next((line.removeprefix(AFTER_STOP) for line in lines if line.startswith(AFTER_STOP)), "")

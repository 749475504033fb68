"""What kind of machine a node is, and how it differs from what it should be; nothing here changes anything."""

from __future__ import annotations

import glob
import os
import sys
import time
from typing import Any

from provision.nodes.agent.basics import read, run
from provision.nodes.agent.files import is_as, is_folder_as
from provision.nodes.agent.packages import missing_packages, trusts
from provision.nodes.agent.processes import PAGE, started
from provision.nodes.agent.units import unit_state, would_run
from provision.nodes.agent.users import account_of, user_numbers


def about() -> dict[str, Any]:
    """Return what kind of machine this node is; memory in MiB."""
    release = dict(line.split("=", 1) for line in read("/etc/os-release").splitlines() if "=" in line)
    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        "machine": os.uname().machine,
        "distribution": release.get("VERSION_ID", "").strip('"'),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * PAGE // 2**20,
    }


def facts(
    packages: list[str],
    user: str,
    folders: dict[str, dict],
    files: dict[str, dict],
    unwanted: list[str],
    units: list[str],
    ours: str,
    environment: str,
    current: str,
    distribution: list[str],
    clock: str,
    certificates: str,
    accounts: dict[str, dict[str, str] | None],
) -> dict[str, Any]:
    """Return how this node differs from what it should be; changes nothing.

    `files` are sha256 digests with owner, group and mode by path, `unwanted` paths or patterns of them, `ours` is the pattern of unit files that are the labs',
    `certificates` the digest of those that the node should trust, if there are any; `accounts` are home and shell of users
    by name, None for one that should not be there.
    """
    return {
        "packages": missing_packages(packages),
        "user": user_numbers(user),
        "accounts": [name for name, wanted in accounts.items() if account_of(name) != wanted],
        "folders": [path for path, wanted in folders.items() if not is_folder_as(path, wanted)],
        "files": [path for path, wanted in files.items() if not is_as(path, wanted)],
        "unwanted": [path for pattern in unwanted for path in sorted(glob.glob(pattern))],
        "units": {unit: unit_state(unit) for unit in units},
        "others": sorted({os.path.basename(path) for path in glob.glob(f"/etc/systemd/system/{ours}")} - set(units)),
        "distribution": [unit for unit in distribution if would_run(unit)],
        "clock": _clock_is_kept(clock),
        "trusted": not certificates or trusts(certificates),
        "environment": os.path.exists(environment) and os.path.realpath(current) == os.path.dirname(environment),
    }


def _clock_is_kept(configuration: str) -> bool:
    """Return whether chrony runs, and was started after its configuration was written; also if it is not there at all."""
    pid = unit_state("chrony.service")["pid"]
    if not os.path.exists(configuration):
        return True
    # Both are known to a second.
    return pid != 0 and started(pid) + 1 >= os.stat(configuration).st_mtime


def clock() -> float:
    """Return this node's time in epoch seconds."""
    return time.time()


def listeners() -> list[list[Any]]:
    """Return [address, port] of every TCP socket that listens."""
    shown = run(["ss", "-H", "-l", "-t", "-n"], check=False)["out"]
    return [[local.rpartition(":")[0], int(local.rpartition(":")[2])] for local in (line.split()[3] for line in shown.splitlines())]

"""The processes of a node as /proc shows them, and what they and the pods use."""

from __future__ import annotations

import glob
import os
from typing import Any

from provision.nodes.agent.basics import read

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


def alive(pids: dict[str, int]) -> list[str]:
    """Return the names of those processes that are not there any more."""
    return [name for name, pid in pids.items() if not os.path.exists(f"/proc/{pid}")]


def process_table(services: dict[str, int]) -> list[dict[str, Any]]:
    """Return every process of these services (main process ids by name), parents first; memory in bytes."""
    table, rows = processes(), []
    for service, main in services.items():
        for pid in tree(main, table):
            memory = memory_of(pid)
            parent, cpu = table[pid]["parent"], table[pid]["own"]
            rows.append(
                {
                    "pid": pid, "parent": parent, "service": service, "title": title(pid), "memory": _resident(pid),
                    "shared_memory": memory, "cpu_seconds": cpu,
                }
            )  # fmt: skip
    return rows


def cpu_seconds(pids: list[int]) -> float:
    """Return the CPU seconds that these processes and all below them have used, ended ones included."""
    table = processes()
    return sum(table[pid]["own"] + table[pid]["ended"] for main in pids for pid in tree(main, table))


def pods_usage() -> dict[str, float]:
    """Return the CPU seconds that the pods of this node have used so far, ended ones included, and their memory now in bytes."""
    second = sorted(glob.glob("/sys/fs/cgroup/kubepods*/cpu.stat"))
    if second:
        folder = os.path.dirname(second[0])
        used, memory = _number(second[0], "usage_usec") / 1e6, int(read(f"{folder}/memory.current") or 0)
        return {"cpu_seconds": used, "memory": memory - _number(f"{folder}/memory.stat", "inactive_file")}
    # The first version of control groups has a tree for each kind of resource.
    used = sum(int(read(path) or 0) for path in glob.glob("/sys/fs/cgroup/cpuacct/kubepods*/cpuacct.usage")) / 1e9
    memory = sum(
        int(read(f"{folder}/memory.usage_in_bytes") or 0) - _number(f"{folder}/memory.stat", "total_inactive_file")
        for folder in glob.glob("/sys/fs/cgroup/memory/kubepods*")
    )
    return {"cpu_seconds": used, "memory": memory}


def _number(path: str, key: str) -> int:
    return next((int(line.split()[1]) for line in read(path).splitlines() if line.startswith(f"{key} ")), 0)


def titles_below(pid: int) -> list[str]:
    """Return the titles of the children of a process."""
    table = processes()
    return [title(child) for child, entry in table.items() if entry["parent"] == pid]


def environment_of(pid: int, names: list[str]) -> dict[str, str | None]:
    """Return these variables of a process as it was started with."""
    there = _environment_of(pid)
    return {name: there.get(name) for name in names}


def started(pid: int) -> float:
    """Return when a process was started, in epoch seconds; 0 if it is not there."""
    boot = next((int(line.split()[1]) for line in read("/proc/stat").splitlines() if line.startswith("btime ")), 0)
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return boot + int(fields[19]) / TICKS if len(fields) > 19 else 0.0


def uid(pid: int) -> int:
    """Return the number of a process's user; -1 if it has ended."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def processes() -> dict[int, dict[str, Any]]:
    """Return the parent of every process by its id, and the CPU seconds of its own and of its ended children."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            times = [int(ticks) / TICKS for ticks in fields[11:15]]
            table[int(entry)] = {"parent": int(fields[1]), "own": times[0] + times[1], "ended": times[2] + times[3]}
    return table


def tree(main: int, table: dict[int, dict[str, Any]]) -> list[int]:
    """Return a process and all below it, parents first; empty if it has ended."""
    members = [main] if main in table else []
    for pid in members:
        members += [child for child, entry in table.items() if entry["parent"] == pid]
    return members


def _environment_of(pid: int) -> dict[str, str]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return dict(part.split("=", 1) for part in file.read().decode(errors="replace").split("\0") if "=" in part)
    except OSError:
        return {}


def title(pid: int) -> str:
    """Return the command line of a process without the paths in front; empty if it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = [word for word in file.read().decode(errors="replace").split("\0") if word]
    except OSError:
        return ""
    if len(words) > 1 and "/" in words[0]:
        words = [word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in words]
        words = words[1:] if words[0].startswith("python") else words
    return " ".join(words).strip()


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * PAGE
    except OSError:
        return 0


def memory_of(pid: int) -> int:
    """Return the memory of a process in bytes, shared pages counted in proportion where the kernel tells."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return _resident(pid)

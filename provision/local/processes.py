"""The processes of a local installation, as the operating system shows them."""

from __future__ import annotations

import psutil

from provision.home import LabHome
from provision.local.supervisor import owned_processes
from provision.target import ProcessInfo


def process_table(home: LabHome, services: dict[int, str]) -> list[ProcessInfo]:
    """Return every process of this home, parents before children; `services` names the main process of each service."""
    found = {}
    for process in owned_processes(home):
        try:
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info().rss
                found[process.pid] = (process.ppid(), _title(process), memory, times.user + times.system)
        except psutil.Error:
            continue
    shared = {pid: _proportional_memory(pid) for pid in found}
    rows = [
        ProcessInfo(pid, parent, _service(pid, found, services), title, memory, shared[pid], cpu)
        for pid, (parent, title, memory, cpu) in found.items()
    ]
    return sorted(rows, key=lambda row: (row.service, _depth(row.pid, found), row.pid))


def titles_below(pid: int) -> list[str]:
    """Return the titles of the children of a process; none if it has ended."""
    try:
        children = psutil.Process(pid).children()
    except psutil.Error:
        return []
    return [title for child in children if (title := _title_or_none(child))]


def _title_or_none(process: psutil.Process) -> str | None:
    try:
        return _title(process)
    except psutil.Error:
        return None


def _title(process: psutil.Process) -> str:
    words = process.cmdline()
    if len(words) > 1 and "/" in words[0]:
        # Python and script paths say less than what follows them.
        words = [w.rsplit("/", 1)[-1] if w.startswith("/") else w for w in words]
        if words[0].startswith("python"):
            words = words[1:]
    return " ".join(words).strip() or process.name()


def _service(pid: int, found: dict[int, tuple], services: dict[int, str]) -> str:
    while pid in found:
        if pid in services:
            return services[pid]
        pid = found[pid][0]
    return "supervisord"


def _depth(pid: int, found: dict[int, tuple]) -> int:
    depth = 0
    while pid in found:
        pid, depth = found[pid][0], depth + 1
    return depth


def _proportional_memory(pid: int) -> int:
    try:
        return getattr(psutil.Process(pid).memory_full_info(), "pss", 0)
    except psutil.Error:
        return 0


def tree_memory(pid: int) -> int:
    """Return the memory in bytes of a process and its children, shared pages counted once where the system tells."""
    if not pid:
        return 0
    total = 0
    try:
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            try:
                info = member.memory_full_info()
                total += getattr(info, "pss", 0) or info.rss
            except psutil.Error:
                continue
    except psutil.Error:
        return 0
    return total


def cpu_seconds(home: LabHome) -> float:
    """Return the CPU seconds that all processes of an installation have used so far, ended ones included.

    An ended process counts with the parent that waited for it; everything descends from supervisord.
    """
    root = psutil.Process(int((home.state / "supervisord.pid").read_text()))
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total

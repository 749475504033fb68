"""Every package of the Airflow environment as a file, filled once on this machine, for nodes that need no internet."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from provision import certificates
from provision.environments import uv_binary
from provision.errors import ProvisionError
from provision.home import LabHome, require_room
from provision.pins import HERE, airflow_lock

COMPLETE = "complete"
ROOM_MIB = 600
# What wheels are called that run on Debian 12 and later, newest first (PEP 600: glibc 2.36 and older).
GLIBC = (36, 35, 34, 31, 28, 27, 24, 17, 12, 5)


def wheelhouse_path(home: LabHome, python: str, machine: str) -> Path:
    """Return the folder of the wheels for nodes with this Python ("3.11") and machine ("x86_64")."""
    digest = hashlib.sha256(airflow_lock().read_bytes() + _uv_lock().read_bytes()).hexdigest()[:12]
    return home.shared / "wheelhouse" / f"{digest}-{python}-{machine}"


def fill(home: LabHome, python: str, machine: str, report: Callable[[str], None]) -> Path:
    """Return the wheelhouse after downloading what is missing, hashes checked; an interrupted download goes on where it was."""
    folder = wheelhouse_path(home, python, machine)
    if (folder / COMPLETE).exists():
        return folder
    require_room(folder, ROOM_MIB)
    folder.mkdir(parents=True, exist_ok=True)
    report(f"filling the wheelhouse for Python {python} on {machine} (once)")
    for lock in (airflow_lock(), _uv_lock()):
        requirements = folder / f"{lock.stem}.requirements"
        _run([str(uv_binary()), "pip", "compile", "--quiet", "--no-header", "--generate-hashes", "--no-deps", "--no-annotate"]
             + ["--python-version", python, "--python-platform", f"{machine}-manylinux_2_36", "-o", str(requirements), str(lock)])  # fmt: skip
        platforms = [word for minor in GLIBC for word in ("--platform", f"manylinux_2_{minor}_{machine}")]
        platforms += ["--platform", f"manylinux2014_{machine}", "--platform", f"manylinux2010_{machine}", "--platform", "any"]
        _run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
             + ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
             + ["-r", str(requirements), "-d", str(folder)])  # fmt: skip
    (folder / COMPLETE).write_text("every wheel is there\n")
    return folder


def requirements(folder: Path) -> str:
    """Return the lock as it holds for the nodes: exact versions with hashes, without markers."""
    return (folder / f"{airflow_lock().stem}.requirements").read_text()


def remove(home: LabHome) -> None:
    """Remove every wheelhouse of a home."""
    shutil.rmtree(home.shared / "wheelhouse", ignore_errors=True)


def _uv_lock() -> Path:
    return HERE / "locks" / "uv.txt"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, **certificates.variables()})
    if done.returncode:
        lines = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise ProvisionError(
            f"The wheelhouse could not be filled:\n  {lines}",
            "check the network, then run the same command again; what was downloaded is kept",
        )

"""Makes the control environment. Runs on a bare Python: standard library only.

`python3 provision/bootstrap.py` creates `.lab/control` (or `$LAB_HOME/control`), puts uv into it with
its hash checked, and lets uv install the locked requirements. Doing it again does nothing, until the
lock changes. It never touches the Python that it was started with.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
LOWEST, HIGHEST = (3, 11), (3, 13)
REQUIREMENTS = REPOSITORY / "requirements.txt"
UV_LOCK = REPOSITORY / "provision" / "locks" / "uv.txt"
NEEDED_MIB = 2500
# The same name as in provision/home.py, which cannot be imported here: it needs installed packages around it.
MARKER = "made-by-airflow-executor-labs"


class BootstrapError(Exception):
    """What went wrong, and what to do."""


def main() -> int:
    """Make the control environment unless it is there; return the exit code."""
    home = Path(os.environ.get("LAB_HOME") or REPOSITORY / ".lab").expanduser().resolve()
    control = home / "control"
    try:
        check_python()
        if is_current(control):
            return 0
        check_room(home)
        claim(home)
        build(control)
    except BootstrapError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the same command continues.", file=sys.stderr)
        return 130
    return 0


def check_python() -> None:
    """Raise BootstrapError unless this Python is one that Airflow and papermill both support."""
    if not LOWEST <= sys.version_info[:2] <= HIGHEST:
        found = ".".join(map(str, sys.version_info[:3]))
        wanted = f"{'.'.join(map(str, LOWEST))} to {'.'.join(map(str, HIGHEST))}"
        raise BootstrapError(
            f"Python {found} ({sys.executable}) cannot run the labs; they need {wanted}.\n"
            f"  Next: install one, then name it: make PYTHON=python3.{HIGHEST[1]} lab"
        )


def check_room(home: Path) -> None:
    """Raise BootstrapError unless both environments fit on the disk."""
    folder = next(p for p in (home, *home.parents) if p.exists())
    free = shutil.disk_usage(folder).free // 2**20
    if free < NEEDED_MIB:
        raise BootstrapError(
            f"No disk space: {folder} has {free} MiB free, {NEEDED_MIB} MiB are needed.\n"
            "  Next: free some, or put the lab elsewhere: make LAB_HOME=/path/to/folder lab"
        )


def claim(home: Path) -> None:
    """Mark the folder as a lab's; raise BootstrapError if somebody else keeps files in it."""
    if home.is_dir() and any(home.iterdir()) and not (home / MARKER).exists():
        raise BootstrapError(
            f"{home} is not empty and was not made for a lab.\n  Next: choose a new folder: make LAB_HOME=/path/to/new/folder lab"
        )
    home.mkdir(parents=True, exist_ok=True)
    (home / MARKER).touch()


def digest() -> str:
    """Return what identifies the environment: the locks, the project's description and this Python."""
    content = b"".join(p.read_bytes() for p in (REQUIREMENTS, UV_LOCK, REPOSITORY / "pyproject.toml"))
    return hashlib.sha256(content + sys.version.encode() + str(REPOSITORY).encode()).hexdigest()


def is_current(control: Path) -> bool:
    """Return whether the environment was made completely from these locks."""
    marker = control / "complete"
    return marker.exists() and marker.read_text().strip() == digest() and (control / "bin" / "labs").exists()


def build(control: Path) -> None:
    """Make the environment; a half-made one is replaced."""
    say(f"making the control environment in {control} (once)")
    shutil.rmtree(control, ignore_errors=True)
    control.parent.mkdir(parents=True, exist_ok=True)
    control.parent.chmod(0o700)
    python, uv = str(control / "bin" / "python"), str(control / "bin" / "uv")
    run([sys.executable, "-m", "venv", str(control)], "python3-venv is missing: on Debian and Ubuntu, apt install python3-venv")
    say("installing uv")
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", str(UV_LOCK)], NETWORK)
    say("installing the locked packages (200 MB to download the first time)")
    run([uv, "pip", "sync", "--quiet", "--require-hashes", "--python", python, str(REQUIREMENTS)], NETWORK)
    run(
        [uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--no-build-isolation", "-e", str(REPOSITORY)],
        "report this: the checkout itself could not be installed",
    )
    (control / "complete").write_text(digest() + "\n")
    say("control environment ready")


NETWORK = "check the network (behind a proxy: HTTPS_PROXY, private CA: SSL_CERT_FILE and PIP_CERT) and run the same command again"


def run(command: list[str], remedy: str) -> None:
    """Run a command; raise BootstrapError with its last lines if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = "\n  ".join(done.stdout.strip().splitlines()[-10:])
        raise BootstrapError(f"{' '.join(command[:4])} … failed (exit code {done.returncode}):\n  {lines}\n  Next: {remedy}")


BEGUN = time.monotonic()


def say(text: str) -> None:
    """Show progress."""
    print(f"{time.monotonic() - BEGUN:5.1f} s  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Resolves the locks anew: `make lock`. One lock holds for Python 3.11 to 3.13 on Linux and macOS."""

from __future__ import annotations

import subprocess

from provision.environments import uv_binary
from provision.home import REPOSITORY
from provision.pins import airflow_lock, pins

LOCKS = REPOSITORY / "provision" / "locks"


def main() -> None:
    """Write every lock from its .in file."""
    pairs = {
        airflow_lock().with_suffix(".in"): airflow_lock(),
        LOCKS / "control.in": REPOSITORY / "requirements.txt",
        LOCKS / "uv.in": LOCKS / "uv.txt",
    }
    for source, lock in pairs.items():
        print(f"resolving {source.relative_to(REPOSITORY)}", flush=True)
        command = [str(uv_binary()), "pip", "compile", "--universal", "--python-version", pins()["python"]["minimum"]]
        command += ["--generate-hashes", "--quiet", "--no-emit-index-url", "--no-emit-find-links"]
        command += ["--custom-compile-command", "make lock", "-o", str(lock.relative_to(REPOSITORY)), str(source.relative_to(REPOSITORY))]
        subprocess.run(command, cwd=REPOSITORY, check=True)


if __name__ == "__main__":
    main()

"""What every part of the agent uses: what it says, what went wrong, commands that are run, and files that are read."""

from __future__ import annotations

import base64
import json
import os
import pwd
import subprocess
import sys
import threading
from typing import Any


class Failure(Exception):
    """What went wrong on this node, and what to do about it."""

    def __init__(self, message: str, hint: str = "run the same command again") -> None:
        super().__init__(message)
        self.hint = hint


_speaking = threading.Lock()


def say(document: dict[str, Any]) -> None:
    """Write one line to whoever asked."""
    with _speaking:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()


def run(argv: list[str], user: str = "", environment: dict[str, str] | None = None, text: str = "", check: bool = True) -> dict[str, Any]:
    """Return exit code and output of a command, as `user`; raises Failure with its last lines unless `check` is False."""
    identity = {}
    if user:
        entry = pwd.getpwnam(user)
        identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(user, entry.pw_gid), "cwd": "/"}
    done = subprocess.run(
        argv, input=text, capture_output=True, text=True, errors="replace", env={**_clean(), **(environment or {})}, **identity
    )  # fmt: skip
    if check and done.returncode:
        lines = "\n".join(f"  {line}" for line in (done.stderr or done.stdout).strip().splitlines()[-10:])
        raise Failure(f"{' '.join(argv[:3])} failed (exit code {done.returncode}):\n{lines}")
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def ask(**args: Any) -> dict[str, Any]:
    """Return what `run` does, for a command that only looks: it need not wait for whoever changes this node."""
    return run(**args)


def feed(argv: list[str], data: str) -> None:
    """Let a command read `data` (base64) from its standard input; raises Failure with its last lines."""
    done = subprocess.run(argv, input=base64.b64decode(data), capture_output=True, env=_clean())
    if done.returncode:
        lines = "\n".join(f"  {line}" for line in done.stderr.decode(errors="replace").strip().splitlines()[-10:])
        raise Failure(f"{' '.join(argv[:3])} failed (exit code {done.returncode}):\n{lines}")


def run_reporting(argv: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the last JSON object that a command prints; those before it are its progress. Raises Failure with its last lines."""
    variables = {**_clean(), **(environment or {})}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=variables) as process:
        lines, found = [], {}
        for line in process.stdout:
            try:
                found = json.loads(line)
                if "progress" in found:
                    say(found)
            except ValueError:
                lines = [*lines[-9:], line]
    if process.returncode:
        raise Failure(f"{' '.join(argv[:2])} failed (exit code {process.returncode}):\n{''.join(f'  {line}' for line in lines)}")
    return found


def _clean() -> dict[str, str]:
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}


def read(path: str) -> str:
    """Return the text of a file; empty when there is none."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""

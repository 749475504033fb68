"""One user of an installation at a time: a file lock that names its holder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator

from provision.errors import ProvisionError
from provision.home import LabHome

# A run hands its lock to the kernels that it starts: they act for it, not against it.
HELD_VARIABLE = "AIRFLOW_LABS_LOCK"


@contextlib.contextmanager
def exclusive(home: LabHome, what: str) -> Iterator[None]:
    """Hold the lock of `home` while `what` runs; raises ProvisionError that names whoever holds it already."""
    held = os.environ.get(HELD_VARIABLE)
    if held == str(home.root):
        yield
        return
    home.prepare()
    with (home.root / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ProvisionError(
                f"{home.root} is in use: {_holder(file)}.",
                "wait for it or stop it with Ctrl-C; a second lab beside it needs its own LAB_HOME",
            ) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "what": what}))
        file.flush()
        os.environ[HELD_VARIABLE] = str(home.root)
        try:
            yield
        finally:
            # A throw-away installation is locked while its home is held: what was held before still is.
            del os.environ[HELD_VARIABLE]
            if held is not None:
                os.environ[HELD_VARIABLE] = held
            file.truncate(0)


def _holder(file) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return f"{holder['what']} (process {holder['pid']}) is running"
    except (ValueError, KeyError, TypeError):
        return "another command is running"

"""Requests, answered one after another; those that change the node wait until nobody else changes it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from provision.nodes.agent.basics import Failure, ask, feed, read, run, run_reporting, say
from provision.nodes.agent.files import contents, link, make_folders, names_in, remove, sizes_in, write_files
from provision.nodes.agent.looking import about, clock, facts, listeners
from provision.nodes.agent.packages import build_environment, install_packages, trust
from provision.nodes.agent.processes import alive, cpu_seconds, environment_of, pods_usage, process_table, titles_below
from provision.nodes.agent.repository import commit, is_committed
from provision.nodes.agent.units import journal, start, states, stop, systemctl
from provision.nodes.agent.users import make_user, renumber_user, set_accounts

BEAT_S = 10
# Whoever changes a node holds this. Longer than a worker may take to finish its tasks, which is the longest step.
LOCK, LOCK_WAIT_S, LOCK_LOOK_S = "/run/airflow-labs.lock", 1200, 1


def settle() -> None:
    """Return once nobody changes this node: what is seen from then on is not half done."""


CHANGING = (
    install_packages, trust, make_user, renumber_user, make_folders, write_files, remove, build_environment, link, systemctl, start, stop,
    run, run_reporting, settle, set_accounts, commit, feed,
)  # fmt: skip
OPS: dict[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (
        about, facts, states, alive, process_table, cpu_seconds, pods_usage, titles_below, environment_of, clock, listeners, journal, ask,
        names_in, sizes_in, read, contents, is_committed, *CHANGING,
    )
}  # fmt: skip


def answer(op: str, args: dict[str, Any], lock: str) -> Any:
    """Return what an operation returns; those that change something are done one after another, whoever asks."""
    with alone(op, lock) if OPS[op] in CHANGING else contextlib.nullcontext():
        return OPS[op](**args)


@contextlib.contextmanager
def alone(what: str, lock: str) -> Iterator[None]:
    """Hold the node's lock; while somebody else has it, say so and wait, and raise Failure if that takes too long.

    An agent whose client was killed goes on with its step. What comes next must not happen beside it.
    """
    with open(lock, "a+") as file:
        deadline, told = time.monotonic() + LOCK_WAIT_S, ""
        while not _locked(file):
            holder = _holder(file)
            if time.monotonic() > deadline:
                raise Failure(f"Another command still changes this node after {LOCK_WAIT_S // 60} minutes: {holder}.",
                              "let it finish, or end it (sudo kill and its process number, on the node), then run the same command again")  # fmt: skip
            if holder != told:
                told = holder
                say({"progress": f"waiting for another command that changes this node: {holder}"})
            time.sleep(LOCK_LOOK_S)
        file.truncate(0)
        file.write(f"{what}, process {os.getpid()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _locked(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _holder(file: Any) -> str:
    file.seek(0)
    return file.read() or "a copy of files"


def beat() -> None:
    """Say every few seconds that this node is still there, until nobody listens any more."""
    while True:
        time.sleep(BEAT_S)
        try:
            say({"beat": True})
        except OSError:
            return


def main(lock: str = LOCK) -> None:
    """Answer requests until nobody asks any more."""
    threading.Thread(target=beat, daemon=True).start()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say({"value": answer(request["op"], request["args"], lock)})
        except Failure as failure:
            say({"error": str(failure), "hint": failure.hint})
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            say({"error": f"{request['op']}: {error.strerror}{where}", "hint": "look at the node's disk and its folders"})

"""The users of a node: Airflow's, with its number, and those whose only way in is a key."""

from __future__ import annotations

import glob
import grp
import pwd
from collections.abc import Callable
from typing import Any

from provision.nodes.agent.basics import Failure, run
from provision.nodes.agent.processes import processes, title, uid

ANEW = "make the nodes anew: fab destroy --target vagrant, then fab up"


def user_numbers(name: str) -> list[int]:
    """Return the numbers of a user and its group; empty if there is none of that name."""
    try:
        entry = pwd.getpwnam(name)
        return [entry.pw_uid, entry.pw_gid]
    except KeyError:
        return []


def account_of(name: str) -> dict[str, str] | None:
    """Return home and shell of a user; None if there is none of that name."""
    entry = _has(pwd.getpwnam, name)
    return {"home": entry.pw_dir, "shell": entry.pw_shell} if entry else None


def make_user(name: str, number: int, home: str) -> None:
    """Make a system user that nobody can log in as, with this number and a group of its own with the same; one that is there stays as it is."""
    if user_numbers(name):
        return
    _require_free(name, number)
    # The group first, and apart: one that an interrupted run left is no error.
    if not _has(grp.getgrnam, name):
        run(["groupadd", "--system", "--gid", str(number), name])
    about = ["--home-dir", home, "--no-create-home", "--shell", "/usr/sbin/nologin"]
    run(["useradd", "--system", "--uid", str(number), "--gid", name, *about, name])


def set_accounts(accounts: dict[str, dict[str, str] | None]) -> None:
    """Make users whose only way in is a key, each with a group of its own, with home and shell; remove those that should not be there."""
    for name, wanted in accounts.items():
        if wanted is None:
            if account_of(name):
                # Whoever is logged in with the key that does not count any more.
                run(["pkill", "-KILL", "-u", name], check=False)
                run(["userdel", name])
            if _has(grp.getgrnam, name):
                run(["groupdel", name])
            continue
        if not _has(grp.getgrnam, name):
            run(["groupadd", "--system", name])
        if not account_of(name):
            # No password fits, and yet the account does not count as locked, which sshd would refuse.
            run(["useradd", "--system", "--gid", name, "--no-create-home", "--password", "*", name])
        if account_of(name) != wanted:
            run(["usermod", "--home", wanted["home"], "--shell", wanted["shell"], name])


def renumber_user(name: str, number: int, folders: list[str]) -> None:
    """Give a user and its group another number, and what was theirs below `folders` (patterns) to it; nothing of it may run."""
    user, group = user_numbers(name)
    _require_free(name, number)
    if busy := [title(pid) for pid in processes() if uid(pid) == user]:
        raise Failure(f"The user {name} cannot get the number {number}: {len(busy)} of its processes run, for example: {busy[0]}.", ANEW)
    # Files before the user: until then the old numbers are known, and an interrupted run can be repeated.
    for folder in (path for pattern in folders for path in glob.glob(pattern)):
        run(["chown", "-R", "-h", f"--from={user}", str(number), folder])
        run(["chown", "-R", "-h", f"--from=:{group}", f":{number}", folder])
    run(["groupmod", "--gid", str(number), name])
    run(["usermod", "--uid", str(number), name])


def _require_free(name: str, number: int) -> None:
    """Raise Failure if a user or group of another name has the number."""
    for kind, table in (("user", pwd.getpwuid), ("group", grp.getgrgid)):
        if (other := _has(table, number)) and other[0] != name:
            raise Failure(f"The {kind} {other[0]} has the number {number}, which {name} should have.", ANEW)


def _has(table: Callable[[Any], Any], key: Any) -> Any:
    try:
        return table(key)
    except KeyError:
        return None

"""Runs on a node as root: looks, writes, installs, starts and answers. Standard library only; sent over SSH, never stored there.

It reads one JSON request per line, {"op": name, "args": {…}}, and answers each with lines of JSON: any number of
{"progress": text}, then {"value": …} or {"error": text, "hint": text}. What it is told may hold secrets; it never prints any.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import glob
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

# Every unit writes down here the digest of what it was started with.
STARTED = "/run/airflow-labs"
UNITS = "/etc/systemd/system"
# What a unit says of itself beside what systemd reads: the program that clears up after it was stopped on purpose.
AFTER_STOP = "X-AirflowLabs-AfterStop="
BEAT_S = 10
# Whoever changes a node holds this. Longer than a worker may take to finish its tasks, which is the longest step.
LOCK, LOCK_WAIT_S, LOCK_LOOK_S = "/run/airflow-labs.lock", 1200, 1
MIRROR_S = 10
# The second is what Debian's own command makes of the first.
CERTIFICATES, TRUSTED = "/usr/local/share/ca-certificates/airflow-labs.crt", "/etc/ssl/certs/airflow-labs.pem"
POLICY, POLICY_MARK = "/usr/sbin/policy-rc.d", "# while Airflow Executor Labs install packages"
ANEW = "make the nodes anew: fab destroy --target vagrant, then fab up"
APT_LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock")
# A machine that is new upgrades itself, with as many packages as its box is old.
APT_WAIT_S, APT_SAY_S, APT_LOOK_S = 1800, 60, 2
# Nobody's settings but the agent's own.
_GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "airflow-labs"), ("EMAIL", "airflow-labs@localhost"))},
}  # fmt: skip
# How the last line of a commit's message begins.
_CONTENT = "Content: "
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


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


def beat() -> None:
    """Say every few seconds that this node is still there, until nobody listens any more."""
    while True:
        time.sleep(BEAT_S)
        try:
            say({"beat": True})
        except OSError:
            return


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


def ask(**args: Any) -> dict[str, Any]:
    """Return what `run` does, for a command that only looks: it need not wait for whoever changes this node."""
    return run(**args)


# -- looking ----------------------------------------------------------------------------------------------------------


def about() -> dict[str, Any]:
    """Return what kind of machine this node is; memory in MiB."""
    release = dict(line.split("=", 1) for line in read("/etc/os-release").splitlines() if "=" in line)
    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        "machine": os.uname().machine,
        "distribution": release.get("VERSION_ID", "").strip('"'),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * PAGE // 2**20,
    }


def facts(
    packages: list[str],
    user: str,
    folders: dict[str, dict],
    files: dict[str, dict],
    unwanted: list[str],
    units: list[str],
    ours: str,
    environment: str,
    current: str,
    distribution: list[str],
    clock: str,
    certificates: str,
    accounts: dict[str, dict[str, str] | None],
) -> dict[str, Any]:
    """Return how this node differs from what it should be; changes nothing.

    `files` are sha256 digests with owner, group and mode by path, `unwanted` paths or patterns of them, `ours` is the pattern of unit files that are the labs',
    `certificates` the digest of those that the node should trust, if there are any; `accounts` are home and shell of users
    by name, None for one that should not be there.
    """
    return {
        "packages": missing_packages(packages),
        "user": user_numbers(user),
        "accounts": [name for name, wanted in accounts.items() if _account(name) != wanted],
        "folders": [path for path, wanted in folders.items() if not _is_folder_as(path, wanted)],
        "files": [path for path, wanted in files.items() if not _is_as(path, wanted)],
        "unwanted": [path for pattern in unwanted for path in sorted(glob.glob(pattern))],
        "units": {unit: unit_state(unit) for unit in units},
        "others": sorted({os.path.basename(path) for path in glob.glob(f"/etc/systemd/system/{ours}")} - set(units)),
        "distribution": [unit for unit in distribution if _would_run(unit)],
        "clock": _clock_is_kept(clock),
        "trusted": not certificates or _trusts(certificates),
        "environment": os.path.exists(environment) and os.path.realpath(current) == os.path.dirname(environment),
    }


def _would_run(unit: str) -> bool:
    state = unit_state(unit)
    return state["enabled"] or state["active"] in ("active", "activating")


def _trusts(digest: str) -> bool:
    return hashlib.sha256(read(CERTIFICATES).encode()).hexdigest() == digest and os.path.exists(TRUSTED)


def _clock_is_kept(configuration: str) -> bool:
    """Return whether chrony runs, and was started after its configuration was written; also if it is not there at all."""
    pid = unit_state("chrony.service")["pid"]
    if not os.path.exists(configuration):
        return True
    # Both are known to a second.
    return pid != 0 and _started(pid) + 1 >= os.stat(configuration).st_mtime


def _started(pid: int) -> float:
    """Return when a process was started, in epoch seconds; 0 if it is not there."""
    boot = next((int(line.split()[1]) for line in read("/proc/stat").splitlines() if line.startswith("btime ")), 0)
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return boot + int(fields[19]) / TICKS if len(fields) > 19 else 0.0


def missing_packages(names: list[str]) -> list[str]:
    """Return those packages of the distribution that are not installed."""
    shown = run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package}\n", *names], check=False)["out"]
    there = {line.split()[1] for line in shown.splitlines() if line.startswith("ii")}
    return [name for name in names if name not in there]


def _is_as(path: str, wanted: dict[str, Any]) -> bool:
    try:
        status = os.stat(path)
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        return (digest, status.st_mode & 0o7777, pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name) == (
            wanted["sha256"], int(wanted["mode"], 8), wanted["owner"], wanted["group"],
        )  # fmt: skip
    except (OSError, KeyError):
        return False


def _is_folder_as(path: str, wanted: dict[str, Any]) -> bool:
    try:
        status = os.lstat(path)
        found = (stat.S_IMODE(status.st_mode), pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name)
        return stat.S_ISDIR(status.st_mode) and found == (int(wanted["mode"], 8), wanted["owner"], wanted["group"])
    except (OSError, KeyError):
        return False


def user_numbers(name: str) -> list[int]:
    """Return the numbers of a user and its group; empty if there is none of that name."""
    try:
        entry = pwd.getpwnam(name)
        return [entry.pw_uid, entry.pw_gid]
    except KeyError:
        return []


def _account(name: str) -> dict[str, str] | None:
    entry = _has(pwd.getpwnam, name)
    return {"home": entry.pw_dir, "shell": entry.pw_shell} if entry else None


def unit_state(unit: str) -> dict[str, Any]:
    """Return what systemd says of a unit, and the digest that its main process was started with."""
    keys = "ActiveState,SubState,UnitFileState,MainPID,ExecMainStatus,Result,NRestarts"
    shown = run(["systemctl", "show", unit, "-p", keys], check=False)["out"]
    state = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    pid = int(state.get("MainPID") or 0)
    return {
        "active": state.get("ActiveState", ""),
        "sub": state.get("SubState", ""),
        "enabled": state.get("UnitFileState", "") == "enabled",
        "pid": pid,
        "status": int(state.get("ExecMainStatus") or 0),
        "result": state.get("Result", ""),
        "restarts": int(state.get("NRestarts") or 0),
        "digest": read(os.path.join(STARTED, unit)).strip() if pid else "",
    }


def states(units: list[str]) -> dict[str, dict[str, Any]]:
    """Return the state of each unit, with its memory in bytes."""
    found = {unit: unit_state(unit) for unit in units}
    table = _processes()
    for state in found.values():
        state["memory"] = sum(_memory(pid) for pid in _tree(state["pid"], table)) if state["pid"] else 0
    return found


def alive(pids: dict[str, int]) -> list[str]:
    """Return the names of those processes that are not there any more."""
    return [name for name, pid in pids.items() if not os.path.exists(f"/proc/{pid}")]


def process_table(services: dict[str, int]) -> list[dict[str, Any]]:
    """Return every process of these services (main process ids by name), parents first; memory in bytes."""
    table, rows = _processes(), []
    for service, main in services.items():
        for pid in _tree(main, table):
            memory = _memory(pid)
            parent, cpu = table[pid]["parent"], table[pid]["own"]
            rows.append(
                {
                    "pid": pid, "parent": parent, "service": service, "title": _title(pid), "memory": _resident(pid),
                    "shared_memory": memory, "cpu_seconds": cpu,
                }
            )  # fmt: skip
    return rows


def cpu_seconds(pids: list[int]) -> float:
    """Return the CPU seconds that these processes and all below them have used, ended ones included."""
    table = _processes()
    return sum(table[pid]["own"] + table[pid]["ended"] for main in pids for pid in _tree(main, table))


def pods_usage() -> dict[str, float]:
    """Return the CPU seconds that the pods of this node have used so far, ended ones included, and their memory now in bytes."""
    second = sorted(glob.glob("/sys/fs/cgroup/kubepods*/cpu.stat"))
    if second:
        folder = os.path.dirname(second[0])
        used, memory = _number(second[0], "usage_usec") / 1e6, int(read(f"{folder}/memory.current") or 0)
        return {"cpu_seconds": used, "memory": memory - _number(f"{folder}/memory.stat", "inactive_file")}
    # The first version of control groups has a tree for each kind of resource.
    used = sum(int(read(path) or 0) for path in glob.glob("/sys/fs/cgroup/cpuacct/kubepods*/cpuacct.usage")) / 1e9
    memory = sum(
        int(read(f"{folder}/memory.usage_in_bytes") or 0) - _number(f"{folder}/memory.stat", "total_inactive_file")
        for folder in glob.glob("/sys/fs/cgroup/memory/kubepods*")
    )
    return {"cpu_seconds": used, "memory": memory}


def _number(path: str, key: str) -> int:
    return next((int(line.split()[1]) for line in read(path).splitlines() if line.startswith(f"{key} ")), 0)


def titles_below(pid: int) -> list[str]:
    """Return the titles of the children of a process."""
    table = _processes()
    return [_title(child) for child, entry in table.items() if entry["parent"] == pid]


def environment_of(pid: int, names: list[str]) -> dict[str, str | None]:
    """Return these variables of a process as it was started with."""
    there = _environment_of(pid)
    return {name: there.get(name) for name in names}


def _processes() -> dict[int, dict[str, Any]]:
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            times = [int(ticks) / TICKS for ticks in fields[11:15]]
            table[int(entry)] = {"parent": int(fields[1]), "own": times[0] + times[1], "ended": times[2] + times[3]}
    return table


def _tree(main: int, table: dict[int, dict[str, Any]]) -> list[int]:
    members = [main] if main in table else []
    for pid in members:
        members += [child for child, entry in table.items() if entry["parent"] == pid]
    return members


def _environment_of(pid: int) -> dict[str, str]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return dict(part.split("=", 1) for part in file.read().decode(errors="replace").split("\0") if "=" in part)
    except OSError:
        return {}


def _title(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = [word for word in file.read().decode(errors="replace").split("\0") if word]
    except OSError:
        return ""
    if len(words) > 1 and "/" in words[0]:
        words = [word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in words]
        words = words[1:] if words[0].startswith("python") else words
    return " ".join(words).strip()


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * PAGE
    except OSError:
        return 0


def _memory(pid: int) -> int:
    """Return the memory of a process in bytes, shared pages counted in proportion where the kernel tells."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return _resident(pid)


def clock() -> float:
    """Return this node's time in epoch seconds."""
    return time.time()


def listeners() -> list[list[Any]]:
    """Return [address, port] of every TCP socket that listens."""
    shown = run(["ss", "-H", "-l", "-t", "-n"], check=False)["out"]
    return [[local.rpartition(":")[0], int(local.rpartition(":")[2])] for local in (line.split()[3] for line in shown.splitlines())]


def journal(unit: str, lines: int) -> str:
    """Return the last lines that a unit printed, without the journal's own prefix."""
    return run(["journalctl", "-q", "-o", "cat", "-n", str(lines), "-u", unit], check=False)["out"]


# -- changing ---------------------------------------------------------------------------------------------------------


def require_mirror(proxy: str) -> None:
    """Raise Failure unless the package mirror, or the proxy to it, answers: apt alone would try for many minutes."""
    # What the node's own apt.conf says of proxies is apt's to find out.
    if not proxy and re.search(r'^Acquire::https?::Proxy "[^"]+', run(["apt-config", "dump"], check=False)["out"], flags=re.M):
        return
    asked = proxy or run(["apt-get", "indextargets", "--format", "$(URI)"], check=False)["out"]
    hosts = list(dict.fromkeys(re.findall(r"^(https?)://(?:[^/@\s]*@)?([^/:\s]+)(?::(\d+))?", asked, flags=re.M)))
    problem = ""
    for scheme, host, port in hosts:
        try:
            socket.create_connection((host, int(port or {"http": 80, "https": 443}[scheme])), timeout=MIRROR_S).close()
            return
        except OSError as error:
            problem = f"The package {'proxy' if proxy else 'mirror'} {host}{':' + port if port else ''} cannot be reached: {error.strerror or error}."
    if problem:
        raise Failure(
            problem,
            "give the node a way to its package mirror, or name a proxy: LAB_PACKAGE_PROXY=http://host:port; then run the same command again",
        )


def lock_holder(path: str) -> str:
    """Return which program has locked a file, without locking it; empty if none has."""
    layout = "hhqqi"
    try:
        with open(path, "rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError:
        return ""
    kind, _, _, _, pid = struct.unpack(layout, answer)
    if kind == fcntl.F_UNLCK:
        return ""
    return f"{read(f'/proc/{pid}/comm').strip() or 'a program'} (process {pid})"


def wait_for_apt() -> None:
    """Return once no other program installs packages or reads the package lists; raises Failure if one never ends."""
    begun, told = time.monotonic(), 0.0
    while holder := next(filter(None, map(lock_holder, APT_LOCKS)), ""):
        now = time.monotonic()
        if now - begun > APT_WAIT_S:
            raise Failure(f"{holder} has kept apt locked for {APT_WAIT_S // 60} minutes.",
                          "let it finish, or end it if it hangs (vagrant ssh), then run the same command again")  # fmt: skip
        if not told or now - told > APT_SAY_S:
            told = now
            say({"progress": f"waiting for {holder}, which uses apt" + (f": {now - begun:.0f} s so far" if now - begun > 1 else "")})
        time.sleep(APT_LOOK_S)


def run_apt(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Return exit code and output of a command that needs apt's locks, once nobody else has them."""
    deadline = time.monotonic() + APT_WAIT_S
    while True:
        wait_for_apt()
        done = run(command, environment=environment, check=False)
        # Somebody may have been faster.
        if not done["code"] or not re.search("Could not get lock|locked by another process", done["err"]) or time.monotonic() > deadline:
            return done
        time.sleep(APT_LOOK_S)


def install_packages(names: list[str], proxy: str) -> None:
    """Install packages of the distribution; none of their services is started by that."""
    require_mirror(proxy)
    wait_for_apt()
    environment = {"DEBIAN_FRONTEND": "noninteractive", **({"http_proxy": proxy, "https_proxy": proxy} if proxy else {})}
    options = ["-o", "Acquire::Retries=2", "-o", "Dpkg::Options::=--force-confold"]
    # One with our mark was left by an install that was cut off.
    own_policy = not os.path.exists(POLICY) or POLICY_MARK in read(POLICY)
    if own_policy:
        with open(POLICY, "w") as file:
            file.write(f"#!/bin/sh\n{POLICY_MARK}\nexit 101\n")
        os.chmod(POLICY, 0o755)
    try:
        if run(["dpkg", "--audit"], check=False)["out"].strip():
            say({"progress": "finishing an installation that was interrupted"})
            run_apt(["dpkg", "--configure", "-a", "--force-confold"], environment)
        command = ["apt-get", *options, "install", "-y", "-q", "--no-install-recommends", *names]
        say({"progress": f"installing {', '.join(names)}"})
        # The lists may be older than what the mirror still has.
        first = run_apt(command, environment)
        if first["code"]:
            say({"progress": "asking the package mirror what there is"})
            run_apt(["apt-get", *options, "update", "-q"], environment)
            last = run_apt(command, environment)
            if last["code"]:
                lines = "\n".join(f"  {line}" for line in last["err"].strip().splitlines()[-6:])
                raise Failure(f"The packages {', '.join(names)} could not be installed:\n{lines}",
                              "check that the node reaches its package mirror (apt-get update), then run the same command again")  # fmt: skip
    finally:
        if own_policy:
            os.unlink(POLICY)


def trust(text: str) -> None:
    """Let every program of this node trust these certificates, besides those of the distribution."""
    write_files({CERTIFICATES: {"text": text, "owner": "root", "group": "root", "mode": "0644"}})
    run(["update-ca-certificates"])


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
            if _account(name):
                # Whoever is logged in with the key that does not count any more.
                run(["pkill", "-KILL", "-u", name], check=False)
                run(["userdel", name])
            if _has(grp.getgrnam, name):
                run(["groupdel", name])
            continue
        if not _has(grp.getgrnam, name):
            run(["groupadd", "--system", name])
        if not _account(name):
            # No password fits, and yet the account does not count as locked, which sshd would refuse.
            run(["useradd", "--system", "--gid", name, "--no-create-home", "--password", "*", name])
        if _account(name) != wanted:
            run(["usermod", "--home", wanted["home"], "--shell", wanted["shell"], name])


def renumber_user(name: str, number: int, folders: list[str]) -> None:
    """Give a user and its group another number, and what was theirs below `folders` (patterns) to it; nothing of it may run."""
    user, group = user_numbers(name)
    _require_free(name, number)
    if busy := [_title(pid) for pid in _processes() if _uid(pid) == user]:
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


def _uid(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def make_folders(folders: dict[str, dict[str, str]]) -> None:
    """Make folders with owner, group and mode, by path."""
    for path, wanted in folders.items():
        # Services may have put a link into a folder of theirs; root must not follow it.
        if os.path.islink(path):
            raise Failure(f"{path} is a link, and should be a folder.", f"look who made it (ls -l {path}), and remove it")
        os.makedirs(path, exist_ok=True)
        shutil.chown(path, wanted["owner"], wanted["group"])
        os.chmod(path, int(wanted["mode"], 8))


def write_files(files: dict[str, dict[str, str]]) -> list[str]:
    """Replace files in one step each; each has text, owner, group and mode. Return the paths of those that were not so already."""
    changed = []
    for path, wanted in files.items():
        digest = hashlib.sha256(wanted["text"].encode()).hexdigest()
        if _is_as(path, {**wanted, "sha256": digest}):
            # Untouched: whoever reads it knows by its time whether it is newer than what he read.
            continue
        changed.append(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.new"
        # Anew and by its descriptor: a link that a service put there is not followed.
        remove([temporary])
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(wanted["text"])
            file.flush()
            os.fchown(descriptor, pwd.getpwnam(wanted["owner"]).pw_uid, grp.getgrnam(wanted["group"]).gr_gid)
            os.fchmod(descriptor, int(wanted["mode"], 8))
        try:
            os.replace(temporary, path)
        except OSError:
            # A container's /etc/hosts is a mount, which can be written but not replaced.
            os.unlink(temporary)
            with open(path, "w") as file:
                file.write(wanted["text"])
            os.chmod(path, int(wanted["mode"], 8))
    return changed


def remove(paths: list[str]) -> None:
    """Remove files and folders, which may be patterns; what is not there is no error."""
    for path in (found for pattern in paths for found in glob.glob(pattern)):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        elif os.path.lexists(path):
            os.unlink(path)


def contents(root: str, folders: list[str]) -> dict[str, str]:
    """Return every file of some folders below `root` in base64, by its path from there; what Python or this agent writes beside is none."""
    found = {}
    for folder in folders:
        for where, inner, names in os.walk(os.path.join(root, folder)):
            inner[:] = [name for name in inner if name != "__pycache__"]
            for path in (os.path.join(where, name) for name in names if not name.endswith(".new")):
                if os.path.isfile(path) and not os.path.islink(path):
                    with open(path, "rb") as file:
                        found[os.path.relpath(path, root)] = base64.b64encode(file.read()).decode()
    return dict(sorted(found.items()))


def is_committed(repository: str, group: str, root: str, folders: list[str]) -> bool:
    """Return whether the last commit of a repository is what its folders hold now."""
    return _committed(repository) == _digest_of(contents(root, folders))


def commit(repository: str, group: str, root: str, folders: list[str]) -> None:
    """Commit what some folders below `root` hold to a bare repository that `group` may read; it is made if it is not there."""
    files = contents(root, folders)
    if _committed(repository) == _digest_of(files):
        return
    try:
        _commit(repository, group, root, files)
    except Failure:
        # An interrupted git leaves locks, or half a repository; nothing is in it that is not in the folders.
        remove([repository])
        _commit(repository, group, root, files)


def _commit(repository: str, group: str, root: str, files: dict[str, str]) -> None:
    if not os.path.exists(os.path.join(repository, "HEAD")):
        make_folders({repository: {"owner": "root", "group": group, "mode": "2750"}})
        run(["git", "init", "--quiet", "--bare", "--shared=0640", "--initial-branch=main", repository], environment=_GIT)
    git = ["git", f"--git-dir={repository}", f"--work-tree={root}", "-c", "gc.autoDetach=false", "--literal-pathspecs"]
    run([*git, "read-tree", "--empty"], environment=_GIT)
    run([*git, "add", "--force", "--pathspec-from-file=-", "--pathspec-file-nul"], environment=_GIT, text="\0".join(files))
    message = f"DAGs as they are on the control node\n\n{_CONTENT}{_digest_of(files)}\n"
    run([*git, "commit", "--quiet", "--allow-empty", "--no-verify", "--file=-"], environment=_GIT, text=message)


def _committed(repository: str) -> str:
    # Without a repository there is perhaps no git either.
    if not os.path.isdir(repository):
        return ""
    message = run(["git", f"--git-dir={repository}", "log", "-1", "--format=%B"], environment=_GIT, check=False)["out"]
    last = message.strip().rpartition("\n")[2]
    return last.removeprefix(_CONTENT) if last.startswith(_CONTENT) else ""


def _digest_of(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def names_in(folder: str, pattern: str) -> list[str]:
    """Return the names of the files in a folder that match a pattern, sorted."""
    return sorted(os.path.basename(path) for path in glob.glob(os.path.join(folder, pattern)))


def sizes_in(folder: str) -> dict[str, int]:
    """Return the sizes of the files in a folder in bytes, by name, sorted."""
    return {name: os.path.getsize(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}


def read(path: str) -> str:
    """Return the text of a file; empty when there is none."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def build_environment(path: str, wheelhouse: str, lock: str, current: str) -> None:
    """Install the lock from the wheelhouse into a virtual environment, and make `current` lead to it in one step."""
    uv = os.path.join(wheelhouse, "uv")
    (wheel,) = glob.glob(os.path.join(wheelhouse, "uv-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if re.fullmatch(r"uv-[^/]+\.data/scripts/uv", name)]
        with archive.open(member) as source, open(uv, "wb") as target:
            shutil.copyfileobj(source, target)
    os.chmod(uv, 0o755)
    remove([path])
    cache = {"UV_CACHE_DIR": os.path.join(wheelhouse, "cache"), "UV_NO_CONFIG": "1", "UV_OFFLINE": "1"}
    say({"progress": "installing Airflow from the wheelhouse"})
    run([uv, "venv", "--quiet", "--no-python-downloads", "--python", sys.executable, path], environment=cache)
    sync = [uv, "pip", "sync", "--quiet", "--no-index", "--find-links", wheelhouse, "--require-hashes", "--link-mode", "hardlink"]
    run([*sync, "--python", f"{path}/bin/python", "-"], environment=cache, text=lock)
    remove([wheelhouse])
    with open(os.path.join(path, "complete"), "w") as file:
        file.write("every package is there\n")
    link(current, path)


def link(name: str, path: str) -> None:
    """Make the symbolic link `name` lead to `path`, in one step."""
    if os.path.realpath(name) != path:
        temporary = f"{name}.new"
        remove([temporary])
        os.symlink(path, temporary)
        os.replace(temporary, name)


def systemctl(verb: str, units: list[str]) -> None:
    """Reload systemd, or start, stop, enable or disable units; stopping waits until they have ended."""
    if verb == "daemon-reload" or units:
        run(["systemctl", verb, *units])


def start(units: list[str], wait: bool = True) -> None:
    """Start units and let them start with the node; those that failed before are given another chance.

    Without `wait` it is somebody else who looks when they are ready, or that they never are.
    """
    if units:
        run(["systemctl", "reset-failed", *units], check=False)
        run(["systemctl", "enable", "--quiet", *units], check=False)
        done = run(["systemctl", "start", *([] if wait else ["--no-block"]), *units], check=False)
        for unit in units if wait else []:
            if unit_state(unit)["active"] not in ("active", "activating"):
                raise Failure(f"{unit} did not start: {done['err'].strip()}\n{journal(unit, 10)}", "read what it printed, above")


def stop(units: list[str]) -> None:
    """Stop units and keep them from starting with the node; returns when they have ended, by themselves or killed for taking too long.

    What a unit says is to be run afterwards is run here: systemd itself runs its own such lines after a crash, too, and
    cannot tell one from the other by the exit code of every program.
    """
    if units:
        run(["systemctl", "stop", *units], check=False)
        for program in dict.fromkeys(after_stop(unit) for unit in units):
            # It may be gone already: an interrupted run goes on here.
            if program and os.path.exists(program):
                run([program], check=False)
        run(["systemctl", "disable", "--quiet", *units], check=False)
        # One that had to be killed counts as failed, also after its file is gone, and the node as degraded.
        run(["systemctl", "reset-failed", *units], check=False)


def after_stop(unit: str) -> str:
    """Return the program that a unit's file says is to be run once it was stopped; empty if there is none."""
    lines = read(os.path.join(UNITS, unit)).splitlines()
    return next((line.removeprefix(AFTER_STOP) for line in lines if line.startswith(AFTER_STOP)), "")


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


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What is installed on a node: packages of its distribution, certificates, and the Airflow environment."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import re
import shutil
import socket
import struct
import sys
import time
import zipfile
from typing import Any

from provision.nodes.agent.basics import Failure, read, run, say
from provision.nodes.agent.files import link, remove, write_files

MIRROR_S = 10
# The second is what Debian's own command makes of the first.
CERTIFICATES, TRUSTED = "/usr/local/share/ca-certificates/airflow-labs.crt", "/etc/ssl/certs/airflow-labs.pem"
POLICY, POLICY_MARK = "/usr/sbin/policy-rc.d", "# while Airflow Executor Labs install packages"
APT_LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock")
# A machine that is new upgrades itself, with as many packages as its box is old.
APT_WAIT_S, APT_SAY_S, APT_LOOK_S = 1800, 60, 2


def missing_packages(names: list[str]) -> list[str]:
    """Return those packages of the distribution that are not installed."""
    shown = run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package}\n", *names], check=False)["out"]
    there = {line.split()[1] for line in shown.splitlines() if line.startswith("ii")}
    return [name for name in names if name not in there]


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


def trusts(digest: str) -> bool:
    """Return whether the node trusts the certificates with this digest."""
    return hashlib.sha256(read(CERTIFICATES).encode()).hexdigest() == digest and os.path.exists(TRUSTED)


def trust(text: str) -> None:
    """Let every program of this node trust these certificates, besides those of the distribution."""
    write_files({CERTIFICATES: {"text": text, "owner": "root", "group": "root", "mode": "0644"}})
    run(["update-ca-certificates"])


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

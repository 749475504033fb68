"""Which of Vagrant's providers this machine can use, and what to install for the others."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from provision.errors import ProvisionError, UsageError

# In this order one is chosen when none is named: virtual machines are the real thing, containers the replacement.
PROVIDERS = ("virtualbox", "libvirt", "docker")
OLDEST_VAGRANT = (2, 3)
LIBVIRT_SOCKETS = ("/run/libvirt/libvirt-sock", "/var/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")
ANSWER_TIMEOUT_S = 30

# What to do by platform.system(); what is not listed gets the words for Debian.
_INSTALL = {
    "vagrant": {
        "Linux": "sudo apt-get install vagrant, or see https://developer.hashicorp.com/vagrant/install",
        "Darwin": "brew install --cask vagrant, or see https://developer.hashicorp.com/vagrant/install",
        "Windows": "winget install Hashicorp.Vagrant, or see https://developer.hashicorp.com/vagrant/install",
    },
    "virtualbox": {
        "Linux": "install VirtualBox as https://www.virtualbox.org/wiki/Linux_Downloads says for your distribution",
        "Darwin": "brew install --cask virtualbox",
        "Windows": "winget install Oracle.VirtualBox",
    },
    "libvirt": {
        "Linux": "sudo apt-get install vagrant-libvirt libvirt-daemon-system, then sudo adduser $USER libvirt and log in again",
        "Darwin": "use virtualbox or docker: libvirt is for Linux",
        "Windows": "use virtualbox or docker: libvirt is for Linux",
    },
    "docker": {
        "Linux": "sudo apt-get install docker.io, then sudo adduser $USER docker and log in again",
        "Darwin": "use virtualbox: the addresses of Docker Desktop's containers cannot be reached",
        "Windows": "use virtualbox: the addresses of Docker Desktop's containers cannot be reached",
    },
}


def how_to_install(what: str) -> str:
    """Return what to do on this system to get Vagrant or a provider."""
    words = _INSTALL[what]
    return words.get(platform.system(), words["Linux"])


def require_vagrant() -> None:
    """Raise ProvisionError unless there is a Vagrant that is new enough."""
    if shutil.which("vagrant") is None:
        raise ProvisionError("Vagrant is not installed; the cluster's machines are made with it.", how_to_install("vagrant"))
    version = parse_version(_answer(["vagrant", "--version"])[1])
    if version < OLDEST_VAGRANT:
        found, oldest = (".".join(map(str, numbers)) for numbers in (version, OLDEST_VAGRANT))
        raise ProvisionError(f"Vagrant {found} is too old: {oldest} or later is needed.", how_to_install("vagrant"))


def parse_version(text: str) -> tuple[int, ...]:
    """Return the first version number in `text`; raises ProvisionError if there is none."""
    found = re.search(r"(\d+(?:\.\d+)+)", text)
    if not found:
        raise ProvisionError(f"vagrant --version does not say a version, but: {text.strip()[-300:]!r}", how_to_install("vagrant"))
    return tuple(int(part) for part in found[1].split("."))


def choose_provider(asked: str | None, used: str | None) -> str:
    """Return the provider to bring machines up with; raises ProvisionError if the one asked for, or every one, cannot be used."""
    if asked is not None and asked not in PROVIDERS:
        raise UsageError(f"Unknown provider {asked!r}.", f"choose one of: {', '.join(PROVIDERS)}")
    if asked and used and asked != used:
        raise ProvisionError(
            f"The machines were made with {used}; {asked} cannot take them over.",
            f"fab up --provider {used}, or fab destroy --target vagrant first",
        )
    if wanted := asked or used:
        if problem := problem_with(wanted):
            raise problem
        return wanted
    problems = []
    for provider in PROVIDERS:
        problem = problem_with(provider)
        if problem is None:
            return provider
        problems.append(problem)
    raise ProvisionError(
        "No provider can be used: " + " ".join(problem.message for problem in problems),
        "do one of these:\n" + "\n".join(f"    {problem.hint}" for problem in problems),
    )


def problem_with(provider: str) -> ProvisionError | None:
    """Return why `provider` cannot be used on this machine and what to do, None if it can."""
    return {"virtualbox": _virtualbox, "libvirt": _libvirt, "docker": _docker}[provider]()


def _virtualbox() -> ProvisionError | None:
    if shutil.which("VBoxManage") is None and not os.environ.get("VBOX_MSI_INSTALL_PATH"):
        return ProvisionError("VirtualBox is not installed.", how_to_install("virtualbox"))
    if shutil.which("VBoxManage"):
        code, text = _answer(["VBoxManage", "--version"])
        if code or "WARNING" in text:
            return ProvisionError(f"VirtualBox does not work: {_first_line(text)}", "sudo /sbin/vboxconfig, then VBoxManage --version")
    return None


def _libvirt() -> ProvisionError | None:
    if not any(Path(path).exists() for path in LIBVIRT_SOCKETS) and not os.environ.get("LIBVIRT_DEFAULT_URI"):
        return ProvisionError("libvirt is not installed or not running.", how_to_install("libvirt"))
    if "vagrant-libvirt" not in _answer(["vagrant", "plugin", "list"])[1]:
        return ProvisionError("Vagrant has no plug-in for libvirt.", "sudo apt-get install vagrant-libvirt")
    return None


def _docker() -> ProvisionError | None:
    if shutil.which("docker") is None:
        return ProvisionError("Docker is not installed.", how_to_install("docker"))
    code, text = _answer(["docker", "version", "--format", "{{.Server.Version}}"])
    if code == 0:
        return None
    if "permission denied" in text.lower():
        return ProvisionError("Docker's daemon does not let this user in.", "sudo adduser $USER docker, then log in again")
    start = "sudo systemctl start docker" if platform.system() == "Linux" else "start Docker Desktop"
    return ProvisionError(f"Docker's daemon does not answer: {_first_line(text)}", start)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it said nothing")


def _answer(command: Sequence[str]) -> tuple[int, str]:
    """Return a command's exit code and everything that it printed; one that does not end counts as failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return 1, f"{' '.join(command)} did not end within {ANSWER_TIMEOUT_S} s"
    except OSError as error:
        return 1, f"{command[0]}: {error.strerror}"
    return done.returncode, done.stdout + done.stderr

"""Supervisor's configuration file, its start and stop, and what it says of the processes it keeps."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
from supervisor.xmlrpc import SupervisorTransport

from provision.errors import ProvisionError
from provision.home import HOME_VARIABLE, LabHome, write_private

# Every process of an installation carries its folder under this name, so that all of them can be found.
OWNER_VARIABLE = "AIRFLOW_LABS_OWNER"
# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the final zero included.
LONGEST_SOCKET_PATH = 100
CALL_ATTEMPTS = 10
# A program that has not ended after this long is killed; one that is killed and does not go is stuck in the kernel.
LONGEST_STOP_S = 30
QUICK_STOP_S = 10


@dataclass(frozen=True)
class Program:
    """A command that supervisor keeps; it gets `stop_seconds` to end by itself."""

    name: str
    command: tuple[str, ...]
    environment_file: Path | None = None
    stop_signal: str = "TERM"
    stop_seconds: int = 10

    def command_line(self) -> str:
        """Return the command as supervisor's configuration wants it: shell-quoted, % doubled."""
        command = self.command
        if self.environment_file:
            command = ("/bin/sh", "-c", 'set -a; . "$0"; set +a; exec "$@"', str(self.environment_file), *command)
        return shlex.join(command).replace("%", "%%")


@dataclass(frozen=True)
class ProcessState:
    """What supervisor knows of one program; `pid` is 0 when it does not run."""

    name: str
    state: str
    pid: int
    started: float
    exit_status: int

    @property
    def running(self) -> bool:
        """Whether the process is there; supervisor calls its first second STARTING, and its last ones STOPPING."""
        return self.state in ("STARTING", "RUNNING", "STOPPING")

    @property
    def ending(self) -> bool:
        """Whether the process was told to end and has not ended yet: a Celery worker finishes its tasks first."""
        return self.state == "STOPPING"


def socket_path(home: LabHome) -> Path:
    """Return where supervisor listens: in the home, or in the user's temporary folder if that path is too long."""
    path = home.state / "supervisor.sock"
    if len(os.fsencode(path)) < LONGEST_SOCKET_PATH:
        return path
    return Path("/tmp") / f"airflow-labs-{os.getuid()}-{sha256(os.fsencode(home.root)).hexdigest()[:12]}.sock"


def log_path(home: LabHome, program: str) -> Path:
    """Return the file that holds a program's output."""
    return home.logs / f"{program}.log"


def render_configuration(home: LabHome, programs: list[Program], password: str) -> str:
    """Return supervisord.conf. Services are not restarted: a lab must notice when one dies."""
    # To supervisor, # or ; after a space begins a comment, and nothing can quote it.
    if re.search(r"\s[;#]|[\r\n]", str(home.root)):
        raise ProvisionError(
            f"The lab's folder {home.root} may not contain a line break, or # or ; after a space.",
            f"choose another folder with {HOME_VARIABLE}=/path/to/folder",
        )
    quote = lambda value: str(value).replace("%", "%%")  # noqa: E731
    sections = [
        "[supervisord]",
        f"logfile={quote(log_path(home, 'supervisord'))}",
        f"pidfile={quote(home.state / 'supervisord.pid')}",
        f"childlogdir={quote(home.logs)}",
        "umask=077",
        "[unix_http_server]",
        f"file={quote(socket_path(home))}",
        "chmod=0700",
        "username=lab",
        f"password={quote(password)}",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
    ]
    for program in programs:
        sections += [
            f"[program:{program.name}]",
            f"command={program.command_line()}",
            f"directory={quote(home.root)}",
            "autostart=false",
            "autorestart=false",
            "startsecs=1",
            "startretries=0",
            f"stopsignal={program.stop_signal}",
            f"stopwaitsecs={program.stop_seconds}",
            "killasgroup=true",
            "redirect_stderr=true",
            f"stdout_logfile={quote(log_path(home, program.name))}",
            "stdout_logfile_maxbytes=20MB",
            "stdout_logfile_backups=1",
        ]
    return "\n".join(sections) + "\n"


class NotRunning(ProvisionError):
    """There is no supervisord to talk to."""


class Supervisor:
    """The supervisord of one home."""

    def __init__(self, home: LabHome, password: str) -> None:
        self.home = home
        self._password = password
        self.configuration = home.state / "supervisord.conf"

    def call(self, method: str, *arguments: Any) -> Any:
        """Return the answer of one call to supervisor's XML-RPC interface; raises NotRunning when it is down."""
        for _ in range(CALL_ATTEMPTS):
            transport = SupervisorTransport("lab", self._password, f"unix://{socket_path(self.home)}")
            try:
                with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as server:
                    return getattr(server.supervisor, method)(*arguments)
            except (FileNotFoundError, ConnectionRefusedError, xmlrpc.client.ProtocolError) as error:
                raise NotRunning("supervisord does not run.", "fab install VARIANT") from error
            except xmlrpc.client.Fault as fault:
                if "SHUTDOWN_STATE" in fault.faultString:
                    raise NotRunning("supervisord is going down.", "run the same command again") from fault
                raise
            except (OSError, http.client.HTTPException):
                # Busy, not gone: on a loaded machine its socket's queue can be full for a moment.
                time.sleep(0.3)
        raise ProvisionError(f"supervisord of {self.home.root} does not answer.", "fab stop, then fab install VARIANT")

    def is_up(self) -> bool:
        """Return whether supervisord answers."""
        try:
            return self.call("getState")["statename"] == "RUNNING"
        except NotRunning:
            return False

    def configure(self, programs: list[Program]) -> bool:
        """Write the configuration; return whether it changed."""
        return write_private(self.configuration, render_configuration(self.home, programs, self._password))

    def ensure_up(self) -> None:
        """Start supervisord unless it runs; raises ProvisionError with its last lines if it does not come up."""
        if self.is_up():
            return
        # Nobody looks after what a lost supervisord had started; two schedulers would share one database.
        sweep(self.home)
        socket_path(self.home).unlink(missing_ok=True)
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.configuration)]
        environment = {
            key: value
            for key, value in os.environ.items()
            # Nothing of the caller's Airflow, Python or PostgreSQL (PGTZ, PGOPTIONS, …) may reach the services.
            if not key.startswith(("AIRFLOW", "PYTHON", "VIRTUAL_ENV", "JPY_", "MPLBACKEND", "PG"))
        }
        environment[OWNER_VARIABLE] = str(self.home.root)
        # setproctitle, which Airflow's processes use, would otherwise write their titles over /proc/PID/environ
        # and with that over the owner; titles are cut to the length of the command line instead.
        environment["SPT_NOENV"] = "1"
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while done.returncode == 0 and time.monotonic() < deadline:
            if self.is_up():
                return
            time.sleep(0.05)
        raise ProvisionError(
            f"supervisord did not start (exit code {done.returncode}): {(done.stdout + done.stderr).strip()[-600:]}",
            f"read {log_path(self.home, 'supervisord')}, then fab destroy and fab install VARIANT",
        )

    def reload(self, report: Callable[[str], None] = lambda text: None, *, patience_s: float = LONGEST_STOP_S) -> None:
        """Make supervisor know exactly the configured programs, leaving unchanged ones running; the others get `patience_s` to end."""
        added, changed, removed = self.call("reloadConfig")[0]
        for name in [*changed, *removed]:
            self.stop([name], report, patience_s=patience_s)
            self.call("removeProcessGroup", name)
        for name in [*added, *changed]:
            self.call("addProcessGroup", name)

    def states(self) -> dict[str, ProcessState]:
        """Return the state of every known program by name; empty when supervisor is down."""
        try:
            rows = self.call("getAllProcessInfo")
        except NotRunning:
            return {}
        return {
            row["name"]: ProcessState(row["name"], row["statename"], row["pid"], float(row["start"]), row["exitstatus"]) for row in rows
        }

    def start(self, names: list[str]) -> None:
        """Start programs, all at once, without waiting for them to be ready."""
        for name in names:
            try:
                self.call("startProcess", name, False)
            except xmlrpc.client.Fault as fault:
                raise ProvisionError(f"{name} could not be started: {fault.faultString}.", f"fab logs {name}") from fault

    def stop(self, names: list[str], report: Callable[[str], None] = lambda text: None, *, patience_s: float = LONGEST_STOP_S) -> None:
        """Stop programs, all at once, and wait until the last one has ended; kill what has not after `patience_s`."""
        for name in names:
            try:
                self.call("stopProcess", name, False)
            except xmlrpc.client.Fault as fault:
                if "NOT_RUNNING" not in fault.faultString and "BAD_NAME" not in fault.faultString:
                    raise ProvisionError(f"{name} could not be stopped: {fault.faultString}.", "fab stop") from fault
        waiting, deadline, killed = "", time.monotonic() + patience_s, False
        while True:
            states = self.states()
            left = [name for name in names if name in states and states[name].running]
            if not left:
                return
            if time.monotonic() > deadline:
                if killed:
                    break
                self._kill(left)
                killed, deadline = True, time.monotonic() + LONGEST_STOP_S
            if ", ".join(left) != waiting:
                waiting = ", ".join(left)
                report(f"waiting for {waiting} to stop")
            time.sleep(0.05)
        raise ProvisionError(f"{waiting} did not stop, not even when killed.", "fab destroy, which ends what does not stop by itself")

    def _kill(self, names: list[str]) -> None:
        for name in names:
            # It may have ended in this very moment.
            with contextlib.suppress(xmlrpc.client.Fault):
                self.call("signalProcess", name, "KILL")

    def shut_down(self, last: tuple[str, ...] = (), report: Callable[[str], None] = lambda text: None) -> None:
        """Stop every program, those called `last` after the others, and supervisord itself.

        Whoever wants everything to end does not wait for tasks: programs get ten seconds. What does not go
        is left to `sweep`.
        """
        try:
            names = list(self.states())
            self.stop([name for name in names if name not in last], report, patience_s=QUICK_STOP_S)
            self.stop([name for name in names if name in last], report, patience_s=LONGEST_STOP_S)
            self.call("shutdown")
        except (xmlrpc.client.Error, ProvisionError):
            return
        deadline = time.monotonic() + 10
        while self.is_up() and time.monotonic() < deadline:
            time.sleep(0.05)


def owned_processes(home: LabHome) -> list[psutil.Process]:
    """Return the live processes that belong to this home, whoever their parent is now."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(OWNER_VARIABLE) == str(home.root):
                # PostgreSQL's processes write their titles over their environment; they are found by their parent.
                found |= {member.pid: member for member in (process, *process.children(recursive=True))}
        except (psutil.Error, OSError):
            continue
    return [process for process in found.values() if _alive(process)]


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def sweep(home: LabHome, grace_seconds: float = 3.0) -> int:
    """End every process of this home, politely first; return how many there were."""
    return _end(owned_processes(home), grace_seconds)


def sweep_orphans(home: LabHome, supervisor: Supervisor, grace_seconds: float = 3.0) -> int:
    """End the processes of this home that nobody keeps any more; return how many there were.

    The worker processes of a scheduler that was killed go on without it, and so do their tasks.
    """
    # In this order: a task's process that is born between the two looks is in the second one only.
    there = owned_processes(home)
    keeper = psutil.Process(supervisor.call("getPID"))
    kept = {keeper.pid, *(child.pid for child in keeper.children(recursive=True))}
    return _end([process for process in there if process.pid not in kept], grace_seconds)


def _end(processes: list[psutil.Process], grace_seconds: float) -> int:
    for process in processes:
        _signal(process, process.terminate)
    _, alive = psutil.wait_procs(processes, timeout=grace_seconds)
    for process in alive:
        _signal(process, process.kill)
    psutil.wait_procs(alive, timeout=grace_seconds)
    return len(processes)


def _signal(process: psutil.Process, send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.Error:
        return

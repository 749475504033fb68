"""The systemd units of an installation, as text. All pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from provision import airflow
from provision.airflow import Service
from provision.nodes.layout import USER, Layout
from provision.workers import Worker

# Where each unit writes down the digest that it was started with; gone after a restart of the node, as the services are.
STARTED = "/run/airflow-labs"
# A worker is told to end and then finishes the tasks that it has; nobody wants to wait longer than this.
WARM_S = 900
HARDENING = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "ProtectControlGroups=yes",
    "ProtectKernelTunables=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "UMask=0027",
)


@dataclass(frozen=True)
class Unit:
    """One unit of a node: its name and text, the service that it runs, and a digest of all that it was started with."""

    name: str
    service: str
    text: str
    digest: str

    @property
    def path(self) -> str:
        """Where the text goes."""
        return f"/etc/systemd/system/{self.name}"

    @property
    def user(self) -> str:
        """The user that the service runs as."""
        return next(line.removeprefix("User=") for line in self.text.splitlines() if line.startswith("User="))


def airflow_unit(layout: Layout, service: Service, environment: Mapping[str, str], after: Sequence[str], binary: str = "airflow") -> Unit:
    """Return the unit of one of Airflow's own processes."""
    command = " ".join([str(layout.current / "bin" / binary), *service.arguments])
    # Its authentication manager opens the file with the passwords for writing, though it changes nothing
    # (airflow/api_fastapi/auth/managers/simple/simple_auth_manager.py, 3.3.2).
    writable = [layout.passwords] if service.name.startswith("api-server") else []
    body = _airflow_body(layout, command, writable) + ["Restart=on-failure", "RestartSec=5", "TimeoutStopSec=10"]
    return _unit(layout, service.name, service.purpose, body, airflow.service_digest(service, environment), after)


def worker_unit(layout: Layout, worker: Worker, environment: Mapping[str, str]) -> Unit:
    """Return the unit of a Celery worker, whose size and queues come from a file of its own, so that they can change while it runs."""
    service = airflow.worker_service(worker)
    (script,) = service.arguments
    # systemd has its own use for $ and %.
    quoted = script.replace("%", "%%").replace("$", "$$").replace("'", "'\\''")
    body = _airflow_body(layout, f"/bin/sh -c '{quoted}' {layout.current}/bin/airflow")
    body += [f"EnvironmentFile={layout.worker_file(worker.name)}", "Restart=on-failure", "RestartSec=5", f"TimeoutStopSec={WARM_S}"]
    scales = "scales by itself" if worker.at_least else "has one size"
    digest = _digest(airflow.service_digest(service, environment), scales)
    return _unit(layout, worker.name, f"{service.purpose}: {worker.name}", body, digest, ())


def store_unit(
    layout: Layout,
    name: str,
    purpose: str,
    user: str,
    command: str,
    folders: Sequence[str],
    files: Mapping[str, str],
    more: Sequence[str] = (),
) -> Unit:
    """Return the unit of a program that keeps data for Airflow; `files` are the texts that it is configured by."""
    body = [
        f"User={user}", f"Group={user}", f"ExecStart={command}", "KillMode=mixed", "Restart=on-failure", "RestartSec=2", *HARDENING,
        f"ReadWritePaths={' '.join(folders)}", *more,
    ]  # fmt: skip
    # At boot, the address on which it listens may come late: it is tried again for as long as that takes.
    return _unit(layout, name, purpose, body, _digest(*sorted(files.values())), (), ["StartLimitIntervalSec=0"])


def cluster_unit(layout: Layout, name: str, purpose: str, body: Sequence[str], files: Mapping[str, str]) -> Unit:
    """Return the unit of a node's Kubernetes; `files` are the texts that it is configured by."""
    return _unit(layout, name, purpose, body, _digest(*sorted(files.values())), ())


def _airflow_body(layout: Layout, command: str, writable: Sequence[PurePosixPath] = ()) -> list[str]:
    return [
        f"User={USER}",
        f"Group={USER}",
        f"EnvironmentFile={layout.environment_file}",
        # setproctitle writes over the variables that a process was started with, by which settings are read back.
        "Environment=SPT_NOENV=1",
        f"Environment=PYTHONPYCACHEPREFIX={layout.bytecode}",
        f"Environment=PATH={layout.current}/bin:/usr/local/bin:/usr/bin:/bin",
        f"WorkingDirectory={layout.airflow_home}",
        f"ExecStart={command}",
        # Only the main process is told to end: Celery's finishes its tasks first, and a scheduler ends its own.
        "KillMode=mixed",
        *HARDENING,
        f"ReadWritePaths={' '.join(map(str, (*layout.written, *writable)))}",
    ]


def _unit(
    layout: Layout, service: str, purpose: str, body: Sequence[str], digest: str, after: Sequence[str], more: Sequence[str] = ()
) -> Unit:
    name = layout.unit(service)
    orders = [f"After=network-online.target {' '.join(layout.unit(other) for other in after)}".rstrip(), "Wants=network-online.target"]
    orders += more
    whole = _digest(digest, *body)
    # With +, as root: the folder is shared by services of different users.
    mark = f"ExecStartPre=+/bin/sh -c 'mkdir -p {STARTED} && echo {whole} > {STARTED}/{name}'"
    lines = ["[Unit]", f"Description={purpose}", *orders, "", "[Service]", *body, mark, "", "[Install]", "WantedBy=multi-user.target"]
    return Unit(name, service, "\n".join(lines) + "\n", whole)


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

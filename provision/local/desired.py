"""What a variant should look like on this machine: settings, files, ports, programs, installation file."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from provision import airflow, environments, secret_store
from provision.airflow import AIRFLOW_SERVICES, Placement
from provision.home import REPOSITORY, LabHome
from provision.local import postgres, rabbitmq, valkey
from provision.local.ports import choose_ports
from provision.local.supervisor import Program, log_path
from provision.pins import airflow_version
from provision.variants import Variant, Wanted
from provision.workers import Worker

NODE = "localhost"
FILES = REPOSITORY / "provision" / "files"


BROKER_PURPOSE = "the broker: task messages wait here until a worker takes them"
# A worker is told to end and then finishes the tasks that it has; nobody wants to wait longer than this.
WARM_S = 900


@dataclass(frozen=True)
class Desired:
    """Everything that the installed variant should look like on this machine."""

    wanted: Wanted
    placement: Placement
    secrets: dict[str, str]
    ports: dict[str, int]
    environment: dict[str, str]
    digests: dict[str, str]
    programs: list[Program]

    @property
    def variant(self) -> Variant:
        return self.wanted.variant

    @property
    def workers(self) -> dict[str, Worker]:
        """The workers by name."""
        return {worker.name: worker for worker in self.wanted.workers}


def desired_state(home: LabHome, wanted: Wanted, running: Collection[str]) -> Desired:
    """Return what the variant should look like in `home`, creating the secrets and choosing the ports it needs."""
    home.prepare()
    secrets = secret_store.load_or_create(home)
    variant = wanted.variant
    ports = choose_ports(home, [*variant.services, wanted.broker], running)
    placement = Placement(
        airflow_binary=environments.environment_path(home) / "bin" / "airflow",
        airflow_home=home.airflow_home,
        dags=home.dags,
        api_host="127.0.0.1",
        api_port=ports["api-server"],
        database_url=_database_url(home, variant, ports, secrets["database_password"]),
        broker_url=broker_url(wanted.broker, ports, secrets["broker_password"]),
        flower_port=ports.get("flower", 0),
    )
    environment = airflow.render_environment(variant, placement, secrets, wanted.changes)
    chosen = [service for service in AIRFLOW_SERVICES if service.name in variant.services]
    relevant = environment | {"airflow_local_settings.py": _local_settings(variant)}
    services = [*chosen, *(airflow.worker_service(worker) for worker in wanted.workers)]
    digests = {service.name: airflow.service_digest(service, relevant) for service in services}
    stores = _stores(home, wanted, ports)
    digests |= {program.name: str(program.command) for program in stores}
    if wanted.broker:
        digests[wanted.broker] = _digest(_broker_files(home, wanted, ports, secrets))
    programs = [
        # The scheduler waits for running tasks; a lab's tasks are released first, so five seconds do.
        *(Program(s.name, (str(placement.airflow_binary), *s.arguments), home.environment_file, stop_seconds=5) for s in chosen),
        *(_worker_program(home, placement, worker) for worker in wanted.workers),
        *stores,
    ]
    return Desired(wanted, placement, secrets, ports, environment, digests, programs)


def _stores(home: LabHome, wanted: Wanted, ports: Mapping[str, int]) -> list[Program]:
    """Return the programs that keep data for Airflow: they start before it and stop after it."""
    programs = []
    if "postgres" in wanted.variant.services:
        command = postgres.server_command(home, ports["postgres"])
        # SIGINT is PostgreSQL's fast shutdown: open connections are closed, nothing is lost.
        programs.append(Program("postgres", tuple(command), stop_signal="INT"))
    if wanted.broker == "redis":
        programs.append(Program("redis", tuple(valkey.server_command(home))))
    if wanted.broker == "rabbitmq":
        programs.append(Program("rabbitmq", tuple(rabbitmq.server_command()), rabbitmq.environment_file(home), stop_seconds=20))
    return programs


def _worker_program(home: LabHome, placement: Placement, worker: Worker) -> Program:
    (script,) = airflow.worker_service(worker).arguments
    command = ("/bin/sh", "-c", 'set -a; . "$1"; set +a; ' + script, str(placement.airflow_binary), str(worker_file(home, worker.name)))
    # SIGTERM goes to the worker's main process alone and is Celery's warm shutdown: tasks are finished first.
    return Program(worker.name, command, home.environment_file, stop_seconds=WARM_S)


def worker_file(home: LabHome, name: str) -> Path:
    """Return the file with the variables of the worker called `name`."""
    return home.state / "workers" / f"{name}.env"


def render_worker_file(worker: Worker) -> str:
    """Return the text of a worker's file; in the timeline a worker goes by its name."""
    variables = airflow.worker_environment(worker) | {"AIRFLOW__CORE__HOSTNAME_CALLABLE": "lab_worker_name.worker_name"}
    return airflow.render_environment_file(variables)


def broker_url(broker: str, ports: Mapping[str, int], password: str) -> str:
    """Return the address of the broker, empty without one."""
    if not broker:
        return ""
    return (valkey if broker == "redis" else rabbitmq).url(ports[broker], password)


def _database_url(home: LabHome, variant: Variant, ports: Mapping[str, int], password: str) -> str:
    if variant.database == "sqlite":
        # A writer waits up to a minute for the one write lock, instead of the driver's five seconds.
        return f"sqlite:///{sqlite_file(home)}" + ("" if variant.as_shipped else "?timeout=60")
    return postgres.url(ports["postgres"], password)


def sqlite_file(home: LabHome) -> Path:
    """Return the file that is the metadata database of SQLite variants."""
    return home.databases / "sqlite" / "airflow.db"


def files_of(home: LabHome, desired: Desired) -> dict[Path, str]:
    """Return the text of every file that the installation consists of, by path."""
    return {
        # Before the DAG file that imports them.
        home.airflow_home / "config" / "dag_spec.py": (REPOSITORY / "labs" / "dags" / "dag_spec.py").read_text(),
        home.airflow_home / "config" / "dag_builder.py": (REPOSITORY / "labs" / "dags" / "dag_builder.py").read_text(),
        home.dags / "probes.py": (REPOSITORY / "labs" / "dags" / "probes.py").read_text(),
        home.airflow_home / "config" / "airflow_local_settings.py": _local_settings(desired.variant),
        desired.placement.passwords_file: json.dumps({airflow.API_USER: desired.secrets["api_password"]}) + "\n",
        home.environment_file: airflow.render_environment_file(desired.environment),
        **_worker_files(home, desired.wanted),
        **_broker_files(home, desired.wanted, desired.ports, desired.secrets),
    }


def _worker_files(home: LabHome, wanted: Wanted) -> dict[Path, str]:
    if not wanted.broker:
        return {}
    return {home.airflow_home / "config" / "lab_worker_name.py": (FILES / "lab_worker_name.py").read_text()}


def _broker_files(home: LabHome, wanted: Wanted, ports: Mapping[str, int], secrets: Mapping[str, str]) -> dict[Path, str]:
    if wanted.broker == "redis":
        return {valkey.configuration_file(home): valkey.render_configuration(home, ports["redis"], secrets["broker_password"])}
    if wanted.broker == "rabbitmq":
        return rabbitmq.files(home, ports["rabbitmq"], ports["rabbitmq-nodes"], secrets["broker_password"])
    return {}


def _digest(files: Mapping[Path, str]) -> str:
    return hashlib.sha256(json.dumps({str(path): text for path, text in files.items()}, sort_keys=True).encode()).hexdigest()


def installation_document(home: LabHome, desired: Desired) -> dict[str, Any]:
    """Return the content of the installation file, the only thing that labs knows of an installation."""
    database: dict[str, object] = {"kind": desired.variant.database}
    if desired.variant.database == "sqlite":
        database["file"] = str(sqlite_file(home))
    else:
        database |= {"host": "127.0.0.1", "port": desired.ports["postgres"], "name": postgres.DATABASE, "user": postgres.ROLE}
    return {
        "schema": 1,
        "variant": desired.variant.name,
        "summary": desired.variant.summary,
        "target": "local",
        "executor": desired.variant.executor,
        "versions": {"airflow": airflow_version(), "python": platform.python_version()},
        "api": {"url": desired.placement.api_url, "user": airflow.API_USER, "credentials": str(home.secrets)},
        "database": database,
        "dag_folder": str(home.dags),
        "spec_folder": str(home.specs),
        "task_logs": str(home.airflow_home / "logs"),
        "home": str(home.root),
        "settings": airflow.public_settings(desired.variant, desired.wanted.changes),
        "changes": dict(desired.wanted.changes),
        **_celery_document(desired),
        "services": [
            {"name": p.name, "node": NODE, "log": str(log_path(home, p.name)), "purpose": _purpose(p.name, desired)}
            for p in desired.programs
        ],
        "nodes": [
            {
                "name": NODE,
                "address": "127.0.0.1",
                "roles": ["control", "worker"],
                "cores": os.cpu_count(),
                "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            }
        ],
    }


def _celery_document(desired: Desired) -> dict[str, Any]:
    broker = desired.wanted.broker
    if not broker:
        return {"broker": None, "workers": [], "flower": None}
    return {
        "broker": {"kind": broker, "host": "127.0.0.1", "port": desired.ports[broker]},
        "workers": [worker.document() | {"node": NODE} for worker in desired.wanted.workers],
        "flower": {"url": f"http://127.0.0.1:{desired.ports['flower']}", "user": airflow.API_USER},
    }


def _local_settings(variant: Variant) -> str:
    return "" if variant.as_shipped else (FILES / "airflow_local_settings.py").read_text()


def _purpose(name: str, desired: Desired) -> str:
    services = [*AIRFLOW_SERVICES, *(airflow.worker_service(worker) for worker in desired.wanted.workers)]
    purposes = {service.name: service.purpose for service in services}
    return purposes.get(name, BROKER_PURPOSE if name == desired.wanted.broker else "the metadata database")

"""What a variant should look like on this machine: settings, files, ports, programs, installation file."""

from __future__ import annotations

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
from provision.local import postgres
from provision.local.ports import choose_ports
from provision.local.supervisor import Program, log_path
from provision.pins import airflow_version
from provision.variants import Variant

NODE = "localhost"


@dataclass(frozen=True)
class Desired:
    """Everything that the installed variant should look like on this machine."""

    variant: Variant
    changes: dict[str, str]
    placement: Placement
    secrets: dict[str, str]
    ports: dict[str, int]
    environment: dict[str, str]
    digests: dict[str, str]
    programs: list[Program]


def desired_state(home: LabHome, variant: Variant, changes: dict[str, str], running: Collection[str]) -> Desired:
    """Return what the variant should look like in `home`, creating the secrets and choosing the ports it needs."""
    home.prepare()
    secrets = secret_store.load_or_create(home)
    ports = choose_ports(home, variant.services, running)
    placement = Placement(
        airflow_binary=environments.environment_path(home) / "bin" / "airflow",
        airflow_home=home.airflow_home,
        dags=home.dags,
        api_host="127.0.0.1",
        api_port=ports["api-server"],
        database_url=_database_url(home, variant, ports, secrets["database_password"]),
    )
    environment = airflow.render_environment(variant, placement, secrets, changes)
    chosen = [service for service in AIRFLOW_SERVICES if service.name in variant.services]
    local_settings = {"airflow_local_settings.py": _local_settings(variant)}
    digests = {service.name: airflow.service_digest(service, environment | local_settings) for service in chosen}
    programs = [
        # The scheduler waits for running tasks; a lab's tasks are released first, so five seconds do.
        Program(s.name, (str(placement.airflow_binary), *s.arguments), home.environment_file, stop_seconds=5)
        for s in chosen
    ]
    if "postgres" in variant.services:
        command = postgres.server_command(home, ports["postgres"])
        # SIGINT is PostgreSQL's fast shutdown: open connections are closed, nothing is lost.
        programs.append(Program("postgres", tuple(command), stop_signal="INT"))
        digests["postgres"] = str(command)
    return Desired(variant, changes, placement, secrets, ports, environment, digests, programs)


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
        home.dags / "probes.py": (REPOSITORY / "labs" / "dags" / "probes.py").read_text(),
        home.airflow_home / "config" / "airflow_local_settings.py": _local_settings(desired.variant),
        desired.placement.passwords_file: json.dumps({airflow.API_USER: desired.secrets["api_password"]}) + "\n",
        home.environment_file: airflow.render_environment_file(desired.environment),
    }


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
        "settings": airflow.public_settings(desired.variant, desired.changes),
        "changes": desired.changes,
        "services": [
            {"name": p.name, "node": NODE, "log": str(log_path(home, p.name)), "purpose": _purpose(p.name)} for p in desired.programs
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


def _local_settings(variant: Variant) -> str:
    return "" if variant.as_shipped else (REPOSITORY / "provision" / "files" / "airflow_local_settings.py").read_text()


def _purpose(name: str) -> str:
    return next((s.purpose for s in AIRFLOW_SERVICES if s.name == name), "the metadata database")

"""Installations as the tests describe them to Airflow: where each is, its secrets, services and settings."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from provision.airflow import AIRFLOW_SERVICES, Placement, render_environment, worker_service
from provision.variants import CORE_SERVICES, variant_named
from provision.workers import Worker

PLACEMENT = Placement(
    Path("/lab/bin/airflow"), Path("/lab/airflow"), Path("/lab/airflow/dags"), "127.0.0.1", 8080, "sqlite:////lab/airflow.db"
)
CELERY_PLACEMENT = replace(
    PLACEMENT,
    database_url="postgresql+psycopg2://airflow:database-secret@127.0.0.1:5432/airflow",
    broker_url="redis://:broker-secret@127.0.0.1:6379/0",
    flower_port=5555,
)
SECRETS = {
    "fernet_key": "fernet-secret",
    "api_secret_key": "api-secret",
    "jwt_secret": "jwt-secret",
    "database_password": "database-secret",
    "broker_password": "broker-secret",
    "flower_password": "flower-secret",
}
WORKER = Worker("worker-1")
SERVICES = {service.name: service for service in AIRFLOW_SERVICES if service.name in CORE_SERVICES}
CELERY_SERVICES = {**{service.name: service for service in AIRFLOW_SERVICES}, WORKER.name: worker_service(WORKER)}
USING_CELERY = ("scheduler", "flower", "worker-1")


def rendered(variant: str = "sqlite", **changes: str) -> dict[str, str]:
    """Return the environment with changes given as section__key."""
    chosen = variant_named(variant)
    placement = CELERY_PLACEMENT if chosen.uses_celery else PLACEMENT
    return render_environment(chosen, placement, SECRETS, {name.replace("__", ".", 1): value for name, value in changes.items()})


def shell_reads(path: Path) -> dict[str, str]:
    """Return the variables that a POSIX shell has after sourcing a file."""
    command = ["/bin/sh", "-c", 'set -a; . "$0"; exec /usr/bin/env -0', str(path)]
    done = subprocess.run(command, env={}, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    assert done.stderr == b""
    return dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)

"""The installation file that describes what is on the nodes. Pure."""

from __future__ import annotations

from typing import Any

from provision import airflow
from provision.airflow import API_USER
from provision.home import LabHome
from provision.kube import on_nodes
from provision.nodes import celery, stores
from provision.nodes.layout import POSTGRES_PORT
from provision.nodes.state import Desired
from provision.pins import airflow_version


def installation_document(desired: Desired, home: LabHome, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of the installation file; `nodes` is what was measured of each machine."""
    wanted, placement, control = desired.wanted, desired.placement, desired.cluster.control
    database: dict[str, object] = {"kind": wanted.variant.database}
    if wanted.variant.database == "sqlite":
        database["file"] = str(desired.layout.sqlite_file)
    else:
        database |= {"host": control.address, "port": desired.layout.port(POSTGRES_PORT), "name": stores.DATABASE, "user": stores.ROLE}
    return {
        "schema": 1,
        "variant": wanted.variant.name,
        "summary": wanted.variant.summary,
        "target": "vagrant",
        "executor": wanted.variant.executor,
        "versions": {"airflow": airflow_version(), "python": desired.about.python},
        "api": {"url": placement.api_url, "user": API_USER, "credentials": str(home.secrets)},
        "database": database,
        "ha": wanted.ha,
        "dag_folder": str(desired.layout.dags),
        "spec_folder": str(desired.layout.specs),
        "task_logs": str(desired.layout.airflow_home / "logs"),
        "home": str(home.root),
        "settings": airflow.public_settings(wanted.variant, wanted.changes),
        "changes": dict(wanted.changes),
        **celery.document(desired),
        "kubernetes": on_nodes.document(desired, home),
        "services": [
            {
                "name": unit.service, "node": state.node.name, "log": f"journal of {unit.name}",
                "purpose": unit.text.splitlines()[1].partition("=")[2],
            }
            for state in desired.nodes.values() for unit in state.units
        ],
        "nodes": nodes,
    }  # fmt: skip

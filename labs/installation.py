"""Reads the installation file that provision writes: the only thing labs knows about where Airflow runs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labs.errors import LabError


def home_folder() -> Path:
    """Return `$LAB_HOME`, or `.lab` beside this package."""
    return Path(os.environ.get("LAB_HOME") or Path(__file__).resolve().parent.parent / ".lab").expanduser().resolve()


@dataclass(frozen=True)
class Installation:
    """One Airflow: the content of the installation file."""

    document: dict[str, Any]

    @property
    def variant(self) -> str:
        return self.document["variant"]

    @property
    def target(self) -> str:
        return self.document["target"]

    @property
    def api_url(self) -> str:
        return self.document["api"]["url"]

    @property
    def user(self) -> str:
        return self.document["api"]["user"]

    @property
    def settings(self) -> dict[str, str]:
        return self.document["settings"]

    @property
    def changes(self) -> dict[str, str]:
        return self.document["changes"]

    @property
    def spec_folder(self) -> Path:
        return Path(self.document["spec_folder"])

    @property
    def home(self) -> Path:
        return Path(self.document["home"])

    @property
    def versions(self) -> dict[str, str]:
        return self.document["versions"]

    @property
    def services(self) -> list[dict[str, str]]:
        return self.document["services"]

    @property
    def nodes(self) -> list[dict[str, Any]]:
        return self.document["nodes"]

    @property
    def workers(self) -> list[dict[str, Any]]:
        """The Celery workers: `name`, `concurrency`, `queues`, `at_least`, `node`; none without Celery."""
        return self.document.get("workers") or []

    @property
    def broker(self) -> str:
        """The kind of broker, empty without one."""
        return (self.document.get("broker") or {}).get("kind", "")

    @property
    def kubernetes(self) -> dict[str, Any]:
        """The cluster: `kubeconfig` for the labs, `namespace` of tasks, `task_nodes`, `dags`, `pod_image`; empty without one."""
        return self.document.get("kubernetes") or {}

    @property
    def on_sqlite(self) -> bool:
        """Whether the metadata database is SQLite."""
        return (self.document.get("database") or {}).get("kind") == "sqlite"

    def node_of(self, host: str) -> str:
        """Return the node on which tasks of this host name ran; a Celery worker is a host of its own."""
        placed = {worker["name"]: worker["node"] for worker in self.workers if worker.get("node")}
        names = [node["name"] for node in self.nodes]
        return placed.get(host) or (host if host in names else names[0])

    @property
    def clock_tolerance_s(self) -> float:
        """How far the clocks of two nodes can be apart at most, in seconds; 0 where there is one node only."""
        known = [(node.get("clock_offset_s", 0.0), node.get("clock_uncertainty_s", 0.0)) for node in self.nodes]
        return max(o + u for o, u in known) - min(o - u for o, u in known) if len(known) > 1 else 0.0

    def password(self) -> str:
        """Return the API password; raises LabError when the credentials file cannot be read."""
        file = Path(self.document["api"]["credentials"])
        try:
            return json.loads(file.read_text())["api_password"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LabError(f"The credentials file {file} cannot be read: {error}.", "fab destroy, then fab install VARIANT") from error


def read_installation(home: Path | None = None) -> Installation:
    """Return the installation in `home`; raises LabError when there is none or its file is damaged."""
    file = (home or home_folder()) / "installation.json"
    if not file.exists():
        raise LabError(f"No Airflow is installed in {file.parent}.", "fab install sqlite   (or: labs run, which installs what it needs)")
    try:
        document = json.loads(file.read_text())
        if document["schema"] != 1:
            raise ValueError(f"schema {document['schema']} is unknown")
        return Installation(document)
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"{file} is damaged: {error}.", "fab destroy, then fab install VARIANT") from error

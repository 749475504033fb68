"""Where an installation lives on a node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

USER = "airflow"
# The same on every node, and that of the user in Airflow's own images: files that both write belong to one owner.
USER_NUMBER = 50000
# Behind HAProxy, which then has the first port, API servers listen on the second.
API_PORT, BACKEND_PORT, FLOWER_PORT, REDIS_PORT, RABBITMQ_PORT, POSTGRES_PORT, LOGS_PORT = 8080, 8081, 5555, 6379, 5672, 5432, 8793


@dataclass(frozen=True)
class Layout:
    """The folders and names of one installation; `instance` tells a second one on the same nodes from the first."""

    instance: str = ""

    @property
    def name(self) -> str:
        return f"airflow-labs-{self.instance}" if self.instance else "airflow-labs"

    @property
    def software(self) -> PurePosixPath:
        """What every installation on the node shares: environments, and the link to the current one."""
        return PurePosixPath("/opt/airflow-labs")

    @property
    def current(self) -> PurePosixPath:
        return self.software / "current"

    @property
    def configuration(self) -> PurePosixPath:
        return PurePosixPath("/etc") / self.name

    @property
    def environment_file(self) -> PurePosixPath:
        return self.configuration / "airflow.env"

    @property
    def passwords(self) -> PurePosixPath:
        """Folder of the one file there that a service opens for writing."""
        return self.configuration / "api"

    @property
    def airflow_home(self) -> PurePosixPath:
        return PurePosixPath("/var/lib") / self.name

    @property
    def dags(self) -> PurePosixPath:
        return self.airflow_home / "dags"

    @property
    def specs(self) -> PurePosixPath:
        return self.dags / "specs"

    @property
    def logs(self) -> PurePosixPath:
        """Folder of the logs of tasks."""
        return self.airflow_home / "logs"

    @property
    def sqlite_file(self) -> PurePosixPath:
        return self.airflow_home / "sqlite" / "airflow.db"

    @property
    def migrated(self) -> PurePosixPath:
        """Folder of the files that say which Airflow migrated which database."""
        return self.airflow_home / "migrated"

    @property
    def unit_prefix(self) -> str:
        # A second installation's units must not look like ones of the first that are left over.
        return f"airflowlab-{self.instance}-" if self.instance else "airflow-"

    def unit(self, service: str) -> str:
        """Return the name of the systemd unit of a service of Airflow."""
        return f"{self.unit_prefix}{service}.service"

    def worker_file(self, worker: str) -> PurePosixPath:
        """Return the file with the variables of the Celery worker called `worker`."""
        return self.configuration / "workers" / f"{worker}.env"

    @property
    def bytecode(self) -> PurePosixPath:
        """Compiled modules: the environment belongs to root, and what runs there may not write into it."""
        return PurePosixPath("/var/cache/airflow-labs")

    @property
    def written(self) -> tuple[PurePosixPath, ...]:
        """The folders that belong to Airflow's user; root writes into none of them."""
        return self.logs, self.sqlite_file.parent, self.bytecode

    def port(self, base: int) -> int:
        """Return the port of this installation for a service whose first installation listens on `base`."""
        return base + (1000 if self.instance else 0)

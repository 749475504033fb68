"""What every target can do; the one interface through which labs acts on services."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from provision.errors import UsageError
from provision.home import LabHome, lab_home
from provision.variants import Wanted
from provision.workers import Worker

Report = Callable[[str], None]
TARGETS = ("local", "vagrant")


@dataclass(frozen=True)
class Change:
    """One thing an install would do: `action` on `name`, and why."""

    action: str
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.action} {self.name}: {self.why}"


@dataclass(frozen=True)
class ServiceStatus:
    """One service as it is now; memory in bytes, `detail` says what is wrong when it does not run."""

    name: str
    node: str
    state: str
    pid: int
    memory: int
    log: str
    detail: str = ""

    @property
    def running(self) -> bool:
        return self.state == "RUNNING"


@dataclass(frozen=True)
class ProcessInfo:
    """One process of an installation; memory in bytes, `shared_memory` counts shared pages in proportion (0 if unknown)."""

    pid: int
    parent: int
    service: str
    title: str
    memory: int
    shared_memory: int
    cpu_seconds: float


class Target(Protocol):
    """Where Airflow runs."""

    name: str
    home: LabHome

    def plan(self, asked: Wanted) -> list[Change]:
        """Return what `install` would do now, changing nothing."""

    def install(self, asked: Wanted, report: Report = ...) -> list[Change]:
        """Make what is asked for run; return what had to be done (nothing, if it ran)."""

    def set_workers(self, workers: Iterable[Worker], report: Report = ...) -> list[Change]:
        """Make exactly these Celery workers run, while tasks run; a worker that leaves finishes its tasks first."""

    def workers_seen(self) -> dict[str, dict[str, Any]]:
        """Return what each worker that answers says of itself: its `concurrency` and its `queues`, by name."""

    def messages_waiting(self, also: Iterable[str] = ()) -> dict[str, int]:
        """Return how many task messages wait in the broker, by queue that a worker serves or that `also` names; empty without one."""

    def query(self, sql: str) -> list[list[str]]:
        """Return the rows of a query on the metadata database, every value as text; only for PostgreSQL."""

    def database_files(self) -> dict[str, int]:
        """Return the files that an SQLite database consists of now, by name, with their sizes in bytes; empty for another database."""

    def put_spec(self, name: str, text: str) -> None:
        """Put a probe's document into the DAG folder, for every process that loads DAGs, in one step."""

    def remove_spec(self, name: str) -> None:
        """Take a probe's document out of the DAG folder again; nothing happens if it is not there."""

    def spec_names(self) -> list[str]:
        """Return the names of the probes whose documents are in the DAG folder, sorted."""

    def installed(self) -> dict[str, Any] | None:
        """Return the content of the installation file, None unless an install ran to its end."""

    def status(self) -> list[ServiceStatus]:
        """Return every service of the installed variant."""

    def processes(self) -> list[ProcessInfo]:
        """Return every process of the installation, parents before children."""

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that all processes of the installation have used so far, ended ones included."""

    def memory(self) -> int:
        """Return the bytes of memory that everything of the installation uses now, tasks included."""

    def tasks_in_hand(self) -> int | None:
        """Return how many tasks the executor's workers have taken, started or not; None if that cannot be told."""

    def live_settings(self, names: Sequence[str]) -> dict[str, str | None]:
        """Return the values of settings ("section.key") with which the running scheduler was started."""

    def airflow(self, arguments: Sequence[str], changes: Mapping[str, str]) -> tuple[str, str]:
        """Return what Airflow's own command prints, standard output and error, with `changes` on top of the installation's settings."""

    def require_alive(self) -> None:
        """Raise ProvisionError, with the end of its log, if a service of the installation has ended, or its broker is full."""

    def logs(self, service: str, lines: int) -> str:
        """Return the last lines that a service printed."""

    def stop(self, report: Report = ...) -> int:
        """Stop every service; return how many processes ended."""

    def destroy(self, report: Report = ...) -> None:
        """Stop everything and remove what was made; works on a damaged installation too."""


def open_target(name: str, home: LabHome | None = None) -> Target:
    """Return the target called `name`; raises UsageError that lists the targets there are."""
    if name == "local":
        from provision.local.target import LocalTarget

        return LocalTarget(home or lab_home())
    if name == "vagrant":
        from provision.nodes.target import NodesTarget, nodes_home

        shared = lab_home()
        return NodesTarget(nodes_home(shared) if home is None or home.root == shared.root else home)
    raise UsageError(f"Unknown target {name!r}.", f"choose one of: {', '.join(TARGETS)}")

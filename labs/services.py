"""The one small interface through which labs acts on services: install, change a setting, look, throw away."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from labs.installation import Installation, read_installation
from labs.pod_limits import PodRoom, pods_on
from provision.errors import ProvisionError
from provision.home import LabHome, lab_home
from provision.kube.client import Cluster, cluster_at, quantity
from provision.target import ProcessInfo, Target, open_target
from provision.variants import wanted, wanted_again
from provision.workers import listed_workers

Report = Callable[[str], None]
T = TypeVar("T")
WATCH_EVERY_S = 1.0
TARGET_FILE = "target"
# The one quota that labs make.
QUOTA = "airflow-labs"


def target_of(installation: Installation) -> Target:
    """Return the target on which an installation runs; the same one each time, as it may hold connections to nodes."""
    return _target(installation.target, Path(installation.home), lab_home().root)


@functools.cache
def _target(name: str, root: Path, shared: Path) -> Target:
    return open_target(name, LabHome(root=root, shared=shared))


def ensure(target: str, variant: str, changes: Mapping[str, str], report: Report) -> Installation:
    """Return the installation of a variant with these setting changes, after making it run if it did not.

    It has the variant's own workers, and the broker and the Kubernetes that were chosen when the variant was installed.
    """
    place = open_target(target)
    before, asked = place.installed(), wanted(variant, changes)
    if before and before["variant"] == variant:
        chosen = wanted_again(before)
        asked = replace(asked, broker=chosen.broker, kubernetes=chosen.kubernetes)
    place.install(asked, report)
    return read_installation(place.home.root)


def change_settings(installation: Installation, changes: Mapping[str, str], report: Report) -> Installation:
    """Return the installation after giving it exactly these changes; only the services concerned restart."""
    place = target_of(installation)
    # Like `ensure`, without a second scheduler.
    place.install(replace(wanted_again(installation.document), changes=dict(changes), ha=False), report)
    return read_installation(place.home.root)


def distribute_dags(installation: Installation, way: str, report: Report) -> Installation:
    """Return the installation after making DAGs get into pods another way: "volume", "git" or "image"."""
    place, again = target_of(installation), wanted_again(installation.document)
    options = replace(again.kubernetes, dags=way)
    celery = (again.broker, again.workers) if again.broker else (None, None)
    place.install(wanted(again.variant.name, again.changes, *celery, kubernetes=options), report)
    return read_installation(place.home.root)


def set_workers(installation: Installation, workers: Iterable[Mapping[str, Any]], report: Report) -> Installation:
    """Return the installation after making exactly these Celery workers run; who leaves finishes its tasks first."""
    place = target_of(installation)
    place.set_workers(listed_workers(workers), report)
    return read_installation(place.home.root)


def workers_seen(installation: Installation) -> dict[str, dict[str, Any]]:
    """Return what each worker that answers says of itself: its `concurrency` and its `queues`, by name."""
    return target_of(installation).workers_seen()


def query(installation: Installation, sql: str) -> list[list[str]]:
    """Return the rows of a query on the metadata database, every value as text; only for PostgreSQL."""
    return target_of(installation).query(sql)


def database_files(installation: Installation) -> dict[str, int]:
    """Return the files that an SQLite database consists of now, by name, with their sizes in bytes."""
    return target_of(installation).database_files()


def cpu_seconds(installation: Installation) -> float:
    """Return the CPU seconds that all processes of an installation have used so far, ended ones included."""
    return target_of(installation).cpu_seconds()


def memory(installation: Installation) -> int:
    """Return the bytes of memory that everything of an installation uses now, tasks included."""
    return target_of(installation).memory()


@contextlib.contextmanager
def throwaway(target: str, variant: str, changes: Mapping[str, str], name: str, report: Report) -> Iterator[Installation]:
    """Lend a second installation for one experiment; it is destroyed afterwards, whatever happens."""
    place = open_target(target, lab_home().throwaway(name))
    place.home.prepare()
    # Whoever finds what an interrupted lab left behind must know where it runs.
    (place.home.root / TARGET_FILE).write_text(target + "\n")
    try:
        place.install(wanted(variant, changes), report)
        yield read_installation(place.home.root)
    finally:
        report("removing the throw-away installation")
        place.destroy()


def spec_names(installation: Installation) -> list[str]:
    """Return the names of the probes whose documents are in the DAG folder, sorted."""
    return target_of(installation).spec_names()


def remove_spec(installation: Installation, name: str) -> None:
    """Take a probe's document out of the DAG folder; nothing happens if it is not there."""
    target_of(installation).remove_spec(name)


def processes(installation: Installation) -> list[ProcessInfo]:
    """Return every process of an installation."""
    return target_of(installation).processes()


def log(installation: Installation, service: str) -> str:
    """Return the whole log of a service."""
    return target_of(installation).logs(service, lines=1_000_000)


def live_settings(installation: Installation) -> dict[str, str | None]:
    """Return the installation's settings as its running scheduler has them."""
    return target_of(installation).live_settings(list(installation.settings))


def airflow_command(installation: Installation, arguments: list[str], changes: Mapping[str, str]) -> tuple[str, str]:
    """Return what Airflow's own command prints, standard output and error, when run with the installation's settings and `changes`."""
    return target_of(installation).airflow(arguments, changes)


def cluster_of(installation: Installation) -> Cluster | None:
    """Return the Kubernetes cluster of an installation, None where there is none."""
    known = installation.kubernetes
    return cluster_at(Path(known["kubeconfig"]), known["namespace"]) if known else None


def remove_quotas(installation: Installation) -> None:
    """Remove every quota of the namespace of tasks: only labs make any."""
    cluster = cluster_of(installation)
    for name in cluster.quotas() if cluster else ():
        cluster.remove_quota(name)


def set_quota(installation: Installation, pods: int | None) -> None:
    """Let the namespace of tasks have at most so many pods, or any number; nothing happens where there is no cluster."""
    remove_quotas(installation)
    cluster = cluster_of(installation)
    if cluster and pods is not None:
        cluster.set_quota(QUOTA, {"pods": str(pods)})


def remove_waiting_pods(installation: Installation, dag_prefix: str) -> None:
    """Remove pods of these DAGs that never ran: whoever ends a DAG run takes a task from the executor, but not its pod.

    A pod that waits for room would wait, and count in every quota, for ever (fail_run skips queued tasks, and the
    executor of provider 10.25 deletes a pod only when it has ended).
    """
    cluster = cluster_of(installation)
    for pod in cluster.pods() if cluster else ():
        if pod.phase == "Pending" and pod.annotations.get("dag_id", "").startswith(dag_prefix):
            cluster.delete_pod(pod.name)


def pod_room(installation: Installation) -> PodRoom | None:
    """Return how many pods of tasks a cluster has room for now, None where tasks do not run in pods."""
    cluster = cluster_of(installation)
    if cluster is None:
        return None
    cpu, memory = (quantity(installation.settings[f"labs.pod_{what}"]) for what in ("cpu", "memory"))
    rooms = cluster.room(installation.kubernetes["task_nodes"])
    return PodRoom({each.name: pods_on(each.cpu, each.memory, each.pods, cpu, memory) for each in rooms}, cluster.quota_pods())


class Watcher:
    """Looks after an installation while a probe runs on it."""

    def __init__(self, installation: Installation) -> None:
        self._installation, self._place = installation, target_of(installation)
        self._last = 0.0

    def require_alive(self) -> None:
        """Raise, naming the service and the end of its log, once one has died; cheap enough for every poll."""
        if time.monotonic() - self._last >= WATCH_EVERY_S:
            self._last = time.monotonic()
            self._place.require_alive()

    def put_spec(self, name: str, text: str) -> None:
        """Put a probe's document into the DAG folder, in one step."""
        self._place.put_spec(name, text)

    def remove_spec(self, name: str) -> None:
        """Take a probe's document out of the DAG folder again."""
        self._place.remove_spec(name)

    def remove_waiting_pods(self, dag_id: str) -> None:
        """Remove pods of a DAG that never ran; nothing happens where there is no cluster."""
        remove_waiting_pods(self._installation, dag_id)

    def tasks_in_hand(self) -> int | None:
        """Return how many tasks the executor's workers have taken, started or not; None if that cannot be told."""
        return self._asked(self._place.tasks_in_hand)

    def messages_waiting(self, also: Iterable[str] = ()) -> dict[str, int]:
        """Return how many task messages wait in the broker, by queue that a worker serves or that `also` names; empty without one."""
        return self._asked(lambda: self._place.messages_waiting(also))

    def _asked(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except ProvisionError:
            # Which service has ended says more than that nobody answers.
            self._place.require_alive()
            raise


def destroy_throwaways(report: Report) -> None:
    """Destroy throw-away installations that an interrupted lab left behind."""
    home = lab_home()
    for folder in sorted((home.root / "throwaway").glob("*")):
        report(f"removing the throw-away installation {folder.name}")
        open_target(_target_in(folder), home.throwaway(folder.name)).destroy()


def _target_in(folder: Path) -> str:
    return (folder / TARGET_FILE).read_text().strip() if (folder / TARGET_FILE).exists() else "local"

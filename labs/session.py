"""Probes on one Airflow, and what else can be asked of it while they run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from labs import celery_path, executors, limits, probe, progress, services
from labs.airflow_api import AirflowApi
from labs.celery_path import Step
from labs.errors import LabError
from labs.installation import Installation
from labs.limits import Prediction
from labs.pod_watch import PodWatch
from labs.probe import Probe, ProbeResult
from labs.sandbox import Sandbox
from labs.spec import parse
from labs.waiting import wait_for
from provision.home import lab_home
from provision.kube.client import Cluster, Pod
from provision.lock import exclusive


class Bench:
    """Probes on one Airflow; a lab has one, and one more for each throw-away installation."""

    def __init__(self, installation: Installation, answer_within_s: float | None = None) -> None:
        self.installation = installation
        self.api = AirflowApi(installation, answer_within_s)
        self._watcher = services.Watcher(installation)

    @property
    def settings(self) -> dict[str, str]:
        """The effective settings by "section.key"."""
        return self.installation.settings

    @property
    def executors(self) -> tuple[str, ...]:
        """The installation's executors, the default one first."""
        return executors.executors(self.settings)

    def hosts_of(self, executor: str) -> list[str]:
        """Return the hosts that tasks of an executor write down: Celery's workers, the nodes of pods, or the scheduler's node."""
        if executor == executors.CELERY:
            return [worker["name"] for worker in self.installation.workers]
        if executor == executors.KUBERNETES:
            return list(self.installation.kubernetes["task_nodes"])
        return [node["name"] for node in self.installation.nodes if "control" in node["roles"]]

    def executor_at(self, host: str) -> str | None:
        """Return the executor whose tasks write down this host now; None if there is none, or if it may be several."""
        # A machine may call itself anything; nodes go by the names of the machine table.
        name = host if len(self.installation.nodes) > 1 or host in self.hosts_of(executors.CELERY) else self.installation.node_of(host)
        found = [executor for executor in self.executors if name in self.hosts_of(executor)]
        return found[0] if len(found) == 1 else None

    @functools.cached_property
    def sandbox(self) -> Sandbox:
        """A namespace of the cluster to make objects in; all of them go when the lab ends. Raises LabError where there is none."""
        return Sandbox(self.installation)

    def predict(self, spec: Mapping[str, Any], pools: Mapping[str, int] | None = None) -> Prediction:
        """Return what the limit model expects of a probe; `pools` replaces the pools that Airflow has now."""
        pools = self.api.pools() if pools is None else pools
        return limits.predict(parse(spec), self.settings, pools, self.installation.workers, services.pod_room(self.installation))

    def run(self, spec: Mapping[str, Any], timeout_s: float = 900) -> ProbeResult:
        """Return what Airflow did with a probe: run it to its end, through the gate if it holds.

        Raises LabError for a probe that would never end, because no worker serves one of its queues.
        """
        probe.require_served(parse(spec), self.installation)
        with exclusive(lab_home(), "a notebook"), self.probe(spec) as running:
            return probe.run_probe(running, timeout_s)

    def probe(self, spec: Mapping[str, Any]) -> Probe:
        """Return a probe to be driven step by step in a `with` block: deliver, trigger, hold, release, wait, collect."""
        return Probe(self.installation, self.api, parse(spec), self._watcher)

    def set_pool(self, name: str, slots: int) -> None:
        """Create a pool or change its slots."""
        self.api.set_pool(name, slots, probe.POOL_NOTE)

    def count_in_logs(self, text: str) -> dict[str, int]:
        """Return in how many lines of each service's log a text appears, by service."""
        names = [service["name"] for service in self.installation.services]
        return {name: services.log(self.installation, name).count(text) for name in names}

    def services_alive(self) -> list[str]:
        """Return the names of the services that run, sorted."""
        expected = {service["name"] for service in self.installation.services}
        return sorted({process.service for process in self.processes()} & expected)

    def live_settings(self) -> dict[str, str | None]:
        """Return the settings with which the running scheduler was started; every change of a setting concerns it."""
        return services.live_settings(self.installation)

    def wait(self, seconds: float, why: str) -> None:
        """Let time pass on purpose, watching that every service stays alive."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            progress.report(f"{why}: {left:.0f} s left")
            self._watcher.require_alive()
            time.sleep(min(1.0, left))

    def airflow(self, *arguments: str, changes: Mapping[str, str] | None = None) -> tuple[str, str]:
        """Return what Airflow's own command prints, standard output and error, when called beside the services, with these settings changed."""
        return services.airflow_command(self.installation, list(arguments), dict(changes or {}))

    def processes(self) -> list[Any]:
        """Return every process of the installation now."""
        return services.processes(self.installation)

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that all processes of the installation have used so far, ended ones included."""
        return services.cpu_seconds(self.installation)

    def workers_seen(self) -> dict[str, dict[str, Any]]:
        """Return what each Celery worker that answers says of itself: its `concurrency` and its `queues`, by name."""
        return services.workers_seen(self.installation)

    def lines_in_log(self, service: str, *texts: str) -> list[str]:
        """Return the lines of a service's log that hold all of these texts."""
        lines = services.log(self.installation, service).splitlines()
        return [line for line in lines if all(text in line for text in texts)]

    def database_files(self) -> dict[str, int]:
        """Return the files that an SQLite metadata database consists of now, by name, with their sizes in bytes."""
        return services.database_files(self.installation)

    def query(self, sql: str) -> list[list[str]]:
        """Return the rows of a query on the metadata database, every value as text."""
        return services.query(self.installation, sql)

    def messages_waiting(self, *queues: str) -> dict[str, int]:
        """Return how many task messages wait in the broker now, by queue: those that a worker serves, and `queues`."""
        return self._watcher.messages_waiting(queues)

    @property
    def cluster(self) -> Cluster:
        """The Kubernetes cluster whose pods run the tasks; raises LabError where there is none."""
        found = services.cluster_of(self.installation)
        if found is None:
            raise LabError(f"The variant {self.installation.variant} has no Kubernetes.", "fab install kubernetes --target vagrant")
        return found

    @property
    def pod_room(self) -> dict[str, int]:
        """How many pods of tasks each node has room for now, with what a pod asks for now."""
        room = services.pod_room(self.installation)
        return dict(room.by_node) if room else {}

    def watch_pods(self) -> PodWatch:
        """Return what looks at the pods of tasks for as long as its `with` block lasts."""
        return PodWatch(self.cluster.pods)

    def wait_for_pods(self, done: Callable[[list[Pod]], bool], what: str, within_s: float = 120) -> list[Pod]:
        """Return the pods of tasks once `done` says yes to them; raises LabError, naming `what`, if that takes too long."""
        seen: list[Pod] = []

        def looked() -> bool:
            seen[:] = self.cluster.pods()
            return done(seen)

        wait_for(looked, within_s, what, every_s=0.5, hint="fab logs scheduler --target vagrant")
        return seen

    def path_of(self, task: Probe) -> list[Step]:
        """Return the steps of a probe's only task through scheduler, broker, worker and result backend, in order of time.

        Raises LabError unless the probe has had one try of one task, and on an Airflow without Celery.
        """
        attempts = task.collect()
        if len(attempts) != 1 or (attempts[0].executor or self.executors[0]) != executors.CELERY:
            raise LabError(
                "Only the path of a single task of the CeleryExecutor can be followed.",
                'on a variant with Celery, run a probe with {"tasks": 1, "executor": "CeleryExecutor"}',
            )
        if attempts[0].state != "success":
            raise LabError(
                f"The task of {task.dag_id} is {attempts[0].state or 'not scheduled yet'}; only one that succeeded has gone the whole way.",
                f"call wait() of the probe first; if it failed: fab logs {attempts[0].host or 'scheduler'}",
            )
        back = "Received executor event with state success"
        wait_for(lambda: self.lines_in_log("scheduler", task.dag_id, back), 30, "The scheduler's reading of the result", every_s=0.2)
        rows = self.query(celery_path.RESULT_QUERY.format(dag_id=task.dag_id))
        if len(rows) != 1:
            raise LabError(
                f"The result backend holds {len(rows)} results of the task of {task.dag_id}, where one is expected.",
                "run the probe again; if it stays so: fab logs scheduler",
            )
        message, done = rows[0]
        logs = {name: self.lines_in_log(name, text) for name, text in (("scheduler", task.dag_id), (attempts[0].host, message))}
        return celery_path.steps(attempts[0], message, done, logs)

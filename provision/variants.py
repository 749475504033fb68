"""The table of variants: which executor, metadata database and services make one way to run Airflow."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from provision.errors import UsageError
from provision.workers import Worker, check_together, listed_workers

CORE_SERVICES = ("api-server", "scheduler", "dag-processor", "triggerer")

# Settings of every variant, by Airflow's own "section.key": what a lab needs to know or to ask.
COMMON: Mapping[str, str] = {
    "core.load_examples": "False",
    "core.auth_manager": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
    # Airflow's defaults, written down because every prediction uses them.
    "core.max_active_tasks_per_dag": "16",
    "core.max_active_runs_per_dag": "16",
    "core.default_pool_task_slot_count": "128",
    # Notebook 00 compares what Airflow says about itself with the installation file.
    "api.expose_config": "non-sensitive-only",
}

# Settings that suit a laptop better than the ones Airflow is shipped with; `labs bench` measures the difference.
TUNED: Mapping[str, str] = {
    # The gate counts heartbeats as evidence that the scheduler has looked again (default 5 s).
    "scheduler.scheduler_heartbeat_sec": "1",
    # An idle scheduler sleeps this long between loops (default 1 s): the largest part of a hop's latency.
    "scheduler.scheduler_idle_sleep_time": "0.1",
    # One user, few DAGs: one parser is enough and leaves the cores to the tasks.
    "dag_processor.parsing_processes": "1",
    # A worker that is woken an instant before its task's process ends keeps the slot until the next
    # heartbeat, 5 s by default: three of ten short tasks did. Whole seconds only; 0 would never sleep.
    "workers.min_heartbeat_interval": "1",
    # A task that a fault killed is noticed after this long; the default is 300 s.
    "scheduler.task_instance_heartbeat_timeout": "60",
}

# Celery as it is safe to use it; every value that is Airflow's own default is here because a lab predicts with it.
CELERY: Mapping[str, str] = {
    # A worker takes no more messages than it can run, so what waits, waits in the broker, where every worker can
    # take it; a message that a worker has reserved runs nowhere else.
    "celery.worker_prefetch_multiplier": "1",
    # A message leaves the broker when its task has ended, not when it is taken.
    "celery.task_acks_late": "True",
    # Redis gives a message that was not acknowledged in time to another worker, while the first one still runs
    # it: longer than any task may take.
    "celery_broker_transport_options.visibility_timeout": "86400",
    # More than one sender means a new pool of processes for every batch (the default: cores - 1).
    "celery.sync_parallelism": "1",
    # Publishing a task may take this long on a loaded machine before it counts as failed (default 1 s).
    "celery.operation_timeout": "5",
    # For how long a result is valid, in seconds; `airflow db clean` removes old ones from the database.
    "celery.extra_celery_config": json.dumps({"result_expires": 86400}),
    # A setting of the labs' own, read by provision/files/airflow_local_settings.py.
    "labs.preload": "True",
}
# One pod for each task; every value that is Airflow's own default is here because a lab predicts with it.
KUBERNETES: Mapping[str, str] = {
    "kubernetes_executor.namespace": "airflow",
    # Pods that the executor creates in one loop of the scheduler (default 1).
    "kubernetes_executor.worker_pods_creation_batch_size": "16",
    "kubernetes_executor.delete_worker_pods": "True",
    # The log of a task that failed is kept by the node; its pod would only take the place of another (default False).
    "kubernetes_executor.delete_worker_pods_on_failure": "True",
    # How often a pod that a quota refused is tried again, -1 for ever; the default 0 fails its task at once.
    "kubernetes_executor.task_publish_max_retries": "0",
    # What a pod asks of its node, as Kubernetes writes it: settings of the labs' own, which go into the pod template.
    "labs.pod_cpu": "100m",
    "labs.pod_memory": "256Mi",
}
BROKERS = ("redis", "rabbitmq")
DISTRIBUTIONS = ("k3s", "rke2")
# How DAGs get into the pods of tasks.
DAG_SOURCES = ("volume", "git", "image")
# What else has a log of its own, and so a name that no worker can have.
NOT_A_WORKER = ("supervisord", "migrate", "haproxy", "log-server", "api-server-2", "scheduler-2", *BROKERS)


def check_pairing(executor: str, database: str) -> None:
    """Raise UsageError for the CeleryExecutor on SQLite; Airflow 3.3.2 itself starts with it and does not complain."""
    if "CeleryExecutor" in executor and database == "sqlite":
        raise UsageError(
            "SQLite cannot be used with the CeleryExecutor: workers are made to run on several machines, SQLite is a file on one of "
            "them, and the result backend of every worker would want its one write lock.",
            "fab install celery, which uses PostgreSQL",
        )


@dataclass(frozen=True)
class Variant:
    """One row of the table; one that is `as_shipped` keeps Airflow's own settings wherever a lab can do without."""

    name: str
    summary: str
    executor: str
    database: str
    services: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    as_shipped: bool = False
    workers: tuple[Worker, ...] = ()
    targets: tuple[str, ...] = ("local", "vagrant")

    def __post_init__(self) -> None:
        """Raise UsageError for an executor and a database that do not go together."""
        check_pairing(self.executor, self.database)

    @property
    def uses_celery(self) -> bool:
        """Whether tasks go through a broker to Celery workers."""
        return "CeleryExecutor" in self.executor

    @property
    def uses_kubernetes(self) -> bool:
        """Whether tasks run in pods of their own."""
        return "KubernetesExecutor" in self.executor

    def effective_settings(self, changes: Mapping[str, str]) -> dict[str, str]:
        """Return every setting by "section.key": common and tuned ones, the variant's, then the lab's changes."""
        tuned = {} if self.as_shipped else TUNED
        return {**COMMON, **tuned, "core.executor": self.executor, **self.settings, **changes}


VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            name="sqlite",
            summary="LocalExecutor with one worker process on SQLite: the sequential executor of old",
            executor="LocalExecutor",
            database="sqlite",
            services=CORE_SERVICES,
            settings={"core.parallelism": "1"},
        ),
        Variant(
            name="postgres",
            summary="LocalExecutor with eight worker processes on PostgreSQL",
            executor="LocalExecutor",
            database="postgres",
            services=("postgres", *CORE_SERVICES),
            settings={"core.parallelism": "8"},
        ),
        Variant(
            name="standalone",
            summary="what `airflow standalone` starts, as shipped: LocalExecutor with 32 worker processes on SQLite",
            executor="LocalExecutor",
            database="sqlite",
            services=CORE_SERVICES,
            settings={"core.parallelism": "32"},
            as_shipped=True,
        ),
        Variant(
            name="celery",
            summary="CeleryExecutor with three workers, a broker and PostgreSQL",
            executor="CeleryExecutor",
            database="postgres",
            services=("postgres", *CORE_SERVICES, "flower"),
            settings={"core.parallelism": "16", **CELERY},
            workers=tuple(Worker(f"worker-{n}") for n in (1, 2, 3)),
        ),
        Variant(
            name="kubernetes",
            summary="KubernetesExecutor on Rancher's K3s or RKE2: one pod for each task, and PostgreSQL",
            executor="KubernetesExecutor",
            database="postgres",
            services=("postgres", *CORE_SERVICES),
            settings={"core.parallelism": "16", **KUBERNETES},
            targets=("vagrant",),
        ),
        Variant(
            name="local-celery",
            summary="two executors in one installation: LocalExecutor and CeleryExecutor; a task says which one runs it",
            executor="LocalExecutor,CeleryExecutor",
            database="postgres",
            services=("postgres", *CORE_SERVICES, "flower"),
            settings={"core.parallelism": "8", **CELERY},
            # Not called like a node: pods go by the name of theirs.
            workers=tuple(Worker(f"celery-{n}") for n in (1, 2)),
        ),
        Variant(
            name="multiple",
            summary="three executors in one installation: LocalExecutor, CeleryExecutor and KubernetesExecutor",
            executor="LocalExecutor,CeleryExecutor,KubernetesExecutor",
            database="postgres",
            services=("postgres", *CORE_SERVICES, "flower"),
            settings={"core.parallelism": "8", **CELERY, **KUBERNETES},
            # Not called like a node: pods go by the name of theirs.
            workers=tuple(Worker(f"celery-{n}") for n in (1, 2)),
            targets=("vagrant",),
        ),
    )
}


# Those that are shown beside each other: one for each way to run tasks.
SHOWN = ("sqlite", "postgres", "celery", "kubernetes")


@dataclass(frozen=True)
class KubernetesOptions:
    """How the cluster of a variant with Kubernetes is made, and what is in its pods.

    `artifacts` is a folder with the distribution's files, empty for a download; `image` one that has the same Airflow,
    empty for one that is made of the nodes' own environment.
    """

    distribution: str = DISTRIBUTIONS[0]
    dags: str = DAG_SOURCES[0]
    artifacts: str = ""
    image: str = ""


@dataclass(frozen=True)
class Wanted:
    """What an install is asked for: a variant, setting changes, for Celery broker and workers, and how a cluster is made."""

    variant: Variant
    changes: Mapping[str, str]
    broker: str = ""
    workers: tuple[Worker, ...] = ()
    ha: bool = False
    kubernetes: KubernetesOptions | None = None

    def command(self) -> str:
        """Return the command that asks for exactly this."""
        words = ["fab", "install", self.variant.name]
        for setting, value in self.changes.items():
            words += ["--set", f"{setting}={value}"]
        if self.broker and self.broker != BROKERS[0]:
            words += ["--broker", self.broker]
        if self.workers != self.variant.workers:
            words += [word for worker in self.workers for word in ("--worker", str(worker))]
        if self.ha:
            words += ["--ha"]
        if self.kubernetes:
            for option in fields(KubernetesOptions):
                if (value := getattr(self.kubernetes, option.name)) != option.default:
                    words += [f"--{option.name}", value]
        return shlex.join(words)


def wanted(
    variant: str,
    changes: Mapping[str, str] | None = None,
    broker: str | None = None,
    workers: Iterable[Worker] | None = None,
    ha: bool = False,
    kubernetes: KubernetesOptions | None = None,
) -> Wanted:
    """Return a checked request; broker, workers and Kubernetes are the variant's own unless they are given.

    With `ha` there are two API servers behind HAProxy and a second scheduler. Raises UsageError for an unknown
    variant, broker, distribution or source of DAGs; for workers or a broker where there is no Celery; for `ha` where
    there is anything but Celery; and for
    options of Kubernetes where there is none.
    """
    chosen = variant_named(variant)
    cluster = _checked_options(chosen, kubernetes)
    if ha and chosen.executor != "CeleryExecutor":
        # Each scheduler would have a LocalExecutor of its own, and the credentials for Kubernetes are on one node.
        raise UsageError(
            f"The variant {variant} runs tasks beside its one scheduler, or in pods that this one makes; a second one needs Celery alone.",
            "fab install celery --ha --target vagrant",
        )
    if not chosen.uses_celery:
        if broker or workers is not None:
            raise UsageError(f"The variant {variant} has neither a broker nor workers.", "fab install celery")
        return Wanted(chosen, dict(changes or {}), kubernetes=cluster)
    if broker and broker not in BROKERS:
        raise UsageError(f"Unknown broker {broker!r}.", f"choose one of: {', '.join(BROKERS)}")
    listed = check_together(chosen.workers if workers is None else workers)
    for worker in listed:
        if worker.name in (*chosen.services, *NOT_A_WORKER) or worker.name.startswith("log-server-"):
            raise UsageError(
                f"A worker cannot be called {worker.name}: that is the name of a service.", "choose another name, such as worker-4"
            )
    return Wanted(chosen, dict(changes or {}), broker or BROKERS[0], listed, ha, cluster)


def _checked_options(variant: Variant, asked: KubernetesOptions | None) -> KubernetesOptions | None:
    if not variant.uses_kubernetes:
        if asked is not None and asked != KubernetesOptions():
            raise UsageError(f"The variant {variant.name} has no Kubernetes.", "fab install kubernetes --target vagrant")
        return None
    options = asked or KubernetesOptions()
    for value, known, what in ((options.distribution, DISTRIBUTIONS, "distribution"), (options.dags, DAG_SOURCES, "source of DAGs")):
        if value not in known:
            raise UsageError(f"Unknown {what} {value!r}.", f"choose one of: {', '.join(known)}")
    if options.image and not re.fullmatch(r"[a-z0-9][a-z0-9._/:-]*:[A-Za-z0-9_.-]+", options.image):
        raise UsageError(f"{options.image!r} is not the name of an image.", "write REPOSITORY:TAG, for example apache/airflow:3.3.2")
    if options.image and options.dags == "image":
        raise UsageError(
            f"DAGs are put on top of the nodes' own image, not of {options.image}.",
            "leave out --image, or choose --dags volume or --dags git",
        )
    return options


def require_target(variant: Variant, target: str) -> None:
    """Raise UsageError if a variant cannot run on a target."""
    if target not in variant.targets:
        where = " or ".join(f"--target {name}" for name in variant.targets)
        raise UsageError(f"The variant {variant.name} needs a cluster of machines.", f"fab up, then fab install {variant.name} {where}")


def wanted_again(document: Mapping[str, Any], workers: Iterable[Worker] | None = None) -> Wanted:
    """Return the request that would install what an installation file describes, with other workers if they are given.

    Raises UsageError for workers where there is no Celery.
    """
    # An installation that was made before there was Celery, or a second scheduler, says nothing of it.
    broker = (document.get("broker") or {}).get("kind")
    if broker and workers is None:
        workers = listed_workers(document["workers"])
    options = document.get("kubernetes")
    known = KubernetesOptions(**{each.name: options[each.name] for each in fields(KubernetesOptions)}) if options else None
    return wanted(document["variant"], document["changes"], broker, workers, document.get("ha", False), known)


def variant_named(name: str) -> Variant:
    """Return the row called `name`; raises UsageError that lists the names there are."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise UsageError(f"Unknown variant {name!r}.", f"choose one of: {', '.join(VARIANTS)}") from None

"""What Airflow is told and which processes it consists of; the same for every target."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from provision.errors import ProvisionError, UsageError
from provision.variants import Variant, check_pairing
from provision.workers import Worker

API_USER = "lab"


@dataclass(frozen=True)
class Placement:
    """Where one installation lives on its host."""

    airflow_binary: Path
    airflow_home: Path
    dags: Path
    api_host: str
    api_port: int
    database_url: str
    broker_url: str = ""
    flower_port: int = 0
    passwords_folder: Path | None = None
    kubeconfig: str = ""
    pod_template: str = ""
    pod_image: str = ""

    @property
    def api_url(self) -> str:
        return f"http://{self.api_host}:{self.api_port}"

    @property
    def passwords_file(self) -> Path:
        return (self.passwords_folder or self.airflow_home) / "passwords.json"


@dataclass(frozen=True)
class Service:
    """One long-running process of Airflow: the arguments of the `airflow` command, and what it is for."""

    name: str
    arguments: tuple[str, ...]
    purpose: str


# --skip-serve-logs: on one host the API server reads log files itself, and the log server would
# listen on every interface (airflow/utils/serve_logs/core.py binds to all addresses).
AIRFLOW_SERVICES: tuple[Service, ...] = (
    Service("api-server", ("api-server",), "REST API, web pages, and the Execution API that every task calls"),
    Service("scheduler", ("scheduler", "--skip-serve-logs"), "decides which task instance runs next; the executor lives in it"),
    Service("dag-processor", ("dag-processor",), "parses DAG files into the metadata database"),
    Service("triggerer", ("triggerer", "--skip-serve-logs"), "waits, in one event loop, for what deferred tasks wait for"),
    Service("flower", ("celery", "flower"), "web page of the Celery workers"),
)
# The arguments that differ between workers come from a file of each worker's own, so that a worker whose
# concurrency or queues are changed while it runs is started with the same command line ever after.
WORKER_COMMAND = (
    'exec "$0" celery worker --skip-serve-logs --celery-hostname "$LAB_WORKER" --queues "$LAB_WORKER_QUEUES" '
    '--concurrency "$LAB_WORKER_CONCURRENCY" ${LAB_WORKER_AUTOSCALE:+--autoscale "$LAB_WORKER_AUTOSCALE"}'
)

# Settings that only the scheduler and the executor inside it read (airflow/jobs/scheduler_job_runner.py and
# airflow/executors of 3.3.2). Any other setting may be read by any service, whatever its section is called:
# [dag_processor] dag_bundle_config_list by every task, [scheduler] job_heartbeat_sec by every job.
_SCHEDULER_ONLY = frozenset(
    {
        "core.parallelism",
        "scheduler.scheduler_idle_sleep_time",
        "scheduler.scheduler_heartbeat_sec",
        "scheduler.max_tis_per_query",
        "scheduler.task_queued_timeout",
        "scheduler.task_queued_timeout_check_interval",
        "scheduler.task_instance_heartbeat_timeout",
    }
)
# Settings of the KubernetesExecutor that the API server reads, too (get_task_log, kubernetes_executor.py of provider 10.25).
_FOR_LOGS_OF_PODS = frozenset(
    f"kubernetes_executor.{key}" for key in ("in_cluster", "config_file", "namespace", "running_pod_log_lines", "kube_client_request_args")
)
# Sections that no task in a pod is told of: those that only services read, and the labs' own.
NOT_FOR_TASKS = frozenset({"scheduler", "dag_processor", "api", "celery", "celery_broker_transport_options", "kubernetes_executor", "labs"})
# What a pod asks of its node.
_QUANTITIES = {
    "labs.pod_cpu": (r"[1-9][0-9]*m|[1-9][0-9]*|(0|[1-9][0-9]*)\.[0-9]{0,2}[1-9]", "100m or 0.5"),
    "labs.pod_memory": (r"[1-9][0-9]*(Ki|Mi|Gi)", "256Mi or 1Gi"),
}
POD_REQUESTS = frozenset(_QUANTITIES)
# How many tasks a worker runs at once is said for each worker.
_SAID_BY_WORKER = frozenset({"celery.worker_concurrency", "celery.worker_autoscale"})
# What would make the workers something else than what the labs predict, ask and change.
_NOT_FOR_LABS = {
    "celery.pool": "only workers of the pool prefork say how many processes they have, and are resized while they run",
    "celery.worker_enable_remote_control": "the labs ask the workers, and resize them, over Celery's remote control",
    "celery.celery_config_options": "it replaces the settings by which the labs predict what workers do",
    "kubernetes_executor.namespace": "the executor has rights in that namespace alone, and the labs look for pods there",
    "kubernetes_executor.multi_namespace_mode": "the executor has rights in one namespace alone",
}
# Keys of [celery] extra_celery_config that override a setting of Airflow's, and the setting.
_EXTRA_SAID_ELSEWHERE = {
    "worker_prefetch_multiplier": "celery.worker_prefetch_multiplier",
    "task_acks_late": "celery.task_acks_late",
    "task_default_queue": "operators.default_queue",
    "worker_concurrency": "celery.worker_concurrency",
    "worker_pool": "celery.pool",
    "worker_enable_remote_control": "celery.worker_enable_remote_control",
    "broker_url": "celery.broker_url",
    "result_backend": "celery.result_backend",
}


def variable_name(setting: str) -> str:
    """Return the environment variable of "section.key", as Airflow spells it; raises UsageError if malformed."""
    # Lower case only: Airflow would obey "Core.Executor", while predictions and checks go by "core.executor".
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*\.[a-z0-9_]+", setting):
        raise UsageError(f"{setting!r} is not a setting.", "write settings as section.key=value, for example core.parallelism=4")
    section, _, key = setting.upper().partition(".")
    return f"AIRFLOW__{section}__{key}"


def check_changes(changes: Mapping[str, str], variant: Variant) -> None:
    """Raise UsageError for a change that would be ignored: a malformed name, or one that the installation or `variant` decides."""
    owned = set(_owned_settings(_EXAMPLE_PLACEMENT, {}))
    for setting in changes:
        variable_name(setting)
        if setting in _SAID_BY_WORKER:
            raise UsageError(f"{setting} is a matter of each worker.", "fab workers --resize worker-1=4, or a range: worker-1=1-4")
        if setting in _NOT_FOR_LABS and changes[setting] != variant.settings.get(setting):
            raise UsageError(f"{setting} cannot be changed here: {_NOT_FOR_LABS[setting]}.", "leave it out")
        if setting == "celery.extra_celery_config":
            _check_extra(changes[setting])
        if setting == "core.executor":
            check_pairing(changes[setting], variant.database)
        if setting in owned or setting == "core.executor":
            raise UsageError(f"{setting} is set by the installation itself.", "choose another variant, or leave it out")
        if setting.startswith("celery") and not variant.uses_celery:
            raise UsageError(
                f"{setting} would have no effect: the variant {variant.name} has no Celery.", "fab install celery, or leave it out"
            )
        if (setting.startswith("kubernetes_executor.") or setting in POD_REQUESTS) and not variant.uses_kubernetes:
            raise UsageError(
                f"{setting} would have no effect: the variant {variant.name} has no Kubernetes.",
                "fab install kubernetes --target vagrant, or leave it out",
            )
        if setting in POD_REQUESTS:
            _check_quantity(setting, changes[setting])


def _check_quantity(setting: str, text: str) -> None:
    pattern, example = _QUANTITIES[setting]
    if not re.fullmatch(pattern, text):
        raise UsageError(f"{setting} = {text!r} is not a quantity of Kubernetes.", f"write it like {example}")


def _check_extra(text: str) -> None:
    try:
        extra = json.loads(text)
    except ValueError as error:
        raise UsageError(f"celery.extra_celery_config is not JSON ({error}).", 'for example {"worker_max_tasks_per_child": 100}') from None
    if not isinstance(extra, dict):
        raise UsageError("celery.extra_celery_config is not a JSON object.", 'for example {"worker_max_tasks_per_child": 100}')
    for key in extra:
        if key in _EXTRA_SAID_ELSEWHERE:
            setting = _EXTRA_SAID_ELSEWHERE[key]
            raise UsageError(f"{key} in celery.extra_celery_config would override {setting}, by which the labs predict.", f"set {setting}")


def render_environment(variant: Variant, placement: Placement, secrets: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables by which Airflow learns all of its settings."""
    settings = {**variant.effective_settings(changes), **_owned_settings(placement, secrets)}
    environment = {variable_name(setting): value for setting, value in settings.items()}
    environment["AIRFLOW_HOME"] = str(placement.airflow_home)
    return dict(sorted(environment.items()))


def _owned_settings(placement: Placement, secrets: Mapping[str, str]) -> dict[str, str]:
    return {
        "core.dags_folder": str(placement.dags),
        "core.execution_api_server_url": f"{placement.api_url}/execution/",
        "core.fernet_key": secrets.get("fernet_key", ""),
        "core.simple_auth_manager_users": f"{API_USER}:admin",
        "core.simple_auth_manager_passwords_file": str(placement.passwords_file),
        "database.sql_alchemy_conn": placement.database_url,
        "api.host": placement.api_host,
        "api.port": str(placement.api_port),
        "api.base_url": placement.api_url,
        "api.secret_key": secrets.get("api_secret_key", ""),
        "api_auth.jwt_secret": secrets.get("jwt_secret", ""),
        "logging.base_log_folder": str(placement.airflow_home / "logs"),
        "scheduler.enable_health_check": "False",
        **(_owned_by_celery(placement, secrets) if placement.broker_url else {}),
        **(_owned_by_kubernetes(placement) if placement.pod_template else {}),
    }


def _owned_by_kubernetes(placement: Placement) -> dict[str, str]:
    repository, _, tag = placement.pod_image.rpartition(":")
    return {
        # Airflow's services are outside of the cluster.
        "kubernetes_executor.in_cluster": "False",
        "kubernetes_executor.config_file": placement.kubeconfig,
        "kubernetes_executor.pod_template_file": placement.pod_template,
        "kubernetes_executor.worker_container_repository": repository,
        "kubernetes_executor.worker_container_tag": tag,
    }


def _owned_by_celery(placement: Placement, secrets: Mapping[str, str]) -> dict[str, str]:
    return {
        "celery.broker_url": placement.broker_url,
        "celery.result_backend": f"db+{placement.database_url}",
        "celery.flower_host": placement.api_host,
        "celery.flower_port": str(placement.flower_port),
        "celery.flower_basic_auth": f"{API_USER}:{secrets.get('flower_password', '')}",
    }


_EXAMPLE_PLACEMENT = Placement(
    Path("/"), Path("/"), Path("/"), "127.0.0.1", 1, "", "redis://", 1, kubeconfig="/", pod_template="/", pod_image="image:tag"
)


def worker_service(worker: Worker) -> Service:
    """Return the service that a worker is; its arguments are a shell command in which $0 is the `airflow` command."""
    return Service(worker.name, (WORKER_COMMAND,), "Celery worker: runs tasks that it takes from its queues in the broker")


def worker_environment(worker: Worker) -> dict[str, str]:
    """Return the variables that tell one worker from the others."""
    autoscale = f"{worker.concurrency},{worker.at_least}" if worker.at_least else ""
    return {
        "LAB_WORKER": worker.name,
        "LAB_WORKER_QUEUES": ",".join(worker.queues),
        "LAB_WORKER_CONCURRENCY": str(worker.concurrency),
        "LAB_WORKER_AUTOSCALE": autoscale,
    }


def render_environment_file(environment: Mapping[str, str]) -> str:
    """Return the text of a file that both systemd (EnvironmentFile=) and a POSIX shell read alike.

    Raises ProvisionError for a value with a single quote or a line break, which the two read differently.
    """
    for name, value in environment.items():
        if any(character in value for character in "'\n\r\0"):
            raise ProvisionError(f"{name} may not contain a single quote or a line break.", "choose another value or folder")
    return "".join(f"{name}='{value}'\n" for name, value in environment.items())


def services_concerned(setting: str, services: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of `services` that must be restarted for `setting` ("section.key") to take effect."""
    if setting in POD_REQUESTS:
        # They are in the pod template, which the executor reads for each pod.
        return ()
    if setting.startswith("kubernetes_executor."):
        # Who creates pods, and who shows the logs of running ones.
        kinds = ("scheduler", "api-server") if setting in _FOR_LOGS_OF_PODS else ("scheduler",)
        return tuple(name for name in services if _kind(name) in kinds)
    if setting in _SCHEDULER_ONLY:
        return tuple(name for name in services if _kind(name) == "scheduler")
    if setting.startswith(("celery", "labs.")):
        # The sections of the Celery provider: read by who sends tasks, who runs them, and who shows them. The labs' own:
        # read by who forks the processes in which tasks run.
        return tuple(name for name in services if _kind(name) not in _WITHOUT_CELERY)
    return services


def _kind(service: str) -> str:
    # A second API server or scheduler is like the first; each node has a log server.
    return "log-server" if service.startswith("log-server-") else service.removesuffix("-2")


_WITHOUT_CELERY = frozenset({"api-server", "dag-processor", "triggerer", "postgres", "log-server"})


def service_digest(service: Service, environment: Mapping[str, str]) -> str:
    """Return a digest that changes exactly when `service` must be restarted."""
    relevant = {
        variable: value
        for variable, value in environment.items()
        if not variable.startswith("AIRFLOW__") or services_concerned(_setting_name(variable), (service.name,))
    }
    return hashlib.sha256(json.dumps([service.arguments, relevant], sort_keys=True).encode()).hexdigest()


def _setting_name(variable: str) -> str:
    _, section, key = variable.split("__", 2)
    return f"{section}.{key}".lower()


def public_settings(variant: Variant, changes: Mapping[str, str]) -> dict[str, str]:
    """Return the effective settings that hold no secret, by "section.key", for the installation file."""
    return dict(sorted(variant.effective_settings(changes).items()))

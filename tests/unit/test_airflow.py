"""What Airflow is told: one environment file that a shell and systemd read alike, and what a change restarts."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from provision.airflow import (
    AIRFLOW_SERVICES,
    WORKER_COMMAND,
    Placement,
    Service,
    check_changes,
    public_settings,
    render_environment,
    render_environment_file,
    service_digest,
    services_concerned,
    variable_name,
    worker_environment,
    worker_service,
)
from provision.errors import ProvisionError, UsageError
from provision.variants import CORE_SERVICES, VARIANTS, variant_named
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


@pytest.mark.parametrize(
    ("setting", "variable"),
    [
        ("core.parallelism", "AIRFLOW__CORE__PARALLELISM"),
        ("dag_processor.parsing_processes", "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES"),
        ("celery.worker_concurrency", "AIRFLOW__CELERY__WORKER_CONCURRENCY"),
    ],
)
def test_a_setting_is_spelled_as_airflow_spells_it(setting, variable):
    assert variable_name(setting) == variable


@pytest.mark.parametrize(
    "setting", ["", ".", "core", "core.", ".parallelism", "core.a.b", "core parallelism", "core.par allelism", "core.x=1", "core.x\n"]
)
def test_what_is_not_section_dot_key_is_refused_with_an_example(setting):
    with pytest.raises(UsageError, match="is not a setting") as refused:
        variable_name(setting)
    assert "core.parallelism=4" in refused.value.hint


@pytest.mark.parametrize("setting", ["Core.parallelism", "core.Parallelism", "CORE.EXECUTOR", "API.PORT", "cöre.parallelism", "core__x.y"])
def test_a_setting_in_another_spelling_is_refused(setting):
    # Airflow would obey it, while predictions and checks go by the proper spelling.
    with pytest.raises(UsageError, match="is not a setting"):
        check_changes({setting: "4"}, VARIANTS["celery"])


@pytest.mark.parametrize(
    "setting",
    [
        "core.executor",
        "core.dags_folder",
        "core.fernet_key",
        "database.sql_alchemy_conn",
        "api.port",
        "api.host",
        "api.secret_key",
        "api_auth.jwt_secret",
        "core.execution_api_server_url",
        "logging.base_log_folder",
        "core.simple_auth_manager_users",
        "celery.broker_url",
        "celery.result_backend",
        "celery.flower_host",
        "celery.flower_port",
        "celery.flower_basic_auth",
    ],
)
def test_what_the_installation_owns_cannot_be_changed(setting):
    with pytest.raises(UsageError, match="is set by the installation itself"):
        check_changes({"core.parallelism": "4", setting: "x"}, VARIANTS["celery"])


def test_other_settings_may_be_changed():
    changes = {"core.parallelism": "4", "scheduler.max_tis_per_query": "2", "celery.worker_prefetch_multiplier": "3"}
    check_changes(changes, VARIANTS["celery"])
    check_changes({}, VARIANTS["sqlite"])


@pytest.mark.parametrize("setting", ["celery.worker_prefetch_multiplier", "celery_broker_transport_options.visibility_timeout"])
def test_a_setting_of_celery_is_refused_where_there_is_none(setting):
    with pytest.raises(UsageError, match=rf"{re.escape(setting)} would have no effect: the variant postgres") as refused:
        check_changes({setting: "4"}, VARIANTS["postgres"])
    assert "fab install celery" in refused.value.hint


@pytest.mark.parametrize("setting", ["celery.worker_concurrency", "celery.worker_autoscale"])
def test_what_is_said_for_each_worker_is_refused_as_a_setting_with_the_command_for_it(setting):
    with pytest.raises(UsageError, match=f"{setting} is a matter of each worker") as refused:
        check_changes({setting: "4"}, VARIANTS["postgres"])
    assert "fab workers --resize worker-1=4" in refused.value.hint


@pytest.mark.parametrize("setting", ["celery.pool", "celery.worker_enable_remote_control", "celery.celery_config_options"])
def test_a_setting_that_makes_workers_something_else_is_refused_with_the_reason(setting):
    with pytest.raises(UsageError, match=f"{setting} cannot be changed here: .{{30}}"):
        check_changes({setting: "x"}, VARIANTS["celery"])


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ('{"worker_prefetch_multiplier": 4}', "would override celery.worker_prefetch_multiplier"),
        ('{"task_default_queue": "x"}', "would override operators.default_queue"),
        ('{"worker_pool": "solo"}', "would override celery.pool"),
        ("{worker: 4}", "is not JSON"),
        ("", "is not JSON"),
        ("[1]", "is not a JSON object"),
    ],
)
def test_what_celery_is_given_beside_airflows_settings_may_not_contradict_them(extra, said):
    with pytest.raises(UsageError, match=said):
        check_changes({"celery.extra_celery_config": extra}, VARIANTS["celery"])


def test_what_celery_is_given_beside_airflows_settings_may_be_anything_else():
    check_changes({"celery.extra_celery_config": '{"worker_max_tasks_per_child": 1}'}, VARIANTS["celery"])


@pytest.mark.parametrize("executor", ["CeleryExecutor", "LocalExecutor,CeleryExecutor"])
def test_asking_for_celery_on_sqlite_is_refused_with_the_reason(executor):
    with pytest.raises(UsageError, match="SQLite cannot be used with the CeleryExecutor") as refused:
        check_changes({"core.executor": executor}, VARIANTS["sqlite"])
    assert "fab install celery" in refused.value.hint


@pytest.mark.parametrize(
    ("executor", "variant"), [("CeleryExecutor", "postgres"), ("LocalExecutor", "sqlite"), ("LocalExecutor", "celery")]
)
def test_another_executor_is_a_matter_of_another_variant(executor, variant):
    with pytest.raises(UsageError, match=r"core\.executor is set by the installation itself") as refused:
        check_changes({"core.executor": executor}, VARIANTS[variant])
    assert "another variant" in refused.value.hint


def test_the_environment_holds_every_setting_sorted():
    environment = rendered(core__parallelism="4")
    assert list(environment) == sorted(environment)
    assert environment["AIRFLOW__CORE__PARALLELISM"] == "4"
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert environment["AIRFLOW__CORE__LOAD_EXAMPLES"] == "False"
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == "sqlite:////lab/airflow.db"
    assert environment["AIRFLOW__API__BASE_URL"] == "http://127.0.0.1:8080"
    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8080/execution/"
    assert environment["AIRFLOW__CORE__FERNET_KEY"] == "fernet-secret"
    assert environment["AIRFLOW_HOME"] == "/lab/airflow"


def test_what_the_installation_owns_wins_over_a_change():
    assert rendered(api__port="1")["AIRFLOW__API__PORT"] == "8080"
    assert rendered("celery", celery__flower_port="1")["AIRFLOW__CELERY__FLOWER_PORT"] == "5555"


def test_celery_is_told_its_broker_its_result_backend_and_flower():
    environment = rendered("celery", celery__task_acks_late="False")
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
    assert environment["AIRFLOW__CELERY__BROKER_URL"] == "redis://:broker-secret@127.0.0.1:6379/0"
    assert environment["AIRFLOW__CELERY__RESULT_BACKEND"] == "db+postgresql+psycopg2://airflow:database-secret@127.0.0.1:5432/airflow"
    assert environment["AIRFLOW__CELERY__FLOWER_HOST"] == "127.0.0.1"
    assert environment["AIRFLOW__CELERY__FLOWER_PORT"] == "5555"
    assert environment["AIRFLOW__CELERY__FLOWER_BASIC_AUTH"] == "lab:flower-secret"
    assert environment["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"] == "86400"
    assert environment["AIRFLOW__CELERY__TASK_ACKS_LATE"] == "False"


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if not variant.uses_celery])
def test_without_celery_airflow_hears_nothing_of_it(name):
    assert not any(variable.startswith("AIRFLOW__CELERY") for variable in rendered(name))


def test_every_service_listens_on_the_loopback_address_only():
    assert rendered()["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert rendered()["AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK"] == "False"
    for name in ("scheduler", "triggerer"):
        assert "--skip-serve-logs" in SERVICES[name].arguments
    assert "--skip-serve-logs" in WORKER_COMMAND.split()


def test_public_settings_hold_no_secret():
    settings = public_settings(variant_named("sqlite"), {"core.parallelism": "3"})
    assert settings["core.parallelism"] == "3"
    assert list(settings) == sorted(settings)
    assert not any(word in setting for setting in settings for word in ("secret", "fernet", "conn", "password"))


@pytest.mark.parametrize("name", VARIANTS)
def test_public_settings_are_the_rendered_ones_without_those_of_the_installation(name):
    settings, environment = public_settings(variant_named(name), {"core.parallelism": "3"}), rendered(name, core__parallelism="3")
    assert {variable_name(setting): value for setting, value in settings.items()}.items() <= environment.items()
    public = {variable_name(setting) for setting in settings}
    kept = {variable for variable, value in environment.items() if any(secret in value for secret in SECRETS.values())}
    assert kept
    assert not kept & public
    assert not {"celery.broker_url", "celery.result_backend", "celery.flower_basic_auth"} & set(settings)


AWKWARD = {
    "PLAIN": "value",
    "EMPTY": "",
    "SPACES": "  a  b  ",
    "DOLLAR": "$HOME ${HOME} $(id) `id`",
    "QUOTES": 'say "hi"',
    "BACKSLASH": r"a\b\\n\t",
    "COMMENT": "# not ; a comment",
    "PERCENT": "50% %h %%",
    "UNICODE": "größe ✓ 日本",
    "EQUALS": "a=b=c",
    "GLOB": "* ? [a] ~ !x",
    "TAB": "a\tb",
}


def systemd_reads(text: str) -> dict[str, str]:
    """Return what systemd's EnvironmentFile= makes of a file, for the part of its syntax that single quotes need."""
    values = {}
    for line in text.split("\n"):
        if not line.strip() or line.lstrip()[0] in "#;":
            continue
        name, _, quoted = line.partition("=")
        assert quoted[0] == quoted[-1] == "'"
        assert "'" not in quoted[1:-1]
        values[name] = quoted[1:-1]
    return values


def shell_reads(path: Path) -> dict[str, str]:
    """Return the variables that a POSIX shell has after sourcing a file."""
    command = ["/bin/sh", "-c", 'set -a; . "$0"; exec /usr/bin/env -0', str(path)]
    done = subprocess.run(command, env={}, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    assert done.stderr == b""
    return dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)


@pytest.mark.parametrize("environment", [AWKWARD, *(rendered(name) for name in VARIANTS)], ids=["awkward", *VARIANTS])
def test_a_shell_and_systemd_read_the_environment_file_alike(tmp_path: Path, environment):
    file = tmp_path / "airflow.env"
    file.write_text(render_environment_file(environment), encoding="utf-8")
    assert systemd_reads(file.read_text(encoding="utf-8")) == environment
    assert environment.items() <= shell_reads(file).items()


@pytest.mark.parametrize("value", ["it's", "a\nb", "\n", "'", "a\rb", "a\0b"])
def test_a_value_that_the_two_would_read_differently_is_refused_by_its_name(value):
    with pytest.raises(ProvisionError, match="AIRFLOW__CORE__X may not contain"):
        render_environment_file({"GOOD": "x", "AIRFLOW__CORE__X": value})


def test_an_empty_environment_is_an_empty_file():
    assert render_environment_file({}) == ""


@pytest.mark.parametrize(
    ("setting", "concerned"),
    [
        ("core.parallelism", ("scheduler",)),
        ("scheduler.max_tis_per_query", ("scheduler",)),
        ("scheduler.job_heartbeat_sec", CORE_SERVICES),
        ("dag_processor.dag_bundle_config_list", CORE_SERVICES),
        ("triggerer.capacity", CORE_SERVICES),
        ("api.expose_config", CORE_SERVICES),
        ("api_auth.jwt_secret", CORE_SERVICES),
        ("core.max_active_tasks_per_dag", CORE_SERVICES),
        ("logging.logging_level", CORE_SERVICES),
        ("celery.task_acks_late", ("scheduler",)),
    ],
)
def test_a_setting_concerns_the_services_that_read_it(setting, concerned):
    assert services_concerned(setting, CORE_SERVICES) == concerned


@pytest.mark.parametrize(
    ("setting", "concerned"),
    [
        ("core.parallelism", ("scheduler",)),
        ("celery.worker_prefetch_multiplier", USING_CELERY),
        ("celery.extra_celery_config", USING_CELERY),
        ("celery_broker_transport_options.visibility_timeout", USING_CELERY),
        ("celery_kubernetes_executor.kubernetes_queue", USING_CELERY),
        ("core.max_active_tasks_per_dag", (*CORE_SERVICES, "flower", "worker-1")),
        ("workers.min_heartbeat_interval", (*CORE_SERVICES, "flower", "worker-1")),
    ],
)
def test_a_setting_of_celery_concerns_who_sends_tasks_who_runs_them_and_who_shows_them(setting, concerned):
    assert services_concerned(setting, (*CORE_SERVICES, "flower", "worker-1")) == concerned


def test_only_services_that_there_are_can_be_concerned():
    assert services_concerned("triggerer.capacity", ("scheduler",)) == ("scheduler",)
    assert services_concerned("core.parallelism", ()) == ()


@pytest.mark.parametrize(
    ("change", "restarted"),
    [
        ({}, set()),
        ({"core__parallelism": "7"}, {"scheduler"}),
        ({"triggerer__capacity": "7"}, set(CORE_SERVICES)),
        ({"dag_processor__parsing_processes": "2"}, set(CORE_SERVICES)),
        ({"api__expose_config": "True"}, set(CORE_SERVICES)),
        ({"core__max_active_tasks_per_dag": "7"}, set(CORE_SERVICES)),
    ],
)
def test_a_digest_changes_exactly_for_the_services_that_a_change_concerns(change, restarted):
    before, after = rendered(), rendered(**change)
    assert {name for name, service in SERVICES.items() if service_digest(service, before) != service_digest(service, after)} == restarted


@pytest.mark.parametrize(
    ("change", "restarted"),
    [
        ({}, set()),
        ({"core__parallelism": "7"}, {"scheduler"}),
        ({"scheduler__max_tis_per_query": "7"}, {"scheduler"}),
        ({"celery__worker_prefetch_multiplier": "4"}, set(USING_CELERY)),
        ({"celery__task_acks_late": "False"}, set(USING_CELERY)),
        ({"celery_broker_transport_options__visibility_timeout": "60"}, set(USING_CELERY)),
        ({"core__max_active_tasks_per_dag": "7"}, set(CELERY_SERVICES)),
        ({"workers__min_heartbeat_interval": "5"}, set(CELERY_SERVICES)),
    ],
)
def test_with_celery_too_a_digest_changes_exactly_for_the_services_that_a_change_concerns(change, restarted):
    before, after = rendered("celery"), rendered("celery", **change)
    assert {
        name for name, service in CELERY_SERVICES.items() if service_digest(service, before) != service_digest(service, after)
    } == restarted


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (WORKER, Worker("worker-1", 7)),
        (WORKER, Worker("worker-1", 2, ("heavy", "default"))),
        (Worker("worker-1", 4, at_least=1), Worker("worker-1", 8, ("heavy",), at_least=2)),
    ],
    ids=str,
)
def test_what_is_changed_while_a_worker_runs_does_not_change_its_digest(before, after):
    environment = rendered("celery")
    assert service_digest(worker_service(after), environment) == service_digest(worker_service(before), environment)
    assert worker_environment(after) != worker_environment(before)


def test_another_broker_restarts_who_sends_tasks_who_runs_them_and_who_shows_them():
    before, after = (
        render_environment(variant_named("celery"), replace(CELERY_PLACEMENT, broker_url=url), SECRETS, {})
        for url in ("redis://:x@127.0.0.1:1/0", "amqp://airflow:x@127.0.0.1:1/airflow")
    )
    changed = {name for name, service in CELERY_SERVICES.items() if service_digest(service, before) != service_digest(service, after)}
    assert changed == set(USING_CELERY)


@pytest.mark.parametrize(
    ("worker", "arguments"),
    [
        (WORKER, "--celery-hostname worker-1 --queues default --concurrency 2"),
        (Worker("heavy-1", 1, ("heavy", "default")), "--celery-hostname heavy-1 --queues heavy,default --concurrency 1"),
        (Worker("w", 4, at_least=1), "--celery-hostname w --queues default --concurrency 4 --autoscale 4,1"),
        (Worker("w", 4, at_least=4), "--celery-hostname w --queues default --concurrency 4 --autoscale 4,4"),
    ],
    ids=str,
)
def test_a_worker_is_told_from_the_others_by_its_variables_alone(worker, arguments):
    (script,) = worker_service(worker).arguments
    done = subprocess.run(
        ["/bin/sh", "-c", script, "/bin/echo"], env=worker_environment(worker), capture_output=True, text=True, check=True
    )
    assert done.stdout == f"celery worker --skip-serve-logs {arguments}\n"


def test_a_worker_without_autoscale_says_so_to_a_shell_that_had_it_before(tmp_path: Path):
    file = tmp_path / "worker.env"
    for worker in (Worker("w", 4, at_least=1), Worker("w", 4)):
        file.write_text(render_environment_file(worker_environment(worker)))
        assert worker_environment(worker).items() <= shell_reads(file).items()
    assert worker_environment(Worker("w", 4)).keys() == worker_environment(Worker("w", 4, at_least=1)).keys()


def test_setting_a_value_that_is_already_there_restarts_nothing():
    assert service_digest(SERVICES["scheduler"], rendered()) == service_digest(SERVICES["scheduler"], rendered(core__parallelism="1"))


def test_a_digest_does_not_depend_on_the_order_of_variables():
    environment = rendered()
    turned = dict(reversed(environment.items()))
    assert service_digest(SERVICES["scheduler"], environment) == service_digest(SERVICES["scheduler"], turned)


def test_other_arguments_and_another_home_change_the_digest():
    environment = rendered()
    digest = service_digest(SERVICES["scheduler"], environment)
    assert service_digest(Service("scheduler", ("scheduler",), ""), environment) != digest
    assert service_digest(SERVICES["scheduler"], {**environment, "AIRFLOW_HOME": "/elsewhere"}) != digest


def test_a_digest_tells_no_secret():
    digests = [service_digest(service, rendered("celery")) for service in CELERY_SERVICES.values()]
    assert not any(secret in digest for digest in digests for secret in SECRETS.values())


# -- Kubernetes ---------------------------------------------------------------------------------------

KUBERNETES = variant_named("kubernetes")
KUBERNETES_PLACEMENT = replace(
    PLACEMENT,
    kubeconfig="/etc/airflow-labs/kubeconfig",
    pod_template="/etc/airflow-labs/pod.yaml",
    pod_image="localhost:5000/labs:3.3.2-abc",
)


def test_with_kubernetes_airflow_is_told_where_its_cluster_is():
    environment = render_environment(KUBERNETES, KUBERNETES_PLACEMENT, SECRETS, {})
    told = {
        name.removeprefix("AIRFLOW__KUBERNETES_EXECUTOR__"): value for name, value in environment.items() if "KUBERNETES_EXECUTOR__" in name
    }
    assert (
        told.items()
        >= {
            "IN_CLUSTER": "False",
            "CONFIG_FILE": "/etc/airflow-labs/kubeconfig",
            "POD_TEMPLATE_FILE": "/etc/airflow-labs/pod.yaml",
            "WORKER_CONTAINER_REPOSITORY": "localhost:5000/labs",
            "WORKER_CONTAINER_TAG": "3.3.2-abc",
            "NAMESPACE": "airflow",
            "WORKER_PODS_CREATION_BATCH_SIZE": "16",
        }.items()
    )


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if not variant.uses_kubernetes])
def test_without_kubernetes_airflow_hears_nothing_of_it(name):
    assert not [variable for variable in rendered(name) if "KUBERNETES" in variable or "POD" in variable]


@pytest.mark.parametrize("setting", ["kubernetes_executor.worker_pods_creation_batch_size", "labs.pod_cpu", "labs.pod_memory"])
@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if not variant.uses_kubernetes])
def test_a_setting_of_kubernetes_is_refused_where_there_is_none(name, setting):
    with pytest.raises(UsageError, match=f"{setting} would have no effect: the variant {name} has no Kubernetes") as refused:
        check_changes({setting: "1"}, variant_named(name))
    assert "fab install kubernetes --target vagrant" in refused.value.hint


@pytest.mark.parametrize(
    "setting",
    [
        f"kubernetes_executor.{key}"
        for key in ("in_cluster", "config_file", "pod_template_file", "worker_container_repository", "worker_container_tag")
    ],
)
@pytest.mark.parametrize("name", ["kubernetes", "postgres"])
def test_what_the_installation_says_of_its_cluster_cannot_be_changed(name, setting):
    with pytest.raises(UsageError, match=f"{setting} is set by the installation itself"):
        check_changes({setting: "x"}, variant_named(name))


@pytest.mark.parametrize("setting", ["kubernetes_executor.namespace", "kubernetes_executor.multi_namespace_mode"])
def test_pods_stay_in_the_namespace_in_which_the_executor_has_rights(setting):
    with pytest.raises(UsageError, match=f"{setting} cannot be changed here: the executor has rights in"):
        check_changes({setting: "other"}, KUBERNETES)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("labs.pod_cpu", "100m"),
        ("labs.pod_cpu", "1"),
        ("labs.pod_cpu", "0.5"),
        ("labs.pod_cpu", "0.05"),
        ("labs.pod_cpu", "1.5"),
        ("labs.pod_memory", "256Mi"),
        ("labs.pod_memory", "1Gi"),
        ("labs.pod_memory", "300000Ki"),
        ("kubernetes_executor.worker_pods_creation_batch_size", "1"),
        ("kubernetes_executor.task_publish_max_retries", "-1"),
    ],
)
def test_what_a_pod_asks_for_can_be_changed(setting, value):
    check_changes({setting: value}, KUBERNETES)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("labs.pod_cpu", text) for text in ("", "0", "0m", "0.0", "-1", "m", "0.0001", "01", "0,5", "100M", "all", "1 ", "0.5m")),
        *(("labs.pod_memory", text) for text in ("", "0", "256", "256M", "256mi", "0Mi", "1.5Gi", "-1Gi", "256 Mi", "Gi", "256Mi\n")),
    ],
)
def test_what_is_no_quantity_is_refused_with_an_example(setting, value):
    with pytest.raises(UsageError, match=f"{setting} = .* is not a quantity of Kubernetes") as refused:
        check_changes({setting: value}, KUBERNETES)
    assert "write it like" in refused.value.hint


@pytest.mark.parametrize(
    ("setting", "concerned"),
    [
        ("labs.pod_cpu", ()),
        ("labs.pod_memory", ()),
        ("kubernetes_executor.worker_pods_creation_batch_size", ("scheduler", "scheduler-2")),
        ("kubernetes_executor.running_pod_log_lines", ("api-server", "scheduler", "api-server-2", "scheduler-2")),
    ],
)
def test_a_setting_of_pods_concerns_who_creates_them(setting, concerned):
    services = ("api-server", "scheduler", "dag-processor", "triggerer", "postgres", "k3s-control", "log-server-worker-1")
    assert services_concerned(setting, (*services, "api-server-2", "scheduler-2")) == concerned


def test_public_settings_name_neither_credentials_nor_template_of_the_cluster():
    assert not set(public_settings(KUBERNETES, {})) & {"kubernetes_executor.config_file", "kubernetes_executor.pod_template_file"}
    assert public_settings(KUBERNETES, {"labs.pod_cpu": "50m"})["labs.pod_cpu"] == "50m"

"""What Airflow is told: which settings, which of them may be changed, and which are shown."""

from __future__ import annotations

import re

import pytest
from airflow_samples import SECRETS, SERVICES, rendered

from provision.airflow import WORKER_COMMAND, check_changes, public_settings, variable_name
from provision.errors import UsageError
from provision.variants import VARIANTS, variant_named


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

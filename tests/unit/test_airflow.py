"""What Airflow is told: one environment file that a shell and systemd read alike, and what a change restarts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from provision.airflow import (
    AIRFLOW_SERVICES,
    Placement,
    Service,
    check_changes,
    public_settings,
    render_environment,
    render_environment_file,
    service_digest,
    services_concerned,
    variable_name,
)
from provision.errors import ProvisionError, UsageError
from provision.variants import CORE_SERVICES, variant_named

PLACEMENT = Placement(
    Path("/lab/bin/airflow"), Path("/lab/airflow"), Path("/lab/airflow/dags"), "127.0.0.1", 8080, "sqlite:////lab/airflow.db"
)
SECRETS = {"fernet_key": "fernet-secret", "api_secret_key": "api-secret", "jwt_secret": "jwt-secret"}
SERVICES = {service.name: service for service in AIRFLOW_SERVICES}


def rendered(variant: str = "sqlite", **changes: str) -> dict[str, str]:
    """Return the environment with changes given as section__key."""
    return render_environment(
        variant_named(variant), PLACEMENT, SECRETS, {name.replace("__", "."): value for name, value in changes.items()}
    )


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
        check_changes({setting: "4"})


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
    ],
)
def test_what_the_installation_owns_cannot_be_changed(setting):
    with pytest.raises(UsageError, match="is set by the installation itself"):
        check_changes({"core.parallelism": "4", setting: "x"})


def test_other_settings_may_be_changed():
    check_changes({"core.parallelism": "4", "scheduler.max_tis_per_query": "2", "celery.worker_concurrency": "3"})
    check_changes({})


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


def test_every_service_listens_on_the_loopback_address_only():
    assert rendered()["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert rendered()["AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK"] == "False"
    for name in ("scheduler", "triggerer"):
        assert "--skip-serve-logs" in SERVICES[name].arguments


def test_public_settings_hold_no_secret():
    settings = public_settings(variant_named("sqlite"), {"core.parallelism": "3"})
    assert settings["core.parallelism"] == "3"
    assert list(settings) == sorted(settings)
    assert not any(word in setting for setting in settings for word in ("secret", "fernet", "conn", "password"))


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


@pytest.mark.parametrize("environment", [AWKWARD, rendered(), rendered("postgres")], ids=["awkward", "sqlite", "postgres"])
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
        ("celery.worker_concurrency", CORE_SERVICES),
    ],
)
def test_a_setting_concerns_the_services_that_read_it(setting, concerned):
    assert services_concerned(setting, CORE_SERVICES) == concerned


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
    assert not any(secret in service_digest(service, rendered()) for service in AIRFLOW_SERVICES for secret in SECRETS.values())

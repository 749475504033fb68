"""The Airflow environment: what counts as complete, and settings that this Airflow knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision import environments
from provision.environments import COMPLETE, check_known, check_settings_exist, environment_path, is_complete
from provision.errors import UsageError
from provision.home import lab_home

CONFIG = """
core:
  description: ~
  options:
    parallelism: {default: "32"}
    max_active_tasks_per_dag: {default: "16"}
    executor: {default: "LocalExecutor"}
scheduler:
  options:
    max_tis_per_query: {default: "16"}
empty:
  options: ~
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Return an environment with nothing of Airflow but its table of settings."""
    folder = tmp_path / "environment" / "lib" / "python3.11" / "site-packages" / "airflow" / "config_templates"
    folder.mkdir(parents=True)
    (folder / "config.yml").write_text(CONFIG)
    return tmp_path / "environment"


PROVIDER = """
def get_provider_info():
    return {
        "name": "Celery",
        "config": {
            "celery": {"options": {"worker_prefetch_multiplier": {"default": "1"}, "task_acks_late": {}, "broker_url": {"sensitive": True}}},
            "celery_broker_transport_options": {"options": {"visibility_timeout": {}, "sentinel_kwargs": {"sensitive": True}}},
        },
    }
"""


@pytest.fixture
def celery_environment(environment) -> Path:
    """Return an environment with the Celery provider's table of settings too."""
    folder = environment / "lib" / "python3.11" / "site-packages" / "airflow" / "providers" / "celery"
    folder.mkdir(parents=True)
    (folder / "get_provider_info.py").write_text(PROVIDER)
    return environment


@pytest.mark.parametrize(
    "setting",
    [
        "core.parallelism",
        "celery.worker_prefetch_multiplier",
        # The provider reads it, and does not say so in its table.
        "celery.broker_connection_retry_on_startup",
        # All of this section is handed to the broker.
        "celery_broker_transport_options.visibility_timeout",
        "celery_broker_transport_options.queue_order_strategy",
        "kubernetes_executor.namespace",
    ],
)
def test_settings_that_the_celery_provider_knows_are_let_through(celery_environment, setting):
    check_settings_exist(celery_environment, {setting: "1"})


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("celery.worker_prefetch_multiplyer", "did you mean: celery.worker_prefetch_multiplier"),
        ("celery.task_ack_late", "did you mean: celery.task_acks_late"),
        ("celery.zzz", "celery.task_acks_late"),
        ("celry.task_acks_late", "did you mean: celery.task_acks_late"),
        ("celery_broker_transport_option.visibility_timeout", "did you mean: celery_broker_transport_options.visibility_timeout"),
    ],
)
def test_a_setting_that_the_celery_provider_would_ignore_is_refused_with_a_near_one(celery_environment, setting, hint):
    with pytest.raises(UsageError, match=f"has no setting {setting}") as refused:
        check_settings_exist(celery_environment, {setting: "1"})
    assert hint in refused.value.hint


@pytest.mark.parametrize("setting", ["celery.broker_url", "celery_broker_transport_options.sentinel_kwargs"])
def test_a_secret_of_the_celery_provider_is_refused(celery_environment, setting):
    with pytest.raises(UsageError, match="holds a secret"):
        check_settings_exist(celery_environment, {setting: "1"})


@pytest.mark.parametrize(
    "setting", ["core.parallelism", "scheduler.max_tis_per_query", "celery.worker_concurrency", "kubernetes_executor.namespace", "empty.x"]
)
def test_known_settings_and_those_of_providers_are_let_through(environment, setting):
    check_settings_exist(environment, {setting: "1"})


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("core.parallelsm", "did you mean: core.parallelism"),
        ("core.max_active_tasks", "max_active_tasks_per_dag"),
        ("core.zzz", "core.executor, core.max_active_tasks_per_dag, core.parallelism"),
        ("core.", "executor"),
        ("core", "executor"),
        ("scheduler.parallelism", "max_tis_per_query"),
        ("core.PARALLELISM", "executor"),
    ],
)
def test_a_setting_that_airflow_would_ignore_is_refused_with_a_near_one(environment, setting, hint):
    with pytest.raises(UsageError, match=f"has no setting {setting}") as refused:
        check_settings_exist(environment, {"core.parallelism": "1", setting: "1"})
    assert hint in refused.value.hint


def test_the_labs_own_settings_are_checked_as_well(environment):
    check_settings_exist(environment, {"labs.preload": "False", "labs.pod_cpu": "50m", "labs.pod_memory": "1Gi"})
    with pytest.raises(UsageError, match=r"has no setting labs\.prelaod") as refused:
        check_settings_exist(environment, {"labs.prelaod": "False"})
    assert "labs.preload" in refused.value.hint


@pytest.mark.parametrize("setting", ["cor.parallelism", "shceduler.max_tis_per_query"])
def test_a_section_that_is_nearly_one_of_airflows_is_refused(environment, setting):
    with pytest.raises(UsageError, match="has no setting"):
        check_settings_exist(environment, {setting: "1"})


def test_without_changes_nothing_is_read(tmp_path: Path):
    check_settings_exist(tmp_path / "absent", {})


def test_an_environment_is_complete_only_with_its_last_file_and_airflow(tmp_path: Path):
    assert not is_complete(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "airflow").write_text("")
    assert not is_complete(tmp_path)
    (tmp_path / COMPLETE).write_text("")
    assert is_complete(tmp_path)
    (tmp_path / "bin" / "airflow").unlink()
    assert not is_complete(tmp_path)


def test_another_lock_is_another_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    before = environment_path(lab_home())
    assert before == environment_path(lab_home())
    assert before.parent == lab_home().environments
    other = tmp_path / "other.txt"
    other.write_text("apache-airflow==0\n")
    monkeypatch.setattr(environments, "airflow_lock", lambda: other)
    assert environment_path(lab_home()) != before


def test_a_throwaway_installation_uses_the_same_environment():
    assert environment_path(lab_home().throwaway("x")) == environment_path(lab_home())


KUBERNETES_PROVIDER = 'def get_provider_info():\n    return {"config": {"kubernetes_executor": {"options": {"worker_pods_creation_batch_size": {"type": "integer"}}}}}\n'


def test_a_setting_that_the_provider_of_kubernetes_would_ignore_is_refused_with_a_near_one():
    check_known({"kubernetes_executor.worker_pods_creation_batch_size": "1", "labs.pod_cpu": "50m"}, "core: {}\n", "", KUBERNETES_PROVIDER)
    with pytest.raises(UsageError, match=r"has no setting kubernetes_executor\.worker_pod_creation_batch_size") as refused:
        check_known({"kubernetes_executor.worker_pod_creation_batch_size": "1"}, "core: {}\n", "", KUBERNETES_PROVIDER)
    assert "kubernetes_executor.worker_pods_creation_batch_size" in refused.value.hint

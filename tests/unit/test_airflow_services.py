"""Which services a change concerns, and what a worker is started with."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from airflow_samples import CELERY_PLACEMENT, CELERY_SERVICES, SECRETS, SERVICES, USING_CELERY, WORKER, rendered, shell_reads

from provision.airflow import (
    Service,
    render_environment,
    render_environment_file,
    service_digest,
    services_concerned,
    worker_environment,
    worker_service,
)
from provision.variants import CORE_SERVICES, variant_named
from provision.workers import Worker


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

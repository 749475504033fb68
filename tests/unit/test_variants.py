"""The table of variants, and what an install may be asked for."""

from __future__ import annotations

import pytest

from provision.airflow import AIRFLOW_SERVICES, check_changes, variable_name
from provision.errors import UsageError
from provision.target import open_target
from provision.variants import (
    BROKERS,
    COMMON,
    CORE_SERVICES,
    DAG_SOURCES,
    DISTRIBUTIONS,
    VARIANTS,
    KubernetesOptions,
    Variant,
    check_pairing,
    require_target,
    variant_named,
    wanted,
    wanted_again,
)
from provision.workers import Worker

WITHOUT_CELERY = [name for name, variant in VARIANTS.items() if not variant.uses_celery]
WITHOUT_KUBERNETES = [name for name, variant in VARIANTS.items() if not variant.uses_kubernetes]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_found_by_its_name_and_says_what_it_is(name):
    variant = variant_named(name)
    assert variant.name == name
    assert variant.summary
    assert variant.database in ("sqlite", "postgres")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_runs_all_of_airflow(name):
    assert set(CORE_SERVICES) <= set(variant_named(name).services)
    assert {service.name for service in AIRFLOW_SERVICES} == {*CORE_SERVICES, "flower"}


@pytest.mark.parametrize("name", VARIANTS)
def test_only_a_variant_with_celery_has_workers_and_flower(name):
    variant = variant_named(name)
    assert variant.uses_celery == (name in ("celery", "local-celery", "multiple"))
    assert bool(variant.workers) == variant.uses_celery
    assert ("flower" in variant.services) == variant.uses_celery
    assert any(setting.startswith("celery") for setting in variant.settings) == variant.uses_celery


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_sets_what_predictions_need(name):
    settings = variant_named(name).effective_settings({})
    for setting in ("core.parallelism", "core.max_active_tasks_per_dag", "core.max_active_runs_per_dag"):
        assert int(settings[setting]) >= 1
    assert settings["core.executor"] == variant_named(name).executor


@pytest.mark.parametrize("name", VARIANTS)
def test_every_setting_of_the_table_is_a_text_that_people_could_change_too(name):
    settings = {**COMMON, **variant_named(name).settings}
    check_changes(settings, variant_named(name))
    assert all(isinstance(value, str) for value in settings.values())
    assert len({variable_name(setting) for setting in settings}) == len(settings)


def test_sqlite_runs_one_task_at_a_time():
    assert variant_named("sqlite").effective_settings({})["core.parallelism"] == "1"


def test_a_variant_replaces_common_settings_and_a_change_replaces_both():
    variant = Variant("x", "x", "LocalExecutor", "sqlite", CORE_SERVICES, {"core.parallelism": "2", "core.load_examples": "True"})
    settings = variant.effective_settings({"core.parallelism": "5", "scheduler.max_tis_per_query": "1"})
    assert settings["core.load_examples"] == "True"
    assert settings["core.parallelism"] == "5"
    assert settings["scheduler.max_tis_per_query"] == "1"


def test_asking_for_settings_changes_no_table():
    before = dict(COMMON)
    variant_named("sqlite").effective_settings({"core.parallelism": "9"})["core.load_examples"] = "True"
    assert before == COMMON
    assert variant_named("sqlite").settings["core.parallelism"] == "1"


@pytest.mark.parametrize("name", ["", "SQLite", "mysql", "größe"])
def test_an_unknown_variant_is_refused_with_those_there_are(name):
    with pytest.raises(UsageError, match="Unknown variant") as refused:
        variant_named(name)
    assert all(known in refused.value.hint for known in VARIANTS)


def test_celery_has_three_workers_of_two_on_one_queue():
    assert [str(worker) for worker in variant_named("celery").workers] == [f"worker-{n}=2@default" for n in (1, 2, 3)]


def test_a_message_waits_in_the_broker_and_stays_there_until_its_task_has_ended():
    settings = variant_named("celery").effective_settings({})
    assert settings["celery.worker_prefetch_multiplier"] == "1"
    assert settings["celery.task_acks_late"] == "True"
    assert int(settings["celery_broker_transport_options.visibility_timeout"]) >= 24 * 60 * 60


@pytest.mark.parametrize("executor", ["CeleryExecutor", "LocalExecutor,CeleryExecutor", "CeleryExecutor,LocalExecutor", "a:CeleryExecutor"])
def test_celery_on_sqlite_is_refused_with_the_reason(executor):
    with pytest.raises(UsageError, match="SQLite cannot be used with the CeleryExecutor") as refused:
        Variant("x", "x", executor, "sqlite", CORE_SERVICES)
    assert "one write lock" in refused.value.message
    assert "fab install celery" in refused.value.hint


@pytest.mark.parametrize(
    ("executor", "database"), [("CeleryExecutor", "postgres"), ("LocalExecutor", "sqlite"), ("LocalExecutor", "postgres")]
)
def test_any_other_pair_of_executor_and_database_is_accepted(executor, database):
    check_pairing(executor, database)
    assert Variant("x", "x", executor, database, CORE_SERVICES).uses_celery == (executor == "CeleryExecutor")


@pytest.mark.parametrize("name", WITHOUT_CELERY)
def test_a_variant_without_celery_is_wanted_without_broker_and_workers(name):
    asked = wanted(name, {"core.parallelism": "3"})
    assert (asked.variant, asked.changes, asked.broker, asked.workers) == (variant_named(name), {"core.parallelism": "3"}, "", ())


@pytest.mark.parametrize("name", WITHOUT_CELERY)
@pytest.mark.parametrize("asked", [{"broker": "redis"}, {"broker": "nothing"}, {"workers": [Worker("worker-1")]}, {"workers": []}], ids=str)
def test_broker_and_workers_are_refused_where_there_is_no_celery(name, asked):
    with pytest.raises(UsageError, match=f"The variant {name} has neither a broker nor workers") as refused:
        wanted(name, **asked)
    assert refused.value.hint == "fab install celery"


@pytest.mark.parametrize("broker", [None, ""])
def test_celery_is_wanted_with_redis_and_the_workers_of_the_variant(broker):
    asked = wanted("celery", broker=broker)
    assert (asked.broker, asked.workers, asked.changes) == ("redis", variant_named("celery").workers, {})


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("workers", [[], [Worker("heavy-1", 1, ("heavy",))], [Worker("b"), Worker("a")]], ids=str)
def test_celery_is_wanted_with_what_is_given(broker, workers):
    asked = wanted("celery", None, broker, iter(workers))
    assert (asked.broker, asked.workers) == (broker, tuple(workers))


@pytest.mark.parametrize("broker", ["Redis", "valkey", "sqs", "redis "])
def test_an_unknown_broker_is_refused_with_those_there_are(broker):
    with pytest.raises(UsageError, match="Unknown broker") as refused:
        wanted("celery", broker=broker)
    assert all(known in refused.value.hint for known in BROKERS)


def test_two_workers_of_one_name_cannot_be_wanted():
    with pytest.raises(UsageError, match="two workers called worker-1"):
        wanted("celery", workers=[Worker("worker-1"), Worker("worker-1", 4)])


@pytest.mark.parametrize("name", [*variant_named("celery").services, *BROKERS, "supervisord", "migrate"])
def test_a_worker_cannot_have_the_name_of_a_service(name):
    with pytest.raises(UsageError, match=f"A worker cannot be called {name}: that is the name of a service"):
        wanted("celery", workers=[Worker("worker-1"), Worker(name)])


def test_an_installation_from_before_there_was_celery_is_wanted_again():
    assert wanted_again({"variant": "postgres", "changes": {"core.x": "1"}}) == wanted("postgres", {"core.x": "1"})


@pytest.mark.parametrize("workers", [[], [Worker("heavy-1", 1, ("heavy",))]], ids=str)
def test_an_installation_is_wanted_again_with_other_workers(workers):
    entry = {"name": "worker-1", "concurrency": 2, "queues": ["default"], "at_least": None, "node": "here"}
    document = {"variant": "celery", "changes": {}, "broker": {"kind": "rabbitmq"}, "workers": [entry]}
    assert wanted_again(document, workers) == wanted("celery", {}, "rabbitmq", workers)


def test_workers_are_not_wanted_again_where_there_is_no_celery():
    with pytest.raises(UsageError, match="has neither a broker nor workers"):
        wanted_again({"variant": "postgres", "changes": {}, "broker": None, "workers": []}, [Worker("worker-1")])


def test_an_unknown_variant_cannot_be_wanted():
    with pytest.raises(UsageError, match="Unknown variant"):
        wanted("mysql", broker="redis")


def test_a_request_keeps_its_changes_when_the_caller_goes_on_with_the_dict():
    changes = {"core.parallelism": "3"}
    asked = wanted("celery", changes)
    changes["core.parallelism"] = "4"
    assert asked.changes == {"core.parallelism": "3"}


@pytest.mark.parametrize(
    ("asked", "command"),
    [
        ({"variant": "sqlite"}, "fab install sqlite"),
        ({"variant": "celery"}, "fab install celery"),
        ({"variant": "celery", "broker": "redis"}, "fab install celery"),
        ({"variant": "celery", "broker": "rabbitmq"}, "fab install celery --broker rabbitmq"),
        ({"variant": "postgres", "changes": {"core.parallelism": "4"}}, "fab install postgres --set core.parallelism=4"),
        ({"variant": "postgres", "changes": {"core.x": "a b"}}, "fab install postgres --set 'core.x=a b'"),
        (
            {"variant": "celery", "workers": [Worker("a", 4, ("x", "y"), at_least=1), Worker("b")]},
            "fab install celery --worker a=1-4@x,y --worker b=2@default",
        ),
    ],
)
def test_a_request_says_the_command_that_asks_for_it(asked, command):
    assert wanted(**asked).command() == command


# -- Kubernetes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_only_a_variant_with_kubernetes_has_settings_of_pods_and_needs_machines(name):
    variant = variant_named(name)
    assert variant.uses_kubernetes == (name in ("kubernetes", "multiple"))
    own = [setting for setting in variant.settings if setting.startswith(("kubernetes_executor.", "labs.pod_"))]
    assert bool(own) == variant.uses_kubernetes
    assert ("local" in variant.targets) != variant.uses_kubernetes
    assert (wanted(name).kubernetes == KubernetesOptions()) == variant.uses_kubernetes


def test_kubernetes_creates_many_pods_at_once_and_keeps_none():
    settings = variant_named("kubernetes").effective_settings({})
    assert int(settings["kubernetes_executor.worker_pods_creation_batch_size"]) == int(settings["core.parallelism"])
    assert settings["kubernetes_executor.delete_worker_pods"] == "True"
    assert settings["kubernetes_executor.delete_worker_pods_on_failure"] == "True"


@pytest.mark.parametrize(
    ("options", "said", "known"),
    [
        ({"distribution": "rke"}, "Unknown distribution 'rke'", DISTRIBUTIONS),
        ({"distribution": "K3s"}, "Unknown distribution 'K3s'", DISTRIBUTIONS),
        ({"dags": "nfs"}, "Unknown source of DAGs 'nfs'", DAG_SOURCES),
    ],
)
def test_an_unknown_choice_is_refused_with_those_there_are(options, said, known):
    with pytest.raises(UsageError, match=said) as refused:
        wanted("kubernetes", kubernetes=KubernetesOptions(**options))
    assert refused.value.hint == f"choose one of: {', '.join(known)}"


@pytest.mark.parametrize(
    "image", ["airflow", "apache/airflow", "apache/airflow:", ":3.3.2", "Apache/airflow:3", "a b:1", "a:1;rm", "-x:1", "a:1\n"]
)
def test_what_is_no_name_of_an_image_is_refused_with_an_example(image):
    with pytest.raises(UsageError, match="is not the name of an image") as refused:
        wanted("kubernetes", kubernetes=KubernetesOptions(image=image))
    assert "apache/airflow:3.3.2" in refused.value.hint


@pytest.mark.parametrize("image", ["apache/airflow:3.3.2", "localhost:5000/my/airflow:3.3.2-lab_1", "ghcr.io/x/y:v1"])
def test_an_image_is_named_with_its_tag(image):
    assert wanted("kubernetes", kubernetes=KubernetesOptions(image=image)).kubernetes.image == image


@pytest.mark.parametrize("name", WITHOUT_KUBERNETES)
@pytest.mark.parametrize(
    "options", [{"distribution": "rke2"}, {"dags": "git"}, {"artifacts": "/x"}, {"image": "a:1"}, {"distribution": "x"}], ids=str
)
def test_options_of_kubernetes_are_refused_where_there_is_none(name, options):
    with pytest.raises(UsageError, match=f"The variant {name} has no Kubernetes") as refused:
        wanted(name, kubernetes=KubernetesOptions(**options))
    assert refused.value.hint == "fab install kubernetes --target vagrant"


@pytest.mark.parametrize("asked", [{"broker": "redis"}, {"workers": []}, {"ha": True}], ids=str)
def test_kubernetes_has_neither_broker_nor_workers_nor_a_second_scheduler(asked):
    with pytest.raises(UsageError, match="The variant kubernetes") as refused:
        wanted("kubernetes", **asked)
    assert "fab install celery" in refused.value.hint


ASKED = [
    ({}, "fab install kubernetes"),
    ({"distribution": "k3s", "dags": "volume"}, "fab install kubernetes"),
    ({"distribution": "rke2"}, "fab install kubernetes --distribution rke2"),
    ({"dags": "git"}, "fab install kubernetes --dags git"),
    ({"artifacts": "/my files"}, "fab install kubernetes --artifacts '/my files'"),
    (
        {"distribution": "rke2", "artifacts": "/x", "image": "apache/airflow:3.3.2"},
        "fab install kubernetes --distribution rke2 --artifacts /x --image apache/airflow:3.3.2",
    ),
]


@pytest.mark.parametrize(("options", "command"), ASKED)
def test_a_request_for_kubernetes_says_its_command_and_is_wanted_again(options, command):
    asked = wanted("kubernetes", {}, kubernetes=KubernetesOptions(**options))
    assert asked.command() == command
    shown = {"namespace": "airflow", "kubeconfig": "/x/kubeconfig", **vars(asked.kubernetes)}
    assert wanted_again({"variant": "kubernetes", "changes": {}, "broker": None, "workers": [], "kubernetes": shown}) == asked


def test_this_machine_alone_is_not_enough_for_kubernetes():
    require_target(variant_named("kubernetes"), "vagrant")
    with pytest.raises(UsageError, match="The variant kubernetes needs a cluster of machines") as refused:
        open_target("local").install(wanted("kubernetes"))
    assert refused.value.hint == "fab up, then fab install kubernetes --target vagrant"


@pytest.mark.parametrize("name", WITHOUT_KUBERNETES)
@pytest.mark.parametrize("target", ["local", "vagrant"])
def test_every_other_variant_runs_everywhere(name, target):
    require_target(variant_named(name), target)

"""The table of variants."""

from __future__ import annotations

import pytest

from provision.airflow import AIRFLOW_SERVICES, check_changes, variable_name
from provision.errors import UsageError
from provision.variants import COMMON, CORE_SERVICES, VARIANTS, Variant, variant_named


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_found_by_its_name_and_says_what_it_is(name):
    variant = variant_named(name)
    assert variant.name == name
    assert variant.summary
    assert variant.database in ("sqlite", "postgres")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_runs_all_of_airflow(name):
    assert set(CORE_SERVICES) <= set(variant_named(name).services)
    assert {service.name for service in AIRFLOW_SERVICES} == set(CORE_SERVICES)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_sets_what_predictions_need(name):
    settings = variant_named(name).effective_settings({})
    for setting in ("core.parallelism", "core.max_active_tasks_per_dag", "core.max_active_runs_per_dag"):
        assert int(settings[setting]) >= 1
    assert settings["core.executor"] == variant_named(name).executor


@pytest.mark.parametrize("name", VARIANTS)
def test_every_setting_of_the_table_is_a_text_that_people_could_change_too(name):
    settings = {**COMMON, **variant_named(name).settings}
    check_changes(settings)
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

"""Probe specs: what a lab may write, and what it is told when it may not."""

from __future__ import annotations

import json
import random

import pytest

from labs.errors import UsageError
from labs.spec import MOST_TASKS, Group, Spec, as_dict, parse, with_tasks


def test_an_empty_spec_is_one_holding_task_with_airflows_defaults():
    assert parse({}) == Spec(groups=(Group(),))
    assert parse({}).task_count == 1
    assert parse({}).holds


def test_a_flat_spec_describes_one_group():
    spec = parse({"name": "narrow-1", "tasks": 12, "pool": "narrow", "max_active_tasks": 4, "runs": 2})
    assert spec == Spec(name="narrow-1", groups=(Group(tasks=12, pool="narrow"),), max_active_tasks=4, runs=2)
    assert spec.task_count == 24


def test_several_groups_keep_their_order_and_names():
    spec = parse({"groups": [{"name": "light", "tasks": 6}, {"name": "heavy", "tasks": 3, "after": ["light"]}]})
    assert [group.name for group in spec.groups] == ["light", "heavy"]
    assert spec.groups[1].after == ("light",)


def test_lists_become_tuples_so_that_a_spec_is_hashable():
    spec = parse({"groups": [{"name": "a", "tasks": 2, "priority": [3, 1]}, {"name": "b", "after": ["a"]}]})
    assert spec.groups[0].priority == (3, 1)
    assert isinstance(hash(spec), int)


def test_parsing_a_parsed_spec_returns_it():
    spec = parse({"tasks": 3})
    assert parse(spec) is spec


def test_parsing_leaves_the_dict_of_the_lab_as_it_was():
    written = {"groups": [{"name": "a", "priority": [1]}]}
    parse(written)
    assert written == {"groups": [{"name": "a", "priority": [1]}]}


@pytest.mark.parametrize(
    ("spec", "says", "hint"),
    [
        ([], "is a dict, not list", "for example"),
        ("tasks", "is a dict, not str", "for example"),
        (None, "is a dict, not NoneType", "for example"),
        ({"taks": 3}, "Unknown key 'taks' in a probe spec", "did you mean 'tasks'"),
        ({"zzz": 3}, "Unknown key 'zzz'", "known keys: "),
        ({1: 2}, "Unknown key 1", "known keys: "),
        ({"after": ["work"]}, "Unknown key 'after'", ""),
        ({"groups": [{"taks": 3}]}, "Unknown key 'taks' in groups[0]", "did you mean 'tasks'"),
        ({"groups": [{}], "tasks": 3}, "Unknown key 'tasks'", ""),
        ({"groups": []}, "no groups", "give at least one"),
        ({"groups": None}, "groups", "list"),
        ({"groups": "ab"}, "groups", "list"),
        ({"groups": {"name": "a"}}, "groups", "list"),
        ({"groups": [1]}, "groups[0]", ""),
        ({"kind": "dance"}, "kind = 'dance'", "hold, sleep, cpu, noop"),
        ({"kind": "sleep"}, "seconds is missing", 'add "seconds"'),
        ({"kind": "cpu", "seconds": 0}, "seconds is missing", 'add "seconds"'),
        ({"tasks": 3, "priority": [1, 2]}, "2 numbers for 3 tasks", "one per task"),
        ({"tasks": 2, "priority": [1, 2], "mapped": True}, "that are mapped", "without mapped"),
        ({"mapped": True, "chain": True}, "exclude each other", ""),
        ({"tasks": MOST_TASKS + 1}, f"asks for {MOST_TASKS + 1}", f"ask for {MOST_TASKS} at most"),
        ({"tasks": MOST_TASKS // 2 + 1, "runs": 2}, "asks for", "at most"),
        ({"name": "naïve"}, "cannot be part of a DAG id", "letters, digits"),
        ({"name": "a b"}, "cannot be part of a DAG id", "letters, digits"),
        ({"name": "../../etc"}, "cannot be part of a DAG id", "letters, digits"),
        ({"name": "line\n"}, "cannot be part of a DAG id", "letters, digits"),
        ({"name": "x" * 81}, "cannot be part of a DAG id", "letters, digits"),
        ({"groups": [{"name": "a.b"}]}, "cannot be part of a task id", "its own name"),
        ({"groups": [{"name": "ü"}]}, "cannot be part of a task id", "its own name"),
        ({"groups": [{"name": "a"}, {"name": "a"}]}, "used twice", "its own name"),
        ({"groups": [{}, {}]}, "used twice", "its own name"),
        ({"groups": [{"name": "a", "after": ["a"]}]}, "not an earlier group", "in the order"),
        ({"groups": [{"name": "a", "after": ["b"]}, {"name": "b"}]}, "not an earlier group", "in the order"),
    ],
)
def test_a_wrong_spec_is_refused_with_what_to_write_instead(spec, says, hint):
    with pytest.raises(UsageError) as refused:
        parse(spec)
    assert says in refused.value.message
    assert hint in refused.value.hint


@pytest.mark.parametrize(
    "key", ["tasks", "pool_slots", "max_active_tasks", "max_active_runs", "runs", "max_active_tis_per_dag", "max_active_tis_per_dagrun"]
)
@pytest.mark.parametrize("value", [0, -1, 1.0, "3", True, [3]])
def test_a_count_is_a_whole_number_of_at_least_one(key, value):
    with pytest.raises(UsageError, match=f"{key} = .* is not a whole number of at least 1"):
        parse({key: value})


@pytest.mark.parametrize("key", ["seconds", "retry_delay", "poll_seconds"])
@pytest.mark.parametrize("value", [-0.1, "2", True, float("nan"), float("inf")])
def test_a_duration_is_a_finite_number_of_seconds(key, value):
    with pytest.raises(UsageError, match=f"{key} = .* is not a number of seconds"):
        parse({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pool", ""),
        ("pool", 3),
        ("queue", ["a"]),
        ("executor", 1),
        ("mapped", 1),
        ("chain", "yes"),
        ("priority", 1.5),
        ("priority", [True]),
        ("priority", "high"),
        ("retries", -1),
        ("retries", 1.0),
        ("name", 5),
        ("name", ""),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_its_key(key, value):
    with pytest.raises(UsageError, match=f"^{key} = "):
        parse({key: value})


@pytest.mark.parametrize(
    "key", ["tasks", "runs", "kind", "pool", "pool_slots", "name", "mapped", "chain", "priority", "seconds", "poll_seconds"]
)
def test_none_is_refused_where_airflow_has_no_default_to_fall_back_on(key):
    with pytest.raises(UsageError, match=f"^{key} = None"):
        parse({key: None})


@pytest.mark.parametrize(
    "key", ["queue", "executor", "retries", "retry_delay", "max_active_tasks", "max_active_runs", "max_active_tis_per_dag"]
)
def test_none_means_airflows_own_default_where_there_is_one(key):
    assert parse({key: None}) == parse({})


def test_none_for_a_list_of_earlier_groups_is_refused():
    with pytest.raises(UsageError, match=r"^after = None"):
        parse({"groups": [{"name": "a"}, {"name": "b", "after": None}]})


def test_groups_whose_tasks_would_share_an_id_are_refused():
    # A mapped group is one task called like the group; an unmapped one numbers its tasks: work_000, work_001, …
    with pytest.raises(UsageError, match="work_001"):
        parse({"groups": [{"name": "work", "tasks": 2}, {"name": "work_001", "mapped": True}]})


def test_an_operator_gets_only_what_differs_from_airflow():
    assert Group().operator() == {"pool": "default_pool", "pool_slots": 1, "priority_weight": 1}
    group = Group(tasks=2, priority=(3, 1), queue="fast", retries=0, retry_delay=0.5, max_active_tis_per_dag=2)
    assert group.operator() == {
        "pool": "default_pool", "pool_slots": 1, "priority_weight": [3, 1], "queue": "fast",
        "retries": 0, "retry_delay": 0.5, "max_active_tis_per_dag": 2,
    }  # fmt: skip


def test_the_document_for_the_dag_file_survives_json():
    spec = parse(
        {"max_active_tasks": 2, "groups": [{"name": "a", "tasks": 2, "priority": [2, 1]}, {"name": "b", "after": ["a"], "chain": True}]}
    )
    document = spec.document("probe_x", "gate_x")
    assert json.loads(json.dumps(document)) == document
    assert (document["schema"], document["dag_id"], document["max_active_tasks"], document["max_active_runs"]) == (1, "probe_x", 2, None)
    assert [group["gate"] for group in document["groups"]] == ["gate_x", "gate_x"]
    assert document["groups"][1]["after"] == ["a"]
    assert document["groups"][1]["chain"] is True


def test_only_a_probe_that_holds_needs_a_gate():
    assert not parse({"kind": "noop"}).holds
    assert parse({"groups": [{"name": "a", "kind": "noop"}, {"name": "b"}]}).holds


def test_the_pools_of_a_spec_are_named_once_and_sorted():
    spec = parse({"groups": [{"name": "a", "pool": "z"}, {"name": "b"}, {"name": "c", "pool": "z"}]})
    assert spec.pools() == ("default_pool", "z")


def test_a_spec_can_be_had_with_another_number_of_tasks():
    assert with_tasks(parse({"tasks": 3, "pool": "narrow"}), 5) == parse({"tasks": 5, "pool": "narrow"})


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"tasks": 12, "pool": "narrow"},
        {"name": "x", "max_active_tasks": 4, "groups": [{"name": "light", "tasks": 6}, {"name": "heavy", "tasks": 3, "after": ["light"]}]},
        {"groups": [{"name": "only"}]},
    ],
)
def test_a_spec_is_shown_as_it_was_written(written):
    shown = as_dict(parse(written))
    assert json.loads(json.dumps(shown)) == written


def test_showing_and_parsing_random_specs_are_inverse():
    chance = random.Random(20)
    for _ in range(200):
        groups = []
        for number in range(chance.randint(1, 4)):
            tasks = chance.randint(1, 9)
            group = {
                "name": f"g{number}",
                "tasks": tasks,
                "pool": chance.choice(["default_pool", "narrow"]),
                "pool_slots": chance.randint(1, 3),
            }
            group["priority"] = [chance.randint(-5, 5) for _ in range(tasks)] if chance.random() < 0.5 else chance.randint(-5, 5)
            if number and chance.random() < 0.5:
                group["after"] = [f"g{chance.randrange(number)}"]
            groups.append(group)
        spec = parse({"groups": groups, "runs": chance.randint(1, 3)})
        assert parse(as_dict(spec)) == spec

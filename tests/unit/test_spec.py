"""Probe specs: what a lab may write, and what it is told when it may not."""

from __future__ import annotations

import json
import random
from datetime import date

import pytest

from labs.errors import UsageError
from labs.spec import MOST_TASKS, Group, Spec, as_dict, from_yaml, parse, with_tasks

BASH = "airflow.providers.standard.operators.bash.BashOperator"


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


def test_an_operator_does_the_work_of_a_group_and_does_not_hold():
    spec = parse({"tasks": 2, "operator": BASH, "arguments": {"bash_command": "true"}, "pool": "narrow"})
    assert spec.groups == (Group(tasks=2, kind="operator", operator=BASH, arguments={"bash_command": "true"}, pool="narrow"),)
    assert not spec.holds
    assert isinstance(hash(spec), int)


def test_a_change_of_a_labs_arguments_does_not_reach_the_spec():
    arguments = {"env": {"A": "1"}, "list": (1, 2)}
    spec = parse({"operator": BASH, "arguments": arguments})
    arguments["env"]["A"] = "2"
    assert spec.groups[0].arguments == {"env": {"A": "1"}, "list": [1, 2]}


def test_parsing_a_parsed_spec_returns_it():
    spec = parse({"tasks": 3})
    assert parse(spec) is spec


def test_parsing_leaves_the_dict_of_the_lab_as_it_was():
    written = {"groups": [{"name": "a", "priority": [1]}]}
    parse(written)
    assert written == {"groups": [{"name": "a", "priority": [1]}]}


def endless() -> dict:
    """Return a dict that contains itself, as YAML can write it."""
    arguments: dict = {}
    arguments["again"] = arguments
    return arguments


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
        ({"groups": [{}], "tasks": 3}, "Unknown key 'tasks'", "write 'tasks' into the groups"),
        ({"dag_id": "x"}, "Unknown key 'dag_id' in a probe spec", "did you mean 'name'"),
        ({"groups": [{"depends_on": ["a"]}]}, "Unknown key 'depends_on' in groups[0]", "did you mean 'after'"),
        ({"operator": BASH, "bash_command": "true"}, "Unknown key 'bash_command'", 'into "arguments"'),
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
        ({"kind": "operator"}, "kind = 'operator'", "hold, sleep, cpu, noop"),
        ({"operator": BASH, "kind": "noop"}, "kind and operator in the spec exclude each other", "leave kind out"),
        ({"groups": [{"operator": BASH, "seconds": 2}]}, "seconds and operator in groups[0] exclude", "leave seconds out"),
        ({"operator": BASH, "tasks": 3, "mapped": True}, "mapped and operator in the spec exclude", '"tasks": 3 makes'),
        ({"arguments": {"bash_command": "true"}}, "arguments in the spec have no operator", f'add "operator": "{BASH}"'),
        ({"operator": "BashOperator"}, "operator = 'BashOperator' in the spec is not the dotted path", BASH),
        ({"operator": "a..B"}, "is not the dotted path", "module and class"),
        ({"operator": "a:B"}, "is not the dotted path", "module and class"),
        ({"operator": "a.B\n"}, "is not the dotted path", "module and class"),
        ({"operator": BASH, "arguments": {"bash-command": 1}}, "has 'bash-command', which cannot be", "letters, digits and _"),
        ({"operator": BASH, "arguments": {1: 1}}, "arguments in the spec has 1, which cannot be", "letters, digits and _"),
        ({"operator": BASH, "arguments": {"pool": "x"}}, "arguments.pool in the spec collides", 'write "pool" beside'),
        ({"operator": BASH, "arguments": {"priority_weight": 1}}, "arguments.priority_weight", 'write "priority" beside'),
        ({"operator": BASH, "arguments": {"weight_rule": "upstream"}}, "arguments.weight_rule", 'write "priority" beside'),
        ({"operator": BASH, "arguments": {"task_id": "x"}}, "arguments.task_id", 'give "groups", each with a "name"'),
        ({"groups": [{"operator": BASH, "arguments": {"task_id": "x"}}]}, "arguments.task_id in groups[0]", 'write "name" beside'),
        ({"operator": BASH, "arguments": {"dag": None}}, "arguments.dag", "leave it out"),
        ({"operator": BASH, "arguments": {"env": {"A": object}}}, "arguments.env.A = <class 'object'> in the spec is a type", "a text"),
        ({"operator": BASH, "arguments": {"at": [date(2026, 1, 2)]}}, "arguments.at[0] = datetime.date", "a text in quotes"),
        ({"operator": BASH, "arguments": {"x": float("nan")}}, "arguments.x = nan in the spec is a float", "a number"),
        ({"operator": BASH, "arguments": {"env": {True: 1}}}, "arguments.env in the spec has the key True", "in quotes"),
        ({"operator": BASH, "arguments": endless()}, "arguments in the spec are nested deeper than", "fewer"),
        ({"schedule": "@daily"}, "schedule = '@daily' in the spec is for DAGs of your own", "leave schedule out"),
        ({"schedule": "hourly"}, "schedule = 'hourly' in the spec is not a cron expression", "five fields"),
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
        (
            {"groups": [{"name": "a", "tasks": 2}, {"name": "a_001", "operator": BASH}]},
            "'a_001' is called like a task of group 'a'",
            "another",
        ),
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
        ("operator", 3),
        ("operator", ""),
        ("arguments", ["echo"]),
        ("schedule", 5),
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
    "key", ["tasks", "runs", "kind", "pool", "pool_slots", "name", "mapped", "chain", "priority", "seconds", "poll_seconds", "arguments"]
)
def test_none_is_refused_where_airflow_has_no_default_to_fall_back_on(key):
    with pytest.raises(UsageError, match=f"^{key} = None"):
        parse({key: None})


@pytest.mark.parametrize(
    "key",
    [
        "queue",
        "executor",
        "operator",
        "retries",
        "retry_delay",
        "schedule",
        "max_active_tasks",
        "max_active_runs",
        "max_active_tis_per_dag",
    ],
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
    assert Group().base_arguments() == {"pool": "default_pool", "pool_slots": 1, "priority_weight": 1}
    group = Group(tasks=2, priority=(3, 1), queue="fast", retries=0, retry_delay=0.5, max_active_tis_per_dag=2)
    assert group.base_arguments() == {
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


def test_the_document_says_of_an_operator_its_class_its_arguments_and_where_they_were_written():
    several = parse({"groups": [{"name": "a"}, {"name": "b", "operator": BASH, "arguments": {"bash_command": "true"}, "after": ["a"]}]})
    held, operated = several.document("probe_x", "gate_x")["groups"]
    assert "class" not in held
    assert (operated["class"], operated["arguments"], operated["where"]) == (BASH, {"bash_command": "true"}, "groups[1]")
    assert parse({"operator": BASH}).document("probe_x")["groups"][0]["where"] == "the spec"


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
        {"tasks": 2, "operator": BASH, "arguments": {"bash_command": "true", "env": {"A": "1"}}},
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
            if chance.random() < 0.3:
                group |= {"operator": BASH, "arguments": {"bash_command": chance.choice(["true", "false"])}}
            if number and chance.random() < 0.5:
                group["after"] = [f"g{chance.randrange(number)}"]
            groups.append(group)
        spec = parse({"groups": groups, "runs": chance.randint(1, 3)})
        assert parse(as_dict(spec)) == spec


def test_a_spec_can_be_written_in_yaml():
    text = """
    max_active_tasks: 4
    groups:
      - {name: light, tasks: 6}
      - name: heavy
        after: [light]
        priority: [3]
    """
    written = {"max_active_tasks": 4, "groups": [{"name": "light", "tasks": 6}, {"name": "heavy", "after": ["light"], "priority": [3]}]}
    assert from_yaml(text) == parse(written)


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("tasks: 3\npool: [narrow", "cannot be read", "quotes"),
        ("tasks: 3\npool: @narrow", "'@' that cannot start any token in line 2, column 7", "quotes"),
        ("tasks: 3\n\tpool: narrow", "in line 2, column 1", "indentation"),
        ("tasks: 3\npool: a\npool: b\n", "has the key 'pool' twice in one dict, the second in line 3", "keep one"),
        ("a: 1\n---\nb: 2\n", "expected a single document", ""),
        ("tasks: \x01", "cannot be read", ""),
        ("tasks: !!python/name:os.system", "cannot be read: could not determine a constructor", ""),
        ("", "A probe spec is a dict, not NoneType", "for example"),
        ("taks: 3", "Unknown key 'taks' in a probe spec", "did you mean 'tasks'"),
        ("groups:\n  - on: 1", "Unknown key True in groups[0]", "known keys"),
        ("operator: a.B\narguments: &again {x: *again}", "nested deeper", ""),
    ],
)
def test_wrong_yaml_is_refused_with_its_line_or_its_key(text, says, hint):
    with pytest.raises(UsageError) as refused:
        from_yaml(text)
    assert says in refused.value.message
    assert hint in refused.value.hint


def test_a_dict_that_yaml_merges_into_another_may_be_overridden():
    text = "groups:\n  - &light {name: light, tasks: 6}\n  - {<<: *light, name: heavy}\n"
    assert [(group.name, group.tasks) for group in from_yaml(text).groups] == [("light", 6), ("heavy", 6)]

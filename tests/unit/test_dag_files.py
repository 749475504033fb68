"""The files that Airflow loads: what they import, where they are put, and what a user's DAG spec may say."""

from __future__ import annotations

import ast
import json
import re
import sys

import pytest
import yaml

from labs.dags import dag_spec
from labs.dags.dag_spec import BASH, SpecError, parse_dag
from labs.spec import parse
from labs.stock import prepare_files
from provision.home import REPOSITORY, LabHome
from provision.local.desired import desired_state, files_of
from provision.variants import VARIANTS, wanted

FOLDER = REPOSITORY / "labs" / "dags"
EXTRACT = {"name": "extract", "operator": BASH, "arguments": {"bash_command": "echo extract"}}
LOAD = {"name": "load", "operator": BASH, "arguments": {"bash_command": "echo load"}, "after": ["extract"], "pool": "narrow"}


def imported(name: str) -> set[str]:
    """Return the top-level names of everything that a DAG file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse((FOLDER / name).read_text())):
        if isinstance(node, ast.Import):
            found |= {entry.name.partition(".")[0] for entry in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("dag_spec.py", set()),
        ("dag_builder.py", {"airflow", "dag_spec", "kubernetes", "yaml"}),
        ("probes.py", {"airflow", "dag_builder"}),
    ],
)
def test_a_file_for_airflow_imports_only_what_is_there(name, others):
    assert imported(name) - set(sys.stdlib_module_names) == others


def test_every_file_for_airflow_is_known_to_these_tests():
    assert {path.name for path in FOLDER.glob("*.py")} == {"dag_spec.py", "dag_builder.py", "probes.py"}


def test_airflow_takes_the_labs_dag_file_for_one():
    # Airflow reads a file only if it contains both words (airflow/utils/file.py of 3.3.2).
    text = (FOLDER / "probes.py").read_text().lower()
    assert "airflow" in text
    assert "dag" in text


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gets_the_builder_in_its_config_folder_before_the_dag_file(variant, tmp_path):
    home = LabHome(tmp_path, tmp_path)
    files = list(files_of(home, desired_state(home, wanted(variant), ())).items())
    ours = [
        (path.relative_to(home.airflow_home), text) for path, text in files if path.name in ("dag_spec.py", "dag_builder.py", "probes.py")
    ]
    assert [str(path) for path, _ in ours] == ["config/dag_spec.py", "config/dag_builder.py", "dags/probes.py"]
    assert [text for _, text in ours] == [(FOLDER / path.name).read_text() for path, _ in ours]


def test_airflow_as_shipped_gets_the_builder_too_and_again(tmp_path):
    for _ in range(2):
        prepare_files(tmp_path, "secret")
    for file in ("config/dag_spec.py", "config/dag_builder.py", "dags/probes.py"):
        assert (tmp_path / file).read_text() == (FOLDER / file.partition("/")[2]).read_text()


def test_a_dag_of_your_own_is_named_scheduled_and_made_of_operators():
    spec = parse_dag({"name": "nightly", "schedule": "0 3 * * *", "max_active_runs": 1, "groups": [EXTRACT, LOAD]})
    assert (spec.name, spec.schedule, spec.max_active_runs, spec.holds) == ("nightly", "0 3 * * *", 1, False)
    document = spec.document(spec.name)
    assert json.loads(json.dumps(document)) == document
    assert (document["dag_id"], document["schedule"]) == ("nightly", "0 3 * * *")
    assert document["groups"][1]["operator"]["pool"] == "narrow"


@pytest.mark.parametrize("schedule", [None, "0 3 * * *", "0  3 L *\tMon-Fri", "*/5 0-6 1,15 * mon#2", *dag_spec.PRESETS])
def test_a_schedule_is_a_cron_expression_a_preset_or_none(schedule):
    assert parse_dag({"name": "nightly", "kind": "noop", "schedule": schedule}).schedule == schedule


@pytest.mark.parametrize("schedule", ["", 5, "0 3 * *", "0 3 * * * *", "@fortnightly", "every day at three oclock", "0 3 * * everyday"])
def test_what_is_no_schedule_is_refused(schedule):
    with pytest.raises(SpecError, match=r"^schedule = "):
        parse_dag({"name": "nightly", "kind": "noop", "schedule": schedule})


@pytest.mark.parametrize("kind", [{"kind": "noop"}, {"kind": "sleep", "seconds": 1}, {"kind": "cpu", "seconds": 1}])
def test_what_does_not_wait_for_a_gate_may_be_in_any_dag(kind):
    assert parse_dag({"name": "nightly", "tasks": 3, **kind}).groups == parse({"tasks": 3, **kind}).groups


@pytest.mark.parametrize(
    ("spec", "says", "hint"),
    [
        (None, "A DAG spec is a dict, not NoneType", '"name": "nightly"'),
        ({"groups": [EXTRACT]}, "name is missing in the spec", 'add "name"'),
        ({"kind": "noop"}, "name is missing in the spec", 'add "name"'),
        ({"name": "x", "groups": [EXTRACT], "runs": 1}, "runs = 1 in the spec is for probes only", "leave runs out"),
        (
            {"name": "x", "groups": [EXTRACT], "poll_seconds": 1},
            "poll_seconds = 1 in the spec is for probes only",
            "leave poll_seconds out",
        ),
        ({"name": "x"}, "operator is missing in the spec", f'add "operator": "{BASH}"'),
        ({"name": "x", "operator": None}, "operator is missing in the spec", 'or "kind": "noop"'),
        ({"name": "x", "groups": [EXTRACT, {"name": "y"}]}, "operator is missing in groups[1]", BASH),
        ({"name": "x", "kind": "hold"}, "kind = 'hold' in the spec is for probes only", "sleep, cpu or noop"),
        ({"name": "x", "groups": [EXTRACT, {"name": "y", "kind": "hold"}]}, "kind = 'hold' in groups[1]", "sleep, cpu or noop"),
        ({"name": "x", "run": 1, "groups": [EXTRACT]}, "Unknown key 'run' in a DAG spec", "known keys: groups, max_active_runs"),
        ({"name": "x", "groups": [{**EXTRACT, "opertor": BASH}]}, "Unknown key 'opertor' in groups[0]", "did you mean 'operator'"),
        ({"name": "x", "groups": [LOAD]}, "'load' comes after 'extract', which is not an earlier group", "in the order"),
        ({"name": "x/y", "groups": [EXTRACT]}, "name = 'x/y' in the spec cannot be part of a DAG id", "letters, digits"),
    ],
)
def test_a_wrong_dag_spec_is_refused_with_what_to_write_instead(spec, says, hint):
    with pytest.raises(SpecError) as refused:
        parse_dag(spec)
    assert says in refused.value.message
    assert hint in refused.value.hint


def test_an_error_is_one_line_because_airflow_shows_the_last_one():
    error = SpecError("Unknown key 'pol' in groups[0].", "did you mean 'pool'?")
    assert str(error) == "Unknown key 'pol' in groups[0]. Next: did you mean 'pool'?"
    assert str(SpecError("No more to say.")) == "No more to say."


def test_the_example_and_the_errors_of_the_reference_are_the_real_ones():
    text = (REPOSITORY / "docs" / "reference.md").read_text()
    section = text.partition("\n## DAGs from a dict or YAML\n")[2].partition("\n## ")[0]
    (example,), (dag_file,), (errors,) = (
        re.findall(rf"^```{language}\n(.*?)^```", section, re.M | re.S) for language in ("yaml", "python", "text")
    )
    assert parse_dag(dag_spec.read_yaml(example, yaml)).name == "nightly"
    assert "airflow" in dag_file.lower()
    wrong = (
        example.replace("after:", "depends_on:", 1),
        example.replace(BASH, "BashOperator", 1),
        example.replace('{bash_command: "echo part', '{queue: fast, bash_command: "echo part', 1),
    )
    for written, shown in zip(wrong, errors.splitlines(), strict=True):
        with pytest.raises(SpecError) as error:
            parse_dag(dag_spec.read_yaml(written, yaml))
        assert f"nightly.yaml: {error.value}" == shown

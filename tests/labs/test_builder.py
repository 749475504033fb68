"""DAGs from a dict or YAML on a real Airflow: a probe made of operators, a DAG file of a user, and what a mistake looks like."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from labs import timeline
from labs.errors import LabError
from labs.probe import SMOKE_DAG
from labs.waiting import wait_for
from provision.environments import environment_path
from provision.home import REPOSITORY, lab_home

BASH = "airflow.providers.standard.operators.bash.BashOperator"
SECTION = (REPOSITORY / "docs" / "reference.md").read_text().partition("\n## DAGs from a dict or YAML\n")[2].partition("\n## ")[0]
(YAML,) = re.findall(r"^```yaml\n(.*?)^```", SECTION, flags=re.M | re.S)
(DAG_FILE,) = re.findall(r"^```python\n(.*?)^```", SECTION, flags=re.M | re.S)
# Builds the DAG of every spec that it reads, in a process as Airflow has it, and says what came out.
BUILD = """
import json, sys
import airflow
from dag_builder import dag_from_dict, dag_from_yaml
from dag_spec import SpecError
def built(spec):
    try:
        dag = dag_from_dict(spec) if isinstance(spec, dict) else dag_from_yaml(spec)
    except SpecError as error:
        return str(error)
    return {task.task_id: sorted(task.upstream_task_ids) for task in dag.tasks}
print(json.dumps([built(spec) for spec in json.load(sys.stdin)]))
"""


def bash(name: str, command: str, **more) -> dict:
    """Return a group of one BashOperator."""
    return {"name": name, "operator": BASH, "arguments": {"bash_command": command}, **more}


def built(specs: list) -> list:
    """Return what Airflow's own Python makes of specs: the tasks with those before them, or the error."""
    home = lab_home()
    done = subprocess.run(
        [str(environment_path(home) / "bin" / "python"), "-c", BUILD], input=json.dumps(specs), capture_output=True, text=True, timeout=120,
        env={"AIRFLOW_HOME": str(home.airflow_home), "PATH": "/usr/bin:/bin"}, cwd=home.airflow_home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def dag_folder(postgres):
    """Put files of a user into the DAG folder and have Airflow read all of it; files and their DAGs go at the end."""
    folder, names = Path(postgres.installation.document["dag_folder"]), set()

    def put(files: dict[str, str]) -> None:
        for name, text in files.items():
            names.add(name)
            (folder / name).write_text(text)
        postgres.airflow("dags", "reserialize")

    yield put
    for name in names:
        (folder / name).unlink()
    for row in postgres.api.dags("nightly"):
        for run_id in postgres.api.active_runs(row["dag_id"]):
            postgres.api.fail_run(row["dag_id"], run_id)
        postgres.api.delete_dag(row["dag_id"])


def test_a_probe_made_of_operators_runs_in_its_order_and_hands_on_what_it_found(postgres):
    spec = {
        "groups": [
            bash("extract", "echo 6"),
            bash("transform", "echo $(( {{ ti.xcom_pull('extract') }} * 7 ))", after=["extract"]),
            bash("load", "test {{ ti.xcom_pull('transform') }} = 42", after=["transform"]),
        ]
    }
    result = postgres.run(spec)
    assert result.plateau is None
    assert set(result.run_states.values()) == {"success"}
    assert timeline.states(result.attempts) == {"success": 3}
    ran = sorted(result.attempts, key=lambda attempt: attempt.start)
    assert [attempt.task_id for attempt in ran] == ["extract", "transform", "load"]
    assert all(earlier.end <= later.start for earlier, later in pairwise(ran))
    assert list(postgres.installation.spec_folder.iterdir()) == []


def test_operators_and_kinds_share_a_probe_with_its_limits_and_its_retries(postgres):
    spec = {
        "max_active_tasks": 2,
        "groups": [
            {"name": "wait", "tasks": 2},
            bash("again", "test {{ ti.try_number }} = 2", tasks=2, after=["wait"], retries=1, retry_delay=0.1),
        ],
    }
    result = postgres.run(spec)
    assert (result.plateau.running, result.peak) == (2, 2)
    assert set(result.run_states.values()) == {"success"}
    tries = sorted((attempt.task_id, attempt.try_number) for attempt in result.attempts)
    assert tries == [("again_000", 1), ("again_000", 2), ("again_001", 1), ("again_001", 2), ("wait_000", 1), ("wait_001", 1)]


def test_the_example_of_the_reference_is_refused_by_its_key_runs_once_right_and_goes(postgres, dag_folder):
    api = postgres.api
    dag_folder({"my_dag.py": DAG_FILE, "nightly.yaml": YAML.replace("after: [extract]", "depends_on: [extract]")})
    (error,) = api.import_errors()
    assert error["filename"].endswith("my_dag.py")
    assert (
        error["stack_trace"]
        .strip()
        .splitlines()[-1]
        .endswith("nightly.yaml: Unknown key 'depends_on' in groups[1]. Next: did you mean 'after'?")
    )
    assert api.dag("nightly") is None
    dag_folder({"nightly.yaml": YAML})
    assert api.import_errors() == []
    dag = api.dag("nightly")
    assert (dag["is_paused"], dag["timetable_summary"], dag["max_active_tasks"]) == (True, "0 3 * * *", 4)
    assert dag["tags"] == []
    assert dag["next_dagrun_run_after"]
    api.call("PATCH", "/dags/nightly", json={"is_paused": False})
    run_id = api.trigger("nightly")
    wait_for(lambda: api.dag_run_state("nightly", run_id) in ("success", "failed"), 120, "The end of nightly", every_s=0.5)
    rows = {row["task_id"]: row for row in api.task_instances("nightly") if row["dag_run_id"] == run_id}
    assert {name: row["state"] for name, row in rows.items()} == dict.fromkeys(
        ["extract_000", "extract_001", "extract_002", "transform_000", "load"], "success"
    )
    assert (rows["load"]["operator"], rows["load"]["pool_slots"], rows["load"]["max_tries"]) == ("BashOperator", 2, 2)
    assert (rows["transform_000"]["operator"], rows["transform_000"]["queue"]) == ("ProbeOperator", "default")
    assert any("part extract_001" in line for line in api.log(rows["extract_001"]))


def test_a_probe_whose_operator_cannot_be_imported_says_so_and_spoils_nothing_for_long(postgres):
    probe = postgres.probe({"name": "lost", "operator": "airflow.providers.nothing.Operator"})
    file = postgres.installation.spec_folder / "probe_lost.json"

    def errors() -> list[str]:
        postgres.api.parse(postgres.api.dag(SMOKE_DAG)["file_token"])
        return [error["stack_trace"].strip().splitlines()[-1] for error in postgres.api.import_errors()]

    file.write_text(json.dumps(probe.spec.document("probe_lost", "")))
    try:
        wait_for(errors, 60, "The import error", every_s=0.5)
        (error,) = errors()
    finally:
        file.unlink()
    assert "operator = 'airflow.providers.nothing.Operator' in the spec cannot be imported" in error
    wait_for(lambda: not errors(), 60, "The end of the import error", every_s=0.5)
    assert set(postgres.run({"kind": "noop"}).run_states.values()) == {"success"}


def test_what_airflow_makes_of_a_spec(postgres):
    chain = {
        "name": "x",
        "groups": [bash("a", "true", tasks=3, chain=True), bash("b", "true", after=["a"]), {**bash("c", "true"), "tasks": 2}],
    }
    flat = {"name": "x", "operator": BASH, "arguments": {"bash_command": "true"}, "schedule": "@daily"}
    text = "name: x\nkind: sleep\nseconds: 1\ntasks: 2\n"
    assert built([chain, flat, text]) == [
        {"a_000": [], "a_001": ["a_000"], "a_002": ["a_001"], "b": ["a_002"], "c_000": [], "c_001": []},
        {"work": []},
        {"work_000": [], "work_001": []},
    ]


def test_what_only_airflow_can_find_wrong_is_told_with_its_key_and_its_place(postgres):
    several = {"name": "x", "groups": [bash("a", "true"), bash("b", "true")]}

    def wrong(**entries) -> dict:
        return {**several, "groups": [several["groups"][0], {**several["groups"][1], **entries}]}

    cases = {
        "operator = 'nowhere.Operator' in groups[1] cannot be imported: No module named 'nowhere'. Next: look": wrong(operator="nowhere.Operator"),
        f"operator = '{BASH}s' in groups[1] cannot be imported: {BASH.rpartition('.')[0]} has no BashOperators. Next: look": wrong(
            operator=f"{BASH}s"
        ),
        "operator = 'airflow.sdk.DAG' in groups[1] is not an operator. Next: name a class": wrong(operator="airflow.sdk.DAG"),
        "operator = 'json.dumps' in groups[1] is not an operator": wrong(operator="json.dumps"),
        "arguments in groups[1] are refused by BashOperator: missing keyword argument 'bash_command'. Next: give the arguments that "
        "BashOperator has; there are now: bash_comand": wrong(arguments={"bash_comand": "true"}),
        "arguments in groups[1] are refused by BashOperator: Invalid arguments were passed to BashOperator": wrong(
            arguments={"bash_command": "true", "colour": "red"}
        ),
        "arguments in groups[1] are refused by BashOperator: execution_timeout must be timedelta": wrong(
            arguments={"bash_command": "true", "execution_timeout": 3}
        ),
        "schedule = '61 3 * * *' in the spec is refused by Airflow: [61 3 * * *] is not acceptable, out of range. Next: give a cron": {
            **several, "schedule": "61 3 * * *",
        },
        "The YAML cannot be read: while scanning for the next token, found character '@' that cannot start any token in line 2, column 11": (
            "name: x\nschedule: @daily\n"
        ),
        "'nightly' is neither the YAML of a spec nor the name of a file. Next: end the name of a file with .yaml or .yml": "nightly",
        "The file nothing.yaml cannot be read: No such file or directory. Next: its path begins": "nothing.yaml",
    }  # fmt: skip
    for begin, said in zip(cases, built(list(cases.values())), strict=True):
        assert isinstance(said, str), begin
        assert said.startswith(begin)


def test_delivering_a_probe_that_airflow_cannot_load_says_why_and_does_not_wait_for_it(postgres):
    with pytest.raises(LabError, match=r"cannot load DAG probe_lost_\w+\.\n.*airflow\.providers\.nothing") as refused:
        postgres.run({"name": "lost", "operator": "airflow.providers.nothing.Operator"})
    assert "correct the spec" in refused.value.hint
    assert timeline.states(postgres.run({"tasks": 2, "kind": "noop"}).attempts) == {"success": 2}

"""The catalog: labs found by name, their parameters typed, wrong use answered with what is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from labs import catalog
from labs.catalog import (
    LabFile,
    Parameter,
    all_labs,
    choose_variant,
    find_labs,
    group_by_variant,
    parse_parameters,
    split_by_target,
    typed_value,
)
from labs.errors import LabError, UsageError

DESCRIPTION = {"title": "Pools", "variants": ["postgres", "sqlite"], "targets": ["local"], "minutes": 3}
PARAMETERS = """tasks: int = 9  # how many tasks the probe has
seconds: float = 2.5  # how long each takes
pool: str = "narrow"  # the pool's name
quick: bool = False  # leave out the slow part
workers: list = [1, 2, 4]  # worker processes to compare
delays: list = [0.5]  # pauses to try
nothing = None
result_path: str = ""  # set by the runner
"""
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


@pytest.fixture
def lab(tmp_path: Path) -> Callable[..., LabFile]:
    """Return a function that writes a small lab notebook."""

    def write(name: str = "05-pools", parameters: str | None = PARAMETERS, **description: object) -> LabFile:
        cells = [new_markdown_cell("# Pools")]
        if parameters is not None:
            cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
        notebook = new_notebook(cells=cells, metadata={"kernelspec": KERNEL, "lab": {**DESCRIPTION, **description}})
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(notebook, path)
        return LabFile(path)

    return write


@pytest.fixture
def series(lab, tmp_path: Path) -> list[LabFile]:
    """Return a small series of labs."""
    for name in ("00-start-here", "05-pools", "06-pool-slots", "15-report"):
        lab(name)
    return all_labs(tmp_path)


def test_labs_come_in_the_order_of_their_numbers_and_nothing_else_comes(series, tmp_path: Path):
    (tmp_path / "notes.ipynb").write_text("{}")
    (tmp_path / "05-pools.md").write_text("")
    assert [lab.name for lab in all_labs(tmp_path)] == ["00-start-here", "05-pools", "06-pool-slots", "15-report"]
    assert all_labs(tmp_path / "absent") == []


def test_a_lab_describes_itself(lab):
    made = lab()
    assert (made.name, made.title, made.variants, made.targets, made.minutes) == (
        "05-pools",
        "Pools",
        ("postgres", "sqlite"),
        ("local",),
        3,
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "{}", '{"metadata": {}}', '{"metadata": null}', '{"metadata": []}'])
def test_a_notebook_that_is_not_a_lab_is_named(tmp_path: Path, content):
    path = tmp_path / "05-pools.ipynb"
    path.write_text(content)
    with pytest.raises(LabError, match=r"05-pools\.ipynb does not describe itself as a lab"):
        _ = LabFile(path).metadata


def test_a_notebook_that_is_gone_is_named(tmp_path: Path):
    with pytest.raises(LabError, match="gone"):
        _ = LabFile(tmp_path / "gone.ipynb").title


def test_parameters_have_a_type_a_default_and_a_help(lab):
    parameters = lab().parameters
    assert list(parameters) == ["tasks", "seconds", "pool", "quick", "workers", "delays", "nothing"]
    assert parameters["tasks"] == Parameter("tasks", "int", 9, "how many tasks the probe has")
    assert [parameters[name].default for name in ("seconds", "pool", "quick", "workers", "nothing")] == [
        2.5,
        "narrow",
        False,
        [1, 2, 4],
        None,
    ]


@pytest.mark.parametrize("cell", [None, "", "# nothing to set\n"])
def test_a_lab_may_have_no_parameters(lab, cell):
    assert lab(parameters=cell).parameters == {}


def test_the_defaults_are_what_a_lab_runs_with_unless_changed(lab):
    made = lab(parameters='tasks: int = 9  # tasks\npool: str = "narrow"  # pool\n')
    assert catalog.parameter_defaults(made, {"tasks": 3}) == {"tasks": 3, "pool": "narrow"}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], ["00-start-here", "05-pools", "06-pool-slots", "15-report"]),
        (["05-pools"], ["05-pools"]),
        (["05"], ["05-pools"]),
        (["05-pools.ipynb"], ["05-pools"]),
        (["notebooks/05-pools.ipynb"], ["05-pools"]),
        (["pools"], ["05-pools"]),
        (["slots"], ["06-pool-slots"]),
        (["15", "00"], ["00-start-here", "15-report"]),
        (["05", "05-pools", "pools"], ["05-pools"]),
    ],
)
def test_labs_are_found_by_name_number_or_part_of_the_name(series, names, found):
    assert [lab.name for lab in find_labs(names, series)] == found


@pytest.mark.parametrize(
    ("name", "problem", "hint"),
    [
        ("pool", "Several labs fit 'pool'", "05-pools, 06-pool-slots"),
        ("5-pols", "Unknown lab '5-pols'", "05-pools"),
        ("", "Unknown lab ''", ""),
        ("-", "Several labs fit '-'", "00-start-here"),
        ("größe", "Unknown lab 'größe'", ""),
        ("99", "Unknown lab '99'", ""),
    ],
)
def test_a_name_that_fits_no_lab_or_several_is_refused(series, name, problem, hint):
    with pytest.raises(UsageError) as refused:
        find_labs([name], series)
    assert problem in refused.value.message
    assert hint in refused.value.hint


def test_no_lab_fits_where_there_are_none():
    with pytest.raises(UsageError, match="Unknown lab 'pools'"):
        find_labs(["pools"], [])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("tasks", "12", 12),
        ("tasks", "-1", -1),
        ("seconds", "2.5", 2.5),
        ("seconds", "2", 2.0),
        ("pool", "wide", "wide"),
        ("pool", "12", "12"),
        ("pool", "", ""),
        ("pool", "a=b", "a=b"),
        ("pool", "größe ✓", "größe ✓"),
        ("quick", "True", True),
        ("workers", "[1, 8]", [1, 8]),
        ("workers", "[]", []),
        ("delays", "[1, 0.25]", [1.0, 0.25]),
    ],
)
def test_a_parameter_takes_a_value_of_the_type_of_its_default(lab, name, text, value):
    result = parse_parameters([f"{name}={text}"], [lab()])["05-pools"]
    assert result == {name: value}
    assert type(result[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tasks", "many"),
        ("tasks", "2.5"),
        ("tasks", "True"),
        ("tasks", "'3'"),
        ("tasks", ""),
        ("tasks", "__import__('os')"),
        ("tasks", "{[]: 1}"),
        ("tasks", "(" * 400),
        ("seconds", "long"),
        ("quick", "1"),
        ("quick", "yes"),
        ("workers", "4"),
        ("workers", "(1, 2)"),
        ("workers", "'12'"),
        ("workers", "[1, 'two']"),
        ("workers", "[1.5]"),
        ("workers", "None"),
    ],
)
def test_a_value_of_another_type_is_refused_with_an_example(lab, name, text):
    with pytest.raises(UsageError, match=f"Parameter {name} = .* is not of type") as refused:
        parse_parameters([f"{name}={text}"], [lab()])
    assert f"--set {name}=" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tasks", "'tasks' is not NAME=VALUE"),
        ("", "'' is not NAME=VALUE"),
        ("taks=3", "Unknown parameter 'taks'"),
        ("=3", "Unknown parameter ''"),
        ("result_path=/tmp/x", "Unknown parameter 'result_path'"),
    ],
)
def test_a_parameter_that_no_lab_has_is_refused_with_those_there_are(lab, text, says):
    with pytest.raises(UsageError) as refused:
        parse_parameters([text], [lab()])
    assert says in refused.value.message
    assert "tasks (05-pools)" in refused.value.hint


def test_without_any_parameters_the_hint_says_so(lab):
    with pytest.raises(UsageError, match="have no parameters"):
        parse_parameters(["tasks=3"], [lab(parameters=None)])


def test_a_parameter_goes_to_every_chosen_lab_that_has_it(lab):
    one = lab("05-pools", "tasks: int = 9  # tasks\n")
    other = lab("06-pool-slots", "tasks: int = 4  # tasks\nslots: int = 2  # slots\n")
    assert parse_parameters(["tasks=3", "slots=1"], [one, other]) == {"05-pools": {"tasks": 3}, "06-pool-slots": {"tasks": 3, "slots": 1}}


def test_the_last_of_two_values_wins(lab):
    assert parse_parameters(["tasks=3", "tasks=4"], [lab()])["05-pools"] == {"tasks": 4}


def test_the_example_in_an_error_can_be_typed_as_it_stands():
    with pytest.raises(UsageError) as refused:
        typed_value(Parameter("workers", "list", [1, 2, 4], ""), "x")
    example = refused.value.hint.split("--set ")[-1].split("=", 1)[1]
    assert typed_value(Parameter("workers", "list", [1, 2, 4], ""), example) == [1, 2, 4]
    assert refused.value.hint.startswith("for example ")


def test_a_lab_runs_on_its_first_variant_unless_another_of_its_own_is_wanted(lab):
    assert choose_variant(lab(), None, "local") == "postgres"
    assert choose_variant(lab(), "sqlite", "local") == "sqlite"


@pytest.mark.parametrize(
    ("variant", "target", "says", "hint"),
    [
        ("celery", "local", "variant 'celery'", "postgres, sqlite"),
        (None, "vagrant", "target 'vagrant'", "local"),
        ("", "local", "variant ''", "postgres"),
    ],
)
def test_a_variant_or_target_that_a_lab_does_not_run_on_is_refused(lab, variant, target, says, hint):
    with pytest.raises(UsageError) as refused:
        choose_variant(lab(), variant, target)
    assert says in refused.value.message
    assert hint in refused.value.hint


def test_labs_are_split_into_those_that_run_on_a_target_and_those_that_do_not(lab):
    here, there, everywhere = lab("01-here"), lab("02-there", targets=["vagrant"]), lab("03-everywhere", targets=["local", "vagrant"])
    assert split_by_target([here, there, everywhere], "local") == ([here, everywhere], [there])
    assert split_by_target([here, there, everywhere], "vagrant") == ([there, everywhere], [here])
    assert split_by_target([], "local") == ([], [])


def test_labs_are_grouped_so_that_each_variant_is_installed_once(series):
    first, second, third, _ = series
    groups = group_by_variant([(first, "sqlite"), (second, "postgres"), (third, "sqlite")])
    assert groups == [("sqlite", [first, third]), ("postgres", [second])]
    assert group_by_variant([]) == []

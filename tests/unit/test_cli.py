"""The labs command: what reaches the runner, and what is left out with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from labs import catalog, runner
from labs.cli import app
from labs.errors import UsageError
from labs.runner import Run
from provision.variants import SHOWN


@pytest.fixture
def run(monkeypatch, tmp_path: Path):
    """Return a function that calls `labs run` with a runner that only writes down what it was given."""
    given: dict[str, Any] = {}

    def run_labs(labs, target, variant, parameters, watch, **more):
        given.update(labs=[lab.name for lab in labs], target=target, variant=variant)
        return Run(tmp_path, ({"verdict": "pass", "measurements": [], "lab": "x", "variant": "y", "seconds": 1.0, "error": ""},), tmp_path)

    monkeypatch.setattr(runner, "run_labs", run_labs)

    def call(*arguments):
        given.clear()
        done = CliRunner().invoke(app, ["run", *arguments])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return given, done.stderr.replace("\n", " ")

    return call


ALL = catalog.all_labs()
HERE = [lab.name for lab in ALL if "local" in lab.targets]
NODES_ONLY = [lab.name for lab in ALL if "local" not in lab.targets]


def test_without_names_labs_that_cannot_run_here_are_left_out_and_named(run):
    given, said = run()
    assert given["labs"] == HERE
    assert NODES_ONLY
    for name in NODES_ONLY:
        assert f"Left out: {name}, which runs only on target vagrant." in said


def test_where_every_lab_can_run_nothing_is_left_out(run):
    given, said = run("--target", "vagrant")
    assert given["labs"] == [lab.name for lab in ALL if "vagrant" in lab.targets]
    assert "Left out" not in said


def test_a_lab_that_is_named_reaches_the_runner_which_refuses_it(run):
    given, said = run(NODES_ONLY[0])
    assert given["labs"] == NODES_ONLY[:1]
    assert "Left out" not in said


def test_a_variant_without_a_lab_for_this_target_is_refused_with_another_target(run):
    with pytest.raises(UsageError, match="No lab of variant 'kubernetes' runs on target 'local'") as error:
        run("--variant", "kubernetes")
    assert "vagrant" in error.value.hint


def test_a_variant_chooses_its_labs(run):
    given, _ = run("--variant", "kubernetes", "--target", "vagrant")
    assert set(given["labs"]) >= {"09-kubernetes-in-an-hour"}
    assert all("kubernetes" in lab.variants for lab in ALL if lab.name in given["labs"])


# -- labs variants --------------------------------------------------------------------------------


@pytest.fixture
def variants(monkeypatch, tmp_path: Path):
    """Return a function that calls `labs variants` with a runner that measures nothing, and returns which variants it was given."""
    given: list[str] = []

    def run_side_by_side(names, target, watch):
        given.extend(names)
        return Run(tmp_path, (), tmp_path)

    monkeypatch.setattr(runner, "run_side_by_side", run_side_by_side)

    def call(*arguments: str) -> list[str]:
        given.clear()
        done = CliRunner().invoke(app, ["variants", "--json", *arguments])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return given

    return call


@pytest.mark.parametrize(
    ("arguments", "measured"),
    [
        ((), ["sqlite", "postgres", "celery"]),
        (("--target", "vagrant"), ["sqlite", "postgres", "celery", "kubernetes"]),
        (("celery", "standalone"), ["celery", "standalone"]),
    ],
)
def test_variants_are_those_that_are_named_or_those_shown_that_run_on_the_target(variants, arguments, measured):
    assert variants(*arguments) == measured


@pytest.mark.parametrize(
    ("arguments", "count", "command"),
    [
        (("local-celery",), 2, "labs run 11 --variant local-celery,"),
        (("sqlite", "local-celery", "--target", "vagrant"), 2, "labs run 11 --variant local-celery --target vagrant,"),
        # Not that this target lacks it: on the other one it would be refused as well.
        (("multiple",), 3, "labs run 11 --variant multiple --target vagrant,"),
    ],
)
def test_a_variant_with_several_executors_is_not_measured_as_one(variants, arguments, count, command):
    with pytest.raises(
        UsageError, match=f"has {count} executors, and the probe would run on one of them only, the LocalExecutor"
    ) as refused:
        variants(*arguments)
    assert refused.value.hint.startswith(command)
    assert variants("postgres") == ["postgres"]


def test_the_help_of_labs_variants_names_those_that_are_shown_by_default(variants):
    said = " ".join(CliRunner().invoke(app, ["variants", "--help"], env={"COLUMNS": "300"}).stdout.split())
    assert f"by default those of {', '.join(SHOWN[:-1])} and {SHOWN[-1]} that run on the target" in said

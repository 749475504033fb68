"""Probes on a real Airflow: what they measure, and that a wrong claim is found out."""

from __future__ import annotations

import psutil
import pytest

from labs import checks, matrix, timeline
from labs.errors import LabError
from labs.limits import predict
from labs.matrix import draw_cells
from labs.spec import parse
from provision.errors import ProvisionError

EVERY_KIND = [
    {"kind": "noop", "tasks": 3},
    {"kind": "sleep", "seconds": 0.2, "tasks": 3},
    {"kind": "cpu", "seconds": 0.2, "tasks": 3},
    {"kind": "hold", "tasks": 3},
    {"kind": "noop", "tasks": 3, "mapped": True},
    {"kind": "noop", "tasks": 3, "chain": True},
    {"kind": "noop", "tasks": 2, "runs": 2},
    {"groups": [{"name": "a", "kind": "noop", "tasks": 2}, {"name": "b", "kind": "noop", "after": ["a"]}]},
]


@pytest.mark.parametrize("spec", EVERY_KIND, ids=str)
def test_every_kind_of_probe_runs_to_its_end_and_leaves_nothing(postgres, spec):
    result = postgres.run(spec)
    assert timeline.states(result.attempts) == {"success": parse(spec).task_count}
    assert set(result.run_states.values()) == {"success"}
    assert postgres.api.dags("probe_") == []
    assert postgres.api.variables("lab_gate_") == []
    assert list(postgres.installation.spec_folder.iterdir()) == []


def test_a_group_starts_after_the_group_before_it(postgres):
    result = postgres.run(
        {"groups": [{"name": "a", "kind": "sleep", "seconds": 0.5, "tasks": 2}, {"name": "b", "kind": "noop", "after": ["a"]}]}
    )
    ends = [a.end for a in result.attempts if a.task_id.startswith("a")]
    (start,) = [a.start for a in result.attempts if a.task_id.startswith("b")]
    assert start >= max(ends)


def test_the_gate_shows_exactly_the_limit_and_who_waits(postgres):
    spec = {"tasks": 6, "max_active_tasks": 2}
    prediction, result = postgres.predict(spec), postgres.run(spec)
    verdict = checks.check_peak("peak", prediction, result.plateau, result.peak)
    assert (verdict.verdict, verdict.measured) == ("pass", 2)
    assert (result.plateau.queued, result.plateau.scheduled) == (0, 4)


def test_a_breach_is_found_out(postgres):
    """The probe is told that its pool has 2 slots; Airflow's pool has 3."""
    postgres.set_pool("planted", 3)
    try:
        spec = {"tasks": 6, "pool": "planted"}
        told = postgres.predict(spec, pools={"planted": 2})
        result = postgres.run(spec)
    finally:
        postgres.api.delete_pool("planted")
    verdict = checks.check_peak("planted breach", told, result.plateau, result.peak)
    assert (verdict.predicted, verdict.measured, verdict.verdict) == (2, 3, "fail")


def test_too_few_tasks_prove_nothing(postgres):
    spec = {"tasks": 2, "max_active_tasks": 2}
    result = postgres.run(spec)
    verdict = checks.check_peak("too few", postgres.predict(spec), result.plateau, result.peak)
    assert verdict.verdict == "inconclusive"
    assert "submit more tasks" in verdict.why


def test_tasks_starve_behind_refused_ones(postgres):
    """The scheduler looks only at the first max_active_tasks rows of a run, refused ones included."""
    postgres.set_pool("starving", 3)
    try:
        spec = {
            "max_active_tasks": 4,
            "groups": [
                {"name": "heavy", "tasks": 6, "pool": "starving", "pool_slots": 2, "priority": 10},
                {"name": "light", "tasks": 6},
            ],
        }
        prediction, result = postgres.predict(spec), postgres.run(spec)
    finally:
        postgres.api.delete_pool("starving")
    assert (prediction.peak, result.plateau.running) == (1, 1)


def test_two_hundred_tasks_run_on_sqlite(sqlite):
    result = sqlite.run({"tasks": 200, "kind": "noop", "mapped": True})
    assert timeline.states(result.attempts) == {"success": 200}
    assert {a.try_number for a in result.attempts} == {1}
    assert result.peak == 1
    assert sum(sqlite.count_in_logs("database is locked").values()) == 0
    assert sqlite.services_alive() == ["api-server", "dag-processor", "scheduler", "triggerer"]


def test_a_service_that_dies_while_a_probe_runs_is_named_with_the_end_of_its_log(postgres, target):
    scheduler = {row.name: row.pid for row in target.status()}["scheduler"]
    with postgres.probe({"tasks": 2}) as probe:
        probe.deliver()
        psutil.Process(scheduler).kill()
        probe.trigger()
        with pytest.raises(ProvisionError, match="scheduler ended") as error:
            probe.wait(timeout_s=60)
    assert "end of its log" in error.value.message
    assert error.value.hint == "fab logs scheduler"


def test_what_an_interrupted_lab_left_is_taken_away(postgres):
    from labs.probe import reset

    probe = postgres.probe({"tasks": 2})
    probe.deliver()
    probe.trigger()
    probe.hold()
    assert reset(postgres.installation, postgres.api) == 1
    assert postgres.api.dags("probe_") == []
    assert postgres.api.variables("lab_gate_") == []
    assert reset(postgres.installation, postgres.api) == 0


def test_a_pool_that_does_not_exist_is_refused_before_it_is_run(postgres):
    with pytest.raises(LabError, match="Pool 'nosuch' does not exist"):
        predict(parse({"tasks": 2, "pool": "nosuch"}), postgres.settings, postgres.api.pools())


def test_a_wrong_login_is_told(postgres, monkeypatch):
    from labs.airflow_api import AirflowApi

    monkeypatch.setattr(type(postgres.installation), "password", lambda self: "wrong")
    with pytest.raises(LabError, match="refused the login"):
        AirflowApi(postgres.installation).dag("lab_smoke")


def test_six_random_cells_come_out_exactly_as_predicted(postgres, tmp_path):
    cells = draw_cells(seed=7, count=6, variant_settings=postgres.settings)
    record = matrix.run_matrix(postgres.installation, cells, 7, tmp_path, lambda text: None)
    assert [(m["predicted"], m["verdict"]) for m in record["measurements"]] == [(m["measured"], "pass") for m in record["measurements"]]
    assert len(record["measurements"]) == 6
    assert postgres.api.pools() == {"default_pool": 128}

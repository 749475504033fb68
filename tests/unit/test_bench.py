"""The bench's arithmetic, judging and table; what it measures needs a real Airflow."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from labs.bench import EXPERIMENTS, chosen_experiments
from labs.bench_arms import Work
from labs.bench_rows import AIMS, Aim, BenchRow, as_dict, overhead_row, overheads, render, throughput_note
from labs.errors import UsageError
from labs.first_run import NOT_CHECKED_OUT
from labs.stock import COMPOSE, StockAirflow, describe_stock, stock_environment
from labs.timeline import Attempt
from provision.home import LabHome, lab_home

HOP = BenchRow("hop", "end of a task to start of the next", "s", (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


def ran(start: float, end: float) -> Attempt:
    """Return an attempt that started and ended then."""
    return Attempt("t", -1, "r", 1, "success", None, None, start, end)


def test_ratio_divides_the_medians():
    assert HOP.ours_value == pytest.approx(0.2)
    assert HOP.stock_value == pytest.approx(1.0)
    assert HOP.ratio == pytest.approx(0.2)


def test_a_row_may_compare_another_quantile_than_the_median():
    assert replace(HOP, quantile=1.0).ratio == pytest.approx(0.3)


def test_ratio_is_unknown_without_stock_samples_or_when_stock_is_zero():
    assert replace(HOP, stock=()).ratio is None
    assert replace(HOP, stock=(0.0,)).ratio is None


@pytest.mark.parametrize(
    ("aim", "value", "reached"),
    [
        (Aim(0.4), 0.4, True),
        (Aim(0.4), 0.41, False),
        (Aim(1.3, at_least=True), 1.3, True),
        (Aim(1.3, at_least=True), 1.29, False),
    ],
)
def test_an_aim_includes_its_bound(aim: Aim, value: float, reached: bool):
    assert aim.reached(value) is reached


@pytest.mark.parametrize(
    ("row", "reached"),
    [
        (HOP, True),
        (replace(HOP, ours=(0.5,)), False),
        (replace(HOP, judged=False), None),
        (replace(HOP, stock=()), None),
        (BenchRow("throughput", "t", "tasks/s", (13.0,), (10.0,)), True),
        (BenchRow("throughput", "t", "tasks/s", (12.0,), (10.0,)), False),
        (BenchRow("makespan", "m", "", (0.95,), (0.99,)), True),
        (BenchRow("makespan", "m", "", (0.85,), (0.4,)), False),
        (BenchRow("cpu", "c", "s", (0.1,), (0.2,)), None),
        (BenchRow("celery-throughput", "t", "tasks/s", (20.0,), (10.0,)), True),
        (BenchRow("celery-throughput", "t", "tasks/s", (19.0,), (10.0,)), False),
        (BenchRow("observing", "o", "%", (-1.0, 2.0, 9.0)), True),
        (BenchRow("observing", "o", "%", (3.5,)), False),
    ],
)
def test_aims_are_judged_by_the_ratio_or_by_our_own_value(row: BenchRow, reached: bool | None):
    assert row.reached is reached


def test_overheads_are_percent_pair_by_pair():
    assert overheads([11.0, 9.0], [10.0, 10.0]) == pytest.approx((10.0, -10.0))


def test_overheads_refuse_samples_without_a_partner():
    with pytest.raises(ValueError, match="longer"):
        overheads([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("samples", "reached", "unclear"),
    [
        ((1.0, 1.2, 0.8, 1.1), True, False),
        ((4.0, 4.2, 3.8, 4.1), False, False),
        ((23.2, -7.0, 33.1, -16.2), None, True),
        ((1.0,), None, True),
    ],
)
def test_an_overhead_is_unclear_when_its_samples_scatter_more_than_the_aim(samples, reached, unclear):
    row = overhead_row("observing", "watching", samples)
    assert (row.reached, row.unclear) == (reached, unclear)
    assert ("unclear" in render([row])) is unclear


def test_the_table_says_what_falls_short():
    table = render([HOP, replace(HOP, ours=(0.5,)), BenchRow("observing", "watching", "%", (1.0,), note="one sample")])
    lines = table.splitlines()
    assert lines[0].split() == ["measured", "unit", "ours", "stock", "ratio", "aim", "reached", "note"]
    assert lines[2].split()[-5:] == ["0.2", "ratio", "≤", "0.4", "yes"]
    assert lines[3].split()[-5:] == ["0.5", "ratio", "≤", "0.4", "no"]
    assert lines[4].endswith("one sample")
    assert {len(line.split("ratio ≤")[0]) for line in lines[2:4]} == {lines[2].index("ratio ≤")}


def test_the_json_form_keeps_the_raw_samples():
    row = json.loads(json.dumps(as_dict([HOP])))["rows"][0]
    assert row["ours"] == {"value": 0.2, "samples": [0.1, 0.2, 0.3]}
    assert row["reached"] is True
    assert row["aim"] == "ratio ≤ 0.4"


def test_only_names_the_experiments_to_run_in_their_own_order():
    assert tuple(AIMS) == EXPERIMENTS
    nodes = ("nodes-install", "nodes-again", "nodes-switch", "nodes-cold")
    assert chosen_experiments(None) == tuple(name for name in EXPERIMENTS if name not in nodes)
    assert chosen_experiments(["nodes"]) == nodes
    assert chosen_experiments(["cpu", "hop"]) == ("hop", "cpu")
    assert chosen_experiments(["celery"]) == ("celery-hop", "celery-throughput", "celery-cpu")
    assert chosen_experiments(["celery", "celery-cpu", "hop"]) == ("hop", "celery-hop", "celery-throughput", "celery-cpu")


def test_an_unknown_experiment_is_refused_with_the_names_there_are():
    with pytest.raises(UsageError, match="first-run, hop, throughput"):
        chosen_experiments(["speed"])


def test_throughput_counts_from_the_first_start_to_the_last_end():
    work = Work((ran(10.0, 11.0), ran(10.5, 14.0)), cpu_s=1.0, wall_s=9.0)
    assert work.makespan_s == 4.0
    assert work.tasks_per_s == 0.5


def test_stock_is_given_no_setting_that_could_make_it_faster_or_slower(tmp_path):
    environment = stock_environment(tmp_path, tmp_path / "bin", {"core.parallelism": "8"})
    settings = {name for name in environment if name.startswith("AIRFLOW__")}
    assert settings == {
        "AIRFLOW__CORE__LOAD_EXAMPLES",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL",
        "AIRFLOW__CORE__PARALLELISM",
        "AIRFLOW__API__HOST",
        "AIRFLOW__API__PORT",
        "AIRFLOW__API__BASE_URL",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT",
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT",
    }
    assert environment["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert environment["PATH"].startswith(f"{tmp_path}/bin:")


def test_the_stock_celery_deployment_is_told_its_executor_and_addresses_only(tmp_path):
    home = LabHome(tmp_path, tmp_path)
    home.prepare()
    secrets = {"database_password": "d-word", "broker_password": "b-word"}
    addresses = StockAirflow(home, COMPOSE).addresses(secrets)
    assert set(addresses) == {"core.executor", "database.sql_alchemy_conn", "celery.broker_url", "celery.result_backend"}
    assert addresses["core.executor"] == "CeleryExecutor"
    assert re.fullmatch(r"redis://:b-word@127\.0\.0\.1:\d+/0", addresses["celery.broker_url"])
    assert addresses["celery.result_backend"] == "db+" + addresses["database.sql_alchemy_conn"]
    assert StockAirflow(home, COMPOSE).addresses(secrets) == addresses
    assert COMPOSE.commands["worker"] == ("celery", "worker", "--skip-serve-logs")


def test_stock_looks_to_the_labs_like_any_installation(tmp_path):
    home = lab_home().throwaway("stock")
    installation = describe_stock(home, stock_environment(tmp_path, tmp_path, {}))
    assert installation.api_url.startswith("http://127.0.0.1:")
    assert installation.home == home.root
    assert installation.spec_folder == home.specs


def test_a_fresh_checkout_holds_nothing_that_was_made_in_it():
    assert {".git", ".lab", "runs"} <= set(NOT_CHECKED_OUT)


def test_a_throughput_says_how_busy_the_cores_were_and_whether_they_are_too_few_for_the_aim():
    row = BenchRow("celery-throughput", "t", "tasks/s", (13.0,), (9.0,))
    assert throughput_note(row, (1.94, 1.36), 0.131, 2) == (
        "1.9 and 1.4 of 2 cores busy; this machine is the limit: 0.131 s of CPU a task allow 15.3 tasks/s"
    )
    assert throughput_note(row, (1.94, 1.36), 0.131, 8) == "1.9 and 1.4 of 8 cores busy"
    assert throughput_note(BenchRow("throughput", "t", "tasks/s", (13.0,), (9.0,)), (2.0, 2.0), 0.131, 2) == "2.0 and 2.0 of 2 cores busy"

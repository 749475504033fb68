"""Verdicts: a prediction against a measurement, and never a pass without evidence."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from labs.checks import (
    Measurement,
    Plateau,
    check_bound,
    check_exact,
    check_peak,
    info,
    overall,
    timing,
)
from labs.limits import Prediction

PREDICTION = Prediction(3, 0, 6, "pool narrow has 3 slots", ("pool narrow",), False, (("pool narrow", 3),))
PLATEAU = Plateau(running=3, queued=0, scheduled=6, polls=5, seconds=2.04, starting=0)


def test_a_saturated_plateau_that_the_timeline_confirms_passes():
    measured = check_peak("peak", PREDICTION, PLATEAU, 3)
    assert (measured.verdict, measured.predicted, measured.measured, measured.kind) == ("pass", 3, 3, "exact")
    assert measured.why == "3 ran at once while 6 waited: pool narrow has 3 slots"
    assert measured.evidence == {
        "waiting": 6, "queued": 0, "scheduled": 6, "polls": 5, "seconds": 2.0, "starting": 0, "timeline peak": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("plateau", "timeline_peak", "verdict", "why"),
    [
        (replace(PLATEAU, running=2), 2, "fail", "some other limit binds first"),
        (replace(PLATEAU, running=4), 4, "fail", "that limit does not hold"),
        (replace(PLATEAU, running=0), 0, "fail", "some other limit binds first"),
        (replace(PLATEAU, queued=1, scheduled=0), 3, "pass", "while 1 waited"),
        (replace(PLATEAU, scheduled=0), 3, "inconclusive", "none waited"),
        (replace(PLATEAU, running=4, scheduled=0), 4, "fail", "that limit does not hold"),
        (PLATEAU, 4, "fail", "that limit does not hold"),
        (PLATEAU, 0, "inconclusive", "start and end times 0"),
        (replace(PLATEAU, settled=False), 3, "inconclusive", "never settled"),
        (None, 3, "inconclusive", "never settled"),
    ],
)
def test_a_peak_is_judged_by_plateau_and_timeline_together(plateau, timeline_peak, verdict, why):
    measured = check_peak("peak", PREDICTION, plateau, timeline_peak)
    assert measured.verdict == verdict
    assert why in measured.why


def test_a_pool_without_slots_passes_when_everything_waits():
    assert check_peak("peak", replace(PREDICTION, peak=0), replace(PLATEAU, running=0, scheduled=9), 0).verdict == "pass"


@pytest.mark.parametrize(
    ("predicted", "measured", "verdict"),
    [
        (3, 3, "pass"),
        (3, 4, "fail"),
        (0, 0, "pass"),
        ("", "", "pass"),
        ([], [], "pass"),
        (False, False, "pass"),
        (False, True, "fail"),
        ({"w1": 2}, {"w1": 2}, "pass"),
        (["a", "b"], ["b", "a"], "fail"),
        (3, None, "inconclusive"),
        (None, None, "inconclusive"),
    ],
)
def test_exact_values_are_compared_exactly(predicted, measured, verdict):
    assert check_exact("x", predicted, measured).verdict == verdict


def test_a_failed_comparison_shows_both_values_shortened():
    why = check_exact("x", "a" * 500, "b").why
    assert why.startswith("predicted 'aaa")
    assert why.endswith("measured 'b'")
    assert len(why) < 200


@pytest.mark.parametrize(
    ("measured", "at_least", "at_most", "verdict"),
    [
        (3, 3, None, "pass"),
        (2.999, 3, None, "fail"),
        (3, None, 3, "pass"),
        (3.001, None, 3, "fail"),
        (2, 1, 3, "pass"),
        (0, 0, 0, "pass"),
        (float("nan"), 0, None, "fail"),
        (None, 1, None, "inconclusive"),
    ],
)
def test_a_bound_includes_its_ends(measured, at_least, at_most, verdict):
    assert check_bound("x", measured, at_least=at_least, at_most=at_most).verdict == verdict


def test_a_bound_is_told_in_words_with_its_unit():
    assert check_bound("x", 5, at_least=1, at_most=4.5, unit="s").predicted == "at least 1 and at most 4.5 s"
    assert check_bound("x", 5, at_most=4.5, unit="s").why == "5 is not at most 4.5 s"


def test_a_bound_that_nothing_could_break_is_refused():
    with pytest.raises(ValueError, match="bound"):
        check_bound("x", 3)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "inconclusive"),
        (["pass"], "pass"),
        (["pass", "pass"], "pass"),
        (["pass", "inconclusive"], "inconclusive"),
        (["inconclusive", "fail", "pass"], "fail"),
        (["fail"], "fail"),
    ],
)
def test_the_worst_verdict_is_the_verdict_of_the_lab(verdicts, expected):
    assert overall(verdicts) == expected


def test_timings_and_facts_carry_no_verdict():
    assert timing("latency", [0.12345678, 2]) == Measurement("latency", "timing", unit="s", samples=(0.1235, 2))
    assert info("cores", 2) == Measurement("cores", "info", measured=2)


def test_a_row_leaves_out_what_is_empty_but_not_a_measured_nothing():
    assert check_exact("x", 0, None).row() == {
        "name": "x", "kind": "exact", "verdict": "inconclusive", "predicted": 0, "measured": None, "why": "nothing was measured",
    }  # fmt: skip
    assert timing("latency", [1.0]).row() == {"name": "latency", "kind": "timing", "unit": "s", "samples": [1.0]}
    assert info("held", False).row() == {"name": "held", "kind": "info", "measured": False}
    assert info("count", 0).row() == {"name": "count", "kind": "info", "measured": 0}


@pytest.mark.parametrize(
    "measurement",
    [check_peak("p", PREDICTION, PLATEAU, 3), check_exact("x", (1, 2), (1, 2)), timing("t", [1]), info("i", "ü")],
    ids=["peak", "exact", "timing", "info"],
)
def test_every_row_survives_json(measurement):
    assert json.loads(json.dumps(measurement.row())) == measurement.row()

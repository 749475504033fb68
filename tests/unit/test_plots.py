"""Plots: titled, labelled with units, well-formed, and the same for the same data."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from labs import plots
from labs.pod_lives import STATES, Span
from labs.timeline import Attempt

ATTEMPTS = [
    Attempt("work_000", -1, "r", 1, "success", 100.0, 100.5, 101.0, 103.0, host="node1"),
    Attempt("work_001", -1, "r", 1, "success", 100.0, 101.0, 101.5, 104.0, host="node2"),
    Attempt("work_002", 3, "r", 1, "running", 100.0, 101.0, 102.0, None, host="node2"),
    Attempt("work_003", -1, "r", 0, "scheduled", 100.0, None, None, None),
]
# What the broker was seen to hold: (epoch seconds, messages by queue).
READINGS = [(100.0, {"default": 4}), (100.5, {"default": 2, "heavy": 1}), (101.0, {})]
# One pod that went through every state, a second each, and one that waits all the time.
LIVES = [*(Span("one", state, 100.0 + at, 101.0 + at) for at, state in enumerate(STATES)), Span("two", STATES[0], 100.0, 106.0)]


def every_plot() -> dict:
    """Return a figure of each kind."""
    return {
        "timeline": plots.timeline_plot(ATTEMPTS, "Who waited"),
        "timeline by host": plots.timeline_plot(ATTEMPTS, "Who waited", colour_by="host"),
        "running": plots.running_plot({"narrow": ATTEMPTS, "wide": ATTEMPTS[:2]}, "How many ran", {"pool narrow": 3}),
        "depth": plots.depth_plot(READINGS, ATTEMPTS, "Where tasks waited"),
        "speed-up": plots.speedup_plot([1, 2, 4], {"cpu": [8.0, 4.0, 4.0], "sleep": [8.0, 4.0, 2.0]}, 2, "What workers gain"),
        "lives": plots.lives_plot(LIVES, "What became of pods"),
        "bars": plots.bars_plot({"sqlite": 1.5, "postgres": 0.5}, "How long", "seconds per task"),
    }


KINDS = ["timeline", "timeline by host", "running", "depth", "speed-up", "lives", "bars"]
UNITS = ("seconds", "(parallelism)", "(times)", "task instance", "pod")


@pytest.mark.parametrize("kind", KINDS)
def test_every_plot_is_a_well_formed_svg_that_scales(kind):
    text = plots.svg(every_plot()[kind])
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert "max-width:100%" in root.attrib["style"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_data_makes_the_same_plot(kind):
    assert plots.svg(every_plot()[kind]) == plots.svg(every_plot()[kind])


def test_a_plot_may_leave_its_title_to_the_page_and_show_it_again():
    figure = every_plot()["running"]
    titled, untitled = plots.svg(figure), plots.svg(figure, titled=False)
    assert len(untitled) < len(titled)
    assert "How many ran" in untitled
    assert plots.svg(figure) == titled


@pytest.mark.parametrize("kind", KINDS)
def test_every_plot_has_a_title_and_an_axis_with_a_unit(kind):
    axes = every_plot()[kind].axes[0]
    assert axes.get_title()
    assert any(unit in axes.get_xlabel() for unit in UNITS)
    if kind != "bars":
        assert any(unit in axes.get_ylabel() for unit in UNITS)


def test_a_timeline_shows_one_row_per_try_that_started():
    axes = every_plot()["timeline"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["work_000", "work_001", "work_002[3]"]


def test_a_timeline_begins_when_the_first_task_was_scheduled():
    axes = every_plot()["timeline"].axes[0]
    assert min(bar.get_x() for bar in axes.patches) == 0


def test_a_timeline_names_what_its_colours_mean_once():
    labels = [text.get_text() for text in every_plot()["timeline by host"].legends[0].get_texts()]
    assert sorted(labels) == ["host node1", "host node2", "queued", "scheduled"]


def test_a_long_timeline_stays_readable():
    many = [replace(ATTEMPTS[0], task_id=f"work_{i:03d}", start=101.0 + i, end=102.0 + i) for i in range(300)]
    figure = plots.timeline_plot(many, "Many")
    assert len(figure.axes[0].get_yticks()) == plots.MOST_BARS
    assert figure.get_size_inches()[1] < 20


def test_predicted_limits_are_drawn_and_named():
    labels = [text.get_text() for text in every_plot()["running"].legends[0].get_texts()]
    assert labels == ["narrow", "wide", "predicted: pool narrow"]


def test_a_pods_row_has_every_state_and_its_other_name():
    figure = plots.lives_plot(LIVES, "What became of pods", {"one": "one (Always)"})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(STATES)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["one (Always)", "two"]


@pytest.mark.parametrize("count", [1, 5, 8])
def test_no_series_is_left_out_of_a_running_plot(count):
    figure = plots.running_plot({f"series {i}": ATTEMPTS for i in range(count)}, "Many")
    assert len(figure.axes[0].lines) == count


@pytest.mark.parametrize("count", [1, 3, 5])
def test_no_kind_of_work_is_left_out_of_a_speedup_plot(count):
    figure = plots.speedup_plot([1, 2], {f"kind {i}": [2.0, 1.0] for i in range(count)}, 2, "Many")
    assert {f"kind {i}" for i in range(count)} <= {line.get_label() for line in figure.axes[0].lines}


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plots.timeline_plot([], "Nothing"),
        lambda: plots.timeline_plot(ATTEMPTS[3:], "Nothing started"),
        lambda: plots.timeline_plot([], "Nothing", colour_by="host"),
        lambda: plots.running_plot({}, "Nothing"),
        lambda: plots.running_plot({"narrow": []}, "Nothing ran", {"pool": 3}),
        lambda: plots.bars_plot({}, "Nothing", "seconds"),
        lambda: plots.lives_plot([], "Nothing"),
    ],
)
def test_plots_of_nothing_are_empty_and_not_an_error(figure):
    assert ElementTree.fromstring(plots.svg(figure())) is not None


@pytest.mark.parametrize("text", ["größer ≥ 3", "a < b & c", "costs $5 and $6", "quotes \"'", "--> end", "50 %", r"\frac"])
def test_titles_and_labels_may_hold_any_text(text):
    assert ElementTree.fromstring(plots.svg(plots.bars_plot({text: 1.0}, text, "seconds"))) is not None


def test_instantaneous_tasks_do_not_pull_the_count_below_zero():
    instant = [replace(ATTEMPTS[0], start=101.0, end=101.0)]
    line = plots.running_plot({"noop": instant}, "Instant").axes[0].lines
    assert all(count >= 0 for drawn in line for count in drawn.get_ydata())


def test_the_depth_of_every_queue_is_drawn_and_what_was_not_read_is_nothing():
    (axes,) = plots.depth_plot(READINGS, [], "Where tasks waited").axes
    lines = {line.get_label(): [*zip(*line.get_data(), strict=True)] for line in axes.get_lines()}
    assert lines == {
        "waiting in queue default": [(0.0, 4), (0.5, 2), (1.0, 0)],
        "waiting in queue heavy": [(0.0, 0), (0.5, 1), (1.0, 0)],
    }


def test_what_ran_is_drawn_in_the_time_of_the_readings():
    (axes,) = plots.depth_plot(READINGS, ATTEMPTS, "Where tasks waited").axes
    (running,) = [line for line in axes.get_lines() if line.get_label() == "running on workers"]
    assert [*zip(*running.get_data(), strict=True)] == [(1.0, 1), (1.5, 2), (2.0, 3), (3.0, 2), (4.0, 1)]


def test_a_depth_plot_without_readings_is_empty_and_no_error():
    (axes,) = plots.depth_plot([], [], "Nothing").axes
    assert not axes.get_lines()

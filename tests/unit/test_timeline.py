"""Timelines: what start and end times alone say."""

from __future__ import annotations

import random

import pytest

from labs.timeline import (
    Attempt,
    attempt_from_api,
    chain_gaps,
    hop_latencies,
    makespan,
    peak,
    per_host,
    quantile,
    running_on,
    start_order,
    states,
    steps,
)


def ran(start: float | None, end: float | None, name: str = "t", **others) -> Attempt:
    """Return an attempt that started and ended then."""
    known = {"map_index": -1, "run_id": "r", "try_number": 1, "state": "success", "scheduled": None, "queued": None}
    return Attempt(task_id=name, start=start, end=end, **{**known, **others})


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([], 0),
        ([(None, None)], 0),
        ([(0, 1)], 1),
        ([(0, 1), (1, 2), (2, 3)], 1),
        ([(0, 2), (1, 3)], 2),
        ([(0, 10), (1, 2), (3, 4)], 2),
        ([(0, 3), (1, 4), (2, 5)], 3),
        ([(0, None), (1, 2), (3, None)], 2),
        ([(0, 3), (None, None), (1, 2)], 2),
    ],
)
def test_peak_is_the_most_that_ran_at_once(intervals, expected):
    assert peak(ran(*interval) for interval in intervals) == expected


def test_peak_ignores_touching_intervals():
    assert peak([ran(0, 1), ran(1, 2)]) == 1


def test_peak_ignores_an_end_before_its_start():
    assert peak([ran(0, 3), ran(2, 1)]) == 1


@pytest.mark.parametrize(("tolerance_s", "expected"), [(0, 2), (0.25, 2), (0.5, 1), (1, 1)])
def test_peak_ignores_overlaps_no_longer_than_the_clock_offset(tolerance_s, expected):
    assert peak([ran(0, 2.5), ran(2, 4)], tolerance_s) == expected


def test_peak_agrees_with_a_count_at_every_moment():
    chance = random.Random(1)
    for _ in range(300):
        intervals = [(start, start + chance.randint(1, 10)) for start in (chance.randint(0, 30) for _ in range(chance.randint(1, 25)))]
        counted = max(sum(start <= moment < end for start, end in intervals) for moment in range(41))
        attempts = [ran(*interval) for interval in intervals]
        assert peak(attempts) == counted
        assert max(count for _, count in steps(attempts)) == counted


def test_peak_does_not_depend_on_the_order_of_the_attempts():
    attempts = [ran(start, start + 3) for start in range(10)]
    shuffled = random.Random(2).sample(attempts, len(attempts))
    assert peak(shuffled) == peak(attempts) == 3


def test_steps_count_ends_before_starts_at_the_same_moment():
    assert max(count for _, count in steps([ran(0, 1), ran(1, 2)])) == 1
    assert steps([ran(0, 1), ran(1, 2)])[-1] == (2, 0)


def test_steps_go_up_and_down_again():
    assert steps([ran(0, 3), ran(1, 2)]) == [(0, 1), (1, 2), (2, 1), (3, 0)]


def test_steps_count_a_task_that_never_ended_as_running():
    assert steps([ran(0, None), ran(1, 2)]) == [(0, 1), (1, 2), (2, 1)]


@pytest.mark.parametrize("end", [1, 0.5])
def test_steps_never_count_fewer_than_none(end):
    # A task may start and end within one tick of the clock, or, by another clock, end before it started.
    assert all(count >= 0 for _, count in steps([ran(1, end), ran(2, 3)]))


def test_steps_of_nothing_are_nothing():
    assert steps([]) == []


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [([], None), ([(1, None)], None), ([(None, 5)], None), ([(1, 4)], 3), ([(3, 4), (1, 2)], 3), ([(1, None), (2, 5)], 4)],
)
def test_makespan_is_from_the_first_start_to_the_last_end(intervals, expected):
    assert makespan([ran(*interval) for interval in intervals]) == expected


def test_latencies_leave_out_hops_that_are_incomplete():
    complete = ran(3, 7, scheduled=1, queued=2)
    assert hop_latencies([complete, ran(None, None, scheduled=1, queued=None)]) == {
        "scheduled to queued": [1],
        "queued to running": [1],
        "running to end": [4],
    }


def test_latencies_of_nothing_name_every_hop():
    assert set(hop_latencies([])) == {"scheduled to queued", "queued to running", "running to end"}


def test_gaps_of_a_chain_are_from_each_end_to_the_next_start():
    assert chain_gaps([ran(5, 6), ran(0, 2), ran(3, 4), ran(None, None)]) == [1, 1]
    assert chain_gaps([ran(0, 2)]) == []


def test_the_first_starter_comes_first_and_labels_break_ties():
    attempts = [ran(2, 3, "late"), ran(1, 2, "b"), ran(1, 2, "a"), ran(None, None, "never")]
    assert [attempt.label for attempt in start_order(attempts)] == ["a", "b", "late"]


def test_hosts_count_only_what_started():
    assert per_host([ran(0, 1, host="w2"), ran(0, 1, host="w1"), ran(0, 1, host="w2"), ran(None, None, host="w3")]) == {"w1": 1, "w2": 2}


def test_states_count_a_task_without_a_state_as_none():
    assert states([ran(0, 1), ran(0, 1, state="running"), ran(None, None, state=None)]) == {"none": 1, "running": 1, "success": 1}


@pytest.mark.parametrize(
    ("samples", "fraction", "expected"),
    [([5], 0.5, 5), ([1, 3], 0.5, 2), ([3, 1, 2], 0.5, 2), ([1, 2, 3, 4, 5], 0, 1), ([1, 2, 3, 4, 5], 1, 5), ([0, 10], 0.95, 9.5)],
)
def test_a_quantile_lies_between_the_samples_around_it(samples, fraction, expected):
    assert quantile(samples, fraction) == pytest.approx(expected)


def test_a_quantile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


@pytest.mark.parametrize(("map_index", "label"), [(-1, "work_000"), (0, "work_000[0]"), (12, "work_000[12]")])
def test_a_label_shows_the_map_index_where_there_is_one(map_index, label):
    assert ran(0, 1, "work_000", map_index=map_index).label == label


ROW = {
    "task_id": "work_000", "map_index": -1, "dag_run_id": "manual", "try_number": 2, "state": "success",
    "scheduled_when": "2026-01-01T00:00:00Z", "queued_when": "2026-01-01T00:00:00.5Z", "start_date": "2026-01-01T01:00:01+01:00",
    "end_date": "2026-01-01T00:00:03.250000Z", "hostname": "node1", "pid": 42, "pool": "narrow", "pool_slots": 2,
    "queue": "fast", "priority_weight": 7,
}  # fmt: skip


def test_a_row_of_the_api_becomes_an_attempt_with_epoch_seconds():
    attempt = attempt_from_api(ROW)
    assert (attempt.queued - attempt.scheduled, attempt.start - attempt.scheduled, attempt.end - attempt.scheduled) == (0.5, 1, 3.25)
    assert (attempt.host, attempt.pid, attempt.pool, attempt.pool_slots, attempt.queue, attempt.priority) == (
        "node1",
        42,
        "narrow",
        2,
        "fast",
        7,
    )
    assert attempt.try_number == 2


def test_a_row_of_a_task_that_has_not_begun_has_no_times():
    attempt = attempt_from_api({"task_id": "a", "dag_run_id": "r", "state": None, "start_date": None, "hostname": None, "pid": None})
    assert (attempt.scheduled, attempt.queued, attempt.start, attempt.end, attempt.state, attempt.host) == (
        None,
        None,
        None,
        None,
        None,
        "",
    )


@pytest.mark.parametrize("priority", [0, -3])
def test_a_priority_of_zero_or_less_stays_what_it_is(priority):
    assert attempt_from_api({**ROW, "priority_weight": priority}).priority == priority


def test_only_what_runs_now_counts_as_running_on_a_host():
    attempts = [
        ran(0, None, state="running", host="worker-2"),
        ran(0, None, state="running", host="worker-1"),
        ran(1, None, state="running", host="worker-2"),
        ran(0, 1, state="success", host="worker-1"),
        ran(None, None, state="queued", host=""),
    ]
    assert running_on(attempts) == {"worker-1": 1, "worker-2": 2}
    assert list(running_on(attempts)) == ["worker-1", "worker-2"]
    assert running_on([]) == {}

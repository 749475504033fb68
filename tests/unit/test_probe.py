"""The plateau watcher, which is told the time, and what a probe says of itself."""

from __future__ import annotations

import pytest

from labs.checks import Plateau
from labs.errors import LabError
from labs.installation import Installation
from labs.probe import PAUSES_TO_HOLD, SHORTEST_HOLD_S, PlateauWatcher, ProbeResult, describe, require_served
from labs.spec import parse
from labs.timeline import Attempt


def watched(readings: list[tuple[float, int, int, int]]) -> list[Plateau]:
    """Return what the watcher, begun at 0, says after each reading: time, running, queued, scheduled."""
    watcher = PlateauWatcher(0.0)
    return [watcher.observe(now, {"running": r, "queued": q, "scheduled": s}) for now, r, q, s in readings]


def test_counts_that_stay_put_settle_after_the_shortest_hold():
    told = watched([(0.1, 3, 0, 6), (1.0, 3, 0, 6), (SHORTEST_HOLD_S, 3, 0, 6), (SHORTEST_HOLD_S + 0.1, 3, 0, 6)])
    assert [plateau.settled for plateau in told] == [False, False, False, True]
    assert told[-1] == Plateau(3, 0, 6, polls=4, seconds=pytest.approx(SHORTEST_HOLD_S), settled=True)


def test_any_change_begins_the_hold_anew():
    told = watched([(0.1, 3, 0, 6), (2.0, 3, 1, 5), (2.2, 3, 1, 5)])
    assert [(plateau.polls, plateau.settled) for plateau in told] == [(1, False), (1, False), (2, False)]


def test_a_slow_machine_is_watched_for_as_long_as_its_pauses_ask():
    pause = 2.0
    told = watched([(0.1, 1, 0, 8), (0.1 + pause, 2, 0, 7), (5.0, 2, 0, 7), (0.1 + pause + PAUSES_TO_HOLD * pause, 2, 0, 7)])
    assert [plateau.settled for plateau in told] == [False, False, False, True]


def test_nothing_at_all_never_settles():
    told = watched([(0.1, 0, 0, 0), (60.0, 0, 0, 0), (600.0, 0, 0, 0)])
    assert not any(plateau.settled for plateau in told)


@pytest.mark.parametrize(("starting", "settled"), [(None, True), (0, True), (1, False), (5, False)])
def test_a_count_is_no_plateau_while_a_worker_is_starting_a_task(starting, settled):
    watcher = PlateauWatcher(0.0)
    watcher.observe(0.1, {"running": 3, "queued": 5}, starting)
    plateau = watcher.observe(60.0, {"running": 3, "queued": 5}, starting)
    assert plateau.settled is settled
    assert plateau.starting == starting


@pytest.mark.parametrize(("starting", "settled"), [(None, False), (0, True), (-1, True), (1, False)])
def test_workers_that_do_not_answer_leave_a_count_that_is_no_plateau(starting, settled):
    watcher = PlateauWatcher(0.0, must_know=True)
    watcher.observe(0.1, {"running": 3, "queued": 5}, starting)
    assert watcher.observe(60.0, {"running": 3, "queued": 5}, starting).settled is settled


def test_a_plateau_settles_once_the_last_task_that_was_starting_runs():
    watcher = PlateauWatcher(0.0)
    told = [
        watcher.observe(now, {"running": running, "queued": 4}, 4 - running)
        for now, running in [(0.1, 3), (30.0, 3), (31.0, 4), (200.0, 4)]
    ]
    assert [plateau.settled for plateau in told] == [False, False, False, True]


def test_everything_waiting_settles_too():
    # A pool without slots: nothing runs, and that is the measurement.
    assert watched([(0.1, 0, 0, 9), (60.0, 0, 0, 9)])[-1].settled


def test_a_plateau_counts_only_who_runs_and_who_waits():
    plateau = PlateauWatcher(0.0).observe(1.0, {"success": 4, "none": 2, "deferred": 1, "running": 2, "queued": 3})
    assert (plateau.running, plateau.queued, plateau.scheduled, plateau.waiting) == (2, 3, 0, 3)


def test_the_watcher_knows_how_long_it_has_watched():
    watcher = PlateauWatcher(100.0)
    assert watcher.elapsed == 0
    watcher.observe(107.5, {})
    assert watcher.elapsed == 7.5


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ({}, ""),
        ({"tasks": 12, "pool": "narrow"}, "tasks=12, pool=narrow"),
        ({"runs": 2, "tasks": 3, "priority": [1, 2, 3]}, "runs=2, tasks=3, priority=(1, 2, 3)"),
    ],
)
def test_a_probe_is_described_by_what_differs_from_the_defaults(written, shown):
    assert describe(parse(written)) == shown


def installed(*workers: dict, broker: bool = True, executor: str = "CeleryExecutor", settings: dict | None = None) -> Installation:
    """Return an installation with these Celery workers."""
    known = {"core.executor": executor, **(settings or {})}
    return Installation({"broker": {"kind": "redis"} if broker else None, "workers": list(workers), "settings": known})


def test_a_probe_on_a_queue_that_nobody_serves_is_refused_with_the_queues_there_are_and_the_command():
    here = installed({"name": "w", "concurrency": 1, "queues": ["default", "heavy"]})
    with pytest.raises(LabError, match="No worker serves queue 'light', so the tasks of group 'small'") as refused:
        require_served(parse({"groups": [{"name": "small", "queue": "light"}]}), here)
    assert "default, heavy" in refused.value.hint
    assert "fab workers --add light-1=1@light" in refused.value.hint


def test_a_probe_that_names_no_queue_needs_a_worker_on_the_default_one():
    with pytest.raises(LabError, match="No worker serves queue 'default'"):
        require_served(parse({"tasks": 2}), installed({"name": "w", "concurrency": 1, "queues": ["heavy"]}))
    with pytest.raises(LabError, match="No worker serves queue 'default'") as refused:
        require_served(parse({"tasks": 2}), installed())
    assert "there are no workers" in refused.value.hint


def test_a_probe_may_run_where_its_queues_are_served_and_where_there_are_none():
    served = installed({"name": "a", "concurrency": 1, "queues": ["default"]}, {"name": "b", "concurrency": 1, "queues": ["heavy"]})
    require_served(parse({"groups": [{"name": "x"}, {"name": "y", "queue": "heavy"}]}), served)
    require_served(parse({"groups": [{"name": "y", "queue": "heavy"}]}), installed(broker=False))


def test_a_queue_matters_to_tasks_of_celery_alone():
    here = installed(executor="LocalExecutor,CeleryExecutor")
    require_served(parse({"queue": "nobody"}), here)
    with pytest.raises(LabError, match="No worker serves queue 'nobody'"):
        require_served(parse({"queue": "nobody", "executor": "CeleryExecutor"}), here)


def test_a_probe_that_names_no_queue_goes_to_the_default_queue_of_the_settings():
    here = installed({"name": "w", "concurrency": 1, "queues": ["other"]}, settings={"operators.default_queue": "other"})
    require_served(parse({"tasks": 2}), here)
    with pytest.raises(LabError, match="No worker serves queue 'default'"):
        require_served(parse({"queue": "default"}), here)


@pytest.mark.parametrize(
    ("hosts", "tolerance_s", "peak"),
    [(("a", "b"), 0.0, 2), (("a", "b"), 0.2, 1), (("a", "a"), 0.2, 2)],
    ids=["clocks agree", "clocks may differ by more than the overlap", "one clock"],
)
def test_an_overlap_that_is_shorter_than_the_clocks_differ_does_not_count(hosts, tolerance_s, peak):
    attempts = tuple(
        Attempt("t", n, "r", 1, "success", None, None, start, start + 1.0, host=host)
        for n, (start, host) in enumerate(zip((10.0, 10.9), hosts, strict=True))
    )
    assert ProbeResult(parse({}), "d", attempts, None, 0.0, tolerance_s=tolerance_s).peak == peak


def test_the_time_in_which_a_pod_is_known_to_be_starting_does_not_make_the_hold_longer():
    watcher = PlateauWatcher(0.0)
    # Each pod takes twenty seconds until its task runs; the scheduler itself pauses for a third of a second.
    readings = [(0.3, 0, 3), (20.0, 0, 3), (20.3, 1, 2), (40.0, 1, 2), (40.3, 2, 1), (60.0, 2, 1), (60.3, 3, 0)]
    for now, running, starting in readings:
        assert not watcher.observe(now, {"running": running, "queued": 4}, starting).settled
    told = [watcher.observe(60.3 + later, {"running": 3, "queued": 4}, 0) for later in (1.0, SHORTEST_HOLD_S + 0.1)]
    assert [plateau.settled for plateau in told] == [False, True]


def test_a_pause_in_which_nothing_was_starting_makes_the_hold_longer():
    watcher = PlateauWatcher(0.0)
    pause = 5.0
    for now, running, starting in [(0.3, 1, 0), (0.3 + pause, 1, 0), (0.4 + pause, 2, 0)]:
        watcher.observe(now, {"running": running, "queued": 4}, starting)
    begun = 0.4 + pause
    told = [
        watcher.observe(begun + later, {"running": 2, "queued": 4}, 0) for later in (SHORTEST_HOLD_S + 0.1, PAUSES_TO_HOLD * pause + 0.4)
    ]
    assert [plateau.settled for plateau in told] == [False, True]


def test_time_in_which_something_was_starting_is_no_part_of_the_hold():
    watcher = PlateauWatcher(0.0)
    watcher.observe(0.1, {"running": 3, "queued": 4}, 1)
    # The count has not changed for a minute, but until just now a pod might have become a running task.
    assert not watcher.observe(60.0, {"running": 3, "queued": 4}, 0).settled
    assert not watcher.observe(60.0 + SHORTEST_HOLD_S - 0.1, {"running": 3, "queued": 4}, 0).settled
    assert watcher.observe(60.0 + SHORTEST_HOLD_S + 0.1, {"running": 3, "queued": 4}, 0).settled


def test_a_pod_that_never_starts_leaves_no_plateau():
    watcher = PlateauWatcher(0.0, must_know=True)
    told = [watcher.observe(float(now), {"running": 3, "queued": 4}, 1) for now in range(1, 400, 10)]
    assert not any(plateau.settled for plateau in told)
    assert told[-1].starting == 1


def test_readings_that_say_nothing_of_what_is_starting_count_as_time_without_a_change():
    watcher = PlateauWatcher(0.0)
    for now, running in [(0.1, 1), (4.1, 2)]:
        watcher.observe(now, {"running": running, "queued": 4}, None)
    told = [
        watcher.observe(4.1 + later, {"running": 2, "queued": 4}, None) for later in (SHORTEST_HOLD_S + 0.5, PAUSES_TO_HOLD * 4.1 + 0.1)
    ]
    assert [plateau.settled for plateau in told] == [False, True]

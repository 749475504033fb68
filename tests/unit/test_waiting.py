"""Waiting with a deadline, on a clock that the test turns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from labs import waiting
from labs.errors import LabError
from labs.waiting import wait_for


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return a clock that moves only when somebody sleeps on it."""
    clock = SimpleNamespace(now=100.0, slept=[])

    def sleep(seconds: float) -> None:
        clock.slept.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


def test_an_answer_that_is_there_is_returned_without_waiting(clock):
    assert wait_for(lambda: "ready", 10, "X") == "ready"
    assert clock.slept == []


def test_the_first_truthy_answer_is_returned(clock):
    answers = iter([None, 0, "", [], {"a": 1}, "never seen"])
    assert wait_for(lambda: next(answers), 10, "X", every_s=0.5) == {"a": 1}
    assert clock.slept == [0.5] * 4


def test_at_the_deadline_the_error_says_what_did_not_happen(clock):
    with pytest.raises(LabError, match="Parsing DAG x did not happen within 3 s") as late:
        wait_for(lambda: None, 3, "Parsing DAG x", every_s=1, hint="fab logs dag-processor")
    assert late.value.hint == "fab logs dag-processor"
    assert 3 <= clock.now - 100 <= 5


@pytest.mark.parametrize("timeout_s", [0, -1])
def test_even_without_time_it_looks_at_least_once(clock, timeout_s):
    assert wait_for(lambda: True, timeout_s, "X")
    with pytest.raises(LabError):
        wait_for(lambda: False, timeout_s, "X")


def test_an_answer_that_comes_during_the_last_pause_counts(clock):
    assert wait_for(lambda: clock.now >= 103, 3, "X", every_s=3)


def test_an_error_of_the_question_is_not_swallowed(clock):
    def broken() -> None:
        raise RuntimeError("scheduler died")

    with pytest.raises(RuntimeError, match="scheduler died"):
        wait_for(broken, 10, "X")
    assert clock.slept == []

"""What a notebook works with, without an Airflow: workers that a learner wrote, exercises that could not be measured, a task's path."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labs import checks, services
from labs.checks import Plateau
from labs.errors import LabError
from labs.installation import Installation
from labs.notebook import Lab, workers_from
from labs.session import Bench
from labs.timeline import Attempt
from provision.workers import Worker

SETTLED = Plateau(2, 8, 0, polls=4, seconds=3.0)
RUNNING = [Attempt(f"work_{n:03}", -1, "r", 1, "running", 1.0, 1.1, 1.2, None, host=f"worker-{n}", queue="default") for n in (1, 2)]
TWO = [{"name": "worker-1", "concurrency": 1}, {"name": "worker-2", "concurrency": 1}]


def installation(*workers: Worker) -> Installation:
    listed = [worker.document() | {"node": "localhost"} for worker in workers]
    return Installation({"broker": {"kind": "redis"}, "workers": listed, "settings": {"core.executor": "CeleryExecutor"}})


class FakeProbe:
    """A probe whose gate shows what it is told."""

    def __init__(self, plateau: Plateau, attempts=RUNNING) -> None:
        self.plateau, self.attempts, self.dag_id, self.holding = plateau, attempts, "probe_x", True

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.holding = False

    def hold(self):
        return self.plateau

    def collect(self):
        return self.attempts

    deliver = trigger = release = wait = lambda self: None


@pytest.fixture
def lab(monkeypatch):
    """A lab on two workers; what it would do to services is written down."""
    made = Lab.__new__(Lab)
    made.installation = installation(Worker("worker-1"), Worker("worker-2"))
    made._probes, made._measurements, made._result_path, made.told = [], [], None, []
    made.gate = FakeProbe(SETTLED)
    made._tasks, made._nodes_of_workers = {}, {}

    def set_workers(now, listed, report):
        made.told.append([entry["name"] for entry in listed])
        return installation(*workers_from(listed))

    monkeypatch.setattr(services, "set_workers", set_workers)
    monkeypatch.setattr(made, "probe", lambda spec: made.gate)
    return made


def recorded(lab) -> tuple:
    (measurement,) = lab._measurements
    return measurement.verdict, measurement.measured


def judge(lab, answer):
    return lab.exercise_workers("two", answer, {"tasks": 10}, running={"default": 2}, hint="Think of the sum.", largest=2)


def test_workers_are_read_from_dicts_and_from_what_an_installation_says():
    assert workers_from(TWO) == (Worker("worker-1", 1), Worker("worker-2", 1))
    assert workers_from(installation(Worker("a", 4, ("x",), at_least=1)).workers) == (Worker("a", 4, ("x",), at_least=1),)
    assert workers_from([]) == ()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([{"concurrency": 2}], "A worker needs a name"),
        ([{"name": "w", "concurency": 2}], "no key 'concurency'"),
        ([{"name": "w", "concurrency": 0}], "cannot have concurrency 0"),
        ([*TWO, TWO[0]], "two workers called worker-1"),
        (["worker-1"], "is not a list of workers"),
        ({"name": "w"}, "is not a list of workers"),
        ("worker-1=2", "is not a list of workers"),
        (7, "is not a list of workers"),
    ],
)
def test_what_does_not_describe_workers_is_named_and_changes_nothing(lab, answer, said):
    with pytest.raises(LabError, match=said):
        lab.set_workers(answer)
    assert said in judge(lab, answer).text
    assert recorded(lab) == ("fail", "not yet")
    assert lab.told == []


def test_an_answer_without_a_worker_is_refused_and_stops_none(lab):
    assert "There is no worker in this answer" in judge(lab, []).text
    assert recorded(lab) == ("fail", "not yet")
    assert lab.told == []


def test_an_answer_with_too_large_a_worker_is_refused_before_it_is_started(lab):
    assert "One worker runs 3 tasks at once; 2 are allowed" in judge(lab, [{"name": "w", "concurrency": 3}]).text
    assert lab.told == []


def test_an_answer_that_could_come_out_right_by_chance_is_refused(lab):
    mixed = [{"name": "a", "concurrency": 2}, {"name": "b", "concurrency": 1, "queues": ["heavy", "default"]}]
    assert "could run 3 tasks of queue default at once; 2 are wanted" in judge(lab, mixed).text
    assert lab.told == []


def test_an_answer_is_judged_by_what_ran(lab):
    judge(lab, TWO)
    assert (recorded(lab), lab.told) == (("pass", "solved"), [["worker-1", "worker-2"]])


@pytest.mark.parametrize(
    ("plateau", "verdict"),
    [
        (SETTLED, "pass"),
        (replace(SETTLED, settled=False), "inconclusive"),
        # All of them ran: nothing was proven, and that is the answer's fault.
        (replace(SETTLED, queued=0), "fail"),
    ],
)
def test_an_exercise_that_could_not_be_measured_is_neither_solved_nor_failed(lab, plateau, verdict):
    lab.gate = FakeProbe(plateau)
    assert judge(lab, TWO).verdict == verdict
    assert recorded(lab)[0] == verdict


def test_a_wrong_number_fails(lab):
    lab.gate = FakeProbe(SETTLED, RUNNING[:1])
    judge(lab, TWO)
    assert recorded(lab) == ("fail", "not yet")


def test_the_probe_of_an_exercise_has_the_installation_to_itself(lab, monkeypatch):
    held = []
    monkeypatch.setattr("labs.notebook.exclusive", lambda home, what: held.append(what) or FakeProbe(SETTLED))
    judge(lab, TWO)
    assert held == ["a notebook", "a notebook"]


def test_a_worker_whose_tasks_hold_at_the_gate_is_not_told_to_leave(lab):
    lab._probes = [lab.gate]
    with pytest.raises(LabError, match="worker-2 runs 1 of the tasks that hold at the gate of probe_x") as refused:
        lab.set_workers(TWO[:1])
    assert "release()" in refused.value.hint
    # Neither is one that would have to start anew.
    with pytest.raises(LabError, match="worker-1 runs 1"):
        lab.set_workers([{**TWO[0], "concurrency": 4, "at_least": 1}, TWO[1]])
    assert lab.told == []


def test_workers_that_stay_may_change_and_others_join_while_tasks_hold(lab):
    lab._probes = [lab.gate]
    lab.set_workers([{**TWO[0], "concurrency": 4}, TWO[1], {"name": "worker-3"}])
    lab.gate.holding = False
    lab.set_workers(TWO[:1])
    assert lab.told == [["worker-1", "worker-2", "worker-3"], ["worker-1"]]


def test_a_check_at_a_gate_is_inconclusive_unless_every_count_had_settled(lab):
    unsettled = replace(SETTLED, settled=False)
    assert lab.check_plateau("a", 2, 2, SETTLED).verdict == "pass"
    assert lab.check_plateau("b", 2, 3, SETTLED).verdict == "fail"
    assert lab.check_plateau("c", 2, 3, SETTLED, unsettled).verdict == "inconclusive"
    assert lab.check_plateau("d", 2, 2, unsettled).verdict == "inconclusive"
    row = lab._measurements[-1].row()
    assert row["why"] == checks.UNSETTLED
    assert row["evidence"] == {"polls": 4, "seconds": 3.0}


DONE = Attempt("work_000", -1, "r", 1, "success", 1.0, 1.1, 1.5, 1.7, host="worker-2")


@pytest.fixture
def bench(monkeypatch):
    """Return a bench whose scheduler has read the result, and whose result backend has the rows that it is given."""
    made = Bench.__new__(Bench)
    made.installation = installation(Worker("worker-2"))
    made.rows = [["message", "1970-01-01 00:00:01.8"]]
    monkeypatch.setattr(made, "query", lambda sql: made.rows)
    lines = {
        "scheduler": "1970-01-01T00:00:02Z Received executor event with state success",
        "worker-2": "1970-01-01T00:00:01.3Z Task x[message] received",
    }
    monkeypatch.setattr(made, "lines_in_log", lambda service, *texts: [lines[service]])
    return made


def test_the_path_of_a_task_is_told(bench):
    assert [step.what for step in bench.path_of(FakeProbe(SETTLED, [DONE]))][-2:] == ["result stored", "result read"]


@pytest.mark.parametrize(("state", "said"), [("failed", "is failed"), ("running", "is running"), (None, "is not scheduled yet")])
def test_a_task_that_did_not_succeed_has_no_path_and_is_not_waited_for(bench, state, said, monkeypatch):
    monkeypatch.setattr(bench, "lines_in_log", lambda *texts: pytest.fail("waited"))
    with pytest.raises(LabError, match=said):
        bench.path_of(FakeProbe(SETTLED, [replace(DONE, state=state)]))


@pytest.mark.parametrize("rows", [[], [["message", "x"]] * 2])
def test_a_result_that_is_missing_or_there_twice_is_told(bench, rows):
    bench.rows = rows
    with pytest.raises(LabError, match=f"holds {len(rows)} results"):
        bench.path_of(FakeProbe(SETTLED, [DONE]))


@pytest.mark.parametrize("attempts", [[], [DONE, DONE]])
def test_only_a_single_task_has_a_path(bench, attempts):
    with pytest.raises(LabError, match="Only the path of a single task"):
        bench.path_of(FakeProbe(SETTLED, attempts))


def test_tasks_of_a_worker_that_left_count_for_the_node_where_it_was(lab):
    listed = [Worker("heavy-1").document() | {"node": "worker-2"}]
    nodes = [{"name": name} for name in ("control", "worker-1", "worker-2")]
    lab.installation = Installation({"broker": {"kind": "redis"}, "workers": listed, "nodes": nodes, "settings": {}})
    lab._count("probe_x", [replace(RUNNING[0], host="heavy-1"), replace(RUNNING[1], host="heavy-1")])
    lab.set_workers(TWO)
    lab.installation.document["nodes"] = nodes
    assert lab.tasks_per_node == {"control": 0, "worker-1": 0, "worker-2": 2}

"""Lives of pods: what a pod's document says, its phases, its states over time, and why it waits."""

from __future__ import annotations

import pytest

from labs import pod_lives
from labs.pod_lives import FAILED, LEAVES, RUNS, STANDS, SUCCEEDED, WAITS, Change, PodSeen, Span, pod_seen

# As Kubernetes 1.22 and 1.31 write it.
OLD = "0/3 nodes are available: 1 node(s) had taint {node-role.kubernetes.io/control-plane: true}, that the pod didn't tolerate, 2 Insufficient cpu."
NEW = (
    "0/3 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: true}, 1 Insufficient cpu, "
    "2 Insufficient memory. preemption: 0/3 nodes are available: 1 Preemption is not helpful, 2 No preemption victims found."
)


def document(phase="Running", node="worker-1", state=None, ready="True", restarts=0, conditions=(), **metadata):
    """Return a pod as the API of Kubernetes has it."""
    status = {"phase": phase, "podIP": "10.42.1.7", "conditions": [{"type": "Ready", "status": ready}, *conditions]}
    if state:
        status["containerStatuses"] = [{"name": "main", "state": state, "restartCount": restarts}]
    return {"metadata": {"name": "one", "labels": {"app": "web"}, **metadata}, "spec": {"nodeName": node}, "status": status}


RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff"}}
UNPLACED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": OLD}


@pytest.mark.parametrize(
    ("made", "state"),
    [
        (document("Pending", node=""), WAITS),
        (document("Pending"), STANDS),
        (document(state=RUNNING), RUNS),
        (document(state=BACK_OFF), STANDS),
        (document("Succeeded", state={"terminated": {"exitCode": 0}}), SUCCEEDED),
        (document("Failed", state={"terminated": {"exitCode": 1}}), FAILED),
        (document(state=RUNNING, deletionTimestamp="2026-01-01T00:00:00Z"), LEAVES),
        ({"metadata": {"name": "one"}, "spec": {}}, WAITS),
    ],
)
def test_a_pod_is_in_exactly_one_state(made, state):
    assert pod_seen(made).state == state
    assert state in pod_lives.STATES


def test_a_pod_is_read_with_all_that_labs_ask_of_it():
    seen = pod_seen(document(state=RUNNING, restarts=2))
    assert seen == PodSeen("one", "Running", "worker-1", "10.42.1.7", ready=True, restarts=2, runs=True, labels={"app": "web"})
    assert pod_seen(document(state=BACK_OFF, ready="False")).why == "CrashLoopBackOff"


def test_a_pod_that_fits_nowhere_was_refused_and_says_why():
    seen = pod_seen(document("Pending", node="", conditions=[UNPLACED]))
    assert (seen.refused, seen.why, seen.ended) == (True, OLD, False)
    # Not looked at yet is not refused.
    assert not pod_seen(document("Pending", node="")).refused


@pytest.mark.parametrize(("why", "lacks"), [(OLD, {"cpu": 2}), (NEW, {"cpu": 1, "memory": 2}), ("", {}), ("CrashLoopBackOff", {})])
def test_what_too_little_is_free_of_is_read_from_the_schedulers_words(why, lacks):
    assert pod_lives.shortages(PodSeen("one", "Pending", why=why)) == lacks


def test_a_resource_of_a_device_is_read_with_its_whole_name():
    assert pod_lives.shortages(PodSeen("one", "Pending", why="3 Insufficient nvidia.com/gpu.")) == {"nvidia.com/gpu": 3}


def life(name, *steps):
    """Return changes of one pod from (time, phase, node, runs) or (time, "gone")."""
    return [
        Change(step[0], PodSeen(name, "Running"), gone=True)
        if step[1] == "gone"
        else Change(step[0], PodSeen(name, step[1], step[2], runs=step[3]))
        for step in steps
    ]


ONE = life("one", (0, "Pending", "", False), (1, "Pending", "w", False), (2, "Running", "w", True), (3, "Running", "w", True), (5, "gone"))
TWO = life("two", (1, "Pending", "", False), (4, "Pending", "", False))


def test_phases_are_told_once_each_and_end_with_gone():
    assert pod_lives.phases([*ONE, *TWO], "one") == ["Pending", "Running", "gone"]
    assert pod_lives.phases([*ONE, *TWO], "two") == ["Pending"]
    assert pod_lives.phases([], "one") == []


def test_spans_join_equal_states_and_leave_open_ends_at_the_end():
    mixed = sorted([*ONE, *TWO], key=lambda change: change.at)
    assert pod_lives.spans(mixed, 6) == [
        Span("one", WAITS, 0, 1),
        Span("one", STANDS, 1, 2),
        Span("one", RUNS, 2, 5),
        Span("two", WAITS, 1, 6),
    ]
    assert pod_lives.spans([], 1) == []


def test_a_pod_that_is_made_again_under_its_name_has_a_gap():
    again = [*ONE, *life("one", (7, "Running", "w", True))]
    assert pod_lives.spans(again, 9)[-2:] == [Span("one", RUNS, 2, 5), Span("one", RUNS, 7, 9)]


def test_only_containers_that_run_are_counted_on_nodes():
    seen = [PodSeen("a", "Running", "w2", runs=True), PodSeen("b", "Running", "w1", runs=True), PodSeen("c", "Pending", "w1")]
    gone = PodSeen("d", "Running", "w1", runs=True, leaves=True)
    assert pod_lives.per_node([*seen, gone]) == {"w1": 1, "w2": 1}
    assert pod_lives.per_node([]) == {}

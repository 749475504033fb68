"""In which order a cluster is brought up and looked at again; what it consists of is a stand-in here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from cluster_samples import CLUSTER, SECRETS, complete, kubernetes

from provision.home import lab_home
from provision.kube import bring_up
from provision.kube.state import Kubernetes
from provision.nodes.converge import Converge
from provision.nodes.desired import desired_state
from provision.nodes.layout import Layout
from provision.nodes.plan import Step
from provision.nodes.state import About
from provision.variants import wanted

SERVER, AGENT = (Step(node, "start", f"k3s-{node}", "not running") for node in ("control", "worker-1"))
SCHEDULER = Step("control", "start", "scheduler", "not running")


@pytest.fixture
def brought_up(monkeypatch):
    """Bring up a cluster that is seen like this at first, with these steps found by each further look; return what was done."""

    def run(cluster: Kubernetes, steps: list[Step], *later: list[Step]) -> list[str]:
        done: list[str] = []
        looks = iter(later)

        def noted(name: str):
            return lambda *args, **kwargs: done.append(name)

        state = desired_state(wanted("kubernetes"), CLUSTER, Layout(), About("3.11", "x86_64", "12"), SECRETS, kubernetes=cluster)
        nodes = {node.name: SimpleNamespace(name=node.name) for node in CLUSTER.nodes}
        place = Converge(lab_home(), state, nodes, Path("/none"), lambda: state)
        for name in ("wait_for_server", "apply_objects", "wait_until_ready", "provide_image"):
            monkeypatch.setattr(bring_up, name, noted(name))
        monkeypatch.setattr(bring_up, "forget_nodes", lambda cluster, starting, *rest: done.append(f"forget among {sorted(starting)}"))
        monkeypatch.setattr(place, "on_nodes", lambda chosen, op, **more: done.append(f"{op} {[s.name for s in chosen]} {more}"))
        monkeypatch.setattr(place, "plan_again", lambda report: next(looks))
        monkeypatch.setattr(bring_up, "_deliver_dags", noted("deliver"))
        left = bring_up.start_cluster(place, steps, lambda text: None)
        assert left == later[-1]
        return done

    return run


def start(name: str) -> str:
    return f"start ['{name}'] {{'wait': False}}"


def test_the_server_answers_before_agents_are_started(brought_up):
    done = brought_up(
        kubernetes(seen=replace(complete(), objects_differ=True)), [SERVER, AGENT, SCHEDULER], [AGENT, SCHEDULER], [SCHEDULER]
    )
    assert done == [
        start("k3s-control"), "wait_for_server", "apply_objects", "forget among ['worker-1']", start("k3s-worker-1"), "wait_until_ready",
        "wait_until_ready", "provide_image", "deliver",
    ]  # fmt: skip


def test_a_member_that_has_stopped_meanwhile_is_started(brought_up):
    done = brought_up(kubernetes(), [], [], [AGENT])
    assert done == [
        "wait_for_server", "forget among []", "wait_until_ready", start("k3s-worker-1"), "wait_until_ready", "provide_image", "deliver",
    ]  # fmt: skip


def test_objects_are_applied_to_a_cluster_whose_data_was_removed(brought_up):
    assert "apply_objects" in brought_up(kubernetes(token="another"), [], [], [])

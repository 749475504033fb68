"""Where Celery's workers and a second scheduler are, and what they are called."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cluster_samples import CLUSTER, SECRETS
from nodes_samples import ABOUT, desired, services

from provision.errors import UsageError
from provision.nodes.celery import check_names, placed, worker_text
from provision.nodes.desired import desired_state
from provision.nodes.layout import Layout
from provision.topology import Cluster
from provision.variants import wanted
from provision.workers import Worker


def test_a_worker_lives_on_the_node_of_its_name_and_others_take_the_nodes_in_turn():
    workers = [Worker(name) for name in ("heavy-1", "worker-2", "heavy-2", "heavy-3")]
    assert placed(workers, CLUSTER) == {"worker-2": "worker-2", "heavy-1": "worker-1", "heavy-2": "worker-2", "heavy-3": "worker-1"}


def test_logs_can_be_read_from_a_node_that_has_no_worker_any_more():
    state = desired("celery", workers=[Worker("worker-1")])
    assert services(state)["worker-2"] == ["log-server-worker-2"]


def test_a_worker_gets_the_time_to_finish_its_tasks():
    (unit,) = [u for u in desired().nodes["worker-2"].units if u.service == "worker-2"]
    assert "KillMode=mixed" in unit.text
    assert "TimeoutStopSec=900" in unit.text
    # systemd would put its own variables in place of the shell's.
    assert '--celery-hostname "$$LAB_WORKER"' in unit.text
    assert "EnvironmentFile=/etc/airflow-labs/workers/worker-2.env" in unit.text


@pytest.mark.parametrize("name", ["localhost", "ip6-localhost", "control"])
def test_a_worker_cannot_take_the_name_of_another_machine(name):
    with pytest.raises(UsageError, match=f"A worker cannot be called {name}"):
        desired("celery", workers=[Worker(name)])


def test_a_worker_may_be_called_like_the_node_that_it_lives_on():
    one = Cluster(CLUSTER.network, (replace(CLUSTER.nodes[0], roles=("control", "worker")),))
    check_names([Worker("control"), Worker("worker-1")], one)
    assert placed([Worker("control")], one) == {"control": "control"}


def test_beside_pods_no_worker_is_called_like_a_node():
    """A task in a pod goes by the name of its node: nobody could tell who ran it."""
    check_names([Worker("worker-1")], CLUSTER)
    with pytest.raises(UsageError, match="A worker cannot be called worker-1") as refused:
        check_names([Worker("celery-1"), Worker("worker-1")], CLUSTER, beside_pods=True)
    assert "celery-4" in refused.value.hint


def test_workers_need_a_node_with_their_role():
    alone = Cluster(CLUSTER.network, (replace(CLUSTER.nodes[0], roles=("control",)),))
    with pytest.raises(UsageError, match="No node of the machine table has the role worker"):
        placed([Worker("celery-1")], alone)
    assert placed([], alone) == {}


def test_workers_are_told_apart_by_their_own_files():
    text = worker_text(Worker("heavy-1", 3, ("heavy",))).text
    assert "LAB_WORKER='heavy-1'" in text
    assert "AIRFLOW__CORE__HOSTNAME_CALLABLE='lab_worker_name.worker_name'" in text


@pytest.mark.parametrize("name", ["scheduler-2", "haproxy", "log-server-worker-1", "redis"])
def test_a_worker_cannot_be_called_like_a_service_of_the_nodes(name):
    with pytest.raises(UsageError, match="that is the name of a service"):
        wanted("celery", workers=[Worker(name)])


@pytest.mark.parametrize("variant", ["sqlite", "postgres", "standalone"])
def test_a_second_scheduler_needs_celery(variant):
    with pytest.raises(UsageError, match="a second one needs Celery"):
        wanted(variant, ha=True)


def test_a_second_scheduler_needs_a_second_node():
    one = Cluster(CLUSTER.network, (replace(CLUSTER.nodes[0], roles=("control", "worker")),))
    with pytest.raises(UsageError, match="wants a node of its own"):
        desired_state(wanted("celery", ha=True), one, Layout(), ABOUT, SECRETS)

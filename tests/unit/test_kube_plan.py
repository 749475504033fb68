"""What has to be done to a cluster that looks like this: tables, no cluster."""

from __future__ import annotations

from dataclasses import replace

import nodes_samples
import pytest
from cluster_samples import ALONE, CLUSTER, DIGEST, SECRETS, blank, complete, kubernetes, pods

from provision.kube.plan import plan_cluster
from provision.kube.state import ClusterSeen
from provision.nodes.desired import desired_state
from provision.nodes.layout import Layout
from provision.nodes.plan import CLUSTER as CLUSTERS
from provision.nodes.plan import SERVICES, STOP_ORDER, STORES, WORKERS, kind_of_service, plan
from provision.nodes.state import About, Desired
from provision.variants import DISTRIBUTIONS, wanted

OTHER = "sha256:" + "b" * 64
BOTH = {"worker-1": DIGEST, "worker-2": DIGEST}
SENT = {(name, "send", "K3s") for name in ("control", "worker-1", "worker-2")}
JOINED = {(name, "join", f"k3s-{name}") for name in ("control", "worker-1", "worker-2")}
APPLIED = ("control", "apply", "Kubernetes objects")
MADE = ("control", "make", "pod image")


def imported(*names: str) -> set[tuple[str, str, str]]:
    return {(name, "import", "pod image") for name in names}


def steps(seen: ClusterSeen, **more: object) -> set[tuple[str, str, str]]:
    """Return the steps of a plan: node, action, name."""
    return {(step.node, step.action, step.name) for step in plan_cluster(kubernetes(seen=seen, **more))}


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        ({}, set()),
        ({"software": frozenset({"control", "worker-2"})}, {("worker-1", "send", "K3s")}),
        ({"objects_differ": True}, {APPLIED}),
        ({"ready": frozenset({"control", "worker-1"})}, {("worker-2", "join", "k3s-worker-2")}),
        ({"ready": frozenset()}, JOINED),
        ({"images": {**BOTH, "worker-2": ""}}, imported("worker-2")),
        ({"images": {"worker-1": DIGEST}}, imported("worker-2")),
        ({"images": {**BOTH, "worker-1": OTHER}}, imported("worker-1")),
        # Made anew since, with another content.
        ({"image_archive": OTHER}, imported("worker-1", "worker-2")),
        # The archive was removed: what the nodes have is enough, as long as all have the same.
        ({"image_archive": ""}, set()),
        ({"image_archive": "", "images": {**BOTH, "worker-2": OTHER}}, {MADE} | imported("worker-1", "worker-2")),
        ({"image_archive": "", "images": {"worker-1": DIGEST}}, {MADE} | imported("worker-1", "worker-2")),
        ({"image_archive": "", "images": {}}, {MADE} | imported("worker-1", "worker-2")),
        # Without them the executor has no credentials; the objects alone are what is done about it.
        ({"software": frozenset(), "ready": frozenset(), "objects_differ": True}, SENT | JOINED | {APPLIED}),
    ],
)
def test_a_cluster_gets_what_it_lacks_and_nothing_else(difference, expected):
    assert steps(replace(complete(), **difference)) == expected


def test_a_node_that_is_not_in_the_machine_table_any_more_is_removed():
    assert steps(replace(complete(), strangers=frozenset({"worker-3"}))) == {("control", "remove", "node worker-3")}


@pytest.mark.parametrize(
    ("stored", "token", "removed"),
    [
        ("K10ca::server:word", "word", False),
        ("K10ca::server:word", "another", True),
        ("K10ca::server:another-word", "word", True),
        ("", "word", False),
    ],
)
def test_what_was_stored_with_another_token_is_removed(stored, token, removed):
    found = steps(replace(complete(), join_token=stored), token=token)
    assert found == ({("control", "remove", "the cluster's own data")} if removed else set())


def test_bare_nodes_get_everything_in_the_order_in_which_it_is_needed():
    planned = plan_cluster(kubernetes(seen=blank()))
    assert {(step.node, step.action, step.name) for step in planned} == SENT | JOINED | {APPLIED, MADE} | imported("worker-1", "worker-2")
    actions = list(dict.fromkeys(step.action for step in planned))
    assert actions == ["send", "apply", "join", "make", "import"]


def test_a_missing_image_is_told_from_another_one():
    seen = replace(complete(), images={"worker-1": "", "worker-2": OTHER})
    why = {step.node: step.why for step in plan_cluster(kubernetes(seen=seen))}
    assert why == {"worker-1": "it is not there", "worker-2": "it is another one than the control node's"}


def test_images_are_where_tasks_run_and_nowhere_else():
    assert steps(replace(complete(), images={})) == imported("worker-1", "worker-2")
    assert steps(replace(complete(ALONE), images={}), cluster=ALONE) == imported("control")


def test_an_image_of_a_registry_is_left_to_the_registry():
    assert steps(replace(complete(), images={}, image_archive=""), settings=pods(image="apache/airflow:3.3.2")) == set()


def test_steps_say_the_name_of_the_distribution():
    assert ("worker-1", "send", "RKE2") in steps(blank(), distribution="rke2")
    assert ("worker-1", "join", "rke2-worker-1") in steps(blank(), distribution="rke2")


# -- the plan of the nodes ----------------------------------------------------------------------------


def desired(variant: str = "kubernetes", seen: ClusterSeen | None = None, changes: dict[str, str] | None = None, **more: object) -> Desired:
    known = kubernetes(seen=seen, **more) if variant == "kubernetes" else None
    return desired_state(wanted(variant, changes), CLUSTER, Layout(), About("3.11", "x86_64", "12"), SECRETS, kubernetes=known)


def switched(before: Desired, after: Desired) -> dict[str, dict]:
    """Return the facts of nodes that are as `before` says, as they are asked for `after`."""
    facts = nodes_samples.fulfilled(after)
    for name, node in after.nodes.items():
        earlier = {unit.name: unit for unit in before.nodes[name].units}
        kept = {unit.name for unit in node.units}
        facts[name]["others"] = sorted(set(earlier) - kept)
        facts[name]["unwanted"] = [path for path in node.unwanted if path in before.nodes[name].files]
        facts[name]["units"] = {
            unit: {"active": "active", "sub": "running", "digest": earlier[unit].digest, "pid": 7}
            if unit in earlier
            else {"active": "inactive", "sub": "", "digest": "", "pid": 0}
            for unit in kept
        }
    return facts


def test_nodes_with_a_complete_cluster_are_left_alone():
    assert nodes_samples.steps(desired(), nodes_samples.fulfilled(desired())) == set()


def test_what_the_cluster_lacks_is_among_the_steps_of_the_nodes():
    state = desired(seen=replace(complete(), images={"worker-1": DIGEST}))
    assert nodes_samples.steps(state, nodes_samples.fulfilled(state)) == imported("worker-2")


@pytest.mark.parametrize("variant", ["postgres", "celery"])
def test_another_variant_stops_the_cluster_and_takes_its_tokens_away(variant):
    before, after = desired(), desired(variant)
    found = nodes_samples.steps(after, switched(before, after))
    for node in CLUSTER.nodes:
        assert (node.name, "stop", f"k3s-{node.name}") in found
        assert (node.name, "remove", "files") in found
    (why,) = {
        step.why for step in plan(after, switched(before, after), after.database_mark) if step.action == "remove" and step.node == "control"
    }
    assert {"kubernetes-token", "kubeconfig", "config.yaml"} <= set(why.partition(":")[0].split(", "))


def test_the_other_distribution_stops_the_first_one():
    before, after = desired(), desired(distribution="rke2")
    found = nodes_samples.steps(after, switched(before, after))
    assert {(node.name, "stop", f"k3s-{node.name}") for node in CLUSTER.nodes} <= found
    assert {(node.name, "start", f"rke2-{node.name}") for node in CLUSTER.nodes} <= found
    assert {(node.name, "remove", "files") for node in CLUSTER.nodes} <= found


def test_celery_gives_way_to_kubernetes():
    before, after = desired("celery"), desired()
    found = nodes_samples.steps(after, switched(before, after))
    assert {("control", "stop", "redis"), ("control", "stop", "flower"), ("worker-1", "stop", "worker-1")} <= found
    assert {(node.name, "start", f"k3s-{node.name}") for node in CLUSTER.nodes} <= found
    assert ("control", "restart", "scheduler") in found


@pytest.mark.parametrize(
    ("changes", "restarted"),
    [
        ({"kubernetes_executor.worker_pods_creation_batch_size": "1"}, {"scheduler"}),
        ({"kubernetes_executor.running_pod_log_lines": "50"}, {"scheduler", "api-server"}),
        ({"core.parallelism": "4"}, {"scheduler"}),
        ({"labs.pod_cpu": "50m"}, set()),
    ],
)
def test_a_changed_setting_restarts_who_reads_it_and_never_the_cluster(changes, restarted):
    before, after = desired(), desired(changes=changes)
    found = nodes_samples.steps(after, nodes_samples.fulfilled(before))
    assert {name for _, action, name in found if action == "restart"} == restarted


def test_pods_end_after_the_scheduler_and_before_the_database():
    kinds = {name: kind_of_service(name) for name in ("k3s-control", "rke2-worker-1", "scheduler", "postgres", "worker-1")}
    assert kinds == {"k3s-control": CLUSTERS, "rke2-worker-1": CLUSTERS, "scheduler": SERVICES, "postgres": STORES, "worker-1": WORKERS}
    assert STOP_ORDER.index(SERVICES) < STOP_ORDER.index(CLUSTERS) < STOP_ORDER.index(STORES)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_no_celery_worker_can_be_taken_for_a_cluster_by_its_name(name):
    # Services are told apart by their names alone where nothing else is left of them.
    assert kind_of_service(f"{name}x-1") == WORKERS

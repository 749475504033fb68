"""In which order a cluster is brought up on the nodes, and looked at again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from provision.kube.delivery import complete_delivery, deliver, remove_leftovers
from provision.kube.install import apply_objects, forget_nodes, provide_image, wait_for_server, wait_until_ready
from provision.kube.look import ready_nodes
from provision.kube.plan import plan_cluster
from provision.nodes.plan import CLUSTER, Step, kind_of

if TYPE_CHECKING:
    from provision.nodes.converge import Converge

Report = Callable[[str], None]


def start_cluster(place: Converge, steps: list[Step], report: Report) -> list[Step]:
    """Bring up server, objects, agents and images; return what is left to do of everything else.

    What the server makes at its first start, tokens and credentials, is part of what the other nodes should
    have: so everything is looked at again, twice.
    """
    kubernetes, control = place.desired.kubernetes, place.control
    _start_members(place, [step for step in steps if step.node == control.name], report)
    wait_for_server(kubernetes, control, report)
    if kubernetes.seen.objects_differ or kubernetes.has_other_token:
        apply_objects(kubernetes, control, report)
    steps = place.plan_again(report)
    forget_nodes(place.desired.kubernetes, {step.node for step in _members(place, steps)}, place.nodes, report)
    _join(place, steps, report)
    steps = place.plan_again(report)
    # One that has stopped meanwhile: what comes next needs all of them, and starts none.
    _join(place, steps, report)
    provide_image(
        place.desired.kubernetes, plan_cluster(place.desired.kubernetes), place.nodes, place.ssh_config, place.desired.about, report
    )
    _deliver_dags(place, report)
    return steps


def _join(place: Converge, steps: list[Step], report: Report) -> None:
    """Start the members of the cluster that are to be started, and return when Kubernetes can use every node."""
    kubernetes = place.desired.kubernetes
    _start_members(place, steps, report)
    wait_until_ready(kubernetes, place.nodes, lambda: ready_nodes(kubernetes, place.control), report)


def _members(place: Converge, steps: list[Step]) -> list[Step]:
    return [step for step in steps if step.action in ("start", "restart") and kind_of(place.desired, step.name) == CLUSTER]


def _start_members(place: Converge, steps: list[Step], report: Report) -> None:
    if chosen := _members(place, steps):
        report(f"starting {', '.join(step.name for step in chosen)}")
        # They are ready once they have joined, which may take minutes that others wait for, with a word about it.
        place.on_nodes(chosen, "start", wait=False)


def _deliver_dags(place: Converge, report: Report) -> None:
    kubernetes, layout = place.desired.kubernetes, place.desired.layout
    if kubernetes.pods.dags == "image":
        # Only now it is known what the image below is made of.
        place.desire_again()
        kubernetes = place.desired.kubernetes
    deliver(complete_delivery(kubernetes, place.nodes), layout, place.nodes, report)
    if kubernetes.seen.leftovers:
        report("removing what another way of distributing DAGs left")
        remove_leftovers(kubernetes, place.nodes)

"""What has to be done to a cluster that looks like this; beside the files and units, which are planned like all others. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from provision.kube.state import Kubernetes

SEND, APPLY, BUILD, IMPORT, JOIN, COMMIT, REMOVE = "send", "apply", "make", "import", "join", "commit", "remove"
STORE, IMAGE, OBJECTS, DAGS, DAG_IMAGE = "the cluster's own data", "pod image", "Kubernetes objects", "DAG folders", "image with the DAGs"


@dataclass(frozen=True)
class ClusterStep:
    """One thing to do for the cluster: `action` on `name` at `node`, and why."""

    node: str
    action: str
    name: str
    why: str


def plan_cluster(kubernetes: Kubernetes) -> list[ClusterStep]:
    """Return what has to be done, in the order in which it is done."""
    seen, control = kubernetes.seen, kubernetes.cluster.control.name
    title = kubernetes.distribution.title
    steps = [
        ClusterStep(node.name, SEND, title, f"{kubernetes.software.name} is not there")
        for node in kubernetes.cluster.nodes
        if node.name not in seen.software
    ]
    if kubernetes.has_other_token:
        # It is encrypted with the token (docs.k3s.io/cli/token).
        steps.append(ClusterStep(control, REMOVE, STORE, "it was made with another token, and cannot be read with this one"))
    if seen.objects_differ:
        steps.append(ClusterStep(control, APPLY, OBJECTS, "they are not there, or not as they should be"))
    steps += [ClusterStep(control, REMOVE, f"node {name}", "the machine table does not have it") for name in sorted(seen.strangers)]
    steps += [
        ClusterStep(node.name, JOIN, kubernetes.service(node), "Kubernetes cannot use the node yet")
        for node in kubernetes.cluster.nodes
        if node.name not in seen.ready
    ]
    if kubernetes.builds_image:
        steps += _image_steps(kubernetes)
    return [*steps, *_delivery_steps(kubernetes)]


def _delivery_steps(kubernetes: Kubernetes) -> list[ClusterStep]:
    seen, how = kubernetes.seen, (COMMIT, DAGS) if kubernetes.pods.dags == "git" else (IMPORT, DAG_IMAGE)
    why = "pods would get others than are there now"
    steps = [ClusterStep(node.name, *how, why) for node in kubernetes.cluster.nodes if node.name in seen.undelivered]
    return steps + [ClusterStep(node, REMOVE, what, "DAGs get into pods in another way") for node, what in seen.leftovers.items()]


def _image_steps(kubernetes: Kubernetes) -> list[ClusterStep]:
    seen = kubernetes.seen
    there = {node.name: seen.images.get(node.name, "") for node in kubernetes.task_nodes}
    wanted = seen.image_archive
    if not wanted and len(set(there.values())) == 1 and all(there.values()):
        # The archive was removed; the image is on every node, and the same on all.
        return []
    steps = []
    if not wanted:
        steps.append(ClusterStep(kubernetes.cluster.control.name, BUILD, IMAGE, f"{kubernetes.pods.image} was not made yet"))
    steps += [
        ClusterStep(name, IMPORT, IMAGE, "it is not there" if not digest else "it is another one than the control node's")
        for name, digest in there.items()
        if not digest or digest != wanted
    ]
    return steps

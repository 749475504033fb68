"""Gives pods the DAGs as they are in the control node's folders now: by a commit that they clone, or as an image."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from provision.errors import ProvisionError
from provision.kube import git, manifests
from provision.kube.dag_image import REPOSITORY, Base, DagImage, dag_image, listed_images, outdated
from provision.kube.state import POD_TEMPLATE, Kubernetes
from provision.nodes.layout import USER, Layout
from provision.nodes.session import Nodes, Session

Report = Callable[[str], None]
# Digests of the images of each node, by node and name.
Listed = Mapping[str, Mapping[str, str]]
# What is in a pod's DAG folder, and what it imports.
FOLDERS = ("dags", "config")
# More images than these are not left on a node, but for those that a pod wants.
KEPT = 5
_one_by_one = threading.Lock()


@dataclass(frozen=True)
class Delivery:
    """How the pods of one installation get DAGs; written down with it, so that one more DAG needs no look at the cluster.

    `ctr` and `kubectl` are command lines, `base` the two documents of the image below, where DAGs become a part of it.
    """

    pods: manifests.PodSettings
    control: str
    nodes: tuple[str, ...]
    ctr: tuple[str, ...]
    kubectl: tuple[str, ...]
    base: Base | None = None

    def document(self) -> dict[str, Any]:
        """Return what is written down."""
        return asdict(self)


def delivery_from(document: Mapping[str, Any]) -> Delivery:
    """Return what was written down."""
    base = document["base"]
    return Delivery(
        manifests.PodSettings(**document["pods"]), document["control"], tuple(document["nodes"]), tuple(document["ctr"]),
        tuple(document["kubectl"]), Base(**base) if base else None,
    )  # fmt: skip


def delivery_of(kubernetes: Kubernetes) -> Delivery:
    """Return how an installation's pods get DAGs, without a base."""
    return Delivery(
        kubernetes.pods,
        kubernetes.cluster.control.name,
        tuple(node.name for node in kubernetes.task_nodes),
        tuple(kubernetes.distribution.ctr(kubernetes.software)),
        tuple(kubernetes.distribution.kubectl(kubernetes.software)),
    )


def complete_delivery(kubernetes: Kubernetes, nodes: Nodes) -> Delivery:
    """Return how an installation's pods get DAGs; where it wants a base, none if no node has the image."""
    found = delivery_of(kubernetes)
    has_image = next((name for name, digest in kubernetes.seen.images.items() if digest), "")
    if kubernetes.pods.dags != "image" or not has_image:
        return found
    return replace(found, base=_base(found, nodes[has_image], kubernetes.seen.images[has_image]))


def _base(delivery: Delivery, node: Session, digest: str) -> Base:
    def content(of: str) -> dict[str, Any]:
        return json.loads(node.call("ask", argv=[*delivery.ctr, "content", "get", of])["out"])

    manifest = content(digest)
    return Base(manifest, content(manifest["config"]["digest"]))


def undelivered(delivery: Delivery, layout: Layout, nodes: Nodes, listed: Listed) -> tuple[str, frozenset[str]]:
    """Return the image with the DAGs as they are now, if there is to be one, and the nodes on which pods would not get them."""
    control = nodes[delivery.control]
    if delivery.pods.dags == "git":
        return "", frozenset() if control.call("is_committed", **_repository(layout)) else frozenset({delivery.control})
    if delivery.pods.dags == "volume":
        return "", frozenset()
    if delivery.base is None:
        return "", frozenset(delivery.nodes)
    image = _image(delivery, layout, control)
    return image.reference, frozenset(name for name in delivery.nodes if listed.get(name, {}).get(image.reference) != image.digest)


def deliver(delivery: Delivery, layout: Layout, nodes: Nodes, report: Report = lambda text: None) -> None:
    """Return once every pod that is created from now on gets the DAGs as they are in the control node's folders."""
    if delivery.pods.dags == "git":
        nodes[delivery.control].call("commit", **_repository(layout))
    elif delivery.pods.dags == "image":
        if delivery.base is None:
            raise ProvisionError(
                "The image with the DAGs cannot be made: no node has the image below it.",
                "the command that installed it (fab status names it), which imports that image again",
            )
        # What is made of the folders first must not be the last that the template gets.
        with _one_by_one:
            _deliver_image(delivery, layout, nodes, report)


def _repository(layout: Layout) -> dict[str, Any]:
    return {"repository": str(git.REPOSITORY), "group": git.USER, "root": str(layout.airflow_home), "folders": list(FOLDERS)}


def _deliver_image(delivery: Delivery, layout: Layout, nodes: Nodes, report: Report) -> None:
    control = nodes[delivery.control]
    image = _image(delivery, layout, control)
    report(f"importing the image with the DAGs into {', '.join(delivery.nodes)}")
    seen = nodes.each(lambda node: _import(delivery, node, image), list(delivery.nodes))
    text = manifests.pod_template(layout, replace(delivery.pods, image=image.reference))
    path = str(layout.configuration / POD_TEMPLATE)
    control.call("write_files", files={path: {"text": text, "owner": "root", "group": USER, "mode": "0640"}})
    if any(sum(name.startswith(f"{REPOSITORY}:") for name in images) > KEPT for images in seen.values()):
        kept = {image.reference, *_wanted_by_pods(delivery, control)}
        nodes.each(lambda node: _remove(delivery, node, outdated(seen[node.name], kept)), list(delivery.nodes))


def _image(delivery: Delivery, layout: Layout, control: Session) -> DagImage:
    files = control.call("contents", root=str(layout.airflow_home), folders=list(FOLDERS))
    return dag_image(delivery.base, layout.airflow_home, files)


def images_on(delivery: Delivery, node: Session) -> dict[str, str]:
    """Return the digests of a node's images, by name; none if its containerd does not answer."""
    return listed_images(node.call("ask", argv=[*delivery.ctr, "images", "ls"], check=False)["out"])


def _import(delivery: Delivery, node: Session, image: DagImage) -> dict[str, str]:
    """Import the image, if the node does not have it; return all that it has."""
    images = images_on(delivery, node)
    if images.get(image.reference) != image.digest:
        argv = [*delivery.ctr, "images", "import", "--digests=false", "-"]
        node.call("feed", argv=argv, data=base64.b64encode(image.archive).decode())
    return images


def _wanted_by_pods(delivery: Delivery, control: Session) -> list[str]:
    argv = [*delivery.kubectl, "get", "pods", "-n", manifests.NAMESPACE, "-o", "jsonpath={.items[*].spec.containers[*].image}"]
    return control.call("ask", argv=argv)["out"].split()


def _remove(delivery: Delivery, node: Session, names: list[str]) -> None:
    if names:
        node.call("run", argv=[*delivery.ctr, "images", "rm", *names])


def leftovers(kubernetes: Kubernetes, nodes: Nodes, listed: Listed) -> dict[str, str]:
    """Return what other ways of distributing DAGs left in the cluster, by node."""
    delivery, found = delivery_of(kubernetes), {}
    if kubernetes.pods.dags != "git":
        argv = [*delivery.kubectl, "get", "secret", manifests.GIT_KEY, "-n", manifests.NAMESPACE, "--ignore-not-found", "-o", "name"]
        if nodes[delivery.control].call("ask", argv=argv, check=False)["out"].strip():
            found[delivery.control] = f"secret {manifests.GIT_KEY}"
    if kubernetes.pods.dags != "image":
        there = [name for name, images in listed.items() if outdated(images, set())]
        found |= {name: ", ".join(filter(None, (found.get(name), "images with DAGs"))) for name in there}
    return found


def remove_leftovers(kubernetes: Kubernetes, nodes: Nodes) -> None:
    """Remove what other ways of distributing DAGs left in the cluster; pods that still use it end first or not at all."""
    delivery = delivery_of(kubernetes)
    if kubernetes.pods.dags != "git":
        argv = [*delivery.kubectl, "delete", "secret", manifests.GIT_KEY, "-n", manifests.NAMESPACE, "--ignore-not-found"]
        nodes[delivery.control].call("run", argv=argv)
    if kubernetes.pods.dags != "image":
        nodes.each(lambda node: _remove(delivery, node, outdated(images_on(delivery, node), set())), list(delivery.nodes))

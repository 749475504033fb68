"""Looks at a cluster through its nodes, changing nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from provision.kube import manifests, rancher
from provision.kube.delivery import complete_delivery, delivery_of, images_on, leftovers, undelivered
from provision.kube.state import ClusterSeen, Kubernetes
from provision.nodes.session import Nodes, Session


def look(kubernetes: Kubernetes, nodes: Nodes) -> ClusterSeen:
    """Return what the nodes say of the cluster; where its server does not answer, only what is known without it."""
    control = nodes[kubernetes.cluster.control.name]
    names = [node.name for node in kubernetes.cluster.nodes]
    software = nodes.each(lambda node: bool(node.call("names_in", folder=str(kubernetes.software), pattern="complete")), names)
    there = [name for name, found in software.items() if found]
    listed = nodes.each(lambda node: images_on(delivery_of(kubernetes), node), [n.name for n in kubernetes.task_nodes if n.name in there])
    seen = replace(
        kubernetes.seen,
        software=frozenset(there),
        join_token=control.call("read", path=str(kubernetes.distribution.join_token)).strip(),
        image_archive=archived(kubernetes, control),
        images={name: images.get(kubernetes.pods.image, "") for name, images in listed.items()},
    )
    if control.name not in there:
        return seen
    members = _json(kubernetes, control, "get", "nodes", "-o", "json")
    if not members or not (ready := _ready(members)):
        return seen
    authority, accounts = _accounts(kubernetes, control)
    known = replace(kubernetes, seen=seen)
    image, missing = undelivered(complete_delivery(known, nodes), kubernetes.layout, nodes, listed)
    return replace(
        seen,
        dag_image=image,
        undelivered=missing,
        leftovers=leftovers(known, nodes, listed),
        ready=frozenset(ready),
        strangers=frozenset(item["metadata"]["name"] for item in members["items"]) - frozenset(names),
        authority=authority,
        accounts=accounts,
        objects_differ=_run(kubernetes, control, ["diff", "-f", "-"], kubernetes.objects())["code"] != 0,
    )


def archived(kubernetes: Kubernetes, control: Session) -> str:
    """Return the digest of the image in the control node's archive; empty without the archive, whatever is written down beside it."""
    archive = kubernetes.image_archive
    there = control.call("names_in", folder=str(archive.parent), pattern=archive.name)
    return control.call("read", path=f"{archive}.digest").strip() if there else ""


def interfaces(addresses: Mapping[str, str], nodes: Nodes) -> dict[str, str]:
    """Return the network interface of each node's private address, by node."""

    def of(node: Session) -> str:
        shown = node.call("ask", argv=["ip", "-json", "-4", "address", "show"])["out"]
        return interface_of(addresses[node.name], json.loads(shown))

    return nodes.each(of)


def interface_of(address: str, listed: list[dict[str, Any]]) -> str:
    """Return the interface that has an address, in what `ip -json address` lists; empty if none has."""
    return next((entry["ifname"] for entry in listed for each in entry.get("addr_info", ()) if each.get("local") == address), "")


def ready_nodes(kubernetes: Kubernetes, control: Session) -> frozenset[str]:
    """Return the nodes that Kubernetes can use now; none if its server does not answer."""
    document = _json(kubernetes, control, "get", "nodes", "-o", "json")
    return frozenset(_ready(document)) if document else frozenset()


def server_version(kubernetes: Kubernetes, control: Session) -> str:
    """Return the version of Kubernetes on the control node ("v1.36.4+k3s1"); empty if its server does not answer."""
    document = _json(kubernetes, control, "version", "-o", "json") or {}
    return document.get("serverVersion", {}).get("gitVersion", "")


def rancher_seen(kubernetes: Kubernetes, control: Session) -> tuple[bool, dict[str, str]]:
    """Return whether Rancher is ready, and which pods are not, with the reason."""
    deployment = _json(kubernetes, control, "get", "deployment", rancher.NAME, "-n", rancher.NAMESPACES[rancher.NAME], "-o", "json")
    pods = _json(kubernetes, control, "get", "pods", "--all-namespaces", "-o", "json")
    return rancher.is_ready(deployment or {}), rancher.unready(pods or {})


def _ready(document: Mapping[str, Any]) -> list[str]:
    return [
        item["metadata"]["name"]
        for item in document["items"]
        if any(condition["type"] == "Ready" and condition["status"] == "True" for condition in item["status"].get("conditions", ()))
    ]


def _accounts(kubernetes: Kubernetes, control: Session) -> tuple[str, dict[str, str]]:
    authority, tokens = "", {}
    for name, namespace in (
        (manifests.EXECUTOR_ACCOUNT, manifests.NAMESPACE),
        (manifests.LAB_ACCOUNT, manifests.LAB_NAMESPACE),
    ):
        secret = _json(kubernetes, control, "get", "secret", name + manifests.CREDENTIALS, "-n", namespace, "-o", "json")
        data = (secret or {}).get("data") or {}
        if "token" in data:
            authority, tokens[name] = data["ca.crt"], base64.b64decode(data["token"]).decode()
    return authority, tokens


def image_digest(reference: str, listed: str) -> str:
    """Return the digest of an image in what `ctr images ls` prints; empty if it is not listed."""
    rows = [line.split() for line in listed.splitlines()]
    return next((row[2] for row in rows if len(row) > 2 and row[0] == reference), "")


def _json(kubernetes: Kubernetes, control: Session, *arguments: str) -> dict[str, Any] | None:
    done = _run(kubernetes, control, ["--request-timeout=5s", *arguments])
    return json.loads(done["out"]) if done["code"] == 0 else None


def _run(kubernetes: Kubernetes, control: Session, arguments: list[str], text: str = "") -> dict[str, Any]:
    argv = [*kubernetes.distribution.kubectl(kubernetes.software), *arguments]
    return control.call("ask", argv=argv, check=False, **({"text": text} if text else {}))

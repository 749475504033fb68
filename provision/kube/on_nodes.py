"""What Kubernetes adds to the desired state of the nodes, to what Airflow is told, and to the installation file. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from provision import airflow
from provision.home import LabHome
from provision.kube import git, manifests, state
from provision.kube.state import Kubernetes
from provision.nodes import units
from provision.nodes.layout import Layout
from provision.nodes.state import Desired, RemoteFile, RemoteFolder
from provision.nodes.units import Unit
from provision.topology import Node

# The labs' own credentials for the cluster, in the folder of the installation.
KUBECONFIG = "kubeconfig"


def placement(layout: Layout, kubernetes: Kubernetes | None) -> dict[str, str]:
    """Return what a Placement says of a cluster; empty without one."""
    if kubernetes is None:
        return {}
    return {
        "kubeconfig": str(layout.configuration / "kubeconfig"),
        "pod_template": str(layout.configuration / "pod.yaml"),
        # With it, Airflow would put this image in the place of the template's, which changes with every DAG.
        "pod_image": "" if kubernetes.pods.dags == "image" else kubernetes.pods.image,
    }


def credentials(kubernetes: Kubernetes | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what stands for the variable with the path of the executor's credentials in digests: the path and what is there.

    Whoever reads the variable reads the file once, at its start: those of another cluster must restart him.
    """
    variable = airflow.variable_name("kubernetes_executor.config_file")
    if kubernetes is None or not (text := kubernetes.kubeconfig()):
        return {}
    return {variable: f"{environment[variable]} {hashlib.sha256(text.encode()).hexdigest()}"}


def files_and_unit(kubernetes: Kubernetes, node: Node, short_token: str) -> tuple[dict[str, RemoteFile], Unit]:
    """Return the files by path, and the unit, that Kubernetes is on a node."""
    texts = state.files(kubernetes, node, short_token)
    files = {path: RemoteFile(text, "root", group, mode) for path, (text, group, mode) in texts.items()}
    return files, _unit(kubernetes, node, texts)


def _unit(kubernetes: Kubernetes, node: Node, texts: Mapping[str, tuple[str, str, str]]) -> Unit:
    name, distribution = kubernetes.service(node), kubernetes.distribution
    # What is read once, at the start: objects and the pod template change while it runs.
    read = {path: text for path, (text, _, _) in texts.items() if path in (str(distribution.configuration), str(kubernetes.token_file()))}
    purpose = f"{distribution.title}, {'server' if node == kubernetes.cluster.control else 'agent'}: Kubernetes on this node"
    return units.cluster_unit(kubernetes.layout, name, purpose, state.unit_body(kubernetes, node), read)


def folders(kubernetes: Kubernetes, node: Node) -> dict[PurePosixPath, RemoteFolder]:
    """Return the folders that a node's files need, outer ones first."""
    return {path: RemoteFolder(mode=mode) for path, mode in state.folders(kubernetes, node).items()}


def folders_of_git(kubernetes: Kubernetes, node: Node) -> dict[str, RemoteFolder]:
    """Return the folders of a node that the user of the repository reads, the outer one first."""
    return {str(path): RemoteFolder("root", git.USER, "0750") for path in state.folders_of_git(kubernetes, node)}


def document(desired: Desired, home: LabHome) -> dict[str, Any] | None:
    """Return what the installation file says of the cluster; None without one."""
    kubernetes = desired.kubernetes
    if kubernetes is None:
        return None
    return asdict(desired.wanted.kubernetes) | {
        "namespace": manifests.NAMESPACE,
        "lab_namespace": manifests.LAB_NAMESPACE,
        "kubeconfig": str(home.root / KUBECONFIG),
        "pod_image": kubernetes.pods.image,
        "task_nodes": [node.name for node in kubernetes.task_nodes],
        **({"rancher": kubernetes.rancher.url} if kubernetes.rancher else {}),
    }

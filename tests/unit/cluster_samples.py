"""A Kubernetes cluster of three nodes as the tests describe it; nothing here reaches a node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from provision.kube import manifests
from provision.kube.artifacts import Artifact, Artifacts
from provision.kube.distributions import DISTRIBUTIONS
from provision.kube.manifests import EXECUTOR_ACCOUNT, LAB_ACCOUNT, PodSettings
from provision.kube.state import ClusterSeen, Kubernetes, image_reference
from provision.nodes.layout import Layout
from provision.secret_store import NAMES
from provision.topology import Cluster, Node
from provision.variants import variant_named

CLUSTER = Cluster(
    "192.168.56.0/24",
    (
        Node("control", "192.168.56.10", ("control",), 2, 3072),
        Node("worker-1", "192.168.56.11", ("worker",), 1, 2048),
        Node("worker-2", "192.168.56.12", ("worker",), 1, 2048),
    ),
)
ALONE = Cluster("192.168.56.0/24", (Node("control", "192.168.56.10", ("control", "worker"), 2, 4096),))
SECRETS = {name: f"word-of-{name}" for name in NAMES}
ENVIRONMENT = PurePosixPath("/opt/airflow-labs/airflow-3.3.2-0123456789ab")
API_URL = "http://192.168.56.10:8080"
DIGEST = "sha256:" + "a" * 64
JOIN_TOKEN = "K10ca::server:word"
ACCOUNTS = {EXECUTOR_ACCOUNT: "token-of-executor", LAB_ACCOUNT: "token-of-lab"}


def artifacts(distribution: str = "k3s", sha256: str = "1" * 64) -> Artifacts:
    """Return artifacts that are nowhere."""
    program = Artifact(Path("/artifacts/k3s"), "program", sha256)
    archive = Artifact(Path("/artifacts/rke2.linux-amd64.tar.gz"), "archive", sha256)
    images = Artifact(Path("/artifacts/images.tar.zst"), "images", "2" * 64)
    return Artifacts(distribution, (program if distribution == "k3s" else archive, images))


def interfaces(cluster: Cluster = CLUSTER) -> dict[str, str]:
    """Return an interface for each node, different ones, as it may be."""
    return {node.name: f"eth{position}" for position, node in enumerate(cluster.nodes)}


def blank(cluster: Cluster = CLUSTER) -> ClusterSeen:
    """Return what is known of nodes that never had a cluster."""
    return ClusterSeen(interfaces(cluster))


def complete(cluster: Cluster = CLUSTER) -> ClusterSeen:
    """Return what is known of a cluster that is as it should be."""
    names = frozenset(node.name for node in cluster.nodes)
    tasks = [node.name for node in cluster.workers]
    return replace(
        blank(cluster), software=names, join_token=JOIN_TOKEN, authority="Y2E=", accounts=ACCOUNTS, ready=names, objects_differ=False,
        images=dict.fromkeys(tasks, DIGEST), image_archive=DIGEST,
    )  # fmt: skip


def pods(dags: str = "volume", image: str = "", **more: str) -> PodSettings:
    """Return the settings of the pods of the variant, with `dags` and `image` as an install may ask for them."""
    layout, settings = Layout(), variant_named("kubernetes").effective_settings({})
    environment = manifests.pod_environment(layout, settings, API_URL)
    return PodSettings(image or image_reference(ENVIRONMENT), dags, "100m", "256Mi", environment, **more)


def kubernetes(
    distribution: str = "k3s",
    cluster: Cluster = CLUSTER,
    seen: ClusterSeen | None = None,
    settings: PodSettings | None = None,
    **more: object,
) -> Kubernetes:
    """Return the cluster that is wanted; complete, unless `seen` says otherwise."""
    known = complete(cluster) if seen is None else seen
    known_pods = settings or pods()
    return Kubernetes(DISTRIBUTIONS[distribution], artifacts(distribution), cluster, Layout(), known, known_pods, ENVIRONMENT, **more)

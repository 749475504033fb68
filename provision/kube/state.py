"""What Kubernetes adds to each node: packages, files and a unit; and what has to be known of the cluster to say it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from provision.home import REPOSITORY
from provision.kube import distributions, manifests
from provision.kube.artifacts import Artifacts
from provision.kube.distributions import Distribution
from provision.nodes.layout import Layout
from provision.topology import Cluster, Node

# What kubelet and the network call, and what makes the image.
PACKAGES = ("conntrack", "ipset", "iptables", "kmod", "mount", "procps", "socat")
PACKAGES_OF_SERVER = ("mmdebstrap",)
STOP_SCRIPT = (REPOSITORY / "provision" / "files" / "kubernetes-stop.sh").read_text()
IMAGE_SCRIPT = (REPOSITORY / "provision" / "kube" / "pod_image.py").read_text()
# Not a name that a registry could be asked for.
REPOSITORY_OF_IMAGE = "localhost/airflow-executor-labs"


@dataclass(frozen=True)
class ClusterSeen:
    """What only the nodes can say: interfaces by node, and, once the server runs, tokens and what there is.

    `software` are the nodes that have the distribution's files, `accounts` are tokens of service accounts by name, `authority` is the cluster's certificate in base64;
    `images` are digests of the pod image by node, `image_archive` the digest of the one that was made last;
    `ready` are the nodes that Kubernetes can use; `objects_differ` says whether objects have to be applied.
    """

    interfaces: Mapping[str, str]
    software: frozenset[str] = frozenset()
    join_token: str = ""
    authority: str = ""
    accounts: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    image_archive: str = ""
    ready: frozenset[str] = frozenset()
    objects_differ: bool = True


@dataclass(frozen=True)
class Kubernetes:
    """One cluster as it should be."""

    distribution: Distribution
    artifacts: Artifacts
    cluster: Cluster
    layout: Layout
    seen: ClusterSeen
    pods: manifests.PodSettings
    # The folder of the nodes' Airflow environment, of which the image is made.
    environment: PurePosixPath

    @property
    def software(self) -> PurePosixPath:
        """The folder of the artifacts on each node; its name says what is in it."""
        return self.layout.software / f"{self.distribution.name}-{self.artifacts.digest}"

    @property
    def api_url(self) -> str:
        return f"https://{self.cluster.control.address}:6443"

    @property
    def builds_image(self) -> bool:
        """Whether the image of the pods is made here, and not pulled from a registry."""
        return self.pods.image.startswith(REPOSITORY_OF_IMAGE)

    @property
    def image_archive(self) -> PurePosixPath:
        """The archive of the image on the control node."""
        return self.layout.software / "images" / f"{self.pods.image.rpartition(':')[2]}.tar"

    @property
    def task_nodes(self) -> tuple[Node, ...]:
        """The nodes on which tasks run: the workers, or the one node that there is."""
        others = tuple(node for node in self.cluster.workers if node != self.cluster.control)
        return others or (self.cluster.control,)

    def service(self, node: Node) -> str:
        """Return the name of the service that Kubernetes is on a node."""
        return f"{self.distribution.name}-{node.name}"

    def token_file(self) -> PurePosixPath:
        return self.layout.configuration / "kubernetes-token"

    def objects(self) -> str:
        """Return the objects of the installation as text."""
        return manifests.render(manifests.objects())


def image_reference(environment: PurePosixPath) -> str:
    """Return the name of the image that is made of an environment; it changes with whatever goes into the image."""
    what = hashlib.sha256(f"{environment.name} {IMAGE_SCRIPT}".encode()).hexdigest()[:12]
    return f"{REPOSITORY_OF_IMAGE}:{environment.name.removeprefix('airflow-').rpartition('-')[0]}-{what}"


def packages(node: Node, cluster: Cluster) -> list[str]:
    """Return the distribution's packages that a node needs for Kubernetes."""
    return [*PACKAGES, *(PACKAGES_OF_SERVER if node == cluster.control else ())]


def files(kubernetes: Kubernetes, node: Node, short_token: str) -> dict[str, tuple[str, str, str]]:
    """Return a node's files by path: text, group and mode; all belong to root.

    What is not known before the server has run is left out: the workers' token, and the credentials of service
    accounts. The server's own token is the short one; joiners get the full one, which pins the cluster's authority.
    """
    distribution, seen, layout = kubernetes.distribution, kubernetes.seen, kubernetes.layout
    is_server = node == kubernetes.cluster.control
    interface = seen.interfaces[node.name]
    text = distributions.configuration(distribution, kubernetes.cluster, node, interface, kubernetes.token_file())
    found = {
        str(distribution.configuration): (text, "root", "0600"),
        str(layout.configuration / "kubernetes-stop"): (STOP_SCRIPT, "root", "0755"),
    }
    token = short_token if is_server else seen.join_token
    if token:
        found[str(kubernetes.token_file())] = (token + "\n", "root", "0600")
    if is_server:
        template = manifests.pod_template(layout, kubernetes.pods)
        found[str(layout.configuration / "pod.yaml")] = (template, "airflow", "0640")
        found[str(layout.software / "pod_image.py")] = (IMAGE_SCRIPT, "root", "0644")
        if distribution.name == "rke2":
            found[str(distribution.manifests / distributions.CANAL_CONFIG)] = (distributions.canal_manifest(interface), "root", "0600")
        if token := seen.accounts.get(manifests.EXECUTOR_ACCOUNT):
            found[str(layout.configuration / "kubeconfig")] = (
                manifests.kubeconfig(kubernetes.api_url, seen.authority, manifests.EXECUTOR_ACCOUNT, token, manifests.NAMESPACE),
                "airflow",
                "0640",
            )
    return found


def folders(kubernetes: Kubernetes) -> list[PurePosixPath]:
    """Return the folders that a node's files need, outer ones first; they belong to root."""
    configuration, manifests_of = kubernetes.distribution.configuration.parent, kubernetes.distribution.manifests
    more = [manifests_of.parent, manifests_of] if kubernetes.distribution.name == "rke2" else []
    return [configuration.parent, configuration, kubernetes.image_archive.parent, *more]


def files_of_any_cluster(layout: Layout) -> list[str]:
    """Return the files that hold a token, of whichever distribution: they must not outlive its use."""
    names = ("kubernetes-token", "kubernetes-stop", "kubeconfig", "pod.yaml")
    return [*(str(layout.configuration / name) for name in names), *(str(d.configuration) for d in distributions.DISTRIBUTIONS.values())]


def unit_body(kubernetes: Kubernetes, node: Node) -> list[str]:
    """Return the lines of the unit that say how Kubernetes runs on a node."""
    is_server = node == kubernetes.cluster.control
    # The modules are there, or built in, or the machine's own business: a container cannot load any.
    modules = ["ExecStartPre=-/sbin/modprobe -a br_netfilter overlay"]
    return [
        *modules,
        f"ExecStart={kubernetes.distribution.command(kubernetes.software, is_server)}",
        f"ExecStopPost={kubernetes.layout.configuration}/kubernetes-stop",
        "Type=notify",
        # A restart after a crash must find its pods running.
        "KillMode=process",
        "Delegate=yes",
        "User=root",
        "LimitNOFILE=1048576",
        "LimitNPROC=infinity",
        "TasksMax=infinity",
        "TimeoutStartSec=300",
        "Restart=on-failure",
        "RestartSec=5",
    ]

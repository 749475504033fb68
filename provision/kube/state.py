"""What Kubernetes adds to each node: packages, files and a unit; and what has to be known of the cluster to say it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from provision.home import REPOSITORY
from provision.kube import distributions, git, manifests, rancher
from provision.kube.artifacts import Artifacts
from provision.kube.distributions import Distribution
from provision.kube.rancher import Rancher
from provision.nodes.agent.units import AFTER_STOP
from provision.nodes.layout import Layout
from provision.topology import Cluster, Node

# What kubelet and the network call, and what makes the image.
PACKAGES = ("conntrack", "ipset", "iptables", "kmod", "mount", "procps", "socat")
PACKAGES_OF_SERVER = ("mmdebstrap",)
STOP_SCRIPT = (REPOSITORY / "provision" / "files" / "kubernetes-stop.sh").read_text()
IMAGE_SCRIPT = (REPOSITORY / "provision" / "kube" / "pod_image.py").read_text()
# Not a name that a registry could be asked for.
REPOSITORY_OF_IMAGE = "localhost/airflow-executor-labs"
POD_TEMPLATE = "pod.yaml"


@dataclass(frozen=True)
class ClusterSeen:
    """What only the nodes can say: interfaces by node, and, once the server runs, tokens and what there is.

    `software` are the nodes that have the distribution's files, `accounts` are tokens of service accounts by name, `authority` is the cluster's certificate in base64;
    `images` are digests of the pod image by node, `image_archive` the digest of the one that was made last;
    `ready` are the nodes that Kubernetes can use, `strangers` those it has that the machine table does not; `objects_differ` says whether objects have to be applied.
    `host_key` is the control node's own, by which others know it; `dag_image` the image with the DAGs as they are now;
    `undelivered` are the nodes on which pods would not get the DAGs as they are now, and `leftovers` what other ways of
    distributing DAGs left, by node.
    """

    interfaces: Mapping[str, str]
    software: frozenset[str] = frozenset()
    join_token: str = field(default="", repr=False)
    authority: str = ""
    accounts: Mapping[str, str] = field(default_factory=dict, repr=False)
    images: Mapping[str, str] = field(default_factory=dict)
    image_archive: str = ""
    ready: frozenset[str] = frozenset()
    strangers: frozenset[str] = frozenset()
    objects_differ: bool = True
    host_key: str = ""
    dag_image: str = ""
    undelivered: frozenset[str] = frozenset()
    leftovers: Mapping[str, str] = field(default_factory=dict)


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
    # With which pods clone DAGs, if they do.
    deploy_key: str = field(default="", repr=False)
    # The short one, with which the server starts.
    token: str = field(default="", repr=False)
    # The management UI, if somebody asked for it.
    rancher: Rancher | None = None

    @property
    def has_other_token(self) -> bool:
        """Whether what the server has stored belongs to another token than the one that it is to start with, so that it cannot."""
        return bool(self.token and self.seen.join_token) and not self.seen.join_token.endswith(f":{self.token}")

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
        key = git.secret(self.deploy_key, self.cluster.control.address, self.seen.host_key) if self.deploy_key else None
        return manifests.render(manifests.objects(key))

    def kubeconfig(self) -> str:
        """Return the executor's credentials; empty as long as the server has made none."""
        token = self.seen.accounts.get(manifests.EXECUTOR_ACCOUNT)
        if not token:
            return ""
        return manifests.kubeconfig(self.api_url, self.seen.authority, manifests.EXECUTOR_ACCOUNT, token, manifests.NAMESPACE)

    def pod_template(self) -> str:
        """Return the pod template; empty as long as its image is not on every node: a pod without its image fails."""
        if self.pods.dags != "image":
            return manifests.pod_template(self.layout, self.pods)
        if not self.seen.dag_image or self.seen.undelivered:
            return ""
        return manifests.pod_template(self.layout, replace(self.pods, image=self.seen.dag_image))


def image_reference(environment: PurePosixPath) -> str:
    """Return the name of the image that is made of an environment; it changes with whatever goes into the image."""
    what = hashlib.sha256(f"{environment.name} {IMAGE_SCRIPT}".encode()).hexdigest()[:12]
    return f"{REPOSITORY_OF_IMAGE}:{environment.name.removeprefix('airflow-').rpartition('-')[0]}-{what}"


def packages(node: Node, kubernetes: Kubernetes) -> list[str]:
    """Return the distribution's packages that a node needs for Kubernetes."""
    of_server = [*PACKAGES_OF_SERVER, *(git.PACKAGES if kubernetes.deploy_key else ())]
    return [*PACKAGES, *(of_server if node == kubernetes.cluster.control else ())]


def files(kubernetes: Kubernetes, node: Node, short_token: str) -> dict[str, tuple[str, str, str]]:
    """Return a node's files by path: text, group and mode; all belong to root.

    What is not known before the server has run is left out: the workers' token, and the credentials of service
    accounts. The server's own token is the short one; joiners get the full one, which pins the cluster's authority.
    """
    distribution, seen, layout = kubernetes.distribution, kubernetes.seen, kubernetes.layout
    is_server = node == kubernetes.cluster.control
    interface = seen.interfaces[node.name]
    text = distributions.configuration(distribution, kubernetes.cluster, node, interface, kubernetes.token_file(), bool(kubernetes.rancher))
    found = {
        str(distribution.configuration): (text, "root", "0600"),
        str(layout.configuration / "kubernetes-stop"): (STOP_SCRIPT, "root", "0755"),
    }
    token = short_token if is_server else seen.join_token
    if token:
        found[str(kubernetes.token_file())] = (token + "\n", "root", "0600")
    if is_server:
        if template := kubernetes.pod_template():
            found[str(layout.configuration / POD_TEMPLATE)] = (template, "airflow", "0640")
        if kubernetes.deploy_key:
            found |= git.files(kubernetes.deploy_key)
        found[str(layout.software / "pod_image.py")] = (IMAGE_SCRIPT, "root", "0644")
        if distribution.name == "rke2":
            found[str(distribution.manifests / distributions.CANAL_CONFIG)] = (distributions.canal_manifest(interface), "root", "0600")
        if kubernetes.rancher:
            found[str(distribution.manifests / rancher.MANIFEST)] = (
                rancher.manifest(kubernetes.rancher, kubernetes.cluster),
                "root",
                "0600",
            )
        if credentials := kubernetes.kubeconfig():
            found[str(layout.configuration / "kubeconfig")] = (credentials, "airflow", "0640")
    return found


def folders(kubernetes: Kubernetes, node: Node) -> dict[PurePosixPath, str]:
    """Return the folders that a node's files need, with their modes, outer ones first; they belong to root."""
    distribution, is_server = kubernetes.distribution, node == kubernetes.cluster.control
    configuration = distribution.configuration.parent
    found = dict.fromkeys((configuration.parent, configuration, kubernetes.image_archive.parent), "0755")
    if is_server and (distribution.name == "rke2" or kubernetes.rancher):
        # As the server makes them: keys of the cluster are below.
        found |= dict.fromkeys((distribution.server_data, distribution.manifests), "0700")
    return found


def folders_of_git(kubernetes: Kubernetes, node: Node) -> list[PurePosixPath]:
    """Return the folders of a node that the user of the repository reads, the outer one first."""
    return git.folders() if kubernetes.deploy_key and node == kubernetes.cluster.control else []


def accounts(kubernetes: Kubernetes | None, node: Node) -> dict[str, dict[str, str] | None]:
    """Return the users beside Airflow's: home and shell by name, None for one that should not be there."""
    clones = kubernetes is not None and kubernetes.deploy_key and node == kubernetes.cluster.control
    return {git.USER: {"home": str(git.HOME), "shell": git.SHELL} if clones else None}


def unwanted(layout: Layout, kubernetes: Kubernetes | None, node: Node) -> list[str]:
    """Return the files and folders of any cluster that a node must not keep, unless they are among its files."""
    # A template whose image is not ready yet takes the place of the one before; until then that one stays.
    spared = {str(layout.configuration / POD_TEMPLATE)} if kubernetes and node == kubernetes.cluster.control else set()
    repository = [] if kubernetes and folders_of_git(kubernetes, node) else [str(git.HOME)]
    # A server writes its administrator's credentials itself; nodes keep those of the cluster that they are in.
    is_server = kubernetes is not None and node == kubernetes.cluster.control
    own = kubernetes.distribution if kubernetes else None
    credentials = [path for each in distributions.DISTRIBUTIONS.values() if each != own for path in each.credentials]
    credentials += [str(own.admin_kubeconfig)] if own and not is_server else []
    return [path for path in (*files_of_any_cluster(layout), *credentials, *repository) if path not in spared]


def files_of_any_cluster(layout: Layout) -> list[str]:
    """Return the files that hold a token or a password, of whichever distribution: they must not outlive its use."""
    names = ("kubernetes-token", "kubernetes-stop", "kubeconfig", POD_TEMPLATE)
    own = [path for each in distributions.DISTRIBUTIONS.values() for path in (each.configuration, each.manifests / rancher.MANIFEST)]
    return [*(str(layout.configuration / name) for name in names), *map(str, own)]


def unit_body(kubernetes: Kubernetes, node: Node) -> list[str]:
    """Return the lines of the unit that say how Kubernetes runs on a node."""
    is_server = node == kubernetes.cluster.control
    # The modules are there, or built in, or the machine's own business: a container cannot load any.
    modules = ["ExecStartPre=-/sbin/modprobe -a br_netfilter overlay"]
    return [
        *modules,
        f"ExecStart={kubernetes.distribution.command(kubernetes.software, is_server)}",
        # Not ExecStopPost, which systemd runs after a crash, too.
        f"{AFTER_STOP}{kubernetes.layout.configuration}/kubernetes-stop",
        "Type=notify",
        # A restart after a crash must find its pods running.
        "KillMode=process",
        "Delegate=yes",
        "User=root",
        "LimitNOFILE=1048576",
        "LimitNPROC=infinity",
        "TasksMax=infinity",
        # Whoever installs waits, and says for what; a slow start that systemd ends begins again and again.
        "TimeoutStartSec=0",
        "Restart=on-failure",
        "RestartSec=5",
    ]

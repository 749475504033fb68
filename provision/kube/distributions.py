"""Rancher's two distributions of Kubernetes, K3s and RKE2: what they are called, where they keep things, how they are configured.

Paths and keys are those of their documentation (docs.k3s.io, docs.rke2.io); most keys of the configuration file coincide. All pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from provision.errors import UsageError
from provision.topology import Cluster, Node

CONTROL_ROLE = "node-role.kubernetes.io/control-plane"
CONTROL_TAINT = f"{CONTROL_ROLE}=true:NoSchedule"
# What a web page in the cluster is reached through.
INGRESS = ("traefik", "servicelb", "rke2-traefik")
CANAL_CONFIG = "airflow-labs-canal.yaml"
# What a node says at every start, of whichever distribution; it makes one at its first.
PASSWORD = PurePosixPath("/etc/rancher/node/password")


@dataclass(frozen=True)
class Distribution:
    """One distribution: names of files in its releases, folders and ports on a node."""

    name: str
    title: str
    join_port: int
    # What comes with the distribution and no lab uses: less memory, less CPU, fewer images.
    without: tuple[str, ...]
    # Memory that a server and an agent want at least, in MiB, for themselves (the distributions' own requirements).
    server_mib: int
    agent_mib: int

    @property
    def data(self) -> PurePosixPath:
        """Where certificates, images and containers are."""
        return PurePosixPath("/var/lib/rancher") / self.name

    @property
    def configuration(self) -> PurePosixPath:
        return PurePosixPath("/etc/rancher") / self.name / "config.yaml"

    @property
    def admin_kubeconfig(self) -> PurePosixPath:
        """The administrator's credentials, which only root may read and which never leave the node."""
        return PurePosixPath("/etc/rancher") / self.name / f"{self.name}.yaml"

    @property
    def images(self) -> PurePosixPath:
        """Archives in this folder are imported when the distribution starts."""
        return self.data / "agent" / "images"

    @property
    def containerd_templates(self) -> PurePosixPath:
        return self.data / "agent" / "etc" / "containerd"

    @property
    def manifests(self) -> PurePosixPath:
        """What is written here, the server applies."""
        return self.server_data / "manifests"

    @property
    def server_data(self) -> PurePosixPath:
        """All that a server has stored: certificates, tokens and the objects of the cluster."""
        return self.data / "server"

    @property
    def credentials(self) -> tuple[str, ...]:
        """What opens a cluster, as paths and patterns; images and containers are not among it."""
        return (str(self.admin_kubeconfig), str(self.server_data), *(f"{self.data}/agent/*.{kind}" for kind in ("key", "kubeconfig")))

    @property
    def join_token(self) -> PurePosixPath:
        """The full token, which pins the cluster's certificate authority; the server writes it."""
        return self.server_data / "node-token"

    def node_password(self, node: str) -> str:
        """Return the secret in kube-system by which the server knows a node again."""
        return f"{node}.node-password.{self.name}"

    def kubectl(self, software: PurePosixPath) -> list[str]:
        """Return the command line of kubectl, for root on the server; `software` is where the artifacts are."""
        program = [str(software / "k3s"), "kubectl"] if self.name == "k3s" else [str(self.data / "bin" / "kubectl")]
        return [*program, "--kubeconfig", str(self.admin_kubeconfig)]

    def ctr(self, software: PurePosixPath) -> list[str]:
        """Return the command line of containerd's client, for root, in the namespace that Kubernetes uses."""
        program = [str(software / "k3s"), "ctr"] if self.name == "k3s" else [str(self.data / "bin" / "ctr")]
        return [*program, "--address", "/run/k3s/containerd/containerd.sock", "--namespace", "k8s.io"]

    def command(self, software: PurePosixPath, is_server: bool) -> str:
        """Return what the unit of a node runs."""
        program = software / "k3s" if self.name == "k3s" else software / "bin" / "rke2"
        return f"{program} {'server' if is_server else 'agent'}"


DISTRIBUTIONS: Mapping[str, Distribution] = {
    each.name: each
    for each in (
        Distribution("k3s", "K3s", 6443, ("traefik", "servicelb", "metrics-server", "local-storage"), 2048, 512),
        Distribution(
            "rke2",
            "RKE2",
            9345,
            ("rke2-ingress-nginx", "rke2-traefik", "rke2-metrics-server", "rke2-snapshot-controller", "rke2-snapshot-controller-crd"),
            4096,
            3072,
        ),
    )
}


def distribution_named(name: str) -> Distribution:
    """Return the distribution called `name`; raises UsageError that lists the names there are."""
    try:
        return DISTRIBUTIONS[name]
    except KeyError:
        raise UsageError(f"Unknown distribution {name!r}.", f"choose one of: {', '.join(DISTRIBUTIONS)}") from None


def configuration(
    distribution: Distribution, cluster: Cluster, node: Node, interface: str, token_file: PurePosixPath, has_charts: bool = False
) -> str:
    """Return the text of a node's configuration file; with `has_charts`, the server installs charts, and what they show can be reached.

    Its address and, for K3s, the interface of flannel are always said: on virtual machines the first interface
    is Vagrant's own, and has the same address everywhere.
    """
    is_server = node == cluster.control
    keys: dict[str, Any] = {
        "node-name": node.name,
        "node-ip": node.address,
        "token-file": str(token_file),
        # Images of pods are imported, never deleted to make room behind the labs' back.
        "kubelet-arg": ["image-gc-high-threshold=100"],
        # A node in a container may not change these values of the machine's kernel.
        "kube-proxy-arg": ["conntrack-max-per-core=0", "conntrack-tcp-timeout-established=0", "conntrack-tcp-timeout-close-wait=0"],
    }
    if distribution.name == "k3s":
        keys["flannel-iface"] = interface
    if is_server:
        keys |= {
            "advertise-address": node.address,
            "tls-san": [node.address, node.name],
            "write-kubeconfig-mode": "0600",
            "disable": [name for name in distribution.without if not has_charts or name not in INGRESS],
        }
        if distribution.name == "k3s":
            # The labs have no network policies and no charts.
            keys |= {"disable-network-policy": True, **({} if has_charts else {"disable-helm-controller": True})}
        elif has_charts:
            # RKE2's Helm controller installs its own parts, and is always there.
            keys["ingress-controller"] = "traefik"
        if any(worker != node for worker in cluster.workers):
            # Tasks run on the workers, as with Celery; the control node has Airflow's own services.
            keys["node-taint"] = [CONTROL_TAINT]
    else:
        keys["server"] = f"https://{cluster.control.address}:{distribution.join_port}"
    return yaml.safe_dump(keys, sort_keys=True)


def canal_manifest(interface: str) -> str:
    """Return what tells RKE2's network, Canal, which interface the nodes reach each other by; K3s has a key for it."""
    values = yaml.safe_dump({"flannel": {"iface": interface}})
    document = {
        "apiVersion": "helm.cattle.io/v1",
        "kind": "HelmChartConfig",
        "metadata": {"name": "rke2-canal", "namespace": "kube-system"},
        "spec": {"valuesContent": values},
    }
    return yaml.safe_dump(document, sort_keys=False)


def require_memory(distribution: Distribution, cluster: Cluster, memory_mib: Mapping[str, int], airflow_mib: Mapping[str, int]) -> None:
    """Raise UsageError that names the nodes with less memory (`memory_mib`, by name) than the distribution wants.

    `airflow_mib` is what Airflow wants on top, by name, too: on worker nodes, what Celery workers do.
    """
    short, workers = [], ""
    for node in cluster.nodes:
        least = (distribution.server_mib if node == cluster.control else distribution.agent_mib) + airflow_mib[node.name]
        # A machine of 3 GiB shows a tenth less to its programs.
        if memory_mib[node.name] < least * 0.9:
            short.append(f"{node.name} has {memory_mib[node.name]} MiB, {least} are wanted")
            if node != cluster.control and airflow_mib[node.name]:
                workers = ", or ask for fewer Celery workers or smaller ones"
    if short:
        other = "" if distribution.name == "k3s" else ", or --distribution k3s, which needs less"
        raise UsageError(
            f"There is too little memory for {distribution.title}: {'; '.join(short)}.",
            f"raise memory_mib in the machine table, then fab destroy --target vagrant and fab up{other}{workers}",
        )

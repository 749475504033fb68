"""Puts together what is known of a cluster that somebody wants: options, files on this machine, and what the nodes say."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from provision.errors import ProvisionError
from provision.home import LabHome, write_private
from provision.kube import artifacts, manifests
from provision.kube.distributions import Distribution, distribution_named, require_memory
from provision.kube.look import interfaces, look
from provision.kube.manifests import PodSettings
from provision.kube.state import ClusterSeen, Kubernetes, image_reference
from provision.nodes.layout import API_PORT, Layout
from provision.nodes.session import Nodes
from provision.topology import Cluster
from provision.variants import Wanted

# What Airflow's services and PostgreSQL take of the control node.
AIRFLOW_MIB = 1000


def described(
    asked: Wanted,
    cluster: Cluster,
    layout: Layout,
    environment: PurePosixPath,
    machine: str,
    nodes: Nodes,
    home: LabHome,
    report: Callable[[str], None],
) -> Kubernetes:
    """Return the cluster that is wanted, as the nodes say it is now.

    Raises ProvisionError for artifacts that are missing or damaged, and for nodes that are too small.
    """
    options = asked.kubernetes
    distribution = distribution_named(options.distribution)
    settings = asked.variant.effective_settings(asked.changes)
    pods = PodSettings(
        image=options.image or image_reference(environment),
        dags=options.dags,
        cpu=settings["labs.pod_cpu"],
        memory=settings["labs.pod_memory"],
        environment=manifests.pod_environment(layout, settings, f"http://{cluster.control.address}:{layout.port(API_PORT)}"),
    )
    memory = nodes.each(lambda node: node.call("about")["memory_mib"])
    require_memory(distribution, cluster, memory, AIRFLOW_MIB)
    addresses = {node.name: node.address for node in cluster.nodes}
    blank = Kubernetes(
        distribution, _artifacts(asked, distribution, machine, home, report), cluster, layout,
        ClusterSeen(interfaces(addresses, nodes)), pods, environment,
    )  # fmt: skip
    return replace(blank, seen=look(blank, nodes))


def _artifacts(
    asked: Wanted, distribution: Distribution, machine: str, home: LabHome, report: Callable[[str], None]
) -> artifacts.Artifacts:
    # Whoever named a folder once need not name it again after another variant.
    memory = home.shared / f"{distribution.name}.folder"
    named = asked.kubernetes.artifacts or (os.environ.get(artifacts.VARIABLE, "") if distribution.name == "k3s" else "")
    if named:
        write_private(memory, named + "\n")
    elif memory.exists():
        named = memory.read_text().strip()
    if named:
        folder = Path(named).expanduser().resolve()
        if not folder.is_dir():
            raise ProvisionError(
                f"There is no folder {folder} for the files of {distribution.title}.", "name one that exists: --artifacts DIR"
            )
    else:
        folder = artifacts.download(home, distribution, machine, report)
    return artifacts.find(folder, distribution, machine, home.shared / "checksums.json")


def lab_kubeconfig(kubernetes: Kubernetes) -> str:
    """Return the labs' own credentials for the cluster."""
    token = kubernetes.seen.accounts.get(manifests.LAB_ACCOUNT)
    if not token:
        raise ProvisionError("The cluster has no credentials for the labs.", "fab install kubernetes --target vagrant")
    return manifests.kubeconfig(kubernetes.api_url, kubernetes.seen.authority, manifests.LAB_ACCOUNT, token, manifests.LAB_NAMESPACE)

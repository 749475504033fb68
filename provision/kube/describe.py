"""Puts together what is known of a cluster that somebody wants: options, files on this machine, and what the nodes say."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from provision.errors import ProvisionError
from provision.home import LabHome, write_private
from provision.kube import artifacts, git, manifests
from provision.kube.distributions import Distribution, distribution_named, require_memory
from provision.kube.look import interfaces, look
from provision.kube.manifests import PodSettings
from provision.kube.rancher import Rancher
from provision.kube.state import ClusterSeen, Kubernetes, image_reference
from provision.nodes.desired import placed
from provision.nodes.layout import API_PORT, Layout
from provision.nodes.session import Nodes, Session
from provision.pins import pins
from provision.topology import Cluster
from provision.variants import Wanted

# What Airflow's services and PostgreSQL take of the control node.
AIRFLOW_MIB = 1000
# What Celery adds, about: measured with `fab workers`, which shows each worker, and `fab status`, which shows Flower and Redis.
# That of RabbitMQ is estimated. A worker is its main process and one for each task that it runs at once.
FLOWER_MIB, BROKER_MIB = 150, {"redis": 10, "rabbitmq": 150}
WORKER_MIB, WORKER_PROCESS_MIB = 150, 150


def described(
    asked: Wanted,
    cluster: Cluster,
    layout: Layout,
    environment: PurePosixPath,
    machine: str,
    nodes: Nodes,
    home: LabHome,
    report: Callable[[str], None],
    token: str,
    deploy_key: str = "",
    rancher: Rancher | None = None,
) -> Kubernetes:
    """Return the cluster that is wanted, as the nodes say it is now.

    `token` is the short one that its server starts with, `deploy_key` what pods clone DAGs with, if they do,
    `rancher` the management UI, if the cluster has one.

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
        git_url=git.url(cluster.control.address) if options.dags == "git" else "",
    )
    memory = nodes.each(lambda node: node.call("about")["memory_mib"])
    require_memory(distribution, cluster, memory, airflow_mib(asked, cluster))
    addresses = {node.name: node.address for node in cluster.nodes}
    seen = ClusterSeen(interfaces(addresses, nodes), host_key=_host_key(nodes[cluster.control.name]) if deploy_key else "")
    files = _artifacts(asked, distribution, machine, home, report)
    if rancher:
        files = replace(files, files=(*files.files, *rancher.images))
    blank = Kubernetes(distribution, files, cluster, layout, seen, pods, environment, deploy_key, token, rancher)
    return replace(blank, seen=look(blank, nodes))


def airflow_mib(asked: Wanted, cluster: Cluster) -> dict[str, int]:
    """Return the memory in MiB that Airflow, its database and what belongs to Celery want, by node."""
    needed = dict.fromkeys((node.name for node in cluster.nodes), 0)
    needed[cluster.control.name] = AIRFLOW_MIB
    if asked.variant.uses_celery:
        needed[cluster.control.name] += FLOWER_MIB + BROKER_MIB[asked.broker]
        where = placed(asked.workers, cluster)
        for worker in asked.workers:
            needed[where[worker.name]] += WORKER_MIB + WORKER_PROCESS_MIB * worker.concurrency
    return needed


def _host_key(control: Session) -> str:
    text = control.call("read", path=str(git.HOST_KEY))
    if not text:
        raise ProvisionError(
            f"{control.name} has no host key {git.HOST_KEY}, by which pods would know it.",
            "make one (sudo ssh-keygen -A, on the node), then run the same command again",
        )
    return text


def _artifacts(
    asked: Wanted, distribution: Distribution, machine: str, home: LabHome, report: Callable[[str], None]
) -> artifacts.Artifacts:
    memory, version = home.shared / f"{distribution.name}.folder", pins()[distribution.name]["version"]
    named = asked.kubernetes.artifacts or (os.environ.get(artifacts.VARIABLE, "") if distribution.name == "k3s" else "")
    remembered, downloaded = _remembered(memory, version), False
    if named:
        folder = Path(named).expanduser().resolve()
        if not folder.is_dir():
            raise ProvisionError(
                f"There is no folder {folder} for the files of {distribution.title}.", "name one that exists: --artifacts DIR"
            )
        report(f"using {distribution.title} from {folder}; pinned is {version}")
    elif remembered:
        folder = Path(remembered)
        report(f"using {distribution.title} from {folder}, as named before; pinned is {version}")
    else:
        folder, downloaded = artifacts.download(home, distribution, machine, report, asked.variant.name), True
        report(f"using {distribution.title} {version}, as pinned")
    found = artifacts.find(folder, distribution, machine, home.shared / "checksums.json", downloaded)
    if named:
        write_private(memory, f"{folder}\n{version}\n")
    return found


def _remembered(memory: Path, version: str) -> str:
    """Return the folder that was named for an earlier install of this pinned version; empty if there is none.

    Whoever named a folder once need not name it again after another variant, as long as it is there. With another
    pin it is another release that is wanted, which is not in it.
    """
    folder, _, pinned = (memory.read_text().strip() if memory.exists() else "").partition("\n")
    return folder if pinned == version and Path(folder).is_dir() else ""


def lab_kubeconfig(kubernetes: Kubernetes, variant: str = "kubernetes") -> str:
    """Return the labs' own credentials for the cluster; raises ProvisionError that says how to install its variant again."""
    token = kubernetes.seen.accounts.get(manifests.LAB_ACCOUNT)
    if not token:
        raise ProvisionError("The cluster has no credentials for the labs.", f"fab install {variant} --target vagrant")
    return manifests.kubeconfig(kubernetes.api_url, kubernetes.seen.authority, manifests.LAB_ACCOUNT, token, manifests.LAB_NAMESPACE)

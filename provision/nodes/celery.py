"""Celery's workers on the nodes: where each lives, its own file, and what the installation file says of them. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from provision import airflow
from provision.airflow import API_USER
from provision.errors import UsageError
from provision.nodes.state import Desired, RemoteFile
from provision.nodes.variant_stores import broker_port
from provision.topology import Cluster
from provision.workers import Worker


def check_names(workers: Collection[Worker], cluster: Cluster, beside_pods: bool = False) -> None:
    """Raise UsageError for a worker that would take its name from a machine: on every node, a worker's name is one of its node's.

    With pods for other tasks, no worker may be called like any node: tasks in pods go by the name of theirs.
    """
    others = [node for node in cluster.nodes if beside_pods or node not in cluster.workers]
    taken = {"localhost", "ip6-localhost", "ip6-loopback"} | {node.name for node in others}
    for worker in workers:
        if worker.name in taken:
            raise UsageError(
                f"A worker cannot be called {worker.name}: nodes find another machine by that name.",
                f"choose another name, such as {'celery' if beside_pods else 'worker'}-4",
            )


def placed(workers: Collection[Worker], cluster: Cluster) -> dict[str, str]:
    """Return the node of each Celery worker: the one of the same name, else one worker node after another.

    Raises UsageError where no node has the role worker.
    """
    names = [node.name for node in cluster.workers]
    if workers and not names:
        raise UsageError(
            "No node of the machine table has the role worker, so that Celery's workers have no place.",
            "give a node the role in the machine table (LAB_CLUSTER, or provision/cluster.yaml), then fab destroy --target vagrant and fab up",
        )
    others = [worker.name for worker in workers if worker.name not in names]
    return {worker.name: worker.name for worker in workers if worker.name in names} | {
        name: names[position % len(names)] for position, name in enumerate(others)
    }


def worker_text(worker: Worker) -> RemoteFile:
    """Return a worker's own file; in the timeline a worker goes by its name."""
    variables = airflow.worker_environment(worker) | {"AIRFLOW__CORE__HOSTNAME_CALLABLE": "lab_worker_name.worker_name"}
    return RemoteFile(airflow.render_environment_file(variables))


def document(desired: Desired) -> dict[str, Any]:
    """Return what the installation file says of broker, workers and Flower."""
    wanted, address = desired.wanted, desired.cluster.control.address
    if not wanted.broker:
        return {"broker": None, "workers": [], "flower": None}
    where = placed(wanted.workers, desired.cluster)
    return {
        "broker": {"kind": wanted.broker, "host": address, "port": broker_port(desired.layout, wanted.broker)},
        "workers": [worker.document() | {"node": where[worker.name]} for worker in wanted.workers],
        "flower": {"url": f"http://{address}:{desired.placement.flower_port}", "user": API_USER},
    }

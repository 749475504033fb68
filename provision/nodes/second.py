"""The second scheduler and the second API server: on which node they are, and where both API servers listen. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from provision.airflow import AIRFLOW_SERVICES
from provision.errors import UsageError
from provision.nodes import units
from provision.nodes.layout import BACKEND_PORT, Layout
from provision.nodes.units import Unit
from provision.topology import Cluster, Node


def second_node(cluster: Cluster) -> Node:
    """Return the node of the second scheduler; raises UsageError if there is none beside the control node."""
    others = [node for node in cluster.workers if node != cluster.control]
    if not others:
        raise UsageError("A second scheduler wants a node of its own, and the cluster has none.", "add a worker node to the machine table")
    return others[0]


def backends(cluster: Cluster, layout: Layout) -> dict[str, tuple[str, int]]:
    """Return address and port of both API servers, by name: HAProxy has the address that everybody knows."""
    port = layout.port(BACKEND_PORT)
    return {"api-server": (cluster.control.address, port), "api-server-2": (second_node(cluster).address, port)}


def backend_arguments(node: Node, layout: Layout) -> tuple[str, ...]:
    """Return the arguments by which an API server listens behind HAProxy."""
    return ("--host", node.address, "--port", str(layout.port(BACKEND_PORT)))


def second_units(layout: Layout, relevant: Mapping[str, str], node: Node) -> list[Unit]:
    """Return the units of the second scheduler and the second API server."""
    known = {service.name: service for service in AIRFLOW_SERVICES}
    api = replace(known["api-server"], name="api-server-2", arguments=("api-server", *backend_arguments(node, layout)))
    scheduler = replace(known["scheduler"], name="scheduler-2")
    return [units.airflow_unit(layout, service, relevant, ()) for service in (api, scheduler)]

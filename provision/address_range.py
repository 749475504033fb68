"""Whether the cluster's address range is free on this machine."""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import psutil

from provision.containers import containers_in, docker_networks
from provision.errors import ProvisionError
from provision.topology import NETWORK_VARIABLE, Cluster

ROUTES = Path("/proc/net/route")
# Interfaces of networks that virtual machines share: Vagrant uses one that has the cluster's range.
_SHARED = re.compile(r"vboxnet\d+|virbr\d+|VirtualBox Host-Only.*")
PROBE_TIMEOUT_S = 0.5
# Ranges that VirtualBox allows without being told to.
CANDIDATES = [f"192.168.{third}.0/24" for third in range(63, 56, -1)]


@dataclass(frozen=True)
class Taken:
    """A range that something on this machine uses; `by` is what a message calls it, `interface` where it is seen."""

    network: IPv4Network
    by: str
    interface: str


def conflict(network: IPv4Network, taken: Iterable[Taken], own_interfaces: Iterable[str], share: bool) -> Taken | None:
    """Return the first range that overlaps with `network` and is not the cluster's own; with `share`, nor one for virtual machines."""
    own = set(own_interfaces)
    for other in taken:
        shared = share and _SHARED.fullmatch(other.interface) and other.network == network
        if other.network.overlaps(network) and other.interface not in own and not shared:
            return other
    return None


def free_range() -> str:
    """Return a range for a cluster that nothing on this machine uses; raises ProvisionError if there is none."""
    taken = [*interfaces(), *routes()]
    docker = [span for network in docker_networks() for span in network.ranges]
    for candidate in CANDIDATES:
        network = IPv4Network(candidate)
        if not conflict(network, taken, (), share=False) and not any(span.overlaps(network) for span in docker):
            return candidate
    raise ProvisionError(f"None of the ranges {', '.join(CANDIDATES)} is free.", f"name one: {NETWORK_VARIABLE}=10.11.12.0/24")


def require_free_range(cluster: Cluster, own_containers: Iterable[str], running: Iterable[str], docker: bool) -> None:
    """Raise ProvisionError if another network uses the cluster's range.

    `own_containers` are the ids of the cluster's containers, `running` names its nodes that run already.
    """
    network = IPv4Network(cluster.network)
    taken, own = [*interfaces(), *routes()], set()
    for other in docker_networks() if docker else ():
        if not any(span.overlaps(network) for span in other.ranges):
            continue
        strangers = containers_in(other.id) - set(own_containers)
        # Vagrant takes an empty network that it left behind, if it has exactly this range.
        if not strangers and other.name.startswith("vagrant_network") and other.ranges == (network,):
            own.add(other.interface)
        else:
            # First, so that a message speaks of Docker's network and not of its bridge.
            taken[:0] = [Taken(span, f"the Docker network {other.name}", other.interface) for span in other.ranges]
    if found := conflict(network, taken, own, share=not docker):
        raise ProvisionError(
            f"The address range {cluster.network} is already in use: {found.by} has {found.network}.",
            # VirtualBox allows only the ranges from 192.168.56 to 192.168.63 by itself.
            f"choose a free range: {NETWORK_VARIABLE}={'10.11.12.0/24' if docker else '192.168.61.0/24'} fab up, "
            "or change network in the machine table",
        )
    if not docker and any(_SHARED.fullmatch(other.interface) and other.network == network for other in taken):
        _require_free_addresses(cluster, set(running))


def _require_free_addresses(cluster: Cluster, running: set[str]) -> None:
    """Raise ProvisionError if a machine that is not ours answers at a node's address in a network that is shared."""
    for node in cluster.nodes:
        if node.name not in running and answers(node.address):
            raise ProvisionError(
                f"The address {node.address} of {node.name} is already used by another machine in the same network.",
                f"stop that machine, or choose a free range: {NETWORK_VARIABLE}=192.168.61.0/24 fab up",
            )


def answers(address: str) -> bool:
    """Return whether a machine has this address: its SSH port is open, or refuses."""
    try:
        with socket.create_connection((address, 22), timeout=PROBE_TIMEOUT_S):
            return True
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


def interfaces() -> list[Taken]:
    """Return the IPv4 range of every network interface of this machine."""
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family == socket.AF_INET and address.netmask:
                span = ipaddress.ip_network(f"{address.address}/{address.netmask}", strict=False)
                found.append(Taken(span, f"the network interface {name}", name))
    return found


def routes() -> list[Taken]:
    """Return every route but the default one; empty where the system does not list them in a file."""
    try:
        return parse_routes(ROUTES.read_text())
    except OSError:
        return []


def parse_routes(text: str) -> list[Taken]:
    """Return the routes in the text of Linux's /proc/net/route, whose addresses are little-endian hexadecimal numbers."""
    found = []
    for line in text.splitlines()[1:]:
        interface, destination, *rest = line.split()
        address, mask = (socket.inet_ntoa(struct.pack("<L", int(number, 16))) for number in (destination, rest[5]))
        if mask != "0.0.0.0":
            found.append(Taken(IPv4Network(f"{address}/{mask}", strict=False), f"a route through {interface}", interface))
    return found

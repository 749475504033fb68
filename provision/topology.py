"""The machine table, cluster.yaml: read, checked, and turned into nodes with addresses."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from provision.errors import ProvisionError, UsageError

TABLE = Path(__file__).resolve().parent / "cluster.yaml"
CLUSTER_VARIABLE = "LAB_CLUSTER"
NETWORK_VARIABLE = "LAB_NETWORK"
ROLES = ("control", "worker")
# RFC 1123: what a host may be called; no dots, since the name stands alone in /etc/hosts.
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NODE_KEYS = ("name", "roles", "host", "cpus", "memory_mib")
# Wider than that is more than one cluster's own; narrower has no room for it.
WIDEST_PREFIX, NARROWEST_PREFIX = 16, 28
MOST_CPUS = 64
# An API server and a scheduler do not start with less.
LEAST_MEMORY_MIB, MOST_MEMORY_MIB = 512, 262144


@dataclass(frozen=True)
class Node:
    """One machine of the cluster; `address` is its private address."""

    name: str
    address: str
    roles: tuple[str, ...]
    cpus: int
    memory_mib: int


@dataclass(frozen=True)
class Cluster:
    """Every machine, and the network that their private addresses are in."""

    network: str
    nodes: tuple[Node, ...]

    @property
    def control(self) -> Node:
        """The node with the role control; there is exactly one."""
        return next(node for node in self.nodes if "control" in node.roles)

    @property
    def workers(self) -> tuple[Node, ...]:
        """The nodes with the role worker; a cluster of one node has none."""
        return tuple(node for node in self.nodes if "worker" in node.roles)

    @property
    def memory_mib(self) -> int:
        """What all machines need together."""
        return sum(node.memory_mib for node in self.nodes)

    def node(self, name: str) -> Node:
        """Return the node called `name`; raises UsageError that lists the nodes there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise UsageError(f"There is no node {name!r} in the cluster.", f"choose one of: {', '.join(node.name for node in self.nodes)}")


def table_path() -> Path:
    """Return the machine table that `$LAB_CLUSTER` names, or the one that comes with the labs."""
    return Path(os.environ.get(CLUSTER_VARIABLE) or TABLE).expanduser().resolve()


def read_cluster() -> Cluster:
    """Return the cluster that the machine table describes; raises ProvisionError that names the file and the key."""
    path = table_path()
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ProvisionError(
            f"The machine table {path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}.",
            f"name a table that exists with {CLUSTER_VARIABLE}=/path/to/cluster.yaml, or unset {CLUSTER_VARIABLE}",
        ) from error
    return parse_cluster(text, str(path), os.environ.get(NETWORK_VARIABLE))


def parse_cluster(text: str, source: str, network: str | None = None) -> Cluster:
    """Return the cluster that the YAML `text` from the file `source` describes; `network` replaces its range."""
    table = _Table(source)
    document = table.mapping(_load(text, source), "the table", ("network", "nodes"))
    if network:
        span = _Table("the environment").network(network, NETWORK_VARIABLE)
    else:
        span = table.network(document["network"], "network")
    listed = document["nodes"]
    if not isinstance(listed, list) or not listed:
        table.refuse("nodes", "is not a list of machines", "list at least a control node, as in provision/cluster.yaml")
    nodes = tuple(table.node(entry, f"nodes[{position}]", span) for position, entry in enumerate(listed))
    table.refuse_twice("name", (node.name for node in nodes))
    table.refuse_twice("address", (node.address for node in nodes))
    count = sum("control" in node.roles for node in nodes)
    if count != 1:
        table.refuse("nodes", f"has {count} nodes with the role control", "give the role control to exactly one node")
    return Cluster(str(span), nodes)


def _load(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ProvisionError(f"{source}{where} is not valid YAML: {problem}.", f"finish or repair {source}") from error


@dataclass(frozen=True)
class _Table:
    """Checks that name the file they found something wrong in."""

    source: str

    def refuse(self, key: str, problem: str, hint: str) -> NoReturn:
        raise ProvisionError(f"{self.source}: {key} {problem}.", hint)

    def mapping(self, value: Any, key: str, keys: Iterable[str]) -> Mapping[str, Any]:
        keys = tuple(keys)
        if not isinstance(value, dict):
            self.refuse(key, "does not have keys and values", f"it needs the keys {', '.join(keys)}, as in provision/cluster.yaml")
        prefix = "" if key == "the table" else f"{key}."
        for unknown in value:
            if unknown not in keys:
                self.refuse(f"{prefix}{unknown}", "is not a known key", f"use only: {', '.join(keys)}")
        for missing in keys:
            if missing not in value:
                self.refuse(f"{prefix}{missing}", "is missing", f"add the key {missing}, as in provision/cluster.yaml")
        return value

    def network(self, value: Any, key: str) -> ipaddress.IPv4Network:
        example = "give a private IPv4 range such as 192.168.56.0/24"
        try:
            span = ipaddress.IPv4Network(value if isinstance(value, str) else "")
        except ValueError:
            self.refuse(key, f"= {value!r} is not an IPv4 network", example)
        if not span.is_private or span.is_loopback or span.is_link_local:
            self.refuse(key, f"= {value} is not a private range", example)
        if not WIDEST_PREFIX <= span.prefixlen <= NARROWEST_PREFIX:
            self.refuse(key, f"= {value} is not between /{WIDEST_PREFIX} and /{NARROWEST_PREFIX} wide", example)
        return span

    def node(self, value: Any, key: str, span: ipaddress.IPv4Network) -> Node:
        entry = self.mapping(value, key, _NODE_KEYS)
        name = entry["name"]
        if not isinstance(name, str) or not _HOST_NAME.fullmatch(name):
            self.refuse(f"{key}.name", f"= {name!r} is not a host name", "use lower-case letters, digits and inner hyphens, at most 63")
        roles = entry["roles"]
        if not isinstance(roles, list) or not roles or not all(role in ROLES for role in roles) or len(set(roles)) < len(roles):
            self.refuse(f"{key}.roles", f"= {roles!r} of {name} is not a list of roles", f"list one or more of: {', '.join(ROLES)}")
        return Node(
            name=name,
            address=self._address(entry["host"], f"{key}.host", name, span),
            roles=tuple(roles),
            cpus=self._whole(entry["cpus"], f"{key}.cpus", name, 1, MOST_CPUS),
            memory_mib=self._whole(entry["memory_mib"], f"{key}.memory_mib", name, LEAST_MEMORY_MIB, MOST_MEMORY_MIB),
        )

    def _whole(self, value: Any, key: str, name: str, least: int, most: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.refuse(key, f"= {value!r} of {name} is not a whole number from {least} to {most}", f"give a number from {least} to {most}")
        return value

    def _address(self, host: Any, key: str, name: str, span: ipaddress.IPv4Network) -> str:
        """Return network plus host number; .1 is this machine's own address in the range, with every provider."""
        last = span.num_addresses - 2
        if not isinstance(host, int) or isinstance(host, bool) or not 2 <= host <= last:
            self.refuse(
                key,
                f"= {host!r} of {name} is not a free address of {span}: 0 is the network, 1 this machine, {last + 1} broadcast",
                f"give a number from 2 to {last}",
            )
        return str(span[host])

    def refuse_twice(self, what: str, values: Iterable[str]) -> None:
        seen: set[str] = set()
        for value in values:
            if value in seen:
                self.refuse("nodes", f"has two nodes with the {what} {value}", f"give every node a {what} of its own")
            seen.add(value)

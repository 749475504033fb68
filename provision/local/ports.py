"""Loopback ports: the user's choice, else the one chosen before, else a free one."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Mapping, Sequence

import psutil

from provision.errors import ProvisionError, UsageError
from provision.home import LabHome, read_json, write_private

PORT_VARIABLES = {
    "api-server": "LAB_API_PORT",
    "postgres": "LAB_POSTGRES_PORT",
    "redis": "LAB_BROKER_PORT",
    "rabbitmq": "LAB_BROKER_PORT",
    "rabbitmq-nodes": "",
    "flower": "LAB_FLOWER_PORT",
}


def choose_ports(home: LabHome, services: Sequence[str], running: Collection[str]) -> dict[str, int]:
    """Return the port of each listening service: the user's choice, else the one chosen before, else a free one."""
    file = home.state / "ports.json"
    stored = read_json(file)
    given: dict[int, str] = {}
    for service, variable in PORT_VARIABLES.items():
        if program_of(service) not in services:
            continue
        chosen = os.environ.get(variable)
        port = _port_number(variable, chosen) if chosen else int(stored.get(service) or free_port(given))
        if port in given or (not port_is_free(port) and not _is_held_by_the_lab(port, service, stored, services, running)):
            if chosen:
                owner = given.get(port) or port_owner(port) or "another program"
                raise ProvisionError(
                    f"Port {port} for {service} is taken by {owner}.", f"choose another {variable}, or none for a free port"
                )
            port = free_port(given)
        stored[service], given[port] = port, service
    write_private(file, json.dumps(stored, sort_keys=True) + "\n")
    return {service: int(port) for service, port in stored.items()}


def program_of(service: str) -> str:
    """Return the program that listens for a service: the port on which RabbitMQ would talk to other nodes is RabbitMQ's."""
    return service.removesuffix("-nodes")


def _is_held_by_the_lab(port: int, service: str, stored: Mapping[str, int], services: Sequence[str], running: Collection[str]) -> bool:
    # By the service itself, or by one that is stopped before this one is started: one broker takes the place of the other.
    holders = {name for name, its in stored.items() if its == port and program_of(name) in running}
    return service in holders or any(program_of(name) not in services for name in holders)


def _port_number(variable: str, text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise UsageError(f"{variable}={text} is not a port.", "give a number from 1 to 65535")
    return int(text)


def port_owner(port: int) -> str:
    """Return who listens on a loopback port, for an error message; empty when nobody can be named."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except (psutil.Error, OSError):
        pass
    return ""


def port_is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(but: Collection[int] = ()) -> int:
    """Return a loopback port that nobody uses at this moment, none of `but`."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in but:
            return port

"""The nodes as Fabric connections, from the one cached ssh-config and the host keys that were seen when they came up."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import invoke
import paramiko
from fabric import Config, Connection

from provision.errors import ProvisionError
from provision.home import LabHome, write_private
from provision.topology import Node

if TYPE_CHECKING:
    from provision.machines import Machines

CONNECT_TIMEOUT_S = 10
# paramiko logs a traceback for every connection that fails; who asked for the connection says it in a line.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
# Vagrant's first key is public knowledge; a node that still accepts it is not finished.
INSECURE_KEY = "insecure_private_key"
T = TypeVar("T")


class Unreachable(ProvisionError):
    """Nodes that should run do not let us in; `failed` says which, and why."""

    def __init__(self, failed: Mapping[str, str], hint: str = "fab up") -> None:
        super().__init__("; ".join(f"{name} cannot be reached: {why}" for name, why in sorted(failed.items())) + ".", hint)
        self.failed = dict(failed)


def connections(machines: Machines) -> dict[str, Connection]:
    """Return an open connection to every node by name; raises ProvisionError that names each node that cannot be reached."""
    path = machines.ssh_config()
    _require_pinned(machines)
    names = [node.name for node in machines.cluster.nodes]
    opened, failed = _open_all(machines.home, path, names)
    if failed:
        # A machine that was started by hand may have got another port; of one that does not run, Vagrant says nothing.
        with contextlib.suppress(ProvisionError):
            path = machines.ssh_config(refresh=True)
        again, failed = _open_all(machines.home, path, list(failed))
        opened |= again
    if failed:
        for connection in opened.values():
            connection.close()
        raise Unreachable(failed)
    return {name: opened[name] for name in names}


def require_reachable(machines: Machines) -> None:
    """Raise ProvisionError that names each node that cannot be reached."""
    for connection in connections(machines).values():
        connection.close()


def _require_pinned(machines: Machines) -> None:
    known = machines.recorded()
    if strange := [node.name for node in machines.cluster.nodes if node.name not in known]:
        raise ProvisionError(f"{', '.join(strange)} was made without fab up, or not to its end.", "fab up")


def _open_all(home: LabHome, path: Path, names: Iterable[str]) -> tuple[dict[str, Connection], dict[str, str]]:
    """Return the connections that could be opened, and why the others could not."""
    opened: dict[str, Connection] = {}
    failed: dict[str, str] = {}

    def open_one(name: str) -> None:
        connection = connection_to(home, path, name)
        try:
            connection.open()
            opened[name] = connection
        except (paramiko.SSHException, OSError, EOFError) as error:
            connection.close()
            failed[name] = _why(error)

    _in_parallel(open_one, names)
    return opened, failed


def connection_to(home: LabHome, path: Path, name: str) -> Connection:
    """Return a connection that is not open yet; it reads no other ssh-config and accepts only the node's own host key."""
    # Lazy: nothing of ~/.fabric.yaml, ~/.invoke.yaml or FABRIC_… may change how the nodes are reached.
    config = Config(runtime_ssh_path=str(path), overrides={"run": {"in_stream": False}}, lazy=True)
    config.load_ssh_config()
    keys = {"allow_agent": False, "look_for_keys": False, "banner_timeout": CONNECT_TIMEOUT_S, "auth_timeout": CONNECT_TIMEOUT_S}
    connection = Connection(name, config=config, connect_timeout=CONNECT_TIMEOUT_S, connect_kwargs=keys)
    connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())
    with contextlib.suppress(FileNotFoundError):
        connection.client.load_system_host_keys(str(known_hosts_path(home)))
    return connection


def _why(error: Exception) -> str:
    if isinstance(error, paramiko.BadHostKeyException):
        return "it shows another host key than the one it came up with"
    if isinstance(error, paramiko.AuthenticationException):
        return "it refuses the key that it was given"
    if "banner" in str(error):
        return "its SSH server does not answer"
    if isinstance(error, TimeoutError):
        return f"it does not answer within {CONNECT_TIMEOUT_S} s"
    return (getattr(error, "strerror", None) or str(error)).strip().rstrip(".") or type(error).__name__


def ssh_config_path(home: LabHome) -> Path:
    """Return the cached ssh-config."""
    return home.state / "ssh-config"


def known_hosts_path(home: LabHome) -> Path:
    """Return the host keys of the nodes."""
    return home.state / "known_hosts"


def files(home: LabHome) -> tuple[Path, ...]:
    """Return every file that is made here."""
    return ssh_config_path(home), known_hosts_path(home)


def is_current(home: LabHome, ids: Mapping[str, str]) -> bool:
    """Return whether the cached ssh-config is about these machines."""
    try:
        return ssh_config_path(home).read_text().partition("\n")[0] == _stamp(ids)
    except OSError:
        return False


def _stamp(ids: Mapping[str, str]) -> str:
    return "# " + " ".join(f"{name}={number}" for name, number in sorted(ids.items()))


def write_ssh_config(home: LabHome, text: str, ids: Mapping[str, str]) -> None:
    """Write the ssh-config that Vagrant printed, made strict about host keys."""
    write_private(ssh_config_path(home), f"{_stamp(ids)}\n{strict(text, known_hosts_path(home))}")


def write_known_hosts(home: LabHome, keys: Mapping[str, str]) -> None:
    """Write the host keys of the nodes that the ssh-config reaches."""
    hosts = addresses(ssh_config_path(home).read_text())
    write_private(
        known_hosts_path(home), "".join(known_hosts_line(name, *hosts[name], keys[name]) for name in sorted(hosts) if name in keys)
    )


def strict(text: str, known_hosts: Path) -> str:
    """Return Vagrant's ssh-config with host keys checked, under the node's name and against our own file."""
    lines = []
    for line in text.splitlines():
        if found := re.match(r"Host (\S+)", line):
            lines += [line, f"  HostKeyAlias {found[1]}", f'  UserKnownHostsFile "{known_hosts}"', "  StrictHostKeyChecking yes"]
        elif not re.match(r"\s+(UserKnownHostsFile|StrictHostKeyChecking|LogLevel)\b", line):
            lines.append(line)
    return "\n".join(lines) + "\n"


def addresses(text: str) -> dict[str, tuple[str, int]]:
    """Return where each node's SSH listens, by name, from an ssh-config."""
    config = paramiko.SSHConfig.from_text(text)
    found = {}
    for name in config.get_hostnames() - {"*"}:
        entry = config.lookup(name)
        found[name] = (entry["hostname"], int(entry.get("port", 22)))
    return found


def known_hosts_line(name: str, host: str, port: int, key: str) -> str:
    """Return the line for a node: under its name for ssh, under its address for those who know no HostKeyAlias."""
    return f"{name},{_host_name(host, port)} {key}\n"


def _host_name(host: str, port: int) -> str:
    return host if port == 22 else f"[{host}]:{port}"


def examine(home: LabHome, nodes: Iterable[Node]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the host keys of nodes that have just come up, and what is wrong with those that are not finished, by name."""
    keys: dict[str, str] = {}
    wrong: dict[str, str] = {}

    def look(node: Node) -> None:
        try:
            if problem := _problem_with(home, node, keys):
                wrong[node.name] = problem
        except (paramiko.SSHException, invoke.exceptions.Failure, OSError, EOFError) as error:
            wrong[node.name] = _why(error)

    _in_parallel(look, nodes)
    return {name: key for name, key in keys.items() if name not in wrong}, wrong


def _problem_with(home: LabHome, node: Node, keys: dict[str, str]) -> str:
    """Return what is wrong with a node, empty if nothing is; puts its host key into `keys`."""
    text = ssh_config_path(home).read_text()
    if node.name not in addresses(text):
        return "Vagrant does not say how to reach it"
    entry = paramiko.SSHConfig.from_text(text).lookup(node.name)
    if any(INSECURE_KEY in path for path in entry.get("identityfile", ())):
        return "it has no key of its own"
    where = addresses(text)[node.name]
    key = host_key(*where)
    keys[node.name] = f"{key.get_name()} {key.get_base64()}"
    with connection_to(home, ssh_config_path(home), node.name) as connection:
        # Nobody has seen this machine before: the key that it shows now is the one that it must show from now on.
        connection.client.get_host_keys().add(_host_name(*where), key.get_name(), key)
        host_name, *seen = connection.run("hostname; cat /proc/net/fib_trie", hide=True, timeout=CONNECT_TIMEOUT_S).stdout.split()
    if host_name.partition(".")[0] != node.name:
        return f"it calls itself {host_name}"
    return "" if node.address in seen else f"it does not have the address {node.address}"


def host_key(host: str, port: int) -> paramiko.PKey:
    """Return the host key that an SSH server shows."""
    with contextlib.closing(socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S)) as channel:
        transport = paramiko.Transport(channel)
        try:
            transport.start_client(timeout=CONNECT_TIMEOUT_S)
            return transport.get_remote_server_key()
        finally:
            transport.close()


def _in_parallel(work: Callable[[T], None], items: Iterable[T]) -> None:
    listed = list(items)
    with ThreadPoolExecutor(max_workers=max(len(listed), 1)) as pool:
        list(pool.map(work, listed))

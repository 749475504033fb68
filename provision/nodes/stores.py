"""Configuration of the programs that keep data for Airflow, and of what every node has: names and clocks. All pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from provision.airflow import render_environment_file
from provision.home import LabHome
from provision.local import rabbitmq
from provision.nodes.layout import Layout
from provision.nodes.units import Unit, store_unit
from provision.topology import Cluster

DATABASE = ROLE = "airflow"
POSTGRES_FOLDER, REDIS_DATA, RABBITMQ_DATA = "/var/lib/airflow-postgres", "/var/lib/airflow-redis", "/var/lib/airflow-rabbitmq"
# By the name of the store, which its user has, too.
FOLDERS = {"postgres": POSTGRES_FOLDER, "redis": REDIS_DATA, "rabbitmq": RABBITMQ_DATA}
POSTGRES_DATA = f"{POSTGRES_FOLDER}/data"
REDIS_MEMORY_MIB = 64
# As many as PostgreSQL itself takes.
SCRAM_ROUNDS = 4096
# What a distribution's release calls current; others have it under another number.
POSTGRES_OF_DEBIAN = {"12": 15, "13": 17}


def postgres_files(layout: Layout, cluster: Cluster, reachable: bool, port: int) -> dict[str, str]:
    """Return PostgreSQL's configuration by path; unless `reachable`, it listens for its own node alone."""
    addresses = ["127.0.0.1", *([cluster.control.address] if reachable else [])]
    settings = [
        f"listen_addresses = '{','.join(addresses)}'",
        f"port = {port}",
        "unix_socket_directories = '/run/airflow-postgres'",
        f"hba_file = '{layout.configuration}/pg_hba.conf'",
        "password_encryption = 'scram-sha-256'",
        "max_connections = 200",
        # A lab's database can be made again; durability would cost every task a disk flush.
        "synchronous_commit = off",
        "timezone = 'UTC'",
        "log_timezone = 'UTC'",
        "update_process_title = off",
    ]
    clients = ["127.0.0.1", *([node.address for node in cluster.nodes] if reachable else [])]
    hba = ["# Who may connect: the superuser on this node, and Airflow from the cluster's own addresses.", "local all postgres peer"]
    hba += [f"host {DATABASE} {ROLE} {address}/32 scram-sha-256" for address in clients]
    return {
        f"{layout.configuration}/postgresql.conf": "\n".join(settings) + "\n",
        f"{layout.configuration}/pg_hba.conf": "\n".join(hba) + "\n",
    }


def postgres_unit(layout: Layout, files: Mapping[str, str], major: int) -> Unit:
    """Return the unit of PostgreSQL."""
    command = f"/usr/lib/postgresql/{major}/bin/postgres -D {POSTGRES_DATA} -c config_file={layout.configuration}/postgresql.conf"
    # SIGINT is PostgreSQL's fast shutdown: open connections are closed, nothing is lost.
    more = ["KillSignal=SIGINT", "RuntimeDirectory=airflow-postgres", "Type=notify"]
    return store_unit(layout, "postgres", "The metadata database", "postgres", command, [POSTGRES_FOLDER], files, more)


def database_sql(password: str) -> str:
    """Return what makes the one role and the one database, or repairs them; for psql, as the superuser.

    PostgreSQL logs a statement that fails, and psql prints it, so the password itself is in none.
    """
    return "\n".join(
        [
            f"select 'create role {ROLE}' where not exists (select from pg_roles where rolname = '{ROLE}')\\gexec",
            f"alter role {ROLE} login nosuperuser nocreatedb nocreaterole password '{scram_verifier(password)}';",
            f"select 'create database {DATABASE} owner {ROLE}' where not exists "
            f"(select from pg_database where datname = '{DATABASE}')\\gexec",
            f"revoke all on database {DATABASE} from public;",
            "",
        ]
    )


def scram_verifier(password: str) -> str:
    """Return what PostgreSQL keeps of a password (RFC 5803); with the same salt each time, for the password is random."""
    salt = hashlib.sha256(f"salt {password}".encode()).digest()[:16]
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ROUNDS)
    client, server = (hmac.digest(salted, key, "sha256") for key in (b"Client Key", b"Server Key"))
    encoded = [base64.b64encode(part).decode() for part in (salt, hashlib.sha256(client).digest(), server)]
    return f"SCRAM-SHA-256${SCRAM_ROUNDS}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def database_url(address: str, port: int, password: str) -> str:
    """Return SQLAlchemy's address of the database."""
    return f"postgresql+psycopg2://{ROLE}:{password}@{address}:{port}/{DATABASE}"


def redis_files(layout: Layout, cluster: Cluster, port: int, password: str) -> dict[str, str]:
    """Return Redis' configuration by path."""
    lines = [
        f"bind {cluster.control.address}",
        f"port {port}",
        "protected-mode yes",
        f"requirepass {password}",
        "daemonize no",
        "supervised systemd",
        f"dir {REDIS_DATA}",
        # Messages that wait in the broker are still there after a restart.
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        f"maxmemory {REDIS_MEMORY_MIB}mb",
        # Any other policy would throw away messages, which to Airflow are tasks.
        "maxmemory-policy noeviction",
    ]
    return {f"{layout.configuration}/redis.conf": "\n".join(lines) + "\n"}


def redis_unit(layout: Layout, files: Mapping[str, str]) -> Unit:
    """Return the unit of Redis."""
    command = f"/usr/bin/redis-server {layout.configuration}/redis.conf"
    purpose = "The broker: task messages wait here until a worker takes them"
    return store_unit(layout, "redis", purpose, "redis", command, [REDIS_DATA], files, ["Type=notify"])


def rabbitmq_files(layout: Layout, cluster: Cluster, port: int, password: str) -> dict[str, str]:
    """Return the files that RabbitMQ's node is started with, by path: one user, one virtual host, no guest, no name service."""
    home = LabHome(Path(RABBITMQ_DATA), Path(RABBITMQ_DATA))
    variables = rabbitmq.environment(home, port + 20000) | {
        "HOME": RABBITMQ_DATA,
        "RABBITMQ_MNESIA_BASE": RABBITMQ_DATA,
        "RABBITMQ_LOG_BASE": RABBITMQ_DATA,
        "RABBITMQ_PID_FILE": f"{RABBITMQ_DATA}/pid",
        "RABBITMQ_ENABLED_PLUGINS_FILE": f"{layout.configuration}/rabbitmq-plugins",
        "RABBITMQ_CONFIG_FILE": f"{layout.configuration}/rabbitmq.conf",
    }
    # Not only at the first start: the data may be there already, with another password.
    definitions = f"{layout.configuration}/rabbitmq-definitions.json"
    configuration = rabbitmq.render_configuration(cluster.control.address, port, [f"load_definitions = {definitions}"])
    return {
        definitions: rabbitmq.render_definitions(password),
        f"{layout.configuration}/rabbitmq.conf": configuration,
        f"{layout.configuration}/rabbitmq.env": render_environment_file(variables),
        f"{layout.configuration}/rabbitmq-plugins": "[].\n",
        f"{RABBITMQ_DATA}/.erlang.cookie": hashlib.sha256(f"cookie {password}".encode()).hexdigest(),
    }


def rabbitmq_unit(layout: Layout, files: Mapping[str, str]) -> Unit:
    """Return the unit of RabbitMQ."""
    purpose = "The broker: task messages wait here until a worker takes them"
    more = [f"EnvironmentFile={layout.configuration}/rabbitmq.env", "TimeoutStartSec=120"]
    return store_unit(layout, "rabbitmq", purpose, "rabbitmq", "/usr/lib/rabbitmq/bin/rabbitmq-server", [RABBITMQ_DATA], files, more)


def haproxy_files(layout: Layout, cluster: Cluster, port: int, backends: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Return HAProxy's configuration by path; `backends` are the API servers: address and port by name."""
    lines = [
        "global",
        "  maxconn 500",
        "defaults",
        "  mode http",
        # A task's request may wait for the database; a log is streamed for as long as its task runs.
        "  timeout connect 2s",
        "  timeout client 10m",
        "  timeout server 10m",
        "  retries 2",
        "  option redispatch",
        "frontend api",
        f"  bind {cluster.control.address}:{port}",
        "  default_backend api-servers",
        "backend api-servers",
        "  balance roundrobin",
        "  option httpchk GET /api/v2/version",
        *(f"  server {name} {address}:{at} check inter 2s fall 2 rise 1" for name, (address, at) in backends.items()),
    ]
    return {f"{layout.configuration}/haproxy.cfg": "\n".join(lines) + "\n"}


def haproxy_unit(layout: Layout, files: Mapping[str, str]) -> Unit:
    """Return the unit of HAProxy."""
    command = f"/usr/sbin/haproxy -Ws -f {layout.configuration}/haproxy.cfg"
    return store_unit(layout, "haproxy", "Shares requests among the API servers", "haproxy", command, ["/run"], files, ["Type=notify"])


def broker_url(kind: str, address: str, port: int, password: str) -> str:
    """Return the broker's address as Celery reads it; empty without one."""
    if not kind:
        return ""
    if kind == "redis":
        return f"redis://:{password}@{address}:{port}/0"
    return f"amqp://{rabbitmq.USER}:{password}@{address}:{port}/{rabbitmq.VHOST}"


def hosts_file(cluster: Cluster, node: str, aliases: Mapping[str, Sequence[str]]) -> str:
    """Return /etc/hosts: every node by name, with the workers that live there as its aliases."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [" ".join([each.address, each.name, *aliases.get(each.name, ())]) for each in cluster.nodes]
    return "\n".join(lines) + "\n"


def hosts_at_boot(hosts: str) -> str:
    """Return what makes systemd write /etc/hosts anew before anything is started: Docker replaces it whenever a container starts."""
    argument = hosts.replace("\\", "\\\\").replace("%", "%%").replace("\n", "\\n")
    return f"f+ /etc/hosts 0644 root root - {argument}\n"


def chrony_file(cluster: Cluster, node: str) -> str:
    """Return what chrony is told beyond its defaults: the workers follow the control node, also without internet."""
    if node == cluster.control.name:
        # Without an address of its own, it would answer on every interface.
        return f"allow {cluster.network}\nbindaddress {cluster.control.address}\nlocal stratum 10\n"
    return f"server {cluster.control.address} iburst prefer\nmakestep 0.1 3\n"


def packages_for(services: Iterable[str], broker: str, is_control: bool, ha: bool) -> list[str]:
    """Return the distribution's packages that a node needs."""
    names = ["chrony", "python3", "python3-venv", "libpq5", "tzdata"]
    if is_control and "postgres" in services:
        names += ["postgresql"]
    if is_control and broker == "redis":
        names += ["redis-server"]
    if is_control and broker == "rabbitmq":
        names += ["rabbitmq-server"]
    if is_control and ha:
        names += ["haproxy"]
    return names

"""The stores of a variant, and HAProxy where it has it: their files and units on the control node, and their addresses. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

from provision.nodes import second, stores
from provision.nodes.layout import API_PORT, POSTGRES_PORT, RABBITMQ_PORT, REDIS_PORT, Layout
from provision.nodes.state import About, RemoteFile, RemoteFolder
from provision.nodes.units import Unit
from provision.topology import Cluster
from provision.variants import Wanted

STORES = ("postgres", "redis", "rabbitmq")
# Of every store: what holds a password must not outlive its use.
CONFIGURATIONS = (
    "postgresql.conf", "pg_hba.conf", "redis.conf", "rabbitmq.conf", "rabbitmq-definitions.json", "rabbitmq.env", "rabbitmq-plugins",
    "haproxy.cfg",
)  # fmt: skip


def database_url(wanted: Wanted, cluster: Cluster, layout: Layout, secrets: Mapping[str, str]) -> str:
    """Return SQLAlchemy's address of the variant's database."""
    if wanted.variant.database == "sqlite":
        # A writer waits up to a minute for the one write lock, instead of the driver's five seconds.
        return f"sqlite:///{layout.sqlite_file}" + ("" if wanted.variant.as_shipped else "?timeout=60")
    # Celery's workers reach it over the network; without them, nobody but its own node does.
    address = cluster.control.address if wanted.broker else "127.0.0.1"
    return stores.database_url(address, layout.port(POSTGRES_PORT), secrets["database_password"])


def broker_port(layout: Layout, broker: str) -> int:
    """Return the port on which a broker listens."""
    return layout.port(REDIS_PORT if broker == "redis" else RABBITMQ_PORT)


def files_and_units(
    wanted: Wanted, cluster: Cluster, layout: Layout, about: About, secrets: Mapping[str, str]
) -> list[tuple[dict[str, RemoteFile], Unit]]:
    """Return each program that the variant has on the control node: its files by path, and its unit."""
    found = []
    if "postgres" in wanted.variant.services:
        texts = stores.postgres_files(layout, cluster, bool(wanted.broker), layout.port(POSTGRES_PORT))
        found.append((_private(texts, "postgres"), stores.postgres_unit(layout, texts, about.postgres_major)))
    port, password = broker_port(layout, wanted.broker), secrets["broker_password"]
    if wanted.broker == "redis":
        texts = stores.redis_files(layout, cluster, port, password)
        found.append((_private(texts, "redis"), stores.redis_unit(layout, texts)))
    if wanted.broker == "rabbitmq":
        texts = stores.rabbitmq_files(layout, cluster, port, password)
        found.append((_private(texts, "rabbitmq"), stores.rabbitmq_unit(layout, texts)))
    if wanted.ha:
        texts = stores.haproxy_files(layout, cluster, layout.port(API_PORT), second.backends(cluster, layout))
        found.append((_private(texts, "haproxy"), stores.haproxy_unit(layout, texts)))
    return found


def _private(texts: Mapping[str, str], owner: str) -> dict[str, RemoteFile]:
    return {path: RemoteFile(text, owner, owner, "0400" if path.endswith(".erlang.cookie") else "0600") for path, text in texts.items()}


def folders(services: Collection[str]) -> dict[PurePosixPath, RemoteFolder]:
    """Return the folders of those stores that are among a node's services."""
    return {PurePosixPath(stores.FOLDERS[name]): RemoteFolder(name, name, "0700") for name in STORES if name in services}

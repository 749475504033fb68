"""What a variant should look like on the nodes: packages, files, units, and the installation file that describes it. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from provision import airflow
from provision.airflow import AIRFLOW_SERVICES, API_USER, Placement, Service
from provision.errors import ProvisionError, UsageError
from provision.home import REPOSITORY, LabHome
from provision.kube import git, manifests
from provision.kube import state as cluster_state
from provision.kube.state import Kubernetes
from provision.nodes import stores, units
from provision.nodes.layout import API_PORT, BACKEND_PORT, FLOWER_PORT, LOGS_PORT, POSTGRES_PORT, RABBITMQ_PORT, REDIS_PORT, USER, Layout
from provision.nodes.units import Unit
from provision.pins import airflow_lock, airflow_version
from provision.topology import Cluster, Node
from provision.variants import Wanted
from provision.workers import Worker

FILES = REPOSITORY / "provision" / "files"
STORES = ("postgres", "redis", "rabbitmq")
LOG_SERVER = "log-server-"
# The labs' own credentials for the cluster, in the folder of the installation.
KUBECONFIG = "kubeconfig"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a node."""

    text: str
    owner: str = "root"
    group: str = USER
    mode: str = "0640"

    @property
    def wanted(self) -> dict[str, str]:
        """What the node is asked to compare with: the digest instead of the text."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        return {"sha256": digest, "owner": self.owner, "group": self.group, "mode": self.mode}

    @property
    def document(self) -> dict[str, str]:
        """What the node is told to write."""
        return {"text": self.text, "owner": self.owner, "group": self.group, "mode": self.mode}


@dataclass(frozen=True)
class RemoteFolder:
    """One folder of a node."""

    owner: str = "root"
    group: str = "root"
    mode: str = "0755"

    @property
    def document(self) -> dict[str, str]:
        """What the node is told to make, and asked to compare with."""
        return {"owner": self.owner, "group": self.group, "mode": self.mode}


@dataclass(frozen=True)
class About:
    """What has to be known of the nodes before anything can be planned; the same on all of them."""

    python: str
    machine: str
    distribution: str

    @property
    def postgres_major(self) -> int:
        """The PostgreSQL that the distribution has; raises ProvisionError for one that was never tried."""
        try:
            return stores.POSTGRES_OF_DEBIAN[self.distribution]
        except KeyError:
            known = ", ".join(f"Debian {number}" for number in stores.POSTGRES_OF_DEBIAN)
            raise ProvisionError(f"The nodes run a system that is not known here ({self.distribution}).", f"use a box of {known}") from None


@dataclass(frozen=True)
class NodeState:
    """What one node should have."""

    node: Node
    packages: list[str]
    files: dict[str, RemoteFile]
    units: list[Unit]
    folders: dict[str, RemoteFolder] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    unwanted: list[str] = field(default_factory=list)
    # Users beside Airflow's: home and shell by name, None for one that should not be there.
    accounts: dict[str, dict[str, str] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Desired:
    """Everything that the installed variant should look like on the nodes."""

    wanted: Wanted
    cluster: Cluster
    layout: Layout
    about: About
    placement: Placement
    secrets: Mapping[str, str]
    environment: Mapping[str, str]
    nodes: dict[str, NodeState]
    certificates: str = ""
    kubernetes: Kubernetes | None = None

    @property
    def environment_path(self) -> PurePosixPath:
        """The folder of the Airflow environment; its name says what is in it."""
        return environment_path(self.layout, self.about)

    @property
    def database_mark(self) -> str:
        """What is written down once the database is made and migrated: for which Airflow, and with which password."""
        return f"{airflow_version()} {hashlib.sha256(self.secrets['database_password'].encode()).hexdigest()[:16]}\n"

    @property
    def database_mark_path(self) -> str:
        return f"{self.layout.migrated}/{self.wanted.variant.database}"

    @property
    def api_servers(self) -> dict[str, str]:
        """Return the address of each API server that stands behind HAProxy, by name; empty where there is none."""
        own = {"api-server": self.cluster.control, "api-server-2": _second_node(self.cluster)} if self.wanted.ha else {}
        return {name: f"http://{node.address}:{self.layout.port(BACKEND_PORT)}" for name, node in own.items()}

    def unit_of(self, service: str) -> tuple[str, str]:
        """Return node and unit of a service; raises KeyError if there is none of that name."""
        for state in self.nodes.values():
            for unit in state.units:
                if unit.service == service:
                    return state.node.name, unit.name
        raise KeyError(service)


def environment_path(layout: Layout, about: About) -> PurePosixPath:
    """Return the folder of the Airflow environment for this lock and these nodes."""
    digest = hashlib.sha256(airflow_lock().read_bytes() + f"{about.python} {about.machine}".encode()).hexdigest()[:12]
    return layout.software / f"airflow-{airflow_version()}-{digest}"


def check_names(workers: Collection[Worker], cluster: Cluster) -> None:
    """Raise UsageError for a worker that would take its name from a machine: on every node, a worker's name is one of its node's."""
    taken = {"localhost", "ip6-localhost", "ip6-loopback"} | {node.name for node in cluster.nodes if node not in cluster.workers}
    for worker in workers:
        if worker.name in taken:
            raise UsageError(
                f"A worker cannot be called {worker.name}: nodes find another machine by that name.",
                "choose another name, such as worker-4",
            )


def placed(workers: Collection[Worker], cluster: Cluster) -> dict[str, str]:
    """Return the node of each Celery worker: the one of the same name, else one worker node after another."""
    names = [node.name for node in cluster.workers]
    others = [worker.name for worker in workers if worker.name not in names]
    return {worker.name: worker.name for worker in workers if worker.name in names} | {
        name: names[position % len(names)] for position, name in enumerate(others)
    }


def desired_state(
    wanted: Wanted,
    cluster: Cluster,
    layout: Layout,
    about: About,
    secrets: Mapping[str, str],
    certificates: str = "",
    kubernetes: Kubernetes | None = None,
) -> Desired:
    """Return what the variant should look like on the nodes, which trust these certificates besides those of their distribution.

    `kubernetes` is the cluster of a variant that has one.
    """
    variant, control = wanted.variant, cluster.control
    placement = Placement(
        airflow_binary=Path(layout.current / "bin" / "airflow"),
        airflow_home=Path(layout.airflow_home),
        dags=Path(layout.dags),
        api_host=control.address,
        api_port=layout.port(API_PORT),
        database_url=_database_url(wanted, cluster, layout, secrets),
        broker_url=stores.broker_url(wanted.broker, control.address, _broker_port(layout, wanted.broker), secrets["broker_password"]),
        flower_port=layout.port(FLOWER_PORT) if "flower" in variant.services else 0,
        passwords_folder=Path(layout.passwords),
        **_pod_placement(layout, kubernetes),
    )
    environment = airflow.render_environment(variant, placement, secrets, wanted.changes)
    local_settings = "" if variant.as_shipped else (FILES / "airflow_local_settings.py").read_text()
    relevant = environment | {"airflow_local_settings.py": local_settings, "environment": str(environment_path(layout, about))}
    relevant |= _credentials(kubernetes, environment)
    common = _common_files(layout, environment, local_settings)
    check_names(wanted.workers, cluster)
    where = placed(wanted.workers, cluster)
    aliases = {node.name: [name for name, at in where.items() if at == node.name and name != node.name] for node in cluster.nodes}
    second = _second_node(cluster) if wanted.ha else None
    nodes = {}
    for node in cluster.nodes:
        files, own = dict(common), []
        if node == control:
            for texts, unit in _stores(wanted, cluster, layout, about, secrets):
                files |= texts
                own.append(unit)
            own += _control_units(layout, wanted, relevant, cluster)
        if wanted.ha and node == second:
            own += _second_units(layout, relevant, node)
        if node == control or (wanted.ha and node == second):
            files[str(placement.passwords_file)] = RemoteFile(json.dumps({API_USER: secrets["api_password"]}) + "\n", USER, USER, "0600")
        here = {worker.name: worker for worker in wanted.workers if where[worker.name] == node.name}
        # Wherever workers may come and go: the logs of those that left stay.
        if (wanted.broker or kubernetes) and node in cluster.workers and node != control:
            own.append(units.airflow_unit(layout, _log_server(node, layout), relevant, (), binary="uvicorn"))
        own += [units.worker_unit(layout, worker, relevant) for worker in here.values()]
        packages = stores.packages_for(variant.services, wanted.broker, node == control, wanted.ha)
        if kubernetes:
            packages += cluster_state.packages(node, kubernetes)
            texts = cluster_state.files(kubernetes, node, secrets["cluster_token"])
            files |= {path: RemoteFile(text, "root", group, mode) for path, (text, group, mode) in texts.items()}
            own.append(_cluster_unit(kubernetes, node, texts))
        files |= {unit.path: RemoteFile(unit.text, group="root", mode="0644") for unit in own}
        if not layout.instance:
            hosts = stores.hosts_file(cluster, node.name, aliases)
            files["/etc/hosts"] = RemoteFile(hosts, group="root", mode="0644")
            files["/etc/tmpfiles.d/airflow-labs.conf"] = RemoteFile(stores.hosts_at_boot(hosts), group="root", mode="0644")
            files["/etc/chrony/conf.d/airflow-labs.conf"] = RemoteFile(stores.chrony_file(cluster, node.name), group="root", mode="0644")
        unwanted, accounts = [path for path in _files_of_any_variant(layout, placement) if path not in files], {}
        if not layout.instance:
            unwanted += [path for path in cluster_state.unwanted(layout, kubernetes, node) if path not in files]
            accounts = cluster_state.accounts(kubernetes, node)
        folders = _folders(layout, own, kubernetes, node) | (_git_folders(kubernetes, node) if kubernetes else {})
        nodes[node.name] = NodeState(node, packages, files, own, folders, here, unwanted, accounts)
    return Desired(wanted, cluster, layout, about, placement, secrets, environment, nodes, certificates, kubernetes)


def _pod_placement(layout: Layout, kubernetes: Kubernetes | None) -> dict[str, str]:
    if kubernetes is None:
        return {}
    return {
        "kubeconfig": str(layout.configuration / "kubeconfig"),
        "pod_template": str(layout.configuration / "pod.yaml"),
        # With it, Airflow would put this image in the place of the template's, which changes with every DAG.
        "pod_image": "" if kubernetes.pods.dags == "image" else kubernetes.pods.image,
    }


def _credentials(kubernetes: Kubernetes | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what stands for the variable with the path of the executor's credentials in digests: the path and what is there.

    Whoever reads the variable reads the file once, at its start: those of another cluster must restart him.
    """
    variable = airflow.variable_name("kubernetes_executor.config_file")
    if kubernetes is None or not (text := kubernetes.kubeconfig()):
        return {}
    return {variable: f"{environment[variable]} {hashlib.sha256(text.encode()).hexdigest()}"}


def _cluster_unit(kubernetes: Kubernetes, node: Node, texts: Mapping[str, tuple[str, str, str]]) -> Unit:
    name, distribution = kubernetes.service(node), kubernetes.distribution
    # What is read once, at the start: objects and the pod template change while it runs.
    read = {path: text for path, (text, _, _) in texts.items() if path in (str(distribution.configuration), str(kubernetes.token_file()))}
    purpose = f"{distribution.title}, {'server' if node == kubernetes.cluster.control else 'agent'}: Kubernetes on this node"
    return units.cluster_unit(kubernetes.layout, name, purpose, cluster_state.unit_body(kubernetes, node), read)


def worker_text(worker: Worker) -> RemoteFile:
    """Return a worker's own file; in the timeline a worker goes by its name."""
    variables = airflow.worker_environment(worker) | {"AIRFLOW__CORE__HOSTNAME_CALLABLE": "lab_worker_name.worker_name"}
    return RemoteFile(airflow.render_environment_file(variables))


def _files_of_any_variant(layout: Layout, placement: Placement) -> list[str]:
    """Return the files that only some nodes of some variants have: what holds a password must not outlive its use."""
    broker = ("redis.conf", "rabbitmq.conf", "rabbitmq-definitions.json", "rabbitmq.env", "rabbitmq-plugins")
    names = ("postgresql.conf", "pg_hba.conf", *broker, "haproxy.cfg")
    earlier = f"{layout.airflow_home}/passwords.json"
    return [str(placement.passwords_file), earlier, *(f"{layout.configuration}/{name}" for name in names)]


def _git_folders(kubernetes: Kubernetes, node: Node) -> dict[str, RemoteFolder]:
    return {str(path): RemoteFolder("root", git.USER, "0750") for path in cluster_state.folders_of_git(kubernetes, node)}


def _folders(layout: Layout, own: Collection[Unit], kubernetes: Kubernetes | None, node: Node) -> dict[str, RemoteFolder]:
    """Return the folders of a node, outer ones first; root writes into none that belongs to Airflow's user."""
    written, read_only = RemoteFolder(USER, USER, "0750"), RemoteFolder("root", USER, "0750")
    services = {unit.service for unit in own}
    folders = {
        layout.software: RemoteFolder(),
        # Stores of other users have their files here, too.
        layout.configuration: RemoteFolder(),
        layout.configuration / "workers": read_only,
        layout.passwords: read_only,
        layout.airflow_home: read_only,
        layout.airflow_home / "config": read_only,
        layout.migrated: read_only,
        layout.dags: read_only,
        layout.specs: read_only,
        **{path: RemoteFolder(mode=mode) for path, mode in (cluster_state.folders(kubernetes, node) if kubernetes else {}).items()},
        **dict.fromkeys(layout.written, written),
        **{PurePosixPath(stores.FOLDERS[name]): RemoteFolder(name, name, "0700") for name in STORES if name in services},
    }
    return {str(path): folder for path, folder in folders.items()}


def _broker_port(layout: Layout, broker: str) -> int:
    return layout.port(REDIS_PORT if broker == "redis" else RABBITMQ_PORT)


def _database_url(wanted: Wanted, cluster: Cluster, layout: Layout, secrets: Mapping[str, str]) -> str:
    if wanted.variant.database == "sqlite":
        # A writer waits up to a minute for the one write lock, instead of the driver's five seconds.
        return f"sqlite:///{layout.sqlite_file}" + ("" if wanted.variant.as_shipped else "?timeout=60")
    # Celery's workers reach it over the network; without them, nobody but its own node does.
    address = cluster.control.address if wanted.broker else "127.0.0.1"
    return stores.database_url(address, layout.port(POSTGRES_PORT), secrets["database_password"])


def _common_files(layout: Layout, environment: Mapping[str, str], local_settings: str) -> dict[str, RemoteFile]:
    config, dags = layout.airflow_home / "config", REPOSITORY / "labs" / "dags"
    texts = {
        # Before the DAG file that imports them.
        config / "dag_spec.py": (dags / "dag_spec.py").read_text(),
        config / "dag_builder.py": (dags / "dag_builder.py").read_text(),
        config / "airflow_local_settings.py": local_settings,
        config / "lab_worker_name.py": (FILES / "lab_worker_name.py").read_text(),
        layout.dags / "probes.py": (dags / "probes.py").read_text(),
        layout.environment_file: airflow.render_environment_file(environment),
        # Airflow would make one itself, and may not write here.
        layout.airflow_home / "airflow.cfg": f"# Every setting is in {layout.environment_file}.\n",
    }
    return {str(path): RemoteFile(text) for path, text in texts.items()}


def _stores(
    wanted: Wanted, cluster: Cluster, layout: Layout, about: About, secrets: Mapping[str, str]
) -> list[tuple[dict[str, RemoteFile], Unit]]:
    found = []
    if "postgres" in wanted.variant.services:
        texts = stores.postgres_files(layout, cluster, bool(wanted.broker), layout.port(POSTGRES_PORT))
        found.append((_private(texts, "postgres"), stores.postgres_unit(layout, texts, about.postgres_major)))
    port, password = _broker_port(layout, wanted.broker), secrets["broker_password"]
    if wanted.broker == "redis":
        texts = stores.redis_files(layout, cluster, port, password)
        found.append((_private(texts, "redis"), stores.redis_unit(layout, texts)))
    if wanted.broker == "rabbitmq":
        texts = stores.rabbitmq_files(layout, cluster, port, password)
        found.append((_private(texts, "rabbitmq"), stores.rabbitmq_unit(layout, texts)))
    if wanted.ha:
        at = layout.port(BACKEND_PORT)
        backends = {"api-server": (cluster.control.address, at), "api-server-2": (_second_node(cluster).address, at)}
        texts = stores.haproxy_files(layout, cluster, layout.port(API_PORT), backends)
        found.append((_private(texts, "haproxy"), stores.haproxy_unit(layout, texts)))
    return found


def _private(texts: Mapping[str, str], owner: str) -> dict[str, RemoteFile]:
    return {path: RemoteFile(text, owner, owner, "0400" if path.endswith(".erlang.cookie") else "0600") for path, text in texts.items()}


def _control_units(layout: Layout, wanted: Wanted, relevant: Mapping[str, str], cluster: Cluster) -> list[Unit]:
    before = [name for name in (*wanted.variant.services, wanted.broker) if name in STORES]
    chosen = [service for service in AIRFLOW_SERVICES if service.name in wanted.variant.services]
    if wanted.ha:
        # HAProxy has the address that everybody knows.
        own = _backend_arguments(cluster.control, layout)
        chosen = [replace(s, arguments=(*s.arguments, *own)) if s.name == "api-server" else s for s in chosen]
    return [units.airflow_unit(layout, service, relevant, before) for service in chosen]


def _second_units(layout: Layout, relevant: Mapping[str, str], node: Node) -> list[Unit]:
    known = {service.name: service for service in AIRFLOW_SERVICES}
    api = replace(known["api-server"], name="api-server-2", arguments=("api-server", *_backend_arguments(node, layout)))
    scheduler = replace(known["scheduler"], name="scheduler-2")
    return [units.airflow_unit(layout, service, relevant, ()) for service in (api, scheduler)]


def _backend_arguments(node: Node, layout: Layout) -> tuple[str, ...]:
    return ("--host", node.address, "--port", str(layout.port(BACKEND_PORT)))


def _second_node(cluster: Cluster) -> Node:
    others = [node for node in cluster.workers if node != cluster.control]
    if not others:
        raise UsageError("A second scheduler wants a node of its own, and the cluster has none.", "add a worker node to the machine table")
    return others[0]


def _log_server(node: Node, layout: Layout) -> Service:
    # Airflow's own command for this listens on every interface (airflow/utils/serve_logs/core.py, 3.3.2).
    arguments = (
        "airflow.utils.serve_logs.log_server:get_app",
        "--factory",
        "--host",
        node.address,
        "--port",
        str(LOGS_PORT),
        "--no-access-log",
    )
    return Service(LOG_SERVER + node.name, arguments, "shows the API server the logs of tasks that ran here")


def installation_document(desired: Desired, home: LabHome, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of the installation file; `nodes` is what was measured of each machine."""
    wanted, placement, control = desired.wanted, desired.placement, desired.cluster.control
    database: dict[str, object] = {"kind": wanted.variant.database}
    if wanted.variant.database == "sqlite":
        database["file"] = str(desired.layout.sqlite_file)
    else:
        database |= {"host": control.address, "port": desired.layout.port(POSTGRES_PORT), "name": stores.DATABASE, "user": stores.ROLE}
    return {
        "schema": 1,
        "variant": wanted.variant.name,
        "summary": wanted.variant.summary,
        "target": "vagrant",
        "executor": wanted.variant.executor,
        "versions": {"airflow": airflow_version(), "python": desired.about.python},
        "api": {"url": placement.api_url, "user": API_USER, "credentials": str(home.secrets)},
        "database": database,
        "ha": wanted.ha,
        "dag_folder": str(desired.layout.dags),
        "spec_folder": str(desired.layout.specs),
        "task_logs": str(desired.layout.airflow_home / "logs"),
        "home": str(home.root),
        "settings": airflow.public_settings(wanted.variant, wanted.changes),
        "changes": dict(wanted.changes),
        **_celery_document(desired),
        "kubernetes": _kubernetes_document(desired, home),
        "services": [
            {
                "name": unit.service, "node": state.node.name, "log": f"journal of {unit.name}",
                "purpose": unit.text.splitlines()[1].partition("=")[2],
            }
            for state in desired.nodes.values() for unit in state.units
        ],
        "nodes": nodes,
    }  # fmt: skip


def _kubernetes_document(desired: Desired, home: LabHome) -> dict[str, Any] | None:
    kubernetes = desired.kubernetes
    if kubernetes is None:
        return None
    return asdict(desired.wanted.kubernetes) | {
        "namespace": manifests.NAMESPACE,
        "lab_namespace": manifests.LAB_NAMESPACE,
        "kubeconfig": str(home.root / KUBECONFIG),
        "pod_image": kubernetes.pods.image,
        "task_nodes": [node.name for node in kubernetes.task_nodes],
        **({"rancher": kubernetes.rancher.url} if kubernetes.rancher else {}),
    }


def _celery_document(desired: Desired) -> dict[str, Any]:
    wanted, address = desired.wanted, desired.cluster.control.address
    if not wanted.broker:
        return {"broker": None, "workers": [], "flower": None}
    where = placed(wanted.workers, desired.cluster)
    return {
        "broker": {"kind": wanted.broker, "host": address, "port": _broker_port(desired.layout, wanted.broker)},
        "workers": [worker.document() | {"node": where[worker.name]} for worker in wanted.workers],
        "flower": {"url": f"http://{address}:{desired.placement.flower_port}", "user": API_USER},
    }

"""What a variant should look like on the nodes: packages, files and units of each. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from provision import airflow
from provision.airflow import AIRFLOW_SERVICES, API_USER, Placement, Service
from provision.home import REPOSITORY
from provision.kube import on_nodes
from provision.kube import state as cluster_state
from provision.kube.state import Kubernetes
from provision.nodes import second, stores, units, variant_stores
from provision.nodes.celery import check_names, placed
from provision.nodes.layout import API_PORT, FLOWER_PORT, LOGS_PORT, USER, Layout
from provision.nodes.state import About, Desired, NodeState, RemoteFile, RemoteFolder, environment_path
from provision.nodes.units import Unit
from provision.topology import Cluster, Node
from provision.variants import Wanted

FILES = REPOSITORY / "provision" / "files"
LOG_SERVER = "log-server-"


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
    control = cluster.control
    placement = _placement(wanted, cluster, layout, secrets, kubernetes)
    environment = airflow.render_environment(wanted.variant, placement, secrets, wanted.changes)
    local_settings = "" if wanted.variant.as_shipped else (FILES / "airflow_local_settings.py").read_text()
    relevant = environment | {"airflow_local_settings.py": local_settings, "environment": str(environment_path(layout, about))}
    relevant |= on_nodes.credentials(kubernetes, environment)
    common = _common_files(layout, environment, local_settings)
    check_names(wanted.workers, cluster, wanted.variant.uses_kubernetes)
    where = placed(wanted.workers, cluster)
    aliases = {node.name: [name for name, at in where.items() if at == node.name and name != node.name] for node in cluster.nodes}
    other = second.second_node(cluster) if wanted.ha else None
    nodes = {}
    for node in cluster.nodes:
        files, own = dict(common), []
        if node == control:
            for texts, unit in variant_stores.files_and_units(wanted, cluster, layout, about, secrets):
                files |= texts
                own.append(unit)
            own += _control_units(layout, wanted, relevant, cluster)
        if node == other:
            own += second.second_units(layout, relevant, node)
        if node in (control, other):
            files[str(placement.passwords_file)] = RemoteFile(json.dumps({API_USER: secrets["api_password"]}) + "\n", USER, USER, "0600")
        here = {worker.name: worker for worker in wanted.workers if where[worker.name] == node.name}
        # Wherever workers may come and go: the logs of those that left stay.
        if (wanted.broker or kubernetes) and node in cluster.workers and node != control:
            own.append(units.airflow_unit(layout, _log_server(node, layout), relevant, (), binary="uvicorn"))
        own += [units.worker_unit(layout, worker, relevant) for worker in here.values()]
        packages = stores.packages_for(wanted.variant.services, wanted.broker, node == control, wanted.ha)
        if kubernetes:
            packages += cluster_state.packages(node, kubernetes)
            texts, unit = on_nodes.files_and_unit(kubernetes, node, secrets["cluster_token"])
            files |= texts
            own.append(unit)
        files |= {unit.path: RemoteFile(unit.text, group="root", mode="0644") for unit in own}
        if not layout.instance:
            files |= _machine_files(cluster, node, aliases)
        unwanted, accounts = [path for path in _files_of_any_variant(layout, placement) if path not in files], {}
        if not layout.instance:
            unwanted += [path for path in cluster_state.unwanted(layout, kubernetes, node) if path not in files]
            accounts = cluster_state.accounts(kubernetes, node)
        folders = _folders(layout, own, kubernetes, node) | (on_nodes.folders_of_git(kubernetes, node) if kubernetes else {})
        nodes[node.name] = NodeState(node, packages, files, own, folders, here, unwanted, accounts)
    return Desired(wanted, cluster, layout, about, placement, secrets, environment, nodes, certificates, kubernetes)


def _placement(wanted: Wanted, cluster: Cluster, layout: Layout, secrets: Mapping[str, str], kubernetes: Kubernetes | None) -> Placement:
    address = cluster.control.address
    return Placement(
        airflow_binary=Path(layout.current / "bin" / "airflow"),
        airflow_home=Path(layout.airflow_home),
        dags=Path(layout.dags),
        api_host=address,
        api_port=layout.port(API_PORT),
        database_url=variant_stores.database_url(wanted, cluster, layout, secrets),
        broker_url=stores.broker_url(wanted.broker, address, variant_stores.broker_port(layout, wanted.broker), secrets["broker_password"]),
        flower_port=layout.port(FLOWER_PORT) if "flower" in wanted.variant.services else 0,
        passwords_folder=Path(layout.passwords),
        **on_nodes.placement(layout, kubernetes),
    )


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


def _machine_files(cluster: Cluster, node: Node, aliases: Mapping[str, Sequence[str]]) -> dict[str, RemoteFile]:
    """Return what a node has once, for whichever installation: names and clock."""
    hosts = stores.hosts_file(cluster, node.name, aliases)
    texts = {
        "/etc/hosts": hosts,
        "/etc/tmpfiles.d/airflow-labs.conf": stores.hosts_at_boot(hosts),
        "/etc/chrony/conf.d/airflow-labs.conf": stores.chrony_file(cluster, node.name),
    }
    return {path: RemoteFile(text, group="root", mode="0644") for path, text in texts.items()}


def _files_of_any_variant(layout: Layout, placement: Placement) -> list[str]:
    """Return the files that only some nodes of some variants have: what holds a password must not outlive its use."""
    earlier = f"{layout.airflow_home}/passwords.json"
    return [str(placement.passwords_file), earlier, *(f"{layout.configuration}/{name}" for name in variant_stores.CONFIGURATIONS)]


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
        **(on_nodes.folders(kubernetes, node) if kubernetes else {}),
        **dict.fromkeys(layout.written, written),
        **variant_stores.folders(services),
    }
    return {str(path): folder for path, folder in folders.items()}


def _control_units(layout: Layout, wanted: Wanted, relevant: Mapping[str, str], cluster: Cluster) -> list[Unit]:
    before = [name for name in (*wanted.variant.services, wanted.broker) if name in variant_stores.STORES]
    chosen = [service for service in AIRFLOW_SERVICES if service.name in wanted.variant.services]
    if wanted.ha:
        # HAProxy has the address that everybody knows.
        own = second.backend_arguments(cluster.control, layout)
        chosen = [replace(s, arguments=(*s.arguments, *own)) if s.name == "api-server" else s for s in chosen]
    return [units.airflow_unit(layout, service, relevant, before) for service in chosen]


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

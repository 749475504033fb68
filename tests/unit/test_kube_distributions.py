"""K3s and RKE2: what each node is configured with, and where each of the two keeps its things."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
import yaml
from cluster_samples import ALONE, CLUSTER

from provision.errors import UsageError
from provision.kube.distributions import (
    CONTROL_TAINT,
    DISTRIBUTIONS,
    canal_manifest,
    configuration,
    distribution_named,
    require_memory,
)
from provision.pins import pins
from provision.topology import Cluster, Node
from provision.variants import DISTRIBUTIONS as NAMES

TOKEN_FILE = PurePosixPath("/etc/airflow-labs/kubernetes-token")
SOFTWARE = PurePosixPath("/opt/airflow-labs/x")
AIRFLOW_MIB = {"control": 1000, "worker-1": 0, "worker-2": 0}

every_distribution = pytest.mark.parametrize("name", DISTRIBUTIONS)
every_node = pytest.mark.parametrize("node", CLUSTER.nodes, ids=lambda node: node.name)


def configured(name: str, node: Node, cluster: Cluster = CLUSTER, interface: str = "eth7") -> dict:
    """Return a node's configuration as the distribution reads it."""
    return yaml.safe_load(configuration(DISTRIBUTIONS[name], cluster, node, interface, TOKEN_FILE))


def test_every_distribution_that_can_be_asked_for_is_known_and_pinned():
    assert set(NAMES) == set(DISTRIBUTIONS)
    for name in NAMES:
        assert distribution_named(name).name == name
        assert pins()[name]["version"].startswith("v1.")


def test_an_unknown_distribution_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match="Unknown distribution 'rke'") as refused:
        distribution_named("rke")
    assert "k3s, rke2" in refused.value.hint


@every_distribution
@every_node
def test_a_node_says_its_own_name_and_address(name, node):
    keys = configured(name, node)
    assert (keys["node-name"], keys["node-ip"]) == (node.name, node.address)


@every_node
def test_k3s_is_told_the_interface_of_the_nodes_own_network(node):
    assert configured("k3s", node)["flannel-iface"] == "eth7"
    assert "flannel-iface" not in configured("rke2", node)


def test_rke2_is_told_the_interface_in_its_networks_own_way():
    document = yaml.safe_load(canal_manifest("enp0s8"))
    assert (document["kind"], document["metadata"]) == ("HelmChartConfig", {"name": "rke2-canal", "namespace": "kube-system"})
    assert yaml.safe_load(document["spec"]["valuesContent"]) == {"flannel": {"iface": "enp0s8"}}


@every_distribution
@every_node
def test_the_token_is_in_a_file_of_its_own_and_in_no_configuration(name, node):
    keys = configured(name, node)
    assert keys["token-file"] == str(TOKEN_FILE)
    assert not {"token", "agent-token"} & set(keys)


@pytest.mark.parametrize(("name", "port"), [("k3s", 6443), ("rke2", 9345)])
def test_agents_join_the_server_at_its_private_address(name, port):
    for node in CLUSTER.workers:
        assert configured(name, node)["server"] == f"https://192.168.56.10:{port}"
    assert "server" not in configured(name, CLUSTER.control)


@every_distribution
def test_the_server_is_reached_at_its_private_address_only(name):
    keys = configured(name, CLUSTER.control)
    assert keys["advertise-address"] == "192.168.56.10"
    assert "192.168.56.10" in keys["tls-san"]


@every_distribution
def test_the_administrators_credentials_are_for_root_alone(name):
    assert configured(name, CLUSTER.control)["write-kubeconfig-mode"] == "0600"


@every_distribution
def test_keys_of_a_server_are_not_given_to_an_agent(name):
    # Both programs end with an error at a key that they do not know.
    for node in CLUSTER.workers:
        assert not {"advertise-address", "tls-san", "write-kubeconfig-mode", "disable", "node-taint"} & set(configured(name, node))


@every_distribution
def test_what_no_lab_uses_is_not_started(name):
    keys = configured(name, CLUSTER.control)
    assert keys["disable"] == list(DISTRIBUTIONS[name].without)
    assert not {"coredns", "rke2-coredns", "rke2-canal"} & set(keys["disable"])


@every_distribution
def test_tasks_stay_away_from_the_control_node_if_there_are_others(name):
    assert configured(name, CLUSTER.control)["node-taint"] == [CONTROL_TAINT]
    assert "node-taint" not in configured(name, ALONE.control, ALONE)


@every_distribution
@every_node
def test_images_are_never_deleted_to_make_room(name, node):
    assert "image-gc-high-threshold=100" in configured(name, node)["kubelet-arg"]


def test_the_two_share_no_folder():
    k3s, rke2 = DISTRIBUTIONS["k3s"], DISTRIBUTIONS["rke2"]
    for what in ("data", "configuration", "admin_kubeconfig", "images", "manifests", "join_token"):
        assert getattr(k3s, what) != getattr(rke2, what)
        assert f"/{k3s.name}" in str(getattr(k3s, what))


@pytest.mark.parametrize(
    ("name", "server", "agent"),
    [
        ("k3s", "/opt/airflow-labs/x/k3s server", "/opt/airflow-labs/x/k3s agent"),
        ("rke2", "/opt/airflow-labs/x/bin/rke2 server", "/opt/airflow-labs/x/bin/rke2 agent"),
    ],
)
def test_each_is_started_from_the_folder_of_its_artifacts(name, server, agent):
    distribution = DISTRIBUTIONS[name]
    assert (distribution.command(SOFTWARE, True), distribution.command(SOFTWARE, False)) == (server, agent)


@every_distribution
def test_the_tools_use_the_administrators_credentials_and_the_namespace_of_kubernetes(name):
    distribution = DISTRIBUTIONS[name]
    assert distribution.kubectl(SOFTWARE)[-2:] == ["--kubeconfig", f"/etc/rancher/{name}/{name}.yaml"]
    assert distribution.ctr(SOFTWARE)[-2:] == ["--namespace", "k8s.io"]
    assert distribution.kubectl(SOFTWARE)[0].startswith(("/opt/airflow-labs/x/", "/var/lib/rancher/rke2/bin/"))


def memory(control: int, worker: int) -> dict[str, int]:
    return {node.name: control if node == CLUSTER.control else worker for node in CLUSTER.nodes}


@pytest.mark.parametrize(
    ("name", "control", "worker"),
    # The machines of the table, as their programs see them; and the least that RKE2 takes.
    [("k3s", 2900, 1900), ("k3s", 2744, 461), ("rke2", 4587, 2765)],
)
def test_enough_memory_is_enough(name, control, worker):
    require_memory(DISTRIBUTIONS[name], CLUSTER, memory(control, worker), AIRFLOW_MIB)


def test_too_little_memory_is_refused_with_every_node_and_what_to_do():
    with pytest.raises(UsageError, match="too little memory for RKE2") as refused:
        require_memory(DISTRIBUTIONS["rke2"], CLUSTER, memory(2900, 1900), AIRFLOW_MIB)
    for node in CLUSTER.nodes:
        assert node.name in refused.value.message
    assert "2900 MiB, 5096 are wanted" in refused.value.message
    assert "memory_mib" in refused.value.hint
    assert "--distribution k3s" in refused.value.hint


def test_only_the_node_that_is_too_small_is_named():
    with pytest.raises(UsageError, match=r"worker-2 has 300 MiB, 512 are wanted\.") as refused:
        require_memory(DISTRIBUTIONS["k3s"], CLUSTER, memory(4096, 2048) | {"worker-2": 300}, AIRFLOW_MIB)
    assert "worker-1" not in refused.value.message
    assert "--distribution" not in refused.value.hint
    assert "Celery" not in refused.value.hint


def test_what_airflow_wants_counts_on_the_node_where_it_is():
    with pytest.raises(UsageError, match=r": worker-2 has 700 MiB, 962 are wanted\.") as refused:
        require_memory(DISTRIBUTIONS["k3s"], CLUSTER, memory(2900, 700), AIRFLOW_MIB | {"worker-2": 450})
    assert "worker-1" not in refused.value.message
    assert "fewer Celery workers" in refused.value.hint

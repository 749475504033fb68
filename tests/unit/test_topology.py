"""The machine table: addresses follow the network, and what is wrong is named with its file and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from provision.errors import ProvisionError, UsageError
from provision.topology import CLUSTER_VARIABLE, NETWORK_VARIABLE, TABLE, parse_cluster, read_cluster


def node(**changes):
    """Return a node's entry in the table that is right but for the changes; None removes a key."""
    entry = {"name": "control", "roles": ["control"], "host": 10, "cpus": 2, "memory_mib": 3072, **changes}
    return {key: value for key, value in entry.items() if value is not None}


def worker(**changes):
    return node(**{"name": "worker-1", "roles": ["worker"], "host": 11, **changes})


def table(*nodes, network="192.168.56.0/24"):
    return yaml.safe_dump({"network": network, "nodes": list(nodes)})


def refused(text: str, network: str | None = None) -> str:
    with pytest.raises(ProvisionError) as error:
        parse_cluster(text, "/somewhere/cluster.yaml", network)
    assert error.value.hint, "the error does not say what to do"
    return error.value.message


def test_the_table_that_comes_with_the_labs_has_a_control_node_and_two_workers():
    cluster = read_cluster()
    assert cluster.network == "192.168.56.0/24"
    assert cluster.control.address == "192.168.56.10"
    assert [(n.name, n.address) for n in cluster.workers] == [("worker-1", "192.168.56.11"), ("worker-2", "192.168.56.12")]


def test_the_table_that_comes_with_the_labs_fits_into_8_gib():
    assert read_cluster().memory_mib <= 7 * 1024


def test_a_node_is_found_by_its_name_and_an_unknown_one_lists_the_others():
    cluster = read_cluster()
    assert cluster.node("worker-2") is cluster.nodes[2]
    with pytest.raises(UsageError, match="control, worker-1, worker-2"):
        cluster.node("worker-3")


def test_another_network_moves_every_node(monkeypatch):
    monkeypatch.setenv(NETWORK_VARIABLE, "10.11.12.0/24")
    assert [n.address for n in read_cluster().nodes] == ["10.11.12.10", "10.11.12.11", "10.11.12.12"]


def test_host_numbers_count_from_the_start_of_any_network():
    cluster = parse_cluster(table(node(host=2), worker(host=300), network="10.20.0.0/16"), "a table")
    assert [n.address for n in cluster.nodes] == ["10.20.0.2", "10.20.1.44"]


def test_another_table_can_be_named(monkeypatch, tmp_path):
    (tmp_path / "other.yaml").write_text(table(node(name="big", cpus=8)))
    monkeypatch.setenv(CLUSTER_VARIABLE, str(tmp_path / "other.yaml"))
    assert [(n.name, n.cpus) for n in read_cluster().nodes] == [("big", 8)]


def test_a_cluster_of_one_node_is_allowed_and_may_be_its_own_worker():
    cluster = parse_cluster(table(node(roles=["control", "worker"])), "a table")
    assert cluster.workers == (cluster.control,)


def test_a_table_that_is_not_there_is_named_with_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv(CLUSTER_VARIABLE, str(tmp_path / "gone.yaml"))
    with pytest.raises(ProvisionError, match=r"gone\.yaml cannot be read: No such file") as error:
        read_cluster()
    assert CLUSTER_VARIABLE in error.value.hint


def test_a_table_that_is_not_text_is_refused(monkeypatch, tmp_path):
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xfe\x00\x01")
    monkeypatch.setenv(CLUSTER_VARIABLE, str(tmp_path / "picture.yaml"))
    with pytest.raises(ProvisionError, match="it is not text"):
        read_cluster()


WHOLE = TABLE.read_text()


@pytest.mark.parametrize("length", range(0, len(WHOLE) - 1, 7))
def test_a_half_written_table_is_refused_or_read_as_far_as_it_is_whole(length):
    part = WHOLE[:length]
    try:
        nodes = parse_cluster(part, "/somewhere/cluster.yaml").nodes
    except ProvisionError:
        refused(part)
    else:
        assert nodes == read_cluster().nodes[: len(nodes)]


def test_wrong_yaml_is_refused_with_its_line():
    assert "cluster.yaml, line 4 is not valid YAML" in refused("network: 192.168.56.0/24\nnodes:\n  - {name: control, roles: [\n")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "the table does not have keys and values"),
        ("- a\n- b\n", "the table does not have keys and values"),
        ("nodes: []\n", "network is missing"),
        ("network: 192.168.56.0/24\n", "nodes is missing"),
        ("network: 192.168.56.0/24\nnodes: []\n", "nodes is not a list of machines"),
        ("network: 192.168.56.0/24\nnodes: 3\n", "nodes is not a list of machines"),
        ("network: 192.168.56.0/24\nnodes: []\nprovider: docker\n", "provider is not a known key"),
        (table(node(), "worker-1"), "nodes[1] does not have keys and values"),
        (table(node(memory_mib=None)), "nodes[0].memory_mib is missing"),
        (table(node(), worker(memory=2048)), "nodes[1].memory is not a known key"),
    ],
)
def test_a_missing_or_unknown_key_is_named(text, named):
    assert refused(text).startswith(f"/somewhere/cluster.yaml: {named}")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "Control"}, "nodes[0].name = 'Control' is not a host name"),
        ({"name": "my node"}, "nodes[0].name = 'my node' is not a host name"),
        ({"name": "-control"}, "nodes[0].name = '-control' is not a host name"),
        ({"name": "control.lab"}, "nodes[0].name = 'control.lab' is not a host name"),
        ({"name": "a\n"}, "nodes[0].name"),
        ({"name": "a" * 64}, "nodes[0].name"),
        ({"name": 7}, "nodes[0].name = 7 is not a host name"),
        ({"roles": "control"}, "nodes[0].roles = 'control' of control is not a list of roles"),
        ({"roles": []}, "nodes[0].roles = [] of control"),
        ({"roles": ["master"]}, "nodes[0].roles = ['master'] of control"),
        ({"roles": [["control"]]}, "nodes[0].roles"),
        ({"roles": ["control", "control"]}, "nodes[0].roles"),
        ({"host": 0}, "nodes[0].host = 0 of control is not a free address of 192.168.56.0/24"),
        ({"host": 1}, "nodes[0].host = 1 of control"),
        ({"host": 255}, "nodes[0].host = 255 of control"),
        ({"host": 256}, "nodes[0].host = 256 of control"),
        ({"host": -2}, "nodes[0].host = -2 of control"),
        ({"host": "10"}, "nodes[0].host = '10' of control"),
        ({"host": True}, "nodes[0].host = True of control"),
        ({"cpus": 0}, "nodes[0].cpus = 0 of control is not a whole number from 1 to 64"),
        ({"cpus": 1.5}, "nodes[0].cpus = 1.5 of control"),
        ({"cpus": 1000}, "nodes[0].cpus = 1000 of control"),
        ({"memory_mib": 3}, "nodes[0].memory_mib = 3 of control is not a whole number from 512"),
        ({"memory_mib": "3g"}, "nodes[0].memory_mib = '3g' of control"),
    ],
)
def test_a_value_that_is_not_sensible_is_named_with_its_node(changes, named):
    assert refused(table(node(**changes))).startswith(f"/somewhere/cluster.yaml: {named}")


@pytest.mark.parametrize(
    "network",
    [
        "192.168.56.0",
        "192.168.56.1/24",
        "192.168.56.0/33",
        "10.0.0.0/8",
        "192.168.56.0/30",
        "8.8.8.0/24",
        "127.0.0.0/24",
        "fd00::/64",
        5,
        None,
    ],
)
def test_a_network_that_cannot_hold_the_cluster_is_refused(network):
    assert refused(table(node(), network=network)).startswith("/somewhere/cluster.yaml: network = ")


def test_a_wrong_network_in_the_environment_is_said_of_the_environment():
    assert refused(table(node()), "10.11.12").startswith(f"the environment: {NETWORK_VARIABLE} = '10.11.12' is not an IPv4 network")


def test_a_network_in_the_environment_in_which_a_host_number_does_not_fit_is_refused():
    assert "nodes[0].host = 20 of control is not a free address of 10.11.12.0/28" in refused(table(node(host=20)), "10.11.12.0/28")


def test_two_nodes_with_one_name_are_refused():
    assert "two nodes with the name control" in refused(table(node(), worker(name="control")))


def test_two_nodes_with_one_address_are_refused():
    assert "two nodes with the address 192.168.56.10" in refused(table(node(), worker(host=10)))


@pytest.mark.parametrize("nodes", [[worker()], [node(), worker(roles=["control"])]], ids=["none", "two"])
def test_there_is_exactly_one_control_node(nodes):
    assert "with the role control" in refused(table(*nodes))


def test_a_random_file_does_not_crash_the_reader():
    for path in (Path(__file__), TABLE.parent / "pins.toml", TABLE.parent / "nodes" / "Dockerfile"):
        assert refused(path.read_text())

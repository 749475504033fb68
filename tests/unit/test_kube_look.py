"""What nodes and kubectl print, read without a node: a table answers in their place."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cluster_samples import ACCOUNTS, CLUSTER, DIGEST, blank, kubernetes

from provision.errors import ProvisionError
from provision.kube import look as looking
from provision.kube.describe import lab_kubeconfig
from provision.kube.look import archived, image_digest, interface_of, interfaces, ready_nodes

IMAGE = kubernetes().pods.image
LISTED = f"""\
REF                                          TYPE                                       DIGEST                     SIZE      PLATFORMS   LABELS
docker.io/rancher/mirrored-pause:3.6         application/vnd.docker.distribution.list   sha256:{"c" * 64} 294.7 KiB linux/amd64 -
{IMAGE}-other application/vnd.oci.image.manifest.v1+json {DIGEST.replace("a", "b")} 800.0 MiB linux/amd64 -
{IMAGE} application/vnd.oci.image.manifest.v1+json {DIGEST} 800.0 MiB linux/amd64 io.cri-containerd.image=managed
"""
ADDRESSES = [
    {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
    {"ifname": "eth0", "addr_info": [{"local": "10.0.2.15"}]},
    {"ifname": "cni0"},
    {"ifname": "eth1", "addr_info": [{"local": "192.168.56.1"}, {"local": "192.168.56.11"}]},
]


class Node:
    """A node that answers what is in a table, by the words of what it is asked; anything else ends with an error."""

    def __init__(self, name: str, answers: dict[str, str]) -> None:
        self.name, self._answers, self.asked = name, answers, []

    def call(self, op: str, argv: list[str], check: bool = True, text: str = "") -> dict[str, Any]:
        assert op == "ask"
        self.asked.append(argv)
        for words, out in self._answers.items():
            if words in " ".join(argv):
                return {"code": 0, "out": out, "err": ""}
        return {"code": 1, "out": "", "err": "The connection to the server was refused"}


class Each:
    """Several of them."""

    def __init__(self, *nodes: Node) -> None:
        self._nodes = nodes

    def each(self, work: Any, names: list[str] | None = None) -> dict[str, Any]:
        return {node.name: work(node) for node in self._nodes}


def shown(*nodes: tuple[str, str]) -> str:
    """Return what kubectl prints of nodes and whether each is ready."""
    items = [
        {
            "metadata": {"name": name},
            "status": {"conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]},
        }
        for name, ready in nodes
    ]
    return json.dumps({"items": items})


@pytest.mark.parametrize(
    ("address", "interface"), [("192.168.56.11", "eth1"), ("10.0.2.15", "eth0"), ("192.168.56.1", "eth1"), ("192.168.56.12", ""), ("", "")]
)
def test_the_interface_is_the_one_that_has_the_address(address, interface):
    assert interface_of(address, ADDRESSES) == interface


def test_every_node_is_asked_for_its_own_interface():
    other = [{"ifname": "enp0s8", "addr_info": [{"local": "192.168.56.12"}]}]
    nodes = Each(Node("worker-1", {"ip -json": json.dumps(ADDRESSES)}), Node("worker-2", {"ip -json": json.dumps(other)}))
    found = interfaces({node.name: node.address for node in CLUSTER.nodes}, nodes)
    assert found == {"worker-1": "eth1", "worker-2": "enp0s8"}


@pytest.mark.parametrize(
    ("reference", "digest"), [(IMAGE, DIGEST), (f"{IMAGE}-other", DIGEST.replace("a", "b")), (IMAGE[:-1], ""), ("REF:TYPE", "")]
)
def test_the_digest_is_that_of_exactly_this_image(reference, digest):
    assert image_digest(reference, LISTED) == digest


def test_no_image_has_no_digest():
    assert image_digest(IMAGE, "") == ""
    assert image_digest(IMAGE, LISTED.splitlines()[0]) == ""


@pytest.mark.parametrize(("there", "digest"), [(["x.tar"], DIGEST), ([], "")], ids=["with its archive", "without"])
def test_a_digest_without_its_archive_is_not_believed(there, digest):
    class Control:
        def call(self, op: str, **args: str) -> Any:
            return {"names_in": there, "read": f"{DIGEST}\n"}[op]

    assert archived(kubernetes(), Control()) == digest


@pytest.mark.parametrize(
    ("nodes", "ready"),
    [
        ((("control", "True"), ("worker-1", "True")), {"control", "worker-1"}),
        ((("control", "True"), ("worker-1", "False"), ("worker-2", "Unknown")), {"control"}),
        ((), set()),
    ],
)
def test_only_nodes_that_say_so_are_ready(nodes, ready):
    assert ready_nodes(kubernetes(), Node("control", {"get nodes": shown(*nodes)})) == ready


def test_a_node_that_has_just_joined_says_nothing_yet():
    answer = json.dumps({"items": [{"metadata": {"name": "worker-1"}, "status": {}}]})
    assert ready_nodes(kubernetes(), Node("control", {"get nodes": answer})) == frozenset()


def test_a_server_that_does_not_answer_has_no_ready_nodes():
    assert ready_nodes(kubernetes(), Node("control", {})) == frozenset()


def test_the_server_is_asked_with_a_time_limit_and_the_administrators_credentials():
    node = Node("control", {})
    ready_nodes(kubernetes(), node)
    assert any("--request-timeout" in word for word in node.asked[0])
    assert "/etc/rancher/k3s/k3s.yaml" in node.asked[0]


def secret(token: str | None) -> str:
    data = {"ca.crt": "Y2E=", "token": base64.b64encode(token.encode()).decode()} if token else None
    return json.dumps({"metadata": {"name": "x"}, "data": data})


def test_tokens_of_accounts_are_read_from_their_secrets():
    answers = {f"get secret {name}-credentials": secret(token) for name, token in ACCOUNTS.items()}
    assert looking._accounts(kubernetes(), Node("control", answers)) == ("Y2E=", ACCOUNTS)


def test_a_secret_that_is_not_filled_in_yet_is_none():
    (first, token), (second, _) = ACCOUNTS.items()
    answers = {f"get secret {first}-credentials": secret(token), f"get secret {second}-credentials": secret(None)}
    assert looking._accounts(kubernetes(), Node("control", answers)) == ("Y2E=", {first: token})
    assert looking._accounts(kubernetes(), Node("control", {})) == ("", {})


def test_the_labs_get_their_own_credentials_or_are_told_how_to_get_some():
    assert ACCOUNTS["airflow-lab"] in lab_kubeconfig(kubernetes())
    assert ACCOUNTS["airflow-executor"] not in lab_kubeconfig(kubernetes())
    with pytest.raises(ProvisionError, match="no credentials for the labs") as refused:
        lab_kubeconfig(kubernetes(seen=blank()))
    assert refused.value.hint == "fab install kubernetes --target vagrant"

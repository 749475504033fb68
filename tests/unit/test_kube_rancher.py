"""Rancher's management UI: what the server is handed, which machines and clusters are refused, and when it is ready."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from cluster_samples import ALONE, CLUSTER, ENVIRONMENT, SECRETS, artifacts, interfaces, kubernetes
from nodes_samples import fulfilled, steps

from provision.errors import ProvisionError, UsageError
from provision.home import lab_home
from provision.kube import describe, install, rancher
from provision.kube.describe import described
from provision.kube.distributions import DISTRIBUTIONS, configuration
from provision.kube.install import send_artifacts, wait_for_rancher
from provision.kube.plan import ClusterStep
from provision.kube.rancher import Rancher, from_document, from_folder, from_internet, is_ready, manifest, unready
from provision.kube.state import Kubernetes
from provision.nodes.desired import desired_state
from provision.nodes.document import installation_document
from provision.nodes.layout import Layout
from provision.nodes.state import About, Desired
from provision.pins import pins
from provision.topology import TABLE, Cluster
from provision.variants import KubernetesOptions, wanted, wanted_again

WORD = "the-first-password"
RANCHER, MANAGER = (f"{name}-{pins()[name]['version']}.tgz" for name in ("rancher", "cert-manager"))
CHARTS = {RANCHER: b"chart of Rancher", MANAGER: b"chart of cert-manager"}

every_distribution = pytest.mark.parametrize("name", DISTRIBUTIONS)


def asked_for(name: str = "k3s") -> Rancher:
    """Return Rancher from the internet with a password."""
    return replace(from_internet(name, CLUSTER), password=WORD)


def put(folder: Path, *names: str) -> Path:
    """Return a folder with the charts and with files of these names."""
    folder.mkdir(exist_ok=True)
    for name in (*CHARTS, *names):
        (folder / name).write_bytes(CHARTS.get(name, b"something"))
    return folder


def offline(folder: Path) -> Rancher:
    return from_folder(folder, "k3s", CLUSTER, folder.parent / "checksums.json")


def documents(chosen: Rancher, cluster: Cluster = CLUSTER) -> dict[tuple[str, str], dict]:
    """Return the objects that the server applies, by kind and name, in their order."""
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(manifest(chosen, cluster))}


def values(chosen: Rancher, name: str = "rancher", cluster: Cluster = CLUSTER) -> dict:
    return yaml.safe_load(documents(chosen, cluster)["HelmChart", name]["spec"]["valuesContent"])


# -- what the server is handed --------------------------------------------------------------------


def test_charts_are_named_by_their_repositories_and_cert_manager_comes_first():
    found = [each for (kind, _), each in documents(asked_for()).items() if kind == "HelmChart"]
    assert [(each["spec"]["chart"], each["spec"]["version"], each["spec"]["repo"]) for each in found] == [
        ("cert-manager", pins()["cert-manager"]["version"], "https://charts.jetstack.io"),
        ("rancher", pins()["rancher"]["version"], "https://releases.rancher.com/server-charts/stable"),
    ]
    assert [each["spec"]["targetNamespace"] for each in found] == ["cert-manager", "cattle-system"]
    assert {each["metadata"]["namespace"] for each in documents(asked_for()).values()} == {"kube-system"}
    assert all(each["spec"]["createNamespace"] for each in found)
    assert values(asked_for(), "cert-manager") == {"crds": {"enabled": True}}


def test_rancher_runs_once_on_the_control_node_whose_address_its_name_leads_to():
    found = values(asked_for())
    assert (found["hostname"], found["replicas"]) == ("rancher.192-168-56-10.sslip.io", 1)
    assert found["extraTolerations"] == [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"}]
    assert found["extraNodeSelectorTerms"] == [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["control"]}]
    assert asked_for().url == "https://rancher.192-168-56-10.sslip.io/"
    assert "useBundledSystemChart" not in found


@every_distribution
def test_the_password_is_in_a_secret_and_nowhere_else(name):
    found = documents(asked_for(name))
    secret = found.pop(("Secret", "airflow-labs-rancher"))
    assert yaml.safe_load(secret["stringData"]["values.yaml"]) == {"bootstrapPassword": WORD}
    assert WORD not in json.dumps(list(found.values()))
    assert found["HelmChart", "rancher"]["spec"]["valuesSecrets"] == [{"name": "airflow-labs-rancher", "keys": ["values.yaml"]}]
    assert WORD not in repr(asked_for(name))
    assert WORD not in json.dumps(asked_for(name).document())


def test_the_ingress_of_rke2_is_let_onto_the_control_node():
    found = yaml.safe_load(documents(asked_for("rke2"))["HelmChartConfig", "rke2-traefik"]["spec"]["valuesContent"])
    assert found["tolerations"] == values(asked_for("rke2"))["extraTolerations"]
    assert not [kind for kind, _ in documents(asked_for()) if kind == "HelmChartConfig"]


# -- from a folder --------------------------------------------------------------------------------


def test_charts_of_a_folder_are_handed_over_themselves(tmp_path):
    chosen = offline(put(tmp_path / "here"))
    for file, (name, content) in zip(CHARTS, (("rancher", CHARTS[RANCHER]), ("cert-manager", CHARTS[MANAGER])), strict=True):
        spec = documents(chosen)["HelmChart", name]["spec"]
        assert base64.b64decode(spec["chartContent"]) == content, file
        assert not {"repo", "version", "chart"} & set(spec)
    assert values(chosen)["useBundledSystemChart"] is True


def test_without_a_name_service_the_name_is_the_nodes(tmp_path):
    assert offline(put(tmp_path / "here")).url == "https://control/"


@pytest.mark.parametrize("missing", [[RANCHER], [MANAGER], [MANAGER, RANCHER]], ids=["rancher", "cert-manager", "both"])
def test_a_chart_that_is_not_in_the_folder_is_named_with_where_to_get_it(tmp_path, missing):
    folder = put(tmp_path / "here")
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(UsageError, match=re.escape(f"has no {' and no '.join(missing)}.")) as refused:
        offline(folder)
    assert str(folder) in refused.value.message
    for name in missing:
        chart, _, version = name.removesuffix(".tgz").rpartition("-")
        assert f"helm pull {chart} --repo {pins()[chart]['repository']} --version {version}" in refused.value.hint


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=f"There is no folder {tmp_path}/nowhere"):
        offline(tmp_path / "nowhere")


def test_archives_of_images_go_to_every_node_but_the_distributions_own_do_not_go_twice(tmp_path):
    own = ("k3s", "k3s-airgap-images-amd64.tar.zst", "rke2.linux-amd64.tar.gz", "sha256sum-amd64.txt")
    more = ("cert-manager-images.tar.gz", "rancher-images.tar.zst", "rke2-images-traefik.linux-amd64.tar.zst")
    chosen = offline(put(tmp_path / "here", *own, *more))
    assert [image.path.name for image in chosen.images] == list(more)
    assert {image.role for image in chosen.images} == {"images"}


def test_what_is_remembered_is_what_was_chosen(tmp_path):
    chosen = replace(offline(put(tmp_path / "here", "images.tar")), password=WORD)
    assert from_document(json.loads(json.dumps(chosen.document())), WORD) == chosen


def test_charts_are_pinned_until_the_pins_change(tmp_path):
    chosen = offline(put(tmp_path / "here"))
    assert chosen.is_pinned
    assert not replace(chosen, charts=(replace(chosen.charts[0], version="v0.1"), *chosen.charts[1:])).is_pinned


# -- on the nodes ---------------------------------------------------------------------------------


def desired(name: str = "k3s", chosen: Rancher | None = None) -> Desired:
    """Return the desired state of the nodes, with Rancher if it is given."""
    known = kubernetes(name, rancher=chosen)
    options = KubernetesOptions(distribution=name)
    return desired_state(
        wanted("kubernetes", kubernetes=options), CLUSTER, Layout(), About("3.11", "x86_64", "12"), SECRETS, kubernetes=known
    )


def path(name: str) -> str:
    return f"/var/lib/rancher/{name}/server/manifests/airflow-labs-rancher.yaml"


@every_distribution
def test_the_server_is_handed_the_manifest_for_root_alone_and_agents_are_not(name):
    found = desired(name, asked_for(name)).nodes
    file = found["control"].files[path(name)]
    assert (file.text, file.owner, file.group, file.mode) == (manifest(asked_for(name), CLUSTER), "root", "root", "0600")
    assert f"/var/lib/rancher/{name}/server/manifests" in found["control"].folders
    for worker in CLUSTER.workers:
        assert path(name) not in found[worker.name].files
        assert WORD not in json.dumps([each.text for each in found[worker.name].files.values()])


@every_distribution
def test_a_manifest_that_nobody_asked_for_does_not_outlive_its_use(name):
    for of in DISTRIBUTIONS:
        assert path(of) in desired(name).nodes["control"].unwanted
    assert path(name) not in desired(name, asked_for(name)).nodes["control"].unwanted


@every_distribution
def test_the_second_install_changes_nothing(name):
    state = desired(name, asked_for(name))
    assert steps(state, fulfilled(state)) == set()
    assert desired(name, asked_for(name)) == state


@every_distribution
def test_asking_for_it_restarts_the_server_and_no_agent(name):
    before = fulfilled(desired(name))
    assert steps(desired(name, asked_for(name)), before) == {("control", "restart", f"{name}-control")}


def test_images_of_rancher_are_part_of_what_every_node_is_sent(tmp_path, monkeypatch):
    chosen, nodes = offline(put(tmp_path / "here", "images.tar")), SimpleNamespace(each=lambda work: dict.fromkeys(interfaces(), 16384))
    monkeypatch.setattr(describe, "_artifacts", lambda *known: artifacts())
    monkeypatch.setattr(describe, "interfaces", lambda addresses, nodes: interfaces())
    monkeypatch.setattr(describe, "look", lambda blank, nodes: blank.seen)

    def known(with_it: Rancher | None) -> Kubernetes:
        asked = wanted("kubernetes")
        return described(asked, CLUSTER, Layout(), ENVIRONMENT, "x86_64", nodes, lab_home(), print, "token", rancher=with_it)

    assert [file.path.name for file in known(chosen).artifacts.of_role("images")] == ["images.tar.zst", "images.tar"]
    assert known(chosen).rancher == chosen
    assert known(chosen).software != known(None).software
    assert known(asked_for()).software == known(None).software


def test_images_that_are_gone_are_named_before_anything_is_sent(tmp_path):
    plain = kubernetes()
    (tmp_path / "k3s").touch()
    files = (replace(plain.artifacts.files[0], path=tmp_path / "k3s"), replace(plain.artifacts.files[1], path=tmp_path / "images.tar"))
    with pytest.raises(ProvisionError, match=f"{tmp_path}/images.tar is not there any more, and worker-1 needs it") as refused:
        send_artifacts(
            replace(plain, artifacts=replace(plain.artifacts, files=files)),
            [ClusterStep("worker-1", "send", "K3s", "")],
            {},
            tmp_path,
            print,
        )
    assert "--artifacts DIR" in refused.value.hint


KEYS = {
    "k3s": ({"disable": ["metrics-server", "local-storage"]}, {"disable-helm-controller": True}),
    "rke2": ({"ingress-controller": "traefik"}, {}),
}


@every_distribution
def test_the_helm_controller_and_an_ingress_run_only_where_rancher_is_asked_for(name):
    def keys(node, has_charts: bool) -> dict:
        token = Layout().configuration / "kubernetes-token"
        return yaml.safe_load(configuration(DISTRIBUTIONS[name], CLUSTER, node, "eth0", token, has_charts))

    with_charts, without = keys(CLUSTER.control, True), keys(CLUSTER.control, False)
    added, only_without = KEYS[name]
    assert added.items() <= with_charts.items()
    assert only_without.items() <= without.items()
    assert not only_without.keys() & with_charts.keys()
    assert not {"traefik", "servicelb", "rke2-traefik"} & set(with_charts["disable"])
    assert {"k3s": "traefik", "rke2": "rke2-traefik"}[name] in without["disable"]
    assert "rke2-ingress-nginx" in with_charts["disable"] or name == "k3s"
    for worker in CLUSTER.workers:
        assert keys(worker, True) == keys(worker, False)


def test_the_installation_file_says_where_it_is_and_not_its_password():
    with_it, without = (installation_document(desired(chosen=chosen), lab_home(), []) for chosen in (asked_for(), None))
    assert with_it["kubernetes"]["rancher"] == asked_for().url
    assert "rancher" not in without["kubernetes"]
    assert WORD not in json.dumps(with_it)
    assert wanted_again(with_it) == wanted_again(without)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory", "cores"), [(16384, 4), (14900, 8), (65536, 16)])
def test_a_machine_that_is_large_enough_is_taken(memory, cores):
    rancher.require_machine(CLUSTER.control, memory, cores, TABLE)


@pytest.mark.parametrize(
    ("memory", "cores", "words"),
    [
        (2950, 4, ["control has 2950 MiB of memory, 16384 are needed"]),
        (16384, 2, ["control has 2 cores, 4 are needed"]),
        (2950, 2, ["2950 MiB", "2 cores"]),
    ],
)
def test_a_machine_that_is_too_small_is_refused_with_the_line_to_change(memory, cores, words):
    with pytest.raises(UsageError, match="too small for Rancher") as refused:
        rancher.require_machine(CLUSTER.control, memory, cores, TABLE)
    assert all(word in refused.value.message for word in words)
    number = int(re.search(rf"in {re.escape(str(TABLE))}, line (\d+), give control memory_mib: 16384", refused.value.hint)[1])
    assert "name: control," in TABLE.read_text().splitlines()[number - 1]


@pytest.mark.parametrize(
    "refuse",
    [
        lambda: rancher.require_machine(CLUSTER.control, 2950, 2, TABLE, "multiple"),
        lambda: rancher.require_supported("v1.21.2+k3s1", "multiple"),
        lambda: rancher.require_supported("", "multiple"),
    ],
    ids=["too small", "too old", "no answer"],
)
def test_what_is_refused_does_not_lead_to_another_variant_than_the_installed_one(refuse):
    with pytest.raises((UsageError, ProvisionError)) as refused:
        refuse()
    assert "fab install multiple --target vagrant" in refused.value.hint
    assert "kubernetes" not in refused.value.hint


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("nodes:\n- {name: control-2}\n- {name: control, host: 10}\n", ", line 3"),
        ("nodes:\n- roles: [control]\n  name: control\n", ", line 3"),
        ('{"nodes": [{"name": "control"}]}', ""),
    ],
)
def test_the_line_of_a_node_is_found_or_not_told(text, where):
    assert rancher._line_of(CLUSTER.control, text) == where


@pytest.mark.parametrize("version", ["v1.34.0+k3s1", "v1.35.8+rke2r1", "v1.36.4+k3s1", pins()["k3s"]["version"], pins()["rke2"]["version"]])
def test_the_pinned_rancher_supports_what_its_pin_says_and_the_pinned_distributions(version):
    rancher.require_supported(version)


@pytest.mark.parametrize("version", ["v1.21.2+k3s1", "v1.33.13+k3s1", "v1.37.0+k3s1", "v2.1.0"])
def test_a_kubernetes_that_rancher_does_not_support_is_refused(version):
    with pytest.raises(ProvisionError, match=r"supports Kubernetes 1\.34 to 1\.36, and the cluster has") as refused:
        rancher.require_supported(version)
    assert version in refused.value.message
    assert "fab install kubernetes --target vagrant --artifacts DIR" in refused.value.hint


def test_a_kubernetes_that_does_not_answer_is_refused():
    with pytest.raises(ProvisionError, match="does not answer") as refused:
        rancher.require_supported("")
    assert "fab install kubernetes --target vagrant" in refused.value.hint


# -- until it is ready ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deployment", "ready"),
    [
        ({}, False),
        ({"metadata": {"generation": 1}, "status": {"observedGeneration": 1, "updatedReplicas": 1, "readyReplicas": 1}}, True),
        ({"metadata": {"generation": 1}, "status": {"observedGeneration": 1, "updatedReplicas": 1}}, False),
        # What is ready is the one before.
        ({"metadata": {"generation": 2}, "status": {"observedGeneration": 1, "updatedReplicas": 1, "readyReplicas": 1}}, False),
        ({"metadata": {"generation": 2}, "status": {"observedGeneration": 2, "readyReplicas": 1}}, False),
    ],
)
def test_rancher_is_ready_when_its_present_form_is(deployment, ready):
    assert is_ready(deployment) is ready


def pod(name: str, namespace: str = "cattle-system", phase: str = "Pending", **status: object) -> dict:
    return {"metadata": {"name": name, "namespace": namespace}, "status": {"phase": phase, **status}}


def waiting(reason: str, message: str = "") -> dict:
    return {"containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}


def condition(kind: str, status: str, message: str = "") -> dict:
    return {"conditions": [{"type": kind, "status": status, "message": message}]}


PODS = {
    "items": [
        pod("rancher-1", **waiting("ImagePullBackOff", "Back-off pulling image rancher/rancher:v2.15.2")),
        pod("rancher-2", **condition("PodScheduled", "False", "0/3 nodes are available")),
        pod("rancher-3", phase="Running", **condition("Ready", "True")),
        pod("cert-manager-1", "cert-manager", "Running", **condition("Ready", "False")),
        pod("helm-install-rancher-abc", "kube-system", "Running", **waiting("CrashLoopBackOff")),
        pod("helm-install-cert-manager-abc", "kube-system", "Succeeded"),
        pod("helm-install-traefik-abc", "kube-system"),
        pod("task-1", "airflow"),
    ]
}


def test_pods_that_are_not_ready_are_told_with_the_reason_that_kubernetes_gives():
    assert unready(PODS) == {
        "cattle-system/rancher-1": "ImagePullBackOff: Back-off pulling image rancher/rancher:v2.15.2",
        "cattle-system/rancher-2": "0/3 nodes are available",
        "cert-manager/cert-manager-1": "Running, and not ready yet",
        "kube-system/helm-install-rancher-abc": "CrashLoopBackOff",
    }


@pytest.fixture
def looks(monkeypatch):
    """Let Rancher be seen like this, look after look, the last one for ever; time passes between them."""

    def see(*seen: tuple[bool, dict[str, str]]) -> None:
        left, clock = list(seen), iter(range(0, 10**6, 100))
        monkeypatch.setattr(install, "rancher_seen", lambda cluster, control: left.pop(0) if len(left) > 1 else left[0])
        monkeypatch.setattr(install.time, "monotonic", lambda: next(clock))
        monkeypatch.setattr(install.time, "sleep", lambda seconds: None)

    return see


def waited(cluster: Kubernetes | None = None) -> list[str]:
    said: list[str] = []
    wait_for_rancher(cluster or kubernetes(), SimpleNamespace(name="control"), said.append)
    return said


def test_whoever_waits_is_told_for_what_and_once(looks):
    looks((False, {}), (False, {"a/b": "Pending"}), (False, {"a/b": "Running"}), (True, {}))
    assert waited() == ["waiting for Rancher: its pods are not made yet", "waiting for Rancher: a/b"]


def test_nothing_is_waited_for_that_is_there(looks):
    looks((True, {}))
    assert waited() == []


def test_what_never_gets_ready_is_told_with_its_pods_and_why(looks):
    looks((False, unready(PODS)))
    with pytest.raises(ProvisionError, match="Rancher on control was not ready within 900 s") as failed:
        waited()
    for name, why in unready(PODS).items():
        assert f"\n  {name}: {why}" in failed.value.message
    assert "fab logs k3s-control --target vagrant" in failed.value.hint
    assert "LAB_START_SECONDS=1800" in failed.value.hint


def test_a_single_node_is_the_control_node():
    assert values(from_internet("k3s", ALONE), cluster=ALONE)["extraNodeSelectorTerms"][0]["values"] == ["control"]

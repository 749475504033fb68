"""What Kubernetes adds to each node: files with their modes, units, packages; and what is left out until it is known."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
import yaml
from cluster_samples import ACCOUNTS, ALONE, CLUSTER, ENVIRONMENT, JOIN_TOKEN, SECRETS, artifacts, blank, complete, kubernetes, pods

from provision.home import REPOSITORY, lab_home
from provision.kube import state
from provision.kube.distributions import DISTRIBUTIONS
from provision.kube.manifests import EXECUTOR_ACCOUNT, LAB_ACCOUNT
from provision.kube.state import Kubernetes
from provision.nodes.desired import desired_state
from provision.nodes.document import installation_document
from provision.nodes.layout import Layout
from provision.nodes.state import About, Desired
from provision.variants import KubernetesOptions, wanted, wanted_again

STOP = REPOSITORY / "provision" / "files" / "kubernetes-stop.sh"
TOKEN_FILE, KUBECONFIG, TEMPLATE = (f"/etc/airflow-labs/{name}" for name in ("kubernetes-token", "kubeconfig", "pod.yaml"))
SHORT = SECRETS["cluster_token"]

every_distribution = pytest.mark.parametrize("name", DISTRIBUTIONS)


def files(cluster: Kubernetes, node: str) -> dict[str, tuple[str, str, str]]:
    """Return the files that Kubernetes adds to a node."""
    (chosen,) = [each for each in cluster.cluster.nodes if each.name == node]
    return state.files(cluster, chosen, SHORT)


def desired(cluster: Kubernetes | None = None, options: KubernetesOptions | None = None) -> Desired:
    """Return the desired state of the variant on the nodes."""
    known = cluster or kubernetes()
    return desired_state(
        wanted("kubernetes", kubernetes=options), known.cluster, Layout(), About("3.11", "x86_64", "12"), SECRETS, kubernetes=known
    )


def unit(of: Desired, node: str, service: str) -> str:
    (found,) = [each for each in of.nodes[node].units if each.service == service]
    return found.text


@every_distribution
def test_the_server_has_the_short_token_and_agents_the_full_one(name):
    cluster = kubernetes(name)
    assert files(cluster, "control")[TOKEN_FILE] == (f"{SHORT}\n", "root", "0600")
    for worker in ("worker-1", "worker-2"):
        # It pins the authority of the cluster, so that an agent joins no other.
        assert files(cluster, worker)[TOKEN_FILE] == (f"{JOIN_TOKEN}\n", "root", "0600")


@every_distribution
def test_what_is_not_known_before_the_server_has_run_is_left_out(name):
    before = kubernetes(name, seen=blank())
    assert TOKEN_FILE not in files(before, "worker-1")
    assert KUBECONFIG not in files(before, "control")
    assert TOKEN_FILE in files(before, "control")
    assert TEMPLATE in files(before, "control")


def test_the_executors_credentials_are_on_the_control_node_for_airflow_alone():
    text, group, mode = files(kubernetes(), "control")[KUBECONFIG]
    assert (group, mode) == ("airflow", "0640")
    document = yaml.safe_load(text)
    assert [user["name"] for user in document["users"]] == [EXECUTOR_ACCOUNT]
    assert document["clusters"][0]["cluster"]["server"] == "https://192.168.56.10:6443"
    assert KUBECONFIG not in files(kubernetes(), "worker-1")


def test_the_labs_credentials_are_on_no_node():
    everything = json.dumps([files(kubernetes(), node.name) for node in CLUSTER.nodes])
    assert ACCOUNTS[EXECUTOR_ACCOUNT] in everything
    assert ACCOUNTS[LAB_ACCOUNT] not in everything


@every_distribution
def test_each_node_has_its_configuration_for_root_alone(name):
    cluster = kubernetes(name)
    for node in CLUSTER.nodes:
        text, group, mode = files(cluster, node.name)[f"/etc/rancher/{name}/config.yaml"]
        assert (group, mode) == ("root", "0600")
        assert yaml.safe_load(text)["node-ip"] == node.address


def test_each_node_is_told_its_own_interface():
    found = {node.name: yaml.safe_load(files(kubernetes(), node.name)["/etc/rancher/k3s/config.yaml"][0]) for node in CLUSTER.nodes}
    assert {name: keys["flannel-iface"] for name, keys in found.items()} == {"control": "eth0", "worker-1": "eth1", "worker-2": "eth2"}


def test_only_the_server_of_rke2_is_handed_a_manifest():
    path = "/var/lib/rancher/rke2/server/manifests/airflow-labs-canal.yaml"
    cluster = kubernetes("rke2")
    assert "iface: eth0" in files(cluster, "control")[path][0]
    assert path not in files(cluster, "worker-1")
    assert not [name for name in files(kubernetes(), "control") if "manifests" in name]


@every_distribution
def test_every_file_of_a_cluster_has_its_folder(name):
    of = desired(kubernetes(name))
    for node in of.nodes.values():
        known = {*node.folders, "/etc", "/etc/rancher", "/etc/systemd/system", "/etc/tmpfiles.d", "/etc/chrony/conf.d"}
        assert {path.rpartition("/")[0] for path in node.files} <= known


@every_distribution
def test_the_administrators_credentials_are_named_in_no_file_and_no_unit(name):
    of = desired(kubernetes(name))
    for node in of.nodes.values():
        for path, file in node.files.items():
            if not path.endswith("config.yaml"):
                assert str(DISTRIBUTIONS[name].admin_kubeconfig) not in file.text, path
        for each in node.units:
            assert "kubeconfig" not in each.text


@every_distribution
def test_secrets_of_the_cluster_are_in_files_that_others_cannot_read(name):
    of = desired(kubernetes(name))
    hidden = [*SECRETS.values(), JOIN_TOKEN, *ACCOUNTS.values()]
    for node in of.nodes.values():
        for path, file in node.files.items():
            if any(secret in file.text for secret in hidden):
                assert file.mode in ("0600", "0640"), path
                assert file.mode == "0600" or (file.owner, file.group) == ("root", "airflow"), path
        for each in node.units:
            assert not [secret for secret in hidden if secret in each.text]
    document = json.dumps(installation_document(of, lab_home(), []))
    assert not [secret for secret in hidden if secret in document]


@every_distribution
def test_kubernetes_runs_as_a_unit_of_each_node(name):
    of = desired(kubernetes(name))
    for node in CLUSTER.nodes:
        lines = unit(of, node.name, f"{name}-{node.name}").splitlines()
        (command,) = [line for line in lines if line.startswith("ExecStart=")]
        assert command.endswith(" server" if node == CLUSTER.control else " agent")
        # A crash leaves the pods running, a stop on purpose does not.
        assert {"KillMode=process", "Delegate=yes", "Restart=on-failure", "Type=notify", "TimeoutStartSec=0"} <= set(lines)
        assert "X-AirflowLabs-AfterStop=/etc/airflow-labs/kubernetes-stop" in lines
        assert not [line for line in lines if line.startswith("ExecStop")]
        assert files(kubernetes(name), node.name)["/etc/airflow-labs/kubernetes-stop"][2] == "0755"


def digests(cluster: Kubernetes) -> dict[str, str]:
    return {each.service: each.digest for node in desired(cluster).nodes.values() for each in node.units if each.service.startswith("k3s-")}


@pytest.mark.parametrize(
    ("change", "restarted"),
    [
        ({"artifacts": artifacts(sha256="3" * 64)}, {"k3s-control", "k3s-worker-1", "k3s-worker-2"}),
        ({"seen": replace(complete(), join_token="K10another")}, {"k3s-worker-1", "k3s-worker-2"}),
        ({"seen": replace(complete(), accounts={}, images={}, ready=frozenset(), objects_differ=True)}, set()),
        ({"pods": pods(image="localhost/other:1")}, set()),
        ({"pods": replace(pods(), cpu="1")}, set()),
    ],
    ids=["another release", "another cluster", "what is known of the cluster", "another image", "other requests"],
)
def test_kubernetes_is_restarted_by_what_it_reads_at_its_start_alone(change, restarted):
    before, after = digests(kubernetes()), digests(replace(kubernetes(), **change))
    assert {name for name in before if before[name] != after[name]} == restarted


def test_a_new_template_restarts_no_service_of_airflow():
    before = {each.service: each.digest for each in desired().nodes["control"].units}
    after = {each.service: each.digest for each in desired(replace(kubernetes(), pods=replace(pods(), cpu="1"))).nodes["control"].units}
    assert before == after


@pytest.mark.parametrize(
    ("change", "restarted"),
    [
        ({}, set()),
        ({"accounts": {**ACCOUNTS, EXECUTOR_ACCOUNT: "another"}}, {"scheduler", "api-server"}),
        ({"authority": "T3RoZXI="}, {"scheduler", "api-server"}),
        ({"accounts": {**ACCOUNTS, LAB_ACCOUNT: "another"}}, set()),
    ],
    ids=["the same cluster", "another token", "another authority", "another token of the labs"],
)
def test_credentials_of_another_cluster_restart_who_has_read_the_old_ones(change, restarted):
    before, after = (
        {each.service: each.digest for each in desired(kubernetes(seen=replace(complete(), **difference))).nodes["control"].units}
        for difference in ({}, change)
    )
    assert {name for name in before if before[name] != after[name]} == restarted


def test_the_scheduler_is_told_where_credentials_template_and_image_are():
    environment = desired().environment
    assert environment["AIRFLOW__KUBERNETES_EXECUTOR__CONFIG_FILE"] == KUBECONFIG
    assert environment["AIRFLOW__KUBERNETES_EXECUTOR__POD_TEMPLATE_FILE"] == TEMPLATE
    repository, tag = (environment[f"AIRFLOW__KUBERNETES_EXECUTOR__WORKER_CONTAINER_{part}"] for part in ("REPOSITORY", "TAG"))
    assert f"{repository}:{tag}" == kubernetes().pods.image
    assert environment["AIRFLOW__KUBERNETES_EXECUTOR__IN_CLUSTER"] == "False"
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "KubernetesExecutor"


def test_worker_nodes_show_the_logs_of_pods_that_are_gone():
    of = desired()
    for worker in ("worker-1", "worker-2"):
        assert f"log-server-{worker}" in [each.service for each in of.nodes[worker].units]
    assert not [each for each in of.nodes["control"].units if each.service.startswith("log-server")]


def test_the_database_is_for_its_own_node_alone():
    # Pods reach the API server, never the database.
    assert "@127.0.0.1:5432/" in desired().environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]


def test_what_makes_the_image_is_installed_where_it_is_made():
    of = desired()
    assert "mmdebstrap" in of.nodes["control"].packages
    assert "mmdebstrap" not in of.nodes["worker-1"].packages
    assert {"iptables", "conntrack"} <= set(of.nodes["worker-2"].packages)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_files_of_a_cluster_do_not_outlive_its_use(name):
    of = desired(kubernetes(name))
    postgres = desired_state(wanted("postgres"), CLUSTER, Layout(), About("3.11", "x86_64", "12"), SECRETS)
    for node in CLUSTER.nodes:
        own = {path for path in of.nodes[node.name].files if path.startswith(("/etc/airflow-labs/kube", "/etc/rancher/", TEMPLATE))}
        assert own <= set(postgres.nodes[node.name].unwanted)
        other = "rke2" if name == "k3s" else "k3s"
        assert f"/etc/rancher/{other}/config.yaml" in of.nodes[node.name].unwanted
        assert not own & set(of.nodes[node.name].unwanted)


@every_distribution
def test_credentials_of_a_cluster_do_not_outlive_its_use(name):
    postgres = desired_state(wanted("postgres"), CLUSTER, Layout(), About("3.11", "x86_64", "12"), SECRETS)
    here, other = (DISTRIBUTIONS[each] for each in ((name, "rke2") if name == "k3s" else (name, "k3s")))
    for node in CLUSTER.nodes:
        unwanted = desired(kubernetes(name)).nodes[node.name].unwanted
        assert {*here.credentials, *other.credentials} <= set(postgres.nodes[node.name].unwanted)
        assert set(other.credentials) <= set(unwanted)
        # Its own stay, where they are.
        assert set(here.credentials) & set(unwanted) == (set() if node == CLUSTER.control else {str(here.admin_kubeconfig)})


def test_only_the_server_of_rke2_has_a_folder_for_its_data_and_for_root_alone():
    modes = {node.name: desired(kubernetes("rke2")).nodes[node.name].folders.get("/var/lib/rancher/rke2/server") for node in CLUSTER.nodes}
    assert {name: folder and folder.mode for name, folder in modes.items()} == {"control": "0700", "worker-1": None, "worker-2": None}


def test_a_second_installation_on_the_nodes_leaves_the_cluster_of_the_first_alone():
    second = desired_state(wanted("postgres"), CLUSTER, Layout("other"), About("3.11", "x86_64", "12"), SECRETS)
    assert not [path for node in second.nodes.values() for path in node.unwanted if "rancher" in path or "kube" in path]


@pytest.mark.parametrize(("cluster", "tasks"), [(CLUSTER, ["worker-1", "worker-2"]), (ALONE, ["control"])], ids=["three nodes", "one node"])
def test_the_installation_file_tells_labs_of_the_cluster(cluster, tasks):
    options = KubernetesOptions(distribution="k3s", artifacts="/folder")
    of = desired(kubernetes(cluster=cluster), options)
    document = json.loads(json.dumps(installation_document(of, lab_home(), [])))
    known = document["kubernetes"]
    assert (known["namespace"], known["lab_namespace"], known["task_nodes"]) == ("airflow", "airflow-lab", tasks)
    assert known["kubeconfig"] == str(lab_home().root / "kubeconfig")
    assert known["pod_image"] == of.kubernetes.pods.image
    assert wanted_again(document) == wanted("kubernetes", kubernetes=options)


def test_other_variants_have_no_cluster():
    of = desired_state(wanted("celery"), CLUSTER, Layout(), About("3.11", "x86_64", "12"), SECRETS)
    assert installation_document(of, lab_home(), [])["kubernetes"] is None


def test_the_image_has_another_name_for_another_environment():
    image = state.image_reference(ENVIRONMENT)
    assert image.startswith("localhost/airflow-executor-labs:3.3.2-")
    assert image != state.image_reference(ENVIRONMENT.with_name("airflow-3.3.2-ba9876543210"))
    assert image == state.image_reference(ENVIRONMENT)


def test_the_image_has_another_name_when_it_is_made_in_another_way(monkeypatch):
    before = state.image_reference(ENVIRONMENT)
    monkeypatch.setattr(state, "IMAGE_SCRIPT", state.IMAGE_SCRIPT + "# changed\n")
    assert state.image_reference(ENVIRONMENT) != before


@pytest.mark.parametrize(("image", "built"), [("", True), ("apache/airflow:3.3.2", False)])
def test_an_image_that_was_named_is_not_made(image, built):
    assert kubernetes(settings=pods(image=image)).builds_image is built


def test_the_folder_of_the_artifacts_changes_with_what_is_in_them():
    one, other = kubernetes(), replace(kubernetes(), artifacts=artifacts(sha256="9" * 64))
    assert one.software != other.software
    assert one.software.name == f"k3s-{one.artifacts.digest}"


def test_the_script_that_stops_a_cluster_is_a_shell_script():
    assert subprocess.run(["sh", "-n", str(STOP)]).returncode == 0
    assert STOP.read_text().startswith("#!/bin/sh\n")


# What the script may call for real; anything else only writes down how it was called, so that nothing of this machine is touched.
HARMLESS = ("awk", "cat", "cut", "grep", "sort", "xargs")
RECORDED = ("find", "ip", "ip6tables-restore", "ip6tables-save", "iptables-restore", "iptables-save", "pgrep", "rm", "sleep", "umount")


@pytest.fixture
def stop(tmp_path):
    """Run the script with stand-ins for what would change this machine; return what it called."""
    commands, calls = tmp_path / "bin", tmp_path / "calls"
    commands.mkdir()
    calls.touch()
    for name in HARMLESS:
        (commands / name).symlink_to(shutil.which(name))

    def run(**printed: str) -> list[str]:
        for name in RECORDED:
            (commands / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\n{printed.get(name, "")}\n')
            (commands / name).chmod(0o700)
        # In a session of its own: what ends the group of the script must not end the tests.
        done = subprocess.run([shutil.which("sh"), str(STOP)], env={"PATH": str(commands)}, capture_output=True, start_new_session=True)
        assert done.returncode == 0
        return calls.read_text().splitlines()

    return run


def test_a_stop_leaves_no_network_and_no_rules(stop):
    assert {"rm -rf /var/lib/cni", "ip link delete cni0", "ip link delete flannel.1", "iptables-restore "} <= set(stop())


def test_a_stop_looks_at_the_groups_of_pods_alone(stop):
    (looked,) = {call for call in stop() if call.startswith("find") and "cgroup.procs" in call}
    assert all("/kubepods" in word for word in looked.split() if word.startswith("/sys/fs/cgroup"))


def test_a_stop_ends_the_processes_it_found_and_never_itself(stop):
    with subprocess.Popen([shutil.which("sleep"), "600"]) as pod:
        stop(pgrep=f"echo 0; echo {pod.pid}")
        assert pod.wait(10) == -9


@pytest.mark.parametrize(
    ("title", "ours"),
    [
        (
            "/var/lib/rancher/k3s/data/abc/bin/containerd-shim-runc-v2 -namespace k8s.io -id 1 -address /run/k3s/containerd/containerd.sock",
            True,
        ),
        ("/usr/bin/containerd-shim-runc-v2 -namespace moby -id 1 -address /run/containerd/containerd.sock", False),
        ("/usr/bin/containerd-shim-runc-v2 -namespace moby -id 1 -address /run/k3s/containerd/containerd.sock2", False),
        ("vi /notes/containerd-shim -address /run/k3s/containerd/containerd.sock", False),
    ],
    ids=["ours", "Docker's", "another socket", "an editor"],
)
def test_a_stop_ends_only_helpers_of_the_labs_own_containerd(stop, title, ours):
    (pattern,) = {call.removeprefix("pgrep -f ") for call in stop() if call.startswith("pgrep")}
    assert bool(re.search(pattern, title)) is ours


def test_tokens_are_not_shown_with_what_is_known_of_a_cluster():
    shown = repr(kubernetes(token=SHORT))
    assert not [secret for secret in (SHORT, JOIN_TOKEN, *ACCOUNTS.values()) if secret in shown]


def test_the_digest_of_artifacts_is_that_of_their_content():
    assert artifacts().digest == artifacts().digest
    assert len(artifacts().digest) == 12
    text = "".join(sorted(f"{file.path.name} {file.sha256}\n" for file in artifacts().files))
    assert artifacts().digest == hashlib.sha256(text.encode()).hexdigest()[:12]

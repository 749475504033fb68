"""The variant kubernetes on three nodes of its own: installed, run, its DAGs distributed in three ways, and left without a trace."""

from __future__ import annotations

import os
import subprocess

import pytest

from labs import services, timeline
from labs.installation import read_installation
from labs.notebook import Bench
from labs.probe import Probe
from labs.spec import parse
from labs.waiting import wait_for
from provision import secret_store
from provision.errors import ProvisionError
from provision.kube import git
from provision.kube.artifacts import VARIABLE
from provision.kube.dag_image import listed_images
from provision.variants import KubernetesOptions, wanted

pytestmark = pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"a K3s binary is needed: {VARIABLE}=/path/to/its/release files")
WORKERS = {"worker-1", "worker-2"}
TWO = {"tasks": 2, "kind": "noop"}
# What Kubernetes leaves behind on a node where it was merely stopped.
TRACES = """
pgrep -af '^[^ ]*(k3s|containerd-shim|kubelet)'
grep -E ' (/run/k3s|/var/lib/kubelet/pods|/run/netns/cni-)' /proc/self/mounts
ip -o link show | grep -E 'cni0|flannel|veth[0-9a-f]{8}'
iptables-save | grep -E 'KUBE-|CNI-|FLANNEL'
true
"""


def asked(dags="volume"):
    return wanted("kubernetes", kubernetes=KubernetesOptions(dags=dags))


def bench_of(target):
    return Bench(read_installation(target.home.root))


def succeed(target):
    """Run a probe, whose document is delivered first, and return the nodes on which its tasks ran."""
    attempts = bench_of(target).run(TWO).attempts
    assert timeline.states(attempts) == {"success": 2}
    return {attempt.host for attempt in attempts}


def actions(changes):
    return {(change.action, change.name) for change in changes}


def on_node(target, node, *argv, check=True):
    """Run a command on a node, as root, and return what it printed."""
    return target.nodes[node].call("run", argv=list(argv), check=check)["out"]


def ctr(target, node, *arguments):
    (program,) = on_node(target, node, "sh", "-c", "ls /opt/airflow-labs/k3s-*/k3s").split()
    socket = "/run/k3s/containerd/containerd.sock"
    return on_node(target, node, program, "ctr", "--address", socket, "--namespace", "k8s.io", *arguments)


def test_it_is_installed_healthy_and_a_second_install_changes_nothing(target):
    target.install(asked())
    assert target.install(asked()) == []
    assert {row.state for row in target.status()} == {"RUNNING"}
    assert succeed(target) <= WORKERS


def test_a_task_is_one_pod_that_goes_when_it_ends_and_leaves_its_log(target):
    target.install(asked())
    bench = bench_of(target)
    cluster = services.cluster_of(bench.installation)
    with bench.probe({"tasks": 3}) as probe:
        probe.deliver()
        probe.trigger()
        assert probe.hold().running == 3
        pods = cluster.pods()
        rows = bench.api.task_instances(probe.dag_id)
        probe.release()
        probe.wait()
        assert sorted((pod.annotations["task_id"], pod.annotations.get("map_index"), pod.node) for pod in pods) == sorted(
            (row["task_id"], None if row["map_index"] < 0 else str(row["map_index"]), row["hostname"]) for row in rows
        )
        wait_for(lambda: cluster.pods() == [], 60, "The end of every pod")
        for row in bench.api.task_instances(probe.dag_id):
            log = "\n".join(bench.api.log(row))
            assert "This hold task worked" in log


def test_a_cluster_that_ends_in_the_middle_of_a_run_is_named_and_every_task_is_accounted_for(target):
    target.install(asked())
    bench, told = bench_of(target), []
    probe = Probe(
        bench.installation, bench.api, parse({"tasks": 4, "max_active_tasks": 3}), services.Watcher(bench.installation),
        on_fault=lambda dag, error, attempts: told.append(timeline.states(attempts)),
    )  # fmt: skip

    def broken_in_the_middle():
        with probe:
            probe.deliver()
            probe.trigger()
            assert probe.hold().running == 3
            on_node(target, "control", "systemctl", "stop", "airflow-k3s-control.service")
            probe.hold()

    with pytest.raises(ProvisionError, match="k3s-control on control ended"):
        broken_in_the_middle()
    assert told == [{"running": 3, "scheduled": 1}]
    assert bench.api.dag(probe.dag_id) is None
    assert ("start", "k3s-control") in actions(target.install(asked()))
    assert succeed(target) <= WORKERS


def test_an_image_that_is_missing_on_one_node_is_imported_there_again(target):
    target.install(asked())
    reference = read_installation(target.home.root).kubernetes["pod_image"]
    ctr(target, "worker-2", "images", "rm", reference)
    assert actions(target.plan(asked())) == {("import", "pod image")}
    assert [change.why.rpartition("(")[2] for change in target.install(asked())] == ["worker-2)"]
    assert target.install(asked()) == []
    assert listed_images(ctr(target, "worker-1", "images", "ls")) == listed_images(ctr(target, "worker-2", "images", "ls"))


def test_dags_are_cloned_by_whoever_has_the_key_and_by_nobody_else(target, tmp_path):
    target.install(asked())
    done = actions(target.install(asked("git")))
    assert {("make", "user airflow-git"), ("commit", "DAG folders")} <= done
    # Airflow's services need not know.
    assert not {action for action, _ in done} & {"stop", "start", "restart"}
    assert target.install(asked("git")) == []
    assert succeed(target) <= WORKERS
    address, own = target.cluster.control.address, secret_store.load_or_create(target.home)[git.KEY]
    (tmp_path / "known").write_text(f"{address} {on_node(target, 'control', 'cat', str(git.HOST_KEY))}")

    def ask(key, *command):
        file = tmp_path / "key"
        file.unlink(missing_ok=True)
        file.write_text(key)
        file.chmod(0o600)
        options = ["BatchMode=yes", "IdentitiesOnly=yes", f"UserKnownHostsFile={tmp_path / 'known'}", "StrictHostKeyChecking=yes"]
        words = ["ssh", "-F", "/dev/null", "-i", str(file), *(word for option in options for word in ("-o", option))]
        return subprocess.run([*words, f"{git.USER}@{address}", *command], capture_output=True, stdin=subprocess.DEVNULL, timeout=60)

    assert b"Permission denied" in ask(git.make_key(tmp_path), "git-upload-pack", str(git.REPOSITORY)).stderr
    # Whatever the owner of the key asks for, it is shown the one repository, to read.
    for command in (["git-receive-pack", str(git.REPOSITORY)], ["cat", "/etc/passwd"], []):
        shown = ask(own, *command).stdout
        assert b"refs/heads/main" in shown
        assert b"multi_ack" in shown
        assert b"report-status" not in shown


def test_dags_are_baked_into_images_and_old_images_go(target):
    target.install(asked("image"))
    # What was for clones is gone.
    assert on_node(target, "control", "getent", "passwd", git.USER, check=False) == ""
    assert on_node(target, "control", "sh", "-c", f"ls -d {git.HOME} 2>/dev/null || true") == ""
    assert git.KEY not in secret_store.load_or_create(target.home)
    assert target.install(asked("image")) == []
    assert succeed(target) <= WORKERS
    for number in range(8):
        target.put_spec("probe_of_a_test", f'{{"dag_id": "probe_of_a_test", "groups": [], "description": "{number}"}}\n')
    target.remove_spec("probe_of_a_test")
    for node in WORKERS:
        assert len([name for name in listed_images(ctr(target, node, "images", "ls")) if "-labs-dags:" in name]) <= 7
    target.install(asked())
    for node in WORKERS:
        assert not [name for name in listed_images(ctr(target, node, "images", "ls")) if "-labs-dags:" in name]


def test_another_variant_in_its_place_finds_no_trace_and_it_comes_back(target):
    target.install(asked())
    target.install(wanted("postgres"))
    assert target.nodes.each(lambda node: on_node(target, node.name, "sh", "-c", TRACES)) == dict.fromkeys(["control", *WORKERS], "")
    assert timeline.states(bench_of(target).run(TWO).attempts) == {"success": 2}
    target.install(asked())
    assert target.install(asked()) == []
    assert succeed(target) <= WORKERS

"""Variants on three nodes: installed once, repaired, switched, and broken on purpose."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from labs import catalog, results, timeline
from labs.installation import read_installation
from labs.notebook import Bench
from labs.waiting import wait_for
from provision import certificates, fleet
from provision.errors import ProvisionError, UsageError
from provision.home import REPOSITORY, read_json, write_private
from provision.lock import exclusive
from provision.nodes.session import Session
from provision.variants import wanted
from provision.workers import Worker

BIN = Path(sys.prefix) / "bin"
NODES = ["control", "worker-1", "worker-2"]
SIX = {"tasks": 6, "kind": "noop"}
# Fewer restarts and shorter tasks than on one machine, where the labs run as they are.
SMALLER = ["--set", "workers=[1,4]", "--set", "seconds=0.5", "--set", "burst=20"]
# The others need a K3s: test_kubernetes_labs.py.
WITHOUT_KUBERNETES = [lab.name for lab in catalog.all_labs() if lab.variants[0] != "kubernetes"]


def succeed(target, spec=None):
    """Return the attempts of a probe, all of which succeeded."""
    attempts = Bench(read_installation(target.home.root)).run(spec or SIX).attempts
    assert timeline.states(attempts) == {"success": len(attempts)}
    return attempts


def actions(changes):
    return {(change.action, change.name) for change in changes}


def pids(target):
    return {(row.node, row.name): row.pid for row in target.status()}


def on_node(target, node, *argv, check=True):
    """Run a command on a node, as root."""
    return target.nodes[node].call("run", argv=list(argv), check=check)


def trigger_smoke(bench):
    deadline = time.monotonic() + 60
    while True:
        try:
            return bench.api.trigger("lab_smoke")
        except Exception:
            # HAProxy looks at its API servers every two seconds.
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def wait_for_success(bench, run_id):
    wait_for(lambda: bench.api.dag_run_state("lab_smoke", run_id) == "success", 120, "The success of lab_smoke", every_s=0.5)


@pytest.mark.parametrize("asked", [{"variant": "sqlite"}, {"variant": "postgres"}, {"variant": "celery"}], ids=lambda a: a["variant"])
def test_a_variant_is_installed_healthy_and_a_second_install_changes_nothing(target, asked):
    target.install(wanted(**asked))
    assert target.install(wanted(**asked)) == []
    assert target.plan(wanted(**asked)) == []
    assert {row.state for row in target.status()} == {"RUNNING"}
    succeed(target)


def test_tasks_run_on_the_nodes_of_their_workers(target):
    target.install(wanted("celery"))
    installation = read_installation(target.home.root)
    result = Bench(installation).run({"tasks": 18})
    assert result.plateau.running == 6
    assert set(timeline.per_host(result.attempts)) == {"worker-1", "worker-2", "worker-3"}
    assert [installation.node_of(name) for name in ("worker-1", "worker-2", "worker-3")] == ["worker-1", "worker-2", "worker-1"]
    assert result.tolerance_s > 0


def test_a_changed_setting_restarts_exactly_the_services_that_read_it(target):
    target.install(wanted("celery"))
    before = pids(target)
    changes = target.install(wanted("celery", {"core.parallelism": "5"}))
    after = pids(target)
    assert {name for action, name in actions(changes) if action == "restart"} == {"scheduler"}
    assert {name for name in before if before[name] != after[name]} == {("control", "scheduler")}
    assert Bench(read_installation(target.home.root)).live_settings()["core.parallelism"] == "5"


def test_logs_are_shown_from_the_node_where_the_service_runs(target, fab):
    target.install(wanted("celery"))
    assert "ready" in fab("logs", "worker-2", "--lines", "200", "--target", "vagrant").stdout
    refused = fab("logs", "nothing", "--target", "vagrant")
    assert refused.returncode == 2
    assert "worker-2" in refused.stderr


def test_workers_join_grow_and_leave_on_other_nodes_while_tasks_hold(target):
    target.install(wanted("celery", workers=[Worker("worker-1"), Worker("worker-2")]))
    bench = Bench(read_installation(target.home.root))
    with bench.probe({"tasks": 14}) as probe:
        probe.deliver()
        probe.trigger()
        seen = [probe.hold().running]
        target.set_workers([Worker("worker-1"), Worker("worker-2"), Worker("heavy-1", 3)])
        seen.append(probe.hold().running)
        target.set_workers([Worker("worker-1", 4), Worker("worker-2"), Worker("heavy-1", 3)])
        seen.append(probe.hold().running)
        probe.release()
        probe.wait()
        attempts = probe.collect()
    assert seen == [4, 7, 9]
    assert timeline.states(attempts) == {"success": 14}
    assert {attempt.try_number for attempt in attempts} == {1}
    assert actions(target.set_workers([Worker("worker-1", 4)])) == {("stop", "worker-2"), ("stop", "heavy-1")}
    succeed(target)


def test_a_change_of_workers_that_fails_half_way_is_written_down_as_it_is(target, monkeypatch):
    monkeypatch.setattr(fleet, "RESIZED_S", 10)
    target.install(wanted("celery", workers=[Worker("worker-1"), Worker("worker-2")]))
    bench = Bench(read_installation(target.home.root))
    with bench.probe({"tasks": 4}) as probe:
        probe.deliver()
        probe.trigger()
        assert probe.hold().running == 4
        with pytest.raises(ProvisionError, match="worker-2 has 2 tasks in hand"):
            target.set_workers([Worker("worker-1", 3), Worker("worker-2", 1)])
        probe.release()
        probe.wait()
    sizes = [(worker["name"], worker["concurrency"]) for worker in target.installed()["workers"]]
    assert sizes == [("worker-1", 3), ("worker-2", 2)]


def test_a_worker_that_was_killed_is_named_with_its_node(target):
    target.install(wanted("celery"))
    bench = Bench(read_installation(target.home.root))
    with bench.probe({"tasks": 6}) as probe:
        probe.deliver()
        probe.trigger()
        probe.hold()
        on_node(target, "worker-2", "systemctl", "kill", "-s", "KILL", "airflow-worker-2.service")
        with pytest.raises(ProvisionError, match="worker-2 on worker-2 ended") as error:
            probe.wait(60)
    assert "fab logs worker-2 --target vagrant" in error.value.hint
    target.install(wanted("celery"))
    succeed(target)


def test_disks_that_are_full_on_two_nodes_are_told_together(target):
    target.install(wanted("celery"))
    for node in ("worker-1", "worker-2"):
        full = "mount -t tmpfs -o size=4k,mode=755 tmpfs /etc/airflow-labs && head -c 4096 /dev/zero > /etc/airflow-labs/full"
        on_node(target, node, "sh", "-c", full)
    try:
        with pytest.raises(ProvisionError) as error:
            target.install(wanted("celery"))
    finally:
        for node in ("worker-1", "worker-2"):
            on_node(target, node, "umount", "/etc/airflow-labs")
    assert "worker-1: write_files: No space left on device" in error.value.message
    assert "worker-2: write_files: No space left on device" in error.value.message
    target.install(wanted("celery"))
    assert target.install(wanted("celery")) == []


def test_stopping_leaves_nothing_running_and_installing_starts_it_again(target, fab):
    target.install(wanted("celery"))
    # One that does not end when it is told to is killed; that is no failure of the node's.
    on_node(target, "control", "kill", "-STOP", str(pids(target)["control", "triggerer"]))
    assert fab("stop", "--target", "vagrant").returncode == 0
    assert set(target.nodes.each(lambda node: on_node(target, node.name, "systemctl", "--failed", "--no-legend")["out"]).values()) == {""}
    states = target.nodes.each(lambda node: on_node(target, node.name, "pgrep", "-u", "airflow", check=False)["out"])
    assert set(states.values()) == {""}
    assert {action for action, _ in actions(target.install(wanted("celery")))} == {"start"}
    succeed(target)


def test_a_node_that_is_down_is_named_with_the_command_that_helps(target, machines):
    if machines.provider() != "docker":
        pytest.skip("only a container can be paused from outside")
    target.install(wanted("celery"))
    container = machines.ids()["worker-2"]
    target.close()
    subprocess.run(["docker", "stop", "-t", "0", container], check=True, capture_output=True)
    try:
        with pytest.raises(ProvisionError, match="worker-2 cannot be reached") as error:
            target.install(wanted("celery"))
        assert "fab up" in error.value.hint
    finally:
        machines.up()
    target.close()
    changes = target.install(wanted("celery"))
    assert {action for action, _ in actions(changes)} <= {"start", "write"}
    assert target.install(wanted("celery")) == []
    succeed(target)


def test_nodes_that_were_started_again_bring_everything_back_by_themselves(target, machines):
    if machines.provider() != "docker":
        pytest.skip("only a container can be started again from outside")
    target.install(wanted("celery"))
    hosts = {node: on_node(target, node, "cat", "/etc/hosts")["out"] for node in NODES}
    target.close()
    subprocess.run(["docker", "restart", "-t", "60", *machines.ids().values()], check=True, capture_output=True)
    machines.up()

    def is_back():
        try:
            return target.plan(wanted("celery")) == [] and set(target.workers_seen()) == {"worker-1", "worker-2", "worker-3"}
        except ProvisionError:
            return False

    wait_for(is_back, 300, "Everything that was installed", every_s=2)
    # Docker had written its own.
    assert {node: on_node(target, node, "cat", "/etc/hosts")["out"] for node in NODES} == hosts
    assert target.install(wanted("celery")) == []
    succeed(target)


def test_what_a_killed_command_still_does_is_waited_for(target, nodes):
    target.install(wanted("sqlite"))
    left_behind, said = Session("control", nodes["control"]), []
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(left_behind.call, "run", argv=["sleep", "8"])
        wait_for(lambda: "run" in target.nodes["control"].call("read", path="/run/airflow-labs.lock"), 30, "The step", every_s=0.1)
        assert target.install(wanted("sqlite"), said.append) == []
        assert step.done()
    assert any("control: waiting for another command that changes this node: run, process" in text for text in said)


def test_certificates_that_are_newly_given_are_a_step_of_their_own(target, monkeypatch, tmp_path):
    target.install(wanted("sqlite"))
    bundle = tmp_path / "ca.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=a lab", "-days", "2", "-keyout", "/dev/null"]
    subprocess.run([*request, "-out", str(bundle)], check=True, capture_output=True)
    monkeypatch.setenv(certificates.BUNDLE_VARIABLE, str(bundle))
    assert actions(target.plan(wanted("sqlite"))) == {("trust", "certificates")}
    assert actions(target.install(wanted("sqlite"))) == {("trust", "certificates")}
    assert target.install(wanted("sqlite")) == []
    assert (
        on_node(target, "worker-2", "openssl", "verify", "/usr/local/share/ca-certificates/airflow-labs.crt")["out"].strip().endswith("OK")
    )


def test_a_node_that_was_made_again_is_the_only_one_that_is_installed(target, machines):
    if machines.provider() != "docker":
        pytest.skip("only a container can be removed from outside")
    target.install(wanted("celery"))
    before = {key: pid for key, pid in pids(target).items() if key[0] != "worker-2"}
    subprocess.run(["docker", "rm", "-f", machines.ids()["worker-2"]], check=True, capture_output=True)
    target.close()
    machines.up()
    changes = target.install(wanted("celery"))
    assert {change.why.rpartition("(")[2].rstrip(")") for change in changes} == {"worker-2"}
    assert {key: pid for key, pid in pids(target).items() if key[0] != "worker-2"} == before
    succeed(target)


def test_rabbitmq_takes_the_place_of_redis_and_has_no_guest(target):
    target.install(wanted("celery", broker="rabbitmq"))
    assert target.install(wanted("celery", broker="rabbitmq")) == []
    succeed(target)
    rows = {row.name for row in target.status()}
    assert "rabbitmq" in rows
    assert "redis" not in rows
    ports = target.nodes["control"].call("listeners")
    assert {address for address, port in ports if port == 5672} == {target.cluster.control.address}
    assert 4369 not in {port for _, port in ports}


def test_rabbitmq_that_has_another_password_gets_the_right_one(target):
    target.install(wanted("celery", broker="rabbitmq"))
    secrets = read_json(target.home.secrets)
    write_private(target.home.secrets, json.dumps(secrets | {"broker_password": secrets["broker_password"][::-1]}))
    assert ("restart", "rabbitmq") in actions(target.install(wanted("celery", broker="rabbitmq")))
    succeed(target)


def test_a_second_scheduler_is_ready_before_an_install_ends(target):
    target.install(wanted("celery", ha=True))
    on_node(target, "worker-1", "systemctl", "stop", "airflow-scheduler-2.service")
    assert target.query("select hostname from job where job_type = 'SchedulerJob' and state = 'running'") == [["control"]]
    assert actions(target.install(wanted("celery", ha=True))) == {("start", "scheduler-2")}
    running = target.query("select hostname from job where job_type = 'SchedulerJob' and state = 'running'")
    assert sorted(running) == [["control"], ["worker-1"]]


def test_the_second_scheduler_and_api_server_do_the_work_when_the_first_ones_are_gone(target):
    target.install(wanted("celery", ha=True))
    assert target.install(wanted("celery", ha=True)) == []
    succeed(target)
    on_node(target, "control", "systemctl", "stop", "airflow-scheduler.service", "airflow-api-server.service")
    bench = Bench(read_installation(target.home.root))
    with bench.probe(SIX) as probe, pytest.raises(ProvisionError, match=r"(scheduler|api-server) on control ended"):
        probe.deliver()
    run_id = trigger_smoke(bench)
    wait_for_success(bench, run_id)
    assert {name for action, name in actions(target.install(wanted("celery", ha=True))) if action == "start"} == {"scheduler", "api-server"}
    succeed(target)


def test_a_variant_that_takes_the_place_of_another_leaves_nothing_of_it(target):
    target.install(wanted("celery"))
    target.install(wanted("sqlite"))
    left = target.nodes.each(lambda node: node.call("names_in", folder="/etc/systemd/system", pattern="airflow-*.service"))
    services = ["api-server", "dag-processor", "scheduler", "triggerer"]
    assert left == {"control": [f"airflow-{name}.service" for name in services], "worker-1": [], "worker-2": []}
    for node in NODES:
        assert not on_node(target, node, "pgrep", "-f", "celery|redis-server|postgres", check=False)["out"]
    succeed(target)


def test_what_is_wrong_is_refused_before_anything_happens(target):
    target.install(wanted("sqlite"))
    with pytest.raises(UsageError, match="would have no effect"):
        target.install(wanted("sqlite", {"celery.task_acks_late": "False"}))
    with pytest.raises(UsageError, match=r"has no setting core\.paralelism"):
        target.install(wanted("sqlite", {"core.paralelism": "4"}))
    assert target.installed()["variant"] == "sqlite"
    with pytest.raises(UsageError, match="Unknown variant"):
        target.install(wanted("oracle"))
    assert target.install(wanted("sqlite")) == []


@pytest.mark.parametrize("moment", ["starting postgres", "waiting for"])
def test_an_install_that_is_killed_is_finished_by_running_it_again(target, moment):
    target.install(wanted("sqlite"))
    command = [str(BIN / "fab"), "install", "celery", "--target", "vagrant"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in process.stderr:
        if moment in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert target.installed() is None
    target.install(wanted("celery"))
    assert target.install(wanted("celery")) == []
    succeed(target)


def test_one_command_says_what_it_does_and_the_second_says_zero_changes(target, fab):
    target.install(wanted("postgres"))
    done = fab("install", "postgres", "--target", "vagrant")
    assert done.returncode == 0
    assert done.stdout.strip() == "postgres on vagrant: 0 changes."
    shown = fab("status", "--target", "vagrant").stdout
    assert "fab install postgres --target vagrant would make 0 changes." in shown


def test_a_package_mirror_that_cannot_be_reached_is_an_error_that_a_rerun_mends(target, monkeypatch):
    target.install(wanted("postgres"))
    on_node(target, "control", "dpkg", "--purge", "--force-depends", "chrony")
    monkeypatch.setenv("LAB_PACKAGE_PROXY", "http://127.0.0.1:9")
    with pytest.raises(ProvisionError, match=r"control: The package proxy 127\.0\.0\.1:9 cannot be reached") as error:
        target.install(wanted("postgres"))
    assert "LAB_PACKAGE_PROXY" in error.value.hint
    monkeypatch.delenv("LAB_PACKAGE_PROXY")
    target.install(wanted("postgres"))
    assert target.install(wanted("postgres")) == []


def test_one_user_of_the_nodes_at_a_time(target, fab):
    with exclusive(target.home, "a test"):
        environment = {"AIRFLOW_LABS_LOCK": ""}
        done = fab("install", "sqlite", "--target", "vagrant", **environment)
    assert done.returncode == 1
    assert "is in use" in done.stderr


def test_another_address_range_than_that_of_the_machines_is_refused(target, fab):
    done = fab("status", "--target", "vagrant", LAB_NETWORK="10.11.12.0/24")
    assert done.returncode == 1
    assert "was made with the address" in done.stderr


def test_the_local_target_has_no_second_node_for_a_second_scheduler(fab):
    done = fab("install", "celery", "--ha")
    assert done.returncode == 2
    assert "--target vagrant" in done.stderr


def test_every_lab_passes_on_the_nodes_as_it_does_on_one_machine(target):
    done = subprocess.run(
        [str(BIN / "labs"), "run", *WITHOUT_KUBERNETES, "--target", "vagrant", "--json", *SMALLER],
        capture_output=True, text=True, timeout=1800, cwd=REPOSITORY, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert [(lab["lab"], lab["verdict"], lab["error"]) for lab in document["labs"] if lab["verdict"] != "pass"] == []
    assert done.returncode == 0
    by_lab = {record["lab"]: record for record in results.read_run(Path(document["run"]))}
    assert {"00-start-here", "04-pools", "07-celery", "08-queues"} <= set(by_lab)
    per_node = by_lab["07-celery"]["tasks_per_node"]
    assert per_node["control"] == 0
    assert min(per_node["worker-1"], per_node["worker-2"]) > 0


def test_a_user_that_has_another_number_gets_the_right_one_with_its_files(target):
    target.install(wanted("celery"))
    # As an earlier release left a node: a number that useradd chose, and a home that belongs to the services.
    on_node(target, "worker-2", "systemctl", "stop", "airflow-worker-2.service", "airflow-log-server-worker-2.service")
    on_node(target, "worker-2", "usermod", "--uid", "990", "airflow")
    on_node(target, "worker-2", "groupmod", "--gid", "990", "airflow")
    on_node(target, "worker-2", "sh", "-c", "chown -R airflow:airflow /var/lib/airflow-labs /var/cache/airflow-labs")
    done = actions(target.install(wanted("celery")))
    assert {("renumber", "user airflow"), ("make", "folders"), ("write", "files"), ("start", "worker-2")} <= done
    assert on_node(target, "worker-2", "id", "airflow")["out"].split()[:2] == ["uid=50000(airflow)", "gid=50000(airflow)"]
    assert not on_node(target, "worker-2", "find", "/var/lib", "/var/cache", "/etc", "-xdev", "-nouser", "-o", "-nogroup")["out"]
    assert target.install(wanted("celery")) == []
    succeed(target)

"""The celery variant on a real Airflow: workers that come and go, queues, the broker, and what happens when they break."""

from __future__ import annotations

import threading
import time

import psutil
import pytest
import redis

from labs import checks, matrix, services, timeline
from labs.errors import LabError
from labs.installation import read_installation
from labs.matrix import draw_cells
from labs.notebook import Bench, Lab
from labs.waiting import wait_for
from provision import airflow, fleet
from provision.errors import ProvisionError, UsageError
from provision.home import lab_home
from provision.local import health
from provision.target import open_target
from provision.variants import wanted
from provision.workers import Worker

TWO = [Worker("worker-1", 2), Worker("worker-2", 2)]


@pytest.fixture
def celery(target):
    """Probes on the celery variant as its table says it."""
    target.install(wanted("celery"))
    return Bench(read_installation())


def fresh():
    return Bench(read_installation())


def broker(target):
    port = target.installed()["broker"]["port"]
    return redis.Redis(port=port, password=target._secrets()["broker_password"])


def listeners(target):
    pids = {process.pid for process in target.processes()}
    return {c.laddr.ip for c in psutil.net_connections("tcp") if c.pid in pids and c.status == psutil.CONN_LISTEN}


def test_a_second_install_changes_nothing_and_everything_listens_on_loopback(celery, target):
    assert target.install(wanted("celery")) == []
    assert listeners(target) == {"127.0.0.1"}
    secrets = set(target._secrets().values())
    commands = [" ".join(psutil.Process(process.pid).cmdline()) for process in target.processes()]
    assert not [command for command in commands if any(secret in command for secret in secrets)]


def test_the_broker_asks_for_a_password(celery, target):
    port = target.installed()["broker"]["port"]
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port).ping()


def test_workers_are_the_hosts_of_their_tasks(celery):
    result = celery.run({"tasks": 18})
    assert timeline.states(result.attempts) == {"success": 18}
    assert set(timeline.per_host(result.attempts)) == {"worker-1", "worker-2", "worker-3"}
    assert result.plateau.running == 6
    assert max(depths.get("default", 0) for _, depths in result.broker) > 0


def test_workers_join_grow_and_leave_while_tasks_hold(celery, target):
    target.set_workers(TWO)
    bench = fresh()
    with bench.probe({"tasks": 12}) as probe:
        probe.deliver()
        probe.trigger()
        seen = [probe.hold().running]
        target.set_workers([*TWO, Worker("worker-3", 2)])
        seen.append(probe.hold().running)
        target.set_workers([*TWO, Worker("worker-3", 4)])
        seen.append(probe.hold().running)
        probe.release()
        probe.wait()
        attempts = probe.collect()
    assert seen == [4, 6, 8]
    assert timeline.states(attempts) == {"success": 12}
    assert {a.try_number for a in attempts} == {1}
    assert set(target.workers_seen()) == {"worker-1", "worker-2", "worker-3"}


def test_a_change_of_several_workers_that_fails_half_way_is_written_down_as_it_is(celery, target, monkeypatch):
    monkeypatch.setattr(fleet, "RESIZED_S", 8)
    target.set_workers(TWO)
    bench = fresh()
    with bench.probe({"tasks": 4}) as probe:
        probe.deliver()
        probe.trigger()
        assert probe.hold().running == 4
        with pytest.raises(ProvisionError, match="worker-2 has 2 tasks in hand and 2 processes"):
            target.set_workers([Worker("worker-1", 3), Worker("worker-2", 1)])
        probe.release()
        probe.wait()
    assert [(worker["name"], worker["concurrency"]) for worker in target.installed()["workers"]] == [("worker-1", 3), ("worker-2", 2)]
    assert fresh().run({"tasks": 7}).plateau.running == 5
    changes = target.set_workers([Worker("worker-1", 3), Worker("worker-2", 1)])
    assert [(change.action, change.name) for change in changes] == [("resize", "worker-2")]


def test_a_worker_may_scale_by_itself(celery, target):
    target.set_workers([Worker("worker-1", 4, at_least=1)])
    assert peak_of(fresh(), {"tasks": 7}) == ("pass", 4)
    # Its four processes are idle, and a range of two ends two of them at once.
    changes = target.set_workers([Worker("worker-1", 2, at_least=1)])
    assert [(change.action, change.name) for change in changes] == [("resize", "worker-1")]
    assert target.workers_seen()["worker-1"]["concurrency"] <= 2
    assert peak_of(fresh(), {"tasks": 5}) == ("pass", 2)


def peak_of(bench, spec):
    result = bench.run(spec)
    verdict = checks.check_peak("peak", bench.predict(spec), result.plateau, result.peak)
    return verdict.verdict, verdict.measured


def test_a_worker_that_shrinks_while_messages_wait_loses_none(celery, target):
    target.set_workers([Worker("worker-1", 4)])
    bench = fresh()
    with bench.probe({"tasks": 30, "kind": "sleep", "seconds": 0.3}) as probe:
        probe.deliver()
        probe.trigger()
        wait_for(lambda: timeline.running_on(probe.collect()), 60, "The first task")
        target.set_workers([Worker("worker-1", 2)])
        assert target.workers_seen()["worker-1"] == {"concurrency": 2, "queues": ["default"]}
        probe.wait()
        attempts = probe.collect()
    assert (timeline.states(attempts), {a.try_number for a in attempts}) == ({"success": 30}, {1})
    assert peak_of(fresh(), {"tasks": 5}) == ("pass", 2)


def test_tasks_that_workers_finish_first_succeed_although_everything_restarts(celery, target):
    with celery.probe({"tasks": 6, "kind": "sleep", "seconds": 12}) as probe:
        probe.deliver()
        probe.trigger()
        wait_for(lambda: sum(timeline.running_on(probe.collect()).values()) == 6, 60, "Six running tasks")
        changes = target.install(wanted("celery", {"core.max_active_runs_per_dag": "15"}))
        assert {"api-server", "worker-1"} <= {change.name for change in changes if change.action == "restart"}
        probe.wait()
        attempts = probe.collect()
    assert (timeline.states(attempts), {a.try_number for a in attempts}) == ({"success": 6}, {1})


def test_a_worker_that_leaves_with_held_tasks_is_waited_for_until_the_gate_opens(celery, target):
    said = []
    with celery.probe({"tasks": 8}) as probe:
        probe.deliver()
        probe.trigger()
        assert probe.hold().running == 6
        leaving = threading.Thread(target=open_target("local").set_workers, args=(TWO, said.append))
        leaving.start()
        wait_for(lambda: any("worker-3 has 2" in text and "finished first" in text for text in said), 20, "The report")
        wait_for(lambda: {row.name: row.state for row in target.status()}["worker-3"] == "STOPPING", 20, "The end of worker-3")
        assert [(change.action, change.name) for change in target.plan(wanted("celery", workers=TWO))] == [("stop", "worker-3")]
        assert ("restart", "worker-3") in {(change.action, change.name) for change in target.plan(wanted("celery"))}
        services.Watcher(celery.installation).require_alive()
        probe.release()
        leaving.join(timeout=60)
        assert not leaving.is_alive()
        probe.wait()
        attempts = probe.collect()
    assert (timeline.states(attempts), {a.try_number for a in attempts}) == ({"success": 8}, {1})
    assert set(target.workers_seen()) == {"worker-1", "worker-2"}


def test_a_lab_tells_no_worker_to_leave_whose_tasks_hold(celery, tmp_path):
    lab = Lab("leaving", str(tmp_path / "record.json"))
    with lab.probe({"tasks": 8}) as probe:
        probe.deliver()
        probe.trigger()
        probe.hold()
        with pytest.raises(LabError, match="worker-3 runs 2 of the tasks that hold"):
            lab.set_workers([{"name": "worker-1"}, {"name": "worker-2"}])
        probe.release()
        probe.wait()
    lab.finish()


def test_a_dead_worker_can_be_removed(celery, target, fab):
    worker = psutil.Process({row.name: row.pid for row in target.status()}["worker-3"])
    for process in [*worker.children(recursive=True), worker]:
        process.kill()
    wait_for(lambda: {row.name: row.state for row in target.status()}["worker-3"] == "EXITED", 20, "The end of worker-3")
    done = fab("workers", "--remove", "worker-3")
    assert (done.returncode, "remove worker-3" in done.stdout) == (0, True), done.stderr
    target.require_alive()
    assert target.plan(wanted("celery", workers=TWO)) == []
    assert fresh().run({"tasks": 6}).plateau.running == 4


def test_tasks_that_name_no_queue_go_to_the_default_queue_of_the_settings(target):
    other = [Worker("worker-1", 2, ("other",)), Worker("worker-2", 3, ("default",))]
    target.install(wanted("celery", {"operators.default_queue": "other"}, workers=other))
    assert peak_of(fresh(), {"tasks": 5}) == ("pass", 2)


def test_the_path_of_a_task_is_in_order_in_another_time_zone(lab_folder, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    place = open_target("local", lab_home().throwaway("tokyo"))
    try:
        place.install(wanted("celery"))
        assert place.query("show timezone") == [["UTC"]]
        bench = Bench(read_installation(place.home.root))
        with bench.probe({"tasks": 1, "kind": "noop"}) as probe:
            probe.deliver()
            probe.trigger()
            probe.wait()
            steps = [step.what for step in bench.path_of(probe)]
        assert steps == ["scheduled", "queued", "received", "running", "ended", "result stored", "result read"]
    finally:
        place.destroy()
        monkeypatch.undo()
        time.tzset()


def test_a_probe_on_a_queue_that_nobody_serves_is_refused(celery):
    with pytest.raises(LabError, match="No worker serves queue 'nosuch'"):
        celery.run({"queue": "nosuch"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--add", "worker-1=2"), "already"),
        (("--add", "worker-4=0"), "concurrency 0"),
        (("--remove", "worker-9"), "no worker called"),
        (("--add", "w=1@a b"), "cannot be a queue"),
    ],
)
def test_wrong_workers_are_refused_and_nothing_changes(celery, fab, target, arguments, words):
    done = fab("workers", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert target.install(wanted("celery")) == []


def test_workers_are_listed_added_and_removed_by_a_command(celery, fab):
    assert fab("workers", "--add", "gpu-1=1@gpu").returncode == 0
    listed = fab("workers").stdout
    assert "gpu-1" in listed
    assert "gpu 0" in listed
    assert fab("workers", "--remove", "gpu-1").returncode == 0
    assert "gpu-1" not in fab("workers").stdout


def test_sqlite_with_celery_is_refused_with_the_reason(target):
    with pytest.raises(UsageError, match="SQLite cannot be used with the CeleryExecutor"):
        target.install(wanted("sqlite", {"core.executor": "CeleryExecutor"}))


def test_a_broker_that_was_stopped_is_named(celery, target):
    psutil.Process({row.name: row.pid for row in target.status()}["redis"]).kill()
    with pytest.raises(ProvisionError, match="redis ended"):
        celery.run({"tasks": 2, "kind": "noop"})


def test_a_broker_whose_memory_is_full_is_named(celery, target):
    client = broker(target)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(ProvisionError, match="memory is full"):
            celery.run({"tasks": 2, "kind": "noop"})
    finally:
        client.config_set("maxmemory", "64mb")
    assert timeline.states(celery.run({"tasks": 2, "kind": "noop"}).attempts) == {"success": 2}


def test_workers_that_never_register_are_told_and_not_left_running(celery, target, monkeypatch):
    monkeypatch.setattr(health, "START_SECONDS", 40)
    # Otherwise refused, for this very reason.
    monkeypatch.setattr(airflow, "check_changes", lambda changes, variant: None)
    with pytest.raises(ProvisionError, match="worker-1 was not ready"):
        target.install(wanted("celery", {"celery.worker_enable_remote_control": "False"}))
    assert not [row.name for row in target.status() if row.running and row.name.startswith("worker")]
    target.install(wanted("celery"))
    assert timeline.states(fresh().run({"tasks": 2, "kind": "noop"}).attempts) == {"success": 2}


def test_a_worker_killed_under_a_lab_is_named_and_its_tasks_are_accounted_for(celery, target, tmp_path):
    lab = Lab("worker-killed", str(tmp_path / "record.json"))
    worker = {row.name: row.pid for row in target.status()}["worker-2"]

    def lose_a_worker():
        with lab.probe({"tasks": 9}) as probe:
            probe.deliver()
            probe.trigger()
            probe.hold()
            for process in [*psutil.Process(worker).children(recursive=True), psutil.Process(worker)]:
                process.kill()
            probe.hold()

    with pytest.raises(ProvisionError, match="worker-2 ended"):
        lose_a_worker()
    (told,) = [m for m in lab._measurements if m.name.endswith("when it broke")]
    assert told.measured["error"].startswith("worker-2 ended")
    assert sum(told.measured["states"].values()) == 9
    assert "worker-2" in told.measured["running on"]
    target.install(wanted("celery"))
    services.Watcher(read_installation()).require_alive()


def test_random_cells_come_out_exactly_as_predicted_on_celery(celery, tmp_path):
    cells = draw_cells(seed=3, count=6, variant_settings=celery.settings)
    record = matrix.run_matrix(celery.installation, cells, 3, tmp_path, lambda text: None)
    assert [(m["predicted"], m["verdict"]) for m in record["measurements"]] == [(m["measured"], "pass") for m in record["measurements"]]
    assert [worker["name"] for worker in read_installation().workers] == ["worker-1", "worker-2", "worker-3"]

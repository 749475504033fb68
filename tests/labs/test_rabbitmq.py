"""The celery variant with RabbitMQ as its broker: a real server, a node of the lab's own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import amqp
import psutil
import pytest
from kombu import Connection, Queue

from labs import timeline
from labs.installation import read_installation
from labs.notebook import Bench
from labs.waiting import wait_for
from provision.errors import ProvisionError
from provision.fleet import Fleet
from provision.local import rabbitmq
from provision.local.ports import free_port
from provision.local.supervisor import owned_processes
from provision.variants import wanted
from provision.workers import Worker


def missing() -> str:
    """Return why these tests cannot run, and what to do about it; empty when RabbitMQ is installed."""
    try:
        rabbitmq.binary()
    except ProvisionError as error:
        return f"{error.message} To run these tests: {error.hint}"
    return ""


MISSING = missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "RabbitMQ is installed")
WORKERS = ["worker-1", "worker-2", "worker-3"]


@pytest.fixture
def bench(target):
    """Probes on the celery variant with RabbitMQ."""
    target.install(wanted("celery", broker="rabbitmq"))
    return Bench(read_installation())


@pytest.fixture
def fleet(bench, target):
    """The workers, asked over the broker."""
    asked = Fleet(address(target))
    yield asked
    asked.close()


def address(target):
    return rabbitmq.url(target.installed()["broker"]["port"], target._secrets()["broker_password"])


def pids(target):
    return {row.name: row.pid for row in target.status() if row.running}


def listeners(processes):
    found = [connection for process in processes for connection in process.net_connections("inet")]
    return {(connection.laddr.ip, connection.laddr.port) for connection in found if connection.status == psutil.CONN_LISTEN}


def name_services():
    """Return the pids of Erlang's name service on this machine, whoever it belongs to."""
    return {process.pid for process in psutil.process_iter(["name"]) if process.info["name"] == "epmd"}


def test_tasks_run_and_a_second_install_changes_nothing(bench, target):
    before = pids(target)
    result = bench.run({"tasks": 6, "kind": "noop"})
    assert timeline.states(result.attempts) == {"success": 6}
    assert set(timeline.per_host(result.attempts)) <= set(WORKERS)
    assert target.plan(wanted("celery", broker="rabbitmq")) == []
    assert target.install(wanted("celery", broker="rabbitmq")) == []
    assert pids(target) == before


def test_what_has_no_worker_yet_waits_in_the_broker(bench, target):
    result = bench.run({"tasks": 10})
    assert (result.plateau.running, timeline.states(result.attempts)) == (6, {"success": 10})
    assert 4 in [depths.get("default") for _, depths in result.broker]


def test_everything_listens_on_loopback_only_and_there_is_no_name_service(target):
    target.stop()
    before = name_services()
    target.install(wanted("celery", broker="rabbitmq"))
    everything = owned_processes(target.home)
    assert {ip for ip, _ in listeners(everything)} == {"127.0.0.1"}
    assert len(listeners([psutil.Process(pids(target)["rabbitmq"])])) == 2
    assert name_services() <= before
    assert not [process for process in everything if process.name() == "epmd"]


def test_the_helper_that_keeps_the_name_service_alive_starts_none(bench, target):
    """RabbitMQ starts it every minute (rabbit_nodes_common.erl, ensure_epmd, 3.10.8); here it is started by hand."""
    before = name_services()
    node = psutil.Process(pids(target)["rabbitmq"])
    words = node.cmdline()
    erl = Path(words[words.index("-root") + 1]) / "bin" / "erl"
    subprocess.run(
        [erl, "-boot", "no_dot_erlang", "-sname", "epmd-starter-1", "-noinput", "-s", "erlang", "halt"],
        env=node.environ(), cwd=target.home.root, capture_output=True, timeout=60,
    )  # fmt: skip
    assert name_services() <= before
    assert not list(target.home.root.glob("*crash*"))
    assert pids(target)["rabbitmq"] == node.pid


def test_no_secret_is_in_a_command_line_and_no_file_with_one_is_open_to_others(bench, target):
    cookie = (rabbitmq.data_folder(target.home) / ".erlang.cookie").read_text()
    secrets = {*target._secrets().values(), cookie}
    commands = [" ".join(process.cmdline()) for process in owned_processes(target.home)]
    assert not [command for command in commands for secret in secrets if secret in command]
    files = [path for path in rabbitmq.data_folder(target.home).rglob("*") if path.is_file()]
    files += [rabbitmq.configuration_file(target.home), rabbitmq.environment_file(target.home)]
    assert {path for path in files if path.stat().st_mode & 0o077} == set()


@pytest.mark.parametrize(
    ("user", "password", "vhost"), [("guest", "guest", "/"), ("guest", "guest", "airflow"), ("airflow", "wrong", "airflow")]
)
def test_the_node_lets_in_nobody_but_its_user(bench, target, user, password, vhost):
    host = f"127.0.0.1:{target.installed()['broker']['port']}"
    stranger = amqp.Connection(host, userid=user, password=password, virtual_host=vhost, login_method="PLAIN", connect_timeout=5)
    with pytest.raises(amqp.exceptions.AccessRefused):
        stranger.connect()
    stranger.collect()


def test_every_question_to_the_workers_is_answered(fleet):
    assert fleet.reachable()
    assert fleet.answering(WORKERS) == set(WORKERS)
    assert fleet.queues(WORKERS) == {key: ["default"] for key in WORKERS}
    assert fleet.concurrency(WORKERS) == dict.fromkeys(WORKERS, 2)
    assert fleet.in_hand([Worker(name) for name in WORKERS]) == 0
    assert fleet.tasks_of("worker-1") == 0
    assert fleet.memory() is None


def test_a_worker_has_its_new_size_when_resize_returns(fleet):
    for worker in (Worker("worker-1", 3, ("default", "heavy")), Worker("worker-1")):
        fleet.resize(worker)
        assert fleet.concurrency(["worker-1"]) == {"worker-1": worker.concurrency}
        assert fleet.queues(["worker-1"]) == {"worker-1": sorted(worker.queues)}


def test_a_queue_that_does_not_exist_hides_no_other(fleet, target):
    with Connection(address(target)) as connection, connection.Producer() as producer:
        for _ in range(3):
            producer.publish({}, routing_key="parked", declare=[Queue("parked")])
    wait_for(lambda: fleet.waiting(["parked"]) == {"parked": 3}, 10, "three messages in the queue")
    assert fleet.waiting(["absent", "parked", "missing"]) == {"absent": 0, "parked": 3, "missing": 0}
    with Connection(address(target)) as connection:
        assert connection.default_channel.queue_purge("parked") == 3
    assert fleet.waiting(["parked"]) == {"parked": 0}


def test_a_broker_that_cannot_be_reached_is_an_error_that_people_can_read(bench, target):
    port = target.installed()["broker"]["port"]
    for url, words in ((rabbitmq.url(port, "wrong"), "ACCESS_REFUSED"), (rabbitmq.url(free_port(), "x"), "refused")):
        stranger = Fleet(url)
        for ask in (stranger.reachable, stranger.memory, lambda: stranger.waiting(["default"]), lambda: stranger.answering(WORKERS)):  # noqa: B023
            with pytest.raises(ProvisionError, match=f"broker does not answer.*{words}"):
                ask()
        stranger.close()


def test_messages_outlive_a_restart_of_the_installation(bench, fleet, target):
    with bench.probe({"tasks": 4, "kind": "noop"}) as probe:
        probe.deliver()
        target.set_workers([])
        probe.trigger()
        wait_for(lambda: fleet.waiting(["default"]) == {"default": 4}, 60, "four messages in the broker")
        target.stop()
        assert owned_processes(target.home) == []
        target.install(wanted("celery", broker="rabbitmq", workers=[]))
        assert fleet.waiting(["default"]) == {"default": 4}
        target.install(wanted("celery", broker="rabbitmq"))
        assert fleet.answering(WORKERS) == set(WORKERS)
        probe.wait(timeout_s=120)
        attempts = probe.collect()
    assert timeline.states(attempts) == {"success": 4}
    assert {attempt.try_number for attempt in attempts} == {1}


def test_a_node_that_dies_is_shown_and_named_and_started_again(bench, target, fab):
    psutil.Process(pids(target)["rabbitmq"]).kill()
    with pytest.raises(ProvisionError, match="rabbitmq ended") as error:
        bench.run({"tasks": 2, "kind": "noop"})
    assert error.value.hint == "fab logs rabbitmq"
    shown = fab("status").stdout
    assert re.search(r"^rabbitmq +exited", shown, flags=re.M)
    assert "would start rabbitmq: not running" in shown
    assert [(change.action, change.name) for change in target.install(wanted("celery", broker="rabbitmq"))] == [("start", "rabbitmq")]
    assert timeline.states(bench.run({"tasks": 6, "kind": "noop"}).attempts) == {"success": 6}


def test_one_broker_takes_the_place_of_the_other_even_on_the_same_port(bench, target, monkeypatch):
    monkeypatch.setenv("LAB_BROKER_PORT", str(free_port()))
    for broker, other in (("redis", "rabbitmq"), ("rabbitmq", "redis")):
        target.install(wanted("celery", broker=broker))
        assert broker in pids(target)
        assert other not in pids(target)
        assert target.install(wanted("celery", broker=broker)) == []
        assert timeline.states(Bench(read_installation()).run({"tasks": 6, "kind": "noop"}).attempts) == {"success": 6}


def test_a_port_that_is_taken_is_named(target, monkeypatch):
    target.install(wanted("celery", broker="rabbitmq"))
    monkeypatch.setenv("LAB_BROKER_PORT", target.installed()["api"]["url"].rsplit(":", 1)[1])
    with pytest.raises(ProvisionError, match=r"Port \d+ for rabbitmq is taken by api-server") as error:
        target.install(wanted("celery", broker="rabbitmq"))
    assert "LAB_BROKER_PORT" in error.value.hint


def test_another_port_moves_the_node(bench, target, monkeypatch):
    port = free_port()
    monkeypatch.setenv("LAB_BROKER_PORT", str(port))
    changes = target.install(wanted("celery", broker="rabbitmq"))
    assert ("restart", "rabbitmq") in {(change.action, change.name) for change in changes}
    assert ("127.0.0.1", port) in listeners([psutil.Process(pids(target)["rabbitmq"])])


def test_nothing_is_left_when_it_is_stopped(bench, target):
    node = psutil.Process(pids(target)["rabbitmq"])
    family = [node, *node.children(recursive=True)]
    target.stop()
    assert owned_processes(target.home) == []
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

"""What an installation should look like on this machine: programs, files, and what is said of them to others."""

from __future__ import annotations

import json
import runpy
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from labs.installation import Installation
from provision.airflow import worker_environment
from provision.errors import ProvisionError
from provision.home import LabHome, lab_home, write_private
from provision.local import rabbitmq, valkey
from provision.local.desired import (
    BROKER_PURPOSE,
    WARM_S,
    Desired,
    broker_url,
    desired_state,
    files_of,
    installation_document,
    render_worker_file,
    worker_file,
)
from provision.local.ports import free_port
from provision.local.supervisor import Program
from provision.variants import BROKERS, CORE_SERVICES, VARIANTS, wanted, wanted_again
from provision.workers import Worker, worker_from

HEAVY = Worker("heavy-1", 4, ("heavy", "default"), at_least=1)


@pytest.fixture
def home() -> LabHome:
    """Return this test's home, prepared."""
    made = lab_home()
    made.prepare()
    return made


@pytest.fixture(autouse=True)
def rabbitmq_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return where RabbitMQ would be installed, also on a machine without it; nothing is started here."""
    script = tmp_path / "rabbitmq-server"
    script.touch()
    monkeypatch.setattr(rabbitmq, "SCRIPTS", (str(script),))
    return script


def desired(home: LabHome, variant: str = "celery", **asked) -> Desired:
    """Return the desired state of a variant where nothing runs."""
    return desired_state(home, wanted(variant, **asked), ())


def programs(state: Desired) -> dict[str, Program]:
    """Return the programs by name."""
    return {program.name: program for program in state.programs}


def words_of(program: Program) -> list[str]:
    """Return the command line of a program as a shell reads it."""
    return shlex.split(program.command_line().replace("%%", "%"))


def variables(text: str) -> dict[str, str]:
    """Return what a file of variables says."""
    return {name: value.strip("'") for name, _, value in (line.partition("=") for line in text.splitlines())}


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"variant": "sqlite"}, [*CORE_SERVICES]),
        ({"variant": "postgres"}, [*CORE_SERVICES, "postgres"]),
        ({"variant": "celery"}, [*CORE_SERVICES, "flower", "worker-1", "worker-2", "worker-3", "postgres", "redis"]),
        ({"variant": "celery", "workers": [HEAVY], "broker": "rabbitmq"}, [*CORE_SERVICES, "flower", "heavy-1", "postgres", "rabbitmq"]),
        ({"variant": "celery", "workers": []}, [*CORE_SERVICES, "flower", "postgres", "redis"]),
    ],
)
def test_a_variant_consists_of_these_programs_and_each_has_a_digest(home, asked, names):
    state = desired(home, **asked)
    assert list(programs(state)) == names
    assert set(state.digests) == set(names)


def test_asking_twice_gives_the_same_answer(home):
    assert desired(home) == desired(home)


@pytest.mark.parametrize("asked", [*({"variant": name} for name in VARIANTS), {"broker": "rabbitmq", "workers": [HEAVY]}], ids=str)
def test_no_secret_is_in_a_command_line_a_digest_or_the_installation_file(home, asked):
    state = desired(home, **asked)
    seen = [
        *(program.command_line() for program in state.programs),
        *state.digests.values(),
        json.dumps(installation_document(home, state)),
    ]
    assert len(state.secrets) >= 8
    for name, secret in state.secrets.items():
        assert not any(secret in text for text in seen), name


@pytest.mark.parametrize("broker", BROKERS)
def test_only_the_files_that_need_a_secret_hold_it(home, broker):
    holders = {
        "api_password": {"airflow/passwords.json"},
        "broker_password": {"airflow.env", "state/valkey.conf" if broker == "redis" else "state/rabbitmq.conf"},
        "flower_password": {"airflow.env"},
        "database_password": {"airflow.env"},
        "supervisor_password": set(),
    }
    state = desired(home, broker=broker)
    files = {str(path.relative_to(home.root)): text for path, text in files_of(home, state).items()}
    assert {name: {path for path, text in files.items() if state.secrets[name] in text} for name in holders} == holders


def test_the_environment_holds_the_addresses_of_what_was_chosen(home):
    state = desired(home)
    ports, environment = state.ports, state.environment
    assert environment["AIRFLOW__CELERY__BROKER_URL"] == broker_url("redis", ports, state.secrets["broker_password"])
    assert environment["AIRFLOW__CELERY__RESULT_BACKEND"] == "db+" + environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    assert f":{ports['postgres']}/" in environment["AIRFLOW__CELERY__RESULT_BACKEND"]
    assert environment["AIRFLOW__CELERY__FLOWER_PORT"] == str(ports["flower"])


def test_the_ports_that_the_user_chose_are_in_what_airflow_is_told(home, monkeypatch):
    broker, flower = free_port(), free_port()
    monkeypatch.setenv("LAB_BROKER_PORT", str(broker))
    monkeypatch.setenv("LAB_FLOWER_PORT", str(flower))
    state = desired(home)
    assert f"@127.0.0.1:{broker}/" in state.environment["AIRFLOW__CELERY__BROKER_URL"]
    assert state.environment["AIRFLOW__CELERY__FLOWER_PORT"] == str(flower)
    assert f"\nport {broker}\n" in files_of(home, state)[valkey.configuration_file(home)]
    assert installation_document(home, state)["flower"]["url"] == f"http://127.0.0.1:{flower}"


@pytest.mark.parametrize(
    ("broker", "address"),
    [("redis", "redis://:pass-word@127.0.0.1:7001/0"), ("rabbitmq", "amqp://airflow:pass-word@127.0.0.1:7002/airflow"), ("", "")],
)
def test_the_address_of_a_broker_is_on_loopback_with_its_password(broker, address):
    assert broker_url(broker, {"redis": 7001, "rabbitmq": 7002}, "pass-word") == address


@pytest.mark.parametrize("worker", [Worker("worker-1"), HEAVY], ids=str)
def test_the_file_of_a_worker_says_what_it_is_and_that_it_goes_by_its_name(home, worker):
    said = variables(render_worker_file(worker))
    assert said.items() >= worker_environment(worker).items()
    module, _, function = said["AIRFLOW__CORE__HOSTNAME_CALLABLE"].rpartition(".")
    (file,) = (path for path in files_of(home, desired(home)) if path.stem == module)
    assert file.parent == home.airflow_home / "config"
    assert function == "worker_name"


def test_what_airflow_asks_for_a_workers_name_answers_with_it(home, monkeypatch, tmp_path):
    (text,) = (text for path, text in files_of(home, desired(home)).items() if path.name == "lab_worker_name.py")
    (tmp_path / "asked.py").write_text(text)
    monkeypatch.setenv("LAB_WORKER", "heavy-1")
    assert runpy.run_path(str(tmp_path / "asked.py"))["worker_name"]() == "heavy-1"


def test_each_worker_has_a_file_of_its_own_among_the_state(home):
    files = {worker_file(home, worker.name) for worker in desired(home).workers.values()}
    assert files == {home.state / "workers" / f"worker-{n}.env" for n in (1, 2, 3)}
    assert worker_file(home, "heavy-1").is_relative_to(home.state)


def test_a_worker_finishes_its_tasks_before_it_ends(home):
    state = programs(desired(home))
    assert (state["worker-1"].stop_signal, state["worker-1"].stop_seconds) == ("TERM", WARM_S)
    assert state["scheduler"].stop_seconds < 30


@pytest.mark.parametrize("worker", [Worker("worker-1"), HEAVY], ids=str)
def test_a_worker_is_started_with_what_its_file_says(home, worker):
    state = desired(home, workers=[worker])
    write_private(home.environment_file, files_of(home, state)[home.environment_file])
    write_private(worker_file(home, worker.name), render_worker_file(worker))
    program = programs(state)[worker.name]
    script = home.root / "show"
    script.write_text('#!/bin/sh\necho "$@"\necho "$AIRFLOW__CORE__HOSTNAME_CALLABLE $AIRFLOW__CORE__EXECUTOR"\n')
    script.chmod(0o700)
    command = tuple(str(script) if word == str(state.placement.airflow_binary) else word for word in program.command)
    assert command != program.command
    done = subprocess.run(words_of(replace(program, command=command)), env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    autoscale = " --autoscale 4,1" if worker.at_least else ""
    assert done.stdout.splitlines() == [
        f"celery worker --skip-serve-logs --celery-hostname {worker.name} --queues {','.join(worker.queues)} "
        f"--concurrency {worker.concurrency}{autoscale}",
        "lab_worker_name.worker_name CeleryExecutor",
    ]


def test_only_a_workers_file_changes_when_it_gets_other_concurrency_and_queues(home):
    before = desired(home, workers=[Worker("worker-1")])
    after = desired(home, workers=[Worker("worker-1", 4, ("heavy",))])
    assert (after.programs, after.digests, files_of(home, after)) == (before.programs, before.digests, files_of(home, before))
    assert render_worker_file(after.workers["worker-1"]) != render_worker_file(before.workers["worker-1"])


def test_workers_that_come_and_go_change_no_other_program(home):
    few, many = desired(home, workers=[Worker("worker-1")]), desired(home, workers=[Worker("worker-1"), HEAVY])
    assert set(many.digests) - set(few.digests) == {"heavy-1"}
    assert few.digests.items() <= many.digests.items()
    assert few.environment == many.environment


def test_a_setting_of_celery_restarts_no_store(home):
    before, after = desired(home), desired(home, changes={"celery.worker_prefetch_multiplier": "4"})
    changed = {name for name in before.digests if before.digests[name] != after.digests[name]}
    assert changed == {"scheduler", "flower", "worker-1", "worker-2", "worker-3"}


@pytest.mark.parametrize("broker", BROKERS)
def test_another_port_restarts_the_broker_and_all_who_talk_to_it(home, monkeypatch, broker):
    before = desired(home, broker=broker)
    monkeypatch.setenv("LAB_BROKER_PORT", str(free_port()))
    after = desired(home, broker=broker)
    changed = {name for name in before.digests if before.digests[name] != after.digests[name]}
    assert changed == {broker, "scheduler", "flower", "worker-1", "worker-2", "worker-3"}


def test_times_without_a_zone_are_utc_wherever_the_machine_is(home, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    command = " ".join(programs(desired(home))["postgres"].command)
    assert "-c timezone=UTC" in command
    assert "-c log_timezone=UTC" in command


def test_redis_keeps_messages_on_loopback_behind_a_password(home):
    state = desired(home)
    lines = files_of(home, state)[valkey.configuration_file(home)].splitlines()
    said = {"bind 127.0.0.1", f"port {state.ports['redis']}", "protected-mode yes", "appendonly yes", "maxmemory-policy noeviction"}
    assert said <= set(lines)
    assert f"requirepass {state.secrets['broker_password']}" in lines
    assert str(valkey.configuration_file(home)) in programs(state)["redis"].command


@pytest.mark.parametrize(
    ("name", "written"), [('a"b', 'a\\"b'), ("a\\names", "a\\\\names"), ("with space", "with space"), ("größe", "größe")]
)
def test_a_folder_of_any_name_is_quoted_for_redis(tmp_path, name, written):
    home = LabHome(tmp_path / name, tmp_path / name)
    assert f'dir "{tmp_path}/{written}/databases/valkey"' in valkey.render_configuration(home, 7001, "x").splitlines()


def test_rabbitmq_listens_on_loopback_alone_and_has_no_guest(home, rabbitmq_server):
    state = desired(home, broker="rabbitmq")
    files = files_of(home, state)
    assert f"listeners.tcp.1 = 127.0.0.1:{state.ports['rabbitmq']}" in files[rabbitmq.configuration_file(home)].splitlines()
    assert "default_user = airflow" in files[rabbitmq.configuration_file(home)].splitlines()
    said = variables(files[rabbitmq.environment_file(home)])
    assert said["RABBITMQ_DIST_PORT"] == str(state.ports["rabbitmq-nodes"])
    assert "inet_dist_use_interface {127,0,0,1}" in said["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
    assert programs(state)["rabbitmq"].command == (str(rabbitmq_server),)
    assert programs(state)["rabbitmq"].environment_file == rabbitmq.environment_file(home)
    assert valkey.configuration_file(home) not in files


def test_a_machine_without_rabbitmq_is_told_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(rabbitmq, "SCRIPTS", ())
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(ProvisionError, match="RabbitMQ is not installed") as missing:
        rabbitmq.server_command()
    assert "install rabbitmq" in missing.value.hint


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if not variant.uses_celery])
def test_without_celery_there_is_no_broker_and_no_file_for_one(home, name):
    desired(home)
    state = desired(home, name)
    document = installation_document(home, state)
    assert (document["broker"], document["workers"], document["flower"]) == (None, [], None)
    assert state.placement.broker_url == ""
    assert {path.name for path in files_of(home, state)}.isdisjoint({"lab_worker_name.py", "valkey.conf", "rabbitmq.conf", "rabbitmq.env"})
    assert not any(variable.startswith("AIRFLOW__CELERY") for variable in state.environment)


@pytest.mark.parametrize("broker", BROKERS)
def test_the_installation_file_tells_labs_of_workers_broker_and_flower(home, broker):
    state = desired(home, broker=broker, workers=[Worker("worker-1"), HEAVY])
    document = json.loads(json.dumps(installation_document(home, state)))
    assert document["broker"] == {"kind": broker, "host": "127.0.0.1", "port": state.ports[broker]}
    assert document["flower"] == {"url": f"http://127.0.0.1:{state.ports['flower']}", "user": "lab"}
    assert wanted_again(document) == state.wanted
    assert [entry.pop("node") for entry in document["workers"]] == ["localhost", "localhost"]
    assert tuple(worker_from(entry) for entry in document["workers"]) == state.wanted.workers
    assert (Installation(document).broker, len(Installation(document).workers)) == (broker, 2)


@pytest.mark.parametrize("asked", [{"variant": name} for name in VARIANTS] + [{"broker": "rabbitmq"}], ids=str)
def test_the_installation_file_says_of_each_service_what_it_is_for(home, asked):
    state = desired(home, **asked)
    services = {service["name"]: service for service in installation_document(home, state)["services"]}
    assert list(services) == list(programs(state))
    for name, service in services.items():
        assert service["log"] == str(home.logs / f"{name}.log")
        assert (service["purpose"] == BROKER_PURPOSE) == (name in BROKERS)
        assert (service["purpose"] == "the metadata database") == (name == "postgres")
        assert service["purpose"].startswith("Celery worker") == (name in state.workers)

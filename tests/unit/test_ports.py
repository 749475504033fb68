"""Which loopback port each service gets: the user's choice, else the one it had, else a free one."""

from __future__ import annotations

import json
import socket
import stat

import pytest

from provision.errors import ProvisionError, UsageError
from provision.home import LabHome, lab_home
from provision.local.ports import PORT_VARIABLES, choose_ports, free_port, port_is_free
from provision.variants import CORE_SERVICES, variant_named

CELERY = variant_named("celery").services
REDIS, RABBITMQ = [*CELERY, "redis"], [*CELERY, "rabbitmq"]
CHOSEN = {service: variable for service, variable in PORT_VARIABLES.items() if variable}


@pytest.fixture
def home() -> LabHome:
    """Return this test's home, prepared."""
    made = lab_home()
    made.prepare()
    return made


def services_of(service: str) -> list[str]:
    """Return the services of an installation that has this one."""
    return RABBITMQ if service == "rabbitmq" else REDIS


@pytest.mark.parametrize(
    ("services", "listening"),
    [
        (CORE_SERVICES, {"api-server"}),
        (["postgres", *CORE_SERVICES], {"api-server", "postgres"}),
        (REDIS, {"api-server", "postgres", "flower", "redis"}),
        (RABBITMQ, {"api-server", "postgres", "flower", "rabbitmq", "rabbitmq-nodes"}),
        ([*CORE_SERVICES, ""], {"api-server"}),
        ([], set()),
    ],
)
def test_every_service_that_listens_gets_a_free_port_of_its_own(home, services, listening):
    ports = choose_ports(home, services, ())
    assert set(ports) == listening
    assert len(set(ports.values())) == len(ports)
    assert all(port_is_free(port) for port in ports.values())


def test_the_ports_are_kept_in_a_file_that_only_the_owner_can_read(home):
    ports = choose_ports(home, RABBITMQ, ())
    file = home.state / "ports.json"
    assert json.loads(file.read_text()) == ports
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_service_keeps_the_port_that_it_had(home):
    first = choose_ports(home, REDIS, ())
    assert choose_ports(home, REDIS, ()) == first
    choose_ports(home, RABBITMQ, ())
    assert choose_ports(home, REDIS, ()).items() >= first.items()


@pytest.mark.parametrize(("service", "variable"), CHOSEN.items())
def test_the_users_choice_is_taken_and_kept_when_it_is_not_said_again(home, monkeypatch, service, variable):
    choose_ports(home, services_of(service), ())
    port = free_port()
    monkeypatch.setenv(variable, str(port))
    assert choose_ports(home, services_of(service), ())[service] == port
    monkeypatch.delenv(variable)
    assert choose_ports(home, services_of(service), ())[service] == port


def test_either_broker_listens_where_the_user_wants_the_broker(home, monkeypatch):
    port = free_port()
    monkeypatch.setenv("LAB_BROKER_PORT", str(port))
    assert choose_ports(home, REDIS, ())["redis"] == port
    ports = choose_ports(home, RABBITMQ, ())
    assert ports["rabbitmq"] == port
    assert ports["rabbitmq-nodes"] != port


@pytest.mark.parametrize("variable", ["LAB_BROKER_PORT", "LAB_FLOWER_PORT"])
def test_a_choice_for_a_service_that_there_is_not_is_not_looked_at(home, monkeypatch, variable):
    monkeypatch.setenv(variable, "no port")
    assert set(choose_ports(home, ["postgres", *CORE_SERVICES], ())) == {"api-server", "postgres"}


@pytest.mark.parametrize(("service", "variable"), CHOSEN.items())
@pytest.mark.parametrize("text", ["0", "65536", "-1", "http", "80 80", "1e3"])
def test_a_choice_that_is_no_port_is_refused_with_the_variable(home, monkeypatch, service, variable, text):
    monkeypatch.setenv(variable, text)
    with pytest.raises(UsageError, match=f"{variable}={text} is not a port"):
        choose_ports(home, services_of(service), ())


@pytest.mark.parametrize(("service", "variable"), CHOSEN.items())
def test_a_choice_that_somebody_else_listens_on_is_refused_with_the_variable(home, monkeypatch, service, variable):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setenv(variable, str(port))
        with pytest.raises(ProvisionError, match=rf"Port {port} for {service} is taken by process \d+") as refused:
            choose_ports(home, services_of(service), ())
    assert variable in refused.value.hint


@pytest.mark.parametrize("service", PORT_VARIABLES)
def test_a_port_that_somebody_else_took_meanwhile_is_given_up(home, service):
    services = RABBITMQ if service.startswith("rabbitmq") else REDIS
    before = choose_ports(home, services, ())
    with socket.create_server(("127.0.0.1", before[service])):
        after = choose_ports(home, services, ())
    assert after[service] != before[service]
    assert {name: port for name, port in after.items() if name != service} == {n: p for n, p in before.items() if n != service}


@pytest.mark.parametrize("service", PORT_VARIABLES)
def test_a_service_that_runs_keeps_the_port_it_listens_on(home, monkeypatch, service):
    program = service.removesuffix("-nodes")
    before = choose_ports(home, services_of(program), ())
    with socket.create_server(("127.0.0.1", before[service])):
        assert choose_ports(home, services_of(program), [program]) == before
        if PORT_VARIABLES[service]:
            monkeypatch.setenv(PORT_VARIABLES[service], str(before[service]))
            assert choose_ports(home, services_of(program), [program]) == before


def test_the_other_broker_takes_over_the_port_of_the_one_that_is_stopped_for_it(home, monkeypatch):
    port = free_port()
    monkeypatch.setenv("LAB_BROKER_PORT", str(port))
    choose_ports(home, REDIS, ())
    with socket.create_server(("127.0.0.1", port)):
        assert choose_ports(home, RABBITMQ, ["redis"])["rabbitmq"] == port


def test_one_port_for_two_services_is_refused_with_both(home, monkeypatch):
    port = str(free_port())
    monkeypatch.setenv("LAB_BROKER_PORT", port)
    monkeypatch.setenv("LAB_FLOWER_PORT", port)
    with pytest.raises(ProvisionError, match=f"Port {port} for flower is taken by redis") as refused:
        choose_ports(home, REDIS, ())
    assert "LAB_FLOWER_PORT" in refused.value.hint


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_damaged_file_of_ports_is_written_anew(home, content):
    (home.state / "ports.json").write_text(content)
    ports = choose_ports(home, REDIS, ())
    assert json.loads((home.state / "ports.json").read_text()) == ports

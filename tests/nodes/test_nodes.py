"""What is on the nodes when celery is installed, looked at from outside: users, ports, modes, passwords, units, versions."""

from __future__ import annotations

import re

import amqp
import pytest
import requests
import testinfra

from provision import secret_store, wheelhouse
from provision.nodes.variant_stores import STORES
from provision.variants import wanted

USERS = {"postgres": "postgres", "redis": "redis", "haproxy": "haproxy"}
CONTROL, FIRST, SECOND = "control", "worker-1", "worker-2"
NODES = [CONTROL, FIRST, SECOND]


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def celery(request, target):
    """The celery variant with each broker."""
    target.install(wanted("celery", broker=request.param))
    return target


@pytest.fixture(scope="module")
def hosts(machines, target):
    """Every node as testinfra sees it, over the same ssh-config, by name."""
    path = str(machines.ssh_config())
    return {name: testinfra.get_host(f"ssh://{name}", ssh_config=path, sudo=True) for name in NODES}


def rows(target):
    return {(row.node, row.name): row for row in target.status()}


def test_services_are_enabled_and_run_as_the_right_user(celery, hosts):
    for node, name in rows(celery):
        service = hosts[node].service(f"airflow-{name}")
        assert service.is_running, name
        assert service.is_enabled, name
        user = hosts[node].run(f"stat -c %U /proc/{rows(celery)[node, name].pid}").stdout.strip()
        assert user == USERS.get(name, "rabbitmq" if name == "rabbitmq" else "airflow"), name


def test_only_what_must_be_reached_is_open_and_only_on_the_private_address(celery, hosts):
    broker = celery.installed()["broker"]
    own = {node.name: node.address for node in celery.cluster.nodes}
    allowed = {
        CONTROL: {(own[CONTROL], 8080), (own[CONTROL], 5555), (own[CONTROL], 5432), ("127.0.0.1", 5432), (own[CONTROL], broker["port"])},
        FIRST: {(own[FIRST], 8793)},
        SECOND: {(own[SECOND], 8793)},
    }
    for node in NODES:
        open_there = {(address.strip("[]"), port) for address, port in celery.nodes[node].call("listeners")}
        # sshd, and what only the node itself can reach: Docker's name service, chrony's and Erlang's own ports.
        remote = {(address, port) for address, port in open_there if port != 22 and not address.startswith("127.")}
        assert remote <= allowed[node], node
        assert allowed[node] <= open_there, node


def test_files_with_secrets_can_be_read_only_by_those_who_need_them(celery, hosts):
    for node in NODES:
        environment = hosts[node].file("/etc/airflow-labs/airflow.env")
        assert (environment.user, environment.group, environment.mode) == ("root", "airflow", 0o640)
        home = hosts[node].file("/var/lib/airflow-labs")
        assert (home.user, home.group, home.mode) == ("root", "airflow", 0o750)
        theirs = hosts[node].run("find /etc/airflow-labs /var/lib/airflow-labs -mindepth 1 -maxdepth 2 -user airflow").stdout.split()
        own = {"/etc/airflow-labs/api/passwords.json"} if node == CONTROL else set()
        folders = {"/var/lib/airflow-labs/logs", "/var/lib/airflow-labs/sqlite"}
        assert {path for path in theirs if path.rpartition("/")[0] not in folders} == folders | own
        assert not hosts[node].run("find /etc/airflow-labs /etc/systemd/system -perm -o+w -not -type l").stdout
    passwords = hosts[CONTROL].file("/etc/airflow-labs/api/passwords.json")
    assert (passwords.user, passwords.mode) == ("airflow", 0o600)
    kind = celery.installed()["broker"]["kind"]
    assert hosts[CONTROL].file(f"/etc/airflow-labs/{kind}.conf").mode == 0o600
    assert not hosts[FIRST].file("/etc/airflow-labs/api/passwords.json").exists


def test_no_secret_is_in_a_command_line_or_a_unit_or_the_journal(celery, hosts):
    secrets = list(secret_store.load_or_create(celery.home).values())
    for node in NODES:
        seen = hosts[node].run("cat /etc/systemd/system/airflow-*.service; ps -eo args; journalctl -q -o cat").stdout
        assert "airflow-log-server" in seen or "airflow-scheduler" in seen
        assert "systemd" in seen
        assert not [value for value in secrets if value in seen]


def test_nobody_gets_in_without_a_password(celery, hosts):
    url = celery.installed()["api"]["url"]
    assert requests.get(f"{url}/api/v2/dags", timeout=30).status_code == 401
    assert requests.get(celery.installed()["flower"]["url"] + "/api/workers", timeout=30).status_code == 401
    control = celery.cluster.control.address
    anybody = hosts[FIRST]
    psql = hosts[CONTROL].run(f"runuser -u nobody -- psql -w -h {control} -U airflow -d airflow -c 'select 1'")
    assert psql.rc != 0
    assert "password" in psql.stderr
    if celery.installed()["broker"]["kind"] == "redis":
        python = f"import socket; s = socket.create_connection(('{control}', 6379)); s.send(b'PING\\r\\n'); print(s.recv(99))"
        assert "NOAUTH" in anybody.run(f"python3 -c {shell(python)}").stdout
    else:
        host, password = f"{control}:5672", secret_store.load_or_create(celery.home)["broker_password"]
        with amqp.Connection(host, userid="airflow", password=password, virtual_host="airflow", connect_timeout=10) as connection:
            assert connection.connected
        for user, word, vhost in (("guest", "guest", "/"), ("guest", "guest", "airflow"), ("airflow", "guest", "airflow")):
            refused = amqp.Connection(host, userid=user, password=word, virtual_host=vhost, connect_timeout=10)
            with pytest.raises(amqp.AccessRefused):
                refused.connect()


def shell(text):
    return "'" + text.replace("'", "'\"'\"'") + "'"


def test_units_are_hardened(celery, hosts):
    wanted = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "Restart": "on-failure"}
    for node, name in rows(celery):
        shown = hosts[node].run(f"systemctl show airflow-{name} -p {','.join(wanted)}").stdout
        assert dict(line.split("=", 1) for line in shown.splitlines()) == wanted, name


def test_workers_get_the_time_to_finish(celery, hosts):
    shown = hosts[SECOND].run("systemctl show airflow-worker-2 -p KillMode,TimeoutStopUSec,User").stdout
    assert dict(line.split("=", 1) for line in shown.splitlines()) == {"KillMode": "mixed", "TimeoutStopUSec": "15min", "User": "airflow"}


def test_every_node_has_exactly_the_versions_of_the_lock(celery, hosts):
    python = celery.installed()["versions"]["python"]
    folder = wheelhouse.wheelhouse_path(celery.shared, python, hosts[CONTROL].run("uname -m").stdout.strip())
    locked = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", wheelhouse.requirements(folder), flags=re.M))
    listing = "import importlib.metadata as m; print('\\n'.join(f'{d.name}=={d.version}' for d in m.distributions()))"
    for node in NODES:
        shown = hosts[node].run(f"/opt/airflow-labs/current/bin/python -c {shell(listing)}").stdout
        there = {normal(name): version for name, version in (line.split("==") for line in shown.split())}
        assert there, node
        wanted = {normal(name): version for name, version in locked.items()}
        assert there == wanted, node


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_environment_belongs_to_root_and_leads_to_one_version(celery, hosts):
    for node in NODES:
        link = hosts[node].file("/opt/airflow-labs/current")
        assert link.is_symlink
        assert hosts[node].file(link.linked_to).user == "root"
        assert not hosts[node].file("/opt/airflow-labs/wheelhouse").exists


def test_clocks_are_kept_and_their_difference_is_known(celery, hosts):
    for node in NODES:
        assert hosts[node].service("chrony").is_running
    open_there = {line.split()[3] for line in hosts[CONTROL].run("ss -H -u -l -n").stdout.splitlines()}
    assert {address for address in open_there if address.endswith(":123")} == {f"{celery.cluster.control.address}:123"}
    for node in celery.installed()["nodes"]:
        assert abs(node["clock_offset_s"]) < 60
        assert node["clock_uncertainty_s"] > 0


def test_the_user_of_the_services_cannot_log_in_and_has_one_number_everywhere(celery, hosts):
    for node in NODES:
        user = hosts[node].user("airflow")
        assert user.shell == "/usr/sbin/nologin"
        assert (user.uid, user.gid) == (50000, 50000)


def test_the_distributions_own_servers_do_not_run_beside_ours(celery, hosts):
    for name in ("redis-server", "rabbitmq-server", "postgresql", "epmd"):
        service = hosts[CONTROL].service(name)
        assert not service.is_running, name
        assert not service.is_enabled, name
    stores = [name for _, name in rows(celery) if name in STORES]
    assert sorted(stores) == sorted(["postgres", celery.installed()["broker"]["kind"]])

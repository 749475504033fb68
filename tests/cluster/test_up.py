"""fab up: three machines that reach each other, made once, repaired when one is missing, and refused where they would disturb."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest

from provision import inventory
from provision.errors import ProvisionError
from provision.inventory import connections
from provision.lock import HELD_VARIABLE, exclusive

NAMES = ["control", "worker-1", "worker-2"]
INSECURE = "vagrant insecure public key"


def run(connection, command):
    """Return what a command prints on a node."""
    return connection.run(command, hide=True, in_stream=False).stdout.strip()


def start_times(nodes):
    """Return when each node was started; a restart changes it."""
    return {name: run(connection, "stat -c %Y /proc/1") for name, connection in nodes.items()}


def vagrant(machines, *arguments):
    """Run Vagrant by hand, as a user would who knows where the state is."""
    environment = {**os.environ, "VAGRANT_DOTFILE_PATH": str(machines.folder)}
    return subprocess.run(["vagrant", *arguments], capture_output=True, text=True, timeout=300, env=environment, check=True).stdout


def problem_of(machines):
    """Return why the nodes cannot be reached; empty if they can."""
    try:
        for connection in connections(machines).values():
            connection.close()
    except ProvisionError as error:
        return error.message
    return ""


@pytest.fixture
def only_docker(machines):
    if machines.provider() != "docker":
        pytest.skip("only containers can be looked at from outside")


def test_three_nodes_can_be_reached_and_have_their_names(nodes):
    assert list(nodes) == NAMES
    assert [run(connection, "hostname") for connection in nodes.values()] == NAMES


def test_every_node_has_its_private_address_and_reaches_the_others(machines, nodes):
    for node in machines.cluster.nodes:
        assert f"{node.address}/" in run(nodes[node.name], "ip -4 -brief address")
        for other in machines.cluster.nodes:
            run(nodes[node.name], f"ping -c 1 -W 2 {other.address}")


def test_systemd_has_started_without_a_failed_unit(nodes):
    for name, connection in nodes.items():
        state = connection.run("systemctl is-system-running --wait", hide=True, warn=True).stdout.strip()
        assert state == "running", f"{name}: {run(connection, 'systemctl --failed --no-legend')}"


def test_a_node_has_what_every_install_needs(nodes):
    for connection in nodes.values():
        assert run(connection, "sudo -n id -un") == "root"
        run(connection, "python3 -c 'import venv, ensurepip' && ip -V && ps --version && test -s /etc/ssl/certs/ca-certificates.crt")


def test_services_start_when_they_are_installed(nodes):
    """Images for containers forbid it, and then nothing that is installed would run."""
    for connection in nodes.values():
        assert not connection.run("test -e /usr/sbin/policy-rc.d", hide=True, warn=True).ok


def test_keys_and_identities_differ_between_the_nodes(nodes):
    for what in ("cat ~/.ssh/authorized_keys", "cat /etc/ssh/ssh_host_ed25519_key.pub", "cat /etc/machine-id"):
        seen = {run(connection, what) for connection in nodes.values()}
        assert len(seen) == len(NAMES), what
        assert not any(INSECURE in text for text in seen)


def test_a_node_does_not_accept_the_key_of_another_one(machines):
    config = inventory.ssh_config_path(machines.home).read_text()
    key = next(line.split(None, 1)[1].strip('"') for line in config.split("Host worker-2")[1].splitlines() if "IdentityFile" in line)
    stranger = inventory.connection_to(machines.home, machines.ssh_config(), "worker-1")
    stranger.connect_kwargs["key_filename"] = [key]
    with pytest.raises(Exception, match="Authentication"):
        stranger.open()


def test_passwords_are_not_accepted(nodes):
    for connection in nodes.values():
        assert "passwordauthentication no" in run(connection, "sudo sshd -T")


def test_plain_ssh_reaches_a_node_with_the_cached_file(machines):
    done = subprocess.run(
        ["ssh", "-F", str(machines.ssh_config()), "-o", "BatchMode=yes", "worker-2", "hostname"], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout.strip()) == (0, "worker-2")


def test_a_node_with_another_host_key_is_refused(machines):
    known = inventory.known_hosts_path(machines.home)
    record = machines.folder / "airflow-labs.json"
    right = record.read_text()
    document = json.loads(right)
    document["worker-1"]["host_key"] = document["worker-2"]["host_key"]
    try:
        record.write_text(json.dumps(document))
        with pytest.raises(ProvisionError, match="worker-1 cannot be reached: it shows another host key") as error:
            connections(machines)
        assert error.value.hint == "fab up"
    finally:
        record.write_text(right)
    machines.ssh_config()
    assert known.read_text().count("\n") == len(NAMES)


def test_a_second_up_changes_nothing_and_is_quick(fab, machines, nodes):
    before, ids = start_times(nodes), machines.ids()
    begun = time.monotonic()
    done = fab("up")
    seconds = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    assert "0 of 3 machines had to be brought up." in done.stdout
    for node in machines.cluster.nodes:
        assert f"{node.name:16} {node.address:15}" in done.stdout
    assert (machines.ids(), start_times(nodes)) == (ids, before)
    assert seconds < 30


def test_only_the_node_that_was_destroyed_by_hand_comes_back(machines, nodes):
    before, ids = start_times(nodes), machines.ids()
    vagrant(machines, "destroy", "--force", "worker-2")
    with pytest.raises(ProvisionError, match="worker-2"):
        connections(machines)
    assert machines.states() == {"control": "running", "worker-1": "running", "worker-2": "not created"}
    assert machines.up() == ["worker-2"]
    after = connections(machines)
    assert run(after["worker-2"], "hostname") == "worker-2"
    assert {name for name, number in machines.ids().items() if number != ids[name]} == {"worker-2"}
    assert {name: when for name, when in start_times(after).items() if name != "worker-2"} == {
        name: when for name, when in before.items() if name != "worker-2"
    }


def test_a_node_that_was_stopped_by_hand_is_named_and_started_again(machines):
    vagrant(machines, "halt", "--force", "worker-1")
    with pytest.raises(ProvisionError, match="worker-1 cannot be reached") as error:
        connections(machines)
    assert error.value.hint == "fab up"
    assert machines.up() == ["worker-1"]
    assert problem_of(machines) == ""


def test_a_node_whose_ssh_server_is_gone_is_restarted(machines, nodes):
    nodes["worker-1"].run("sudo systemd-run --on-active=1 systemctl mask --now --runtime ssh.socket ssh.service", hide=True)
    deadline = time.monotonic() + 30
    while "worker-1 cannot be reached" not in problem_of(machines):
        assert time.monotonic() < deadline, "the SSH server of worker-1 did not end within 30 s"
    assert machines.up() == ["worker-1"]


@pytest.mark.usefixtures("only_docker")
def test_a_container_that_vagrant_forgot_is_replaced(machines):
    """Vagrant was killed after Docker had made the container and before it wrote down which."""
    lost = machines.ids()["worker-2"]
    (machines.folder / "machines" / "worker-2" / "docker" / "id").unlink()
    assert machines.up() == ["worker-2"]
    there = subprocess.run(["docker", "ps", "--all", "--quiet", "--no-trunc"], capture_output=True, text=True, check=True).stdout.split()
    assert lost not in there
    assert set(machines.ids().values()) <= set(there)


@pytest.mark.usefixtures("only_docker")
def test_a_container_without_its_private_address_is_made_again(machines):
    """Vagrant was killed between starting the container and connecting it; to Vagrant it runs."""
    number = machines.ids()["worker-2"]
    network = f"vagrant_network_{machines.cluster.network}"
    subprocess.run(["docker", "network", "disconnect", network, number], capture_output=True, check=True)
    record = machines.folder / "airflow-labs.json"
    document = json.loads(record.read_text())
    del document["worker-2"]
    record.write_text(json.dumps(document))
    said = []
    assert machines.up(report=said.append) == ["worker-2"]
    assert any("worker-2: it does not have the address" in text for text in said)
    assert machines.ids()["worker-2"] != number


def test_a_range_that_is_in_use_is_refused_before_anything_is_made(fab, machines, cluster_home, tmp_path):
    done = fab("up", "--provider", machines.provider(), LAB_HOME=str(tmp_path / "other"))
    assert done.returncode == 1
    assert "is already" in done.stderr
    assert "LAB_NETWORK=" in done.stderr
    assert not list((tmp_path / "other").glob("vagrant/machines/*/*/id"))
    assert machines.up() == []


def test_another_range_for_machines_that_exist_is_refused(fab, machines):
    done = fab("up", LAB_NETWORK="10.254.253.0/24")
    assert done.returncode == 1
    assert "control was made with the address" in done.stderr


def test_another_provider_for_machines_that_exist_is_refused(fab, machines):
    other = "virtualbox" if machines.provider() != "virtualbox" else "docker"
    done = fab("up", "--provider", other)
    assert done.returncode == 1
    assert f"made with {machines.provider()}; {other} cannot take them over" in done.stderr


def test_two_ups_at_once_do_not_disturb_each_other(fab, machines):
    with exclusive(machines.home, "fab up"):
        done = fab("up", **{HELD_VARIABLE: ""})
    assert done.returncode == 1
    assert "is in use: fab up" in done.stderr

"""Bringing machines up: what is refused beforehand, and what is read from Vagrant, Docker and the system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import IPv4Network
from types import SimpleNamespace

import paramiko
import pytest
import yaml

from provision import address_range, inventory, machines, providers
from provision.address_range import Taken, conflict, parse_routes
from provision.containers import DockerNetwork, parse_docker_networks
from provision.errors import ProvisionError, UsageError
from provision.home import REPOSITORY, LabHome, lab_home
from provision.machines import Machines
from provision.topology import parse_cluster, read_cluster
from provision.vagrant_command import as_table, essence_of, progress_of, vagrant_folder

RANGE = IPv4Network("192.168.56.0/24")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Make PATH hold only programs that the test writes: `programs(docker="echo 27.1")`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("VBOX_MSI_INSTALL_PATH", raising=False)
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    monkeypatch.setattr(providers, "LIBVIRT_SOCKETS", (str(tmp_path / "libvirt-sock"),))

    def write(**scripts):
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    return write


@pytest.fixture
def cluster():
    return read_cluster()


@pytest.fixture
def lab(cluster, monkeypatch):
    """The machines of the test's own home, of which there are none."""
    monkeypatch.delenv("VAGRANT_DOTFILE_PATH", raising=False)
    lab_home().prepare()
    return Machines(lab_home(), cluster)


def made(lab, provider="docker", **ids):
    """Write what Vagrant writes when it has made machines."""
    for name, number in ids.items():
        folder = lab.folder / "machines" / name.replace("_", "-") / provider
        folder.mkdir(parents=True)
        (folder / "id").write_text(number)


# Which provider


def test_vagrant_must_be_there(programs):
    programs()
    with pytest.raises(ProvisionError, match="Vagrant is not installed") as error:
        providers.require_vagrant()
    assert "vagrant" in error.value.hint


def test_vagrant_must_be_new_enough(programs):
    programs(vagrant="echo Vagrant 2.2.19")
    with pytest.raises(ProvisionError, match=r"Vagrant 2\.2\.19 is too old: 2\.3 or later"):
        providers.require_vagrant()


@pytest.mark.parametrize("version", ["2.3.0", "2.3.4", "2.4.9", "2.10.0", "3.0"])
def test_newer_vagrants_will_do(programs, version):
    programs(vagrant=f"echo Vagrant {version}")
    providers.require_vagrant()


def test_a_vagrant_that_says_no_version_is_shown_with_what_it_says(programs):
    programs(vagrant="echo something broke >&2; exit 1")
    with pytest.raises(ProvisionError, match="something broke"):
        providers.require_vagrant()


def test_the_commands_that_need_no_machines_say_nothing_of_a_missing_vagrant(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import provision.tasks"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_an_unknown_provider_is_wrong_use():
    with pytest.raises(UsageError, match="vmware"):
        providers.choose_provider("vmware", None)


def test_machines_stay_with_the_provider_that_made_them(programs):
    programs(docker="echo 27.1", VBoxManage="echo 7.1.6")
    assert providers.choose_provider(None, "docker") == "docker"
    with pytest.raises(ProvisionError, match="made with docker; virtualbox cannot take them over"):
        providers.choose_provider("virtualbox", "docker")


def test_virtual_machines_come_before_containers(programs):
    programs(docker="echo 27.1", VBoxManage="echo 7.1.6")
    assert providers.choose_provider(None, None) == "virtualbox"


def test_containers_do_where_there_is_no_hypervisor(programs):
    programs(docker="echo 27.1")
    assert providers.choose_provider(None, None) == "docker"


def test_the_provider_that_is_asked_for_must_be_there(programs):
    programs(docker="echo 27.1")
    for name, word in (("virtualbox", "VirtualBox is not installed"), ("libvirt", "libvirt is not installed")):
        with pytest.raises(ProvisionError, match=word) as error:
            providers.choose_provider(name, None)
        assert error.value.hint


def test_without_any_provider_every_one_is_listed_with_its_remedy(programs):
    programs()
    with pytest.raises(ProvisionError, match=r"VirtualBox is not installed.*libvirt is not installed.*Docker is not installed") as error:
        providers.choose_provider(None, None)
    assert len(error.value.hint.splitlines()) == 4


@pytest.mark.parametrize(
    ("script", "message", "hint"),
    [
        ("echo 'Cannot connect to the Docker daemon at unix:///x' >&2; exit 1", "Docker's daemon does not answer: Cannot connect", "start"),
        ("echo 'permission denied while trying to connect' >&2; exit 1", "does not let this user in", "adduser"),
    ],
)
def test_a_docker_without_a_daemon_says_what_to_do(programs, script, message, hint):
    programs(docker=script)
    problem = providers.problem_with("docker")
    assert message in problem.message
    assert hint in problem.hint


def test_a_virtualbox_without_its_kernel_module_is_not_usable(programs):
    programs(VBoxManage="echo WARNING: The vboxdrv kernel module is not loaded; echo 7.1.6")
    assert "vboxdrv" in providers.problem_with("virtualbox").message


def test_libvirt_needs_its_plug_in(programs, tmp_path):
    (tmp_path / "libvirt-sock").touch()
    programs(vagrant="echo No plugins installed.")
    assert "no plug-in for libvirt" in providers.problem_with("libvirt").message
    programs(vagrant="echo 'vagrant-libvirt (0.11.2, system)'")
    assert providers.problem_with("libvirt") is None


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows", "FreeBSD"])
@pytest.mark.parametrize("what", ["vagrant", *providers.PROVIDERS])
def test_every_system_is_told_how_to_install_what_is_missing(monkeypatch, system, what):
    monkeypatch.setattr(providers.platform, "system", lambda: system)
    assert providers.how_to_install(what)


# The address range


@pytest.mark.parametrize(
    ("taken", "own", "share", "found"),
    [
        ([], [], False, False),
        ([("10.0.0.0/24", "eth0")], [], False, False),
        ([("192.168.56.0/24", "eth0")], [], False, True),
        ([("192.168.0.0/16", "tun0")], [], False, True),
        ([("192.168.56.128/25", "eth0")], [], False, True),
        ([("192.168.57.0/24", "eth0")], [], False, False),
        ([("192.168.56.0/24", "br-1")], ["br-1"], False, False),
        ([("192.168.56.0/24", "br-1"), ("192.168.56.0/24", "br-2")], ["br-1"], False, True),
        ([("192.168.56.0/24", "vboxnet0")], [], True, False),
        ([("192.168.56.0/24", "virbr1")], [], True, False),
        ([("192.168.56.0/24", "vboxnet0")], [], False, True),
        ([("192.168.0.0/16", "vboxnet0")], [], True, True),
    ],
)
def test_a_range_is_refused_when_something_else_has_a_part_of_it(taken, own, share, found):
    listed = [Taken(IPv4Network(network), "something", interface) for network, interface in taken]
    assert bool(conflict(RANGE, listed, own, share)) is found


def test_routes_are_read_from_linux_and_the_default_route_is_none():
    text = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "tun0\t0038A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    assert parse_routes(text) == [Taken(RANGE, "a route through tun0", "tun0")]


def test_docker_networks_without_an_ipv4_range_are_left_out():
    text = json.dumps(
        [
            {"Id": "a" * 64, "Name": "bridge", "IPAM": {"Config": [{"Subnet": "172.17.0.0/16"}, {"Subnet": "fd00::/64"}]}},
            {"Id": "b" * 64, "Name": "host", "IPAM": {"Config": None}},
            {"Id": "c" * 64, "Name": "none", "IPAM": None},
        ]
    )
    (network,) = parse_docker_networks(text)
    assert (network.name, network.interface) == ("bridge", "br-aaaaaaaaaaaa")
    assert network.ranges == (IPv4Network("172.17.0.0/16"),)


def docker_network(name, span):
    return DockerNetwork("d" * 64, name, (IPv4Network(span),))


@pytest.mark.parametrize(
    ("name", "span", "containers", "refused"),
    [
        ("vagrant_network_192.168.56.0/24", "192.168.56.0/24", set(), False),
        ("vagrant_network_192.168.56.0/24", "192.168.56.0/24", {"ours"}, False),
        ("vagrant_network_192.168.56.0/24", "192.168.56.0/24", {"ours", "theirs"}, True),
        ("vagrant_network_192.168.56.0/16", "192.168.0.0/16", set(), True),
        ("compose_default", "192.168.56.0/24", set(), True),
        ("compose_default", "172.18.0.0/16", {"theirs"}, False),
    ],
)
def test_a_docker_network_is_ours_only_if_nobody_else_is_in_it(monkeypatch, cluster, name, span, containers, refused):
    network = docker_network(name, span)
    bridge = Taken(IPv4Network(span), f"the network interface {network.interface}", network.interface)
    monkeypatch.setattr(address_range, "interfaces", lambda: [bridge])
    monkeypatch.setattr(address_range, "routes", lambda: [bridge])
    monkeypatch.setattr(address_range, "docker_networks", lambda: [network])
    monkeypatch.setattr(address_range, "containers_in", lambda number: containers)
    if not refused:
        address_range.require_free_range(cluster, {"ours"}, set(), docker=True)
        return
    with pytest.raises(ProvisionError, match=f"the Docker network {name} has {span}") as error:
        address_range.require_free_range(cluster, {"ours"}, set(), docker=True)
    assert "LAB_NETWORK=" in error.value.hint


def test_an_address_in_a_shared_network_must_not_be_another_machines(monkeypatch, cluster):
    monkeypatch.setattr(address_range, "interfaces", lambda: [Taken(RANGE, "the network interface vboxnet0", "vboxnet0")])
    monkeypatch.setattr(address_range, "routes", list)
    monkeypatch.setattr(address_range, "answers", lambda address: address == "192.168.56.11")
    address_range.require_free_range(cluster, set(), {"worker-1"}, docker=False)
    with pytest.raises(ProvisionError, match=r"192\.168\.56\.11 of worker-1 is already used"):
        address_range.require_free_range(cluster, set(), {"control"}, docker=False)


def test_the_loopback_interface_is_among_those_of_this_machine():
    assert any(taken.network == IPv4Network("127.0.0.0/8") for taken in address_range.interfaces())


# The machines that there are


def test_vagrant_keeps_its_state_where_a_user_of_vagrant_finds_it(monkeypatch, tmp_path):
    monkeypatch.delenv("VAGRANT_DOTFILE_PATH", raising=False)
    default = REPOSITORY / ".lab"
    assert vagrant_folder(LabHome(default, default)) == REPOSITORY / ".vagrant"
    assert vagrant_folder(LabHome(tmp_path, tmp_path)) == tmp_path / "vagrant"
    monkeypatch.setenv("VAGRANT_DOTFILE_PATH", str(tmp_path / "elsewhere"))
    assert vagrant_folder(LabHome(default, default)) == tmp_path / "elsewhere"


def test_without_machines_nothing_is_asked_of_vagrant(lab, programs):
    programs()
    assert lab.states() == {"control": "not created", "worker-1": "not created", "worker-2": "not created"}
    assert lab.used_provider() is None
    assert lab.destroy() == []
    with pytest.raises(ProvisionError, match="There is no machine for control, worker-1, worker-2") as error:
        inventory.connections(lab)
    assert error.value.hint == "fab up"


def test_the_provider_is_the_one_that_made_the_machines(lab, programs):
    programs(docker="echo 27.1", VBoxManage="echo 7.1.6")
    assert lab.provider() == "virtualbox"
    made(lab, control="c1")
    assert lab.provider() == "docker"


def test_a_container_that_is_only_being_prepared_is_no_machine_yet(lab):
    made(lab, control="c1", worker_1="preparing", worker_2="")
    assert lab.ids() == {"control": "c1"}


def test_what_is_known_of_a_machine_is_forgotten_when_it_is_another_one(lab):
    made(lab, control="c1", worker_1="w1")
    entry = {"address": "192.168.56.10", "host_key": "ssh-ed25519 AAAA"}
    (lab.folder / "airflow-labs.json").write_text(json.dumps({"control": {"id": "c1", **entry}, "worker-1": {"id": "other", **entry}}))
    assert list(lab.recorded()) == ["control"]


def test_states_come_from_vagrant_in_words(lab, programs):
    made(lab, control="c1")
    programs(
        vagrant="""[ "$1" = --version ] && echo Vagrant 2.3.4 && exit
echo 1,control,provider-name,docker; echo 1,control,state,running
echo 1,worker-1,provider-name,docker; echo 1,worker-1,state,not_created"""
    )
    assert lab.states() == {"control": "running", "worker-1": "not created", "worker-2": "not created"}


def test_a_vagrant_that_fails_is_quoted(lab, programs):
    made(lab, control="c1")
    programs(vagrant='[ "$1" = --version ] && echo Vagrant 2.3.4 && exit\necho "The box could not be found" >&2; exit 1')
    with pytest.raises(ProvisionError, match=r"vagrant status failed \(exit code 1\):\s+The box could not be found"):
        lab.states()


def test_machines_of_another_range_are_not_moved_silently(lab, programs):
    programs(vagrant="echo Vagrant 2.3.4", docker="echo 27.1")
    made(lab, control="c1")
    known = {"control": {"id": "c1", "address": "10.11.12.10", "host_key": "ssh-ed25519 AAAA"}}
    (lab.folder / "airflow-labs.json").write_text(json.dumps(known))
    with pytest.raises(ProvisionError, match=r"made with the address 10\.11\.12\.10, but the machine table says 192\.168\.56\.10"):
        lab.up()


def test_machines_that_left_the_table_are_named(lab, programs):
    programs(vagrant="echo Vagrant 2.3.4", docker="echo 27.1")
    made(lab, control="c1", worker_3="w3")
    with pytest.raises(ProvisionError, match="not in the machine table: worker-3"):
        lab.up()


@pytest.mark.parametrize("provider", ["virtualbox", "docker"])
def test_too_little_memory_is_refused_for_virtual_machines_and_said_for_containers(lab, monkeypatch, provider):
    monkeypatch.setattr(machines.psutil, "virtual_memory", lambda: SimpleNamespace(available=3000 * 2**20))
    said = []
    if provider == "docker":
        lab._require_room(provider, ["control", "worker-1"], said.append)
        assert "need 5120 MiB of memory, and 3000 MiB are free" in said[0]
    else:
        with pytest.raises(ProvisionError, match="control, worker-1 need 5120 MiB of memory, and 3000 MiB are free"):
            lab._require_room(provider, ["control", "worker-1"], said.append)


def test_machines_that_run_already_need_no_more_memory(lab, monkeypatch):
    monkeypatch.setattr(machines.psutil, "virtual_memory", lambda: SimpleNamespace(available=3000 * 2**20))
    lab._require_room("virtualbox", ["worker-1"], pytest.fail)


def test_vagrant_gets_the_same_table(cluster):
    assert parse_cluster(yaml.safe_dump(as_table(cluster)), "a table") == cluster


# What Vagrant prints

SSH_CONFIG = """Host control
  HostName 127.0.0.1
  User vagrant
  Port 2222
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  PasswordAuthentication no
  IdentityFile "/some where/keys/control"
  IdentitiesOnly yes
  LogLevel FATAL

Host worker-1
  HostName 192.168.121.7
  User vagrant
  Port 22
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
"""


def test_the_ssh_config_checks_host_keys_although_vagrants_does_not(tmp_path):
    config = paramiko.SSHConfig.from_text(inventory.strict(SSH_CONFIG, tmp_path / "known_hosts"))
    for name in ("control", "worker-1"):
        entry = config.lookup(name)
        assert entry["stricthostkeychecking"] == "yes"
        assert entry["userknownhostsfile"].strip('"') == str(tmp_path / "known_hosts")
        assert entry["hostkeyalias"] == name
    assert config.lookup("control")["port"] == "2222"


def test_a_known_host_is_found_under_its_name_and_its_address():
    assert inventory.addresses(SSH_CONFIG) == {"control": ("127.0.0.1", 2222), "worker-1": ("192.168.121.7", 22)}
    assert inventory.known_hosts_line("control", "127.0.0.1", 2222, "ssh-ed25519 AAAA") == "control,[127.0.0.1]:2222 ssh-ed25519 AAAA\n"
    assert inventory.known_hosts_line("worker-1", "192.168.121.7", 22, "ssh-ed25519 AAAA").startswith("worker-1,192.168.121.7 ")


def test_the_cached_ssh_config_is_private_and_current_only_for_the_same_machines():
    home = lab_home()
    assert not inventory.is_current(home, {"control": "c1"})
    inventory.write_ssh_config(home, SSH_CONFIG, {"control": "c1"})
    inventory.write_known_hosts(home, {"control": "ssh-ed25519 AAAA", "gone": "ssh-ed25519 BBBB"})
    assert inventory.is_current(home, {"control": "c1"})
    assert not inventory.is_current(home, {"control": "c2"})
    assert [path.stat().st_mode & 0o777 for path in inventory.files(home)] == [0o600, 0o600]
    assert inventory.known_hosts_path(home).read_text() == "control,[127.0.0.1]:2222 ssh-ed25519 AAAA\n"


def test_a_connection_reads_no_other_ssh_config_and_no_agent(monkeypatch):
    home = lab_home()
    inventory.write_ssh_config(home, SSH_CONFIG, {"control": "c1"})
    read = []
    monkeypatch.setattr(paramiko.SSHConfig, "from_path", classmethod(lambda cls, path: read.append(path)))
    connection = inventory.connection_to(home, inventory.ssh_config_path(home), "control")
    assert (connection.host, connection.port, connection.user) == ("127.0.0.1", 2222, "vagrant")
    assert connection.connect_kwargs["allow_agent"] is False
    assert connection.connect_kwargs["key_filename"] == ["/some where/keys/control"]
    assert isinstance(connection.client._policy, paramiko.RejectPolicy)
    assert read == []


def test_progress_is_what_vagrant_says_of_machines():
    lines = [
        "Bringing machine 'control' up\n",
        "==> control: Starting container...\n",
        "    control: SSH address\n",
        "==> control: Running trigger...\n",
        "==> control: No version detected for debian, using timestamp to watch for modifications. Consider\n",
        "==> control:  -- Cpus:              2\n",
    ]
    assert [text for line in lines if (text := progress_of(line))] == ["control: Starting container..."]


def test_of_vagrants_errors_the_lines_that_say_something_are_kept():
    text = '==> control: An error occurred.\nAn error occurred while\n\nCommand: ["docker", "run"]\n\nStderr: docker: no space left\n\nStdout: \n'
    assert essence_of(text) == "    Stderr: docker: no space left"
    assert essence_of("") == "    it said nothing"

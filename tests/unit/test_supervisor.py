"""Supervisor's configuration, and the ports that services get."""

from __future__ import annotations

import configparser
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
from supervisor.options import UnhosedConfigParser

from provision.errors import ProvisionError
from provision.home import LabHome, lab_home
from provision.local import supervisor
from provision.local.ports import free_port, port_is_free, port_owner
from provision.local.supervisor import LONGEST_SOCKET_PATH, ProcessState, Program, log_path, render_configuration, socket_path

PROGRAMS = [
    Program("scheduler", ("/lab/bin/airflow", "scheduler", "--skip-serve-logs"), Path("/lab/airflow.env"), stop_seconds=5),
    Program("postgres", ("/usr/bin/postgres", "-D", "/lab/data base", "-c", "log_line_prefix=%m %p"), stop_signal="INT"),
]


def home_in(root: str) -> LabHome:
    return LabHome(Path(root), Path(root))


def parsed(text: str) -> configparser.RawConfigParser:
    """Return the configuration as supervisor's own parser reads it."""
    parser = UnhosedConfigParser()
    parser.read_string(text)
    return parser


def test_the_configuration_is_read_back_by_supervisors_own_parser():
    configuration = parsed(render_configuration(lab_home(), PROGRAMS, "pass-word"))
    assert configuration.sections() == [
        "supervisord",
        "unix_http_server",
        "rpcinterface:supervisor",
        "program:scheduler",
        "program:postgres",
    ]
    assert configuration["unix_http_server"]["password"] == "pass-word"
    assert configuration["unix_http_server"]["chmod"] == "0700"
    assert configuration["supervisord"]["umask"] == "077"
    assert configuration["program:postgres"]["stopsignal"] == "INT"
    assert configuration["program:scheduler"]["stopwaitsecs"] == "5"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_dead_service_stays_dead_so_that_a_lab_notices(program):
    section = parsed(render_configuration(lab_home(), PROGRAMS, "x"))[f"program:{program.name}"]
    assert (section["autorestart"], section["autostart"], section["startretries"]) == ("false", "false", "0")
    assert section["killasgroup"] == "true"


def test_supervisor_listens_on_no_port():
    assert "inet_http_server" not in render_configuration(lab_home(), PROGRAMS, "x")


def test_percent_signs_are_doubled_so_that_supervisor_does_not_expand_them():
    text = render_configuration(home_in("/home/50% %(here)s"), PROGRAMS, "p%w")
    strict = configparser.ConfigParser(interpolation=configparser.BasicInterpolation())
    strict.read_string(text)
    assert strict["unix_http_server"]["password"] == "p%w"
    assert strict["program:postgres"]["directory"] == "/home/50% %(here)s"
    assert shlex.split(strict["program:postgres"]["command"])[-1] == "log_line_prefix=%m %p"


@pytest.mark.parametrize(
    "root", ["/with space/lab", "/größe/日本", "/quote's", '/double"quote', "/dollar$HOME", "/back\\slash", "/a=b:c", "/a#b;c"]
)
def test_a_folder_of_any_name_is_read_back_as_it_is(root):
    configuration = parsed(render_configuration(home_in(root), PROGRAMS, "x"))
    assert configuration["program:postgres"]["directory"] == root
    assert configuration["supervisord"]["childlogdir"] == f"{root}/logs"


@pytest.mark.parametrize("root", ["/projects #1/lab", "/a ;b/lab", "/line\nbreak"])
def test_a_folder_that_supervisor_would_cut_short_is_refused(root):
    # " #" and " ;" begin a comment for supervisor, and nothing can quote them.
    with pytest.raises(ProvisionError, match="may not contain"):
        render_configuration(home_in(root), PROGRAMS, "x")


def test_a_command_is_split_into_its_very_arguments():
    assert shlex.split(PROGRAMS[1].command_line().replace("%%", "%")) == list(PROGRAMS[1].command)


def test_a_program_with_an_environment_file_gets_its_variables_and_keeps_its_process(tmp_path: Path):
    file = tmp_path / "air flow.env"
    file.write_text("GREETING='hello $HOME %d'\n")
    program = Program("x", ("/bin/sh", "-c", 'echo "$GREETING|$1|$$"', "sh", "two words %"), file)
    command = shlex.split(program.command_line().replace("%%", "%"))
    with subprocess.Popen(command, env={}, stdout=subprocess.PIPE, text=True) as process:
        output = process.stdout.read().strip()
    assert output == f"hello $HOME %d|two words %|{process.pid}"


def test_no_secret_of_the_environment_file_is_in_the_command():
    assert "airflow.env" in PROGRAMS[0].command_line()
    assert "AIRFLOW__" not in PROGRAMS[0].command_line()


def test_a_configuration_without_programs_is_valid():
    assert parsed(render_configuration(lab_home(), [], "x")).sections() == ["supervisord", "unix_http_server", "rpcinterface:supervisor"]


def test_the_socket_is_in_the_home_where_its_path_is_short_enough():
    assert socket_path(home_in("/lab")) == Path("/lab/state/supervisor.sock")


@pytest.mark.parametrize("root", ["/" + "x" * 90, "/" + "ü" * 60, "/" + "x" * 4000])
def test_a_socket_path_never_exceeds_what_the_system_takes(root):
    path = socket_path(home_in(root))
    assert len(bytes(path)) < LONGEST_SOCKET_PATH
    assert path == socket_path(home_in(root))
    assert path != socket_path(home_in(root + "y"))


def test_the_longest_socket_path_can_really_be_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "x"
    folder.mkdir()
    monkeypatch.chdir(folder)
    name = "s" * (LONGEST_SOCKET_PATH - 1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
    assert (folder / name).exists()


def test_each_program_has_a_log_of_its_own():
    assert log_path(home_in("/lab"), "scheduler") == Path("/lab/logs/scheduler.log")
    assert log_path(home_in("/lab"), "scheduler") != log_path(home_in("/lab"), "postgres")


def test_a_free_port_is_free_and_can_be_listened_on():
    port = free_port()
    assert 1024 <= port <= 65535
    assert port_is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free(port)
    assert port_is_free(port)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_somebody_listens_on_is_not_free_and_has_an_owner(address):
    with socket.create_server((address, 0)) as listener:
        port = listener.getsockname()[1]
        assert not port_is_free(port)
        assert port_owner(port).startswith("process ")


def test_asking_does_not_occupy_a_port():
    port = free_port()
    assert [port_is_free(port) for _ in range(3)] == [True] * 3
    assert port_owner(port) == ""


@pytest.mark.parametrize(
    ("state", "running"),
    [
        ("STARTING", True),
        ("RUNNING", True),
        ("STOPPING", True),
        ("STOPPED", False),
        ("EXITED", False),
        ("FATAL", False),
        ("BACKOFF", False),
    ],
)
def test_a_process_is_there_until_it_has_ended(state, running):
    assert ProcessState("worker-1", state, 7, 0.0, 0).running is running
    assert ProcessState("worker-1", state, 7, 0.0, 0).ending is (state == "STOPPING")


def test_a_process_that_is_born_while_orphans_are_looked_for_is_none(monkeypatch):
    class Born:
        def __init__(self, pid: int) -> None:
            self.pid = pid

    alive, ended = [Born(1), Born(2)], []
    orphan = Born(99)

    def looked(found):
        seen = list(found)
        alive.append(Born(10 + len(alive)))
        return seen

    class Keeper(Born):
        def children(self, recursive):
            return looked(alive)

    monkeypatch.setattr(supervisor, "owned_processes", lambda home: looked([*alive, orphan]))
    monkeypatch.setattr(supervisor.psutil, "Process", lambda pid: Keeper(pid))
    monkeypatch.setattr(supervisor, "_end", lambda processes, grace_seconds: ended.extend(process.pid for process in processes))
    monkeypatch.setattr(supervisor.Supervisor, "call", lambda self, method: 1)
    supervisor.sweep_orphans(lab_home(), supervisor.Supervisor(lab_home(), "x"))
    assert ended == [99]

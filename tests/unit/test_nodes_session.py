"""The agent of a node, spoken to as over SSH, but as a process of this machine; and files that are written as root would."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import grp
import inspect
import io
import json
import os
import subprocess
import sys
import tempfile

import pytest

from provision.errors import ProvisionError
from provision.nodes.agent import answering, files, users
from provision.nodes.agent.basics import Failure
from provision.nodes.session import Nodes, Session, agent_text

AGENT = [sys.executable, "-c", agent_text()]
ME, MINE = getpass.getuser(), grp.getgrgid(os.getgid()).gr_name


def asked(*requests: dict) -> list[dict]:
    """Return what the agent says to these requests; heartbeats are left out."""
    text = "".join(json.dumps(request) + "\n" for request in requests)
    with tempfile.NamedTemporaryFile() as lock:
        done = subprocess.run([*AGENT, lock.name], input=text, capture_output=True, text=True, check=True)
    return [answer for answer in map(json.loads, done.stdout.splitlines()) if "beat" not in answer]


def test_the_agent_answers_each_request_in_its_order():
    first, second = asked({"op": "names_in", "args": {"folder": "/", "pattern": "etc"}}, {"op": "read", "args": {"path": "/nothing"}})
    assert (first, second) == ({"value": ["etc"]}, {"value": ""})


def test_what_fails_is_told_with_its_last_words_and_the_agent_goes_on():
    failed, after = asked(
        {"op": "run", "args": {"argv": ["sh", "-c", "echo lost >&2; exit 3"]}},
        {"op": "names_in", "args": {"folder": "/", "pattern": "etc"}},
    )
    assert "failed (exit code 3):\n  lost" in failed["error"]
    assert after == {"value": ["etc"]}


def test_no_space_and_other_errors_of_the_system_name_the_file():
    (failed,) = asked({"op": "sizes_in", "args": {"folder": "/nothing"}})
    assert failed["error"] == "sizes_in: No such file or directory (/nothing)"


def test_a_file_is_replaced_in_one_step_with_its_mode(tmp_path):
    path = tmp_path / "folder" / "file"
    wanted = {"text": "one\n", "owner": ME, "group": MINE, "mode": "0640"}
    assert files.write_files({str(path): wanted}) == [str(path)]
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("one\n", 0o640)
    assert files.write_files({str(path): wanted}) == []
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_link_that_somebody_put_in_the_way_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "file.new").symlink_to(victim)
    files.write_files({str(tmp_path / "file"): {"text": "ours", "owner": ME, "group": MINE, "mode": "0600"}})
    assert (victim.read_text(), (tmp_path / "file").read_text()) == ("precious", "ours")


def test_a_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "logs").symlink_to("/etc")
    with pytest.raises(Failure, match="is a link, and should be a folder"):
        files.make_folders({str(tmp_path / "logs"): {"owner": ME, "group": MINE, "mode": "0750"}})


class Wire:
    """A connection whose agent is a process of this machine."""

    is_connected = True

    def __init__(self) -> None:
        self.process = subprocess.Popen(AGENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            # What was not sent yet goes nowhere any more.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def opened(name: str) -> Session:
    session = Session(name, Wire())
    process = session.connection.process
    session._channel, session._errors = session.connection, io.BytesIO()
    session._input, session._output = process.stdin, process.stdout
    return session


@pytest.fixture
def session():
    made = opened("worker-1")
    yield made
    made.close()


def test_progress_is_reported_with_the_name_of_the_node(session, monkeypatch):
    session._output = io.BytesIO(b'{"beat": true}\n{"progress": "installing"}\n{"value": 7}\n')
    told: list[str] = []
    assert session.call("clock", told.append) == 7
    assert told == ["worker-1: installing"]


def test_an_answer_that_was_not_waited_for_is_never_taken_for_the_next_one(session):
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    session._output = io.BytesIO(b'{"progress": "x"}\n{"value": "for the first question"}\n')
    with pytest.raises(KeyboardInterrupt):
        session.call("clock", interrupt)
    assert not session.usable
    assert not Nodes({"worker-1": session}).usable


def test_a_node_that_goes_away_is_named_with_the_command_that_helps(session):
    session.connection.process.kill()
    with pytest.raises(ProvisionError, match="The node worker-1 cannot be reached or stopped answering") as lost:
        session.call("clock")
    assert "fab up" in lost.value.hint
    assert not session.usable


def test_the_failures_of_all_nodes_are_told_together():
    nodes = Nodes({name: opened(name) for name in ("a", "b", "c")})
    try:
        assert set(nodes.each(lambda node: node.call("names_in", folder="/", pattern="etc"))) == {"a", "b", "c"}
        with pytest.raises(ProvisionError) as both:
            nodes.each(lambda node: node.call("sizes_in", folder="/" if node.name == "b" else "/nothing"))
        assert [line.partition(":")[0] for line in both.value.message.splitlines()] == ["a", "c"]
    finally:
        nodes.close()


def test_the_agent_needs_nothing_but_the_standard_library():
    done = subprocess.run([sys.executable, "-S", "-I", "-c", agent_text()], input="", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def commands(monkeypatch):
    """The commands that the agent would run, instead of running them."""
    ran: list[list[str]] = []
    monkeypatch.setattr(users, "run", lambda argv, **_: ran.append(argv))
    return ran


def test_a_user_is_made_with_its_number_and_once(commands, monkeypatch):
    users.make_user("nobody-of-the-labs", 54321, "/home")
    assert [argv[0] for argv in commands] == ["groupadd", "useradd"]
    assert "54321" in commands[0]
    assert "54321" in commands[1]
    users.make_user(ME, 54321, "/home")
    assert len(commands) == 2


def test_a_number_that_belongs_to_somebody_else_is_refused_with_a_way_out(commands):
    with pytest.raises(Failure, match="The user root has the number 0, which nobody-of-the-labs should have") as error:
        users.make_user("nobody-of-the-labs", 0, "/home")
    assert "fab destroy --target vagrant, then fab up" in error.value.hint
    assert commands == []


def test_a_user_gets_another_number_after_its_files(commands, monkeypatch, tmp_path):
    monkeypatch.setattr(users, "user_numbers", lambda name: [999, 997])
    monkeypatch.setattr(users, "processes", dict)
    (tmp_path / "airflow-labs-2").mkdir()
    users.renumber_user("airflow", 54321, [f"{tmp_path}/airflow-labs*"])
    assert [argv[0] for argv in commands] == ["chown", "chown", "groupmod", "usermod"]
    assert {argv[-1] for argv in commands[:2]} == {f"{tmp_path}/airflow-labs-2"}


def test_a_user_whose_processes_run_keeps_its_number(commands):
    with pytest.raises(Failure, match=f"The user {ME} cannot get the number 54321: [0-9]+ of its processes run") as error:
        users.renumber_user(ME, 54321, [])
    assert "fab destroy" in error.value.hint
    assert commands == []


def test_a_folder_is_looked_at_by_kind_owner_and_mode(tmp_path):
    wanted = {"owner": ME, "group": MINE, "mode": "0750"}
    folder, link, file = tmp_path / "folder", tmp_path / "link", tmp_path / "file"
    files.make_folders({str(folder): wanted})
    link.symlink_to(folder)
    file.touch(0o750)
    assert [files.is_folder_as(str(path), wanted) for path in (folder, link, file, tmp_path / "none")] == [True, False, False, False]
    assert not files.is_folder_as(str(folder), {**wanted, "mode": "0755"})


@pytest.fixture
def held(tmp_path):
    """A lock that another command holds."""
    path = tmp_path / "held"
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("install_packages, process 7")
        file.flush()
        yield path, file


def test_what_changes_a_node_waits_for_another_command_and_says_so(held):
    path, file = held
    with subprocess.Popen([*AGENT, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        # What only looks goes on.
        for request in ({"op": "clock", "args": {}}, {"op": "ask", "args": {"argv": ["true"]}}, {"op": "settle", "args": {}}):
            process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        assert [list(json.loads(process.stdout.readline())) for _ in range(2)] == [["value"], ["value"]]
        said = json.loads(process.stdout.readline())["progress"]
        assert said == "waiting for another command that changes this node: install_packages, process 7"
        fcntl.flock(file, fcntl.LOCK_UN)
        assert json.loads(process.stdout.readline()) == {"value": None}
        process.stdin.close()
    assert path.read_text() == ""


def test_another_command_that_never_ends_is_an_error_that_names_it(held, monkeypatch):
    monkeypatch.setattr(answering, "LOCK_WAIT_S", -1)
    with (
        pytest.raises(Failure, match=r"still changes this node after .*: install_packages, process 7") as error,
        answering.alone("x", held[0]),
    ):
        pass
    assert "run the same command again" in error.value.hint


def test_an_operation_that_fails_lets_the_next_one_go_on(tmp_path):
    for _ in range(2):
        with pytest.raises(Failure, match="exit code 1"):
            answering.answer("run", {"argv": ["false"]}, str(tmp_path / "lock"))


def test_a_mistake_in_the_agent_is_told_with_its_file_and_line():
    done = subprocess.run(AGENT, input=json.dumps({"op": "names_in", "args": {"folder": 1, "pattern": ""}}), capture_output=True, text=True)
    line = next(n for n, text in enumerate(inspect.getsource(files).splitlines(), 1) if "os.path.join(folder, pattern)" in text)
    assert f'File "agent/files.py", line {line}, in names_in' in done.stderr

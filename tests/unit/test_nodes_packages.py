"""Packages of the distribution on a node, while the node's own updates use apt as well."""

from __future__ import annotations

import subprocess
import sys

import pytest

from provision.nodes.agent import packages
from provision.nodes.agent.basics import Failure

HOLD = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print('locked', flush=True); sys.stdin.read()"
BUSY = {"code": 100, "out": "", "err": "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)\n"}
DONE = {"code": 0, "out": "", "err": ""}


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """The only lock of apt's, and no waiting between looks."""
    path = tmp_path / "lock"
    path.touch()
    monkeypatch.setattr(packages, "APT_LOCKS", (str(tmp_path / "none"), str(path)))
    monkeypatch.setattr(packages, "APT_LOOK_S", 0)
    return path


@pytest.fixture
def held(lock):
    """Another program, which holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "locked\n"
        yield program
        program.kill()


@pytest.fixture
def said(monkeypatch):
    """What the agent says meanwhile."""
    told = []
    monkeypatch.setattr(packages, "say", lambda document: told.append(document["progress"]))
    return told


def test_who_has_locked_a_file_is_named(lock, held):
    assert packages.lock_holder(str(lock)).endswith(f"(process {held.pid})")


def test_a_file_that_nobody_locked_or_that_is_not_there_has_no_holder(lock, tmp_path):
    assert [packages.lock_holder(str(path)) for path in (lock, tmp_path / "none")] == ["", ""]


def test_the_end_of_other_installations_is_waited_for(lock, held, said, monkeypatch):
    monkeypatch.setattr(packages.time, "sleep", lambda seconds: held.kill() or held.wait())
    packages.wait_for_apt()
    assert len(said) == 1
    assert f"(process {held.pid}), which uses apt" in said[0]


def test_another_installation_that_never_ends_is_named(lock, held, said, monkeypatch):
    monkeypatch.setattr(packages, "APT_WAIT_S", -1)
    with pytest.raises(Failure, match=rf"\(process {held.pid}\) has kept apt locked") as failure:
        packages.wait_for_apt()
    assert "then run the same command again" in failure.value.hint


@pytest.mark.parametrize(
    "answers",
    [[DONE], [BUSY, DONE], [BUSY, {**BUSY, "err": "dpkg: error: dpkg frontend lock was locked by another process with pid 7"}, DONE]],
)
def test_a_command_that_finds_apt_locked_is_tried_again(lock, monkeypatch, answers):
    left = list(answers)
    monkeypatch.setattr(packages, "run", lambda argv, **_: left.pop(0))
    assert packages.run_apt(["apt-get", "update"], {}) == DONE
    assert not left


def test_a_command_that_always_finds_apt_locked_ends_with_its_words(lock, monkeypatch):
    monkeypatch.setattr(packages, "APT_WAIT_S", -1)
    monkeypatch.setattr(packages, "run", lambda argv, **_: BUSY)
    assert packages.run_apt(["apt-get", "update"], {}) == BUSY

"""One user of an installation at a time, told by name; nothing stays locked by what is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision import lock
from provision.errors import ProvisionError
from provision.home import LabHome, lab_home
from provision.lock import HELD_VARIABLE, exclusive

REPOSITORY = Path(lock.__file__).resolve().parent.parent
HOLD = """
import sys
from provision.home import lab_home
from provision.lock import exclusive
with exclusive(lab_home(), sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[subprocess.Popen]:
    """Lend another process that holds the lock of this test's home until its standard input closes."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, "fab install größe"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_with_the_holders_name(holder):
    with pytest.raises(ProvisionError) as refused, exclusive(lab_home(), "labs run"):
        pytest.fail("the lock was given twice")
    assert f"is in use: fab install größe (process {holder.pid}) is running" in refused.value.message
    assert str(lab_home().root) in refused.value.message
    assert "LAB_HOME" in refused.value.hint
    assert HELD_VARIABLE not in os.environ


def test_the_lock_is_free_once_the_holder_has_ended(holder):
    holder.communicate()
    with exclusive(lab_home(), "labs run"):
        pass
    assert holder.returncode == 0


def test_the_lock_is_free_once_the_holder_was_killed(holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with exclusive(lab_home(), "labs run"):
        assert "labs run" in (lab_home().root / "lock").read_text()


def test_another_home_is_not_concerned(holder, tmp_path: Path):
    with exclusive(LabHome(tmp_path / "other", tmp_path / "other"), "labs run"):
        pass


def test_a_holder_that_left_no_name_is_still_told(holder):
    (lab_home().root / "lock").write_text("[]")
    with pytest.raises(ProvisionError, match="another command is running"), exclusive(lab_home(), "labs run"):
        pass


def test_the_holder_may_take_its_own_lock_again():
    with exclusive(lab_home(), "labs run"), exclusive(lab_home(), "fab install"):
        assert os.environ[HELD_VARIABLE] == str(lab_home().root)
    assert HELD_VARIABLE not in os.environ


def test_a_process_that_the_holder_started_acts_for_it(holder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(HELD_VARIABLE, str(lab_home().root))
    with exclusive(lab_home(), "a notebook"):
        pass
    assert os.environ[HELD_VARIABLE] == str(lab_home().root)


def test_an_installation_inside_the_held_one_may_be_locked_meanwhile():
    home = lab_home()
    with exclusive(home, "labs run"):
        with exclusive(home.throwaway("experiment"), "fab install"):
            pass
        assert os.environ[HELD_VARIABLE] == str(home.root)
    assert HELD_VARIABLE not in os.environ


def test_a_notebook_may_go_on_after_its_throwaway_installation(holder, monkeypatch: pytest.MonkeyPatch):
    # The holder is the command that started this notebook's kernel.
    monkeypatch.setenv(HELD_VARIABLE, str(lab_home().root))
    with exclusive(lab_home().throwaway("experiment"), "fab install"):
        pass
    with exclusive(lab_home(), "a notebook"):
        pass


def test_the_lock_is_released_after_an_error():
    with pytest.raises(RuntimeError), exclusive(lab_home(), "labs run"):
        raise RuntimeError("boom")
    assert HELD_VARIABLE not in os.environ
    with exclusive(lab_home(), "labs run"):
        pass


def test_a_released_lock_names_nobody():
    with exclusive(lab_home(), "labs run"):
        assert '"labs run"' in (lab_home().root / "lock").read_text()
    assert (lab_home().root / "lock").read_text() == ""

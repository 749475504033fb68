"""How units are started and stopped on a node, and files removed; systemctl is a stand-in that writes down what it is told."""

from __future__ import annotations

import pytest

from provision.nodes.agent import files, units


def test_files_that_match_a_pattern_are_removed_and_others_stay(tmp_path):
    for name in ("client.key", "kubelet.kubeconfig", "client.crt"):
        (tmp_path / name).touch()
    files.remove([f"{tmp_path}/*.key", f"{tmp_path}/kubelet.kubeconfig", f"{tmp_path}/none"])
    assert [path.name for path in tmp_path.iterdir()] == ["client.crt"]


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What was run, command by command; units are files of the test's folder."""
    found: list[list[str]] = []

    def run(argv, **options):
        found.append(argv)
        return {"code": 0, "out": "", "err": ""}

    monkeypatch.setattr(units, "run", run)
    monkeypatch.setattr(units, "UNITS", str(tmp_path))
    return found


def unit(folder, name: str, *lines: str) -> str:
    (folder / name).write_text("\n".join(["[Service]", "ExecStart=/bin/true", *lines]) + "\n")
    return name


def test_what_a_unit_wants_afterwards_is_run_once_all_have_stopped(told, tmp_path):
    script = tmp_path / "clean"
    script.touch()
    names = [unit(tmp_path, name, f"X-AirflowLabs-AfterStop={script}") for name in ("a.service", "b.service")]
    units.stop(names)
    assert told[:2] == [["systemctl", "stop", *names], [str(script)]]
    assert [str(script)] not in told[2:]


@pytest.mark.parametrize(("wait", "command"), [(True, ["systemctl", "start"]), (False, ["systemctl", "start", "--no-block"])])
def test_a_start_is_waited_for_unless_somebody_else_does(told, monkeypatch, wait, command):
    monkeypatch.setattr(units, "unit_state", lambda unit: {"active": "active" if wait else "inactive"})
    units.start(["a.service"], wait=wait)
    assert [*command, "a.service"] in told


@pytest.mark.parametrize("lines", [[], ["X-AirflowLabs-AfterStop=/nowhere/clean"]], ids=["none is named", "it is gone"])
def test_without_a_program_for_afterwards_nothing_else_is_run(told, tmp_path, lines):
    units.stop([unit(tmp_path, "a.service", *lines), "b.service"])
    assert {command[0] for command in told} == {"systemctl"}

"""The installation file, as labs read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labs.errors import LabError
from labs.installation import Installation, read_installation


def test_the_installation_of_this_home_is_read(lab_home_folder: Path):
    lab_home_folder.mkdir()
    document = {
        "schema": 1, "variant": "sqlite", "target": "local",
        "api": {"url": "http://127.0.0.1:1", "user": "lab", "credentials": "secrets.json"},
        "spec_folder": "/lab/specs", "home": str(lab_home_folder), "settings": {"core.parallelism": "1"},
    }  # fmt: skip
    (lab_home_folder / "installation.json").write_text(json.dumps(document))
    installation = read_installation()
    assert (installation.variant, installation.target, installation.user) == ("sqlite", "local", "lab")
    assert installation.spec_folder == Path("/lab/specs")
    assert installation.settings["core.parallelism"] == "1"


def test_without_an_installation_the_next_command_is_named():
    with pytest.raises(LabError, match="No Airflow is installed") as missing:
        read_installation()
    assert "fab install" in missing.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b'{"schema": 2}', b"\xff\xfe"])
def test_a_damaged_installation_file_is_named(lab_home_folder: Path, content):
    lab_home_folder.mkdir()
    (lab_home_folder / "installation.json").write_bytes(content)
    with pytest.raises(LabError, match=r"installation\.json is damaged") as damaged:
        read_installation()
    assert "fab destroy" in damaged.value.hint


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"\xff"])
def test_credentials_that_cannot_be_read_are_named(lab_home_folder: Path, content):
    lab_home_folder.mkdir()
    secrets = lab_home_folder / "secrets.json"
    if content is not None:
        secrets.write_bytes(content)
    (lab_home_folder / "installation.json").write_text(json.dumps({"schema": 1, "api": {"credentials": str(secrets)}}))
    with pytest.raises(LabError, match=r"credentials file .*secrets\.json cannot be read"):
        read_installation().password()


def test_the_clocks_of_two_nodes_are_as_far_apart_as_they_can_be():
    clocks = [(0.002, 0.001), (-0.004, 0.002), (0.0, 0.0005)]
    nodes = [{"name": str(n), "clock_offset_s": offset, "clock_uncertainty_s": spread} for n, (offset, spread) in enumerate(clocks)]
    assert Installation({"nodes": nodes}).clock_tolerance_s == pytest.approx(0.003 - -0.006)
    assert Installation({"nodes": nodes[:1]}).clock_tolerance_s == 0.0
    assert Installation({"nodes": [{"name": "a"}, {"name": "b"}]}).clock_tolerance_s == 0.0


def test_a_task_belongs_to_the_node_of_its_worker_or_its_host_or_the_only_one():
    nodes = [{"name": "control"}, {"name": "worker-1"}]
    installation = Installation({"nodes": nodes, "workers": [{"name": "heavy-1", "node": "worker-1"}]})
    assert [installation.node_of(host) for host in ("heavy-1", "worker-1", "control", "elsewhere")] == [
        "worker-1", "worker-1", "control", "control",
    ]  # fmt: skip

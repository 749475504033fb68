"""The steps of an install that can be seen without a cluster: files put in their places, copies, and what is said when one fails."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from cluster_samples import CLUSTER, DIGEST, blank, complete, kubernetes

from provision.errors import ProvisionError
from provision.kube import install
from provision.kube.artifacts import Artifact, Artifacts
from provision.kube.distributions import Distribution
from provision.kube.install import (
    _build_image,
    _pipe,
    _placing,
    _require_image,
    _suite,
    forget_nodes,
    provide_image,
    remove_store,
    send_artifacts,
    wait_until_ready,
)
from provision.kube.plan import plan_cluster
from provision.kube.state import Kubernetes
from provision.nodes.state import About


def silent(text: str) -> None:
    """Report nothing."""


class Here(Distribution):
    """A distribution whose data is below a folder of the test."""

    root = Path("/")

    @property
    def data(self) -> PurePosixPath:
        return PurePosixPath(self.root / self.name)


@pytest.fixture
def placed(tmp_path, monkeypatch):
    """Run what puts sent files in their places, with nodes' folders below one of the test; return both folders."""
    monkeypatch.setattr(Here, "root", tmp_path / "rancher")

    def run(name: str, files: dict[str, tuple[str, bytes]]) -> tuple[Path, Path]:
        part, folder = tmp_path / "opt" / "x.part", tmp_path / "opt" / "x"
        part.mkdir(parents=True)
        for file, (_, content) in files.items():
            (part / file).write_bytes(content)
        artifacts = Artifacts(name, tuple(Artifact(Path("/from") / file, role, "0" * 64) for file, (role, _) in files.items()))
        distribution = Here(**{**vars(kubernetes(name).distribution)})
        cluster = replace(kubernetes(name), artifacts=artifacts, distribution=distribution)
        # Links that lead to an older release are known by their way through /opt.
        script = "\n".join(_placing(cluster, str(part), str(folder))).replace("'/opt/*'", f"'{tmp_path}/opt/*'")
        subprocess.run(["sh", "-e", "-c", script], check=True)
        assert not part.exists()
        return folder, tmp_path / "rancher" / name

    return run


def test_k3s_is_put_in_its_place(placed):
    folder, data = placed(
        "k3s", {"k3s-arm64": ("program", b"program"), "i.tar.zst": ("images", b"images"), "config.toml.tmpl": ("template", b"t")}
    )
    assert (folder / "k3s").read_bytes() == b"program"
    assert (folder / "k3s").stat().st_mode & 0o777 == 0o755
    assert (data / "agent" / "images" / "i.tar.zst").read_bytes() == b"images"
    assert (data / "agent" / "etc" / "containerd" / "config.toml.tmpl").read_bytes() == b"t"
    assert (folder / "complete").exists()


def test_rke2_is_unpacked(placed):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("bin/rke2")
        entry.size, entry.mode = 4, 0o755
        archive.addfile(entry, io.BytesIO(b"rke2"))
    folder, data = placed(
        "rke2", {"rke2.linux-amd64.tar.gz": ("archive", gzip.compress(packed.getvalue())), "i.tar": ("images", b"images")}
    )
    assert (folder / "bin" / "rke2").read_bytes() == b"rke2"
    assert (data / "agent" / "images" / "i.tar").read_bytes() == b"images"


def test_images_of_an_older_release_are_not_imported_beside_the_new_ones(placed):
    _, data = placed("k3s", {"k3s": ("program", b"1"), "old.tar": ("images", b"1"), "config.toml.tmpl": ("template", b"t")})
    (data / "agent" / "images" / "own.tar").write_bytes(b"somebody's own")
    placed("k3s", {"k3s": ("program", b"2"), "new.tar": ("images", b"2")})
    assert sorted(path.name for path in (data / "agent" / "images").iterdir()) == ["new.tar", "own.tar"]
    assert list((data / "agent" / "etc" / "containerd").iterdir()) == []


# -- copies -------------------------------------------------------------------------------------------


def test_what_is_read_reaches_every_sink(tmp_path):
    content = bytes(range(256)) * 9000
    _pipe(io.BytesIO(content), [["sh", "-c", f"cat > {tmp_path}/{name}"] for name in "ab"], "a, b")
    assert {(tmp_path / name).read_bytes() for name in "ab"} == {content}


@pytest.mark.parametrize(
    "command", ["cat > /dev/null; echo 'No space left on device' >&2; exit 1", "echo 'No space left on device' >&2; exec <&-; exit 1"]
)
def test_a_copy_that_fails_is_told_with_its_nodes_and_its_last_words(command):
    with pytest.raises(ProvisionError, match=r"A copy to worker-1, worker-2 failed: .*No space left on device") as failed:
        _pipe(io.BytesIO(b"x" * 2**22), [["cat"], ["sh", "-c", command]], "worker-1, worker-2")
    assert "the same command again" in failed.value.hint


# -- nodes --------------------------------------------------------------------------------------------


class Node:
    """A node that writes down what it is told, and answers from a table."""

    def __init__(self, name: str, answers: dict[str, Any] | None = None) -> None:
        self.name, self.answers, self.told = name, answers or {}, []

    def call(self, op: str, report: Any = None, **args: Any) -> Any:
        self.told.append((op, args))
        return self.answers.get(op, {"code": 0, "out": "", "err": ""})


class Nodes(dict):
    """Several of them, by name."""

    def each(self, work: Any, names: list[str] | None = None) -> dict[str, Any]:
        return {name: work(self[name]) for name in (self if names is None else names)}


def nodes(**answers: Any) -> Nodes:
    return Nodes({node.name: Node(node.name, answers) for node in CLUSTER.nodes})


def states(cluster: Kubernetes, active: str) -> dict[str, dict[str, str]]:
    return {cluster.layout.unit(cluster.service(node)): {"active": active} for node in CLUSTER.nodes}


@pytest.fixture
def sent(monkeypatch):
    """Write down where files are copied to, instead of copying them."""
    found: list[tuple[str, str]] = []
    monkeypatch.setattr(install, "_pipe", lambda source, sinks, where: found.append((where, sinks[0][-1])))
    return found


def test_files_are_checked_on_the_node_before_they_are_put_in_their_places(tmp_path, sent):
    (tmp_path / "k3s").write_bytes(b"program")
    cluster = replace(kubernetes(seen=blank()), artifacts=Artifacts("k3s", (Artifact(tmp_path / "k3s", "program", "5" * 64),)))
    there = nodes()
    send_artifacts(cluster, [step for step in plan_cluster(cluster) if step.node == "worker-1"], there, Path("/ssh-config"), silent)
    ((where, command),) = sent
    assert where == "worker-1"
    assert f"{cluster.software}.part/k3s" in command
    operations = [args for op, args in there["worker-1"].told if op == "run"]
    (check,) = [position for position, args in enumerate(operations) if args["argv"][0] == "sha256sum"]
    assert operations[check]["text"] == f"{'5' * 64}  {cluster.software}.part/k3s\n"
    assert "complete" in operations[check + 1]["argv"][-1]
    assert there["worker-2"].told == []


def test_nothing_is_sent_where_everything_is(sent):
    send_artifacts(kubernetes(), plan_cluster(kubernetes()), nodes(), Path("/ssh-config"), silent)
    assert sent == []


@pytest.mark.parametrize(("listed", "words"), [("", "has no image"), (f"{{}} type {DIGEST.replace('a', 'b')} 1 MiB", "has another image")])
def test_a_node_without_the_image_is_named(listed, words):
    cluster = kubernetes()
    node = Node("worker-2", {"ask": {"code": 0, "out": listed.format(cluster.pods.image), "err": ""}})
    with pytest.raises(ProvisionError, match=f"worker-2 {words} {cluster.pods.image} after the import") as refused:
        _require_image(cluster, node, DIGEST)
    assert "fab status names it" in refused.value.hint


def test_an_agent_that_never_joins_shows_its_log(monkeypatch):
    cluster = kubernetes()
    there = nodes(states=states(cluster, "activating"), journal="Waiting to retrieve agent configuration\nconnection refused\n")
    clock = iter(range(0, 100000, 60))
    monkeypatch.setattr(install.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(install.time, "sleep", lambda seconds: None)
    said: list[str] = []
    with pytest.raises(ProvisionError, match=r"k3s-worker-2 on worker-2 was not ready within 300 s") as failed:
        wait_until_ready(cluster, there, lambda: frozenset({"control", "worker-1"}), said.append)
    assert "connection refused" in failed.value.message
    assert failed.value.hint == "fab logs k3s-worker-2 --target vagrant; nodes that are only slow need LAB_START_SECONDS=600"
    assert said == ["waiting for worker-2 to join the cluster"]


def test_slow_nodes_are_given_the_time_that_was_asked_for(monkeypatch):
    cluster = kubernetes()
    there = nodes(states=states(cluster, "activating"), journal="")
    clock = iter(range(0, 100000, 100))
    monkeypatch.setenv("LAB_START_SECONDS", "1800")
    monkeypatch.setattr(install.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(install.time, "sleep", lambda seconds: None)
    with pytest.raises(ProvisionError, match="was not ready within 1800 s"):
        wait_until_ready(cluster, there, frozenset, silent)
    assert next(clock) > 1800


# -- nodes and servers that were something else before ------------------------------------------------


def deleted(there: Nodes) -> list[list[str]]:
    """Return what the control node was told to delete: kind and names."""
    commands = [args["argv"] for op, args in there["control"].told if op == "run"]
    return [command[command.index("--ignore-not-found") + 1 :] for command in commands]


def test_a_worker_that_was_made_anew_is_forgotten_before_it_joins():
    there = nodes(read="a-password\n")
    there["worker-2"].answers = {"read": ""}
    forget_nodes(kubernetes(), {"control", "worker-1", "worker-2"}, there, silent)
    assert deleted(there) == [["node", "worker-2"], ["secret", "-n", "kube-system", "worker-2.node-password.k3s"]]


def test_a_worker_that_is_not_started_is_not_asked():
    there = nodes(read="")
    forget_nodes(kubernetes("rke2"), {"worker-1"}, there, silent)
    assert deleted(there) == [["node", "worker-1"], ["secret", "-n", "kube-system", "worker-1.node-password.rke2"]]
    assert there["worker-2"].told == []


def test_nodes_that_the_machine_table_does_not_have_any_more_are_forgotten():
    there = nodes(read="a-password\n")
    forget_nodes(kubernetes(seen=replace(complete(), strangers=frozenset({"worker-3"}))), set(), there, silent)
    assert deleted(there)[0] == ["node", "worker-3"]


def test_nodes_that_are_known_are_not_forgotten():
    there = nodes(read="a-password\n")
    forget_nodes(kubernetes(), {"worker-1", "worker-2"}, there, pytest.fail)
    assert deleted(there) == []


def test_the_server_is_stopped_before_its_data_is_removed():
    control = Node("control")
    remove_store(kubernetes(), control, silent)
    assert control.told == [("stop", {"units": ["airflow-k3s-control.service"]}), ("remove", {"paths": ["/var/lib/rancher/k3s/server"]})]


def test_an_agent_that_ended_is_not_waited_for():
    cluster = kubernetes()
    there = nodes(states=states(cluster, "failed"), journal="invalid token\n")
    with pytest.raises(ProvisionError, match=r"(?s)k3s-worker-1 on worker-1 ended\. .*invalid token"):
        wait_until_ready(cluster, there, lambda: frozenset({"control"}), silent)


def test_a_cluster_whose_nodes_are_all_ready_is_not_waited_for():
    wait_until_ready(kubernetes(), nodes(), lambda: frozenset(node.name for node in CLUSTER.nodes), pytest.fail)


@pytest.mark.parametrize(("debian", "suite"), [("12", "bookworm"), ("13", "trixie")])
def test_the_image_is_of_the_nodes_own_debian(debian, suite):
    assert _suite(debian) == suite


def test_another_system_makes_no_image():
    with pytest.raises(ProvisionError, match="No image can be made of Debian 11") as refused:
        _suite("11")
    assert "12 or 13" in refused.value.hint


def test_the_image_is_made_with_what_the_nodes_have_and_its_digest_is_kept(monkeypatch):
    monkeypatch.setenv("LAB_PACKAGE_PROXY", "http://someone:word@192.168.56.1:3142")
    cluster, control = kubernetes(), Node("control", {"run_reporting": {"digest": DIGEST}})
    assert _build_image(cluster, control, About("3.11", "aarch64", "12"), silent) == DIGEST
    ((op, args), (_, written)) = control.told
    words = args["argv"]
    assert op == "run_reporting"
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert given == {
        "--archive": str(cluster.image_archive), "--environment": str(cluster.environment), "--home": "/var/lib/airflow-labs",
        "--reference": cluster.pods.image, "--suite": "bookworm", "--user": "airflow", "--uid": "50000", "--architecture": "arm64",
    }  # fmt: skip
    # A proxy's address may hold a password, and everybody may read the words of a command.
    assert args["environment"] == {"http_proxy": "http://someone:word@192.168.56.1:3142"}
    assert written["files"][f"{cluster.image_archive}.digest"]["text"] == f"{DIGEST}\n"


def test_an_image_that_is_everywhere_is_neither_made_nor_imported():
    there = nodes()
    provide_image(
        kubernetes(seen=complete()), plan_cluster(kubernetes()), there, Path("/ssh-config"), About("3.11", "x86_64", "12"), silent
    )
    assert [node.told for node in there.values()] == [[], [], []]

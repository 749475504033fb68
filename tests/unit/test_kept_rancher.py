"""The Rancher that somebody asked for: remembered for its cluster, put there by one command, forgotten with it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_samples import CLUSTER
from invoke import Context, Exit

from provision import secret_store, tasks
from provision.errors import ProvisionError, UsageError
from provision.home import LabHome, lab_home
from provision.kube.rancher import from_internet
from provision.nodes import kept_rancher
from provision.nodes import target as targets
from provision.nodes.kept_rancher import KeptRancher
from provision.nodes.target import NodesTarget, nodes_home
from provision.pins import pins
from provision.target import Change
from provision.variants import KubernetesOptions, wanted

K3S = wanted("kubernetes")
RKE2 = wanted("kubernetes", kubernetes=KubernetesOptions(distribution="rke2"))
DOCUMENT = {"variant": "kubernetes", "changes": {}, "kubernetes": {"distribution": "k3s", "dags": "git", "artifacts": "", "image": ""}}


@pytest.fixture
def home() -> LabHome:
    """Return the home of the nodes' installation, prepared."""
    found = nodes_home(lab_home())
    lab_home().prepare()
    found.prepare()
    return found


@pytest.fixture
def charts(tmp_path) -> Path:
    """A folder with both charts."""
    for name in ("rancher", "cert-manager"):
        (tmp_path / f"{name}-{pins()[name]['version']}.tgz").write_bytes(b"chart")
    return tmp_path


def test_nothing_is_remembered_before_it_was_asked_for(home):
    kept = KeptRancher(home, CLUSTER)
    assert kept.of(K3S) is None
    assert kept.interrupted() == {}
    kept.forget()


def test_it_belongs_to_the_cluster_of_its_distribution(home):
    kept, chosen = KeptRancher(home, CLUSTER), from_internet("k3s", CLUSTER)
    kept.keep(chosen)
    assert kept.of(K3S) == chosen
    assert kept.of(RKE2) is None
    assert kept.of(wanted("postgres")) is None


def test_charts_come_from_where_they_came_before(home, charts, tmp_path):
    kept = KeptRancher(home, CLUSTER)
    chosen = kept.choose(K3S, str(charts))
    assert chosen.is_offline
    kept.keep(chosen)
    for file in charts.glob("*.tgz"):
        file.unlink()
    assert kept.choose(K3S, "") == chosen


def test_charts_come_from_the_internet_where_nothing_else_was_said(home):
    assert KeptRancher(home, CLUSTER).choose(K3S, "") == from_internet("k3s", CLUSTER)


def test_charts_of_other_versions_than_are_pinned_now_are_not_used_again(home, charts, monkeypatch):
    kept = KeptRancher(home, CLUSTER)
    kept.keep(kept.choose(K3S, str(charts)))
    monkeypatch.setattr(kept_rancher.rancher, "pins", lambda: pins() | {"rancher": {**pins()["rancher"], "version": "9.9.9"}})
    assert not kept.choose(K3S, "").is_offline


def test_its_password_is_made_for_it_and_forgotten_with_it(home):
    kept = KeptRancher(home, CLUSTER)
    made = secret_store.load_or_create(home, [secret_store.RANCHER_PASSWORD])
    assert len(made[secret_store.RANCHER_PASSWORD]) >= 32
    assert secret_store.load_or_create(home) == made
    kept.keep(from_internet("k3s", CLUSTER))
    kept.forget()
    assert kept.of(K3S) is None
    assert secret_store.RANCHER_PASSWORD not in secret_store.load_or_create(home)


# -- on the nodes ---------------------------------------------------------------------------------


@pytest.fixture
def place(home, monkeypatch) -> NodesTarget:
    """Nodes that are large enough, with a cluster that answers; installs and waiting are written down in `done`."""
    target = NodesTarget(home)
    target.done, target.interrupt = [], False
    about = {"memory_mib": 16384, "cores": 4}

    def installed(asked: Any, report: Any) -> list[Change]:
        target.done.append(f"install {asked.kubernetes.distribution} {asked.kubernetes.dags} {bool(target._kept_rancher.of(asked))}")
        home.installation.unlink(missing_ok=True)
        if target.interrupt:
            raise KeyboardInterrupt
        home.installation.write_text(json.dumps(DOCUMENT))
        return [Change("restart", "k3s-control", "its settings changed (control)")]

    monkeypatch.setattr(NodesTarget, "_control", SimpleNamespace(call=lambda op, **args: about))
    monkeypatch.setattr(target, "_about_nodes", lambda: (None, {}))
    monkeypatch.setattr(target, "_kubernetes", lambda asked, about: "the cluster")
    monkeypatch.setattr(target, "_install", installed)
    monkeypatch.setattr(targets, "server_version", lambda cluster, control: target.version)
    monkeypatch.setattr(targets, "wait_for_rancher", lambda cluster, control, report: target.done.append("wait"))
    target.about, target.version = about, "v1.36.4+k3s1"
    home.installation.write_text(json.dumps(DOCUMENT))
    return target


def test_it_comes_into_the_cluster_as_that_is_installed(place):
    changes, chosen = place.install_rancher("")
    assert place.done == ["install k3s git True", "wait"]
    assert [change.name for change in changes] == ["k3s-control"]
    assert chosen.hostname == "rancher.192-168-56-10.sslip.io"


@pytest.mark.parametrize(("document", "word"), [(None, "nothing"), ({"variant": "postgres", "kubernetes": None}, "postgres")])
def test_without_kubernetes_it_is_refused_with_the_commands_that_bring_both(place, document, word):
    place.home.installation.write_text(json.dumps(document))
    with pytest.raises(ProvisionError, match=f"{word} is installed on the nodes") as refused:
        place.install_rancher("")
    assert refused.value.hint == "fab install kubernetes --target vagrant, then fab install rancher --target vagrant"
    assert place.done == []


def test_what_is_refused_is_not_remembered(place, tmp_path):
    place.about["memory_mib"] = 3000
    with pytest.raises(UsageError, match="control has 3000 MiB of memory, 16384 are needed"):
        place.install_rancher("")
    place.about["memory_mib"], place.version = 16384, "v1.21.2+k3s1"
    with pytest.raises(ProvisionError, match=r"the cluster has v1\.21\.2\+k3s1"):
        place.install_rancher("")
    place.version = "v1.36.4+k3s1"
    with pytest.raises(UsageError, match="There is no folder"):
        place.install_rancher(str(tmp_path / "nowhere"))
    assert place.done == []
    assert place._kept_rancher.of(K3S) is None


def test_an_interrupted_install_is_finished_by_the_same_command(place):
    place.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        place.install_rancher("")
    # In between the server may not answer, and the labs have no installation.
    place.interrupt, place.version = False, ""
    assert place.installed() is None
    place.install_rancher("")
    assert place.done == ["install k3s git True", "install k3s git True", "wait"]
    assert place._kept_rancher.interrupted() == {}


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def fab(monkeypatch, home):
    """Run `fab install rancher` with these arguments, with a target that has it; return what was handed to the target."""
    asked: list[str] = []

    def run(target: str = "vagrant", changes: int = 0, offline: bool = False, **arguments: Any) -> list[str]:
        chosen = SimpleNamespace(url="https://control/", hostname="control", is_offline=offline)
        place = SimpleNamespace(
            name=target, home=home, cluster=CLUSTER,
            install_rancher=lambda folder, report: asked.append(folder) or ([Change("write", "files", "x")] * changes, chosen),
        )  # fmt: skip
        monkeypatch.setattr(tasks, "open_target", lambda name: place)
        tasks.install(Context(), "rancher", target=target, **arguments)
        return asked

    return run


def test_the_command_says_what_it_did_and_what_to_open_and_no_password(fab, home, capsys):
    made = secret_store.load_or_create(home, [secret_store.RANCHER_PASSWORD])
    fab(changes=2)
    printed = capsys.readouterr().out
    assert "rancher on vagrant: 2 changes." in printed
    assert f"Rancher, https://control/, user admin; its first password is rancher_password in {home.secrets}" in printed
    assert made[secret_store.RANCHER_PASSWORD] not in printed
    assert "hosts file" not in printed


def test_the_second_time_it_says_that_nothing_changed(fab, capsys):
    fab()
    assert "rancher on vagrant: 0 changes." in capsys.readouterr().out


def test_a_name_that_no_service_knows_is_told_with_its_address(fab, capsys):
    fab(offline=True)
    assert "192.168.56.10 control in its hosts file" in capsys.readouterr().out


def test_the_folder_is_handed_over_with_its_whole_path(fab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fab(artifacts="charts") == [str(tmp_path / "charts")]


def test_on_one_machine_it_is_refused_with_the_commands(fab):
    with pytest.raises(Exit, match="Rancher needs a cluster of machines") as refused:
        fab(target="local")
    assert refused.value.code == 2
    assert "fab install kubernetes --target vagrant and fab install rancher --target vagrant" in str(refused.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("set", ["core.parallelism=4"]), ("broker", "redis"), ("worker", ["worker-1=2"]), ("ha", True),
        ("distribution", "rke2"), ("dags", "git"), ("image", "apache/airflow:3.3.2"),
    ],
)  # fmt: skip
def test_options_of_a_variant_are_refused(fab, option, value):
    with pytest.raises(Exit, match=f"--{option}: Rancher takes the variant as it is installed"):
        fab(**{option: value})

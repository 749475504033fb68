"""Domains and disks of nodes that Vagrant forgot, in a libvirt that a script plays."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision import hypervisor

DOMAINS = """\
c01355c6-8a49-4477-b706-da7d09121362 {prefix}control
3f0077d9-f183-49de-881d-71367cfbb0ac {prefix}worker-1
ba7c780a-5855-4f35-84cc-537241f240e2 somebody-elses
"""
VOLUMES = """\
 {prefix}control.img    /var/lib/libvirt/images/{prefix}control.img
 {prefix}worker-1.img   /var/lib/libvirt/images/{prefix}worker-1.img
 {prefix}worker-2.img   /var/lib/libvirt/images/{prefix}worker-2.img
 debian-12_box.img      /var/lib/libvirt/images/debian-12_box.img
"""


@pytest.fixture
def virsh(tmp_path, monkeypatch):
    """Put a virsh into PATH that lists what the test gives it, and writes down all that it is asked."""
    asked, prefix = tmp_path / "asked", hypervisor.prefix_of(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)

    def play(code=0):
        (tmp_path / "list").write_text(DOMAINS.format(prefix=prefix))
        (tmp_path / "vol-list").write_text(VOLUMES.format(prefix=prefix))
        script = f'#!/bin/sh\nshift 3\necho "$@" >> {asked}\nif [ -e {tmp_path}/$1 ]; then cat {tmp_path}/$1; exit {code}; fi\n'
        (tmp_path / "virsh").write_text(script)
        (tmp_path / "virsh").chmod(0o755)
        return lambda: [line.replace(prefix, "") for line in asked.read_text().splitlines()]

    return play


def test_a_domain_and_disks_that_vagrant_does_not_know_are_removed(virsh, tmp_path):
    asked = virsh()
    removed = hypervisor.remove_strays(tmp_path, ["3f0077d9-f183-49de-881d-71367cfbb0ac"])
    assert removed == [hypervisor.prefix_of(tmp_path) + name for name in ("control", "control.img", "worker-2.img")]
    assert asked() == [
        "list --all --uuid --name",
        "destroy control",
        "undefine control --managed-save --snapshots-metadata --nvram",
        "vol-list default",
        "vol-delete control.img --pool default",
        "vol-delete worker-2.img --pool default",
    ]


def test_nothing_is_removed_when_libvirt_does_not_say_what_there_is(virsh, tmp_path):
    asked = virsh(code=1)
    assert hypervisor.remove_strays(tmp_path, ["c01355c6-8a49-4477-b706-da7d09121362"]) == []
    assert asked() == ["list --all --uuid --name"]


@pytest.mark.parametrize(
    ("described", "removes"),
    [("<network>\n", ["net-destroy 7e0d", "net-undefine 7e0d"]), ("<network connections='2'>\n", []), ("", [])],
)
def test_a_network_goes_when_no_machine_uses_it(virsh, tmp_path, described, removes):
    asked = virsh()
    (tmp_path / "net-dumpxml").write_text(described)
    for name in ("control", "worker-1"):
        (tmp_path / "machines" / name / "libvirt").mkdir(parents=True)
        (tmp_path / "machines" / name / "libvirt" / "created_networks").write_text("7e0d\n")
    hypervisor.remove_networks(tmp_path)
    assert asked() == ["net-dumpxml 7e0d", *removes]


def test_without_virsh_nothing_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hypervisor.remove_strays(tmp_path, []) == []


def test_the_vagrantfile_names_machines_by_the_same_prefix():
    text = (Path(__file__).parents[2] / "Vagrantfile").read_text()
    assert 'default_prefix = "airflow-labs-#{Digest::SHA256.hexdigest(state_folder)[0, 8]}-"' in text
    assert hypervisor.prefix_of(Path("/lab/vagrant")) == "airflow-labs-ebe4d63d-"

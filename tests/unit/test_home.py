"""Where an installation lives, and how its private files are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from labs.installation import home_folder
from provision.errors import ProvisionError
from provision.home import REPOSITORY, LabHome, lab_home, require_room, write_private


def test_the_home_is_where_lab_home_says(lab_home_folder: Path):
    assert lab_home() == LabHome(root=lab_home_folder, shared=lab_home_folder)


@pytest.mark.parametrize("value", [None, ""])
def test_without_lab_home_it_is_in_the_repository(monkeypatch: pytest.MonkeyPatch, value):
    monkeypatch.delenv("LAB_HOME") if value is None else monkeypatch.setenv("LAB_HOME", value)
    assert lab_home().root == REPOSITORY / ".lab"
    assert (REPOSITORY / "provision" / "home.py").exists()


@pytest.mark.parametrize("value", ["~/lab", "relative/lab", "/tmp/../tmp/lab", "/with space/größe", ""])
def test_labs_and_provision_agree_on_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_HOME", value)
    assert lab_home().root == home_folder()
    assert lab_home().root.is_absolute()
    assert "~" not in str(lab_home().root)


def test_preparing_makes_folders_that_only_the_owner_can_enter(lab_home_folder: Path):
    home = lab_home()
    home.prepare()
    home.prepare()
    assert home.root.stat().st_mode & 0o777 == 0o700
    assert all(folder.is_dir() for folder in (home.airflow_home, home.dags, home.specs, home.state, home.logs, home.databases))


def test_a_home_that_is_a_file_is_refused_with_what_to_do(lab_home_folder: Path):
    lab_home_folder.write_text("")
    with pytest.raises(ProvisionError, match="cannot be used as the lab's folder") as refused:
        lab_home().prepare()
    assert "LAB_HOME=" in refused.value.hint


def test_a_home_below_a_file_is_refused_too(lab_home_folder: Path, monkeypatch: pytest.MonkeyPatch):
    lab_home_folder.write_text("")
    monkeypatch.setenv("LAB_HOME", str(lab_home_folder / "below"))
    with pytest.raises(ProvisionError, match="cannot be used"):
        lab_home().prepare()


def test_a_throwaway_lives_inside_and_shares_the_environments():
    home = lab_home()
    inner = home.throwaway("experiment")
    assert inner.root.is_relative_to(home.root)
    assert inner.root != home.throwaway("other").root
    assert inner.environments == home.environments
    assert inner.secrets != home.secrets
    assert inner.throwaway("deeper").environments == home.environments


def test_a_private_file_is_written_once_and_only_for_its_owner(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "secret"
    assert write_private(path, "größe ✓\n")
    assert path.read_text(encoding="utf-8") == "größe ✓\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert not write_private(path, "größe ✓\n")
    assert list(path.parent.iterdir()) == [path]


def test_a_private_file_is_replaced_when_its_content_differs(tmp_path: Path):
    path = tmp_path / "secret"
    write_private(path, "old")
    assert write_private(path, "new")
    assert path.read_text() == "new"


def test_a_file_that_others_may_read_is_replaced_even_with_the_same_content(tmp_path: Path):
    path = tmp_path / "secret"
    path.write_text("same")
    path.chmod(0o644)
    assert write_private(path, "same")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_readable_leftover_of_an_interrupted_write_does_not_leak(tmp_path: Path):
    leftover = tmp_path / "secret.new"
    leftover.write_text("half")
    leftover.chmod(0o644)
    write_private(tmp_path / "secret", "whole")
    assert (tmp_path / "secret").read_text() == "whole"
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert not leftover.exists()


def test_a_damaged_file_is_replaced(tmp_path: Path):
    path = tmp_path / "secret"
    path.write_bytes(b"\xff\xfe\x00 not utf-8")
    path.chmod(0o600)
    assert write_private(path, "whole")
    assert path.read_text() == "whole"


def test_line_ends_are_kept_so_that_the_second_write_changes_nothing(tmp_path: Path):
    path = tmp_path / "file"
    assert write_private(path, "a\r\nb\r\n")
    assert path.read_bytes() == b"a\r\nb\r\n"
    assert not write_private(path, "a\r\nb\r\n")


def test_a_private_file_is_private_whatever_the_umask(tmp_path: Path):
    before = os.umask(0)
    try:
        write_private(tmp_path / "secret", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_room_is_looked_for_where_the_folder_will_be(tmp_path: Path):
    require_room(tmp_path, 0)
    require_room(tmp_path / "not" / "yet" / "there", 1)


def test_too_little_room_is_told_with_numbers_and_a_way_out(tmp_path: Path):
    with pytest.raises(ProvisionError, match=r"No disk space: .* has \d+ MiB free, 1000000000000 MiB are needed") as refused:
        require_room(tmp_path / "not" / "there", 10**12)
    assert str(tmp_path) in refused.value.message
    assert "LAB_HOME=" in refused.value.hint

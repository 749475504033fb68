"""Secrets: made once, kept private, and never guessed over damage."""

from __future__ import annotations

import base64
import json
import os

import pytest

from provision.errors import ProvisionError
from provision.home import MARKER, LabHome, lab_home
from provision.secret_store import NAMES, generate, load_or_create


@pytest.fixture
def home() -> LabHome:
    """Return this test's home, prepared."""
    made = lab_home()
    made.prepare()
    return made


def test_every_secret_is_made_and_kept(home):
    made = load_or_create(home)
    assert set(made) == set(NAMES)
    assert json.loads(home.secrets.read_text()) == made
    assert load_or_create(home) == made


def test_secrets_are_long_and_all_different(home):
    made = load_or_create(home)
    assert len(set(made.values())) == len(NAMES)
    assert all(len(value) >= 32 for value in made.values())
    assert generate("jwt_secret") != generate("jwt_secret")


@pytest.mark.parametrize("name", NAMES)
def test_a_secret_needs_no_quoting_anywhere(name):
    assert all(character.isalnum() or character in "-_=" for character in generate(name))


def test_a_fernet_key_is_what_airflow_demands():
    assert len(base64.urlsafe_b64decode(generate("fernet_key"))) == 32


def test_only_the_owner_can_read_the_file_whatever_the_umask(home):
    before = os.umask(0)
    try:
        load_or_create(home)
    finally:
        os.umask(before)
    assert home.secrets.stat().st_mode & 0o777 == 0o600


def test_a_file_that_others_could_read_is_closed_again(home):
    made = load_or_create(home)
    home.secrets.chmod(0o644)
    assert load_or_create(home) == made
    assert home.secrets.stat().st_mode & 0o777 == 0o600


def test_the_second_call_writes_nothing(home):
    load_or_create(home)
    before = home.secrets.stat()
    load_or_create(home)
    assert (home.secrets.stat().st_mtime_ns, home.secrets.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_missing_secret_is_added_and_the_others_stay(home):
    made = load_or_create(home)
    home.secrets.write_text(json.dumps({**made, "jwt_secret": ""}))
    again = load_or_create(home)
    assert again["jwt_secret"]
    assert {name: value for name, value in again.items() if name != "jwt_secret"} == {n: v for n, v in made.items() if n != "jwt_secret"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe\x00", b'{"fernet_key": 5}', b'{"jwt_secret": ["x"]}'])
def test_a_damaged_file_is_named_and_left_alone(home, content):
    home.secrets.write_bytes(content)
    with pytest.raises(ProvisionError, match=r"secrets\.json cannot be read") as damaged:
        load_or_create(home)
    assert "fab destroy" in damaged.value.hint
    assert home.secrets.read_bytes() == content


def test_nothing_but_the_file_is_left_behind(home):
    load_or_create(home)
    assert [path.name for path in home.root.iterdir() if path.is_file() and path.name != MARKER] == ["secrets.json"]

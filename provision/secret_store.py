"""The secrets of one installation, made once and kept in a file that only its owner can read."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Collection

from provision.errors import ProvisionError
from provision.home import LabHome, write_private
from provision.kube import git

NAMES = (
    "api_password",
    "jwt_secret",
    "api_secret_key",
    "fernet_key",
    "database_password",
    "broker_password",
    "cluster_token",
    "flower_password",
    "supervisor_password",
)
# The first one of the user admin.
RANCHER_PASSWORD = "rancher_password"
# Only some installations have these.
OPTIONAL = (git.KEY, RANCHER_PASSWORD)


def generate(name: str) -> str:
    """Return a new secret; a Fernet key is 32 random bytes in URL-safe base64, as Airflow demands."""
    if name == "fernet_key":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_urlsafe(32)


def load_or_create(home: LabHome, also: Collection[str] = ()) -> dict[str, str]:
    """Return the installation's secrets by name, creating those that are missing; `also` are optional ones that it needs.

    Raises ProvisionError when the file is not the JSON object that this module writes.
    """
    stored = _stored(home)
    known = {name: stored.get(name) or generate(name) for name in NAMES}
    known |= {name: stored[name] for name in OPTIONAL if stored.get(name)}
    known |= {name: git.make_key(home.root) if name == git.KEY else generate(name) for name in also if name not in known}
    _write(home, known)
    return known


def forget(home: LabHome, names: Collection[str]) -> None:
    """Remove optional secrets that the installation does not need any more; nothing happens if they are not there."""
    stored = _stored(home)
    if stored.keys() & set(names):
        _write(home, {name: value for name, value in stored.items() if name not in names})


def _write(home: LabHome, known: dict[str, str]) -> None:
    write_private(home.secrets, json.dumps(known, indent=1, sort_keys=True) + "\n")


def _stored(home: LabHome) -> dict[str, str]:
    stored: dict[str, str] = {}
    if home.secrets.exists():
        try:
            stored = json.loads(home.secrets.read_text())
            if not isinstance(stored, dict) or not all(isinstance(value, str) for value in stored.values()):
                raise ValueError("not a JSON object of texts")
        except (ValueError, OSError) as error:
            raise ProvisionError(f"{home.secrets} cannot be read: {error}.", "fab destroy, then fab install VARIANT") from error
    return stored

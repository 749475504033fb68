"""The secrets of one installation, made once and kept in a file that only its owner can read."""

from __future__ import annotations

import base64
import json
import secrets

from provision.errors import ProvisionError
from provision.home import LabHome, write_private

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


def generate(name: str) -> str:
    """Return a new secret; a Fernet key is 32 random bytes in URL-safe base64, as Airflow demands."""
    if name == "fernet_key":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_urlsafe(32)


def load_or_create(home: LabHome) -> dict[str, str]:
    """Return the installation's secrets by name, creating those that are missing.

    Raises ProvisionError when the file is not the JSON object that this module writes.
    """
    stored: dict[str, str] = {}
    if home.secrets.exists():
        try:
            stored = json.loads(home.secrets.read_text())
            if not isinstance(stored, dict) or not all(isinstance(value, str) for value in stored.values()):
                raise ValueError("not a JSON object of texts")
        except (ValueError, OSError) as error:
            raise ProvisionError(f"{home.secrets} cannot be read: {error}.", "fab destroy, then fab install VARIANT") from error
    known = {name: stored.get(name) or generate(name) for name in NAMES}
    write_private(home.secrets, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return known

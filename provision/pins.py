"""Reads provision/pins.toml."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@cache
def pins() -> dict[str, Any]:
    """Return pins.toml as a dict."""
    return tomllib.loads((HERE / "pins.toml").read_text())


def airflow_version() -> str:
    """Return the Airflow version that every target installs."""
    return pins()["airflow"]["version"]


def airflow_lock() -> Path:
    """Return the path of the hashed requirements that hold this Airflow version."""
    return HERE / pins()["airflow"]["lock"]

"""What every unit test gets: an installation folder of its own, and none of the caller's Airflow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def lab_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return this test's LAB_HOME, so that no test can touch a developer's installation."""
    for name in list(os.environ):
        if name.startswith(("AIRFLOW", "LAB_")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    monkeypatch.setenv("LAB_HOME", str(home))
    return home

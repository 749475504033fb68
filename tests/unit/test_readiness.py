"""How long services may take until they are ready."""

from __future__ import annotations

import pytest

from provision.errors import UsageError
from provision.readiness import START_VARIABLE, start_seconds


@pytest.mark.parametrize(("given", "seconds"), [(None, 300), ("", 300), ("1800", 1800)])
def test_slow_machines_get_the_time_that_is_asked_for(monkeypatch, given, seconds):
    monkeypatch.delenv(START_VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(START_VARIABLE, given)
    assert start_seconds(300) == seconds


@pytest.mark.parametrize("given", ["an hour", "0", "-5", "1.5"])
def test_what_is_no_number_of_seconds_is_refused(monkeypatch, given):
    monkeypatch.setenv(START_VARIABLE, given)
    with pytest.raises(UsageError, match=f"LAB_START_SECONDS = '{given}' is not a number of seconds"):
        start_seconds(300)

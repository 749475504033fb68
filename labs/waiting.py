"""Waiting with a deadline, and an error that says what did not happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from labs.errors import LabError

T = TypeVar("T")


def wait_for(
    probe: Callable[[], T | None], timeout_s: float, what: str, *, every_s: float = 0.1, hint: str = "fab status, then fab logs scheduler"
) -> T:
    """Return the first truthy answer of `probe`; raises LabError "`what` did not happen within …" at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise LabError(f"{what} did not happen within {timeout_s:.0f} s.", hint)
        time.sleep(every_s)

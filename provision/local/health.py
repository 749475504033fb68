"""Waiting until Airflow's services are ready, and saying why when they are not."""

from __future__ import annotations

import time
from collections.abc import Callable

from provision.errors import ProvisionError
from provision.home import LabHome
from provision.local.postgres import last_lines
from provision.local.supervisor import Supervisor, log_path
from provision.readiness import ApiHealth, Ready

# A cold first start compiles every module: minutes on a slow disk, 15 s on a laptop.
START_SECONDS = 240


def wait_until_healthy(
    home: LabHome,
    supervisor: Supervisor,
    url: str,
    password: str,
    started: dict[str, float],
    report: Callable[[str], None],
    others: Ready,
) -> None:
    """Return once the API answers, every service in `started` (name: epoch seconds) has a later heartbeat, and `others` are ready.

    Raises ProvisionError, with the end of its log, when a service ends or is not ready in time.
    """
    health = ApiHealth(url, password)
    _wait(lambda: health.missing(started) or others.missing(), home, supervisor, list(started), report)
    health.warm_up()


def wait_until(ready: Ready, home: LabHome, supervisor: Supervisor, names: list[str], report: Callable[[str], None]) -> None:
    """Return once all that `ready` asks are ready; raises ProvisionError when one of `names` ends or the time is up."""
    _wait(ready.missing, home, supervisor, names, report)


def _wait(
    missing_now: Callable[[], list[str]], home: LabHome, supervisor: Supervisor, names: list[str], report: Callable[[str], None]
) -> None:
    deadline, waiting = time.monotonic() + START_SECONDS, ""
    while True:
        require_alive(home, supervisor, names)
        missing = missing_now()
        if not missing:
            return
        if time.monotonic() > deadline:
            name = missing[0]
            raise ProvisionError(
                f"{name} was not ready within {START_SECONDS} s. The end of its log ({log_path(home, name)}):\n"
                f"{last_lines(log_path(home, name))}",
                f"fab logs {name}",
            )
        if ", ".join(missing) != waiting:
            waiting = ", ".join(missing)
            report(f"waiting for {waiting}")
        time.sleep(0.1)


def require_alive(home: LabHome, supervisor: Supervisor, names: list[str]) -> None:
    """Raise ProvisionError for the first of these programs that has ended, with the end of its log."""
    states = supervisor.states()
    for name in names:
        state = states.get(name)
        if state is None or state.state in ("EXITED", "FATAL", "BACKOFF", "STOPPED", "UNKNOWN"):
            status = (
                f"exit code {state.exit_status}" if state and state.state == "EXITED" else (state.state.lower() if state else "unknown")
            )
            raise ProvisionError(
                f"{name} ended ({status}). The end of its log ({log_path(home, name)}):\n{last_lines(log_path(home, name))}",
                f"fab logs {name}",
            )

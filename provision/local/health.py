"""Waiting until Airflow's services are ready, and saying why when they are not."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from provision.airflow import API_USER
from provision.errors import ProvisionError
from provision.home import LabHome
from provision.local.postgres import last_lines
from provision.local.supervisor import Supervisor, log_path

# The DAG that labs/dags/probes.py always defines; it being known proves that DAG files are parsed.
SMOKE_DAG = "lab_smoke"
# A cold first start compiles every module: minutes on a slow disk, 15 s on a laptop.
START_SECONDS = 240
_HEARTBEATS = {"scheduler": "scheduler", "dag-processor": "dag_processor", "triggerer": "triggerer"}


class Ready:
    """Services that are asked one after another whether they are ready, each until it once said yes."""

    def __init__(self, checks: Mapping[str, Callable[[], bool]]) -> None:
        self._left = dict(checks)

    def missing(self) -> list[str]:
        """Return the names of those that are not ready yet."""
        for name, check in list(self._left.items()):
            try:
                ready = check()
            except ProvisionError:
                ready = False
            if not ready:
                break
            del self._left[name]
        return list(self._left)


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
    token = ""

    def missing() -> list[str]:
        nonlocal token
        token = token or _login(url, password)
        return (_not_ready(url, token, started) if token else ["api-server"]) or others.missing()

    _wait(missing, home, supervisor, list(started), report)
    # The first request to the Execution API builds its routes (3 s); the first task must not pay for that.
    _get(f"{url}/execution/health", token)


def wait_until(ready: Ready, home: LabHome, supervisor: Supervisor, names: list[str], report: Callable[[str], None]) -> None:
    """Return once all that `ready` asks are ready; raises ProvisionError when one of `names` ends or the time is up."""
    _wait(ready.missing, home, supervisor, names, report)


def flower_answers(url: str) -> bool:
    """Return whether Flower serves its pages."""
    return _open(urllib.request.Request(f"{url}/healthcheck"), parse=lambda response: True) is not None


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


def _not_ready(url: str, token: str, started: dict[str, float]) -> list[str]:
    health = _get(f"{url}/api/v2/monitor/health", token) or {}
    missing = []
    for name, key in _HEARTBEATS.items():
        if name in started:
            entry = health.get(key) or {}
            beat = entry.get(f"latest_{key}_heartbeat")
            if entry.get("status") != "healthy" or not beat or datetime.fromisoformat(beat).timestamp() < started[name]:
                missing.append(name)
    if "dag-processor" in started and not missing and _get(f"{url}/api/v2/dags/{SMOKE_DAG}", token) is None:
        missing.append("dag-processor")
    return missing


def _login(url: str, password: str) -> str:
    body = json.dumps({"username": API_USER, "password": password}).encode()
    request = urllib.request.Request(f"{url}/auth/token", data=body, headers={"Content-Type": "application/json"})
    answer = _open(request)
    return answer["access_token"] if answer else ""


def _get(address: str, token: str) -> dict[str, Any] | None:
    return _open(urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"}))


def _open(request: urllib.request.Request, parse: Callable[[Any], Any] = json.load) -> Any:
    # A proxy of the surrounding network must never see loopback requests.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as response:
            return parse(response)
    except urllib.error.HTTPError as error:
        error.close()
        return None
    except (OSError, ValueError):
        return None

"""Whether Airflow's services are ready, asked over its API; the same for every target."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from provision.airflow import API_USER
from provision.errors import ProvisionError, UsageError

# The DAG that labs/dags/probes.py always defines; it being known proves that DAG files are parsed.
SMOKE_DAG = "lab_smoke"
START_VARIABLE = "LAB_START_SECONDS"
_HEARTBEATS = {"scheduler": "scheduler", "dag-processor": "dag_processor", "triggerer": "triggerer"}


def start_seconds(default: int) -> int:
    """Return how long services may take until they are ready: `$LAB_START_SECONDS`, or `default`."""
    given = os.environ.get(START_VARIABLE) or str(default)
    if not given.isdecimal() or int(given) < 1:
        raise UsageError(f"{START_VARIABLE} = {given!r} is not a number of seconds.", f"give a whole number, such as {START_VARIABLE}=1800")
    return int(given)


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


class ApiHealth:
    """What one Airflow says of its own health."""

    def __init__(self, url: str, password: str) -> None:
        self._url, self._password, self._token = url, password, ""

    def missing(self, started: Mapping[str, float], schedulers: Mapping[str, str] | None = None) -> list[str]:
        """Return which services in `started` (name: epoch seconds) have no later heartbeat, or do not answer.

        With `schedulers` (host by name) each of them must have one of its own, whatever the others do.
        """
        self._token = self._token or _login(self._url, self._password)
        if not self._token:
            return ["api-server"]
        missing = _not_ready(self._url, self._token, started)
        return missing or [
            name for name, host in (schedulers or {}).items() if _scheduler_beat(self._url, self._token, host) <= started[name]
        ]

    def warm_up(self) -> None:
        """Make the first request to the Execution API: it builds its routes (3 s), for which the first task must not pay."""
        _get(f"{self._url}/execution/health", self._token)


def api_answers(url: str) -> bool:
    """Return whether this API server answers, and reaches the database."""
    health = _get(f"{url}/api/v2/monitor/health", "") or {}
    return (health.get("metadatabase") or {}).get("status") == "healthy"


def flower_answers(url: str) -> bool:
    """Return whether Flower serves its pages."""
    return _open(urllib.request.Request(f"{url}/healthcheck"), parse=lambda response: True) is not None


def _not_ready(url: str, token: str, started: Mapping[str, float]) -> list[str]:
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


def _scheduler_beat(url: str, token: str, host: str) -> float:
    """Return when the scheduler on a host was last alive, in epoch seconds; 0 if it is not."""
    query = urllib.parse.urlencode({"job_type": "SchedulerJob", "job_state": "running", "is_alive": "true", "hostname": host})
    jobs = (_get(f"{url}/api/v2/jobs?{query}", token) or {}).get("jobs", [])
    return max((datetime.fromisoformat(job["latest_heartbeat"]).timestamp() for job in jobs), default=0.0)


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

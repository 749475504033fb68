"""Airflow's public REST API (v2) over requests: only what the labs need, with errors that say what failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import requests

from labs.errors import LabError
from labs.installation import Installation

# The server caps a page at [api] maximum_page_limit, 100 by default.
PAGE = 100


class ApiError(LabError):
    """An answer other than success; `status` is the HTTP status, 0 when there was no answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, "fab status, then fab logs api-server")
        self.status = status


# A request that changes something waits for SQLite's one write lock, for up to a minute.
ANSWER_S, ANSWER_ON_SQLITE_S = 30, 90


class AirflowApi:
    """A logged-in session with one Airflow."""

    def __init__(self, installation: Installation, timeout_s: float | None = None) -> None:
        """Prepare it; an answer may take `timeout_s` seconds, by default as long as this Airflow's database may make one wait."""
        self.url = installation.api_url
        self._user = installation.user
        self._password = installation.password()
        self._timeout_s = timeout_s or (ANSWER_ON_SQLITE_S if installation.on_sqlite else ANSWER_S)
        self._session = requests.Session()
        # Neither the surroundings' proxy nor their .netrc concerns this server.
        self._session.trust_env = False

    def login(self) -> None:
        """Get a token (valid for 24 h by Airflow's default)."""
        body = {"username": self._user, "password": self._password}
        answer = self._send("POST", "/auth/token", json=body)
        if answer.status_code != 201:
            raise ApiError(f"Airflow at {self.url} refused the login: {_reason(answer)}.", answer.status_code)
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """Return the decoded answer of one request below /api/v2; raises ApiError unless it succeeded."""
        if "Authorization" not in self._session.headers:
            self.login()
        answer = self._send(method, f"/api/v2{path}", **kwargs)
        if answer.status_code == 401:
            self.login()
            answer = self._send(method, f"/api/v2{path}", **kwargs)
        if not answer.ok:
            raise ApiError(f"{method} {path} failed with {answer.status_code}: {_reason(answer)}.", answer.status_code)
        return answer.json() if answer.content else None

    def find(self, path: str) -> Any | None:
        """Return what GET finds, or None if it does not exist."""
        try:
            return self.call("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def _send(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        try:
            return self._session.request(method, self.url + path, timeout=self._timeout_s, **kwargs)
        except requests.RequestException as error:
            raise ApiError(f"Airflow's API at {self.url} does not answer ({type(error).__name__}).", 0) from error

    # -- the instance -------------------------------------------------------------------------------

    def version(self) -> str:
        """Return Airflow's version as its API server says it."""
        return self.call("GET", "/version")["version"]

    def health(self) -> dict[str, Any]:
        """Return the health of the metadata database, scheduler, triggerer and DAG processor."""
        return self.call("GET", "/monitor/health")

    def setting(self, name: str) -> str | None:
        """Return the value of "section.key" as the API server sees it; None if it does not show it."""
        section, _, key = name.partition(".")
        answer = self.find(f"/config/section/{section}/option/{key}")
        return str(answer["sections"][0]["options"][0]["value"]) if answer else None

    # -- DAGs and their runs ------------------------------------------------------------------------

    def dag(self, dag_id: str) -> dict[str, Any] | None:
        """Return a DAG, or None while Airflow does not know it."""
        return self.find(f"/dags/{_part(dag_id)}")

    def dags(self, pattern: str) -> list[dict[str, Any]]:
        """Return the DAGs whose id contains `pattern`."""
        return list(self._pages("/dags", "dags", {"dag_id_pattern": f"%{pattern}%", "exclude_stale": "false"}))

    def import_errors(self) -> list[dict[str, Any]]:
        """Return what went wrong in DAG files."""
        return self.call("GET", "/importErrors")["import_errors"]

    def parse(self, file_token: str) -> None:
        """Ask the DAG processor to parse a known file before all others."""
        try:
            self.call("PUT", f"/parseDagFile/{file_token}")
        except ApiError as error:
            # The same request is already waiting: as good as a new one.
            if error.status != 409:
                raise

    def delete_dag(self, dag_id: str) -> None:
        """Remove a DAG with its runs; nothing happens if there is none."""
        self._delete(f"/dags/{_part(dag_id)}")

    def trigger(self, dag_id: str) -> str:
        """Start a DAG run and return its id."""
        return self.call("POST", f"/dags/{_part(dag_id)}/dagRuns", json={"logical_date": None})["dag_run_id"]

    def dag_run_state(self, dag_id: str, run_id: str) -> str:
        """Return a run's state."""
        return self.call("GET", f"/dags/{_part(dag_id)}/dagRuns/{_part(run_id)}")["state"]

    def fail_run(self, dag_id: str, run_id: str) -> None:
        """Mark a run as failed; Airflow then ends its running tasks at their next heartbeat."""
        self.call("PATCH", f"/dags/{_part(dag_id)}/dagRuns/{_part(run_id)}", json={"state": "failed"})

    def active_runs(self, dag_id: str) -> list[str]:
        """Return the ids of a DAG's runs that have not ended."""
        path = f"/dags/{_part(dag_id)}/dagRuns"
        return [r["dag_run_id"] for r in self._pages(path, "dag_runs", {"state": ["queued", "running"]})]

    # -- task instances -----------------------------------------------------------------------------

    def task_instances(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the current try of every task instance of a DAG, all runs, page by page with the cursor."""
        path, rows, cursor = f"/dags/{_part(dag_id)}/dagRuns/~/taskInstances", [], ""
        while cursor is not None:
            answer = self.call("GET", path, params={"limit": PAGE, "cursor": cursor})
            rows += answer["task_instances"]
            cursor = answer["next_cursor"]
        return rows

    def running_count(self) -> int:
        """Return how many task instances run now, of all DAGs."""
        answer = self.call("GET", "/dags/~/dagRuns/~/taskInstances", params={"limit": 1, "state": "running"})
        return answer["total_entries"]

    def earlier_tries(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the tries of a task instance before its current one."""
        path = self._instance_path(row) + (f"/{row['map_index']}/tries" if row["map_index"] >= 0 else "/tries")
        tries = self.call("GET", path)["task_instances"]
        return [t for t in tries if t["try_number"] < row["try_number"]]

    def log(self, row: dict[str, Any]) -> list[str]:
        """Return the lines of a task instance's log, as the web page shows them."""
        path = f"{self._instance_path(row)}/logs/{row['try_number']}"
        answer = self.call(
            "GET", path, params={"map_index": row["map_index"], "full_content": "true"}, headers={"Accept": "application/json"}
        )
        return [entry if isinstance(entry, str) else _log_line(entry) for entry in answer["content"]]

    def _instance_path(self, row: dict[str, Any]) -> str:
        return f"/dags/{_part(row['dag_id'])}/dagRuns/{_part(row['dag_run_id'])}/taskInstances/{_part(row['task_id'])}"

    # -- pools and variables ------------------------------------------------------------------------

    def pools(self) -> dict[str, int]:
        """Return the slots of every pool, by name; -1 means no limit."""
        return {p["name"]: p["slots"] for p in self._pages("/pools", "pools", {})}

    def pools_described(self, note: str) -> list[str]:
        """Return the names of the pools whose description is `note`."""
        return [p["name"] for p in self._pages("/pools", "pools", {}) if p["description"] == note]

    def set_pool(self, name: str, slots: int, description: str) -> None:
        """Create a pool, or change its slots."""
        if name in self.pools():
            params = {"update_mask": "slots"}
            self.call("PATCH", f"/pools/{_part(name)}", params=params, json={"pool": name, "slots": slots, "include_deferred": False})
        else:
            body = {"name": name, "slots": slots, "description": description, "include_deferred": False}
            self.call("POST", "/pools", json=body)

    def delete_pool(self, name: str) -> None:
        """Remove a pool; nothing happens if there is none."""
        self._delete(f"/pools/{_part(name)}")

    def variables(self, prefix: str) -> list[str]:
        """Return the keys of the Airflow Variables that start with `prefix`."""
        found = self._pages("/variables", "variables", {"variable_key_pattern": f"{prefix}%"})
        return [v["key"] for v in found if v["key"].startswith(prefix)]

    def set_variable(self, key: str, value: str) -> None:
        """Create or change an Airflow Variable."""
        try:
            self.call("PATCH", f"/variables/{_part(key)}", json={"key": key, "value": value})
        except ApiError as error:
            if error.status != 404:
                raise
            self.call("POST", "/variables", json={"key": key, "value": value, "description": "a lab's gate"})

    def delete_variable(self, key: str) -> None:
        """Remove an Airflow Variable; nothing happens if there is none."""
        self._delete(f"/variables/{_part(key)}")

    def _delete(self, path: str) -> None:
        try:
            self.call("DELETE", path)
        except ApiError as error:
            if error.status != 404:
                raise

    def _pages(self, path: str, key: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            answer = self.call("GET", path, params={**params, "limit": PAGE, "offset": offset})
            yield from answer[key]
            offset += len(answer[key])
            if not answer[key] or offset >= answer["total_entries"]:
                return


def _part(text: str) -> str:
    return quote(text, safe="")


def _reason(answer: requests.Response) -> str:
    try:
        detail = answer.json().get("detail")
    except ValueError:
        detail = None
    return str(detail or answer.reason or "no reason given")[:300]


def _log_line(entry: dict[str, Any]) -> str:
    return f"{entry.get('level') or ''} {entry.get('event', '')}".strip()

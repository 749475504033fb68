"""When services on nodes count as ready or as ended, and what is refused before they are touched: nodes and API are stand-ins."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from nodes_samples import desired

from provision import readiness
from provision.environments import TABLES
from provision.errors import ProvisionError, UsageError
from provision.home import lab_home
from provision.nodes.converge import Converge
from provision.nodes.session import Nodes
from provision.nodes.waiting import wait
from provision.readiness import ApiHealth, api_answers

BEGUN = 1_700_000_000.0
HOSTS = {"scheduler": "control", "scheduler-2": "worker-1"}


def at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


class Api:
    """What an Airflow says of itself: everything beats, and schedulers are alive on these hosts since then."""

    def __init__(self, beats: dict[str, float], database: str = "healthy") -> None:
        self.beats, self.database = beats, database

    def get(self, address: str, token: str):
        if "/jobs?" in address:
            return {"jobs": [{"latest_heartbeat": at(beat)} for host, beat in self.beats.items() if f"hostname={host}" in address]}
        newest = at(max(self.beats.values(), default=0))
        one = {"status": "healthy"} | {f"latest_{key}_heartbeat": newest for key in ("scheduler", "dag_processor", "triggerer")}
        return {"metadatabase": {"status": self.database}, "scheduler": one, "dag_processor": one, "triggerer": one}


@pytest.mark.parametrize(
    ("beats", "missing"),
    [
        ({"control": BEGUN + 5, "worker-1": BEGUN + 5}, []),
        ({"control": BEGUN + 5}, ["scheduler-2"]),
        ({"worker-1": BEGUN + 5}, ["scheduler"]),
        ({"control": BEGUN + 5, "worker-1": BEGUN - 5}, ["scheduler-2"]),
    ],
)
def test_the_scheduler_that_is_ready_does_not_speak_for_the_other(monkeypatch, beats, missing):
    monkeypatch.setattr(readiness, "_login", lambda url, password: "a-token")
    monkeypatch.setattr(readiness, "_get", Api(beats).get)
    assert ApiHealth("http://api", "word").missing(dict.fromkeys(HOSTS, BEGUN), HOSTS) == missing


@pytest.mark.parametrize(
    ("answer", "ready"), [({"metadatabase": {"status": "healthy"}}, True), ({"metadatabase": {}}, False), (None, False)]
)
def test_an_api_server_is_ready_when_it_reaches_the_database(monkeypatch, answer, ready):
    monkeypatch.setattr(readiness, "_get", lambda address, token: answer)
    assert api_answers("http://api") is ready


class Node:
    """A node whose services were started again this often, one number after the other, and that has these files."""

    def __init__(self, name: str, restarts: list[int] | None = None, files: dict[str, str] | None = None) -> None:
        self.name, self.restarts, self.files = name, restarts or [0], files or {}

    def call(self, op, report=None, **args):
        if op == "states":
            now = self.restarts.pop(0) if len(self.restarts) > 1 else self.restarts[0]
            return {unit: {"active": "active", "restarts": now, "status": 1} for unit in args["units"]}
        return {"journal": "lost", "read": self.files.get(args.get("path", ""), "")}[op]

    def close(self) -> None:
        """There is no connection."""


def converge(control: Node, **asked) -> Converge:
    nodes = Nodes({"control": control, "worker-1": Node("worker-1"), "worker-2": Node("worker-2")})
    state = desired("postgres", **asked)
    return Converge(lab_home(), state, nodes, Path("/none"), lambda: state)


def waited(place: Converge, polls: int) -> None:
    """Wait for the scheduler, which is ready after so many looks."""
    answers = [["scheduler"]] * polls + [[]]
    wait(place.desired, place.nodes, lambda: answers.pop(0), lambda text: None)


def test_restarts_of_long_ago_do_not_count(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    waited(converge(Node("control", [7, 7, 8, 9])), polls=3)


def test_a_service_that_is_started_again_and_again_has_ended(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(ProvisionError, match="scheduler on control ended") as error:
        waited(converge(Node("control", [7, 8, 9, 10])), polls=9)
    assert error.value.hint == "fab logs scheduler --target vagrant"


def airflow_of(place: Converge) -> dict[str, str]:
    """Return the files by which an Airflow environment is known, with a small table of settings."""
    environment = place.desired.environment_path
    table = "core:\n  options:\n    parallelism: {default: 32}\n"
    return {f"{environment}/complete": "yes", f"{environment}/lib/python3.11/site-packages/{TABLES[0]}": table}


def test_settings_that_the_nodes_airflow_does_not_know_are_refused():
    for setting in ("core.paralelism", "core.parallelism"):
        node = Node("control")
        place = converge(node, changes={setting: "4"})
        # Without Airflow there is nobody to ask yet; it is asked again when it is there.
        place.check_settings()
        node.files = airflow_of(place)
        if setting == "core.parallelism":
            place.check_settings()
        else:
            with pytest.raises(UsageError, match=r"has no setting core\.paralelism") as error:
                place.check_settings()
            assert "core.parallelism" in error.value.hint

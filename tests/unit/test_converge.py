"""What separates a machine from its desired state, and in which order that is removed; supervisor is a stand-in here."""

from __future__ import annotations

import json

import pytest

from provision.errors import ProvisionError
from provision.home import LabHome, lab_home, read_json, write_private
from provision.local import converge as converge_module
from provision.local.converge import Converge
from provision.local.desired import Desired, desired_state, files_of, installation_document, render_worker_file, worker_file
from provision.local.supervisor import ProcessState
from provision.local.target import LocalTarget
from provision.variants import wanted
from provision.workers import Worker

ONE, TWO, THREE = (Worker(f"worker-{n}") for n in (1, 2, 3))


class StandIn:
    """A supervisor whose programs are rows of a table, and which writes down what it is told."""

    def __init__(self, **states: str) -> None:
        self.rows = {name.replace("_", "-"): state for name, state in states.items()}
        self.pids = {name: 100 + number for number, name in enumerate(self.rows)}
        self.told: list[tuple[str, tuple[str, ...]]] = []

    def states(self) -> dict[str, ProcessState]:
        alive = ("RUNNING", "STARTING", "STOPPING")
        return {name: ProcessState(name, state, self.pids[name] if state in alive else 0, 0.0, 0) for name, state in self.rows.items()}

    def stop(self, names, report=None, *, patience_s=30) -> None:
        self.told.append(("stop", tuple(names)))
        self.rows |= dict.fromkeys(names, "STOPPED")

    def start(self, names) -> None:
        self.told.append(("start", tuple(names)))
        for name in names:
            self.rows[name] = "RUNNING"
            self.pids[name] = self.pids.get(name, 500) + 1000


@pytest.fixture
def home() -> LabHome:
    """Return this test's home, prepared."""
    made = lab_home()
    made.prepare()
    return made


def celery(home: LabHome, *workers: Worker, **asked) -> Desired:
    """Return the celery variant with these workers."""
    return desired_state(home, wanted("celery", workers=workers, **asked), ())


def installed(home: LabHome, state: Desired, but: tuple[str, ...] = ()) -> StandIn:
    """Return a supervisor in which all of this runs, with everything written down as an install does it."""
    supervisor = StandIn(**{program.name: "RUNNING" for program in state.programs if program.name not in but})
    for path, text in files_of(home, state).items():
        write_private(path, text)
    for worker in state.workers.values():
        write_private(worker_file(home, worker.name), render_worker_file(worker))
    (home.databases / "postgres").mkdir(parents=True, exist_ok=True)
    (home.databases / "postgres" / "PG_VERSION").write_text("18\n")
    (home.databases / "postgres.migrated").write_text(converge_module.airflow_version())
    recorded = {name: [supervisor.pids[name], state.digests[name]] for name in supervisor.rows}
    write_private(home.state / "services.json", json.dumps(recorded))
    write_private(home.installation, json.dumps(installation_document(home, state)))
    return supervisor


def planned(home: LabHome, state: Desired, supervisor: StandIn) -> list[tuple[str, str]]:
    """Return what a plan would do to what."""
    return [(change.action, change.name) for change in Converge(home, state, supervisor).plan()]


def services(home: LabHome) -> dict:
    return read_json(home.state / "services.json")


def test_what_runs_as_it_should_needs_no_change(home):
    state = celery(home, ONE)
    assert planned(home, state, installed(home, state)) == []


@pytest.mark.parametrize("known", ["supervisor", "services.json", "its file"])
def test_a_worker_that_died_and_is_not_wanted_any_more_is_removed_wherever_it_is_known(home, known):
    state = celery(home, ONE)
    supervisor = installed(home, state)
    if known == "supervisor":
        supervisor.rows["worker-2"], supervisor.pids["worker-2"] = "EXITED", 0
    elif known == "services.json":
        write_private(home.state / "services.json", json.dumps({**services(home), "worker-2": [999, "x"]}))
    else:
        write_private(worker_file(home, "worker-2"), render_worker_file(TWO))
    converge = Converge(home, state, supervisor)
    assert planned(home, state, supervisor) == [("remove", "worker-2")]
    assert "worker-2" in converge.worker_names()
    converge.remember()
    assert "worker-2" not in services(home)


def test_a_service_of_another_variant_that_is_known_is_not_taken_for_a_worker(home):
    state = celery(home, ONE)
    supervisor = installed(home, state)
    supervisor.rows["rabbitmq"], supervisor.pids["rabbitmq"] = "RUNNING", 7
    converge = Converge(home, state, supervisor)
    assert planned(home, state, supervisor) == [("stop", "rabbitmq")]
    assert converge.worker_names() == {"worker-1"}


def test_a_worker_that_was_told_to_end_is_waited_for_and_started_again(home):
    state = celery(home, ONE)
    supervisor = installed(home, state)
    supervisor.rows["worker-1"] = "STOPPING"
    assert planned(home, state, supervisor) == [("restart", "worker-1")]
    assert planned(home, celery(home), supervisor) == [("stop", "worker-1")]


def test_workers_finish_before_airflow_stops_and_airflow_before_its_stores(home, monkeypatch):
    state = celery(home, ONE, TWO)
    supervisor = installed(home, state)
    converge = Converge(home, state, supervisor)
    monkeypatch.setattr(converge, "_tasks_of", lambda workers: {"worker-1": 2})
    said: list[str] = []
    converge._stop(["postgres", "api-server", "worker-1", "scheduler", "worker-2", "redis"], said.append)
    assert supervisor.told == [("stop", ("worker-1", "worker-2")), ("stop", ("api-server", "scheduler")), ("stop", ("postgres", "redis"))]
    assert any("worker-1 has 2" in text and "finished first" in text for text in said)


def test_a_program_that_goes_on_keeps_the_settings_it_was_started_with(home):
    before = celery(home, ONE)
    supervisor = installed(home, before)
    after = celery(home, ONE, changes={"celery.worker_prefetch_multiplier": "4"})
    todo = [("restart", name) for name in ("scheduler", "flower", "worker-1")]
    write_private(home.environment_file, files_of(home, after)[home.environment_file])
    assert planned(home, after, supervisor) == todo
    # Interrupted while workers finish their tasks: what was not restarted is still to be restarted.
    converge = Converge(home, after, supervisor)
    converge.remember(but=["worker-1"])
    supervisor.rows["worker-1"] = "STOPPING"
    Converge(home, after, supervisor).remember()
    assert planned(home, after, supervisor) == todo


def test_a_program_that_was_started_is_recorded_with_its_new_settings(home):
    before = celery(home, ONE)
    supervisor = installed(home, before)
    after = celery(home, ONE, changes={"celery.worker_prefetch_multiplier": "4"})
    write_private(home.environment_file, files_of(home, after)[home.environment_file])
    supervisor.stop(["scheduler"])
    converge = Converge(home, after, supervisor)
    converge._start_programs(["scheduler"])
    assert services(home)["scheduler"] == [supervisor.pids["scheduler"], after.digests["scheduler"]]
    assert planned(home, after, supervisor) == [("restart", "flower"), ("restart", "worker-1")]


@pytest.fixture
def place(home, monkeypatch) -> LocalTarget:
    """Return the local target with a supervisor that stands in, and workers that answer if they run."""

    class Answering:
        def answering(self, names):
            states = supervisor.states()
            return {name for name in names if name in states and states[name].running and name not in place.mute}

    place = LocalTarget(home)
    state = celery(home, ONE, TWO)
    supervisor = installed(home, state)
    place.mute = set()
    place.standin = supervisor
    monkeypatch.setattr(place, "_supervisor", lambda: supervisor)
    monkeypatch.setattr(place, "_converge", lambda desired: Converge(home, desired, supervisor))
    monkeypatch.setattr(place._celery, "fleet", lambda: Answering())
    monkeypatch.setattr(place, "require_alive", lambda but=(): None)
    return place


def failing(monkeypatch, place: LocalTarget, home: LabHome, *, restarted: tuple[str, ...] = (), error=None):
    """Make every apply restart some workers, start what is missing, and then fail."""

    def apply(self, todo, report):
        place.standin.stop(restarted)
        for worker in self.desired.workers.values():
            write_private(worker_file(home, worker.name), render_worker_file(worker))
        missing = [name for name in self.desired.workers if self.supervisor.rows.get(name) != "RUNNING"]
        self._start_programs(missing)
        raise error or ProvisionError("no", "try again")

    monkeypatch.setattr(Converge, "apply", apply)


def listed(place: LocalTarget) -> list[tuple[str, int | None]]:
    return [(worker["name"], worker["at_least"]) for worker in place.installed()["workers"]]


def test_a_worker_that_was_restarted_goes_on_when_another_one_fails(place, home, monkeypatch):
    failing(monkeypatch, place, home, restarted=("worker-2",))
    elastic = Worker("worker-2", 4, at_least=1)
    with pytest.raises(ProvisionError):
        place.set_workers([ONE, elastic, THREE])
    assert listed(place) == [("worker-1", None), ("worker-2", 1)]
    assert place.standin.rows["worker-2"] == "RUNNING"
    assert place.standin.rows["worker-3"] == "STOPPED"
    assert planned(home, celery(home, ONE, elastic), place.standin) == [("remove", "worker-3")]


@pytest.mark.parametrize("error", [ProvisionError("no", "try again"), KeyboardInterrupt()], ids=["fails", "is interrupted"])
def test_a_worker_that_was_restarted_and_did_not_come_back_is_noticed(place, home, monkeypatch, error):
    failing(monkeypatch, place, home, restarted=("worker-2",), error=error)
    place.mute = {"worker-2", "worker-3"}
    said: list[str] = []
    with pytest.raises(type(error)):
        place.set_workers([ONE, Worker("worker-2", 4, at_least=1), THREE], said.append)
    assert listed(place) == [("worker-1", None), ("worker-2", 1)]
    # Whoever looks whether all services are alive goes by this file.
    assert services(home)["worker-2"] == [0, ""]
    assert "worker-3" not in services(home)
    assert any("worker-2 did not come back" in text for text in said)


def test_a_worker_that_was_leaving_when_it_was_interrupted_is_not_listed_any_more(place, home, monkeypatch):
    def interrupted(self, todo, report):
        self.remember(but=["worker-2"])
        place.standin.rows["worker-2"] = "STOPPING"
        raise KeyboardInterrupt

    monkeypatch.setattr(Converge, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place.set_workers([ONE])
    assert listed(place) == [("worker-1", None)]
    assert "worker-2" not in services(home)
    assert planned(home, celery(home, ONE), place.standin) == [("stop", "worker-2")]


def test_a_change_of_workers_is_refused_when_more_than_workers_would_change(place, home, monkeypatch):
    monkeypatch.setattr(Converge, "apply", lambda self, todo, report: pytest.fail("something was changed"))
    (home.dags / "probes.py").write_text("older")
    with pytest.raises(ProvisionError, match=r"write airflow/dags/probes.py") as refused:
        place.set_workers([ONE])
    assert refused.value.hint.startswith("fab install celery --worker worker-1=2@default --worker worker-2=2@default first")


def test_a_change_of_workers_is_refused_when_all_workers_would_restart(place, home, monkeypatch):
    monkeypatch.setattr(Converge, "apply", lambda self, todo, report: pytest.fail("something was changed"))
    recorded = services(home)
    write_private(home.state / "services.json", json.dumps({**recorded, "worker-1": [recorded["worker-1"][0], "older"]}))
    with pytest.raises(ProvisionError, match="restart worker-1: its settings changed"):
        place.set_workers([ONE, TWO, THREE])


def test_dead_workers_can_be_removed(place, home, monkeypatch):
    seen = []
    monkeypatch.setattr(Converge, "apply", lambda self, todo, report: seen.extend(todo) or self.remember())
    place.standin.rows["worker-2"] = "EXITED"
    place.set_workers([ONE])
    assert [(change.action, change.name) for change in seen] == [("remove", "worker-2")]
    assert "worker-2" not in services(home)
    assert listed(place) == [("worker-1", None)]


class Broker:
    """A broker with these messages, and workers that hold some."""

    def __init__(self, waiting: dict[str, int] | None, held: int = 0) -> None:
        self._waiting, self._held = waiting, held

    def waiting(self, queues):
        if self._waiting is None:
            raise ProvisionError("The broker does not answer.")
        return {queue: self._waiting.get(queue, 0) for queue in queues}

    def reserved(self, names):
        return dict.fromkeys(names, self._held)


@pytest.mark.parametrize(
    ("broker", "asked", "said"),
    [
        (Broker({"default": 3}), "rabbitmq", "Task messages wait in redis: 3 in queue default. rabbitmq would not know them"),
        (Broker({}, held=1), "rabbitmq", "1 held by worker-1"),
        (Broker({}), "rabbitmq", ""),
        (Broker({"default": 3}), "redis", ""),
        (Broker({"default": 3}), None, ""),
        (Broker(None), "rabbitmq", ""),
    ],
)
def test_a_broker_in_which_messages_wait_is_not_replaced(place, monkeypatch, broker, asked, said):
    monkeypatch.setattr(place._celery, "fleet", lambda: broker)
    reported: list[str] = []
    request = wanted("celery", broker=asked)
    if said:
        with pytest.raises(ProvisionError, match=said) as refused:
            place._celery.require_nothing_left(request.broker, "fab stop", reported.append)
        assert "fab stop" in refused.value.hint
    else:
        place._celery.require_nothing_left(request.broker, "fab stop", reported.append)
    assert bool(reported) is (broker._waiting is None)


def test_another_variant_leaves_messages_where_they_are(place, monkeypatch):
    monkeypatch.setattr(place._celery, "fleet", lambda: Broker({"default": 3}))
    place._celery.require_nothing_left(wanted("sqlite").broker, "fab stop", pytest.fail)

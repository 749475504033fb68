"""What the workers of a broker are asked and told, and in which order; a Celery worker is a stand-in here."""

from __future__ import annotations

import pytest

from provision import fleet as fleet_module
from provision.errors import ProvisionError
from provision.fleet import Fleet, Size, tasks_in_hand
from provision.workers import Worker

A, B = Worker("a", 2, ("light",)), Worker("b", 2, ("light", "heavy"))


class StandIn(Fleet):
    """A fleet of one worker that does what it is told, and writes down what that was."""

    def __init__(self, processes: int, *queues: str, active: int = 0, reserved: int = 0, scale: tuple[int, int] | None = None) -> None:
        self.processes, self.served, self.scale = processes, list(queues), scale
        self.in_hand_of = {"active": active, "reserved": reserved}
        self.told: list[tuple] = []
        self.asked: list[str] = []
        self.deaf: set[str] = set()

    def _ask(self, what, names):
        self.asked.append(what)
        if "everything" in self.deaf:
            return {}
        if what == "stats":
            scaler = {"autoscaler": {"min": self.scale[0], "max": self.scale[1]}} if self.scale else {}
            return {name: {"pool": {"processes": [*range(self.processes)]}, **scaler} for name in names}
        if what == "active_queues":
            return {name: [{"name": queue} for queue in self.served] for name in names}
        return {name: [None] * self.in_hand_of[what] for name in names}

    def _tell(self, worker, command, *arguments):
        self.told.append((command, *arguments))
        if command in self.deaf:
            raise ProvisionError(f"Worker {worker.name} did not change: no.", "fab logs")
        if command == "add_consumer" and arguments[0] not in self.served:
            self.served.append(arguments[0])
        if command == "cancel_consumer":
            self.served.remove(arguments[0])
        if command == "autoscale":
            most, least = arguments
            self.scale, self.processes = (least, most), max(least, min(self.processes, most))
        if command in ("pool_grow", "pool_shrink"):
            self.processes += arguments[0] if command == "pool_grow" else -arguments[0]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(fleet_module, "RESIZED_S", 0.3)


def test_a_worker_grows_and_takes_messages_all_the_while():
    fleet = StandIn(2, "light", active=2)
    fleet.resize(Worker("a", 4, ("light", "heavy")))
    assert fleet.told == [("pool_grow", 2), ("add_consumer", "heavy")]


def test_a_worker_that_shrinks_takes_no_messages_until_it_has():
    fleet = StandIn(4, "light", "heavy", active=1)
    fleet.resize(Worker("a", 2, ("light",)))
    assert fleet.told == [("cancel_consumer", "heavy"), ("cancel_consumer", "light"), ("pool_shrink", 2), ("add_consumer", "light")]
    assert (fleet.processes, fleet.served) == (2, ["light"])


# A task that is in hand and does not run yet may be on its way to any process.
@pytest.mark.parametrize(("active", "reserved"), [(3, 0), (2, 1), (0, 3), (0, 1)])
def test_a_worker_with_too_many_tasks_in_hand_does_not_shrink_and_takes_messages_again(active, reserved):
    fleet = StandIn(4, "light", active=active, reserved=reserved)
    with pytest.raises(ProvisionError, match=f"a has {active + reserved} tasks in hand and 4 processes; 2 are wanted"):
        fleet.resize(Worker("a", 2, ("light",)))
    assert (fleet.processes, fleet.served) == (4, ["light"])
    assert "pool_shrink" not in {command for command, *_ in fleet.told}


def test_a_worker_that_refuses_to_shrink_takes_messages_again():
    fleet = StandIn(4, "light")
    fleet.deaf = {"pool_shrink"}
    with pytest.raises(ProvisionError, match="did not change"):
        fleet.resize(Worker("a", 2, ("light",)))
    assert fleet.served == ["light"]


def test_only_queues_change_where_only_queues_should():
    fleet = StandIn(2, "light", active=2)
    fleet.resize(B)
    assert fleet.told == [("add_consumer", "heavy")]


def test_a_range_grows_at_once_and_shrinks_only_when_idle():
    fleet = StandIn(2, "light", active=2, scale=(1, 4))
    fleet.resize(Worker("a", 6, ("light",), at_least=2))
    assert fleet.told == [("autoscale", 6, 2)]
    with pytest.raises(ProvisionError, match="2 tasks in hand"):
        fleet.resize(Worker("a", 1, ("light",), at_least=1))
    assert (fleet.scale, fleet.served) == ((2, 6), ["light"])
    fleet.in_hand_of["active"] = 1
    fleet.resize(Worker("a", 1, ("light",), at_least=1))
    assert (fleet.scale, fleet.processes, fleet.served) == ((1, 1), 1, ["light"])


def test_a_range_that_the_worker_did_not_take_is_told():
    fleet = StandIn(2, "light", scale=(1, 4))
    fleet._tell = lambda worker, command, *arguments: None
    with pytest.raises(ProvisionError, match="has not become a=2-8@light"):
        fleet.resize(Worker("a", 8, ("light",), at_least=2))


def test_a_worker_that_does_not_answer_is_not_resized():
    fleet = StandIn(2, "light")
    fleet.deaf = {"everything"}
    with pytest.raises(ProvisionError, match="no answer"):
        fleet.resize(A)


@pytest.mark.parametrize(
    ("size", "worker", "fits"),
    [
        (Size(2), Worker("a", 2), True),
        (Size(3), Worker("a", 2), False),
        (Size(2, 1, 2), Worker("a", 2), False),
        (Size(1, 1, 4), Worker("a", 4, at_least=1), True),
        (Size(4, 1, 4), Worker("a", 4, at_least=1), True),
        (Size(5, 1, 4), Worker("a", 4, at_least=1), False),
        (Size(2, 1, 8), Worker("a", 4, at_least=1), False),
        (Size(2, 2, 4), Worker("a", 4, at_least=1), False),
        (Size(2), Worker("a", 4, at_least=1), False),
    ],
)
def test_a_size_is_as_wanted_or_not(size, worker, fits):
    assert size.fits(worker) is fits


@pytest.mark.parametrize(
    ("taken", "waiting", "in_hand"),
    [
        ({"a": 2, "b": 2}, {"light": 9, "heavy": 9}, 4),
        ({"a": 2, "b": 1}, {"light": 0, "heavy": 0}, 3),
        # A worker with room will take what waits in its queues; nobody else will.
        ({"a": 2, "b": 1}, {"light": 0, "heavy": 5}, 4),
        ({"a": 1, "b": 2}, {"light": 0, "heavy": 5}, 3),
        ({"a": 0, "b": 0}, {"light": 1, "heavy": 0}, 1),
        # What is reserved beyond the concurrency cannot start yet, and leaves no room.
        ({"a": 5, "b": 2}, {"light": 3, "heavy": 0}, 4),
    ],
)
def test_in_hand_is_what_workers_run_or_could_run_now(taken, waiting, in_hand):
    assert tasks_in_hand([A, B], taken, waiting) == in_hand


def test_a_task_is_looked_for_in_the_order_in_which_it_goes_its_way():
    fleet = StandIn(2, "light", active=1, reserved=1)
    fleet.waiting = lambda queues: fleet.asked.append("waiting") or dict.fromkeys(queues, 0)
    assert fleet.in_hand([A]) == 2
    assert fleet.asked == ["waiting", "reserved", "active"]
    fleet.deaf = {"everything"}
    assert fleet.in_hand([A]) is None

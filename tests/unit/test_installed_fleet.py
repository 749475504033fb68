"""What the installation file says of brokers and workers, and what is asked of them; the fleet is a stand-in here."""

from __future__ import annotations

import pytest

from provision import installed_fleet as module
from provision.errors import ProvisionError, UsageError
from provision.installed_fleet import InstalledFleet
from provision.workers import Worker

LIGHT, HEAVY = Worker("light-1", 2, ("light",)), Worker("heavy-1", 1, ("heavy", "light"))
NO_CELERY = [None, {}, {"broker": None, "workers": []}]


class StandIn:
    """A fleet in which one worker is silent to one question, and whose broker uses some of its memory."""

    memory_is: tuple[int, int] | None = None

    def __init__(self, url: str) -> None:
        self.url = url

    def queues(self, names):
        return {name: ["light"] for name in names}

    def concurrency(self, names):
        return {name: 2 for name in names if name != "heavy-1"}

    def waiting(self, queues):
        return dict.fromkeys(queues, 3)

    def in_hand(self, workers):
        return len(workers)

    def memory(self):
        return self.memory_is


def celery(*workers: Worker, kind: str = "redis") -> dict:
    """Return what an installation file says of Celery."""
    return {"broker": {"kind": kind, "port": 6379}, "workers": [worker.document() | {"node": "here"} for worker in workers]}


@pytest.fixture
def asked(monkeypatch):
    """Return a function that makes the installed fleet of a document."""
    monkeypatch.setattr(module, "Fleet", StandIn)
    return lambda document: InstalledFleet(lambda: document, lambda broker: f"{broker['kind']}:{broker['port']}", "fab install celery")


@pytest.mark.parametrize("document", NO_CELERY, ids=str)
def test_without_celery_nothing_waits_and_nobody_can_be_asked(asked, document):
    fleet = asked(document)
    assert (fleet.broker(), fleet.workers(), fleet.messages_waiting(["light"])) == ("", (), {})
    fleet.require_room("no hint")
    with pytest.raises(UsageError, match="no Celery workers") as refused:
        fleet.workers_seen()
    assert refused.value.hint == "fab install celery"


def test_messages_are_counted_in_every_queue_that_is_served_or_named(asked):
    fleet = asked(celery(LIGHT, HEAVY))
    assert (fleet.broker(), fleet.workers(), fleet.tasks_in_hand()) == ("redis", (LIGHT, HEAVY), 2)
    assert list(fleet.messages_waiting(["gpu"])) == ["gpu", "heavy", "light"]


def test_a_worker_that_does_not_answer_every_question_is_not_seen(asked):
    assert asked(celery(LIGHT, HEAVY)).workers_seen() == {"light-1": {"concurrency": 2, "queues": ["light"]}}


def test_connections_are_kept_until_another_broker_is_installed(asked):
    document = celery()
    fleet = asked(document)
    first = fleet.fleet()
    assert fleet.fleet() is first
    document |= celery(kind="rabbitmq")
    assert fleet.fleet().url == "rabbitmq:6379"


@pytest.mark.parametrize("memory", [None, (5, 0), (2**20 - 1, 2**20)], ids=str)
def test_a_broker_with_room_is_no_error(asked, monkeypatch, memory):
    monkeypatch.setattr(StandIn, "memory_is", memory)
    asked(celery()).require_room("no hint")


def test_a_full_broker_is_told_in_mib_with_the_hint_of_its_target(asked, monkeypatch):
    monkeypatch.setattr(StandIn, "memory_is", (64 * 2**20, 64 * 2**20))
    with pytest.raises(ProvisionError, match="memory is full: 64 of 64 MiB; it refuses new messages") as error:
        asked(celery()).require_room("begin with an empty broker")
    assert error.value.hint == "begin with an empty broker"

"""Celery workers as people write them: what is understood, what is refused, and what a change leaves alone."""

from __future__ import annotations

import json

import pytest

from provision.errors import UsageError
from provision.workers import MOST_CONCURRENCY, MOST_WORKERS, Worker, changed_workers, check_together, parse_worker, worker_from

NOW = (Worker("worker-1"), Worker("worker-2", 4, ("default", "heavy")), Worker("worker-3", 6, at_least=2))
ALL_KINDS = [
    Worker("w"),
    Worker("worker-1", 1),
    Worker("worker-1", MOST_CONCURRENCY),
    Worker("heavy-1", 1, ("heavy",)),
    Worker("both", 3, ("heavy", "default")),
    Worker("elastic", 4, at_least=1),
    Worker("elastic", 4, ("a.b", "A_B", "c-d"), at_least=4),
    Worker("a" * 31, 2, ("q" * 60,)),
]
each_kind = pytest.mark.parametrize("worker", ALL_KINDS, ids=str)


@pytest.mark.parametrize(
    ("text", "worker"),
    [
        ("worker-4", Worker("worker-4", 2, ("default",))),
        ("worker-4=3", Worker("worker-4", 3)),
        ("worker-4=03", Worker("worker-4", 3)),
        ("worker-4@heavy", Worker("worker-4", 2, ("heavy",))),
        ("heavy-1=1@heavy", Worker("heavy-1", 1, ("heavy",))),
        ("heavy-1=1@heavy,default", Worker("heavy-1", 1, ("heavy", "default"))),
        ("heavy-1=1@ heavy , default ", Worker("heavy-1", 1, ("heavy", "default"))),
        ("  worker-4=3\n", Worker("worker-4", 3)),
        ("worker-4=1-4", Worker("worker-4", 4, at_least=1)),
        ("worker-4=4-4", Worker("worker-4", 4, at_least=4)),
        ("worker-4=2-4@a,b", Worker("worker-4", 4, ("a", "b"), at_least=2)),
        ("w", Worker("w")),
        (f"w={MOST_CONCURRENCY}", Worker("w", MOST_CONCURRENCY)),
    ],
)
def test_a_text_says_what_a_worker_is(text, worker):
    assert parse_worker(text) == worker


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "does not describe a worker"),
        ("=2", "does not describe a worker"),
        ("@heavy", "does not describe a worker"),
        ("worker-1=", "does not describe a worker"),
        ("worker-1=two", "does not describe a worker"),
        ("worker-1=-1", "does not describe a worker"),
        ("worker-1=1.5", "does not describe a worker"),
        ("worker-1=1-", "does not describe a worker"),
        ("worker-1=1-2-3", "does not describe a worker"),
        ("worker-1=1,4", "does not describe a worker"),
        ("worker-1=2=3", "does not describe a worker"),
        ("worker-1@heavy\ndefault", "does not describe a worker"),
        ("worker-1=0", "cannot have concurrency 0"),
        (f"worker-1={MOST_CONCURRENCY + 1}", f"cannot have concurrency {MOST_CONCURRENCY + 1}"),
        ("worker-1=0-4", "cannot scale between 0 and 4"),
        ("worker-1=5-4", "cannot scale between 5 and 4"),
        ("worker-1=0-0", "cannot have concurrency 0"),
        ("worker-1@", "'' cannot be a queue"),
        ("worker-1@a,,b", "'' cannot be a queue"),
        ("worker-1@a,", "'' cannot be a queue"),
        ("worker-1@two words", "'two words' cannot be a queue"),
        ("worker-1@a@b", "'a@b' cannot be a queue"),
        ("worker-1@größe", "'größe' cannot be a queue"),
        ("worker-1@$HOME", "cannot be a queue"),
        ("worker-1@it's", "cannot be a queue"),
        ("worker-1@" + "q" * 61, "cannot be a queue"),
        ("worker-1@heavy,heavy", "has no queue, or one of them twice"),
        ("worker-1=2@heavy, heavy", "has no queue, or one of them twice"),
        ("Worker-1", "'Worker-1' cannot be a worker's name"),
        ("1-worker", "cannot be a worker's name"),
        ("-worker", "cannot be a worker's name"),
        ("worker_1", "cannot be a worker's name"),
        ("worker 1", "cannot be a worker's name"),
        ("worker-1 =2", "cannot be a worker's name"),
        ("größe", "cannot be a worker's name"),
        ("../worker", "cannot be a worker's name"),
        ("celery%h", "cannot be a worker's name"),
        ("a" * 32, "cannot be a worker's name"),
    ],
)
def test_a_text_that_could_be_misread_is_refused_with_what_to_write(text, said):
    with pytest.raises(UsageError) as refused:
        parse_worker(text)
    assert said in refused.value.message
    assert refused.value.hint


def test_concurrency_zero_is_refused_with_what_celery_would_make_of_it():
    with pytest.raises(UsageError, match="Celery would take 0 for the number of cores") as refused:
        Worker("worker-1", 0)
    assert "remove the worker" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "worker"),
    [
        ("elastic", Worker("elastic", 4, ("a", "b"), at_least=2)),
        ("elastic=8", Worker("elastic", 8, ("a", "b"))),
        ("elastic=4", Worker("elastic", 4, ("a", "b"))),
        ("elastic=1-8", Worker("elastic", 8, ("a", "b"), at_least=1)),
        ("elastic@c", Worker("elastic", 4, ("c",), at_least=2)),
        ("elastic=1@c", Worker("elastic", 1, ("c",))),
    ],
)
def test_what_is_left_out_stays_as_it_is(text, worker):
    assert parse_worker(text, Worker("elastic", 4, ("a", "b"), at_least=2)) == worker


@each_kind
def test_a_worker_is_read_back_from_how_it_is_written(worker):
    assert parse_worker(str(worker)) == worker
    assert parse_worker(str(worker), Worker("other", 9, ("x",), at_least=3)) == worker


@each_kind
def test_a_worker_is_read_back_from_its_document(worker):
    assert worker_from(worker.document()) == worker
    assert worker_from(json.loads(json.dumps(worker.document()))) == worker


def test_the_document_names_everything_that_a_worker_is():
    assert Worker("elastic", 4, ("a", "b"), at_least=2).document() == {
        "name": "elastic",
        "concurrency": 4,
        "queues": ["a", "b"],
        "at_least": 2,
    }


@pytest.mark.parametrize(
    ("entry", "worker"),
    [
        ({"name": "w"}, Worker("w", 2, ("default",))),
        ({"name": "w", "concurrency": 5}, Worker("w", 5)),
        ({"name": "w", "queues": ["heavy"]}, Worker("w", 2, ("heavy",))),
        ({"name": "w", "queues": ("a", "b")}, Worker("w", 2, ("a", "b"))),
        ({"name": "w", "concurrency": 3, "at_least": 1}, Worker("w", 3, at_least=1)),
        ({"name": "w", "at_least": None}, Worker("w")),
    ],
)
def test_a_dict_describes_a_worker(entry, worker):
    before = dict(entry)
    assert worker_from(entry) == worker
    assert entry == before


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "A worker needs a name"),
        ({"concurrency": 2}, "A worker needs a name"),
        ({"name": "w", "concurency": 2}, "no key 'concurency'"),
        ({"name": "w", "node": "localhost"}, "no key 'node'"),
        ({"nam": "w"}, "no key 'nam'"),
        ({"name": "w", "concurrency": "2"}, "cannot have concurrency '2'"),
        ({"name": "w", "concurrency": 2.0}, "cannot have concurrency 2.0"),
        ({"name": "w", "concurrency": True}, "cannot have concurrency True"),
        ({"name": "w", "concurrency": None}, "cannot have concurrency None"),
        ({"name": "w", "concurrency": 0}, "cannot have concurrency 0"),
        ({"name": "w", "concurrency": -1}, "cannot have concurrency -1"),
        ({"name": "w", "queues": "default"}, "queues = 'default' of worker w is not a list"),
        ({"name": "w", "queues": None}, "is not a list"),
        ({"name": "w", "queues": []}, "has no queue"),
        ({"name": "w", "queues": ["a", "a"]}, "one of them twice"),
        ({"name": "w", "queues": [1]}, "1 cannot be a queue"),
        ({"name": "w", "queues": [["a"]]}, "['a'] cannot be a queue"),
        ({"name": 5}, "5 cannot be a worker's name"),
        ({"name": None}, "None cannot be a worker's name"),
        ({"name": "w", "at_least": 0}, "cannot scale between 0 and 2"),
        ({"name": "w", "at_least": 3}, "cannot scale between 3 and 2"),
        ({"name": "w", "at_least": True}, "cannot scale between True and 2"),
        ({"name": "w", "at_least": "1"}, "cannot scale between '1' and 2"),
    ],
)
def test_a_dict_with_a_wrong_key_or_value_is_refused_by_it(entry, said):
    with pytest.raises(UsageError) as refused:
        worker_from(entry)
    assert said in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(
    ("add", "remove", "resize", "then"),
    [
        ([], [], [], "worker-1=2@default worker-2=4@default,heavy worker-3=2-6@default"),
        (["worker-4"], [], [], "worker-1=2@default worker-2=4@default,heavy worker-3=2-6@default worker-4=2@default"),
        (["a=1", "b=1-3@x"], ["worker-1", "worker-2", "worker-3"], [], "a=1@default b=1-3@x"),
        ([], ["worker-2"], [], "worker-1=2@default worker-3=2-6@default"),
        ([], ["worker-3", "worker-1", "worker-2"], [], ""),
        ([], [], ["worker-2=1"], "worker-1=2@default worker-2=1@default,heavy worker-3=2-6@default"),
        ([], [], ["worker-2@light"], "worker-1=2@default worker-2=4@light worker-3=2-6@default"),
        ([], [], ["worker-1=1-4"], "worker-1=1-4@default worker-2=4@default,heavy worker-3=2-6@default"),
        ([], [], ["worker-3=3"], "worker-1=2@default worker-2=4@default,heavy worker-3=3@default"),
        ([], [], ["worker-3@light"], "worker-1=2@default worker-2=4@default,heavy worker-3=2-6@light"),
        ([], [], [" worker-1=3 "], "worker-1=3@default worker-2=4@default,heavy worker-3=2-6@default"),
        ([], [], ["worker-1=3", "worker-1@x"], "worker-1=3@x worker-2=4@default,heavy worker-3=2-6@default"),
        ([], [], ["worker-1"], "worker-1=2@default worker-2=4@default,heavy worker-3=2-6@default"),
        # Its place and what it was are gone.
        (["worker-2"], ["worker-2"], [], "worker-1=2@default worker-3=2-6@default worker-2=2@default"),
        (["w=1"], ["worker-3"], ["worker-1=5"], "worker-1=5@default worker-2=4@default,heavy w=1@default"),
    ],
)
def test_changes_give_exactly_these_workers(add, remove, resize, then):
    assert " ".join(str(worker) for worker in changed_workers(NOW, add, remove, resize)) == then


@pytest.mark.parametrize(
    ("add", "remove", "resize", "said", "hint"),
    [
        (["worker-1"], [], [], "There is a worker called worker-1 already", "fab workers --resize worker-1=2@default"),
        (["worker-1=3@heavy"], [], [], "There is a worker called worker-1 already", "fab workers --resize worker-1=3@heavy"),
        (["w", "w=3"], [], [], "There is a worker called w already", "choose another name"),
        ([], ["worker-9"], [], "There is no worker called 'worker-9'", "worker-1, worker-2, worker-3"),
        ([], ["worker-1=2"], [], "There is no worker called 'worker-1=2'", "worker-1, worker-2, worker-3"),
        ([], ["worker-1", "worker-1"], [], "There is no worker called 'worker-1'", "worker-2, worker-3"),
        ([], [], ["worker-9=2"], "There is no worker called 'worker-9'", "worker-1, worker-2, worker-3"),
        ([], [], ["=2"], "There is no worker called ''", "worker-1, worker-2, worker-3"),
        ([], ["worker-1"], ["worker-1=2"], "There is no worker called 'worker-1'", "worker-2, worker-3"),
        (["w"], [], ["w=3"], "There is no worker called 'w'", "worker-1, worker-2, worker-3"),
        ([], [], ["worker-1=0"], "cannot have concurrency 0", "remove the worker"),
        ([], [], ["worker-2@heavy,heavy"], "has no queue, or one of them twice", "heavy-1=1@heavy"),
        ([], [], ["worker-1=x"], "does not describe a worker", "NAME=CONCURRENCY@QUEUES"),
        (["w=0"], [], [], "cannot have concurrency 0", "remove the worker"),
        (["W"], [], [], "cannot be a worker's name", "lower-case"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_with_what_could_be(add, remove, resize, said, hint):
    with pytest.raises(UsageError) as refused:
        changed_workers(NOW, add, remove, resize)
    assert said in refused.value.message
    assert hint in refused.value.hint


def test_where_there_are_no_workers_none_can_be_removed():
    with pytest.raises(UsageError, match="no worker called") as refused:
        changed_workers([], [], ["worker-1"], [])
    assert "there are none" in refused.value.hint


def test_two_workers_of_one_name_are_refused():
    with pytest.raises(UsageError, match="two workers called worker-1"):
        check_together([Worker("worker-1"), Worker("worker-2"), Worker("worker-1", 5)])


@pytest.mark.parametrize("count", [0, 1, MOST_WORKERS])
def test_workers_of_different_names_go_together_in_their_order(count):
    workers = [Worker(f"worker-{n}") for n in range(count)]
    assert check_together(iter(workers)) == tuple(workers)


def test_more_workers_than_a_laptop_can_hold_are_refused():
    with pytest.raises(UsageError, match=f"{MOST_WORKERS + 1} workers are too many"):
        check_together(Worker(f"worker-{n}") for n in range(MOST_WORKERS + 1))
    with pytest.raises(UsageError, match="too many"):
        changed_workers(NOW, [f"w{n}" for n in range(MOST_WORKERS)], [], [])

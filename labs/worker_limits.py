"""What Celery workers can run of the tasks that the scheduler has sent: capacities of queues, and who takes what. All pure.

A worker runs at most `concurrency` tasks, from any of its queues; what it cannot take waits in the broker,
where its state is `queued`. For tasks on several queues the capacity of each set of queues counts: that of
all the workers which serve one of them (celery_executor.py and celery_command.py of the Celery provider 3.26).

Sizes are small, ways to share are not: 16 workers can share 64 messages in more ways than can be counted. So
workers with the same queues are put together, queues that share no worker are looked at apart, and what still
is too much to look at is refused.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from labs.admission import Candidate, Limit
from labs.errors import LabError

DEFAULT_QUEUE = "default"
# Both keep every answer within a second: so many sets of queues that share workers, and so many steps of sharing out.
MOST_SETS = 128
MOST_STEPS = 50_000


@dataclass(frozen=True)
class Capacity:
    """One worker: how many tasks it runs at once, how many messages it takes at once, and from which queues."""

    name: str
    runs: int
    takes: int
    queues: frozenset[str]


def capacities(workers: Iterable[Mapping], settings: Mapping[str, str]) -> list[Capacity]:
    """Return the capacity of each worker of an installation; one that scales by itself counts with its most processes.

    With late acknowledgement a worker holds concurrency x prefetch multiplier messages, running ones included;
    with early acknowledgement those it runs come on top. A multiplier of 0 means no end.
    """
    multiplier = int(settings.get("celery.worker_prefetch_multiplier", 1))
    late = settings.get("celery.task_acks_late", "True").lower() in ("true", "t", "1")
    found = []
    for worker in workers:
        runs = worker["concurrency"]
        takes = max(runs, runs * multiplier if late else runs * (multiplier + 1)) if multiplier else 10**6
        found.append(Capacity(worker["name"], runs, takes, frozenset(worker["queues"])))
    return found


def default_queue(settings: Mapping[str, str]) -> str:
    """Return the queue of a task that names none ([operators] default_queue)."""
    return settings.get("operators.default_queue", DEFAULT_QUEUE)


def queue_of(candidate: Candidate, settings: Mapping[str, str]) -> str:
    """Return the queue to which a task instance is sent."""
    return candidate.group.queue or default_queue(settings)


def worker_limits(workers: Sequence[Capacity], queues: Iterable[str], settings: Mapping[str, str]) -> list[Limit]:
    """Return one limit for each queue, and one for each set of queues whose workers are partly the same.

    Raises LabError when the workers share queues in too many ways.
    """
    used = sorted(set(queues))
    return [_limit(chosen, workers, settings) for chosen in [*((queue,) for queue in used), *shared_sets(workers, used)]]


def _limit(queues: tuple[str, ...], workers: Sequence[Capacity], settings: Mapping[str, str]) -> Limit:
    inside = frozenset(queues)
    serving = [worker for worker in workers if worker.queues & inside]
    cap = sum(worker.runs for worker in serving)
    which = f"queue {queues[0]}" if len(queues) == 1 else f"queues {' and '.join(queues)}"
    names = ", ".join(worker.name for worker in serving)
    words = f"{which}: {names} can run {cap} at once" if serving else f"no worker serves {which}"
    default = default_queue(settings)
    return Limit(
        f"worker_concurrency, {which}",
        cap,
        words,
        scope=lambda c: which if (c.group.queue or default) in inside else None,
        at_workers=True,
    )


def shared_sets(workers: Sequence[Capacity], queues: Iterable[str]) -> list[tuple[str, ...]]:
    """Return each set of queues that caps more than its queues do one by one, smaller ones first.

    Its queues share workers, directly or one through another; and no other queue has only these workers, since the
    larger set with that one would have the same cap. Raises LabError when there are too many.
    """
    serving = {queue: mask for queue, mask in _serving(workers, queues).items() if mask}
    seen: set[int] = set()
    todo = list(serving.values())
    while todo:
        if (mask := todo.pop()) not in seen:
            seen.add(mask)
            _require_few(len(seen), MOST_SETS)
            todo += [mask | other for other in serving.values() if other & mask and other & ~mask]
    found = [tuple(queue for queue, mask in serving.items() if not mask & ~whole) for whole in seen]
    return sorted((chosen for chosen in found if len(chosen) > 1), key=lambda chosen: (len(chosen), chosen))


def _serving(workers: Sequence[Capacity], queues: Iterable[str]) -> dict[str, int]:
    """Return which workers serve each queue, as a number with one bit for each worker."""
    return {queue: sum(1 << n for n, worker in enumerate(workers) if queue in worker.queues) for queue in sorted(set(queues))}


def _require_few(count: int, most: int) -> None:
    if count > most:
        raise LabError(
            "There are too many ways in which these workers could share the tasks.",
            "let fewer workers share some of their queues: give each queue workers of its own, or all workers the same queues",
        )


def outcomes(waiting: Mapping[str, int], workers: Sequence[Capacity]) -> tuple[int, int]:
    """Return the least and the most tasks that can run when the workers have taken all messages that they can.

    `waiting` is how many messages each queue got. They differ where it depends on chance who takes a message
    first: with workers of which one serves two queues, or that reserve more than they run.
    Raises LabError when there are too many ways to look at.
    """
    counts = {queue: count for queue, count in waiting.items() if count}
    ranges = [_outcome({queue: counts[queue] for queue in part}, workers) for part in _parts(_serving(workers, counts))]
    return sum(least for least, _ in ranges), sum(most for _, most in ranges)


def _parts(serving: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield queues that share workers, directly or one through another; a queue that nobody serves is in no part."""
    left = {queue: mask for queue, mask in serving.items() if mask}
    while left:
        inside, whole = [], next(iter(left.values()))
        while near := [queue for queue, mask in left.items() if mask & whole]:
            for queue in near:
                whole |= left.pop(queue)
            inside += near
        yield inside


@dataclass(frozen=True)
class _Sharing:
    """Workers with the same queues as one team, and queues with the same workers as one queue.

    A team is a pair (what it runs, what it takes) for each of its workers. `counts` are messages by queue,
    `served` the teams that serve it.
    """

    teams: tuple[tuple[tuple[int, int], ...], ...]
    counts: tuple[int, ...]
    served: tuple[tuple[int, ...], ...]

    @property
    def runs(self) -> list[int]:
        return [sum(runs for runs, _ in team) for team in self.teams]

    @property
    def takes(self) -> list[int]:
        return [sum(takes for _, takes in team) for team in self.teams]


def _sharing(counts: Mapping[str, int], workers: Sequence[Capacity]) -> _Sharing:
    teams: dict[frozenset[str], list[tuple[int, int]]] = {}
    for worker in workers:
        if mine := worker.queues & set(counts):
            teams.setdefault(mine, []).append((worker.runs, worker.takes))
    together: Counter[tuple[int, ...]] = Counter()
    for queue, count in counts.items():
        together[tuple(number for number, mine in enumerate(teams) if queue in mine)] += count
    return _Sharing(tuple(tuple(team) for team in teams.values()), tuple(together.values()), tuple(together))


def _outcome(counts: Mapping[str, int], workers: Sequence[Capacity]) -> tuple[int, int]:
    sharing = _sharing(counts, workers)
    runs, takes = sharing.runs, sharing.takes
    if all(count >= sum(takes[team] for team in teams) for count, teams in zip(sharing.counts, sharing.served, strict=True)):
        # No queue can run dry before all of its workers are full.
        return sum(runs), sum(runs)
    if len(sharing.teams) == 1:
        taken = min(sum(sharing.counts), takes[0])
        return _hoarded(sharing.teams[0], taken), min(taken, runs[0])
    if takes == runs:
        return _least_full(sharing), _flow(sharing.counts, takes, sharing.served)
    return _explored(sharing)


def _hoarded(team: Sequence[tuple[int, int]], taken: int) -> int:
    """Return the least tasks that a team runs when it has taken so many messages: some workers are full, one is partly so."""
    if all(runs == takes for runs, takes in team):
        return taken
    least = taken
    for partly in set(team):
        others = list(team)
        others.remove(partly)
        full = {0: 0}
        for runs, takes in others:
            for sum_taken, sum_runs in list(full.items()):
                if (more := sum_taken + takes) <= taken:
                    full[more] = min(full.get(more, taken), sum_runs + runs)
        found = [sum_runs + min(partly[0], taken - held) for held, sum_runs in full.items() if taken - held <= partly[1]]
        least = min([least, *found])
    return least


def _least_full(sharing: _Sharing) -> int:
    """Return the least messages that teams which run all they take can end with.

    What is left over is left in queues whose teams are all full. For each choice of full teams: these have taken
    what they can, and as much of it as possible from the other queues, which run dry.
    """
    counts, takes, served = sharing.counts, sharing.takes, sharing.served
    masks = [sum(1 << team for team in teams) for teams in served]
    least = []
    for full in _unions(masks):
        dry = [queue for queue, mask in enumerate(masks) if mask & ~full]
        those, inside = [counts[queue] for queue in dry], [takes[team] if full >> team & 1 else 0 for team in range(len(takes))]
        if _flow(those, takes, [served[queue] for queue in dry]) == sum(those) and _flow(counts, inside, served) == sum(inside):
            least.append(sum(those) + sum(inside) - _flow(those, inside, [served[queue] for queue in dry]))
    return min(least)


def _unions(masks: Iterable[int]) -> set[int]:
    found = {0}
    for mask in masks:
        found |= {mask | other for other in found}
        _require_few(len(found), MOST_SETS)
    return found


def _flow(counts: Sequence[int], room: Sequence[int], served: Sequence[Sequence[int]]) -> int:
    """Return the most messages that teams with so much room can take together (Ford and Fulkerson, shortest path first)."""
    left, taken = list(room), [Counter() for _ in counts]
    for queue, count in enumerate(counts):
        while count and (path := _path(queue, left, taken, served)):
            amount = min([count, left[path[-1][1]], *(taken[giver][team] for (_, team), (giver, _) in pairwise(path))])
            for place, (taker, team) in enumerate(path):
                taken[taker][team] += amount
                if place:
                    taken[taker][path[place - 1][1]] -= amount
            left[path[-1][1]] -= amount
            count -= amount
    return sum(room) - sum(left)


def _path(queue: int, left: Sequence[int], taken: Sequence[Counter[int]], served: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return who takes from whom so that one more message finds room: pairs (queue, team), the last team with room; or nothing."""
    came: dict[int, tuple[tuple[int, int], ...]] = {}
    todo: deque[tuple[int, tuple[tuple[int, int], ...]]] = deque([(queue, ())])
    while todo:
        taker, steps = todo.popleft()
        for team in served[taker]:
            if team in came:
                continue
            came[team] = (*steps, (taker, team))
            if left[team]:
                return list(came[team])
            todo += [(giver, came[team]) for giver, its in enumerate(taken) if its[team]]
    return []


def _explored(sharing: _Sharing) -> tuple[int, int]:
    """Return the least and the most that run where teams reserve more than they run: every way is looked at."""
    takes, steps = sharing.takes, 0
    states = {((0,) * len(takes), frozenset())}
    for count, teams in zip(sharing.counts, sharing.served, strict=True):
        after = set()
        for taken, hungry in states:
            for shares, left in _shares(count, [takes[team] - taken[team] for team in teams]):
                steps += 1
                _require_few(steps, MOST_STEPS)
                given = dict(zip(teams, shares, strict=True))
                now = tuple(held + given.get(team, 0) for team, held in enumerate(taken))
                after.add((now, hungry | set(teams) if left else hungry))
        states = after
    # Whoever saw a message left in the broker has no room.
    final = {taken for taken, hungry in states if all(taken[team] == takes[team] for team in hungry)}
    least = min(sum(_hoarded(team, held) for team, held in zip(sharing.teams, taken, strict=True)) for taken in final)
    return least, max(sum(min(held, runs) for held, runs in zip(taken, sharing.runs, strict=True)) for taken in final)


def _shares(count: int, room: list[int]) -> Iterator[tuple[tuple[int, ...], int]]:
    if not room:
        yield (), count
        return
    for first in range(min(count, room[0]) + 1):
        for others, left in _shares(count - first, room[1:]):
            yield (first, *others), left

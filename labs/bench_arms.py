"""One of the Airflows that a bench compares, and what a probe costs there: attempts, CPU time, wall time."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labs import progress, timeline
from labs.airflow_api import AirflowApi
from labs.errors import LabError
from labs.installation import Installation
from labs.probe import Probe
from labs.services import Report, Watcher
from labs.spec import Spec, parse
from labs.timeline import Attempt
from provision.home import LabHome
from provision.local.processes import cpu_seconds

ROUNDS, IDLE_S, SETTLE_S = 3, 10.0, 1.5


@dataclass(frozen=True)
class Arm:
    """One of the two Airflows being compared."""

    name: str
    home: LabHome
    installation: Installation
    api: AirflowApi


@dataclass(frozen=True)
class Work:
    """What one probe did: its attempts, and the CPU seconds and wall seconds of the whole installation meanwhile.

    `watching_s` are the CPU seconds of the process that watched it.
    """

    attempts: tuple[Attempt, ...]
    cpu_s: float
    wall_s: float
    watching_s: float = 0.0

    @property
    def makespan_s(self) -> float:
        return timeline.makespan(self.attempts) or 0.0

    @property
    def tasks_per_s(self) -> float:
        return len(self.attempts) / self.makespan_s


def in_turn(arms: tuple[Arm, Arm], spec: dict, report: Report, rounds: int = ROUNDS) -> tuple[list[Work], list[Work]]:
    done: dict[str, list[Work]] = {arm.name: [] for arm in arms}
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else arms[::-1]:
            done[arm.name].append(run_work(arm, spec, report))
    return done[arms[0].name], done[arms[1].name]


def run_work(arm: Arm, spec: dict, report: Report, rest_s: float = 0.0) -> Work:
    """Return what a probe did on one Airflow; with `rest_s` its progress is not looked at for that many seconds."""
    wanted: Spec = parse(spec)
    report(f"{arm.name}: {wanted.task_count} {wanted.groups[0].kind} tasks ({wanted.name}{', unwatched' if rest_s else ''})")
    with _progress_file(), Probe(arm.installation, arm.api, wanted, Watcher(arm.installation)) as probe:
        probe.deliver()
        cpu, own, begun = cpu_seconds(arm.home), time.process_time(), time.monotonic()
        probe.trigger()
        time.sleep(rest_s)
        probe.wait()
        # Slots are given back, and their CPU time is counted, a moment after the run has ended.
        time.sleep(SETTLE_S)
        used, watching, wall = cpu_seconds(arm.home) - cpu, time.process_time() - own, time.monotonic() - begun
        attempts = probe.collect()
    if timeline.states(attempts) != {"success": wanted.task_count}:
        raise LabError(f"Not every task of {wanted.name} succeeded on {arm.name}: {timeline.states(attempts)}.", "run labs bench again")
    return Work(attempts, used, wall, watching)


@contextlib.contextmanager
def _progress_file() -> Iterator[None]:
    """Watch as a lab is watched: every change of progress is written to a file."""
    before = os.environ.get(progress.PROGRESS_VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[progress.PROGRESS_VARIABLE] = str(Path(folder) / "progress")
        try:
            yield
        finally:
            os.environ.pop(progress.PROGRESS_VARIABLE)
            if before:
                os.environ[progress.PROGRESS_VARIABLE] = before


def idle_rate(arm: Arm, report: Report) -> float:
    report(f"{arm.name}: measuring what it uses when idle")
    rates = []
    for _ in range(2):
        cpu, begun = cpu_seconds(arm.home), time.monotonic()
        time.sleep(IDLE_S / 2)
        rates.append((cpu_seconds(arm.home) - cpu) / (time.monotonic() - begun))
    return statistics.mean(rates)

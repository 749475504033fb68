"""What becomes of pods while a probe runs: Kubernetes forgets a pod that is gone, so they are looked at again and again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from labs.timeline import Attempt
from provision.errors import ProvisionError
from provision.kube.client import Pod

EVERY_S = 0.5


@dataclass(frozen=True)
class PodStart:
    """How long one task's start took, part by part, in seconds; what Kubernetes writes down is in whole seconds.

    `executor` is from queued to the pod's creation, `scheduling` until a node was chosen, `container` until its container
    ran (volumes, init containers, image), `airflow` until the task did.
    """

    executor: float
    scheduling: float
    container: float
    airflow: float


class PodWatch:
    """Looks at the pods of tasks until it is left; use it as a context manager around a probe."""

    def __init__(self, look: Callable[[], list[Pod]], every_s: float = EVERY_S) -> None:
        """Prepare it; `look` returns the pods that are there now."""
        self._look, self._every_s = look, every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._pods: dict[str, Pod] = {}

    def __enter__(self) -> PodWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def pods(self) -> list[Pod]:
        """Every pod that was seen, as it was seen last, oldest first."""
        return sorted(self._pods.values(), key=lambda pod: (pod.created, pod.name))

    def _watch(self) -> None:
        while not self._done.is_set():
            # An API that is away for a moment is what some probes are about.
            with contextlib.suppress(ProvisionError):
                self._pods |= {pod.name: pod for pod in self._look()}
            self._done.wait(self._every_s)


def task_of(pod: Pod) -> tuple[str, int, int]:
    """Return task id, map index (-1 unless mapped) and try of the task that a pod was made for, from its annotations."""
    notes = pod.annotations
    return notes.get("task_id", ""), int(notes.get("map_index", -1)), int(notes.get("try_number", 0))


def tasks_of(attempts: Iterable[Attempt]) -> list[tuple[str, int, int]]:
    """Return task id, map index and try of each attempt, sorted, to be compared with those of pods."""
    return sorted((a.task_id, a.map_index, a.try_number) for a in attempts)


def of_dag(pods: Iterable[Pod], dag_id: str) -> list[Pod]:
    """Return the pods that were made for the tasks of one DAG."""
    return [pod for pod in pods if pod.annotations.get("dag_id") == dag_id]


def starts(pods: Iterable[Pod], attempts: Iterable[Attempt]) -> dict[str, PodStart]:
    """Return the parts of each task's start by its label; a task whose pod was never seen with its container running is left out."""
    by_task = {task_of(pod): pod for pod in pods}
    found = {}
    for attempt in attempts:
        pod = by_task.get((attempt.task_id, attempt.map_index, attempt.try_number))
        if pod and attempt.queued and attempt.start and pod.scheduled and pod.started:
            # Whole seconds against milliseconds: a part cannot be shorter than nothing.
            found[attempt.label] = PodStart(
                executor=max(0.0, pod.created - attempt.queued),
                scheduling=max(0.0, pod.scheduled - pod.created),
                container=max(0.0, pod.started - pod.scheduled),
                airflow=max(0.0, attempt.start - pod.started),
            )
    return found

"""What a Kubernetes cluster can run of the tasks that the executor has made pods for: room on nodes, and quotas. All pure.

The KubernetesExecutor counts a task against parallelism from the moment it is handed it until its pod has ended, whether
the pod runs, waits for room, or could not be created yet (`running` and `queued_tasks`, kubernetes_executor.py of provider
10.25; slots_available, airflow/executors/base_executor.py, 3.3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labs.admission import Limit
from labs.errors import LabError


@dataclass(frozen=True)
class PodRoom:
    """How many pods of tasks the nodes have room for, by node, and how many the namespace's quota allows (None: any number)."""

    by_node: Mapping[str, int]
    quota: int | None = None

    @property
    def total(self) -> int:
        """How many pods can run at once by the room on the nodes alone."""
        return sum(self.by_node.values())


def pods_on(cpu: float, memory: float, pods: int, request_cpu: float, request_memory: float) -> int:
    """Return how many equal pods fit on a node that has so many CPUs, bytes and places for pods left.

    As Kubernetes counts: CPUs in whole thousandths, memory to the byte.
    """
    fits = [pods]
    if request_cpu:
        fits.append(round(cpu * 1000) // max(1, round(request_cpu * 1000)))
    if request_memory:
        fits.append(int(memory) // int(request_memory))
    return max(0, min(fits))


def pod_limits(room: PodRoom, settings: Mapping[str, str]) -> list[Limit]:
    """Return the limits that act on pods."""
    shown = ", ".join(f"{node} for {count}" for node, count in room.by_node.items())
    requests = f"{settings['labs.pod_cpu']} CPU and {settings['labs.pod_memory']} memory each"
    limits = [
        Limit(
            "room on the nodes",
            room.total,
            f"the nodes have room for {room.total} pods with {requests}: {shown}",
            scope=lambda c: "all",
            at_workers=True,
        )
    ]
    if room.quota is not None:
        limits.append(
            Limit(
                "quota",
                room.quota,
                f"the namespace's quota allows {room.quota} pod{'' if room.quota == 1 else 's'}",
                scope=lambda c: "all",
                at_workers=True,
            )
        )
    return limits


def refused_fail(settings: Mapping[str, str]) -> bool:
    """Return whether a task whose pod a quota refuses fails at once, instead of being tried again until there is room.

    Raises LabError for a number of tries: one is made in each loop of the scheduler, and how long those take is chance.
    """
    retries = int(settings["kubernetes_executor.task_publish_max_retries"])
    if retries > 0:
        raise LabError(
            f"A pod that a quota refuses is tried again {retries} times, once in each loop: whether there is room by then is chance.",
            "set kubernetes_executor.task_publish_max_retries to 0 (its task fails) or -1 (for ever)",
        )
    return retries == 0

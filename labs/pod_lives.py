"""The lives of pods, as Kubernetes tells them change by change. All pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WAITS, STANDS, RUNS, SUCCEEDED, FAILED, LEAVES = (
    "waits for a node",
    "on a node, container not running",
    "container runs",
    "succeeded",
    "failed",
    "is being removed",
)
STATES = (WAITS, STANDS, RUNS, SUCCEEDED, FAILED, LEAVES)
GONE = "gone"


@dataclass(frozen=True)
class PodSeen:
    """A pod with one container, as it was at one moment."""

    name: str
    phase: str
    node: str = ""
    address: str = ""
    ready: bool = False
    restarts: int = 0
    runs: bool = False
    leaves: bool = False
    refused: bool = False
    why: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """Where it is in its life; the phase alone does not tell whether it has a node, nor whether it is being removed."""
        if self.leaves:
            return LEAVES
        if self.phase in ("Succeeded", "Failed"):
            return SUCCEEDED if self.phase == "Succeeded" else FAILED
        return RUNS if self.runs else STANDS if self.node else WAITS

    @property
    def ended(self) -> bool:
        """Whether its containers have ended for good."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True)
class Change:
    """What a pod was from `at` on, epoch seconds of the machine that watches; `gone`: nothing any more."""

    at: float
    pod: PodSeen
    gone: bool = False


@dataclass(frozen=True)
class Span:
    """One state of a pod's life, in epoch seconds."""

    name: str
    state: str
    begin: float
    end: float


def pod_seen(document: Mapping[str, Any]) -> PodSeen:
    """Return what a pod's document, as the API of Kubernetes has it, says of it."""
    metadata, spec, status = document["metadata"], document["spec"], document.get("status", {})
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    container = next(iter(status.get("containerStatuses") or ()), {})
    unplaced = conditions.get("PodScheduled", {})
    refused = unplaced.get("status") == "False" and unplaced.get("reason") == "Unschedulable"
    waiting = container.get("state", {}).get("waiting") or {}
    return PodSeen(
        name=metadata["name"],
        phase=status.get("phase", "Pending"),
        node=spec.get("nodeName") or "",
        address=status.get("podIP") or "",
        ready=conditions.get("Ready", {}).get("status") == "True",
        restarts=container.get("restartCount", 0),
        runs="running" in container.get("state", {}),
        leaves=bool(metadata.get("deletionTimestamp")),
        refused=refused,
        why=unplaced.get("message", "") if refused else waiting.get("reason", ""),
        labels=dict(metadata.get("labels") or {}),
    )


def phases(changes: Iterable[Change], name: str) -> list[str]:
    """Return the phases that a pod went through, each once; the last is "gone" if it was removed."""
    told = [GONE if change.gone else change.pod.phase for change in changes if change.pod.name == name]
    return [phase for before, phase in zip([None, *told], told, strict=False) if phase != before]


def spans(changes: Sequence[Change], until: float) -> list[Span]:
    """Return the lives of all pods state by state, in the order in which they were first seen; open ends are at `until`."""
    by_name: dict[str, list[Change]] = {}
    for change in changes:
        by_name.setdefault(change.pod.name, []).append(change)
    found: list[Span] = []
    for name, life in by_name.items():
        for change, end in zip(life, [*(later.at for later in life[1:]), until], strict=True):
            if change.gone:
                continue
            last = found[-1] if found else None
            if last and (last.name, last.state, last.end) == (name, change.pod.state, change.at):
                found[-1] = Span(name, last.state, last.begin, end)
            else:
                found.append(Span(name, change.pod.state, change.at, end))
    return found


def shortages(pod: PodSeen) -> dict[str, int]:
    """Return of what too little is free, with the number of nodes, as the scheduler says why a pod waits."""
    # What comes after it says only that removing other pods would not help.
    reasons = pod.why.partition("preemption:")[0]
    return {name: int(count) for count, name in re.findall(r"(\d+) Insufficient ([\w./-]*\w)", reasons)}


def per_node(pods: Iterable[PodSeen]) -> dict[str, int]:
    """Return how many containers run on each node."""
    counts: dict[str, int] = {}
    for pod in pods:
        if pod.state == RUNS:
            counts[pod.node] = counts.get(pod.node, 0) + 1
    return dict(sorted(counts.items()))

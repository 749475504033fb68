"""Asks a cluster over its API, with the credentials that an installation has for the labs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from provision.errors import ProvisionError

TIMEOUT_S = 10
# Every pod that the executor makes has this label (pod_generator.py of the Kubernetes provider 10.25).
TASK_PODS = "kubernetes_executor=True"
ENDED = ("Succeeded", "Failed")
_SUFFIXES = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50,
}  # fmt: skip


@dataclass(frozen=True)
class NodeRoom:
    """What a node has left for pods: CPUs, bytes of memory, and how many pods more."""

    name: str
    cpu: float
    memory: float
    pods: int


@dataclass(frozen=True)
class Pod:
    """One pod of a task, as Kubernetes tells its life; times are epoch seconds, None where it did not get that far.

    `why` says what a pod waits for, `requests` what its container asks of the node, `before` how many init containers
    come before it.
    """

    name: str
    node: str
    phase: str
    created: float
    scheduled: float | None
    initialized: float | None
    started: float | None
    ended: float | None
    annotations: Mapping[str, str]
    why: str = ""
    requests: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    before: int = 0


def quantity(text: str) -> float:
    """Return a quantity of Kubernetes ("100m", "256Mi", "2") as a number: CPUs, bytes or pieces."""
    number = text.rstrip("numkMGTPKi")
    return float(number) * _SUFFIXES[text[len(number) :]]


class Cluster:
    """One Kubernetes cluster; every call raises ProvisionError if its API does not answer."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self.namespace = namespace
        self._kubeconfig = kubeconfig

    @functools.cached_property
    def api(self) -> client.ApiClient:
        """The client for whatever this class has no method for."""
        settings = client.Configuration()
        # A proxy of the surrounding network must never see requests to the nodes. The client is made with or without one.
        settings.proxy = None
        try:
            api = config.new_client_from_config(str(self._kubeconfig), client_configuration=settings)
        except config.ConfigException as error:
            raise ProvisionError(
                f"{self._kubeconfig} cannot be used: {error}.", "fab status --target vagrant, and the install command that it names"
            ) from error
        api.rest_client.pool_manager.connection_pool_kw["retries"] = urllib3.Retry(2, backoff_factor=0.3)
        return api

    @functools.cached_property
    def core(self) -> client.CoreV1Api:
        """The API of pods, nodes, quotas and volumes."""
        return client.CoreV1Api(self.api)

    def room(self, names: list[str]) -> list[NodeRoom]:
        """Return what these nodes have left for pods of tasks: what they offer, less what other pods that run there ask for.

        Raises ProvisionError that names a node which takes no pods now.
        """
        used: dict[str, list[dict[str, str]]] = {name: [] for name in names}
        for pod in self._call(self.core.list_pod_for_all_namespaces).items:
            ours = pod.metadata.namespace == self.namespace and (pod.metadata.labels or {}).get("kubernetes_executor") == "True"
            if pod.spec.node_name in used and pod.status.phase not in ENDED and not ours:
                used[pod.spec.node_name].append(_requests(pod))
        listed = [node for node in self._call(self.core.list_node).items if node.metadata.name in used]
        if closed := [node.metadata.name for node in listed if not _takes_pods(node)]:
            raise ProvisionError(f"{', '.join(closed)} takes no pods now.", "fab status --target vagrant")
        return [
            NodeRoom(
                node.metadata.name,
                quantity(node.status.allocatable["cpu"]) - sum(quantity(each.get("cpu", "0")) for each in used[node.metadata.name]),
                quantity(node.status.allocatable["memory"]) - sum(quantity(each.get("memory", "0")) for each in used[node.metadata.name]),
                int(node.status.allocatable["pods"]) - len(used[node.metadata.name]),
            )
            for node in listed
        ]

    def quota_pods(self) -> int | None:
        """Return how many pods the namespace's quotas allow, None without one; raises ProvisionError for quotas of anything else."""
        quotas = self._call(self.core.list_namespaced_resource_quota, self.namespace).items
        if strange := sorted({key for quota in quotas for key in quota.spec.hard or {} if key != "pods"}):
            raise ProvisionError(
                f"A quota of the namespace {self.namespace} limits {', '.join(strange)}; the labs know quotas of pods only.",
                "remove that quota: kubectl delete resourcequota",
            )
        allowed = [int(quota.spec.hard["pods"]) for quota in quotas if "pods" in (quota.spec.hard or {})]
        return min(allowed, default=None)

    def set_quota(self, name: str, hard: Mapping[str, str]) -> None:
        """Create a quota of the namespace of tasks, in the place of one of the same name."""
        self.remove_quota(name)
        body = client.V1ResourceQuota(metadata=client.V1ObjectMeta(name=name), spec=client.V1ResourceQuotaSpec(hard=dict(hard)))
        self._call(self.core.create_namespaced_resource_quota, self.namespace, body)

    def remove_quota(self, name: str) -> None:
        """Remove a quota; nothing happens if it is not there."""
        self._call(self.core.delete_namespaced_resource_quota, name, self.namespace, missing_ok=True)

    def quotas(self) -> list[str]:
        """Return the names of the quotas of the namespace of tasks."""
        return [quota.metadata.name for quota in self._call(self.core.list_namespaced_resource_quota, self.namespace).items]

    def pods(self) -> list[Pod]:
        """Return the pods of tasks that are there now, oldest first."""
        listed = self._call(self.core.list_namespaced_pod, self.namespace, label_selector=TASK_PODS).items
        return sorted((_pod(pod) for pod in listed), key=lambda pod: pod.created)

    def delete_pod(self, name: str) -> None:
        """Delete a pod of a task, as `kubectl delete pod` does: its processes are told to end, and given their time."""
        self._call(self.core.delete_namespaced_pod, name, self.namespace, missing_ok=True)

    def in_hand(self) -> int:
        """Return how many tasks have a pod that a node was chosen for and that has not ended: they run, or are about to."""
        return sum(bool(pod.node) and pod.phase not in ENDED for pod in self.pods())

    def _call(self, function: Any, *arguments: Any, missing_ok: bool = False, **more: Any) -> Any:
        try:
            return function(*arguments, _request_timeout=TIMEOUT_S, **more)
        except ApiException as error:
            if missing_ok and error.status == 404:
                return None
            raise ProvisionError(
                f"Kubernetes refuses: {error.status} {error.reason}. {_message(error)}", "fab status --target vagrant"
            ) from error
        except urllib3.exceptions.HTTPError as error:
            raise ProvisionError(
                f"The Kubernetes API at {self.api.configuration.host} does not answer: {error}.", "fab status --target vagrant"
            ) from error


def cluster_at(kubeconfig: Path, namespace: str) -> Cluster:
    """Return the cluster that a kubeconfig leads to, the same one each time: it holds connections."""
    return _cluster(kubeconfig, namespace, kubeconfig.stat().st_mtime_ns if kubeconfig.exists() else 0)


@functools.lru_cache(maxsize=4)
def _cluster(kubeconfig: Path, namespace: str, written: int) -> Cluster:
    return Cluster(kubeconfig, namespace)


def _message(error: ApiException) -> str:
    return (error.body or "").strip()[:300]


def _takes_pods(node: Any) -> bool:
    ready = any(each.type == "Ready" and each.status == "True" for each in node.status.conditions or ())
    return ready and not node.spec.unschedulable


def _requests(pod: Any) -> dict[str, str]:
    """Return what a pod asks for: all its containers together, or the one before them that asks for most."""
    total: dict[str, float] = {}
    for container in pod.spec.containers:
        for name, text in _asked(container).items():
            total[name] = total.get(name, 0.0) + quantity(text)
    for container in pod.spec.init_containers or ():
        for name, text in _asked(container).items():
            total[name] = max(total.get(name, 0.0), quantity(text))
    return {name: str(value) for name, value in total.items()}


def _asked(container: Any) -> dict[str, str]:
    return (container.resources and container.resources.requests) or {}


def _pod(pod: Any) -> Pod:
    conditions = {each.type: each for each in pod.status.conditions or ()}
    base = next((each for each in pod.status.container_statuses or () if each.name == "base"), None)
    running, terminated = (base.state.running, base.state.terminated) if base else (None, None)
    waiting = base.state.waiting if base else None
    unplaced = conditions.get("PodScheduled")
    return Pod(
        name=pod.metadata.name,
        node=pod.spec.node_name or "",
        phase=pod.status.phase,
        created=_epoch(pod.metadata.creation_timestamp),
        scheduled=_when(conditions.get("PodScheduled")),
        initialized=_when(conditions.get("Initialized")),
        started=_epoch((running or terminated).started_at) if running or terminated else None,
        ended=_epoch(terminated.finished_at) if terminated else None,
        annotations=dict(pod.metadata.annotations or {}),
        image=next((each.image for each in pod.spec.containers if each.name == "base"), ""),
        before=len(pod.spec.init_containers or ()),
        requests=dict(next((c.resources.requests or {} for c in pod.spec.containers if c.name == "base" and c.resources), {})),
        why=(waiting.reason or "") if waiting else (unplaced.message or "") if unplaced and unplaced.status != "True" else "",
    )


def _when(condition: Any) -> float | None:
    return _epoch(condition.last_transition_time) if condition and condition.status == "True" else None


def _epoch(time: datetime | None) -> float | None:
    return time.timestamp() if time else None

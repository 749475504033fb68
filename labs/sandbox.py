"""A namespace of the live cluster in which a lab makes objects, looks at them, and leaves nothing behind."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.resource import Resource

from labs import pod_lives, progress, sandbox_objects, services
from labs.display import Note
from labs.errors import LabError
from labs.installation import Installation
from labs.pod_limits import pods_on
from labs.pod_lives import PodSeen, pod_seen
from labs.sandbox_objects import SELECTOR
from labs.sandbox_watch import HINT, Missing, PodWatcher, asked
from labs.waiting import wait_for
from provision.kube.client import TIMEOUT_S, NodeRoom, quantity

Manifest = dict[str, Any]
# In this order: what makes pods before pods, what uses a volume before the volume.
API_VERSIONS = {
    "ReplicaSet": "apps/v1",
    "Service": "v1",
    "Pod": "v1",
    "PersistentVolumeClaim": "v1",
    "PersistentVolume": "v1",
    "StorageClass": "storage.k8s.io/v1",
}
LOOKED_AT = {"EndpointSlice": "discovery.k8s.io/v1", "Node": "v1", "Namespace": "v1", "Event": "v1"}
# Pods of a second, eight at once on two cores: three seconds.
TIMEOUT_PODS_S = 90
# More would measure how fast this machine makes pods.
MOST_PODS = 60


class Sandbox:
    """What a lab does on a cluster. Everything that it makes has one label, by which `reset` removes it."""

    def __init__(self, installation: Installation) -> None:
        """Prepare it; raises LabError for an Airflow without a cluster."""
        cluster = services.cluster_of(installation)
        if cluster is None:
            raise LabError(f"The variant {installation.variant} has no Kubernetes.", "fab install kubernetes --target vagrant")
        known = installation.kubernetes
        self._cluster = cluster
        self.namespace: str = known["lab_namespace"]
        self.image: str = known["pod_image"]
        self.workers: list[str] = known["task_nodes"]
        self._folder = PurePosixPath(installation.document["dag_folder"]).parent / "volumes"
        self._cache = Path(known["kubeconfig"]).with_name("kubernetes-api.json")

    @functools.cached_property
    def _dynamic(self) -> DynamicClient:
        # The typed client refuses answers of other versions of Kubernetes than its own.
        return asked(lambda: DynamicClient(self._cluster.api, cache_file=str(self._cache)))

    # -- documents -----------------------------------------------------------------------------------

    def pod(self, name: str, script: str, **more: Any) -> Manifest:
        """Return a pod that runs a shell script in the image that every node has; for `more` see sandbox_objects.pod."""
        return sandbox_objects.pod(name, script, self.image, **more)

    def template(self, script: str, **more: Any) -> Manifest:
        """Return such a pod as the template of a replica set."""
        return sandbox_objects.template(self.pod("", script, **more))

    # -- acting --------------------------------------------------------------------------------------

    def make(self, *manifests: Mapping[str, Any]) -> Note:
        """Make objects, each in the place of one of the same name that a lab made before."""
        for manifest in manifests:
            kind, name = manifest["kind"], manifest["metadata"]["name"]
            namespace = manifest["metadata"].get("namespace", self.namespace)
            if namespace == self.namespace and self._found(kind, name):
                self.remove(kind, name)
            progress.report(f"making {kind} {name}")
            self._ask(kind, "create", namespace, body=sandbox_objects.labelled(manifest))
        return Note(f"Made: {', '.join('{} {}'.format(m['kind'], m['metadata']['name']) for m in manifests)}.")

    def change(self, kind: str, name: str, patch: Mapping[str, Any]) -> Note:
        """Change some fields of an object, as `kubectl patch` does; None takes a field away."""
        self._ask(kind, "patch", name=name, body=dict(patch), content_type="application/merge-patch+json")
        return Note(f"Changed: {kind} {name}.")

    def remove(self, kind: str, *names: str) -> Note:
        """Remove objects and wait until they are gone."""
        for name in names:
            progress.report(f"removing {kind} {name}")
            if self._found(kind, name) is not None:
                # What belongs to it goes, too, a moment later.
                self._ask(kind, "delete", name=name, body={"propagationPolicy": "Background"})
        for name in names:
            wait_for(lambda name=name: self._found(kind, name) is None, TIMEOUT_PODS_S, f"The removal of {kind} {name}", hint=HINT)
        return Note(f"Removed: {', '.join(f'{kind} {name}' for name in names) or 'nothing'}.")

    def run(self, manifest: Mapping[str, Any]) -> str:
        """Return what a pod printed, once it has ended; raises LabError if it did not succeed."""
        name = manifest["metadata"]["name"]
        self.make(manifest)
        wait_for(lambda: self.pod_named(name).ended, TIMEOUT_PODS_S, f"The end of pod {name}", hint=HINT)
        printed = self.printed(name)
        if (ended := self.pod_named(name)).phase != "Succeeded":
            raise LabError(f"Pod {name} on {ended.node} failed. It printed: {printed.strip()[-500:] or 'nothing'}", "correct its script")
        return printed

    def answers(self, url: str, times: int, name: str = "client") -> dict[str, int]:
        """Return how often which answer came when a pod fetched a page so many times."""
        return json.loads(self.run(self.pod(name, sandbox_objects.fetch(url, times))))

    def folder_on(self, node: str, name: str = "lab") -> str:
        """Return the path of an empty folder of a node, for a local volume; pods of these labs may write into it."""
        path = str(self._folder / name)
        self._in_folder(node, path, "true")
        return path

    def fill(self, cpu: str) -> dict[str, int]:
        """Return how many pods with this request ran on each worker when there were more than fit; they are gone afterwards.

        Raises LabError for a request that is none, and for one that would make very many pods.
        """
        try:
            fits = self.fitting(cpu)
        except (ValueError, KeyError, AttributeError, ZeroDivisionError, OverflowError) as error:
            raise LabError(f"{cpu!r} is not a request of CPU.", 'write it as Kubernetes does: "500m" is half a CPU') from error
        count = sum(fits.values()) + 2
        if count > MOST_PODS:
            raise LabError(f"It would take {count} pods to fill the workers.", f"choose a request with which {MOST_PODS} are enough")
        names = [f"fill-{number}" for number in range(1, count + 1)]
        try:
            self.make(*(self.pod(name, "sleep 3600", cpu=cpu, labels={"app": "fill"}) for name in names))
            return pod_lives.per_node(self.settled(app="fill"))
        finally:
            self.remove("Pod", *names)

    # -- looking -------------------------------------------------------------------------------------

    def get(self, kind: str, name: str) -> Manifest:
        """Return an object as it is now; raises LabError if there is none."""
        return self._ask(kind, "get", name=name)

    def phase(self, kind: str, name: str) -> str:
        """Return the phase of a pod, a volume or a claim."""
        return self.get(kind, name)["status"]["phase"]

    def reasons(self, kind: str, name: str) -> list[str]:
        """Return the reasons that the cluster has given for what it did with an object, each once, oldest first."""
        one = self.get(kind, name)["metadata"]["uid"]
        told = [each["reason"] for each in self.listed("Event") if each["involvedObject"].get("uid") == one]
        return list(dict.fromkeys(told))

    def listed(self, kind: str, selector: str = "") -> list[Manifest]:
        """Return the objects of a kind, oldest first: of this namespace, or of the cluster for what is in none."""
        items = self._ask(kind, "get", label_selector=selector)["items"]
        return sorted(items, key=lambda item: (item["metadata"]["creationTimestamp"], item["metadata"]["name"]))

    def pods(self, **labels: str) -> list[PodSeen]:
        """Return the labs' pods that have these labels now, oldest first."""
        selector = ",".join([SELECTOR, *(f"{name}={value}" for name, value in labels.items())])
        return [pod_seen(each) for each in self.listed("Pod", selector)]

    def pod_named(self, name: str) -> PodSeen:
        """Return a pod as it is now."""
        return pod_seen(self.get("Pod", name))

    def ready(self, count: int, **labels: str) -> list[PodSeen]:
        """Return the pods that have these labels, once there are so many, all of them ready and none on its way out."""

        def are_ready() -> tuple[list[PodSeen]] | None:
            seen = self.pods(**labels)
            return (seen,) if len(seen) == count and all(pod.ready and not pod.leaves for pod in seen) else None

        return wait_for(are_ready, TIMEOUT_PODS_S, f"{count} ready pods", hint=HINT)[0]

    def running(self, count: int, **labels: str) -> list[PodSeen]:
        """Return the pods that have these labels, once the containers of so many run."""

        def are_running() -> list[PodSeen] | None:
            seen = [pod for pod in self.pods(**labels) if pod.runs and not pod.leaves]
            return seen if len(seen) == count else None

        return wait_for(are_running, TIMEOUT_PODS_S, f"{count} running pods", hint=HINT)

    def settled(self, **labels: str) -> list[PodSeen]:
        """Return the pods that have these labels, once the container of each runs or has ended, or the scheduler has refused it."""

        def are_settled() -> tuple[list[PodSeen]] | None:
            seen = self.pods(**labels)
            return (seen,) if all(not pod.leaves and (pod.runs or pod.ended or pod.refused) for pod in seen) else None

        return wait_for(are_settled, TIMEOUT_PODS_S, "A place, or the refusal of one, for every pod", hint=HINT)[0]

    def printed(self, pod: str) -> str:
        """Return what the container of a pod has printed."""
        return asked(lambda: self._cluster.core.read_namespaced_pod_log(pod, self.namespace, _request_timeout=TIMEOUT_S))

    def endpoints(self, service: str, count: int) -> list[str]:
        """Return the names of the pods that a service leads to, sorted, once they are so many."""

        def are_known() -> tuple[list[str]] | None:
            names = self._endpoints(service)
            return (names,) if len(names) == count else None

        return wait_for(are_known, TIMEOUT_PODS_S, f"{count} endpoints of service {service}", hint=HINT)[0]

    def _endpoints(self, service: str) -> list[str]:
        slices = self.listed("EndpointSlice", f"kubernetes.io/service-name={service}")
        ready = [each for part in slices for each in part.get("endpoints") or () if each["conditions"].get("ready")]
        return sorted(each["targetRef"]["name"] for each in ready)

    def room(self) -> list[NodeRoom]:
        """Return what each worker has left for pods."""
        return self._cluster.room(self.workers)

    def fitting(self, cpu: str) -> dict[str, int]:
        """Return how many pods with this request of CPU fit on each worker now, by arithmetic."""
        return {
            each.name: pods_on(each.cpu, each.memory, each.pods, quantity(cpu), 0)
            for each in sorted(self.room(), key=lambda room: room.name)
        }

    def watch(self) -> PodWatcher:
        """Return what follows every change of the labs' pods while a `with` block runs."""
        return PodWatcher(self._resource("Pod"), self.namespace)

    # -- cleaning up ---------------------------------------------------------------------------------

    def reset(self) -> int:
        """Remove everything that labs made; return how many objects there were."""
        removed = 0
        for kind in API_VERSIONS:
            left = self.listed(kind, SELECTOR)
            for volume in left if kind == "PersistentVolume" else ():
                self._in_folder(*sandbox_objects.folder_of(volume), f"find {sandbox_objects.FOLDER} -mindepth 1 -delete")
            if left:
                self.remove(kind, *(each["metadata"]["name"] for each in left))
            removed += len(left)
        return removed

    def _in_folder(self, node: str, path: str, script: str) -> None:
        name = f"folder-of-{node}"
        self.run(sandbox_objects.folder_pod(name, node, path, script, self.image))
        self.remove("Pod", name)

    def _found(self, kind: str, name: str) -> Manifest | None:
        """Return an object, None if there is none; raises LabError for one that no lab made."""
        try:
            found = self.get(kind, name)
        except Missing:
            return None
        if not sandbox_objects.is_labelled(found):
            raise LabError(f"{kind} {name} was not made by a lab.", "choose another name")
        return found

    def _resource(self, kind: str) -> Resource:
        versions = API_VERSIONS | LOOKED_AT
        if kind not in versions:
            raise LabError(f"These labs know no {kind!r}.", f"choose one of: {', '.join(versions)}")
        return asked(lambda: self._dynamic.resources.get(api_version=versions[kind], kind=kind))

    def _ask(self, kind: str, verb: str, namespace: str = "", **more: Any) -> Manifest:
        resource = self._resource(kind)
        where = {"namespace": namespace or self.namespace} if resource.namespaced else {}
        return asked(lambda: getattr(resource, verb)(**where, **more, _request_timeout=TIMEOUT_S).to_dict())


def reset(installation: Installation) -> int:
    """Remove everything that labs made on an installation's cluster; return how many objects there were, 0 without a cluster."""
    return Sandbox(installation).reset() if installation.kubernetes else 0

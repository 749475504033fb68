"""What a lab makes on a cluster: replaced when made again, waited for, accounted for, and removed; against a cluster in memory."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import urllib3
from kubernetes.client.exceptions import ApiException

from labs import sandbox, sandbox_objects, sandbox_watch, services
from labs.errors import LabError
from labs.installation import Installation
from labs.pod_lives import RUNS, WAITS
from labs.sandbox import Sandbox
from labs.sandbox_objects import LABEL, MADE_BY_A_LAB
from provision.kube.client import NodeRoom

KUBERNETES = {"lab_namespace": "airflow-lab", "pod_image": "image", "task_nodes": ["w1", "w2"], "kubeconfig": "/nowhere/kubeconfig"}
IN_NO_NAMESPACE = {"PersistentVolume", "StorageClass", "Node", "Namespace"}


def installation(**known):
    """Return an installation with a cluster."""
    return Installation({"variant": "kubernetes", "dag_folder": "/var/lib/labs/dags", "kubernetes": KUBERNETES | known})


class MemoryCluster:
    """Stands for the API of a cluster: keeps objects, and gives pods the status that `becomes` says."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.printed: dict[str, str] = {}
        self.cpus = {"w1": 2.0, "w2": 2.0}
        self.events: list[dict] = []
        self.core = SimpleNamespace(read_namespaced_pod_log=lambda pod, namespace, **more: self.printed.get(pod, ""))
        self.api = None
        self.becomes = lambda pod: {"phase": "Succeeded"}

    def room(self, names):
        return [NodeRoom(name, self.cpus[name], 8e9, 110) for name in names]

    def resource(self, kind):
        return MemoryResource(self, kind)


class MemoryResource:
    """Stands for one kind of objects, as the dynamic client has it."""

    def __init__(self, cluster, kind) -> None:
        self.cluster, self.kind = cluster, kind
        self.namespaced = kind not in IN_NO_NAMESPACE

    def get(self, name="", namespace=None, label_selector="", **more):
        assert (namespace is not None) is self.namespaced
        if name:
            return self._answer(self._one(name))
        wanted = dict(part.split("=") for part in label_selector.split(",") if part)
        found = [
            each
            for (kind, _), each in self.cluster.objects.items()
            if kind == self.kind and wanted.items() <= (each["metadata"].get("labels") or {}).items()
        ]
        return self._answer({"items": found, "metadata": {"resourceVersion": "1"}})

    def create(self, body, namespace=None, **more):
        if namespace == "airflow":
            raise refused(403, "Forbidden", "pods is forbidden")
        made = copy.deepcopy(body)
        made["metadata"]["uid"] = f"uid-{len(self.cluster.asked)}"
        made["metadata"]["creationTimestamp"] = f"{len(self.cluster.asked):04d}"
        self.cluster.objects[self.kind, made["metadata"]["name"]] = made
        self.cluster.asked.append(("create", self.kind, made["metadata"]["name"]))
        if self.kind == "Pod":
            made["status"] = self.cluster.becomes(made)
        return self._answer(made)

    def patch(self, name, body, namespace=None, content_type="", **more):
        assert content_type == "application/merge-patch+json"
        self._one(name)["metadata"]["labels"] |= body["metadata"]["labels"]
        return self._answer(self._one(name))

    def delete(self, name, body, namespace=None, **more):
        assert body == {"propagationPolicy": "Background"}
        self._one(name)
        del self.cluster.objects[self.kind, name]
        self.cluster.asked.append(("delete", self.kind, name))
        return self._answer({})

    def watch(self, **more):
        yield from self.cluster.events
        self.cluster.events = []

    def _one(self, name):
        if (self.kind, name) not in self.cluster.objects:
            raise refused(404, "Not Found", f"{name} not found")
        return self.cluster.objects[self.kind, name]

    def _answer(self, document):
        return SimpleNamespace(to_dict=lambda: copy.deepcopy(document))


def refused(status, reason, message):
    error = ApiException(status=status, reason=reason)
    error.body = json.dumps({"message": message})
    return error


@pytest.fixture
def cluster(monkeypatch):
    """A cluster in memory, which the sandbox takes for the real one."""
    made = MemoryCluster()
    monkeypatch.setattr(services, "cluster_of", lambda installation: made if installation.kubernetes else None)
    resources = SimpleNamespace(get=lambda api_version, kind: made.resource(kind))
    monkeypatch.setattr(Sandbox, "_dynamic", SimpleNamespace(resources=resources))
    monkeypatch.setattr(sandbox, "TIMEOUT_PODS_S", 0.3)
    return made


@pytest.fixture
def box(cluster):
    """The sandbox on it."""
    return Sandbox(installation())


def running(node="w1", ready="True"):
    state = [{"state": {"running": {}}, "restartCount": 0}]
    return {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}], "containerStatuses": state}


REFUSED = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "2 Insufficient cpu"}],
}


def test_an_airflow_without_a_cluster_has_no_sandbox_and_nothing_to_remove(cluster):
    plain = Installation({"variant": "celery", "dag_folder": "/dags"})
    with pytest.raises(LabError, match="celery has no Kubernetes") as error:
        Sandbox(plain)
    assert "fab install kubernetes --target vagrant" in error.value.hint
    assert sandbox.reset(plain) == 0


def test_what_is_made_has_the_label_and_can_be_made_again(box, cluster):
    box.make(box.pod("one", "true"))
    box.make(box.pod("one", "false"))
    assert cluster.asked == [("create", "Pod", "one"), ("delete", "Pod", "one"), ("create", "Pod", "one")]
    made = box.get("Pod", "one")
    assert made["metadata"]["labels"] == {LABEL: MADE_BY_A_LAB}
    assert made["spec"]["containers"][0]["command"][-1] == "false"


def test_what_no_lab_made_is_neither_replaced_nor_removed(box, cluster):
    cluster.objects["Service", "web"] = {"kind": "Service", "metadata": {"name": "web", "creationTimestamp": "0"}}
    for attempt in (lambda: box.make({"kind": "Service", "metadata": {"name": "web"}}), lambda: box.remove("Service", "web")):
        with pytest.raises(LabError, match="was not made by a lab"):
            attempt()
    assert box.reset() == 0
    assert ("Service", "web") in cluster.objects


def test_another_namespace_is_refused_with_the_clusters_own_words(box):
    with pytest.raises(LabError, match=r"Kubernetes refuses: 403 Forbidden. pods is forbidden") as error:
        box.make({"kind": "Pod", "metadata": {"name": "one", "namespace": "airflow"}})
    assert "airflow-lab" in error.value.hint


def test_a_kind_that_labs_do_not_know_is_named(box):
    with pytest.raises(LabError, match="know no 'Secret'") as error:
        box.get("Secret", "x")
    assert "Pod" in error.value.hint


def test_a_cluster_that_does_not_answer_is_a_labs_error():
    def silent():
        raise urllib3.exceptions.MaxRetryError(None, "/", "no route")

    with pytest.raises(LabError, match="does not answer"):
        sandbox_watch.asked(silent)


def test_an_answer_that_is_no_json_is_shown_as_it_is():
    error = ApiException(status=502, reason="Bad Gateway")
    error.body = "<html>"

    def broken():
        raise error

    with pytest.raises(LabError, match=r"502 Bad Gateway\. <html>"):
        sandbox_watch.asked(broken)


def test_a_pod_is_run_to_its_end_and_its_words_are_returned(box, cluster):
    cluster.printed["one"] = "42\n"
    assert box.run(box.pod("one", "echo 42")) == "42\n"


def test_a_pod_that_fails_shows_what_it_printed(box, cluster):
    cluster.becomes = lambda pod: {"phase": "Failed"}
    cluster.printed["one"] = "no such file"
    with pytest.raises(LabError, match=r"one on .*failed\. It printed: no such file"):
        box.run(box.pod("one", "false"))


def test_what_does_not_come_is_named(box, cluster):
    cluster.becomes = lambda pod: running(ready="False")
    box.make(box.pod("one", "true", labels={"app": "web"}))
    with pytest.raises(LabError, match="1 ready pods did not happen"):
        box.ready(1, app="web")
    with pytest.raises(LabError, match="2 running pods did not happen"):
        box.running(2, app="web")
    with pytest.raises(LabError, match="2 endpoints of service web did not happen"):
        box.endpoints("web", 2)
    assert [pod.name for pod in box.running(1, app="web")] == ["one"]
    assert box.ready(0, app="other") == []


def test_endpoints_are_those_that_are_ready(box, cluster):
    parts = [
        {"conditions": {"ready": True}, "targetRef": {"name": "b"}},
        {"conditions": {"ready": False}, "targetRef": {"name": "c"}},
        {"conditions": {"ready": True}, "targetRef": {"name": "a"}},
    ]
    named = {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}, "creationTimestamp": "0"}
    cluster.objects["EndpointSlice", "web-1"] = {"metadata": named, "endpoints": parts}
    cluster.objects["EndpointSlice", "web-2"] = {"metadata": {**named, "name": "web-2"}, "endpoints": None}
    assert box.endpoints("web", 2) == ["a", "b"]


def test_the_reasons_are_those_of_this_object_and_not_of_an_earlier_one_of_its_name(box, cluster):
    box.make({"kind": "PersistentVolumeClaim", "metadata": {"name": "data"}})
    told = [
        ("uid-before", "Old"),
        ("uid-0", "WaitForFirstConsumer"),
        ("uid-0", "WaitForFirstConsumer"),
        ("uid-0", "Bound"),
        (None, "Other"),
    ]
    for number, (uid, reason) in enumerate(told):
        metadata = {"name": str(number), "creationTimestamp": str(number)}
        cluster.objects["Event", str(number)] = {"metadata": metadata, "involvedObject": {"uid": uid}, "reason": reason}
    assert box.reasons("PersistentVolumeClaim", "data") == ["WaitForFirstConsumer", "Bound"]


def test_pods_are_found_by_their_labels_and_change_them(box):
    box.make(box.pod("one", "true", labels={"app": "web"}), box.pod("two", "true", labels={"app": "web"}))
    box.change("Pod", "one", {"metadata": {"labels": {"app": "apart"}}})
    assert [pod.name for pod in box.pods(app="web")] == ["two"]
    assert [pod.name for pod in box.pods()] == ["one", "two"]


def test_pods_have_settled_when_each_has_a_place_or_was_refused_one(box, cluster):
    outcomes = {"one": running(), "two": REFUSED, "three": {"phase": "Pending"}}
    cluster.becomes = lambda pod: outcomes[pod["metadata"]["name"]]
    box.make(box.pod("one", "true"), box.pod("two", "true"))
    assert [pod.state for pod in box.settled()] == [RUNS, WAITS]
    box.make(box.pod("three", "true"))
    with pytest.raises(LabError, match="A place"):
        box.settled()


@pytest.mark.parametrize(("cpu", "fits"), [("500m", 4), ("571m", 3), ("1", 2), ("363m", 5), ("2001m", 0), ("0.5", 4)])
def test_how_many_pods_fit_is_computed_from_what_is_left(box, cpu, fits):
    assert box.fitting(cpu) == {"w1": fits, "w2": fits}


def test_nodes_are_filled_with_two_pods_more_than_fit_and_emptied_again(box, cluster):
    places = iter(["w1"] * 4 + ["w2"] * 4)

    def place(pod):
        node = next(places, "")
        pod["spec"]["nodeName"] = node
        return running() if node else REFUSED

    cluster.becomes = place
    assert box.fill("500m") == {"w1": 4, "w2": 4}
    assert sum(verb == "create" for verb, _, _ in cluster.asked) == 10
    assert box.pods() == []


@pytest.mark.parametrize("cpu", ["", "much", "1 CPU", None, 5, "-1", "0", "nan", "inf", "1e-300"])
def test_what_is_no_request_of_cpu_is_refused_and_makes_nothing(box, cluster, cpu):
    with pytest.raises(LabError):
        box.fill(cpu)
    assert cluster.asked == []


def test_a_request_that_would_make_very_many_pods_is_refused(box, cluster):
    with pytest.raises(LabError, match="It would take 202 pods"):
        box.fill("20m")
    assert cluster.asked == []


def volume():
    at_home = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["w2"]}
    affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": [at_home]}]}}
    spec = {"local": {"path": "/var/lib/labs/volumes/lab"}, "nodeAffinity": affinity}
    return {"kind": "PersistentVolume", "metadata": {"name": "lab-volume"}, "spec": spec}


def test_everything_that_a_lab_made_is_removed_in_order_and_its_folder_emptied(box, cluster):
    box.make(
        {"kind": "StorageClass", "metadata": {"name": "by-hand"}},
        volume(),
        {"kind": "PersistentVolumeClaim", "metadata": {"name": "data"}},
        box.pod("one", "true"),
        {"kind": "ReplicaSet", "metadata": {"name": "web"}, "spec": {"template": {}}},
    )
    cluster.asked.clear()
    assert sandbox.reset(installation()) == 5
    assert cluster.objects == {}
    kinds = [kind for verb, kind, name in cluster.asked if verb == "delete" and not name.startswith("folder-of")]
    assert kinds == ["ReplicaSet", "Pod", "PersistentVolumeClaim", "PersistentVolume", "StorageClass"]
    assert ("create", "Pod", "folder-of-w2") in cluster.asked
    cluster.asked.clear()
    assert sandbox.reset(installation()) == 0
    assert cluster.asked == []


def test_a_folder_is_made_by_a_pod_on_its_node(box, cluster):
    seen = []
    cluster.becomes = lambda pod: seen.append(pod) or {"phase": "Succeeded"}
    assert box.folder_on("w1") == "/var/lib/labs/volumes/lab"
    assert seen[0]["spec"]["nodeName"] == "w1"
    assert seen[0]["spec"]["volumes"][-1]["hostPath"] == {"path": "/var/lib/labs/volumes/lab", "type": "DirectoryOrCreate"}
    assert cluster.objects == {}


def event(kind, phase, name="one"):
    document = {"metadata": {"name": name, "resourceVersion": "2"}, "spec": {}, "status": {"phase": phase}}
    return {"type": kind, "raw_object": document}


def test_every_change_of_a_pod_is_written_down_from_before_the_watch_to_its_end(box, cluster):
    cluster.becomes = lambda pod: running()
    box.make(box.pod("before", "true"))
    with box.watch() as watched:
        cluster.events = [event("ADDED", "Pending"), event("MODIFIED", "Succeeded"), event("DELETED", "Succeeded")]
    assert watched.phases("before") == ["Running"]
    assert watched.phases("one") == ["Pending", "Succeeded", "gone"]
    assert {span.name for span in watched.spans()} == {"before", "one"}
    assert all(span.begin <= span.end for span in watched.spans())


def test_a_watch_that_broke_is_told_unless_something_else_broke_before(box, monkeypatch):
    def breaks(self, **more):
        raise ApiException(status=410, reason="Gone")
        yield

    monkeypatch.setattr(MemoryResource, "watch", breaks)
    with pytest.raises(LabError, match="stopped telling of its pods"), box.watch():
        pass
    with pytest.raises(ZeroDivisionError), box.watch():
        1 / 0  # noqa: B018


def test_the_script_of_a_client_is_run_in_a_pod(box, cluster):
    cluster.printed["client"] = '{"web-a": 40, "web-b": 20}'
    assert box.answers("10.43.0.9", 60) == {"web-a": 40, "web-b": 20}
    assert sandbox_objects.fetch("10.43.0.9", 60) in box.get("Pod", "client")["spec"]["containers"][0]["command"]

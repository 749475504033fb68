"""A cluster's API, read: a server of this test answers with what Kubernetes would."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from provision.errors import ProvisionError
from provision.kube import manifests
from provision.kube.client import Cluster, NodeRoom, Pod, cluster_at, quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", 2.0),
        ("0", 0.0),
        ("0.5", 0.5),
        ("100m", 0.1),
        ("1930m", 1.93),
        ("250000000n", 0.25),
        ("256Mi", 256 * 2**20),
        ("8148436Ki", 8148436 * 1024),
        ("1Gi", 2**30),
        ("3Ti", 3 * 2**40),
        ("1G", 1e9),
        ("1T", 1e12),
        ("5M", 5e6),
        ("12k", 12000.0),
        ("1e3", 1000.0),
        ("134217728000m", 134217728.0),
    ],
)
def test_a_quantity_is_a_number(text, number):
    assert quantity(text) == pytest.approx(number)


# -- pods ---------------------------------------------------------------------------------------------

CREATED, SCHEDULED, STARTED, ENDED = (f"2026-11-21T10:00:0{second}Z" for second in (0, 1, 4, 9))
BEGIN = 1795255200.0


def pod(name: str = "task-1", node: str = "worker-1", phase: str = "Running", **more: Any) -> dict[str, Any]:
    """Return a pod as the API has it; `namespace`, `labels`, `requests`, `state`, `conditions` and `message` differ."""
    placed = {"type": "PodScheduled", "status": "True" if node else "False", "lastTransitionTime": SCHEDULED}
    if more.get("message"):
        placed |= {"reason": "Unschedulable", "message": more["message"]}
    statuses = (
        [{"name": "base", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": more["state"]}]
        if "state" in more
        else []
    )
    return {
        "metadata": {
            "name": name,
            "namespace": more.get("namespace", "airflow"),
            "labels": more.get("labels", {"kubernetes_executor": "True"}),
            "annotations": {"dag_id": "probe", "task_id": name},
            "creationTimestamp": more.get("created", CREATED),
        },
        "spec": {
            **({"nodeName": node} if node else {}),
            "containers": [
                {"name": "base" if number == 0 else f"c{number}", "image": "i", "resources": {"requests": requests} if requests else {}}
                for number, requests in enumerate(more.get("requests", [{"cpu": "100m", "memory": "256Mi"}]))
            ],
        },
        "status": {"phase": phase, "conditions": more.get("conditions", [placed]), **({"containerStatuses": statuses} if statuses else {})},
    }


def node(name: str, cpu: str = "2", memory: str = "4Gi", pods: str = "110", ready: str = "True", closed: bool = False) -> dict[str, Any]:
    status = {"allocatable": {"cpu": cpu, "memory": memory, "pods": pods}, "conditions": [{"type": "Ready", "status": ready}]}
    return {"metadata": {"name": name}, "spec": {"unschedulable": closed}, "status": status}


def quota(name: str, hard: dict[str, str]) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"hard": hard}}


class Api(http.server.BaseHTTPRequestHandler):
    """Answers GET with lists by path; everything that is asked is written down."""

    lists: ClassVar[dict[str, list[dict[str, Any]]]] = {}
    asked: ClassVar[list[tuple[str, str, Any]]] = []
    fails: ClassVar[dict[str, int]] = {}
    tokens: ClassVar[list[str]] = []

    def answer(self) -> None:
        path, length = self.path.partition("?")[0], int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.asked.append((self.command, self.path, body))
        self.tokens.append(self.headers.get("Authorization"))
        status = self.fails.get(self.command, 200 if self.command != "POST" else 201)
        document = {"items": self.lists.get(path, [])} if self.command == "GET" else body or {}
        if status >= 400:
            document = {"kind": "Status", "message": "what Kubernetes says of it"}
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def api() -> Iterator[type[Api]]:
    handler = type("Here", (Api,), {"lists": {}, "asked": [], "fails": {}, "tokens": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        handler.url = f"http://127.0.0.1:{server.server_port}"
        yield handler
        server.shutdown()
        thread.join()


@pytest.fixture
def cluster(api, tmp_path) -> Iterator[Cluster]:
    opened = Cluster(written(tmp_path, api.url), "airflow")
    yield opened
    opened.api.rest_client.pool_manager.clear()


def written(folder: Path, url: str) -> Path:
    path = folder / "kubeconfig"
    path.write_text(manifests.kubeconfig(url, "Y2E=", "airflow-lab", "token", "airflow-lab"))
    return path


EVERY_POD, TASK_PODS, QUOTAS = "/api/v1/pods", "/api/v1/namespaces/airflow/pods", "/api/v1/namespaces/airflow/resourcequotas"


def test_a_pod_that_runs_tells_its_life(api, cluster):
    ready = {"type": "Initialized", "status": "True", "lastTransitionTime": "2026-11-21T10:00:02Z"}
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": SCHEDULED}
    api.lists[TASK_PODS] = [pod(state={"running": {"startedAt": STARTED}}, conditions=[placed, ready])]
    (found,) = cluster.pods()
    assert found == Pod(
        name="task-1", node="worker-1", phase="Running", created=BEGIN, scheduled=BEGIN + 1, initialized=BEGIN + 2, started=BEGIN + 4,
        ended=None, annotations={"dag_id": "probe", "task_id": "task-1"}, requests={"cpu": "100m", "memory": "256Mi"}, image="i",
    )  # fmt: skip
    assert "labelSelector=kubernetes_executor%3DTrue" in api.asked[0][1]


def test_a_pod_that_has_ended_tells_when(api, cluster):
    terminated = {"exitCode": 0, "startedAt": STARTED, "finishedAt": ENDED}
    api.lists[TASK_PODS] = [pod(phase="Succeeded", state={"terminated": terminated})]
    (found,) = cluster.pods()
    assert (found.started, found.ended, found.phase) == (BEGIN + 4, BEGIN + 9, "Succeeded")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"node": "", "message": "0/3 nodes are available: 2 Insufficient memory."}, "0/3 nodes are available: 2 Insufficient memory."),
        ({"state": {"waiting": {"reason": "ImagePullBackOff"}}}, "ImagePullBackOff"),
        ({"state": {"waiting": {}}}, ""),
        ({}, ""),
    ],
)
def test_a_pod_that_waits_says_why(api, cluster, more, why):
    api.lists[TASK_PODS] = [pod(phase="Pending", **more)]
    (found,) = cluster.pods()
    assert (found.why, found.started, found.ended) == (why, None, None)
    assert found.scheduled == (None if more.get("node") == "" else BEGIN + 1)


def test_a_pod_of_which_nothing_is_known_yet_is_a_pod(api, cluster):
    new = pod(node="", phase="Pending", conditions=[])
    del new["status"]["conditions"]
    api.lists[TASK_PODS] = [new]
    (found,) = cluster.pods()
    assert (found.node, found.scheduled, found.initialized, found.started, found.why) == ("", None, None, None, "")


def test_pods_are_told_oldest_first(api, cluster):
    api.lists[TASK_PODS] = [pod("young", created=ENDED), pod("old", created=CREATED), pod("middle", created=STARTED)]
    assert [found.name for found in cluster.pods()] == ["old", "middle", "young"]


def test_tasks_in_hand_have_a_node_and_have_not_ended(api, cluster):
    api.lists[TASK_PODS] = [
        pod("a"),
        pod("b", phase="Pending"),
        pod("c", node="", phase="Pending"),
        pod("d", phase="Succeeded"),
        pod("e", phase="Failed"),
    ]
    assert cluster.in_hand() == 2


# -- room ---------------------------------------------------------------------------------------------


def test_room_is_what_nodes_offer_less_what_other_pods_ask_for(api, cluster):
    api.lists["/api/v1/nodes"] = [node("control"), node("worker-1", "2", "4Gi", "110"), node("worker-2", "1930m", "1Gi", "10")]
    system = {"namespace": "kube-system", "labels": {"k8s-app": "dns"}}
    api.lists[EVERY_POD] = [
        pod("dns", "worker-1", requests=[{"cpu": "100m", "memory": "70Mi"}, {"cpu": "50m"}], **system),
        pod("no-requests", "worker-1", requests=[None], **system),
        pod("ended", "worker-1", phase="Succeeded", **system),
        pod("elsewhere", "control", **system),
        pod("nowhere", "", phase="Pending", **system),
        # Tasks take the room; they do not make it smaller.
        pod("task", "worker-1"),
        pod("a task's look-alike", "worker-2", namespace="airflow-lab"),
    ]
    assert cluster.room(["worker-1", "worker-2"]) == [
        NodeRoom("worker-1", pytest.approx(1.85), pytest.approx(4 * 2**30 - 70 * 2**20), 108),
        NodeRoom("worker-2", pytest.approx(1.83), pytest.approx(2**30 - 256 * 2**20), 9),
    ]


def test_a_node_that_is_not_there_has_no_room(api, cluster):
    api.lists["/api/v1/nodes"] = [node("worker-1")]
    assert [room.name for room in cluster.room(["worker-1", "worker-2"])] == ["worker-1"]


@pytest.mark.parametrize(
    ("quotas", "allowed"),
    [
        ([], None),
        ([{"pods": "3"}], 3),
        ([{"pods": "3"}, {"pods": "2"}], 2),
        ([{"pods": "0"}], 0),
    ],
)
def test_the_narrowest_quota_counts(api, cluster, quotas, allowed):
    api.lists[QUOTAS] = [quota(f"q{number}", hard) for number, hard in enumerate(quotas)]
    assert cluster.quota_pods() == allowed


def test_a_quota_of_anything_else_is_refused_because_nothing_could_be_predicted(api, cluster):
    api.lists[QUOTAS] = [quota("q", {"pods": "2", "requests.cpu": "1"})]
    with pytest.raises(ProvisionError, match=r"limits requests\.cpu"):
        cluster.quota_pods()


@pytest.mark.parametrize("node_now", [{"ready": "Unknown"}, {"ready": "False"}, {"closed": True}])
def test_a_node_that_takes_no_pods_is_named(api, cluster, node_now):
    api.lists["/api/v1/nodes"] = [node("worker-1"), node("worker-2", **node_now)]
    with pytest.raises(ProvisionError, match=r"^worker-2 takes no pods"):
        cluster.room(["worker-1", "worker-2"])


def test_a_quota_takes_the_place_of_one_of_the_same_name(api, cluster):
    cluster.set_quota("lab", {"pods": "3"})
    (delete, create) = api.asked
    assert delete[:2] == ("DELETE", f"{QUOTAS}/lab")
    assert create[:2] == ("POST", QUOTAS)
    assert (create[2]["metadata"]["name"], create[2]["spec"]["hard"]) == ("lab", {"pods": "3"})


# -- what goes wrong ----------------------------------------------------------------------------------


def test_what_is_gone_already_can_be_removed(api, cluster):
    api.fails["DELETE"] = 404
    cluster.remove_quota("lab")
    cluster.delete_pod("task-1")


def test_what_kubernetes_refuses_is_said_in_its_words(api, cluster):
    api.fails["GET"] = 403
    with pytest.raises(ProvisionError, match="Kubernetes refuses: 403") as refused:
        cluster.pods()
    assert "what Kubernetes says of it" in refused.value.message
    assert refused.value.hint == "fab status --target vagrant"


def test_an_api_that_does_not_answer_is_named_by_its_address(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    away = Cluster(written(tmp_path, "http://127.0.0.1:9"), "airflow")
    with pytest.raises(ProvisionError, match=r"The Kubernetes API at http://127\.0\.0\.1:9 does not answer") as failed:
        away.in_hand()
    assert failed.value.hint == "fab status --target vagrant"


@pytest.mark.parametrize("text", ["", "apiVersion: v1\nkind: Config\n"])
def test_credentials_that_cannot_be_used_are_named_with_what_makes_new_ones(tmp_path, text):
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(ProvisionError, match="kubeconfig cannot be used") as refused:
        Cluster(tmp_path / "kubeconfig", "airflow").pods()
    assert refused.value.hint == "fab status --target vagrant, and the install command that it names"


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_no_proxy_sees_what_is_asked_of_the_nodes(api, tmp_path, monkeypatch, name):
    for other in ("NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    opened = Cluster(written(tmp_path, api.url), "airflow")
    assert opened.pods() == []
    opened.api.rest_client.pool_manager.clear()


def test_the_token_goes_with_every_request(api, cluster):
    cluster.pods()
    cluster.delete_pod("task-1")
    assert api.tokens == ["Bearer token", "Bearer token"]


def test_a_cluster_is_opened_once_for_the_same_credentials(tmp_path):
    path = written(tmp_path, "http://127.0.0.1:9")
    assert cluster_at(path, "airflow") is cluster_at(path, "airflow")
    assert cluster_at(path, "airflow") is not cluster_at(path, "other")

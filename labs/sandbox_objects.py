"""The Kubernetes objects that a lab makes, as documents. All pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import yaml

# What everything that a lab makes has, and nothing else does: by it an interrupted lab's objects are found again.
LABEL, MADE_BY_A_LAB = "airflow-labs", "made-by-a-lab"
SELECTOR = f"{LABEL}={MADE_BY_A_LAB}"
# The user that the image of the pods has; not root.
UID = 50000
VOLUME = "/volume"
FOLDER = "/folder"
PORT = 8080
# A web server that says its own name; a server that answers nothing else needs no other files.
SERVE = f"cd /tmp && hostname > index.html && exec python3 -m http.server {PORT}"
_FETCH = """python3 -c '
import collections, json, urllib.request
answers = collections.Counter(urllib.request.urlopen("http://{url}/", timeout=5).read().decode().strip() for _ in range({times}))
print(json.dumps(answers))'"""


def fetch(url: str, times: int) -> str:
    """Return a script that fetches a page and prints, as JSON, how often it got which answer."""
    return _FETCH.format(url=url, times=times)


def as_yaml(manifest: Mapping[str, Any]) -> str:
    """Return an object as people write it for kubectl."""
    return yaml.safe_dump(dict(manifest), sort_keys=False)


def pod(
    name: str,
    script: str,
    image: str,
    *,
    labels: Mapping[str, str] | None = None,
    cpu: str = "",
    restart: str = "Never",
    serves: bool = False,
    claim: str = "",
) -> dict[str, Any]:
    """Return a pod with one container that runs a shell script; `cpu` is its request.

    One that `serves` is ready once it answers on its port; a volume claim is seen as a folder.
    """
    container: dict[str, Any] = {"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]}
    volumes, mounts = [{"name": "tmp", "emptyDir": {}}], [{"name": "tmp", "mountPath": "/tmp"}]
    if claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "data", "mountPath": VOLUME})
    if cpu:
        container["resources"] = {"requests": {"cpu": cpu}}
    if serves:
        container["ports"] = [{"containerPort": PORT}]
        container["readinessProbe"] = {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1}
    container["volumeMounts"] = mounts
    spec = {
        "restartPolicy": restart,
        # A shell as the first process of a container does not end when it is told to.
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsUser": UID, "runAsGroup": UID, "fsGroup": UID, "runAsNonRoot": True},
        "containers": [container],
        "volumes": volumes,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": dict(labels or {})}, "spec": spec}


def template(made: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pod as the template of a replica set, which gives names itself and always starts containers again."""
    return {"metadata": {"labels": made["metadata"]["labels"]}, "spec": {**made["spec"], "restartPolicy": "Always"}}


def folder_pod(name: str, node: str, path: str, script: str, image: str) -> dict[str, Any]:
    """Return a pod that is on a node without asking the scheduler and sees a folder of it, made if it was not there."""
    made = pod(name, script, image)
    made["spec"]["nodeName"] = node
    made["spec"]["volumes"].append({"name": "folder", "hostPath": {"path": path, "type": "DirectoryOrCreate"}})
    made["spec"]["containers"][0]["volumeMounts"].append({"name": "folder", "mountPath": FOLDER})
    return made


def labelled(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of an object that is known as a lab's, and so are the pods that are made of it."""
    made = copy.deepcopy(dict(manifest))
    _label(made)
    if "template" in made.get("spec", {}):
        _label(made["spec"]["template"])
    return made


def is_labelled(document: Mapping[str, Any]) -> bool:
    """Return whether an object was made by a lab."""
    return (document["metadata"].get("labels") or {}).get(LABEL) == MADE_BY_A_LAB


def folder_of(volume: Mapping[str, Any]) -> tuple[str, str]:
    """Return the node and the path of a local volume."""
    terms = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    return terms[0]["matchExpressions"][0]["values"][0], volume["spec"]["local"]["path"]


def _label(made: dict[str, Any]) -> None:
    metadata = made.setdefault("metadata", {})
    metadata["labels"] = {**(metadata.get("labels") or {}), LABEL: MADE_BY_A_LAB}

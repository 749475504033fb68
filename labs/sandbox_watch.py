"""What a cluster answers, in labs' own errors, and what it tells of the labs' pods, change by change."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic.resource import Resource

from labs import pod_lives
from labs.errors import LabError
from labs.pod_lives import Change, Span, pod_seen
from labs.sandbox_objects import SELECTOR
from provision.kube.client import TIMEOUT_S

T = TypeVar("T")
HINT = "fab status --target vagrant"


class PodWatcher:
    """Writes down every change of the labs' pods, as the cluster tells them, until its `with` block ends."""

    def __init__(self, pods: Resource, namespace: str) -> None:
        self.changes: list[Change] = []
        self.ended = 0.0
        self._pods, self._namespace = pods, namespace
        self._stop, self._error = threading.Event(), []
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> PodWatcher:
        self._known = asked(
            lambda: self._pods.get(namespace=self._namespace, label_selector=SELECTOR, _request_timeout=TIMEOUT_S)
        ).to_dict()
        self.changes += [Change(time.time(), pod_seen(each)) for each in self._known["items"]]
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._stop.set()
        self._thread.join()
        self.ended = time.time()
        if self._error and kind is None:
            raise LabError(f"The cluster stopped telling of its pods: {self._error[0]}.", "run this cell again")

    def phases(self, name: str) -> list[str]:
        """Return the phases that a pod went through, each once; the last is "gone" if it was removed."""
        return pod_lives.phases(self.changes, name)

    def spans(self) -> list[Span]:
        """Return the lives of the pods, state by state."""
        return pod_lives.spans(self.changes, self.ended)

    def _follow(self) -> None:
        try:
            for change in self._told():
                self.changes.append(change)
        except (ApiException, urllib3.exceptions.HTTPError, KeyError, ValueError) as error:
            self._error.append(error)

    def _told(self) -> Iterator[Change]:
        version = self._known["metadata"]["resourceVersion"]
        # One more turn after the end: what happened before it may not have been told yet.
        last = False
        while not last:
            last = self._stop.is_set()
            for event in self._pods.watch(namespace=self._namespace, label_selector=SELECTOR, resource_version=version, timeout=1):
                version = event["raw_object"]["metadata"]["resourceVersion"]
                yield Change(time.time(), pod_seen(event["raw_object"]), gone=event["type"] == "DELETED")


class Missing(LabError):
    """An object that is not there."""


def asked(question: Callable[[], T]) -> T:
    """Return what the cluster answers; raises LabError with its reason if it refuses, and if it does not answer."""
    try:
        return question()
    except ApiException as error:
        words = f"Kubernetes refuses: {error.status} {error.reason}. {_reason(error)}".strip()
        hint = "make it in the namespace airflow-lab" if error.status == 403 else HINT
        raise (Missing if error.status == 404 else LabError)(words, hint) from error
    except urllib3.exceptions.HTTPError as error:
        raise LabError(f"The Kubernetes API does not answer: {error}.", HINT) from error


def _reason(error: ApiException) -> str:
    try:
        return json.loads(error.body)["message"]
    except (ValueError, KeyError, TypeError):
        return str(error.body or "")[:300]

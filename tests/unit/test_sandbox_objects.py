"""The objects that labs make: valid by Kubernetes' own schemas, without rights, and known by one label."""

from __future__ import annotations

import kubernetes_validate
import pytest

from labs import sandbox_objects
from labs.sandbox_objects import LABEL, MADE_BY_A_LAB, pod

EVERY_OPTION = {"labels": {"app": "web"}, "cpu": "250m", "restart": "OnFailure", "serves": True, "claim": "data"}
VERSIONS = ["1.27", "1.31"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("options", [{}, *({key: value} for key, value in EVERY_OPTION.items()), EVERY_OPTION])
def test_a_pod_is_valid(options, version):
    kubernetes_validate.validate(pod("one", "true", "image", **options), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_made_of_a_pod_is_valid(version):
    template = sandbox_objects.template(pod("", "true", "image", **EVERY_OPTION))
    spec = {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    replica_set = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"}, "spec": spec}
    kubernetes_validate.validate(sandbox_objects.labelled(replica_set), version, strict=True)
    kubernetes_validate.validate(sandbox_objects.folder_pod("f", "worker-1", "/srv/x", "true", "image"), version, strict=True)
    assert template["spec"]["restartPolicy"] == "Always"


def test_no_pod_of_a_lab_is_root_or_has_a_token():
    for made in (pod("one", "true", "image"), sandbox_objects.folder_pod("f", "worker-1", "/srv/x", "true", "image")):
        assert made["spec"]["automountServiceAccountToken"] is False
        assert made["spec"]["securityContext"]["runAsNonRoot"] is True
        assert made["spec"]["containers"][0]["imagePullPolicy"] == "IfNotPresent"


def test_the_label_reaches_the_pods_of_a_template_and_leaves_the_document_as_it_was():
    replica_set = {"kind": "ReplicaSet", "metadata": {"name": "web"}, "spec": {"template": {"metadata": {"labels": {"app": "web"}}}}}
    made = sandbox_objects.labelled(replica_set)
    assert made["spec"]["template"]["metadata"]["labels"] == {"app": "web", LABEL: MADE_BY_A_LAB}
    assert sandbox_objects.is_labelled(made)
    assert not sandbox_objects.is_labelled(replica_set)
    assert replica_set["spec"]["template"]["metadata"]["labels"] == {"app": "web"}


def test_what_has_no_spec_gets_the_label_too():
    assert sandbox_objects.is_labelled(sandbox_objects.labelled({"kind": "StorageClass", "metadata": {"name": "by-hand", "labels": None}}))


def test_the_node_and_the_folder_of_a_volume_are_found():
    at_home = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["worker-2"]}
    affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": [at_home]}]}}
    assert sandbox_objects.folder_of({"spec": {"local": {"path": "/srv/x"}, "nodeAffinity": affinity}}) == ("worker-2", "/srv/x")


def test_the_client_counts_answers():
    assert 'http://10.43.0.9/"' in sandbox_objects.fetch("10.43.0.9", 60)
    assert "range(60)" in sandbox_objects.fetch("10.43.0.9", 60)

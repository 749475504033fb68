"""The Kubernetes objects of an installation, and the template of the pods in which tasks run. All pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from provision import airflow
from provision.nodes.layout import Layout

NAMESPACE = "airflow"
# Where notebooks try out objects of their own.
LAB_NAMESPACE = "airflow-lab"
# Who creates pods, and who a pod is.
EXECUTOR_ACCOUNT, TASK_ACCOUNT, LAB_ACCOUNT = "airflow-executor", "airflow-task", "airflow-lab"
# The user of the services on every node and of the pods: the official image has the same number.
UID = 50000
CREDENTIALS = "-credentials"
GIT_KEY = "dags-deploy-key"

# What the KubernetesExecutor of provider 10.25 does: creates, watches, lists, patches (the label of a pod that was seen to be
# done) and deletes pods in its own namespace, and reads their logs for the web page.
_EXECUTOR_RULES = (
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "get", "list", "watch", "patch", "delete"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
)
# What the labs do beside it: look, break a pod, set a quota.
_LAB_RULES_BESIDE_AIRFLOW = (
    {"apiGroups": [""], "resources": ["pods", "pods/log", "events"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["delete"]},
    {"apiGroups": [""], "resources": ["resourcequotas"], "verbs": ["get", "list", "watch", "create", "delete"]},
)
_EVERY_VERB = ["get", "list", "watch", "create", "update", "patch", "delete"]
_LAB_RULES = (
    {"apiGroups": [""], "resources": ["pods", "services", "persistentvolumeclaims"], "verbs": _EVERY_VERB},
    {"apiGroups": [""], "resources": ["pods/log", "events", "endpoints"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["apps"], "resources": ["replicasets", "deployments"], "verbs": _EVERY_VERB},
)
_LAB_RULES_OF_CLUSTER = (
    {"apiGroups": [""], "resources": ["nodes", "namespaces"], "verbs": ["get", "list"]},
    # Requests of pods of every namespace are what is left of a node.
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["persistentvolumes"], "verbs": ["get", "list", "create", "delete"]},
    {"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["get", "list", "create", "delete"]},
)


@dataclass(frozen=True)
class PodSettings:
    """What differs between installations in the pods of tasks: `cpu` and `memory` are requests, as Kubernetes writes them.

    Where DAGs are a part of the image, `image` is the one that they are put on top of.
    """

    image: str
    dags: str
    cpu: str
    memory: str
    environment: Mapping[str, str]
    git_url: str = ""


def pod_environment(layout: Layout, settings: Mapping[str, str], api_url: str) -> dict[str, str]:
    """Return the environment of a task's pod: the settings ("section.key") that tasks may read, and no secret.

    The address of the Execution API is resolved inside the pod, from the pod's own settings.
    """
    shared = {name: value for name, value in settings.items() if name.partition(".")[0] not in airflow.NOT_FOR_TASKS}
    own = {
        # A pod starts no executor, but refuses a DAG that names one which is not in this list.
        "core.executor": settings["core.executor"],
        "core.execution_api_server_url": f"{api_url}/execution/",
        "core.dags_folder": str(layout.dags),
        "core.hostname_callable": "lab_worker_name.worker_name",
        "logging.base_log_folder": str(layout.airflow_home / "logs"),
    }
    variables = {airflow.variable_name(name): value for name, value in {**shared, **own}.items()}
    # Airflow writes a file with its defaults into its home; the image cannot be written to.
    return variables | {"AIRFLOW_HOME": "/tmp/airflow", "PYTHONPATH": str(layout.airflow_home / "config"), "HOME": "/tmp"}


def objects(git_key: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return the objects of an installation; `git_key` is the content of the secret with which pods clone DAGs, in base64, if they do."""
    listed = [
        _object("Namespace", NAMESPACE),
        *_account(EXECUTOR_ACCOUNT, NAMESPACE, with_credentials=True),
        *_account(TASK_ACCOUNT, NAMESPACE),
        *_role(EXECUTOR_ACCOUNT, NAMESPACE, _EXECUTOR_RULES, (EXECUTOR_ACCOUNT, NAMESPACE)),
        _object("Namespace", LAB_NAMESPACE),
        *_account(LAB_ACCOUNT, LAB_NAMESPACE, with_credentials=True),
        *_role(LAB_ACCOUNT, NAMESPACE, _LAB_RULES_BESIDE_AIRFLOW, (LAB_ACCOUNT, LAB_NAMESPACE)),
        *_role(LAB_ACCOUNT, LAB_NAMESPACE, _LAB_RULES, (LAB_ACCOUNT, LAB_NAMESPACE)),
        *_role(LAB_ACCOUNT, "", _LAB_RULES_OF_CLUSTER, (LAB_ACCOUNT, LAB_NAMESPACE)),
    ]
    if git_key:
        # Not stringData, which Kubernetes does not keep: every comparison would find a difference.
        listed.append(_object("Secret", GIT_KEY, NAMESPACE, type="Opaque", data=dict(git_key)))
    return listed


def render(documents: list[dict[str, Any]]) -> str:
    """Return objects as one text for kubectl."""
    return yaml.safe_dump_all(documents, sort_keys=False)


def kubeconfig(server: str, authority: str, account: str, token: str, namespace: str) -> str:
    """Return a kubeconfig for a service account; `authority` is the cluster's certificate in base64, as its secret has it."""
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "labs",
            "clusters": [{"name": "labs", "cluster": {"server": server, "certificate-authority-data": authority}}],
            "users": [{"name": account, "user": {"token": token}}],
            "contexts": [{"name": "labs", "context": {"cluster": "labs", "user": account, "namespace": namespace}}],
        },
        sort_keys=False,
    )


def pod_template(layout: Layout, settings: PodSettings) -> str:
    """Return the template of the pods in which tasks run.

    A pod has neither a token of Kubernetes nor a secret of Airflow: the executor hands it a token for its one task.
    Logs go to a folder of the node, where the API server finds them when the pod is gone.
    """
    home = str(layout.airflow_home)
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "logs", "mountPath": f"{home}/logs"}]
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "logs", "hostPath": {"path": f"{home}/logs", "type": "Directory"}},
    ]
    more_mounts, more_volumes, before = _dags(layout, settings)
    container = {
        "name": "base",
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [
            *({"name": name, "value": value} for name, value in sorted(settings.environment.items())),
            # The timeline's host is the node, by whose name the API server finds its logs, too.
            {"name": "LAB_WORKER", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        "resources": {"requests": {"cpu": settings.cpu, "memory": settings.memory}},
        "securityContext": _container_security(),
        "volumeMounts": [*mounts, *more_mounts],
    }
    spec = {
        "restartPolicy": "Never",
        "serviceAccountName": TASK_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # The only name that a task needs is an address.
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 10,
        "securityContext": {"runAsUser": UID, "runAsGroup": UID, "runAsNonRoot": True, "fsGroup": UID},
        **({"initContainers": before} if before else {}),
        "containers": [container],
        "volumes": [*volumes, *more_volumes],
    }
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "task", "namespace": NAMESPACE}, "spec": spec}
    return yaml.safe_dump(document, sort_keys=False)


def _container_security() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def _dags(layout: Layout, settings: PodSettings) -> tuple[list[dict], list[dict], list[dict]]:
    """Return mounts, volumes and init containers by which DAGs get into a pod."""
    folders = {"dags": str(layout.dags), "config": str(layout.airflow_home / "config")}
    if settings.dags == "image":
        return [], [], []
    if settings.dags == "volume":
        mounts = [{"name": name, "mountPath": path, "readOnly": True} for name, path in folders.items()]
        return mounts, [{"name": name, "hostPath": {"path": path, "type": "Directory"}} for name, path in folders.items()], []
    mounts = [{"name": "checkout", "mountPath": path, "subPath": name, "readOnly": True} for name, path in folders.items()]
    volumes = [{"name": "checkout", "emptyDir": {}}, {"name": "key", "secret": {"secretName": GIT_KEY, "defaultMode": 0o440}}]
    ssh = "ssh -i /key/id -o UserKnownHostsFile=/key/known_hosts -o StrictHostKeyChecking=yes -o BatchMode=yes"
    # Of many that knock at once, sshd turns some away (MaxStartups).
    again = 'for pause in 1 2 4; do "$0" "$@" && exit 0; sleep "$pause"; done; exec "$0" "$@"'
    clone = {
        "name": "clone",
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", again, "git", "clone", "--quiet", "--depth", "1", settings.git_url, "/checkout"],
        "env": [{"name": "GIT_SSH_COMMAND", "value": ssh}, {"name": "HOME", "value": "/tmp"}],
        "resources": {"requests": {"cpu": settings.cpu, "memory": "64Mi"}},
        "securityContext": _container_security(),
        "volumeMounts": [
            {"name": "checkout", "mountPath": "/checkout"},
            {"name": "key", "mountPath": "/key", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    return mounts, volumes, [clone]


def _object(kind: str, name: str, namespace: str = "", api: str = "v1", **fields: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": {"app.kubernetes.io/part-of": "airflow-labs"}}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **fields}


def _account(name: str, namespace: str, with_credentials: bool = False) -> list[dict[str, Any]]:
    account = _object("ServiceAccount", name, namespace, automountServiceAccountToken=False)
    if not with_credentials:
        return [account]
    # Since Kubernetes 1.24 no secret is made for an account by itself; this one is filled in by every version.
    secret = _object("Secret", name + CREDENTIALS, namespace, type="kubernetes.io/service-account-token")
    secret["metadata"]["annotations"] = {"kubernetes.io/service-account.name": name}
    return [account, secret]


def _role(name: str, namespace: str, rules: tuple[dict[str, Any], ...], subject: tuple[str, str]) -> list[dict[str, Any]]:
    """Return a role with its binding, of one namespace or, without one, of the whole cluster."""
    api, kind = "rbac.authorization.k8s.io/v1", "Role" if namespace else "ClusterRole"
    return [
        _object(kind, name, namespace, api, rules=[dict(rule) for rule in rules]),
        _object(
            f"{kind}Binding", name, namespace, api,
            subjects=[{"kind": "ServiceAccount", "name": subject[0], "namespace": subject[1]}],
            roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        ),
    ]  # fmt: skip

"""The objects of an installation and the template of its pods: what Kubernetes accepts, and what pods may not have."""

from __future__ import annotations

import json

import kubernetes_validate
import pytest
import yaml
from cluster_samples import API_URL, CLUSTER, SECRETS, pods

from provision.airflow import POD_REQUESTS, variable_name
from provision.kube import manifests
from provision.kube.manifests import EXECUTOR_ACCOUNT, LAB_ACCOUNT, LAB_NAMESPACE, NAMESPACE, TASK_ACCOUNT
from provision.nodes.layout import USER_NUMBER, Layout
from provision.variants import DAG_SOURCES, VARIANTS, variant_named

# From the oldest of which there are schemas to the pinned one.
VERSIONS = ("1.25.0", "1.28.0", "1.32.0", "1.36.0")
GIT_KEY = {"id": "YSBrZXk=", "known_hosts": "YSBob3N0"}


def objects(git_key: dict[str, str] | None = None) -> list[dict]:
    """Return the objects as kubectl reads them."""
    return list(yaml.safe_load_all(manifests.render(manifests.objects(git_key))))


def named(kind: str, name: str, namespace: str = "") -> dict:
    """Return one object."""
    (found,) = [
        each
        for each in objects()
        if (each["kind"], each["metadata"]["name"], each["metadata"].get("namespace", "")) == (kind, name, namespace)
    ]
    return found


def template(dags: str = "volume") -> dict:
    """Return the pod template as the executor reads it."""
    more = {"git_url": "ssh://airflow@192.168.56.10/dags"} if dags == "git" else {}
    return yaml.safe_load(manifests.pod_template(Layout(), pods(dags, **more)))


def containers(pod: dict) -> list[dict]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def allowed(role: dict) -> dict[tuple[str, str], set[str]]:
    """Return the verbs of a role by API group and resource."""
    found: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


every_source = pytest.mark.parametrize("dags", DAG_SOURCES)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_of_kubernetes_accepts_the_objects(version):
    for document in objects(GIT_KEY):
        kubernetes_validate.validate(document, version, strict=True)


@every_source
@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_of_kubernetes_accepts_the_pod_template(version, dags):
    kubernetes_validate.validate(template(dags), version, strict=True)


def test_a_key_that_kubernetes_does_not_know_would_be_noticed():
    pod = template()
    pod["spec"]["automountServiceAccountTokn"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)


def test_namespaces_come_before_what_is_in_them():
    known = set()
    for each in objects():
        if each["kind"] == "Namespace":
            known.add(each["metadata"]["name"])
        assert each["metadata"].get("namespace", "") in {"", *known}, each["metadata"]["name"]
    assert known == {"airflow", "airflow-lab"}


def test_no_object_is_there_twice():
    keys = [(each["kind"], each["metadata"]["name"], each["metadata"].get("namespace")) for each in objects(GIT_KEY)]
    assert len(keys) == len(set(keys))


def test_the_executor_may_do_with_pods_what_it_does_and_nothing_else():
    role = named("Role", EXECUTOR_ACCOUNT, NAMESPACE)
    assert allowed(role) == {
        ("", "pods"): {"create", "get", "list", "watch", "patch", "delete"},
        ("", "pods/log"): {"get"},
    }
    bound = [
        (each["kind"], each["metadata"].get("namespace"))
        for each in objects()
        if each["kind"].endswith("Binding") and any(subject["name"] == EXECUTOR_ACCOUNT for subject in each["subjects"])
    ]
    assert bound == [("RoleBinding", NAMESPACE)]


def test_nobody_is_bound_to_the_account_of_tasks():
    for each in objects():
        assert all(subject["name"] != TASK_ACCOUNT for subject in each.get("subjects", ()))


def test_only_the_executor_and_the_labs_have_credentials_and_they_are_filled_in_by_the_cluster():
    secrets = [each for each in objects() if each["kind"] == "Secret"]
    owners = {each["metadata"]["annotations"]["kubernetes.io/service-account.name"] for each in secrets}
    assert owners == {EXECUTOR_ACCOUNT, LAB_ACCOUNT}
    assert {each["type"] for each in secrets} == {"kubernetes.io/service-account-token"}
    assert not [each for each in secrets if "data" in each or "stringData" in each]


def test_every_binding_leads_to_a_role_and_an_account_that_there_are():
    kinds = {(each["kind"], each["metadata"]["name"], each["metadata"].get("namespace", "")) for each in objects()}
    for each in objects():
        if each["kind"].endswith("Binding"):
            reference, namespace = each["roleRef"], each["metadata"].get("namespace", "")
            assert (reference["kind"], reference["name"], namespace if reference["kind"] == "Role" else "") in kinds
            for subject in each["subjects"]:
                assert (subject["kind"], subject["name"], subject["namespace"]) in kinds


def test_no_role_names_everything_or_reads_secrets():
    for each in objects():
        for rule in each.get("rules", ()):
            words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert "*" not in words
            assert "secrets" not in words
            assert not words & {"impersonate", "escalate", "bind", "pods/exec", "serviceaccounts/token"}


def test_the_labs_may_break_pods_of_tasks_but_make_pods_only_in_their_own_namespace():
    beside = allowed(named("Role", LAB_ACCOUNT, NAMESPACE))
    assert beside["", "pods"] == {"get", "list", "watch", "delete"}
    assert beside["", "resourcequotas"] == {"get", "list", "watch", "create", "delete"}
    assert "create" in allowed(named("Role", LAB_ACCOUNT, LAB_NAMESPACE))["", "pods"]
    everywhere = allowed(named("ClusterRole", LAB_ACCOUNT))
    assert everywhere["", "pods"] == {"list"}
    assert everywhere["", "nodes"] == {"get", "list"}


@every_source
def test_a_pod_has_no_token_of_kubernetes(dags):
    spec = template(dags)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == TASK_ACCOUNT
    assert all(account["automountServiceAccountToken"] is False for account in objects() if account["kind"] == "ServiceAccount")


@every_source
def test_a_pod_is_not_root_and_cannot_write_into_its_image(dags):
    pod = template(dags)
    context = pod["spec"]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["runAsNonRoot"]) == (USER_NUMBER, USER_NUMBER, True)
    for container in containers(pod):
        own = container["securityContext"]
        assert (own["readOnlyRootFilesystem"], own["allowPrivilegeEscalation"], own["capabilities"]) == (True, False, {"drop": ["ALL"]})
        assert "runAsUser" not in own
        assert "privileged" not in own
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])


@every_source
def test_a_pod_mounts_of_its_node_only_what_it_needs(dags):
    volumes = {volume["name"]: volume for volume in template(dags)["spec"]["volumes"]}
    shared = {volume["hostPath"]["path"] for volume in volumes.values() if "hostPath" in volume}
    home = "/var/lib/airflow-labs"
    expected = {f"{home}/logs", f"{home}/dags", f"{home}/config"} if dags == "volume" else {f"{home}/logs"}
    assert shared == expected
    (base,) = template(dags)["spec"]["containers"]
    written = {mount["mountPath"] for mount in base["volumeMounts"] if not mount.get("readOnly")}
    assert written == {"/tmp", f"{home}/logs"}
    assert {mount["name"] for mount in base["volumeMounts"]} <= set(volumes)


@every_source
def test_dags_are_found_where_the_pod_is_told_to_look_for_them(dags):
    (base,) = template(dags)["spec"]["containers"]
    variables = {each["name"]: each.get("value") for each in base["env"]}
    home = str(Layout().airflow_home)
    assert variables["AIRFLOW__CORE__DAGS_FOLDER"] == str(Layout().dags)
    mounted = {mount["mountPath"] for mount in base["volumeMounts"]}
    assert ({f"{home}/dags", f"{home}/config"} <= mounted) == (dags != "image")


def test_dags_are_cloned_with_a_known_host_and_a_key_that_the_task_does_not_get():
    pod = template("git")
    (clone,), (base,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
    secret = [volume["name"] for volume in pod["spec"]["volumes"] if "secret" in volume]
    assert {mount["name"] for mount in clone["volumeMounts"]} >= set(secret)
    assert not {mount["name"] for mount in base["volumeMounts"]} & set(secret)
    ssh = next(each["value"] for each in clone["env"] if each["name"] == "GIT_SSH_COMMAND")
    assert "StrictHostKeyChecking=yes" in ssh


def test_the_key_of_the_clone_is_an_object_only_where_pods_clone():
    assert not [each for each in objects() if each["metadata"]["name"] == manifests.GIT_KEY]
    (secret,) = [each for each in objects(GIT_KEY) if each["metadata"]["name"] == manifests.GIT_KEY]
    assert (secret["data"], secret["metadata"]["namespace"]) == (GIT_KEY, NAMESPACE)


@every_source
def test_no_secret_of_airflow_is_in_a_pod(dags):
    text = json.dumps(template(dags))
    for word in ("FERNET", "JWT", "SQL_ALCHEMY", "PASSWORD", "SECRET_KEY", "RESULT_BACKEND", "BROKER", *map(str.upper, SECRETS)):
        assert f"__{word}" not in text.upper()
    names = {each["name"] for container in containers(template(dags)) for each in container["env"]}
    assert not [name for name in names if name.startswith(("AIRFLOW__API__", "AIRFLOW__SCHEDULER__", "AIRFLOW__KUBERNETES_EXECUTOR__"))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_setting_of_a_service_is_handed_to_a_pod(variant):
    settings = variant_named(variant).effective_settings({"celery.broker_url": "redis://:x@h", "api.secret_key": "x"})
    environment = manifests.pod_environment(Layout(), settings, API_URL)
    assert not {name.split("__")[1] for name in environment if "__" in name} & {"API", "CELERY", "SCHEDULER", "LABS", "KUBERNETES_EXECUTOR"}


def test_a_task_in_a_pod_reaches_the_api_server_on_the_control_node():
    environment = pods().environment
    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == f"http://{CLUSTER.control.address}:8080/execution/"
    # The pod reads the DAG again, and would refuse one that names an executor which is not in its list.
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "KubernetesExecutor"
    several = variant_named("multiple").effective_settings({})
    named = manifests.pod_environment(Layout(), several, API_URL)["AIRFLOW__CORE__EXECUTOR"]
    assert named == "LocalExecutor,CeleryExecutor,KubernetesExecutor"


def test_a_task_gets_the_settings_that_a_change_gave_to_all():
    settings = variant_named("kubernetes").effective_settings({"core.max_num_rendered_ti_fields_per_task": "5", "core.parallelism": "4"})
    environment = manifests.pod_environment(Layout(), settings, API_URL)
    assert environment[variable_name("core.max_num_rendered_ti_fields_per_task")] == "5"


def test_what_a_pod_writes_goes_where_it_may_write():
    environment, (base,) = pods().environment, template()["spec"]["containers"]
    written = [mount["mountPath"] for mount in base["volumeMounts"] if not mount.get("readOnly")]
    for name in ("HOME", "AIRFLOW_HOME", variable_name("logging.base_log_folder")):
        assert any(f"{environment[name]}/".startswith(f"{place}/") for place in written), name


def test_a_pod_asks_for_what_the_installation_says_and_has_no_limit():
    settings = manifests.PodSettings("image:1", "volume", "250m", "1Gi", {})
    (base,) = yaml.safe_load(manifests.pod_template(Layout(), settings))["spec"]["containers"]
    assert base["resources"] == {"requests": {"cpu": "250m", "memory": "1Gi"}}
    assert {"labs.pod_cpu", "labs.pod_memory"} == POD_REQUESTS


def test_the_executor_finds_the_container_that_it_changes_and_the_pod_ends_once():
    pod = template()
    assert [container["name"] for container in pod["spec"]["containers"]] == ["base"]
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["metadata"]["namespace"] == NAMESPACE == variant_named("kubernetes").settings["kubernetes_executor.namespace"]


def test_an_image_that_was_imported_is_not_looked_for_in_a_registry():
    for dags in DAG_SOURCES:
        for container in containers(template(dags)):
            assert container["imagePullPolicy"] == "IfNotPresent"
            assert not container["image"].endswith(":latest")
            assert ":" in container["image"]


def test_a_task_goes_by_the_name_of_its_node():
    (base,) = template()["spec"]["containers"]
    (worker,) = [each for each in base["env"] if each["name"] == "LAB_WORKER"]
    assert worker["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}


def test_a_kubeconfig_leads_to_one_cluster_as_one_account():
    document = yaml.safe_load(manifests.kubeconfig("https://192.168.56.10:6443", "Y2E=", EXECUTOR_ACCOUNT, "the-token", NAMESPACE))
    (context,) = document["contexts"]
    assert document["current-context"] == context["name"]
    assert context["context"]["namespace"] == NAMESPACE
    assert document["users"] == [{"name": EXECUTOR_ACCOUNT, "user": {"token": "the-token"}}]
    (cluster,) = document["clusters"]
    assert cluster["cluster"] == {"server": "https://192.168.56.10:6443", "certificate-authority-data": "Y2E="}

"""What Airflow is told of Kubernetes, and what of that may be changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from airflow_samples import PLACEMENT, SECRETS, rendered

from provision.airflow import check_changes, public_settings, render_environment, services_concerned
from provision.errors import UsageError
from provision.variants import VARIANTS, variant_named

KUBERNETES = variant_named("kubernetes")
KUBERNETES_PLACEMENT = replace(
    PLACEMENT,
    kubeconfig="/etc/airflow-labs/kubeconfig",
    pod_template="/etc/airflow-labs/pod.yaml",
    pod_image="localhost:5000/labs:3.3.2-abc",
)


def test_with_kubernetes_airflow_is_told_where_its_cluster_is():
    environment = render_environment(KUBERNETES, KUBERNETES_PLACEMENT, SECRETS, {})
    told = {
        name.removeprefix("AIRFLOW__KUBERNETES_EXECUTOR__"): value for name, value in environment.items() if "KUBERNETES_EXECUTOR__" in name
    }
    assert (
        told.items()
        >= {
            "IN_CLUSTER": "False",
            "CONFIG_FILE": "/etc/airflow-labs/kubeconfig",
            "POD_TEMPLATE_FILE": "/etc/airflow-labs/pod.yaml",
            "WORKER_CONTAINER_REPOSITORY": "localhost:5000/labs",
            "WORKER_CONTAINER_TAG": "3.3.2-abc",
            "NAMESPACE": "airflow",
            "WORKER_PODS_CREATION_BATCH_SIZE": "16",
        }.items()
    )


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if not variant.uses_kubernetes])
def test_without_kubernetes_airflow_hears_nothing_of_it(name):
    assert not [variable for variable in rendered(name) if "KUBERNETES" in variable or "POD" in variable]


@pytest.mark.parametrize("setting", ["kubernetes_executor.worker_pods_creation_batch_size", "labs.pod_cpu", "labs.pod_memory"])
@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if not variant.uses_kubernetes])
def test_a_setting_of_kubernetes_is_refused_where_there_is_none(name, setting):
    with pytest.raises(UsageError, match=f"{setting} would have no effect: the variant {name} has no Kubernetes") as refused:
        check_changes({setting: "1"}, variant_named(name))
    assert "fab install kubernetes --target vagrant" in refused.value.hint


@pytest.mark.parametrize(
    "setting",
    [
        f"kubernetes_executor.{key}"
        for key in ("in_cluster", "config_file", "pod_template_file", "worker_container_repository", "worker_container_tag")
    ],
)
@pytest.mark.parametrize("name", ["kubernetes", "postgres"])
def test_what_the_installation_says_of_its_cluster_cannot_be_changed(name, setting):
    with pytest.raises(UsageError, match=f"{setting} is set by the installation itself"):
        check_changes({setting: "x"}, variant_named(name))


@pytest.mark.parametrize("setting", ["kubernetes_executor.namespace", "kubernetes_executor.multi_namespace_mode"])
def test_pods_stay_in_the_namespace_in_which_the_executor_has_rights(setting):
    with pytest.raises(UsageError, match=f"{setting} cannot be changed here: the executor has rights in"):
        check_changes({setting: "other"}, KUBERNETES)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("labs.pod_cpu", "100m"),
        ("labs.pod_cpu", "1"),
        ("labs.pod_cpu", "0.5"),
        ("labs.pod_cpu", "0.05"),
        ("labs.pod_cpu", "1.5"),
        ("labs.pod_memory", "256Mi"),
        ("labs.pod_memory", "1Gi"),
        ("labs.pod_memory", "300000Ki"),
        ("kubernetes_executor.worker_pods_creation_batch_size", "1"),
        ("kubernetes_executor.task_publish_max_retries", "-1"),
    ],
)
def test_what_a_pod_asks_for_can_be_changed(setting, value):
    check_changes({setting: value}, KUBERNETES)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("labs.pod_cpu", text) for text in ("", "0", "0m", "0.0", "-1", "m", "0.0001", "01", "0,5", "100M", "all", "1 ", "0.5m")),
        *(("labs.pod_memory", text) for text in ("", "0", "256", "256M", "256mi", "0Mi", "1.5Gi", "-1Gi", "256 Mi", "Gi", "256Mi\n")),
    ],
)
def test_what_is_no_quantity_is_refused_with_an_example(setting, value):
    with pytest.raises(UsageError, match=f"{setting} = .* is not a quantity of Kubernetes") as refused:
        check_changes({setting: value}, KUBERNETES)
    assert "write it like" in refused.value.hint


@pytest.mark.parametrize(
    ("setting", "concerned"),
    [
        ("labs.pod_cpu", ()),
        ("labs.pod_memory", ()),
        ("kubernetes_executor.worker_pods_creation_batch_size", ("scheduler", "scheduler-2")),
        ("kubernetes_executor.running_pod_log_lines", ("api-server", "scheduler", "api-server-2", "scheduler-2")),
    ],
)
def test_a_setting_of_pods_concerns_who_creates_them(setting, concerned):
    services = ("api-server", "scheduler", "dag-processor", "triggerer", "postgres", "k3s-control", "log-server-worker-1")
    assert services_concerned(setting, (*services, "api-server-2", "scheduler-2")) == concerned


def test_public_settings_name_neither_credentials_nor_template_of_the_cluster():
    assert not set(public_settings(KUBERNETES, {})) & {"kubernetes_executor.config_file", "kubernetes_executor.pod_template_file"}
    assert public_settings(KUBERNETES, {"labs.pod_cpu": "50m"})["labs.pod_cpu"] == "50m"

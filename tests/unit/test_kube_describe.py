"""What is known of a cluster that somebody wants: the memory that Airflow wants of each node, and the labs' credentials."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from cluster_samples import ALONE, CLUSTER, ENVIRONMENT, blank, kubernetes

from provision.errors import ProvisionError, UsageError
from provision.home import lab_home
from provision.kube.describe import airflow_mib, described, lab_kubeconfig
from provision.kube.distributions import DISTRIBUTIONS, require_memory
from provision.nodes.layout import Layout
from provision.topology import Cluster
from provision.variants import wanted
from provision.workers import Worker

THREE_AND_RANGE = [Worker("worker-2", 3), Worker("celery-1", 4, at_least=1)]


@pytest.mark.parametrize(
    ("asked", "cluster", "expected"),
    [
        (wanted("kubernetes"), CLUSTER, {"control": 1000, "worker-1": 0, "worker-2": 0}),
        (wanted("kubernetes"), ALONE, {"control": 1000}),
        # Flower and Redis; on each worker node a worker with two processes.
        (wanted("multiple"), CLUSTER, {"control": 1160, "worker-1": 450, "worker-2": 450}),
        (wanted("multiple"), ALONE, {"control": 1160 + 2 * 450}),
        (wanted("multiple", broker="rabbitmq", workers=[]), CLUSTER, {"control": 1300, "worker-1": 0, "worker-2": 0}),
        # A worker goes to the node of its name, and one that scales by itself may have its most processes.
        (wanted("multiple", workers=THREE_AND_RANGE), CLUSTER, {"control": 1160, "worker-1": 750, "worker-2": 600}),
    ],
)
def test_celery_wants_memory_where_its_services_and_workers_are(asked, cluster, expected):
    assert airflow_mib(asked, cluster) == expected


@pytest.mark.parametrize("variant", ["kubernetes", "multiple"])
def test_the_machine_table_is_enough_for_k3s_with_and_without_celery(variant):
    as_their_programs_see_them = {"control": 2900, "worker-1": 1900, "worker-2": 1900}
    require_memory(DISTRIBUTIONS["k3s"], CLUSTER, as_their_programs_see_them, airflow_mib(wanted(variant), CLUSTER))


def refusal(variant: str, memory: dict[str, int], cluster: Cluster = CLUSTER) -> str:
    """Return why nodes with so much memory are too small."""
    nodes = SimpleNamespace(each=lambda work: memory)
    with pytest.raises(UsageError, match="too little memory") as refused:
        described(wanted(variant), cluster, Layout(), ENVIRONMENT, "x86_64", nodes, lab_home(), print, "token")
    return refused.value.message


def test_nodes_that_are_large_enough_without_celery_may_be_too_small_with_it():
    small = {"control": 2500, "worker-1": 400, "worker-2": 700}
    assert "control has 2500 MiB, 3048 are wanted; worker-1 has 400 MiB, 512 are wanted." in refusal("kubernetes", small)
    with_celery = "control has 2500 MiB, 3208 are wanted; worker-1 has 400 MiB, 962 are wanted; worker-2 has 700 MiB, 962 are wanted."
    assert with_celery in refusal("multiple", small)


@pytest.mark.parametrize("variant", ["kubernetes", "multiple"])
def test_without_credentials_the_variant_that_is_installed_is_installed_again(variant):
    with pytest.raises(ProvisionError, match="no credentials for the labs") as refused:
        lab_kubeconfig(kubernetes(seen=blank()), variant)
    assert refused.value.hint == f"fab install {variant} --target vagrant"

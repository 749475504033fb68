"""What separates the nodes from what they should be: facts in, steps out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cluster_samples import SECRETS
from nodes_samples import desired, fulfilled, services, steps

from provision.nodes.plan import SERVICES, STORES, WORKERS, asked_of, kind_of
from provision.variants import VARIANTS
from provision.workers import Worker

# A node that was never installed, beyond what depends on its variant.
BARE = {
    "user": [],
    "accounts": [],
    "folders": [],
    "unwanted": [],
    "distribution": [],
    "clock": True,
    "trusted": True,
    "others": [],
    "environment": False,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_nodes_that_are_as_they_should_be_are_left_alone(variant):
    state = desired(variant)
    assert steps(state, fulfilled(state)) == set()


def test_bare_nodes_get_everything():
    state = desired("postgres")
    facts = {
        name: {
            **BARE, "packages": node.packages, "folders": list(node.folders), "files": list(node.files),
            "units": {u.name: {"active": "inactive", "sub": "dead", "digest": "", "pid": 0} for u in node.units},
        }
        for name, node in state.nodes.items()
    }  # fmt: skip
    found = steps(state, facts, mark="")
    assert {(node, "install", "packages") for node in facts} <= found
    assert {(node, "build", "environment") for node in facts} <= found
    assert {(node, "make", what) for node in facts for what in ("user airflow", "folders")} <= found
    assert {("control", "start", name) for name in services(state)["control"]} <= found
    assert ("control", "migrate", "database postgres") in found


def test_a_node_that_was_made_again_is_the_only_one_that_is_repaired():
    state = desired("celery")
    facts = fulfilled(state)
    facts["worker-2"] = {
        **BARE, "packages": ["chrony"], "files": list(state.nodes["worker-2"].files),
        "units": {u.name: {"active": "inactive", "sub": "", "digest": "", "pid": 0} for u in state.nodes["worker-2"].units},
    }  # fmt: skip
    assert {node for node, _, _ in steps(state, facts)} == {"worker-2"}


def test_a_second_scheduler_is_restarted_with_the_first():
    before, after = desired("celery", ha=True), desired("celery", ha=True, changes={"core.parallelism": "4"})
    assert {name for _, action, name in steps(after, fulfilled(before)) if action == "restart"} == {"scheduler", "scheduler-2"}


@pytest.mark.parametrize(
    ("changes", "restarted"),
    [
        ({"core.parallelism": "4"}, {"scheduler"}),
        ({"celery.worker_prefetch_multiplier": "2"}, {"scheduler", "flower", "worker-1", "worker-2", "worker-3"}),
        ({}, set()),
    ],
)
def test_a_changed_setting_restarts_exactly_the_services_that_read_it(changes, restarted):
    before, after = desired("celery"), desired("celery", changes=changes)
    found = steps(after, fulfilled(before))
    assert {name for _, action, name in found if action == "restart"} == restarted


def test_what_the_variant_does_not_have_is_stopped():
    state = desired("postgres")
    facts = fulfilled(state)
    facts["worker-1"]["others"] = ["airflow-worker-1.service", "airflow-log-server-worker-1.service"]
    assert steps(state, facts) == {("worker-1", "stop", "worker-1"), ("worker-1", "stop", "log-server-worker-1")}


def test_a_worker_that_only_changed_its_size_is_not_restarted():
    state = desired("celery", workers=[Worker("worker-1", 4), Worker("worker-2")])
    facts = fulfilled(state)
    facts["worker-1"]["files"] = ["/etc/airflow-labs/workers/worker-1.env"]
    assert steps(state, facts) == {("worker-1", "resize", "worker-1")}


def test_a_worker_that_begins_to_scale_by_itself_is_restarted():
    before = desired("celery", workers=[Worker("worker-1", 4)])
    after = desired("celery", workers=[Worker("worker-1", 4, at_least=1)])
    assert ("worker-1", "restart", "worker-1") in steps(after, fulfilled(before))


def test_a_new_password_makes_the_database_be_looked_after():
    state = desired("postgres")
    other = desired("postgres", secrets={**SECRETS, "database_password": "another"})
    assert ("control", "migrate", "database postgres") in steps(other, fulfilled(other), state.database_mark)


def test_files_with_passwords_do_not_outlive_their_use():
    state = desired("celery")
    assert "/etc/airflow-labs/api/passwords.json" in state.nodes["worker-1"].unwanted
    assert "/etc/airflow-labs/api/passwords.json" not in state.nodes["control"].unwanted
    assert "/var/lib/airflow-labs/passwords.json" in state.nodes["control"].unwanted
    assert "/etc/airflow-labs/redis.conf" in desired("postgres").nodes["control"].unwanted
    for other in (desired("celery", ha=True), desired("celery", broker="rabbitmq"), desired("sqlite")):
        for node in other.nodes.values():
            secret = {path for path, file in node.files.items() if file.mode != "0644" and path.startswith("/etc/airflow-labs/")}
            everywhere = {
                "/etc/airflow-labs/airflow.env",
                *({"/etc/airflow-labs/api/passwords.json"} if node.node.name == "control" else ()),
            }
            assert secret - everywhere <= set(desired("standalone").nodes[node.node.name].unwanted)
    facts = fulfilled(state)
    facts["worker-1"]["unwanted"] = ["/etc/airflow-labs/api/passwords.json"]
    assert steps(state, facts) == {("worker-1", "remove", "files")}


def test_a_folder_that_belongs_to_somebody_else_is_a_step():
    state = desired("postgres")
    facts = fulfilled(state)
    facts["worker-1"]["folders"] = ["/var/lib/airflow-labs"]
    assert steps(state, facts) == {("worker-1", "make", "folders")}
    assert asked_of(state, state.nodes["worker-1"])["folders"]["/var/lib/airflow-labs"] == {
        "owner": "root",
        "group": "airflow",
        "mode": "0750",
    }


def test_services_of_a_user_with_another_number_are_restarted_with_the_right_one():
    state = desired("celery")
    facts = fulfilled(state)
    facts["control"]["user"] = [999, 997]
    airflows = {name for name in services(state)["control"] if name not in ("postgres", "redis")}
    assert steps(state, facts) == {("control", "renumber", "user airflow")} | {("control", "restart", name) for name in airflows}


def test_what_an_interrupted_install_left_undone_is_a_step_of_the_next():
    state = desired("celery")
    facts = fulfilled(state)
    facts["control"]["distribution"] = ["redis-server.service"]
    facts["worker-1"]["clock"] = False
    assert steps(state, facts) == {("control", "disable", "the distribution's servers"), ("worker-1", "restart", "chrony")}


def test_the_two_ways_to_reach_the_same_database_do_not_migrate_it_again():
    assert desired("postgres").database_mark == desired("celery").database_mark


def test_workers_stop_before_what_they_need():
    state = desired("celery", ha=True, workers=[Worker("heavy-1")])
    kinds = {name: kind_of(state, name) for name in ("heavy-1", "gone-worker", "api-server", "scheduler-2", "haproxy", "redis", "postgres")}
    assert kinds == {
        "heavy-1": WORKERS, "gone-worker": WORKERS, "api-server": SERVICES, "scheduler-2": SERVICES, "haproxy": SERVICES,
        "redis": STORES, "postgres": STORES,
    }  # fmt: skip


def test_nodes_are_asked_with_digests_and_never_with_what_is_in_the_files():
    state = desired()
    asked = json.dumps([asked_of(state, node) for node in state.nodes.values()])
    assert not [name for name, secret in SECRETS.items() if secret in asked]


def test_certificates_that_a_node_does_not_trust_are_a_step():
    state = replace(desired("postgres"), certificates="-----BEGIN CERTIFICATE-----\n")
    facts = fulfilled(state)
    facts["worker-2"]["trusted"] = False
    assert steps(state, facts) == {("worker-2", "trust", "certificates")}
    assert len(asked_of(state, state.nodes["worker-2"])["certificates"]) == 64
    assert asked_of(desired("postgres"), state.nodes["worker-2"])["certificates"] == ""

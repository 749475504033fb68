"""What stores, HAProxy, names and clocks on the nodes are told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cluster_samples import CLUSTER, SECRETS
from nodes_samples import ABOUT, desired

from provision.errors import ProvisionError
from provision.nodes import stores
from provision.nodes.desired import desired_state
from provision.nodes.layout import Layout
from provision.variants import wanted


def test_the_database_is_for_its_own_node_unless_workers_need_it():
    layout = Layout()
    alone = stores.postgres_files(layout, CLUSTER, False, 5432)
    shared = stores.postgres_files(layout, CLUSTER, True, 5432)
    assert "listen_addresses = '127.0.0.1'" in alone["/etc/airflow-labs/postgresql.conf"]
    assert "listen_addresses = '127.0.0.1,192.168.56.10'" in shared["/etc/airflow-labs/postgresql.conf"]
    hba = [line.split() for line in shared["/etc/airflow-labs/pg_hba.conf"].splitlines() if line.startswith("host")]
    assert {line[3] for line in hba} == {"127.0.0.1/32", "192.168.56.10/32", "192.168.56.11/32", "192.168.56.12/32"}
    assert {line[-1] for line in hba} == {"scram-sha-256"}
    assert "192.168" not in alone["/etc/airflow-labs/pg_hba.conf"]


def test_brokers_listen_on_the_private_address_with_a_password_and_without_guest():
    redis = stores.redis_files(Layout(), CLUSTER, 6379, "word")["/etc/airflow-labs/redis.conf"].splitlines()
    assert {"bind 192.168.56.10", "requirepass word", "maxmemory-policy noeviction"} <= set(redis)
    rabbit = stores.rabbitmq_files(Layout(), CLUSTER, 5672, "word")
    lines = rabbit["/etc/airflow-labs/rabbitmq.conf"].splitlines()
    assert {"listeners.tcp.1 = 192.168.56.10:5672", "load_definitions = /etc/airflow-labs/rabbitmq-definitions.json"} <= set(lines)
    # Otherwise the user would be made only once, with the password of that day.
    assert not [line for line in lines if line.startswith("default_")]
    definitions = json.loads(rabbit["/etc/airflow-labs/rabbitmq-definitions.json"])
    assert [user["name"] for user in definitions["users"]] == ["airflow"]
    assert "word" not in definitions["users"][0].values()


def test_every_node_knows_every_worker_by_name():
    texts = {name: node.files["/etc/hosts"].text for name, node in desired("celery").nodes.items()}
    for text in texts.values():
        assert "192.168.56.11 worker-1 worker-3" in text.splitlines()
        assert "192.168.56.12 worker-2" in text.splitlines()


def test_names_are_written_again_before_services_start():
    for node in desired("celery").nodes.values():
        (line,) = node.files["/etc/tmpfiles.d/airflow-labs.conf"].text.splitlines()
        kind, path, mode, user, group, age, text = line.split(" ", 6)
        assert (kind, path, mode, user, group, age) == ("f+", "/etc/hosts", "0644", "root", "root", "-")
        assert text.replace("\\n", "\n") == node.files["/etc/hosts"].text


def test_clocks_are_served_on_the_private_address_alone():
    text = desired().nodes["control"].files["/etc/chrony/conf.d/airflow-labs.conf"].text
    assert {"allow 192.168.56.0/24", "bindaddress 192.168.56.10"} <= set(text.splitlines())
    assert "allow" not in desired().nodes["worker-1"].files["/etc/chrony/conf.d/airflow-labs.conf"].text


def test_the_databases_password_is_in_no_statement():
    sql = stores.database_sql("a-word")
    assert "a-word" not in sql
    assert f"password '{stores.scram_verifier('a-word')}'" in sql
    assert stores.scram_verifier("a-word") == stores.scram_verifier("a-word") != stores.scram_verifier("another")


def test_behind_one_address_each_api_server_is_asked():
    assert desired("celery", ha=True).api_servers == {
        "api-server": "http://192.168.56.10:8081", "api-server-2": "http://192.168.56.11:8081",
    }  # fmt: skip
    assert desired("celery").api_servers == {}


def test_two_api_servers_stand_behind_the_one_address():
    state = desired(ha=True)
    conf = state.nodes["control"].files["/etc/airflow-labs/haproxy.cfg"].text
    assert "bind 192.168.56.10:8080" in conf
    assert "server api-server 192.168.56.10:8081 check" in conf
    assert "server api-server-2 192.168.56.11:8081 check" in conf
    assert state.placement.api_url == "http://192.168.56.10:8080"


def test_a_distribution_that_nobody_tried_is_named():
    with pytest.raises(ProvisionError, match="not known here \\(99\\)"):
        desired_state(wanted("postgres"), CLUSTER, Layout(), replace(ABOUT, distribution="99"), SECRETS)

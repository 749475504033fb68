"""What the nodes should look like, and what they are told: text and tables, no node."""

from __future__ import annotations

import json

import pytest
from cluster_samples import SECRETS
from nodes_samples import desired, services

from provision.home import lab_home
from provision.nodes.document import installation_document
from provision.nodes.layout import Layout
from provision.variants import VARIANTS, wanted, wanted_again
from provision.workers import Worker


@pytest.mark.parametrize(
    ("asked", "on_control", "on_first"),
    [
        ({"variant": "sqlite"}, ["api-server", "scheduler", "dag-processor", "triggerer"], []),
        ({"variant": "postgres"}, ["postgres", "api-server", "scheduler", "dag-processor", "triggerer"], []),
        (
            {"variant": "celery"},
            ["postgres", "redis", "api-server", "scheduler", "dag-processor", "triggerer", "flower"],
            ["log-server-worker-1", "worker-1", "worker-3"],
        ),
        (
            {"variant": "celery", "broker": "rabbitmq", "ha": True},
            ["postgres", "rabbitmq", "haproxy", "api-server", "scheduler", "dag-processor", "triggerer", "flower"],
            ["api-server-2", "scheduler-2", "log-server-worker-1", "worker-1", "worker-3"],
        ),
    ],
)
def test_every_variant_has_its_services_on_their_nodes(asked, on_control, on_first):
    found = services(desired(**asked))
    assert found["control"] == on_control
    assert found["worker-1"] == on_first


def test_airflow_owns_nothing_but_what_it_writes():
    for node in desired("celery", ha=True).nodes.values():
        theirs = {path for path, folder in node.folders.items() if folder.owner == "airflow"}
        assert theirs == {"/var/lib/airflow-labs/logs", "/var/lib/airflow-labs/sqlite", "/var/cache/airflow-labs"}
        assert not [path for path in node.files if path.rpartition("/")[0] in theirs]
        for unit in (unit for unit in node.units if unit.user == "airflow"):
            (line,) = [line for line in unit.text.splitlines() if line.startswith("ReadWritePaths=")]
            own = {"/etc/airflow-labs/api"} if unit.service.startswith("api-server") else set()
            assert set(line.partition("=")[2].split()) == theirs | own, unit.service


@pytest.mark.parametrize("asked", [{"variant": name} for name in VARIANTS] + [{"broker": "rabbitmq", "ha": True}], ids=str)
def test_secrets_are_in_no_unit_and_in_no_file_that_others_can_read(asked):
    state = desired(**{"variant": "celery", **asked})
    for node in state.nodes.values():
        for path, file in node.files.items():
            if any(secret in file.text for secret in SECRETS.values()):
                assert not path.startswith("/etc/systemd")
                assert file.mode in ("0640", "0600", "0400"), path
                assert file.mode != "0640" or (file.owner, file.group) == ("root", "airflow")
    document = json.dumps(installation_document(state, lab_home(), []))
    assert not [name for name, secret in SECRETS.items() if secret in document]


@pytest.mark.parametrize(
    "asked",
    [
        {"variant": "sqlite"},
        {"variant": "postgres", "changes": {"core.parallelism": "4"}},
        {"variant": "celery"},
        {"variant": "celery", "broker": "rabbitmq", "ha": True},
        {"variant": "celery", "workers": [Worker("a", 4, ("x", "y"), at_least=1)]},
        {"variant": "celery", "workers": []},
    ],
    ids=str,
)
def test_what_an_installation_file_describes_is_wanted_again_as_it_was(asked):
    document = json.loads(json.dumps(installation_document(desired(**asked), lab_home(), [])))
    assert wanted_again(document) == wanted(**asked)


def test_units_are_hardened_and_run_as_users_without_a_login():
    for node in desired("celery", ha=True).nodes.values():
        for unit in node.units:
            lines = unit.text.splitlines()
            assert {"NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes"} <= set(lines)
            (user,) = [line.partition("=")[2] for line in lines if line.startswith("User=")]
            assert user in ("airflow", "postgres", "redis", "rabbitmq", "haproxy")
            assert "Restart=on-failure" in lines


def test_a_unit_says_with_which_configuration_it_was_started():
    (unit,) = [u for u in desired().nodes["control"].units if u.service == "redis"]
    (other,) = [u for u in desired(secrets={**SECRETS, "broker_password": "x"}).nodes["control"].units if u.service == "redis"]
    assert f"echo {unit.digest} > /run/airflow-labs/airflow-redis.service" in unit.text
    assert unit.digest != other.digest


def test_what_listens_on_an_address_waits_for_it_and_never_gives_up():
    for node in desired("celery", ha=True).nodes.values():
        for unit in node.units:
            lines = unit.text.splitlines()
            assert "Wants=network-online.target" in lines
            assert any(line.startswith("After=network-online.target") for line in lines)
            # Five starts in ten seconds, the limit otherwise, take the services of Airflow longer.
            assert "StartLimitIntervalSec=0" in lines or "RestartSec=5" in lines


def test_a_second_installation_shares_no_file_port_or_unit_with_the_first():
    first, second = desired("sqlite"), desired("sqlite", Layout("experiment"))
    assert not set(first.nodes["control"].files) & set(second.nodes["control"].files)
    assert not {u.name for u in first.nodes["control"].units} & {u.name for u in second.nodes["control"].units}
    assert first.placement.api_port != second.placement.api_port
    assert not any(u.name.startswith(Layout().unit_prefix) for u in second.nodes["control"].units)

"""What the nodes should look like, what separates them from it, and what they are told: text and tables, no node."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from provision.errors import ProvisionError, UsageError
from provision.home import lab_home
from provision.nodes import stores
from provision.nodes.celery import check_names, placed, worker_text
from provision.nodes.desired import desired_state
from provision.nodes.document import installation_document
from provision.nodes.layout import USER_NUMBER, Layout
from provision.nodes.plan import SERVICES, STORES, WORKERS, asked_of, kind_of, plan
from provision.nodes.state import About, Desired
from provision.secret_store import NAMES
from provision.topology import Cluster, Node
from provision.variants import VARIANTS, wanted, wanted_again
from provision.workers import Worker

CLUSTER = Cluster(
    "192.168.56.0/24",
    (
        Node("control", "192.168.56.10", ("control",), 2, 3072),
        Node("worker-1", "192.168.56.11", ("worker",), 1, 2048),
        Node("worker-2", "192.168.56.12", ("worker",), 1, 2048),
    ),
)
ABOUT = About("3.11", "x86_64", "12")
SECRETS = {name: f"word-of-{name}" for name in NAMES}


def desired(variant: str = "celery", layout: Layout | None = None, secrets: dict[str, str] | None = None, **asked) -> Desired:
    """Return the desired state of a variant on three nodes."""
    return desired_state(wanted(variant, **asked), CLUSTER, layout or Layout(), ABOUT, secrets or SECRETS)


def fulfilled(state: Desired) -> dict[str, dict]:
    """Return the facts of nodes on which everything is as it should be."""
    return {
        name: {
            "packages": [], "user": [USER_NUMBER, USER_NUMBER], "folders": [], "files": [], "unwanted": [], "distribution": [],
            "clock": True, "trusted": True, "others": [], "environment": True, "accounts": [],
            "units": {u.name: {"active": "active", "sub": "running", "digest": u.digest, "pid": 7} for u in node.units},
        }
        for name, node in state.nodes.items()
    }  # fmt: skip


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


def steps(state: Desired, facts: dict[str, dict], mark: str | None = None) -> set[tuple[str, str, str]]:
    """Return the steps of a plan: node, action, name."""
    planned = plan(state, facts, state.database_mark if mark is None else mark)
    return {(step.node, step.action, step.name) for step in planned}


def services(state: Desired) -> dict[str, list[str]]:
    return {name: [unit.service for unit in node.units] for name, node in state.nodes.items()}


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


def test_a_worker_lives_on_the_node_of_its_name_and_others_take_the_nodes_in_turn():
    workers = [Worker(name) for name in ("heavy-1", "worker-2", "heavy-2", "heavy-3")]
    assert placed(workers, CLUSTER) == {"worker-2": "worker-2", "heavy-1": "worker-1", "heavy-2": "worker-2", "heavy-3": "worker-1"}


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


def test_logs_can_be_read_from_a_node_that_has_no_worker_any_more():
    state = desired("celery", workers=[Worker("worker-1")])
    assert services(state)["worker-2"] == ["log-server-worker-2"]


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


def test_airflow_owns_nothing_but_what_it_writes():
    for node in desired("celery", ha=True).nodes.values():
        theirs = {path for path, folder in node.folders.items() if folder.owner == "airflow"}
        assert theirs == {"/var/lib/airflow-labs/logs", "/var/lib/airflow-labs/sqlite", "/var/cache/airflow-labs"}
        assert not [path for path in node.files if path.rpartition("/")[0] in theirs]
        for unit in (unit for unit in node.units if unit.user == "airflow"):
            (line,) = [line for line in unit.text.splitlines() if line.startswith("ReadWritePaths=")]
            own = {"/etc/airflow-labs/api"} if unit.service.startswith("api-server") else set()
            assert set(line.partition("=")[2].split()) == theirs | own, unit.service


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


def test_nodes_are_asked_with_digests_and_never_with_what_is_in_the_files():
    state = desired()
    asked = json.dumps([asked_of(state, node) for node in state.nodes.values()])
    assert not [name for name, secret in SECRETS.items() if secret in asked]


def test_units_are_hardened_and_run_as_users_without_a_login():
    for node in desired("celery", ha=True).nodes.values():
        for unit in node.units:
            lines = unit.text.splitlines()
            assert {"NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes"} <= set(lines)
            (user,) = [line.partition("=")[2] for line in lines if line.startswith("User=")]
            assert user in ("airflow", "postgres", "redis", "rabbitmq", "haproxy")
            assert "Restart=on-failure" in lines


def test_a_worker_gets_the_time_to_finish_its_tasks():
    (unit,) = [u for u in desired().nodes["worker-2"].units if u.service == "worker-2"]
    assert "KillMode=mixed" in unit.text
    assert "TimeoutStopSec=900" in unit.text
    # systemd would put its own variables in place of the shell's.
    assert '--celery-hostname "$$LAB_WORKER"' in unit.text
    assert "EnvironmentFile=/etc/airflow-labs/workers/worker-2.env" in unit.text


def test_a_unit_says_with_which_configuration_it_was_started():
    (unit,) = [u for u in desired().nodes["control"].units if u.service == "redis"]
    (other,) = [u for u in desired(secrets={**SECRETS, "broker_password": "x"}).nodes["control"].units if u.service == "redis"]
    assert f"echo {unit.digest} > /run/airflow-labs/airflow-redis.service" in unit.text
    assert unit.digest != other.digest


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


@pytest.mark.parametrize("name", ["localhost", "ip6-localhost", "control"])
def test_a_worker_cannot_take_the_name_of_another_machine(name):
    with pytest.raises(UsageError, match=f"A worker cannot be called {name}"):
        desired("celery", workers=[Worker(name)])


def test_a_worker_may_be_called_like_the_node_that_it_lives_on():
    one = Cluster(CLUSTER.network, (replace(CLUSTER.nodes[0], roles=("control", "worker")),))
    check_names([Worker("control"), Worker("worker-1")], one)
    assert placed([Worker("control")], one) == {"control": "control"}


def test_clocks_are_served_on_the_private_address_alone():
    text = desired().nodes["control"].files["/etc/chrony/conf.d/airflow-labs.conf"].text
    assert {"allow 192.168.56.0/24", "bindaddress 192.168.56.10"} <= set(text.splitlines())
    assert "allow" not in desired().nodes["worker-1"].files["/etc/chrony/conf.d/airflow-labs.conf"].text


def test_the_databases_password_is_in_no_statement():
    sql = stores.database_sql("a-word")
    assert "a-word" not in sql
    assert f"password '{stores.scram_verifier('a-word')}'" in sql
    assert stores.scram_verifier("a-word") == stores.scram_verifier("a-word") != stores.scram_verifier("another")


def test_certificates_that_a_node_does_not_trust_are_a_step():
    state = replace(desired("postgres"), certificates="-----BEGIN CERTIFICATE-----\n")
    facts = fulfilled(state)
    facts["worker-2"]["trusted"] = False
    assert steps(state, facts) == {("worker-2", "trust", "certificates")}
    assert len(asked_of(state, state.nodes["worker-2"])["certificates"]) == 64
    assert asked_of(desired("postgres"), state.nodes["worker-2"])["certificates"] == ""


def test_what_listens_on_an_address_waits_for_it_and_never_gives_up():
    for node in desired("celery", ha=True).nodes.values():
        for unit in node.units:
            lines = unit.text.splitlines()
            assert "Wants=network-online.target" in lines
            assert any(line.startswith("After=network-online.target") for line in lines)
            # Five starts in ten seconds, the limit otherwise, take the services of Airflow longer.
            assert "StartLimitIntervalSec=0" in lines or "RestartSec=5" in lines


def test_behind_one_address_each_api_server_is_asked():
    assert desired("celery", ha=True).api_servers == {
        "api-server": "http://192.168.56.10:8081", "api-server-2": "http://192.168.56.11:8081",
    }  # fmt: skip
    assert desired("celery").api_servers == {}


def test_a_second_installation_shares_no_file_port_or_unit_with_the_first():
    first, second = desired("sqlite"), desired("sqlite", Layout("experiment"))
    assert not set(first.nodes["control"].files) & set(second.nodes["control"].files)
    assert not {u.name for u in first.nodes["control"].units} & {u.name for u in second.nodes["control"].units}
    assert first.placement.api_port != second.placement.api_port
    assert not any(u.name.startswith(Layout().unit_prefix) for u in second.nodes["control"].units)


def test_workers_are_told_apart_by_their_own_files():
    text = worker_text(Worker("heavy-1", 3, ("heavy",))).text
    assert "LAB_WORKER='heavy-1'" in text
    assert "AIRFLOW__CORE__HOSTNAME_CALLABLE='lab_worker_name.worker_name'" in text


def test_two_api_servers_stand_behind_the_one_address():
    state = desired(ha=True)
    conf = state.nodes["control"].files["/etc/airflow-labs/haproxy.cfg"].text
    assert "bind 192.168.56.10:8080" in conf
    assert "server api-server 192.168.56.10:8081 check" in conf
    assert "server api-server-2 192.168.56.11:8081 check" in conf
    assert state.placement.api_url == "http://192.168.56.10:8080"


@pytest.mark.parametrize("name", ["scheduler-2", "haproxy", "log-server-worker-1", "redis"])
def test_a_worker_cannot_be_called_like_a_service_of_the_nodes(name):
    with pytest.raises(UsageError, match="that is the name of a service"):
        wanted("celery", workers=[Worker(name)])


@pytest.mark.parametrize("variant", ["sqlite", "postgres", "standalone"])
def test_a_second_scheduler_needs_celery(variant):
    with pytest.raises(UsageError, match="a second one needs Celery"):
        wanted(variant, ha=True)


def test_a_second_scheduler_needs_a_second_node():
    one = Cluster(CLUSTER.network, (replace(CLUSTER.nodes[0], roles=("control", "worker")),))
    with pytest.raises(UsageError, match="wants a node of its own"):
        desired_state(wanted("celery", ha=True), one, Layout(), ABOUT, SECRETS)


def test_a_distribution_that_nobody_tried_is_named():
    with pytest.raises(ProvisionError, match="not known here \\(99\\)"):
        desired_state(wanted("postgres"), CLUSTER, Layout(), replace(ABOUT, distribution="99"), SECRETS)

"""Installing, switching, stopping and destroying real installations on the local target."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests

from labs.installation import read_installation
from provision.errors import ProvisionError, UsageError
from provision.home import MARKER, LabHome
from provision.local.ports import free_port
from provision.local.supervisor import owned_processes
from provision.target import open_target
from provision.variants import wanted


def pids(target):
    return {row.name: row.pid for row in target.status()}


def listeners(home):
    """Return the addresses on which any process of the installation listens."""
    return {
        connection.laddr.ip
        for process in owned_processes(home)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.parametrize("variant", ["sqlite", "postgres"])
def test_a_second_install_changes_nothing(target, variant):
    target.install(wanted(variant))
    before = pids(target)
    assert target.plan(wanted(variant)) == []
    assert target.install(wanted(variant)) == []
    assert pids(target) == before


@pytest.mark.parametrize("variant", ["sqlite", "postgres"])
def test_nothing_listens_beyond_loopback(target, variant):
    target.install(wanted(variant))
    assert listeners(target.home) == {"127.0.0.1"}


def test_a_changed_setting_restarts_only_the_service_that_it_concerns(target):
    target.install(wanted("postgres"))
    before = pids(target)
    target.install(wanted("postgres", {"core.parallelism": "3"}))
    after = pids(target)
    assert {name for name in after if after[name] != before[name]} == {"scheduler"}
    assert read_installation().settings["core.parallelism"] == "3"
    target.install(wanted("postgres"))
    assert read_installation().settings["core.parallelism"] == "8"


def test_switching_leaves_nothing_of_the_old_variant_running(target):
    target.install(wanted("postgres"))
    old = {process.pid for process in owned_processes(target.home) if "supervisord" not in " ".join(process.cmdline())}
    target.install(wanted("sqlite"))
    assert not old & {process.pid for process in owned_processes(target.home)}
    assert "postgres" not in {row.name for row in target.status() if row.running}


def test_files_with_secrets_can_be_read_by_their_owner_only(target):
    target.install(wanted("postgres"))
    home = target.home
    assert home.root.stat().st_mode & 0o777 == 0o700
    secret = json.loads(home.secrets.read_text())
    holders = [path for path in home.root.rglob("*") if path.is_file() and not path.is_symlink() and "environments" not in path.parts]
    holding = [p for p in holders if any(value.encode() in p.read_bytes() for value in secret.values())]
    assert home.environment_file in holding
    assert {path for path in holding if path.stat().st_mode & 0o077} == set()


def test_no_secret_is_in_a_command_line(target):
    target.install(wanted("postgres"))
    secret = json.loads(target.home.secrets.read_text()).values()
    lines = [" ".join(process.cmdline()) for process in owned_processes(target.home)]
    assert not [line for line in lines for value in secret if value in line]


def test_airflow_asks_for_user_and_password(target):
    target.install(wanted("sqlite"))
    url = read_installation().api_url
    assert requests.get(f"{url}/api/v2/dags", timeout=30).status_code == 401
    assert requests.post(f"{url}/auth/token", json={"username": "lab", "password": "wrong"}, timeout=30).status_code == 401


def test_unknown_names_are_refused_before_anything_happens(target):
    with pytest.raises(UsageError, match="sqlite, postgres"):
        target.install(wanted("mysql"))
    with pytest.raises(UsageError, match=r"did you mean: core\.parallelism"):
        target.install(wanted("sqlite", {"core.paralelism": "2"}))
    with pytest.raises(UsageError, match="set by the installation itself"):
        target.install(wanted("sqlite", {"core.executor": "SequentialExecutor"}))
    with pytest.raises(UsageError, match="SQLite cannot be used with the CeleryExecutor"):
        target.install(wanted("sqlite", {"core.executor": "CeleryExecutor"}))


def test_a_port_that_is_taken_is_named_with_its_owner(target, monkeypatch):
    target.stop()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("LAB_API_PORT", str(port))
        with pytest.raises(ProvisionError, match=f"Port {port} for api-server is taken by process"):
            target.install(wanted("sqlite"))


def test_a_chosen_port_is_used(target, monkeypatch):
    port = free_port()
    monkeypatch.setenv("LAB_API_PORT", str(port))
    target.install(wanted("sqlite"))
    assert read_installation().api_url.endswith(f":{port}")


def test_a_port_taken_by_a_stranger_while_stopped_is_replaced(target):
    target.install(wanted("sqlite"))
    port = int(read_installation().api_url.rsplit(":", 1)[1])
    target.stop()
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        target.install(wanted("sqlite"))
        assert not read_installation().api_url.endswith(f":{port}")


def test_an_install_that_was_killed_is_finished_by_the_next_one(target, fab, environments):
    target.destroy()
    (target.home.root / "environments").symlink_to(environments)
    process = subprocess.Popen([str(Path(sys.prefix) / "bin" / "fab"), "install", "postgres"], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "creating Airflow's tables" in line:
            break
    process.kill()
    process.wait()
    process.stderr.close()
    assert target.installed() is None
    done = fab("install", "postgres")
    assert done.returncode == 0, done.stderr
    assert target.plan(wanted("postgres")) == []


def test_a_dead_service_is_started_again_by_install(target):
    target.install(wanted("sqlite"))
    psutil.Process(pids(target)["triggerer"]).kill()
    psutil.wait_procs([p for p in owned_processes(target.home) if p.pid == pids(target)["triggerer"]], timeout=5)
    changes = target.install(wanted("sqlite"))
    assert [(change.action, change.name) for change in changes] == [("start", "triggerer")]


def test_status_and_logs_tell_what_runs(target, fab):
    target.install(wanted("sqlite"))
    status = fab("status")
    assert status.returncode == 0
    for name in ("api-server", "scheduler", "dag-processor", "triggerer"):
        assert name in status.stdout
    assert "would make 0 changes" in status.stdout
    assert "Scheduler" in fab("logs", "scheduler", "--lines", "200").stdout
    wrong = fab("logs", "nosuch")
    assert wrong.returncode == 2
    assert "choose one of" in wrong.stderr


def test_stop_ends_every_process_and_install_brings_them_back(target):
    target.install(wanted("sqlite"))
    assert target.stop() > 0
    assert owned_processes(target.home) == []
    target.install(wanted("sqlite"))
    assert all(row.running for row in target.status())


@pytest.mark.parametrize("damage", ["secrets.json", "installation.json", "state/ports.json", "state/supervisord.conf", "airflow.env"])
def test_destroy_works_on_a_damaged_installation(target, fab, damage, environments):
    target.install(wanted("sqlite"))
    (target.home.root / damage).write_bytes(b"\xff{half")
    done = fab("destroy")
    assert done.returncode == 0, done.stderr
    assert owned_processes(target.home) == []
    assert {path.name for path in target.home.root.iterdir()} <= {"lock", "runs", MARKER}
    (target.home.root / "environments").symlink_to(environments)


def test_processes_that_lost_their_parent_are_still_found_and_ended(target):
    target.install(wanted("sqlite", {"core.parallelism": "2"}))
    scheduler = psutil.Process(pids(target)["scheduler"])
    workers = scheduler.children()
    scheduler.kill()
    scheduler.wait(timeout=10) if scheduler.is_running() else None
    assert workers
    target.stop()
    assert [w for w in workers if w.is_running() and w.status() != psutil.STATUS_ZOMBIE] == []


def test_two_commands_at_once_are_refused_by_name(target, fab):
    from provision.lock import exclusive

    with exclusive(target.home, "a long command"):
        done = fab("install", "sqlite", AIRFLOW_LABS_LOCK="")
    assert done.returncode == 1
    assert "a long command" in done.stderr


def test_every_process_under_supervisor_is_found_as_owned(target):
    target.install(wanted("postgres"))
    supervisord = psutil.Process(int((target.home.state / "supervisord.pid").read_text()))
    tree = {supervisord.pid, *(child.pid for child in supervisord.children(recursive=True))}
    assert len(tree) > 10
    assert tree <= {process.pid for process in owned_processes(target.home)}


def test_workers_of_a_killed_scheduler_are_ended_before_the_next_one_starts(target):
    target.install(wanted("postgres"))
    scheduler = psutil.Process(pids(target)["scheduler"])
    workers = scheduler.children()
    scheduler.kill()
    psutil.wait_procs([scheduler], timeout=5)
    target.install(wanted("postgres"))
    assert len(workers) == 8
    assert [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE] == []


def test_a_lost_supervisor_leaves_no_second_scheduler(target):
    target.install(wanted("sqlite"))
    old = {process.pid for process in owned_processes(target.home)}
    psutil.Process(int((target.home.state / "supervisord.pid").read_text())).kill()
    target.install(wanted("sqlite"))
    assert not old & {process.pid for process in owned_processes(target.home)}
    assert all(row.running for row in target.status())


def test_a_folder_that_others_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.txt").write_text("keep")
    stranger = open_target("local", LabHome(tmp_path, tmp_path))
    with pytest.raises(ProvisionError, match="was not made for a lab"):
        stranger.install(wanted("sqlite"))
    with pytest.raises(ProvisionError, match="was not made for a lab"):
        stranger.destroy()
    assert (tmp_path / "logs" / "mine.txt").read_text() == "keep"


def test_a_secret_is_refused_as_a_setting(target):
    with pytest.raises(UsageError, match="holds a secret"):
        target.install(wanted("sqlite", {"smtp.smtp_password": "hunter2"}))

"""Airflow as it is shipped, for comparison: `airflow standalone` with its default settings, on a PostgreSQL of its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from labs.airflow_api import AirflowApi, ApiError
from labs.installation import Installation
from labs.probe import SMOKE_DAG
from labs.services import Report
from labs.waiting import wait_for
from provision import airflow, environments, secret_store
from provision.home import REPOSITORY, LabHome, write_private
from provision.local import postgres
from provision.local.ports import free_port
from provision.local.supervisor import Program, Supervisor, log_path
from provision.pins import airflow_version
from provision.target import open_target

PROGRAM = "standalone"
USER = "admin"
PARTS = ("scheduler", "dag_processor", "triggerer")


def stock_environment(airflow_home: Path, binaries: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of `airflow standalone`: nothing but what keeps it on loopback, on free ports and without examples."""
    port = free_port()
    chosen = {
        "core.load_examples": "False",
        "core.execution_api_server_url": f"http://127.0.0.1:{port}/execution/",
        "api.host": "127.0.0.1",
        "api.port": str(port),
        "api.base_url": f"http://127.0.0.1:{port}",
        "logging.worker_log_server_port": str(free_port()),
        "logging.trigger_log_server_port": str(free_port()),
        **settings,
    }
    # standalone starts its parts by the name `airflow`.
    path = f"{binaries}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    return {"AIRFLOW_HOME": str(airflow_home), "PATH": path, **{airflow.variable_name(k): v for k, v in chosen.items()}}


def prepare_files(airflow_home: Path, password: str) -> None:
    """Put the labs' DAG file, the modules that it needs and the generated password where standalone looks for them."""
    (airflow_home / "dags" / "specs").mkdir(parents=True, exist_ok=True)
    (airflow_home / "config").mkdir(exist_ok=True)
    for file in ("config/dag_spec.py", "config/dag_builder.py", "dags/probes.py"):
        shutil.copy(REPOSITORY / "labs" / "dags" / Path(file).name, airflow_home / file)
    write_private(airflow_home / "simple_auth_manager_passwords.json.generated", json.dumps({USER: password}) + "\n")


def describe_stock(home: LabHome, environment: Mapping[str, str]) -> Installation:
    """Return the installation as labs see it; its password is in the secrets file of `home`."""
    return Installation(
        {
            "schema": 1,
            "variant": "stock",
            "target": "local",
            "versions": {"airflow": airflow_version()},
            "api": {"url": environment["AIRFLOW__API__BASE_URL"], "user": USER, "credentials": str(home.secrets)},
            "spec_folder": str(home.specs),
            "home": str(home.root),
            "settings": {},
            "changes": {},
            "services": [],
            "nodes": [],
        }
    )


def wait_until_ready(api: AirflowApi, timeout_s: float = 240) -> None:
    """Return once the API answers, every part is healthy and the labs' DAG file is known."""

    def ready() -> bool:
        try:
            health = api.health()
            return all(health[part]["status"] == "healthy" for part in PARTS) and api.dag(SMOKE_DAG) is not None
        except ApiError:
            return False

    wait_for(ready, timeout_s, "The start of airflow standalone", every_s=0.2, hint="read its log, named above")


def run_smoke(api: AirflowApi) -> None:
    """Return once one run of the labs' smallest DAG has ended well."""
    run_id = api.trigger(SMOKE_DAG)
    wait_for(lambda: api.dag_run_state(SMOKE_DAG, run_id) == "success", 120, f"The success of {SMOKE_DAG}", every_s=0.1)


class StockAirflow:
    """A throw-away installation of Airflow as shipped; it shares the Airflow environment with the labs' own."""

    def __init__(self, home: LabHome) -> None:
        self.home = home
        self.installation: Installation | None = None

    def start(self, settings: Mapping[str, str], report: Report) -> Installation:
        """Start it, or start it again with other settings on top of Airflow's defaults; return it when it is healthy."""
        self.home.prepare()
        secrets = secret_store.load_or_create(self.home)
        supervisor = Supervisor(self.home, secrets["supervisor_password"])
        port = self._database_port()
        self._configure(supervisor, port)
        supervisor.stop([PROGRAM])
        self._start_database(supervisor, port, secrets["database_password"])
        database = {"database.sql_alchemy_conn": postgres.url(port, secrets["database_password"])}
        binaries = environments.environment_path(self.home) / "bin"
        environment = stock_environment(self.home.airflow_home, binaries, {**database, **settings})
        prepare_files(self.home.airflow_home, secrets["api_password"])
        write_private(self.home.environment_file, airflow.render_environment_file(environment))
        report(f"starting airflow standalone (its log: {log_path(self.home, PROGRAM)})")
        supervisor.start([PROGRAM])
        self._remember(supervisor)
        self.installation = describe_stock(self.home, environment)
        wait_until_ready(AirflowApi(self.installation))
        return self.installation

    def destroy(self) -> None:
        """Stop it and remove everything it made."""
        open_target("local", self.home).destroy()

    def _database_port(self) -> int:
        file = self.home.state / "stock-postgres-port"
        if not file.exists():
            write_private(file, str(free_port()))
        return int(file.read_text())

    def _configure(self, supervisor: Supervisor, port: int) -> None:
        binary = str(environments.environment_path(self.home) / "bin" / "airflow")
        supervisor.configure(
            [
                # It ends its parts on Ctrl-C only.
                Program(PROGRAM, (binary, PROGRAM), self.home.environment_file, stop_signal="INT"),
                Program("postgres", tuple(postgres.server_command(self.home, port)), stop_signal="INT"),
            ]
        )
        supervisor.ensure_up()
        supervisor.reload()

    def _start_database(self, supervisor: Supervisor, port: int, password: str) -> None:
        if not postgres.is_initialised(self.home):
            postgres.initialise(self.home, password)
        supervisor.start(["postgres"])
        postgres.wait_until_ready(port, log_path(self.home, "postgres"))
        postgres.ensure_database(port, password)

    def _remember(self, supervisor: Supervisor) -> None:
        # Watchers name a service that died by this file.
        pids = {name: [state.pid, ""] for name, state in supervisor.states().items()}
        write_private(self.home.state / "services.json", json.dumps(pids) + "\n")

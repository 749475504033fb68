"""Airflow as it is shipped, for comparison: its default settings, on a PostgreSQL and a Valkey of its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labs.airflow_api import AirflowApi, ApiError
from labs.installation import Installation
from labs.probe import SMOKE_DAG
from labs.services import Report
from labs.waiting import wait_for
from provision import airflow, environments, secret_store
from provision.home import REPOSITORY, LabHome, write_private
from provision.local import postgres, valkey
from provision.local.converge import migrate_database
from provision.local.ports import free_port
from provision.local.supervisor import Program, Supervisor, log_path
from provision.pins import airflow_version
from provision.target import open_target

USER = "admin"
PARTS = ("scheduler", "dag_processor", "triggerer")


@dataclass(frozen=True)
class Shipped:
    """One way in which Airflow is shipped: the `airflow` commands that run, by program name, and the settings it comes with."""

    name: str
    commands: Mapping[str, tuple[str, ...]]
    settings: Mapping[str, str] = field(default_factory=dict)
    broker: bool = False


# It migrates the database by itself, and ends its parts on Ctrl-C only.
STANDALONE = Shipped("airflow standalone", {"standalone": ("standalone",)})
# The services and settings of the docker-compose.yaml in Airflow's documentation ("Running Airflow in Docker"): one
# worker with the default worker_concurrency of 16, where the variant celery has three workers of two. It differs from
# that file in this: no containers; Airflow's default SimpleAuthManager instead of FAB's, so that the same client can log
# in; no health check server of the scheduler and no log servers, which listen on every interface; no examples; Valkey
# and PostgreSQL are the labs' own. None of these is on a task's way.
COMPOSE = Shipped(
    "the official Celery deployment",
    {
        "api-server": ("api-server",),
        "scheduler": ("scheduler",),
        "dag-processor": ("dag-processor",),
        "triggerer": ("triggerer", "--skip-serve-logs"),
        "worker": ("celery", "worker", "--skip-serve-logs"),
    },
    {"core.executor": "CeleryExecutor"},
    broker=True,
)


def stock_environment(airflow_home: Path, binaries: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a stock Airflow: nothing but what keeps it on loopback, on free ports and without examples."""
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
    """Put the labs' DAG file, the modules that it needs and the generated password where Airflow looks for them."""
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

    wait_for(ready, timeout_s, "The start of the stock Airflow", every_s=0.2, hint="read its logs, named above")


def run_smoke(api: AirflowApi) -> None:
    """Return once one run of the labs' smallest DAG has ended well."""
    run_id = api.trigger(SMOKE_DAG)
    wait_for(lambda: api.dag_run_state(SMOKE_DAG, run_id) == "success", 120, f"The success of {SMOKE_DAG}", every_s=0.1)


class StockAirflow:
    """A throw-away installation of Airflow as shipped; it shares the Airflow environment with the labs' own."""

    def __init__(self, home: LabHome, shipped: Shipped = STANDALONE) -> None:
        self.home = home
        self.shipped = shipped

    def start(self, settings: Mapping[str, str], report: Report) -> Installation:
        """Start it, or start it again with other settings on top of Airflow's defaults; return it when it is healthy."""
        self.home.prepare()
        secrets = secret_store.load_or_create(self.home)
        supervisor = Supervisor(self.home, secrets["supervisor_password"])
        self._configure(supervisor, secrets)
        supervisor.stop([*self.shipped.commands])
        self._start_stores(supervisor, secrets["database_password"])
        environment = stock_environment(self.home.airflow_home, self._binaries, {**self.addresses(secrets), **settings})
        prepare_files(self.home.airflow_home, secrets["api_password"])
        write_private(self.home.environment_file, airflow.render_environment_file(environment))
        if self.shipped is not STANDALONE:
            report("migrating the database")
            migrate_database(self._binaries / "airflow", environment, log_path(self.home, "migrate"))
        report(f"starting {self.shipped.name} (its logs: {log_path(self.home, '*')})")
        supervisor.start([*self.shipped.commands])
        self._remember(supervisor)
        installation = describe_stock(self.home, environment)
        wait_until_ready(AirflowApi(installation))
        return installation

    def destroy(self) -> None:
        """Stop it and remove everything it made."""
        open_target("local", self.home).destroy()

    def addresses(self, secrets: Mapping[str, str]) -> dict[str, str]:
        """Return the settings that the deployment is made of: where its database and broker are, and its executor."""
        database = postgres.url(self._port("postgres"), secrets["database_password"])
        addresses = {"database.sql_alchemy_conn": database, **self.shipped.settings}
        if self.shipped.broker:
            addresses["celery.broker_url"] = valkey.url(self._port("redis"), secrets["broker_password"])
            addresses["celery.result_backend"] = f"db+{database}"
        return addresses

    @property
    def _binaries(self) -> Path:
        return environments.environment_path(self.home) / "bin"

    def _port(self, program: str) -> int:
        file = self.home.state / f"stock-{program}-port"
        if not file.exists():
            write_private(file, str(free_port()))
        return int(file.read_text())

    def _configure(self, supervisor: Supervisor, secrets: Mapping[str, str]) -> None:
        stop_signal = "INT" if self.shipped is STANDALONE else "TERM"
        programs = [
            Program(name, (str(self._binaries / "airflow"), *arguments), self.home.environment_file, stop_signal)
            for name, arguments in self.shipped.commands.items()
        ]
        programs.append(Program("postgres", tuple(postgres.server_command(self.home, self._port("postgres"))), stop_signal="INT"))
        if self.shipped.broker:
            valkey.data_folder(self.home).mkdir(parents=True, exist_ok=True)
            configuration = valkey.render_configuration(self.home, self._port("redis"), secrets["broker_password"])
            write_private(valkey.configuration_file(self.home), configuration)
            programs.append(Program("redis", tuple(valkey.server_command(self.home))))
        supervisor.configure(programs)
        supervisor.ensure_up()
        supervisor.reload()

    def _start_stores(self, supervisor: Supervisor, password: str) -> None:
        if not postgres.is_initialised(self.home):
            postgres.initialise(self.home, password)
        supervisor.start(["postgres", "redis"] if self.shipped.broker else ["postgres"])
        postgres.wait_until_ready(self._port("postgres"), log_path(self.home, "postgres"))
        postgres.ensure_database(self._port("postgres"), password)

    def _remember(self, supervisor: Supervisor) -> None:
        # Watchers name a service that died by this file.
        pids = {name: [state.pid, ""] for name, state in supervisor.states().items()}
        write_private(self.home.state / "services.json", json.dumps(pids) + "\n")

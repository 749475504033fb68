"""What separates this machine from the desired state, and the steps that remove it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from provision.airflow import AIRFLOW_SERVICES
from provision.errors import ProvisionError
from provision.fleet import Fleet
from provision.home import LabHome, read_json, write_private
from provision.local import postgres, rabbitmq, valkey
from provision.local.desired import WARM_S, Desired, broker_url, files_of, render_worker_file, sqlite_file, worker_file
from provision.local.health import wait_until, wait_until_healthy
from provision.local.ports import port_is_free, port_owner, program_of
from provision.local.supervisor import ProcessState, Supervisor, log_path, sweep_orphans
from provision.pins import airflow_version
from provision.readiness import Ready, flower_answers
from provision.target import Change, Report
from provision.variants import BROKERS

# Airflow's services write to these while they stop.
STORES = ("postgres", "redis", "rabbitmq")
SETTINGS_CHANGED = "its settings changed"
NO_WORKERS = frozenset({*STORES, *(service.name for service in AIRFLOW_SERVICES)})


class Converge:
    """One desired state, compared with what runs and made real."""

    def __init__(self, home: LabHome, desired: Desired, supervisor: Supervisor) -> None:
        self.home = home
        self.desired = desired
        self.supervisor = supervisor
        self._started: set[str] = set()

    # -- plan -----------------------------------------------------------------------------------

    def plan(self) -> list[Change]:
        """Return what has to be done, changing nothing."""
        desired, states, started = self.desired, self.supervisor.states(), self._recorded()
        running = {name: state.pid for name, state in states.items() if state.running}
        changes = []
        if not self._database_ready():
            changes.append(Change("create", "database", f"no {desired.variant.database} database of Airflow {airflow_version()}"))
        changes += [Change("write", str(path.relative_to(self.home.root)), "missing or different") for path in self._stale_files()]
        changes += [self._farewell(name, running) for name in sorted(self._known_names(states)) if name not in desired.digests]
        for program in desired.programs:
            if program.name not in running:
                changes.append(Change("start", program.name, "not running"))
            elif states[program.name].ending:
                changes.append(Change("restart", program.name, "it was told to end"))
            elif started.get(program.name) != [running[program.name], desired.digests[program.name]]:
                changes.append(Change("restart", program.name, SETTINGS_CHANGED))
            elif program.name in desired.workers and not self.worker_is_current(program.name):
                action = "resize" if self._changes_live(program.name) else "restart"
                changes.append(Change(action, program.name, f"should be {desired.workers[program.name]}"))
        return changes

    def worker_names(self) -> set[str]:
        """Return the names of the workers that there are, that there were and left a trace, or that there should be."""
        return set(self.desired.workers) | (self._known_names(self.supervisor.states()) - NO_WORKERS)

    def _known_names(self, states: Collection[str]) -> set[str]:
        """Return the names of all programs that anything here speaks of, whether they run or not."""
        return {*states, *self._recorded(), *(path.stem for path in (self.home.state / "workers").glob("*.env"))}

    def _farewell(self, name: str, running: Collection[str]) -> Change:
        of_celery = self.desired.variant.uses_celery and name not in NO_WORKERS
        foreign = "not among the workers" if of_celery else f"not part of {self.desired.variant.name}"
        return Change("stop", name, foreign) if name in running else Change("remove", name, f"{foreign}, and has ended")

    def _recorded(self) -> dict[str, list]:
        return read_json(self.home.state / "services.json")

    def _running(self) -> dict[str, int]:
        return {s.name: s.pid for s in self.supervisor.states().values() if s.running}

    def _migration_marker(self) -> Path:
        return self.home.databases / f"{self.desired.variant.database}.migrated"

    def _database_ready(self) -> bool:
        marker = self._migration_marker()
        there = sqlite_file(self.home).exists() if self.desired.variant.database == "sqlite" else postgres.is_initialised(self.home)
        return there and marker.exists() and marker.read_text() == airflow_version()

    def _stale_files(self) -> list[Path]:
        return [path for path, text in files_of(self.home, self.desired).items() if not path.exists() or path.read_text() != text]

    def worker_is_current(self, name: str) -> bool:
        """Return whether the worker called `name` was last given the size that it should have."""
        file = worker_file(self.home, name)
        return file.exists() and file.read_text() == render_worker_file(self.desired.workers[name])

    def _changes_live(self, name: str) -> bool:
        """Return whether the running worker can be given its new size; only a start makes Celery scale by itself, or stop doing so."""
        file = worker_file(self.home, name)
        scales = file.exists() and "LAB_WORKER_AUTOSCALE=''" not in file.read_text()
        return scales == (self.desired.workers[name].at_least is not None)

    # -- apply ----------------------------------------------------------------------------------

    def apply(self, todo: list[Change], report: Report) -> None:
        """Do what `plan` returned; raises ProvisionError for the first step that fails."""
        desired = self.desired
        resized = [change.name for change in todo if change.action == "resize"]
        self.supervisor.configure(desired.programs)
        self.supervisor.ensure_up()
        self._stop([change.name for change in todo if change.action in ("stop", "restart")], report)
        for name in self.worker_names() - set(desired.workers):
            worker_file(self.home, name).unlink(missing_ok=True)
        sweep_orphans(self.home, self.supervisor)
        self.supervisor.reload(report, patience_s=WARM_S)
        for path, text in files_of(self.home, desired).items():
            write_private(path, text)
        for name in desired.workers:
            if name not in resized:
                write_private(worker_file(self.home, name), render_worker_file(desired.workers[name]))
        if desired.variant.database == "postgres":
            self._start_postgres(report)
        if not self._database_ready():
            self._migrate(report)
        if desired.wanted.broker:
            self._start_broker(report)
        self._start(report)
        self._resize(resized, report)

    def _stop(self, affected: list[str], report: Report) -> None:
        if not affected:
            return
        workers = [name for name in affected if name not in NO_WORKERS]
        stores = [name for name in affected if name in STORES]
        others = [name for name in affected if name in NO_WORKERS and name not in stores]
        report(f"stopping {', '.join(affected)}")
        # Whoever watches this installation must not take for a fault what is done on purpose.
        self.remember(but=workers)
        if busy := self._tasks_of(workers):
            words = " and ".join(f"{name} has {count}" for name, count in busy.items())
            report(f"tasks in hand are finished first: {words}; one that holds at a gate ends when the gate opens")
        # A task tells the API server how it ended: what the workers finish first needs all the others.
        self.supervisor.stop(workers, report, patience_s=WARM_S)
        self.supervisor.stop(others, report)
        self.supervisor.stop(stores, report)

    def _tasks_of(self, workers: list[str]) -> dict[str, int]:
        """Return how many tasks each of the workers runs now; none where nobody can be asked."""
        broker = next((name for name in BROKERS if name in self._running()), "")
        if not broker or not workers:
            return {}
        try:
            return self._with_fleet(lambda fleet: {name: count for name in workers if (count := fleet.tasks_of(name))}, broker)
        except ProvisionError:
            return {}

    def _start_postgres(self, report: Report) -> None:
        password, port = self.desired.secrets["database_password"], self.desired.ports["postgres"]
        if not postgres.is_initialised(self.home):
            report("creating a PostgreSQL cluster")
            self._migration_marker().unlink(missing_ok=True)
            postgres.initialise(self.home, password)
        self._start_programs(["postgres"])
        postgres.wait_until_ready(port, log_path(self.home, "postgres"))
        postgres.ensure_database(port, password)

    def _start_broker(self, report: Report) -> None:
        broker = self.desired.wanted.broker
        if broker in self._running():
            return
        report(f"starting {broker}")
        (valkey if broker == "redis" else rabbitmq).data_folder(self.home).mkdir(parents=True, exist_ok=True)
        self._start_programs([broker])
        ready = Ready({broker: lambda: self._with_fleet(lambda fleet: fleet.reachable())})
        wait_until(ready, self.home, self.supervisor, [broker], report)

    def _with_fleet(self, ask, kind: str = ""):
        fleet = Fleet(broker_url(kind or self.desired.wanted.broker, self.desired.ports, self.desired.secrets["broker_password"]))
        try:
            return ask(fleet)
        finally:
            fleet.close()

    def _migrate(self, report: Report) -> None:
        desired = self.desired
        report(f"creating Airflow's tables in {desired.variant.database}")
        if desired.variant.database == "sqlite":
            sqlite_file(self.home).parent.mkdir(parents=True, exist_ok=True)
        migrate_database(desired.placement.airflow_binary, desired.environment, log_path(self.home, "migrate"))
        self._migration_marker().write_text(airflow_version())

    def _start(self, report: Report) -> None:
        desired, running = self.desired, self._running()
        names = [program.name for program in desired.programs if program.name not in running]
        if names:
            report(f"starting {', '.join(names)}")
        started = time.time()
        self._start_programs(names)
        waited_for = {name: (started if name in names else 0.0) for name in desired.digests if name not in STORES}
        checks = {}
        if desired.placement.flower_port and desired.wanted.broker:
            checks["flower"] = lambda: flower_answers(f"http://127.0.0.1:{desired.placement.flower_port}")
        for name in desired.workers:
            checks[name] = lambda name=name: self._with_fleet(lambda fleet: name in fleet.answering([name]))
        wait_until_healthy(
            self.home, self.supervisor, desired.placement.api_url, desired.secrets["api_password"], waited_for, report, Ready(checks)
        )
        self.remember()

    def _start_programs(self, names: list[str]) -> None:
        running = self._running()
        names = [name for name in names if name not in running]
        for name, port in self.desired.ports.items():
            if program_of(name) in names and not port_is_free(port):
                raise ProvisionError(
                    f"Port {port} for {name} was taken meanwhile by {port_owner(port) or 'another program'}.", "run the same command again"
                )
        # Before they are there: what is started in this moment and interrupted was started with these settings too.
        self._started.update(names)
        self.supervisor.start(names)
        self.remember()

    def _resize(self, names: list[str], report: Report) -> None:
        for name in names:
            worker = self.desired.workers[name]
            report(f"changing {name} to {worker}")
            self._with_fleet(lambda fleet, worker=worker: fleet.resize(worker))
            write_private(worker_file(self.home, name), render_worker_file(worker))

    def remember(self, but: Collection[str] = (), lost: Collection[str] = ()) -> None:
        """Write down which programs run and with which settings they were started, all but those called `but`.

        Those that are `lost` should run and do not: whoever watches this installation will name them.
        """
        recorded = self._recorded()
        known = {name: [0, ""] for name in lost}
        for state in self.supervisor.states().values():
            leaving = state.ending and state.name not in self.desired.digests
            if state.pid and state.name not in but and not leaving:
                known[state.name] = [state.pid, self._digest_of(state, recorded)]
        write_private(self.home.state / "services.json", json.dumps(known, sort_keys=True) + "\n")

    def _digest_of(self, state: ProcessState, recorded: Mapping[str, list]) -> str:
        """Return the digest of the settings with which a process was started, empty if nobody wrote it down."""
        if state.name in self._started:
            return self.desired.digests[state.name]
        pid, digest = recorded.get(state.name, (0, ""))
        return digest if pid == state.pid else ""


def migrate_database(airflow_binary: Path, environment: Mapping[str, str], log: Path) -> None:
    """Make Airflow's tables, or bring them to this version; raises ProvisionError with the end of the log if that fails."""
    with log.open("w") as output:
        done = subprocess.run(
            [str(airflow_binary), "db", "migrate"],
            env={**clean_environment(), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    if done.returncode:
        raise ProvisionError(
            f"airflow db migrate failed (exit code {done.returncode}). The end of its log ({log}):\n{postgres.last_lines(log)}",
            "fab destroy, then fab install VARIANT",
        )


def clean_environment() -> dict[str, str]:
    """Return this process's environment without anything that would reach into Airflow's."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW__", "AIRFLOW_HOME", "PYTHON"))}

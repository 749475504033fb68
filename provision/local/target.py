"""The local target: Airflow as processes of this user on this machine."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from provision import airflow, environments
from provision.errors import ProvisionError, UsageError
from provision.home import ROOM_TO_RUN_MIB, LabHome, read_json, require_room, write_private
from provision.in_hand import busy_local_workers, total_in_hand
from provision.installed_fleet import InstalledFleet
from provision.local import postgres
from provision.local.converge import SETTINGS_CHANGED, STORES, Converge, clean_environment
from provision.local.desired import NODE, Desired, broker_url, desired_state, installation_document
from provision.local.health import require_alive
from provision.local.processes import cpu_seconds, process_table, titles_below, tree_memory
from provision.local.supervisor import QUICK_STOP_S, Supervisor, log_path, owned_processes, socket_path, sweep
from provision.lock import exclusive
from provision.pins import airflow_version
from provision.target import Change, ProcessInfo, Report, ServiceStatus
from provision.variants import Wanted, require_target, wanted_again
from provision.workers import Worker

# Where DAG files of the user go when an installation is removed.
KEPT = "kept-dags"


def _unused(path: Path) -> Path:
    """Return the path, or one beside it with a number, so that nothing is overwritten."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return path if not path.exists() else next(other for other in numbered if not other.exists())


def _silent(text: str) -> None:
    """Report nothing."""


class LocalTarget:
    """Airflow as processes of this user on this machine."""

    name = "local"

    def __init__(self, home: LabHome) -> None:
        self.home = home
        self._celery = InstalledFleet(self.installed, self._broker_url, "fab install celery")

    # -- what the interface promises ------------------------------------------------------------

    def plan(self, asked: Wanted) -> list[Change]:
        """Return what `install` would do now, changing nothing but the folders and secrets it needs to know."""
        return self._converge(self._desired(asked)).plan()

    def install(self, asked: Wanted, report: Report = _silent) -> list[Change]:
        """Make what is asked for run; return what had to be done.

        Raises UsageError for an unknown setting and for a second scheduler, ProvisionError when a step fails. Running
        it again finishes an interrupted install.
        """
        require_target(asked.variant, self.name)
        if asked.ha:
            raise UsageError("A second scheduler wants a node of its own.", "fab up, then fab install celery --ha --target vagrant")
        airflow.check_changes(asked.changes, asked.variant)
        with exclusive(self.home, f"fab install {asked.variant.name}"):
            require_room(self.home.root, ROOM_TO_RUN_MIB)
            if not environments.is_complete(environments.environment_path(self.home)):
                report(f"installing Airflow {airflow_version()} from its lock (once)")
                environments.build_environment(self.home)
                built = [Change("build", "environment", f"Airflow {airflow_version()} was not installed")]
            else:
                built = []
            environments.check_settings_exist(environments.environment_path(self.home), asked.changes)
            self._celery.require_nothing_left(asked.broker, "fab stop", report)
            desired = self._desired(asked)
            todo = self._apply(desired, report)
            self._write_installation(desired)
            return built + todo

    def set_workers(self, workers: Iterable[Worker], report: Report = _silent) -> list[Change]:
        """Make exactly these Celery workers run, while tasks run; return what had to be done.

        A worker that leaves finishes its tasks first. Nothing else is restarted: raises ProvisionError if more than
        workers would change, or if a worker does not register; it is stopped again then. Raises UsageError where no
        Celery is installed.
        """
        with exclusive(self.home, "fab workers"):
            installed = self.installed()
            if installed is None:
                raise ProvisionError("No variant is installed here.", "fab install celery")
            before = self._celery.workers()
            if not self._running():
                raise ProvisionError("Airflow is stopped.", wanted_again(installed, before).command())
            desired = self._desired(wanted_again(installed, workers))
            self.require_alive(but=[worker.name for worker in before])
            self._require_only_workers(self._converge(desired), installed)
            todo = self._apply(desired, report)
            self._write_installation(desired)
            return todo

    def database_files(self) -> dict[str, int]:
        """Return the files that an SQLite database consists of now, by name, with their sizes in bytes; empty for another database."""
        file = (self.installed() or {}).get("database", {}).get("file")
        return {path.name: path.stat().st_size for path in sorted(Path(file).parent.iterdir())} if file else {}

    def put_spec(self, name: str, text: str) -> None:
        """Put a probe's document into the DAG folder, in one step."""
        write_private(self.home.specs / f"{name}.json", text)

    def remove_spec(self, name: str) -> None:
        """Take a probe's document out of the DAG folder again; nothing happens if it is not there."""
        (self.home.specs / f"{name}.json").unlink(missing_ok=True)

    def spec_names(self) -> list[str]:
        """Return the names of the probes whose documents are in the DAG folder, sorted."""
        return sorted(file.stem for file in self.home.specs.glob("*.json"))

    def installed(self) -> dict[str, Any] | None:
        """Return the content of the installation file, None unless an install ran to its end."""
        document = read_json(self.home.installation)
        # The same file describes an installation on the nodes, if labs work with that one.
        return document if document.get("target") == self.name else None

    def status(self) -> list[ServiceStatus]:
        """Return every program that supervisor keeps here; empty when nothing is installed."""
        supervisor = self._supervisor()
        rows = []
        for state in (supervisor.states() if supervisor else {}).values():
            detail = "" if state.running else f"exit code {state.exit_status}" if state.state == "EXITED" else ""
            log = str(log_path(self.home, state.name))
            rows.append(ServiceStatus(state.name, NODE, state.state, state.pid, tree_memory(state.pid), log, detail))
        return rows

    def processes(self) -> list[ProcessInfo]:
        """Return every process of the installation, parents before children."""
        return process_table(self.home, {pid: name for name, pid in self._running().items()})

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that all processes of the installation have used so far, ended ones included."""
        return cpu_seconds(self.home)

    def memory(self) -> int:
        """Return the bytes of memory that all processes of the installation use now, shared pages counted once where that is known."""
        return sum(process.shared_memory or process.memory for process in self.processes())

    def tasks_in_hand(self) -> int | None:
        """Return how many tasks the executor's workers have taken, started or not; None if that cannot be told."""
        installed, scheduler = self.installed(), self._running().get("scheduler")
        if installed is None or scheduler is None:
            return None
        ways = {
            "LocalExecutor": lambda: busy_local_workers(titles_below(scheduler)),
            "CeleryExecutor": self._celery.tasks_in_hand,
        }
        return total_in_hand(installed["executor"], ways)

    def messages_waiting(self, also: Iterable[str] = ()) -> dict[str, int]:
        """Return how many task messages wait in the broker, by queue that a worker serves or that `also` names; empty without one."""
        return self._celery.messages_waiting(also)

    def workers_seen(self) -> dict[str, dict[str, Any]]:
        """Return what each worker that answers says of itself: its `concurrency` and its `queues`, by name."""
        return self._celery.workers_seen()

    def query(self, sql: str) -> list[list[str]]:
        """Return the rows of a query on the metadata database, every value as text; only for PostgreSQL."""
        database = (self.installed() or {}).get("database", {})
        if database.get("kind") != "postgres":
            raise ProvisionError("Only a PostgreSQL database can be asked.", "fab install postgres")
        printed = postgres.query(database["port"], self._secrets()["database_password"], database["name"], sql)
        return [line.split("|") for line in printed.splitlines()]

    def live_settings(self, names: Sequence[str]) -> dict[str, str | None]:
        """Return the values of settings ("section.key") with which the running scheduler was started."""
        environment = psutil.Process(self._running()["scheduler"]).environ()
        return {name: environment.get(airflow.variable_name(name)) for name in names}

    def airflow(self, arguments: Sequence[str], changes: Mapping[str, str]) -> tuple[str, str]:
        """Return what Airflow's own command prints, standard output and error, with `changes` on top of the installation's settings."""
        installed = self.installed()
        if installed is None:
            raise ProvisionError("No variant is installed here.", "fab install VARIANT")
        desired = self._desired(wanted_again(installed))
        overlay = {"NO_COLOR": "1", **{airflow.variable_name(name): value for name, value in changes.items()}}
        done = subprocess.run(
            [str(desired.placement.airflow_binary), *arguments],
            env={**clean_environment(), **desired.environment, **overlay},
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.stdout, done.stderr

    def require_alive(self, but: Iterable[str] = ()) -> None:
        """Raise ProvisionError, with the end of its log, if a service of the installation has ended, or its broker is full."""
        supervisor = self._supervisor()
        started = read_json(self.home.state / "services.json")
        if supervisor is None or not started:
            raise ProvisionError("Nothing is installed here.", "fab install VARIANT")
        require_alive(self.home, supervisor, [name for name in started if name not in set(but)])
        self._celery.require_room("fab destroy, then fab install celery, which begins with an empty broker")

    def logs(self, service: str, lines: int = 50) -> str:
        """Return the last lines that a service printed; raises UsageError for one that has no log."""
        path = log_path(self.home, service)
        if not path.exists():
            known = sorted(p.stem for p in self.home.logs.glob("*.log")) if self.home.logs.exists() else []
            raise UsageError(f"No log of a service called {service!r}.", f"choose one of: {', '.join(known) or '(nothing is installed)'}")
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, report: Report = _silent) -> int:
        """Stop every service; return how many processes ended."""
        with exclusive(self.home, "fab stop"):
            return self._stop(report)

    def destroy(self, report: Report = _silent) -> None:
        """Stop everything and remove what was made, but for the control environment this program runs in."""
        if not self.home.root.exists():
            return
        self.home.require_own()
        for throwaway in sorted((self.home.root / "throwaway").glob("*")):
            report(f"removing the throw-away installation {throwaway.name}")
            LocalTarget(self.home.throwaway(throwaway.name)).destroy()
        report("stopping services")
        self._stop(_silent)
        report("removing files")
        if own := self._dags_of_the_user():
            kept = self.home.root / KEPT
            kept.mkdir(exist_ok=True)
            for path in own:
                path.rename(_unused(kept / path.name))
            report(f"your own DAG files ({', '.join(path.name for path in own)}) are kept in {kept}")
        for path in self.home.contents():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        socket_path(self.home).unlink(missing_ok=True)
        if self.home.root != self.home.shared:
            shutil.rmtree(self.home.root, ignore_errors=True)

    def _dags_of_the_user(self) -> list[Path]:
        made = {"probes.py", "specs", "__pycache__"}
        return sorted(path for path in self.home.dags.glob("*") if path.name not in made)

    # -- probe ----------------------------------------------------------------------------------

    def _supervisor(self) -> Supervisor | None:
        password = self._secrets().get("supervisor_password")
        return Supervisor(self.home, password) if password else None

    def _running(self) -> dict[str, int]:
        supervisor = self._supervisor()
        return {s.name: s.pid for s in supervisor.states().values() if s.running} if supervisor else {}

    def _secrets(self) -> dict[str, str]:
        try:
            secrets = json.loads(self.home.secrets.read_text())
            return secrets if isinstance(secrets, dict) else {}
        except (OSError, ValueError):
            return {}

    def _broker_url(self, broker: Mapping[str, Any]) -> str:
        return broker_url(broker["kind"], {broker["kind"]: broker["port"]}, self._secrets()["broker_password"])

    # -- apply ----------------------------------------------------------------------------------

    def _desired(self, asked: Wanted) -> Desired:
        return desired_state(self.home, asked, self._running())

    def _converge(self, desired: Desired) -> Converge:
        return Converge(self.home, desired, Supervisor(self.home, desired.secrets["supervisor_password"]))

    def _apply(self, desired: Desired, report: Report) -> list[Change]:
        converge = self._converge(desired)
        todo = converge.plan()
        if not todo and self.installed() is not None:
            return []
        # While workers come and go, the rest of the installation goes on as it was.
        workers = converge.worker_names()
        scaling = all(change.name in workers for change in todo)
        if not scaling:
            self.home.installation.unlink(missing_ok=True)
        before = self._running()
        try:
            converge.apply(todo, report)
        except (ProvisionError, KeyboardInterrupt):
            # Nothing that this install started is left running; what ran before and was not touched goes on.
            if before and scaling:
                self._write_down_half(converge, before, report)
            elif before:
                converge.supervisor.stop(self._started_since(before), patience_s=QUICK_STOP_S)
                converge.remember()
            else:
                self._stop(report)
            raise
        return todo

    def _started_since(self, before: Mapping[str, int]) -> list[str]:
        return [name for name, pid in self._running().items() if before.get(name) != pid]

    def _write_down_half(self, converge: Converge, before: Mapping[str, int], report: Report) -> None:
        """Write down the workers that there are when a change of workers ended early: some as they were, some as they should become.

        A worker that was restarted and answers goes on. One that was there and should be, but did not come back,
        stays listed, so that whoever uses the installation is told that it has ended.
        """
        desired, listed = converge.desired, {worker.name: worker for worker in self._celery.workers()}
        converge.supervisor.stop([name for name in self._started_since(before) if not self._came_back(name, before)],
                                 patience_s=QUICK_STOP_S)  # fmt: skip
        states = converge.supervisor.states()
        running = {name for name, state in states.items() if state.running and (name in desired.workers or not state.ending)}
        lost = [name for name in desired.workers if name in {*before, *listed} and name not in running]
        changed = {name: worker for name, worker in desired.workers.items() if converge.worker_is_current(name)}
        converge.remember(lost=lost)
        workers = tuple(worker for name, worker in (listed | changed).items() if name in running or name in lost)
        self._write_installation(self._desired(replace(desired.wanted, workers=workers)))
        if lost:
            report(f"{', '.join(lost)} did not come back: fab workers --remove takes one out, {desired.wanted.command()} starts it again")

    def _came_back(self, name: str, before: Collection[str]) -> bool:
        if name not in before:
            return False
        try:
            return name in self._celery.fleet().answering([name])
        except ProvisionError:
            return False

    def _require_only_workers(self, converge: Converge, installed: Mapping[str, Any]) -> None:
        """Raise ProvisionError if an install would do more than `set_workers` is for."""
        names = converge.worker_names()
        others = [change for change in converge.plan() if change.name not in names or change.why == SETTINGS_CHANGED]
        if others:
            raise ProvisionError(
                "More than workers would change, because the labs' code or settings are not those that were installed: "
                f"{'; '.join(str(change) for change in others[:3])}{' …' if len(others) > 3 else ''}.",
                f"{wanted_again(installed).command()} first, while no tasks run",
            )

    def _stop(self, report: Report) -> int:
        count = len(owned_processes(self.home))
        supervisor = self._supervisor()
        if supervisor and supervisor.is_up():
            report("stopping services")
            supervisor.shut_down(STORES)
        sweep(self.home)
        return count

    # -- installation file ----------------------------------------------------------------------

    def _write_installation(self, desired: Desired) -> None:
        write_private(self.home.installation, json.dumps(installation_document(self.home, desired), indent=1, sort_keys=True) + "\n")

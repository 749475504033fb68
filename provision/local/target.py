"""The local target: probe what is there, plan what is missing, apply only that."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from provision import airflow, environments, secret_store
from provision.airflow import AIRFLOW_SERVICES, Placement
from provision.errors import ProvisionError, UsageError
from provision.home import REPOSITORY, ROOM_TO_RUN_MIB, LabHome, require_room, write_private
from provision.local import postgres
from provision.local.health import require_alive, wait_until_healthy
from provision.local.processes import busy_local_workers, process_table
from provision.local.supervisor import (
    Program,
    Supervisor,
    free_port,
    log_path,
    owned_processes,
    port_is_free,
    port_owner,
    socket_path,
    sweep,
)
from provision.lock import exclusive
from provision.pins import airflow_version
from provision.target import Change, ProcessInfo, Report, ServiceStatus
from provision.variants import Variant, variant_named

NODE = "localhost"
PORT_VARIABLES = {"api-server": "LAB_API_PORT", "postgres": "LAB_POSTGRES_PORT"}


def _silent(text: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Desired:
    """Everything that the installed variant should look like on this machine."""

    variant: Variant
    changes: dict[str, str]
    placement: Placement
    secrets: dict[str, str]
    ports: dict[str, int]
    environment: dict[str, str]
    digests: dict[str, str]
    programs: list[Program]


class LocalTarget:
    """Airflow as processes of this user on this machine."""

    name = "local"

    def __init__(self, home: LabHome) -> None:
        self.home = home

    # -- what the interface promises ------------------------------------------------------------

    def plan(self, variant: str, changes: Mapping[str, str] | None = None) -> list[Change]:
        """Return what `install` would do now, changing nothing but the folders and secrets it needs to know."""
        return self._plan(self._desired(variant_named(variant), dict(changes or {})))

    def install(self, variant: str, changes: Mapping[str, str] | None = None, report: Report = _silent) -> list[Change]:
        """Make the variant run with these setting changes; return what had to be done.

        Raises UsageError for an unknown variant or setting, ProvisionError when a step fails. Running it
        again finishes an interrupted install.
        """
        chosen, wanted = variant_named(variant), dict(changes or {})
        airflow.check_changes(wanted)
        with exclusive(self.home, f"fab install {variant}"):
            require_room(self.home.root, ROOM_TO_RUN_MIB)
            if not environments.is_complete(environments.environment_path(self.home)):
                report(f"installing Airflow {airflow_version()} from its lock (once)")
                environments.build_environment(self.home)
                built = [Change("build", "environment", f"Airflow {airflow_version()} was not installed")]
            else:
                built = []
            environments.check_settings_exist(environments.environment_path(self.home), wanted)
            desired = self._desired(chosen, wanted)
            todo = self._plan(desired)
            if todo or self.installed() is None:
                self.home.installation.unlink(missing_ok=True)
                self._apply_or_undo(desired, todo, report)
            self._write_installation(desired)
            return built + todo

    def installed(self) -> dict[str, Any] | None:
        """Return the content of the installation file, None unless an install ran to its end."""
        return _read_json(self.home.installation) or None

    def status(self) -> list[ServiceStatus]:
        """Return every program that supervisor keeps here; empty when nothing is installed."""
        supervisor = self._supervisor()
        rows = []
        for state in (supervisor.states() if supervisor else {}).values():
            detail = "" if state.running else f"exit code {state.exit_status}" if state.state == "EXITED" else ""
            log = str(log_path(self.home, state.name))
            rows.append(ServiceStatus(state.name, NODE, state.state, state.pid, _tree_memory(state.pid), log, detail))
        return rows

    def processes(self) -> list[ProcessInfo]:
        """Return every process of the installation, parents before children."""
        return process_table(self.home, {pid: name for name, pid in self._running().items()})

    def tasks_in_hand(self) -> int | None:
        """Return how many tasks the executor's workers have taken, started or not; None if that cannot be told."""
        scheduler = self._running().get("scheduler")
        return busy_local_workers(scheduler) if scheduler else None

    def live_settings(self, names: Sequence[str]) -> dict[str, str | None]:
        """Return the values of settings ("section.key") with which the running scheduler was started."""
        environment = psutil.Process(self._running()["scheduler"]).environ()
        return {name: environment.get(airflow.variable_name(name)) for name in names}

    def airflow(self, arguments: Sequence[str], changes: Mapping[str, str]) -> tuple[str, str]:
        """Return what Airflow's own command prints, standard output and error, with `changes` on top of the installation's settings."""
        installed = self.installed()
        if installed is None:
            raise ProvisionError("No variant is installed here.", "fab install VARIANT")
        desired = self._desired(variant_named(installed["variant"]), dict(installed["changes"]))
        overlay = {"NO_COLOR": "1", **{airflow.variable_name(name): value for name, value in changes.items()}}
        done = subprocess.run(
            [str(desired.placement.airflow_binary), *arguments],
            env={**_clean_environment(), **desired.environment, **overlay},
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.stdout, done.stderr

    def require_alive(self) -> None:
        """Raise ProvisionError, with the end of its log, if a service of the installation has ended."""
        supervisor = self._supervisor()
        started = _read_json(self.home.state / "services.json")
        if supervisor is None or not started:
            raise ProvisionError("Nothing is installed here.", "fab install VARIANT")
        require_alive(self.home, supervisor, list(started))

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
        for path in self.home.contents():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        socket_path(self.home).unlink(missing_ok=True)
        if self.home.root != self.home.shared:
            shutil.rmtree(self.home.root, ignore_errors=True)

    # -- probe ----------------------------------------------------------------------------------

    def _supervisor(self) -> Supervisor | None:
        try:
            password = json.loads(self.home.secrets.read_text())["supervisor_password"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Supervisor(self.home, password)

    def _desired(self, variant: Variant, changes: dict[str, str]) -> Desired:
        self.home.prepare()
        secrets = secret_store.load_or_create(self.home)
        ports = self._ports(variant)
        placement = Placement(
            airflow_binary=environments.environment_path(self.home) / "bin" / "airflow",
            airflow_home=self.home.airflow_home,
            dags=self.home.dags,
            api_host="127.0.0.1",
            api_port=ports["api-server"],
            database_url=self._database_url(variant, ports, secrets["database_password"]),
        )
        environment = airflow.render_environment(variant, placement, secrets, changes)
        chosen = [service for service in AIRFLOW_SERVICES if service.name in variant.services]
        local_settings = {"airflow_local_settings.py": _local_settings(variant)}
        digests = {service.name: airflow.service_digest(service, environment | local_settings) for service in chosen}
        programs = [
            # The scheduler waits for running tasks; a lab's tasks are released first, so five seconds do.
            Program(s.name, (str(placement.airflow_binary), *s.arguments), self.home.environment_file, stop_seconds=5)
            for s in chosen
        ]
        if "postgres" in variant.services:
            command = postgres.server_command(self.home, ports["postgres"])
            # SIGINT is PostgreSQL's fast shutdown: open connections are closed, nothing is lost.
            programs.append(Program("postgres", tuple(command), stop_signal="INT"))
            digests["postgres"] = str(command)
        return Desired(variant, changes, placement, secrets, ports, environment, digests, programs)

    def _database_url(self, variant: Variant, ports: Mapping[str, int], password: str) -> str:
        if variant.database == "sqlite":
            # A writer waits up to a minute for the one write lock, instead of the driver's five seconds.
            return f"sqlite:///{self._sqlite_file()}" + ("" if variant.as_shipped else "?timeout=60")
        return postgres.url(ports["postgres"], password)

    def _sqlite_file(self) -> Path:
        return self.home.databases / "sqlite" / "airflow.db"

    def _ports(self, variant: Variant) -> dict[str, int]:
        """Return the port of each listening service: the user's choice, else the one chosen before, else a free one."""
        file = self.home.state / "ports.json"
        stored = _read_json(file)
        running = self._running()
        for service, variable in PORT_VARIABLES.items():
            if service not in variant.services:
                continue
            chosen = os.environ.get(variable)
            port = _port_number(variable, chosen) if chosen else int(stored.get(service) or free_port())
            if not port_is_free(port) and not (service in running and stored.get(service) == port):
                if chosen:
                    owner = port_owner(port) or "another program"
                    raise ProvisionError(
                        f"Port {port} for {service} is taken by {owner}.", f"choose another {variable}, or none for a free port"
                    )
                port = free_port()
            stored[service] = port
        write_private(file, json.dumps(stored, sort_keys=True) + "\n")
        return {service: int(port) for service, port in stored.items()}

    def _running(self) -> dict[str, int]:
        supervisor = self._supervisor()
        return {s.name: s.pid for s in supervisor.states().values() if s.running} if supervisor else {}

    # -- plan -----------------------------------------------------------------------------------

    def _plan(self, desired: Desired) -> list[Change]:
        running, started = self._running(), _read_json(self.home.state / "services.json")
        changes = []
        if not self._database_ready(desired):
            changes.append(Change("create", "database", f"no {desired.variant.database} database of Airflow {airflow_version()}"))
        changes += [Change("write", str(path.relative_to(self.home.root)), "missing or different") for path in self._stale_files(desired)]
        changes += [Change("stop", name, f"not part of {desired.variant.name}") for name in sorted(running) if name not in desired.digests]
        for program in desired.programs:
            if program.name not in running:
                changes.append(Change("start", program.name, "not running"))
            elif started.get(program.name) != [running[program.name], desired.digests[program.name]]:
                changes.append(Change("restart", program.name, "its settings changed"))
        return changes

    def _migration_marker(self, variant: Variant) -> Path:
        return self.home.databases / f"{variant.database}.migrated"

    def _database_ready(self, desired: Desired) -> bool:
        marker = self._migration_marker(desired.variant)
        there = self._sqlite_file().exists() if desired.variant.database == "sqlite" else postgres.is_initialised(self.home)
        return there and marker.exists() and marker.read_text() == airflow_version()

    def _files(self, desired: Desired) -> dict[Path, str]:
        return {
            self.home.dags / "probes.py": (REPOSITORY / "labs" / "dags" / "probes.py").read_text(),
            self.home.airflow_home / "config" / "airflow_local_settings.py": _local_settings(desired.variant),
            desired.placement.passwords_file: json.dumps({airflow.API_USER: desired.secrets["api_password"]}) + "\n",
            self.home.environment_file: airflow.render_environment_file(desired.environment),
        }

    def _stale_files(self, desired: Desired) -> list[Path]:
        return [path for path, text in self._files(desired).items() if not path.exists() or path.read_text() != text]

    # -- apply ----------------------------------------------------------------------------------

    def _apply_or_undo(self, desired: Desired, todo: list[Change], report: Report) -> None:
        before = set(self._running())
        try:
            self._apply(desired, todo, report)
        except (ProvisionError, KeyboardInterrupt):
            # Nothing that this install started is left running; what ran before and was not touched goes on.
            started = [name for name in self._running() if name not in before]
            supervisor = self._supervisor()
            if supervisor and before:
                supervisor.stop(started)
            else:
                self._stop(report)
            raise

    def _apply(self, desired: Desired, todo: list[Change], report: Report) -> None:
        supervisor = Supervisor(self.home, desired.secrets["supervisor_password"])
        affected = [c.name for c in todo if c.action in ("stop", "restart")]
        supervisor.configure(desired.programs)
        supervisor.ensure_up()
        if affected:
            report(f"stopping {', '.join(affected)}")
            # PostgreSQL goes last: Airflow's services write to it while they stop.
            supervisor.stop([name for name in affected if name != "postgres"], report)
            supervisor.stop([name for name in affected if name == "postgres"], report)
        supervisor.reload()
        for path, text in self._files(desired).items():
            write_private(path, text)
        if desired.variant.database == "postgres":
            self._start_postgres(desired, supervisor, report)
        if not self._database_ready(desired):
            self._migrate(desired, report)
        self._start(desired, supervisor, report)

    def _start_postgres(self, desired: Desired, supervisor: Supervisor, report: Report) -> None:
        password = desired.secrets["database_password"]
        if not postgres.is_initialised(self.home):
            report("creating a PostgreSQL cluster")
            self._migration_marker(desired.variant).unlink(missing_ok=True)
            postgres.initialise(self.home, password)
        self._start_programs(desired, supervisor, ["postgres"])
        postgres.wait_until_ready(desired.ports["postgres"], log_path(self.home, "postgres"))
        postgres.ensure_database(desired.ports["postgres"], password)

    def _migrate(self, desired: Desired, report: Report) -> None:
        report(f"creating Airflow's tables in {desired.variant.database}")
        if desired.variant.database == "sqlite":
            self._sqlite_file().parent.mkdir(parents=True, exist_ok=True)
        log = log_path(self.home, "migrate")
        with log.open("w") as output:
            environment = {**_clean_environment(), **desired.environment}
            command = [str(desired.placement.airflow_binary), "db", "migrate"]
            done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise ProvisionError(
                f"airflow db migrate failed (exit code {done.returncode}). The end of its log ({log}):\n{postgres.last_lines(log)}",
                "fab destroy, then fab install VARIANT",
            )
        self._migration_marker(desired.variant).write_text(airflow_version())

    def _start(self, desired: Desired, supervisor: Supervisor, report: Report) -> None:
        running = self._running()
        names = [program.name for program in desired.programs if program.name not in running]
        if names:
            report(f"starting {', '.join(names)}")
        started = time.time()
        self._start_programs(desired, supervisor, names)
        waited_for = {name: (started if name in names else 0.0) for name in desired.digests if name != "postgres"}
        wait_until_healthy(self.home, supervisor, desired.placement.api_url, desired.secrets["api_password"], waited_for, report)
        self._remember(desired, supervisor)

    def _start_programs(self, desired: Desired, supervisor: Supervisor, names: list[str]) -> None:
        running = self._running()
        names = [name for name in names if name not in running]
        for name, port in desired.ports.items():
            if name in names and not port_is_free(port):
                raise ProvisionError(
                    f"Port {port} for {name} was taken meanwhile by {port_owner(port) or 'another program'}.", "run the same command again"
                )
        supervisor.start(names)
        self._remember(desired, supervisor)

    def _remember(self, desired: Desired, supervisor: Supervisor) -> None:
        pids = {s.name: s.pid for s in supervisor.states().values() if s.pid}
        known = {name: [pids[name], digest] for name, digest in desired.digests.items() if name in pids}
        write_private(self.home.state / "services.json", json.dumps(known, sort_keys=True) + "\n")

    def _stop(self, report: Report) -> int:
        count = len(owned_processes(self.home))
        supervisor = self._supervisor()
        if supervisor and supervisor.is_up():
            report("stopping services")
            supervisor.shut_down()
        sweep(self.home)
        return count

    # -- installation file ----------------------------------------------------------------------

    def _write_installation(self, desired: Desired) -> None:
        database: dict[str, object] = {"kind": desired.variant.database}
        if desired.variant.database == "sqlite":
            database["file"] = str(self._sqlite_file())
        else:
            database |= {"host": "127.0.0.1", "port": desired.ports["postgres"], "name": postgres.DATABASE, "user": postgres.ROLE}
        document = {
            "schema": 1,
            "variant": desired.variant.name,
            "summary": desired.variant.summary,
            "target": self.name,
            "executor": desired.variant.executor,
            "versions": {"airflow": airflow_version(), "python": platform.python_version()},
            "api": {"url": desired.placement.api_url, "user": airflow.API_USER, "credentials": str(self.home.secrets)},
            "database": database,
            "dag_folder": str(self.home.dags),
            "spec_folder": str(self.home.specs),
            "task_logs": str(self.home.airflow_home / "logs"),
            "home": str(self.home.root),
            "settings": airflow.public_settings(desired.variant, desired.changes),
            "changes": desired.changes,
            "services": [
                {"name": p.name, "node": NODE, "log": str(log_path(self.home, p.name)), "purpose": _purpose(p.name)}
                for p in desired.programs
            ],
            "nodes": [
                {
                    "name": NODE,
                    "address": "127.0.0.1",
                    "roles": ["control", "worker"],
                    "cores": os.cpu_count(),
                    "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
                }
            ],
        }
        write_private(self.home.installation, json.dumps(document, indent=1, sort_keys=True) + "\n")


def _local_settings(variant: Variant) -> str:
    return "" if variant.as_shipped else (REPOSITORY / "provision" / "files" / "airflow_local_settings.py").read_text()


def _purpose(name: str) -> str:
    return next((s.purpose for s in AIRFLOW_SERVICES if s.name == name), "the metadata database")


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text())
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError):
        return {}


def _port_number(variable: str, text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise UsageError(f"{variable}={text} is not a port.", "give a number from 1 to 65535")
    return int(text)


def _clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW__", "AIRFLOW_HOME", "PYTHON"))}


def _tree_memory(pid: int) -> int:
    """Return the memory in bytes of a process and its children, shared pages counted once where the system tells."""
    if not pid:
        return 0
    total = 0
    try:
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            try:
                info = member.memory_full_info()
                total += getattr(info, "pss", 0) or info.rss
            except psutil.Error:
                continue
    except psutil.Error:
        return 0
    return total

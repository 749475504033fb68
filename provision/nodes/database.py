"""The metadata database on the nodes: PostgreSQL's files, Airflow's database and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from provision.nodes import stores
from provision.nodes.layout import POSTGRES_PORT, USER
from provision.nodes.session import Session
from provision.nodes.state import Desired, RemoteFile

Report = Callable[[str], None]


def initialise_postgres(desired: Desired, control: Session, report: Report) -> None:
    """Create the files of PostgreSQL on the control node, unless they are there."""
    data, major = stores.POSTGRES_DATA, desired.about.postgres_major
    if control.call("read", path=f"{data}/PG_VERSION").strip() == str(major):
        return
    report("creating a PostgreSQL cluster")
    control.call("remove", paths=[data, f"{data}.new", desired.database_mark_path])
    initdb = [f"/usr/lib/postgresql/{major}/bin/initdb", "-D", f"{data}.new", "--auth-local=peer", "--auth-host=scram-sha-256"]
    control.call("run", argv=[*initdb, "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"], user="postgres")
    control.call("run", argv=["mv", f"{data}.new", data])


def migrate(desired: Desired, control: Session, report: Report) -> None:
    """Create the database of Airflow, if it is PostgreSQL, and its tables; then write down that they are there."""
    layout = desired.layout
    kind = desired.wanted.variant.database
    report(f"creating Airflow's tables in {kind}")
    if kind == "postgres":
        port = str(layout.port(POSTGRES_PORT))
        psql = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", "/run/airflow-postgres", "-p", port, "-d", "postgres"]
        control.call("run", argv=psql, user="postgres", text=stores.database_sql(desired.secrets["database_password"]))
    control.call("run", argv=[f"{layout.current}/bin/airflow", "db", "migrate"], user=USER, environment=airflow_environment(desired, {}))
    mark = RemoteFile(desired.database_mark)
    control.call("write_files", files={desired.database_mark_path: mark.document})


def airflow_environment(desired: Desired, overlay: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which Airflow's own command is run on the control node."""
    layout = desired.layout
    path = f"{layout.current}/bin:/usr/local/bin:/usr/bin:/bin"
    return {
        **desired.environment,
        "PYTHONPYCACHEPREFIX": str(layout.bytecode),
        "PATH": path,
        "HOME": str(layout.airflow_home),
        **overlay,
    }

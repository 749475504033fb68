"""The vagrant target: Airflow as systemd services on the cluster's nodes, over SSH."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from provision import airflow, certificates, inventory, secret_store
from provision.airflow import check_changes
from provision.errors import ProvisionError, UsageError
from provision.home import LabHome, read_json, write_private
from provision.in_hand import busy_local_workers, total_in_hand
from provision.installed_fleet import InstalledFleet
from provision.kube import git, rancher
from provision.kube.client import cluster_at
from provision.kube.delivery import complete_delivery, deliver, delivery_from
from provision.kube.describe import described, lab_kubeconfig
from provision.kube.install import wait_for_rancher
from provision.kube.look import server_version
from provision.kube.on_nodes import KUBECONFIG
from provision.kube.rancher import Rancher
from provision.kube.state import Kubernetes
from provision.lock import exclusive
from provision.machines import Machines
from provision.nodes import clocks, stores
from provision.nodes.converge import Converge
from provision.nodes.database import airflow_environment
from provision.nodes.desired import desired_state
from provision.nodes.document import installation_document
from provision.nodes.installed_units import InstalledUnits
from provision.nodes.kept_rancher import KeptRancher
from provision.nodes.layout import USER, Layout
from provision.nodes.plan import STOP_ORDER, asked_of, kind_of_service
from provision.nodes.session import Nodes, Session
from provision.nodes.state import About, Desired, RemoteFile, environment_path
from provision.target import Change, ProcessInfo, Report, ServiceStatus
from provision.topology import read_cluster, table_path
from provision.variants import Wanted, wanted_again
from provision.workers import Worker

FOLDER = "nodes"


def _silent(text: str) -> None:
    """Report nothing."""


def _clones(asked: Wanted) -> bool:
    return asked.kubernetes is not None and asked.kubernetes.dags == "git"


def nodes_home(shared: LabHome) -> LabHome:
    """Return the home of the installation on the nodes: beside the local one, so that neither disturbs the other."""
    return LabHome(root=shared.root / FOLDER, shared=shared.root)


class NodesTarget:
    """Airflow on the nodes of the cluster."""

    name = "vagrant"

    def __init__(self, home: LabHome) -> None:
        self.home = home
        self.shared = LabHome(root=home.shared, shared=home.shared)
        self.layout = Layout("" if home == nodes_home(self.shared) else home.root.name)
        self.cluster = read_cluster()
        self.machines = Machines(self.shared, self.cluster)
        self._nodes: Nodes | None = None
        self._about: About | None = None
        self._kept_rancher = KeptRancher(home, self.cluster)
        self._units = InstalledUnits(home, lambda: self.nodes)
        self._celery = InstalledFleet(self.installed, self._broker_url, f"fab install celery --target {self.name}")

    # -- the interface of every target ------------------------------------------------------------

    def plan(self, asked: Wanted) -> list[Change]:
        """Return what `install` would do now, changing nothing."""
        check_changes(asked.changes, asked.variant)
        return [step.change for step in self._converge(self._desired(asked)).plan()]

    def install(self, asked: Wanted, report: Report = _silent) -> list[Change]:
        """Make what is asked for run on the nodes; return what had to be done. Running it again finishes an interrupted install."""
        check_changes(asked.changes, asked.variant)
        with exclusive(self.home, f"fab install {asked.variant.name} --target {self.name}"):
            return self._install(asked, report)

    def install_rancher(self, folder: str, report: Report = _silent) -> tuple[list[Change], Rancher]:
        """Put Rancher's management UI into the cluster that is installed; return what had to be done, and what is there now.

        Its charts come from `folder`, else from where they came before, else from the internet. Running it again
        finishes an interrupted install. Raises ProvisionError where there is no cluster, or none that is fit for it.
        """
        with exclusive(self.home, f"fab install {rancher.NAME} --target {self.name}"):
            installed = self.installed() or self._kept_rancher.interrupted()
            if not installed.get("kubernetes"):
                raise ProvisionError(
                    f"Rancher comes into a cluster of Kubernetes, and {installed.get('variant') or 'nothing'} is installed on the nodes.",
                    f"fab install kubernetes --target {self.name}, then fab install {rancher.NAME} --target {self.name}",
                )
            asked = wanted_again(installed)
            about = self._control.call("about")
            rancher.require_machine(self.cluster.control, about["memory_mib"], about["cores"], table_path(), asked.variant.name)
            if self.installed():
                # An interrupted one was found fit before; meanwhile its server may be between two configurations.
                rancher.require_supported(
                    server_version(self._kubernetes(asked, self._about_nodes()[0]), self._control), asked.variant.name
                )
            chosen = self._kept_rancher.choose(asked, folder)
            self._kept_rancher.keep(chosen, interrupts=installed)
            changes = self._install(asked, report)
            self._kept_rancher.keep(chosen)
            wait_for_rancher(self._kubernetes(asked, self._about_nodes()[0]), self._control, report)
            return changes, chosen

    def set_workers(self, workers: Iterable[Worker], report: Report = _silent) -> list[Change]:
        """Make exactly these Celery workers run, while tasks run; a worker that leaves finishes its tasks first."""
        with exclusive(self.home, "fab workers"):
            installed = self._require_installed()
            asked = wanted_again(installed, workers)
            desired = self._desired(asked)
            converge = self._converge(desired)
            converge.settle(report)
            steps = converge.plan()
            names = {worker.name for worker in (*self._celery.workers(), *asked.workers)}
            others = [step for step in steps if step.name not in names and step.action in ("stop", "start", "restart", "migrate", "build")]
            if others:
                raise ProvisionError(
                    f"More than workers would change: {others[0].change}.",
                    f"fab install {installed['variant']} --target {self.name}, then this again",
                )
            try:
                converge.apply(steps, report)
            except (ProvisionError, KeyboardInterrupt):
                # What labs predict with is what runs now.
                self._write_installation(self._desired(replace(asked, workers=self._workers_after(desired))))
                raise
            self._write_installation(desired)
            return [step.change for step in steps if step.name in names]

    def database_files(self) -> dict[str, int]:
        """Return the files that an SQLite database consists of now, by name, with their sizes in bytes; empty for another database."""
        file = self._require_installed()["database"].get("file")
        return self._control.call("sizes_in", folder=file.rpartition("/")[0]) if file else {}

    def put_spec(self, name: str, text: str) -> None:
        """Put a probe's document into the DAG folder of every node, in one step on each."""
        path = f"{self.layout.specs}/{name}.json"
        self.nodes.each(lambda node: node.call("write_files", files={path: RemoteFile(text).document}))
        self._deliver_dags()

    def remove_spec(self, name: str) -> None:
        """Take a probe's document out of the DAG folders again."""
        self.nodes.each(lambda node: node.call("remove", paths=[f"{self.layout.specs}/{name}.json"]))
        self._deliver_dags()

    def _deliver_dags(self) -> None:
        """Let pods get the DAGs as they are now, where they do not read the nodes' folders."""
        if document := self._units.delivery():
            deliver(delivery_from(document), self.layout, self.nodes)

    def spec_names(self) -> list[str]:
        """Return the names of the probes whose documents are in a DAG folder, sorted."""
        found = self.nodes.each(lambda node: node.call("names_in", folder=str(self.layout.specs), pattern="*.json"))
        return sorted({name.removesuffix(".json") for names in found.values() for name in names})

    def installed(self) -> dict[str, Any] | None:
        """Return the content of the installation file, None unless an install ran to its end."""
        return read_json(self.home.installation) or None

    def status(self) -> list[ServiceStatus]:
        """Return every service of the installed variant; empty when nothing is installed."""
        return self._units.status()

    def processes(self) -> list[ProcessInfo]:
        """Return every process of the installation, parents before children, node by node."""
        return self._units.processes()

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that the running services and the pods of tasks have used so far, ended ones included."""
        return self._units.cpu_seconds() + sum(usage["cpu_seconds"] for usage in self._pods_usage())

    def memory(self) -> int:
        """Return the bytes of memory that all services and the pods of tasks use now, shared pages counted once."""
        own = sum(process.shared_memory or process.memory for process in self.processes())
        return own + int(sum(usage["memory"] for usage in self._pods_usage()))

    def _pods_usage(self) -> list[dict[str, float]]:
        if not (self.installed() or {}).get("kubernetes"):
            return []
        return list(self.nodes.each(lambda node: node.call("pods_usage")).values())

    def tasks_in_hand(self) -> int | None:
        """Return how many tasks the executor's workers have taken, started or not; None if that cannot be told."""
        ways = {
            "LocalExecutor": self._local_tasks_in_hand,
            "CeleryExecutor": self._celery.tasks_in_hand,
            "KubernetesExecutor": self._pods_in_hand,
        }
        return total_in_hand(self._require_installed()["executor"], ways)

    def _local_tasks_in_hand(self) -> int | None:
        scheduler = self._units.pids().get(self.cluster.control.name, {}).get("scheduler")
        return busy_local_workers(self._control.call("titles_below", pid=scheduler)) if scheduler else None

    def _pods_in_hand(self) -> int:
        known = self._require_installed()["kubernetes"]
        return cluster_at(Path(known["kubeconfig"]), known["namespace"]).in_hand()

    def messages_waiting(self, also: Iterable[str] = ()) -> dict[str, int]:
        """Return how many task messages wait in the broker, by queue that a worker serves or that `also` names; empty without one."""
        return self._celery.messages_waiting(also)

    def workers_seen(self) -> dict[str, dict[str, Any]]:
        """Return what each worker that answers says of itself: its `concurrency` and its `queues`, by name."""
        return self._celery.workers_seen()

    def query(self, sql: str) -> list[list[str]]:
        """Return the rows of a query on the metadata database, every value as text; only for PostgreSQL."""
        database = self._require_installed()["database"]
        if database["kind"] != "postgres":
            raise ProvisionError("Only a PostgreSQL database can be asked.", f"fab install postgres --target {self.name}")
        psql = ["psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", "/run/airflow-postgres", "-p", str(database["port"])]
        printed = self._control.call("ask", argv=[*psql, "-d", stores.DATABASE], user="postgres", text=sql + "\n")["out"]
        return [line.split("|") for line in printed.strip().splitlines()]

    def live_settings(self, names: Sequence[str]) -> dict[str, str | None]:
        """Return the values of settings ("section.key") with which the running scheduler was started."""
        pid = self._units.pids()[self.cluster.control.name]["scheduler"]
        variables = {airflow.variable_name(name): name for name in names}
        found = self._control.call("environment_of", pid=pid, names=list(variables))
        return {variables[variable]: value for variable, value in found.items()}

    def airflow(self, arguments: Sequence[str], changes: Mapping[str, str]) -> tuple[str, str]:
        """Return what Airflow's own command prints on the control node, standard output and error, with `changes` on top."""
        desired = self._desired(wanted_again(self._require_installed()))
        overlay = {"NO_COLOR": "1", **{airflow.variable_name(name): value for name, value in changes.items()}}
        done = self._control.call(
            "ask", argv=[f"{self.layout.current}/bin/airflow", *arguments], user=USER, check=False,
            environment=airflow_environment(desired, overlay),
        )  # fmt: skip
        return done["out"], done["err"]

    def require_alive(self, but: Iterable[str] = ()) -> None:
        """Raise ProvisionError, with the end of its log, if a service of the installation has ended, or its broker is full."""
        if not self._units.pids():
            raise ProvisionError("Nothing is installed on the nodes.", f"fab install VARIANT --target {self.name}")
        for node, names in self._units.ended().items():
            for service in set(names) - set(but):
                raise ProvisionError(
                    f"{service} on {node} ended. The end of its log:\n{self.logs(service, 10)}", f"fab logs {service} --target {self.name}"
                )
        self._celery.require_room(f"fab logs redis --target {self.name}")

    def logs(self, service: str, lines: int = 50) -> str:
        """Return the last lines that a service printed; raises UsageError for one that there is not."""
        return self._units.log(service, lines)

    def stop(self, report: Report = _silent) -> int:
        """Stop every service of Airflow, workers first; the nodes stay up. Returns how many services ran."""
        with exclusive(self.home, f"fab stop --target {self.name}"):
            report("stopping services")
            pattern, prefix = f"{self.layout.unit_prefix}*.service", self.layout.unit_prefix
            there = self.nodes.each(lambda node: node.call("names_in", folder="/etc/systemd/system", pattern=pattern))
            states = self.nodes.each(lambda node: node.call("states", units=there[node.name]))
            for kind in STOP_ORDER:
                chosen = {
                    node: [unit for unit in units if kind_of_service(unit.removeprefix(prefix).removesuffix(".service")) == kind]
                    for node, units in there.items()
                }
                self.nodes.each(lambda node, chosen=chosen: node.call("stop", units=chosen[node.name]))
            self._units.forget()
            return sum(state["active"] == "active" for seen in states.values() for state in seen.values())

    def destroy(self, report: Report = _silent) -> None:
        """Remove the machines with everything on them; of a second installation, only what is its own."""
        if self.layout.instance:
            self._remove_instance(report)
        else:
            self.close()
            self.machines.destroy(report)
        shutil.rmtree(self.home.root, ignore_errors=True)
        current = read_json(self.shared.installation)
        if current.get("home") == str(self.home.root):
            self.shared.installation.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the connections to the nodes."""
        if self._nodes:
            self._nodes.close()
            self._nodes = None

    # -- the nodes --------------------------------------------------------------------------------

    @property
    def nodes(self) -> Nodes:
        """The nodes, connected; raises ProvisionError that names each that cannot be reached."""
        if self._nodes is not None and not self._nodes.usable:
            self.close()
        if self._nodes is None:
            self.machines.require_same_table()
            opened = inventory.connections(self.machines)
            self._nodes = Nodes({name: Session(name, connection) for name, connection in opened.items()})
        return self._nodes

    @property
    def _control(self) -> Session:
        return self.nodes[self.cluster.control.name]

    def _about_nodes(self) -> tuple[About, dict[str, dict[str, Any]]]:
        seen = self.nodes.each(lambda node: node.call("about"))
        kinds = {About(entry["python"], entry["machine"], entry["distribution"]) for entry in seen.values()}
        if len(kinds) > 1:
            raise ProvisionError(
                "The nodes are not alike: " + "; ".join(f"{name}: {entry}" for name, entry in seen.items()), "use one box for all nodes"
            )
        return kinds.pop(), seen

    # -- install ----------------------------------------------------------------------------------

    def _desired(self, asked: Wanted, report: Report = _silent) -> Desired:
        self.home.prepare()
        if self._about is None:
            self._about = self._about_nodes()[0]
        bundle = certificates.bundle()
        trusted = bundle.read_text() if bundle else ""
        secrets = self._secrets(asked)
        kubernetes = self._kubernetes(asked, self._about, report) if asked.kubernetes else None
        return desired_state(asked, self.cluster, self.layout, self._about, secrets, trusted, kubernetes)

    def _kubernetes(self, asked: Wanted, about: About, report: Report = _silent) -> Kubernetes:
        if self.layout.instance:
            raise UsageError("Kubernetes cannot be installed twice on the same nodes.", "fab install kubernetes --target vagrant")
        secrets, ui = self._secrets(asked), self._kept_rancher.of(asked)
        environment, key = environment_path(self.layout, about), secrets[git.KEY] if _clones(asked) else ""
        token = secrets["cluster_token"]
        if ui:
            ui = replace(ui, password=secrets[secret_store.RANCHER_PASSWORD])
        return described(asked, self.cluster, self.layout, environment, about.machine, self.nodes, self.shared, report, token, key, ui)

    def _secrets(self, asked: Wanted) -> dict[str, str]:
        also = [git.KEY] if _clones(asked) else []
        also += [secret_store.RANCHER_PASSWORD] if self._kept_rancher.of(asked) else []
        return secret_store.load_or_create(self.home, also)

    def _converge(self, desired: Desired) -> Converge:
        return Converge(self.shared, desired, self.nodes, self.machines.ssh_config(), lambda: self._desired(desired.wanted))

    def _install(self, asked: Wanted, report: Report) -> list[Change]:
        report("looking at the nodes")
        if self.machines.ids() and not self.machines.recorded():
            # Made by Vagrant itself: their host keys are not known yet.
            self.machines.up(report=report)
        if not self._kept_rancher.of(asked):
            self._kept_rancher.forget()
        desired = self._desired(asked, report)
        converge = self._converge(desired)
        converge.settle(report)
        converge.check_settings()
        self._celery.require_nothing_left(asked.broker, f"fab stop --target {self.name}", report)
        steps, finished = converge.plan(), self.installed() is not None
        if steps:
            # Labs must not take a half-changed installation for one.
            self.home.installation.unlink(missing_ok=True)
            converge.apply(steps, report)
        elif not finished:
            converge.wait_until_healthy(report)
        self._write_installation(converge.desired)
        return [step.change for step in steps]

    def _write_installation(self, desired: Desired) -> None:
        about, seen = self._about_nodes()
        offsets = self.nodes.each(clocks.measured)
        nodes = [
            {
                "name": node.name, "address": node.address, "roles": list(node.roles),
                "cores": seen[node.name]["cores"], "memory_gib": round(seen[node.name]["memory_mib"] / 1024, 1), **offsets[node.name],
            }
            for node in self.cluster.nodes
        ]  # fmt: skip
        self._units.write_down(desired, lambda: self._delivery_document(desired))
        if not _clones(desired.wanted):
            secret_store.forget(self.home, [git.KEY])
        self._write_kubeconfig(desired)
        text = json.dumps(installation_document(replace(desired, about=about), self.home, nodes), indent=1, sort_keys=True) + "\n"
        write_private(self.home.installation, text)
        if not self.layout.instance:
            # What `labs` works with is the installation that was made or looked after last.
            write_private(self.shared.installation, text)

    def _delivery_document(self, desired: Desired) -> dict[str, Any] | None:
        kubernetes = desired.kubernetes
        if kubernetes is None or kubernetes.pods.dags == "volume":
            return None
        return complete_delivery(kubernetes, self.nodes).document()

    def _write_kubeconfig(self, desired: Desired) -> None:
        """Give the labs credentials of their own for the cluster, or take away those of one that is not there any more."""
        path = self.home.root / KUBECONFIG
        if desired.kubernetes is None:
            path.unlink(missing_ok=True)
        else:
            write_private(path, lab_kubeconfig(desired.kubernetes, desired.wanted.variant.name))

    def _workers_after(self, desired: Desired) -> tuple[Worker, ...]:
        """Return the workers that run when a change of workers ended early: some as they were, some as they should become."""
        facts = self.nodes.each(lambda node: node.call("facts", **asked_of(desired, desired.nodes[node.name])))
        changed = {
            name: worker
            for node, state in desired.nodes.items()
            for name, worker in state.workers.items()
            if str(self.layout.worker_file(name)) not in facts[node]["files"]
        }
        known = {worker.name: worker for worker in self._celery.workers()} | changed
        units = [self.layout.unit(name) for name in known]
        states = self.nodes.each(lambda node: node.call("states", units=units))
        active = {unit for seen in states.values() for unit, state in seen.items() if state["active"] == "active"}
        return tuple(worker for name, worker in known.items() if self.layout.unit(name) in active)

    def _remove_instance(self, report: Report) -> None:
        report(f"removing the second installation {self.layout.instance}")

        def remove(node: Session) -> None:
            units = node.call("names_in", folder="/etc/systemd/system", pattern=f"{self.layout.unit_prefix}*.service")
            node.call("stop", units=units)
            paths = [f"/etc/systemd/system/{unit}" for unit in units]
            node.call("remove", paths=[*paths, str(self.layout.configuration), str(self.layout.airflow_home)])
            node.call("systemctl", verb="daemon-reload", units=[])

        self.nodes.each(remove)

    # -- what is installed ------------------------------------------------------------------------

    def _require_installed(self) -> dict[str, Any]:
        installed = self.installed()
        if installed is None:
            raise ProvisionError("No variant is installed on the nodes.", f"fab install VARIANT --target {self.name}")
        return installed

    def _broker_url(self, broker: Mapping[str, Any]) -> str:
        password = secret_store.load_or_create(self.home)["broker_password"]
        return stores.broker_url(broker["kind"], broker["host"], broker["port"], password)

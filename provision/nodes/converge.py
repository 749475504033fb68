"""The steps that make the nodes what they should be; every one may be interrupted, and running it again goes on."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path

from provision import wheelhouse
from provision.environments import TABLES, check_known
from provision.errors import ProvisionError
from provision.fleet import Fleet
from provision.home import LabHome
from provision.kube.bring_up import start_cluster
from provision.kube.install import remove_store, send_artifacts
from provision.kube.plan import plan_cluster
from provision.kube.tidy import remove_older
from provision.nodes.agent.answering import LOCK, LOCK_WAIT_S
from provision.nodes.celery import worker_text
from provision.nodes.database import initialise_postgres, migrate
from provision.nodes.layout import USER, USER_NUMBER, Layout
from provision.nodes.plan import (
    CHRONY,
    CLOCK,
    CLUSTER,
    DISTRIBUTIONS_OWN,
    RENUMBER,
    STOP_ORDER,
    STORES,
    WORKERS,
    Step,
    asked_of,
    kind_of,
    plan,
)
from provision.nodes.session import PROXY_VARIABLE, Nodes, Session
from provision.nodes.state import Desired, RemoteFile
from provision.nodes.waiting import wait_for_broker, wait_until_healthy

Report = Callable[[str], None]
CREATE_CLUSTER = "/etc/postgresql-common/createcluster.conf"
ALIVE = "-o BatchMode=yes -o ServerAliveInterval=10 -o ServerAliveCountMax=3"


class Converge:
    """One desired state, compared with what the nodes are and made real."""

    def __init__(self, home: LabHome, desired: Desired, nodes: Nodes, ssh_config: Path, desire_again: Callable[[], Desired]) -> None:
        """Prepare it; `desire_again` says what the nodes should look like now that more is known of them."""
        self.home, self.desired, self.nodes, self.ssh_config = home, desired, nodes, ssh_config
        self._desire = desire_again
        self.control = nodes[desired.cluster.control.name]

    def settle(self, report: Report) -> None:
        """Return once nobody changes a node any more: a command that was killed leaves its last step running there."""
        self.nodes.each(lambda node: node.call("settle", report))

    def plan(self) -> list[Step]:
        """Return what has to be done, changing nothing; every node is asked once."""
        facts = self.nodes.each(lambda node: node.call("facts", **asked_of(self.desired, self.desired.nodes[node.name])))
        return plan(self.desired, facts, self.control.call("read", path=self.desired.database_mark_path))

    def desire_again(self) -> None:
        """Find out what the nodes should look like now that more is known of them."""
        self.desired = self._desire()

    def plan_again(self, report: Report) -> list[Step]:
        """Return what has to be done now that more is known of the nodes, with files written and what ran with others stopped."""
        self.desire_again()
        steps = self.plan()
        # Those that run with other settings than they should have by now.
        self._stop([step for step in steps if step.action == "restart"], report)
        self._write(steps, report)
        return steps

    def apply(self, steps: list[Step], report: Report) -> None:
        """Do what `plan` returned; raises ProvisionError with the failures of all nodes."""
        if self.desired.kubernetes and self.desired.kubernetes.has_other_token:
            # Before files are written: some of them are among what is removed.
            remove_store(self.desired.kubernetes, self.control, report)
        self._prepare(steps, report)
        self.check_settings()
        self._stop(steps, report)
        self._renumber(steps, report)
        self._write(steps, report)
        self._start_stores(steps, report)
        if self.desired.kubernetes:
            steps = start_cluster(self, steps, report)
        if any(step.action == "migrate" for step in steps):
            migrate(self.desired, self.control, report)
        self._start(steps, report)
        self._resize(steps, report)
        if self.desired.kubernetes:
            remove_older(self.desired.kubernetes, self.nodes, report)

    def check_settings(self) -> None:
        """Raise UsageError for a changed setting that the nodes' Airflow does not know; nodes without Airflow do not say."""
        desired = self.desired
        if desired.wanted.changes and self.control.call("read", path=f"{desired.environment_path}/complete"):
            packages = f"{desired.environment_path}/lib/python{desired.about.python}/site-packages"
            check_known(desired.wanted.changes, *(self.control.call("read", path=f"{packages}/{table}") for table in TABLES))

    # -- what every node needs --------------------------------------------------------------------

    def _prepare(self, steps: list[Step], report: Report) -> None:
        distrusting = [step.node for step in steps if step.action == "trust"]
        self.nodes.each(lambda node: node.call("trust", text=self.desired.certificates), distrusting)
        missing = {step.node: step.why.split(", ") for step in steps if step.action == "install"}
        if missing:
            report(f"installing packages on {', '.join(missing)}")
            proxy = os.environ.get(PROXY_VARIABLE, "")
            self.nodes.each(lambda node: self._install_packages(node, missing[node.name], proxy, report), list(missing))
        strange = [step.node for step in steps if step.action == "disable"]
        self.nodes.each(lambda node: node.call("stop", units=list(DISTRIBUTIONS_OWN)), strange)
        self.nodes.each(self._make_folders)
        unbuilt = [step.node for step in steps if step.action == "build"]
        if unbuilt:
            about = self.desired.about
            house = wheelhouse.fill(self.home, about.python, about.machine, report)
            report(f"installing Airflow on {', '.join(unbuilt)}")
            self.nodes.each(lambda node: self._build(node, house, report), unbuilt)
        if self.desired.kubernetes:
            send_artifacts(self.desired.kubernetes, plan_cluster(self.desired.kubernetes), self.nodes, self.ssh_config, report)

    def _install_packages(self, node: Session, names: list[str], proxy: str, report: Report) -> None:
        if "postgresql" in names:
            text = "create_main_cluster = false\n"
            node.call("write_files", files={CREATE_CLUSTER: RemoteFile(text, group="root", mode="0644").document})
        node.call("install_packages", report, names=names, proxy=proxy)
        node.call("stop", units=list(DISTRIBUTIONS_OWN))

    def _make_folders(self, node: Session) -> None:
        node.call("make_user", name=USER, number=USER_NUMBER, home=str(self.desired.layout.airflow_home))
        self._set_accounts(node, wanted=True)
        folders = self.desired.nodes[node.name].folders
        node.call("make_folders", folders={path: folder.document for path, folder in folders.items()})

    def _set_accounts(self, node: Session, wanted: bool) -> None:
        """Make the users that should be there, or remove the others, which is done after their files."""
        accounts = self.desired.nodes[node.name].accounts
        chosen = {name: account for name, account in accounts.items() if (account is not None) == wanted}
        if chosen:
            node.call("set_accounts", accounts=chosen)

    def _build(self, node: Session, house: Path, report: Report) -> None:
        remote = str(self.desired.layout.software / "wheelhouse")
        report(f"{node.name}: receiving the wheelhouse")
        self._send_folder(node.name, house, remote)
        node.call(
            "build_environment", report, path=str(self.desired.environment_path), wheelhouse=remote,
            lock=wheelhouse.requirements(house), current=str(self.desired.layout.current),
        )  # fmt: skip

    def _send_folder(self, node: str, folder: Path, remote: str) -> None:
        # OpenSSH and tar: a copy through Python would take ten times as long.
        # One that was left behind by a killed command goes on, too.
        there = f"sudo -n flock -w {LOCK_WAIT_S} {LOCK} sh -c 'rm -rf {remote} && mkdir -p {remote} && tar -x -f - -C {remote}'"
        command = (
            f"tar -c -f - -C {shlex.quote(str(folder))} . | ssh {ALIVE} -F {shlex.quote(str(self.ssh_config))} {node} {shlex.quote(there)}"
        )
        # Otherwise the tar of macOS adds a file for the attributes of each.
        environment = {**os.environ, "COPYFILE_DISABLE": "1"}
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment)
        if done.returncode:
            raise ProvisionError(
                f"{node}: the wheelhouse could not be copied: {done.stderr.strip()[-300:]}",
                "look at the node's disk (fab up shows the nodes), then run the same command again",
            )

    # -- stopping, writing ------------------------------------------------------------------------

    def _stop(self, steps: list[Step], report: Report) -> None:
        stopping = [step for step in steps if step.action in ("stop", "restart") and step.name != CLOCK]
        for kind in STOP_ORDER:
            chosen = [step for step in stopping if kind_of(self.desired, step.name) == kind]
            if chosen:
                report(
                    f"stopping {', '.join(step.name for step in chosen)}"
                    + (": tasks in hand are finished first" if kind == WORKERS else "")
                )
                self.on_nodes(chosen, "stop")
        gone = [step for step in stopping if step.action == "stop"]
        self.nodes.each(
            lambda node: self._forget([step.name for step in gone if step.node == node.name], node), sorted({s.node for s in gone})
        )

    def _renumber(self, steps: list[Step], report: Report) -> None:
        chosen = [step.node for step in steps if step.action == RENUMBER]
        if chosen:
            report(f"giving the user {USER} the number {USER_NUMBER} on {', '.join(chosen)}")
            # Of every installation on the node: they share the user.
            folders = [f"{layout}*" for layout in (Layout().airflow_home, Layout().configuration, Layout().bytecode)]
            self.nodes.each(lambda node: node.call("renumber_user", name=USER, number=USER_NUMBER, folders=folders), chosen)

    def _forget(self, services: Collection[str], node: Session) -> None:
        layout = self.desired.layout
        paths = [f"/etc/systemd/system/{layout.unit(name)}" for name in services] + [str(layout.worker_file(name)) for name in services]
        node.call("remove", paths=paths)

    def on_nodes(self, steps: list[Step], op: str, **more: object) -> None:
        """Let each node do an operation on the units of its steps."""
        units = {
            node: [self.desired.layout.unit(step.name) for step in steps if step.node == node] for node in {step.node for step in steps}
        }
        self.nodes.each(lambda node: node.call(op, units=units[node.name], **more), list(units))

    def _write(self, steps: list[Step], report: Report) -> None:
        if not steps:
            return
        report("writing files")
        resized = {step.name for step in steps if step.action == "resize"}
        stale_clocks = {step.node for step in steps if step.name == CLOCK}

        def write(node: Session) -> None:
            state = self.desired.nodes[node.name]
            files = {path: file.document for path, file in state.files.items()}
            files |= {
                str(self.desired.layout.worker_file(name)): worker_text(worker).document
                for name, worker in state.workers.items()
                if name not in resized
            }
            changed = node.call("write_files", files=files)
            node.call("remove", paths=state.unwanted)
            self._set_accounts(node, wanted=False)
            node.call("systemctl", verb="daemon-reload", units=[])
            if CHRONY in files:
                # Installing its package did not start it.
                node.call(
                    "systemctl", verb="restart" if CHRONY in changed or node.name in stale_clocks else "start", units=["chrony.service"]
                )

        self.nodes.each(write)

    # -- starting ---------------------------------------------------------------------------------

    def _start_stores(self, steps: list[Step], report: Report) -> None:
        names = self._starting(steps, STORES)
        if "postgres" in names:
            initialise_postgres(self.desired, self.control, report)
        if names:
            report(f"starting {', '.join(names)}")
            self.control.call("start", units=[self.desired.layout.unit(name) for name in names])
        if self.desired.wanted.broker in names:
            wait_for_broker(self.desired, self.nodes, report)

    def _start(self, steps: list[Step], report: Report) -> None:
        begun = self.nodes.each(lambda node: node.call("clock"))
        starting = [step for step in steps if step.action in ("start", "restart") and step.name != CLOCK]
        chosen = [step for step in starting if kind_of(self.desired, step.name) not in (STORES, CLUSTER)]
        if chosen:
            report(f"starting {', '.join(step.name for step in chosen)}")
            self.on_nodes(chosen, "start")
        names = {step.name for step in chosen}
        if any(step.action in ("start", "restart", "migrate", "resize") for step in steps):
            since = {name: begun[node] if name in names else 0.0 for name, node in self.desired.services.items()}
            wait_until_healthy(self.desired, self.nodes, since, report)

    def wait_until_healthy(self, report: Report) -> None:
        """Return once every service is ready: after an install that was cut off, running is not yet ready."""
        wait_until_healthy(self.desired, self.nodes, dict.fromkeys(self.desired.services, 0.0), report)

    def _resize(self, steps: list[Step], report: Report) -> None:
        for step in steps:
            if step.action == "resize":
                worker = self.desired.nodes[step.node].workers[step.name]
                report(f"changing {step.name} to {worker}")
                with closing(Fleet(self.desired.placement.broker_url)) as fleet:
                    fleet.resize(worker)
                path = str(self.desired.layout.worker_file(step.name))
                self.nodes[step.node].call("write_files", files={path: worker_text(worker).document})

    def _starting(self, steps: list[Step], kind: str) -> list[str]:
        return [step.name for step in steps if step.action in ("start", "restart") and kind_of(self.desired, step.name) == kind]

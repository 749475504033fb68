"""What separates the nodes from the desired state. All pure: facts in, steps out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from provision.kube.plan import plan_cluster
from provision.nodes.celery import worker_text
from provision.nodes.desired import LOG_SERVER
from provision.nodes.layout import USER, USER_NUMBER
from provision.nodes.state import Desired, NodeState
from provision.target import Change
from provision.variants import DISTRIBUTIONS

CHRONY = "/etc/chrony/conf.d/airflow-labs.conf"
CLOCK = "chrony"
# Debian starts these with their packages; the labs' own units take their place, and none of them may listen beside them.
DISTRIBUTIONS_OWN = (
    "redis-server.service", "rabbitmq-server.service", "postgresql.service", "haproxy.service", "epmd.socket", "epmd.service",
)  # fmt: skip
OWN_SERVICES = frozenset({"api-server", "api-server-2", "scheduler", "scheduler-2", "dag-processor", "triggerer", "flower", "haproxy"})
RENUMBER = "renumber"
# In which order services are stopped; they start the other way round.
WORKERS, SERVICES, CLUSTER, STORES = STOP_ORDER = ("workers", "services", "cluster", "stores")


@dataclass(frozen=True)
class Step:
    """One thing to be done on one node."""

    node: str
    action: str
    name: str
    why: str

    @property
    def change(self) -> Change:
        """The step as people read it."""
        return Change(self.action, self.name, f"{self.why} ({self.node})")


def asked_of(desired: Desired, state: NodeState) -> dict[str, Any]:
    """Return the arguments with which a node's agent is asked for its facts."""
    files = {path: file.wanted for path, file in state.files.items()}
    files |= {str(desired.layout.worker_file(name)): worker_text(worker).wanted for name, worker in state.workers.items()}
    return {
        "packages": state.packages,
        "user": USER,
        "folders": {path: folder.document for path, folder in state.folders.items()},
        "files": files,
        "unwanted": state.unwanted,
        "units": [unit.name for unit in state.units],
        "ours": f"{desired.layout.unit_prefix}*.service",
        "environment": f"{desired.environment_path}/complete",
        "current": str(desired.layout.current),
        "distribution": list(DISTRIBUTIONS_OWN),
        "clock": CHRONY,
        "accounts": state.accounts,
        "certificates": hashlib.sha256(desired.certificates.encode()).hexdigest() if desired.certificates else "",
    }


def plan(desired: Desired, facts: Mapping[str, Mapping[str, Any]], database_mark: str) -> list[Step]:
    """Return what has to be done, node by node; nothing, if every node is as it should be."""
    steps = []
    for name, state in desired.nodes.items():
        steps += _node_steps(desired, state, facts[name])
    if database_mark != desired.database_mark:
        why = "Airflow's tables are not there, or of another version or password"
        steps.append(Step(desired.cluster.control.name, "migrate", f"database {desired.wanted.variant.database}", why))
    if desired.kubernetes:
        steps += [Step(step.node, step.action, step.name, step.why) for step in plan_cluster(desired.kubernetes)]
    return steps


def _node_steps(desired: Desired, state: NodeState, facts: Mapping[str, Any]) -> list[Step]:
    node, steps = state.node.name, []
    if not facts["trusted"]:
        steps.append(Step(node, "trust", "certificates", "those of --ca-bundle are not trusted"))
    if facts["packages"]:
        steps.append(Step(node, "install", "packages", ", ".join(facts["packages"])))
    steps += _user_steps(node, facts["user"])
    for name in facts["accounts"]:
        wanted = state.accounts[name]
        why = "not part of the variant" if wanted is None else "it is not there, or not as it should be"
        steps.append(Step(node, "remove" if wanted is None else "make", f"user {name}", why))
    if facts["folders"]:
        steps.append(Step(node, "make", "folders", _shown(facts["folders"])))
    if not facts["environment"]:
        steps.append(Step(node, "build", "environment", f"{desired.environment_path.name} is not there"))
    worker_files = {str(desired.layout.worker_file(name)): name for name in state.workers}
    stale = [path for path in facts["files"] if path not in worker_files]
    for unit in facts["others"]:
        service = unit.removeprefix(desired.layout.unit_prefix).removesuffix(".service")
        steps.append(Step(node, "stop", service, "not part of the variant"))
    if stale:
        steps.append(Step(node, "write", "files", _shown(stale)))
    if facts["distribution"]:
        why = f"{', '.join(facts['distribution'])} would run beside the labs' own"
        steps.append(Step(node, "disable", "the distribution's servers", why))
    if not facts["clock"] and CHRONY not in facts["files"]:
        steps.append(Step(node, "restart", CLOCK, "it does not run with its present configuration"))
    if facts["unwanted"]:
        shown = ", ".join(path.rsplit("/", 1)[-1] for path in facts["unwanted"])
        steps.append(Step(node, "remove", "files", f"{shown}: not part of the variant"))
    resized = {worker_files[path] for path in facts["files"] if path in worker_files}
    renumbered = any(step.action == RENUMBER for step in steps)
    for unit in state.units:
        seen = facts["units"][unit.name]
        if seen["active"] != "active":
            steps.append(Step(node, "start", unit.service, "not running" if not seen["sub"] else f"not running: {seen['sub']}"))
        elif seen["digest"] != unit.digest:
            steps.append(Step(node, "restart", unit.service, "its settings changed"))
        elif renumbered and unit.user == USER:
            steps.append(Step(node, "restart", unit.service, f"the user {USER} gets another number"))
        elif unit.service in resized:
            steps.append(Step(node, "resize", unit.service, f"becomes {state.workers[unit.service]}"))
    return steps


def _user_steps(node: str, seen: Sequence[int]) -> list[Step]:
    if not seen:
        return [Step(node, "make", f"user {USER}", "it is not there")]
    if list(seen) != [USER_NUMBER, USER_NUMBER]:
        return [Step(node, RENUMBER, f"user {USER}", f"its number and its group's are {seen[0]} and {seen[1]}, not {USER_NUMBER}")]
    return []


def _shown(paths: Sequence[str]) -> str:
    return ", ".join(path.rsplit("/", 1)[-1] for path in paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")


def kind_of(desired: Desired, service: str) -> str:
    """Return in which group a service is stopped: workers finish their tasks while everything that they need still runs."""
    known = {name for state in desired.nodes.values() for name in state.workers}
    return WORKERS if service in known else kind_of_service(service)


def kind_of_service(service: str) -> str:
    """Return the group of a service by its name alone; what is neither a store nor one of Airflow's own was a worker."""
    if service in ("postgres", "redis", "rabbitmq"):
        return STORES
    if service.startswith(tuple(f"{name}-" for name in DISTRIBUTIONS)):
        return CLUSTER
    return SERVICES if service in OWN_SERVICES or service.startswith(LOG_SERVER) else WORKERS

"""Whether the services on the nodes are ready, waited for; and which of them have ended instead."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing

from provision.errors import ProvisionError
from provision.fleet import Fleet
from provision.nodes.session import Nodes
from provision.nodes.state import Desired
from provision.readiness import START_VARIABLE, ApiHealth, Ready, api_answers, flower_answers, start_seconds

Report = Callable[[str], None]
START_SECONDS = 300
SCHEDULERS = ("scheduler", "scheduler-2")


def wait_for_broker(desired: Desired, nodes: Nodes, report: Report) -> None:
    """Return once the broker can be reached."""
    wait(desired, nodes, Ready({desired.wanted.broker: lambda: _broker_answers(desired.placement.broker_url)}).missing, report)


def wait_until_healthy(desired: Desired, nodes: Nodes, since: Mapping[str, float], report: Report) -> None:
    """Return once every service is ready: as it was started at `since`, by its node's clock, or 0 for one that was not."""
    placement = desired.placement
    checks: dict[str, Callable[[], bool]] = {name: lambda url=url: api_answers(url) for name, url in desired.api_servers.items()}
    if placement.flower_port and desired.wanted.broker:
        checks["flower"] = lambda: flower_answers(f"http://{placement.api_host}:{placement.flower_port}")
    for worker in desired.wanted.workers:
        checks[worker.name] = lambda name=worker.name: _worker_answers(placement.broker_url, name)
    health, others = ApiHealth(placement.api_url, desired.secrets["api_password"]), Ready(checks)
    # Where there are two, the one that is ready must not speak for the other.
    schedulers = {name: node for name, node in desired.services.items() if desired.wanted.ha and name in SCHEDULERS}
    wait(desired, nodes, lambda: health.missing(since, schedulers) or others.missing(), report)
    health.warm_up()


def wait(desired: Desired, nodes: Nodes, missing_now: Callable[[], list[str]], report: Report) -> None:
    """Return once nothing is missing; raises ProvisionError with the log of a service that has ended, or is never ready."""
    patience, told, before = start_seconds(START_SECONDS), "", _restarts(desired, nodes)
    deadline = time.monotonic() + patience
    while missing := missing_now():
        _require_not_failed(desired, nodes, missing[0], before)
        if time.monotonic() > deadline:
            node, unit = desired.unit_of(missing[0])
            lines = nodes[node].call("journal", unit=unit, lines=10)
            raise ProvisionError(f"{missing[0]} on {node} was not ready within {patience} s. The end of its log:\n{_indented(lines)}",
                                 f"fab logs {missing[0]} --target vagrant; nodes that are only slow need {START_VARIABLE}={2 * patience}")  # fmt: skip
        if ", ".join(missing) != told:
            told = ", ".join(missing)
            report(f"waiting for {told}")
        time.sleep(0.3)


def _broker_answers(broker_url: str) -> bool:
    with closing(Fleet(broker_url)) as fleet:
        return fleet.reachable()


def _worker_answers(broker_url: str, name: str) -> bool:
    with closing(Fleet(broker_url)) as fleet:
        return name in fleet.answering([name])


def _restarts(desired: Desired, nodes: Nodes) -> dict[str, int]:
    """Return how often systemd has started each service again, by service."""
    units = {state.node.name: {unit.service: unit.name for unit in state.units} for state in desired.nodes.values()}
    seen = nodes.each(lambda node: node.call("states", units=list(units[node.name].values())))
    return {service: seen[node][unit]["restarts"] for node, services in units.items() for service, unit in services.items()}


def _require_not_failed(desired: Desired, nodes: Nodes, service: str, before: Mapping[str, int]) -> None:
    node, unit = desired.unit_of(service)
    state = nodes[node].call("states", units=[unit])[unit]
    # systemd starts it again by itself; twice in a row is no accident.
    if state["active"] == "failed" or state["restarts"] - before[service] > 2:
        lines = nodes[node].call("journal", unit=unit, lines=12)
        raise ProvisionError(f"{service} on {node} ended (exit code {state['status']}). The end of its log:\n{_indented(lines)}",
                             f"fab logs {service} --target vagrant")  # fmt: skip


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()) or "  (it printed nothing)"

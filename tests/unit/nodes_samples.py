"""A variant on three nodes as the tests want it, and what its nodes say of themselves; nothing here reaches a node."""

from __future__ import annotations

from cluster_samples import CLUSTER, SECRETS

from provision.nodes.desired import desired_state
from provision.nodes.layout import USER_NUMBER, Layout
from provision.nodes.plan import plan
from provision.nodes.state import About, Desired
from provision.variants import wanted

ABOUT = About("3.11", "x86_64", "12")


def desired(variant: str = "celery", layout: Layout | None = None, secrets: dict[str, str] | None = None, **asked) -> Desired:
    """Return the desired state of a variant on three nodes."""
    return desired_state(wanted(variant, **asked), CLUSTER, layout or Layout(), ABOUT, secrets or SECRETS)


def fulfilled(state: Desired) -> dict[str, dict]:
    """Return the facts of nodes on which everything is as it should be."""
    return {
        name: {
            "packages": [], "user": [USER_NUMBER, USER_NUMBER], "folders": [], "files": [], "unwanted": [], "distribution": [],
            "clock": True, "trusted": True, "others": [], "environment": True, "accounts": [],
            "units": {u.name: {"active": "active", "sub": "running", "digest": u.digest, "pid": 7} for u in node.units},
        }
        for name, node in state.nodes.items()
    }  # fmt: skip


def steps(state: Desired, facts: dict[str, dict], mark: str | None = None) -> set[tuple[str, str, str]]:
    """Return the steps of a plan: node, action, name."""
    planned = plan(state, facts, state.database_mark if mark is None else mark)
    return {(step.node, step.action, step.name) for step in planned}


def services(state: Desired) -> dict[str, list[str]]:
    return {name: [unit.service for unit in node.units] for name, node in state.nodes.items()}

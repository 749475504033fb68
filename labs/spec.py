"""Probe specs: what `labs.dags.dag_spec` checks and spells out, with errors for people who use the labs.

{"tasks": 12, "pool": "narrow"}
{"max_active_tasks": 4, "groups": [{"name": "light", "tasks": 6}, {"name": "heavy", "tasks": 3, "after": ["light"]}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import yaml

from labs.dags import dag_spec
from labs.dags.dag_spec import KINDS, MOST_TASKS, Group, Spec, SpecError
from labs.errors import UsageError

__all__ = ["KINDS", "MOST_TASKS", "Group", "Spec", "as_dict", "from_yaml", "parse", "with_tasks"]


def parse(spec: Mapping[str, Any] | Spec) -> Spec:
    """Return the spec that a dict describes; raises UsageError that names the wrong key and what it may be."""
    try:
        return dag_spec.parse(spec)
    except SpecError as error:
        raise UsageError(error.message, error.hint) from error


def from_yaml(text: str) -> Spec:
    """Return the spec that YAML text describes; raises UsageError that names the line that is no YAML, or the wrong key."""
    try:
        return dag_spec.parse(dag_spec.read_yaml(text, yaml))
    except SpecError as error:
        raise UsageError(error.message, error.hint) from error


def with_tasks(spec: Spec, tasks: int) -> Spec:
    """Return the spec with `tasks` tasks in each group."""
    return replace(spec, groups=tuple(replace(group, tasks=tasks) for group in spec.groups))


def as_dict(spec: Spec) -> dict[str, Any]:
    """Return what differs from the defaults, as a lab would write it, for result records and tables."""
    groups = [_written(group) for group in spec.groups]
    dag = {k: v for k, v in asdict(spec).items() if k != "groups" and v != getattr(Spec(), k)}
    if len(groups) == 1 and not {"name", "after"} & set(groups[0]):
        return {**dag, **groups[0]}
    return {**dag, "groups": groups}


def _written(group: Group) -> dict[str, Any]:
    # The kind of an operator's group follows from the operator; nobody writes it.
    unwritten = {"kind"} if group.operator else set()
    return {k: v for k, v in asdict(group).items() if v != getattr(Group(), k) and k not in unwritten}

"""Probe specs: a short dict that a lab writes, checked and spelled out for the DAG file.

A spec describes one group of equal tasks, or several under `groups`. Everything that is left out keeps
Airflow's own default, so that a lab says only what it is about::

    {"tasks": 12, "pool": "narrow"}
    {"max_active_tasks": 4, "groups": [{"name": "light", "tasks": 6}, {"name": "heavy", "tasks": 3, "after": ["light"]}]}
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from labs.errors import UsageError

KINDS = ("hold", "sleep", "cpu", "noop")
# A probe is work for a laptop; a typing error must not become a denial of service.
MOST_TASKS = 1000


@dataclass(frozen=True)
class Group:
    """Equal tasks of a probe. `priority` may be a list with one number per task, unless they are mapped."""

    name: str = "work"
    tasks: int = 1
    kind: str = "hold"
    seconds: float = 0.0
    mapped: bool = False
    chain: bool = False
    after: tuple[str, ...] = ()
    pool: str = "default_pool"
    pool_slots: int = 1
    queue: str | None = None
    executor: str | None = None
    priority: int | tuple[int, ...] = 1
    retries: int | None = None
    retry_delay: float | None = None
    max_active_tis_per_dag: int | None = None
    max_active_tis_per_dagrun: int | None = None

    def operator(self) -> dict[str, Any]:
        """Return what differs from Airflow's defaults, as keyword arguments of an operator."""
        arguments = {
            "pool": self.pool,
            "pool_slots": self.pool_slots,
            "queue": self.queue,
            "executor": self.executor,
            "priority_weight": list(self.priority) if isinstance(self.priority, tuple) else self.priority,
            "retries": self.retries,
            "retry_delay": self.retry_delay,
            "max_active_tis_per_dag": self.max_active_tis_per_dag,
            "max_active_tis_per_dagrun": self.max_active_tis_per_dagrun,
        }
        return {name: value for name, value in arguments.items() if value is not None}


@dataclass(frozen=True)
class Spec:
    """A whole probe: its groups, its DAG-level limits, and how many DAG runs are triggered at once."""

    name: str = "probe"
    groups: tuple[Group, ...] = field(default_factory=tuple)
    max_active_tasks: int | None = None
    max_active_runs: int | None = None
    runs: int = 1
    poll_seconds: float = 0.5

    @property
    def task_count(self) -> int:
        """Task instances of all runs."""
        return self.runs * sum(group.tasks for group in self.groups)

    @property
    def holds(self) -> bool:
        """Whether any task waits at the gate."""
        return any(group.kind == "hold" for group in self.groups)

    def pools(self) -> tuple[str, ...]:
        """The pools that the tasks use, sorted."""
        return tuple(sorted({group.pool for group in self.groups}))

    def document(self, dag_id: str, gate: str) -> dict[str, Any]:
        """Return the JSON document from which the DAG file builds the DAG."""
        return {
            "schema": 1,
            "dag_id": dag_id,
            "max_active_tasks": self.max_active_tasks,
            "max_active_runs": self.max_active_runs,
            "groups": [
                {
                    "name": group.name,
                    "kind": group.kind,
                    "tasks": group.tasks,
                    "seconds": group.seconds,
                    "mapped": group.mapped,
                    "chain": group.chain,
                    "after": list(group.after),
                    "gate": gate,
                    "poll_seconds": self.poll_seconds,
                    "operator": group.operator(),
                }
                for group in self.groups
            ],
        }


_GROUP_KEYS = frozenset(Group.__dataclass_fields__)
_DAG_KEYS = frozenset(Spec.__dataclass_fields__)
_AT_LEAST_ONE = (
    "tasks",
    "pool_slots",
    "max_active_tasks",
    "max_active_runs",
    "runs",
    "max_active_tis_per_dag",
    "max_active_tis_per_dagrun",
)
_TEXT = ("name", "pool", "queue", "executor", "kind")
_FLAGS = ("mapped", "chain")
_OPTIONAL = {name for part in (Spec, Group) for name, entry in part.__dataclass_fields__.items() if entry.default is None}
_NUMBERS = ("seconds", "retry_delay", "poll_seconds")


def parse(spec: Mapping[str, Any] | Spec) -> Spec:
    """Return the spec that a dict describes; raises UsageError that names the wrong key and what it may be."""
    if isinstance(spec, Spec):
        return spec
    if not isinstance(spec, Mapping):
        raise UsageError(f"A probe spec is a dict, not {type(spec).__name__}.", 'for example {"tasks": 12, "pool": "narrow"}')
    several = "groups" in spec
    _check_keys(spec, _DAG_KEYS if several else (_DAG_KEYS | _GROUP_KEYS) - {"groups", "after"}, "a probe spec")
    if several:
        groups = [_group(entry, f"groups[{i}]") for i, entry in enumerate(_entries(spec["groups"]))]
    else:
        groups = [_group({k: v for k, v in spec.items() if k in _GROUP_KEYS - {"name"}}, "the spec")]
    _check_names(groups)
    dag = {k: v for k, v in spec.items() if k in _DAG_KEYS - {"groups"}}
    _check_values(dag, "the spec")
    parsed = Spec(groups=tuple(groups), **dag)
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", parsed.name):
        raise UsageError(f"name = {parsed.name!r} in the spec cannot be part of a DAG id.", "use letters, digits, _ . and - only")
    if parsed.task_count > MOST_TASKS:
        raise UsageError(f"The spec asks for {parsed.task_count} task instances.", f"ask for {MOST_TASKS} at most")
    return parsed


def with_tasks(spec: Spec, tasks: int) -> Spec:
    """Return the spec with `tasks` tasks in each group."""
    return replace(spec, groups=tuple(replace(group, tasks=tasks) for group in spec.groups))


def as_dict(spec: Spec) -> dict[str, Any]:
    """Return what differs from the defaults, as a lab would write it, for result records and tables."""
    groups = [{k: v for k, v in asdict(group).items() if v != getattr(Group(), k)} for group in spec.groups]
    dag = {k: v for k, v in asdict(spec).items() if k != "groups" and v != getattr(Spec(), k)}
    if len(groups) == 1 and not {"name", "after"} & set(groups[0]):
        return {**dag, **groups[0]}
    return {**dag, "groups": groups}


def _entries(groups: Any) -> list[Mapping[str, Any]]:
    if not isinstance(groups, list | tuple):
        raise UsageError(f"groups = {groups!r} in the spec is not a list.", 'give a list, for example [{"name": "light", "tasks": 6}]')
    for number, entry in enumerate(groups):
        if not isinstance(entry, Mapping):
            raise UsageError(f"groups[{number}] = {entry!r} is not a dict.", 'give a dict, for example {"name": "light", "tasks": 6}')
    return list(groups)


def _group(entry: Mapping[str, Any], where: str) -> Group:
    _check_keys(entry, _GROUP_KEYS, where)
    _check_values(entry, where)
    group = Group(**{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()})
    if group.kind not in KINDS:
        raise UsageError(f"kind = {group.kind!r} in {where} is unknown.", f"choose one of: {', '.join(KINDS)}")
    if group.kind in ("sleep", "cpu") and group.seconds <= 0:
        raise UsageError(f"seconds is missing in {where}: a {group.kind} task needs to know how long.", 'add "seconds": 2')
    if isinstance(group.priority, tuple) and (group.mapped or len(group.priority) != group.tasks):
        raise UsageError(
            f"priority in {where} has {len(group.priority)} numbers for {group.tasks} tasks{' that are mapped' if group.mapped else ''}.",
            "give one number for all, or one per task without mapped",
        )
    if group.mapped and group.chain:
        raise UsageError(f"mapped and chain in {where} exclude each other.", "mapped task instances have no order among themselves")
    return group


def _check_keys(entry: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UsageError(
                f"Unknown key {key!r} in {where}.", f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            )


def _check_values(entry: Mapping[str, Any], where: str) -> None:
    def refuse(key: str, what: str) -> None:
        raise UsageError(f"{key} = {entry[key]!r} in {where} is not {what}.", f"give {what}")

    for key, value in entry.items():
        if value is None and key in _OPTIONAL:
            continue
        if key in _AT_LEAST_ONE and (type(value) is not int or value < 1):
            refuse(key, "a whole number of at least 1")
        if key == "retries" and (type(value) is not int or value < 0):
            refuse(key, "a whole number of at least 0")
        if key in _NUMBERS and (type(value) not in (int, float) or not 0 <= value < float("inf")):
            refuse(key, "a number of seconds of at least 0")
        if key in _TEXT and not (isinstance(value, str) and value):
            refuse(key, "a text")
        if key in _FLAGS and type(value) is not bool:
            refuse(key, "True or False")
        if key == "priority" and not (type(value) is int or (isinstance(value, list | tuple) and all(type(v) is int for v in value))):
            refuse(key, "a whole number or a list of them")
        if key == "after" and not (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)):
            refuse(key, "a list of group names")


def _check_names(groups: list[Group]) -> None:
    if not groups:
        raise UsageError("The spec has no groups.", 'give at least one, for example {"tasks": 12}')
    seen: set[str] = set()
    for group in groups:
        if group.name in seen or not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", group.name):
            raise UsageError(
                f"Group name {group.name!r} is used twice or cannot be part of a task id.",
                "give each group its own name of letters, digits, _ and -",
            )
        for earlier in group.after:
            if earlier not in seen:
                raise UsageError(
                    f"Group {group.name!r} comes after {earlier!r}, which is not an earlier group.",
                    "list groups in the order in which they run",
                )
        seen.add(group.name)
    for group in groups:
        task = re.fullmatch(r"(.+)_(\d{3,})", group.name) if group.mapped else None
        if task and any(g.name == task[1] and not g.mapped and int(task[2]) < g.tasks for g in groups):
            raise UsageError(f"Group {group.name!r} is called like a task of group {task[1]!r}.", "give it another name")

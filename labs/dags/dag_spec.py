"""The spec of a DAG: a short dict, checked key by key and spelled out for `dag_builder`.

Labs import this file, and it is copied beside `dag_builder` into Airflow's config folder: it needs the
standard library only. A spec describes one group of equal tasks, or several under `groups`. Everything
that is left out keeps Airflow's own default::

    {"tasks": 12, "pool": "narrow"}
    {"max_active_tasks": 4, "groups": [{"name": "light", "tasks": 6}, {"name": "heavy", "tasks": 3, "after": ["light"]}]}

A probe and a user's DAG have the same format, but for the few keys that make sense for one of them only.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = ("hold", "sleep", "cpu", "noop")
# What a group's `kind` says if an operator does its work.
OPERATOR = "operator"
# A spec is work for a laptop; a typing error must not become a denial of service.
MOST_TASKS = 1000
PRESETS = ("@once", "@hourly", "@daily", "@weekly", "@monthly", "@quarterly", "@yearly")
BASH = "airflow.providers.standard.operators.bash.BashOperator"


class SpecError(ValueError):
    """What is wrong with a spec and where (`message`), and what to write instead (`hint`)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        # One line, because the last line of an import error is what people see of it first.
        return f"{self.message} Next: {self.hint}" if self.hint else self.message


@dataclass(frozen=True)
class Group:
    """Equal tasks of a DAG. `priority` may be a list with one number per task, unless they are mapped."""

    name: str = "work"
    tasks: int = 1
    kind: str = "hold"
    seconds: float = 0.0
    operator: str | None = None
    # Out of the hash, for a dict has none.
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)
    mapped: bool = False
    chain: bool = False
    after: tuple[str, ...] = ()
    pool: str = "default_pool"
    pool_slots: int = 1
    queue: str | None = None
    executor: str | None = None
    # Out of the hash, like the arguments.
    pod: dict[str, str] | None = field(default=None, hash=False)
    priority: int | tuple[int, ...] = 1
    retries: int | None = None
    retry_delay: float | None = None
    max_active_tis_per_dag: int | None = None
    max_active_tis_per_dagrun: int | None = None

    @property
    def is_one_task(self) -> bool:
        """Whether the group is one task in the DAG and called like it, without a number."""
        return self.mapped or (self.operator is not None and self.tasks == 1)

    def base_arguments(self) -> dict[str, Any]:
        """Return what differs from Airflow's defaults, as keyword arguments that every operator has."""
        arguments = {
            "pool": self.pool,
            "pool_slots": self.pool_slots,
            "queue": self.queue,
            "executor": self.executor,
            "pod": self.pod,
            "priority_weight": list(self.priority) if isinstance(self.priority, tuple) else self.priority,
            "retries": self.retries,
            "retry_delay": self.retry_delay,
            "max_active_tis_per_dag": self.max_active_tis_per_dag,
            "max_active_tis_per_dagrun": self.max_active_tis_per_dagrun,
        }
        return {name: value for name, value in arguments.items() if value is not None}


@dataclass(frozen=True)
class Spec:
    """A whole DAG: its groups, its own limits, and, of a probe, how many DAG runs are triggered at once."""

    name: str = "probe"
    groups: tuple[Group, ...] = field(default_factory=tuple)
    max_active_tasks: int | None = None
    max_active_runs: int | None = None
    schedule: str | None = None
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

    def document(self, dag_id: str, gate: str = "") -> dict[str, Any]:
        """Return the JSON document from which `dag_builder` builds the DAG."""
        return {
            "schema": 1,
            "dag_id": dag_id,
            "schedule": self.schedule,
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
                    "operator": group.base_arguments(),
                    **self._own_operator(number),
                }
                for number, group in enumerate(self.groups)
            ],
        }

    def _own_operator(self, number: int) -> dict[str, Any]:
        group = self.groups[number]
        if group.operator is None:
            return {}
        where = "the spec" if len(self.groups) == 1 and group.name == Group.name else f"groups[{number}]"
        return {"class": group.operator, "arguments": group.arguments, "where": where}


_GROUP_KEYS = frozenset(Group.__dataclass_fields__)
_DAG_KEYS = frozenset(Spec.__dataclass_fields__)
_PROBE_ONLY = {"runs": "trigger the DAG as often as you like", "poll_seconds": "no task of this DAG waits at a gate"}
_AT_LEAST_ONE = (
    "tasks",
    "pool_slots",
    "max_active_tasks",
    "max_active_runs",
    "runs",
    "max_active_tis_per_dag",
    "max_active_tis_per_dagrun",
)
_TEXT = ("name", "pool", "queue", "executor", "kind", "operator", "schedule")
_FLAGS = ("mapped", "chain")
_OPTIONAL = {name for part in (Spec, Group) for name, entry in part.__dataclass_fields__.items() if entry.default is None}
_NUMBERS = ("seconds", "retry_delay", "poll_seconds")
_ALSO_OPERATORS = (
    "pool", "pool_slots", "queue", "executor", "retries", "retry_delay", "max_active_tis_per_dag", "max_active_tis_per_dagrun",
)  # fmt: skip
_OTHER_NAMES = {"task_id": "name", "priority_weight": "priority", "weight_rule": "priority"}
# Arguments of an operator that a key of the spec says already; an empty key: the spec says it by itself.
_SAID_BY = {**{name: name for name in _ALSO_OPERATORS}, **_OTHER_NAMES, "dag": "", "task_group": ""}
# What people write who know Airflow.
_OTHER_WORDS = {**_OTHER_NAMES, "dag_id": "name", "depends_on": "after", "upstream": "after"}
_DEEPEST = 20
# What a pod of its own may ask of its node, as Kubernetes writes it.
_POD_REQUESTS = {"cpu": (r"[1-9][0-9]*m?|0\.[0-9]*[1-9]", "500m"), "memory": (r"[1-9][0-9]*(Ki|Mi|Gi)", "512Mi")}


def parse(spec: Mapping[str, Any] | Spec) -> Spec:
    """Return the probe that a dict describes; raises SpecError that names the wrong key and what it may be."""
    if isinstance(spec, Spec):
        return spec
    parsed = _parse(spec, "probe spec", _DAG_KEYS, '{"tasks": 12, "pool": "narrow"}')
    if parsed.schedule is not None:
        raise SpecError(
            f"schedule = {parsed.schedule!r} in the spec is for DAGs of your own: the runs of a probe are triggered.",
            'leave schedule out; "runs": 2 triggers two DAG runs at once',
        )
    return parsed


def parse_dag(spec: Mapping[str, Any]) -> Spec:
    """Return the DAG of their own that a user's dict describes; raises SpecError like `parse`, also for what only a probe can have."""
    for key in _PROBE_ONLY if isinstance(spec, Mapping) else ():
        if key in spec:
            raise SpecError(f"{key} = {spec[key]!r} in the spec is for probes only.", f"leave {key} out: {_PROBE_ONLY[key]}")
    parsed = _parse(spec, "DAG spec", _DAG_KEYS - set(_PROBE_ONLY), '{"name": "nightly", "kind": "noop"}')
    if "name" not in spec:
        raise SpecError("name is missing in the spec: it becomes the id of the DAG.", 'add "name": "nightly"')
    for number, group in enumerate(parsed.groups):
        written, where = (spec["groups"][number], f"groups[{number}]") if "groups" in spec else (spec, "the spec")
        if group.kind == "hold" and "kind" in written:
            raise SpecError(
                f"kind = 'hold' in {where} is for probes only: nobody opens a gate for this DAG.", "give an operator, or sleep, cpu or noop"
            )
        if group.kind == "hold":
            raise SpecError(f"operator is missing in {where}: what do its tasks do?", f'add "operator": "{BASH}", or "kind": "noop"')
    return parsed


def read_yaml(text: str, yaml: Any, source: str = "The YAML") -> Any:
    """Return what YAML text describes; raises SpecError that names the line, also of a key that is written twice.

    `yaml` is PyYAML as the caller imported it.
    """

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node, seen = super().compose_mapping_node(anchor), set()
            for key in (key for key, _ in node.value if isinstance(key.value, str)):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise SpecError(f"{source} has the key {key.value!r} twice in one dict, the second in line {line}.", "keep one of them")
                seen.add(key.value)
            return node

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = ", ".join(filter(None, (getattr(error, "context", ""), getattr(error, "problem", "")))) or " ".join(str(error).split())
        raise SpecError(f"{source} cannot be read: {problem}{place}.", "look at the indentation and the quotes there") from error


def _parse(spec: Mapping[str, Any], what: str, known: frozenset[str], example: str) -> Spec:
    if not isinstance(spec, Mapping):
        raise SpecError(f"A {what} is a dict, not {type(spec).__name__}.", f"for example {example}")
    several = "groups" in spec
    _check_keys(spec, known if several else (known | _GROUP_KEYS) - {"groups", "after"}, f"a {what}")
    if several:
        groups = [_group(entry, f"groups[{i}]") for i, entry in enumerate(_entries(spec["groups"]))]
    else:
        groups = [_group({k: v for k, v in spec.items() if k in _GROUP_KEYS - {"name"}}, "the spec")]
    _check_names(groups)
    dag = {k: v for k, v in spec.items() if k in _DAG_KEYS - {"groups"}}
    _check_values(dag, "the spec")
    parsed = Spec(groups=tuple(groups), **dag)
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", parsed.name):
        raise SpecError(
            f"name = {parsed.name!r} in the spec cannot be part of a DAG id.", "use letters, digits, _ . and - only, at most 80"
        )
    if parsed.task_count > MOST_TASKS:
        raise SpecError(f"The spec asks for {parsed.task_count} task instances.", f"ask for {MOST_TASKS} at most")
    return parsed


def _entries(groups: Any) -> list[Mapping[str, Any]]:
    if not isinstance(groups, list | tuple):
        raise SpecError(f"groups = {groups!r} in the spec is not a list.", 'give a list, for example [{"name": "light", "tasks": 6}]')
    for number, entry in enumerate(groups):
        if not isinstance(entry, Mapping):
            raise SpecError(f"groups[{number}] = {entry!r} is not a dict.", 'give a dict, for example {"name": "light", "tasks": 6}')
    return list(groups)


def _group(entry: Mapping[str, Any], where: str) -> Group:
    _check_keys(entry, _GROUP_KEYS, where)
    _check_values(entry, where)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    if entry.get("operator") is not None:
        values |= {"kind": OPERATOR, "arguments": _arguments(entry, where)}
    elif entry.get("arguments"):
        raise SpecError(f"arguments in {where} have no operator to go to.", f'add "operator": "{BASH}"')
    group = Group(**values)
    if group.kind not in (*KINDS, OPERATOR) or entry.get("kind") == OPERATOR:
        raise SpecError(f"kind = {group.kind!r} in {where} is unknown.", f"choose one of: {', '.join(KINDS)}")
    if group.kind in ("sleep", "cpu") and group.seconds <= 0:
        raise SpecError(f"seconds is missing in {where}: a {group.kind} task needs to know how long.", 'add "seconds": 2')
    if isinstance(group.priority, tuple) and (group.mapped or len(group.priority) != group.tasks):
        raise SpecError(
            f"priority in {where} has {len(group.priority)} numbers for {group.tasks} tasks{' that are mapped' if group.mapped else ''}.",
            "give one number for all, or one per task without mapped",
        )
    if group.mapped and group.chain:
        raise SpecError(f"mapped and chain in {where} exclude each other.", "mapped task instances have no order among themselves")
    return group


def _arguments(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the arguments of the operator as JSON has them; raises SpecError for them and for what an operator excludes."""
    for key in ("kind", "seconds"):
        if key in entry:
            raise SpecError(f"{key} and operator in {where} exclude each other.", f"leave {key} out: the operator says what a task does")
    if entry.get("mapped"):
        raise SpecError(
            f"mapped and operator in {where} exclude each other.", f'leave mapped out: "tasks": {entry.get("tasks", 1)} makes as many tasks'
        )
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", entry["operator"], re.ASCII):
        raise SpecError(
            f"operator = {entry['operator']!r} in {where} is not the dotted path of a class.",
            f'give module and class, for example "{BASH}"',
        )
    arguments = entry.get("arguments", {})
    for name in arguments:
        if not (isinstance(name, str) and name.isidentifier()):
            raise SpecError(
                f"arguments in {where} has {name!r}, which cannot be the name of an argument.", "use letters, digits and _ only"
            )
        if name in _SAID_BY:
            key = _SAID_BY[name]
            hint = f'write "{key}" beside "arguments"' if key else "leave it out"
            if key == "name" and where == "the spec":
                hint = 'give "groups", each with a "name"'
            raise SpecError(f"arguments.{name} in {where} collides with what the spec says itself.", hint)
    return _plain(arguments, "arguments", where)


def _plain(value: Any, path: str, where: str, level: int = 0) -> Any:
    """Return a copy as JSON has it; raises SpecError for what JSON does not have."""
    if level > _DEEPEST:
        raise SpecError(f"arguments in {where} are nested deeper than {_DEEPEST} levels.", "give fewer levels")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise SpecError(f"{path} in {where} has the key {key!r}, which is not a text.", "put the key in quotes")
        return {key: _plain(entry, f"{path}.{key}", where, level + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{path}[{number}]", where, level + 1) for number, entry in enumerate(value)]
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise SpecError(
        f"{path} = {value!r} in {where} is a {type(value).__name__}, which JSON does not have.",
        "give a text in quotes, a number, true, false, null, a list or a dict",
    )


def _check_keys(entry: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for key in entry:
        if key not in known:
            raise SpecError(f"Unknown key {key!r} in {where}.", _instead(key, entry, known))


def _instead(key: Any, entry: Mapping[str, Any], known: frozenset[str]) -> str:
    """Return what to do about an unknown key."""
    if key in _GROUP_KEYS and "groups" in entry:
        return f"write {key!r} into the groups that it is for"
    near = [_OTHER_WORDS[key]] if _OTHER_WORDS.get(key) in known else difflib.get_close_matches(str(key), known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if "operator" in entry:
        return f'write {key!r} into "arguments", if it is one of the operator'
    return f"known keys: {', '.join(sorted(known))}"


def _check_values(entry: Mapping[str, Any], where: str) -> None:
    def refuse(key: str, what: str, instead: str = "") -> None:
        raise SpecError(f"{key} = {entry[key]!r} in {where} is not {what}.", f"give {instead or what}")

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
        if key == "pod":
            _check_pod(value, where)
        if key == "arguments" and not isinstance(value, Mapping):
            refuse(key, "a dict", 'a dict, for example {"bash_command": "echo done"}')
        if key == "schedule" and not _is_schedule(value):
            refuse(key, "a cron expression", f'five fields, for example "0 3 * * *", or one of {", ".join(PRESETS)}')


def _check_pod(value: Any, where: str) -> None:
    if not isinstance(value, Mapping) or not value:
        raise SpecError(f"pod = {value!r} in {where} is not a dict.", 'give what the pod asks for, for example {"cpu": "500m"}')
    for name, text in value.items():
        if name not in _POD_REQUESTS:
            raise SpecError(f"Unknown key {name!r} in pod in {where}.", f"known keys: {', '.join(_POD_REQUESTS)}")
        pattern, example = _POD_REQUESTS[name]
        if not isinstance(text, str) or not re.fullmatch(pattern, text):
            raise SpecError(f"pod.{name} = {text!r} in {where} is not a quantity of Kubernetes.", f'give a text such as "{example}"')


def _is_schedule(value: str) -> bool:
    """Return whether a text has the shape of a cron expression; Airflow itself checks the numbers."""
    fields = value.split()
    return value in PRESETS or (len(fields) == 5 and all(re.fullmatch(r"([*\dL]|[A-Za-z]{3}\b)\S*", one) for one in fields))


def _check_names(groups: list[Group]) -> None:
    if not groups:
        raise SpecError("The spec has no groups.", 'give at least one, for example {"tasks": 12}')
    seen: set[str] = set()
    for group in groups:
        if group.name in seen or not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", group.name):
            raise SpecError(
                f"Group name {group.name!r} is used twice or cannot be part of a task id.",
                "give each group its own name of letters, digits, _ and -",
            )
        for earlier in group.after:
            if earlier not in seen:
                raise SpecError(
                    f"Group {group.name!r} comes after {earlier!r}, which is not an earlier group.",
                    "list groups in the order in which they run",
                )
        seen.add(group.name)
    for group in groups:
        task = re.fullmatch(r"(.+)_(\d{3,})", group.name) if group.is_one_task else None
        if task and any(g.name == task[1] and not g.is_one_task and int(task[2]) < g.tasks for g in groups):
            raise SpecError(f"Group {group.name!r} is called like a task of group {task[1]!r}.", "give it another name")

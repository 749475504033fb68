"""Builds DAGs from specs: `dag_from_yaml` and `dag_from_dict` for a DAG file of your own, `build_dag` for the labs' probes.

It lies in Airflow's config folder, which is on the path of every process of Airflow and is not searched for
DAGs. Every task of a probe loads it, so what only some DAGs need is imported where it is needed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from copy import deepcopy
from datetime import timedelta
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, BaseOperator, Variable

# Longer than four letters, or Airflow's masking of secrets writes a warning into every task's log.
OPEN = "gate open"


def dag_from_dict(spec: Mapping[str, Any]) -> DAG:
    """Return the DAG that a dict describes; raises SpecError that names the wrong key and what to write instead."""
    from dag_spec import parse_dag

    parsed = parse_dag(spec)
    return build_dag(parsed.document(parsed.name))


def dag_from_yaml(text_or_path: str | Path) -> DAG:
    """Return the DAG that YAML describes; raises SpecError that names the wrong line or key and what to write instead.

    A Path, and one line that ends with .yaml or .yml, is a file; its path begins beside the file that calls.
    """
    text = str(text_or_path)
    if isinstance(text_or_path, Path) or ("\n" not in text and text.endswith((".yaml", ".yml"))):
        return _dag_from_file(Path(sys._getframe(1).f_globals.get("__file__", "")).parent / text)
    spec = _load(text)
    if isinstance(spec, str):
        message = f"{spec[:80]!r} is neither the YAML of a spec nor the name of a file."
        raise _wrong(message, "end the name of a file with .yaml or .yml")
    return dag_from_dict(spec)


def _dag_from_file(path: Path) -> DAG:
    from dag_spec import SpecError

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SpecError(f"The file {path} cannot be read: {reason}.", "its path begins in the folder of the DAG file") from error
    try:
        return dag_from_dict(_load(text))
    except SpecError as error:
        raise SpecError(f"{path.name}: {error.message}", error.hint) from error


def _load(text: str) -> Any:
    import yaml
    from dag_spec import read_yaml

    return read_yaml(text, yaml)


def _wrong(message: str, hint: str) -> ValueError:
    # A probe's document was checked before; only a user's DAG and a mistake pay for this import.
    from dag_spec import SpecError

    return SpecError(message, hint)


class ProbeOperator(BaseOperator):
    """One task of a probe: does nothing, sleeps, burns CPU time, or holds until the gate opens."""

    def __init__(
        self,
        *,
        kind: str,
        seconds: float = 0.0,
        gate: str = "",
        poll_seconds: float = 0.5,
        longest_hold: float = 900.0,
        index: int = 0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.kind = kind
        self.seconds = seconds
        self.gate = gate
        self.poll_seconds = poll_seconds
        self.longest_hold = longest_hold
        self.index = index

    def execute(self, context) -> None:
        begun = time.monotonic()
        if self.kind == "sleep":
            time.sleep(self.seconds)
        elif self.kind == "cpu":
            # CPU time, not wall time: two such tasks on one core take twice as long, not the same time.
            while time.process_time() < self.seconds:
                sum(i * i for i in range(10_000))
        elif self.kind == "hold":
            self._hold()
        self.log.info("This %s task worked for %.1f s.", self.kind, time.monotonic() - begun)

    def _hold(self) -> None:
        deadline = time.monotonic() + self.longest_hold
        while Variable.get(self.gate, default=OPEN) != OPEN:
            if time.monotonic() > deadline:
                raise TimeoutError(f"gate {self.gate} did not open within {self.longest_hold:.0f} s")
            time.sleep(self.poll_seconds)


def build_dag(document: dict, **more: Any) -> DAG:
    """Return the DAG that a spec's document describes, with `more` arguments of the DAG; raises SpecError for what Airflow refuses."""
    limits = {name: document[name] for name in ("max_active_tasks", "max_active_runs") if document.get(name) is not None}
    with DAG(document["dag_id"], schedule=document.get("schedule"), **limits, **more) as dag:
        ends = {}
        for group in document["groups"]:
            first, last = build_group(group)
            for earlier in group.get("after", []):
                for task in ends[earlier]:
                    task >> first
            ends[group["name"]] = last
    if document.get("schedule"):
        _require_schedule(dag, document["schedule"])
    return dag


def build_group(group: dict) -> tuple[list, list]:
    """Return the first and the last tasks of a group, between which it is connected inside."""
    tasks = _tasks_of_operator(group) if "class" in group else _tasks_of_kind(group)
    if group.get("chain"):
        for earlier, later in pairwise(tasks):
            earlier >> later
        return tasks[:1], tasks[-1:]
    return tasks, tasks


def base_arguments(group: dict, index: int) -> dict:
    """Return the keyword arguments that every operator has, of one task; a list of priorities gives each task its own."""
    arguments = dict(group["operator"])
    priority = arguments.pop("priority_weight", 1)
    arguments["priority_weight"] = priority[index] if isinstance(priority, list) else priority
    if pod := arguments.pop("pod", None):
        arguments["executor_config"] = {"pod_override": _pod_override(pod)}
    if "retry_delay" in arguments:
        arguments["retry_delay"] = timedelta(seconds=arguments["retry_delay"])
    return {**arguments, "weight_rule": "absolute"}


def _pod_override(requests: Mapping[str, str]) -> Any:
    """Return the pod that is laid over the executor's template: of its container, what it asks of the node."""
    # A large library, for the few DAGs that need it.
    from kubernetes.client import models

    container = models.V1Container(name="base", resources=models.V1ResourceRequirements(requests=dict(requests)))
    return models.V1Pod(spec=models.V1PodSpec(containers=[container]))


def _task_id(group: dict, index: int) -> str:
    return f"{group['name']}_{index:03d}"


def _tasks_of_kind(group: dict) -> list:
    def arguments(index: int) -> dict:
        return {
            **base_arguments(group, index),
            "do_xcom_push": False,
            "kind": group["kind"],
            "seconds": group.get("seconds", 0.0),
            "gate": group.get("gate", ""),
            "poll_seconds": group.get("poll_seconds", 0.5),
        }

    count = group["tasks"]
    if group.get("mapped"):
        return [ProbeOperator.partial(task_id=group["name"], **arguments(0)).expand(index=list(range(count)))]
    return [ProbeOperator(task_id=_task_id(group, i), index=i, **arguments(i)) for i in range(count)]


def _tasks_of_operator(group: dict) -> list:
    operator, count = import_operator(group["class"], group["where"]), group["tasks"]
    ids = [group["name"]] if count == 1 else [_task_id(group, i) for i in range(count)]
    try:
        return [operator(task_id=ids[i], **base_arguments(group, i), **deepcopy(group["arguments"])) for i in range(count)]
    except Exception as error:
        message = f"arguments in {group['where']} are refused by {operator.__name__}: {_one_line(error)}"
        given = ", ".join(group["arguments"]) or "none"
        raise _wrong(message, f"give the arguments that {operator.__name__} has; there are now: {given}") from error


def import_operator(path: str, where: str) -> type[BaseOperator]:
    """Return the operator class that a dotted path names; raises SpecError that names key and path."""
    module, _, name = path.rpartition(".")
    begin = f"operator = {path!r} in {where}"
    try:
        found = import_module(module)
    except Exception as error:
        hint = "look for a typing error; a provider must be installed in Airflow's environment"
        raise _wrong(f"{begin} cannot be imported: {_one_line(error)}", hint) from error
    if not hasattr(found, name):
        raise _wrong(f"{begin} cannot be imported: {module} has no {name}.", "look for a typing error in the name of the class")
    operator = getattr(found, name)
    if not (isinstance(operator, type) and issubclass(operator, BaseOperator)):
        raise _wrong(f"{begin} is not an operator.", "name a class that inherits from airflow.sdk.BaseOperator")
    return operator


def _require_schedule(dag: DAG, schedule: str) -> None:
    try:
        dag.timetable.validate()
    except Exception as error:
        message = f"schedule = {schedule!r} in the spec is refused by Airflow: {_one_line(error)}"
        raise _wrong(message, 'give a cron expression, for example "0 3 * * *"') from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).strip('"') or type(error).__name__
    return text if text.endswith(".") else f"{text}."

"""The one DAG file of the labs: builds a DAG from every probe spec in the folder `specs` beside it.

Airflow loads this file, so it imports `airflow.sdk` and the standard library only. A spec is written
and validated by `labs.spec`; here it is only turned into operators.
"""

from __future__ import annotations

import json
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from airflow.sdk import DAG, BaseOperator, Variable, get_parsing_context

SPECS = Path(__file__).resolve().parent / "specs"
# Longer than four letters, or Airflow's masking of secrets writes a warning into every task's log.
OPEN = "gate open"
SMOKE = {
    "dag_id": "lab_smoke",
    "groups": [{"name": "smoke", "kind": "noop", "tasks": 1, "operator": {}}],
}


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


def operator_arguments(group: dict, index: int) -> dict:
    """Return the keyword arguments of one task; a list of priorities gives each task its own."""
    arguments = dict(group["operator"])
    priority = arguments.pop("priority_weight", 1)
    arguments["priority_weight"] = priority[index] if isinstance(priority, list) else priority
    if "retry_delay" in arguments:
        arguments["retry_delay"] = timedelta(seconds=arguments["retry_delay"])
    return {
        **arguments,
        "weight_rule": "absolute",
        "do_xcom_push": False,
        "kind": group["kind"],
        "seconds": group.get("seconds", 0.0),
        "gate": group.get("gate", ""),
        "poll_seconds": group.get("poll_seconds", 0.5),
    }


def build_group(group: dict) -> tuple[list, list]:
    """Return the first and the last tasks of a group, between which it is connected inside."""
    count = group["tasks"]
    if group.get("mapped"):
        partial = ProbeOperator.partial(task_id=group["name"], **operator_arguments(group, 0))
        tasks = [partial.expand(index=list(range(count)))]
    else:
        tasks = [ProbeOperator(task_id=f"{group['name']}_{i:03d}", index=i, **operator_arguments(group, i)) for i in range(count)]
    if group.get("chain"):
        for earlier, later in pairwise(tasks):
            earlier >> later
        return tasks[:1], tasks[-1:]
    return tasks, tasks


def build_dag(spec: dict) -> DAG:
    """Return the DAG that a spec describes."""
    limits = {name: spec[name] for name in ("max_active_tasks", "max_active_runs") if spec.get(name) is not None}
    with DAG(spec["dag_id"], schedule=None, is_paused_upon_creation=False, tags=["lab"], **limits) as dag:
        ends = {}
        for group in spec["groups"]:
            first, last = build_group(group)
            for earlier in group.get("after", []):
                for task in ends[earlier]:
                    task >> first
            ends[group["name"]] = last
    return dag


# A task process needs its own DAG only; building the others would be time that no user's DAG costs.
wanted = get_parsing_context().dag_id
for spec in [SMOKE, *(json.loads(path.read_text()) for path in sorted(SPECS.glob("*.json")))]:
    if wanted in (None, spec["dag_id"]):
        globals()[spec["dag_id"]] = build_dag(spec)

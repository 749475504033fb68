"""The table of variants: which executor, metadata database and services make one way to run Airflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from provision.errors import UsageError

CORE_SERVICES = ("api-server", "scheduler", "dag-processor", "triggerer")

# Settings of every variant, by Airflow's own "section.key": what a lab needs to know or to ask.
COMMON: Mapping[str, str] = {
    "core.load_examples": "False",
    "core.auth_manager": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
    # Airflow's defaults, written down because every prediction uses them.
    "core.max_active_tasks_per_dag": "16",
    "core.max_active_runs_per_dag": "16",
    "core.default_pool_task_slot_count": "128",
    # Notebook 00 compares what Airflow says about itself with the installation file.
    "api.expose_config": "non-sensitive-only",
}

# Settings that suit a laptop better than the ones Airflow is shipped with; `labs bench` measures the difference.
TUNED: Mapping[str, str] = {
    # The gate counts heartbeats as evidence that the scheduler has looked again (default 5 s).
    "scheduler.scheduler_heartbeat_sec": "1",
    # An idle scheduler sleeps this long between loops (default 1 s): the largest part of a hop's latency.
    "scheduler.scheduler_idle_sleep_time": "0.1",
    # One user, few DAGs: one parser is enough and leaves the cores to the tasks.
    "dag_processor.parsing_processes": "1",
    # A worker that is woken an instant before its task's process ends keeps the slot until the next
    # heartbeat, 5 s by default: three of ten short tasks did. Whole seconds only; 0 would never sleep.
    "workers.min_heartbeat_interval": "1",
    # A task that a fault killed is noticed after this long; the default is 300 s.
    "scheduler.task_instance_heartbeat_timeout": "60",
}


@dataclass(frozen=True)
class Variant:
    """One row of the table; one that is `as_shipped` keeps Airflow's own settings wherever a lab can do without."""

    name: str
    summary: str
    executor: str
    database: str
    services: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    as_shipped: bool = False

    def effective_settings(self, changes: Mapping[str, str]) -> dict[str, str]:
        """Return every setting by "section.key": common and tuned ones, the variant's, then the lab's changes."""
        tuned = {} if self.as_shipped else TUNED
        return {**COMMON, **tuned, "core.executor": self.executor, **self.settings, **changes}


VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            name="sqlite",
            summary="LocalExecutor with one worker process on SQLite: the sequential executor of old",
            executor="LocalExecutor",
            database="sqlite",
            services=CORE_SERVICES,
            settings={"core.parallelism": "1"},
        ),
        Variant(
            name="postgres",
            summary="LocalExecutor with eight worker processes on PostgreSQL",
            executor="LocalExecutor",
            database="postgres",
            services=("postgres", *CORE_SERVICES),
            settings={"core.parallelism": "8"},
        ),
        Variant(
            name="standalone",
            summary="what `airflow standalone` starts, as shipped: LocalExecutor with 32 worker processes on SQLite",
            executor="LocalExecutor",
            database="sqlite",
            services=CORE_SERVICES,
            settings={"core.parallelism": "32"},
            as_shipped=True,
        ),
    )
}


def variant_named(name: str) -> Variant:
    """Return the row called `name`; raises UsageError that lists the names there are."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise UsageError(f"Unknown variant {name!r}.", f"choose one of: {', '.join(VARIANTS)}") from None

"""Airflow imports this module at start (its documented hook for local settings).

Four things that cost every task time are arranged once per process here. None of them changes what
Airflow does; `labs bench` measures what they gain against Airflow as it is shipped.

1. The cyclic garbage collector runs less often. By default it looks for garbage after every 700 new
   containers: a sixth of the API server's and a tenth of the scheduler's CPU time per task.
2. The scheduler imports, before it forks the LocalExecutor's worker processes, what every task process
   would otherwise import again for itself. The memory is shared by all workers. A Celery worker does the
   same before it forks its processes. The setting labs.preload = False switches it off, for comparison.
3. Whatever forks the supervisors of tasks, a scheduler or a Celery worker, asks the kernel to be run as
   batch work. A task's process closes its pipes an instant before it ends; a supervisor that is woken in
   that instant, and so takes the core from the process that is ending, misses the end and keeps the slot
   until the next heartbeat (airflow/sdk/execution_time/supervisor.py, _monitor_subprocess). Batch work is
   not woken that eagerly.
4. A process that ends does not look for garbage once more: Python does so several times over, on all that
   was ever imported. It is half a CPU second for the pod of a task, and four for an API server.
"""

import atexit
import contextlib
import gc
import importlib
import os
import sys

# Airflow copies every public name of this module into airflow.settings; none is meant for it.
__all__ = ()

TASK_MODULES = (
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.sdk.definitions.connection",
    "airflow.sdk.definitions.asset.metadata",
    "airflow.sdk.definitions.decorators.condition",
    "airflow.sdk.definitions.decorators.setup_teardown",
    "airflow.sdk.definitions.decorators.task_group",
    "airflow.sdk.bases.branch",
    "airflow.sdk.bases.decorator",
    "airflow.sdk._shared.logging.factory",
    "airflow.sdk._shared.logging.remote",
    "airflow.dag_processing.bundles.local",
    "airflow.providers.standard.operators.python",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.common.compat.standard.operators",
    "airflow.version",
    "jinja2.ext",
)

# What a task needs and a Celery worker has not loaded yet when it forks, found by listing what its processes import at
# their first task: 0.3 s for each process, or for each task with worker_max_tasks_per_child = 1. None of these modules
# opens a connection to the database. Celery's own setting for this (imports) ends a worker that cannot find a module.
WORKER_MODULES = (
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.sdk.definitions.connection",
    "airflow.dag_processing.importers",
    "airflow.dag_processing.bundles.local",
    "airflow.models.serialized_dag",
    "airflow.models.dagbag",
    "airflow.models.dag_favorite",
    "airflow.models.task_state_store",
    "airflow.models.asset_state_store",
    "airflow.models.errors",
    "airflow.version",
)


def runs_local_executor() -> bool:
    """Return whether this process is a scheduler that forks the LocalExecutor's workers."""
    return "scheduler" in sys.argv and "LocalExecutor" in os.environ.get("AIRFLOW__CORE__EXECUTOR", "LocalExecutor")


def is_celery_worker() -> bool:
    """Return whether this process is a Celery worker."""
    return "celery" in sys.argv and "worker" in sys.argv


gc.set_threshold(50_000, 20, 50)
# What is frozen is not looked at; the system takes all memory back anyway.
atexit.register(gc.freeze)


def preload(names) -> None:
    """Import these modules, as far as this Airflow has them: one that was renamed costs time, not correctness."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


if os.environ.get("AIRFLOW__LABS__PRELOAD", "True").lower() in ("true", "t", "1"):
    if runs_local_executor():
        preload(TASK_MODULES)
    if is_celery_worker():
        preload(WORKER_MODULES)

if (runs_local_executor() or is_celery_worker()) and hasattr(os, "SCHED_BATCH"):
    # Linux only, no privilege needed; a container may forbid the call, and nothing is lost then.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

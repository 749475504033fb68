"""Airflow imports this module at start (its documented hook for local settings).

The scheduler imports here, before it forks the LocalExecutor's worker processes, what every task
process would otherwise import again for itself. `labs bench` measures what that gains. It changes
no behaviour: the same modules are loaded, only earlier, and their memory is shared by all workers.
"""

import contextlib
import importlib
import sys

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
    "airflow.providers.standard.operators.python",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.common.compat.standard.operators",
    "airflow.version",
    "jinja2.ext",
)

if "scheduler" in sys.argv:
    for name in TASK_MODULES:
        # A module that another Airflow version renamed costs time, not correctness.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)

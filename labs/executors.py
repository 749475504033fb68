"""Which executor runs which task, in an installation that has one or several. All pure.

Airflow's `executor` setting is a list: a task goes to the executor that it names, or else to the first
(`_try_to_load_executor`, airflow/jobs/scheduler_job_runner.py, 3.3.2).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from labs.admission import Limit
from labs.errors import LabError
from labs.spec import Group

LOCAL, CELERY, KUBERNETES = "LocalExecutor", "CeleryExecutor", "KubernetesExecutor"
# Who counts what it was handed until it has ended, running or not (`running` in celery_executor.py of the Celery provider
# 3.26 and kubernetes_executor.py of provider 10.25). The LocalExecutor never fills `running` (local_executor.py, 3.3.2).
COUNTING = (CELERY, KUBERNETES)


def executors(settings: Mapping[str, str]) -> tuple[str, ...]:
    """Return the executors of an installation, the default one first; raises LabError for one that the limit model does not know."""
    return _listed(settings["core.executor"])


@functools.cache
def _listed(executor: str) -> tuple[str, ...]:
    listed = tuple(name.strip() for name in executor.split(","))
    for name in listed:
        if name not in (LOCAL, *COUNTING):
            raise LabError(
                f"The limit model does not know the executor {name!r}.",
                f"choose a variant with the {LOCAL}, the {CELERY} or the {KUBERNETES}",
            )
    return listed


def executor_of(group: Group, settings: Mapping[str, str]) -> str:
    """Return the executor that runs the tasks of a group; raises LabError for one that the installation does not have."""
    listed = executors(settings)
    if group.executor is None:
        return listed[0]
    if group.executor not in listed:
        raise LabError(
            f"The tasks of group {group.name!r} ask for the {group.executor}, which this installation does not have.",
            f"choose one of: {', '.join(listed)}",
        )
    return group.executor


def only_on(executor: str, limit: Limit, settings: Mapping[str, str]) -> Limit:
    """Return a limit that holds for the tasks of one executor alone."""
    return replace(limit, scope=lambda c: limit.scope(c) if executor_of(c.group, settings) == executor else None)

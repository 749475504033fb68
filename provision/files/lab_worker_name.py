"""Airflow asks this for the host name that it stores with each task instance ([core] hostname_callable).

Celery workers that stand for machines of their own go by their worker's name. The name of the machine,
which is the same for all of them, would not tell who ran a task.
"""

import os


def worker_name():
    """Return the name of the worker that this process belongs to."""
    return os.environ["LAB_WORKER"]

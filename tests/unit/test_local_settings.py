"""The file that Airflow imports at start: what it loads, for whom, and that it never keeps a service from starting."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import runpy
import subprocess
import sys

import pytest

from provision.local.desired import FILES

FILE = FILES / "airflow_local_settings.py"


@pytest.fixture
def started(monkeypatch):
    """Return what a process with these arguments and variables imports by itself at start."""

    def start(*arguments: str, missing: str = "", **environment: str) -> list[str]:
        imported = []

        def import_module(name):
            if name == missing:
                raise ModuleNotFoundError(name)
            imported.append(name)

        monkeypatch.setattr(sys, "argv", ["airflow", *arguments])
        monkeypatch.setattr(importlib, "import_module", import_module)
        monkeypatch.setattr(os, "sched_setscheduler", lambda *how: None, raising=False)
        monkeypatch.setattr(gc, "set_threshold", lambda *how: None)
        monkeypatch.setattr(atexit, "register", lambda function: None)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        runpy.run_path(str(FILE))
        return imported

    return start


def lists() -> dict:
    """Return the names in the file without running what it does at start."""
    source = FILE.read_text()
    names: dict = {}
    exec(compile(source[: source.index("gc.set_threshold")], str(FILE), "exec"), names)
    return names


def test_a_celery_worker_loads_what_its_tasks_need_before_it_forks(started):
    assert started("celery", "worker", AIRFLOW__CORE__EXECUTOR="CeleryExecutor") == list(lists()["WORKER_MODULES"])


def test_a_scheduler_loads_it_for_the_local_executor_only(started):
    assert started("scheduler", AIRFLOW__CORE__EXECUTOR="LocalExecutor") == list(lists()["TASK_MODULES"])
    assert started("scheduler", AIRFLOW__CORE__EXECUTOR="CeleryExecutor") == []


@pytest.mark.parametrize("arguments", [("api-server",), ("dag-processor",), ("triggerer",), ("celery", "flower"), ("db", "migrate")])
def test_nobody_else_loads_anything(started, arguments):
    assert started(*arguments, AIRFLOW__CORE__EXECUTOR="CeleryExecutor") == []


def test_a_module_that_this_airflow_does_not_have_keeps_no_worker_from_starting(started):
    first, *others = lists()["WORKER_MODULES"]
    assert started("celery", "worker", missing=first, AIRFLOW__CORE__EXECUTOR="CeleryExecutor") == others


@pytest.mark.parametrize(("value", "loads"), [("True", True), ("true", True), ("False", False), ("", False)])
def test_it_can_be_switched_off_for_comparison(started, value, loads):
    assert bool(started("celery", "worker", AIRFLOW__LABS__PRELOAD=value)) is loads


def test_a_process_ends_without_looking_for_garbage():
    cycle = """
class Told:
    def __del__(self): print("collected")
told = Told(); told.itself = told; del told
"""
    for before, printed in ((f"import runpy; runpy.run_path({str(FILE)!r})", ""), ("", "collected\n")):
        done = subprocess.run([sys.executable, "-c", before + cycle], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == printed

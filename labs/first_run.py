"""From nothing to the first finished DAG run: the labs' way and `pip install apache-airflow`, each in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from labs.airflow_api import AirflowApi
from labs.errors import LabError
from labs.installation import read_installation
from labs.services import Report
from labs.stock import describe_stock, prepare_files, run_smoke, stock_environment, wait_until_ready
from provision import secret_store
from provision.home import REPOSITORY, LabHome, lab_home
from provision.pins import airflow_version

NOT_CHECKED_OUT = (".git", ".lab", "runs", "__pycache__", ".venv", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints", "*.egg-info")


def ours(report: Report) -> float:
    """Return the seconds from a fresh checkout to a finished DAG run on the variant `sqlite`."""
    with _folder("ours") as folder:
        checkout, home = folder / "checkout", folder / "home"
        shutil.copytree(REPOSITORY, checkout, ignore=shutil.ignore_patterns(*NOT_CHECKED_OUT))
        environment = _clean_environment() | {"LAB_HOME": str(home)}
        log = folder / "log"
        begun = time.monotonic()
        try:
            report("first run, ours: making the control environment")
            _run([_base_python(), "provision/bootstrap.py"], checkout, environment, log)
            report("first run, ours: installing the variant sqlite")
            _run([str(home / "control" / "bin" / "fab"), "install", "sqlite"], checkout, environment, log)
            run_smoke(AirflowApi(read_installation(home)))
            return time.monotonic() - begun
        finally:
            if (home / "control" / "bin" / "fab").exists():
                _run([str(home / "control" / "bin" / "fab"), "destroy"], checkout, environment, log)


def stock(report: Report) -> float:
    """Return the seconds from an empty folder to a finished DAG run by way of venv, pip and `airflow standalone`."""
    with _folder("stock") as folder:
        home, log, venv = LabHome(folder, folder), folder / "log", folder / "venv"
        home.prepare()
        password = secret_store.load_or_create(home)["api_password"]
        prepare_files(home.airflow_home, password)
        begun = time.monotonic()
        report("first run, stock: venv and pip install")
        _run([_base_python(), "-m", "venv", str(venv)], folder, _clean_environment(), log)
        _run([str(venv / "bin" / "pip"), "install", "--quiet", f"apache-airflow=={airflow_version()}"], folder, _clean_environment(), log)
        environment = stock_environment(home.airflow_home, venv / "bin", {})
        report("first run, stock: airflow standalone")
        with _process([str(venv / "bin" / "airflow"), "standalone"], folder, _clean_environment() | environment, log):
            api = AirflowApi(describe_stock(home, environment))
            wait_until_ready(api)
            run_smoke(api)
            return time.monotonic() - begun


@contextlib.contextmanager
def _folder(name: str) -> Iterator[Path]:
    # Where `fab destroy` looks for what an interrupted command left behind.
    folder = lab_home().throwaway(f"bench-{os.getpid()}-first-{name}").root
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _process(command: list[str], folder: Path, environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("a") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield
    finally:
        # All of them at once: a scheduler that waits for its tasks would outlive its folder.
        tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in tree:
            with contextlib.suppress(psutil.Error):
                member.kill()
        process.wait()
        psutil.wait_procs(tree, timeout=10)


def _run(command: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
    with log.open("a") as output:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = "\n  ".join(log.read_text(errors="replace").splitlines()[-10:])
        raise LabError(f"{' '.join(command[:3])} failed (exit code {done.returncode}):\n  {lines}", "run it by hand to see more")


def _base_python() -> str:
    return getattr(sys, "_base_executable", sys.executable)


def _clean_environment() -> dict[str, str]:
    foreign = ("AIRFLOW", "LAB_", "PYTHON", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}

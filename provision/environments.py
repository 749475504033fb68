"""The Airflow environment: one virtual environment per lock, installed by uv with hashes checked."""

from __future__ import annotations

import ast
import difflib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from provision import certificates
from provision.errors import ProvisionError, UsageError
from provision.home import ROOM_FOR_ENVIRONMENT_MIB, LabHome, require_room
from provision.pins import airflow_lock, airflow_version

# Written last, so that its presence means that every package is there.
COMPLETE = "complete"
# Which settings there are, among the packages of an environment: those of Airflow itself, and of the providers of executors.
TABLES = (
    "airflow/config_templates/config.yml",
    "airflow/providers/celery/get_provider_info.py",
    "airflow/providers/cncf/kubernetes/get_provider_info.py",
)


def environment_path(home: LabHome) -> Path:
    """Return the folder of the environment; its name holds the version and the digest of the lock."""
    digest = hashlib.sha256(airflow_lock().read_bytes() + sys.version.encode()).hexdigest()[:12]
    return home.environments / f"airflow-{airflow_version()}-{digest}"


def is_complete(environment: Path) -> bool:
    """Return whether an install of this environment ran to its end."""
    return (environment / COMPLETE).is_file() and (environment / "bin" / "airflow").is_file()


def uv_binary() -> Path:
    """Return the uv of the control environment; raises ProvisionError if it is not there."""
    uv = Path(sys.prefix) / "bin" / "uv"
    if not uv.exists():
        raise ProvisionError(f"uv is missing from the control environment ({uv}).", "make setup")
    return uv


def build_environment(home: LabHome) -> Path:
    """Return the environment's folder after installing the lock into it; an unfinished one is built anew."""
    environment = environment_path(home)
    if is_complete(environment):
        return environment
    require_room(home.environments, ROOM_FOR_ENVIRONMENT_MIB)
    shutil.rmtree(environment, ignore_errors=True)
    environment.parent.mkdir(parents=True, exist_ok=True)
    uv = str(uv_binary())
    _run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)], environment)
    _run(
        [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(environment / "bin" / "python")] + [str(airflow_lock())],
        environment,
    )
    (environment / COMPLETE).write_text(airflow_version() + "\n")
    return environment


def _run(command: list[str], environment: Path) -> None:
    trusted = {**os.environ, **certificates.variables()}
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=trusted)
    if done.returncode:
        last_lines = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-10:])
        raise ProvisionError(
            f"Airflow {airflow_version()} could not be installed into {environment} (exit code {done.returncode}):\n  {last_lines}",
            "check the network and the disk, then run the same command again; what was downloaded is kept",
        )


def check_settings_exist(environment: Path, changes: Mapping[str, str]) -> None:
    """Raise UsageError for a setting that the Airflow in this environment does not know."""
    if changes:
        (packages,) = (environment / "lib").glob("python*/site-packages")
        check_known(changes, *((packages / table).read_text() if (packages / table).exists() else "" for table in TABLES))


def check_known(changes: Mapping[str, str], core: str, *providers: str) -> None:
    """Raise UsageError for a setting that this Airflow does not know: it would ignore it silently.

    These are the texts of `TABLES`; that of a provider is empty where it is not installed. Sections of other providers
    are in none of them, and let through.
    """
    known = yaml.load(core, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for code in providers:
        known |= _provider_table(code)
    known |= {"labs": {"options": {key: {} for key in _LABS_OWN}}}
    for setting in changes:
        section, _, key = setting.partition(".")
        meant = difflib.get_close_matches(section, known, n=1, cutoff=0.8)
        if section not in known and meant:
            raise UsageError(f"Airflow {airflow_version()} has no setting {setting}.", f"did you mean: {meant[0]}.{key}?")
        options = known.get(section, {}).get("options")
        if (options or {}).get(key, {}).get("sensitive") or key.endswith(("_cmd", "_secret", "password")):
            raise UsageError(f"{setting} holds a secret, and settings are written into results and reports.", "leave it out")
        if options is not None and key not in options and section not in _HANDED_ON:
            near = difflib.get_close_matches(key, options, n=3)
            raise UsageError(
                f"Airflow {airflow_version()} has no setting {setting}.",
                f"did you mean: {', '.join(f'{section}.{option}' for option in near or sorted(options)[:5])}?",
            )


# Settings of the labs' own, in the section that Airflow does not have.
_LABS_OWN = ("preload", "pod_cpu", "pod_memory")
# Read by the provider (default_celery.py, 3.26) and missing from its table.
_NOT_IN_THE_TABLE = ("broker_connection_retry_on_startup",)
# Sections that are handed to Celery's broker and backend as they are, whatever keys they have.
_HANDED_ON = ("celery_broker_transport_options", "celery_result_backend_transport_options")


def _provider_table(code: str) -> dict[str, Any]:
    """Return the sections that an installed provider knows; none if it is not installed."""
    if not code:
        return {}
    # The function returns a literal. It is read, not called: nothing of the Airflow environment is imported here.
    (returned,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Return))
    table = ast.literal_eval(returned.value)["config"]
    if "celery" in table:
        table["celery"]["options"] |= {key: {} for key in _NOT_IN_THE_TABLE}
    return table

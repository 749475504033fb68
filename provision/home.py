"""Where everything that an installation needs is kept: `.lab/`, or `$LAB_HOME`."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision.errors import ProvisionError

REPOSITORY = Path(__file__).resolve().parent.parent
HOME_VARIABLE = "LAB_HOME"
# Says that a folder was made for a lab, and that what `contents` names in it may be removed again.
MARKER = "made-by-airflow-executor-labs"
# The Airflow environment is 340 MB; a database, logs and room to unpack wheels come on top.
ROOM_FOR_ENVIRONMENT_MIB = 1500
ROOM_TO_RUN_MIB = 200


@dataclass(frozen=True)
class LabHome:
    """The folders and files of one installation; `shared` is the home whose environments it uses."""

    root: Path
    shared: Path

    @property
    def environments(self) -> Path:
        return self.shared / "environments"

    @property
    def airflow_home(self) -> Path:
        return self.root / "airflow"

    @property
    def dags(self) -> Path:
        return self.airflow_home / "dags"

    @property
    def specs(self) -> Path:
        return self.dags / "specs"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def databases(self) -> Path:
        return self.root / "databases"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets.json"

    @property
    def installation(self) -> Path:
        return self.root / "installation.json"

    @property
    def environment_file(self) -> Path:
        return self.root / "airflow.env"

    def throwaway(self, name: str) -> LabHome:
        """Return a home inside this one for an installation that lives for a single experiment."""
        return LabHome(root=self.root / "throwaway" / name, shared=self.shared)

    def contents(self) -> list[Path]:
        """Return what an installation puts into this home, and nothing that somebody else may keep there."""
        folders = [self.airflow_home, self.state, self.logs, self.databases, self.root / "throwaway"]
        files = [self.secrets, self.installation, self.environment_file]
        own = [self.environments, self.shared / "wheelhouse"] if self.root == self.shared else []
        return [*folders, *own, *files, *(file.with_name(file.name + ".new") for file in files)]

    def require_own(self) -> None:
        """Raise ProvisionError if somebody else keeps files in the folder: destroying a lab would remove theirs."""
        if self.root.is_dir() and any(self.root.iterdir()) and not (self.root / MARKER).exists():
            raise ProvisionError(
                f"{self.root} is not empty and was not made for a lab.", f"choose a new folder: {HOME_VARIABLE}=/path/to/new/folder"
            )

    def prepare(self) -> None:
        """Create the folders, readable by their owner only; raises ProvisionError if that fails."""
        self.require_own()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / MARKER).touch()
            for folder in (self.root, self.airflow_home, self.dags, self.specs, self.state, self.logs, self.databases):
                folder.mkdir(parents=True, exist_ok=True)
            self.root.chmod(0o700)
        except OSError as error:
            raise ProvisionError(
                f"{self.root} cannot be used as the lab's folder: {error.strerror} ({error.filename}).",
                f"choose another folder with {HOME_VARIABLE}=/path/to/folder",
            ) from error


def lab_home() -> LabHome:
    """Return the home that `$LAB_HOME` names, or `.lab` beside this package."""
    root = Path(os.environ.get(HOME_VARIABLE) or REPOSITORY / ".lab").expanduser().resolve()
    return LabHome(root=root, shared=root)


def require_room(folder: Path, mebibytes: int) -> None:
    """Raise ProvisionError unless the file system of `folder` has `mebibytes` MiB free."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free // 2**20
    if free < mebibytes:
        raise ProvisionError(
            f"No disk space: {existing} has {free} MiB free, {mebibytes} MiB are needed.",
            f"free some space, or put the lab elsewhere with {HOME_VARIABLE}=/path/to/folder",
        )


def write_private(path: Path, text: str) -> bool:
    """Replace `path` by `text` in one step, mode 0600; return whether the content changed."""
    content = text.encode()
    if path.exists() and path.read_bytes() == content and path.stat().st_mode & 0o777 == 0o600:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.chmod(0o600)
    temporary.replace(path)
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty when there is none or it is damaged."""
    try:
        value = json.loads(path.read_text())
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError):
        return {}

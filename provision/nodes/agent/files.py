"""Files and folders of a node: compared, made, replaced in one step each, removed."""

from __future__ import annotations

import base64
import glob
import grp
import hashlib
import os
import pwd
import shutil
import stat
from typing import Any

from provision.nodes.agent.basics import Failure


def is_as(path: str, wanted: dict[str, Any]) -> bool:
    """Return whether a file has this content, owner, group and mode."""
    try:
        status = os.stat(path)
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        return (digest, status.st_mode & 0o7777, pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name) == (
            wanted["sha256"], int(wanted["mode"], 8), wanted["owner"], wanted["group"],
        )  # fmt: skip
    except (OSError, KeyError):
        return False


def is_folder_as(path: str, wanted: dict[str, Any]) -> bool:
    """Return whether there is a folder, and no link, with this owner, group and mode."""
    try:
        status = os.lstat(path)
        found = (stat.S_IMODE(status.st_mode), pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name)
        return stat.S_ISDIR(status.st_mode) and found == (int(wanted["mode"], 8), wanted["owner"], wanted["group"])
    except (OSError, KeyError):
        return False


def make_folders(folders: dict[str, dict[str, str]]) -> None:
    """Make folders with owner, group and mode, by path."""
    for path, wanted in folders.items():
        # Services may have put a link into a folder of theirs; root must not follow it.
        if os.path.islink(path):
            raise Failure(f"{path} is a link, and should be a folder.", f"look who made it (ls -l {path}), and remove it")
        os.makedirs(path, exist_ok=True)
        shutil.chown(path, wanted["owner"], wanted["group"])
        os.chmod(path, int(wanted["mode"], 8))


def write_files(files: dict[str, dict[str, str]]) -> list[str]:
    """Replace files in one step each; each has text, owner, group and mode. Return the paths of those that were not so already."""
    changed = []
    for path, wanted in files.items():
        digest = hashlib.sha256(wanted["text"].encode()).hexdigest()
        if is_as(path, {**wanted, "sha256": digest}):
            # Untouched: whoever reads it knows by its time whether it is newer than what he read.
            continue
        changed.append(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.new"
        # Anew and by its descriptor: a link that a service put there is not followed.
        remove([temporary])
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(wanted["text"])
            file.flush()
            os.fchown(descriptor, pwd.getpwnam(wanted["owner"]).pw_uid, grp.getgrnam(wanted["group"]).gr_gid)
            os.fchmod(descriptor, int(wanted["mode"], 8))
        try:
            os.replace(temporary, path)
        except OSError:
            # A container's /etc/hosts is a mount, which can be written but not replaced.
            os.unlink(temporary)
            with open(path, "w") as file:
                file.write(wanted["text"])
            os.chmod(path, int(wanted["mode"], 8))
    return changed


def remove(paths: list[str]) -> None:
    """Remove files and folders, which may be patterns; what is not there is no error."""
    for path in (found for pattern in paths for found in glob.glob(pattern)):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        elif os.path.lexists(path):
            os.unlink(path)


def link(name: str, path: str) -> None:
    """Make the symbolic link `name` lead to `path`, in one step."""
    if os.path.realpath(name) != path:
        temporary = f"{name}.new"
        remove([temporary])
        os.symlink(path, temporary)
        os.replace(temporary, name)


def contents(root: str, folders: list[str]) -> dict[str, str]:
    """Return every file of some folders below `root` in base64, by its path from there; what Python or this agent writes beside is none."""
    found = {}
    for folder in folders:
        for where, inner, names in os.walk(os.path.join(root, folder)):
            inner[:] = [name for name in inner if name != "__pycache__"]
            for path in (os.path.join(where, name) for name in names if not name.endswith(".new")):
                if os.path.isfile(path) and not os.path.islink(path):
                    with open(path, "rb") as file:
                        found[os.path.relpath(path, root)] = base64.b64encode(file.read()).decode()
    return dict(sorted(found.items()))


def names_in(folder: str, pattern: str) -> list[str]:
    """Return the names of the files in a folder that match a pattern, sorted."""
    return sorted(os.path.basename(path) for path in glob.glob(os.path.join(folder, pattern)))


def sizes_in(folder: str) -> dict[str, int]:
    """Return the sizes of the files in a folder in bytes, by name, sorted."""
    return {name: os.path.getsize(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}

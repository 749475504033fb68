"""The Git repository on a node that hands its DAGs to pods."""

from __future__ import annotations

import hashlib
import json
import os

from provision.nodes.agent.basics import Failure, run
from provision.nodes.agent.files import contents, make_folders, remove

# Nobody's settings but the agent's own.
_GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "airflow-labs"), ("EMAIL", "airflow-labs@localhost"))},
}  # fmt: skip
# How the last line of a commit's message begins.
_CONTENT = "Content: "


def is_committed(repository: str, group: str, root: str, folders: list[str]) -> bool:
    """Return whether the last commit of a repository is what its folders hold now."""
    return _committed(repository) == _digest_of(contents(root, folders))


def commit(repository: str, group: str, root: str, folders: list[str]) -> None:
    """Commit what some folders below `root` hold to a bare repository that `group` may read; it is made if it is not there."""
    files = contents(root, folders)
    if _committed(repository) == _digest_of(files):
        return
    try:
        _commit(repository, group, root, files)
    except Failure:
        # An interrupted git leaves locks, or half a repository; nothing is in it that is not in the folders.
        remove([repository])
        _commit(repository, group, root, files)


def _commit(repository: str, group: str, root: str, files: dict[str, str]) -> None:
    if not os.path.exists(os.path.join(repository, "HEAD")):
        make_folders({repository: {"owner": "root", "group": group, "mode": "2750"}})
        run(["git", "init", "--quiet", "--bare", "--shared=0640", "--initial-branch=main", repository], environment=_GIT)
    git = ["git", f"--git-dir={repository}", f"--work-tree={root}", "-c", "gc.autoDetach=false", "--literal-pathspecs"]
    run([*git, "read-tree", "--empty"], environment=_GIT)
    run([*git, "add", "--force", "--pathspec-from-file=-", "--pathspec-file-nul"], environment=_GIT, text="\0".join(files))
    message = f"DAGs as they are on the control node\n\n{_CONTENT}{_digest_of(files)}\n"
    run([*git, "commit", "--quiet", "--allow-empty", "--no-verify", "--file=-"], environment=_GIT, text=message)


def _committed(repository: str) -> str:
    # Without a repository there is perhaps no git either.
    if not os.path.isdir(repository):
        return ""
    message = run(["git", f"--git-dir={repository}", "log", "-1", "--format=%B"], environment=_GIT, check=False)["out"]
    last = message.strip().rpartition("\n")[2]
    return last.removeprefix(_CONTENT) if last.startswith(_CONTENT) else ""


def _digest_of(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

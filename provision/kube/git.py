"""The git repository on the control node from which pods clone the DAGs: its user, its key, its files. Pure, but for making the key."""

from __future__ import annotations

import base64
import io
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from provision.errors import ProvisionError

# Whoever logs in as this user, with the one key, gets the one repository to read, and nothing else.
USER = "airflow-git"
HOME = PurePosixPath("/var/lib/airflow-git")
REPOSITORY = HOME / "dags.git"
PACKAGES = ("git",)
# A command that sshd enforces is run by the user's shell: this one knows git's commands only.
SHELL = "/usr/bin/git-shell"
HOST_KEY = PurePosixPath("/etc/ssh/ssh_host_ed25519_key.pub")
# The name of the private key among the installation's secrets.
KEY = "dags_deploy_key"


def make_key(folder: Path) -> str:
    """Return a new private key in OpenSSH's format; meanwhile it is a file in `folder`, which only its owner may read."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        path = Path(inside) / "id"
        try:
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", USER, "-f", str(path)]
            subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ProvisionError(f"ssh-keygen cannot make a key: {error}.", "install OpenSSH's client on this machine") from error
        return path.read_text()


def public_key(private: str) -> str:
    """Return the public key that belongs to a private one, as authorized_keys has it."""
    # Few installations need it, and importing it takes its time.
    from paramiko import Ed25519Key

    key = Ed25519Key.from_private_key(io.StringIO(private))
    return f"{key.get_name()} {key.get_base64()}"


def authorized_keys(private: str) -> str:
    """Return the line that lets the owner of the key clone the repository; no terminal, no forwarding, no other command."""
    return f"restrict,command=\"git-upload-pack '{REPOSITORY}'\" {public_key(private)}\n"


def files(private: str) -> dict[str, tuple[str, str, str]]:
    """Return the files of the control node by path: text, group and mode. They belong to root: the user changes nothing."""
    # Git serves only what belongs to whoever serves it, unless told otherwise.
    settings = f"[safe]\n\tdirectory = {REPOSITORY}\n"
    return {
        str(HOME / ".ssh" / "authorized_keys"): (authorized_keys(private), USER, "0640"),
        str(HOME / ".gitconfig"): (settings, USER, "0640"),
    }


def folders() -> list[PurePosixPath]:
    """Return the folders that these files are in, the outer one first; the user may read them."""
    return [HOME, HOME / ".ssh"]


def url(address: str) -> str:
    """Return what pods clone from."""
    return f"ssh://{USER}@{address}{REPOSITORY}"


def secret(private: str, address: str, host_key: str) -> Mapping[str, str]:
    """Return what the Kubernetes secret of the pods holds, in base64: the key, and whom to trust at the address."""
    # The comment, a name of the node, would make the same key look like another.
    known = f"{address} {' '.join(host_key.split()[:2])}\n"
    return {name: base64.b64encode(text.encode()).decode() for name, text in (("id", private), ("known_hosts", known))}

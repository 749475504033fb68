"""The Rancher that somebody asked for, as this machine remembers it: every later install of its cluster keeps it there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provision import secret_store
from provision.home import LabHome, read_json, write_private
from provision.kube import rancher
from provision.kube.rancher import Rancher
from provision.topology import Cluster
from provision.variants import Wanted


class KeptRancher:
    """What one installation remembers; the password is not in it."""

    def __init__(self, home: LabHome, cluster: Cluster) -> None:
        self._home, self._cluster = home, cluster

    @property
    def _file(self) -> Path:
        return self._home.state / "rancher.json"

    def of(self, asked: Wanted) -> Rancher | None:
        """Return the Rancher that belongs into the cluster that is asked for, None without one: it goes with its distribution."""
        document = read_json(self._file)
        if asked.kubernetes is None or document.get("distribution") != asked.kubernetes.distribution:
            return None
        return rancher.from_document(document)

    def choose(self, asked: Wanted, folder: str) -> Rancher:
        """Return the Rancher to install: from a folder, if one is named; else from where it came before; else from the internet."""
        known, distribution = self.of(asked), asked.kubernetes.distribution
        if folder:
            return rancher.from_folder(Path(folder), distribution, self._cluster, self._home.shared / "checksums.json")
        return known if known and known.is_pinned else rancher.from_internet(distribution, self._cluster)

    def keep(self, chosen: Rancher, interrupts: Mapping[str, Any] | None = None) -> None:
        """Remember it; `interrupts` is the installation file that is not there until an install with it has ended."""
        write_private(self._file, json.dumps({**chosen.document(), "interrupts": interrupts}, sort_keys=True) + "\n")

    def interrupted(self) -> dict[str, Any]:
        """Return the installation file as it was before an install with Rancher that did not end; empty if there is none."""
        return read_json(self._file).get("interrupts") or {}

    def forget(self) -> None:
        """Forget it, and its password."""
        self._file.unlink(missing_ok=True)
        secret_store.forget(self._home, [secret_store.RANCHER_PASSWORD])

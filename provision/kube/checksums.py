"""Checksums of a release's files: what was seen, what the release lists, and what is pinned must agree. All pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from provision.errors import ProvisionError

SHA256 = re.compile("[0-9a-f]{64}")
_ANEW = "remove it and download it again; what an install has downloaded itself, the same command downloads again"
_NOT_INSTALLED = (
    "do not install it; find out on the release's page why it changed, or whether provision/pins.toml got another version and kept the "
    "old table; then pin it again as docs/contributor.md says"
)


def listed(text: str) -> dict[str, str]:
    """Return the checksums in the text of a release's list, by file name; what is no line of such a list is left out."""
    rows = [line.split() for line in text.splitlines()]
    return {row[1].removeprefix("*"): row[0].lower() for row in rows if len(row) == 2 and SHA256.fullmatch(row[0].lower())}


def require_listed(paths: Collection[Path], sums: Mapping[str, str]) -> None:
    """Raise ProvisionError for a downloaded file that nothing vouches for."""
    for path in paths:
        if path.name not in sums:
            raise ProvisionError(
                f"{path} was downloaded, and the release's list of checksums does not name it.",
                f"remove {path.parent}, then run the same command again; or download the release yourself, and name its folder: "
                "--artifacts DIR",
            )


def require_as_listed(seen: Mapping[Path, str], sums: Mapping[str, str]) -> None:
    """Raise ProvisionError for a file whose checksum is not the one that its release lists."""
    for path, sha256 in seen.items():
        if (wanted := sums.get(path.name, sha256)) != sha256:
            raise ProvisionError(f"{path} is not what its release lists: its SHA-256 is {sha256}, the list says {wanted}.", _ANEW)


def require_list_as_pinned(path: Path, sha256: str, sums: Mapping[str, str], pins: Mapping[str, str], release: str) -> None:
    """Raise ProvisionError if a release's list, or a line of it, is not what it was when the release was pinned."""
    for name, wanted in pins.items():
        if (now := sums.get(name, wanted)) != wanted:
            raise ProvisionError(
                f"The list of checksums of {release} was changed after it was pinned: {path} says {now} for {name}, pinned is {wanted}.",
                _NOT_INSTALLED,
            )
    if (wanted := pins.get(path.name, sha256)) != sha256:
        raise ProvisionError(
            f"The list of checksums of {release} is not the one that was pinned: the SHA-256 of {path} is {sha256}, pinned is {wanted}.",
            f"remove it, then run the same command again; if that does not help, {_NOT_INSTALLED}",
        )


def require_as_pinned(seen: Mapping[Path, str], names: Mapping[Path, str], pins: Mapping[str, str], release: str) -> None:
    """Raise ProvisionError for a file whose checksum is not the pinned one; `names` are what the release calls the files."""
    for path, sha256 in seen.items():
        if (wanted := pins.get(names[path], sha256)) != sha256:
            raise ProvisionError(f"{path} is not what is pinned for {release}: its SHA-256 is {sha256}, pinned is {wanted}.", _ANEW)


def require_vouched_for(
    seen: Mapping[Path, str],
    names: Mapping[Path, str],
    vouching: Collection[Mapping[str, str]],
    release: str,
    remedies: Mapping[Path, Collection[str]],
) -> None:
    """Raise ProvisionError for a file beside a release's pinned ones whose checksum is in none of `vouching`.

    These are the pins and, if it is as pinned itself, the list beside the files; `remedies` are what may be done for each file.
    """
    for path, sha256 in seen.items():
        if not any(sums.get(names[path]) == sha256 for sums in vouching):
            raise ProvisionError(
                f"Nothing vouches for {path}: other files in its folder are those of {release}, and it is neither pinned itself "
                "nor in a list of checksums there that is as pinned.",
                ", or ".join([*remedies[path], f"if you know that it is of {release}, pin it as docs/contributor.md says"]),
            )

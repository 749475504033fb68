"""The files that a distribution of Kubernetes is installed from: in a folder that the user names, or downloaded from its release."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from provision import certificates
from provision.errors import ProvisionError
from provision.home import LabHome, read_json, require_room, write_private
from provision.kube.distributions import Distribution
from provision.pins import pins

Report = Callable[[str], None]
# What Python and the releases call the same machine.
ARCHITECTURES: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
# Optional: containerd's configuration, for machines that need another than the distribution's.
TEMPLATES = ("config.toml.tmpl", "config-v3.toml.tmpl")
VARIABLE = "LAB_K3S_DIR"
_PACKED = (".tar.zst", ".tar.gz", ".tar")
_PIECE = 2**20


@dataclass(frozen=True)
class Artifact:
    """One file: where it is on this machine, and its SHA-256; `role` is program, archive, images or template."""

    path: Path
    role: str
    sha256: str


@dataclass(frozen=True)
class Artifacts:
    """Everything that one distribution is installed from."""

    distribution: str
    files: tuple[Artifact, ...]

    @property
    def digest(self) -> str:
        """Twelve letters that change with the content of any file."""
        text = "".join(sorted(f"{file.path.name} {file.sha256}\n" for file in self.files))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def of_role(self, role: str) -> list[Artifact]:
        """Return the files of one role."""
        return [file for file in self.files if file.role == role]


def architecture(machine: str) -> str:
    """Return what the releases call a machine ("x86_64" is amd64); raises ProvisionError for one that they do not have."""
    try:
        return ARCHITECTURES[machine]
    except KeyError:
        raise ProvisionError(
            f"There is no Kubernetes distribution for {machine} here.", "use nodes with an amd64 or arm64 processor"
        ) from None


def names(distribution: Distribution, arch: str) -> dict[str, tuple[str, ...]]:
    """Return the file names of a release by role, in the order in which one is chosen; images and sums may be missing."""
    if distribution.name == "k3s":
        return {
            "program": ("k3s",) if arch == "amd64" else (f"k3s-{arch}", "k3s"),
            "images": tuple(f"k3s-airgap-images-{arch}{ending}" for ending in _PACKED),
            "sums": (f"sha256sum-{arch}.txt",),
        }
    return {
        "archive": (f"rke2.linux-{arch}.tar.gz",),
        "images": tuple(f"rke2-images.linux-{arch}{ending}" for ending in _PACKED),
        "sums": (f"sha256sum-{arch}.txt",),
    }


def find(folder: Path, distribution: Distribution, machine: str, cache: Path, all_listed: bool = False) -> Artifacts:
    """Return the artifacts in a folder of the distribution's own air-gap layout, checked against its list of checksums if it has one.

    `cache` is a file that remembers checksums of files that have not changed; with `all_listed`, the list must name
    every file of the release. Raises ProvisionError that names what to put where, or the file whose checksum is wrong.
    """
    arch = architecture(machine)
    wanted = names(distribution, arch)
    first = "program" if "program" in wanted else "archive"
    found = {role: next((folder / name for name in choices if (folder / name).is_file()), None) for role, choices in wanted.items()}
    if found[first] is None:
        raise ProvisionError(
            f"{folder} has no {distribution.title}: neither {' nor '.join(wanted[first])} is there."
            if len(wanted[first]) > 1
            else f"{folder} has no {distribution.title}: {wanted[first][0]} is not there.",
            f"put {wanted[first][0]} and {wanted['images'][0]} of one {distribution.title} release into it",
        )
    sums = _listed(found.pop("sums"))
    if all_listed:
        _require_listed([path for path in found.values() if path], sums)
    templates = [(folder / name, "template") for name in TEMPLATES if (folder / name).is_file()]
    files = tuple(
        Artifact(path, role, _checked(path, sums, cache)) for path, role in [*((p, r) for r, p in found.items() if p), *templates]
    )
    return Artifacts(distribution.name, files)


def download(home: LabHome, distribution: Distribution, machine: str, report: Report) -> Path:
    """Return the folder of the pinned release, downloaded once; an interrupted download is begun again, file by file.

    Raises ProvisionError, with what to put where instead, when the release cannot be reached.
    """
    version, arch = pins()[distribution.name]["version"], architecture(machine)
    folder = home.shared / "artifacts" / f"{distribution.name}-{version}-{arch}"
    wanted = names(distribution, arch)
    chosen = [choices[0] for role, choices in wanted.items()]
    if all((folder / name).is_file() for name in chosen):
        return folder
    require_room(home.shared, 2000 if distribution.name == "rke2" else 600)
    folder.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        if not (folder / name).is_file():
            report(f"downloading {name} of {distribution.title} {version}")
            _download(f"{pins()[distribution.name]['releases']}/{version.replace('+', '%2B')}/{name}", folder / name, distribution)
    return folder


def _download(url: str, path: Path, distribution: Distribution) -> None:
    part = path.with_name(path.name + ".part")
    try:
        trusted = certificates.bundle()
        with requests.get(url, stream=True, timeout=30, verify=str(trusted) if trusted else True) as answer, part.open("wb") as file:
            answer.raise_for_status()
            for piece in answer.iter_content(_PIECE):
                file.write(piece)
    except (requests.RequestException, OSError) as error:
        part.unlink(missing_ok=True)
        raise ProvisionError(
            f"{path.name} cannot be downloaded from {url}: {error}.",
            f"download the release's files where there is internet, and name their folder: "
            f"fab install kubernetes --distribution {distribution.name} --artifacts DIR --target vagrant",
        ) from error
    part.replace(path)


def _listed(path: Path | None) -> dict[str, str]:
    """Return the checksums in a release's list, by file name."""
    if path is None:
        return {}
    rows = [line.split() for line in path.read_text(errors="replace").splitlines()]
    return {row[1].removeprefix("*"): row[0].lower() for row in rows if len(row) == 2 and re.fullmatch("[0-9a-fA-F]{64}", row[0])}


def _require_listed(paths: Iterable[Path], sums: Mapping[str, str]) -> None:
    """Raise ProvisionError for a downloaded file that nothing vouches for."""
    for path in paths:
        if path.name not in sums:
            raise ProvisionError(
                f"{path} was downloaded, and the release's list of checksums does not name it.",
                f"remove {path.parent}, then run the same command again; or download the release yourself, and name its folder: "
                "--artifacts DIR",
            )


def _checked(path: Path, sums: Mapping[str, str], cache: Path) -> str:
    seen = checksum(path, cache)
    if (wanted := sums.get(path.name, seen)) != seen:
        raise ProvisionError(
            f"{path} is not what its release lists: its SHA-256 is {seen}, the list says {wanted}.",
            "remove it and download it again; what an install has downloaded itself, the same command downloads again",
        )
    return seen


def checksum(path: Path, cache: Path) -> str:
    """Return the SHA-256 of a file, remembered in `cache` as long as its size and time stay the same."""
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    known = read_json(cache)
    if key not in known:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        known = {old: value for old, value in known.items() if not old.startswith(f"{path.resolve()} ")} | {key: digest.hexdigest()}
        write_private(cache, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return known[key]

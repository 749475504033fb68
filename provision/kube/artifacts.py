"""The files that a distribution of Kubernetes is installed from: in a folder that the user names, or downloaded from its release."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from provision import certificates
from provision.errors import ProvisionError
from provision.home import LabHome, read_json, require_room, write_private
from provision.kube import checksums
from provision.kube.distributions import Distribution
from provision.pins import pins

Report = Callable[[str], None]
# What Python and the releases call the same machine.
ARCHITECTURES: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
# Optional: containerd's configuration, for machines that need another than the distribution's.
TEMPLATES = ("config.toml.tmpl", "config-v3.toml.tmpl")
VARIABLE = "LAB_K3S_DIR"
PACKED = (".tar.zst", ".tar.gz", ".tar")
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
            "images": tuple(f"k3s-airgap-images-{arch}{ending}" for ending in PACKED),
            "sums": (f"sha256sum-{arch}.txt",),
        }
    return {
        "archive": (f"rke2.linux-{arch}.tar.gz",),
        "images": tuple(f"rke2-images.linux-{arch}{ending}" for ending in PACKED),
        "sums": (f"sha256sum-{arch}.txt",),
    }


def find(folder: Path, distribution: Distribution, machine: str, cache: Path, downloaded: bool = False) -> Artifacts:
    """Return the artifacts in a folder of the distribution's own air-gap layout, checked against its list of checksums if it has one.

    `cache` is a file that remembers checksums of files that have not changed. What was `downloaded` has to be in the
    list, and to be what is pinned. A folder that somebody filled may hold another release; but if one of its files is a
    pinned one, each has to be pinned itself, or named by a list there that is as pinned. Raises ProvisionError that
    names what to put where, or the file whose checksum is wrong, or that nothing vouches for.
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
    list_file = found.pop("sums")
    there = {path: role for role, path in found.items() if path}
    seen = {path: checksum(path, cache) for path in there}
    # A program for arm64 may have lost its ending, and still is the release's one for arm64.
    released = {path: wanted[first][0] if role == first else path.name for path, role in there.items()}
    if downloaded:
        _require_as_downloaded(seen, released, distribution, list_file, cache)
    else:
        _require_of_one_release(seen, released, distribution, wanted, list_file, cache)
    templates = [folder / name for name in TEMPLATES if (folder / name).is_file()]
    files = [Artifact(path, role, seen[path]) for path, role in there.items()]
    return Artifacts(distribution.name, (*files, *(Artifact(path, "template", checksum(path, cache)) for path in templates)))


def _pinned(distribution: Distribution) -> tuple[dict[str, str], str]:
    """Return the pinned checksums of a distribution by file name, and what its pinned release is called."""
    known = pins()[distribution.name]
    return known.get("sha256", {}), f"{distribution.title} {known['version']}"


def _sums(list_file: Path | None) -> dict[str, str]:
    return checksums.listed(list_file.read_text(errors="replace")) if list_file else {}


def _require_as_downloaded(
    seen: Mapping[Path, str], released: Mapping[Path, str], distribution: Distribution, list_file: Path | None, cache: Path
) -> None:
    """Raise ProvisionError for a file that is not what the release lists, or not what is pinned; `released` are the release's own names."""
    (pinned, release), sums = _pinned(distribution), _sums(list_file)
    if list_file:
        checksums.require_list_as_pinned(list_file, checksum(list_file, cache), sums, pinned, release)
    checksums.require_listed(list(seen), sums)
    checksums.require_as_listed(seen, sums)
    checksums.require_as_pinned(seen, released, pinned, release)


def _require_of_one_release(
    seen: Mapping[Path, str],
    released: Mapping[Path, str],
    distribution: Distribution,
    wanted: Mapping[str, tuple[str, ...]],
    list_file: Path | None,
    cache: Path,
) -> None:
    """Raise ProvisionError for a file that is not what the list beside it says or, beside a pinned file, that nothing vouches for."""
    (pinned, release), sums = _pinned(distribution), _sums(list_file)
    lists = {list_file: checksum(list_file, cache)} if list_file else {}
    own_names = {**released, **{path: path.name for path in lists}}
    if not any(pinned.get(own_names[path]) == sha256 for path, sha256 in {**seen, **lists}.items()):
        checksums.require_as_listed(seen, sums)
        return
    # First of all: another list would blame the wrong file.
    checksums.require_as_pinned(lists, own_names, pinned, release)
    checksums.require_as_listed(seen, sums)
    checksums.require_as_pinned(seen, released, pinned, release)
    trusted = sums if any(path.name in pinned for path in lists) else {}
    remedies = {path: _remedies(path, distribution, wanted, bool(trusted)) for path in seen}
    checksums.require_vouched_for(seen, released, (pinned, trusted), release, remedies)


def _remedies(path: Path, distribution: Distribution, wanted: Mapping[str, tuple[str, ...]], has_list: bool) -> list[str]:
    """Return what may be done for a file that nothing vouches for, beside files of the pinned release."""
    (pinned, release), (list_name,) = _pinned(distribution), wanted["sums"]
    add_list = [] if has_list or list_name not in pinned else [f"put {list_name} of {release} into {path.parent}"]
    if path.name not in wanted["images"]:
        return add_list
    return [*add_list, *(f"put {name} of {release} there in its place" for name in wanted["images"] if name in pinned)]


def download(home: LabHome, distribution: Distribution, machine: str, report: Report, variant: str = "kubernetes") -> Path:
    """Return the folder of the pinned release, downloaded once; an interrupted download is begun again, file by file.

    Raises ProvisionError, with what to put where for this variant instead, when the release cannot be reached.
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
            url = f"{pins()[distribution.name]['releases']}/{version.replace('+', '%2B')}/{name}"
            _download(url, folder / name, f"fab install {variant} --distribution {distribution.name} --artifacts DIR --target vagrant")
    return folder


def _download(url: str, path: Path, otherwise: str) -> None:
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
            f"download the release's files where there is internet, and name their folder: {otherwise}",
        ) from error
    part.replace(path)


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

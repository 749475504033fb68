"""The files that a distribution is installed from: found, checked, downloaded from a server of this test."""

from __future__ import annotations

import hashlib
import http.server
import re
import shutil
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from provision.errors import ProvisionError
from provision.home import REPOSITORY, lab_home
from provision.kube import artifacts, describe
from provision.kube.artifacts import Artifacts, architecture, checksum, download, find
from provision.kube.distributions import DISTRIBUTIONS
from provision.pins import pins
from provision.variants import KubernetesOptions, wanted

K3S, RKE2 = DISTRIBUTIONS["k3s"], DISTRIBUTIONS["rke2"]
IMAGES = "k3s-airgap-images-amd64.tar.zst"
VERSION = pins()["k3s"]["version"]
FILES = {"k3s": b"the program", IMAGES: b"the images"}


def put(folder: Path, files: dict[str, bytes], sums: dict[str, bytes] | None = None, arch: str = "amd64") -> Path:
    """Return a folder with these files and, if `sums` is given, a release's list of the checksums of those contents."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if sums is not None:
        (folder / f"sha256sum-{arch}.txt").write_text(listed(sums))
    return folder


def listed(files: dict[str, bytes]) -> str:
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())


def found(folder: Path, distribution=K3S, machine: str = "x86_64") -> Artifacts:
    return find(folder, distribution, machine, folder.parent / "checksums.json")


def roles(artifacts: Artifacts) -> dict[str, list[str]]:
    return {role: [file.path.name for file in artifacts.of_role(role)] for role in ("program", "archive", "images", "template")}


def test_a_complete_folder_is_found_and_checked(tmp_path):
    here = found(put(tmp_path / "k3s", FILES, FILES))
    assert roles(here) == {"program": ["k3s"], "archive": [], "images": [IMAGES], "template": []}
    assert {file.path.name: file.sha256 for file in here.files} == {n: hashlib.sha256(c).hexdigest() for n, c in FILES.items()}


@pytest.mark.parametrize("damaged", FILES)
def test_a_file_that_is_not_what_the_release_lists_is_refused_by_its_name(tmp_path, damaged):
    folder = put(tmp_path / "k3s", FILES | {damaged: b"something else"}, FILES)
    with pytest.raises(ProvisionError, match=r"is not what its release lists") as refused:
        found(folder)
    assert str(folder / damaged) in refused.value.message
    assert hashlib.sha256(FILES[damaged]).hexdigest() in refused.value.message
    assert "download" in refused.value.hint


def test_what_a_list_says_of_other_files_does_not_matter(tmp_path):
    text = listed(FILES) + f"{'0' * 64}  k3s-armhf\nnot a line of a list\n{'Z' * 64}  k3s\n"
    folder = put(tmp_path / "k3s", FILES)
    (folder / "sha256sum-amd64.txt").write_text(text)
    assert len(found(folder).files) == 2


def test_lists_are_understood_with_stars_and_in_capitals(tmp_path):
    folder = put(tmp_path / "k3s", FILES | {"k3s": b"something else"})
    (folder / "sha256sum-amd64.txt").write_text(f"{hashlib.sha256(FILES['k3s']).hexdigest().upper()} *k3s\n")
    with pytest.raises(ProvisionError, match="is not what its release lists"):
        found(folder)


def test_a_folder_without_a_list_or_images_is_taken_as_it_is(tmp_path):
    assert roles(found(put(tmp_path / "k3s", {"k3s": b"x"}))) == {"program": ["k3s"], "archive": [], "images": [], "template": []}


@pytest.mark.parametrize(
    ("distribution", "machine", "first", "images"),
    [
        ("k3s", "x86_64", "k3s", IMAGES),
        ("k3s", "aarch64", "k3s-arm64", "k3s-airgap-images-arm64.tar.zst"),
        ("rke2", "x86_64", "rke2.linux-amd64.tar.gz", "rke2-images.linux-amd64.tar.zst"),
        ("rke2", "arm64", "rke2.linux-arm64.tar.gz", "rke2-images.linux-arm64.tar.zst"),
    ],
)
def test_an_empty_folder_is_refused_with_what_to_put_there(tmp_path, distribution, machine, first, images):
    folder = put(tmp_path / "empty", {})
    with pytest.raises(ProvisionError, match=DISTRIBUTIONS[distribution].title) as refused:
        found(folder, DISTRIBUTIONS[distribution], machine)
    assert str(folder) in refused.value.message
    assert first in refused.value.hint
    assert images in refused.value.hint


def test_files_of_the_other_architecture_are_not_taken(tmp_path):
    folder = put(tmp_path / "k3s", {"k3s-arm64": b"arm", "k3s-airgap-images-arm64.tar": b"arm"})
    with pytest.raises(ProvisionError, match="k3s is not there"):
        found(folder)
    assert roles(found(folder, machine="aarch64"))["program"] == ["k3s-arm64"]


def test_the_releases_own_name_comes_first_on_arm64(tmp_path):
    folder = put(tmp_path / "k3s", {"k3s": b"x", "k3s-arm64": b"arm"})
    assert roles(found(folder, machine="arm64"))["program"] == ["k3s-arm64"]
    (folder / "k3s-arm64").unlink()
    assert roles(found(folder, machine="arm64"))["program"] == ["k3s"]


@pytest.mark.parametrize("ending", [".tar.zst", ".tar.gz", ".tar"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_images_may_be_packed_in_each_of_the_releases_ways(tmp_path, name, ending):
    first, images = {"k3s": ("k3s", "k3s-airgap-images-amd64"), "rke2": ("rke2.linux-amd64.tar.gz", "rke2-images.linux-amd64")}[name]
    folder = put(tmp_path / name, {first: b"x", images + ending: b"y"})
    assert roles(found(folder, DISTRIBUTIONS[name]))["images"] == [images + ending]


def test_rke2_is_an_archive_with_images_and_a_list(tmp_path):
    files = {"rke2.linux-amd64.tar.gz": b"archive", "rke2-images.linux-amd64.tar.gz": b"images"}
    here = found(put(tmp_path / "rke2", files, files), RKE2)
    assert roles(here) == {
        "program": [],
        "archive": ["rke2.linux-amd64.tar.gz"],
        "images": ["rke2-images.linux-amd64.tar.gz"],
        "template": [],
    }
    (tmp_path / "rke2" / "rke2.linux-amd64.tar.gz").write_bytes(b"damaged!")
    with pytest.raises(ProvisionError, match=r"rke2\.linux-amd64\.tar\.gz is not what its release lists"):
        found(tmp_path / "rke2", RKE2)


def test_a_configuration_of_containerd_is_taken_along(tmp_path):
    folder = put(tmp_path / "k3s", FILES | {"config.toml.tmpl": b"template"}, FILES)
    assert roles(found(folder))["template"] == ["config.toml.tmpl"]


def test_the_digest_changes_with_every_file(tmp_path):
    folder = put(tmp_path / "k3s", FILES)
    first = found(folder).digest
    assert first == found(folder).digest
    (folder / IMAGES).write_bytes(b"other images")
    second = found(folder).digest
    put(folder, {"config.toml.tmpl": b"template"})
    assert len({first, second, found(folder).digest}) == 3


@pytest.mark.parametrize(("machine", "expected"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("arm64", "arm64")])
def test_releases_call_machines_by_other_names(machine, expected):
    assert architecture(machine) == expected


def test_a_machine_for_which_there_is_no_release_is_named():
    with pytest.raises(ProvisionError, match="riscv64") as refused:
        architecture("riscv64")
    assert "amd64 or arm64" in refused.value.hint


def test_a_checksum_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path, cache = tmp_path / "file", tmp_path / "cache.json"
    path.write_bytes(b"one")
    assert checksum(path, cache) == hashlib.sha256(b"one").hexdigest()
    read = []
    monkeypatch.setattr(artifacts.hashlib, "sha256", lambda *text: read.append(1) or pytest.fail("it was read again"))
    assert checksum(path, cache) == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    monkeypatch.undo()
    path.write_bytes(b"other")
    assert checksum(path, cache) == hashlib.sha256(b"other").hexdigest()
    assert len(artifacts.read_json(cache)) == 1, "what the file was before is remembered for ever"


# -- downloading --------------------------------------------------------------------------------------


class Releases(http.server.BaseHTTPRequestHandler):
    """A release: answers with its files; one that is in `cut` ends in the middle."""

    files: ClassVar[dict[str, bytes]] = {}
    cut: ClassVar[set[str]] = set()
    asked: ClassVar[list[str]] = []
    # What is pinned of K3s, by file name.
    pinned: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.asked.append(self.path)
        if name not in self.files:
            self.send_error(404)
            return
        content = self.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self.cut else content)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def releases(monkeypatch) -> Iterator[type[Releases]]:
    """A server that stands for the releases of both distributions."""
    handler = type("Here", (Releases,), {"files": {}, "cut": set(), "asked": [], "pinned": {}})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        here = {"releases": f"http://127.0.0.1:{server.server_port}/releases", "sha256": handler.pinned}
        pinned = {name: {**pins()[name], **here} for name in DISTRIBUTIONS}
        monkeypatch.setattr(artifacts, "pins", lambda: {**pins(), **pinned})
        yield handler
        server.shutdown()
        thread.join()


RELEASE = FILES | {"sha256sum-amd64.txt": listed(FILES).encode()}


def test_the_pinned_release_is_downloaded_once(releases):
    releases.files, said = dict(RELEASE), []
    folder = download(lab_home(), K3S, "x86_64", said.append)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == RELEASE
    assert len(found(folder).files) == 2
    version = pins()["k3s"]["version"]
    assert {path.rpartition("/")[0] for path in releases.asked} == {f"/releases/{version.replace('+', '%2B')}"}
    assert any(IMAGES in text and version in text for text in said)
    asked = len(releases.asked)
    assert download(lab_home(), K3S, "x86_64", said.append) == folder
    assert len(releases.asked) == asked


def test_rke2_is_downloaded_with_its_own_names(releases):
    files = {"rke2.linux-arm64.tar.gz": b"archive", "rke2-images.linux-arm64.tar.zst": b"images"}
    releases.files = files | {"sha256sum-arm64.txt": listed(files).encode()}
    folder = download(lab_home(), RKE2, "aarch64", lambda text: None)
    assert roles(found(folder, RKE2, "aarch64"))["archive"] == ["rke2.linux-arm64.tar.gz"]


@pytest.mark.parametrize("missing", RELEASE)
def test_a_file_that_the_release_does_not_have_is_named_with_what_to_do(releases, missing):
    releases.files = {name: content for name, content in RELEASE.items() if name != missing}
    with pytest.raises(ProvisionError, match="cannot be downloaded") as failed:
        download(lab_home(), K3S, "x86_64", lambda text: None)
    assert missing in failed.value.message
    assert "404" in failed.value.message
    assert "--artifacts DIR" in failed.value.hint
    assert_only_whole_files()


def test_a_download_that_is_cut_off_leaves_whole_files_and_goes_on_later(releases):
    releases.files, releases.cut = dict(RELEASE), {IMAGES}
    with pytest.raises(ProvisionError, match=f"{IMAGES} cannot be downloaded"):
        download(lab_home(), K3S, "x86_64", lambda text: None)
    assert_only_whole_files()
    releases.cut, releases.asked[:] = set(), []
    folder = download(lab_home(), K3S, "x86_64", lambda text: None)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == RELEASE
    assert not [path for path in releases.asked if path.endswith("/k3s")], "what was there was downloaded again"


def test_without_a_network_the_error_says_where_files_may_come_from(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    unreachable = {"k3s": {**pins()["k3s"], "releases": "http://127.0.0.1:9"}}
    monkeypatch.setattr(artifacts, "pins", lambda: {**pins(), **unreachable})
    with pytest.raises(ProvisionError, match="k3s cannot be downloaded from http://127") as failed:
        download(lab_home(), K3S, "x86_64", lambda text: None)
    assert "fab install kubernetes --distribution k3s --artifacts DIR" in failed.value.hint
    assert_only_whole_files()
    with pytest.raises(ProvisionError, match="cannot be downloaded") as failed:
        download(lab_home(), K3S, "x86_64", lambda text: None, "multiple")
    assert "fab install multiple --distribution k3s --artifacts DIR" in failed.value.hint


def assert_only_whole_files() -> None:
    for path in (lab_home().shared / "artifacts").rglob("*"):
        assert path.is_dir() or path.read_bytes() == RELEASE[path.name]


def test_a_download_that_was_damaged_is_noticed_and_can_be_made_again(releases):
    releases.files = RELEASE | {"k3s": b"something else"}
    folder = download(lab_home(), K3S, "x86_64", lambda text: None)
    with pytest.raises(ProvisionError, match="is not what its release lists") as refused:
        found(folder)
    assert "remove it" in refused.value.hint
    (folder / "k3s").unlink()
    releases.files = dict(RELEASE)
    assert len(found(download(lab_home(), K3S, "x86_64", lambda text: None)).files) == 2


@pytest.mark.parametrize("unlisted", sorted(FILES))
def test_a_downloaded_file_that_the_list_does_not_name_is_refused(releases, unlisted):
    releases.files = FILES | {"sha256sum-amd64.txt": listed({name: text for name, text in FILES.items() if name != unlisted}).encode()}
    with pytest.raises(ProvisionError, match=f"{unlisted} was downloaded, and the release's list of checksums does not name it") as refused:
        chosen()
    assert "--artifacts DIR" in refused.value.hint


# -- what is pinned -----------------------------------------------------------------------------------


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def pinned(releases) -> type[Releases]:
    """A release of which everything is pinned."""
    releases.files = dict(RELEASE)
    releases.pinned.update({name: sha256(content) for name, content in RELEASE.items()})
    return releases


def test_a_release_that_is_as_pinned_is_taken(pinned):
    assert "artifacts" in chosen()


@pytest.mark.parametrize("changed", FILES)
def test_a_release_that_was_changed_after_it_was_pinned_is_refused_although_its_list_agrees(pinned, changed):
    other = FILES | {changed: b"something else"}
    pinned.files = other | {"sha256sum-amd64.txt": listed(other).encode()}
    with pytest.raises(ProvisionError, match=f"list of checksums of K3s {re.escape(VERSION)} was changed after it was pinned") as refused:
        chosen()
    for word in (f" for {changed}", sha256(b"something else"), sha256(FILES[changed])):
        assert word in refused.value.message
    assert "do not install it" in refused.value.hint
    assert "docs/contributor.md" in refused.value.hint


def test_a_list_is_pinned_with_every_file_that_it_names(pinned):
    pinned.pinned.clear()
    pinned.pinned["sha256sum-amd64.txt"] = sha256(RELEASE["sha256sum-amd64.txt"])
    assert "artifacts" in chosen()
    other = FILES | {IMAGES: b"something else"}
    shutil.rmtree(lab_home().shared / "artifacts")
    pinned.files = other | {"sha256sum-amd64.txt": listed(other).encode()}
    with pytest.raises(ProvisionError, match="is not the one that was pinned") as refused:
        chosen()
    assert "sha256sum-amd64.txt" in refused.value.message


def test_a_download_that_was_damaged_is_not_taken_for_a_changed_release(pinned):
    pinned.files = RELEASE | {"k3s": b"something else"}
    with pytest.raises(ProvisionError, match="is not what its release lists"):
        chosen()


def test_a_list_of_another_architecture_may_be_pinned_as_well(pinned):
    pinned.pinned |= {"k3s-arm64": "0" * 64, "sha256sum-arm64.txt": "1" * 64}
    assert "artifacts" in chosen()


def test_a_folder_with_another_release_is_not_compared_with_the_pins(tmp_path, pinned):
    other = {"k3s": b"another program", IMAGES: b"other images"}
    folder = put(tmp_path / "k3s", other, other)
    assert chosen(named=str(folder)) == str(folder)


@pytest.mark.parametrize("kept", FILES)
def test_a_folder_with_one_file_of_the_pinned_release_must_have_the_others_of_it(tmp_path, pinned, kept):
    (changed,) = FILES.keys() - {kept}
    folder = put(tmp_path / "k3s", FILES | {changed: b"something else"})
    with pytest.raises(ProvisionError, match=f"is not what is pinned for K3s {re.escape(VERSION)}") as refused:
        chosen(named=str(folder))
    assert str(folder / changed) in refused.value.message
    assert sha256(FILES[changed]) in refused.value.message


def test_a_program_that_lost_its_ending_is_compared_with_that_of_its_architecture(tmp_path, pinned):
    arm = {"k3s": b"for arm", "k3s-airgap-images-arm64.tar.zst": b"images for arm"}
    pinned.pinned |= {"k3s-arm64": sha256(arm["k3s"]), "k3s-airgap-images-arm64.tar.zst": sha256(b"images for arm")}
    assert len(found(put(tmp_path / "k3s", arm), machine="aarch64").files) == 2
    (tmp_path / "k3s" / "k3s").write_bytes(b"damaged")
    with pytest.raises(ProvisionError, match="is not what is pinned"):
        found(tmp_path / "k3s", machine="aarch64")


# Of both distributions: a program that is pinned, and images that only the list names.
VOUCHED = [
    (K3S, {"k3s": b"the program", "k3s-airgap-images-amd64.tar.gz": b"the images"}),
    (RKE2, {"rke2.linux-amd64.tar.gz": b"archive", "rke2-images.linux-amd64.tar.zst": b"the images"}),
]
every_vouched = pytest.mark.parametrize(("distribution", "files"), VOUCHED, ids=["k3s", "rke2"])


def pin(releases: type[Releases], files: dict[str, bytes]) -> str:
    """Pin the program of a release and its list, as provision/pins.toml does; return the name of its images."""
    program, images = files
    text = (listed(files) + f"{'0' * 64}  something-else\n").encode()
    releases.pinned.clear()
    releases.pinned.update({program: sha256(files[program]), "sha256sum-amd64.txt": sha256(text)})
    releases.files = files | {"sha256sum-amd64.txt": text}
    return images


@every_vouched
def test_beside_a_pinned_program_images_need_the_list_that_is_pinned(tmp_path, releases, distribution, files):
    images = pin(releases, files)
    folder = put(tmp_path / "here", files)
    with pytest.raises(ProvisionError, match=f"Nothing vouches for {folder / images}: ") as refused:
        found(folder, distribution)
    release = f"{distribution.title} {pins()[distribution.name]['version']}"
    assert release in refused.value.message
    assert f"put sha256sum-amd64.txt of {release} into {folder}, or if you know" in refused.value.hint
    assert "docs/contributor.md" in refused.value.hint
    put(folder, {"sha256sum-amd64.txt": releases.files["sha256sum-amd64.txt"]})
    assert len(found(folder, distribution).files) == 2


@every_vouched
@pytest.mark.parametrize("has_list", [True, False], ids=["with the list", "without it"])
def test_beside_a_pinned_program_images_of_another_release_are_refused(tmp_path, releases, distribution, files, has_list):
    images = pin(releases, files)
    there = {name: releases.files[name] for name in releases.files if has_list or name in files}
    folder = put(tmp_path / "here", there | {images: b"of another release"})
    said = "is not what its release lists" if has_list else "Nothing vouches for"
    with pytest.raises(ProvisionError, match=said) as refused:
        found(folder, distribution)
    assert str(folder / images) in refused.value.message


@every_vouched
def test_a_list_that_is_not_the_pinned_one_vouches_for_nothing(tmp_path, releases, distribution, files):
    images = pin(releases, files)
    other = files | {images: b"of another release"}
    folder = put(tmp_path / "here", other, other)
    with pytest.raises(ProvisionError, match=f"{folder / 'sha256sum-amd64.txt'} is not what is pinned") as refused:
        found(folder, distribution)
    assert releases.pinned["sha256sum-amd64.txt"] in refused.value.message


def test_a_list_of_which_nothing_is_pinned_vouches_for_nothing_and_pinned_images_are_named(tmp_path, releases):
    files = {"k3s-arm64": b"for arm", "k3s-airgap-images-arm64.tar": b"images for arm"}
    releases.pinned |= {"k3s-arm64": sha256(b"for arm"), "k3s-airgap-images-arm64.tar.zst": "0" * 64}
    folder = put(tmp_path / "k3s", files, files, arch="arm64")
    with pytest.raises(ProvisionError, match=f"Nothing vouches for {folder}/k3s-airgap-images-arm64.tar:") as refused:
        found(folder, machine="aarch64")
    assert refused.value.hint.startswith(f"put k3s-airgap-images-arm64.tar.zst of K3s {VERSION} there in its place, or if you know")


def test_a_pinned_list_makes_a_folder_one_of_the_pinned_release(tmp_path, pinned):
    del pinned.pinned["k3s"]
    list_of_images = listed({IMAGES: FILES[IMAGES]}).encode()
    pinned.pinned |= {"sha256sum-amd64.txt": sha256(list_of_images)}
    folder = put(tmp_path / "k3s", {"k3s": b"another program", "sha256sum-amd64.txt": list_of_images})
    with pytest.raises(ProvisionError, match=f"Nothing vouches for {folder}/k3s:") as refused:
        found(folder)
    assert refused.value.hint == f"if you know that it is of K3s {VERSION}, pin it as docs/contributor.md says"


def test_a_configuration_of_containerd_needs_nobody_to_vouch_for_it(tmp_path, pinned):
    folder = put(tmp_path / "k3s", FILES | {"config.toml.tmpl": b"template"})
    assert len(found(folder).files) == 3


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_what_is_pinned_are_checksums_of_files_that_would_be_downloaded(name):
    known = {choices[0] for arch in ("amd64", "arm64") for choices in artifacts.names(DISTRIBUTIONS[name], arch).values()}
    for file, value in pins()[name]["sha256"].items():
        assert file in known
        assert re.fullmatch("[0-9a-f]{64}", value), file


def printed_table(server: str) -> dict[str, str]:
    """Return the table that the command in docs/contributor.md prints of a release."""
    text = (REPOSITORY / "docs" / "contributor.md").read_text().partition("## Pinned releases")[2]
    first, _, command = re.search(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)[1].partition("\n")
    assert first.startswith("release=https://github.com/")
    done = subprocess.run(["bash", "-c", f"release={server}\n{command}"], capture_output=True, text=True, check=True)
    return tomllib.loads(done.stdout)


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("sha256sum")), reason="the command needs curl and sha256sum")
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_what_the_documented_command_prints_pins_a_whole_release(releases, name):
    distribution, wanted = DISTRIBUTIONS[name], set()
    for arch in ("amd64", "arm64"):
        chosen = [choices[0] for role, choices in artifacts.names(distribution, arch).items() if role != "sums"]
        others = [f"{name}-images-core.linux-{arch}.tar.zst", f"{name}-airgap-images-{arch}.tar.gz", f"{name}-windows-{arch}.exe"]
        files = {file: file.encode() for file in (*chosen, *others)}
        releases.files |= files | {f"sha256sum-{arch}.txt": listed(files).encode()}
        wanted |= {*chosen, f"sha256sum-{arch}.txt"}
    # What is left of the release before.
    releases.pinned |= dict.fromkeys(wanted, "0" * 64)
    releases.pinned |= printed_table(artifacts.pins()[name]["releases"])
    assert releases.pinned == {file: sha256(releases.files[file]) for file in wanted}
    for machine in ("x86_64", "aarch64"):
        folder = download(lab_home(), distribution, machine, lambda text: None)
        assert len(find(folder, distribution, machine, folder.parent / "checksums.json", downloaded=True).files) == 2


# -- which folder -------------------------------------------------------------------------------------


def chosen(distribution: str = "k3s", named: str = "", said: list[str] | None = None) -> str:
    """Return the folder that an install takes its files from; what it reports is added to `said`."""
    asked = wanted("kubernetes", kubernetes=KubernetesOptions(distribution=distribution, artifacts=named))
    home = lab_home()
    home.prepare()
    taken = describe._artifacts(asked, DISTRIBUTIONS[distribution], "x86_64", home, [].append if said is None else said.append)
    (folder,) = {file.path.parent for file in taken.files}
    return str(folder)


def test_a_folder_that_is_named_comes_before_one_of_the_environment_and_that_before_a_download(tmp_path, monkeypatch, releases):
    releases.files = dict(RELEASE)
    named, environment = put(tmp_path / "named", FILES), put(tmp_path / "environment", FILES)
    downloaded = chosen()
    assert "artifacts" in downloaded
    monkeypatch.setenv("LAB_K3S_DIR", str(environment))
    assert chosen() == str(environment)
    assert chosen(named=str(named)) == str(named)


def test_the_folder_of_the_environment_is_for_k3s_alone(tmp_path, monkeypatch, releases):
    releases.files = {"rke2.linux-amd64.tar.gz": b"a", "rke2-images.linux-amd64.tar.zst": b"i"}
    releases.files["sha256sum-amd64.txt"] = listed(releases.files).encode()
    monkeypatch.setenv("LAB_K3S_DIR", str(put(tmp_path / "environment", FILES)))
    assert "rke2" in chosen("rke2")


def test_a_folder_that_was_named_once_is_used_again_until_it_is_gone(tmp_path, releases):
    releases.files = dict(RELEASE)
    folder = put(tmp_path / "named", FILES)
    chosen(named=str(folder))
    assert chosen() == str(folder)
    folder.rename(tmp_path / "elsewhere")
    assert "artifacts" in chosen()


@pytest.mark.parametrize("written", ["{folder}\n", "{folder}\nv1.0.0+k3s1\n"], ids=["before there was a pin", "for another pin"])
def test_a_folder_that_was_named_for_another_release_is_not_used_again(tmp_path, releases, written):
    releases.files = dict(RELEASE)
    folder = put(tmp_path / "named", FILES)
    chosen(named=str(folder))
    (lab_home().shared / "k3s.folder").write_text(written.format(folder=folder))
    assert "artifacts" in chosen()


def test_which_files_are_used_is_said(tmp_path, releases):
    releases.files = dict(RELEASE)
    folder, version = put(tmp_path / "named", FILES), pins()["k3s"]["version"]
    said: list[str] = []
    chosen(said=said)
    chosen(named=str(folder), said=said)
    chosen(said=said)
    assert [line for line in said if line.startswith("using")] == [
        f"using K3s {version}, as pinned",
        f"using K3s from {folder}; pinned is {version}",
        f"using K3s from {folder}, as named before; pinned is {version}",
    ]


@pytest.mark.parametrize("files", [None, {}], ids=["no folder", "an empty folder"])
def test_a_folder_that_cannot_be_used_is_refused_and_not_remembered(tmp_path, releases, files):
    releases.files = dict(RELEASE)
    if files is not None:
        put(tmp_path / "named", files)
    with pytest.raises(ProvisionError, match=str(tmp_path / "named")):
        chosen(named=str(tmp_path / "named"))
    assert "artifacts" in chosen()


def test_a_folder_is_found_again_from_another_one(tmp_path, monkeypatch):
    folder = put(tmp_path / "named", FILES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_K3S_DIR", "named")
    assert chosen() == str(folder)
    monkeypatch.delenv("LAB_K3S_DIR")
    monkeypatch.chdir("/")
    assert chosen() == str(folder)

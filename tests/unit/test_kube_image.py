"""The image of the pods: a small tree is packed, and the archive read again as containerd would."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from provision.kube import pod_image
from provision.kube.pod_image import MODULES, add_tree, airflow_layer, write_image

HOME = "/var/lib/airflow-labs"
REFERENCE = "localhost/labs:3.3.2-abc"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with everything that a Debian or an environment has: links, hard links, a socket, modes."""
    root = tmp_path / "tree"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "program").write_text("program\n")
    (root / "bin" / "program").chmod(0o755)
    (root / "bin" / "link").symlink_to("program")
    (root / "bin" / "dangling").symlink_to("/nowhere")
    os.link(root / "bin" / "program", root / "bin" / "twin")
    (root / "var" / "cache" / "apt").mkdir(parents=True)
    (root / "var" / "cache" / "apt" / "big").write_text("x" * 1000)
    (root / "var" / "kept").write_text("kept\n")
    (root / "empty").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    return root


def packed(folder: Path, name: str = "", without: tuple[str, ...] = ()) -> bytes:
    """Return the layer of a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as layer:
        add_tree(layer, folder, name, without)
    return file.getvalue()


def entries(layer: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as file:
        return {entry.name: entry for entry in file}


def test_everything_belongs_to_root_and_has_no_time_of_its_own(tree):
    for entry in entries(packed(tree)).values():
        assert (entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime) == (0, 0, "root", "root", 0)


def test_the_same_tree_makes_the_same_layer_whenever_it_was_written(tree):
    first = packed(tree)
    os.utime(tree / "var" / "kept", (1, 1))
    assert packed(tree) == first
    (tree / "var" / "kept").write_text("other\n")
    assert packed(tree) != first


def test_links_stay_links_and_modes_stay(tree):
    found = entries(packed(tree))
    assert (found["bin/link"].issym(), found["bin/link"].linkname) == (True, "program")
    assert (found["bin/dangling"].issym(), found["bin/dangling"].linkname) == (True, "/nowhere")
    assert found["bin/program"].mode & 0o777 == 0o755
    assert found["empty"].isdir()


def test_the_second_name_of_a_file_is_a_link_to_the_first_which_comes_before(tree):
    names = list(entries(packed(tree)))
    twin = entries(packed(tree))["bin/twin"]
    assert twin.islnk()
    assert names.index(twin.linkname) < names.index("bin/twin")
    inside = entries(packed(tree, "opt/place"))["opt/place/bin/twin"]
    assert inside.linkname == "opt/place/bin/program"


def test_sockets_and_spared_folders_are_left_out(tree):
    found = entries(packed(tree, without=("var/cache",)))
    assert "socket" not in found
    assert not [name for name in found if name.startswith("var/cache")]
    assert "var/kept" in found
    assert "var/cache/apt/big" in entries(packed(tree))


def test_a_tree_can_have_another_place_in_the_image(tree):
    found = entries(packed(tree, "opt/place", without=("var/cache",)))
    assert found["opt/place"].isdir()
    assert {"opt/place/bin/program", "opt/place/var/kept"} <= set(found)
    assert all(name.startswith("opt/place") for name in found)
    assert "opt/place/var/cache" not in found


def test_folders_come_before_what_is_in_them(tree):
    names = list(entries(packed(tree)))
    for position, name in enumerate(names):
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < position


# -- the archive --------------------------------------------------------------------------------------


def image(tmp_path: Path, contents: list[bytes], name: str = "image.tar") -> tuple[dict[str, bytes], str]:
    """Return the files of an archive with these layers, and the digest that was said of it."""
    layers = []
    for number, content in enumerate(contents):
        layers.append(tmp_path / f"{number}.layer")
        layers[-1].write_bytes(content)
    said = write_image(tmp_path / name, layers, REFERENCE, {"PATH": "/bin", "LANG": "C"}, "50000:50000", "amd64")
    with tarfile.open(tmp_path / name) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isfile()}, said


def test_every_blob_is_found_by_its_digest_and_size(tmp_path, tree):
    files, said = image(tmp_path, [packed(tree), packed(tree, "opt")])
    for name, content in files.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(content).hexdigest() == name.rpartition("/")[2]
    (entry,) = json.loads(files["index.json"])["manifests"]
    manifest = files[f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}"]
    assert (entry["digest"], entry["size"]) == (said, len(manifest))
    for each in (json.loads(manifest)["config"], *json.loads(manifest)["layers"]):
        assert len(files[f"blobs/sha256/{each['digest'].removeprefix('sha256:')}"]) == each["size"]


def test_the_layers_are_in_their_order_and_their_contents_are_what_the_configuration_says(tmp_path, tree):
    contents = [packed(tree), packed(tree, "opt")]
    files, said = image(tmp_path, contents)
    manifest = json.loads(files[f"blobs/sha256/{said.removeprefix('sha256:')}"])
    config = json.loads(files[f"blobs/sha256/{manifest['config']['digest'].removeprefix('sha256:')}"])
    expected = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in contents]
    assert config["rootfs"] == {"type": "layers", "diff_ids": expected}
    assert [layer["digest"] for layer in manifest["layers"]] == expected
    assert len(config["history"]) == 2
    assert (config["os"], config["architecture"]) == ("linux", "amd64")
    assert config["config"] == {"User": "50000:50000", "Env": ["LANG=C", "PATH=/bin"], "WorkingDir": "/tmp"}


def test_the_archive_says_what_it_is_and_how_the_image_is_called(tmp_path):
    files, _ = image(tmp_path, [packed(tmp_path)])
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == REFERENCE
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "3.3.2-abc"


def test_the_same_layers_make_an_image_with_the_same_digest(tmp_path, tree):
    contents = [packed(tree)]
    (_, first), (_, second), (_, other) = (image(tmp_path, c, n) for c, n in ((contents, "a"), (contents, "b"), ([packed(tree, "x")], "c")))
    assert first == second
    assert other != first


def test_nothing_but_a_whole_archive_has_its_name(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_image(tmp_path / "image.tar", [tmp_path / "nothing"], REFERENCE, {}, "1:1", "amd64")
    assert not (tmp_path / "image.tar").exists()


# -- the layer of the environment ---------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path, monkeypatch) -> Path:
    """An environment with the Python of this test and one module, in the place of Airflow's."""
    folder = tmp_path / "opt" / "airflow-3.3.2-abc"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "lib" / "lab_module.py").write_text("import lab_other\nHERE = True\n")
    (folder / "lib" / "lab_other.py").write_text("THERE = True\n")
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/lib exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(pod_image, "MODULES", ("lab_module",))
    return folder


@pytest.fixture
def unpacked(environment, tmp_path) -> Path:
    """The layer of the environment, unpacked as a container's root."""
    layer, root = tmp_path / "layer.tar", tmp_path / "root"
    airflow_layer(layer, environment, HOME, "airflow", 50000)
    with tarfile.open(layer) as file:
        file.extractall(root, filter="tar")
    return root


def test_the_environment_has_the_folder_that_it_has_on_the_node(environment, unpacked):
    inside = unpacked / str(environment).strip("/")
    assert (inside / "lib" / "lab_module.py").read_text() == (environment / "lib" / "lab_module.py").read_text()


def test_the_folders_that_pods_mount_are_there(unpacked):
    for name in ("dags", "config", "logs"):
        assert list((unpacked / HOME.strip("/") / name).iterdir()) == []


def test_the_user_of_a_pod_has_a_name(unpacked):
    users = {line.split(":")[0]: line.split(":") for line in (unpacked / "etc" / "passwd").read_text().splitlines()}
    assert users["airflow"][2:4] == ["50000", "50000"]
    assert users["root"][2] == "0"
    groups = {line.split(":")[0]: line.split(":")[2] for line in (unpacked / "etc" / "group").read_text().splitlines()}
    assert groups == {"root": "0", "airflow": "50000"}


def test_a_pod_can_read_what_was_compiled_though_it_is_another_user(unpacked):
    places = [unpacked / "var" / "cache" / "airflow-labs", *(unpacked / "var" / "cache" / "airflow-labs").rglob("*")]
    assert any(place.suffix == ".pyc" for place in places)
    for place in places:
        others = place.stat().st_mode & 0o7
        assert others & (0o5 if place.is_dir() else 0o4) == (0o5 if place.is_dir() else 0o4), place


def test_what_a_task_imports_is_not_compiled_again_in_a_pod(environment, unpacked):
    # Every file of a layer is as old as 1970, and Python compares the time of a source with what was written into its bytecode.
    inside = unpacked / str(environment).strip("/")
    assert int((inside / "lib" / "lab_other.py").stat().st_mtime) == 0
    # Seen from this folder, the sources have another path than from inside of a pod.
    compiled = unpacked / "var" / "cache" / "airflow-labs" / str(environment / "lib").strip("/")
    cache = unpacked / "var" / "cache" / "airflow-labs" / str(inside / "lib").strip("/")
    cache.parent.mkdir(parents=True)
    compiled.rename(cache)
    prefix = unpacked / "var" / "cache" / "airflow-labs"
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(inside / "lib"), "PYTHONPYCACHEPREFIX": str(prefix)}
    done = subprocess.run([sys.executable, "-v", "-c", "import lab_module"], env=variables, capture_output=True, text=True)
    assert done.returncode == 0
    assert "bytecode is stale for 'lab_other'" not in done.stderr
    assert f"{cache}/lab_other.{sys.implementation.cache_tag}.pyc matches" in done.stderr


def test_two_environments_of_the_same_content_make_the_same_layer(environment, tmp_path):
    layers = []
    for number in (1, 2):
        path = tmp_path / f"{number}.tar"
        os.utime(environment / "lib" / "lab_other.py", (number * 1000, number * 1000))
        airflow_layer(path, environment, HOME, "airflow", 50000)
        layers.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert layers[0] == layers[1]


def test_an_environment_in_which_tasks_cannot_be_run_makes_no_image(environment, tmp_path):
    (environment / "lib" / "lab_other.py").unlink()
    with pytest.raises(SystemExit, match="No module named 'lab_other'"):
        airflow_layer(tmp_path / "layer.tar", environment, HOME, "airflow", 50000)
    assert [path.name for path in tmp_path.iterdir()] == ["opt"]


def test_a_layer_that_is_there_is_not_made_again(tmp_path, monkeypatch):
    (tmp_path / "base.tar").write_bytes(b"made before")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    pod_image.base_layer(tmp_path / "base.tar", "bookworm")
    assert (tmp_path / "base.tar").read_bytes() == b"made before"


def test_what_makes_the_first_layer_says_why_it_failed(tmp_path, monkeypatch):
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "mmdebstrap").write_text("#!/bin/sh\necho 'E: no mirror answers' >&2\nexit 1\n")
    (commands / "mmdebstrap").chmod(0o700)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    with pytest.raises(SystemExit, match="could not make a bookworm: E: no mirror answers"):
        pod_image.base_layer(tmp_path / "base.tar", "bookworm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]


def test_the_script_runs_with_nothing_but_pythons_own_library():
    source = Path(pod_image.__file__).read_text()
    code = f"import sys; sys.path = [p for p in sys.path if 'site-packages' not in p and p]; exec(compile({source!r}, 'x', 'exec'), {{'__name__': 'x'}})"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True).returncode == 0
    assert all(module.startswith("airflow.") for module in MODULES)

"""Makes the image in which tasks run, on a node, from that node's own Airflow environment; run there with the node's Python.

An image is a folder of layers, each a tar file, and two small documents that name them by their SHA-256
(the OCI image layout, github.com/opencontainers/image-spec). Two layers are enough: the distribution's
Python and libraries, and the Airflow environment in the very folder that it has on the node. No Docker and
no registry are needed, and pods cannot have other versions than the nodes. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
_PIECE = 2**20
# What Airflow's wheels want of the system, what clones DAGs, and what an image without a shell user cannot do without.
PACKAGES = ("ca-certificates", "git", "libpq5", "openssh-client", "python3", "tzdata")
# Parts of a Debian that no task needs.
_SPARED = ("var/cache", "var/lib/apt/lists", "var/log", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info")
# What a task's process imports: compiled once here instead of at the start of every pod.
MODULES = (
    "airflow.sdk.execution_time.execute_workload",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.executors.workloads",
    "airflow.dag_processing.bundles.local",
    "airflow.dag_processing.importers",
    "airflow.models.dagbag",
    "airflow.providers.standard.operators.python",
)


def add_tree(layer: tarfile.TarFile, folder: Path, name: str, without: Iterable[str] = ()) -> None:
    """Add a folder under another name, in the order of names; owned by root, as the environment on a node is."""
    spared = {f"{name}/{part}".strip("/") for part in without}
    for path, inside in sorted(_walk(folder, name, spared), key=lambda pair: pair[1]):
        entry = layer.gettarinfo(str(path), arcname=inside)
        if entry is None or not (entry.isfile() or entry.isdir() or entry.issym() or entry.islnk()):
            # Sockets and devices: a container gets its own.
            continue
        # Times and owners would make every image a different one.
        entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "root", "root"
        if entry.isfile():
            with path.open("rb") as file:
                layer.addfile(entry, file)
        else:
            layer.addfile(entry)


def _walk(folder: Path, name: str, spared: set[str]) -> Iterator[tuple[Path, str]]:
    yield folder, name.strip("/") or "."
    for root, folders, files in os.walk(folder):
        inside = f"{name}/{os.path.relpath(root, folder)}".replace("/./", "/").removesuffix("/.").strip("/")
        folders[:] = [each for each in folders if f"{inside}/{each}".strip("/") not in spared]
        for each in [*folders, *files]:
            yield Path(root, each), f"{inside}/{each}".strip("/")


def add_text(layer: tarfile.TarFile, name: str, text: str) -> None:
    """Add a small file that is not on the node."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text.encode()), 0o644
    layer.addfile(entry, io.BytesIO(text.encode()))


def add_folder(layer: tarfile.TarFile, name: str) -> None:
    """Add an empty folder, to mount something on."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    layer.addfile(entry)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


def write_image(archive: Path, layers: list[Path], reference: str, environment: dict[str, str], user: str, architecture: str) -> str:
    """Write an OCI archive of layers that are uncompressed tar files; return the digest of its manifest, "sha256:…"."""
    digests = [digest(layer) for layer in layers]
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"User": user, "Env": [f"{name}={value}" for name, value in sorted(environment.items())], "WorkingDir": "/tmp"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{each}" for each in digests]},
        "history": [{"created_by": "airflow-executor-labs"} for _ in layers],
    }
    blobs = [document(config)]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": described(CONFIG, blobs[0]),
        "layers": [
            {"mediaType": LAYER, "digest": f"sha256:{each}", "size": layer.stat().st_size}
            for each, layer in zip(digests, layers, strict=True)
        ],
    }
    blobs.append(document(manifest))
    entry = described(MANIFEST, blobs[1]) | {
        "annotations": {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference.rpartition(":")[2]}
    }
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    part = archive.with_name(archive.name + ".part")
    with tarfile.open(part, "w") as file:
        add_text(file, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}))
        for blob in blobs:
            add_text(file, f"blobs/sha256/{hashlib.sha256(blob.encode()).hexdigest()}", blob)
        for each, layer in zip(digests, layers, strict=True):
            file.add(str(layer), arcname=f"blobs/sha256/{each}")
        add_text(file, "index.json", document(index))
    part.replace(archive)
    return f"sha256:{hashlib.sha256(blobs[1].encode()).hexdigest()}"


def document(value: dict) -> str:
    return json.dumps(value, sort_keys=True)


def described(kind: str, blob: str) -> dict:
    return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(blob.encode()).hexdigest()}", "size": len(blob.encode())}


def base_layer(path: Path, suite: str) -> None:
    """Make the layer of the distribution's own packages, of the same release as the node; nothing is done if it is there.

    A proxy for packages is in the variable http_proxy, which apt reads itself.
    """
    if path.exists():
        return
    say("downloading the packages of the image")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        root = Path(folder) / "root"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        done = subprocess.run([*command, suite, str(root)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise SystemExit(f"mmdebstrap could not make a {suite}: {done.stderr.strip()[-500:]}")
        part = path.with_name(path.name + ".part")
        with tarfile.open(part, "w") as layer:
            add_tree(layer, root, "", _SPARED)
            for name in ("tmp", "var/log", "var/cache"):
                add_folder(layer, name)
        part.replace(path)


def airflow_layer(path: Path, environment: Path, home: str, user: str, number: int) -> None:
    """Make the layer of the node's Airflow environment, with compiled modules and the folders that pods mount."""
    say("packing the Airflow environment")
    cache = Path(tempfile.mkdtemp(dir=path.parent))
    # A temporary folder is its maker's alone, and pods are somebody else.
    cache.chmod(0o755)
    try:
        _compile(environment, cache)
        part = path.with_name(path.name + ".part")
        with tarfile.open(part, "w") as layer:
            add_tree(layer, environment, str(environment).strip("/"))
            add_tree(layer, cache, "var/cache/airflow-labs")
            for name in ("", "dags", "config", "logs"):
                add_folder(layer, f"{home.strip('/')}/{name}".rstrip("/"))
            add_text(layer, "etc/passwd", f"root:x:0:0:root:/root:/bin/sh\n{user}:x:{number}:{number}::/tmp:/bin/sh\n")
            add_text(layer, "etc/group", f"root:x:0:\n{user}:x:{number}:\n")
        part.replace(path)
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _compile(environment: Path, cache: Path) -> None:
    home = tempfile.mkdtemp()
    variables = {"PATH": "/usr/bin:/bin", "HOME": home, "AIRFLOW_HOME": home, "PYTHONPYCACHEPREFIX": str(cache)}
    done = subprocess.run(
        [str(environment / "bin" / "python"), "-c", f"import {', '.join(MODULES)}"], env=variables, capture_output=True, text=True
    )
    shutil.rmtree(home, ignore_errors=True)
    if done.returncode:
        raise SystemExit(f"what a task imports cannot be imported: {done.stderr.strip()[-500:]}")
    for path in cache.rglob("*.pyc"):
        _date(path)


def _date(compiled: Path) -> None:
    """Write into a compiled module that its source is as old as every file of a layer: otherwise no pod would use it (PEP 552)."""
    code = bytearray(compiled.read_bytes())
    if code[4:8] == bytes(4):
        code[8:12] = bytes(4)
        compiled.write_bytes(code)


def say(text: str) -> None:
    """Tell whoever waits what is being done."""
    print(json.dumps({"progress": text}), flush=True)


def main() -> None:
    """Make the image and print its digest."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("archive", "environment", "home", "reference", "suite", "user", "architecture"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--uid", type=int, required=True)
    asked = parser.parse_args()
    archive, environment = Path(asked.archive), Path(asked.environment)
    archive.parent.mkdir(parents=True, exist_ok=True)
    base = archive.parent / f"base-{asked.suite}-{hashlib.sha256(' '.join(PACKAGES).encode()).hexdigest()[:12]}.tar"
    base_layer(base, asked.suite)
    layer = archive.with_name(archive.name + ".layer")
    airflow_layer(layer, environment, asked.home, asked.user, asked.uid)
    variables = {
        "PATH": f"{environment}/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPYCACHEPREFIX": "/var/cache/airflow-labs",
        "LANG": "C.UTF-8",
    }
    say("writing the image")
    found = write_image(archive, [base, layer], asked.reference, variables, f"{asked.uid}:{asked.uid}", asked.architecture)
    layer.unlink()
    print(json.dumps({"digest": found}), flush=True)


if __name__ == "__main__":
    sys.exit(main())

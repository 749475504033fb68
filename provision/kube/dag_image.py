"""The image of tasks with the DAGs in it: one small layer on top of the image that the nodes have already. Pure."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from provision.kube.pod_image import CONFIG, INDEX, LAYER, MANIFEST, add_folder, add_text, described, document

# Not a name that a registry could be asked for; apart from that of the image below, so that old ones are found.
REPOSITORY = "localhost/airflow-executor-labs-dags"


@dataclass(frozen=True)
class Base:
    """The image below, as containerd has its two documents."""

    manifest: Mapping[str, Any]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class DagImage:
    """One image: its name, the digest of its manifest, and an archive without the layers below, which nodes have."""

    reference: str
    digest: str
    archive: bytes = field(repr=False)


def dag_image(base: Base, root: PurePosixPath, files: Mapping[str, str]) -> DagImage:
    """Return the image with these files (content in base64, by path below `root`) on top; the same files make the same image."""
    layer = _layer(root, files)
    name = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    below = base.config["rootfs"]
    config = document({**base.config, "rootfs": {**below, "diff_ids": [*below["diff_ids"], name]}, "history": []})
    layers = [*base.manifest["layers"], {"mediaType": LAYER, "digest": name, "size": len(layer)}]
    manifest = document({**base.manifest, "config": described(CONFIG, config), "layers": layers})
    entry = described(MANIFEST, manifest)
    # The name says what is in it.
    tag = entry["digest"].partition(":")[2][:12]
    reference = f"{REPOSITORY}:{tag}"
    entry["annotations"] = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": tag}
    index = document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
    return DagImage(reference, entry["digest"], _archive([config.encode(), manifest.encode(), layer], index))


def _layer(root: PurePosixPath, files: Mapping[str, str]) -> bytes:
    """Return a layer with the files; whoever runs a task may read them."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as layer:
        inside = PurePosixPath(str(root).strip("/"))
        folders = {folder for name in files for folder in PurePosixPath(name).parents if str(folder) != "."}
        for folder in sorted(map(str, folders)):
            add_folder(layer, str(inside / folder))
        for name, content in sorted(files.items()):
            _add(layer, str(inside / name), base64.b64decode(content))
    return written.getvalue()


def _archive(blobs: list[bytes], index: str) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        add_text(archive, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}))
        for blob in blobs:
            _add(archive, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
        add_text(archive, "index.json", index)
    return written.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    archive.addfile(entry, io.BytesIO(content))


def listed_images(printed: str) -> dict[str, str]:
    """Return the digest of each image, by name, in what `ctr images ls` prints."""
    rows = [line.split() for line in printed.splitlines()[1:]]
    return {row[0]: row[2] for row in rows if len(row) > 2}


def outdated(images: Mapping[str, str], kept: set[str]) -> list[str]:
    """Return the names of images with DAGs that are not among those `kept`, and every other name of theirs, sorted.

    Kubernetes gives each image a second name, its number; as long as one is left, so is the image.
    """
    old = {digest for name, digest in images.items() if name.startswith(f"{REPOSITORY}:") and name not in kept}
    old -= {digest for name, digest in images.items() if name in kept}
    return sorted(name for name, digest in images.items() if digest in old)

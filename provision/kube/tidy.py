"""Removes what earlier installs of Kubernetes left on the nodes and nobody uses any more: releases, archives, images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from provision.kube.delivery import delivery_of, images_on
from provision.kube.state import REPOSITORY_OF_IMAGE, Kubernetes
from provision.nodes.session import Nodes, Session

Report = Callable[[str], None]
# The layer below every image of the same Debian: it is what takes longest, and needs the internet.
_BASE = "base-"


def remove_older(kubernetes: Kubernetes, nodes: Nodes, report: Report) -> None:
    """Remove other releases of the wanted distribution, and images of pods that were made before, with their archives."""
    names = [node.name for node in kubernetes.cluster.nodes]
    task_nodes = {node.name for node in kubernetes.task_nodes}
    found = nodes.each(lambda node: _remove(kubernetes, node, node.name in task_nodes), names)
    if older := [name for name, removed in found.items() if removed]:
        report(f"removed what earlier installs left on {', '.join(older)}")


def _remove(kubernetes: Kubernetes, node: Session, runs_tasks: bool) -> bool:
    archives, software = kubernetes.image_archive.parent, kubernetes.layout.software
    releases = node.call("names_in", folder=str(software), pattern=f"{kubernetes.distribution.name}-*")
    paths = [f"{software}/{name}" for name in older_releases(kubernetes, releases)]
    paths += [f"{archives}/{name}" for name in older_archives(kubernetes, node.call("names_in", folder=str(archives), pattern="*"))]
    delivery = delivery_of(kubernetes)
    images = older_images(images_on(delivery, node), kubernetes.pods.image) if runs_tasks else []
    if paths:
        node.call("remove", paths=paths)
    if images:
        node.call("run", argv=[*delivery.ctr, "images", "rm", *images])
    return bool(paths or images)


def older_releases(kubernetes: Kubernetes, folders: Collection[str]) -> list[str]:
    """Return those of the folders that hold another release than the wanted one, or parts of one."""
    return sorted(name for name in folders if name != kubernetes.software.name)


def older_archives(kubernetes: Kubernetes, files: Collection[str]) -> list[str]:
    """Return those of the files that belong to another image than the wanted one."""
    kept = {kubernetes.image_archive.name, f"{kubernetes.image_archive.name}.digest"}
    return sorted(name for name in files if name not in kept and not name.startswith(_BASE))


def older_images(images: Mapping[str, str], wanted: str) -> list[str]:
    """Return the names of images of pods but the wanted one, with every other name that they go by, sorted; `images` are digests by name."""
    older = {name: digest for name, digest in images.items() if name.startswith(f"{REPOSITORY_OF_IMAGE}:") and name != wanted}
    # The wanted one may be the same image under a newer name.
    digests = set(older.values()) - {images.get(wanted)}
    return sorted({*older, *(name for name, digest in images.items() if digest in digests)})

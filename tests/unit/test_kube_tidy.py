"""What earlier installs left on the nodes: told apart by names; nodes are stand-ins."""

from __future__ import annotations

from typing import Any

from cluster_samples import CLUSTER, DIGEST, kubernetes, pods

from provision.kube.tidy import older_archives, older_images, older_releases, remove_older

WANTED = kubernetes().pods.image
OLDER = WANTED.rpartition(":")[0] + ":3.3.1-0123456789ab"
OTHER = DIGEST.replace("a", "b")
IMAGES = {
    WANTED: DIGEST, f"sha256:{'1' * 64}": DIGEST, OLDER: OTHER, f"sha256:{'2' * 64}": OTHER,
    "localhost/airflow-executor-labs-dags:1": "sha256:c", "docker.io/rancher/mirrored-pause:3.6": "sha256:d",
}  # fmt: skip


def test_other_releases_of_the_distribution_are_older_ones():
    cluster = kubernetes()
    assert older_releases(cluster, ["k3s-0123456789ab", f"{cluster.software.name}.part", cluster.software.name]) == [
        "k3s-0123456789ab",
        f"{cluster.software.name}.part",
    ]


def test_the_archive_of_the_wanted_image_and_the_layer_below_all_of_them_stay():
    cluster = kubernetes()
    own = cluster.image_archive.name
    files = [own, f"{own}.digest", f"{own}.part", "3.3.1-x.tar", "3.3.1-x.tar.digest", "base-bookworm-0123456789ab.tar"]
    assert older_archives(cluster, files) == sorted(["3.3.1-x.tar", "3.3.1-x.tar.digest", f"{own}.part"])


def test_an_older_image_is_removed_under_all_of_its_names_and_no_other_image_is():
    assert older_images(IMAGES, WANTED) == sorted([OLDER, f"sha256:{'2' * 64}"])


def test_of_an_image_that_has_got_another_name_only_the_older_one_is_removed():
    assert older_images({WANTED: DIGEST, f"sha256:{'1' * 64}": DIGEST, OLDER: DIGEST}, WANTED) == [OLDER]


def test_an_image_of_a_registry_makes_all_that_were_made_here_older_ones():
    assert older_images({OLDER: OTHER, "apache/airflow:3.3.2": DIGEST}, "apache/airflow:3.3.2") == [OLDER]
    assert older_archives(kubernetes(settings=pods(image="apache/airflow:3.3.2")), ["3.3.1-x.tar"]) == ["3.3.1-x.tar"]


class Node:
    """A node with an older release and an older image."""

    def __init__(self, name: str) -> None:
        self.name, self.told = name, []

    def call(self, op: str, **args: Any) -> Any:
        if op == "names_in":
            return ["k3s-0123456789ab", kubernetes().software.name] if "k3s" in args["pattern"] else []
        if op == "ask":
            return {"code": 0, "out": "".join(f"{name} type {digest} 1 MiB\n" for name, digest in IMAGES.items())}
        self.told.append((op, args.get("paths") or args["argv"][-3:]))
        return None


class Nodes(dict):
    """Several of them, by name."""

    def each(self, work: Any, names: list[str]) -> dict[str, Any]:
        return {name: work(self[name]) for name in names}


def test_releases_are_removed_everywhere_and_images_where_tasks_run():
    nodes, said = Nodes({node.name: Node(node.name) for node in CLUSTER.nodes}), []
    remove_older(kubernetes(), nodes, said.append)
    release, images = ("remove", ["/opt/airflow-labs/k3s-0123456789ab"]), ("run", ["rm", OLDER, f"sha256:{'2' * 64}"])
    assert {name: node.told for name, node in nodes.items()} == {
        "control": [release],
        "worker-1": [release, images],
        "worker-2": [release, images],
    }
    assert said == ["removed what earlier installs left on control, worker-1, worker-2"]

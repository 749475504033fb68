"""Rancher's management UI: its charts, and what is handed to the server's Helm controller so that it installs them.

All pure, but for reading the folder that the user names. Rancher is no variant: it comes into the cluster of one, and goes with it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from provision.errors import ProvisionError, UsageError
from provision.kube import artifacts
from provision.kube.artifacts import Artifact
from provision.kube.distributions import CONTROL_ROLE, DISTRIBUTIONS
from provision.pins import pins
from provision.topology import Cluster, Node

NAME = "rancher"
MANIFEST = "airflow-labs-rancher.yaml"
# In the order in which one needs the other, with the namespace of each.
NAMESPACES: Mapping[str, str] = {"cert-manager": "cert-manager", NAME: "cattle-system"}
VALUES_SECRET = "airflow-labs-rancher"
# "Small" in ranchermanager.docs.rancher.com/getting-started/installation-and-upgrade/installation-requirements.
LEAST_MEMORY_MIB, LEAST_CORES = 16384, 4


@dataclass(frozen=True)
class Chart:
    """One Helm chart: in a repository or, where `content` is not empty, the archive itself in base64."""

    name: str
    version: str
    repository: str
    content: str = ""

    @property
    def file(self) -> str:
        """What `helm pull` calls the archive."""
        return f"{self.name}-{self.version}.tgz"


@dataclass(frozen=True)
class Rancher:
    """What is installed into a cluster of `distribution`; `images` are archives that every node imports."""

    distribution: str
    hostname: str
    charts: tuple[Chart, ...]
    images: tuple[Artifact, ...] = ()
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """Where its web page is."""
        return f"https://{self.hostname}/"

    @property
    def is_offline(self) -> bool:
        """Whether the charts are here, and so perhaps nothing but what is here can be had."""
        return all(chart.content for chart in self.charts)

    @property
    def is_pinned(self) -> bool:
        """Whether its charts are of the versions that are pinned now."""
        return [(chart.name, chart.version) for chart in self.charts] == [(chart.name, chart.version) for chart in pinned_charts()]

    def document(self) -> dict[str, Any]:
        """Return it as JSON knows it, without the password."""
        known = {name: value for name, value in asdict(self).items() if name != "password"}
        return known | {"images": [{**asdict(image), "path": str(image.path)} for image in self.images]}


def from_document(document: Mapping[str, Any], password: str = "") -> Rancher:
    """Return what `document()` described."""
    charts = tuple(Chart(**chart) for chart in document["charts"])
    images = tuple(Artifact(**{**image, "path": Path(image["path"])}) for image in document["images"])
    return Rancher(document["distribution"], document["hostname"], charts, images, password)


def pinned_charts() -> tuple[Chart, ...]:
    """Return the charts of the pinned versions, by their repositories."""
    return tuple(Chart(name, pins()[name]["version"], pins()[name]["repository"]) for name in NAMESPACES)


def from_internet(distribution: str, cluster: Cluster) -> Rancher:
    """Return Rancher by the repositories of its charts; its name is one that a public name service turns into the node's address."""
    return Rancher(distribution, f"rancher.{cluster.control.address.replace('.', '-')}.sslip.io", pinned_charts())


def from_folder(folder: Path, distribution: str, cluster: Cluster, cache: Path) -> Rancher:
    """Return Rancher by the charts and the archives of images in a folder; its name is the control node's, which needs no name service.

    `cache` remembers checksums. Raises UsageError that names the charts that are missing.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder} for the charts of Rancher.", "name one that exists: --artifacts DIR")
    charts = pinned_charts()
    if missing := [chart for chart in charts if not (folder / chart.file).is_file()]:
        raise UsageError(
            f"{folder} has no {' and no '.join(chart.file for chart in missing)}.",
            "where there is internet: " + " && ".join(f"helm pull {c.name} --repo {c.repository} --version {c.version}" for c in missing),
        )
    found = tuple(
        Chart(chart.name, chart.version, chart.repository, base64.b64encode((folder / chart.file).read_bytes()).decode())
        for chart in charts
    )
    # The folder may be the one that has the distribution's files, too.
    own = {
        name for each in DISTRIBUTIONS.values() for arch in ("amd64", "arm64") for n in artifacts.names(each, arch).values() for name in n
    }
    archives = sorted(path for path in folder.iterdir() if path.name.endswith(artifacts.PACKED) and path.name not in own)
    images = tuple(Artifact(path, "images", artifacts.checksum(path, cache)) for path in archives)
    return Rancher(distribution, cluster.control.name, found, images)


def require_machine(node: Node, memory_mib: int, cores: int, table: Path, variant: str = "kubernetes") -> None:
    """Raise UsageError if the control node has less memory or fewer cores than Rancher's documentation asks for.

    It says which line to change, and that `variant`, the one that is installed, has to be installed again then.
    """
    short = []
    # A machine of 16 GiB shows a tenth less to its programs.
    if memory_mib < LEAST_MEMORY_MIB * 0.9:
        short.append(f"{node.name} has {memory_mib} MiB of memory, {LEAST_MEMORY_MIB} are needed")
    if cores < LEAST_CORES:
        short.append(f"{node.name} has {cores} cores, {LEAST_CORES} are needed")
    if short:
        raise UsageError(
            f"The control node is too small for Rancher: {'; '.join(short)}.",
            f"in {table}{_line_of(node, table.read_text())}, give {node.name} memory_mib: {LEAST_MEMORY_MIB} and cpus: {LEAST_CORES}; "
            f"then fab destroy --target vagrant, fab up, fab install {variant} --target vagrant and this again",
        )


def _line_of(node: Node, text: str) -> str:
    """Return the line on which the text of a machine table names a node, as ", line 10"; empty if it is written in another way."""
    name = re.compile(rf"\bname: *{re.escape(node.name)}\b(?!-)")
    return next((f", line {number}" for number, line in enumerate(text.splitlines(), start=1) if name.search(line)), "")


def require_supported(version: str, variant: str = "kubernetes") -> None:
    """Raise ProvisionError for a Kubernetes ("v1.36.4+k3s1") that the pinned Rancher does not support, or that does not answer (empty).

    It says how to install `variant` again, the one that is installed.
    """
    least, most = pins()[NAME]["kubernetes"]
    if not version:
        raise ProvisionError("Kubernetes does not answer on the control node.", f"fab install {variant} --target vagrant, then this again")
    numbers = _numbers(version)
    if not _numbers(least) <= numbers <= _numbers(most):
        raise ProvisionError(
            f"Rancher {pins()[NAME]['version']} supports Kubernetes {least} to {most}, and the cluster has {version}.",
            f"fab install {variant} --target vagrant --artifacts DIR, with a release in DIR that is supported; then this again",
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Return major and minor of a version."""
    return tuple(int(number) for number in version.removeprefix("v").split(".")[:2])


def manifest(rancher: Rancher, cluster: Cluster) -> str:
    """Return the objects that the server applies: two charts for its Helm controller, and a secret with Rancher's first password.

    Keys are those of docs.k3s.io/add-ons/helm and of the values of the charts. Rancher is put on the control node, whose
    address its name leads to; what it starts by itself goes to nodes that take pods of tasks.
    """
    tolerations = [{"key": CONTROL_ROLE, "operator": "Exists", "effect": "NoSchedule"}]
    values: dict[str, dict[str, Any]] = {
        "cert-manager": {"crds": {"enabled": True}},
        NAME: {
            "hostname": rancher.hostname,
            "replicas": 1,
            "extraTolerations": tolerations,
            "extraNodeSelectorTerms": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [cluster.control.name]}],
            # A first attempt fails as long as cert-manager is not ready. The hook would clean up after each, for minutes.
            "postDelete": {"enabled": False},
            **({"useBundledSystemChart": True} if rancher.is_offline else {}),
        },
    }
    password = {"values.yaml": yaml.safe_dump({"bootstrapPassword": rancher.password})}
    documents: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": _named(VALUES_SECRET), "type": "Opaque", "stringData": password}
    ]
    for chart in rancher.charts:
        source = (
            {"chartContent": chart.content} if chart.content else {"chart": chart.name, "repo": chart.repository, "version": chart.version}
        )
        spec = {**source, "targetNamespace": NAMESPACES[chart.name], "createNamespace": True}
        spec |= {"valuesContent": yaml.safe_dump(values[chart.name], sort_keys=False)}
        if chart.name == NAME:
            spec["valuesSecrets"] = [{"name": VALUES_SECRET, "keys": ["values.yaml"]}]
        documents.append({"apiVersion": "helm.cattle.io/v1", "kind": "HelmChart", "metadata": _named(chart.name), "spec": spec})
    if rancher.distribution == "rke2":
        # Its Traefik listens on the nodes that it runs on, and the taint keeps it from this one.
        spec = {"valuesContent": yaml.safe_dump({"tolerations": tolerations}, sort_keys=False)}
        documents.append({"apiVersion": "helm.cattle.io/v1", "kind": "HelmChartConfig", "metadata": _named("rke2-traefik"), "spec": spec})
    return yaml.safe_dump_all(documents, sort_keys=False)


def _named(name: str) -> dict[str, str]:
    return {"name": name, "namespace": "kube-system"}


def is_ready(deployment: Mapping[str, Any]) -> bool:
    """Return whether Rancher's deployment, as kubectl shows it, is there in its present form."""
    status = deployment.get("status", {})
    current = status.get("observedGeneration", 0) >= deployment.get("metadata", {}).get("generation", 1)
    return current and status.get("updatedReplicas", 0) >= 1 and status.get("readyReplicas", 0) >= 1


def unready(pods: Mapping[str, Any]) -> dict[str, str]:
    """Return why pods of Rancher, of cert-manager and of the charts' installation are not ready, by namespace and name."""
    return {
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']}": _why(pod)
        for pod in pods.get("items", ())
        if _is_of_rancher(pod["metadata"])
        and pod["status"].get("phase") != "Succeeded"
        and _condition(pod, "Ready").get("status") != "True"
    }


def _is_of_rancher(metadata: Mapping[str, str]) -> bool:
    jobs = tuple(f"helm-install-{name}-" for name in NAMESPACES)
    return metadata["namespace"] in NAMESPACES.values() or metadata["name"].startswith(jobs)


def _why(pod: Mapping[str, Any]) -> str:
    """Return what a pod waits for, in the words of Kubernetes."""
    status = pod["status"]
    containers = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    waiting = [each["state"]["waiting"] for each in containers if each.get("state", {}).get("waiting")]
    if waiting:
        return ": ".join(text for text in (waiting[0].get("reason", ""), waiting[0].get("message", "")) if text)
    scheduled = _condition(pod, "PodScheduled")
    return scheduled.get("message", "") if scheduled.get("status") == "False" else f"{status.get('phase', 'Unknown')}, and not ready yet"


def _condition(pod: Mapping[str, Any], kind: str) -> Mapping[str, str]:
    return next((each for each in pod["status"].get("conditions", ()) if each["type"] == kind), {})

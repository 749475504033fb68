"""The steps that make a cluster what it should be: files sent, server started, objects applied, image made and imported."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from provision.errors import ProvisionError
from provision.kube import plan
from provision.kube.artifacts import Artifact, architecture
from provision.kube.distributions import PASSWORD
from provision.kube.look import image_digest, rancher_seen
from provision.kube.plan import ClusterStep
from provision.kube.state import Kubernetes
from provision.nodes.layout import USER, USER_NUMBER
from provision.nodes.session import PROXY_VARIABLE, Nodes, Session
from provision.nodes.state import About
from provision.readiness import START_VARIABLE, start_seconds

Report = Callable[[str], None]
# Six messages of 10 s each without an answer end a transfer.
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=6")
READY_SECONDS = 300
# Images of Rancher are large, and a first attempt of its chart fails as long as cert-manager is not ready.
RANCHER_SECONDS = 900
_PIECE = 2**20
_SUITES = {"12": "bookworm", "13": "trixie"}


def send_artifacts(kubernetes: Kubernetes, steps: Iterable[ClusterStep], nodes: Nodes, ssh_config: Path, report: Report) -> None:
    """Copy the distribution's files to the nodes that lack them, check them there, and put them where it looks for them."""
    names = [step.node for step in steps if step.action == plan.SEND]
    if gone := [str(file.path) for file in kubernetes.artifacts.files if names and not file.path.is_file()]:
        raise ProvisionError(
            f"{', '.join(gone)} is not there any more, and {', '.join(names)} needs it.",
            "name the folder again that has it: fab install rancher --target vagrant --artifacts DIR",
        )
    if names:
        report(f"copying {kubernetes.distribution.title} to {', '.join(names)}")
        nodes.each(lambda node: _send(kubernetes, node, ssh_config), names)


def _send(kubernetes: Kubernetes, node: Session, ssh_config: Path) -> None:
    folder, part = str(kubernetes.software), f"{kubernetes.software}.part"
    node.call("run", argv=["sh", "-c", f"rm -rf {part} && mkdir -p {part} && chmod 0755 {part}"])
    for artifact in kubernetes.artifacts.files:
        with artifact.path.open("rb") as file:
            _pipe(file, [[*SSH, "-F", str(ssh_config), node.name, f"sudo -n tee {part}/{artifact.path.name} > /dev/null"]], node.name)
    sums = "".join(f"{artifact.sha256}  {part}/{artifact.path.name}\n" for artifact in kubernetes.artifacts.files)
    node.call("run", argv=["sha256sum", "--quiet", "-c", "-"], text=sums)
    node.call("run", argv=["sh", "-e", "-c", "\n".join(_placing(kubernetes, part, folder))])


def _placing(kubernetes: Kubernetes, part: str, folder: str) -> list[str]:
    """Return the shell commands that put checked files where the distribution looks for them."""
    distribution, artifacts = kubernetes.distribution, kubernetes.artifacts

    def linked(chosen: list[Artifact], into: str) -> list[str]:
        # Of another release, or of none any more.
        cleared = [f"find {into} -maxdepth 1 -lname '/opt/*' -delete"]
        return [f"mkdir -p {into}", *cleared, *(f"ln -sf {folder}/{shlex.quote(each.path.name)} {into}/" for each in chosen)]

    lines = [f"chmod 0755 {part}/{each.path.name}" for each in artifacts.of_role("program")]
    lines += [f"mv {part}/{each.path.name} {part}/k3s" for each in artifacts.of_role("program") if each.path.name != "k3s"]
    lines += [f"tar -xzf {part}/{each.path.name} -C {part}" for each in artifacts.of_role("archive")]
    lines += linked(artifacts.of_role("images"), str(distribution.images))
    lines += linked(artifacts.of_role("template"), str(distribution.containerd_templates))
    return [*lines, f"rm -rf {folder}", f"mv {part} {folder}", f"touch {folder}/complete"]


def remove_store(kubernetes: Kubernetes, control: Session, report: Report) -> None:
    """Remove what a server has stored that cannot start with the present token; nothing of it is worth more than a new install."""
    report(f"removing the data of a {kubernetes.distribution.title} that was made with another token")
    control.call("stop", units=[kubernetes.layout.unit(kubernetes.service(kubernetes.cluster.control))])
    control.call("remove", paths=[str(kubernetes.distribution.server_data)])


def forget_nodes(kubernetes: Kubernetes, starting: Collection[str], nodes: Nodes, report: Report) -> None:
    """Let the cluster forget nodes that the machine table does not have any more, and those among `starting` that were made anew.

    The server lets nobody join by the name of a node whose password is another one (github.com/k3s-io/k3s/issues/6054).
    """
    control = kubernetes.cluster.control.name
    there = nodes.each(lambda node: bool(node.call("read", path=str(PASSWORD)).strip()), sorted(set(starting) - {control}))
    names = sorted({*kubernetes.seen.strangers, *(name for name, has_password in there.items() if not has_password)})
    if not names:
        return
    report(f"letting the cluster forget earlier nodes called {', '.join(names)}")
    kubectl = [*kubernetes.distribution.kubectl(kubernetes.software), "delete", "--ignore-not-found"]
    secrets = [kubernetes.distribution.node_password(name) for name in names]
    nodes[control].call("run", argv=[*kubectl, "node", *names])
    nodes[control].call("run", argv=[*kubectl, "secret", "-n", "kube-system", *secrets])


def apply_objects(kubernetes: Kubernetes, control: Session, report: Report) -> None:
    """Apply the objects of the installation; returns when their credentials are there."""
    report("applying Kubernetes objects")
    kubectl = kubernetes.distribution.kubectl(kubernetes.software)
    control.call("run", argv=[*kubectl, "apply", "-f", "-"], text=kubernetes.objects())


def wait_for_server(kubernetes: Kubernetes, control: Session, report: Report) -> None:
    """Return when the server answers; raises ProvisionError with its log if it does not."""
    kubectl, deadline = kubernetes.distribution.kubectl(kubernetes.software), time.monotonic() + start_seconds(READY_SECONDS)
    report("waiting for the Kubernetes server")
    while True:
        # The node's own entry is the last thing that is needed; the API answers earlier.
        asked = [*kubectl, "get", "node", kubernetes.cluster.control.name, "--request-timeout=5s"]
        answer = control.call("ask", argv=asked, check=False)
        if answer["code"] == 0:
            return
        _require_time(deadline, kubernetes, control, answer["err"])
        time.sleep(1)


def wait_until_ready(kubernetes: Kubernetes, nodes: Nodes, ready: Callable[[], frozenset[str]], report: Report) -> None:
    """Return when Kubernetes can use every node; raises ProvisionError with the log of one that does not join."""
    deadline = time.monotonic() + start_seconds(READY_SECONDS)
    told = ""
    while missing := [node for node in kubernetes.cluster.nodes if node.name not in ready()]:
        if (text := ", ".join(node.name for node in missing)) != told:
            report(f"waiting for {text} to join the cluster")
            told = text
        _require_time(deadline, kubernetes, nodes[missing[0].name], "")
        time.sleep(1)


def wait_for_rancher(kubernetes: Kubernetes, control: Session, report: Report) -> None:
    """Return when Rancher is ready; raises ProvisionError with the pods that are not, and why."""
    patience, told = start_seconds(RANCHER_SECONDS), None
    deadline = time.monotonic() + patience
    while True:
        ready, waiting = rancher_seen(kubernetes, control)
        if ready:
            return
        if (names := ", ".join(waiting)) != told:
            report(f"waiting for Rancher: {names or 'its pods are not made yet'}")
            told = names
        if time.monotonic() > deadline:
            reasons = "\n".join(f"  {name}: {why}" for name, why in waiting.items()) or "  none was made"
            service = kubernetes.service(kubernetes.cluster.control)
            raise ProvisionError(
                f"Rancher on {control.name} was not ready within {patience} s. Pods that are not ready:\n{reasons}",
                f"fab logs {service} --target vagrant; if it is only slow, the same command again, with {START_VARIABLE}={2 * patience}",
            )
        time.sleep(2)


def _require_time(deadline: float, kubernetes: Kubernetes, node: Session, said: str) -> None:
    service = next(kubernetes.service(each) for each in kubernetes.cluster.nodes if each.name == node.name)
    unit = kubernetes.layout.unit(service)
    state = node.call("states", units=[unit])[unit]
    if time.monotonic() < deadline and state["active"] != "failed":
        return
    log = "\n".join(f"  {line}" for line in node.call("journal", unit=unit, lines=12).strip().splitlines())
    patience, hint = start_seconds(READY_SECONDS), f"fab logs {service} --target vagrant"
    ended = state["active"] == "failed"
    problem = "ended" if ended else f"was not ready within {patience} s"
    raise ProvisionError(
        f"{service} on {node.name} {problem}. {said.strip()}\nThe end of its log:\n{log}",
        hint if ended else f"{hint}; nodes that are only slow need {START_VARIABLE}={2 * patience}",
    )


def provide_image(
    kubernetes: Kubernetes, steps: Iterable[ClusterStep], nodes: Nodes, ssh_config: Path, about: About, report: Report
) -> None:
    """Make the pod image on the control node, if it is not there, and import it into every node that lacks it, all at once."""
    listed = list(steps)
    control = nodes[kubernetes.cluster.control.name]
    archive = str(kubernetes.image_archive)
    if any(step.action == plan.BUILD for step in listed):
        report("making the pod image (once for these versions)")
        digest = _build_image(kubernetes, control, about, report)
    else:
        digest = kubernetes.seen.image_archive
    names = [step.node for step in listed if (step.action, step.name) == (plan.IMPORT, plan.IMAGE)]
    if not names:
        return
    report(f"importing the pod image into {', '.join(names)}")
    command = shlex.join([*kubernetes.distribution.ctr(kubernetes.software), "images", "import", "--digests=false", "-"])
    source = [*SSH, "-F", str(ssh_config), control.name, f"sudo -n cat {archive}"]
    sinks = [[*SSH, "-F", str(ssh_config), name, f"sudo -n {command}"] for name in names]
    with subprocess.Popen(source, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        _pipe(reader.stdout, sinks, ", ".join(names))
        if reader.wait():
            raise ProvisionError(f"{control.name}: the image could not be read: {reader.stderr.read().decode(errors='replace')[-300:]}",
                                 "the same command again")  # fmt: skip
    nodes.each(lambda node: _require_image(kubernetes, node, digest), names)


def _build_image(kubernetes: Kubernetes, control: Session, about: About, report: Report) -> str:
    layout, archive = kubernetes.layout, kubernetes.image_archive
    environment = str(kubernetes.environment)
    command = ["/usr/bin/python3", str(layout.software / "pod_image.py"), "--archive", str(archive), "--environment", environment]
    command += ["--home", str(layout.airflow_home), "--reference", kubernetes.pods.image, "--suite", _suite(about.distribution)]
    command += ["--user", USER, "--uid", str(USER_NUMBER), "--architecture", architecture(about.machine)]
    # apt knows this variable. Everybody on the node may read the words of a command, and a proxy's address may hold a password.
    proxy = os.environ.get(PROXY_VARIABLE, "")
    digest = control.call("run_reporting", report, argv=command, environment={"http_proxy": proxy} if proxy else {})["digest"]
    control.call("write_files", files={f"{archive}.digest": {"text": digest + "\n", "owner": "root", "group": "root", "mode": "0644"}})
    return digest


def _suite(distribution: str) -> str:
    try:
        return _SUITES[distribution]
    except KeyError:
        raise ProvisionError(f"No image can be made of Debian {distribution}.", f"use a box of Debian {' or '.join(_SUITES)}") from None


def _require_image(kubernetes: Kubernetes, node: Session, digest: str) -> None:
    argv = [*kubernetes.distribution.ctr(kubernetes.software), "images", "ls", f"name=={kubernetes.pods.image}"]
    found = image_digest(kubernetes.pods.image, node.call("ask", argv=argv)["out"])
    if found != digest:
        raise ProvisionError(
            f"{node.name} has {'no image' if not found else 'another image'} {kubernetes.pods.image} after the import "
            f"(digest {found or 'none'}, not {digest}).",
            "the command that installed it (fab status names it), which imports the image again",
        )


def _pipe(source, sinks: list[list[str]], where: str) -> None:
    """Read everything from a file and write it to the standard input of every command; raises ProvisionError if one fails."""
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for command in sinks]
    failed = ""
    try:
        while piece := source.read(_PIECE):
            for writer in writers:
                writer.stdin.write(piece)
    except OSError as error:
        failed = str(error)
    finally:
        said = [writer.communicate()[1].decode(errors="replace").strip()[-300:] for writer in writers]
    codes = [writer.returncode for writer in writers]
    if failed or any(codes):
        raise ProvisionError(
            f"A copy to {where} failed: {'; '.join(text for text in said if text) or failed}.",
            "look at the disks of the nodes (fab up shows the nodes), then run the same command again",
        )

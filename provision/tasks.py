"""The Fabric tasks: thin; what they do lives in the target."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fabric import task
from invoke import Exit

from provision import certificates
from provision.errors import ProvisionError, UsageError
from provision.home import lab_home
from provision.kube import rancher
from provision.machines import Machines
from provision.providers import PROVIDERS
from provision.secret_store import RANCHER_PASSWORD
from provision.target import TARGETS, Target, open_target
from provision.topology import read_cluster
from provision.variants import BROKERS, DAG_SOURCES, DISTRIBUTIONS, VARIANTS, KubernetesOptions, wanted, wanted_again
from provision.workers import Worker, changed_workers, listed_workers, parse_worker

TARGET_HELP = f"where Airflow runs, one of: {', '.join(TARGETS)} (default: local)"


def _plain_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """End with one readable message, exit code 1, or 2 for wrong use, instead of a traceback."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ProvisionError as error:
            raise Exit(f"Error: {error}", code=2 if isinstance(error, UsageError) else 1) from None
        except KeyboardInterrupt:
            raise Exit("Interrupted. Running the same command again finishes it.", code=130) from None

    return wrapper


def _progress() -> Callable[[str], None]:
    begun = time.monotonic()

    def report(text: str) -> None:
        # In one piece: nodes that are worked on side by side report from threads.
        sys.stderr.write(f"{time.monotonic() - begun:5.1f} s  {text}\n")
        sys.stderr.flush()

    return report


@task(help={"provider": f"what makes the machines, one of: {', '.join(PROVIDERS)} (default: what made them, or the first that there is)"})
@_plain_errors
def up(c, provider=""):
    """Bring up the cluster's machines with Vagrant; running it again changes nothing."""
    machines = Machines(lab_home(), read_cluster())
    started = machines.up(provider or None, _progress())
    for node in machines.cluster.nodes:
        print(f"{node.name:16} {node.address:15} {', '.join(node.roles):16} {machines.provider()}")
    print(f"{len(started)} of {len(machines.cluster.nodes)} machines had to be brought up.")


@task(
    positional=["variant"],
    iterable=["set", "worker"],
    help={
        "variant": f"one of: {', '.join(VARIANTS)}; or {rancher.NAME}: Rancher's management UI, into the cluster of the installed variant",
        "target": TARGET_HELP,
        "set": "a setting as section.key=value, for example core.parallelism=4; repeatable",
        "broker": f"the broker of a Celery variant, one of: {', '.join(BROKERS)} (default: {BROKERS[0]})",
        "worker": "a Celery worker as NAME=CONCURRENCY@QUEUES, for example heavy-1=1@heavy; repeatable; default: the variant's",
        "ha": "on several nodes, for Celery: two API servers behind HAProxy, and a second scheduler",
        "distribution": f"the Kubernetes of a variant that has one, one of: {', '.join(DISTRIBUTIONS)} (default: {DISTRIBUTIONS[0]})",
        "dags": f"how DAGs get into pods, one of: {', '.join(DAG_SOURCES)} (default: {DAG_SOURCES[0]})",
        "artifacts": "a folder with the distribution's files, or Rancher's charts, for nodes without internet (default: a download)",
        "image": "an image with the same Airflow, instead of one that is made of the nodes' own",
        "ca_bundle": "a file with certificates to trust when packages are downloaded, in PEM format; on nodes, for all of their programs",
    },
)
@_plain_errors
def install(
    c, variant, target="local", set=None, broker="", worker=None, ha=False, distribution="", dags="", artifacts="", image="", ca_bundle=""
):
    """Install a variant and start it, or Rancher's management UI beside it; running it again changes nothing."""
    if variant in ("-h", "--help"):
        raise UsageError("Help comes before the task.", "fab --help install")
    changes = _changes(set or [])
    if ca_bundle:
        os.environ[certificates.BUNDLE_VARIABLE] = ca_bundle
    certificates.bundle()
    place = open_target(target)
    listed = [parse_worker(text) for text in worker] if worker else None
    given = {"distribution": distribution, "dags": dags, "artifacts": _folder(artifacts), "image": image}
    if variant == rancher.NAME:
        beside = {"set": changes, "broker": broker, "worker": listed, "ha": ha, **{key: given[key] for key in given if key != "artifacts"}}
        _install_rancher(place, given["artifacts"], [name for name, value in beside.items() if value])
        return
    options = KubernetesOptions(**{name: value for name, value in given.items() if value})
    done = place.install(wanted(variant, changes, broker, listed, ha, options), _progress())
    for change in done:
        print(change)
    print(f"{variant} on {target}: {_count(len(done))}.")


def _install_rancher(place: Target, artifacts: str, beside: list[str]) -> None:
    again = f"fab install {rancher.NAME} --target vagrant"
    if place.name != "vagrant":
        raise UsageError("Rancher needs a cluster of machines.", f"fab up, then fab install kubernetes --target vagrant and {again}")
    if beside:
        raise UsageError(
            f"--{' and --'.join(beside)}: Rancher takes the variant as it is installed.", f"fab install kubernetes with it, then {again}"
        )
    done, installed = place.install_rancher(artifacts, _progress())
    for change in done:
        print(change)
    print(f"{rancher.NAME} on vagrant: {_count(len(done))}.")
    print(f"Rancher, {installed.url}, user admin; its first password is {RANCHER_PASSWORD} in {place.home.secrets}")
    if installed.is_offline:
        print(f"This machine must know the name: {place.cluster.control.address} {installed.hostname} in its hosts file.")


@task(
    iterable=["add", "remove", "resize"],
    help={
        "target": TARGET_HELP,
        "add": "a new worker as NAME=CONCURRENCY@QUEUES, for example worker-4=2 or heavy-1=1@heavy; repeatable",
        "remove": "the name of a worker that finishes its tasks and leaves; repeatable",
        "resize": "a worker that there is, as NAME=CONCURRENCY@QUEUES; what is left out stays as it is; repeatable",
    },
)
@_plain_errors
def workers(c, target="local", add=None, remove=None, resize=None):
    """List the Celery workers, or add, remove and resize some while tasks run."""
    place = open_target(target)
    installed = place.installed()
    if installed is None or not installed.get("broker"):
        raise ProvisionError(
            "The installed variant has no Celery workers." if installed else "No variant is installed.",
            "fab install celery" + ("" if target == "local" else f" --target {target}"),
        )
    now = listed_workers(installed["workers"])
    then = changed_workers(now, add or [], remove or [], resize or [])
    if then != now:
        done = place.set_workers(then, _progress())
        for change in done:
            print(change)
    _show_workers(place, then)


def _show_workers(place: Target, listed: Iterable[Worker]) -> None:
    seen = place.workers_seen()
    memory = {row.name: row.memory for row in place.status()}
    print(f"{'worker':16} {'concurrency':>11} {'MiB':>5}  queues")
    for worker in listed:
        most = f"{worker.at_least}-{worker.concurrency}" if worker.at_least else str(worker.concurrency)
        state = "" if worker.name in seen else "  does not answer"
        print(f"{worker.name:16} {most:>11} {memory.get(worker.name, 0) / 2**20:5.0f}  {', '.join(worker.queues)}{state}")
    waiting = ", ".join(f"{queue} {count}" for queue, count in place.messages_waiting().items())
    print(f"waiting in the broker: {waiting or 'no queue is served'}")


@task(help={"target": TARGET_HELP})
@_plain_errors
def status(c, target="local"):
    """Show every service, and what an install of the same variant would change."""
    place = open_target(target)
    rows = place.status()
    for row in rows:
        print(
            f"{row.name:20} {row.state.lower():9} pid {row.pid or '-':<8} {row.memory / 2**20:6.0f} MiB  {row.node}  {row.detail}".rstrip()
        )
    installed = place.installed()
    if installed is None:
        where = "on the nodes" if target == "vagrant" else f"in {lab_home().root}"
        raise Exit(f"No variant is installed {where}.\n  Next: fab install VARIANT --target {target}", code=1)
    print(f"{installed['variant']} on {installed['target']}, {installed['api']['url']}, user {installed['api']['user']}")
    # An installation that was made before there was Celery says nothing of it.
    if installed.get("broker"):
        print(f"Flower, {installed['flower']['url']}, user {installed['flower']['user']}; broker: {installed['broker']['kind']}")
    if url := (installed.get("kubernetes") or {}).get("rancher"):
        print(f"Rancher, {url}, user admin")
    asked = wanted_again(installed)
    todo, again = place.plan(asked), asked.command()
    if asked.broker and not asked.workers:
        again += ", with no workers as it is now,"
    if target != "local":
        again += f" --target {target}"
    for change in todo:
        print(f"would {change}")
    print(f"{again} would make {_count(len(todo))}.")


@task(
    positional=["service"], help={"service": "a service's name, as fab status shows it", "lines": "how many lines", "target": TARGET_HELP}
)
@_plain_errors
def logs(c, service, lines=50, target="local"):
    """Show the last lines that a service printed."""
    print(open_target(target).logs(service, lines))


@task(help={"target": TARGET_HELP})
@_plain_errors
def stop(c, target="local"):
    """Stop every service; data and settings stay."""
    count = open_target(target).stop(_progress())
    print(f"{count} processes stopped.")


@task(help={"target": TARGET_HELP})
@_plain_errors
def destroy(c, target="local"):
    """Stop everything and remove what was installed, on vagrant the machines too; works on a damaged installation."""
    open_target(target).destroy(_progress())
    print("The machines are gone." if target == "vagrant" else f"Nothing of Airflow is left in {lab_home().root}.")


def _folder(text: str) -> str:
    """Return the whole path of a folder, by which it is found again from elsewhere."""
    return str(Path(text).expanduser().resolve()) if text else ""


def _count(changes: int) -> str:
    return f"{changes} change{'' if changes == 1 else 's'}"


def _changes(texts: list[str]) -> dict[str, str]:
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is not a setting.", "write settings as section.key=value, for example core.parallelism=4")
        changes[name.strip()] = value.strip()
    return changes

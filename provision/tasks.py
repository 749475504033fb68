"""The Fabric tasks: thin; what they do lives in the target."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

from fabric import task
from invoke import Exit

from provision.errors import ProvisionError, UsageError
from provision.home import lab_home
from provision.target import open_target
from provision.variants import VARIANTS

TARGET_HELP = "where Airflow runs: local (the default)"


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
        print(f"{time.monotonic() - begun:5.1f} s  {text}", file=sys.stderr, flush=True)

    return report


@task(
    positional=["variant"],
    iterable=["set"],
    help={
        "variant": f"one of: {', '.join(VARIANTS)}",
        "target": TARGET_HELP,
        "set": "a setting as section.key=value, for example core.parallelism=4; repeatable",
    },
)
@_plain_errors
def install(c, variant, target="local", set=None):
    """Install a variant and start it; running it again changes nothing."""
    if variant in ("-h", "--help"):
        raise UsageError("Help comes before the task.", "fab --help install")
    changes = _changes(set or [])
    place = open_target(target)
    done = place.install(variant, changes, _progress())
    for change in done:
        print(change)
    print(f"{variant} on {target}: {len(done)} changes.")


@task(help={"target": TARGET_HELP})
@_plain_errors
def status(c, target="local"):
    """Show every service, and what an install of the same variant would change."""
    place = open_target(target)
    rows = place.status()
    for row in rows:
        print(
            f"{row.name:14} {row.state.lower():9} pid {row.pid or '-':<8} {row.memory / 2**20:6.0f} MiB  {row.node}  {row.detail}".rstrip()
        )
    installed = place.installed()
    if installed is None:
        raise Exit(f"No variant is installed in {lab_home().root}.\n  Next: fab install VARIANT", code=1)
    print(f"{installed['variant']} on {installed['target']}, {installed['api']['url']}, user {installed['api']['user']}")
    todo = place.plan(installed["variant"], installed["changes"])
    for change in todo:
        print(f"would {change}")
    print(f"fab install {installed['variant']} would make {len(todo)} changes.")


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
    """Stop everything and remove what was installed; works on a damaged installation too."""
    open_target(target).destroy(_progress())
    print(f"Nothing of Airflow is left in {lab_home().root}.")


def _changes(texts: list[str]) -> dict[str, str]:
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is not a setting.", "write settings as section.key=value, for example core.parallelism=4")
        changes[name.strip()] = value.strip()
    return changes

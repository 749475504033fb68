"""The labs command: parsing, printing and exit codes; what it does lives in the other modules."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table as RichTable

from labs.checks import overall
from labs.display import SIGNS
from labs.errors import LabError, UsageError
from provision.errors import ProvisionError
from provision.errors import UsageError as ProvisionUsageError

FAILED, WRONG_USE = 1, 2

app = typer.Typer(
    name="labs",
    help="Labs that predict and measure how Apache Airflow's executors run tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False)
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TargetOption = Annotated[str, typer.Option("--target", help="Where Airflow runs: local or vagrant.")]
VariantOption = Annotated[str | None, typer.Option("--variant", help="Run on this variant; by default each lab's own.")]
debugging = False


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Labs that predict and measure how Apache Airflow's executors run tasks."""
    global debugging
    debugging = debug


@app.command("list")
def list_labs(as_json: Json = False) -> None:
    """List the labs, what they run on and their parameters."""
    from labs.catalog import all_labs

    labs = all_labs()
    if as_json:
        rows = [
            {
                "lab": lab.name, "title": lab.title, "variants": lab.variants, "targets": lab.targets, "minutes": lab.minutes,
                "parameters": {p.name: {"default": p.default, "help": p.help} for p in lab.parameters.values()},
            }
            for lab in labs
        ]  # fmt: skip
        typer.echo(json.dumps(rows, indent=1))
        return
    rows = [
        (
            lab.name,
            lab.title,
            ", ".join(lab.variants),
            ", ".join(lab.targets),
            f"{lab.minutes:g}",
            ", ".join(f"{p.name}={p.default}" for p in lab.parameters.values()),
        )
        for lab in labs
    ]
    _table(("lab", "title", "variants", "targets", "minutes", "parameters (--set)"), rows)


@app.command()
def run(
    labs: Annotated[list[str] | None, typer.Argument(help="Names or numbers of labs; all of them by default.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Set a lab's parameter.")] = None,
    target: TargetOption = "local",
    variant: VariantOption = None,
    cell_timeout: Annotated[int, typer.Option(min=1, help="Seconds after which a cell counts as hanging.")] = 600,
    as_json: Json = False,
) -> None:
    """Run labs and write their report."""
    from labs import catalog, runner
    from labs.watch import Watch
    from provision.target import TARGETS
    from provision.variants import variant_named

    if target not in TARGETS:
        raise UsageError(f"Unknown target {target!r}.", f"choose one of: {', '.join(TARGETS)}")
    if variant is not None:
        variant_named(variant)
    chosen = catalog.find_labs(labs or [], catalog.all_labs())
    if variant is not None and not labs:
        chosen = [lab for lab in chosen if variant in lab.variants]
        if not chosen:
            raise UsageError(f"No lab runs on variant {variant!r}.", "labs list")
    left_out: list[catalog.LabFile] = []
    if not labs:
        chosen, left_out = catalog.split_by_target(chosen, target)
        if not chosen:
            others = ", ".join(dict.fromkeys(name for lab in left_out for name in lab.targets))
            raise UsageError(f"No lab of variant {variant!r} runs on target {target!r}.", f"choose another target: {others}")
    parameters = catalog.parse_parameters(set_ or [], chosen)
    with Watch() as watch:
        for lab in left_out:
            watch.line(f"Left out: {lab.name}, which runs only on target {' or '.join(lab.targets)}.", "dim")
        done = runner.run_labs(chosen, target, variant, parameters, watch, cell_seconds=cell_timeout)
    _end_run(done, as_json, _print_run)


@app.command()
def report(
    run_folder: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A folder under runs/; the newest by default.")] = None,
) -> None:
    """Write the HTML report of a run again and print where it is."""
    from labs import runner
    from labs.report import latest_run, write_report

    folder = run_folder or latest_run(runner.runs_folder())
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.", "give a folder under runs/, or none for the newest")
    typer.echo(write_report(folder))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can run, and what to install for the rest."""
    from dataclasses import asdict

    from labs.doctor import examine, ready

    findings = examine()
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        _table(
            ("", "what", "found", "what to do"),
            [({"ok": "✓", "missing": "✗", "note": "·"}[f.state], f.what, f.detail, f.remedy) for f in findings],
        )
    raise typer.Exit(0 if ready(findings) else FAILED)


@app.command()
def matrix(
    seed: Annotated[int, typer.Option(help="Cells are drawn from this seed; the same seed gives the same cells.")] = 1,
    cells: Annotated[int, typer.Option(min=1, max=200, help="How many combinations to measure.")] = 24,
    target: TargetOption = "local",
    variant: Annotated[str, typer.Option("--variant", help="The variant to measure on.")] = "postgres",
    as_json: Json = False,
) -> None:
    """Predict and measure random combinations of limits; each must come out exactly as predicted."""
    from labs import runner
    from labs.watch import Watch

    with Watch() as watch:
        record, folder = runner.run_matrix(seed, cells, target, variant, watch)
    if as_json:
        typer.echo(json.dumps(record, indent=1, sort_keys=True))
    else:
        rows = [(SIGNS[m["verdict"]], m["name"], m["predicted"], m["measured"], m["binding"]) for m in record["measurements"]]
        _table(("", "cell", "predicted", "measured", "binding limit"), rows)
        exact = sum(m["verdict"] == "pass" for m in record["measurements"])
        typer.echo(f"{exact} of {len(rows)} cells exactly as predicted. Record: {folder / 'matrix.json'}")
    raise typer.Exit(runner.EXIT_CODES[record["verdict"]])


@app.command()
def variants(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Which variants, of one executor each; by default those of sqlite, postgres, celery and kubernetes that run on the target."
        ),
    ] = None,
    target: TargetOption = "local",
    as_json: Json = False,
) -> None:
    """Run one probe on several variants and show peak, latency, makespan, CPU and memory side by side."""
    from labs import runner
    from labs.side_by_side import require_one_executor
    from labs.watch import Watch
    from provision.target import TARGETS
    from provision.variants import SHOWN, require_target, variant_named

    if target not in TARGETS:
        raise UsageError(f"Unknown target {target!r}.", f"choose one of: {', '.join(TARGETS)}")
    chosen = [variant_named(name) for name in names or SHOWN]
    for variant in chosen if names else ():
        require_one_executor(variant, target)
        require_target(variant, target)
    with Watch() as watch:
        done = runner.run_side_by_side([variant.name for variant in chosen if target in variant.targets], target, watch)
    _end_run(done, as_json, _print_side_by_side)


@app.command()
def bench(
    experiments: Annotated[list[str] | None, typer.Argument(help="Which comparisons to make; all of them by default.")] = None,
    as_json: Json = False,
) -> None:
    """Compare our variants with Airflow as shipped, side by side; prints ratios (takes about 35 minutes)."""
    from labs import bench as benchmark
    from labs import bench_rows
    from labs.watch import Watch
    from provision.home import lab_home
    from provision.lock import exclusive

    chosen = benchmark.chosen_experiments(experiments)
    with exclusive(lab_home(), "labs bench"), Watch() as watch:
        rows = benchmark.run_bench(chosen, watch.doing)
    typer.echo(json.dumps(bench_rows.as_dict(rows), indent=1, sort_keys=True) if as_json else bench_rows.render(rows))


def _end_run(done: Any, as_json: bool, show: Callable[[tuple[dict[str, Any], ...]], None]) -> NoReturn:
    """Print a finished run as JSON, or with `show` and where its report is; exit with its code."""
    from labs import runner

    if as_json:
        typer.echo(runner.as_json(done))
    else:
        show(done.records)
        typer.echo(f"Report: {done.report}")
    raise typer.Exit(done.exit_code)


def _print_run(records: tuple[dict[str, Any], ...]) -> None:
    rows = []
    for record in records:
        verdicts = [m["verdict"] for m in record["measurements"] if m.get("verdict")]
        exact = f"{verdicts.count('pass')} of {len(verdicts)}"
        rows.append(
            (
                f"{SIGNS[record['verdict']]} {record['verdict']}",
                record["lab"],
                record["variant"],
                exact,
                f"{record['seconds']:.0f}",
                record["error"],
            )
        )
    _table(("verdict", "lab", "variant", "as predicted", "seconds", "error"), rows)
    total = overall([record["verdict"] for record in records])
    typer.echo(f"{SIGNS[total]} {total}")


def _print_side_by_side(records: tuple[dict[str, Any], ...]) -> None:
    from labs.report import value_text
    from labs.side_by_side import columns

    header = ("variant", "tasks at once", "start latency, s", "makespan, s", "CPU per task, s", "memory idle, MiB", "memory per task, MiB")
    shown = columns(records)
    numbers = [(c.peak, c.latency_s, c.makespan_s, c.cpu_s, c.idle_mib, c.task_mib) for c in shown]
    _table(header, [(f"{SIGNS[c.verdict]} {c.variant}", *map(value_text, row)) for c, row in zip(shown, numbers, strict=True)])


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    table = RichTable(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    # A pipe has no width: then nothing is wrapped.
    (out if out.is_terminal else Console(width=200, highlight=False)).print(table, markup=False)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command; exits 0, 1 (a lab failed, or an error), 2 (wrong use), 3 (inconclusive) or 130 (interrupted)."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(standalone_mode=True)
    except (UsageError, ProvisionUsageError) as error:
        _fail(error, WRONG_USE)
    except (LabError, ProvisionError) as error:
        _fail(error, FAILED)


def _fail(error: Exception, code: int) -> None:
    if debugging:
        raise error
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(code)

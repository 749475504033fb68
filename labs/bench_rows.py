"""The rows of a bench: samples of ours and of stock, their ratio, the aim and whether it was reached. All pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import stdev
from typing import Any

from labs.timeline import quantile


@dataclass(frozen=True)
class Aim:
    """A bound on the ratio ours/stock, or, if `of_ours`, on our own value."""

    bound: float
    at_least: bool = False
    of_ours: bool = False

    def reached(self, value: float) -> bool:
        """Return whether `value` keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'ours' if self.of_ours else 'ratio'} {'≥' if self.at_least else '≤'} {self.bound:g}"


# Every experiment of the bench, in its order; None where nothing was promised.
AIMS: Mapping[str, Aim | None] = {
    "first-run": Aim(0.6),
    "hop": Aim(0.4),
    "throughput": Aim(1.3, at_least=True),
    "makespan": Aim(0.9, at_least=True, of_ours=True),
    "cpu": None,
    "observing": Aim(3.0, of_ours=True),
    "celery-hop": None,
    "celery-throughput": Aim(2.0, at_least=True),
    "celery-cpu": None,
    "nodes-install": Aim(1.3),
    "nodes-again": Aim(5, of_ours=True),
    "nodes-switch": Aim(20, of_ours=True),
    "nodes-cold": Aim(120, of_ours=True),
}


@dataclass(frozen=True)
class BenchRow:
    """One figure: raw samples in `unit` of ours and of stock (none where there is nothing to compare with)."""

    key: str
    title: str
    unit: str
    ours: tuple[float, ...]
    stock: tuple[float, ...] = ()
    quantile: float = 0.5
    judged: bool = True
    unclear: bool = False
    note: str = ""

    @property
    def ours_value(self) -> float:
        """The row's quantile of our samples; 0.5 is the median."""
        return quantile(self.ours, self.quantile)

    @property
    def stock_value(self) -> float | None:
        """The same of stock's samples; None without any."""
        return quantile(self.stock, self.quantile) if self.stock else None

    @property
    def ratio(self) -> float | None:
        """Ours divided by stock; None where it cannot be told."""
        return self.ours_value / self.stock_value if self.stock_value else None

    @property
    def aim(self) -> Aim | None:
        """What was promised for this row."""
        return AIMS[self.key] if self.judged else None

    @property
    def reached(self) -> bool | None:
        """Whether the aim was reached; None without an aim, without what it is judged by, or when the samples cannot tell."""
        if self.unclear:
            return None
        value = self.ours_value if self.aim and self.aim.of_ours else self.ratio
        return self.aim.reached(value) if self.aim and value is not None else None


def overheads(on: Sequence[float], off: Sequence[float]) -> tuple[float, ...]:
    """Return by how many percent each of `on` exceeds its partner in `off`."""
    return tuple(100 * (a / b - 1) for a, b in zip(on, off, strict=True))


def overhead_row(key: str, title: str, samples: tuple[float, ...]) -> BenchRow:
    """Return the row of an overhead in percent; it is unclear when its standard error exceeds the aim itself."""
    error = stdev(samples) / sqrt(len(samples)) if len(samples) > 1 else inf
    aim = AIMS[key]
    unclear = aim is not None and error > aim.bound
    note = f"{min(samples):+.1f} to {max(samples):+.1f} %" + (f": this machine is too unsteady to tell {aim.bound:g} %" if unclear else "")
    return BenchRow(key, title, "%", samples, unclear=unclear, note=note)


def throughput_note(row: BenchRow, busy: tuple[float, float], cost_s: float, cores: int) -> str:
    """Return how many cores each side kept busy, and, where it is so, that this machine has too few for the aim.

    `cost_s` is the CPU time of one of our tasks, in seconds: `cores` of them in a second are the most there can be.
    """
    words = f"{busy[0]:.1f} and {busy[1]:.1f} of {cores} cores busy"
    most = cores / cost_s if cost_s > 0 else inf
    if row.aim and row.stock_value and not row.aim.reached(most / row.stock_value):
        words += f"; this machine is the limit: {cost_s:.3f} s of CPU a task allow {most:.1f} tasks/s"
    return words


def as_dict(rows: Sequence[BenchRow]) -> dict[str, Any]:
    """Return the bench as a JSON object: every row with raw samples, values, ratio, aim and `reached`."""
    return {
        "schema": 1,
        "rows": [
            {
                "key": row.key,
                "title": row.title,
                "unit": row.unit,
                "ours": {"value": row.ours_value, "samples": list(row.ours)},
                "stock": {"value": row.stock_value, "samples": list(row.stock)},
                "ratio": row.ratio,
                "aim": str(row.aim) if row.aim else None,
                "reached": row.reached,
                "unclear": row.unclear,
                "note": row.note,
            }
            for row in rows
        ],
    }


HEADER = ("measured", "unit", "ours", "stock", "ratio", "aim", "reached", "note")


def render(rows: Sequence[BenchRow]) -> str:
    """Return the bench as a table of text; quantiles are shown, the samples are in `as_dict`."""
    cells = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cells(row: BenchRow) -> tuple[str, ...]:
    reached = "unclear" if row.unclear else {True: "yes", False: "no", None: "-"}[row.reached]
    return (
        row.title,
        row.unit,
        _number(row.ours_value),
        _number(row.stock_value),
        _number(row.ratio),
        str(row.aim) if row.aim else "-",
        reached,
        row.note,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"

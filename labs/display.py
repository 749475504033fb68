"""What notebooks show: tables and verdicts, as HTML for people and as text for terminals and tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from labs.checks import Measurement

COLOURS = {"pass": "#1a7f37", "fail": "#b42318", "inconclusive": "#9a6700"}
SIGNS = {"pass": "✓", "fail": "✗", "inconclusive": "?"}


@dataclass(frozen=True)
class Table:
    """Rows under a header."""

    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str = ""

    def __repr__(self) -> str:
        lines = [tuple(_text(cell) for cell in row) for row in (self.header, *self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        text.insert(1, "  ".join("─" * width for width in widths))
        return "\n".join([self.caption] * bool(self.caption) + text)

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{escape(str(cell))}</th>" for cell in self.header)
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left;white-space:pre-wrap'>{escape(_text(cell))}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        caption = f"<caption style='text-align:left'>{escape(self.caption)}</caption>" if self.caption else ""
        return f"<div style='overflow-x:auto'><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> Table:
    """Return a table, which shows numbers with four digits; raises ValueError when a row has not as many cells as the header."""
    fixed = tuple(tuple(row) for row in rows)
    for row in fixed:
        if len(row) != len(header):
            raise ValueError(f"row {row!r} does not fit the header {tuple(header)!r}")
    return Table(tuple(header), fixed, caption)


@dataclass(frozen=True)
class Note:
    """A sentence, with a colour that says how to take it."""

    text: str
    verdict: str = ""

    def __repr__(self) -> str:
        return f"{SIGNS[self.verdict]} {self.text}" if self.verdict else self.text

    def _repr_html_(self) -> str:
        colour = COLOURS.get(self.verdict, "#57606a")
        sign = f"<b style='color:{colour}'>{SIGNS[self.verdict]} {self.verdict}</b> " if self.verdict else ""
        return f"<div style='border-left:4px solid {colour};padding:.3em .8em;margin:.3em 0'>{sign}{escape(self.text)}</div>"


def verdict_note(measurement: Measurement) -> Note:
    """Return the sentence that says how a check went."""
    return Note(f"{measurement.name}: {measurement.why}", measurement.verdict or "")


def summary(measurements: Iterable[Measurement]) -> Table:
    """Return the table of all checks of a lab."""
    rows = [
        (SIGNS[m.verdict] + " " + m.verdict, m.name, _cell(m.predicted), _cell(m.measured)) for m in measurements if m.verdict is not None
    ]
    return table(("verdict", "what", "predicted", "measured"), rows)


def _text(value: Any) -> str:
    # What was measured has no more digits than that.
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return str(value)

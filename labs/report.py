"""The HTML report of a run: one page that needs no network, and every executed notebook beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from labs import results, side_by_side
from labs.checks import FAIL, INCONCLUSIVE, PASS, overall
from labs.display import SIGNS
from labs.errors import LabError
from labs.notebook_page import export_notebooks
from labs.svg import inline

Record = Mapping[str, Any]

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
# Records leave out what is empty.
_EMPTY_ROW = {
    "predicted": None, "measured": None, "verdict": None, "binding": "", "why": "", "unit": "", "samples": (), "evidence": {}
}  # fmt: skip
_RUN_NAME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d)(?:-(\d+))?")
_COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def latest_run(runs: Path) -> Path:
    """Return the newest run folder that holds results; raises LabError if there is none."""
    folders = [folder for folder in (runs.iterdir() if runs.is_dir() else ()) if not folder.is_symlink() and any(folder.glob("*.json"))]
    found = [((name[1], int(name[2] or 1)), folder) for folder in folders if (name := _RUN_NAME.fullmatch(folder.name))]
    if not found:
        raise LabError(f"{runs} holds no run with results.", "labs run")
    return max(found)[1]


def write_report(folder: Path) -> Path:
    """Return the page written for a run folder, its executed notebooks exported beside it; raises LabError without results."""
    records = results.read_run(folder)
    notebooks = export_notebooks(folder, [record["lab"] for record in records])
    page = folder / PAGE
    _write(page, render(records, _read_plots(folder, records), notebooks))
    return page


def render(records: Sequence[Record], plots: Mapping[str, str], notebooks: Mapping[str, str]) -> str:
    """Return the page for these records, given SVG texts by the plots' file names and links to notebooks by lab."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(value=value_text, lines=value_lines, breakable=breakable, duration=duration_text, date=date_text)
    environment.filters["timing"] = timing_text
    compared = side_by_side.columns(records)
    views = [_view(number, record, plots, notebooks) for number, record in enumerate(records, 1)]
    return environment.get_template("report.html.j2").render(
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        signs=SIGNS,
        verdict=overall([record["verdict"] for record in records]),
        headline=headline([record["verdict"] for record in records]),
        started=min(record["started"] for record in records),
        seconds=sum(record["seconds"] for record in records),
        targets=_distinct(record["target"] for record in records),
        airflows=_distinct(record["versions"].get("airflow", "unknown") for record in records),
        labs=views,
        side_by_side=compared,
        side_by_side_held=side_by_side.HELD["tasks"],
        side_by_side_timed=side_by_side.TIMED["tasks"],
        side_by_side_picture=inline(side_by_side.picture(compared), "side-by-side-", "One probe on every variant") if compared else "",
        machines=_distinct(record["machine"] for record in records),
        versions=_merged((record["variant"], record["versions"]) for record in records),
        settings=_merged((record["variant"], record.get("settings") or {}) for record in records),
    )


def headline(verdicts: Sequence[str]) -> str:
    """Return how many labs passed, failed or stayed open, as a sentence."""
    count, total = {verdict: verdicts.count(verdict) for verdict in (PASS, FAIL, INCONCLUSIVE)}, len(verdicts)
    if total == 1:
        return {PASS: "the lab passed", FAIL: "the lab failed"}.get(verdicts[0], "the lab is inconclusive")
    if count[PASS] == total:
        return f"all {total} labs passed"
    parts = [f"{count[FAIL]} of {total} labs failed"] if count[FAIL] else []
    if count[INCONCLUSIVE]:
        noun = "" if parts else f" of {total} labs"
        parts.append(f"{count[INCONCLUSIVE]}{noun} {'is' if count[INCONCLUSIVE] == 1 else 'are'} inconclusive")
    if count[PASS]:
        parts.append(f"{count[PASS]} passed")
    return ", ".join(parts)


def _view(number: int, record: Record, plots: Mapping[str, str], notebooks: Mapping[str, str]) -> dict[str, Any]:
    """Return what the template shows of one record."""
    rows = [{**_EMPTY_ROW, **row} for row in record["measurements"]]
    checks = [{**row, "words": _words(row), "gist": _gist(row)} for row in rows if row["verdict"]]
    parameters = {name: value for name, value in record["parameters"].items() if name != "result_path"}
    return {
        **record,
        "id": f"lab-{number}-" + re.sub(r"[^A-Za-z0-9-]+", "-", record["lab"]),
        "title": record.get("title") or record["lab"],
        "error": _error_text(record),
        "parameters": parameters,
        "broker": record.get("broker", ""),
        # With one node there is nothing to tell apart.
        "per_node": record.get("tasks_per_node") if len(record.get("tasks_per_node") or {}) > 1 else None,
        "notebook": notebooks.get(record["lab"], ""),
        "checks": checks,
        "passed": sum(row["verdict"] == PASS for row in checks),
        "open_checks": [row for row in checks if row["verdict"] != PASS],
        "timings": [row for row in rows if row["kind"] == "timing"],
        "infos": [row for row in rows if row["kind"] == "info"],
        "plots": [
            {"title": "", "see": "", **plot, "svg": inline(plots.get(plot["file"], ""), f"p{number}-{position}-", plot.get("title", ""))}
            for position, plot in enumerate(record.get("plots") or [], 1)
        ],
    }


def _error_text(record: Record) -> str:
    error = _COLOUR_CODES.sub("", record.get("error") or "").strip()
    if error == "interrupted":
        return "The lab was interrupted; what it had measured until then is kept."
    if not error and not record["complete"]:
        return "The lab did not reach its end; what it had measured until then is kept."
    return error


def _words(row: Mapping[str, Any]) -> list[str]:
    """Return why a check went as it did, and the binding limit, leaving out what the row shows already."""
    why = "" if _is_plain(row) else row["why"]
    binding = row["binding"] if row["binding"] not in why else ""
    return [text for text in (why, f"Binding limit: {binding}" if binding else "") if text]


def _gist(row: Mapping[str, Any]) -> str:
    """Return why a check did not pass, for a reader who does not have its row in view."""
    if not _is_plain(row):
        return row["why"] or row["binding"]
    predicted, measured = (shorten(value_text(row[key]), 90, placeholder=" …") for key in ("predicted", "measured"))
    return f"predicted {predicted}; measured {measured}"


def _is_plain(row: Mapping[str, Any]) -> bool:
    """Return whether the reason only repeats what was predicted and measured."""
    return row["why"] in ("as predicted", "within the bound") or row["why"].startswith("predicted ")


def _distinct(values: Iterable[Any]) -> list[Any]:
    kept: list[Any] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


def _merged(tables: Iterable[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, list[tuple[Any, str]]]]:
    """Return every name with its values; where they differ, each value with the variants that had it."""
    values: dict[str, list[tuple[str, Any]]] = {}
    for variant, table in tables:
        for name, value in table.items():
            values.setdefault(name, []).append((variant, value))
    return [
        (name, [(v, ", ".join(_distinct(who for who, w in pairs if w == v))) for v in _distinct(v for _, v in pairs)])
        for name, pairs in sorted(values.items())
    ]


# -- values as text ----------------------------------------------------------------------------------


def value_text(value: Any) -> str:
    """Return a recorded value as people write it."""
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number_text(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_nested_text(entry)}" for key, entry in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_nested_text(entry) for entry in value) or "none"
    return str(value) or "empty"


def _nested_text(value: Any) -> str:
    return f"({value_text(value)})" if isinstance(value, list | tuple | Mapping) and value else value_text(value)


def value_lines(value: Any) -> list[str]:
    """Return a recorded value as lines: an object has one for each of its entries."""
    if isinstance(value, Mapping) and value:
        return [f"{key}: {value_text(entry)}" for key, entry in value.items()]
    return [value_text(value)]


def breakable(text: str) -> Markup:
    """Return escaped text in which long names may break after their dots, underscores and slashes."""
    words = (re.sub(r"(?<=\w)([_./=]+)(?=\w)", r"\1<wbr>", word) if len(word) > 18 else word for word in str(escape(text)).split(" "))
    return Markup(" ".join(words))


def number_text(value: float) -> str:
    """Return a number with three significant digits, whole numbers in full."""
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    text = f"{value:.{_decimals(value)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _decimals(value: float) -> int:
    """Return how many decimals show three significant digits."""
    if value == int(value):
        return 0
    return max(0, 2 - math.floor(math.log10(abs(value))))


def duration_text(seconds: float) -> str:
    """Return seconds as "41 s", "12 min 5 s" or "1 h 2 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def date_text(stamp: str) -> str:
    """Return a record's time stamp as a date and a time of day."""
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def timing_text(samples: Sequence[float]) -> dict[str, str]:
    """Return median, range and count of raw samples, all with the decimals that the median deserves."""
    if not samples:
        return {"median": "no samples", "range": "", "count": "0"}
    middle = median(samples)
    texts = [f"{number:.{_decimals(middle)}f}" for number in (middle, min(samples), max(samples))]
    return {"median": texts[0], "range": f"{texts[1]}–{texts[2]}" if len(samples) > 1 else "", "count": str(len(samples))}


# -- files -------------------------------------------------------------------------------------------


def _read_plots(folder: Path, records: Sequence[Record]) -> dict[str, str]:
    texts = {}
    for file in (plot["file"] for record in records for plot in record.get("plots") or []):
        path = (folder / file).resolve()
        if path.is_relative_to(folder.resolve()) and path.is_file():
            texts[file] = path.read_text(encoding="utf-8", errors="replace")
    return texts


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".html.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

"""The HTML report of a run: one page that needs no network, and every executed notebook beside it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from labs import results
from labs.checks import FAIL, INCONCLUSIVE, PASS, overall
from labs.display import SIGNS
from labs.errors import LabError

Record = Mapping[str, Any]

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
# Records leave out what is empty.
_EMPTY_ROW = {
    "predicted": None, "measured": None, "verdict": None, "binding": "", "why": "", "unit": "", "samples": (), "evidence": {}
}  # fmt: skip
_RUN_NAME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d)(?:-(\d+))?")
_COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SVG = "{http://www.w3.org/2000/svg}"
_HREFS = ("href", "{http://www.w3.org/1999/xlink}href")
# What a page should not run or load, and what would act on the whole page (matplotlib's style is in report.css).
_SVG_DROPPED = {"script", "style", "foreignObject", "image", "a", "metadata", "title"}
_URL = re.compile(r"url\(\s*['\"]?([^)'\"]*)['\"]?\s*\)")


def latest_run(runs: Path) -> Path:
    """Return the newest run folder that holds results; raises LabError if there is none."""
    found = [
        ((name[1], int(name[2] or 1)), folder)
        for folder in (runs.iterdir() if runs.is_dir() else ())
        if (name := _RUN_NAME.fullmatch(folder.name)) and not folder.is_symlink() and any(folder.glob("*.json"))
    ]
    if not found:
        raise LabError(f"{runs} holds no run with results.", "labs run")
    return max(found)[1]


def write_report(folder: Path) -> Path:
    """Return the page written for a run folder, its executed notebooks exported beside it; raises LabError without results."""
    records = results.read_run(folder)
    notebooks = _export_notebooks(folder, [record["lab"] for record in records])
    page = folder / PAGE
    _write(page, render(records, _read_plots(folder, records), notebooks))
    return page


def render(records: Sequence[Record], plots: Mapping[str, str], notebooks: Mapping[str, str]) -> str:
    """Return the page for these records, given SVG texts by the plots' file names and links to notebooks by lab."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(value=value_text, number=number_text, duration=duration_text, date=date_text, timing=timing_text)
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
        machines=_distinct(record["machine"] for record in records),
        versions=_merged((record["variant"], record["versions"]) for record in records),
        settings=_merged((record["variant"], record.get("settings") or {}) for record in records),
    )


def headline(verdicts: Sequence[str]) -> str:
    """Return how many labs passed, failed or stayed open, as a sentence."""
    count, total = {verdict: verdicts.count(verdict) for verdict in (PASS, FAIL, INCONCLUSIVE)}, len(verdicts)
    if count[PASS] == total:
        return "The lab passed." if total == 1 else f"All {total} labs passed."
    parts = [f"{count[FAIL]} of {total} labs failed"] if count[FAIL] else []
    if count[INCONCLUSIVE]:
        noun = "" if parts else f" of {total} labs"
        parts.append(f"{count[INCONCLUSIVE]}{noun} {'is' if count[INCONCLUSIVE] == 1 else 'are'} inconclusive")
    if count[PASS]:
        parts.append(f"{count[PASS]} passed")
    return ", ".join(parts) + "."


def _view(number: int, record: Record, plots: Mapping[str, str], notebooks: Mapping[str, str]) -> dict[str, Any]:
    """Return what the template shows of one record."""
    rows = [{**_EMPTY_ROW, **row} for row in record["measurements"]]
    checks = [{**row, "words": _words(row)} for row in rows if row["verdict"]]
    parameters = {name: value for name, value in record["parameters"].items() if name != "result_path"}
    return {
        **record,
        "id": f"lab-{number}-" + re.sub(r"[^A-Za-z0-9-]+", "-", record["lab"]),
        "title": record.get("title") or record["lab"],
        "error": _COLOUR_CODES.sub("", record.get("error") or ""),
        "parameters": parameters,
        "notebook": notebooks.get(record["lab"], ""),
        "checks": checks,
        "passed": sum(row["verdict"] == PASS for row in checks),
        "open_checks": [row for row in checks if row["verdict"] != PASS],
        "timings": [row for row in rows if row["kind"] == "timing"],
        "infos": [row for row in rows if row["kind"] == "info"],
        "plots": [
            {"title": "", "see": "", **plot, "svg": _inline(plots.get(plot["file"], ""), f"p{number}-{position}-", plot.get("title", ""))}
            for position, plot in enumerate(record.get("plots") or [], 1)
        ],
    }


def _words(row: Mapping[str, Any]) -> list[str]:
    """Return why a check went as it did, and the binding limit unless the reason names it already."""
    why, binding = row["why"], row["binding"]
    return [text for text in (why, f"Binding limit: {binding}" if binding and binding not in why else "") if text]


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
        return ", ".join(f"{key}: {value_text(entry)}" for key, entry in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(f"({value_text(v)})" if isinstance(v, list | tuple | Mapping) else value_text(v) for v in value) or "none"
    return str(value) or "empty"


def number_text(value: float) -> str:
    """Return a number with three significant digits, whole numbers in full."""
    if isinstance(value, int) or value == int(value):
        return f"{int(value)}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


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
    """Return median, least, most and count of raw samples."""
    if not samples:
        return {"median": "no samples", "least": "", "most": "", "count": "0"}
    texts = {"median": median(samples), "least": min(samples), "most": max(samples), "count": len(samples)}
    return {name: number_text(number) for name, number in texts.items()}


# -- plots -------------------------------------------------------------------------------------------


def _inline(text: str, prefix: str, title: str) -> Markup:
    """Return an SVG to put into a page: only what draws, and every id with a prefix; empty if it is not SVG."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return Markup("")
    if root.tag != f"{_SVG}svg":
        return Markup("")
    clean = _clean(root, prefix)
    clean.attrib.pop("style", None)
    clean.attrib.update({"role": "img", "aria-label": title})
    return Markup(ElementTree.tostring(clean, encoding="unicode"))


def _clean(element: ElementTree.Element, prefix: str) -> ElementTree.Element:
    copy = ElementTree.Element(element.tag.removeprefix(_SVG), dict(_attributes(element, prefix)))
    copy.text, copy.tail = element.text, element.tail
    # A namespace other than SVG's, and comments, draw nothing.
    kept = [child for child in element if isinstance(child.tag, str) and child.tag.startswith(_SVG)]
    copy.extend(_clean(child, prefix) for child in kept if child.tag.removeprefix(_SVG) not in _SVG_DROPPED)
    return copy


def _attributes(element: ElementTree.Element, prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in element.attrib.items():
        if name in _HREFS:
            if value.startswith("#"):
                yield "href", f"#{prefix}{value[1:]}"
        elif name == "id":
            yield name, prefix + value
        elif not name.startswith(("{", "on")):
            yield name, _URL.sub(lambda found: _local_url(found, prefix), value)


def _local_url(found: re.Match[str], prefix: str) -> str:
    return f"url(#{prefix}{found[1][1:]})" if found[1].startswith("#") else "none"


# -- files -------------------------------------------------------------------------------------------


def _read_plots(folder: Path, records: Sequence[Record]) -> dict[str, str]:
    texts = {}
    for file in (plot["file"] for record in records for plot in record.get("plots") or []):
        path = (folder / file).resolve()
        if path.is_relative_to(folder.resolve()) and path.is_file():
            texts[file] = path.read_text(encoding="utf-8", errors="replace")
    return texts


def _export_notebooks(folder: Path, labs: Sequence[str]) -> dict[str, str]:
    """Return the file name of each lab's executed notebook as HTML; one that cannot be read is left out."""
    present = [lab for lab in labs if (folder / f"{lab}.ipynb").is_file()]
    exporter = _exporter() if present else None
    exported = {}
    for lab in present:
        try:
            text = _notebook_page(exporter, folder / f"{lab}.ipynb")
        # An interrupted run leaves notebooks that can be broken in any way; the report matters more.
        except Exception as error:
            logging.getLogger(__name__).debug("%s was not exported: %r", lab, error)
            continue
        _write(folder / f"{lab}.html", text)
        exported[lab] = f"{lab}.html"
    return exported


def _exporter() -> Any:
    # It takes about a second to import, which only reports should pay.
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="notebook", extra_template_basedirs=[str(TEMPLATES)], embed_images=True)
    exporter.register_filter("svg_title", svg_title)
    exporter.log = logging.getLogger("labs.report.quiet")
    exporter.log.setLevel(logging.CRITICAL)
    return exporter


def _notebook_page(exporter: Any, path: Path) -> str:
    import nbformat

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        notebook = nbformat.read(path, as_version=4)
        # Pictures that a notebook names by path lie beside its source, not beside the executed copy.
        metadata = {"name": path.stem, "path": str(Path(__file__).parent.parent / "notebooks")}
        text, _ = exporter.from_notebook_node(notebook, resources={"metadata": metadata})
    return re.sub(r'href="(\d\d-[\w-]+)\.ipynb"', lambda link: _notebook_link(link, path.parent), text)


def _notebook_link(link: re.Match[str], folder: Path) -> str:
    return f'href="{link[1]}.html"' if (folder / f"{link[1]}.ipynb").is_file() else link[0]


def svg_title(text: str) -> str:
    """Return the title that an SVG gives itself, for readers who do not see it."""
    found = re.search(r"<title[^>]*>([^<]+)</title>", text)
    return found[1].strip() if found else "Plot; the sentence below it says what to see"


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".html.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

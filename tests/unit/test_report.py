"""What a reader of a run's report can rely on."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labs import checks, plots, report, results
from labs.checks import Plateau
from labs.errors import LabError
from labs.limits import Prediction
from labs.timeline import Attempt

FOUR_WORKERS = Prediction(4, 8, 0, "parallelism is 4", ("parallelism",), False, ())
# Attributes and CSS that make a browser load something; links to follow do not.
LOADS = re.compile(
    r"""(?:\ssrc|\ssrcset|<link[^>]*\shref|\sposter|\sdata)=["']?(?!data:|#)([^"'> ]+)|@import\s*([^;]+)"""
    r"""|url\(\s*["']?(?!data:|#)([^)]+)\)|import\(\s*["'](https?:[^"']+)"""
)


class Page(HTMLParser):
    """What a page holds: every id, every link, every heading's level, the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.used: list[str] = []
        self.levels: list[int] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        if tag == "a":
            self.links += [values["href"]] if "href" in values else []
        elif "href" in values:
            self.used.append(values["href"].removeprefix("#"))
        self.used += re.findall(r"url\(#([^)]+)\)", " ".join(values.values()))
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))

    def handle_data(self, data: str) -> None:
        self.text += data


def record(lab: str = "01-parallelism", rows: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
    measurements = [row.row() for row in rows or []]
    found = {
        "schema": 1, "lab": lab, "title": f"The lab {lab}", "variant": "postgres", "target": "local",
        "versions": {"airflow": "3.3.2"}, "machine": {"cpu": "A CPU", "cores": 2, "nodes": []}, "settings": {"core.parallelism": "4"},
        "parameters": {"result_path": "/tmp/x.json", "tasks": 12}, "started": "2025-11-21T08:40:00Z", "seconds": 41.2,
        "verdict": checks.overall([row["verdict"] for row in measurements if row.get("verdict")]), "complete": True, "error": "",
        "measurements": measurements, "plots": [],
    }  # fmt: skip
    return found | changes


def passing() -> checks.Measurement:
    return checks.check_peak("peak of twelve", FOUR_WORKERS, Plateau(4, 8, 0, 5, 2.0), 4)


def failing() -> checks.Measurement:
    return checks.check_peak("peak that fails", FOUR_WORKERS, Plateau(3, 9, 0, 5, 2.0), 3)


def timeline() -> str:
    attempts = [Attempt("hold", i, "r", 1, "success", 0.0, 0.1 * i, i, i + 2.0) for i in range(4)]
    return plots.svg(plots.timeline_plot(attempts, "When they ran"))


def rendered(*records: dict[str, Any], drawings: dict[str, str] | None = None) -> Page:
    return Page(report.render(records, drawings or {}, {}))


def run_folder(folder: Path, records: list[dict[str, Any]], *, notebooks: bool = True) -> Path:
    for entry in records:
        drawing = folder / entry["lab"] / "plot-01.svg"
        drawing.parent.mkdir(parents=True)
        drawing.write_text(timeline())
        shown = {"title": "When they ran", "see": "Four bars.", "file": f"{entry['lab']}/plot-01.svg"}
        results.write(folder / f"{entry['lab']}.json", {**entry, "plots": [shown]})
        if notebooks:
            cells = [
                new_markdown_cell("# Hello\n\nNext: [pools](02-pools.ipynb), [nowhere](99-nowhere.ipynb)"),
                new_code_cell("lab.show()", outputs=[new_output("display_data", {"image/svg+xml": timeline()})]),
            ]
            nbformat.write(new_notebook(cells=cells), folder / f"{entry['lab']}.ipynb")
    return folder


def test_every_lab_and_every_measurement_appears() -> None:
    labs = {
        "01-parallelism": [passing(), checks.check_exact("hosts", {"one": 12}, {"one": 12}), checks.info("slowest", "hold[3]")],
        "02-pools": [failing(), checks.timing("latency", [0.2, 0.1, 0.4])],
    }
    page = rendered(*(record(lab, rows) for lab, rows in labs.items()))
    for lab, rows in labs.items():
        assert f"The lab {lab}" in page.text
        for row in rows:
            assert row.name in page.text
    assert "1 of 2 labs failed, 1 passed" in page.text
    assert "2 of 2 checks passed" in page.text
    assert "some other limit binds first" in page.text


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["pass"], "the lab passed"),
        (["fail"], "the lab failed"),
        (["inconclusive"], "the lab is inconclusive"),
        (["pass", "pass"], "all 2 labs passed"),
        (["pass", "inconclusive", "pass"], "1 of 3 labs is inconclusive, 2 passed"),
        (["fail", "inconclusive", "pass", "inconclusive"], "1 of 4 labs failed, 2 are inconclusive, 1 passed"),
    ],
)
def test_headline_counts_every_lab(verdicts: list[str], expected: str) -> None:
    assert report.headline(verdicts) == expected


def test_verdict_is_written_out_and_not_only_coloured() -> None:
    page = rendered(record(rows=[failing()]))
    assert re.search(r"✗\s*fail", page.text)


def test_what_did_not_pass_is_named_in_the_summary() -> None:
    text = report.render([record(rows=[passing(), failing()])], {}, {})
    summary = text[text.index("What did not pass") : text.index('class="lab"')]
    assert "peak that fails" in summary
    assert "peak of twelve" not in summary


def test_report_of_passed_labs_names_no_failures() -> None:
    assert "What did not pass" not in rendered(record(rows=[passing()])).text


@pytest.mark.parametrize("place", ["title", "variant", "error", "lab", "started"])
def test_markup_in_a_record_is_shown_as_text(place: str) -> None:
    page = rendered(record(rows=[passing()], **{place: "<script>alert(1)</script>"}))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def test_markup_in_measurements_plots_and_settings_is_shown_as_text() -> None:
    bad = "<img src=x onerror=alert(1)>"
    rows = [
        checks.check_exact(f"a {bad}", [bad], {bad: bad}, binding=bad, evidence={bad: bad}),
        checks.timing(f"b {bad}", [1.0], unit=bad),
        checks.info(f"c {bad}", bad * 30),
    ]
    page = rendered(record(rows=rows, plots=[{"title": bad, "see": bad, "file": bad}], settings={bad: bad}, parameters={bad: bad}))
    assert "img" not in page.tags


def test_drawing_keeps_no_script_and_loads_nothing() -> None:
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" onload="alert(1)">'
        '<script>alert(1)</script><style>@import "http://example.org/x.css";</style><image href="http://example.org/x.png"/>'
        '<use xlink:href="http://example.org/#a"/><g fill="url(http://example.org/#b)"><path d="M0 0"/></g></svg>'
    )
    text = report.render([record(plots=[{"title": "t", "see": "s", "file": "f"}])], {"f": drawing}, {})
    assert "example.org" not in text
    assert "alert" not in text
    assert 'd="M0 0"' in text


def test_ids_of_drawings_do_not_collide_and_their_references_follow() -> None:
    shown = [{"title": f"plot {n}", "see": "", "file": f"{n}.svg"} for n in range(3)]
    page = rendered(record("01-a", plots=shown), record("02-b", plots=shown), drawings={f"{n}.svg": timeline() for n in range(3)})
    assert page.tags.count("svg") == 6
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    assert page.used
    assert set(page.used) <= set(page.ids)


def test_drawing_has_a_name_for_readers_who_do_not_see_it() -> None:
    text = report.render([record(plots=[{"title": "When", "see": "", "file": "f"}])], {"f": timeline()}, {})
    assert re.search(r'<svg [^>]*role="img"[^>]*aria-label="When"|<svg [^>]*aria-label="When"[^>]*role="img"', text)


@pytest.mark.parametrize("drawing", ["", "<svg", "<html/>"])
def test_missing_or_damaged_drawing_is_reported_in_its_place(drawing: str) -> None:
    page = rendered(record(plots=[{"title": "When", "see": "", "file": "gone.svg"}]), drawings={"gone.svg": drawing})
    assert "gone.svg is missing or damaged" in page.text


def test_headings_skip_no_level() -> None:
    page = rendered(record(rows=[passing(), failing(), checks.timing("latency", [1.0])]), record("02-pools"))
    assert page.levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in zip(page.levels, page.levels[1:], strict=False))


def test_setting_that_differs_between_variants_names_them() -> None:
    page = rendered(record(), record("02-b", variant="sqlite", settings={"core.parallelism": "1"}))
    assert "4 (postgres)" in " ".join(page.text.split())
    assert "1 (sqlite)" in " ".join(page.text.split())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (3.0, "3"),
        (0.00301, "0.00301"),
        (1234.5, "1234"),
        (True, "yes"),
        (None, "not measured"),
        ([], "none"),
        ("", "empty"),
        ([1, "a"], "1, a"),
        ({"a": [1, 2], "b": 3.14159}, "a: (1, 2), b: 3.14"),
    ],
)
def test_values_read_as_people_write_them(value: Any, text: str) -> None:
    assert report.value_text(value) == text


def test_timing_shows_median_range_and_count() -> None:
    assert report.timing_text([0.2, 0.1, 0.4]) == {"median": "0.200", "range": "0.100–0.400", "count": "3"}
    assert report.timing_text([2.0])["range"] == ""


def test_written_page_links_only_to_what_exists(tmp_path: Path) -> None:
    page_file = report.write_report(run_folder(tmp_path, [record("01-parallelism", [passing()]), record("02-pools", [failing()])]))
    page = Page(page_file.read_text())
    assert {"01-parallelism.html", "02-pools.html"} <= set(page.links)
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (tmp_path / link).is_file()
    notebook = Page((tmp_path / "01-parallelism.html").read_text())
    assert {"report.html", "02-pools.html"} <= set(notebook.links)
    assert "nowhere" in notebook.text
    assert all((tmp_path / link).is_file() for link in notebook.links if not link.startswith("#"))


def test_pages_load_nothing_from_outside(tmp_path: Path) -> None:
    report.write_report(run_folder(tmp_path, [record(rows=[passing()])]))
    for page in (tmp_path / "report.html", tmp_path / "01-parallelism.html"):
        assert [found for found in LOADS.findall(page.read_text()) if any(found)] == []


def test_damaged_notebook_and_missing_notebook_do_not_break_the_report(tmp_path: Path) -> None:
    run_folder(tmp_path, [record("01-a"), record("02-b"), record("03-c")])
    (tmp_path / "01-a.ipynb").write_text('{"cells": [{"cell_ty')
    (tmp_path / "02-b.ipynb").unlink()
    page = Page(report.write_report(tmp_path).read_text())
    assert page.text.count("none was saved") == 2
    assert "03-c.html" in page.links


def test_interrupted_lab_says_so() -> None:
    page = rendered(record(verdict="inconclusive", complete=False, error="interrupted"))
    assert "The lab was interrupted" in page.text


def test_plot_outside_the_run_folder_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (tmp_path / "secret.svg").write_text(timeline())
    results.write(folder / "01-a.json", record("01-a", plots=[{"title": "t", "see": "", "file": "../secret.svg"}]))
    assert "missing or damaged" in report.write_report(folder).read_text()


def test_report_of_a_folder_without_results_names_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="labs run"):
        report.write_report(tmp_path)


def test_latest_run_is_the_newest_with_results(tmp_path: Path) -> None:
    for name in ("2025-11-20T10-00-00", "2025-11-21T10-00-00-2", "2025-11-21T10-00-00-10", "2025-11-22T10-00-00", "notes"):
        (tmp_path / name).mkdir()
        if not name.startswith("2025-11-22"):
            (tmp_path / name / "01-a.json").write_text(json.dumps({}))
    (tmp_path / "latest").symlink_to("2025-11-20T10-00-00")
    assert report.latest_run(tmp_path).name == "2025-11-21T10-00-00-10"


@pytest.mark.parametrize("folder", ["", "missing"])
def test_latest_run_without_any_run_names_the_next_command(tmp_path: Path, folder: str) -> None:
    with pytest.raises(LabError) as caught:
        report.latest_run(tmp_path / folder)
    assert caught.value.hint == "labs run"

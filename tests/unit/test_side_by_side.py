"""One probe on every variant, shown side by side."""

from __future__ import annotations

import pytest

from labs import report
from labs.side_by_side import Column, columns, picture, require_one_executor
from provision.variants import VARIANTS


def record(variant, peak=4, latency=(1.0, 3.0, 2.0), started="2026-01-01T00:00:00Z", **more):
    rows = [
        {"name": "peak", "kind": "exact", "predicted": 4, "measured": peak, "verdict": "pass" if peak == 4 else "fail"},
        {"name": "start latency", "kind": "timing", "unit": "s", "samples": list(latency)},
        {"name": "makespan", "kind": "timing", "unit": "s", "samples": [7.5]},
        {"name": "CPU per task", "kind": "timing", "unit": "s", "samples": [0.25]},
        {"name": "memory, idle", "kind": "timing", "unit": "MiB", "samples": [800.0]},
        {"name": "memory per running task", "kind": "timing", "unit": "MiB", "samples": []},
    ]
    return {
        "schema": 1, "lab": f"side-by-side-{variant}", "title": variant, "variant": variant, "target": "local", "versions": {},
        "machine": {}, "parameters": {}, "started": started, "seconds": 1.0, "verdict": "pass", "complete": True, "measurements": rows,
        "settings": {}, "error": "", "plots": [], **more,
    }  # fmt: skip


def test_a_column_holds_medians_and_nothing_that_was_not_measured():
    assert columns([record("sqlite")]) == [Column("sqlite", "pass", 4, 2.0, 7.5, 0.25, 800.0, None)]


def test_columns_come_in_the_order_of_measuring_and_labs_are_left_out():
    late, early = record("celery", started="2026-01-01T00:02:00Z"), record("sqlite", started="2026-01-01T00:01:00Z")
    lab = {**record("postgres"), "lab": "04-pools"}
    assert [column.variant for column in columns([late, lab, early])] == ["sqlite", "celery"]


def test_the_report_shows_the_variants_beside_each_other_with_their_verdicts():
    page = report.render([record("sqlite"), record("celery", peak=5)], {}, {})
    assert "One probe on every variant" in page
    table = page[page.index('id="side-by-side"') :]
    assert table.index("sqlite") < table.index("celery")
    assert "not measured MiB" not in table
    assert page.count("<figure>") == 1


@pytest.mark.parametrize("count", [0, 1])
def test_there_is_nothing_to_show_beside_less_than_two(count):
    labs = [{**record("postgres"), "lab": "04-pools"}]
    assert 'id="side-by-side"' not in report.render([*labs, *[record("sqlite")] * count], {}, {})


def test_the_picture_names_every_variant_and_every_measure():
    text = picture(columns([record("sqlite"), record("celery")]))
    # Letters are drawn as shapes; what they say is in comments of the picture.
    for words in ("sqlite", "celery", "tasks at once", "start latency, s", "not measured"):
        assert f"<!-- {words} -->" in text


@pytest.mark.parametrize("variant", [v for v in VARIANTS.values() if "," not in v.executor], ids=lambda variant: variant.name)
def test_every_variant_with_one_executor_may_be_measured(variant):
    require_one_executor(variant, "vagrant")

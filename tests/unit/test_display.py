"""Tables and notes, as text and as HTML."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from labs.checks import check_bound, check_exact, info, timing
from labs.display import Note, summary, table, verdict_note


def test_a_table_as_text_is_aligned_under_its_header():
    shown = repr(table(("name", "n"), [("a", 1), ("longer", 20)], "What ran"))
    assert shown.splitlines() == ["What ran", "name    n", "──────  ──", "a       1", "longer  20"]


def test_a_table_without_rows_shows_its_header():
    assert repr(table(("name", "n"), [])).splitlines() == ["name  n", "────  ─"]


@pytest.mark.parametrize(
    ("value", "shown"), [(23.540584564208984, "23.54"), (0.0334939956, "0.03349"), (2.0, "2"), (16384.4, "16384"), (7, "7"), ("x", "x")]
)
def test_a_table_shows_measured_numbers_with_four_digits(value, shown):
    assert repr(table(("n",), [(value,)])).splitlines()[-1] == shown
    assert f">{shown}</td>" in table(("n",), [(value,)])._repr_html_()


def test_a_table_takes_rows_from_a_generator():
    assert table(("n",), ([i] for i in range(3))).rows == ((0,), (1,), (2,))


@pytest.mark.parametrize("row", [(), (1,), (1, 2, 3)])
def test_a_row_that_does_not_fit_the_header_is_refused(row):
    with pytest.raises(ValueError, match="does not fit the header"):
        table(("a", "b"), [row])


def test_html_is_well_formed_and_escapes_what_it_shows():
    html = table(("<a>", "b & c"), [("<script>alert(1)</script>", "ü ✓")], "1 < 2")._repr_html_()
    tree = ElementTree.fromstring(html)
    assert "<script>" not in html
    assert [cell.text for cell in tree.iter("td")] == ["<script>alert(1)</script>", "ü ✓"]
    assert [cell.text for cell in tree.iter("th")] == ["<a>", "b & c"]
    assert next(tree.iter("caption")).text == "1 < 2"


def test_a_note_shows_its_verdict_and_escapes_its_text():
    note = Note("3 < 4", "pass")
    assert repr(note) == "✓ 3 < 4"
    assert "3 &lt; 4" in note._repr_html_()
    assert "pass" in note._repr_html_()
    assert ElementTree.fromstring(note._repr_html_()) is not None


def test_a_note_without_a_verdict_is_its_text():
    assert repr(Note("hello")) == "hello"
    assert "✓" not in Note("hello")._repr_html_()


@pytest.mark.parametrize(
    ("measurement", "shown"),
    [
        (check_exact("x", 1, 1), "✓ x: as predicted"),
        (check_exact("x", 1, 2), "✗ x: predicted 1, measured 2"),
        (check_exact("x", 1, None), "? x: nothing was measured"),
    ],
)
def test_a_verdict_is_a_sentence_with_a_sign(measurement, shown):
    assert repr(verdict_note(measurement)) == shown


def test_a_fact_without_a_verdict_can_be_noted_too():
    assert repr(verdict_note(info("cores", 2))).startswith("cores")


def test_the_summary_lists_what_has_a_verdict():
    rows = summary(
        [check_exact("a", {"w1": 2}, {"w1": 2}), timing("t", [1]), check_bound("b", 1 / 3, at_most=1, unit="s"), info("i", 1)]
    ).rows
    assert rows == (("✓ pass", "a", "w1: 2", "w1: 2"), ("✓ pass", "b", "at most 1 s", "0.333333"))


def test_the_summary_shows_lists_without_brackets():
    assert summary([check_exact("order", ["a", "b"], ["a", "b"])]).rows[0][2:] == ("a, b", "a, b")

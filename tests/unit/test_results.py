"""Result records: what a run leaves behind, and how damage is told."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from labs.checks import check_exact, info, timing
from labs.errors import LabError
from labs.installation import Installation
from labs.results import machine, read, read_run, record, validate, version_of_labs, write

INSTALLATION = Installation(
    {
        "variant": "postgres",
        "target": "local",
        "settings": {"core.parallelism": "8"},
        "versions": {"airflow": "3.3.2"},
        "nodes": [{"name": "here", "memory_gib": 8}, {"name": "there", "memory_gib": 16}],
    }
)
PASSED, FAILED, UNKNOWN = check_exact("a", 1, 1), check_exact("b", 1, 2), check_exact("c", 1, None)


def made(measurements=(PASSED,), **options) -> dict:
    """Return a record of a lab that began a moment ago."""
    return record("05-pools", INSTALLATION, {"tasks": 9}, datetime.now(UTC), measurements, **{"complete": True, **options})


def test_a_record_says_what_ran_where_and_how_it_went():
    document = made([PASSED, timing("t", [1.0]), info("i", 1)], title="Pools")
    assert document["verdict"] == "pass"
    assert (document["lab"], document["variant"], document["target"], document["title"]) == ("05-pools", "postgres", "local", "Pools")
    assert document["parameters"] == {"tasks": 9}
    assert document["settings"] == {"core.parallelism": "8"}
    assert document["machine"]["memory_gib"] == 24
    assert {"airflow", "papermill", "labs"} <= set(document["versions"])
    assert [row["name"] for row in document["measurements"]] == ["a", "t", "i"]


@pytest.mark.parametrize(
    ("measurements", "options", "verdict"),
    [
        ([PASSED], {}, "pass"),
        ([PASSED, FAILED], {}, "fail"),
        ([PASSED, UNKNOWN], {}, "inconclusive"),
        ([], {}, "inconclusive"),
        ([timing("t", [1])], {}, "inconclusive"),
        ([PASSED], {"complete": False}, "inconclusive"),
        ([FAILED], {"complete": False}, "fail"),
        ([PASSED], {"complete": False, "error": "cell 3: boom"}, "fail"),
        ([PASSED], {"error": "cell 3: boom"}, "fail"),
    ],
)
def test_a_record_passes_only_when_complete_and_without_error(measurements, options, verdict):
    assert made(measurements, **options)["verdict"] == verdict


def test_a_start_in_another_time_zone_is_written_in_utc():
    started = datetime.fromisoformat("2026-03-01T01:30:00+02:00")
    document = record("x", INSTALLATION, {}, started, [], complete=True)
    assert document["started"] == "2026-02-28T23:30:00Z"


def test_seconds_are_counted_from_the_start():
    document = record("x", INSTALLATION, {}, datetime.now(UTC) - timedelta(seconds=90), [], complete=True)
    assert 90 <= document["seconds"] < 150


def test_a_record_is_read_as_it_was_written(tmp_path: Path):
    path = tmp_path / "runs" / "today" / "05-pools.json"
    document = made([PASSED, check_exact("größe ✓", "日本", "日本")])
    write(path, document)
    assert read(path) == document
    assert list(path.parent.iterdir()) == [path]


def test_a_record_is_written_with_sorted_keys_and_readable_characters(tmp_path: Path):
    path = tmp_path / "x.json"
    write(path, made([check_exact("größe", 1, 1)]))
    assert "größe" in path.read_text(encoding="utf-8")
    keys = list(json.loads(path.read_text(encoding="utf-8")))
    assert keys == sorted(keys)


def test_an_invalid_record_is_not_written_and_the_old_one_stays(tmp_path: Path):
    path = tmp_path / "x.json"
    write(path, made())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="verdict"):
        write(path, {**made(), "verdict": "splendid"})
    assert path.read_bytes() == before


def test_a_record_that_json_cannot_hold_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "x.json"
    write(path, made())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write(path, {**made(), "parameters": {"path": object()}})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 2}, "schema 2 is not 1"),
        ({"schema": None}, "schema is missing"),
        ({"lab": 5}, "lab is missing or of the wrong type"),
        ({"seconds": "3"}, "seconds is missing or of the wrong type"),
        ({"complete": 1}, "complete is missing or of the wrong type"),
        ({"verdict": "skipped"}, "'skipped' is not one of pass, fail, inconclusive"),
        ({"measurements": {}}, "measurements is missing or of the wrong type"),
        ({"measurements": [{}]}, "measurement None has kind None"),
        ({"measurements": [{"name": "a", "kind": "guess"}]}, "'a' has kind 'guess'"),
        ({"measurements": [{"name": "", "kind": "info"}]}, "measurement ''"),
        ({"measurements": [{"name": "a", "kind": "exact"}]}, "'a' has no verdict"),
        ({"measurements": [{"name": "a", "kind": "bound", "verdict": "maybe"}]}, "'a' has no verdict"),
        ({"measurements": [{"name": "a", "kind": "info"}] * 2}, "'a' appears twice"),
        ({"measurements": [1]}, "measurement"),
        ({"measurements": [None]}, "measurement"),
        ({"measurements": [{"name": ["a"], "kind": "info"}] * 2}, "measurement"),
    ],
)
def test_validation_names_the_first_fault(change, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        validate({**made(), **change})


@pytest.mark.parametrize("document", [[], None, "x", 3])
def test_what_is_not_an_object_is_not_a_record(document):
    with pytest.raises(ValueError, match="not a JSON object"):
        validate(document)


@pytest.mark.parametrize("key", ["schema", "lab", "variant", "versions", "machine", "parameters", "started", "measurements"])
def test_a_record_without_a_required_entry_is_refused_by_its_name(key):
    document = made()
    del document[key]
    with pytest.raises(ValueError, match=f"^{key} is missing"):
        validate(document)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": 1}', b'{"measurements": [1]}'])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(LabError, match=r"x\.json is not a result record") as damaged:
        read(path)
    assert "labs run" in damaged.value.hint


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(LabError, match=r"absent\.json"):
        read(tmp_path / "absent.json")


def test_a_run_is_read_in_the_order_of_its_labs(tmp_path: Path):
    for name in ("10-last", "00-first", "05-pools"):
        write(tmp_path / f"{name}.json", {**made(), "lab": name})
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "report.html").write_text("")
    assert [document["lab"] for document in read_run(tmp_path)] == ["00-first", "05-pools", "10-last"]


def test_a_run_without_results_is_named(tmp_path: Path):
    with pytest.raises(LabError, match="holds no results"):
        read_run(tmp_path)
    with pytest.raises(LabError, match="holds no results"):
        read_run(tmp_path / "absent")


def test_the_machine_sums_the_memory_of_its_nodes_and_bears_unknown_ones():
    described = machine([{"memory_gib": 4}, {"memory_gib": None}, {}])
    assert described["memory_gib"] == 4
    assert described["cpu"]
    assert described["cores"] >= 1
    assert described["system"]


def test_the_version_of_the_labs_is_never_empty():
    assert version_of_labs()

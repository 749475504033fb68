"""Notebooks through papermill with a real kernel: progress, and honest endings whatever a cell does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nbformat
import papermill
import pytest
from jupyter_client.kernelspec import NoSuchKernel
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from labs import execute as execute_module
from labs.execute import execute, section_headings
from labs.progress import PROGRESS_VARIABLE

REPOSITORY = Path(execute_module.__file__).resolve().parent.parent
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


@pytest.fixture(autouse=True)
def kernel_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the kernel's connection files and history out of the user's home, and let it import the labs."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Return a function that executes cells (markdown where they begin with #) and returns what went wrong."""

    def run(*cells: str, metadata: dict | None = None, **options) -> str:
        made = [new_markdown_cell(text) if text.startswith("# ") else new_code_cell(text) for text in cells]
        made[0].metadata["tags"] = ["parameters"]
        source = tmp_path / "fixture.ipynb"
        nbformat.write(new_notebook(cells=made, metadata={"kernelspec": KERNEL} if metadata is None else metadata), source)
        parameters = options.pop("parameters", {})
        return execute(source, tmp_path / "output.ipynb", parameters, tmp_path / "progress", **options)

    return run


def outputs(tmp_path: Path) -> str:
    notebook = nbformat.read(tmp_path / "output.ipynb", as_version=4)
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def test_a_heading_is_the_last_one_at_or_above_a_cell():
    notebook = new_notebook(
        cells=[
            new_code_cell("# not a heading"),
            new_markdown_cell("# Goal"),
            new_code_cell("1"),
            new_markdown_cell("text\n\n## Predict\n\nmore\n\n### Deeper ✓"),
            new_code_cell("2"),
            new_markdown_cell("no heading here, and #none here"),
            new_code_cell("3"),
        ]
    )
    assert section_headings(notebook) == ["", "Goal", "Goal", "Deeper ✓", "Deeper ✓", "Deeper ✓", "Deeper ✓"]


def test_an_empty_notebook_has_no_headings():
    assert section_headings(new_notebook()) == []


def test_a_notebook_whose_cells_all_run_ends_without_words_and_tells_its_progress(run, tmp_path: Path):
    seen = []
    problem = run(
        "tasks = 1", "# Goal", "print(tasks * 2)",
        parameters={"tasks": 21}, on_cell=lambda number, count, heading: seen.append((number, count, heading)),
    )  # fmt: skip
    assert problem == ""
    assert "42" in outputs(tmp_path)
    # Cell 2 is the one with the parameters, which papermill puts behind the notebook's own.
    assert seen == [(1, 4, ""), (2, 4, ""), (4, 4, "Goal")]
    assert execute_module.ON_CELL == []


def test_a_cell_is_told_where_to_report_progress_and_nobody_afterwards(run, tmp_path: Path):
    assert run("1", "from labs import progress", "progress.report('measuring größe')") == ""
    assert "measuring" in (tmp_path / "progress").read_text(encoding="utf-8")
    assert PROGRESS_VARIABLE not in os.environ


def test_a_cell_runs_in_the_folder_of_its_notebook(run, tmp_path: Path):
    assert run("import os", "print(os.getcwd())") == ""
    assert str(tmp_path) in outputs(tmp_path)


def test_nothing_is_put_into_the_folder_of_the_notebook(run, tmp_path: Path):
    # Two runs may share it, and it may be a shared folder in which no socket can be made.
    assert run("import os", "print(sorted(os.listdir()))") == ""
    assert "ipc" not in outputs(tmp_path)
    assert not list(tmp_path.glob("kernel*"))


def test_an_exception_is_told_with_its_cell_and_stops_the_notebook(run, tmp_path: Path):
    seen = []
    problem = run("print('one')", "# Measure", "1 / 0", "print('never')", on_cell=lambda number, *rest: seen.append(number))
    assert problem == "cell 3: ZeroDivisionError: division by zero"
    assert seen == [1, 3]
    assert "never" not in outputs(tmp_path)


def test_the_labs_own_errors_are_told_in_their_own_words(run):
    problem = run("from labs.errors import LabError", "raise LabError('Pool narrow does not exist.', 'create it first')")
    assert problem == "cell 2: Pool narrow does not exist.\n  Next: create it first"


def test_an_error_is_told_without_colour_codes(run):
    problem = run(r"raise ValueError('\x1b[31mred\x1b[0m')")
    assert problem == "cell 1: ValueError: red"


def test_a_syntax_error_is_told(run):
    assert run("tasks = = 3").startswith("cell 1: SyntaxError: invalid syntax")


def test_leaving_with_an_exit_code_is_told(run):
    assert run("import sys", "sys.exit(3)", "print('never')") == "cell 2: SystemExit: 3"


def test_leaving_without_a_code_stops_the_notebook(run, tmp_path: Path):
    # papermill takes it for an ending; the runner sees from the result record that it came too early.
    assert run("import sys", "sys.exit()", "print('never')") == ""
    assert "never" not in outputs(tmp_path)


def test_a_killed_kernel_is_told_with_its_section(run):
    problem = run("1", "# Measure", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "# Explain", "print('never')")
    assert problem == "the notebook's kernel died (in section 'Measure')"
    assert execute_module.ON_CELL == []
    assert PROGRESS_VARIABLE not in os.environ


def test_a_cell_over_its_time_is_stopped_and_told_with_its_section(run):
    problem = run("1", "# Measure", "import time; time.sleep(600)", "# Explain", "print('never')", cell_seconds=1)
    assert problem == "a cell ran for more than 1 s and was stopped (in section 'Measure')"
    assert PROGRESS_VARIABLE not in os.environ


def test_an_interrupt_passes_through_and_leaves_the_partial_notebook(run, tmp_path: Path):
    def interrupt(number: int, count: int, heading: str) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("print('one')", "print('two')", on_cell=interrupt)
    assert outputs(tmp_path).startswith("one")
    assert execute_module.ON_CELL == []
    assert PROGRESS_VARIABLE not in os.environ


def test_a_missing_kernel_says_how_to_get_one(run, monkeypatch: pytest.MonkeyPatch):
    def no_kernel(*arguments: object, **options: object) -> None:
        raise NoSuchKernel("python3")

    monkeypatch.setattr(papermill, "execute_notebook", no_kernel)
    assert run("1") == "the control environment has no Jupyter kernel; run: make setup"


def test_the_kernel_that_a_notebook_was_saved_with_does_not_matter(run):
    assert run("1", metadata={"kernelspec": {"name": "my-venv", "display_name": "Mine", "language": "python"}}) == ""


def test_a_notebook_saved_without_a_kernel_runs_too(run):
    # Tools that strip outputs can strip the kernel's name as well.
    assert run("tasks = 1", parameters={"tasks": 2}, metadata={}) == ""


@pytest.mark.parametrize("content", ["", "{"])
def test_a_damaged_notebook_is_told_in_words(tmp_path: Path, content):
    source = tmp_path / "damaged.ipynb"
    source.write_text(content)
    problem = execute(source, tmp_path / "output.ipynb", {}, tmp_path / "progress")
    assert "damaged.ipynb" in problem


def test_a_missing_notebook_is_told_in_words(tmp_path: Path):
    assert "absent.ipynb" in execute(tmp_path / "absent.ipynb", tmp_path / "output.ipynb", {}, tmp_path / "progress")

"""The shape that every lab keeps, so that a learner always knows where they are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest

from labs.catalog import NOTEBOOKS, all_labs
from provision.target import TARGETS
from provision.variants import VARIANTS

LABS = all_labs()
TAGS = {"parameters", "exercise", "solution", "check", "slide"}
LONGEST_CELL = 14
EXPERIMENT = ["Predict", "Run", "Measure", "Explain"]
FRAME = ["Goal", "Exercise", "Check", "Clean up", "Next"]


def read(lab):
    return nbformat.read(lab.path, as_version=4)


def cells(lab, tag):
    return [cell for cell in read(lab).cells if tag in cell.metadata.get("tags", [])]


def headings(lab):
    text = "\n".join(cell.source for cell in read(lab).cells if cell.cell_type == "markdown")
    return re.findall(r"^##+ (.*)$", text, flags=re.M)


every_lab = pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.name)


def test_there_are_labs_each_with_a_number_of_its_own():
    numbers = [lab.name[:2] for lab in LABS]
    assert numbers[0] == "00"
    assert numbers == sorted(set(numbers))


@every_lab
def test_a_notebook_is_valid_and_holds_no_outputs(lab):
    notebook = read(lab)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@every_lab
def test_a_notebook_has_the_fixed_shape(lab):
    words = [h for h in headings(lab) if not h.startswith("Part ")]
    assert words[0] == "Goal"
    assert words[-4:] == FRAME[1:]
    experiments = words[1:-4]
    assert experiments == EXPERIMENT * (len(experiments) // 4)
    assert experiments


@every_lab
def test_cell_tags_come_from_the_closed_list(lab):
    used = {tag for cell in read(lab).cells for tag in cell.metadata.get("tags", [])}
    assert used <= TAGS


@every_lab
def test_code_cells_are_short_and_define_nothing(lab):
    for cell in read(lab).cells:
        if cell.cell_type != "code":
            continue
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source
        defined = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert defined == [], cell.source


@every_lab
def test_the_one_parameters_cell_holds_commented_literals(lab):
    (cell,) = cells(lab, "parameters")
    assert read(lab).cells[1] == cell
    names = []
    for node, line in zip(ast.parse(cell.source).body, cell.source.splitlines(), strict=True):
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        names.append(target.id)
        ast.literal_eval(node.value)
        assert "  # " in line, f"{line} has no comment"
    assert names[0] == "result_path"


@every_lab
def test_every_parameter_reaches_the_record(lab):
    setup = next(cell.source for cell in read(lab).cells if "Lab(" in cell.source)
    for name in lab.parameters:
        assert f'"{name}": {name}' in setup


@every_lab
def test_an_exercise_has_a_starter_a_solution_and_a_check(lab):
    order = [tag for cell in read(lab).cells for tag in cell.metadata.get("tags", []) if tag in ("exercise", "solution")]
    assert order == ["exercise", "solution"] * (len(order) // 2)
    assert order
    asked = sum("lab.exercise" in cell.source for cell in cells(lab, "check"))
    assert asked == len(order) // 2


@every_lab
def test_a_starter_runs_without_the_rest_of_the_notebook(lab):
    for cell in cells(lab, "exercise"):
        exec(compile(cell.source, lab.name, "exec"), {})


@every_lab
def test_metadata_names_what_exists(lab):
    assert set(lab.variants) <= set(VARIANTS)
    assert set(lab.targets) <= set(TARGETS)
    assert lab.minutes > 0
    assert lab.title
    assert read(lab).metadata.kernelspec.name == "python3"


@every_lab
def test_the_lab_is_opened_by_its_own_name_and_finished(lab):
    sources = [cell.source for cell in read(lab).cells if cell.cell_type == "code"]
    assert any(f'Lab("{lab.name}", result_path' in source for source in sources)
    assert sources[-1] == "lab.finish()"


@every_lab
def test_links_lead_somewhere(lab):
    for cell in read(lab).cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\((?!https?:)([^)#]+)", cell.source):
                assert (NOTEBOOKS / link).exists(), link


@every_lab
def test_nothing_is_said_that_papermill_mistakes_for_success(lab):
    code = "\n".join(cell.source for cell in read(lab).cells if cell.cell_type == "code")
    assert "sys.exit" not in code
    assert "raises-exception" not in Path(lab.path).read_text()


@every_lab
def test_every_plot_says_what_to_see(lab):
    for cell in read(lab).cells:
        if cell.cell_type == "code" and "lab.show(" in cell.source:
            assert "see=" in cell.source

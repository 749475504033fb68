"""The docs show only what exists: commands, options, keys, files, labs and links; all of it is in the reference."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from cluster_samples import CLUSTER
from invoke import Collection
from invoke.exceptions import ParseError
from invoke.parser import Parser

from labs import catalog, results, runner
from labs.bench_rows import AIMS
from labs.catalog import all_labs
from labs.cli import app
from labs.errors import UsageError
from labs.limits import limits_of
from labs.spec import KINDS, MOST_TASKS, Group, Spec, parse
from provision import tasks
from provision.home import HOME_VARIABLE, REPOSITORY
from provision.kube import rancher
from provision.kube.describe import airflow_mib
from provision.kube.distributions import DISTRIBUTIONS
from provision.local.ports import PORT_VARIABLES
from provision.pins import pins
from provision.variants import TUNED, VARIANTS, wanted

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
README = (REPOSITORY / "README.md").read_text()
REFERENCE = (REPOSITORY / "docs" / "reference.md").read_text()
MAKEFILE = (REPOSITORY / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, flags=re.M))
LABS = typer.main.get_command(app).commands
FAB = Collection.from_module(tasks)
# Once and first: invoke takes the help away from a task when it makes its arguments.
FAB_ARGUMENTS = {name: FAB[name].get_arguments() for name in FAB.task_names}
# What the docs write where a reader puts something of their own.
PLACEHOLDERS = {"COMMAND", "VARIANT", "LAB", "RUN"}


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def prose(text: str) -> str:
    """Return the text without its code blocks."""
    return re.sub(r"^```.*?^```\n", "", text, flags=re.M | re.S)


def shown_commands() -> list[tuple[str, str]]:
    """Return (page, command) for every labs, fab and make command in code blocks and in `code`."""
    found = []
    for page in PAGES:
        text = page.read_text()
        lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", prose(text))
        found += [(page.name, line.strip()) for line in lines if re.match(r"(labs|fab|make) ", line.strip())]
    return found


def section(heading: str) -> str:
    """Return the part of the reference below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", REFERENCE, flags=re.M | re.S)
    assert found, f"docs/reference.md has no section {heading!r}"
    return found[1]


def rows(text: str) -> dict[str, list[str]]:
    """Return the rows of the tables in a text by the first `code` in their first cell."""
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {found[1]: row for row in cells if (found := re.match(r"`([^`]+)`", row[0]))}


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


every_command = pytest.mark.parametrize("name", LABS)
every_task = pytest.mark.parametrize("name", FAB.task_names)


def test_the_docs_show_commands_at_all():
    assert {command.split()[0] for _, command in shown_commands()} == {"labs", "fab", "make"}


@pytest.mark.parametrize(("page", "command"), shown_commands())
def test_a_shown_command_would_be_accepted(page, command):
    program, *arguments = shlex.split(re.sub(r"\[(\w+)\](\.\.\.)?", r"\1", command), comments=True)
    {"labs": accept_labs, "fab": accept_fab, "make": accept_make}[program](arguments)


def accept_labs(arguments: list[str]) -> None:
    arguments = [a for a in arguments if a != "--debug"]
    if PLACEHOLDERS & set(arguments) or any(a.isupper() for a in arguments):
        assert arguments[0] in {*LABS, *PLACEHOLDERS}
        return
    name, *rest = arguments
    context = LABS[name].make_context(name, rest)
    if name == "run":
        chosen = catalog.find_labs(context.params["labs"] or [], all_labs())
        catalog.parse_parameters(context.params["set_"] or [], chosen)
        for lab in chosen if context.params["labs"] else []:
            catalog.choose_variant(lab, context.params["variant"], context.params["target"])


def accept_fab(arguments: list[str]) -> None:
    if arguments[0] == "--help":
        assert arguments[1] in FAB.task_names
        return
    (call,) = Parser(contexts=FAB.to_contexts()).parse_argv(arguments)
    variant = call.as_kwargs.get("variant")
    assert variant in {None, *VARIANTS, rancher.NAME, *PLACEHOLDERS}


def accept_make(arguments: list[str]) -> None:
    named = [a for a in arguments if "=" not in a]
    assert set(named) <= TARGETS, f"no make target {set(named) - TARGETS}"
    for variable in (a.partition("=")[0] for a in arguments if "=" in a):
        assert re.search(rf"^{variable} \?=|\$\({variable}\)", MAKEFILE, flags=re.M), f"the Makefile does not read {variable}"


@pytest.mark.parametrize("command", ["labs nothing", "labs run --nothing", "labs run 99", "labs run 04 --set nothing=1"])
def test_a_labs_command_that_does_not_exist_is_noticed(command):
    with pytest.raises(Exception, match=r"nothing|99"):
        accept_labs(command.split()[1:])


@pytest.mark.parametrize("command", ["fab nothing", "fab install postgres --nothing", "fab install nothing"])
def test_a_fab_command_that_does_not_exist_is_noticed(command):
    with pytest.raises((AssertionError, ParseError)):
        accept_fab(command.split()[1:])


@pytest.mark.parametrize("command", ["make nothing", "make NOTHING=1 lab"])
def test_a_make_command_that_does_not_exist_is_noticed(command):
    with pytest.raises(AssertionError):
        accept_make(command.split()[1:])


@every_command
def test_a_labs_command_and_its_options_have_help(name):
    assert LABS[name].help, f"labs {name} has no help"
    for parameter in LABS[name].params:
        assert parameter.help, f"{parameter.name} of labs {name} has no help"


@every_command
def test_a_labs_command_is_in_the_reference_with_its_options(name):
    text = section(f"labs {name}")
    options = {option: p for p in LABS[name].params for option in p.opts if option.startswith("--") and option != "--help"}
    documented = {key.split()[0]: row for key, row in rows(text).items() if key.startswith("--")}
    assert set(documented) == set(options)
    for option, parameter in options.items():
        if isinstance(parameter.default, str | int) and not isinstance(parameter.default, bool):
            assert documented[option][1] == f"`{parameter.default}`", f"labs {name} {option}"
    for parameter in LABS[name].params:
        if parameter.param_type_name == "argument":
            metavar = (parameter.metavar or f"[{parameter.name.upper()}]...").strip("[].")
            assert f"labs {name} [{metavar}]" in text


def test_the_reference_has_no_labs_or_fab_command_that_is_gone():
    assert set(re.findall(r"^### labs (\S+)", REFERENCE, flags=re.M)) == set(LABS)
    assert set(re.findall(r"^### fab (\S+)", REFERENCE, flags=re.M)) == set(FAB.task_names)


@every_task
def test_a_fab_task_is_in_the_reference_with_its_options(name):
    assert FAB[name].__doc__
    documented = rows(section(f"fab {name}"))
    arguments = FAB_ARGUMENTS[name]
    assert set(documented) == {f"--{a.name.replace('_', '-')}" for a in arguments}
    for argument in arguments:
        assert argument.help, f"{argument.name} of fab {name} has no help"
        default = documented[f"--{argument.name.replace('_', '-')}"][1]
        expected = "none" if argument.kind is list else "required" if argument.default is None else f"`{argument.default}`"
        assert default == expected, f"fab {name} --{argument.name}"


def test_every_make_target_is_in_the_reference():
    assert {key.removeprefix("make ") for key in rows(section("make"))} == TARGETS


def test_every_exit_code_is_in_the_reference():
    codes = re.findall(r"^\| (\d+) \|", section("labs"), flags=re.M)
    assert {0, 1, 2, 130, *runner.EXIT_CODES.values()} == {int(code) for code in codes}


@pytest.mark.parametrize(("part", "heading"), [(Spec, "Keys of the probe:"), (Group, "Keys of a group:")])
def test_every_key_of_a_spec_is_in_the_reference_with_its_default(part, heading):
    table = section("The probe spec").partition(heading)[2].partition("\n\n")[2].partition("\n\n")[0]
    documented = rows(table)
    assert list(documented) == list(part.__dataclass_fields__)
    for key, row in documented.items():
        assert ast.literal_eval(row[2].strip("`")) == getattr(part(), key), key
        assert row[1], f"{key} has no type"
        assert row[3], f"{key} has no meaning"


def test_the_kinds_and_the_most_tasks_of_a_probe_are_in_the_reference():
    documented = rows(section("The probe spec"))
    assert set(re.findall(r"`(\w+)`", documented["kind"][1])) == set(KINDS)
    assert f"at most {MOST_TASKS} " in documented["tasks"][3]


@pytest.mark.parametrize("block", [b for page in PAGES for b in blocks(page.read_text(), "python") if b.startswith("{")])
def test_a_shown_spec_is_valid(block):
    for line in block.splitlines():
        parse(ast.literal_eval(line))


def test_the_shown_errors_of_a_spec_are_the_real_ones():
    (block,) = blocks(section("The probe spec"), "text")
    wrong = (
        {"pol": "narrow"},
        {"tasks": 0},
        {"kind": "sleep"},
        {"groups": [{"name": "heavy", "after": ["light"]}, {"name": "light"}]},
        {"tasks": 5000},
    )
    for spec, shown in zip(wrong, block.strip().split("\n\n"), strict=True):
        with pytest.raises(UsageError) as error:
            parse(spec)
        assert str(error.value) == shown


def test_every_limit_of_the_model_is_in_the_reference():
    spec = parse({"pool": "narrow", "max_active_tis_per_dag": 2, "max_active_tis_per_dagrun": 1})
    settings = {"core.executor": "LocalExecutor", "core.parallelism": "8", "core.max_active_tasks_per_dag": "16"}
    for limit in limits_of(spec, settings, {"default_pool": 128, "narrow": 3}):
        assert f"`{limit.name.removesuffix(' narrow')}`" in section("The limit model"), limit.name


def test_the_shown_result_record_is_valid():
    (block,) = blocks(section("The result record"), "json")
    document = json.loads(block)
    results.validate(document)
    documented = " ".join(row[0] for row in rows(section("The result record")).values())
    for key in [*document, *(key for row in document["measurements"] for key in row)]:
        assert f"`{key}`" in documented, f"{key} of a result record is not explained"


def test_every_environment_variable_is_in_the_reference():
    documented = rows(section("Environment variables"))
    sources = [path.read_text() for folder in ("labs", "provision") for path in (REPOSITORY / folder).rglob("*.py")]
    read = {name for text in sources for name in re.findall(r'"(LAB_[A-Z_]+)"', text)}
    assert {HOME_VARIABLE, *filter(None, PORT_VARIABLES.values())} <= read
    assert read | {"PYTHON"} <= set(documented)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
def test_every_variant_is_in_readme_and_reference(variant):
    assert rows(README)[variant.name][1] == variant.summary
    row = rows(section("Variants"))[variant.name]
    assert row[1] == variant.executor
    assert row[2].lower().startswith(variant.database)
    assert row[3] == variant.settings["core.parallelism"]


def test_every_tuned_setting_is_in_the_reference_with_its_value():
    documented = rows(section("Variants"))
    assert {key: row[1] for key, row in documented.items() if "." in key} == dict(TUNED)


def test_every_experiment_of_the_bench_is_in_the_reference():
    assert [key for key in rows(section("labs bench")) if not key.startswith("--")] == list(AIMS)


@pytest.mark.parametrize("lab", all_labs(), ids=lambda lab: lab.name)
def test_every_lab_is_in_the_table_of_the_readme(lab):
    row = f"| [{lab.name}](notebooks/{lab.name}.ipynb) | {lab.title} | {', '.join(lab.variants)} | {lab.minutes:g} |"
    assert row in README.splitlines()


def test_the_table_of_the_readme_has_no_lab_that_is_gone():
    assert re.findall(r"\]\(notebooks/([^)]*)\.ipynb\)", README) == [lab.name for lab in all_labs()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_lead_somewhere(page: Path):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page.read_text())):
        path, _, anchor = link.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path):
    for name in re.findall(r"`((?:labs|provision|tests|notebooks|docs)/[\w./-]+)`", prose(page.read_text())):
        assert "NN-" in name or (REPOSITORY / name).exists(), f"{page.name}: {name}"


def test_the_picture_of_a_report_is_small():
    assert 10_000 < (REPOSITORY / "docs" / "images" / "report.png").stat().st_size < 250_000


def test_the_reference_says_what_rancher_wants_and_which_charts_it_takes():
    text = section("Rancher's management UI")
    assert f"| {rancher.LEAST_MEMORY_MIB} MiB and {rancher.LEAST_CORES}," in text
    assert f"{' to '.join(pins()['rancher']['kubernetes'])}, for the pinned Rancher {pins()['rancher']['version']}" in text
    assert all(f"`{chart.file}`" in text for chart in rancher.pinned_charts())


def test_the_reference_says_where_every_variant_runs():
    described = {name for row in rows(section("Three nodes")).values() for name in re.findall(r"`([^`]+)`", row[0])}
    assert set(VARIANTS) <= described


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_reference_says_how_much_memory_a_cluster_wants(name):
    row = rows(section("Kubernetes"))[name]
    least = {}
    for variant in ("kubernetes", "multiple"):
        airflow = airflow_mib(wanted(variant), CLUSTER)
        least[variant] = (DISTRIBUTIONS[name].server_mib + airflow["control"], DISTRIBUTIONS[name].agent_mib + airflow["worker-1"])
    assert row[1] == pins()[name]["version"].removeprefix("v")
    assert tuple(int(cell.split()[0]) for cell in row[2:]) == (*least["kubernetes"], *least["multiple"])

"""The labs there are: every notebook with its title, variants, targets, minutes and parameters."""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import papermill

from labs.errors import LabError, UsageError

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
# Set by the runner, not by people.
RESERVED = frozenset({"result_path"})


@dataclass(frozen=True)
class Parameter:
    """One entry of a notebook's parameters cell; `default` is a Python literal."""

    name: str
    kind: str
    default: Any
    help: str


@dataclass(frozen=True)
class LabFile:
    """One notebook."""

    path: Path

    @property
    def name(self) -> str:
        """The lab's name: the notebook's file name without its ending."""
        return self.path.stem

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The notebook's own description; raises LabError when it has none."""
        try:
            return json.loads(self.path.read_text())["metadata"]["lab"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LabError(f"{self.path} does not describe itself as a lab ({error!r}).", "see docs/contributor.md, New lab") from error

    @property
    def title(self) -> str:
        return self.metadata["title"]

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.metadata["variants"])

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.metadata["targets"])

    @property
    def minutes(self) -> float:
        return self.metadata["minutes"]

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters that people may set, by name."""
        found = papermill.inspect_notebook(str(self.path)).values()
        return {
            p["name"]: Parameter(p["name"], p["inferred_type_name"], ast.literal_eval(p["default"]), p["help"])
            for p in found
            if p["name"] not in RESERVED
        }


def all_labs(folder: Path = NOTEBOOKS) -> list[LabFile]:
    """Return every lab in the order of its number."""
    return [LabFile(path) for path in sorted(folder.glob("[0-9][0-9]-*.ipynb"))]


def find_labs(names: Iterable[str], labs: list[LabFile]) -> list[LabFile]:
    """Return the labs with these names, numbers or unambiguous parts of names, in the order of their numbers.

    All labs for no names. Raises UsageError for a name that fits no lab, or several.
    """
    chosen = []
    for name in names:
        wanted = name.removesuffix(".ipynb").rsplit("/", 1)[-1]
        fits = [lab for lab in labs if lab.name == wanted] or [lab for lab in labs if lab.name.split("-")[0] == wanted]
        fits = fits or [lab for lab in labs if wanted and wanted in lab.name]
        if len(fits) != 1:
            near = [lab.name for lab in fits] or difflib.get_close_matches(wanted, [lab.name for lab in labs], cutoff=0.4)
            problem = "Unknown lab" if not fits else "Several labs fit"
            raise UsageError(f"{problem} {name!r}.", f"did you mean: {', '.join(near)}?" if near else "labs list")
        chosen += fits
    return [lab for lab in labs if lab in chosen] if chosen else list(labs)


def parse_parameters(texts: Iterable[str], labs: list[LabFile]) -> dict[str, dict[str, Any]]:
    """Return the parameters by lab that NAME=VALUE texts set; each goes to every chosen lab that has it.

    Raises UsageError for a malformed text, a name that no chosen lab has, or a value of the wrong type.
    """
    result: dict[str, dict[str, Any]] = {lab.name: {} for lab in labs}
    for text in texts:
        name, equals, value = text.partition("=")
        takers = [lab for lab in labs if name in lab.parameters]
        if not equals or not takers:
            known = sorted({f"{p} ({lab.name})" for lab in labs for p in lab.parameters})
            problem = f"Unknown parameter {name!r}." if equals else f"{text!r} is not NAME=VALUE."
            raise UsageError(problem, f"choose one of: {', '.join(known) or '(these labs have no parameters)'}")
        for lab in takers:
            result[lab.name][name] = typed_value(lab.parameters[name], value)
    return result


def typed_value(parameter: Parameter, text: str) -> Any:
    """Return `text` as a value of the parameter's type, which is that of its default; raises UsageError if it is not one."""
    wanted = type(parameter.default)
    if wanted is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    value = _as_floats(value, parameter.default)
    item = type(parameter.default[0]) if wanted is list and parameter.default else None
    if type(value) is not wanted or (item and any(type(v) is not item for v in value)):
        example = repr(parameter.default).replace(" ", "")
        raise UsageError(
            f"Parameter {parameter.name} = {text!r} is not of type {wanted.__name__}.", f"for example --set {parameter.name}={example}"
        )
    return value


def _as_floats(value: Any, default: Any) -> Any:
    """Return `value` with whole numbers made floats where the default has floats."""
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, list) and default and isinstance(value, list):
        return [_as_floats(v, default[0]) for v in value]
    return value


def choose_variant(lab: LabFile, wanted: str | None, target: str) -> str:
    """Return the variant a lab runs on: the wanted one, or its first; raises UsageError if it does not fit."""
    if target not in lab.targets:
        raise UsageError(f"Lab {lab.name} does not run on target {target!r}.", f"choose one of: {', '.join(lab.targets)}")
    if wanted is None:
        return lab.variants[0]
    if wanted not in lab.variants:
        raise UsageError(f"Lab {lab.name} does not run on variant {wanted!r}.", f"choose one of: {', '.join(lab.variants)}")
    return wanted


def split_by_target(labs: Iterable[LabFile], target: str) -> tuple[list[LabFile], list[LabFile]]:
    """Return the labs that run on a target, and those that do not."""
    listed = list(labs)
    return [lab for lab in listed if target in lab.targets], [lab for lab in listed if target not in lab.targets]


def group_by_variant(labs: Iterable[tuple[LabFile, str]]) -> list[tuple[str, list[LabFile]]]:
    """Return the labs by variant, variants in the order of their first lab, so that each is installed once."""
    groups: dict[str, list[LabFile]] = {}
    for lab, variant in labs:
        groups.setdefault(variant, []).append(lab)
    return list(groups.items())


def parameter_defaults(lab: LabFile, changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parameters of a lab as it will run."""
    return {**{name: p.default for name, p in lab.parameters.items()}, **changed}

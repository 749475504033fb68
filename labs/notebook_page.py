"""Executed notebooks as pages that load nothing from the network."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from labs.svg import title_of

TEMPLATES = Path(__file__).parent / "templates"
SOURCES = Path(__file__).parent.parent / "notebooks"


def export_notebooks(folder: Path, labs: Iterable[str]) -> dict[str, str]:
    """Return the file name of each lab's executed notebook as HTML; one that cannot be read is left out."""
    # A lab's name comes from a record; it must not lead out of the folder.
    present = [lab for lab in labs if Path(lab).name == lab and (folder / f"{lab}.ipynb").is_file()]
    exporter = _exporter() if present else None
    exported = {}
    for lab in present:
        try:
            text = _notebook_page(exporter, folder / f"{lab}.ipynb")
        # An interrupted run leaves notebooks that can be broken in any way; the report matters more.
        except Exception as error:
            logging.getLogger(__name__).debug("%s was not exported: %r", lab, error)
            continue
        (folder / f"{lab}.html").write_text(text, encoding="utf-8")
        exported[lab] = f"{lab}.html"
    return exported


def _exporter() -> Any:
    # It takes about a second to import, which only reports should pay.
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="notebook", extra_template_basedirs=[str(TEMPLATES)], embed_images=True)
    exporter.register_filter("svg_title", title_of)
    exporter.log = logging.getLogger("labs.notebook_page.quiet")
    exporter.log.setLevel(logging.CRITICAL)
    return exporter


def _notebook_page(exporter: Any, path: Path) -> str:
    import nbformat

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        notebook = nbformat.read(path, as_version=4)
        # Pictures that a notebook names by path lie beside its source, not beside the executed copy.
        metadata = {"name": path.stem, "path": str(SOURCES)}
        text, _ = exporter.from_notebook_node(notebook, resources={"metadata": metadata})
    return re.sub(r'href="(\d\d-[\w-]+)\.ipynb"', lambda link: _notebook_link(link, path.parent), text)


def _notebook_link(link: re.Match[str], folder: Path) -> str:
    # A lab that this run left out has no page: its link becomes plain text.
    return f'href="{link[1]}.html"' if (folder / f"{link[1]}.ipynb").is_file() else ""

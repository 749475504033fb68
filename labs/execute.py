"""One notebook through papermill, with what papermill leaves to its callers: checks, progress, honest endings."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from labs import progress

CELL_SECONDS = 600
ON_CELL: list[Callable[[int, int, str], None]] = []
_COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*m")


class WatchedEngine(NBClientEngine):
    """papermill's own engine; it also says which cell begins."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
        """Execute the notebook, calling every function in ON_CELL before each code cell."""
        headings = section_headings(nb_man.nb)
        original = nb_man.cell_start

        def cell_start(cell: Any, cell_index: int | None = None, **kw: Any) -> Any:
            if cell.cell_type == "code" and cell_index is not None:
                for function in ON_CELL:
                    function(cell_index + 1, len(nb_man.nb.cells), headings[cell_index])
            return original(cell, cell_index, **kw)

        nb_man.cell_start = cell_start
        return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


papermill_engines.register("labs", WatchedEngine)


def section_headings(notebook: Any) -> list[str]:
    """Return, for every cell, the last markdown heading at or above it."""
    heading, result = "", []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = re.findall(r"^#+\s+(.*)$", cell.source, flags=re.M)
            heading = found[-1] if found else heading
        result.append(heading)
    return result


def execute(
    source: Path,
    output: Path,
    parameters: Mapping[str, Any],
    progress_file: Path,
    on_cell: Callable[[int, int, str], None] = lambda number, count, heading: None,
    cell_seconds: int = CELL_SECONDS,
) -> str:
    """Execute a notebook; return "" if every cell ran, else what went wrong in words.

    KeyboardInterrupt passes through, after the kernel was ended and the partial notebook saved.
    """
    os.environ[progress.PROGRESS_VARIABLE] = str(progress_file)
    ON_CELL.append(on_cell)
    # Cells and outputs travel through socket files that only this user can open, not through loopback ports.
    # Without `ip` they would be made in the notebook's folder, where two runs would take each other's.
    sockets = tempfile.mkdtemp(prefix="labs-")
    kernel = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
    try:
        papermill.execute_notebook(
            str(source), str(output), parameters=dict(parameters), engine_name="labs", kernel_name="python3",
            cwd=str(source.parent), progress_bar=False, log_output=False, execution_timeout=cell_seconds,
            shutdown_kernel="immediate", config=kernel, language="python",
        )  # fmt: skip
    except PapermillExecutionError as error:
        return f"cell {error.cell_index + 1}: {_last_line(error)}"
    except CellTimeoutError:
        return f"a cell ran for more than {cell_seconds} s and was stopped{_where(output)}"
    except DeadKernelError:
        return f"the notebook's kernel died{_where(output)}"
    except NoSuchKernel:
        return "the control environment has no Jupyter kernel; run: make setup"
    except (OSError, ValueError, RuntimeError) as error:
        return f"{source.name} could not be executed: {error}"
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
        ON_CELL.remove(on_cell)
        del os.environ[progress.PROGRESS_VARIABLE]
    return ""


def _last_line(error: PapermillExecutionError) -> str:
    if error.ename in ("LabError", "UsageError", "ApiError", "ProvisionError"):
        return error.evalue
    return _COLOUR_CODES.sub("", f"{error.ename}: {error.evalue}")


def _where(output: Path) -> str:
    """Return the section of the last cell that began; papermill marks later ones as completed all the same."""
    try:
        notebook = nbformat.read(output, as_version=4)
    except (OSError, ValueError):
        return ""
    begun = [i for i, cell in enumerate(notebook.cells) if cell.metadata.get("papermill", {}).get("start_time")]
    return f" (in section {section_headings(notebook)[begun[-1]]!r})" if begun else ""

"""What a person sees while labs run: which lab, which cell, what is being measured, how checks went."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from labs.display import SIGNS

STYLES = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


class Watch:
    """Prints progress to stderr: a live line on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._lab, self._cell, self._doing, self._heading = "", "", "", ""
        self._begun = time.monotonic()

    def __enter__(self) -> Watch:
        if self.console.is_terminal:
            self._status = self.console.status("starting", spinner="dots")
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._status:
            self._status.stop()
            self._status = None

    def line(self, text: str, style: str = "") -> None:
        """Print a line that stays."""
        self.console.print(escape(text), style=style or None)

    def doing(self, text: str) -> None:
        """Say what happens now; on a terminal the next call replaces it."""
        if text == self._doing:
            return
        self._doing = text
        if self._status:
            self._status.update(escape(" · ".join(part for part in (self._lab, self._cell, text) if part)))
        elif not text.startswith("gate closed"):
            self.line(f"    {text}", "dim")

    def lab(self, name: str, title: str, variant: str, number: int, count: int) -> None:
        """Say that a lab begins."""
        self._lab, self._cell, self._doing, self._heading = name, "", "", ""
        self.line(f"[{number}/{count}] {name}: {title} (on {variant})", "bold")

    def cell(self, number: int, count: int, heading: str) -> None:
        """Say that a cell begins."""
        changed, self._heading = heading != self._heading, heading
        self._cell = f"cell {number}/{count} {heading}".strip()
        if self._status:
            self._status.update(escape(f"{self._lab} · {self._cell}"))
        elif changed:
            self.line(f"  {heading} (cell {number} of {count})")

    def event(self, text: str) -> None:
        """Show one event of the notebook: a finished check stays, everything else is replaced."""
        checked, _, verdict = text.removeprefix("checked ").rpartition(": ")
        if text.startswith("checked ") and verdict in SIGNS:
            self.line(f"  {SIGNS[verdict]} {checked}", STYLES[verdict])
        elif not text.startswith("checked "):
            self.doing(text)

    def ended(self, record: dict[str, Any]) -> None:
        """Say how a lab went."""
        verdict = record["verdict"]
        self.line(f"  {SIGNS[verdict]} {record['lab']}: {verdict} in {record['seconds']:.0f} s", f"bold {STYLES[verdict]}")
        if record.get("error"):
            self.line(f"    {record['error']}", STYLES[verdict])


class Tail:
    """Passes on what a kernel reports, from its progress file, until closed."""

    def __init__(self, path: Path, watch: Watch) -> None:
        self._path, self._watch = path, watch
        self._stop = threading.Event()
        self._position = 0
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Tail:
        self._path.write_text("")
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        self._path.unlink(missing_ok=True)

    def _follow(self) -> None:
        while not self._stop.wait(0.2):
            self._read()
        self._read()

    def _read(self) -> None:
        try:
            with self._path.open() as file:
                file.seek(self._position)
                for line in file:
                    if not line.endswith("\n"):
                        break
                    self._position += len(line.encode())
                    self._watch.event(json.loads(line)["text"])
        except (OSError, ValueError, KeyError):
            return

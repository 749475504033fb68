"""The agent on each node, asked over SSH: one process per node that answers until the connection is closed."""

from __future__ import annotations

import atexit
import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fabric import Connection
from paramiko.ssh_exception import SSHException

from provision.errors import ProvisionError

Report = Callable[[str], None]
Result = TypeVar("Result")
# The agent says every few seconds that it is still there, whatever it is doing.
SILENCE_S = 60
# A proxy for the distribution's packages, as nodes see it.
PROXY_VARIABLE = "LAB_PACKAGE_PROXY"
AGENT = "provision.nodes.agent"
# In an order in which each imports only earlier ones.
AGENT_PARTS = ("basics", "files", "processes", "users", "units", "packages", "repository", "looking", "answering")


def agent_text() -> str:
    """Return the agent as one text for Python: its parts as they are, each made the module that later ones import by its name."""
    folder = Path(__file__).with_name("agent")
    # With the second, an error says in which file its line is.
    parts = [(f"{AGENT}.{name}", f"agent/{name}.py", (folder / f"{name}.py").read_text(encoding="utf-8")) for name in AGENT_PARTS]
    return f"""\
import sys, types
for name, path, text in {parts}:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, path, "exec"), module.__dict__)
from {AGENT}.answering import main
main(*sys.argv[1:])
"""


class Session:
    """The agent of one node; every call raises ProvisionError that names the node."""

    def __init__(self, name: str, connection: Connection) -> None:
        self.name = name
        self.connection = connection
        self._lock = threading.Lock()
        self._input: Any = None
        self._output: Any = None
        self._errors: Any = None
        self._channel: Any = None
        self._broken = False

    def call(self, op: str, report: Report = lambda text: None, **args: Any) -> Any:
        """Return what the agent answers to one request; `report` hears, prefixed by the node, what it does meanwhile."""
        with self._lock:
            try:
                self._begin()
                self._input.write(json.dumps({"op": op, "args": args}).encode() + b"\n")
                self._input.flush()
                return self._answer(report)
            except ProvisionError:
                # The node answered, with what went wrong.
                raise
            except (OSError, EOFError, SSHException) as error:
                self._give_up()
                raise self._lost(error) from error
            except BaseException:
                # Ctrl-C: an answer that nobody waited for must not be taken for that to the next question.
                self._give_up()
                raise

    @property
    def usable(self) -> bool:
        """Whether the connection is there; a node that was started again has closed it, and may have got another port."""
        return self.connection.is_connected and not self._broken

    def close(self) -> None:
        """End the agent and the connection."""
        with self._lock:
            if self._input is not None:
                # What is left open is closed when Python ends, too late for it to be done without complaints.
                with contextlib.suppress(OSError, SSHException):
                    self._input.close()
            self._input = None
            self.connection.close()

    def _give_up(self) -> None:
        self._input, self._broken = None, True
        if self._channel is not None:
            self._channel.close()

    def _begin(self) -> None:
        if self._input is not None:
            return
        self.connection.open()
        channel = self._channel = self.connection.transport.open_session()
        channel.settimeout(SILENCE_S)
        agent = agent_text().encode()
        # It reads itself from standard input, then requests: nothing is stored there, and no secret is in a command line.
        channel.exec_command(
            f'sudo -n /usr/bin/python3 -u -c \'import sys; exec(compile(sys.stdin.buffer.read({len(agent)}), "agent", "exec"))\''
        )
        self._input, self._output = channel.makefile_stdin("wb"), channel.makefile("rb")
        self._errors = channel.makefile_stderr("rb")
        self._input.write(agent)

    def _answer(self, report: Report) -> Any:
        while line := self._output.readline():
            document = json.loads(line)
            if "beat" in document:
                continue
            if "progress" in document:
                report(f"{self.name}: {document['progress']}")
            elif "error" in document:
                raise ProvisionError(f"{self.name}: {document['error']}", document["hint"])
            else:
                return document["value"]
        raise EOFError(self._errors.read().decode(errors="replace").strip()[-300:] or "the connection was closed")

    def _lost(self, error: Exception) -> ProvisionError:
        return ProvisionError(
            f"The node {self.name} cannot be reached or stopped answering: {error}.", "fab up, then the same command again"
        )


class Nodes:
    """The sessions of several nodes, by name; work is done on all of them at once."""

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self.sessions = dict(sessions)
        atexit.register(self.close)

    def __getitem__(self, name: str) -> Session:
        return self.sessions[name]

    def each(self, work: Callable[[Session], Result], names: list[str] | None = None) -> dict[str, Result]:
        """Return what `work` gives for each node, by name; raises one ProvisionError with the failures of all nodes."""
        chosen = [self.sessions[name] for name in (self.sessions if names is None else names)]
        if not chosen:
            return {}
        with ThreadPoolExecutor(len(chosen)) as pool:
            futures = {session.name: pool.submit(work, session) for session in chosen}
        failures = [future.exception() for future in futures.values() if future.exception()]
        for failure in failures:
            if not isinstance(failure, ProvisionError):
                raise failure
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise ProvisionError("\n".join(failure.message for failure in failures), failures[0].hint)
        return {name: future.result() for name, future in futures.items()}

    @property
    def usable(self) -> bool:
        """Whether every connection is there."""
        return all(session.usable for session in self.sessions.values())

    def close(self) -> None:
        """Close every session; safe to repeat."""
        atexit.unregister(self.close)
        for session in self.sessions.values():
            session.close()

"""One environment file that a shell and systemd read alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow_samples import rendered, shell_reads

from provision.airflow import render_environment_file
from provision.errors import ProvisionError
from provision.variants import VARIANTS

AWKWARD = {
    "PLAIN": "value",
    "EMPTY": "",
    "SPACES": "  a  b  ",
    "DOLLAR": "$HOME ${HOME} $(id) `id`",
    "QUOTES": 'say "hi"',
    "BACKSLASH": r"a\b\\n\t",
    "COMMENT": "# not ; a comment",
    "PERCENT": "50% %h %%",
    "UNICODE": "größe ✓ 日本",
    "EQUALS": "a=b=c",
    "GLOB": "* ? [a] ~ !x",
    "TAB": "a\tb",
}


def systemd_reads(text: str) -> dict[str, str]:
    """Return what systemd's EnvironmentFile= makes of a file, for the part of its syntax that single quotes need."""
    values = {}
    for line in text.split("\n"):
        if not line.strip() or line.lstrip()[0] in "#;":
            continue
        name, _, quoted = line.partition("=")
        assert quoted[0] == quoted[-1] == "'"
        assert "'" not in quoted[1:-1]
        values[name] = quoted[1:-1]
    return values


@pytest.mark.parametrize("environment", [AWKWARD, *(rendered(name) for name in VARIANTS)], ids=["awkward", *VARIANTS])
def test_a_shell_and_systemd_read_the_environment_file_alike(tmp_path: Path, environment):
    file = tmp_path / "airflow.env"
    file.write_text(render_environment_file(environment), encoding="utf-8")
    assert systemd_reads(file.read_text(encoding="utf-8")) == environment
    assert environment.items() <= shell_reads(file).items()


@pytest.mark.parametrize("value", ["it's", "a\nb", "\n", "'", "a\rb", "a\0b"])
def test_a_value_that_the_two_would_read_differently_is_refused_by_its_name(value):
    with pytest.raises(ProvisionError, match="AIRFLOW__CORE__X may not contain"):
        render_environment_file({"GOOD": "x", "AIRFLOW__CORE__X": value})


def test_an_empty_environment_is_an_empty_file():
    assert render_environment_file({}) == ""

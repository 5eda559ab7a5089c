"""What the commands say of themselves, how soon, and that docs/cli.md says the same."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from reattach.cli.output import Exit
from tests.cli.conftest import fine, reattach
from tests.support.paths import ROOT
from tools.cli_reference import PAGE, page

_LOADED = """
import sys
from reattach.cli import main
heavy = {"alembic", "asyncpg", "fastapi", "pydantic", "redis", "sqlalchemy", "starlette", "uvicorn"}
print(*sorted(heavy & set(sys.modules)))
"""


def test_a_command_loads_what_does_the_work_only_when_it_does_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOADED], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []


def test_the_reference_is_what_the_program_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run python tools/cli_reference.py"


def test_every_exit_code_has_its_line() -> None:
    codes = re.findall(r"^\| ([0-9]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(code) for code in codes] == [*Exit, 130]


async def test_every_command_of_the_page_is_there() -> None:
    said = await fine("--help")
    text = PAGE.read_text(encoding="utf-8")
    for name in set(re.findall(r"^    reattach ([a-z]+)", text, re.MULTILINE)):
        assert re.search(rf"^│ {name} ", said, re.MULTILINE), name
    assert (ROOT / "docs" / "adr" / "0011-operators-by-the-lock-file.md").exists()


@pytest.mark.parametrize("columns", ["40", "80"])
async def test_help_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    said = await fine("sessions", "--help")
    assert max(map(len, said.splitlines())) <= int(columns)
    assert (await reattach("sessions", "--nothing")).exit_code == Exit.WRONG

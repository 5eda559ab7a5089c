"""Commands in this process, on databases that they name themselves."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from typer.testing import CliRunner, Result

from reattach.cli import main


@pytest.fixture
def in_process() -> None:
    """Nothing: these tests say which database they are about."""


@pytest.fixture(autouse=True)
def logs_of_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Leaves the logs as they were, and works where nothing lies about.

    Loggers of modules must not keep what a command sets up: later tests look at what they say.
    """
    configure, before = structlog.configure, structlog.get_config()

    def uncached(**options: Any) -> None:
        configure(**{**options, "cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", uncached)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in [name for name in os.environ if name.startswith("REATTACH_")]:
        monkeypatch.delenv(name)
    yield
    configure(**before)
    root.handlers, root.level = handlers, level


async def reattach(*arguments: str | Path, typed: bytes | None = None) -> Result:
    """Runs a command to its end, beside whatever this test's loop does."""
    words = [str(one) for one in arguments]
    done = await asyncio.to_thread(CliRunner().invoke, main, words, input=typed)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


async def fine(*arguments: str | Path) -> str:
    """What a command says that succeeds."""
    done = await reattach(*arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout


async def told(*arguments: str | Path) -> Any:
    """What a command that succeeds tells programs."""
    return msgspec.json.decode(await fine(*arguments, "--json"))


async def refused(exit_code: int, *arguments: str | Path) -> str:
    """Why a command does not do what was asked for: one line, and the code that it ends with."""
    done = await reattach(*arguments)
    assert (done.exit_code, done.stdout) == (exit_code, ""), done.stdout + done.stderr
    assert done.stderr.startswith("reattach: ")
    assert done.stderr.count("\n") == 1
    return done.stderr

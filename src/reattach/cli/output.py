"""What commands print, and how they end."""

from __future__ import annotations

import contextlib
import json as json_
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import typer

from reattach.errors import ReattachError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Exit",
    "Refused",
    "age",
    "ending",
    "err",
    "json_text",
    "out",
    "print_json",
    "progress",
    "safe",
    "when",
]


class Exit(IntEnum):
    """What the exit code of a command means."""

    FINE = 0
    CANNOT = 1
    """Something is in the way, or it was refused."""
    WRONG = 2
    """What was asked for, or a setting, makes no sense."""
    NOT_FOUND = 3
    """There is no such session, version or checkpoint."""
    UNREACHABLE = 4
    """The database, or the server that holds it, does not answer."""
    HELD = 5
    """Another process holds the database's file and cannot be asked to do it."""


_BY_CODE = {
    "bad_setting": Exit.WRONG,
    "bad_database_url": Exit.WRONG,
    "unknown_schema": Exit.WRONG,
    "session_not_found": Exit.NOT_FOUND,
    "session_erased": Exit.NOT_FOUND,
    "version_gone": Exit.NOT_FOUND,
    "no_such_checkpoint": Exit.NOT_FOUND,
    "unavailable": Exit.UNREACHABLE,
    "database_held": Exit.HELD,
}


class Refused(Exception):
    """Why a command does not do what was asked for, in one line."""

    def __init__(self, message: str, exit_code: Exit = Exit.CANNOT, code: str = "refused") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code


@cache
def out() -> Console:
    """Return the standard output."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


@cache
def err() -> Console:
    """Return the standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def ending(*, json: bool = False) -> Iterator[None]:
    """End with a line and an exit code where something is in the way; ``json``: with an object."""
    try:
        yield
    except Refused as refused:
        _end(str(refused), refused.code, refused.exit_code, json=json)
    except ReattachError as error:
        exit_code = _BY_CODE.get(error.code, Exit.CANNOT)
        _end(error.message, error.code, exit_code, json=json)
    except BrokenPipeError:
        # Whoever read has seen enough; Python would complain of it at its end.
        sys.stdout = None
        raise typer.Exit(Exit.CANNOT) from None


def _end(message: str, code: str, exit_code: Exit, *, json: bool) -> None:
    if json:
        print_json({"error": {"code": code, "message": message}}, to=err())
    else:
        err().print(f"reattach: {safe(message)}", markup=False)
    raise typer.Exit(exit_code)


def print_json(value: Any, *, to: Console | None = None, lines: bool = False) -> None:
    """Print JSON for programs: on a terminal indented, with ``lines`` one value on each."""
    console = to or out()
    file = console.file
    file.write(f"{json_text(value, indent=console.is_terminal and not lines)}\n")
    file.flush()


def json_text(value: Any, *, indent: bool = False) -> str:
    """Write a value as JSON that a terminal shows and does not obey."""
    return _escaped(json_.dumps(value, ensure_ascii=False, indent=2 if indent else None))


def safe(text: str) -> str:
    """Return somebody's text as a terminal may show it: what it would obey, escaped."""
    return _escaped(text)


def _escaped(text: str) -> str:
    return "".join(f"\\u{ord(one):04x}" if one in _OBEYED and one != "\n" else one for one in text)


_OBEYED: Final = frozenset(
    map(chr, (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
)
"""Control characters, and what turns the direction of text around."""


@contextlib.contextmanager
def progress(what: str, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show on a terminal's standard error that something is under way, and how many are done."""
    console = err()
    if not (shown and console.is_terminal):
        yield lambda _: None
        return
    with console.status(what) as status:

        def told(done: int) -> None:
            status.update(f"{what}: {done:,} done")

        yield told


def when(milliseconds: int | None) -> str:
    """Write a time for people: UTC, to the second."""
    if milliseconds is None:
        return "never"
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def age(milliseconds: int, now: int) -> str:
    """Write how long ago something was, in its one greatest unit."""
    seconds = max(0, now - milliseconds) // 1000
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"

"""Options that many commands have."""

from __future__ import annotations

import re
from typing import Annotated

import typer

__all__ = ["App", "Database", "Json", "SessionArgument", "duration"]

Database = Annotated[
    str | None,
    typer.Option(
        help="The database, as serve has it; else that of the --app, or of REATTACH_DATABASE."
        "  [default: sqlite:///reattach.db]",
        show_default=False,
    ),
]
App = Annotated[
    str | None,
    typer.Option(
        help="The Reattach object whose database and schemas these are, as"
        " package.module:attribute.",
        show_default=False,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, errors too (on the standard error).")
]
SessionArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The session's id.", show_default=False)
]

_UNITS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(rf"([0-9]{{1,6}}) ?({'|'.join(_UNITS)})")


def duration(text: str) -> int:
    """Read a length of time such as ``90s``, ``15min``, ``24h``, ``7d`` or ``2w``: milliseconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"expected a length such as 15min, 24h or 7d, got {text!r}")
    return int(match[1]) * _UNITS[match[2]] * 1000

"""``reattach doctor``."""

from __future__ import annotations

import asyncio

import typer

from reattach.cli.options import App, Database, Json
from reattach.cli.output import Exit, ending, progress

__all__ = ["doctor"]


def doctor(database: Database = None, app: App = None, json: Json = False) -> None:
    """Look whether a server can do its work here, and say what to do where it cannot.

    Looks at settings, database, tables, disk, permissions, clock, Redis and limits. It writes no
    more than a row or a file that says so, to see how long a disk takes. Ends with 1 where
    something is wrong; a warning is none.
    """
    with ending(json=json):
        from reattach.cli.checks import Verdict, examine, tell

        with progress("Looking", shown=not json):
            found = asyncio.run(examine(app, database))
        tell(found, json=json)
    if any(one.verdict is Verdict.WRONG for one in found):
        raise typer.Exit(Exit.CANNOT)

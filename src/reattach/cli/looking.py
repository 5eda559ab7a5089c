"""Commands that only look: at which sessions there are, at one, at what changed in it."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from reattach.cli.options import App, Database, Json, SessionArgument, duration
from reattach.cli.output import Exit, Refused, ending

__all__ = ["diff", "sessions", "show"]


def sessions(
    begins: Annotated[
        str | None, typer.Option(help="Whose id begins like this.", show_default=False)
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(help="Of this user, as owner or member.", show_default=False),
    ] = None,
    schema: Annotated[
        str | None, typer.Option(help="With this schema.", show_default=False)
    ] = None,
    active_since: Annotated[
        int | None,
        typer.Option(
            parser=duration,
            metavar="LENGTH",
            help="Active within this length of time: 15min, 24h, 7d.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="How many at most; 0: all that there are.")
    ] = 50,
    after: Annotated[
        str | None,
        typer.Option(
            "--next",
            help="Go on from where a list ended: the next that it told.",
            show_default=False,
        ),
    ] = None,
    database: Database = None,
    app: App = None,
    json: Json = False,
) -> None:
    """List sessions, newest activity first."""
    with ending(json=json):
        from reattach.cli.views import Wanted, list_sessions

        wanted = Wanted(begins or "", user, schema, active_since, limit, after)
        asyncio.run(list_sessions(wanted, app, database, json=json))


def show(
    session_id: SessionArgument,
    version: Annotated[
        int | None, typer.Option(min=0, help="As it was at this version.", show_default=False)
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with each commit, until Ctrl-C.")
    ] = False,
    database: Database = None,
    app: App = None,
    json: Json = False,
) -> None:
    """Show a session with its state, as it is or as it was.

    With --follow --json each line is an object: first the session, then each commit's frame.
    """
    with ending(json=json):
        from reattach.cli.views import follow_session, show_session

        if follow and version is not None:
            raise Refused("expected either --version or --follow", Exit.WRONG, "usage")
        if follow:
            asyncio.run(follow_session(session_id, app, database, json=json))
        else:
            asyncio.run(show_session(session_id, version, app, database, json=json))


def diff(
    session_id: SessionArgument,
    first: Annotated[
        int, typer.Argument(metavar="FROM", min=0, help="A version.", show_default=False)
    ],
    last: Annotated[
        int | None,
        typer.Argument(
            metavar="[TO]",
            min=0,
            help="Another, earlier or later; else the newest.",
            show_default=False,
        ),
    ] = None,
    database: Database = None,
    app: App = None,
    json: Json = False,
) -> None:
    """Show what changed in a session from one version to another; --json: as RFC 6902."""
    with ending(json=json):
        from reattach.cli.views import show_difference

        asyncio.run(show_difference(session_id, first, last, app, database, json=json))

"""Commands that keep a database: its tables, its size, its epochs."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from reattach.cli.acting import do
from reattach.cli.options import App, Database, Json
from reattach.cli.output import ending, out, print_json, progress

__all__ = ["compact", "epoch", "migrate"]


def migrate(database: Database = None, app: App = None, json: Json = False) -> None:
    """Bring a database's tables to this release, before its servers: a PostgreSQL needs it."""
    with ending(json=json):
        from reattach.cli.finding import settings_of
        from reattach.store.tables import REVISIONS

        url = settings_of(app, database).database
        with progress("Migrating", shown=not json):
            asyncio.run(_migrate(url))
        if json:
            print_json({"revision": REVISIONS[-1]})
        else:
            out().print(f"The tables are those of this release (revision {REVISIONS[-1]}).")


async def _migrate(url: str) -> None:
    from reattach.store import migrations
    from reattach.store.urls import sqlite_path, store_at

    if sqlite_path(url) is None:
        await migrations.migrate(url)
    else:
        store = store_at(url)  # which does it itself
        await store.open()
        await store.close()


def compact(
    session: Annotated[
        str | None, typer.Option(help="Only this session.", show_default=False)
    ] = None,
    database: Database = None,
    app: App = None,
    json: Json = False,
) -> None:
    """Take away history that is older than is kept; a server does so by itself, once an hour.

    How long it is kept is a setting: REATTACH_HISTORY_DAYS.
    """
    with ending(json=json):
        from reattach.runtime.operator import Compact

        with progress("Compacting sessions", shown=not json) as told:
            done = do(Compact(session), app, database, told)
        if json:
            print_json(done)
        else:
            commits, marks = done["commits"], done["checkpoints"]
            out().print(f"{commits} commits and {marks} automatic checkpoints are gone.")


epoch = typer.Typer(
    name="epoch",
    help="Say that history was lost: after a backup was put back.",
    no_args_is_help=True,
)


@epoch.callback()
def epochs() -> None:
    """Say that history was lost: after a backup was put back."""


@epoch.command()
def new(
    session: Annotated[
        str | None,
        typer.Option(help="In this session alone; else in every one.", show_default=False),
    ] = None,
    database: Database = None,
    app: App = None,
    json: Json = False,
) -> None:
    """Begin another epoch, before the servers are started on a database that was put back.

    Clients then find out that what they were told is lost, send again what they still have, and
    tell their users. Without it only those find out that have seen more than there is.
    """
    with ending(json=json):
        from reattach.runtime.operator import RenewEpochs

        with progress("Beginning another epoch", shown=not json):
            renewed = do(RenewEpochs(session), app, database, lambda _: None)
        if json:
            print_json({"renewed": renewed})
        else:
            noun = "session is" if renewed == 1 else "sessions are"
            out().print(f"{renewed:,} {noun} in another epoch.")

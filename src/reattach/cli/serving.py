"""``reattach serve``: its options."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from reattach.cli.output import ending

__all__ = ["Auth", "Inspector", "LogLevel", "serve"]


class Auth(Enum):
    """How users are known when the application has no `authenticate` of its own."""

    NONE = "none"
    JWT = "jwt"


class Inspector(Enum):
    """What the page at /inspector may do."""

    READ = "read"
    WRITE = "write"


class LogLevel(Enum):
    """From which level on the log is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The port to listen on; 0 takes a free one.")
    ] = 8000,
    database: Annotated[
        str | None,
        typer.Option(
            help="Where sessions live: sqlite:///relative.db, sqlite:////absolute.db or"
            " postgresql://user:password@host/database (better given as REATTACH_DATABASE, which no"
            " list of processes shows). Goes before the application's own."
            "  [default: sqlite:///reattach.db]",
            show_default=False,
        ),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            help="The Redis or Valkey by which the nodes on one database tell each other:"
            " redis://host:6379/0. One with a password is better given as REATTACH_REDIS: other"
            " users of a machine see the arguments of its processes.",
            show_default=False,
        ),
    ] = None,
    app: Annotated[
        str | None,
        typer.Option(help="The Reattach object to serve, as package.module:attribute."),
    ] = None,
    auth: Annotated[
        Auth | None,
        typer.Option(
            help="How users are known without an application's authenticate: none, this machine's"
            " one user; jwt, by JSON Web Tokens (REATTACH_JWT_SECRET, REATTACH_JWT_PUBLIC_KEY or"
            " REATTACH_JWT_JWKS_URL).  [default: none]",
            show_default=False,
        ),
    ] = None,
    anonymous: Annotated[
        bool,
        typer.Option(
            "--anonymous",
            help="Let who has not signed in begin sessions, each with a token for it alone.",
        ),
    ] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="An origin whose pages may use the server, beside its own, such as"
            " https://app.example.org. May be given several times.",
            show_default=False,
        ),
    ] = None,
    inspector: Annotated[
        Inspector | None,
        typer.Option(
            help="Have a page at /inspector that shows every session, to look (read), or to restore"
            " and the like, too (write): for whoever has REATTACH_INSPECTOR_TOKEN, without one for"
            " this machine.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="How many processes serve, each a node of its own: one for each core, at most."
            " More than one needs PostgreSQL.",
        ),
    ] = 1,
    log_level: Annotated[
        LogLevel, typer.Option(help="What to log, from this level on.")
    ] = LogLevel.INFO,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log JSON lines.")] = False,
) -> None:
    """Serve sessions until SIGTERM or SIGINT."""
    with ending():
        from reattach.cli.server import Wanted, run

        wanted = Wanted(
            app=app,
            database=database,
            auth=None if auth is None else auth.value,
            redis=redis,
            anonymous=anonymous,
            allow_origins=tuple(allow_origin or ()),
            inspector=None if inspector is None else inspector.value,
            log_level=log_level.value,
            json_logs=json_logs,
        )
        code = run(wanted, host, port, workers)
    if code:
        raise typer.Exit(code)

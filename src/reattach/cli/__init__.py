"""The command ``reattach``: `docs/cli.md` has what each does, its options, and what exits mean.

A module holds the commands of one kind, with their options. What does the work is imported by the
command that needs it, so that ``--help`` and a mistyped option are answered at once.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from reattach.cli import acting, doctor, looking, serving, types, upkeep
from reattach.cli.output import out

__all__ = ["main"]

main = typer.Typer(
    name="reattach",
    help="A session server that never loses a user's work.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback with its variables would tell what is in states and tokens.
    pretty_exceptions_enable=False,
)


@main.callback(invoke_without_command=True)
def reattach(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """A session server that never loses a user's work."""
    if show_version:
        out().print(f"reattach {version('reattach')}")
        raise typer.Exit


SERVER = "Server"
LOOK = "Look at sessions"
ACT = "Act on sessions"
KEEP = "Keep a database"

main.command(rich_help_panel=SERVER)(serving.serve)
main.command(rich_help_panel=SERVER)(doctor.doctor)
main.command(rich_help_panel=LOOK)(looking.sessions)
main.command(rich_help_panel=LOOK)(looking.show)
main.command(rich_help_panel=LOOK)(looking.diff)
main.command(rich_help_panel=ACT)(acting.checkpoint)
main.command(rich_help_panel=ACT)(acting.restore)
main.command(rich_help_panel=ACT)(acting.export)
main.command("import", rich_help_panel=ACT)(acting.import_)
main.command(rich_help_panel=ACT)(acting.erase)
main.command(rich_help_panel=KEEP)(upkeep.migrate)
main.command(rich_help_panel=KEEP)(upkeep.compact)
main.add_typer(upkeep.epoch, rich_help_panel=KEEP)
main.command(rich_help_panel=KEEP)(types.types)

"""Commands that change sessions: marks, restores, exports and imports, erasure.

Their commits and lines of activity are by ``operator:`` and the login of who runs them.
"""

from __future__ import annotations

import asyncio
import json as json_
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reattach.cli.options import App, Database, Json, SessionArgument
from reattach.cli.output import Exit, Refused, ending, err, out, print_json, progress

if TYPE_CHECKING:
    from reattach.runtime.operator import Task

__all__ = ["checkpoint", "do", "erase", "export", "import_", "restore"]


def do(task: Task, app: str | None, database: str | None, told: Callable[[int], None]) -> Any:
    """Have a task carried out, and return what it answers."""
    from reattach.cli.reach import carry_out

    return asyncio.run(carry_out(task, app, database, told))


def checkpoint(
    session_id: SessionArgument,
    name: Annotated[
        str | None, typer.Option(help="What people call it.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="JSON to keep with it, of at most 4 KiB.", show_default=False),
    ] = None,
    list_them: Annotated[
        bool, typer.Option("--list", help="Save none, and list those that there are.")
    ] = False,
    database: Database = None,
    app: App = None,
    json: Json = False,
) -> None:
    """Mark a session as it is, so that it can be restored to this."""
    with ending(json=json):
        from reattach.cli.views import list_checkpoints
        from reattach.runtime.operator import SaveCheckpoint

        if list_them:
            asyncio.run(list_checkpoints(session_id, app, database, json=json))
            return
        task = SaveCheckpoint(session_id, name, _json(data, "--data"))
        with progress("Saving a checkpoint", shown=not json):
            saved = json_.loads(do(task, app, database, lambda _: None))
        if json:
            print_json(saved)
        else:
            line = f"Checkpoint {saved['id']} marks version {saved['version']}."
            out().print(line, markup=False)


def restore(
    session_id: SessionArgument,
    version: Annotated[
        int | None,
        typer.Option(min=0, help="The version whose state is meant.", show_default=False),
    ] = None,
    checkpoint_id: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", help="The checkpoint that is meant, or latest.", show_default=False
        ),
    ] = None,
    database: Database = None,
    app: App = None,
    json: Json = False,
) -> None:
    """Make a session's state that of then, by a commit that every device is sent.

    Nothing is lost by it: what there was before is marked, and can be restored in its turn.
    """
    with ending(json=json):
        from reattach.runtime.operator import Restore

        if (version is None) == (checkpoint_id is None):
            raise Refused("expected either --version or --checkpoint", Exit.WRONG, "usage")
        task = Restore(session_id, version, checkpoint_id)
        with progress("Restoring", shown=not json):
            commit = json_.loads(do(task, app, database, lambda _: None))
        if json:
            print_json(commit)
        else:
            out().print(
                f"Version {commit['version']} has the state of version {commit['to_version']}."
                f" To undo it: reattach restore {session_id} --version {commit['from_version']}",
                markup=False,
            )


def export(
    session_id: SessionArgument,
    file: Annotated[
        Path,
        typer.Argument(help="Where to write it; - is the standard output.", show_default=False),
    ],
    database: Database = None,
    app: App = None,
    json: Json = False,
) -> None:
    """Write all that a session holds, but secrets, into one JSON file."""
    with ending(json=json):
        from reattach.runtime.operator import Export

        with progress("Exporting", shown=not json):
            body: bytes = do(Export(session_id), app, database, lambda _: None)
        if str(file) == "-":
            sys.stdout.buffer.write(body)
            sys.stdout.flush()
        else:
            _write_whole(file, body)
        if json and str(file) != "-":
            print_json({"session_id": session_id, "file": str(file), "bytes": len(body)})
        elif str(file) != "-":
            out().print(f"Wrote {len(body):,} bytes to {file}.", markup=False)


def import_(
    file: Annotated[
        Path,
        typer.Argument(help="What export wrote; - is the standard input.", show_default=False),
    ],
    user: Annotated[
        str | None,
        typer.Option(
            help="Whose the session is to be; else it is whose the file says.", show_default=False
        ),
    ] = None,
    database: Database = None,
    app: App = None,
    json: Json = False,
) -> None:
    """Make a session of an exported file, with its id and its whole history."""
    with ending(json=json):
        from reattach.runtime.operator import Import

        body = sys.stdin.buffer.read() if str(file) == "-" else _read_whole(file)
        with progress("Importing", shown=not json):
            record = do(Import(body, user), app, database, lambda _: None)
        if json:
            print_json({name: record[name] for name in ("session_id", "user_id", "version")})
        else:
            out().print(
                f"Session {record['session_id']} is there at version {record['version']}, owned by"
                f" {record['user_id']}.",
                markup=False,
            )


def erase(
    session_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The session's id.", show_default=False)
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(help="Everything that this user owns, in its place.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database: Database = None,
    app: App = None,
    json: Json = False,
) -> None:
    """Erase a session, or all of a user's, with the whole history: for ever."""
    with ending(json=json):
        from reattach.runtime.operator import Erase, EraseUser

        if (session_id is None) == (user is None):
            raise Refused("expected either the id of a session or --user", Exit.WRONG, "usage")
        what = f"session {session_id}" if user is None else f"all that {user} owns"
        if not yes and not _sure(what):
            raise Refused(f"nothing was erased: {what} stays (--yes does not ask)")
        task = Erase(session_id) if session_id is not None else EraseUser(user or "")
        with progress("Erasing", shown=not json) as told:
            erased = do(task, app, database, told)
        count = 1 if erased is None else erased
        if json:
            print_json({"erased": count})
        else:
            out().print(f"{count} {'session is' if count == 1 else 'sessions are'} erased.")


def _sure(what: str) -> bool:
    if not sys.stdin.isatty():
        return False
    err().print(
        f"Erase {what}, for ever? Its history, its checkpoints, its activity. \\[y/N]", end=" "
    )
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _json(text: str | None, option: str) -> bytes | None:
    if text is None:
        return None
    try:
        json_.loads(text)
    except ValueError as error:
        raise Refused(f"expected JSON for {option}: {error}", Exit.WRONG, "usage") from None
    return text.encode()


def _read_whole(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Refused(f"cannot read {file}: {error.strerror}", Exit.CANNOT, "file") from None


def _write_whole(file: Path, body: bytes) -> None:
    """Write a file that is whole or not there, and for its owner's eyes alone."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.absolute().parent)
        try:
            with os.fdopen(descriptor, "wb") as made:
                made.write(body)
                made.flush()
                os.fsync(made.fileno())
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Refused(f"cannot write {file}: {error.strerror}", Exit.CANNOT, "file") from None

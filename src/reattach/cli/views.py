"""What the commands that look read, and how they show it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from rich.highlighter import JSONHighlighter
from rich.table import Table
from rich.text import Text

from reattach.cli.output import age, err, json_text, out, print_json, safe, when
from reattach.cli.reach import reading
from reattach.core.checkpoints import shown
from reattach.core.difference import become
from reattach.core.document import Document
from reattach.core.past import document_of
from reattach.core.patch import step
from reattach.errors import SessionErased, SessionNotFound
from reattach.server.past import document_at
from reattach.server.summary import summary
from reattach.store.base import (
    CheckpointRecord,
    CommitRecord,
    Search,
    SessionRecord,
    Store,
    Tombstone,
)
from reattach.wire import encode

__all__ = [
    "Wanted",
    "follow_session",
    "list_checkpoints",
    "list_sessions",
    "show_difference",
    "show_session",
]

_PAGE: Final = 500
_LOOK_S: Final = 0.3
"""How often a session that is followed is looked at."""
_LONGEST: Final = 200
"""Characters of a value in a line for people."""


class Wanted(msgspec.Struct, frozen=True):
    """Which sessions are to be listed; ``active_within`` in ms, ``limit`` 0 means all."""

    begins: str
    user: str | None
    schema: str | None
    active_within: int | None
    limit: int
    after: str | None


# Lists


async def list_sessions(
    wanted: Wanted, app: str | None, database: str | None, *, json: bool
) -> None:
    """List sessions, newest activity first."""
    now = time.time_ns() // 1_000_000
    within = wanted.active_within
    search = Search(
        begins=wanted.begins,
        user_id=wanted.user,
        schema_name=wanted.schema,
        active_since=None if within is None else now - within,
    )
    async with reading(app, database) as store:
        found, following = await _found(store, search, wanted.after, wanted.limit)
    if json:
        print_json({"items": [summary(one) for one in found], "next": following})
        return
    if not found:
        err().print("No session is like that." if search != Search() else "There is no session.")
        return
    out().print(_table(found, now), soft_wrap=False)
    if following is not None:
        out().print(f"There are more: --next {following}", markup=False)


async def _found(
    store: Store, search: Search, after: str | None, limit: int
) -> tuple[list[SessionRecord], str | None]:
    found: list[SessionRecord] = []
    while True:
        most = min(_PAGE, limit - len(found)) if limit else _PAGE
        page = await store.search(search, after, most)
        found += page.items
        after = page.next
        if after is None or len(found) == limit:
            return found, after


def _table(found: Sequence[SessionRecord], now: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ID", overflow="fold", min_width=8)
    table.add_column("User", overflow="fold", min_width=4)
    # Where there is none its room is the ids'.
    with_schema = any(one.schema_name is not None for one in found)
    if with_schema:
        table.add_column("Schema", overflow="fold")
    table.add_column("Version", justify="right", no_wrap=True)
    table.add_column("Active", justify="right", no_wrap=True)
    for one in found:
        schema = "" if one.schema_name is None else f"{one.schema_name} {one.schema_version or ''}"
        active = age(one.last_activity, now) if one.is_active else "ended"
        schemas = [schema.strip()] if with_schema else []
        cells = (one.session_id, one.user_id, *schemas, str(one.version), active)
        table.add_row(*(Text(safe(cell)) for cell in cells))
    return table


# One session


async def show_session(
    session_id: str, version: int | None, app: str | None, database: str | None, *, json: bool
) -> None:
    """Show a session as it is, or as it was at a version."""
    async with reading(app, database) as store:
        record, document = await _session(store, session_id, version)
    _show(record, document, json=json)


async def follow_session(
    session_id: str, app: str | None, database: str | None, *, json: bool
) -> None:
    """Show a session as it is, and then each commit, until it ends or is erased."""
    async with reading(app, database) as store:
        record, document = await _session(store, session_id, None)
        _show(record, document, json=json, lines=True)
        # Whoever watches ends it so.
        with contextlib.suppress(asyncio.CancelledError):
            while record.is_active:
                await asyncio.sleep(_LOOK_S)
                record = await _go_on(store, record, json=json)


async def _go_on(store: Store, known: SessionRecord, *, json: bool) -> SessionRecord:
    """Show what was committed since, and return the session's row as it is then."""
    record = await store.session(known.session_id)
    if not isinstance(record, SessionRecord):
        raise _gone(known.session_id, record)
    at = known.version
    while record.epoch == known.epoch and at < record.version:
        commits = await store.log(known.session_id, first=at + 1, last=record.version, limit=_PAGE)
        if not commits or commits[0].version != at + 1:
            break  # compacted meanwhile: a state says more
        for commit in commits:
            _show_commit(commit, json=json)
        at = commits[-1].version
    if record.epoch != known.epoch or at < record.version:
        err().print("The history was set back, or is compacted: this is how it goes on.")
        record, document = await _session(store, known.session_id, None)
        _show(record, document, json=json, lines=True)
    elif not record.is_active:
        err().print("The session has ended.")
    return record


async def _session(
    store: Store, session_id: str, version: int | None
) -> tuple[SessionRecord, Document]:
    loaded = await store.load(session_id)
    if loaded is None:
        raise _gone(session_id, await store.session(session_id))
    if version is None or version == loaded.session.version:
        return loaded.session, document_of(loaded)[0]
    document = await document_at(store, session_id, version)
    return msgspec.structs.replace(loaded.session, version=version), document


def _gone(session_id: str, found: object) -> SessionNotFound | SessionErased:
    if isinstance(found, Tombstone):
        return SessionErased(f"session {session_id!r} was erased at {when(found.erased_at)} UTC")
    return SessionNotFound(
        f"expected the id of a session, got {session_id!r}: see reattach sessions"
    )


def _show(record: SessionRecord, document: Document, *, json: bool, lines: bool = False) -> None:
    if json:
        print_json({**summary(record), "state": document.state}, lines=lines)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    schema = "none"
    if record.schema_name is not None:
        schema = f"{record.schema_name} {record.schema_version or ''}".strip()
    rows = {
        "Session": record.session_id,
        "Owner": record.user_id,
        "Version": f"{record.version} (epoch {record.epoch}, from version {record.epoch_version})",
        "Schema": schema,
        "Created": f"{when(record.created_at)} UTC",
        "Active": f"{when(record.last_activity)} UTC{'' if record.is_active else ', ended'}",
        "Left": "never"
        if record.disconnected_at is None
        else f"{when(record.disconnected_at)} UTC",
    }
    for name, value in rows.items():
        table.add_row(name, Text(safe(value)))
    out().print(table, soft_wrap=False)
    out().print()
    out().print(JSONHighlighter()(Text(json_text(document.state, indent=True))))


def _show_commit(commit: CommitRecord, *, json: bool) -> None:
    frame = msgspec.json.decode(commit.body)
    if json:
        print_json(frame, lines=True)
        return
    by = frame["by"]
    who = by.get("user_id") or by["client_id"]
    what = "restored" if frame["type"] == "session_restored" else "changed"
    head = f"version {commit.version}  {when(commit.at)}  {what} by {who}"
    out().print(Text(safe(head), style="bold"))
    for operation in frame["patch"]:
        out().print(_operation(operation, None))


async def list_checkpoints(
    session_id: str, app: str | None, database: str | None, *, json: bool
) -> None:
    """List the checkpoints of a session, newest version first."""
    marks: list[CheckpointRecord] = []
    async with reading(app, database) as store:
        if (found := await store.session(session_id)) is None or isinstance(found, Tombstone):
            raise _gone(session_id, found)
        page = await store.checkpoints(session_id, None, _PAGE)
        marks += page.items
        while page.next is not None:
            page = await store.checkpoints(session_id, page.next, _PAGE)
            marks += page.items
    if json:
        print_json({"items": msgspec.json.decode(encode([shown(one) for one in marks]))})
        return
    if not marks:
        err().print("There is no checkpoint.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ID", overflow="fold", min_width=8)
    table.add_column("Name", overflow="fold")
    table.add_column("Kind", overflow="fold")
    table.add_column("Version", justify="right", no_wrap=True)
    table.add_column("Saved (UTC)", justify="right")
    for one in marks:
        kind = one.kind.replace("_", " ")
        saved = when(one.created_at)
        cells = (one.checkpoint_id, one.name or "", kind, str(one.version), saved)
        table.add_row(*(Text(safe(cell)) for cell in cells))
    out().print(table, soft_wrap=False)


# What changed


async def show_difference(
    session_id: str,
    first: int,
    last: int | None,
    app: str | None,
    database: str | None,
    *,
    json: bool,
) -> None:
    """Show what changed from one version to another."""
    async with reading(app, database) as store:
        record, newest = await _session(store, session_id, last)
        before = await document_at(store, session_id, first)
    document = Document(msgspec.json.decode(encode(before.state)))
    document.recording = True
    become(document, newest.state, lambda *_: None)
    # By way of JSON: what it took over is still in the form that it is sent in.
    patch = msgspec.json.decode(encode(document.take_patch()))
    if json:
        print_json(patch)
        return
    if not patch:
        err().print(f"Versions {first} and {record.version} have the same state.")
    for operation in patch:
        was = _at(before.state, operation["path"])
        out().print(_operation(operation, was))
        step(before, [operation])


def _operation(operation: dict[str, Any], was: Any) -> Text:
    """Write one operation of a patch for people; ``was`` is what it replaces, if that is known."""
    op, path = operation["op"], operation["path"] or "(the whole state)"
    match op:
        case "add":
            sign, rest = "+", json_text(operation["value"])
        case "remove":
            sign, rest = "-", "" if was is None else json_text(was)
        case "replace":
            before = "" if was is None else f"{_short(json_text(was))} → "
            sign, rest = "~", before + _short(json_text(operation["value"]))
        case "str_ins":
            sign, rest = "+", f"at {operation['pos']}: {json_text(operation['str'])}"
        case "str_del":
            sign, rest = "-", f"{operation['len']} characters at {operation['pos']}"
        case _:
            sign, rest = ">", f"from {operation.get('from')}"
    style = {"+": "green", "-": "red", "~": "yellow"}.get(sign, "cyan")
    return Text.assemble((f"{sign} {safe(path)}", style), f"  {_short(safe(rest))}".rstrip())


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _at(state: Any, pointer: str) -> Any:
    """Read what stands at a JSON Pointer; None where nothing does."""
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(state, dict) and name in state:
            state = state[name]
        elif isinstance(state, list) and name.isdecimal() and int(name) < len(state):
            state = state[int(name)]
        else:
            return None
    return state

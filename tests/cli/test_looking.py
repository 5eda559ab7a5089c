"""`reattach sessions`, `show` and `diff`: they read, and change no byte."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from reattach import Reattach
from reattach.cli import reach, views
from reattach.store.sqlite.reading import SQLiteReader
from tests.cli.conftest import fine, reattach, refused, told


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'reattach.db'}"


async def made(folder: Path) -> Reattach:
    """A server that has three sessions of two users."""
    server = Reattach(database=url(folder))
    await server.start()
    create = server.sessions.create
    await create({"n": 0, "list": [{"id": "a"}], "text": "one"}, user_id="ann", session_id="s-1")
    await create({"n": 0}, user_id="bob", session_id="s-2", schema="order")
    await create({"n": 0}, user_id="ann", session_id="other")
    await server.sessions.update("s-1", [{"op": "set", "path": "/n", "value": 1}])
    await server.sessions.update("s-1", [{"op": "unset", "path": "/text"}])
    return server


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The database's file, as its server left it."""

    async def make(folder: Path) -> None:
        await (await made(folder)).stop()

    folder = tmp_path_factory.mktemp("made")
    asyncio.run(make(folder))
    return (folder / "reattach.db").read_bytes()


@pytest.fixture
def database(file: bytes, tmp_path: Path) -> str:
    (tmp_path / "reattach.db").write_bytes(file)
    return url(tmp_path)


def names(page: Mapping[str, Any]) -> list[str]:
    return [one["session_id"] for one in page["items"]]


# Lists


async def test_sessions_are_listed_newest_activity_first(database: str) -> None:
    said = await fine("sessions", "--database", database)
    head, *lines = [line.split() for line in said.splitlines()]
    assert head == ["ID", "User", "Schema", "Version", "Active"]
    assert [line[0] for line in lines] == ["s-1", "other", "s-2"]
    assert lines[0][:3] == ["s-1", "ann", "2"]


async def test_sessions_are_found_by_what_is_asked_for(database: str) -> None:
    async def found(*options: str) -> list[str]:
        return names(await told("sessions", "--database", database, *options))

    assert await found() == ["s-1", "other", "s-2"]
    assert await found("--user", "bob") == ["s-2"]
    assert await found("--schema", "order") == ["s-2"]
    assert await found("--begins", "s-") == ["s-1", "s-2"]
    assert await found("--begins", "s-", "--user", "ann") == ["s-1"]
    assert await found("--active-since", "1h") == ["s-1", "other", "s-2"]
    done = await reattach("sessions", "--database", database, "--user", "nobody")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "No session is like that.\n")


async def test_a_list_goes_on_where_it_ended(database: str) -> None:
    page = await told("sessions", "--database", database, "--limit", "2")
    assert names(page) == ["s-1", "other"]
    rest = await told("sessions", "--database", database, "--next", page["next"])
    assert (names(rest), rest["next"]) == (["s-2"], None)
    said = await fine("sessions", "--database", database, "--limit", "1")
    assert "There are more: --next " in said


async def test_all_are_listed_page_by_page(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_PAGE", 1)
    page = await told("sessions", "--database", database, "--limit", "0")
    assert (names(page), page["next"]) == (["s-1", "other", "s-2"], None)


async def test_a_length_of_time_that_is_none_is_a_wrong_usage(database: str) -> None:
    done = await reattach("sessions", "--database", database, "--active-since", "soon")
    assert done.exit_code == 2
    said = re.sub(r"[\s│]+", " ", done.stderr)
    assert "expected a length such as 15min, 24h or 7d, got 'soon'" in said


# One session


async def test_a_session_is_shown_as_it_is_and_as_it_was(database: str) -> None:
    now = await told("show", "s-1", "--database", database)
    assert (now["version"], now["state"]) == (2, {"n": 1, "list": [{"id": "a"}]})
    assert (now["user_id"], now["schema"], now["is_active"]) == ("ann", None, True)
    then = await told("show", "s-1", "--version", "1", "--database", database)
    assert then["version"] == 1
    assert then["state"] == {"n": 1, "list": [{"id": "a"}], "text": "one"}
    said = await fine("show", "s-1", "--database", database)
    assert "Version  2 (epoch" in said
    assert '"list": [' in said


async def test_what_is_not_there_is_code_3(database: str) -> None:
    on = ("--database", database)
    assert "got 'nope': see reattach sessions" in await refused(3, "show", "nope", *on)
    assert "version 9 is not retained" in await refused(3, "show", "s-1", "--version", "9", *on)
    assert "version 9 is not retained" in await refused(3, "diff", "s-1", "9", *on)
    assert "got 'nope'" in await refused(3, "checkpoint", "nope", "--list", *on)
    done = await reattach("show", "nope", "--json", *on)
    error = msgspec.json.decode(done.stderr)["error"]
    assert (done.exit_code, done.stdout, error["code"]) == (3, "", "session_not_found")


async def test_what_a_terminal_would_obey_is_escaped(tmp_path: Path) -> None:
    server = await made(tmp_path)
    state = {"\x1b[2J": "\x9b31m \u202e[red]\x07"}
    await server.sessions.create(state, user_id="\x1b]0;me\x07", session_id="bad")
    await server.stop()
    for command in (("sessions",), ("show", "bad"), ("show", "bad", "--json")):
        said = await fine(*command, "--database", url(tmp_path))
        assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(said), command
    assert "[red]" in await fine("show", "bad", "--database", url(tmp_path))
    assert (await told("show", "bad", "--database", url(tmp_path)))["state"] == state


async def test_a_session_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each commit once and in order, another epoch, and the end, while a server writes."""
    monkeypatch.setattr(views, "_LOOK_S", 0.01)
    server = await made(tmp_path)
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()
    shown = views._show

    def show(*arguments: Any, **options: Any) -> None:
        shown(*arguments, **options)
        loop.call_soon_threadsafe(seen.set)

    monkeypatch.setattr(views, "_show", show)
    following = asyncio.create_task(
        reattach("show", "s-1", "--follow", "--json", "--database", url(tmp_path))
    )
    await asyncio.wait_for(seen.wait(), 20)
    for _ in range(3):
        await server.sessions.update("s-1", [{"op": "inc", "path": "/n", "by": 1}])
    seen.clear()
    await server.registry.store.renew_epochs("epoch-2")
    await asyncio.wait_for(seen.wait(), 20)
    await server.sessions.erase("s-1")
    done = await asyncio.wait_for(following, 20)
    await server.stop()
    first, *rest = map(msgspec.json.decode, done.stdout.splitlines())
    assert (first["session_id"], first["version"], first["state"]["n"]) == ("s-1", 2, 1)
    commits, again = rest[:-1], rest[-1]
    # What came in the same look as the other epoch is in the state that is shown with it.
    versions = [one["version"] for one in commits]
    assert versions == list(range(3, 3 + len(versions)))
    assert (again["epoch"], again["version"], again["state"]["n"]) == ("epoch-2", 5, 4)
    assert done.exit_code == 3
    assert "was erased at" in done.stderr


# What changed


async def test_a_difference_is_told_to_people_and_to_programs(database: str) -> None:
    on = ("--database", database)
    assert await told("diff", "s-1", "0", "1", *on) == [{"op": "replace", "path": "/n", "value": 1}]
    assert await fine("diff", "s-1", "0", *on) == '- /text  "one"\n~ /n  0 → 1\n'
    assert await fine("diff", "s-1", "2", "0", *on) == '~ /n  1 → 0\n+ /text  "one"\n'
    assert await told("diff", "s-1", "2", *on) == []


# The file


def digest(folder: Path) -> dict[str, str]:
    return {
        one.name: hashlib.sha256(one.read_bytes()).hexdigest()
        for one in folder.iterdir()
        if one.suffix != ".db-shm"
    }


async def test_a_read_leaves_the_file_as_it_is_and_takes_no_lock(
    database: str, tmp_path: Path
) -> None:
    before = digest(tmp_path)
    await fine("show", "s-1", "--database", database)
    await fine("diff", "s-1", "0", "--database", database)
    await fine("sessions", "--database", database)
    empty = hashlib.sha256(b"").hexdigest()
    assert {name: what for name, what in digest(tmp_path).items() if what != empty} == before


async def test_a_file_where_nothing_can_be_written_is_read(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def access(place: Path, mode: int) -> bool:
        assert Path(place) == tmp_path
        return mode != os.W_OK

    monkeypatch.setattr(os, "access", access)
    assert (await told("show", "s-1", "--database", database))["version"] == 2
    assert not (tmp_path / "reattach.db-wal").exists()


@pytest.mark.usefixtures("database")
async def test_who_only_reads_cannot_write(tmp_path: Path) -> None:
    reader = SQLiteReader(tmp_path / "reattach.db")
    await reader.open()
    with pytest.raises(Exception, match="to be open for writing"):
        await reader.renew_epochs("mine")
    await reader.close()


async def test_a_file_that_is_none_of_ours_is_told(tmp_path: Path) -> None:
    on = ("--database", url(tmp_path))
    assert "got no file: say where it is" in await refused(4, "sessions", *on)
    (tmp_path / "reattach.db").write_bytes(b"no database at all, and long enough to be looked at")
    assert "file is not a database" in await refused(4, "sessions", *on)


@pytest.mark.parametrize(
    ("revision", "says"), [("0002", "reattach migrate"), ("9999", "the release that wrote it")]
)
async def test_tables_of_another_release_are_told(
    database: str, tmp_path: Path, revision: str, says: str
) -> None:
    db = sqlite3.connect(tmp_path / "reattach.db")
    db.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    db.commit()
    db.close()
    said = await refused(1, "sessions", "--database", database)
    assert f"got {revision}: " in said
    assert says in said


def test_who_has_no_name_is_an_operator_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nameless)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert reach.operator_name() == "operator:4711"

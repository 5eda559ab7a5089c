"""`WritableBy`: whatever an author sends, what is not theirs to write stays as it is (rule A22)."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, RootModel

from reattach import SessionModel
from reattach.core.guard import Guard
from reattach.core.merge import Merge
from reattach.core.patch import json_patch, merge_patch
from reattach.core.session import Edit, Proposal
from reattach.errors import ChangeRefused
from reattach.schema import Ask, ModelSchema, Text, WritableBy
from tests.core.rig import Rig, check, inc, insert, move, put, splice, unset

Owners = Annotated[str, WritableBy("owner")]


class Stamp(BaseModel):
    by: str = ""
    note: Annotated[str, WritableBy("owner")] = ""


class Comment(BaseModel):
    id: str
    text: Annotated[str, Text()] = ""
    approved: Annotated[bool, WritableBy("owner")] = False
    replies: list[Comment] = []


class Sealed(RootModel[Annotated[dict[str, int], WritableBy("owner")]]):
    pass


class Review(SessionModel):
    title: str = ""
    verdict: Annotated[str, WritableBy("owner"), Ask()] = "open"
    verdicts: Annotated[list[str], WritableBy("owner")] = []
    fixed: Annotated[list[Comment], WritableBy("owner")] = []
    seal: Annotated[str, WritableBy("owner"), Text()] = ""
    score: Annotated[int, WritableBy()] = 0
    draft: Annotated[str, WritableBy("editor")] = ""
    sealed: Sealed = Sealed({})
    maybe: Annotated[Owners | None, Field()] = None
    comments: list[Comment] = []
    stamps: dict[str, Stamp] = {}
    loose: list[Stamp] = []
    words: list[Owners] = []
    free: dict[str, Any] = {}


SCHEMA = ModelSchema(Review)

STATE: dict[str, Any] = {
    "title": "t",
    "verdict": "open",
    "verdicts": ["a", "b"],
    "fixed": [{"id": "f1", "text": "x"}, {"id": "f2", "text": "y"}],
    "seal": "wax",
    "score": 3,
    "sealed": {"n": 1},
    "comments": [
        {"id": "1", "text": "one", "approved": True},
        {"id": "2", "text": "two", "approved": False},
        {"id": "3", "text": "three", "replies": [{"id": "r", "approved": True}]},
    ],
    "stamps": {"x": {"by": "b", "note": "n"}, "y": {"by": "b"}},
    "loose": [{"by": "b", "note": "n"}, {"by": "c"}],
    "words": ["w"],
    "free": {"k": 1},
}


def rig(**changed: Any) -> Rig:
    return Rig(SCHEMA.begin(copy.deepcopy(STATE) | changed), schema=SCHEMA)


def with_(path: str, value: Any) -> Any:
    """The state of a fresh rig in which another value is at a path."""
    state: Any = copy.deepcopy(rig().state)
    *above, last = path.split("/")[1:]
    found = state
    for token in above:
        found = found[int(token)] if isinstance(found, list) else found[token]
    found[int(last) if isinstance(found, list) else last] = value
    return state


COMMENT = {"id": "1", "text": "one", "approved": True, "replies": []}

REFUSED: list[tuple[str, list[dict[str, Any]]]] = [
    ("/verdict", [put("/verdict", "done")]),
    ("/verdict", [unset("/verdict")]),
    ("/verdict", [put("/title", "u"), put("/verdict", "done")]),
    ("/verdict", [put("", with_("/verdict", "done"))]),
    ("/verdict", [put("", {"title": "only"})]),
    ("/verdicts", [put("/verdicts", ["b", "a"])]),
    ("/verdicts", [insert("/verdicts", "c")]),
    ("/fixed", [move("/fixed/#f1")]),
    ("/fixed", [put("/fixed/#f1/text", "z")]),
    ("/fixed", [splice("/fixed/#f1/text", 0, 1, "")]),
    ("/fixed", [unset("/fixed/#f2")]),
    ("/fixed", [insert("/fixed", {"id": "f3"})]),
    ("/seal", [splice("/seal", 0, 0, "s")]),
    ("/score", [inc("/score", 1)]),
    ("/score", [put("/score", 4)]),
    ("/sealed", [put("/sealed/n", 2)]),
    ("/sealed", [put("/sealed/m", 2)]),
    ("/maybe", [put("/maybe", "x")]),
    ("/comments/#1/approved", [put("/comments/#1/approved", False)]),
    ("/comments/#1/approved", [unset("/comments/#1/approved")]),
    ("/comments/#2/approved", [put("/comments/#2/approved", True)]),
    ("/comments/#2/approved", [unset("/comments/#2/approved")]),
    ("/comments/#1/approved", [unset("/comments/#1")]),
    ("/comments/#1/approved", [put("/comments/#1", {"id": "1", "text": "one"})]),
    ("/comments/#1/approved", [put("/comments/#1", {**COMMENT, "approved": False})]),
    ("/comments/#1/approved", [insert("/comments", {**COMMENT, "approved": False})]),
    ("/comments/#9/approved", [insert("/comments", {"id": "9", "approved": True})]),
    ("/comments/#1/approved", [put("/comments", [])]),
    ("/comments/#3/replies/#r/approved", [unset("/comments/#3/replies/#r")]),
    ("/comments/#3/replies/#r/approved", [put("/comments/#3/replies", [])]),
    ("/comments/#3/replies/#r/approved", [unset("/comments/#3")]),
    ("/stamps/x/note", [put("/stamps/x/note", "m")]),
    ("/stamps/x/note", [unset("/stamps/x")]),
    ("/stamps/z/note", [put("/stamps/z", {"note": "m"})]),
    ("/stamps/x/note", [put("/stamps", {})]),
    ("/loose/0/note", [put("/loose", [{"by": "b"}, {"by": "c"}])]),
    ("/loose/2/note", [insert("/loose", {"note": "m"})]),
    ("/words/0", [put("/words", [])]),
    ("/words/1", [insert("/words", "v")]),
    # Taken out and put back otherwise, in one change.
    ("/comments/#1/approved", [unset("/comments/#1"), insert("/comments", {"id": "1"})]),
]

ALLOWED: list[list[dict[str, Any]]] = [
    [put("/title", "u"), put("/free/k", {"verdict": 1})],
    [put("/draft", "mine")],
    # What stays as it is.
    [put("/verdict", "open")],
    [put("", with_("/title", "u"))],
    [put("/comments/#1", {**COMMENT, "text": "other"})],
    [insert("/comments", {**COMMENT, "text": "other"})],
    [put("/verdict", "done"), put("/verdict", "open")],
    [unset("/comments/#1"), insert("/comments", COMMENT)],
    [check("/verdict", "open"), put("/title", "u")],
    # What is around it.
    [put("/comments/#1/text", "other"), splice("/comments/#2/text", 0, 0, "x")],
    [move("/comments/#3", after=None), move("/comments/#1")],
    [insert("/comments/#1/replies", {"id": "r2", "text": "re"})],
    [put("/stamps/x/by", "c")],
    [put("/stamps", {"x": {"by": "c", "note": "n"}})],
    # What a change makes or removes may have the default, or nothing.
    [insert("/comments", {"id": "9", "text": "new", "approved": False})],
    [insert("/comments", {"id": "9", "text": "new"})],
    [unset("/comments/#2")],
    [put("/stamps/z", {"by": "z", "note": ""})],
    [unset("/stamps/y")],
    [insert("/loose", {"by": "d"})],
]


@pytest.mark.parametrize(("path", "ops"), REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_what_would_alter_it_is_refused_with_its_path(path: str, ops: list[dict[str, Any]]) -> None:
    """Rule A22."""
    made = rig()
    before = copy.deepcopy(made.state)
    frame = made.change("c", *ops, role="editor")
    assert (frame["type"], frame["code"], frame["path"]) == ("rejected", "forbidden", path)
    assert made.state == before
    assert made.session.document.weight == len(json.dumps(before, separators=(",", ":")))
    # The server's own code may.
    assert made.change("c", *ops, role=None)["type"] == "state_update"


@pytest.mark.parametrize("ops", ALLOWED, ids=lambda value: json.dumps(value)[:60])
def test_what_leaves_it_as_it_is_goes_through(ops: list[dict[str, Any]]) -> None:
    """Rule A22."""
    made, free = rig(), rig()
    frame = made.change("c", *ops, role="editor")
    assert frame == free.change("c", *ops, role=None)
    assert made.state == free.state == made.reload().document.state
    # And so it does for one who is no editor, as far as that one may.
    assert rig().change("c", put("/verdict", "done"), role="owner")["type"] == "state_update"


def test_the_server_alone_writes_what_nobody_may() -> None:
    for role in ("owner", "editor"):
        assert rig().refused("c", inc("/score", 1), role=role) == "forbidden"
    assert rig().refused("c", put("/draft", "d"), role="owner") == "forbidden"


JSON_PATCHES: list[tuple[str | None, list[dict[str, Any]]]] = [
    ("/verdict", [{"op": "replace", "path": "/verdict", "value": "done"}]),
    ("/comments/#1/approved", [{"op": "remove", "path": "/comments/0"}]),
    ("/comments/#1/approved", [{"op": "remove", "path": "/comments/0/approved"}]),
    ("/comments/#1/approved", [{"op": "copy", "from": "/score", "path": "/comments/0/approved"}]),
    ("/fixed", [{"op": "move", "from": "/fixed/0", "path": "/fixed/1"}]),
    ("/loose/0/note", [{"op": "replace", "path": "/loose/0/note", "value": "m"}]),
    ("/stamps/x/note", [{"op": "move", "from": "/stamps/x", "path": "/stamps/z"}]),
    ("/words/0", [{"op": "replace", "path": "/words/0", "value": "v"}]),
    (None, [{"op": "move", "from": "/comments/0", "path": "/comments/2"}]),
    (None, [{"op": "replace", "path": "/comments/0/text", "value": "x"}]),
    (None, [{"op": "copy", "from": "/comments/1/text", "path": "/title"}]),
]


def patched(made: Rig, edit: Edit, role: str | None) -> dict[str, Any]:
    """A change by HTTP, as the server makes it on somebody's behalf."""
    made.client("server")
    made.session.clients["server"].source = "server"
    made.session.cut()
    seq = made.session.clients["server"].seq + 1
    made.now += 1
    decision = made.session.decide(
        Proposal(client_id="server", seq=seq, at=made.now, corrected=made.now, edit=edit, role=role)
    )
    made.session.land()
    frame: dict[str, Any] = json.loads(decision.body)
    return frame


@pytest.mark.parametrize(("path", "patch"), JSON_PATCHES, ids=lambda value: json.dumps(value)[:60])
def test_json_patches(path: str | None, patch: list[dict[str, Any]]) -> None:
    """Rule A22."""

    def edit(merge: Merge) -> None:
        json_patch(merge, copy.deepcopy(patch))

    made = rig()
    before = copy.deepcopy(made.state)
    frame = patched(made, edit, "editor")
    if path is None:
        assert frame["type"] == "state_update"
        return
    assert (frame["type"], frame["code"], frame["path"]) == ("rejected", "forbidden", path)
    assert made.state == before


@pytest.mark.parametrize(
    ("path", "patch"),
    [
        ("/verdict", {"verdict": "done"}),
        ("/verdict", {"title": "u", "verdict": None}),
        ("/stamps/x/note", {"stamps": {"x": {"note": "m"}}}),
        ("/stamps/x/note", {"stamps": None}),
        ("/comments/#1/approved", {"comments": []}),
        (None, {"title": "u", "verdict": "open"}),
        (None, {"stamps": {"x": {"by": "c"}, "z": {"by": "z"}}}),
    ],
)
def test_merge_patches(path: str | None, patch: dict[str, Any]) -> None:
    """Rule A22."""
    frame = patched(rig(), lambda merge: merge_patch(merge, copy.deepcopy(patch)), "editor")
    assert frame.get("path") == path
    assert frame.get("code") == (None if path is None else "forbidden")


def test_of_two_elements_with_one_id_the_second_is_protected_as_well() -> None:
    twins = [{"id": "1", "approved": False}, {"id": "1", "approved": True}]
    patch = [{"op": "replace", "path": "/comments/1/approved", "value": False}]
    frame = patched(rig(comments=twins), lambda merge: json_patch(merge, patch), "editor")
    assert frame["code"] == "forbidden"


# Concurrency


def test_an_older_whole_that_another_write_outlives_is_merged() -> None:
    """Rules A22 and M6: it puts back what the owner wrote since, and alters nothing."""
    made = rig()
    made.change("o", put("/verdict", "done"), role="owner", at=5_000)
    frame = made.change("c", put("", with_("/title", "u")), role="editor", base=0, at=4_000)
    assert frame["type"] == "state_update"
    assert (made.state["verdict"], made.state["title"]) == ("done", "u")


def test_a_later_whole_would_set_back_what_the_owner_wrote() -> None:
    """Rule A22."""
    made = rig()
    made.change("o", put("/verdict", "done"), role="owner", at=5_000)
    frame = made.change("c", put("", with_("/title", "u")), role="editor", base=0, at=6_000)
    assert (frame["code"], frame["path"]) == ("forbidden", "/verdict")
    assert made.state["verdict"] == "done"


@pytest.mark.parametrize("at", [4_000, 6_000], ids=["earlier", "later"])
def test_a_value_that_would_lose_is_kept_for_nobody_to_choose(at: int) -> None:
    """Rule A22: no conflict is made of what its author might not write."""
    made = rig()
    made.change("o", put("/verdict", "done"), role="owner", at=5_000)
    frame = made.change("c", put("/verdict", "mine"), role="editor", base=0, at=at)
    assert (frame["code"], frame["path"]) == ("forbidden", "/verdict")
    assert made.session.unsettled == {}


def test_a_conflict_of_it_is_settled_by_who_may_write_it() -> None:
    """Rules A22 and RS1."""
    made = rig()
    made.change("o", put("/verdict", "a"), role="owner")
    frame = made.change("p", put("/verdict", "b"), role="owner", base=0)
    (conflict,) = frame["conflicts"]
    keeps: list[Any] = ["kept", "lost", {"value": "c"}]
    for keep in keeps:
        op = {"op": "resolve", "conflict_id": conflict["id"], "keep": keep}
        assert made.refused("c", op, role="editor") == "forbidden"
    assert list(made.session.unsettled) == [conflict["id"]]
    op = {"op": "resolve", "conflict_id": conflict["id"], "keep": "lost"}
    assert made.change("o", op, role="owner")["conflicts"][0]["status"] == "resolved"


def test_a_refused_change_leaves_the_books_as_they_were() -> None:
    """What the second look takes back is taken back whole: texts, index, conflicts, weight."""
    made, free = rig(), rig()
    for one in (made, free):
        one.change("o", splice("/comments/#1/text", 0, 0, "a"), role="owner")
    ops = [splice("/comments/#1/text", 1, 0, "bb"), put("/comments/#1/approved", False)]
    assert made.refused("c", *ops, role="editor", base=0) == "forbidden"
    assert free.change("c", role="editor")["type"] == "state_update"
    late = splice("/comments/#1/text", 0, 3, "z")
    frames = [one.change("d", late, role="editor", base=0) for one in (made, free)]
    assert frames[0]["patch"] == frames[1]["patch"]
    assert made.state == free.state == made.reload().document.state


def protected_values(state: Any) -> Any:
    """What an editor may not write, found by other means than the guard's."""

    def comments(items: list[Any]) -> dict[str, Any]:
        return {
            one["id"]: (one.get("approved", False), comments(one.get("replies", [])))
            for one in items
            if one.get("approved", False) or any_approved(one.get("replies", []))
        }

    def any_approved(items: list[Any]) -> bool:
        return any(one.get("approved") or any_approved(one.get("replies", [])) for one in items)

    names = ("verdict", "verdicts", "fixed", "seal", "score", "sealed", "maybe")
    stamps = {key: one["note"] for key, one in state.get("stamps", {}).items() if one.get("note")}
    return [state.get(name) for name in names], comments(state.get("comments", [])), stamps


@pytest.mark.parametrize("seed", range(12))
def test_no_change_of_an_editor_alters_it(seed: int) -> None:
    """Rule A22, with whatever an editor may come up with, concurrent with owners and others."""
    chance = random.Random(seed)
    made = rig()
    refused = committed = 0
    for _ in range(150):
        role = chance.choice(["owner", "editor", "editor"])
        ops = [chance.choice(OPS)(chance) for _ in range(chance.randrange(1, 4))]
        base = max(0, made.version - chance.randrange(6))
        before = copy.deepcopy(made.state)
        client = f"{role}-{chance.randrange(2)}"
        at = made.now + chance.randrange(-4, 5)
        frame = made.change(client, *ops, role=role, base=base, at=at)
        if frame["type"] == "rejected":
            assert made.state == before
            refused += frame["code"] == "forbidden"
        elif role == "editor":
            committed += 1
            assert protected_values(made.state) == protected_values(before), ops
    assert refused > 10
    assert committed > 10
    assert made.reload().document.state == made.state


def _comment(chance: random.Random) -> dict[str, Any]:
    comment: dict[str, Any] = {"id": chance.choice("1234"), "text": chance.choice("xyz")}
    if chance.random() < 0.5:
        comment["approved"] = chance.random() < 0.5
    if chance.random() < 0.3:
        comment["replies"] = [{"id": "r", "approved": chance.random() < 0.5}]
    return comment


def _path(chance: random.Random) -> str:
    return chance.choice(
        [
            "/title",
            "/verdict",
            "/comments",
            f"/comments/#{chance.choice('1234')}",
            f"/comments/#{chance.choice('1234')}/text",
            f"/comments/#{chance.choice('1234')}/approved",
            "/comments/#3/replies/#r/approved",
            f"/stamps/{chance.choice('xyz')}",
            f"/stamps/{chance.choice('xyz')}/note",
            "/stamps",
            "/fixed/#f1",
            "/sealed/n",
        ]
    )


def _value(chance: random.Random, path: str) -> Any:
    match path.split("/")[1:]:
        case ["comments"]:
            return [{**_comment(chance), "id": name} for name in "12" if chance.random() < 0.9]
        case ["comments", name]:
            return {**_comment(chance), "id": name[1:]}
        case ["comments", *_, "approved"]:
            return chance.random() < 0.5
        case ["stamps"]:
            return {key: {"note": chance.choice(["", "n"])} for key in "xy"}
        case ["stamps", _]:
            return {"by": "b", "note": chance.choice(["", "n"])}
        case ["fixed", _]:
            return {"id": "f1", "text": chance.choice("xy")}
        case ["sealed", _]:
            return chance.randrange(3)
    return chance.choice(["open", "done", "n"])


def _set(chance: random.Random) -> dict[str, Any]:
    path = _path(chance)
    return put(path, _value(chance, path))


OPS: list[Callable[[random.Random], dict[str, Any]]] = [
    _set,
    _set,
    lambda chance: unset(_path(chance)),
    lambda chance: insert("/comments", _comment(chance)),
    lambda chance: move(f"/comments/#{chance.choice('1234')}", after=chance.choice([None, "2"])),
    lambda chance: move(f"/fixed/#{chance.choice(['f1', 'f2'])}"),
    lambda chance: splice(f"/comments/#{chance.choice('1234')}/text", 0, 0, "s"),
    lambda chance: splice("/seal", 0, 0, chance.choice("st")),
    lambda chance: inc(chance.choice(["/score", "/sealed/n"]), 1),
]


# New sessions, and schemas


def test_a_new_session_begins_with_the_defaults_of_what_its_owner_may_not_write() -> None:
    """Rule A22."""
    guard = Guard(SCHEMA.fields)
    guard.begin("owner", {"verdict": "done", "score": 0, "comments": [COMMENT]})
    for state, path in [({"score": 1}, "/score"), ({"draft": "d"}, "/draft")]:
        with pytest.raises(ChangeRefused) as refused:
            guard.begin("owner", state)
        assert (refused.value.code, refused.value.path) == ("forbidden", path)


def test_roles_are_named_as_they_are_called() -> None:
    for names in (("boss",), ("viewer",), ("owner", "viewer")):
        with pytest.raises(TypeError, match="owner and editor"):
            WritableBy(*names)
    assert WritableBy("owner") == WritableBy("owner")


def test_a_schema_without_protected_fields_has_no_second_look() -> None:
    class Plain(SessionModel):
        n: int = 0

    schema = ModelSchema(Plain)
    assert not Guard(schema.fields).any
    assert Rig({"n": 0}, schema=schema).change("c", put("/n", 1), role="editor")["version"] == 1


def test_what_is_far_from_it_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change within an element of a long list looks at that element's fields alone."""
    made = rig(comments=[{"id": str(n), "approved": True} for n in range(2_000)])
    seen: list[Any] = []
    compare = made.session.guard.compare

    def counted(*arguments: Any) -> None:
        seen.append(arguments)
        compare(*arguments)

    monkeypatch.setattr(made.session.guard, "compare", counted)
    made.change("c", put("/comments/#7/text", "x"), role="editor")
    assert seen == []
    made.change("c", put("/comments/#7", {"id": "7", "approved": True}), role="editor")
    assert [root[0] for _, root, _, _ in seen] == [("comments", "#7")]

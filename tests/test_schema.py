"""Schemas: what a model says of policies, what it refuses, and how states come to a new version."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import enum
import json
import time
from typing import Annotated, Any, Literal, NotRequired

import pytest
from annotated_types import MaxLen
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    computed_field,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict

from reattach import Reattach, SessionModel
from reattach.core.paths import parse
from reattach.core.schema import renamed
from reattach.core.session import Proposal
from reattach.errors import ChangeRefused
from reattach.runtime.access import User
from reattach.schema import Ask, First, Max, Min, ModelSchema, Step, Text, Union, upgrade
from reattach.store.base import CommitRecord
from reattach.store.memory import MemoryStore
from reattach.wire import Op
from tests.core.rig import Rig, insert, put, splice, unset
from tests.runtime.rig import Node, running, settle


class Kind(enum.Enum):
    A = "a"
    B = "b"


class Response(BaseModel):
    id: str
    answer: Annotated[str, Text()] = ""
    score: Annotated[int, Max()] = 0


class Branch(BaseModel):
    name: Annotated[str, First()] = ""
    children: list[Branch] = []


class GapResolution(SessionModel):
    current_step: Annotated[int, Max(), Step()] = 0
    user_responses: list[Response] = []
    notes: Annotated[str, Text()] = ""
    budget: Annotated[int, Ask(), Field(ge=0)] = 0
    tags: Annotated[list[str], Union(), MaxLen(3)] = []
    low: Annotated[float, Min()] | None = None
    by_name: dict[str, Response] = {}
    when: dt.datetime | None = None
    kind: Kind = Kind.A
    tree: Branch = Branch()
    either: int | str = 0
    status: Literal["open", "done"] = "open"


class Guarded(SessionModel):
    low: int = 0
    high: int = 9
    name: str = "x"
    items: list[Response] = []

    @model_validator(mode="after")
    def _in_order(self) -> Guarded:
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self

    @field_validator("name")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value:
            raise ValueError("a name is needed")
        return value


SCHEMA = ModelSchema(GapResolution)


def rig(**state: Any) -> Rig:
    return Rig(SCHEMA.begin(state), schema=SCHEMA)


def test_policies_are_the_annotations_at_any_depth() -> None:
    """Rule SC1: as a welcome names them."""
    assert SCHEMA.fields.named() == {
        "/current_step": "max",
        "/user_responses/*/answer": "text",
        "/user_responses/*/score": "max",
        "/notes": "text",
        "/budget": "ask",
        "/tags": "union",
        "/by_name/*/answer": "text",
        "/by_name/*/score": "max",
        "/tree/name": "first",
        "/tree/children/*/name": "first",
    } | {"/low": "min"}
    assert SCHEMA.fields.at(parse("/tree/children/#1/children/#2/name")) == "first"
    assert SCHEMA.step == ("current_step",)


def test_a_new_session_has_the_defaults_of_what_its_state_lacks() -> None:
    """Rule SC2."""
    state = SCHEMA.begin({"notes": "n", "user_responses": [{"id": "1"}]})
    assert state["notes"] == "n"
    assert state["user_responses"] == [{"id": "1", "answer": "", "score": 0}]
    assert state["kind"] == "a"
    assert state["tree"] == {"name": "", "children": []}
    with pytest.raises(ChangeRefused) as refused:
        SCHEMA.begin({"notes": 3})
    assert (refused.value.code, refused.value.path) == ("schema_mismatch", "/notes")


@pytest.mark.parametrize(
    ("op", "path", "reason"),
    [
        (put("/current_step", "1"), "/current_step", "valid integer"),
        (put("/current_step", True), "/current_step", "valid integer"),
        (put("/budget", -1), "/budget", "greater than or equal to 0"),
        (put("/nope", 1), "/nope", "not permitted"),
        (put("/kind", "c"), "/kind", "'a' or 'b'"),
        (put("/when", "yesterday"), "/when", "datetime"),
        (put("/status", "gone"), "/status", "'open' or 'done'"),
        (put("/either", []), "/either", "valid"),
        (put("/user_responses/#r1/score", 1.5), "/user_responses/#r1/score", "valid integer"),
        (put("/user_responses", [{"id": "r1"}, {"id": 2}]), "/user_responses/1/id", "valid string"),
        (
            put("/user_responses", [{"id": "r1", "score": "x"}]),
            "/user_responses/#r1/score",
            "valid integer",
        ),
        (
            insert("/user_responses", {"id": "r2", "score": []}),
            "/user_responses/#r2/score",
            "valid",
        ),
        (unset("/user_responses/#r1/id"), None, ""),
        (put("/by_name/k", {"id": "k", "answer": 1}), "/by_name/k/answer", "valid string"),
        (put("/tree/children", [{"name": 1}]), "/tree/children/0/name", "valid string"),
        (put("/tags", ["a", "b", "c", "d"]), "/tags", "at most 3"),
        (put("", {"notes": 1}), "/notes", "valid string"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path_and_pydantics_reason(
    op: dict[str, Any], path: str | None, reason: str
) -> None:
    """Rule SC3."""
    made = rig(user_responses=[{"id": "r1"}])
    before = json.loads(json.dumps(made.state))
    frame = made.change("a", op)
    assert frame["type"] == "rejected"
    if path is not None:
        assert frame["code"] == "schema_mismatch"
        assert frame["path"] == path
        assert reason in frame["message"]
    assert made.state == before


@pytest.mark.parametrize(
    "op",
    [
        put("/current_step", 3),
        put("/when", "2026-11-24T10:00:00Z"),
        put("/kind", "b"),
        put("/either", "text"),
        put("/low", 1),
        put("/low", None),
        put("/user_responses/#r1/answer", "text"),
        splice("/user_responses/#r1/answer", 0, 0, "t"),
        insert("/user_responses", {"id": "r2"}),
        insert("/tags", "x"),
        put("/by_name/any", {"id": "any"}),
        put("/tree/children", [{"name": "n", "children": [{"name": "m"}]}]),
        unset("/user_responses/#r1"),
        unset("/notes"),
    ],
)
def test_what_fits_is_committed(op: dict[str, Any]) -> None:
    made = rig(user_responses=[{"id": "r1"}])
    assert made.change("a", op)["type"] == "state_update"


class Named(BaseModel):
    id: str
    name: Annotated[str, Text()] = Field("", alias="its-name")


class Short(BaseModel):
    model_config = ConfigDict(str_max_length=3)

    text: str = ""
    parts: list[str] = []


class Pair(TypedDict):
    most: Annotated[int, Max()]
    text: NotRequired[Annotated[str, Text()]]


@dataclasses.dataclass
class Plain:
    least: Annotated[int, Min()] = 0


class Names(RootModel[dict[str, Named]]):
    pass


class Link(BaseModel):
    next: Link | None = None
    n: Annotated[int, Max()] = 0


class Counted(BaseModel):
    n: int = 2

    @computed_field
    def twice(self) -> int:
        return self.n * 2


class Odd(SessionModel):
    words: list[str] = []
    named: list[Named] = []
    short: Short = Short()
    pair: Pair = {"most": 1}
    plain: Plain = Plain()
    names: Names = Names({})
    link: Link = Link(next=Link())
    numbers: dict[int, str] = {}
    counted: Counted = Counted()


ODD = ModelSchema(Odd)


def test_policies_of_types_that_are_no_plain_models() -> None:
    """Rule SC1. Regression: a model that has itself in it had its later fields without policies."""
    assert ODD.fields.named() == {
        "/named/*/its-name": "text",
        "/pair/most": "max",
        "/pair/text": "text",
        "/plain/least": "min",
        "/names/*/its-name": "text",
        "/link/n": "max",
        "/link/next/n": "max",
    }
    assert ODD.fields.at(parse("/link/next/next/next/n")) == "max"


@pytest.mark.parametrize(
    ("op", "path"),
    [
        (insert("/words", 1), "/words/0"),
        (insert("/named", {"its-name": "no id"}), "/named/0/id"),
        (insert("/named", {"id": "1", "its-name": 1}), "/named/#1/its-name"),
        (put("/short/text", "long"), "/short/text"),
        (insert("/short/parts", "long"), "/short/parts/0"),
        (put("/pair/other", 1), "/pair/other"),
        (put("/plain/least", "x"), "/plain/least"),
        (put("/names/k", {"id": 1}), "/names/k/id"),
        (put("/link/next/n", "x"), "/link/next/n"),
        (put("/numbers/x", "y"), "/numbers/x"),
    ],
)
def test_what_was_written_is_checked_wherever_it_lies(op: dict[str, Any], path: str) -> None:
    """Rule SC3. Regression: an element without an id was not, nor was what a setting of the model
    around it forbids.
    """
    made = Rig(ODD.begin({}), schema=ODD)
    frame = made.change("a", op)
    assert frame["code"] == "schema_mismatch", frame
    assert frame["path"] == path


def test_what_is_computed_is_no_part_of_a_state() -> None:
    """Regression: it was among the defaults, and stood there for ever after."""
    assert ODD.begin({})["counted"] == {"n": 2}


def test_a_field_has_one_name() -> None:
    class Two(SessionModel):
        name: str = Field("", validation_alias="read")

    with pytest.raises(TypeError, match="one `alias`"):
        ModelSchema(Two)


def test_defaults_of_many_elements_take_no_time() -> None:
    """Rule SC2. Regression: pydantic read the type of each default of each element anew."""
    begun = time.process_time()
    state = SCHEMA.begin({"user_responses": [{"id": str(n)} for n in range(5_000)]})
    assert time.process_time() - begun < 1
    assert state["user_responses"][-1] == {"id": "4999", "answer": "", "score": 0}


def test_an_insert_into_a_full_list_is_refused() -> None:
    made = rig(tags=["a", "b", "c"])
    frame = made.change("a", insert("/tags", "d"))
    assert (frame["code"], frame["path"]) == ("schema_mismatch", "/tags")


def test_validators_of_a_model_see_the_whole_of_it() -> None:
    """Rule SC3."""
    schema = ModelSchema(Guarded)
    made = Rig(schema.begin({}), schema=schema)
    frame = made.change("a", put("/low", 10))
    assert (frame["code"], frame["path"]) == ("schema_mismatch", "")
    assert "low must not be above high" in frame["message"]
    assert made.change("a", put("/name", ""))["path"] == "/name"
    assert made.change("a", put("/low", 10), put("/high", 20))["type"] == "state_update"


def test_validation_costs_what_was_touched() -> None:
    """Rule SC3: ten thousand elements beside it cost nothing."""

    def cost(elements: int) -> float:
        made = rig(user_responses=[{"id": f"r{n}", "answer": "a" * 50} for n in range(elements)])
        for n in range(3):
            made.change("a", put("/user_responses/#r1/score", n))
        least = 1.0
        for _ in range(60):
            begun = time.perf_counter()
            SCHEMA.check(made.state, [parse("/user_responses/#r1/score"), parse("/notes")])
            least = min(least, time.perf_counter() - begun)
        return least

    assert cost(10_000) < 20 * cost(10)


def test_concurrent_writes_merge_by_their_annotations() -> None:
    made = rig(user_responses=[{"id": "r1"}])
    made.change("a", put("/current_step", 3), put("/budget", 5), base=0)
    frame = made.change("b", put("/current_step", 2), put("/budget", 7), base=0)
    assert [(one["path"], one["status"]) for one in frame["conflicts"]] == [("/budget", "open")]
    assert (made.state["current_step"], made.state["budget"]) == (3, 5)
    made.change("a", splice("/notes", 0, 0, "one"), base=0)
    made.change("b", splice("/notes", 0, 0, "two"), base=0)
    assert made.state["notes"] == "onetwo"


# Versions


class Old(SessionModel):
    schema_name = "draft"
    answers: list[dict[str, str]] = []
    title: str = ""


class New(SessionModel):
    schema_name = "draft"
    schema_version = 3
    renames = {2: {"/answers/*/text": "/answers/*/answer", "/answers": "/responses"}}

    responses: list[dict[str, str]] = []
    title: str = ""
    count: int = 0

    @upgrade(3)
    @staticmethod
    def _count(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "count": len(state["responses"])}


def test_renames_reach_into_paths_and_values() -> None:
    """Rule L7."""
    schema = ModelSchema(New)
    given = [
        Op(op="set", path="/answers/#1/text", value="x"),
        Op(op="insert", path="/answers", value={"id": "2", "text": "y"}),
        Op(op="set", path="", value={"answers": [{"id": "3", "text": "z"}]}),
        Op(op="set", path="/title", value="t"),
    ]
    found = [(op.path, op.value) for op in renamed(schema, 1, given)]
    assert found == [
        ("/responses/#1/answer", "x"),
        ("/responses", {"id": "2", "answer": "y"}),
        ("", {"responses": [{"id": "3", "answer": "z"}]}),
        ("/title", "t"),
    ]
    assert renamed(schema, 3, given) == given


def test_a_schema_that_cannot_be_is_refused_at_once() -> None:
    class Behind(SessionModel):
        renames = {2: {"/a": "/b"}}

    class Moves(SessionModel):
        schema_version = 2
        renames = {2: {"/a/b": "/c/b"}}

    with pytest.raises(TypeError, match="schema_version to be at least 2"):
        ModelSchema(Behind)
    with pytest.raises(TypeError, match="differ in their last token only"):
        ModelSchema(Moves)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def server(store: MemoryStore, *schemas: type[SessionModel]) -> Reattach:
    return Reattach(store=store, schemas=schemas)


async def test_a_session_is_upgraded_when_it_is_loaded_by_a_commit(store: MemoryStore) -> None:
    """Rule SC4."""
    async with server(store, Old) as old:
        await old.sessions.create(
            {"answers": [{"id": "1", "text": "x"}]},
            user_id="local",
            session_id="s",
            schema="draft",
        )
        await old.sessions.update("s", [put("/title", "T")])
    async with server(store, New) as new:
        found = await new.sessions.get("s")
        assert found.version == 2
        assert found.session.schema_version == 3
        assert found.state == {
            "responses": [{"id": "1", "answer": "x"}],
            "title": "T",
            "count": 1,
        }
        (commit,) = await new.registry.store.log("s", first=2)
        assert json.loads(commit.body)["by"]["source"] == "server"
        assert (await new.sessions.get("s")).version == 2
    # The log alone says the same.
    async with server(store, New) as again:
        assert (await again.sessions.get("s")).state == found.state


async def test_two_nodes_upgrade_a_session_at_once(store: MemoryStore) -> None:
    """Rule SC4. Regression: the one that came second answered that it could not be opened."""
    for name in ("a", "b", "c"):
        async with server(store, Old) as old:
            state = {"answers": [{"id": "1", "text": "x"}]}
            await old.sessions.create(state, user_id="local", session_id=name, schema="draft")
        async with server(store, New) as one, server(store, New) as two:
            first, second = await asyncio.gather(one.sessions.get(name), two.sessions.get(name))
            assert first.state == second.state
            assert first.version == second.version == 1
            assert first.state["responses"] == [{"id": "1", "answer": "x"}]


async def test_an_older_node_does_not_load_a_session_of_a_newer_schema(store: MemoryStore) -> None:
    async with server(store, New) as new:
        await new.sessions.create({}, user_id="local", session_id="s", schema="draft")
    async with server(store, Old) as old:
        with pytest.raises(Exception, match="does not know schema draft 3"):
            await old.sessions.get("s")


async def test_a_schema_nobody_knows_is_refused(store: MemoryStore) -> None:
    async with server(store, Old) as old:
        with pytest.raises(ChangeRefused, match="expected one of the schemas draft") as refused:
            await old.sessions.create({}, user_id="local", schema="other")
        assert refused.value.code == "unknown_schema"


async def test_an_upgrade_that_fails_leaves_the_session_as_it_was(store: MemoryStore) -> None:
    class Broken(SessionModel):
        schema_name = "draft"
        schema_version = 2
        title: str = ""

        @upgrade(2)
        @staticmethod
        def _fail(state: dict[str, Any]) -> dict[str, Any]:
            raise KeyError(state["no such key"])

    async with server(store, Old) as old:
        await old.sessions.create({"title": "T"}, user_id="local", session_id="s", schema="draft")
    async with server(store, Broken) as broken:
        with pytest.raises(Exception, match="being changed"):
            await broken.sessions.get("s")
    async with server(store, Old) as old:
        assert (await old.sessions.get("s")).state == {"answers": [], "title": "T"}


def test_who_wrote_what_is_known_by_its_new_name() -> None:
    """Rule SC4: an upgrade is nobody's act, and competes with nothing."""
    schema = ModelSchema(New)
    made = Rig({"answers": [{"id": "1", "text": "x"}], "title": ""}, schema=None)
    made.change("a", put("/answers/#1/text", "by a"), base=0, at=10)
    made.session.schema, made.session.fields = schema, schema.fields
    made.client("server")
    made.session.cut()
    made.session.decide(Proposal(client_id="server", seq=1, at=20, corrected=20, upgrades=True))
    made.session.land()
    assert made.state["responses"] == [{"id": "1", "answer": "by a"}]
    assert made.conflicts("b", put("/responses/#1/answer", "by b"), base=0, at=15) == [
        ("/responses/#1/answer", "by b", "by a")
    ]
    assert made.conflicts("b", put("/title", "new"), base=0, at=15) == []


def test_a_conflict_is_called_by_its_new_name() -> None:
    """Rules SC4, RS1. Regression: it kept the old path, where nothing can be written."""
    schema = ModelSchema(New)
    made = Rig({"answers": [{"id": "1", "text": "x"}], "title": ""})
    made.change("a", put("/answers/#1/text", "by a"), base=0, at=10)
    made.change("b", put("/answers/#1", {"id": "1", "text": "by b"}), base=0, at=20)
    made.session.schema, made.session.fields = schema, schema.fields
    made.client("server")
    made.session.cut()
    upgraded = made.session.decide(
        Proposal(client_id="server", seq=1, at=30, corrected=30, upgrades=True)
    )
    assert isinstance(upgraded, CommitRecord)
    made.log.append(upgraded)
    made.session.land()
    (conflict,) = made.session.unsettled.values()
    assert conflict.path == "/responses/#1/answer"
    again = made.reload()
    assert again.unsettled.keys() == made.session.unsettled.keys()
    assert again.unsettled[conflict.id].path == conflict.path
    assert again.unresolved[conflict.path, "a", "b"] == (conflict.id, 1, None)
    resolve = {"op": "resolve", "conflict_id": conflict.id, "keep": "lost"}
    assert made.change("c", resolve)["type"] == "state_update"
    assert made.state["responses"] == [{"id": "1", "answer": "by a"}]


# Clients of another version


def bare(client_id: str, **hello: Any) -> dict[str, Any]:
    return {
        "type": "hello",
        "client_id": client_id,
        "device": {"id": f"d-{client_id}"},
        "t": 1,
        **hello,
    }


class Heard:
    """A line that keeps what comes over it."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.closes: list[int] = []

    def send(self, frames: Any) -> None:
        self.frames += [json.loads(frame) for frame in frames]

    def close(self, code: int, reason: str) -> None:
        del reason
        self.closes.append(code)

    def pause(self, paused: bool) -> None:
        """Go on as before."""

    def ping(self) -> None:
        """Say nothing."""

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == kind]


async def said(node: Node, *frames: dict[str, Any]) -> Heard:
    """What a client hears that says this."""
    line = Heard()
    connection = node.registry.connections.connect(line)

    async def identify(_: str | None) -> User:
        return User("local")

    for frame in frames:
        node.registry.connections.feed(connection, "s", identify, json.dumps(frame).encode())
        await settle()
    return line


def change(node: Node, seq: int, *ops: dict[str, Any], **fields: Any) -> dict[str, Any]:
    epoch = node.host().room.recorded.epoch
    return {
        "type": "change",
        "seq": seq,
        "epoch": epoch,
        "base": 0,
        "at": 1,
        "ops": list(ops),
        **fields,
    }


async def draft(node: Node) -> None:
    await node.sessions.create(
        {"responses": [{"id": "1", "answer": "x"}]},
        user_id="local",
        session_id="s",
        schema="draft",
    )


async def test_a_welcome_names_schema_and_policies() -> None:
    """Rule SC1."""
    async with running(schemas=[SCHEMA]) as node:
        await node.sessions.create(user_id="local", session_id="s", schema="GapResolution")
        line = await said(node, bare("c"))
        (welcome,) = line.of("initial_state")
        assert welcome["schema"] == {"name": "GapResolution", "version": 1}
        assert welcome["policies"] == SCHEMA.fields.named()


async def test_a_change_of_an_older_version_passes_through_the_renames() -> None:
    """Rule L7: sent by a client of today, from an outbox of yesterday."""
    async with running(schemas=[ModelSchema(New)]) as node:
        await draft(node)
        line = await said(node, bare("c", schema_version=3))
        older = change(node, 1, put("/answers/#1/text", "y"), schema_version=1)
        misfit = change(node, 2, put("/answers/#1/text", 5), schema_version=1)
        today = change(node, 3, put("/responses/#1/answer", 5), schema_version=3)
        newer = change(node, 4, put("/title", "t"), schema_version=9)
        line = await said(node, bare("c2", schema_version=3), older, misfit, today, newer)
        assert [one["patch"] for one in line.of("state_update")] == [
            [{"op": "replace", "path": "/responses/0/answer", "value": "y"}]
        ]
        assert [(one["seq"], one["code"]) for one in line.of("rejected")] == [
            (2, "schema_changed"),
            (3, "schema_mismatch"),
            (4, "schema_changed"),
        ]


async def test_a_client_that_is_too_old_is_told_and_keeps_its_outbox() -> None:
    """Rule L7."""
    async with running(schemas=[ModelSchema(New)]) as node:
        await draft(node)
        await node.registry.open("s")
        line = await said(node, bare("c", schema_version=2), change(node, 1, put("/title", "t")))
        assert [one["code"] for one in line.of("error")] == ["upgrade_required"]
        assert not line.of("rejected")
        assert not line.of("state_update")
        assert not line.closes
        # It reads on, and its change is taken from its newer self.
        await node.sessions.update("s", [put("/title", "by the server")])
        await settle()
        assert len(line.of("state_update")) == 1
        line = await said(node, bare("c", schema_version=3), change(node, 1, put("/title", "t")))
        assert line.of("initial_state")[0]["seq"] == 0
        assert len(line.of("state_update")) == 1


async def test_a_client_that_is_newer_than_the_node_comes_back_later() -> None:
    """Rule L7."""
    async with running(schemas=[ModelSchema(New)]) as node:
        await draft(node)
        line = await said(node, bare("c", schema_version=4))
        assert line.closes == [1012]
        assert line.of("error")[0]["code"] == "unavailable"

"""Roles on open connections: in force at once here, and on every other node within a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from reattach.bus.local import LocalBus
from reattach.core.limits import Limits
from reattach.errors import (
    Forbidden,
    LastOwner,
    SessionErased,
    SessionNotFound,
    TooManyMembers,
    Unavailable,
)
from reattach.runtime import members as members_module
from reattach.runtime.access import Action, Answer, SessionAccess, User
from reattach.runtime.members import access_to
from reattach.store.base import SessionRecord, Tombstone
from reattach.store.memory import MemoryStore
from tests.runtime.rig import LineClient, Node, Work, inc, put, running, settle
from tests.support.wire_client import Frame

ANN, BOB, EVE = User("ann"), User("bob"), User("eve")


async def nothing(_: Work) -> None:
    """The store stays open: the other node has it, too."""


@pytest.fixture
async def nodes() -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes on one database, and no bus between them."""
    store = MemoryStore()
    async with running(store) as first, running(store) as second:
        second.store.next("close", nothing)
        yield first, second


async def owned(node: Node, **members: str) -> LineClient:
    """Ann's client on her session, whose members are these."""
    ann = await node.client(client_id="a", user=ANN, state={"n": 0})
    for user_id, role in members.items():
        await node.registry.members.put("s", user_id, role, by="ann")
    return ann


async def joined(node: Node, user: User) -> LineClient:
    return await node.client(client_id=f"c-{user.id}", user=user)


async def a_second(*nodes: Node) -> None:
    for node in nodes:
        await node.clock.pass_(1_000, step=250)


def roles(client: LineClient) -> list[str]:
    return [welcome["role"] for welcome in client.welcomes]


# A member's role


async def test_a_role_is_told_at_once_and_within_a_second_elsewhere(
    nodes: tuple[Node, Node],
) -> None:
    # Rule A14
    first, second = nodes
    ann = await owned(first, bob="viewer")
    here, there = await joined(first, BOB), LineClient(second, "s", "elsewhere", user=BOB)
    await there.connect()
    second.clients.append(there)
    assert roles(here) == roles(there) == ["viewer"]
    ann.change(inc())
    await settle()
    await first.registry.members.put("s", "bob", "editor", by="ann")
    await settle()
    assert roles(here) == ["viewer", "editor"]
    await a_second(second)
    assert roles(there) == ["viewer", "editor"]
    # It was told by a welcome with nothing new in it: no version twice, none skipped.
    assert here.welcomes[-1]["type"] == "resumed"
    assert here.welcomes[-1]["commits"] == []
    there.change(inc(2))
    here.change(inc(3))
    await settle()
    await a_second(first, second)
    assert ann.state == here.state == there.state == {"n": 6}
    assert roles(ann) == ["owner"]
    for node in nodes:
        node.honest()


async def test_who_is_removed_is_sent_away_at_once_and_within_a_second_elsewhere(
    nodes: tuple[Node, Node],
) -> None:
    # Rule A15
    first, second = nodes
    ann = await owned(first, bob="editor")
    here = await joined(first, BOB)
    there = await joined(second, BOB)
    ann.change(inc())
    await first.registry.members.remove("s", "bob", by="ann")
    await settle()
    assert [code for code, _ in here.closes] == [4404]
    await a_second(second)
    assert [code for code, _ in there.closes] == [4404]
    assert not ann.closes
    for node in nodes:
        with pytest.raises(SessionNotFound):
            await node.registry.members.admit("s", BOB)
    assert ann.state == {"n": 1}


async def test_what_was_sent_before_is_decided_by_the_new_role(nodes: tuple[Node, Node]) -> None:
    # Rule A14: also on a node that has not heard of it yet: the database knows.
    first, second = nodes
    await owned(first, bob="editor")
    bob = await joined(second, BOB)
    await first.registry.members.put("s", "bob", "viewer", by="ann")
    number = bob.change(put("/n", 7))
    await settle()
    assert bob.rejected[number]["code"] == "forbidden"
    assert (await first.durable())[0] == 0
    # Its number is used up, and the next one is decided as an editor's.
    await first.registry.members.put("s", "bob", "editor", by="ann")
    await a_second(second)
    bob.change(put("/n", 8))
    await settle()
    assert bob.state == {"n": 8}
    second.honest()


async def test_a_request_that_was_let_in_before_is_asked_again(nodes: tuple[Node, Node]) -> None:
    # Rule A14, of HTTP
    first, second = nodes
    await owned(first, bob="editor")
    host, role = await second.registry.members.admit("s", BOB, Action.WRITE)
    request = await second.registry.request(
        host,
        edit=lambda merge: merge.set(("n",), 9),
        user_id="bob",
        role=role,
        access_version=host.stands[2],
    )
    await first.registry.members.put("s", "bob", "viewer", by="ann")
    with pytest.raises(Unavailable, match="changed meanwhile"):
        await host.submit(request)
    assert (await first.durable())[0] == 0
    with pytest.raises(Forbidden):
        await second.registry.members.admit("s", BOB, Action.WRITE)


async def test_who_comes_while_the_roles_change_is_sent_back(nodes: tuple[Node, Node]) -> None:
    first, _ = nodes
    await owned(first, bob="editor")
    entered, go = asyncio.Event(), asyncio.Event()

    async def slowly(work: Work) -> object:
        entered.set()
        await go.wait()
        return await work()

    first.store.next("clients", slowly)
    bob = LineClient(first, "s", "late", user=BOB)
    bob.begin()
    await entered.wait()
    await first.registry.members.remove("s", "bob", by="ann")
    go.set()
    await settle()
    assert [code for code, _ in bob.closes] == [1012]
    await bob.connect()
    assert [code for code, _ in bob.closes] == [4404]


async def test_a_watcher_is_told_and_sent_away_as_well(nodes: tuple[Node, Node]) -> None:
    first, _ = nodes
    ann = await owned(first, bob="viewer")
    watcher = LineClient(first, "s", "", user=BOB)
    watcher.line = type(ann.line)(watcher)
    connection = first.registry.connections.connect(watcher.line)
    connection.phase = type(connection.phase).JOINING
    await first.registry.connections.observe(
        connection, "s", BOB, epoch=None, version=None, backlog=10**6
    )
    await first.registry.members.put("s", "bob", "editor", by="ann")
    await settle()
    assert roles(watcher) == ["viewer", "editor"]
    await first.registry.members.remove("s", "bob", by="ann")
    await settle()
    assert [code for code, _ in watcher.closes] == [4404]


# What a viewer can do


async def test_a_viewer_reads_everything_and_writes_nothing() -> None:
    # Rule A16
    async with running() as node:
        ann = await owned(node, bob="viewer")
        bob = await joined(node, BOB)
        ann.change(put("/n", 1))
        await settle()
        assert bob.state == {"n": 1}
        number = bob.change(put("/n", 2), at=bob.welcomes[0]["server_time"])
        bob.change({"op": "end"})
        await settle()
        assert bob.rejected[number]["code"] == bob.rejected[number + 1]["code"] == "forbidden"
        # Its number is used up, durably.
        client = await node.store.inner.client("s", "c-bob")
        assert client is not None
        assert client.seq == number + 1
        bob.feed({"type": "save_checkpoint", "ref": "r"})
        await settle()
        assert bob.of_type("error")[-1]["code"] == "forbidden"
        assert ann.state == {"n": 1}
        assert not ann.closes
        node.honest()


async def test_a_viewer_disturbs_nobody_by_any_frame() -> None:
    # Rule A17
    async with running() as node:
        ann = await owned(node, bob="viewer")
        heard = len(ann.frames)
        for fields in ({"client_id": "a"}, {"device": {"id": ann.device_id}}):
            bob = LineClient(node, "s", "b", user=BOB)
            bob.begin(**fields)
            await settle()
            assert [code for code, _ in bob.closes] == [4403]
        bob = await joined(node, BOB)
        # As if it had seen versions that were lost: an editor would begin another epoch.
        bob.leave()
        await bob.connect(version=1_000)
        epoch = bob.welcomes[-1]["epoch"]
        assert epoch == ann.welcomes[0]["epoch"]
        for frame in frames_of_a_nuisance(epoch):
            bob.feed(frame)
        await settle()
        assert not ann.closes
        ann.change(inc())
        await settle()
        assert ann.state == {"n": 1}
        told = {frame["type"] for frame in ann.frames[heard:]}
        assert told <= {"devices", "presence", "state_update"}
        node.honest()


def frames_of_a_nuisance(epoch: str) -> list[Frame]:
    change = {"type": "change", "epoch": epoch, "base": 0, "at": 1}
    return [
        *({**change, "seq": seq, "ops": [put("/n", seq)]} for seq in range(1, 300)),
        {**change, "seq": 1, "at": 2, "ops": []},
        {**change, "seq": 900, "ops": [{"op": "end"}]},
        {"type": "request_sync", "epoch": epoch, "version": -4},
        {"type": "save_checkpoint", "ref": "r", "name": "x"},
        {"type": "heartbeat", "t": 1},
        {"type": "nonsense"},
    ]


async def test_presence_is_passed_on_as_often_as_it_may_be_and_the_newest_always() -> None:
    # Rule A17
    limits = Limits(heartbeat_timeout_ms=10**12, max_presence_rate=5)
    async with running(limits=limits) as node:
        ann = await owned(node, bob="viewer")
        bob = await joined(node, BOB)
        await node.clock.pass_(1_000, step=250)
        for number in range(1_000):
            bob.feed({"type": "presence", "data": number})
        await settle()
        assert [frame["data"] for frame in ann.of_type("presence")] == [0, 1, 2, 3, 4]
        await node.clock.pass_(1_000, step=250)
        assert [frame["data"] for frame in ann.of_type("presence")][5:] == [999]
        bob.feed({"type": "presence", "data": "again"})
        await settle()
        assert ann.of_type("presence")[-1]["data"] == "again"


# Owners


async def test_a_session_keeps_an_owner() -> None:
    # Rule A18
    async with running() as node:
        await owned(node, bob="owner")
        registry = node.registry
        await registry.members.put("s", "ann", "viewer", by="bob")
        record = await node.store.inner.session("s")
        assert isinstance(record, SessionRecord)
        assert record.user_id == "bob"
        assert await registry.members.admit("s", ANN) == (registry.hosts["s"], "viewer")
        for refused in (
            registry.members.put("s", "bob", "editor", by="bob"),
            registry.members.remove("s", "bob", by="bob"),
        ):
            with pytest.raises(LastOwner):
                await refused
        await registry.members.put("s", "ann", "owner", by="bob")
        await registry.members.remove("s", "bob", by="bob")
        with pytest.raises(SessionNotFound):
            await registry.members.admit("s", BOB)
        assert (await registry.members.admit("s", ANN))[1] == "owner"
        assert list(await node.store.inner.members("s")) == []
        # In whose list it is.
        assert [one.session_id for one in (await node.store.sessions("ann", None, 9)).items] == [
            "s"
        ]
        assert (await node.store.sessions("bob", None, 9)).items == []


async def test_what_changes_nothing_is_not_written() -> None:
    async with running() as node:
        await owned(node, bob="editor")
        before = node.host().stands
        await node.registry.members.put("s", "bob", "editor", by="ann")
        await node.registry.members.put("s", "ann", "owner", by="ann")
        await node.registry.members.remove("s", "eve", by="ann")
        assert node.host().stands == before


async def test_a_session_has_so_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "_MOST_MEMBERS", 2)
    async with running() as node:
        await owned(node, bob="editor", eve="viewer")
        with pytest.raises(TooManyMembers):
            await node.registry.members.put("s", "zoe", "viewer", by="ann")
        await node.registry.members.put("s", "eve", "editor", by="ann")


async def test_two_who_change_members_at_once_both_do(nodes: tuple[Node, Node]) -> None:
    first, second = nodes
    await owned(first)
    await second.registry.open("s")
    await asyncio.gather(
        first.registry.members.put("s", "bob", "editor", by="ann"),
        second.registry.members.put("s", "eve", "viewer", by="ann"),
    )
    members = await first.store.inner.members("s")
    assert {one.user_id: one.role for one in members} == {"bob": "editor", "eve": "viewer"}


async def test_after_erasure_its_members_are_told_and_nobody_else() -> None:
    # Rule A19
    async with running() as node:
        await owned(node, bob="viewer")
        bob = await joined(node, BOB)
        await node.registry.erase("s")
        assert [code for code, _ in bob.closes] == [4410]
        for user in (ANN, BOB):
            with pytest.raises(SessionErased):
                await node.registry.members.admit("s", user)
            late = LineClient(node, "s", "late", user=user)
            await late.connect()
            assert [code for code, _ in late.closes] == [4410]
        with pytest.raises(SessionNotFound):
            await node.registry.members.admit("s", EVE)
        left = await node.store.inner.session("s")
        assert isinstance(left, Tombstone)
        assert len(left.members) == 2
        assert not any(name in str(left) for name in ("ann", "bob"))


# Strangers


async def test_a_stranger_has_nothing_loaded_and_one_row_read() -> None:
    # Rule A3
    async with running() as node:
        await owned(node, bob="viewer")
        for name in ("s", "missing"):
            node.store.calls.clear()
            with pytest.raises(SessionNotFound, match="there is no such session"):
                await node.registry.members.admit(name, EVE)
            assert node.store.calls == ["standings"]
            node.store.calls.clear()
            stranger = LineClient(node, name, "c-eve", user=EVE)
            await stranger.connect(create=None)
            assert stranger.closes == [(4404, "there is no such session")]
            assert node.store.calls == ["standings"]
        node.registry.hosts.clear()
        node.store.calls.clear()
        with pytest.raises(SessionNotFound, match="there is no such session"):
            await node.registry.members.admit("s", EVE)
        assert node.store.calls == ["standings"]
        # Who is a member and is here has nothing read at all.
        await node.registry.members.admit("s", BOB)
        node.store.calls.clear()
        assert (await node.registry.members.admit("s", BOB))[1] == "viewer"
        assert node.store.calls == []


# An application's word


class Office:
    """Whoever is of the office may see all; auditors what they are told; else members."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, SessionAccess, Action]] = []
        self.answers: dict[str, Answer] = {}

    async def __call__(self, user: User, session: SessionAccess, action: Action) -> Answer:
        self.asked.append((user.id, session, action))
        return self.answers.get(user.id)


async def test_an_application_says_who_may_do_what() -> None:
    # Rule A20
    office = Office()
    async with running(authorize=office) as node:
        await owned(node, bob="editor")
        registry = node.registry
        assert (await registry.members.admit("s", BOB, Action.WRITE))[1] == "editor"
        told: list[tuple[Answer, str]] = [("viewer", "viewer"), ("owner", "owner"), (True, "owner")]
        for answer, role in told:
            office.answers["eve"] = answer
            assert (await registry.members.admit("s", EVE))[1] == role
        office.answers["eve"] = "viewer"
        with pytest.raises(Forbidden):
            await registry.members.admit("s", EVE, Action.WRITE)
        for user in (ANN, BOB, EVE):
            office.answers[user.id] = False
            with pytest.raises(SessionNotFound):
                await registry.members.admit("s", user)


async def test_an_application_may_say_it_of_each_action() -> None:
    # Rule A20; a plain function, too.
    allowed = {Action.READ, Action.ERASE}

    def authorize(user: User, session: SessionAccess, action: Action) -> bool:
        del user, session
        return action in allowed

    async with running(authorize=authorize) as node:
        await owned(node)
        assert (await node.registry.members.admit("s", EVE, Action.ERASE))[1] == "viewer"
        with pytest.raises(Forbidden):
            await node.registry.members.admit("s", EVE, Action.WRITE)
        allowed.add(Action.WRITE)
        assert (await node.registry.members.admit("s", EVE, Action.WRITE))[1] == "editor"
        with pytest.raises(Forbidden):
            await node.registry.members.admit("s", EVE, Action.MANAGE)


async def test_an_application_is_asked_the_same_of_what_is_not_there() -> None:
    # Rule A20
    office = Office()
    office.answers["eve"] = "owner"
    async with running(authorize=office) as node:
        await owned(node)
        host, _ = await node.registry.members.admit("s", EVE)
        assert office.asked[-1][1] == access_to(host.room.recorded, None)
        office.asked.clear()
        with pytest.raises(SessionNotFound):
            await node.registry.members.admit("missing", EVE)
        nobodys = SessionAccess(session_id="missing", user_id="", role=None, schema=None)
        assert office.asked == [("eve", nobodys, Action.READ)]


async def test_an_application_is_asked_again_when_members_change() -> None:
    # Rule A20
    office = Office()
    async with running(authorize=office) as node:
        await owned(node)
        office.answers |= {"bob": "editor", "eve": "viewer"}
        bob, eve = await joined(node, BOB), await joined(node, EVE)
        office.answers |= {"bob": "viewer", "eve": False}
        await node.registry.members.put("s", "zoe", "viewer", by="ann")
        await settle()
        assert roles(bob) == ["editor", "viewer"]
        assert [code for code, _ in eve.closes] == [4404]


async def test_an_application_that_fails_lets_nobody_stay() -> None:
    office = Office()
    async with running(authorize=office) as node:
        await owned(node, bob="editor")
        bob = await joined(node, BOB)
        office.answers["bob"] = "boss"
        with pytest.raises(TypeError, match="expected authorize to return"):
            await node.registry.members.admit("s", BOB)
        await node.registry.members.put("s", "zoe", "viewer", by="ann")
        await settle()
        assert [code for code, _ in bob.closes] == [1012]


async def test_with_a_bus_other_nodes_need_not_wait_for_the_second() -> None:
    # Rule A14
    store, bus = MemoryStore(), LocalBus()
    async with running(store, bus=bus) as first, running(store, bus=bus) as second:
        second.store.next("close", nothing)
        await owned(first, bob="viewer")
        bob = await joined(second, BOB)
        await first.registry.members.put("s", "bob", "editor", by="ann")
        await settle()
        assert roles(bob) == ["viewer", "editor"]


async def test_an_application_gives_a_token_of_one_session_no_more_than_it_is_for() -> None:
    # Rules A20 and A34
    office = Office()
    office.answers["ann"] = True
    async with running(authorize=office) as node:
        await owned(node)
        link = User("ann", session_id="s", role="viewer")
        assert (await node.registry.members.admit("s", link))[1] == "viewer"
        for action in (Action.WRITE, Action.MANAGE, Action.ERASE):
            with pytest.raises(Forbidden):
                await node.registry.members.admit("s", link, action)


async def test_a_viewer_makes_no_list_of_devices_long() -> None:
    # Rule A17
    async with running() as node:
        ann = await owned(node, bob="viewer")
        stays = await joined(node, BOB)
        for number in range(60):
            passing = LineClient(node, "s", f"p{number}", device_id=f"d{number}", user=BOB)
            await passing.connect()
            passing.leave()
            await node.clock.pass_(10, step=10)
        await node.clock.pass_(2_000, step=250)
        told = ann.of_type("devices")[-1]["devices"]
        assert len(told) == 1 + 1 + 20
        names = {one["id"] for one in told}
        assert {ann.device_id, stays.device_id, "d59", "d40"} <= names
        assert "d39" not in names
        assert len(await node.store.devices("s")) == 62

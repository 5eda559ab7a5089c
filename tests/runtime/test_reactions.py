"""Back-end code that reacts to commits: in order, at least once, on one node at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from reattach import Reattach
from reattach.core.limits import Limits
from reattach.errors import BadSetting, StoreUnavailable
from reattach.runtime.reactions import Reaction, Reactions
from reattach.runtime.registry import Registry
from reattach.sessions import Commit
from reattach.store.memory import MemoryStore
from tests.runtime.rig import FaultyStore, Gate, HandClock, Node, Work, inc, settle

Heard = list[tuple[str, int]]
"""By whom, and which version."""


async def nothing(_: Work) -> None:
    """The store stays open: other nodes have it, too."""


class World:
    """A database, its time, and what the code behind the nodes heard."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.store = MemoryStore(now=self.clock.now)
        self.heard: Heard = []
        self.busy = 0
        self.most_busy = 0
        self.during: Callable[[str, int], Awaitable[None]] | None = None
        """What the code does, besides noting that it was called."""

    @property
    def versions(self) -> list[int]:
        return [version for _, version in self.heard]

    @asynccontextmanager
    async def node(self, name: str) -> AsyncIterator[Node]:
        async def react(session_id: str, commit: Commit) -> None:
            del session_id
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            try:
                if self.during is not None:
                    await self.during(name, commit.version)
                self.heard.append((name, commit.version))
            finally:
                self.busy -= 1

        store = FaultyStore(self.store)
        store.spoil("close", with_=nothing_instead)
        registry = Registry(
            store,
            Limits(heartbeat_timeout_ms=10**12),
            self.clock,
            store_timeout_ms=5_000,
            idle_session_ms=60_000,
            reactions=[Reaction("count", None, react)],
        )
        registry.nodes.name = registry._reactions._owner = name
        await registry.start()
        node = Node(store, registry, self.clock)
        try:
            yield node
        finally:
            await registry.stop(timeout_ms=500)
        node.honest()


async def nothing_instead(work: Work) -> None:
    await nothing(work)


@pytest.fixture
def world() -> World:
    return World()


async def write(node: Node, times: int) -> None:
    for _ in range(times):
        await node.sessions.update("s", [inc()])
    await settle()


async def test_every_commit_comes_in_order_and_once(world: World) -> None:
    async with world.node("a") as node:
        await node.sessions.create({"n": 0}, user_id="u", session_id="s")
        await write(node, 5)
        assert world.versions == [1, 2, 3, 4, 5]
        await world.clock.pass_(20_000, step=500)
        assert world.versions == [1, 2, 3, 4, 5]


async def test_where_it_is_outlives_the_server(world: World) -> None:
    async with world.node("a") as node:
        await node.sessions.create({"n": 0}, user_id="u", session_id="s")
        await write(node, 3)
    async with world.node("b") as node:
        await world.clock.pass_(2_000, step=500)
        await write(node, 2)
    assert world.heard == [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("b", 5)]


async def test_what_nobody_reacted_to_is_found_by_another_node(world: World) -> None:
    """The node that made the commit died before it could: the commit's transaction said so."""
    async with world.node("a") as dying, world.node("b"):
        await dying.registry._reactions.stop()
        await dying.sessions.create({"n": 0}, user_id="u", session_id="s")
        await write(dying, 3)
        assert world.heard == []
        await world.clock.pass_(1_500, step=500)
        assert world.heard == [("b", 1), ("b", 2), ("b", 3)]


async def test_a_node_that_dies_in_the_middle_keeps_others_waiting_for_its_lease(
    world: World,
) -> None:
    async def stuck(name: str, version: int) -> None:
        if (name, version) == ("a", 2):
            await asyncio.Event().wait()

    world.during = stuck
    async with world.node("a") as dying, world.node("b"):
        await dying.sessions.create({"n": 0}, user_id="u", session_id="s")
        await write(dying, 3)
        assert world.heard == [("a", 1)]
        # Killed: it neither renews its lease nor lets go of it.
        dying.store.spoil("advance_reaction", "lease_reaction", with_=dead)
        await world.clock.pass_(10_000, step=500)
        assert world.heard == [("a", 1)]
        await world.clock.pass_(10_000, step=500)
        # The first one may come again: whether it was dealt with had yet to be written.
        assert world.heard[0] == ("a", 1)
        assert world.heard[-2:] == [("b", 2), ("b", 3)]
        assert world.heard[1:-2] in ([], [("b", 1)])
        assert world.most_busy == 1


async def dead(_: Work) -> None:
    raise StoreUnavailable("it is dead")


async def test_one_node_at_a_time_however_long_it_takes(world: World) -> None:
    done = asyncio.Event()

    async def slow(_: str, version: int) -> None:
        if version == 1:
            await done.wait()

    world.during = slow
    async with world.node("a") as node, world.node("b") as other:
        await node.sessions.create({"n": 0}, user_id="u", session_id="s")
        await write(node, 1)
        await write(other, 1)
        await world.clock.pass_(60_000, step=500)
        assert world.busy == 1
        done.set()
        await settle()
        assert world.heard == [("a", 1), ("a", 2)]
        assert world.most_busy == 1


async def test_who_cannot_renew_its_lease_stops(world: World) -> None:
    """Then another one may be at it."""
    async with world.node("a") as node:
        await node.sessions.create({"n": 0}, user_id="u", session_id="s")
        never = asyncio.Event()

        async def stuck(_: str, __: int) -> None:
            await never.wait()

        world.during = stuck
        await write(node, 1)
        assert world.busy == 1
        mend = node.store.spoil("advance_reaction", "due_reactions", with_=dead)
        await world.clock.pass_(14_000, step=500)
        assert world.busy == 0
        mend()
        world.during = None
        await world.clock.pass_(10_000, step=500)
        assert world.heard == [("a", 1)]


async def test_who_has_lost_its_lease_stops(world: World) -> None:
    never = asyncio.Event()

    async def stuck(_: str, __: int) -> None:
        await never.wait()

    world.during = stuck
    async with world.node("a") as node:
        await node.sessions.create({"n": 0}, user_id="u", session_id="s")
        await write(node, 1)
        assert world.busy == 1
        await node.sessions.erase("s")
        await world.clock.pass_(5_000, step=500)
        assert world.busy == 0
        assert world.heard == []


async def test_what_raises_is_told_and_comes_again(world: World) -> None:
    left = 3

    async def fails(_: str, version: int) -> None:
        nonlocal left
        if version == 2 and left:
            left -= 1
            raise RuntimeError("the search engine is away")

    world.during = fails
    with capture_logs() as logs:
        async with world.node("a") as node:
            await node.sessions.create({"n": 0}, user_id="u", session_id="s")
            await write(node, 3)
            assert world.versions == [1]
            await world.clock.pass_(20_000, step=250)
            assert world.versions == [1, 2, 3]
    errors = [entry for entry in logs if entry["log_level"] == "error"]
    assert [(entry["version"], entry["after_ms"]) for entry in errors] == [
        (2, 1_000),
        (2, 2_000),
        (2, 4_000),
    ]


async def test_what_stops_with_the_server_goes_on_at_once_elsewhere(world: World) -> None:
    async def stuck(name: str, version: int) -> None:
        if (name, version) == ("a", 2):
            await asyncio.Event().wait()

    world.during = stuck
    async with world.node("a") as node:
        await node.sessions.create({"n": 0}, user_id="u", session_id="s")
        await write(node, 2)
    async with world.node("b"):
        await world.clock.pass_(1_500, step=500)
    assert world.heard == [("a", 1), ("b", 2)]


async def test_a_node_that_stops_as_it_takes_hold_lets_go(world: World) -> None:
    gate = Gate()
    async with world.node("a") as node:
        await node.sessions.create({"n": 0}, user_id="u", session_id="s")
        node.store.next("lease_reaction", gate)
        await write(node, 1)
        await gate.reached.wait()
        asyncio.get_running_loop().call_later(0.05, gate.open)
    assert gate.passed.is_set()
    async with world.node("b"):
        await world.clock.pass_(1_500, step=500)
    assert world.heard == [("b", 1)]


async def test_many_sessions_are_worked_on_together_but_not_all(world: World) -> None:
    done = asyncio.Event()

    async def slow(_: str, __: int) -> None:
        await done.wait()

    world.during = slow
    async with world.node("a") as node:
        for n in range(40):
            await node.sessions.create({"n": 0}, user_id="u", session_id=f"s{n}")
            await node.sessions.update(f"s{n}", [inc()])
        await settle()
        assert world.busy == 16
        done.set()
        await settle(400)
        assert len(world.heard) == 40


def test_a_reaction_is_to_the_sessions_of_its_schema() -> None:
    async def react(_: str, __: Commit) -> None:
        """Nothing."""

    all_ = [Reaction("a", "order", react), Reaction("b", None, react), Reaction("c", "bill", react)]
    reactions = Reactions(MemoryStore(), HandClock(), "n", all_)
    assert reactions.names("order") == ("a", "b")
    assert reactions.names("bill") == ("b", "c")
    assert reactions.names(None) == ("b",)


def test_a_name_is_one_reactions_alone() -> None:
    reattach = Reattach(store=MemoryStore())

    @reattach.on_commit(name="index")
    async def react(_: str, __: Commit) -> None:
        """Nothing."""

    with pytest.raises(BadSetting, match="another name than 'index'"):
        reattach.on_commit(name="index")(react)
    assert reattach.on_commit()(react) is react
    assert [one.name for one in reattach._reactions] == [
        "index",
        f"{__name__}.test_a_name_is_one_reactions_alone.<locals>.react",
    ]


async def test_an_application_reacts() -> None:
    reattach = Reattach(store=MemoryStore())
    heard: asyncio.Queue[int] = asyncio.Queue()

    @reattach.on_commit()
    async def react(session_id: str, commit: Commit) -> None:
        # It may write itself; what it writes comes to it, too.
        if commit.version == 1:
            await reattach.sessions.update(session_id, [inc(10)])
        heard.put_nowait(commit.version)

    async with reattach:
        await reattach.sessions.create({"n": 0}, user_id="u", session_id="s")
        await reattach.sessions.update("s", [inc()])
        assert [await asyncio.wait_for(heard.get(), 5) for _ in range(2)] == [1, 2]
        assert (await reattach.sessions.get("s")).state == {"n": 11}

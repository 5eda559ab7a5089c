"""Streamed text: few commits, every character once, wherever others type and the database fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from reattach.errors import ChangeRefused
from reattach.wire import StateUpdate
from tests.core.rig import splice
from tests.runtime.rig import Node, answer_lost, done_in_silence, down, running, settle


@asynccontextmanager
async def flowing(node: Node) -> AsyncIterator[None]:
    """Time passes by itself."""

    async def flow() -> None:
        while True:
            await node.clock.pass_(10)
            await asyncio.sleep(0.001)

    task = asyncio.create_task(flow())
    try:
        yield
    finally:
        task.cancel()


async def test_tokens_are_gathered_and_none_is_lost() -> None:
    async with running() as node, flowing(node):
        await node.client("s", "c", state={"answer": ""})
        words = [f"w{n} " for n in range(500)]
        async with node.sessions.text("s", "/answer") as out:
            for word in words:
                await out.write(word)
        found = await node.sessions.get("s")
        assert found.state["answer"] == "".join(words)
        assert found.version < 10


async def test_a_missing_text_begins_empty() -> None:
    async with running() as node, flowing(node):
        await node.client("s", "c", state={})
        async with node.sessions.text("s", "/answer") as out:
            await out.write("x")
        assert (await node.sessions.get("s")).state == {"answer": "x"}


async def test_there_are_at_most_twenty_commits_a_second() -> None:
    async with running() as node, flowing(node):
        await node.client("s", "c", state={"answer": ""})
        begun = node.clock.monotonic()
        async with node.sessions.text("s", "/answer") as out:
            while node.clock.monotonic() < begun + 1_000:
                await out.write("x")
                await asyncio.sleep(0)
        spent = node.clock.monotonic() - begun
        assert (await node.sessions.get("s")).version <= spent / 50 + 2


async def test_it_goes_on_behind_its_own_last_word_whoever_types_around_it() -> None:
    async with running() as node, flowing(node):
        await node.client("s", "c", state={"answer": "[]"})
        async with node.sessions.text("s", "/answer") as out:
            await out.write("one ")
            async for _ in node.sessions.changes("s", after=0):
                break
            await node.sessions.update("s", [splice("/answer", 0, 0, ">>")])
            end = len((await node.sessions.get("s")).state["answer"])
            await node.sessions.update("s", [splice("/answer", end, 0, "<<")])
            await out.write("two ")
        assert (await node.sessions.get("s")).state["answer"] == ">>[]one two <<"


@pytest.mark.parametrize("fault", [down, answer_lost, done_in_silence])
async def test_a_batch_that_is_lost_is_written_once(fault: object) -> None:
    async with running(timeout_ms=20) as node, flowing(node):
        await node.client("s", "c", state={"answer": ""})
        assert callable(fault)
        async with node.sessions.text("s", "/answer") as out:
            for n in range(30):
                if n % 5 == 0:
                    node.store.next("append", fault())
                await out.write(f"{n} ")
                await asyncio.sleep(0.005)
        text = (await node.sessions.get("s")).state["answer"]
        assert text == "".join(f"{n} " for n in range(30))


async def test_a_session_that_is_opened_anew_in_between_gets_every_word_once() -> None:
    async with running() as node, flowing(node):
        await node.client("s", "c", state={"answer": ""})
        async with node.sessions.text("s", "/answer") as out:
            for n in range(20):
                await out.write(f"{n} ")
                await settle(n)
                if n % 4 == 0:
                    (await node.registry.open("s")).close(1012, "of some reason")
                await asyncio.sleep(0.005)
        text = (await node.sessions.get("s")).state["answer"]
        assert text == "".join(f"{n} " for n in range(20))


async def test_what_refuses_it_is_raised() -> None:
    async with running() as node, flowing(node):
        await node.client("s", "c", state={"answer": 5})
        with pytest.raises(ChangeRefused, match="expected a text"):
            async with node.sessions.text("s", "/answer") as out:
                await out.write("x")


async def test_its_commits_are_the_servers_on_behalf_of_a_user() -> None:
    async with running() as node, flowing(node):
        await node.client("s", "c", state={"answer": ""})
        async with node.sessions.text("s", "/answer", user_id="model") as out:
            await out.write("x")
        async for commit in node.sessions.changes("s", after=0):
            assert isinstance(commit, StateUpdate)
            assert (commit.by.source, commit.by.user_id) == ("server", "model")
            assert commit.patch == [{"op": "str_ins", "path": "/answer", "pos": 0, "str": "x"}]
            break

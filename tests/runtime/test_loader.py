"""What a node says of sessions that it cannot read."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from reattach.errors import StoreError, Unavailable
from tests.runtime.rig import Node, down, running, settle

READS = ("load_many", "standings", "session", "check")


async def crowd(node: Node) -> None:
    """Fifty sessions are wanted, and none can be had."""
    wanted = [node.registry.open(f"s{n}") for n in range(50)]
    wanted += [node.registry.loader.standing(f"s{n}", "u") for n in range(50)]  # type: ignore[misc]
    for answer in await asyncio.gather(*wanted, return_exceptions=True):
        assert isinstance(answer, Unavailable)


async def test_an_outage_is_said_once_and_not_by_every_session() -> None:
    """Regression: an ERROR for each session that somebody wanted meanwhile."""
    async with running() as node:
        with capture_logs() as logs:
            mend = node.store.spoil(*READS, with_=down())
            for _ in range(3):
                await crowd(node)
                await node.clock.pass_(1_500, step=250)
            mend()
            await node.clock.pass_(2_000, step=250)
        told = [(entry["log_level"], entry["event"][:30]) for entry in logs]
        assert told == [
            ("error", "the database does not answer: "),
            ("warning", "the database is back: what wai"),
        ]


async def test_a_session_that_alone_cannot_be_read_is_reported() -> None:
    async with running() as node:
        for fault in (down(), down(StoreError("it is damaged"))):
            node.store.next("load_many", fault)
            with capture_logs() as logs:
                with pytest.raises(Unavailable):
                    await node.registry.open("s1")
                await settle()
            assert [(entry["log_level"], entry["session"]) for entry in logs] == [("error", "s1")]

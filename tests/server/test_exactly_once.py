"""A change takes effect once: whatever is lost, sent again, skipped or sent from another time."""

from __future__ import annotations

import asyncio
import random

import pytest
from websockets.exceptions import ConnectionClosed

from tests.conftest import Serve
from tests.support.database import behind
from tests.support.server import ServerProcess
from tests.support.wire_client import Frame, WireClient, all_settled

pytestmark = pytest.mark.faults


@pytest.fixture
async def server(serve: Serve) -> ServerProcess:
    return await serve(app=None)


def inc(by: int = 1) -> Frame:
    return {"op": "inc", "path": "/n", "by": by}


def refused() -> Frame:
    return {"op": "set", "path": "/no/such/parent", "value": 1}


async def test_every_acknowledgement_is_lost(server: ServerProcess) -> None:
    """Each client closes as soon as it has sent, and finds out by the next welcome's `seq`."""
    chance = random.Random(7)

    async def forgetful(name: str, by: int) -> WireClient:
        client = WireClient(server.ws_url, "s", name, create={"n": 0})
        for _ in range(25):
            await come(client)
            await client.change(inc(by), *([refused()] if chance.random() < 0.2 else []))
            # In good order the server has read the change; by a reset it may have or not.
            await client.disconnect(abruptly=chance.random() < 0.5)
        await come(client)
        await client.settled()
        return client

    async def come(client: WireClient) -> None:
        """Connects, again where another node is deciding what it had sent to that one."""
        while True:
            try:
                await client.connect()
            except ConnectionClosed:
                assert client.closes[-1][0] == 1012
            else:
                return

    clients = await asyncio.gather(forgetful("a", 1), forgetful("b", 100))
    expected = 0
    for client, by in zip(clients, (1, 100), strict=True):
        assert client.given == 25
        assert len(client.committed) + len(client.rejected) == 25
        expected += by * len(client.committed)
        # Nearly all were learned from welcomes: their acknowledgements never came.
        heard = [
            f for f in client.of_type("state_update") if f["by"]["client_id"] == client.client_id
        ]
        assert len(heard) < 25
    version = max(client.version or 0 for client in clients)
    for client in clients:
        await client.at(version)
        assert client.state["n"] == expected
        await client.close()


async def test_a_number_that_was_committed_gets_nothing(server: ServerProcess) -> None:
    async with WireClient(server.ws_url, "s", "a", create={"n": 0}) as a:
        changes = []
        for _ in range(3):
            number = a.given + 1
            await a.change(inc())
            changes.append(a._known_at[number])
            await a.settled()
        frames = len(a.frames)
        for seq, at in enumerate(changes, 1):
            await a.send(type="change", seq=seq, epoch=a.epoch, base=0, at=at, ops=[inc()])
        await a.change(inc())
        await a.settled()
        await a.echo()
        assert [frame["type"] for frame in a.frames[frames:]].count("state_update") == 1
        assert not a.of_type("error", "rejected")
        assert a.state == {"n": 4}


async def test_a_number_that_was_refused_gets_rejected_again(server: ServerProcess) -> None:
    async with WireClient(server.ws_url, "s", "a", create={"n": 0}) as a:
        await a.change(refused())
        await a.change(inc())
        await a.change(refused())
        await a.settled()
        ats = dict(a._known_at)
        a.sent_twice = {1, 3}
        for again in range(2):
            if again:
                # It says that it knows of them, so the server has not read them with its welcome.
                await a.disconnect()
                await server.restart()
                await a.connect()
            known = len(a.of_type("rejected"))
            for seq in (1, 2, 3):
                ops = [inc()] if seq == 2 else [refused()]
                await a.send(type="change", seq=seq, epoch=a.epoch, base=0, at=ats[seq], ops=ops)
            await a.told(lambda _, n=known: len(a.of_type("rejected")) >= n + 2, what="refusals")  # type: ignore[misc]
            await a.echo()
            told = [frame["seq"] for frame in a.of_type("rejected")[known:]]
            assert sorted(told) == [1, 3]
        assert a.state == {"n": 1}
        assert not a.of_type("error")


@pytest.mark.parametrize("first", ["committed", "refused"])
@pytest.mark.parametrize("newest", [True, False])
async def test_a_number_with_another_at_was_reused(
    server: ServerProcess, first: str, *, newest: bool
) -> None:
    """A cloned profile, a disk that went back in time: the number is another change's."""
    async with WireClient(server.ws_url, "s", "a", create={"n": 0}) as a:
        await a.change(inc() if first == "committed" else refused())
        if not newest:
            await a.change(inc())
        await a.settled()
        before = dict(a.state)
        await a.send(
            type="change", seq=1, epoch=a.epoch, base=0, at=a._known_at[1] + 1, ops=[inc(100)]
        )
        error = await a.told(lambda f: f["type"] == "error", what="an error")
        assert error["code"] == "seq_reused"
        await a.change(inc())
        await a.settled()
        assert a.state == {"n": before.get("n", 0) + 1}
        assert len(a.of_type("error")) == 1
        assert len(a.of_type("rejected")) == (first == "refused")


async def test_a_skipped_number_is_told_once_and_waited_for(server: ServerProcess) -> None:
    async with (
        WireClient(server.ws_url, "s", "a", create={"n": 0}) as a,
        WireClient(server.ws_url, "s", "b") as b,
    ):
        numbers = [a.put(inc(10**n)) for n in range(5)]
        frames = [a.outbox[number] for number in numbers]
        for frame in (frames[1], frames[2], frames[4], frames[3]):
            await a.send(**frame)
        await a.echo()
        await b.change({"op": "set", "path": "/b", "value": 1})
        await b.settled()
        await a.echo()
        gaps = a.of_type("error")
        assert [(one["code"], one["expected"]) for one in gaps] == [("sequence_gap", 1)]
        assert a.state == {"n": 0, "b": 1}
        for frame in frames:
            await a.send(**frame)
        await a.settled()
        assert a.state == b.state | {"n": 11111}
        # A second gap is a second one.
        numbers = [a.put(inc()) for _ in range(2)]
        await a.send(**a.outbox[numbers[1]])
        await a.told(lambda f: f.get("expected") == 6, what="the second gap")
        await a.send(**a.outbox[numbers[0]])
        await a.send(**a.outbox[numbers[1]])
        await a.settled()
        assert len(a.of_type("error")) == 2
        assert a.state["n"] == 11113


async def test_a_change_of_an_earlier_epoch_merges_from_the_lesser_version(
    server: ServerProcess,
) -> None:
    async with (
        WireClient(server.ws_url, "s", "a", create={"t": "0"}) as a,
        WireClient(server.ws_url, "s", "b", new_epochs=True) as b,
    ):
        for text in "12":
            await a.change({"op": "set", "path": "/t", "value": text})
        await a.settled()
        await b.at(2)
        old = a.epoch
        seer = WireClient(server.ws_url, "s", "seer", new_epochs=True)
        await seer.connect(epoch=old, version=9)
        assert seer.epoch != old
        await b.closed()
        await b.connect()
        # In the new epoch, above the version that it began with.
        await b.change({"op": "set", "path": "/t", "value": "new"})
        await b.settled()
        # A change that was made at version 9 of the old one: what b wrote is concurrent with it,
        # though 9 is greater than all versions there are.
        offline = WireClient(server.ws_url, "s", "offline", new_epochs=True)
        offline.epoch, offline.version = old, 9
        offline.put({"op": "set", "path": "/t", "value": "old"})
        offline.put({"op": "set", "path": "/mine", "value": 1})
        offline.version = None
        await offline.connect(epoch=old, version=2)
        await offline.settled()
        await b.at(5)
        update = next(f for f in b.of_type("state_update") if f["by"]["client_id"] == "offline")
        conflict = update["conflicts"][0]
        assert {conflict["kept"]["value"], conflict["lost"]["value"]} == {"old", "new"}
        assert b.state == {"t": conflict["kept"]["value"], "mine": 1}
        for client in (seer, offline):
            await client.close()


async def test_a_base_that_is_no_version_is_refused(server: ServerProcess) -> None:
    async with WireClient(server.ws_url, "s", "a", create={"n": 0}) as a:
        await a.change(inc(), base=7)
        await a.settled()
        assert a.rejected[1]["code"] == "bad_base"


async def test_a_version_ahead_of_the_log_begins_an_epoch(server: ServerProcess) -> None:
    """A backup was restored: a client comes that has seen more than there is."""
    async with (
        WireClient(server.ws_url, "s", "a", create={"n": 0}, new_epochs=True) as a,
        WireClient(server.ws_url, "s", "b", new_epochs=True) as b,
    ):
        for _ in range(5):
            await a.change(inc())
        await a.settled()
        await b.at(5)
        old = a.epoch
        await server.kill()
        # As a backup of version 3 has it.
        behind(server).execute(
            "DELETE FROM commits WHERE version > 3",
            "DELETE FROM states WHERE version > 3",
            "UPDATE sessions SET version = 3",
            "UPDATE clients SET seq = 3 WHERE client_id = 'a'",
            "UPDATE clients SET at = (SELECT client_at FROM commits WHERE version = 3)"
            " WHERE client_id = 'a'",
        )
        await server.start()
        lagging = WireClient(server.ws_url, "s", "lagging", new_epochs=True)
        await lagging.connect()
        assert (lagging.epoch, lagging.version) == (old, 3)
        welcome = await b.connect()
        assert welcome["type"] == "initial_state"
        assert b.epoch != old
        assert (welcome["epoch_version"], welcome["version"]) == (3, 3)
        assert b.state == {"n": 3}
        # Whoever was connected is sent away, and comes back to all of it.
        assert (await lagging.closed())[0] == 1012
        back = await lagging.connect()
        assert back["type"] == "initial_state"
        assert lagging.epoch == b.epoch
        # It is durable: it stays through a restart.
        await server.restart()
        welcome = await b.connect()
        assert welcome["type"] == "resumed"
        assert lagging.epoch == welcome["epoch"] == b.epoch
        await b.change(inc())
        await b.settled()
        assert b.state == {"n": 4}
        await lagging.close()


async def test_a_client_that_starts_over_sends_all_its_changes(server: ServerProcess) -> None:
    """Its record of what was decided is behind: it sends again what is above `seq`, and no less."""
    async with WireClient(server.ws_url, "s", "a", create={"n": 0}) as a:
        for _ in range(4):
            await a.change(inc())
        await a.settled()
        await a.disconnect()
        a.outbox = {}
        for _ in range(3):
            a.put(inc(10))
        welcome = await a.connect(seq=0, epoch=None, version=None)
        assert (welcome["seq"], welcome["seq_at"]) == (4, a._known_at[4])
        await a.settled()
        assert a.state == {"n": 34}


async def test_a_newer_connection_takes_over_with_everything(server: ServerProcess) -> None:
    """The older connection is closed with 4409, and what both sent is decided once."""
    async with WireClient(server.ws_url, "s", "a", create={"n": 0}) as a:
        twin = WireClient(server.ws_url, "s", "a")
        for _ in range(20):
            await a.change(inc())
        twin.given, twin._known_at = a.given, a._known_at
        twin.outbox = dict(a.outbox)
        await twin.connect()
        try:
            code, _ = await a.closed()
            assert code == 4409
        except ConnectionClosed:
            pass
        await twin.settled()
        assert twin.state == {"n": 20}
        await twin.close()


async def test_many_clients_of_one_session_in_one_batch(server: ServerProcess) -> None:
    clients = [WireClient(server.ws_url, "s", f"c{n}", create={"n": 0}) for n in range(12)]
    for client in clients:
        await client.connect()

    async def work(client: WireClient) -> None:
        for _ in range(30):
            await client.change(inc())

    await asyncio.gather(*map(work, clients))
    await all_settled(clients)
    for client in clients:
        await client.at(360)
        assert client.state == {"n": 360}
        await client.close()

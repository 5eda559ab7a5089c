"""The host of an open session and its registry: who is let in, who is told, who is sent away."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from reattach.core.limits import Limits
from reattach.errors import Unavailable
from reattach.runtime.access import Action, User
from reattach.runtime.host import Host
from reattach.store.base import SessionRecord
from tests.runtime.rig import (
    Gate,
    LineClient,
    Node,
    answer_lost,
    down,
    inc,
    put,
    running,
    settle,
    silent,
)
from tests.support.waiting import until


async def row(node: Node, session_id: str = "s") -> SessionRecord:
    found = await node.store.inner.session(session_id)
    assert isinstance(found, SessionRecord)
    return found


# Loading: what was not loaded is never written


async def test_a_failed_load_writes_nothing_and_works_later() -> None:
    async with running() as node:
        first = await node.client(client_id="a")
        first.change(inc())
        await settle()
        first.leave()
        await settle()
        node.registry.hosts.clear()
        asked = len(node.store.asked)
        node.store.next("load_many", down(), down())
        await first.connect()
        assert first.closes[0][0] == 1012
        assert first.of_type("error")[-1]["code"] == "unavailable"
        assert first.of_type("error")[-1]["retry_after_ms"] > 0
        with pytest.raises(Unavailable):
            await node.sessions.update("s", [inc()])
        assert len(node.store.asked) == asked
        await first.connect()
        first.change(inc())
        await settle()
        assert first.state == {"n": 2}
        assert await node.fresh() == {"n": 2}


async def test_a_load_that_times_out_writes_nothing_and_works_later() -> None:
    async with running(timeout_ms=50) as node:
        first = await node.client(client_id="a")
        first.change(inc())
        await settle()
        first.leave()
        await settle()
        node.registry.hosts.clear()
        asked = len(node.store.asked)
        node.store.next("load_many", silent(), silent())
        first.begin()
        # What it sends before its welcome is held, and goes with the connection.
        first.feed(first.outbox[first.put(inc())])
        await until(lambda: bool(first.closes), within=5, what="its end")
        assert first.closes[0][0] == 1012
        with pytest.raises(Unavailable):
            await node.sessions.update("s", [inc(100)])
        assert len(node.store.asked) == asked
        assert (await row(node)).version == 1
        await first.connect()
        await settle()
        assert first.state == {"n": 2}


async def test_a_load_that_is_answered_after_its_time_opens_nothing() -> None:
    async with running(timeout_ms=50) as node:
        first = await node.client(client_id="a")
        first.leave()
        await settle()
        node.registry.hosts.clear()
        gate = Gate()
        node.store.next("load_many", gate)
        first.begin()
        await until(lambda: bool(first.closes), within=5, what="its end")
        gate.open()
        await settle()
        assert not node.registry.hosts


async def test_reading_a_client_fails_while_it_joins() -> None:
    async with running() as node:
        first = await node.client(client_id="a")
        first.change(put("/no/parent", 1))
        await settle()
        first.leave()
        await settle()
        node.store.next("clients", down())
        await first.connect()
        assert first.closes[0][0] == 1012
        assert first.of_type("error")[-1]["code"] == "unavailable"
        await first.connect()
        assert first.closes == []
        first.change(inc())
        await settle()
        assert first.state == {"n": 1}


async def test_a_creation_whose_answer_is_lost() -> None:
    async with running() as node:
        node.store.next("append", answer_lost())
        first = await node.client(client_id="a", state={"n": 5})
        assert first.closes[0][0] == 1012
        assert not first.welcomes
        await first.connect()
        assert first.state == {"n": 5}


# Durable first


async def test_while_a_batch_is_in_flight_nothing_of_it_is_shown() -> None:
    async with running() as node:
        a = await node.client(client_id="a")
        b = await node.client(client_id="b")
        gate = Gate()
        node.store.next("append", gate)
        a.change(inc())
        a.change(put("/no/parent", 1))
        await gate.reached.wait()
        late = LineClient(node, "s", "late")
        node.clients.append(late)
        late.begin()
        read = asyncio.create_task(node.sessions.get("s"))
        updated = asyncio.create_task(node.sessions.update("s", [inc()]))
        b.feed({"type": "request_sync", "epoch": None, "version": None})
        await node.clock.pass_(3_000)
        for client in (a, b, late):
            assert not client.of_type("state_update", "rejected", "resumed"), client.frames
            assert all(one["version"] == 0 for one in client.welcomes)
        assert not late.welcomes
        assert not read.done()
        assert not updated.done()
        gate.open()
        await settle()
        assert (await read).version == 1
        assert (await updated).version == 2
        assert a.state == b.state == late.state == {"n": 2}
        assert late.welcomes[0]["version"] in {1, 2}  # of whichever batch it came to rest after
        assert b.welcomes[1]["version"] == 1


async def test_iterating_over_changes_shows_only_what_is_durable() -> None:
    async with running() as node:
        a = await node.client(client_id="a")
        seen: list[int] = []

        async def follow() -> None:
            async for commit in node.sessions.changes("s", after=0):
                seen.extend([commit.version])

        task = asyncio.create_task(follow())
        gate = Gate()
        node.store.next("append", gate)
        a.change(inc())
        await gate.reached.wait()
        await settle()
        assert seen == []
        gate.open()
        await settle()
        node.store.next("append", answer_lost(), down())
        a.change(inc())
        a.change(inc())
        await node.clock.pass_(2_000)
        assert seen == [1, 2, 3]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# A new epoch


async def ahead(node: Node) -> LineClient:
    """A client that has seen version 7 of a session whose log ends at version 2."""
    writer = await node.client(client_id="w")
    writer.change(inc())
    writer.change(inc())
    await settle()
    seer = LineClient(node, "s", "seer", new_epochs=True)
    seer.epoch, seer.version, seer.state = writer.epoch, 7, {"n": 7}
    node.clients.append(seer)
    return seer


async def test_a_version_ahead_of_the_log_begins_an_epoch_that_everybody_learns_of() -> None:
    # Rule E3
    async with running() as node:
        seer = await ahead(node)
        writer = node.clients[0]
        writer._new_epochs = True
        old = writer.epoch
        await seer.connect()
        assert seer.welcomes[-1]["type"] == "initial_state"
        assert seer.epoch not in {old, None}
        assert seer.welcomes[-1]["epoch_version"] == 2
        assert (await row(node)).epoch == seer.epoch
        assert (await row(node)).epoch_version == 2
        assert writer.closes[0][0] == 1012
        await writer.connect()
        assert writer.epoch == seer.epoch
        assert writer.welcomes[-1]["type"] == "initial_state"
        writer.change(inc())
        await settle()
        assert seer.state == writer.state == {"n": 3}


async def test_the_new_epoch_is_shown_only_when_it_is_durable() -> None:
    """Regression: while another session's batch was in flight, the client that was ahead (and
    whoever else came) was welcomed to the old epoch at an older version: history went back.
    """
    async with running() as node:
        seer = await ahead(node)
        writer = node.clients[0]
        writer._new_epochs = True
        old = seer.epoch
        other = await node.client("busy", "x")
        gate = Gate()
        node.store.next("append", gate)
        other.change(inc())
        await gate.reached.wait()
        await seer.connect()
        if not writer.closes:
            writer.leave()
        await writer.connect()
        assert not [one for one in seer.welcomes if one["epoch"] == old], "history went back"
        gate.open()
        await node.clock.pass_(1_000)
        for client in (seer, writer):
            if client.closes:
                await client.connect()
            assert client.epoch == (await row(node)).epoch != old
        assert seer.state == {"n": 2}


@pytest.mark.parametrize("lost", [False, True])
async def test_the_new_epoch_is_begun_although_its_first_append_fails(*, lost: bool) -> None:
    """Regression: the epoch was forgotten with the batch, and its client welcomed to the old."""
    async with running() as node:
        seer = await ahead(node)
        node.clients[0]._new_epochs = True
        old = seer.epoch
        node.store.next("append", answer_lost() if lost else down())
        await seer.connect()
        for _ in range(5):
            await node.clock.pass_(1_000)
            if seer.closes:
                await seer.connect()
        assert not [one for one in seer.welcomes if one["epoch"] == old], "history went back"
        assert seer.closes == []
        assert seer.epoch == (await row(node)).epoch != old
        assert seer.state == {"n": 2}


# Frames that no room can carry out


ODD = {
    "presence with half a character": b'{"type":"presence","data":"\\ud800"}',
    "a heartbeat with half a character": b'{"type":"heartbeat","t":"\\ud800"}',
    "a heartbeat with a number beyond all": b'{"type":"heartbeat","t":1e999}',
    "presence that is nested": b'{"type":"presence","data":' + b"[" * 900 + b"]" * 900 + b"}",
    "a checkpoint's half a character": b'{"type":"save_checkpoint","ref":"\\ud800"}',
    "a sync of half a character": b'{"type":"request_sync","epoch":"\\ud800","version":0}',
    "a half-character epoch": b'{"type":"change","seq":1,"epoch":"\\ud800","base":0,"at":1,'
    b'"ops":[{"op":"\\ud800","path":"/\\ud800"}]}',
}


@pytest.mark.parametrize("frame", ODD)
@pytest.mark.parametrize("busy", [False, True])
async def test_odd_frames_harm_nobody_else(frame: str, *, busy: bool) -> None:
    """Regression: text that no JSON can carry was passed on, and failed where all batches land:
    from then on the server acknowledged nothing any more.
    """
    async with running() as node:
        odd = await node.client(client_id="odd")
        good = await node.client(client_id="good")
        gate = Gate()
        if busy:
            node.store.next("append", gate)
            good.change(inc())
            await gate.reached.wait()
        odd.given = 1  # the change below is its own
        odd._known_at[1] = 1
        odd.outbox[1] = {}
        odd.feed_bytes(ODD[frame])
        gate.open()
        await settle()
        good.change(inc())
        other = await node.client("t", "x")
        other.change(inc())
        await settle()
        assert good.state["n"] == (2 if busy else 1)
        assert other.state == {"n": 1}
        for line in (*good.frames, *odd.frames):
            json.dumps(line).encode()


async def test_a_host_that_fails_does_not_stop_the_others() -> None:
    """Whatever is wrong with one session, the node's one writer goes on."""
    async with running() as node:
        bad = await node.client("bad", "b")
        good = await node.client("good", "g")

        def fail(*_: object, **__: object) -> None:
            raise ZeroDivisionError("a mistake of ours")

        for name in ("cut", "land"):
            room = node.host("bad").room
            setattr(room, name, fail)
            bad.change(inc())
            good.change(inc())
            await settle()
            good.change(inc())
            await settle()
            # Its session is opened anew from the database, and its client comes back to it.
            assert bad.closes, name
            assert bad.closes[0][0] == 1012
            await bad.connect()
            await node.clock.pass_(1_000)
            assert not bad.outbox
        assert good.state == {"n": 4}
        assert bad.state == {"n": 2}
        assert await node.fresh("bad") == {"n": 2}


# Fencing and presence


async def test_a_newer_connection_fences_the_older_one() -> None:
    # Rule F2
    async with running() as node:
        a = await node.client(client_id="a")
        watcher = await node.client(client_id="watcher")
        older, connection = a.line, a.connection
        assert connection is not None
        await a.connect()
        assert older.closes == [(4409, older.closes[0][1])]
        # The older one closes late, and says things before it does.
        node.registry.connections.feed(
            connection, "s", lambda _: asyncio.sleep(0, User("u")), b'{"type":"heartbeat","t":1}'
        )
        await node.clock.pass_(2_000)
        node.registry.connections.disconnected(connection, "late")
        await node.clock.pass_(2_000)
        devices = {one["id"]: one["online"] for one in watcher.of_type("devices")[-1]["devices"]}
        assert devices[a.device_id]
        assert all(
            one["online"]
            for frame in watcher.of_type("devices")
            for one in frame["devices"]
            if one["id"] == a.device_id
        )
        assert (await row(node)).disconnected_at is None
        a.change(inc())
        await settle()
        assert watcher.state == {"n": 1}
        assert not [one for one in older.late if one["type"] != "heartbeat"]


async def test_what_a_fenced_connection_had_in_line_is_decided_once() -> None:
    async with running() as node:
        a = await node.client(client_id="a")
        gate = Gate()
        node.store.next("append", gate)
        a.change(inc())
        await gate.reached.wait()
        a.change(inc(10))
        a.change(put("/no/parent", 1))
        a.begin()
        gate.open()
        await settle()
        a.send_pending()
        await settle()
        assert a.state == {"n": 11}
        assert list(a.rejected) == [3]
        assert await node.durable() == (2, [("a", 1), ("a", 2)])


async def test_one_that_comes_back_hears_of_a_refusal_before_a_later_commit() -> None:
    """Regression: what its older line had left in the queue was decided first, its refusal told
    to that line, and the commit after it to the new one. A client that lost its connection then
    said that it knew the later number, and never heard of the refusal.
    """
    async with running() as node:
        a = await node.client(client_id="a")
        other = await node.client("busy", "x")
        gate = Gate()
        node.store.next("append", gate)
        other.change(inc())
        await gate.reached.wait()
        a.change(put("/no/parent", 1))
        a.change(inc())
        a.leave()
        await a.connect()
        gate.open()
        await settle()
        told = [(frame["type"]) for frame in a.of_type("rejected", "state_update")]
        assert told == ["rejected", "state_update"]
        assert a.state == {"n": 1}


async def test_another_users_client_id_gets_4403_and_disturbs_nobody() -> None:
    # Rule F1
    """Both may enter the session; here its owner's check is made to say so."""
    async with running() as node:
        a = await node.client(client_id="a")
        thief = LineClient(node, "s", "a", device_id="another", user=User("thief"))
        stranger = await thief_joins(node, thief)
        assert stranger[0] == 4403
        assert a.closes == []
        a.change(inc())
        await settle()
        assert a.state == {"n": 1}
        # Nor does it after a restart, when only the database knows whose it is.
        a.leave()
        await settle()
        node.registry.hosts.clear()
        stranger = await thief_joins(node, thief)
        assert stranger[0] == 4403
        # A device is its user's, too.
        thief = LineClient(node, "s", "t", device_id=a.device_id, user=User("thief"))
        assert (await thief_joins(node, thief))[0] == 4403


async def thief_joins(node: Node, thief: LineClient) -> tuple[int, str]:
    admit = node.registry.members.admit

    async def as_owner(
        session_id: str, user: User, action: Action = Action.READ
    ) -> tuple[Host, str]:
        del user
        return await admit(session_id, User("u"), action)

    node.registry.members.admit = as_owner  # type: ignore[method-assign]
    try:
        await thief.connect()
    finally:
        node.registry.members.admit = admit  # type: ignore[method-assign]
    assert not thief.welcomes
    return thief.closes[0]


async def test_devices_are_told_once_a_second_at_most() -> None:
    # Rule W7
    async with running() as node:
        watcher = await node.client(client_id="watcher")
        await node.clock.pass_(1_500)
        times: list[int] = []
        told = len(watcher.of_type("devices"))
        crowd = [LineClient(node, "s", f"c{n}") for n in range(6)]
        node.clients += crowd
        for _ in range(10):
            for one in crowd:
                await one.connect()
                await node.clock.pass_(40)
                now = len(watcher.of_type("devices"))
                times += [node.clock.now()] * (now - told)
                told = now
            for one in crowd:
                one.leave()
                await node.clock.pass_(40)
                now = len(watcher.of_type("devices"))
                times += [node.clock.now()] * (now - told)
                told = now
        assert len(times) >= 3
        assert all(b - a >= 1_000 for a, b in itertools.pairwise(times)), times
        await node.clock.pass_(2_500)
        online = {one["id"] for one in watcher.of_type("devices")[-1]["devices"] if one["online"]}
        assert online == {watcher.device_id}


async def test_disconnected_and_reconnected() -> None:
    async with running() as node:
        a = await node.client(client_id="a")
        b = await node.client(client_id="b")
        a.leave()
        await node.clock.pass_(100)
        assert (await row(node)).disconnected_at is None
        b.leave()
        left = node.clock.now()
        await node.clock.pass_(100)
        found = await row(node)
        assert (found.disconnected_at, found.reconnected_at) == (left, None)
        await b.connect()
        back = node.clock.now()
        await node.clock.pass_(100)
        assert (await row(node)).reconnected_at == back
        # Once there, another one that comes or goes is neither.
        await a.connect()
        a.leave()
        await node.clock.pass_(100)
        found = await row(node)
        assert (found.disconnected_at, found.reconnected_at) == (left, back)


async def test_one_who_is_back_before_its_leaving_was_written_counts_as_reconnected() -> None:
    """Regression: the session stood as disconnected, with a client on it."""
    async with running() as node:
        a = await node.client(client_id="a")
        other = await node.client("busy", "x")
        gate = Gate()
        node.store.next("append", gate)
        other.change(inc())
        await gate.reached.wait()
        a.leave()
        left = node.clock.now()
        await node.clock.pass_(50)
        await a.connect()
        back = node.clock.now()
        gate.open()
        await settle()
        found = await row(node)
        assert (found.disconnected_at, found.reconnected_at) == (left, back)


async def test_presence_goes_to_the_others_and_is_not_stored() -> None:
    # Rule W3
    async with running() as node:
        a = await node.client(client_id="a")
        b = await node.client(client_id="b")
        asked = len(node.store.asked)
        a.feed({"type": "presence", "data": {"cursor": 3}})
        a.feed({"type": "presence", "data": "x" * 5_000})
        await settle()
        assert [(one["device_id"], one["data"]) for one in b.of_type("presence")] == [
            (a.device_id, {"cursor": 3})
        ]
        assert not a.of_type("presence")
        assert [one["code"] for one in a.of_type("error")] == ["too_large"]
        assert len(node.store.asked) == asked


async def test_silence_ends_a_connection_and_pings_come_before() -> None:
    async with running(limits=Limits(devices_interval_ms=10**9)) as node:
        a = await node.client(client_id="a")
        b = await node.client(client_id="b")
        await node.clock.pass_(14_000, step=500)
        assert not a.closes
        assert a.line.pings == 2
        a.feed({"type": "heartbeat", "t": 1})
        await node.clock.pass_(5_000, step=500)
        assert b.closes[0][0] == 4408
        assert not a.closes
        assert (await row(node)).disconnected_at is None
        await node.clock.pass_(15_000, step=500)
        assert a.closes[0][0] == 4408
        assert (await row(node)).disconnected_at is not None


# The idle and the stopped


async def test_who_waits_is_told_late_where_the_database_writes_for_others() -> None:
    """A thousand who come back at once keep a node busy: the database answers all the same."""
    async with running() as node:
        waits = await node.client("s", client_id="a")
        other = await node.client("t", client_id="b")
        node.host("s").hold()
        waits.change(inc())
        for _ in range(8):
            other.change(inc())
            await node.clock.pass_(1_000, step=250)
        assert not waits.of_type("error")
        for _ in range(4):
            other.change(inc())
            await node.clock.pass_(1_000, step=250)
        assert [one["code"] for one in waits.of_type("error")] == ["unavailable"]
        node.host("s").go_on()
        await settle()
        assert waits.state == {"n": 1}


async def test_a_session_that_nobody_uses_is_forgotten_and_opened_again() -> None:
    async with running(idle_session_ms=5_000) as node:
        a = await node.client(client_id="a")
        a.change(inc())
        await settle()
        a.leave()
        await node.clock.pass_(2_000)
        assert "s" in node.registry.hosts
        await node.clock.pass_(5_000)
        assert "s" not in node.registry.hosts
        await a.connect()
        assert a.state == {"n": 1}


async def test_a_node_that_stops_while_its_store_is_down_leaves_nothing_running() -> None:
    async with running() as node:
        a = await node.client(client_id="a")
        mend = node.store.spoil("append", "since", with_=down())
        a.change(inc())
        await node.clock.pass_(500)
        host = node.host()
        await node.registry.stop(timeout_ms=100)
        mend()
        node.store.next("close", answer_lost())
        await node.clock.pass_(3_000)
        assert not host._tasks
        assert a.closes[0][0] == 1012
        node.registry.stop = _stopped  # type: ignore[method-assign]


async def _stopped(*, timeout_ms: int) -> None:
    del timeout_ms

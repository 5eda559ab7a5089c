"""A restore while twenty clients write on two nodes, and others are offline; then it is undone.

All agree in the end, and the promise holds for every write: it is in the state, or was replaced by
one whose author had seen it, or is in a conflict record, or was set back by a restore and can be
read at its `from_version`. Each value has a mark that no other write has, by which it is found.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Witnesses
from tests.support.stack import Stack
from tests.support.wire_client import Frame, WireClient, all_settled

pytestmark = pytest.mark.faults

CLIENTS = 20
OFFLINE = 5
WRITES = int(os.environ.get("REATTACH_TEST_WRITES", "3"))
"""How many each client makes between two events."""
KEYS = 8


def mark(client: WireClient) -> str:
    """What only a client's next change has in it."""
    return f"<{client.client_id}.{client.given + 1}>"


def something(chance: random.Random, client: WireClient) -> Frame:
    """Any operation, with its mark, but for sums: these are counted."""
    here, items = mark(client), [one["id"] for one in client.state.get("items", [])]
    key = f"/k{chance.randrange(KEYS)}"
    text: str = client.state.get("text", "")
    ends = chance.choice([0, len(text)])
    return chance.choice(
        [
            {"op": "set", "path": key, "value": here},
            {"op": "set", "path": key, "value": {"in": here}},
            {"op": "set", "path": f"{key}/in", "value": here},
            {"op": "insert", "path": "/items", "value": {"id": f"i{client.given}", "is": here}},
            {"op": "set", "path": f"/items/#{chance.choice(items or ['-'])}/is", "value": here},
            {"op": "inc", "path": "/n", "by": 1 + chance.randrange(9)},
            {"op": "splice", "path": "/text", "index": ends, "delete": 0, "insert": here},
        ]
    )


class Crowd:
    """Clients that write, and what they wrote."""

    def __init__(self, chance: random.Random, clients: Sequence[WireClient]) -> None:
        self.chance = chance
        self.clients = clients
        self.made: dict[tuple[str, int], Frame] = {}
        """Each change, as it was made."""

    async def change(self, client: WireClient, op: Frame) -> int:
        number = await client.change(op)
        self.made[client.client_id, number] = client.outbox.get(number) or {
            "base": client.version,
            "ops": [op],
        }
        return number

    async def write(self, client: WireClient) -> None:
        """So many changes, on a line or without one."""
        for _ in range(WRITES):
            await self.change(client, something(self.chance, client))
            await asyncio.sleep(self.chance.uniform(0, 0.01))

    async def all_write(self, clients: Sequence[WireClient]) -> None:
        await asyncio.gather(*map(self.write, clients))


@pytest.mark.timeout(300)
async def test_a_restore_under_twenty_writers_and_its_undoing(
    tmp_path: Path, witnesses: Witnesses
) -> None:
    # Rules RE1, RE2, RE3, M14
    seed = os.environ.get("REATTACH_TEST_SEED") or str(random.SystemRandom().randrange(2**32))
    witnesses.append(("seed", lambda: f"REATTACH_TEST_SEED={seed}"))
    chance = random.Random(seed)
    async with Stack(tmp_path, app=None) as stack:
        urls = [node.ws_url for node in stack.nodes]
        create = {"n": 0, "items": [], "text": ""}
        watcher = WireClient(urls[0], "s", "watcher", create=create)
        states: dict[int, str] = {}
        watcher.on_frame = lambda _: states.update({watcher.version or 0: said(watcher.state)})
        clients = [WireClient(urls[n % 2], "s", f"c{n}") for n in range(CLIENTS)]
        crowd = Crowd(chance, clients)
        async with watcher:
            states[0] = said(watcher.state)
            for client in clients:
                await client.connect()
            async with httpx.AsyncClient() as api:
                url = f"{stack.nodes[1].url}/api/v0/session/s"
                await story(crowd, watcher, chance, api, url)
            await all_settled(clients, within=60)
            newest = max(client.version or 0 for client in clients)
            for client in (*clients, watcher):
                await client.at(newest)
            # All agree, and the nodes with them.
            assert {(one.version, said(one.state)) for one in (*clients, watcher)} == {
                (newest, said(watcher.state))
            }
            async with httpx.AsyncClient() as api:
                for node in stack.nodes:
                    session = (await api.get(f"{node.url}/api/v0/session/s")).json()
                    assert (session["version"], session["state"]) == (newest, watcher.state)
                await kept(api, url, crowd, watcher, states)
            for client in clients:
                await client.close()


async def story(
    crowd: Crowd, watcher: WireClient, chance: random.Random, api: httpx.AsyncClient, url: str
) -> None:
    """What happens."""
    clients = crowd.clients
    online, offline = clients[OFFLINE:], clients[:OFFLINE]
    await crowd.all_write(clients)
    for client in offline:
        await client.disconnect(abruptly=chance.random() < 0.5)
    to = (watcher.version or 0) // 2
    writing = asyncio.create_task(crowd.all_write(clients))
    await crowd.change(online[0], {"op": "restore", "version": to})
    told = await watcher.told(lambda one: one["type"] == "session_restored", what="the restore")
    assert told["to_version"] == to
    await writing
    for client in offline[:3]:
        await client.connect()
    writing = asyncio.create_task(crowd.all_write(clients))
    # On the list, whatever became of the frame that told the other node of it.
    (marked,) = [
        one
        for one in await every(api, f"{url}/checkpoints")
        if (one["kind"], one["version"]) == ("before_restore", told["from_version"])
    ]
    undo = {"op": "restore", "checkpoint_id": marked["id"]}
    number = await crowd.change(online[-1], undo)
    undone = await watcher.told(
        lambda one: one["type"] == "session_restored" and one["by"]["seq"] == number,
        what="its undoing",
    )
    assert undone["to_version"] == told["from_version"]
    await writing
    for client in offline[3:]:
        await client.connect()
    await crowd.all_write(clients)


async def kept(
    api: httpx.AsyncClient, url: str, crowd: Crowd, watcher: WireClient, states: dict[int, str]
) -> None:
    """Holds the promise against every write that was acknowledged."""
    commits = {one["version"]: one for one in watcher.of_type("state_update", "session_restored")}
    assert sorted(commits) == list(range(1, (watcher.version or 0) + 1))
    assert sorted(states) == [0, *sorted(commits)]
    conflicts = await every(api, f"{url}/conflicts")
    records = said(conflicts)
    sides = {
        one["id"]: {one[side]["by"]["client_id"] for side in ("kept", "lost")} for one in conflicts
    }
    told = [one for commit in commits.values() for one in commit.get("conflicts", ())]
    version_of = {
        (one["by"]["client_id"], one["by"]["seq"]): version for version, one in commits.items()
    }
    refused = {(one.client_id, seq) for one in crowd.clients for seq in one.rejected}
    assert set(version_of) | refused == set(crowd.made)
    total, fates = 0, {"in the state": 0, "a conflict": 0, "replaced": 0, "set back": 0}
    for version, commit in sorted(commits.items()):
        (op,) = crowd.made[commit["by"]["client_id"], commit["by"]["seq"]]["ops"]
        total += op["by"] if op["op"] == "inc" else 0
        if op["op"] == "restore":
            total = json.loads(states[commit["to_version"]])["n"]
        assert json.loads(states[version])["n"] == total, version
    for (client_id, seq), version in version_of.items():
        (op,) = crowd.made[client_id, seq]["ops"]
        if op["op"] in {"inc", "restore"}:
            continue
        here = f"<{client_id}.{seq}>"
        shown = [at for at in range(version, len(states)) if here in states[at]]
        if shown and shown[-1] == watcher.version:
            fates["in the state"] += 1
        elif here in records:
            fates["a conflict"] += 1
        elif was := [
            one["id"]
            for one in told
            # In a lost text there may be what others had put into it.
            if one["lost"]["by"]["client_id"] == client_id and here in said(one["lost"])
        ]:
            # A later write of its author's own took its place there (M11).
            assert client_id in sides[was[-1]], f"{here} was lost out of {was[-1]}"
            fates["a conflict"] += 1
        else:
            assert shown, f"{here} was acknowledged and is nowhere"
            by = commits[shown[-1] + 1]
            if by["type"] == "session_restored":
                assert by["from_version"] == shown[-1]
                past = (await api.get(url, params={"version": shown[-1]})).json()
                assert here in said(past["state"])
                fates["set back"] += 1
            else:
                over = crowd.made[by["by"]["client_id"], by["by"]["seq"]]
                seen = over["base"] >= version or by["by"]["client_id"] == client_id
                assert seen, f"{here} of version {version} was replaced unseen by {by}"
                fates["replaced"] += 1
    assert all(fates.values()) or WRITES < 6, fates


async def every(api: httpx.AsyncClient, url: str) -> list[Any]:
    """All of a list."""
    items: list[Any] = []
    params: dict[str, str] = {}
    while True:
        page = (await api.get(url, params=params)).json()
        items += page["items"]
        if page["next"] is None:
            return items
        params = {"next": page["next"]}


def said(value: Any) -> str:
    """JSON, always the same for what is equal."""
    return json.dumps(value, sort_keys=True)

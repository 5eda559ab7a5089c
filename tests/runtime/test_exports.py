"""Exports after a compaction, and what an import makes of them, beside what else a node does."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from reattach.core.limits import Limits
from reattach.core.retention import DAY_MS
from reattach.errors import BadRequest
from reattach.runtime import exports
from reattach.runtime.compaction import Compactor
from reattach.runtime.exports import export_session, import_session
from tests.runtime.rig import USER, Node, put, running, settle
from tests.support.waiting import until


async def compacted(node: Node) -> dict[int, Any]:
    """A session with marks on versions that the log has no more; returns their states."""
    a = await node.client(client_id="a")
    states: dict[int, Any] = {}
    for n in range(12):
        a.change(put(f"/k{n % 3}", n))
        if n in {3, 6}:
            a.feed({"type": "save_checkpoint", "ref": str(n), "name": f"n {n}"})
        await settle()
        states[n + 1] = dict(a.state)
        if n == 8:
            await node.clock.pass_(31 * DAY_MS, 31 * DAY_MS)
            await a.connect()  # whose clock has gone on, too
    a.change({"op": "restore", "version": 12})
    await settle()
    compactor = Compactor(node.store, node.clock, Limits(), "me", history_days=30)
    assert (await compactor.compact("s")).commits == 9
    return {version: states[version] for version in (4, 7, 12)}


async def file_of(node: Node) -> Any:
    host = await node.registry.open("s")
    return json.loads(await export_session(node.registry, host, by="u"))


def comparable(file: Any) -> Any:
    told = {"exported", "imported"}
    return file | {
        "exported_at": 0,
        "session": file["session"] | {"epoch": "", "epoch_version": 0},
        "activity": [one for one in file["activity"] if one["activity_type"] not in told],
    }


async def test_what_was_compacted_is_exported_with_the_states_of_its_marks() -> None:
    # Rules X7, X8, X10, RT2
    async with running() as here, running() as there:
        states = await compacted(here)
        file = await file_of(here)
        assert [one["version"] for one in file["kept"]] == [4, 7]
        assert [one["version"] for one in file["checkpoints"]] == [4, 7, 12]
        await import_session(there.registry, json.dumps(file).encode(), USER)
        again = await file_of(there)
        assert comparable(again) == comparable(file)
        b = await there.client(client_id="b", state=None)
        for mark in again["checkpoints"]:
            b.change({"op": "restore", "checkpoint_id": mark["checkpoint_id"]})
            await settle()
            assert b.state == states[mark["version"]]
        there.honest()


async def test_a_mark_without_its_state_is_no_export() -> None:
    # Rule X11
    async with running() as here, running() as there:
        await compacted(here)
        file = await file_of(here)
        kept = file["kept"]
        spoilt = [
            file | {"kept": kept[:1]},
            file | {"kept": kept[::-1]},
            file | {"kept": [*kept, kept[1]]},
            file | {"kept": [*kept, file["state"]]},
            file | {"kept": [kept[0] | {"state": []}, kept[1]]},
            file | {"kept": [kept[0] | {"index": "x"}, kept[1]]},
            file | {"checkpoints": [file["checkpoints"][0] | {"version": 99}]},
        ]
        for bad in spoilt:
            with pytest.raises(BadRequest) as caught:
                await import_session(there.registry, json.dumps(bad).encode(), USER)
            assert caught.value.code == "bad_export", bad
        assert await there.store.session("s") is None
        # Files from before there was this part go on to be read.
        older = {name: value for name, value in file.items() if name != "kept"}
        older["checkpoints"] = [one for one in file["checkpoints"] if one["version"] > 9]
        await import_session(there.registry, json.dumps(older).encode(), USER)


async def test_others_are_served_while_files_are_read_and_two_are_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long a file takes, it is in a thread, and a third one waits for its turn."""
    gates = [asyncio.Event() for _ in range(3)]
    loop = asyncio.get_running_loop()
    began: list[int] = []
    checked = exports._checked

    def slow(*arguments: Any) -> None:
        number = len(began)
        began.append(number)
        asyncio.run_coroutine_threadsafe(gates[number].wait(), loop).result(20)
        checked(*arguments)

    async with running() as here, running() as there:
        await compacted(here)
        file = await file_of(here)
        monkeypatch.setattr(exports, "_checked", slow)
        files = [file | {"session": file["session"] | {"session_id": f"s{n}"}} for n in range(3)]
        work = [
            asyncio.create_task(import_session(there.registry, json.dumps(one).encode(), USER))
            for one in files
        ]
        await until(lambda: len(began) == 2, within=20, what="two files to be read")
        c = await there.client("another", "c")
        c.change(put("/n", 1))
        await settle()
        assert c.state == {"n": 1}
        assert len(began) == 2
        for gate in gates:
            gate.set()
        await asyncio.gather(*work)
        assert len(began) == 3

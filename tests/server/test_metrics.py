"""`/metrics`: what a node counts, who may read it, and several workers behind one port."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from reattach.server.app import Reattach
from reattach.settings import Settings
from tests.conftest import Serve
from tests.support.database import behind
from tests.support.postgres import Postgres
from tests.support.server import ServerProcess
from tests.support.valkey import ValkeyServer
from tests.support.waiting import until
from tests.support.wire_client import WireClient

Found = dict[str, float]


def read(text: str, **labels: str) -> Found:
    """The samples with these labels, by name and what other labels they have."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation or family.name == "process"
        for sample in family.samples:
            if labels.items() <= sample.labels.items():
                rest = {k: v for k, v in sample.labels.items() if k not in labels}
                name = "".join([sample.name, *(f" {value}" for value in rest.values())])
                assert name not in found, "the same sample twice"
                found[name] = sample.value
    return found


async def scrape(server: ServerProcess, **labels: str) -> Found:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{server.url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return read(answer.text, **labels)


one_node = pytest.mark.one_node("each node tells of itself alone, whichever is asked")


def inc() -> dict[str, object]:
    return {"op": "inc", "path": "/n", "by": 1}


@one_node
async def test_what_a_node_does_is_counted(serve: Serve) -> None:
    server = await serve(app=None)
    before = await scrape(server)
    assert before["reattach_database_up"] == 1
    assert before["process_resident_memory_bytes"] > 1_000_000
    assert "reattach_bus_up" not in before, "there is no bus"
    async with WireClient(server.ws_url, "s", "a", create={"n": 0}) as client:
        for _ in range(3):
            await client.change(inc())
            await client.settled()
        await client.change({"op": "set", "path": "/no/such", "value": 1})
        await client.settled()
        await client.disconnect()
        await client.connect()
        found = await scrape(server)
    assert found["reattach_commits_total"] == 3
    assert found["reattach_refusals_total"] == 1
    assert found["reattach_loads_total"] == 1
    assert found["reattach_resumes_total snapshot"] == 1
    assert found["reattach_resumes_total delta"] == 1
    assert (found["reattach_connections"], found["reattach_sessions_open"]) == (1, 1)
    assert found["reattach_append_seconds_count"] == found["reattach_batch_sessions_count"] >= 5
    assert found["reattach_append_seconds_bucket 10.0"] == found["reattach_append_seconds_count"]
    assert 0 < found["reattach_append_seconds_sum"] < 60


@one_node
async def test_a_database_that_is_away_is_told(serve: Serve) -> None:
    server = await serve(app=None)
    async with WireClient(server.ws_url, "s", "a", create={"n": 0}) as client:
        with behind(server).write_lock():
            await client.change(inc())

            async def told() -> bool:
                found = await scrape(server)
                return found["reattach_database_up"] == 0

            await until(told, within=8, what="the metric")
            assert (await scrape(server))["reattach_changes_waiting_bytes"] > 50
        await client.settled()
        found = await scrape(server)
    assert found["reattach_database_up"] == 1
    assert found["reattach_changes_waiting_bytes"] == 0


@one_node
@pytest.mark.faults
async def test_a_redis_that_is_away_is_told(
    serve: Serve, postgres: Postgres, tmp_path: Path
) -> None:
    async with ValkeyServer(tmp_path) as valkey:
        url = await postgres.database()
        server = await serve(app=None, database_url=url, arguments=["--redis", valkey.url])

        async def up(value: int) -> bool:
            return (await scrape(server))["reattach_bus_up"] == value

        await until(lambda: up(1), within=5, what="the bus")
        async with WireClient(server.ws_url, "s", "a", create={"n": 0}) as client:
            found = await scrape(server)
            assert found["reattach_bus_messages_total sent"] > 0
            assert found["reattach_snapshots_total miss"] == 1
            await valkey.kill()
            await until(lambda: up(0), within=5, what="the metric to say that it is away")
            await client.change(inc())
            await client.settled()
            found = await scrape(server)
            assert found["reattach_bus_messages_total dropped"] > 0
            assert found["reattach_bus_outages_total"] >= 1
            await valkey.start()
            await until(lambda: up(1), within=5, what="the metric to say that it is back")


@one_node
@pytest.mark.faults
@pytest.mark.timeout(120)
async def test_whichever_worker_is_asked_all_of_them_answer(
    serve: Serve, postgres: Postgres
) -> None:
    url = await postgres.database()
    server = await serve(
        app=None, database_url=url, arguments=["--workers", "2"], ready_within=60.0
    )

    async def both() -> bool:
        found = await scrape(server)
        return found == found | {"reattach_worker_up 1": 1, "reattach_worker_up 2": 1}

    await until(both, within=20, what="both workers")
    clients = [WireClient(server.ws_url, f"s{number}", "a", create={"n": 0}) for number in range(8)]
    for client in clients:
        await client.connect()
        await client.change(inc())
        await client.settled()
    for _ in range(6):
        counted = [await scrape(server, worker=worker) for worker in ("1", "2")]
        assert sum(one["reattach_commits_total"] for one in counted) == 8
        assert sum(one["reattach_connections"] for one in counted) == 8
    pids = [one.pid for one in psutil.Process(server.pid).children() if _is_worker(one)]
    assert len(pids) == 2
    # One that stands still is missing, and that is told.
    psutil.Process(pids[1]).send_signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        found = await scrape(server)
        assert time.monotonic() - begun < 3
        assert found["reattach_worker_up 1"] + found["reattach_worker_up 2"] == 1
    finally:
        psutil.Process(pids[1]).send_signal(signal.SIGCONT)
    await until(both, within=10, what="both workers again")
    for client in clients:
        await client.close()


def _is_worker(process: psutil.Process) -> bool:
    return "spawn_main" in " ".join(process.cmdline())


@pytest.mark.parametrize(
    ("peer", "headers", "let_in"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {"Host": "localhost:8000"}, True),
        ("10.0.0.7", {}, False),
        ("127.0.0.1", {"Host": "app.example.org"}, False),
        ("127.0.0.1", {"X-Forwarded-For": "10.0.0.7"}, False),
        ("127.0.0.1", {"Forwarded": "for=10.0.0.7"}, False),
    ],
)
@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("path", ["/metrics", "/openapi.json"])
async def test_others_are_let_in_by_a_setting_alone(
    tmp_path: Path, path: str, peer: str, headers: Mapping[str, str], let_in: bool, public: bool
) -> None:
    of = path == "/metrics"
    settings = Settings(public_metrics=public and of, public_openapi=public and not of)
    async with Reattach(database=f"sqlite:///{tmp_path / 'r.db'}", settings=settings) as reattach:
        transport = httpx.ASGITransport(reattach.app, client=(peer, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as http:
            answer = await http.get(path, headers=headers)
    assert answer.status_code == (200 if let_in or public else 403)

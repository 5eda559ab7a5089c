from __future__ import annotations

import pytest

from reattach.store.memory import MemoryStore
from reattach.testing.store import (
    DAY_MS,
    T0,
    USER,
    MakeStore,
    SeatingSuite,
    StoreSuite,
    answer,
    creation,
)


class TestMemoryStore(StoreSuite, SeatingSuite):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        return MemoryStore


async def test_identity_is_as_given() -> None:
    assert await MemoryStore(identity="here").open() == "here"
    assert await MemoryStore().open() != await MemoryStore().open()


async def test_data_outlives_closing() -> None:
    store = MemoryStore()
    await store.open()
    await store.append([creation("s1")])
    await store.close()
    await store.open()
    assert await store.load("s1") is not None


async def test_time_is_as_given() -> None:
    time = T0
    store = MemoryStore(now=lambda: time)
    await store.open()
    part = creation("s1")
    part.idempotency = answer("k1", created_at=T0)
    await store.append([part])
    time = T0 + DAY_MS - 1
    assert await store.idempotent(USER, "POST /session", "k1") == part.idempotency
    time = T0 + DAY_MS
    assert await store.idempotent(USER, "POST /session", "k1") is None

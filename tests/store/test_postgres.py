from __future__ import annotations

import pytest

from reattach.store.postgres import PostgresStore
from reattach.testing.store import DurableStoreSuite, MakeStore
from tests.support.postgres import Postgres


@pytest.fixture
async def url(postgres: Postgres) -> str:
    return await postgres.database()


class TestPostgresStore(DurableStoreSuite):
    @pytest.fixture
    def make_store(self, url: str) -> MakeStore:
        return lambda: PostgresStore(url)

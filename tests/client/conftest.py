"""Clients that come back by themselves: with two nodes they are moved from one to the other."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def moving() -> float | None:
    return 2.0

from __future__ import annotations

import pytest

from reattach.bus.local import LocalBus
from reattach.testing.bus import BusSuite, MakeBus


class TestLocalBus(BusSuite):
    @pytest.fixture
    def make_bus(self) -> MakeBus:
        bus = LocalBus()
        return lambda: bus

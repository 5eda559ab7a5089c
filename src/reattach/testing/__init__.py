"""Suites that hold other people's parts to the same laws as ours. They need pytest.

- `reattach.testing.store`, `reattach.testing.bus`: what every store and every bus must pass
- `reattach.testing.simulator`: nodes and devices whose world breaks in every way, by a seed
"""

from __future__ import annotations

import pytest

__all__: list[str] = []

# Before the suites are imported, so that a failing assertion of theirs says what it compared.
pytest.register_assert_rewrite("reattach.testing.bus", "reattach.testing.store")

"""Suites that hold other people's parts to the same laws as ours. They need pytest.

- `reattach.testing.store`: what every store must pass
- `reattach.testing.simulator`: nodes and devices whose world breaks in every way, by a seed
"""

from __future__ import annotations

import pytest

__all__: list[str] = []

# Before the suites are imported, so that a failing assertion of theirs says what it compared.
pytest.register_assert_rewrite("reattach.testing.store")

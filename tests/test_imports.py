"""What `import reattach` loads, and when."""

from __future__ import annotations

import subprocess
import sys

import pytest

import reattach

_LOADED = """
import sys
import reattach.client
heavy = {"fastapi", "pydantic", "sqlalchemy", "jwt", "reattach.server", "reattach.store"}
print(*sorted(heavy & set(sys.modules)))
"""


def test_a_script_with_the_client_loads_no_server() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOADED], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []


def test_every_public_name_can_be_had() -> None:
    assert set(reattach.__all__) <= set(dir(reattach))
    assert all(hasattr(reattach, name) for name in reattach.__all__)


def test_a_name_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = reattach.nothing

"""Where things are in the checkout."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The folder of the interpreter that runs the tests: `reattach` is installed beside it. The link is
# not followed, because in a virtual environment it leads out of it.
BIN = Path(sys.executable).parent

NODE = (sys.executable, str(ROOT / "tools" / "node.py"), "node")

"""How often a server process looks for garbage that counting references does not free.

Python's defaults suit small programs: each 700 new objects start a look at the young ones, and now
and then at all there are. A server keeps what it imported for good and holds thousands of changes
in line, so it would spend a third of its time on looking at what is in use. What our code drops is
freed by its count at once; only errors and ended tasks leave rings behind, and these are few.
"""

from __future__ import annotations

import gc
from typing import Final

__all__ = ["settle"]

_YOUNG: Final = 100_000
"""New objects, beyond those that were freed, after which the young ones are looked at."""
_LOOKS: Final = 10
"""Looks at the young ones after which those that were left are looked at, and of these after which
all are."""


def settle() -> None:
    """Call it when all is loaded, in a process of one's own: what there is now stays for good."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _LOOKS, _LOOKS)

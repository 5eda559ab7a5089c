"""What a change costs does not grow: neither with the state, nor with the history.

Counted in lines of Python that are executed, which are the same on every machine. What C does for
one line may still grow: `make bench` has the times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.core.rig import Rig, inc, insert, move, put, splice, unset
from tests.support.lines import lines

Step = Callable[[int], list[dict[str, Any]]]

STEPS: dict[str, Step] = {
    "set": lambda n: [put(f"/fields/f{n % 8}", n)],
    "inc": lambda _: [inc("/n", 1)],
    "splice": lambda n: [splice("/text", n % 5, 0, "x")],
    "insert": lambda n: [insert("/list", {"id": f"new{n}", "note": ""})],
    "insert in front": lambda n: [
        insert("/list", {"id": f"new{n}", "note": ""}, after=None),
        put("/list/#e20/note", "new"),
    ],
    "insert and remove": lambda n: [
        insert("/list", {"id": f"new{n}", "note": ""}, after="e5"),
        unset(f"/list/#new{n}"),
    ],
    "move": lambda n: [move("/list/#e9", after=f"e{n % 8}")],
    "set an element's": lambda n: [put(f"/list/#e{n % 24}/note", n)],
}


def state(size: int) -> dict[str, Any]:
    return {
        "n": 0,
        "text": "some text",
        "fields": {f"f{n}": "x" * 80 for n in range(size)},
        "list": [{"id": f"e{n}", "note": "y" * 80} for n in range(size)],
    }


def write(rig: Rig, step: Step, first: int, count: int) -> None:
    for n in range(first, first + count):
        assert rig.change("a", *step(n), base=rig.version)["type"] == "state_update"


@pytest.mark.parametrize("kind", STEPS)
def test_a_change_of_a_large_state_costs_as_much_as_one_of_a_small_one(kind: str) -> None:
    took = []
    for size in (25, 2_500):
        rig = Rig(state(size))
        write(rig, STEPS[kind], 0, 10)
        took.append(lines(partial(write, rig, STEPS[kind], 10, 20)))
    small, large = took
    assert large <= 1.1 * small


@pytest.mark.parametrize("kind", ["set", "inc", "splice", "insert and remove"])
def test_a_change_after_thousands_costs_as_much_as_one_after_few(kind: str) -> None:
    rig = Rig(state(25))
    write(rig, STEPS[kind], 0, 50)
    early = [lines(partial(write, rig, STEPS[kind], n, 1)) for n in range(50, 80)]
    write(rig, STEPS[kind], 80, 1_500)
    late = [lines(partial(write, rig, STEPS[kind], n, 1)) for n in range(1_580, 1_610)]
    # What is due once in a while, as sealing a part of the books, falls into one of them or not.
    assert sorted(late)[20] <= 1.1 * sorted(early)[20]

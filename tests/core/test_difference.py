"""A state becomes an earlier one by steps that say so, and as few as may be."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import msgspec
import pytest

from reattach.core.difference import become
from reattach.core.document import Document
from reattach.core.patch import step


def steps(before: Any, after: Any) -> list[dict[str, Any]]:
    """What is done, of which it was seen that it does it, and that it can be taken back."""
    document = Document(copy.deepcopy(before))
    become(document, copy.deepcopy(after), lambda *_: None)
    assert document.state == after
    assert document.weight == len(msgspec.json.encode(after))
    patch: list[dict[str, Any]] = json.loads(msgspec.json.encode(document.take_patch()))
    again = Document(copy.deepcopy(before))
    step(again, copy.deepcopy(patch))
    assert again.state == after
    document.rollback(0)
    assert document.state == before
    return patch


def named(*names: str) -> dict[str, Any]:
    return {"l": [{"id": name} for name in names]}


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 1.0, "b": None}, ["replace /a", "add /b"]),
        ({"a": True, "b": 1}, {"a": 1}, ["remove /b", "replace /a"]),
        ({"a": {"b": "x", "c": 1}}, {"a": {"b": "y", "c": 1}}, ["replace /a/b"]),
        (named(*"abcd"), named(*"bcda"), ["move /l/3"]),
        (named(*"abcd"), named(*"dabc"), ["move /l/0"]),
        (named(*"abc"), named(*"axc"), ["remove /l/1", "add /l/1"]),
        (
            {"l": [{"id": "a", "n": 1}, {"id": "b"}]},
            {"l": [{"id": "b"}, {"id": "a", "n": 2}]},
            ["move /l/1", "replace /l/1/n"],
        ),
        # Elements without an id, or that share one, are their whole list.
        ({"l": [1, 2]}, {"l": [1, 3]}, ["replace /l"]),
        (named("a", "a"), named("a"), ["replace /l"]),
    ],
)
def test_few_steps(before: Any, after: Any, wanted: list[str]) -> None:
    assert [f"{one['op']} {one['path']}" for one in steps(before, after)] == wanted


def test_lists_in_which_all_is_new_are_put_as_they_are() -> None:
    before = {"l": [{"id": str(n)} for n in range(3_000)]}
    after = {"l": [{"id": str(-n)} for n in range(3_000)]}
    assert [one["path"] for one in steps(before, after)] == ["/l"]


def tree(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(6 if depth < 4 else 4)
    if kind == 4:
        keys = chance.sample("abcde/~", chance.randrange(5))
        return {key: tree(chance, depth + 1) for key in keys}
    if kind == 5:
        names = chance.sample("uvwxyz", chance.randrange(6))
        items = [{"id": name, "v": tree(chance, depth + 1)} for name in names]
        return [*items, 1] if chance.random() < 0.2 else items
    return chance.choice([None, True, 1, 1.5, "", "x"])


def test_any_state_becomes_any_other() -> None:
    chance = random.Random(7)
    for _ in range(400):
        before, after = ({"s": tree(chance), "t": tree(chance)} for _ in range(2))
        steps(before, after)
        steps(before, {})

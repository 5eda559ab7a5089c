"""Elements of long lists are found where they are, whatever was put in, taken out and moved."""

from __future__ import annotations

import random
from typing import Any

import pytest

from reattach.core.document import Document
from reattach.core.places import Places, element_id


def naive(items: list[Any], wanted: str) -> int:
    return next((at for at, item in enumerate(items) if element_id(item) == wanted), -1)


def element(chance: random.Random, fresh: int) -> Any:
    return chance.choice(
        [{"id": f"e{fresh}"}] * 20 + [{"id": f"e{chance.randrange(fresh)}"}, {"id": 5}, "plain", {}]
    )


@pytest.mark.parametrize("seed", range(40))
def test_an_element_is_found_where_a_search_finds_it(seed: int) -> None:
    chance = random.Random(seed)
    document = Document({"list": [{"id": f"e{n}"} for n in range(60)]})
    fresh = 60
    items = document.state["list"]
    for _ in range(40):
        mark = len(document.undo)
        for _ in range(chance.choice([1, 1, 2, 12])):
            at = chance.randrange(len(items))
            match chance.randrange(4):
                case 0 | 1:
                    fresh += 1
                    new = element(chance, fresh) if seed % 2 else {"id": f"e{fresh}"}
                    document.insert(items, chance.choice([0, at, len(items)]), new, "/list")
                case 2:
                    document.move(items, at, chance.randrange(len(items)), "/list")
                case _ if (found := element_id(items[at])) is not None and len(items) > 20:
                    place = document.locate(("list", f"#{found}"))
                    assert place is not None
                    document.remove(place)
            for wanted in (chance.randrange(fresh), fresh):
                assert document.find(items, f"e{wanted}") == naive(items, f"e{wanted}")
        if chance.random() < 0.3:
            document.rollback(mark)
    for wanted in range(fresh + 1):
        assert document.find(items, f"e{wanted}") == naive(items, f"e{wanted}")


def test_a_list_is_seldom_noted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: a move, and the third element before another one, had all of them noted anew."""
    noted = 0
    begin = Places.__init__

    def counted(places: Places, items: list[Any]) -> None:
        nonlocal noted
        noted += 1
        begin(places, items)

    monkeypatch.setattr(Places, "__init__", counted)
    document = Document({"list": [{"id": f"e{n}"} for n in range(10_000)]})
    items = document.state["list"]
    for n in range(150):
        document.insert(items, 0, {"id": f"new{n}"}, "/list")
        assert document.find(items, "e7000") == 7_000 + n + 1
        document.move(items, 3, 1, "/list")
    assert noted <= 2

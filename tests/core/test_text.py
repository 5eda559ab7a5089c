"""Text by code points: edits, carrying, and merging three ways."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reattach.core.text import (
    Edit,
    apply,
    carry,
    fill,
    fine,
    pack,
    place,
    plain,
    shift,
    splice,
    through,
    undo,
    unpack,
)

TEXTS = st.text(alphabet="ab\U0001f600 \n", max_size=12)


def fitting(text: str, chance: random.Random, most: int = 4) -> list[Edit]:
    """Edits that fit a text, each the one that the former left."""
    edits: list[Edit] = []
    for _ in range(chance.randrange(most)):
        at = chance.randint(0, len(text))
        if chance.random() < 0.5 and at < len(text):
            length = chance.randint(1, len(text) - at)
            made = splice(at, length, "", text[at : at + length])
        else:
            made = splice(at, 0, "".join(chance.choices("xyz\U0001f680", k=chance.randint(1, 3))))
        text = apply(text, made)
        edits += made
    return edits


@given(TEXTS, st.integers())
@settings(max_examples=500, deadline=None)
def test_two_sequences_of_edits_end_as_one_text_whichever_came_first(text: str, seed: int) -> None:
    """Rule TX3."""
    chance = random.Random(seed)
    first, then = fitting(text, chance), fitting(text, chance)
    after, carried = carry(first, then)
    assert apply(apply(text, first), carried) == apply(apply(text, then), after)


@given(TEXTS, TEXTS)
@settings(max_examples=500, deadline=None)
def test_a_diff_is_what_lies_between_two_texts(before: str, after: str) -> None:
    """Rule TX2."""
    for edits in (plain(before, after), fine(before, after)):
        assert apply(before, edits) == after
        assert undo(after, edits) == before
        assert fill(before, edits) == (edits, after)
        assert unpack(pack(edits)) == edits


def test_the_plain_edit_is_one_stretch() -> None:
    """Rule TX2."""
    assert plain("abcabc", "abc") == splice(3, 3, "", "abc")
    assert plain("abc", "abcabc") == splice(3, 0, "abc")
    assert plain("aXc", "aYYc") == splice(1, 1, "YY", "X")
    assert plain("same", "same") == []
    assert plain("\U0001f600a", "\U0001f600b") == splice(1, 1, "b", "a")


def test_a_long_text_is_compared_by_lines_or_as_a_whole() -> None:
    lines = [f"line {n}\n" for n in range(300)]
    other = ["first\n", *lines[:100], *lines[150:], "last\n"]
    edits = fine("".join(lines), "".join(other))
    assert apply("".join(lines), edits) == "".join(other)
    assert len(edits) <= 4
    assert fine("a" * 2_000, "b" * 2_000) == plain("a" * 2_000, "b" * 2_000)


@given(TEXTS, st.integers())
@settings(max_examples=300, deadline=None)
def test_edits_come_to_the_same_from_front_to_back(text: str, seed: int) -> None:
    edits = fitting(text, random.Random(seed))
    sorted_ = through(edits)
    assert apply(text, sorted_) == apply(text, edits)
    assert [edit.pos for edit in sorted_] == sorted(edit.pos for edit in sorted_)


def test_a_long_paragraph_is_compared_by_words() -> None:
    """Regression: a text of one long line that was changed at both ends counted as replaced."""
    words = [f"word{n}" for n in range(1_500)]
    before, other = " ".join(words), " ".join(["first", *words[1:-1], "last"])
    edits = fine(before, other)
    assert apply(before, edits) == other
    assert sum(edit.length for edit in edits) < 30
    mine = fine(before, before.replace("word700", "mine"))
    moved, whole = place(edits, mine)
    assert whole
    assert apply(other, moved) == other.replace("word700", "mine")


CHANCE = random.Random(1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a" * 540, "b" * 540),
        ("a" * 2_900 + "b", "c" + "a" * 2_900 + "d"),
        *(
            tuple("".join(CHANCE.choices(letters, k=size)) for _ in range(2))
            for letters in ("ab", "abcdefgh \n", "ab\n")
            for size in (540, 2_900, 20_000, 500_000)
        ),
    ],
)
def test_texts_that_have_little_in_common_are_compared_in_time(before: str, after: str) -> None:
    """Regression: two of 540 letters took 0.3 s, in which a server answers nobody."""
    begun = time.process_time()
    assert apply(before, fine(before, after)) == after
    assert time.process_time() - begun < 0.2


def test_at_one_position_the_text_committed_first_stands_left() -> None:
    """Rule TX3."""
    _, carried = carry(splice(1, 0, "A"), splice(1, 0, "B"))
    assert apply("xA", carried) == "xAB"


def test_text_put_into_a_range_that_is_being_removed_stays() -> None:
    """Rule TX3."""
    _, carried = carry(splice(2, 0, "NEW"), splice(0, 4, ""))
    assert apply("abNEWcd", carried) == "NEW"
    kept, _ = carry(splice(2, 0, "NEW"), splice(0, 4, ""))
    assert kept == splice(0, 0, "NEW")


@pytest.mark.parametrize(
    ("seen", "stands", "mine", "result"),
    [
        ("The quick fox", "The quick brown fox", splice(13, 0, "."), "The quick brown fox."),
        ("The fox jumps", "A fox leaps", splice(4, 0, "red "), "A red fox leaps"),
        ("one two three", "one three", splice(13, 0, "!"), "one three!"),
        ("one two three", "one 2 three", splice(0, 3, "1"), "1 2 three"),
        ("abc", "", splice(3, 0, "d"), "d"),
        ("abc", "abc", splice(1, 1, ""), "ac"),
        ("abcdef", "af", splice(2, 2, ""), "af"),
    ],
)
def test_three_ways(seen: str, stands: str, mine: list[Edit], result: str) -> None:
    edits, whole = place(fine(seen, stands), mine)
    assert whole
    assert apply(stands, edits) == result


@pytest.mark.parametrize(
    ("seen", "stands", "mine"),
    [
        ("hello world", "goodbye", splice(5, 0, "!")),
        ("hello", "howdy all", fine("hello", "hi there")),
        ("abc", "", splice(1, 1, "B")),
    ],
)
def test_what_has_no_place_is_left_out(seen: str, stands: str, mine: list[Edit]) -> None:
    edits, whole = place(fine(seen, stands), mine)
    assert not whole
    assert apply(stands, edits) == stands


def test_a_caret_stays_with_what_lies_before_it() -> None:
    assert shift(3, splice(0, 0, "ab")) == 5
    assert shift(3, splice(3, 0, "ab")) == 3
    assert shift(3, splice(1, 5, "")) == 1
    assert shift(3, splice(4, 1, "x")) == 3

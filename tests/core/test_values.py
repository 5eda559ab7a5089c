"""Any JSON goes in and comes back equal by type and value, or is refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.core.values import check, equal
from reattach.errors import ChangeRefused
from reattach.wire import Change, Unreadable, decode, decode_json
from tests.core.rig import Rig, put

TEXT = st.text(st.characters(codec="utf-8"))
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_any_value_comes_back_as_it_was_sent(value: Any) -> None:
    """Rule V1: through a frame, the state, the patch, the log and a reload."""
    frame = json.dumps(
        {"type": "change", "seq": 1, "epoch": "e", "base": 0, "at": 1, "ops": [put("/x", value)]}
    )
    change = decode(frame.encode())
    assert isinstance(change, Change)
    rig = Rig()
    commit = rig.change("a", put("/x", change.ops[0].value), base=0)
    assert equal(commit["patch"][0]["value"], value)
    assert equal(rig.state["x"], value)
    assert equal(rig.reload().document.state, {"x": value})
    assert equal(json.loads(rig.session.save().state), {"x": value})


@given(JSON, JSON)
def test_equal_is_an_equivalence(left: Any, right: Any) -> None:
    """Rule V4."""
    assert equal(left, left)
    assert equal(left, right) == equal(right, left)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("9007199254740993", "bad_number"),
        ("-9007199254740993", "bad_number"),
        ("1" * 400, "bad_number"),
        ("1e400", "bad_number"),
        ('"\\ud800"', "bad_string"),
        ('"\\udc00\\ud800"', "bad_string"),
        ('{"\\ud800": 1}', "bad_string"),
        ("[" * 65 + "]" * 65, "too_deep"),
    ],
)
def test_what_would_come_back_otherwise_is_refused(text: str, code: str) -> None:
    """Rules V2, V3 and V5."""
    with pytest.raises(ChangeRefused) as refused:
        check(decode_json(text), depth=64, path="/x")
    assert refused.value.code == code


@pytest.mark.parametrize(
    "text", ["1152921504606846976", "1e22", "0.1", '"\\u0000"', '"\\ud83d\\ude00"', "[]"]
)
def test_odd_but_sound_values_are_kept(text: str) -> None:
    check(decode_json(text), depth=64, path="/x")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "", "{", "[1,]", "'x'", "\\"])
def test_what_is_no_json_is_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        decode_json(text)


def test_nesting_without_end_is_unreadable() -> None:
    with pytest.raises(Unreadable) as unreadable:
        decode_json("[" * 100_000)
    assert unreadable.value.code == "too_deep"

"""What concurrent writes end as under each policy, and how a conflict is settled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reattach.core.document import ABSENT
from reattach.core.policy import ANY, Field, Policy, greater
from reattach.core.session import Proposal, Session
from reattach.wire import Op
from tests.core.rig import Rig, check, inc, insert, put, unset


def field(policy: str = Policy.LATEST, **fields: Field) -> Field:
    made = Field(policy)
    made.fields.update(fields)
    return made


FIELDS = field(
    first=field(Policy.FIRST),
    max=field(Policy.MAX),
    min=field(Policy.MIN),
    union=field(Policy.UNION),
    ask=field(Policy.ASK),
    deep=field(Policy.LATEST, ask=field(Policy.ASK)),
    items=field(Policy.LATEST),
)
FIELDS.fields["items"].fields[ANY] = field(Policy.LATEST, n=field(Policy.MAX))


def rig(**state: Any) -> Rig:
    made = Rig(state)
    made.session.fields = FIELDS
    return made


def resolve(name: str, keep: Any) -> dict[str, Any]:
    return {"op": "resolve", "conflict_id": name, "keep": keep}


def open_ids(session: Session) -> list[str]:
    return [one.id for one in session.unsettled.values()]


def test_first_stands_and_the_later_value_is_kept() -> None:
    made = rig(first=0)
    made.change("a", put("/first", 1), base=0, at=10)
    assert made.conflicts("b", put("/first", 2), base=0, at=90) == [("/first", 1, 2)]
    assert made.conflicts("c", unset("/first"), base=0, at=91) == [("/first", 1, None)]
    assert made.state == {"first": 1}
    made.change("b", put("/first", 3), base=3)
    assert made.state == {"first": 3}


def test_the_authors_own_standing_write_is_no_opponent_under_first_and_ask() -> None:
    """Rule M2."""
    made = rig(first=0, ask=0)
    for path in ("/first", "/ask"):
        made.change("a", put(path, 1), base=0)
        assert made.conflicts("a", put(path, 2), base=0) == []
    assert made.state == {"first": 2, "ask": 2}


def test_max_and_min_keep_the_greater_and_the_smaller_and_record_nothing() -> None:
    """Rule M3."""
    made = rig(max=0, min=10)
    for value in (5, 9, 7):
        assert made.conflicts(f"c{value}", put("/max", value), base=0) == []
        assert made.conflicts(f"c{value}", put("/min", value), base=0) == []
    assert made.state == {"max": 9, "min": 5}
    assert made.conflicts("c1", unset("/max"), base=0) == []
    assert made.state == {"max": 9, "min": 5}


def test_under_max_the_author_merges_over_the_own_standing_write_too() -> None:
    """Rule M3: whenever another client wrote the path above base, even without effect."""
    made = rig(max=0)
    made.change("a", put("/max", 5), base=0)
    made.change("b", put("/max", 3), base=0)
    made.change("b", put("/max", 4), base=0)
    assert made.state == {"max": 5}
    made.change("b", put("/max", 1), base=3)
    assert made.state == {"max": 1}


def test_max_of_what_has_no_order_is_the_latest() -> None:
    made = rig(max=1)
    made.change("a", put("/max", "x"), base=0, at=10)
    assert made.conflicts("b", put("/max", 7), base=0, at=20) == [("/max", 7, "x")]
    assert made.conflicts("c", put("/max", [1]), base=0, at=5) == [("/max", 7, [1])]


@pytest.mark.parametrize(
    ("left", "right", "more"),
    [
        (2, 1, True),
        (1, 1.5, False),
        ("b", "a", True),
        ("2026-11-02", "2026-11-10", False),
        (True, False, True),
        (True, 0, None),
        (1, "1", None),
        (None, 1, None),
        (ABSENT, 1, None),
        ([1], [0], None),
    ],
)
def test_greater(left: Any, right: Any, more: bool | None) -> None:
    assert greater(left, right) is more


def test_union_of_lists_keeps_all_distinct_elements() -> None:
    made = rig(union=["a"])
    made.change("a", put("/union", ["a", "b"]), base=0)
    assert made.conflicts("b", put("/union", ["c", "a"]), base=0) == []
    assert made.state == {"union": ["a", "b", "c"]}
    made.change("b", put("/union", []), base=2)
    assert made.state == {"union": []}


def test_union_of_elements_with_one_id_is_the_latest_of_them() -> None:
    made = rig(union=[{"id": "1", "v": 0}])
    made.change("a", put("/union", [{"id": "1", "v": 1}, {"id": "2"}]), base=0, at=10)
    frame = made.change("b", put("/union", [{"id": "1", "v": 2}, {"id": "3"}]), base=0, at=20)
    (one,) = frame["conflicts"]
    assert (one["path"], one["policy"]) == ("/union/#1", "union")
    assert (one["kept"]["value"]["v"], one["lost"]["value"]["v"]) == (2, 1)
    assert made.state == {"union": [{"id": "1", "v": 2}, {"id": "2"}, {"id": "3"}]}
    assert made.conflicts("c", put("/union", [{"id": "1", "v": 3}]), base=0, at=5) == [
        ("/union/#1", {"id": "1", "v": 2}, {"id": "1", "v": 3})
    ]


def test_union_keeps_what_others_put_into_the_list_meanwhile() -> None:
    made = rig(union=[])
    made.change("a", insert("/union", {"id": "1"}), base=0, at=10)
    assert made.conflicts("b", put("/union", [{"id": "2"}]), base=0, at=90) == []
    assert made.state == {"union": [{"id": "1"}, {"id": "2"}]}
    assert made.conflicts("c", insert("/union", {"id": "3"}), base=0, at=1) == []
    assert made.state == {"union": [{"id": "1"}, {"id": "2"}, {"id": "3"}]}


def test_union_of_objects_has_all_keys() -> None:
    made = rig(union={"k": 0})
    made.change("a", put("/union", {"k": 1, "a": 1}), base=0, at=10)
    assert made.conflicts("b", put("/union", {"k": 2, "b": 2}), base=0, at=20) == [
        ("/union/k", 2, 1)
    ]
    assert made.state == {"union": {"k": 2, "a": 1, "b": 2}}


def test_a_removal_loses_under_union_and_is_kept() -> None:
    """Rule M5."""
    made = rig(union=["a"])
    made.change("a", put("/union", ["b"]), base=0)
    assert made.conflicts("b", unset("/union"), base=0) == [("/union", ["b"], None)]
    made.change("c", unset("/union"), base=2)
    assert made.conflicts("d", put("/union", ["x"]), base=2) == [("/union", ["x"], None)]
    assert made.state == {"union": ["x"]}


def test_ask_keeps_the_committed_value_and_opens_a_conflict() -> None:
    made = rig(ask=0)
    made.change("a", put("/ask", 1), base=0, at=10)
    frame = made.change("b", put("/ask", 2), base=0, at=90)
    (one,) = frame["conflicts"]
    assert (one["status"], one["policy"]) == ("open", "ask")
    assert (one["kept"]["value"], one["lost"]["value"]) == (1, 2)
    assert made.state == {"ask": 1}


def test_the_policy_of_the_path_that_was_written_decides() -> None:
    """Rule M5: the newest write at or above."""
    made = rig(ask={"x": 0}, deep={"ask": 0})
    made.change("a", put("/ask", {"x": 1}), base=0, at=10)
    assert made.conflicts("b", put("/ask/x", 2), base=0, at=90) == [("/ask/x", 1, 2)]
    made.change("a", put("/deep", {"ask": 1}), base=0, at=10)
    assert made.conflicts("b", put("/deep/ask", 2), base=0, at=90) == [("/deep/ask", 2, 1)]


def test_policies_hold_in_list_elements() -> None:
    made = rig(items=[{"id": "1", "n": 0}])
    made.change("a", put("/items/#1/n", 5), base=0)
    assert made.conflicts("b", put("/items/#1/n", 3), base=0) == []
    assert made.state["items"][0]["n"] == 5


def test_a_part_of_what_would_be_merged_whole_is_not() -> None:
    made = rig(union=[{"id": "1", "v": 0}])
    made.change("a", put("/union", [{"id": "1", "v": 1}]), base=0, at=10)
    assert made.conflicts("b", put("/union/#1/v", 2), base=0, at=20) == [("/union/#1/v", 2, 1)]


@pytest.mark.parametrize("path", ["/first", "/ask"])
def test_a_change_with_a_test_is_refused_where_it_would_lose(path: str) -> None:
    """Rule O7."""
    made = rig(first=0, ask=0, x=0)
    made.change("a", put(path, 1), base=0)
    assert made.refused("b", check("/x", 0), put(path, 2), base=0) == "conflict"


def test_an_inc_adds_to_what_stands_under_any_policy() -> None:
    """Rule M4."""
    made = rig(max=1, first=1, ask=1)
    for path in ("/max", "/first", "/ask"):
        made.change("a", put(path, 5), base=0)
        assert made.conflicts("b", inc(path, 2), base=0) == []
    assert made.state == {"max": 7, "first": 7, "ask": 7}


def test_what_one_lost_bit_by_bit_is_kept_together() -> None:
    """Rule M14: an inc in a record is not replaced by the next one."""
    made = rig(o={"n": 1})
    made.change("a", unset("/o"), base=0)
    made.change("b", inc("/o/n", 5), base=0)
    assert made.conflicts("b", inc("/o/n", 3), base=0) == [("/o/n", None, 8)]
    assert len(open_ids(made.session)) == 1


def test_what_several_made_together_has_a_record_of_its_own() -> None:
    """Rule M11: one of them cannot replace it."""
    made = rig(n=1)
    made.change("a", inc("/n", 5), base=0, at=10)
    made.change("b", put("/n", 0), base=0, at=20)
    made.change("a", inc("/n", 2), base=0, at=30)
    made.change("b", put("/n", 9), base=0, at=40)
    lost = [json.loads(one.body)["lost"] for one in made.session.conflicts.values()]
    assert [one["value"] for one in lost] == [2]
    assert sorted(open_ids(made.session)) == ["2.0", "4.0"]


# Settling


def conflicting() -> Rig:
    made = rig(ask=0, o={"x": 0}, list=[{"id": "1", "v": 0}])
    made.change("a", put("/ask", 1), base=0)
    made.change("b", put("/ask", 2), base=0)
    return made


@pytest.mark.parametrize(
    ("keep", "value"), [("kept", 1), ("lost", 2), ({"value": 3}, 3), ({"value": None}, None)]
)
def test_a_conflict_is_settled_by_choosing(keep: Any, value: Any) -> None:
    """Rule RS1."""
    made = conflicting()
    frame = made.change("c", resolve("2.0", keep), base=2)
    assert [(one["id"], one["status"]) for one in frame["conflicts"]] == [("2.0", "resolved")]
    assert made.state["ask"] == value
    assert not made.session.unsettled
    assert not made.reload().unsettled
    assert made.session.unresolved == made.reload().unresolved


def test_the_first_settles_it() -> None:
    """Rule RS2."""
    made = conflicting()
    made.change("c", resolve("2.0", "lost"), base=2)
    assert made.refused("a", resolve("2.0", "kept"), base=2) == "already_resolved"
    assert made.refused("a", resolve("9.0", "kept"), base=2) == "no_such_conflict"
    assert made.refused("a", resolve("x", "kept"), base=2) == "no_such_conflict"


def test_what_the_one_who_settles_has_not_seen_is_not_settled() -> None:
    """Rule RS3."""
    made = conflicting()
    made.change("b", put("/ask", 7), base=0)
    assert made.refused("c", resolve("2.0", "kept"), base=2) == "conflict_changed"
    made.change("c", resolve("2.0", "lost"), base=3)
    assert made.state["ask"] == 7


def test_an_absent_value_is_chosen_by_removing() -> None:
    made = rig(o={"x": 0})
    made.change("a", unset("/o/x"), base=0, at=10)
    made.change("b", put("/o/x", 2), base=0, at=20)
    made.change("c", resolve("2.0", "lost"), base=2)
    assert made.state == {"o": {}}


def test_an_element_that_lost_comes_back() -> None:
    made = rig(list=[{"id": "1", "v": 0}])
    made.change("a", unset("/list/#1"), base=0, at=90)
    made.change("b", put("/list/#1", {"id": "1", "v": 2}), base=0, at=20)
    made.change("c", resolve("2.0", "lost"), base=2)
    assert made.state == {"list": [{"id": "1", "v": 2}]}


def test_elements_without_ids_that_lost_come_back_as_their_list() -> None:
    made = rig(list=["a"])
    made.change("a", insert("/list", "b"), base=0, at=10)
    made.change("b", put("/list", ["c"]), base=0, at=20)
    (one,) = made.session.unsettled.values()
    assert one.path == "/list/-"
    made.change("c", resolve(one.id, "lost"), base=2)
    assert made.state == {"list": ["a", "b"]}


@pytest.mark.parametrize("keep", ["both", None, {"values": 1}, 3])
def test_a_choice_must_be_one(keep: Any) -> None:
    """Rule O9."""
    made = conflicting()
    assert made.refused("c", resolve("2.0", keep), base=2) == "bad_op"
    assert open_ids(made.session) == ["2.0"]


def test_a_settled_conflict_opens_again_only_by_a_new_disagreement() -> None:
    made = conflicting()
    made.change("c", resolve("2.0", "lost"), base=2)
    frame = made.change("b", put("/ask", 5), base=0)
    assert [one["id"] for one in frame["conflicts"]] == ["4.0"]


def test_a_batch_that_did_not_land_settles_nothing() -> None:
    made = conflicting()
    before = dict(made.session.unresolved)
    made.session.cut()
    made.client("c")
    made.session.decide(
        Proposal(
            client_id="c",
            seq=1,
            at=1,
            corrected=1,
            base=2,
            resolve=Op(**resolve("2.0", "lost")),
        )
    )
    made.session.abort()
    assert open_ids(made.session) == ["2.0"]
    assert made.session.unresolved == before
    assert made.state["ask"] == 1

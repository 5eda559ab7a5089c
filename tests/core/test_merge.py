"""Section 4 of the protocol: what concurrent writes come to, and what is kept as a conflict."""

from __future__ import annotations

import pytest

from reattach.core.limits import Limits
from tests.core.rig import Rig, check, inc, insert, move, put, splice, unset


def test_without_concurrency_an_operation_just_applies() -> None:
    """Rule O1."""
    rig = Rig()
    rig.change("a", put("/x", 1), base=0)
    assert rig.conflicts("b", put("/x", 2), base=1) == []
    assert rig.state == {"x": 2}


def test_latest_the_one_whose_user_acted_last_stands() -> None:
    """Rule M1."""
    rig = Rig({"x": 0})
    rig.change("a", put("/x", 1), base=0, at=50)
    assert rig.conflicts("b", put("/x", 2), base=0, at=60) == [("/x", 2, 1)]
    assert rig.state == {"x": 2}


def test_latest_an_earlier_act_that_arrives_later_is_kept_as_a_conflict() -> None:
    """Rules M1, C2."""
    rig = Rig({"x": 0})
    rig.change("a", put("/x", 1), base=0, at=50)
    frame = rig.change("b", put("/x", 2), base=0, at=40)
    assert frame["patch"] == []
    (conflict,) = frame["conflicts"]
    assert conflict["policy"] == "latest"
    assert conflict["status"] == "auto"
    assert conflict["version"] == 2
    assert conflict["kept"] == {
        "value": 1,
        "by": {"client_id": "a", "device_id": "d-a", "user_id": "u", "source": "device"},
        "at": 50,
        "version": 1,
    }
    assert conflict["lost"]["value"] == 2
    assert conflict["lost"]["by"]["client_id"] == "b"
    assert rig.state == {"x": 1}


def test_latest_at_the_same_moment_the_one_that_arrives_last_stands() -> None:
    """Rule M1."""
    rig = Rig({"x": 0})
    rig.change("a", put("/x", 1), base=0, at=50)
    assert rig.conflicts("b", put("/x", 2), base=0, at=50) == [("/x", 2, 1)]


def test_the_authors_own_standing_write_is_no_opponent() -> None:
    """Rule M2."""
    rig = Rig({"x": 0})
    rig.change("b", put("/x", 1), base=0, at=10)
    rig.change("a", put("/x", 2), base=0, at=90)
    assert rig.conflicts("a", put("/x", 3), base=0, at=91) == []
    assert rig.state == {"x": 3}


def test_equal_values_make_no_conflict() -> None:
    """Rule M10."""
    rig = Rig({"x": 0})
    rig.change("a", put("/x", {"v": 1}), base=0)
    assert rig.conflicts("b", put("/x", {"v": 1.0}), base=0) == []


def test_equality_goes_by_type() -> None:
    """Rule V4."""
    rig = Rig({"x": 0})
    rig.change("a", put("/x", True), base=0)
    assert rig.conflicts("b", put("/x", 1), base=0) == [("/x", 1, True)]


def test_an_agreement_counts_as_a_write_of_both() -> None:
    """Who saw only the one must still not silently replace what the other wrote."""
    rig = Rig({"x": 0})
    rig.change("a", put("/x", 5), base=0)
    rig.change("b", put("/x", 5), base=0)
    assert rig.conflicts("c", put("/x", 7), base=1) == [("/x", 7, 5)]
    rig = Rig({"x": 0})
    rig.change("a", put("/x", 5), base=0)
    rig.change("b", put("/x", 5), base=0)
    assert rig.conflicts("b", put("/x", 6), base=0) == [("/x", 6, 5)]


def test_different_fields_merge() -> None:
    rig = Rig({"o": {"x": 0, "y": 0}})
    rig.change("a", put("/o/x", 1), base=0)
    assert rig.conflicts("b", put("/o/y", 2), base=0) == []
    assert rig.state == {"o": {"x": 1, "y": 2}}


def test_unset_competes_as_absent() -> None:
    """Rule M5."""
    rig = Rig({"x": 0})
    rig.change("a", put("/x", 1), base=0, at=50)
    assert rig.conflicts("b", unset("/x"), base=0, at=60) == [("/x", None, 1)]
    assert rig.state == {}
    rig = Rig({"x": 0})
    rig.change("a", put("/x", 1), base=0, at=50)
    frame = rig.change("b", unset("/x"), base=0, at=40)
    assert frame["conflicts"][0]["lost"]["absent"] is True
    assert "value" not in frame["conflicts"][0]["lost"]
    assert rig.state == {"x": 1}


def test_set_over_a_concurrent_unset() -> None:
    rig = Rig({"x": 0})
    rig.change("a", unset("/x"), base=0, at=50)
    assert rig.conflicts("b", put("/x", 2), base=0, at=60) == [("/x", 2, None)]
    assert rig.state == {"x": 2}


def test_unset_of_something_gone_does_nothing() -> None:
    """Rules O2, C3."""
    rig = Rig({"l": [{"id": "r"}]})
    for path in ("/x", "/x/y", "/l/#nope", "/l/#nope/deep"):
        frame = rig.change("a", unset(path), base=rig.version)
        assert frame["patch"] == []


def test_incs_commute() -> None:
    """Rule M4."""
    rig = Rig({"n": 1})
    rig.change("a", inc("/n", 2), base=0, at=90)
    assert rig.conflicts("b", inc("/n", 3), base=0, at=10) == []
    assert rig.state == {"n": 6}


def test_a_missing_number_counts_as_zero() -> None:
    """Rule O5."""
    rig = Rig()
    rig.change("a", inc("/n", 2.5), base=0)
    assert rig.state == {"n": 2.5}


def test_inc_adds_to_what_stands() -> None:
    """Rule M4."""
    rig = Rig({"n": 1})
    rig.change("a", put("/n", 10), base=0, at=90)
    assert rig.conflicts("b", inc("/n", 3), base=0, at=10) == []
    assert rig.state == {"n": 13}


def test_a_set_over_concurrent_incs_competes_with_their_sum() -> None:
    """Rule M4."""
    rig = Rig({"n": 1})
    rig.change("a", inc("/n", 2), base=0, at=50)
    rig.change("b", inc("/n", 3), base=0, at=51)
    assert rig.conflicts("c", put("/n", 100), base=0, at=40) == [("/n", 6, 100)]
    assert rig.conflicts("d", put("/n", 200), base=0, at=90) == [("/n", 200, 6)]


def test_ones_own_inc_does_not_hide_anothers_that_it_added_to() -> None:
    """Regression: a set by the author of the newest inc dropped the other's inc silently."""
    rig = Rig({"n": 1})
    rig.change("a", inc("/n", 2), base=0)
    rig.change("b", inc("/n", 3), base=0)
    assert rig.conflicts("b", put("/n", 0), base=0) == [("/n", 0, 6)]


def test_a_set_takes_the_time_of_the_write_that_an_inc_added_to() -> None:
    rig = Rig({"n": 1})
    rig.change("a", put("/n", 10), base=0, at=100)
    rig.change("b", inc("/n", 1), base=1, at=50)
    assert rig.conflicts("c", put("/n", 0), base=0, at=70) == [("/n", 11, 0)]


def test_inserts_commute() -> None:
    """Rules M4, P4."""
    rig = Rig({"l": []})
    rig.change("a", insert("/l", {"id": "1"}), base=0)
    assert rig.conflicts("b", insert("/l", {"id": "2"}), base=0) == []
    assert rig.conflicts("b", insert("/l", 7), base=0) == []
    assert rig.conflicts("a", insert("/l", 8), base=0) == []
    assert rig.state == {"l": [{"id": "1"}, {"id": "2"}, 7, 8]}


def test_insert_where_to() -> None:
    """Rule O3."""
    rig = Rig({"l": [{"id": "1"}, {"id": "2"}]})
    rig.change("a", insert("/l", {"id": "f"}, after=None), base=0)
    rig.change("a", insert("/l", {"id": "m"}, after="1"), base=0)
    rig.change("a", insert("/l", {"id": "e"}), base=0)
    rig.change("a", insert("/l", {"id": "g"}, after="gone"), base=0)
    assert [one["id"] for one in rig.state["l"]] == ["f", "1", "m", "2", "e", "g"]


def test_insert_of_an_id_that_is_there_is_a_set_of_that_element() -> None:
    """Rule O3."""
    rig = Rig({"l": [{"id": "1", "v": 0}]})
    rig.change("a", put("/l/#1/v", 5), base=0, at=50)
    frame = rig.change("b", insert("/l", {"id": "1", "v": 9}), base=0, at=60)
    assert rig.state == {"l": [{"id": "1", "v": 9}]}
    assert frame["patch"] == [{"op": "replace", "path": "/l/0", "value": {"id": "1", "v": 9}}]
    assert frame["conflicts"][0]["path"] == "/l/#1/v"


def test_the_last_move_stands_without_a_record() -> None:
    """Rules M9, O4."""
    rig = Rig({"l": [{"id": "1"}, {"id": "2"}, {"id": "3"}]})
    frame = rig.change("a", move("/l/#3", after=None), base=0)
    assert frame["patch"] == [{"op": "move", "from": "/l/2", "path": "/l/0"}]
    assert rig.conflicts("b", move("/l/#3", after="1"), base=0) == []
    assert [one["id"] for one in rig.state["l"]] == ["1", "3", "2"]
    rig.change("b", move("/l/#1"), base=0)
    rig.change("b", move("/l/#gone"), base=0)
    rig.change("b", move("/l/#2", after="2"), base=0)
    assert [one["id"] for one in rig.state["l"]] == ["3", "2", "1"]


def test_an_ancestors_set_puts_back_later_deeper_writes() -> None:
    """Rule M6."""
    rig = Rig({"o": {"x": 0, "y": 0}})
    rig.change("a", put("/o/x", 5), base=0, at=90)
    frame = rig.change("b", put("/o", {"x": 1, "y": 2}), base=0, at=50)
    assert rig.state == {"o": {"x": 5, "y": 2}}
    (conflict,) = frame["conflicts"]
    assert (conflict["path"], conflict["kept"]["value"], conflict["lost"]["value"]) == (
        "/o/x",
        5,
        1,
    )


def test_an_ancestors_set_makes_conflicts_of_earlier_deeper_writes() -> None:
    """Rule M6."""
    rig = Rig({"o": {"x": 0, "y": 0}})
    rig.change("a", put("/o/x", 5), base=0, at=10)
    assert rig.conflicts("b", put("/o", {"y": 2}), base=0, at=50) == [("/o/x", None, 5)]
    assert rig.state == {"o": {"y": 2}}


def test_a_deeper_write_whose_parent_is_gone_becomes_a_conflict() -> None:
    rig = Rig({"o": {"p": {"x": 0}}})
    rig.change("a", put("/o/p/x", 5), base=0, at=90)
    assert rig.conflicts("b", put("/o", {"y": 2}), base=0, at=50) == [("/o/p/x", None, 5)]
    assert rig.state == {"o": {"y": 2}}


def test_the_whole_state_can_be_an_ancestor() -> None:
    rig = Rig({"x": 0, "y": 0})
    rig.change("a", put("/x", 5), base=0, at=90)
    assert rig.conflicts("b", put("", {"y": 2}), base=0, at=50) == [("/x", 5, None)]
    assert rig.state == {"x": 5, "y": 2}


def test_a_put_back_write_survives_the_ancestors_author() -> None:
    """The author of the ancestor's set has not seen what was put back."""
    rig = Rig({"o": {"x": 0}})
    rig.change("a", put("/o/x", 5), base=0, at=90)
    rig.change("b", put("/o", {"x": 1}), base=0, at=50)
    assert rig.conflicts("b", put("/o/x", 2), base=0, at=51) == [("/o/x", 5, 2)]
    assert rig.conflicts("c", put("/o/x", 6), base=1, at=95) == []


@pytest.mark.parametrize("kind", ["sum", "text"])
def test_what_one_adds_to_a_part_of_what_another_wrote_whole_is_not_ones_own(kind: str) -> None:
    """Rules M2, M14: the value that its author never saw would be gone without a record."""
    start, whole, adds, merged, then = {
        "sum": (0, 7, inc("/o/x", 1), 8, 5),
        "text": ("a", "ab", splice("/o/x", 1, 0, "c"), "abc", "d"),
    }[kind]
    for last, path, kept, lost in (
        (put("/o/x", then), "/o/x", then, merged),
        (unset("/o/x"), "/o/x", None, merged),
        (unset("/o"), "/o", None, {"x": merged}),
        (put("", {"o": {"x": then}}), "/o", {"x": then}, {"x": merged}),
    ):
        rig = Rig({"o": {"x": ""}})
        rig.change("a", put("/o/x", start), base=0, at=10)
        rig.change("a", put("/o", {"x": whole}), base=0, at=10)
        rig.change("b", adds, base=1, at=20)
        assert rig.state == {"o": {"x": merged}}
        rig.session = rig.reload()
        assert rig.conflicts("b", last, base=1, at=30) == [(path, kept, lost)]


def test_what_one_adds_to_what_a_merge_puts_back_is_not_ones_own_either() -> None:
    """Rules M2, M6, M14."""
    for at, stands in ((60, [("/o/n", 8, 5)]), (95, [("/o/n", 5, 8)])):
        rig = Rig({"o": {}})
        rig.change("a", put("/o", {"n": 7}), base=0, at=90)
        rig.change("b", inc("/o/n", 1), base=0, at=20)
        assert rig.conflicts("b", put("", {"o": {}}), base=0, at=50) == [("/o", {"n": 8}, {})]
        rig.session = rig.reload()
        assert rig.conflicts("b", put("/o/n", 5), base=0, at=at) == stands


def test_what_was_put_back_over_a_whole_is_put_back_over_the_next_one_too() -> None:
    """Rules M6, M14; regression, seed 457866221: its order was that of the whole under it."""
    rig = Rig({"o": {"t": ""}})
    rig.change("a", splice("/o/t", 0, 0, "a"), base=0, at=90)
    rig.change("b", splice("/o/t", 0, 0, "b"), base=0, at=10)
    rig.change("c", put("/o", {"t": "c"}), base=0, at=20)
    assert rig.state == {"o": {"t": "ab"}}
    rig.change("b", put("/o", {"t": "d"}), base=0, at=30)
    assert rig.state == {"o": {"t": "ab"}}
    assert rig.conflicts("b", put("/o/t", "e"), base=0, at=95) == [("/o/t", "e", "ab")]


def test_what_one_adds_to_what_was_put_back_over_ones_own_is_not_ones_own() -> None:
    """Rules M2, M14; regression, seed 888000404."""
    rig = Rig({"o": {}})
    rig.change("a", put("/o", {"n": 7}), base=0, at=90)
    rig.change("b", put("", {"o": {}}), base=0, at=50)
    rig.change("b", inc("/o/n", 1), base=0, at=60)
    assert rig.conflicts("b", put("/o/n", 5), base=0, at=95) == [("/o/n", 5, 8)]


def test_elements_are_put_back_into_a_list() -> None:
    """Rules P2, P3."""
    rig = Rig({"l": [{"id": "1", "v": 0}]})
    rig.change("a", insert("/l", {"id": "2", "v": 2}), put("/l/#1/v", 5), base=0, at=90)
    assert rig.conflicts("b", put("/l", [{"id": "1", "v": 1}]), base=0, at=50) == [
        ("/l/#1/v", 5, 1)
    ]
    assert rig.state == {"l": [{"id": "1", "v": 5}, {"id": "2", "v": 2}]}


def test_an_element_without_an_id_is_kept_as_the_list_that_had_it() -> None:
    rig = Rig({"l": []})
    rig.change("a", insert("/l", 7), base=0, at=90)
    assert rig.conflicts("b", put("/l", [1]), base=0, at=50) == [("/l/-", None, [7])]


def test_ones_own_element_without_an_id_does_not_hide_anothers() -> None:
    """Regression, seed 3125."""
    rig = Rig({"l": []})
    rig.change("d", insert("/l", 7), base=0)
    rig.change("c", insert("/l", 8), base=0)
    assert rig.conflicts("c", put("/l", []), base=0) == [("/l/-", None, [7, 8])]


def test_unset_of_an_ancestor_makes_conflicts_of_all() -> None:
    """Rule M7."""
    rig = Rig({"o": {"x": 0, "y": 0}})
    rig.change("a", put("/o/x", 5), base=0, at=90)
    assert rig.conflicts("b", unset("/o"), base=0, at=50) == [("/o/x", None, 5)]
    assert rig.state == {}


def test_a_write_below_what_was_concurrently_removed_is_not_applied() -> None:
    """Rules M8, O10."""
    for gone in (unset("/o"), put("/o", 3), put("/o", [1]), put("/o", {"q": 1})):
        rig = Rig({"o": {"p": {"x": 0}}})
        rig.change("a", gone, base=0, at=10)
        state = dict(rig.state)
        assert rig.conflicts("b", put("/o/p/x", 5), base=0, at=90) == [("/o/p/x", None, 5)], gone
        assert rig.state == state


def test_other_writes_below_what_was_concurrently_removed() -> None:
    rig = Rig({"o": {"n": 1, "l": [], "t": "t"}})
    rig.change("a", unset("/o"), base=0)
    assert rig.conflicts("b", inc("/o/n", 5), base=0) == [("/o/n", None, 5)]
    assert rig.conflicts("b", insert("/o/l", {"id": "1"}), base=0) == [
        ("/o/l/#1", None, {"id": "1"})
    ]
    assert rig.conflicts("b", unset("/o/n"), base=0) == []
    assert rig.conflicts("b", move("/o/l/#1", after=None), base=0) == []
    assert rig.conflicts("b", splice("/o/t", 0, 0, "x"), base=0) == [("/o/t", None, "x")]
    assert rig.state == {}


def test_inc_of_what_a_concurrent_write_made_no_number() -> None:
    rig = Rig({"n": 1})
    rig.change("a", put("/n", "one"), base=0)
    assert rig.conflicts("b", inc("/n", 5), base=0) == [("/n", "one", 5)]
    assert rig.refused("b", inc("/n", 5), base=1) == "not_a_number"


def test_a_removed_element_written_by_another() -> None:
    rig = Rig({"l": [{"id": "1", "v": 0}]})
    rig.change("a", unset("/l/#1"), base=0, at=50)
    assert rig.conflicts("b", put("/l/#1/v", 5), base=0, at=90) == [("/l/#1/v", None, 5)]
    assert rig.conflicts("b", put("/l/#1", {"id": "1", "v": 6}), base=0, at=91) == [
        ("/l/#1", {"id": "1", "v": 6}, None)
    ]
    assert rig.state == {"l": [{"id": "1", "v": 6}]}


def test_one_unresolved_record_for_a_path_and_a_pair() -> None:
    """Rule M11."""
    rig = Rig({"x": 0})
    rig.change("a", put("/x", 1), base=0, at=90)
    first = rig.change("b", put("/x", 2), base=0, at=50)["conflicts"][0]
    second = rig.change("b", put("/x", 3), base=0, at=51)["conflicts"][0]
    assert second["id"] == first["id"]
    assert second["lost"]["value"] == 3
    other = rig.change("c", put("/x", 4), base=0, at=52)["conflicts"][0]
    assert other["id"] != first["id"]


def test_the_servers_writes_never_share_a_record() -> None:
    """They are many people's: one's value must not push out another's."""
    rig = Rig({"x": 0})
    rig.client("s")
    rig.session.clients["s"].source = "server"
    rig.change("s", put("/x", 1), base=0, at=10)
    first = rig.change("b", put("/x", 2), base=0, at=50)["conflicts"][0]
    rig.change("s", put("/x", 3), base=2, at=60)
    second = rig.change("b", put("/x", 4), base=2, at=70)["conflicts"][0]
    assert second["id"] != first["id"]


def test_a_change_with_a_test_does_not_lose() -> None:
    """Rule O7."""
    rig = Rig({"x": 0, "y": 0})
    rig.change("a", put("/x", 1), base=0, at=90)
    assert rig.refused("b", check("/y", 0), put("/x", 2), base=0, at=50) == "conflict"
    assert rig.refused("b", check("/y", 1), put("/y", 2), base=0) == "test_failed"
    assert rig.refused("b", check("/z", None), base=0) == "test_failed"
    assert rig.change("b", put("/y", 5), check("/y", 5), inc("/y", 1), base=0)["version"] == 2
    assert rig.state == {"x": 1, "y": 6}


def test_a_change_of_an_earlier_epoch_merges_from_where_this_one_began() -> None:
    """Rule E2."""
    rig = Rig({"x": 0})
    rig.change("a", put("/x", 1), base=0, at=10)
    assert rig.conflicts("b", put("/x", 2), base=1, epoch="older", at=20) == [("/x", 2, 1)]


def test_an_edit_of_a_text_that_was_lost_with_the_history_is_refused() -> None:
    """Rule E2."""
    rig = Rig({"t": "abc"}, epoch="now", epoch_version=1)
    rig.change("a", splice("/t", 3, 0, "d"), base=0)
    assert rig.refused("b", splice("/t", 5, 0, "x"), base=3, epoch="older") == "base_gone"
    rig.change("b", splice("/t", 4, 0, "x"), base=1, epoch="older")
    assert rig.state == {"t": "abcdx"}


def test_a_base_that_does_not_exist_is_refused() -> None:
    """Rule C1."""
    rig = Rig()
    assert rig.refused("a", put("/x", 1), base=1) == "bad_base"


def test_splices_without_concurrency_apply_in_code_points() -> None:
    """Rules O6, W4."""
    rig = Rig({"t": "a\U0001f600c"})
    frame = rig.change("a", splice("/t", 2, 1, "\U0001f601d"), base=0)
    assert rig.state == {"t": "a\U0001f600\U0001f601d"}
    assert frame["patch"] == [
        {"op": "str_del", "path": "/t", "pos": 2, "len": 1},
        {"op": "str_ins", "path": "/t", "pos": 2, "str": "\U0001f601d"},
    ]
    rig.change("a", splice("/t", 0, 0, "x"), splice("/new", 0, 0, "y"), base=0)
    assert rig.state == {"t": "xa\U0001f600\U0001f601d", "new": "y"}
    assert rig.refused("a", splice("/t", 9, 0, "x"), base=1) == "bad_range"


@pytest.mark.parametrize(
    ("op", "code"),
    [
        (put("", 3), "bad_value"),
        (put("x", 3), "bad_path"),
        (put("/a/~2", 3), "bad_path"),
        (put("/no/parent", 3), "bad_path"),
        (put("/n/deeper", 3), "bad_path"),
        (put("/l/0", 3), "bad_path"),
        (put("/l/0/v", 3), "bad_path"),
        (put("/l/-", 3), "bad_path"),
        (put("/l/#1", {"id": "2"}), "bad_id"),
        (put("/l/#1", 3), "bad_id"),
        (put("/l/#1/id", "2"), "bad_id"),
        (unset("/l/#1/id"), "bad_id"),
        (unset(""), "bad_path"),
        ({"op": "set", "path": "/x"}, "bad_op"),
        ({"op": "set", "value": 1}, "bad_path"),
        ({"op": "set", "path": 3, "value": 1}, "bad_path"),
        ({"op": "fly", "path": "/x"}, "bad_op"),
        ({"op": "inc", "path": "/n"}, "bad_op"),
        (inc("/n", True), "bad_op"),
        (inc("/n", "1"), "bad_op"),
        (inc("/s", 1), "not_a_number"),
        (inc("/b", 1), "not_a_number"),
        (inc("/l/#nope", 1), "bad_path"),
        (inc("/n", 2**53 + 1), "bad_number"),
        (insert("/n", 1), "not_a_list"),
        (insert("/nope", 1), "not_a_list"),
        (insert("/l", 1, after=3), "bad_op"),
        (move("/n", after=None), "not_a_list"),
        (move("/l/#1", after=3), "bad_op"),
        (splice("/n", 0, 0, "x"), "not_a_string"),
        (splice("/s", -1, 0, "x"), "bad_op"),
        (splice("/s", 0, 9, "x"), "bad_range"),
        ({"op": "splice", "path": "/s", "index": 0, "insert": 3}, "bad_op"),
        (put("/x", float("inf")), "bad_number"),
        (put("/x", 2**64 + 1), "bad_number"),
        (put("/x", "\ud800"), "bad_string"),
        (put("/x", {"\ud800": 1}), "bad_string"),
        (put("/\ud800", 1), "bad_string"),
    ],
)
def test_an_invalid_operation_refuses_the_whole_change(op: dict[str, object], code: str) -> None:
    """Rules O9, P1, V2, V3."""
    state = {"n": 1, "s": "text", "b": True, "l": [{"id": "1", "v": 0}]}
    rig = Rig(state)
    before = rig.session.index.dump()
    assert rig.refused("a", put("/n", 2), insert("/l", {"id": "9"}), op, base=0) == code
    assert rig.state == rig.initial
    assert rig.version == 0
    assert rig.session.index.dump() == before
    assert rig.session.clients["a"].seq == 1


def test_nesting_is_bounded_from_the_root() -> None:
    """Rule V5."""
    deep: object = 1
    for _ in range(63):
        deep = [deep]
    rig = Rig()
    assert rig.change("a", put("/x", deep), base=0)["type"] == "state_update"
    assert rig.refused("a", put("/y", [deep]), base=0) == "too_deep"
    rig.change("a", put("/o", {}), base=0)
    assert rig.refused("a", put("/o/x", deep), base=0) == "too_deep"
    assert rig.refused("a", put("/x" * 65, 1), base=0) == "too_deep"


def test_a_patch_shows_a_value_as_it_was_at_its_step() -> None:
    """Regression: a later operation of the change reached into the value of an earlier one."""
    rig = Rig({"l": []})
    frame = rig.change(
        "a", insert("/l", {"id": "1", "sub": []}), insert("/l/#1/sub", {"id": "2"}), base=0
    )
    assert frame["patch"] == [
        {"op": "add", "path": "/l/0", "value": {"id": "1", "sub": []}},
        {"op": "add", "path": "/l/0/sub/0", "value": {"id": "2"}},
    ]


def test_keys_that_look_like_tokens_of_lists() -> None:
    rig = Rig({"o": {"-": 0, "#x": 0}})
    rig.change("a", put("/o/-", 1), put("/o/#x", 1), base=0, at=90)
    assert rig.conflicts("b", put("/o", {"-": 2, "#x": 2}), base=0, at=50) == [
        ("/o/-", 1, 2),
        ("/o/#x", 1, 2),
    ]


def test_forgotten_writes_count_as_concurrent() -> None:
    """Rule M13."""
    rig = Rig({"x": 0, "y": 0})
    rig.change("a", put("/x", 1), base=0, at=50)
    rig.change("a", put("/y", 1), base=1, at=60)
    rig.session.index.prune(1)
    assert rig.conflicts("b", put("/x", 2), base=0, at=55) == [("/x", 2, 1)]
    assert rig.conflicts("c", put("/x", 3), base=1, at=70) == [("/x", 3, 2)]


def test_a_session_does_not_weigh_all_that_was_ever_removed() -> None:
    """Rule M13. Removals were remembered for ever: a session with 10,000 of them took a second to
    open, and its saved state weighed a hundred times what was in it.
    """
    rig = Rig({"kept": 0} | {f"k{n}": n for n in range(100)}, Limits(max_removals_known=10))
    for number in range(100):
        rig.change("a", unset(f"/k{number}"), base=number)
        assert sum(1 for _ in rig.session.index) <= 10
    # What is remembered is told apart from what is not.
    assert rig.conflicts("b", put("/kept", 1), base=99) == []
    assert rig.conflicts("c", put("/kept", 2), base=0, at=1) == [("/kept", 1, 2)]
    rig = Rig({"n": 0}, Limits(max_removals_known=10))
    rig.change("a", put("/n", 1), base=0)
    for number in range(1, 101):
        rig.change("a", put("/again", 1), base=2 * number - 1)
        rig.change("a", unset("/again"), base=2 * number)
    assert rig.session.index.floor == 0, "one path that is removed again and again is one"

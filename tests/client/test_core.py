"""The client's state machine, input by input (`docs/protocol.md`, section 5)."""

from __future__ import annotations

import time
from typing import Any

import pytest

from reattach.client.effects import History, Network, Stop, TimerFired
from reattach.errors import ChangeRefused
from tests.client.device import (
    Device,
    Frame,
    added,
    commit,
    has,
    inc,
    replaced,
    set_,
    splice,
)

# Hello and welcome


def test_hello_comes_first_with_what_this_client_has() -> None:
    """Rule W2."""
    create = {"state": {"a": 1}}
    device = Device(create=create, schema_version=2, device={"name": "Worker"}).start()
    device.open("t")
    assert device.sent == [
        {
            "type": "hello",
            "client_id": device.core.client_id,
            "device": {"id": device.name, "name": "Worker"},
            "t": device.now,
            "epoch": None,
            "version": None,
            "seq": 0,
            "token": "t",
            "schema_version": 2,
            "create": create,
        }
    ]


def test_only_a_client_that_never_saw_the_session_asks_to_create_it() -> None:
    device = Device(create={"state": {"a": 1}}).join({"a": 1})
    device.close(1006)
    device.reopen()
    assert has(device.hello, epoch="E", version=0)
    assert "create" not in device.hello


def test_frames_before_the_welcome_and_after_the_end_are_nothing() -> None:
    device = Device().start()
    device.open()
    device.frame(commit(1))
    assert not device.core.known
    device.welcome({})
    device.feed(Stop())
    assert not device.linked()
    device.frame(commit(1, added("/a", 1)))
    assert device.shown == {}


def test_resumed_brings_every_commit_since_in_order() -> None:
    """Rule R1."""
    device = Device().join({"a": 0})
    device.close(1006)
    device.reopen()
    device.resumed(commit(1, replaced("/a", 1)), commit(2, replaced("/a", 2)))
    assert device.core.version == 2
    assert device.confirmed == {"a": 2}
    assert device.connection() == "online"


@pytest.mark.parametrize(
    "patch",
    [
        {"op": "remove", "path": "/gone"},
        {"op": "add", "path": "/gone/x", "value": 1},
        {"op": "remove", "path": "/list/3"},
        {"op": "str_ins", "path": "/a", "pos": 0, "str": "x"},
        {"op": "unheard of", "path": "/a"},
    ],
)
def test_a_patch_that_does_not_fit_is_never_applied(patch: Frame) -> None:
    device = Device(create={"state": {}}).join({"a": 0, "list": []})
    device.change(set_("/b", 1))
    device.frame(commit(1, replaced("/a", 5), patch))
    assert not device.linked()
    assert device.core.version == 0
    assert device.confirmed == {"a": 0, "list": []}
    assert device.shown == {"a": 0, "b": 1, "list": []}
    device.reopen()
    # The next hello asks for the whole state.
    assert has(device.hello, epoch=None, version=None)
    assert "create" not in device.hello
    device.welcome({"a": 5}, version=1)
    assert device.shown == {"a": 5, "b": 1}


# Commits


def test_commits_are_applied_in_their_order_and_once() -> None:
    device = Device().join({"a": 0})
    device.frame(commit(1, replaced("/a", 1)))
    device.frame(commit(1, replaced("/a", 7)))
    assert device.shown == {"a": 1}


def test_a_skipped_version_asks_to_sync_and_nothing_is_applied_until_the_answer() -> None:
    device = Device().join({"a": 0})
    device.frame(commit(2, replaced("/a", 2)))
    device.frame(commit(3, replaced("/a", 3)))
    asked = [frame for frame in device.sent if frame["type"] == "request_sync"]
    assert asked == [{"type": "request_sync", "epoch": "E", "version": 0}]
    assert device.shown == {"a": 0}
    device.resumed(*(commit(version, replaced("/a", version)) for version in (1, 2, 3)))
    assert device.shown == {"a": 3}
    device.frame(commit(4, replaced("/a", 4)))
    assert device.shown == {"a": 4}


def test_a_restore_is_a_commit() -> None:
    device = Device().join({"a": 0})
    frame = commit(1, replaced("/a", 9), from_version=0, to_version=0)
    device.frame({**frame, "type": "session_restored"})
    assert device.shown == {"a": 9}
    assert len(device.events_of("sessionRestored")) == 1


def test_what_an_application_is_told_is_not_what_the_state_is_made_of() -> None:
    device = Device().join({})
    frame = commit(1, added("/list", [{"id": "x"}]))
    device.frame(frame)
    device.frame(commit(2, added("/list/0/n", 1)))
    assert device.events_of("stateUpdateReceived")[0] == frame
    assert device.rows["commit/0000000000000001"]["patch"] == frame["patch"]


CONFLICT = {
    "id": "c",
    "path": "/a",
    "policy": "latest",
    "status": "auto",
    "kept": {"value": 1},
    "lost": {"value": 2},
    "version": 1,
}


def test_conflicts_come_and_go_with_the_commits_that_make_and_settle_them() -> None:
    device = Device().join({"a": 0})
    device.frame(commit(1, replaced("/a", 1), conflicts=[CONFLICT]))
    assert device.core.conflicts == [CONFLICT]
    assert device.events_of("conflictDetected") == [CONFLICT]
    # One whose settling is on its way is not shown any more.
    device.change({"op": "resolve", "conflict_id": "c", "keep": "lost"})
    assert device.core.conflicts == []
    device.frame({"type": "rejected", "seq": 1, "code": "already_resolved", "message": ""})
    assert device.core.conflicts == [CONFLICT]
    assert Device(device.rows).start().core.conflicts == [CONFLICT]
    device.frame(commit(2, conflicts=[{**CONFLICT, "status": "resolved"}]))
    assert device.core.conflicts == []


def test_a_welcome_names_the_open_conflicts_and_a_whole_state_forgets_the_others() -> None:
    device = Device().join({"a": 0})
    mine = {**CONFLICT, "id": "open", "status": "open"}
    device.frame(commit(1, conflicts=[CONFLICT, mine]))
    device.close(1006)
    device.reopen()
    device.resumed(conflicts=[])
    assert device.core.conflicts == [CONFLICT]
    device.close(1006)
    device.reopen()
    device.welcome({"a": 0}, version=9, conflicts=[mine])
    assert device.core.conflicts == [mine]


# Optimism


def test_pending_changes_are_shown_over_the_confirmed_state() -> None:
    device = Device().join({"a": 0, "b": 0})
    device.change(set_("/a", 1))
    assert device.shown == {"a": 1, "b": 0}
    assert device.confirmed == {"a": 0, "b": 0}
    device.frame(commit(1, replaced("/b", 5)))
    assert device.shown == {"a": 1, "b": 5}
    device.acknowledge(2, 1, replaced("/a", 1))
    assert device.confirmed == {"a": 1, "b": 5}
    status = device.core.status
    assert (status.pending, status.saved, status.saved_on_device) == (0, True, True)
    assert device.events_of("saved") == [{"version": 2}]


def test_an_acknowledgement_that_ends_otherwise_is_shown_as_it_ended() -> None:
    device = Device().join({"a": 0})
    ref = device.change(set_("/a", 1))
    device.acknowledge(1, 1)
    assert device.shown == {"a": 0}
    assert device.decided == [(ref, None)]


def test_what_is_pending_behind_an_acknowledgement_stays_whether_it_ends_as_expected() -> None:
    device = Device().join({"a": 0, "b": 0, "c": 0})
    for number in (1, 2, 3):
        device.change(set_("/a", number), inc("/b", number))
    # As expected; then another client's; then otherwise.
    device.acknowledge(1, 1, replaced("/a", 1), replaced("/b", 1))
    assert device.shown == {"a": 3, "b": 6, "c": 0}
    assert device.confirmed == {"a": 1, "b": 1, "c": 0}
    device.frame(commit(2, replaced("/b", 11)))
    assert device.shown == {"a": 3, "b": 16, "c": 0}
    device.acknowledge(3, 2, replaced("/b", 13))
    assert device.confirmed == {"a": 1, "b": 13, "c": 0}
    assert device.shown == {"a": 3, "b": 16, "c": 0}
    device.acknowledge(4, 3, replaced("/a", 3), replaced("/b", 16))
    assert device.shown == device.confirmed == {"a": 3, "b": 16, "c": 0}


def test_a_change_that_makes_no_sense_raises_and_nothing_is_left_of_it() -> None:
    """Rule O9."""
    device = Device().join({"a": 0})
    rows = dict(device.rows)
    with pytest.raises(ChangeRefused, match="parent") as refused:
        device.change(set_("/b", 1), set_("/x/y", 1))
    assert refused.value.code == "bad_path"
    assert device.shown == {"a": 0}
    assert device.changes == []
    assert device.rows == rows
    device.change(set_("/b", 1))
    assert device.changes[0]["seq"] == 1
    with pytest.raises(ChangeRefused) as refused:
        Device().change(set_("/a", 1))
    assert refused.value.code == "not_ready"


@pytest.mark.parametrize(
    ("op", "code"),
    [
        ({"op": "set", "path": "a", "value": 1}, "bad_path"),
        ({"op": "set", "path": "/list/0", "value": 1}, "bad_path"),
        ({"op": "set", "path": "/list/#x/id", "value": "y"}, "bad_id"),
        ({"op": "set", "path": "", "value": 1}, "bad_value"),
        ({"op": "set", "path": "/a", "value": float("nan")}, "bad_number"),
        ({"op": "set", "path": "/a", "value": 2**53 + 1}, "bad_number"),
        ({"op": "set", "path": "/a", "value": "\ud800"}, "bad_string"),
        ({"op": "set", "path": "/a", "value": {1}}, "bad_value"),
        ({"op": "set", "path": "/a", "value": (1,)}, "bad_value"),
        ({"op": "set", "path": "/a"}, "bad_op"),
        ({"op": "inc", "path": "/t", "by": 1}, "not_a_number"),
        ({"op": "inc", "path": "/a", "by": "1"}, "bad_op"),
        ({"op": "splice", "path": "/a", "index": 0, "delete": 0, "insert": "x"}, "not_a_string"),
        ({"op": "splice", "path": "/t", "index": 3, "delete": 0, "insert": "x"}, "bad_range"),
        ({"op": "insert", "path": "/a", "value": 1}, "not_a_list"),
        ({"op": "test", "path": "/a", "value": 1}, "test_failed"),
        ({"op": "no such"}, "bad_op"),
        ("set", "bad_op"),
    ],
)
def test_what_the_server_would_refuse_is_refused_here(op: Any, code: str) -> None:
    """Rules V2, V3, P1, P3, O1, O5, O6, O7, O9."""
    device = Device().join({"a": 0, "t": "ab", "list": [{"id": "x"}]})
    with pytest.raises(ChangeRefused) as refused:
        device.change(op)
    assert refused.value.code == code
    assert device.core.status.pending == 0


def test_nesting_is_limited_as_on_the_server() -> None:
    """Rule V5."""
    device = Device().join({})

    def nested(levels: int) -> Any:
        return [nested(levels - 1)] if levels > 1 else []

    device.change(set_("/a", nested(63)))
    with pytest.raises(ChangeRefused) as refused:
        device.change(set_("/a", nested(64)))
    assert refused.value.code == "too_deep"


def test_operations_end_here_as_they_end_at_the_server() -> None:
    """Rules V1, V4, P4, O1, O2, O3, O4, O5."""
    device = Device().join({"list": [{"id": "x"}, {"id": "y"}], "plain": [1, 2]})
    device.change(
        set_("/list/#z", {"id": "z"}),
        {"op": "unset", "path": "/gone"},
        {"op": "insert", "path": "/list", "value": {"id": "x", "n": 1.0}, "after": "gone"},
        {"op": "insert", "path": "/list", "value": {"id": "w"}, "after": None},
        {"op": "move", "path": "/list/#y", "after": None},
        {"op": "move", "path": "/list/#gone", "after": "x"},
        inc("/n", 2),
        {"op": "insert", "path": "/plain", "value": 3},
        {"op": "test", "path": "/list/#x/n", "value": 1},
    )
    assert [one["id"] for one in device.shown["list"]] == ["y", "w", "x", "z"]
    assert device.shown["plain"] == [1, 2, 3]
    assert device.shown["n"] == 2
    assert type(device.shown["list"][2]["n"]) is float


def test_an_inserted_object_without_an_id_gets_one() -> None:
    """Rule P3."""
    device = Device().join({"list": []})
    given = {"title": "x"}
    device.change({"op": "insert", "path": "/list", "value": given})
    (element,) = device.shown["list"]
    assert element["id"].startswith(f"{device.name}-id")
    assert device.changes[0]["ops"][0]["value"] == element
    assert given == {"title": "x"}


def test_what_is_sent_is_what_was_given_whatever_is_done_to_it_afterwards() -> None:
    device = Device().join({"list": []})
    given: Frame = {"id": "x", "tags": []}
    device.change({"op": "insert", "path": "/list", "value": given})
    given["tags"].append("later")
    device.change({"op": "insert", "path": "/list/#x/tags", "value": "t"})
    device.close(1006)
    device.reopen()
    device.resumed()
    assert device.changes[2]["ops"][0]["value"] == {"id": "x", "tags": []}


def test_of_a_pending_change_what_still_makes_sense_is_shown() -> None:
    device = Device().join({"box": {"n": 0}, "a": 0})
    device.change(set_("/box/m", 1), set_("/a", 1))
    device.change({"op": "test", "path": "/box", "value": {"n": 0, "m": 1}}, set_("/b", 1))
    assert device.shown == {"box": {"n": 0, "m": 1}, "a": 1, "b": 1}
    device.frame(commit(1, {"op": "remove", "path": "/box"}))
    # With a test in it, a change takes effect whole or not at all.
    assert device.shown == {"a": 1}
    device.frame(commit(2, added("/box", {"n": 0})))
    assert device.shown == {"a": 1, "b": 1, "box": {"n": 0, "m": 1}}


def test_thousands_of_offline_changes_stay_quick_and_drain_without_being_applied_anew() -> None:
    count = 4_000
    device = Device().join({"text": "", "n": 0})
    device.close(1006)
    started = time.process_time()
    for at in range(count):
        device.change(splice("/text", at, 0, "x"))
    typed = time.process_time()
    device.feed(Network(online=True))
    device.open()
    device.welcome({"text": "", "n": 0})
    for at in range(count):
        patch = {"op": "str_ins", "path": "/text", "pos": at, "str": "x"}
        device.acknowledge(at + 1, at + 1, patch)
    drained = time.process_time()
    assert device.core.status.pending == 0
    assert len(device.changes) == count
    assert device.shown == {"text": "x" * count, "n": 0}
    assert typed - started < 5
    assert drained - typed < 5


# The outbox


def test_a_change_is_sent_only_after_it_is_stored() -> None:
    """Rule B1."""
    device = Device().join({"a": 0})
    device.slow = True
    ref = device.change(set_("/a", 1))
    status = device.core.status
    assert (status.pending, status.saved_on_device, status.saved) == (1, False, False)
    # Whatever else happens meanwhile.
    device.frame(commit(1, added("/b", 1)))
    device.change(set_("/a", 2))
    assert device.changes == []
    assert device.kept == []
    device.finish()
    assert device.kept == [(ref, True)]
    assert [change["seq"] for change in device.changes] == [1]
    device.finish()
    assert [change["seq"] for change in device.changes] == [1, 2]
    assert device.core.status.saved_on_device
    change = device.changes[0]
    expected = {"seq": 1, "epoch": "E", "base": 0, "at": device.now, "ops": [set_("/a", 1)]}
    assert change == {"type": "change", **expected}


def test_a_crash_in_a_transaction_leaves_nothing_that_was_sent() -> None:
    """Rules B1, B2."""
    device = Device().join({"a": 0})
    device.change(set_("/a", 1))
    device.slow = True
    device.change(set_("/a", 2))
    after = Device(device.rows).start()
    after.open()
    after.resumed()
    assert after.shown == {"a": 1}
    assert after.changes == device.changes
    after.change(set_("/a", 3))
    assert after.changes[-1]["seq"] == 2


def test_numbers_times_and_bases() -> None:
    """Rules C1, C2."""
    device = Device().join({"a": 0})
    device.change(set_("/a", 1))
    device.now -= 500
    device.frame(commit(1, added("/b", 1)))
    device.change(set_("/a", 2))
    one, two = device.changes
    assert has(one, seq=1, base=0, at=1_000_000)
    assert has(two, seq=2, base=1, at=1_000_000)


def test_changes_that_gather_during_a_transaction_share_the_next() -> None:
    device = Device().join({"a": 0})
    device.slow = True
    before = device.transactions
    for number in range(50):
        device.change(set_("/a", number))
    device.finish()
    device.slow = False
    device.finish()
    assert device.transactions == before + 2
    assert [change["seq"] for change in device.changes] == list(range(1, 51))


def test_a_restart_without_a_server_shows_the_document_and_sends_the_rest_then() -> None:
    """Rules B1, X2."""
    before = Device().join({"a": 0}, version=7)
    before.change(set_("/a", 1))
    before.acknowledge(8, 1, replaced("/a", 1))
    before.frame(commit(9, added("/c", 1)))
    before.change(set_("/b", 2))

    after = Device(before.rows).start()
    assert after.core.client_id == before.core.client_id
    assert after.shown == {"a": 1, "b": 2, "c": 1}
    assert (after.core.version, after.core.epoch) == (9, "E")
    assert after.core.status.pending == 1
    assert after.core.status.saved_on_device
    after.open()
    assert has(after.hello, epoch="E", version=9, seq=1)
    after.resumed(seq=1, seq_at=before.now)
    assert has(after.changes[0], seq=2, base=9, ops=[set_("/b", 2)])


def test_what_is_decided_is_gone_with_the_transaction_that_keeps_its_effect() -> None:
    """Rule B1."""
    device = Device().join({"a": 0})
    for number in (1, 2, 3):
        device.change(set_("/a", number))
    device.acknowledge(1, 1, replaced("/a", 1))
    device.acknowledge(2, 2, replaced("/a", 2))
    after = Device(device.rows).start()
    assert after.confirmed == {"a": 2}
    assert [pending.change["seq"] for pending in after.core.pending] == [3]


def test_the_snapshot_is_written_anew_by_what_the_commits_after_it_weigh() -> None:
    device = Device().join({"t": ""})
    text = "x" * 9_000
    for version in range(1, 6):
        device.frame(commit(version, replaced("/t", f"{text}{version}")))
    commits = [key for key in device.rows if key.startswith("commit/")]
    assert len(commits) < 5
    assert Device(device.rows).start().confirmed == {"t": f"{text}5"}


def test_a_session_can_be_started_offline() -> None:
    """Rule B6."""
    create = {"state": {"a": 0}}
    device = Device(create=create).start()
    assert not device.core.known
    device.close(1006, "nobody there")
    assert device.shown == {"a": 0}
    assert device.core.status.error == ("unreachable", "nobody there")
    device.change(set_("/a", 1))
    after = Device(device.rows, create=create).start()
    assert after.shown == {"a": 1}
    after.open()
    assert has(after.hello, epoch=None, version=None, create=create)
    # The epoch is in the outbox before it is sent.
    after.slow = True
    after.welcome({"a": 0}, created=True)
    assert after.changes == []
    after.finish()
    assert has(after.changes[0], seq=1, epoch="E", base=0)
    assert after.rows["change/0000000000000001"]["change"]["epoch"] == "E"


# Exactly once


def test_after_a_welcome_what_is_undecided_is_sent_again_unaltered() -> None:
    """Rules X2, X6."""
    device = Device().join({"a": 0})
    for number in (1, 2, 3):
        device.change(set_("/a", number))
    first = device.changes
    device.close(1006)
    device.reopen()
    device.sent = []
    # The acknowledgements of 1 and 2 were lost.
    mine = device.core.client_id
    device.resumed(
        commit(1, replaced("/a", 1), by={"client_id": mine, "seq": 1}),
        commit(2, replaced("/a", 2), by={"client_id": mine, "seq": 2}),
        seq=2,
        seq_at=first[1]["at"],
    )
    assert device.changes == [first[2]]
    assert [code for _, code in device.decided] == [None, None]


def test_what_the_welcome_says_is_decided_is_in_its_state() -> None:
    """Rule X2."""
    device = Device().join({"a": 0})
    ref = device.change(set_("/a", 1))
    device.close(1006)
    device.reopen()
    device.welcome({"a": 1}, version=1, seq=1, seq_at=device.changes[0]["at"])
    assert device.decided == [(ref, None)]
    assert device.core.status.pending == 0
    assert len(device.changes) == 1
    assert device.shown == {"a": 1}


def test_refusals_that_the_client_did_not_hear_of_come_with_the_welcome() -> None:
    """Rule X3."""
    device = Device().join({"a": 0})
    device.change(set_("/a", 1))
    device.change(set_("/b", 1))
    device.close(1006)
    device.reopen()
    by = {"client_id": device.core.client_id, "seq": 2}
    refusal = {"seq": 1, "code": "forbidden", "message": "no"}
    at = device.changes[1]["at"]
    device.resumed(commit(1, added("/b", 1), by=by), seq=2, seq_at=at, rejected=[refusal])
    assert [code for _, code in device.decided] == ["forbidden", None]
    assert device.shown == {"a": 0, "b": 1}


def test_a_sequence_gap_is_answered_with_what_was_expected_and_all_after_it() -> None:
    """Rule X4."""
    device = Device().join({"a": 0})
    for number in (1, 2, 3):
        device.change(set_("/a", number))
    device.sent = []
    device.frame({"type": "error", "code": "sequence_gap", "message": "", "expected": 2})
    assert [change["seq"] for change in device.changes] == [2, 3]


def test_no_more_changes_are_on_their_way_than_the_server_reads() -> None:
    """Rule L2."""
    device = Device().join({"n": 0})
    for _ in range(300):
        device.change(inc("/n"))
    assert len(device.changes) == 256
    device.acknowledge(1, 1, replaced("/n", 1))
    assert len(device.changes) == 257


# A client whose record is not the server's


def cloned() -> Device:
    device = Device().join({"n": 0})
    for by in (1, 2, 3):
        device.change(inc("/n", by))
    device.close(1006)
    device.reopen()
    return device


def test_another_time_at_the_last_number_takes_a_new_name_and_asks_the_history() -> None:
    """Rule B5."""
    device = cloned()
    one, two, three = device.changes
    old = device.core.client_id
    device.sent = []
    device.resumed(seq=3, seq_at=77)
    assert device.asked is not None
    assert (device.asked.client_id, device.asked.from_version) == (old, 1)
    assert not device.linked()

    def by(seq: int, at: int) -> Frame:
        return {"at": 1, "client_at": at, "by": {"client_id": old, "seq": seq}}

    # 1 was this client's own; 2 and 3 are those of the other one with this name.
    device.history(by(1, one["at"]), by(2, 76), by(3, 77))
    assert device.core.client_id != old
    assert len(device.decided) == 1
    device.open()
    assert has(device.hello, client_id=device.core.client_id, seq=0)
    device.welcome({"n": 1}, version=3)
    assert device.changes == [{**two, "seq": 1}, {**three, "seq": 2}]
    assert device.shown == {"n": 6}


@pytest.mark.parametrize(("seq", "seq_at"), [(9, 1), (0, None)])
def test_so_does_a_number_that_this_client_never_gave_out_or_one_too_low(
    seq: int, seq_at: int | None
) -> None:
    """Rule B5."""
    device = cloned()
    device.resumed(seq=3, seq_at=device.changes[2]["at"])
    device.close(1006)
    device.reopen()
    device.resumed(seq=seq, seq_at=seq_at)
    assert device.asked is not None


def test_so_do_a_number_used_twice_and_a_commit_under_this_name_that_was_never_sent() -> None:
    """Rules X5, B5."""
    device = cloned()
    device.resumed()
    device.frame({"type": "error", "code": "seq_reused", "message": ""})
    assert device.asked is not None

    other = Device().join({"n": 0})
    other.acknowledge(1, 1, replaced("/n", 1))
    assert other.asked is not None

    # Nor can a change be decided that waits for its transaction.
    waiting = Device().join({"n": 0})
    waiting.slow = True
    waiting.change(inc("/n"))
    waiting.acknowledge(1, 1, replaced("/n", 1))
    assert waiting.asked is not None


def test_where_the_history_cannot_be_had_nothing_is_sent_meanwhile() -> None:
    device = cloned()
    device.sent = []
    device.resumed(seq=3, seq_at=77)
    old = device.core.client_id
    device.feed(History(None))
    device.reopen()
    assert device.changes == []
    assert has(device.hello, client_id=old, seq=0)


def test_the_new_name_is_in_the_outbox_before_anything_is_sent_under_it() -> None:
    """Rules B1, B5."""
    device = Device().join({"n": 0})
    device.change(inc("/n"))
    device.frame({"type": "error", "code": "seq_reused", "message": ""})
    device.slow = True
    device.history()
    assert not device.linked()
    device.finish()
    assert device.linked()
    after = Device(device.rows).start()
    assert after.core.client_id == device.core.client_id
    assert after.core.status.pending == 1


def test_a_transaction_under_the_old_name_does_not_allow_the_new_one() -> None:
    """Rules B1, B5."""
    device = Device().join({"n": 0})
    device.slow = True
    device.change(inc("/n"))
    device.frame({"type": "error", "code": "seq_reused", "message": ""})
    device.history()
    device.finish()
    assert not device.linked()
    assert not device.core.status.saved_on_device
    device.finish()
    assert device.linked()
    assert device.core.status.saved_on_device


def test_a_disk_that_went_back_in_time_sends_nothing_twice() -> None:
    """Rule B5."""
    device = Device().join({"n": 0})
    device.change(inc("/n", 1))
    old_rows = dict(device.rows)
    device.change(inc("/n", 10))
    one, two = device.changes

    after = Device(old_rows).start()
    after.open()
    after.welcome({"n": 11}, version=2, seq=2, seq_at=two["at"] + 1)
    assert after.asked is not None
    by = {"client_id": device.core.client_id}
    after.history(
        *({"at": 1, "client_at": c["at"], "by": {**by, "seq": c["seq"]}} for c in (one, two))
    )
    after.open()
    after.welcome({"n": 11}, version=2)
    assert after.changes == []
    assert after.shown == {"n": 11}


# Another epoch


def test_history_lost_sends_what_is_undecided_under_a_new_name() -> None:
    """Rule E1."""
    device = Device().join({"a": 0, "n": 0}, version=5)
    for number in (1, 2, 3):
        device.change(set_("/a", number))
    device.acknowledge(6, 1, replaced("/a", 1))
    old = device.core.client_id
    device.close(1006)
    device.reopen()
    device.welcome({"a": 0, "n": 0}, epoch="F", version=4)
    assert device.events_of("historyLost") == [
        {"lost": {"epoch": "E", "version": 6, "state": {"a": 1, "n": 0}}}
    ]
    device.open()
    device.sent = []
    assert device.core.client_id != old
    device.welcome({"a": 0, "n": 0}, epoch="F", version=4)
    two, three = device.changes
    assert has(two, seq=1, epoch="E", base=5, ops=[set_("/a", 2)])
    assert has(three, seq=2, epoch="E", base=5, ops=[set_("/a", 3)])
    assert device.shown == {"a": 3, "n": 0}
    device.change(set_("/a", 4))
    assert has(device.changes[-1], seq=3, epoch="F", base=4)


def test_in_another_epoch_what_the_server_has_decided_is_dropped() -> None:
    """Rule E1."""
    device = Device().join({"a": 0})
    device.change(set_("/a", 1))
    device.change(set_("/a", 2))
    device.close(1006)
    device.reopen()
    device.welcome({"a": 1}, epoch="F", version=1, seq=1, seq_at=device.now)
    device.open()
    device.sent = []
    device.welcome({"a": 1}, epoch="F", version=1)
    (left,) = device.changes
    assert has(left, seq=1, ops=[set_("/a", 2)])


# Refusals and limits


def test_a_refused_change_is_kept_until_it_is_dealt_with() -> None:
    """Rule L3."""
    device = Device().join({"a": 0})
    ref = device.change(set_("/a", 1))
    refusal = {"type": "rejected", "seq": 1, "code": "forbidden", "message": "no", "path": "/a"}
    device.frame(refusal)
    assert device.decided == [(ref, "forbidden")]
    assert device.shown == {"a": 0}
    assert device.core.status.saved

    after = Device(device.rows).start()
    kept = after.core.rejected[ref]
    assert has(kept, code="forbidden", path="/a")
    assert kept["change"]["ops"] == [set_("/a", 1)]
    # Made anew, it is in the outbox and not in the list, in one transaction.
    transactions = after.transactions
    after.run(after.core.change([set_("/a", 2)], "again", after.now, replaces=ref))
    assert after.transactions == transactions + 1
    last = Device(after.rows).start()
    assert last.core.rejected == {}
    assert last.shown == {"a": 2}


def test_a_refused_change_can_be_forgotten() -> None:
    """Rule L3."""
    device = Device().join({"a": 0})
    ref = device.change(set_("/a", 1))
    device.frame({"type": "rejected", "seq": 1, "code": "forbidden", "message": "no"})
    device.run(device.core.discard(ref))
    assert Device(device.rows).start().core.rejected == {}


def test_load_uses_up_no_number() -> None:
    """Rule L1."""
    device = Device().join({"a": 0})
    device.change(set_("/a", 1))
    device.change(set_("/a", 2))
    device.sent = []
    error = {"type": "error", "code": "unavailable", "message": "", "retry_after_ms": 700}
    device.frame(error)
    # What came behind it was ignored by the server, which says so once.
    device.frame({"type": "error", "code": "sequence_gap", "message": "", "expected": 1})
    device.change(set_("/a", 3))
    assert device.changes == []
    device.advance(699)
    assert device.changes == []
    device.advance(1)
    assert [change["seq"] for change in device.changes] == [1, 2, 3]


def test_an_error_before_the_welcome_waits_as_long_as_it_says() -> None:
    """Rule R2."""
    device = Device().start()
    device.open()
    error = {"type": "error", "code": "unavailable", "message": "", "retry_after_ms": 1_000}
    device.frame(error)
    assert not device.linked()
    device.advance(999)
    assert not device.linked()
    device.advance(1_001)
    assert device.linked()


def test_a_client_too_old_for_the_schema_stays_read_only_with_its_outbox() -> None:
    """Rule L7."""
    schema = {"name": "S", "version": 3}
    device = Device(schema_version=1).join({"a": 0}, schema=schema, policies={"/a": "max"})
    error = {"type": "error", "code": "upgrade_required", "message": "upgrade"}
    device.frame(error)
    device.frame(error)
    assert device.events_of("upgradeRequired") == [{"message": "upgrade"}]
    device.change(set_("/a", 1))
    assert device.changes == []
    status = device.core.status
    assert (status.connection, status.pending) == ("online", 1)
    assert status.saved_on_device
    assert status.error == ("upgrade_required", "upgrade")
    device.frame(commit(1, added("/b", 1)))
    assert device.shown == {"a": 1, "b": 1}
    device.close(1006)
    device.reopen()
    device.resumed(schema=schema, policies={"/a": "max"})
    assert device.core.status.read_only
    assert device.changes == []

    newer = Device(device.rows, schema_version=3).start()
    assert newer.core.policies == {"/a": "max"}
    newer.open()
    newer.resumed(schema=schema)
    assert not newer.core.status.read_only
    assert newer.core.policies == {}
    assert has(newer.changes[0], seq=1, schema_version=1)


@pytest.mark.parametrize(("code", "name"), [(4400, "bad_frame"), (4413, "too_large")])
def test_a_change_that_closes_its_connection_twice_is_refused_here(code: int, name: str) -> None:
    """Rule L4."""
    device = Device().join({"a": 0})
    device.change(set_("/a", 1))
    bad = device.change(set_("/a", 2))
    device.change(set_("/a", 3))

    def again(seq: int) -> None:
        device.reopen()
        device.sent = []
        device.resumed(seq=seq, seq_at=1_000_000 if seq else None)

    device.close(code)
    # From now on one by one: 1 passes.
    again(0)
    assert [change["seq"] for change in device.changes] == [1]
    device.acknowledge(1, 1, replaced("/a", 1))
    assert [change["seq"] for change in device.changes] == [1, 2]
    device.close(code)
    assert device.decided[-1] == (bad, name)
    assert device.core.rejected[bad]["change"]["seq"] == 2
    again(1)
    two, three = device.changes
    assert has(two, seq=2, ops=[])
    assert has(three, seq=3, ops=[set_("/a", 3)])
    after = Device(device.rows).start()
    kept = [(pending.change["seq"], pending.change["ops"]) for pending in after.core.pending]
    assert kept == [(2, []), (3, [set_("/a", 3)])]
    device.acknowledge(2, 2)
    device.acknowledge(3, 3, replaced("/a", 3))
    assert list(device.core.rejected) == [bad]
    assert device.core.status.saved


# Close codes and coming back


def test_full_jitter_up_to_thirty_seconds() -> None:
    device = Device().join({})
    device.random = 1 - 1e-9
    bounds = []
    for _ in range(9):
        device.close(1006)
        wait = device.timers["connect"] - device.now
        bounds.append(round(wait))
        device.advance(wait + 1)
    assert bounds == [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]
    device.random = 0
    device.close(1006)
    assert device.timers["connect"] == device.now


def test_a_connection_that_stood_a_while_makes_the_next_attempt_a_first_one() -> None:
    device = Device().join({})
    for _ in range(5):
        device.close(1006)
        device.reopen()
    device.resumed()
    device.advance(4_000)
    device.close(1006)
    assert device.timers["connect"] - device.now == 8_000
    device.reopen()
    device.resumed()
    device.advance(4_000)
    device.frame({"type": "heartbeat"})
    device.advance(2_000)
    device.close(1006)
    assert device.timers["connect"] - device.now == 250


def test_ten_attempts_that_fail_are_told_once_and_it_goes_on_more_slowly() -> None:
    device = Device().join({})
    waits = []
    for _ in range(14):
        device.close(1006)
        waits.append(device.timers["connect"] - device.now)
        device.reopen()
    assert device.events_of("maxReconnectAttemptsReached") == [{"attempts": 10}]
    assert (waits[0], waits[9], waits[10], waits[13]) == (250, 15_000, 30_000, 30_000)


def test_back_at_once_when_the_network_is() -> None:
    device = Device().join({})
    device.feed(Network(online=False))
    device.close(1006)
    assert device.connection() == "offline"
    device.random = 0.9
    device.feed(Network(online=True))
    assert device.linked()
    assert device.connection() == "reconnecting"


@pytest.mark.parametrize(
    ("code", "name"),
    [(4403, "forbidden"), (4404, "session_not_found"), (4410, "session_ended")],
)
def test_some_codes_end_it_and_the_outbox_stays(code: int, name: str) -> None:
    """Rules L8, F1."""
    device = Device().join({"a": 0})
    device.change(set_("/a", 1))
    device.close(code)
    device.advance(3_600_000)
    assert device.connects == 1
    status = device.core.status
    assert (status.connection, status.pending) == ("closed", 1)
    assert status.error is not None
    assert status.error[0] == name
    device.change(set_("/a", 2))
    assert Device(device.rows).start().shown == {"a": 2}


def test_not_authenticated_connects_again_with_a_fresh_token() -> None:
    device = Device().join({})
    device.close(4401)
    status = device.core.status
    assert status.error is not None
    assert status.error[0] == "not_authenticated"
    device.advance(device.timers["connect"] - device.now)
    device.open("fresh")
    assert device.hello["token"] == "fresh"
    device.resumed()
    assert device.core.status.error is None


def test_superseded_it_comes_back_for_it_holds_its_outbox() -> None:
    """Rules F2, F3."""
    device = Device().join({})
    device.close(4409)
    device.advance(60_000)
    assert device.linked()
    assert device.asked is None


def test_a_server_that_restarts_is_given_a_random_part_of_its_jitter() -> None:
    device = Device().join({}, reconnect_jitter_ms=8_000)
    device.random = 0.25
    device.close(1012)
    assert device.timers["connect"] == device.now + 2_000


def test_too_slow_to_read_waits_longer() -> None:
    """Rule L9."""
    device = Device().join({})
    device.close(4429)
    assert device.timers["connect"] - device.now == 2_000


# Heartbeats


def beats(device: Device) -> int:
    return sum(frame["type"] == "heartbeat" for frame in device.sent)


def test_a_heartbeat_after_an_interval_of_silence_and_no_sooner() -> None:
    """Rule H1."""
    device = Device().join({})
    device.advance(4_999)
    assert beats(device) == 0
    device.advance(1)
    assert beats(device) == 1
    device.frame({"type": "heartbeat"})
    device.advance(4_999)
    assert beats(device) == 1


def test_silence_means_reconnecting() -> None:
    """Rule H2."""
    device = Device().join({})
    device.advance(14_999)
    assert device.connection() == "online"
    device.advance(1)
    assert device.connection() == "reconnecting"
    assert not device.linked()


def test_any_frame_is_a_sign_of_life() -> None:
    """Rule H1."""
    device = Device().join({})
    for version in range(1, 20):
        device.advance(4_000)
        device.frame(commit(version))
    assert device.connection() == "online"


def test_a_clock_that_is_set_back_hides_no_silence() -> None:
    """Rule H2. Found by the simulator: a dead line looked fresh for a day."""
    device = Device().join({})
    device.now -= 86_400_000
    device.feed(TimerFired("beat"))
    device.advance(15_000)
    assert device.connection() == "reconnecting"


def test_a_process_that_was_stopped_asks_for_a_sign_of_life_first() -> None:
    """Rule H2."""
    device = Device().join({})
    device.timers.clear()
    device.now += 60_000
    device.feed(TimerFired("beat"))
    assert device.connection() == "online"
    assert beats(device) == 1
    device.advance(10_000)
    assert device.connection() == "reconnecting"


def test_a_welcome_that_does_not_come_ends_the_attempt() -> None:
    device = Device().start()
    # A user may take all day to sign in; then it is the server that is waited for.
    device.advance(86_400_000)
    assert device.connects == 1
    device.open()
    device.advance(15_000)
    assert not device.linked()
    device.advance(1_000)
    assert device.linked()


# A disk that fails, and none


def test_a_disk_that_fails_says_so_goes_on_in_memory_and_pretends_nothing() -> None:
    """Rule B4."""
    device = Device().join({"a": 0})
    device.failing = "disk full"
    ref = device.change(set_("/a", 1))
    assert device.kept == [(ref, False)]
    status = device.core.status
    assert (status.storage, status.saved_on_device) == ("memory", False)
    assert status.error == ("storage", "disk full")
    # The server is as good as ever.
    device.change(set_("/a", 2))
    assert [change["seq"] for change in device.changes] == [1, 2]
    device.acknowledge(1, 1, replaced("/a", 1))
    assert not device.core.status.saved


def test_a_disk_that_fails_is_tried_again_and_takes_all_that_it_missed() -> None:
    """Rule B1."""
    device = Device().join({"a": 0})
    device.failing = "disk full"
    device.change(set_("/a", 1))
    device.change(set_("/a", 2))
    device.change(set_("/a", 3))
    device.acknowledge(1, 1, replaced("/a", 1))
    device.frame({"type": "rejected", "seq": 2, "code": "forbidden", "message": "no"})
    device.failing = ""
    device.advance(5_000)
    status = device.core.status
    assert (status.storage, status.error) == ("durable", None)
    assert status.saved_on_device
    after = Device(device.rows).start()
    assert after.confirmed == {"a": 1}
    assert [pending.change["seq"] for pending in after.core.pending] == [3]
    assert len(after.core.rejected) == 1


def test_what_a_failed_transaction_should_have_written_comes_with_the_next() -> None:
    """Rule B1."""
    device = Device().join({"a": 0})
    device.failing = "disk full"
    device.change(set_("/a", 1))
    device.failing = ""
    device.advance(5_000)
    assert Device(device.rows).start().shown == {"a": 1}


def test_without_an_outbox_all_is_in_memory_and_says_so() -> None:
    """Rule B4."""
    device = Device(durable=False).join({"a": 0})
    ref = device.change(set_("/a", 1))
    assert device.kept == [(ref, False)]
    assert device.transactions == 0
    assert device.rows == {}
    status = device.core.status
    assert (status.storage, status.saved_on_device) == ("memory", False)
    assert status.error is None
    device.acknowledge(1, 1, replaced("/a", 1))
    assert device.core.status.saved
    device.close(4409)
    device.reopen()
    assert device.hello["client_id"] == device.core.client_id

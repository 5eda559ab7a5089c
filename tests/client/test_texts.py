"""Pending splices, carried over whatever became of their texts (`docs/protocol.md`, TX1 to TX6)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.client.device import Device, Frame, added, commit, has, replaced, set_, splice
from tests.core.rig import Rig


def ins(path: str, pos: int, text: str) -> Frame:
    return {"op": "str_ins", "path": path, "pos": pos, "str": text}


def cut(path: str, pos: int, length: int) -> Frame:
    return {"op": "str_del", "path": path, "pos": pos, "len": length}


def typing(text: str, *ops: Frame) -> Device:
    device = Device().join({"t": text, "list": [{"id": "x", "t": ""}]})
    for op in ops:
        device.change(op)
    return device


@pytest.mark.parametrize(
    ("patch", "shown"),
    [
        ([cut("/t", 0, 1), ins("/t", 0, "AA")], "AAb|cd"),
        ([replaced("/t", "abXcd")], "abX|cd"),
        ([replaced("", {"t": "xabcd", "list": []})], "xab|cd"),
        # One step that is no edit makes the whole commit a plain edit.
        ([ins("/t", 0, "1"), replaced("/t", "abcd2")], "ab|cd2"),
        ([{"op": "remove", "path": "/t"}], "|"),
        ([replaced("/t", "")], "|"),
        ([replaced("/t", "abcd")], "ab|cd"),
        ([ins("/list/0/t", 0, "x")], "ab|cd"),
    ],
)
def test_what_others_committed_is_read_as_edits(patch: list[Frame], shown: str) -> None:
    """Rules TX1, TX2, X6: what was sent is not altered."""
    device = typing("abcd", splice("/t", 2, 0, "|"))
    device.frame(commit(1, *patch))
    assert device.shown["t"] == shown
    assert device.changes[0]["ops"] == [splice("/t", 2, 0, "|")]


def test_a_text_whose_whole_state_was_replaced_by_one_without_it() -> None:
    """Rule TX2."""
    device = typing("abcd", splice("/t", 2, 0, "|"), splice("/t", 3, 0, "|"))
    device.frame(commit(1, replaced("", {})))
    assert device.shown == {"t": "||"}


def test_an_element_keeps_its_text_wherever_it_goes() -> None:
    """Rule TX2."""
    device = Device().join({"list": [{"id": "x", "t": "abcd"}, {"id": "y", "t": "abcd"}]})
    device.change(splice("/list/#x/t", 2, 0, "|"))
    device.frame(
        commit(
            1,
            ins("/list/0/t", 0, "1"),
            {"op": "move", "from": "/list/0", "path": "/list/1"},
            added("/list/0", {"id": "z", "t": ""}),
            ins("/list/1/t", 0, "not this one"),
            ins("/list/2/t", 1, "2"),
        )
    )
    assert [one["id"] for one in device.shown["list"]] == ["z", "y", "x"]
    assert device.shown["list"][2]["t"] == "12ab|cd"
    device.frame(commit(2, {"op": "remove", "path": "/list/2"}))
    assert [one["id"] for one in device.shown["list"]] == ["z", "y"]


def test_a_move_in_a_commit_leaves_its_edits_as_they_are() -> None:
    """Rule TX2."""
    device = Device().join({"list": [{"id": "x", "t": "aaaa"}, {"id": "y"}]})
    device.change(splice("/list/#x/t", 2, 0, "|"))
    move = {"op": "move", "from": "/list/0", "path": "/list/1"}
    device.frame(commit(1, ins("/list/0/t", 0, "a"), move))
    assert device.shown["list"][1]["t"] == "aaa|aa"


def test_each_pending_splice_is_carried_through_those_before_it() -> None:
    """Rules TX3, TX4: at one position what was committed first stands left."""
    device = typing("ab", splice("/t", 1, 0, "1"), splice("/t", 2, 0, "2"), splice("/t", 0, 2, ""))
    assert device.shown["t"] == "2b"
    device.frame(commit(1, ins("/t", 1, "X")))
    # What was put inside of what this client takes out stays.
    assert device.shown["t"] == "X2b"


def test_an_own_commit_that_ended_otherwise_carries_what_was_typed_behind_it() -> None:
    """Rules TX5, TX6."""
    device = typing("old", set_("/t", "mine"), splice("/t", 4, 0, "!"))
    assert device.shown["t"] == "mine!"
    device.frame(commit(1, replaced("/t", "theirs mine")))
    # The own write stands over it, until the server says that it does not.
    assert device.shown["t"] == "mine!"
    device.acknowledge(2, 1)
    assert device.shown["t"] == "theirs mine!"
    assert device.changes[1]["ops"] == [splice("/t", 4, 0, "!")]


def test_a_refused_change_has_shown_its_text_too() -> None:
    """Rule TX5."""
    device = typing("ab", splice("/t", 0, 0, "no "), splice("/t", 4, 0, "|"))
    assert device.shown["t"] == "no a|b"
    device.frame({"type": "rejected", "seq": 1, "code": "forbidden", "message": ""})
    assert device.shown["t"] == "a|b"
    # Where the second ends is the server's to say, which has never seen the first.
    device.sent = []
    device.change(splice("/t", 2, 0, "!"))
    assert device.changes == []
    device.acknowledge(1, 2, ins("/t", 2, "|"))
    assert device.shown["t"] == "ab|!"
    (late,) = device.changes
    assert has(late, seq=3, base=1, ops=[splice("/t", 3, 0, "!")])


def guessing() -> Device:
    """The server knows exactly how the first reads over what was missed; the client guesses."""
    device = Device().join({"t": "abcd"})
    device.change(splice("/t", 1, 2, "X"))
    device.close(1006)
    device.reopen()
    device.welcome({"t": "ad bc"}, version=9)
    device.sent = []
    return device


def test_what_is_typed_behind_a_guess_is_sent_as_it_reads_when_it_is_none_any_more() -> None:
    """Rule TX5."""
    device = guessing()
    device.change(splice("/t", len(device.shown["t"]), 0, "!"))
    device.change(set_("/n", 1))
    assert device.changes == []
    status = device.core.status
    assert (status.pending, status.saved_on_device) == (3, True)
    # The server had removed nothing: what the first took out was gone already.
    device.slow = True
    device.acknowledge(10, 1, ins("/t", 1, "X"))
    assert device.shown == {"t": "aXd bc!", "n": 1}
    # As it reads now it is in the outbox before it is sent.
    assert device.changes == []
    device.finish()
    device.slow = False
    two, three = device.changes
    assert has(two, seq=2, base=10, ops=[splice("/t", 6, 0, "!")])
    assert has(three, seq=3, base=9)
    device.change(splice("/t", 0, 0, "?"))
    assert has(device.changes[-1], seq=4, base=10, ops=[splice("/t", 0, 0, "?")])


def test_so_it_is_by_a_process_that_starts_anew() -> None:
    """Rules B1, TX5."""
    device = guessing()
    device.change(splice("/t", 0, 0, "?"))
    after = Device(device.rows).start()
    after.open()
    after.resumed()
    assert [change["seq"] for change in after.changes] == [1]
    assert after.changes[0]["ops"] == [splice("/t", 1, 2, "X")]
    after.acknowledge(10, 1, ins("/t", 1, "X"))
    assert after.shown == {"t": "?aXd bc"}
    assert has(after.changes[-1], seq=2, base=10, ops=[splice("/t", 0, 0, "?")])


def test_a_splice_that_is_made_anew_does_not_claim_more_than_what_is_behind_it_has_seen() -> None:
    """Rules E1, M14: the second would else take out what its author never saw."""
    device = typing("", splice("/t", 0, 0, "one"), set_("/t", "one two"), splice("/t", 0, 0, "> "))
    device.close(1006)
    device.reopen()
    device.welcome({"t": "theirs", "list": []}, epoch="F", version=4)
    device.open()
    device.sent = []
    device.resumed(epoch="F")
    one, two, three = device.changes
    # The first is in the second, whose base tells what it was written over.
    assert has(one, seq=1, base=4, epoch="F", ops=[])
    assert has(two, seq=2, base=0, epoch="E", ops=[set_("/t", "one two")])
    assert has(three, seq=3, base=4, epoch="F", ops=[splice("/t", 0, 0, "> ")])
    assert device.shown["t"] == "> one two"


def test_what_may_be_refused_covers_nothing() -> None:
    """Rules E1, L3."""
    device = typing("", splice("/t", 0, 0, "one"))
    device.change({"op": "test", "path": "/t", "value": "one"}, {"op": "unset", "path": "/t"})
    device.close(1006)
    device.reopen()
    device.welcome({"t": "theirs", "list": []}, epoch="F", version=4)
    device.open()
    device.sent = []
    device.resumed(epoch="F")
    assert has(device.changes[0], seq=1, base=0, epoch="E", ops=[splice("/t", 0, 0, "one")])


def test_what_is_made_anew_behind_a_change_that_stays_waits_for_it() -> None:
    """Rules E1, TX5."""
    device = typing("ab", splice("/t", 2, 0, "1"))
    device.change(set_("/n", 1), splice("/t", 3, 0, "2"))
    device.change(splice("/t", 4, 0, "3"))
    device.close(1006)
    device.reopen()
    device.welcome({"t": "ab", "list": []}, epoch="F", version=4)
    device.open()
    device.sent = []
    device.resumed(epoch="F")
    # Each is sent as it reads when the one before it is decided.
    version = 4
    for seq, (at, text) in enumerate([(2, "1"), (3, "2"), (4, "3")], 1):
        assert [change["seq"] for change in device.changes] == list(range(1, seq + 1))
        version += 1
        more = [added("/n", 1)] if text == "2" else []
        device.acknowledge(version, seq, *more, ins("/t", at, text))
    assert has(device.changes[2], epoch="F", base=6, ops=[splice("/t", 4, 0, "3")])
    assert device.shown["t"] == "ab123"
    assert device.core.status.saved


def test_a_welcome_with_the_whole_state_is_a_commit_of_all_that_was_missed() -> None:
    """Rules TX2, TX4."""
    device = typing("ab", splice("/t", 1, 0, "1"), splice("/t", 3, 0, "2"))
    at = device.changes[0]["at"]
    device.close(1006)
    device.reopen()
    device.welcome({"t": "xa1b", "list": []}, version=2, seq=1, seq_at=at)
    assert device.shown["t"] == "xa1b2"


ELEMENT = "/list/#x/t"


@pytest.mark.parametrize(
    "whole",
    [
        set_(ELEMENT, "mine"),
        set_("/list/#x", {"id": "x", "t": "mine"}),
        {"op": "insert", "path": "/list", "value": {"id": "x", "t": "mine"}},
        set_("", {"list": [{"id": "x", "t": "mine"}]}),
    ],
)
def test_an_own_whole_write_covers_what_came_before(whole: Frame) -> None:
    """Rule TX6."""
    device = Device().join({"list": [{"id": "x", "t": "ab"}]})
    for op in (splice(ELEMENT, 1, 0, "1"), whole, splice(ELEMENT, 4, 0, "!")):
        device.change(op)
    device.frame(commit(1, ins("/list/0/t", 0, "long ")))
    assert device.shown == {"list": [{"id": "x", "t": "mine!"}]}
    views = [pending.view for pending in device.core.pending]
    assert views[0] == [splice(ELEMENT, 6, 0, "1")]
    assert views[2] == [splice(ELEMENT, 4, 0, "!")]


def test_behind_an_own_removal_edits_begin_with_nothing() -> None:
    """Rule TX6."""
    device = typing("ab", {"op": "unset", "path": "/t"}, splice("/t", 0, 0, "new"))
    device.frame(commit(1, ins("/t", 0, "x")))
    assert device.shown["t"] == "new"


def test_what_is_numbered_anew_reads_as_it_was_shown() -> None:
    """Rules B5, TX4."""
    device = typing("ab", splice("/t", 1, 0, "1"), splice("/t", 2, 0, "2"))
    one = device.changes[0]
    by = {"client_id": device.core.client_id, "seq": 1}
    device.frame(commit(1, ins("/t", 0, "x")))
    device.frame({"type": "error", "code": "seq_reused", "message": ""})
    device.history({"by": by, "at": 1, "client_at": one["at"]})
    device.sent = []
    device.open()
    device.resumed(commit(2, ins("/t", 2, "1"), by=by))
    # The first was committed under the old name, and is somebody else's now.
    (two,) = device.changes
    assert (two["seq"], two["base"]) == (1, 1)
    assert two["ops"] == [splice("/t", 2, 0, "2")]
    assert device.shown["t"] == "xa12b"


def test_a_restart_shows_splices_where_they_were_carried_to() -> None:
    """Rules B1, TX4."""
    device = typing("ab", splice("/t", 2, 0, "|"))
    device.frame(commit(1, ins("/t", 0, "xyz")))
    after = Device(device.rows).start()
    assert after.shown["t"] == device.shown["t"] == "xyzab|"
    assert after.core.pending[0].change == device.core.pending[0].change


# Cursors


def test_a_cursor_stays_behind_what_stands_before_it() -> None:
    device = typing("ab")
    cursor = device.core.cursor("/t")
    assert cursor.pos == 2
    device.change(splice("/t", 2, 0, "|"))
    # What is put in right at it comes behind it.
    assert cursor.pos == 2
    cursor.pos = 3
    device.change(splice("/t", 0, 1, "xyz"))
    assert cursor.pos == 5
    device.frame(commit(1, ins("/t", 2, "R"), ins("/t", 0, "L")))
    # At one position what was committed first stands left, of pending text, too.
    assert device.shown["t"] == "LxyzbR|"
    assert cursor.pos == 7
    device.frame(commit(2, cut("/t", 0, 3)))
    assert cursor.pos == len(device.shown["t"])
    device.change(set_("/t", f"{device.shown['t']} end"))
    assert device.shown["t"][: cursor.pos].endswith("|")
    device.core.drop(cursor)
    assert device.core.get("/t", "") == device.shown["t"]


def test_a_cursor_moves_with_what_became_of_pending_text() -> None:
    device = typing("ab", splice("/t", 0, 0, "no "))
    cursor = device.core.cursor("/t")
    device.frame({"type": "rejected", "seq": 1, "code": "forbidden", "message": ""})
    assert cursor.pos == 2
    device.close(1006)
    device.reopen()
    device.welcome({"t": "long ab"}, version=5, seq=1, seq_at=1_000_000)
    assert cursor.pos == 7


# Three clients, long offline spans, positions beyond the BMP


class Net:
    """Three devices, the server's decisions, and a network that holds what it likes."""

    def __init__(self, seed: int, *, whole: bool) -> None:
        self.chance = random.Random(seed)
        self.whole = whole
        self.rig = Rig({"t": ""})
        self.devices: list[Device] = []
        self.heard: list[int] = []
        """Up to which version each was told."""
        self.up: list[list[Frame]] = [[], [], []]
        self.inserted = ""
        self.removed: set[str] = set()
        self.made = 0
        # The server's books on the text begin before anybody looks.
        self.rig.change("first", splice("/t", 0, 0, self.fresh(1)))
        for _ in range(3):
            self.devices.append(Device().join(self.rig.state, version=self.rig.version))
            self.heard.append(self.rig.version)

    def fresh(self, count: int) -> str:
        """Each character is another one; every second lies beyond the BMP."""
        made = "".join(
            chr((0x20000 if number % 2 else 0x4E00) + number)
            for number in range(self.made, self.made + count)
        )
        self.made += count
        self.inserted += made
        return made

    def text(self, device: Device) -> str:
        text = device.core.state.get("t", "")
        assert isinstance(text, str)
        return text

    def step(self) -> None:
        at = self.chance.randrange(3)
        device = self.devices[at]
        device.now += 10
        act = self.chance.choices(
            ["type", "write", "decide", "hear", "cut", "crash", "join"],
            [8, 2 if self.whole else 0, 4, 4, 1, 1, 3],
        )[0]
        if act == "type":
            text = self.text(device)
            index = self.chance.randint(0, len(text))
            gone = text[index : index + self.chance.choice([0, 0, 1, 4])]
            self.removed |= set(gone)
            new = self.fresh(self.chance.randint(0, 3))
            device.change(splice("/t", index, len(gone), new))
        elif act == "write":
            keep = self.text(device) if self.chance.random() < 0.5 else ""
            value = keep + self.fresh(2)
            device.now += self.chance.randint(0, 50)
            above = self.chance.random() < 0.5
            device.change(set_("", {"t": value}) if above else set_("/t", value))
        elif act == "decide":
            self.decide(at, self.chance.randint(1, 4))
        elif act == "hear":
            self.hear(at, self.chance.randint(1, 4))
        elif act == "cut":
            self.cut(at)
        elif act == "crash":
            self.cut(at)
            before = self.text(device), device.core.client_id
            again = Device(device.rows).start()
            again.now = device.now
            assert (self.text(again), again.core.client_id) == before
            self.devices[at] = again
        elif device.core.status.connection != "online":
            self.join(at)

    def decide(self, at: int, most: int) -> None:
        """The server decides up to so many changes of a device."""
        device = self.devices[at]
        self.up[at] += device.changes
        device.sent = []
        for change in self.up[at][:most]:
            known = self.rig.session.clients.get(device.core.client_id)
            if known is not None and change["seq"] <= known.seq:
                continue
            frame = self.rig.change(
                device.core.client_id, *change["ops"], base=change["base"], at=change["at"]
            )
            assert frame["type"] == "state_update", frame
            frame["by"]["seq"] = change["seq"]
        del self.up[at][:most]

    def hear(self, at: int, most: int) -> None:
        device = self.devices[at]
        for frame in self.rig.frames[self.heard[at] : self.heard[at] + most]:
            if device.core.status.connection != "online":
                return
            self.heard[at] += 1
            mine = frame["by"]["client_id"] == device.core.client_id
            before = self.text(device)
            device.frame(frame)
            if mine and not self.whole:
                # A change of splices ends as it was shown.
                assert self.text(device) == before

    def cut(self, at: int) -> None:
        self.up[at].clear()
        device = self.devices[at]
        if device.core.status.connection == "online":
            device.close(1006)
        device.sent = []

    def join(self, at: int) -> None:
        device = self.devices[at]
        device.reopen()
        known = self.rig.session.clients.get(device.core.client_id)
        seq, seq_at = (known.seq, known.at) if known is not None and known.seq else (0, None)
        missed = self.rig.frames[device.core.version :]
        common: dict[str, Any] = {"version": self.rig.version, "seq": seq, "seq_at": seq_at}
        if self.chance.random() < 0.3 and device.core.status.pending == 0:
            device.welcome(self.rig.state, **common)
        else:
            device.resumed(*missed, **common)
        self.heard[at] = self.rig.version

    def settle(self) -> None:
        for _ in range(3):
            for at, device in enumerate(self.devices):
                if device.core.status.connection != "online":
                    self.join(at)
                self.decide(at, 10_000)
            for at in range(3):
                self.hear(at, 10_000)
        for device in self.devices:
            assert device.core.status.pending == 0
            assert device.core.version == self.rig.version
            assert device.shown == self.rig.state


@pytest.mark.parametrize("seed", range(60))
def test_whatever_arrives_when_there_is_one_text_with_every_character(seed: int) -> None:
    """Rules TX1 to TX4."""
    net = Net(seed, whole=False)
    for _ in range(120):
        net.step()
    net.settle()
    kept = [one for one in net.inserted if one not in net.removed]
    assert sorted(net.rig.state["t"]) == sorted(kept)


@pytest.mark.parametrize("seed", range(60))
def test_with_whole_writes_among_them_everybody_ends_with_one_text(seed: int) -> None:
    """Rules TX5, TX6."""
    net = Net(seed, whole=True)
    for _ in range(120):
        net.step()
    net.settle()

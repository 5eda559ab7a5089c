"""What has to hold for any run of changes by clients that see each other late or never."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import msgspec
import pytest

from reattach.core.paths import parse
from reattach.core.session import Session
from reattach.core.values import equal
from reattach.store.base import CommitRecord, Loaded, SavedState
from tests.core.rig import Rig, inc, insert, move, put, splice, unset

STATE: dict[str, Any] = {
    "n": 0,
    "t": "text",
    "o": {"x": 0, "p": {"y": 0}},
    "l": [{"id": "1", "v": 0, "sub": []}, {"id": "2", "v": 0}, "loose"],
}
PATHS = [
    "/n",
    "/t",
    "/o",
    "/o/x",
    "/o/p",
    "/o/p/y",
    "/o/q",
    "/l",
    "/l/#1",
    "/l/#1/v",
    "/l/#2",
    "/k",
]


def apply_patch(state: Any, patch: list[dict[str, Any]]) -> Any:
    """A second, naive reading of RFC 6902 with text operations, to check the first against."""
    for op in patch:
        tokens = parse(op["path"])
        if not tokens:
            state = copy.deepcopy(op["value"])
            continue
        target = state
        for token in tokens[:-1]:
            target = target[int(token)] if isinstance(target, list) else target[token]
        key: Any = int(tokens[-1]) if isinstance(target, list) else tokens[-1]
        match op["op"]:
            case "add" if isinstance(target, list):
                target.insert(key, copy.deepcopy(op["value"]))
            case "add":
                assert key not in target
                target[key] = copy.deepcopy(op["value"])
            case "replace":
                assert key in target if isinstance(target, dict) else key < len(target)
                target[key] = copy.deepcopy(op["value"])
            case "remove":
                del target[key]
            case "move":
                source = int(parse(op["from"])[-1])
                target.insert(key, target.pop(source))
            case "str_ins":
                text = target[key]
                target[key] = text[: op["pos"]] + op["str"] + text[op["pos"] :]
            case "str_del":
                text = target[key]
                target[key] = text[: op["pos"]] + text[op["pos"] + op["len"] :]
    return state


class Story:
    """Changes by four clients, each with a base somewhere behind, from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.unique = 1000
        self.seen = dict.fromkeys("abcd", 0)

    def value(self) -> Any:
        self.unique += 1
        shapes: list[Any] = [self.unique, f"v{self.unique}", {"x": self.unique}]
        return self.random.choice(shapes)

    def op(self) -> dict[str, Any]:
        draw = self.random
        path = draw.choice(PATHS)
        match draw.randrange(12):
            case 0:
                return unset(path)
            case 1 | 2:
                return inc(draw.choice(["/n", "/o/x", "/o/p/y", "/l/#1/v"]), draw.randrange(1, 9))
            case 3 | 4:
                element: Any = {"id": str(draw.randrange(1, 7)), "v": self.value()}
                element = element if draw.random() < 0.9 else self.value()
                after = {} if draw.random() < 0.5 else {"after": draw.choice([None, "1", "2"])}
                return insert(draw.choice(["/l", "/l/#1/sub"]), element, **after)
            case 5:
                return move(f"/l/#{draw.randrange(1, 5)}", after=draw.choice([None, "1", "2"]))
            case 6:
                text = draw.choice(["", "é\U0001f600"])
                return splice("/t", draw.randrange(4), draw.randrange(2), text)
            case 7:
                return put("/l", [{"id": "1", "v": self.value()}, {"id": "9", "v": self.value()}])
            case 8:
                return put("/o", {"x": self.value(), "p": {"y": self.value()}})
            case _:
                value = self.value()
                if path.startswith("/l/#") and path.count("/") == 2:
                    value = {"id": path[4:], "v": value}
                return put(path, value)

    def step(self, rig: Rig) -> tuple[str, list[dict[str, Any]], int, int]:
        client = self.random.choice("abcd")
        if self.random.random() < 0.5:
            self.seen[client] = self.random.randint(self.seen[client], rig.version)
        ops = [self.op() for _ in range(self.random.choice([1, 1, 1, 2, 3]))]
        at = rig.now + self.random.randrange(-20, 20)
        return client, ops, self.seen[client], at


def likeness(session: Session) -> Any:
    """Everything that decides what comes next."""
    index = json.loads(session.index.dump())
    clients = index[2]
    rows = sorted(
        [
            [clients[cell] if at in {2, 7} else cell for at, cell in enumerate(row)]
            for row in index[3]
        ],
        key=str,
    )
    return copy.deepcopy(
        [
            session.document.state,
            session.document.weight,
            session.version,
            session.record.version,
            session.log_bytes,
            rows,
            sorted(session.unresolved.items()),
        ]
    )


@pytest.mark.parametrize("chunk", range(10))
def test_every_client_every_reload_and_every_abort_agree(chunk: int) -> None:
    for seed in range(chunk * 40, chunk * 40 + 40):
        story, rig = Story(seed), Rig(STATE)
        mirror = copy.deepcopy(STATE)
        for number in range(40):
            client, ops, base, at = story.step(rig)
            if number % 5 == 0:
                before = likeness(rig.session)
                seqs = {name: one.seq for name, one in rig.session.clients.items()}
                rig.session.cut()
                rig.decide(client, *ops, base=base, at=at)
                rig.decide(client, *ops, base=base, at=at)
                rig.session.abort()
                assert likeness(rig.session) == before, f"seed {seed}, abort at {number}"
                assert {name: rig.session.clients[name].seq for name in seqs} == seqs
            frame = rig.change(client, *ops, base=base, at=at)
            if frame["type"] == "state_update":
                mirror = apply_patch(mirror, frame["patch"])
            assert mirror == rig.state, f"seed {seed}, change {number}: {ops}"
            assert rig.session.document.weight == len(msgspec.json.encode(rig.state))
        assert likeness(rig.reload()) == likeness(rig.session), f"seed {seed}, reload"


@pytest.mark.parametrize("chunk", range(5))
def test_a_saved_state_and_the_log_after_it_are_the_session(chunk: int) -> None:
    for seed in range(chunk * 20, chunk * 20 + 20):
        story, rig = Story(seed), Rig(STATE)
        saved: SavedState | None = None
        conflicts: Any = {}
        for number in range(40):
            client, ops, base, at = story.step(rig)
            rig.change(client, *ops, base=base, at=at)
            if number < 20:
                conflicts |= rig.session.conflicts
            if number == 20:
                saved = rig.session.save()
                conflicts |= rig.session.conflicts
        assert saved is not None
        tail = [commit for commit in rig.log if commit.version > saved.version]
        loaded = Loaded(
            session=rig.session.record,
            saved=saved,
            tail=tail,
            conflicts=list(conflicts.values()),
            devices=(),
        )
        again = likeness(Session(loaded, rig.limits))
        live = likeness(rig.session)
        again[4] = live[4] = 0  # what the log weighs since the newest saved state
        assert again == live, f"seed {seed}"


def leaves(value: Any) -> set[Any]:
    """The values of a story are unique: where one is found it is the one that was written."""
    if isinstance(value, dict):
        return set().union(*(leaves(one) for one in value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*(leaves(one) for one in value)) if value else set()
    if isinstance(value, bool) or value is None:
        return set()
    unique = isinstance(value, int) and value > 1000
    return {value} if unique or (isinstance(value, str) and value.startswith("v1")) else set()


@pytest.mark.parametrize("chunk", range(10))
def test_the_promise(chunk: int) -> None:
    """Rule M14: a write is in the state, in a conflict, or replaced by who had seen it."""
    for seed in range(chunk * 60, chunk * 60 + 60):
        story, rig = Story(seed), Rig(STATE)
        written: list[tuple[int, int, str, str, Any]] = []
        touched: list[tuple[int, int, str, int, str]] = []
        records: dict[str, Any] = {}
        for _ in range(40):
            client, ops, base, at = story.step(rig)
            ops = [op for op in ops if op["op"] not in {"inc", "splice"}]
            frame = rig.change(client, *ops, base=base, at=at)
            if frame["type"] != "state_update":
                continue
            for op in ops:
                path, order = op["path"], len(touched)
                if op["op"] == "insert":
                    name = op["value"].get("id") if isinstance(op["value"], dict) else None
                    path += f"/#{name}" if name else "/-"
                if op["op"] in {"set", "insert"}:
                    found = leaves(op["value"])
                    written += [(order, frame["version"], client, path, leaf) for leaf in found]
                touched.append((order, frame["version"], client, base, path))
            records |= {one["id"]: one for one in frame.get("conflicts", ())}
        kept = leaves(rig.state) | leaves([one["kept"].get("value") for one in records.values()])
        kept |= leaves([one["lost"].get("value") for one in records.values()])
        for order, version, client, path, value in written:
            replaced = any(
                (author == client or seen >= version)
                and (path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/"))
                for _, _, author, seen, other in touched[order + 1 :]
            )
            assert value in kept or replaced, (
                f"seed {seed}: {value!r} at {path} by {client} in {version} is lost"
            )


def test_a_lost_value_is_not_pushed_out_of_its_record_by_the_other_side() -> None:
    """Regression, seed 1347: the pair's one record was used anew although who had lost had not
    written again, and the value in it was gone.
    """
    rig = Rig({"l": [{"id": "1", "sub": []}]})
    rig.change("b", put("/l", [{"id": "1", "sub": [], "b": 1}]), base=0, at=10)
    first = insert("/l/#1/sub", {"id": "4", "v": "first"})
    rig.change("d", put("/l/#1", {"id": "1"}), first, base=0, at=50)
    rig.change("b", insert("/l/#1/sub", {"id": "4", "v": "second"}), base=0, at=60)
    held = leaves_of_text(rig)
    assert {"first", "second"} <= held


def test_an_older_lost_value_does_not_push_out_a_newer_one() -> None:
    """Regression, seed 4219: an old removal that lost took the record of a later value."""
    rig = Rig({"n": 0})
    rig.change("a", unset("/n"), base=0, at=10)
    rig.change("c", unset("/n"), base=0, at=90)
    lost = rig.change("a", put("/n", 5), base=0, at=20)["conflicts"][0]
    again = rig.change("c", put("/n", 6), base=0, at=91)["conflicts"][0]
    assert again["id"] != lost["id"]


def leaves_of_text(rig: Rig) -> set[str]:
    records: dict[str, Any] = {}
    for commit in rig.log:
        records |= {one["id"]: one for one in json.loads(commit.body).get("conflicts", ())}
    return {
        one["lost"]["value"]["v"] for one in records.values() if "v" in one["lost"].get("value", {})
    }


def test_equal_knows_types() -> None:
    assert equal({"a": [1, 2.0]}, {"a": [1.0, 2]})
    assert not equal({"a": True}, {"a": 1})
    assert not equal(None, False)
    assert not equal([1], [1, 2])
    assert not equal({"a": 1}, {"b": 1})
    assert not equal("1", 1)


def test_decided_in_one_batch_as_in_many() -> None:
    for seed in range(50):
        one, many = Rig(STATE), Rig(STATE)
        story, twin = Story(seed), Story(seed)
        one.session.cut()
        for _ in range(20):
            client, ops, base, at = twin.step(one)
            decision = one.decide(client, *ops, base=base, at=at)
            assert story.step(many) == (client, ops, base, at)
            frame = many.change(client, *ops, base=base, at=at)
            many.now = one.now
            assert json.loads(decision.body) == frame
            assert isinstance(decision, CommitRecord) == (frame["type"] == "state_update")
        one.session.land()
        assert likeness(one.session) == likeness(many.session)

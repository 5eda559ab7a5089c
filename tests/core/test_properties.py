"""What has to hold for any run of changes by clients that see each other late or never."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest

from reattach.core.document import ABSENT
from reattach.core.paths import Path, parse
from reattach.core.policy import ANY, POLICIES, Field, Policy
from reattach.core.session import Session
from reattach.core.values import equal
from reattach.store.base import CommitRecord, Loaded, SavedState
from reattach.wire import encode
from tests.core.rig import Rig, inc, insert, move, put, splice, unset

STATE: dict[str, Any] = {
    "n": 0,
    "t": "text",
    "o": {"x": 0, "p": {"y": 0, "t": "abc"}},
    "l": [{"id": "1", "v": 0, "t": "xy", "sub": []}, {"id": "2", "v": 0}, "loose"],
    "d": {"k": {"v": 1, "t": "q"}},
    "u": [1, {"id": "7", "v": 0}],
}
PATHS = [
    "",
    *("/n", "/t", "/k"),
    *("/o", "/o/x", "/o/q", "/o/p", "/o/p/y", "/o/p/t"),
    *("/l", "/l/#1", "/l/#1/v", "/l/#1/t", "/l/#1/sub", "/l/#1/sub/#4", "/l/#2", "/l/#2/v"),
    *("/d", "/d/k", "/d/k/v", "/d/k/t", "/d/j"),
    *("/u", "/u/#7", "/u/#7/v"),
]
TEXTS = [path for path in PATHS if path.endswith("/t")]


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


def any_fields(chance: random.Random) -> Field:
    """A schema's policies, at any depth."""

    def one(some: float) -> Field:
        drawn = chance.random() < some
        return Field(chance.choice(sorted(POLICIES)) if drawn else Policy.LATEST)

    root = one(0.2)
    for path in PATHS:
        field = root
        for token in parse(path):
            key = ANY if token[:1] == "#" or field is root.fields.get("d") else token
            field = field.fields.setdefault(key, one(0.7))
    return root


class Story:
    """Changes by four clients, each with a base somewhere behind, from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.unique = 1000
        self.seen = dict.fromkeys("abcd", 0)
        # One story in four knows no schema.
        self.fields = any_fields(self.random) if seed % 4 else Field()

    def rig(self) -> Rig:
        rig = Rig(STATE)
        rig.session.fields = self.fields
        return rig

    def leaf(self) -> Any:
        self.unique += 1
        return self.random.choice([self.unique, f"v{self.unique}"])

    def value(self, path: str) -> Any:
        draw, leaf = self.random, self.leaf
        if path and draw.random() < 0.1:
            return draw.choice([None, True, "", 5, [leaf()], {"x": leaf()}])
        match parse(path)[-1:]:
            case ():
                return {token: self.value(f"/{token}") for token in STATE}
            case ("o",):
                return {"x": leaf(), "p": {"y": leaf()}}
            case ("p" | "k" | "j",):
                return {"y": leaf(), "v": leaf(), "t": f"v{leaf()}"}
            case ("d",):
                return {"k": self.value("/d/k"), "z": leaf()}
            case ("l" | "u" | "sub",):
                ids = draw.sample(range(1, 10), draw.randrange(3))
                return [{"id": str(one), "v": leaf()} for one in ids] + [leaf()]
            case (token,) if token[:1] == "#":
                return {"id": token[1:], "v": leaf()}
            case _:
                return leaf()

    def op(self) -> dict[str, Any]:
        draw = self.random
        path = draw.choice(PATHS)
        match draw.randrange(13):
            case 0 if path:
                return unset(path)
            case 1:
                return inc(draw.choice(["/n", "/o/x", "/o/p/y", "/l/#1/v"]), draw.randrange(1, 9))
            case 2 | 3:
                element: Any = {"id": str(draw.randrange(1, 8)), "v": self.leaf()}
                element = element if draw.random() < 0.85 else self.leaf()
                after = {} if draw.random() < 0.5 else {"after": draw.choice([None, "1", "2"])}
                return insert(draw.choice(["/l", "/l/#1/sub", "/u"]), element, **after)
            case 4:
                behind = draw.choice([None, "1", "2"])
                return move(f"/{draw.choice('lu')}/#{draw.randrange(1, 8)}", after=behind)
            case 5 | 6:
                text = draw.choice(["", "ab", "é\U0001f600"])
                return splice(draw.choice(TEXTS), draw.randrange(4), draw.randrange(3), text)
            case _:
                return put(path, self.value(path))

    def step(self, rig: Rig) -> tuple[str, list[dict[str, Any]], int, int]:
        draw = self.random
        client = draw.choice("abcd")
        if draw.random() < 0.5:
            self.seen[client] = draw.randint(self.seen[client], rig.version)
        at = rig.now + draw.randrange(-20, 20)
        if rig.session.unsettled and draw.random() < 0.15:
            conflict = draw.choice(list(rig.session.unsettled.values()))
            keep = draw.choice(["kept", "lost", {"value": self.value(conflict.path)}])
            base = draw.choice([self.seen[client], rig.version])
            return client, [{"op": "resolve", "conflict_id": conflict.id, "keep": keep}], base, at
        ops = [self.op() for _ in range(draw.choice([1, 1, 1, 2, 3]))]
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
            books(session),
            json.loads(encode(sorted(session.unsettled.items()))),
            sorted(session.unresolved.items()),
        ]
    )


def books(session: Session) -> Any:
    """What is remembered of texts, in one order."""
    return sorted(
        [path, floor, weight, last, [[tuple(chunk[:4]), *read(chunk)] for chunk in chunks]]
        for path, floor, weight, last, chunks in json.loads(bytes(session.texts.dump()))
    )


def read(chunk: list[Any]) -> list[Any]:
    """What a part of a text's books tells, by the names of its authors."""
    *_, clients, rows = chunk
    return [[version, clients[name], *more] for version, name, *more in rows]


def disagree(conflict: Any) -> bool:
    """Rule M10; what was typed over a text that is not known is no value to compare."""
    kept, lost = (conflict[side].get("value", ABSENT) for side in ("kept", "lost"))
    if conflict["status"] == "resolved" or "base" in conflict["lost"]:
        return True
    if kept is ABSENT or lost is ABSENT:
        return kept is not lost
    return not equal(kept, lost)


@pytest.mark.parametrize("chunk", range(10))
def test_every_client_every_reload_and_every_abort_agree(chunk: int) -> None:
    for seed in range(chunk * 20, chunk * 20 + 20):
        story = Story(seed)
        rig = story.rig()
        mirror = copy.deepcopy(STATE)
        for number in range(40):
            client, ops, base, at = story.step(rig)
            before = likeness(rig.session) if number % 5 == 0 else None
            if before is not None:
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
            elif before is not None:
                assert likeness(rig.session) == before, f"seed {seed}, refusal {number}"
            for one in frame.get("conflicts", ()):
                assert disagree(one), f"seed {seed}, change {number}: {one}"
            assert mirror == rig.state, f"seed {seed}, change {number}: {ops}"
            assert rig.session.document.weight == len(msgspec.json.encode(rig.state))
        assert likeness(rig.reload()) == likeness(rig.session), f"seed {seed}, reload"


@pytest.mark.parametrize("chunk", range(5))
def test_a_saved_state_and_the_log_after_it_are_the_session(chunk: int) -> None:
    for seed in range(chunk * 20, chunk * 20 + 20):
        story = Story(seed)
        rig = story.rig()
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
        # Which record is used anew next may differ: what it holds was replaced by its author.
        again[-1] = live[-1] = ()
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


class Written(NamedTuple):
    version: int
    client: str
    seen: int
    path: Path
    """An operation path."""
    leaves: list[tuple[Path, Any]]
    """The unique values in it, and where."""


def written(frame: Any, ops: list[dict[str, Any]], base: int) -> Iterator[Written]:
    """What a commit's operations wrote."""
    author = frame["by"]["client_id"]
    for op in ops:
        value, path = op.get("value"), op.get("path", "")
        if op["op"] == "resolve":
            path = next(one["path"] for one in frame["conflicts"] if one["status"] == "resolved")
            path = path.removesuffix("/-")
            value = op["keep"]["value"] if isinstance(op["keep"], dict) else None
        elif op["op"] == "insert":
            name = value.get("id") if isinstance(value, dict) else None
            path += f"/#{name}" if name else "/-"
        if op["op"] == "move" or op.get("keep") == "kept":
            continue
        found = list(places(value, parse(path)))
        yield Written(frame["version"], author, base, parse(path), found)


def places(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for item in value:
            name = item.get("id") if isinstance(item, dict) else None
            yield from places(item, (*path, f"#{name}" if name else "-"))
    else:
        for leaf in leaves(value):
            yield path, leaf


@pytest.mark.parametrize("chunk", range(10))
def test_the_promise(chunk: int) -> None:
    """Rule M14: a write is in the state, in a conflict, merged, or replaced by who had seen it."""
    for seed in range(chunk * 60, chunk * 60 + 60):
        story = Story(seed)
        rig = story.rig()
        wrote: list[Written] = []
        records: dict[str, Any] = {}
        for _ in range(40):
            client, ops, base, at = story.step(rig)
            ops = [op for op in ops if op["op"] not in {"inc", "splice"}]
            frame = rig.change(client, *ops, base=base, at=at)
            if frame["type"] == "state_update":
                wrote += written(frame, ops, base)
                records |= {one["id"]: one for one in frame.get("conflicts", ())}
        sides = [one[side].get("value") for one in records.values() for side in ("kept", "lost")]
        kept = leaves([rig.state, *sides])
        for order, one in enumerate(wrote):
            for path, value in one.leaves:
                replaced = any(
                    (later.client == one.client or later.seen >= one.version)
                    and all(mine == theirs for mine, theirs in zip(path, later.path, strict=False))
                    for later in wrote[order + 1 :]
                )
                assert value in kept or replaced or merges(story.fields, path), (
                    f"seed {seed}: {value!r} at {path} by {one.client} in {one.version} is lost"
                )


def merges(fields: Field, path: Path) -> bool:
    """Whether a value there may end as another: the smaller gives way, a text is cut up."""
    policies = {fields.at(path[:length]) for length in range(len(path) + 1)}
    return bool(policies & {Policy.MAX, Policy.MIN, Policy.TEXT})


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


def test_a_record_that_is_not_used_anew_stays_the_one_of_its_pair() -> None:
    """Regression, seed 59: a typed text that lost took away the other side's record without using
    it, so that a node that read the log knew more than the one that had written it.
    """
    rig = Rig({"t": ""})
    rig.change("b", put("/t", "b"), base=0, at=50)
    assert rig.change("a", put("/t", "a"), base=0, at=10)["conflicts"]
    rig.change("a", unset("/t"), base=2, at=60)
    assert rig.change("b", splice("/t", 0, 1, "x"), base=1, at=70)["conflicts"]
    assert rig.reload().unresolved == rig.session.unresolved


def test_a_value_that_a_union_replaced_has_a_new_writer() -> None:
    """Regression, seed 578: a union's key still counted as written by who had lost it there, and
    the next write pushed what they had lost out of its record.
    """
    rig = Rig({"d": {"k": {"v": 0}}})
    rig.session.fields = Field()
    rig.session.fields.fields["d"] = Field(Policy.LATEST)
    rig.session.fields.fields["d"].fields["k"] = Field(Policy.UNION)
    rig.change("d", put("/d/k/v", "first"), base=0, at=10)
    lost = rig.change("a", put("/d/k", {"v": "second"}), base=0, at=20)["conflicts"][0]
    assert lost["lost"]["value"] == "first"
    assert "conflicts" not in rig.change("a", unset("/d/k"), base=0, at=30)
    assert rig.session.unsettled[lost["id"]].version == lost["version"]


def test_what_an_author_added_to_anothers_value_is_not_the_others_alone() -> None:
    """Rule M11. Regression, seed 486."""
    rig = Rig({"n": 0})
    rig.change("b", put("/n", 5), base=0, at=10)
    rig.change("d", inc("/n", 3), base=0, at=11)
    record = rig.change("d", put("/n", 1), base=0, at=12)["conflicts"][0]
    assert (record["lost"]["value"], record["lost"]["merged"]) == (8, True)


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
        story, twin = Story(seed), Story(seed)
        one, many = story.rig(), twin.rig()
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

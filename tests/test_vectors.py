"""The cases of `vectors/`, over the server's core; `vectors/README.md` says how they read."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from reattach.core.document import Document
from reattach.core.patch import step
from reattach.core.paths import parse
from reattach.core.policy import Field
from reattach.core.text import Edit, apply, carry, plain
from reattach.core.values import equal
from reattach.wire import Operation, PatchOperation
from tests.core.rig import Rig

VECTORS = Path(__file__).parent.parent / "vectors"

Case = dict[str, Any]


def cases(file: str) -> pytest.MarkDecorator:
    """Have a test run over each case of a file, under the case's name."""
    found = json.loads((VECTORS / f"{file}.json").read_text())["cases"]
    names = [case["name"] for case in found]
    assert len(set(names)) == len(names), f"a name in {file}.json stands twice"
    return pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in found])


@pytest.mark.parametrize("file", sorted(VECTORS.glob("*.json")), ids=lambda file: file.stem)
def test_the_rules_that_cases_name_are_the_protocols(file: Path) -> None:
    protocol = (VECTORS.parent / "docs" / "protocol.md").read_text()
    named = {
        rule for case in json.loads(file.read_text())["cases"] for rule in case.get("rules", ())
    }
    assert not {rule for rule in named if f"**{rule}**" not in protocol}


def patched(state: Any, patch: list[Any]) -> Any:
    document = Document(copy.deepcopy(state))
    step(document, copy.deepcopy(patch))
    return document.state


@cases("apply")
def test_apply(case: Case) -> None:
    rig = Rig(copy.deepcopy(case["state"]))
    frame = rig.change("me", *case["ops"], base=0)
    if "refused" in case:
        assert frame["type"] == "rejected", frame
        assert frame["code"] == case["refused"]
        assert "path" not in case or frame["path"] == case["path"]
        assert equal(rig.state, case["state"])
        return
    assert frame["type"] == "state_update", frame
    assert frame["patch"] == case["patch"]
    assert equal(rig.state, case["after"])
    assert equal(patched(case["state"], case["patch"]), case["after"])
    msgspec.convert(case["ops"], list[Operation])
    msgspec.convert(case["patch"], list[PatchOperation])


def edits(given: list[Any]) -> list[Edit]:
    return [
        Edit(one["pos"], len(one["str"]), one["str"], True)
        if "str" in one
        else Edit(one["pos"], one["len"], None, False)
        for one in given
    ]


def told(made: list[Edit]) -> list[Any]:
    return [
        {"pos": one.pos, "str": one.text} if one.inserts else {"pos": one.pos, "len": one.length}
        for one in made
    ]


@cases("transform")
def test_transform(case: Case) -> None:
    if "before" in case:
        assert told(plain(case["before"], case["after"])) == case["edits"]
        return
    text, first, then = case["text"], edits(case["first"]), edits(case["then"])
    first_after, then_after = carry(first, then)
    assert told(first_after) == case["first_after"]
    assert told(then_after) == case["then_after"]
    assert apply(apply(text, first), then_after) == case["result"]
    assert apply(apply(text, then), first_after) == case["result"]


def fields(policies: dict[str, str]) -> Field:
    root = Field()
    for path, policy in policies.items():
        field = root
        for token in parse(path):
            field = field.fields.setdefault(token, Field())
        field.policy = policy
    return root


class Records:
    """A session's conflict records, with ids as a case has them: `$1` is the first."""

    def __init__(self) -> None:
        self._ids: list[str] = []

    def read(self, ops: list[Any]) -> list[Any]:
        def named(found: re.Match[str]) -> str:
            return json.dumps(self._ids[int(found[1]) - 1])

        read: list[Any] = json.loads(re.sub(r'"\$(\d+)"', named, json.dumps(ops)))
        return read

    def told(self, frame: Case) -> list[Any]:
        return [self._one(one) for one in frame.get("conflicts", ())]

    def _one(self, one: Case) -> Case:
        if one["id"] not in self._ids:
            self._ids.append(one["id"])
        named = {key: one[key] for key in ("path", "policy", "status")}
        name = f"${self._ids.index(one['id']) + 1}"
        return {"id": name, **named, "kept": side(one["kept"]), "lost": side(one["lost"])}


def side(given: Case) -> Case:
    value: Case = {key: given[key] for key in ("value", "absent") if key in given}
    return {**value, "by": given["by"]["client_id"], "at": given["at"]}


@cases("merge")
def test_merge(case: Case) -> None:
    rig = Rig(copy.deepcopy(case["state"]))
    rig.session.fields = fields(case.get("policies", {}))
    records = Records()
    state = case["state"]
    changes = [*case["others"], *({"by": "me", **one} for one in case["mine"])]
    for change in changes:
        ops, base = records.read(change["ops"]), change.get("base", rig.version)
        frame = rig.change(change["by"], *ops, base=base, at=change["at"])
        if "refused" in change:
            assert frame["type"] == "rejected", frame
            assert frame["code"] == change["refused"]
            continue
        assert frame["type"] == "state_update", frame
        assert frame["patch"] == change["patch"]
        assert records.told(frame) == change.get("conflicts", [])
        state = patched(state, frame["patch"])
        assert equal(rig.state, state)
        msgspec.convert(frame["patch"], list[PatchOperation])
    assert equal(rig.state, case["after"])
    assert equal(rig.reload().document.state, case["after"])

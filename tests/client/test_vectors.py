"""The cases of `vectors/` that are about a client; `vectors/README.md` says how they read."""

from __future__ import annotations

import copy
import json
from typing import Any

from reattach.client.effects import History
from reattach.core.values import equal
from tests.client.device import Device, commit
from tests.test_vectors import Case, cases


class Story:
    """A client that lives through the steps of a case, on one outbox."""

    def __init__(self, case: Case) -> None:
        self.rows: dict[str, Any] = {}
        self.options = case.get("options", {})
        self.device = Device(self.rows, **self.options)
        self._names: list[str] = []
        if "state" in case:
            for step in (
                {"start": True},
                {"reconnect": True},
                {"welcome": {"state": case["state"]}},
            ):
                self.take(step)

    def take(self, step: Case) -> None:
        device = self.device
        device.sent.clear()
        device.now = step.get("at", device.now)
        for name in step.keys() & STEPS:
            getattr(self, f"_{name}")(step[name])

    def _start(self, _: bool) -> None:
        self.device.start()

    def _change(self, ops: list[Any]) -> None:
        self.device.change(*copy.deepcopy(ops))

    def _commit(self, given: Case) -> None:
        self.device.frame(self._frame(given, self.device.core.version + 1))

    def _frame(self, given: Case, version: int) -> Case:
        by = (
            {"client_id": self.device.core.client_id, "seq": given["own"]} if "own" in given else {}
        )
        return commit(given.get("version", version), *given["patch"], by=by)

    def _rejected(self, given: Case) -> None:
        self.device.frame({"type": "rejected", "message": "no", **given})

    def _welcome(self, given: Case) -> None:
        self.device.welcome(**self._terms(given))

    def _resumed(self, given: Case) -> None:
        first = self.device.core.version + 1
        frames = [self._frame(one, first + at) for at, one in enumerate(given["commits"])]
        terms = {name: value for name, value in self._terms(given).items() if name != "commits"}
        self.device.resumed(*frames, **terms)

    def _terms(self, given: Case) -> Case:
        rejected = [{"message": "no", **one} for one in given.get("rejected", ())]
        return {"conflicts": [], "devices": [], "policies": {}, **given, "rejected": rejected}

    def _error(self, given: Case) -> None:
        self.device.frame({"type": "error", "message": "no", **given})

    def _close(self, code: int) -> None:
        self.device.close(code)

    def _reconnect(self, _: bool) -> None:
        if self.device.connected:
            self.device.open()
        else:
            self.device.reopen()

    def _restart(self, _: bool) -> None:
        now = self.device.now
        self.device = Device(self.rows, **self.options)
        self.device.now = now
        self.device.start()

    def _wait(self, ms: int) -> None:
        self.device.advance(ms)

    def _history(self, items: list[Any]) -> None:
        assert self.device.asked is not None, "expected that it asked for the history"
        by = {"client_id": self.device.asked.client_id}
        self.device.feed(History([{**one, "by": {**by, "seq": one["seq"]}} for one in items]))

    def _disk(self, how: str) -> None:
        self.device.slow = how == "slow"
        if how == "works":
            self.device.finish()

    # What became of it

    def shown(self) -> Any:
        return self.device.shown if self.device.core.known else None

    def views(self) -> list[Any]:
        return [list(pending.view) for pending in self.device.core.pending]

    def sent(self) -> list[Any]:
        """Ids as the case names them: `$1` is the first client id."""
        name = self.device.core.client_id
        if name not in self._names:
            self._names.append(name)
        text = json.dumps(self.device.sent)
        for at, known in enumerate(self._names):
            text = text.replace(json.dumps(known), f'"${at + 1}"')
        found: list[Any] = json.loads(text)
        return found

    def kept(self) -> Case:
        kept = Device(self.rows, **self.options).start().core
        refused = [
            {
                "seq": one["change"]["seq"],
                **{key: one[key] for key in ("code", "path") if key in one},
            }
            for one in kept.rejected.values()
        ]
        return {"changes": [pending.change for pending in kept.pending], "rejected": refused}


STEPS = {name.removeprefix("_") for name in vars(Story) if name[:1] == "_" and name[:2] != "__"}


def live(case: Case, **known: Any) -> None:
    """``known``: what the case does not say again is as it was."""
    story = Story(case)
    for number, step in enumerate(case["steps"], 1):
        story.take(step)
        known |= {key: step[key] for key in ("shown", "views", "kept") if key in step}
        for key, expected in known.items():
            found = getattr(story, key)()
            assert equal(found, expected), f"step {number}, {key}: {found}"
        if "sent" not in step:
            continue
        sent = story.sent()
        assert len(sent) == len(step["sent"]), f"step {number}: {sent}"
        for found, expected in zip(sent, step["sent"], strict=True):
            # Of a hello a case says what it is about, of anything else all.
            part = {key: found.get(key) for key in expected} if found["type"] == "hello" else found
            assert equal(part, expected), f"step {number}: {found}"


@cases("rebase")
def test_rebase(case: Case) -> None:
    live(case, shown=case["state"], views=[])


@cases("outbox")
def test_outbox(case: Case) -> None:
    live(case, kept={"changes": [], "rejected": []})


@cases("merge")
def test_merge(case: Case) -> None:
    """What a client shows that makes each of its changes as soon as it has heard of its base."""
    device = Device().join(copy.deepcopy(case["state"]))
    shown: list[Any] = []
    others = iter(enumerate(case["others"], 1))
    for change in case["mine"]:
        while device.core.version < change["base"]:
            version, theirs = next(others)
            device.frame(commit(version, *theirs["patch"]))
            shown.append(device.shown)
        device.now = change["at"]
        device.change(*copy.deepcopy(change["ops"]))
        shown.append(device.shown)
    for version, theirs in others:
        device.frame(commit(version, *theirs["patch"]))
        shown.append(device.shown)
    for seq, change in enumerate(case["mine"], 1):
        if "refused" in change:
            device.frame({"type": "rejected", "seq": seq, "code": change["refused"], "message": ""})
        else:
            device.acknowledge(device.core.version + 1, seq, *change["patch"])
        shown.append(device.shown)
    assert equal(shown, case["shown"])
    assert equal(device.confirmed, case["after"])
    assert not device.core.pending

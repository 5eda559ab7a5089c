"""The client's state machine: one session in one process. It takes inputs with the time given to
it and returns effects; it awaits nothing, reads no clock and draws no random number itself.

`line.py` knows the connection's life, `replica.py` what is shown, `ledger.py` the books of the
outbox. This is what a frame, a timer or a change means to them. `packages/client/src/core` is the
same in TypeScript, for pages whose tabs share an outbox.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from reattach.client.effects import (
    AskHistory,
    Changed,
    Closed,
    Decided,
    Effect,
    Event,
    EventType,
    FrameReceived,
    History,
    Input,
    Loaded,
    Network,
    Opened,
    Status,
    Stop,
    Store,
    Stored,
    StoreFailed,
    TimerFired,
    TimerName,
)
from reattach.client.ledger import Ledger
from reattach.client.line import Line
from reattach.client.ops import own, prepare
from reattach.client.replica import Cursor, Misfit, Pending
from reattach.core.document import ABSENT
from reattach.core.paths import parse
from reattach.errors import ChangeRefused

__all__ = ["ClientCore"]

Frame = dict[str, Any]

IN_FLIGHT: Final = 256
"""How many undecided changes may be on their way: the server reads no more than that."""
RETRY_STORE_MS: Final = 5_000

ENDINGS: Final[Mapping[int, tuple[str, str]]] = {
    4403: ("forbidden", "this user may not use this session"),
    4404: ("session_not_found", "there is no such session for this user"),
    4410: ("session_ended", "the session was ended or erased"),
}
"""What ends a session for good, whatever this client does."""

REASONS: Final[Mapping[int, tuple[str, str]]] = {
    1006: ("unreachable", "the server cannot be reached"),
    4400: ("bad_frame", "the server could not read a frame"),
    4401: ("not_authenticated", "the server wants a valid token"),
    4413: ("too_large", "a frame was too large for the server"),
}


class ClientCore:
    """``new_id`` makes unique ids, for clients and for inserted elements; ``random`` answers in
    [0, 1). ``device`` has ``name`` and ``info``, ``create`` ``state`` and ``schema``.
    """

    def __init__(
        self,
        *,
        new_id: Callable[[], str],
        random: Callable[[], float],
        device: dict[str, Any] | None = None,
        create: dict[str, Any] | None = None,
        schema_version: int | None = None,
    ) -> None:
        self.devices: list[dict[str, Any]] = []
        self.device_id = ""
        self._new_id = new_id
        self._random = random
        self._device = own(device or {})
        self._create = own(create)
        self._schema_version = schema_version
        self._out: list[Effect] = []
        self._now = 0
        self._ledger = Ledger(new_id, self._out_put)
        self._line = Line(random, self._out_put)
        self._replica = self._ledger.replica
        self._loaded = False
        self._error: tuple[str, str] | None = None
        self._busy = False
        """Something was pending when the last step ended."""
        self._retry = False
        """The disk is to be tried again."""
        self._read_only = False
        """The server said so, and has named no schema since that this program is made for."""
        self._distrust = False
        """The patches did not fit: the next welcome brings the whole state."""
        self._suspects: int | None = None
        """After a 4400 or 4413: up to this number, changes are sent one by one."""
        self._jitter = 1_000
        # Of the present connection.
        self._sent = 0
        """The highest number that the server has, or is on its way there."""
        self._syncing = False
        """A version was skipped; what comes before the answer is not applied."""
        self._resend_waits = False
        """The server said when it wants to hear a change again."""

    # Reading

    @property
    def known(self) -> bool:
        """Whether there is a state."""
        return self._replica.known

    @property
    def state(self) -> dict[str, Any]:
        """The confirmed state with the pending changes over it. Not to be altered, nor kept."""
        return self._replica.shown.state

    @property
    def confirmed_state(self) -> dict[str, Any]:
        """The state of ``version``. Not to be altered, nor kept: it is the one of `state`."""
        return self._replica.confirmed.state

    @property
    def version(self) -> int:
        """The version that the server confirmed last; 0 before the first."""
        return self._replica.version

    @property
    def epoch(self) -> str | None:
        """The epoch of ``version``."""
        return self._replica.epoch

    @property
    def storing(self) -> bool:
        """Whether a transaction is under way. Where none is, all is stored that can be."""
        return self._ledger.writing

    @property
    def client_id(self) -> str:
        """The name under which this client's changes are numbered."""
        return self._ledger.client_id

    @property
    def pending(self) -> Sequence[Pending]:
        """The changes that the server has not decided, in their order."""
        return self._replica.pending

    @property
    def rejected(self) -> Mapping[str, dict[str, Any]]:
        """The changes that the server refused, by ``ref``, until they are dealt with."""
        return self._ledger.rejected

    @property
    def conflicts(self) -> list[dict[str, Any]]:
        """The conflicts that nobody has settled, without those whose settling is on its way."""
        settling = {
            op.get("conflict_id")
            for pending in self._replica.pending
            for op in pending.view
            if op["op"] == "resolve"
        }
        return [one for name, one in self._ledger.conflicts.items() if name not in settling]

    @property
    def policies(self) -> Mapping[str, str]:
        """The merge policies of the session's schema, by path with ``*`` for any token."""
        policies: dict[str, str] = self._ledger.terms["policies"]
        return policies

    @property
    def status(self) -> Status:
        """How the session stands."""
        ledger = self._ledger
        pending = len(self._replica.pending)
        storage = ("storage", ledger.disk_error) if ledger.disk_error else None
        return Status(
            connection=self._line.connection,
            pending=pending,
            saved_on_device=self._loaded and ledger.kept,
            saved=self._loaded and pending == 0,
            storage="durable" if ledger.disk == "works" else "memory",
            read_only=self._read_only,
            error=self._error or storage,
        )

    def get(self, path: str, default: Any) -> Any:
        """Return a copy of the value that is shown at an operation's path, or ``default``."""
        place = self._replica.shown.locate(parse(path))
        return default if place is None or place.value is ABSENT else own(place.value)

    def cursor(self, path: str) -> Cursor:
        """Return a cursor behind the text at a path, which moves with what is done to the text."""
        cursor = self._replica.cursor(path)
        self._replica.cursors.append(cursor)
        return cursor

    def drop(self, cursor: Cursor) -> None:
        """Forget a cursor."""
        self._replica.cursors.remove(cursor)

    # Acting

    def step(self, given: Input, now: int) -> list[Effect]:
        """Take an input. ``now``: milliseconds since 1970."""
        self._now = now
        if self._line.at != "closed" or isinstance(given, Stored | StoreFailed):
            self._on(given)
        if self._busy and not self._replica.pending and self._replica.known:
            self._event("saved", {"version": self.version})
        return self._effects()

    def change(
        self, ops: Sequence[Mapping[str, Any]], ref: str, now: int, replaces: str | None = None
    ) -> list[Effect]:
        """Make a change of this client's user, which ``ref`` names.

        ``replaces`` names a refused one that it stands for. Raises `ChangeRefused`, and does
        nothing, where the operations make no sense.
        """
        if not self._replica.known:
            raise ChangeRefused("expected a state: wait until there is one", code="not_ready")
        self._now = now
        self._ledger.add(ref, prepare(ops, self._new_id), now, self._schema_version)
        if replaces is not None:
            self._ledger.keep_rejected(replaces, None)
        self._flush()
        self._changed()
        return self._effects()

    def discard(self, ref: str) -> list[Effect]:
        """Forget a refused change for good."""
        self._ledger.keep_rejected(ref, None)
        self._changed()
        return self._effects()

    def presence(self, data: Any, now: int) -> list[Effect]:
        """Tell the other devices something, if there is a line."""
        self._now = now
        if self._line.at == "live":
            self._send({"type": "presence", "data": data})
        return self._effects()

    def _effects(self) -> list[Effect]:
        ledger = self._ledger
        self._busy = bool(self._replica.pending)
        if ledger.disk == "none":
            ledger.skip()
        elif ledger.dirty and not ledger.writing and (ledger.disk == "works" or self._retry):
            self._retry = False
            self._out.append(Store(ledger.take()))
        effects, self._out = self._out, []
        return effects

    def _on(self, given: Input) -> None:
        match given:
            case Loaded(rows, device_id, durable):
                self._loaded = True
                self.device_id = device_id
                self._ledger.load(rows, durable=durable)
                self._start()
            case Opened(token, user_id):
                self._hello(token, user_id)
            case FrameReceived(frame):
                self._on_frame(frame)
            case Closed(code, reason):
                self._on_closed(code, reason)
            case TimerFired(name):
                self._on_timer(name)
            case Stored():
                self._ledger.wrote()
                self._start()
                self._flush()
            case StoreFailed(message):
                self._ledger.failed(message)
                self._line.timer("store", RETRY_STORE_MS)
                self._start()
                self._flush()
            case History(commits):
                self._on_history(commits)
            case Network(online):
                self._on_network(online=online)
            case Stop():
                self._end(None)
        self._changed()

    # Connecting

    def _start(self) -> None:
        """Connect, once this client's name is in the outbox."""
        if self._line.at == "idle" and self._loaded and self._ledger.named:
            self._line.connect()

    def _hello(self, token: str | None, user_id: str | None) -> None:
        if self._line.at != "opening":
            return
        self._line.greet()
        self._resend_waits = self._syncing = False
        epoch = None if self._distrust else self.epoch
        hello: Frame = {
            "type": "hello",
            "client_id": self.client_id,
            "device": {"id": self.device_id, **self._device},
            "t": self._now,
            "epoch": epoch,
            "version": None if epoch is None else self.version,
            "seq": self._ledger.decided,
        }
        if token is not None:
            hello["token"] = token
        if user_id is not None:
            hello["user_id"] = user_id
        if self._schema_version is not None:
            hello["schema_version"] = self._schema_version
        # Only who never saw the session asks to create it: it may have been erased since.
        if self._create is not None and self.epoch is None:
            hello["create"] = self._create
        self._send(hello)

    def _end(self, error: tuple[str, str] | None) -> None:
        self._line.hang_up("closed", self._now)
        self._line.timer("store", None)
        self._error = error

    def _on_closed(self, code: int, reason: str) -> None:
        line = self._line
        at = line.at
        if at not in {"opening", "greeting", "live"}:
            return
        line.hang_up("waiting", self._now, closed=True)
        if code in ENDINGS:
            name, message = ENDINGS[code]
            self._end((name, reason or message))
            return
        if code in REASONS:
            name, message = REASONS[code]
            self._error = (name, reason or message)
        match code:
            case 4400 | 4413:
                if at == "live":
                    self._blame(code)
            case 4401 | 4409:
                # The outbox is this process's alone: its name is, too, and it comes back.
                pass
            case 4429:
                line.attempts = max(line.attempts, 3)
            case 1012:
                line.wait(self._random() * self._jitter, self._now)
                return
            case _:
                self._start_offline()
        line.back_off(self._now)

    def _blame(self, code: int) -> None:
        """The server could not take a frame. The first time, the changes in flight are suspects and
        go one by one; the one that closes the connection again is refused here, and ``ops: []``
        takes its number.
        """
        pending = self._replica.pending
        if not pending or pending[0].change["seq"] > self._sent:
            return
        if self._suspects is None:
            self._suspects = self._sent
            return
        self._suspects = None
        message = f"the server closed the connection twice over this change ({code})"
        self._ledger.replace_by_nothing(pending[0], REASONS[code][0], message)

    def _on_timer(self, name: TimerName) -> None:
        line = self._line
        match name:
            case "connect":
                if line.at == "waiting":
                    line.connect()
            case "greet":
                if line.at == "greeting":
                    self._lost()
            case "beat":
                if line.at == "live" and not line.beat(self._now):
                    self._lost()
            case "resend":
                self._resend_waits = False
                self._sent = self._ledger.decided
                self._flush()
            case "store":
                self._retry = True

    def _lost(self) -> None:
        """The other side says nothing: that it is gone is the likeliest."""
        self._start_offline()
        self._line.back_off(self._now)

    def _on_network(self, *, online: bool) -> None:
        line = self._line
        line.network = online
        if line.at == "live":
            line.probe(self._now)
            line.beat(self._now)
        if online:
            line.attempts = 0
            if line.at == "waiting":
                line.connect()

    def _start_offline(self) -> None:
        """The session is not there yet, as far as this client knows: begin with what it will be."""
        state = (self._create or {}).get("state")
        if state is not None and not self._replica.known:
            self._ledger.reset(None, 0, state)

    # Frames

    def _on_frame(self, frame: Frame) -> None:
        at = self._line.at
        kind = frame.get("type")
        if at != "live" and not (
            at == "greeting" and kind in {"initial_state", "resumed", "error"}
        ):
            return
        self._line.heard(self._now)
        match kind:
            case "initial_state" | "resumed":
                self._on_welcome(frame)
            case "state_update" | "session_restored":
                if not self._syncing and self._on_commit(frame, self._sent):
                    self._after_decision()
            case "rejected":
                self._on_rejected(frame)
            case "devices":
                self.devices = frame["devices"]
            case "presence":
                self._event("presence", frame)
            case "checkpoint_saved":
                self._event("checkpointSaved", frame)
            case "error":
                self._on_error(frame)

    def _on_rejected(self, frame: Frame) -> None:
        seq = frame["seq"]
        pending = self._ledger.by_seq(seq)
        if pending is not None:
            self._ledger.refuse(pending, frame)
        self._ledger.decide(seq, None if pending is None else pending.change["at"])
        self._after_decision()

    def _on_welcome(self, frame: Frame) -> None:
        ledger = self._ledger
        epoch, seq, seq_at = frame["epoch"], frame["seq"], frame.get("seq_at")
        whole = frame["type"] == "initial_state"
        lost = self.epoch is not None and self.epoch != epoch
        if not lost and not ledger.agrees(seq, seq_at):
            self._ask()
            return
        before: Frame = {}
        if lost:
            state = own(self._replica.confirmed.state)
            before = {"epoch": self.epoch, "version": self.version, "state": state}
        for refusal in frame.get("rejected") or ():
            pending = ledger.by_seq(refusal["seq"])
            if pending is not None:
                ledger.refuse(pending, refusal)
        if whole:
            ledger.reset(epoch, frame["version"], frame["state"], decided=seq)
        else:
            for commit in frame["commits"]:
                if not self._on_commit(commit, seq):
                    return
            # What is decided and was neither refused nor among the commits is in the state.
            ledger.accept(ledger.up_to(seq))
        ledger.decide(seq, seq_at)
        self._welcomed(frame, whole=whole)
        if lost:
            self._rename()
            self._event("historyLost", {"lost": before})
            return
        ledger.adopt(epoch)
        self._line.welcomed(self._now)
        self._sent = seq
        if whole:
            created = bool(frame.get("created"))
            self._event("initialStateReceived", {"version": frame["version"], "created": created})
        self._after_decision()

    def _welcomed(self, frame: Frame, *, whole: bool) -> None:
        """Take what a welcome says beside state and numbers."""
        self._ledger.set_conflicts(frame.get("conflicts") or (), whole=whole)
        self.devices = frame.get("devices") or []
        schema = frame.get("schema")
        self._ledger.set_terms(schema, frame.get("policies") or {})
        newest = 0 if schema is None else schema["version"]
        self._read_only = self._read_only and newest > (self._schema_version or 0)
        if heartbeat := frame.get("heartbeat"):
            self._line.interval_ms = heartbeat["interval_ms"]
            self._line.timeout_ms = heartbeat["timeout_ms"]
        self._jitter = frame.get("reconnect_jitter_ms", self._jitter)
        self._distrust = self._syncing = False
        if not self._read_only:
            self._error = None

    def _on_commit(self, frame: Frame, sent: int) -> bool:
        """Apply a commit; False where it could not be, and the line was given up or asked again.

        The server can have decided this client's numbers up to ``sent``.
        """
        ledger = self._ledger
        version = frame["version"]
        if version <= self.version:
            return True
        if version > self.version + 1:
            if self._line.at != "live" or self._syncing:
                return self._mistrust()
            self._syncing = True
            self._send({"type": "request_sync", "epoch": self.epoch, "version": self.version})
            return False
        by = frame["by"]
        mine: Pending | None = None
        if by["client_id"] == self.client_id and (by.get("seq") or 0) > ledger.decided:
            mine = ledger.by_seq(by["seq"])
            if mine is None or by["seq"] > sent or mine is not self._replica.pending[0]:
                # Somebody else uses this client's name and numbers.
                self._ask()
                return False
        try:
            ledger.commit(version, frame["patch"], mine)
        except Misfit:
            return self._mistrust()
        ledger.merge_conflicts(frame.get("conflicts") or ())
        restored = frame["type"] == "session_restored"
        self._event("sessionRestored" if restored else "stateUpdateReceived", frame)
        return True

    def _mistrust(self) -> bool:
        """The copy here cannot be right: ask for the whole state."""
        self._distrust = True
        self._line.back_off(self._now)
        return False

    def _on_error(self, frame: Frame) -> None:
        code, retry = frame["code"], frame.get("retry_after_ms")
        live = self._line.at == "live"
        if code == "seq_reused":
            self._ask()
            return
        if code == "sequence_gap" and live:
            # What was to be heard again later is what is missing.
            if self._resend_waits:
                return
            expected = frame.get("expected") or self._ledger.decided + 1
            if self._ledger.by_seq(expected) is None:
                self._ask()
                return
            self._sent = expected - 1
            self._flush()
            return
        if code == "upgrade_required" and not self._read_only:
            # What is changed from now on is kept here, and not sent.
            self._read_only = True
            self._event("upgradeRequired", {"message": frame["message"]})
        self._error = (code, frame["message"])
        if retry is not None and live:
            self._resend_waits = True
            self._line.timer("resend", retry)
        elif retry is not None:
            self._line.attempts += 1
            self._line.wait(retry * (1 + self._random()), self._now)

    def _after_decision(self) -> None:
        if self._suspects is not None and self._ledger.decided >= self._suspects:
            self._suspects = None
        self._flush()

    def _flush(self) -> None:
        """Send what may be sent."""
        if self._line.at != "live" or self._syncing or self._read_only or self._resend_waits:
            return
        ledger = self._ledger
        ledger.surely()
        most = IN_FLIGHT if self._suspects is None else 1
        pending = self._replica.pending
        first = max(0, self._sent - pending[0].change["seq"] + 1) if pending else 0
        for one in pending[first : first + most]:
            seq = one.change["seq"]
            if self._sent - ledger.decided >= most:
                return
            if one.unsure == "change":
                return
            # A change is sent only after it is stored, where anything can be.
            if not one.stored and ledger.disk == "works":
                return
            self._sent = seq
            self._send({"type": "change", **one.change})

    # Names

    def _ask(self) -> None:
        """Find out which of the pending changes were committed under this name, by whomever."""
        self._line.hang_up("asking", self._now)
        bases = (pending.change["base"] for pending in self._replica.pending)
        self._out.append(AskHistory(self.client_id, min(bases, default=self.version) + 1))

    def _on_history(self, commits: Sequence[Mapping[str, Any]] | None) -> None:
        if self._line.at != "asking":
            return
        if commits is None:
            self._line.back_off(self._now)
            return
        committed = {
            (item["by"].get("seq"), at if (at := item.get("client_at")) is not None else item["at"])
            for item in commits
        }
        gone = [
            pending
            for pending in self._replica.pending
            if (pending.change["seq"], pending.change["at"]) in committed
        ]
        self._out += [Decided(pending.ref) for pending in gone]
        self._rename(gone)

    def _rename(self, gone: Sequence[Pending] = ()) -> None:
        """Go on under another name, without ``gone``; connects when it is stored."""
        self._ledger.renumber(gone)
        self._suspects = None
        self._line.hang_up("idle", self._now)
        if self._ledger.disk != "works":
            self._start()

    # Telling

    def _out_put(self, effect: Effect) -> None:
        self._out.append(effect)

    def _send(self, frame: Frame) -> None:
        self._line.send(frame, self._now)

    def _event(self, kind: EventType, detail: Frame) -> None:
        self._out.append(Event(kind, detail))

    def _changed(self) -> None:
        self._out.append(Changed())

"""The Python client's shell: it feeds the core, sends, dispatches and stops. Made by `connect`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import random
import secrets
import time
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar
from weakref import WeakSet

import msgspec

from reattach.client import asking, socket
from reattach.client.changes import Change, Commit, Conflict, Ops, RejectedChange
from reattach.client.core import ClientCore
from reattach.client.effects import (
    AskHistory,
    Changed,
    Closed,
    Connect,
    Decided,
    Disconnect,
    Effect,
    Event,
    FrameReceived,
    History,
    Input,
    Kept,
    Loaded,
    Network,
    Opened,
    SendFrame,
    SetTimer,
    Status,
    Stop,
    Store,
    Stored,
    StoreFailed,
    TimerFired,
    TimerName,
)
from reattach.client.ops import own
from reattach.client.sqlite import SQLiteOutbox
from reattach.client.writer import TextWriter
from reattach.core.values import check
from reattach.errors import (
    ChangeRefused,
    Forbidden,
    NotAuthenticated,
    ReattachError,
    SessionClosed,
    SessionEnded,
    SessionNotFound,
    StoreError,
)
from reattach.wire import By, Checkpoint, StateUpdate

__all__ = ["Session", "Token", "connect"]

Token: TypeAlias = str | Callable[[], str | Awaitable[str]]
"""A bearer token, or how to get a fresh one: called for each connection, also after a 4401."""

_T = TypeVar("_T")

_LEFT_OUT: Any = msgspec.UNSET
_ENDINGS: Mapping[str, type[ReattachError]] = {
    "forbidden": Forbidden,
    "session_not_found": SessionNotFound,
    "session_ended": SessionEnded,
    "not_authenticated": NotAuthenticated,
}


class Session:
    """One session: its state here and now, and what became of each change.

    Used as ``async with connect(…) as session``: entering waits for a state to show, from the
    outbox, the server, or ``create`` where neither can be had. Leaving without an exception waits
    until the server has every change; with an outbox, only while the line is online: the rest stays
    in the file, for the next time.

    Belongs to the event loop in which it was entered.
    """

    def __init__(
        self,
        url: str,
        session_id: str,
        *,
        token: Token | None = None,
        outbox: str | os.PathLike[str] | None = None,
        create: Mapping[str, Any] | None = None,
        user: str | None = None,
        device: Mapping[str, Any] | None = None,
        schema_version: int | None = None,
    ) -> None:
        self.session_id = session_id
        self._address = socket.Address.of(url, session_id)
        self._token = token
        self._user = user
        self._claiming = False
        """The token from before is over, or soon, and its successor is on its way."""
        about = dict(device or {})
        self._device_id: str = about.pop("id", None) or uuid7()
        self._outbox = None if outbox is None else SQLiteOutbox(outbox)
        if create is not None:
            check(create.get("state"), depth=64, path="")
        self._core = ClientCore(
            new_id=uuid7,
            random=random.SystemRandom().random,
            device=about,
            create=None if create is None else dict(create),
            schema_version=schema_version,
        )
        self._entered = self._closed = False
        self._effects: deque[Effect] = deque()
        self._running = False
        self._send: socket.Send | None = None
        self._line: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._timers: dict[TimerName, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changes: dict[str, Change] = {}
        self._streams: WeakSet[_Stream[Any]] = WeakSet()
        self._waiters: set[asyncio.Future[None]] = set()
        self._failure: BaseException | None = None
        """A mistake in here: whoever waits is told, and does not wait for ever."""

    async def __aenter__(self) -> Self:
        """Open the session; see the class. Raises `SessionNotFound` and the like where the server
        says so and nothing of it is here; `OutboxHeld` and `StoreError` for the outbox.
        """
        if self._entered:
            raise SessionClosed("expected a session that was not opened before: connect again")
        self._entered = True
        self._loop = asyncio.get_running_loop()
        rows, device_id = None, self._device_id
        try:
            if self._outbox is not None:
                rows, device_id = await self._outbox.open(self.session_id, self._user, device_id)
            self._feed(Loaded(rows, device_id, durable=self._outbox is not None))
            await self._ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def _ready(self) -> None:
        await self._until(lambda: self._core.known or self._hopeless() is not None)
        if not self._core.known and (reason := self._hopeless()) is not None:
            raise reason

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session; see the class."""
        try:
            if kind is None:
                await self._until(self._may_leave)
        finally:
            await self.close()

    async def close(self) -> None:
        """Hang up at once. What is pending stays in the outbox; without one it is lost."""
        if self._closed:
            return
        self._closed = True
        self._feed(Stop())
        for timer in self._timers.values():
            timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
        await self._until(lambda: not self._core.storing or self._failure is not None)
        self._give_up(self._hopeless() or SessionClosed("the session was closed"))
        self._changes.clear()
        # The line says goodbye.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._outbox is not None:
            await self._outbox.close()

    # Reading

    @property
    def state(self) -> dict[str, Any]:
        """The state as this client's user left it: confirmed, with the pending changes over it.

        The caller's own copy, made for each call: it costs what the state weighs. See `get`.
        """
        copy: dict[str, Any] = own(self._core.state)
        return copy

    @property
    def version(self) -> int:
        """The version that the server confirmed last; 0 before the first."""
        return self._core.version

    @property
    def epoch(self) -> str | None:
        """The history that ``version`` belongs to; None before the server was ever reached."""
        return self._core.epoch

    @property
    def status(self) -> Status:
        """How the session stands: connected or not, saved or not."""
        return self._core.status

    @property
    def conflicts(self) -> list[Conflict]:
        """The conflicts that nobody has settled."""
        return [self._conflict(record) for record in self._core.conflicts]

    @property
    def rejected(self) -> list[RejectedChange]:
        """The changes that the server refused for good, oldest first."""
        refused = sorted(self._core.rejected.values(), key=lambda one: one["change"]["at"])
        return [self._rejected(one) for one in refused]

    @property
    def devices(self) -> list[dict[str, Any]]:
        """The session's devices, as the server last said."""
        copy: list[dict[str, Any]] = own(self._core.devices)
        return copy

    @property
    def device_id(self) -> str:
        """The id of this device among them."""
        return self._core.device_id

    @property
    def policies(self) -> dict[str, str]:
        """The merge policies of the session's schema, by path with ``*`` for any token."""
        return dict(self._core.policies)

    def get(self, path: str, default: Any = None) -> Any:
        """Return a copy of the value at an operation's path (``/items/#i7/title``), or ``default``.

        Costs what the value weighs. Raises `ChangeRefused` where the path is none.
        """
        return self._core.get(path, default)

    def export(self) -> dict[str, Any]:
        """Return all that is here and not on the server, to be saved elsewhere, as plain JSON."""
        exported: dict[str, Any] = own(
            {
                "session_id": self.session_id,
                "client_id": self._core.client_id,
                "changes": [pending.change for pending in self._core.pending],
                "rejected": list(self._core.rejected.values()),
            }
        )
        return exported

    def changes(self) -> AsyncIterator[Commit]:
        """Go through the session's commits from now on, each once, in order, without a gap.

        Where so much was missed that the server sends the whole state instead, one commit stands
        for all of it, by nobody, whose patch replaces the state. Ends with the session.
        """
        return self._stream(_to_commit)

    def events(self) -> AsyncIterator[Event]:
        """Go through what happens from now on, as `Event` with ``type`` and ``detail``: what the
        server said, refusals, conflicts, ``historyLost``, ``presence`` of others.
        """
        return self._stream(lambda event, _: Event(event.type, own(event.detail)))

    async def saved(self) -> None:
        """Wait until the server has decided every change of this client. Raises `SessionClosed` or
        the reason where that cannot be any more.
        """
        await self._until(lambda: self._core.status.saved or self._hopeless() is not None)
        if not self._core.status.saved and (reason := self._hopeless()) is not None:
            raise reason

    # Changing

    def update(self, change: Ops | Callable[[dict[str, Any]], Ops]) -> Change:
        """Make operations one atomic change, now and here, whether the server can be reached or
        not. Await the result to wait for the server.

        ``change`` is a list of operations, or a function from the state (its own copy) to one.
        Raises `ChangeRefused`, and does nothing, where the operations make no sense.
        """
        return self._change(change(self.state) if callable(change) else change)

    def set(self, path: str, value: Any) -> Change:
        """Create or replace the value at a path (a JSON Pointer; list elements as ``#id``)."""
        return self._change([{"op": "set", "path": path, "value": value}])

    def unset(self, path: str) -> Change:
        """Remove a key or an element."""
        return self._change([{"op": "unset", "path": path}])

    def insert(self, path: str, value: Any, after: str | None = _LEFT_OUT) -> Change:
        """Insert into a list: behind the element with an id, at the front (None), or at the end
        (left out). An object without ``id`` gets one.
        """
        return self._change([{"op": "insert", "path": path, "value": value, **_after(after)}])

    def move(self, path: str, after: str | None = _LEFT_OUT) -> Change:
        """Move an element within its list; ``after`` as in `insert`."""
        return self._change([{"op": "move", "path": path, **_after(after)}])

    def inc(self, path: str, by: float = 1) -> Change:
        """Add to a number. What several devices add adds up."""
        return self._change([{"op": "inc", "path": path, "by": by}])

    def splice(self, path: str, index: int, delete: int, insert: str) -> Change:
        """Edit text; ``index`` and ``delete`` count code points, as Python does. What several
        devices do to a text merges.
        """
        return self._change(
            [{"op": "splice", "path": path, "index": index, "delete": delete, "insert": insert}]
        )

    def text(self, path: str) -> TextWriter:
        """Return a writer that adds to the end of a text, a piece at a time; see `TextWriter`."""
        return TextWriter(self._core, self._change, path)

    def restore(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        version: int | None = None,
        checkpoint_id: str | None = None,
    ) -> Change:
        """Make the state that of a checkpoint (by ``checkpoint_id``, too; ``"latest"``: the newest
        one), or of a version.

        It shows when the server has made it, and another restore undoes it.
        """
        named = checkpoint_id if checkpoint is None else checkpoint.id
        if sum(one is not None for one in (checkpoint, version, checkpoint_id)) != 1:
            raise ChangeRefused(
                "expected either a checkpoint, a version or a checkpoint_id", code="bad_op"
            )
        to = {"checkpoint_id": named} if version is None else {"version": version}
        return self._change([{"op": "restore", **to}])

    async def save_checkpoint(self, name: str | None = None, data: Any = _LEFT_OUT) -> Checkpoint:
        """Save a checkpoint: a mark, with a name (256 characters) and data (4 KiB of JSON) if you
        like, on a version that has all that was changed here before. `restore` can come back to it.

        Waits until it is in the server's database, which can take until the network is back. Raises
        `ReattachError` with the server's code (``too_large``, ``forbidden``, …), the reason where
        the server takes nothing of this client any more, and `Unavailable` where the server's
        answer was lost.
        """
        waiting = {pending.ref for pending in self._core.pending}

        def ready() -> bool:
            decided = waiting.isdisjoint(pending.ref for pending in self._core.pending)
            return decided and self._core.status.connection == "online"

        await self._until(lambda: ready() or self._hopeless() is not None)
        if not ready() and (reason := self._hopeless()) is not None:
            raise reason
        mark = {} if name is None else {"name": name}
        if data is not _LEFT_OUT:
            check(data, depth=64, path="")
            mark["data"] = data
        token = await self._fresh_token()
        return await asking.save_checkpoint(self._address, token, uuid7(), mark)

    async def checkpoints(self) -> list[Checkpoint]:
        """Ask for the session's checkpoints, newest version first. Raises `Unavailable` where the
        server does not answer, and what it answers.
        """
        return await asking.checkpoints(self._address, await self._fresh_token())

    def presence(self, data: Any) -> None:
        """Tell the session's other devices something that nobody stores; at most 4 KiB of JSON.

        Without a line it goes nowhere.
        """
        check(data, depth=64, path="")
        self._run(self._core.presence(own(data), clock()))

    def network(self, *, online: bool) -> None:
        """Tell that the network came or went, where the program knows: when it came, the session
        connects at once.
        """
        self._feed(Network(online))

    async def claim(self, claim_secret: str, token: Token | None = None) -> None:
        """Make a session that nobody had signed in for that of who has now, with what this client
        has of it, sent or not. ``claim_secret`` came with the session.

        ``token`` says who it is, from now on in place of the one of `connect`; None: that one does.
        The next time, give ``user`` to `connect`. Safe to repeat, where its answer was lost. Raises
        `SessionNotFound` for a wrong secret and for what somebody else has claimed,
        `NotAuthenticated`, `Unavailable`, and `StoreError` for the outbox.
        """
        self._claiming = True
        try:
            who = self._token if token is None else token
            user_id = await asking.claim(self._address, await _ask_for(who), claim_secret)
            if self._outbox is not None:
                await self._outbox.belong_to(user_id)
            self._token, self._user = who, user_id
        finally:
            self._claiming = False
        if self._core.status.connection != "offline":
            # What waits for another attempt need not wait any more.
            self.network(online=True)

    # Inside

    def _change(self, ops: Ops, replaces: str | None = None) -> Change:
        if self._closed or not self._entered:
            raise SessionClosed("expected an open session: use `async with connect(…)`")
        change = Change(uuid7(), self._loop)
        if not ops:
            change.stored.set_result(self._core.status.storage == "durable")
            change.acknowledged.set_result(None)
            return change
        # Before anything else happens: a change that makes no sense raises here.
        effects = self._core.change(ops, change.ref, clock(), replaces)
        self._changes[change.ref] = change
        self._run(effects)
        return change

    def _conflict(self, record: Mapping[str, Any]) -> Conflict:
        def resolve(keep: Any) -> Change:
            return self._change([{"op": "resolve", "conflict_id": record["id"], "keep": keep}])

        fields = {name: own(record[name]) for name in Conflict.__struct_fields__[:-1]}
        return Conflict(**fields, resolve=resolve)

    def _rejected(self, refused: Mapping[str, Any]) -> RejectedChange:
        ref, change = refused["ref"], refused["change"]
        return RejectedChange(
            ref=ref,
            code=refused["code"],
            message=refused["message"],
            path=refused.get("path"),
            ops=own(change["ops"]),
            at=change["at"],
            edit=lambda ops: self._change(ops, ref),
            discard=lambda: self._run(self._core.discard(ref)),
        )

    def _hopeless(self) -> ReattachError | None:
        """Why the server will take nothing of this client any more, where that is so."""
        if self._failure is not None:
            return ReattachError(f"the client failed: {self._failure!r}", code="internal")
        if self._closed:
            return SessionClosed(
                "the session was closed before the server had every change: they are"
                + (" in the outbox" if self._outbox is not None else " lost, for want of an outbox")
            )
        code, message = self._core.status.error or ("", "")
        given_up = (
            self._core.status.connection == "closed"
            or self._core.status.read_only
            # Whoever can be asked for another token may have a better one the next time.
            or (code == "not_authenticated" and not callable(self._token) and not self._claiming)
        )
        return _ENDINGS.get(code, ReattachError)(message, code=code) if given_up else None

    def _give_up(self, reason: ReattachError) -> None:
        for change in self._changes.values():
            if not change.acknowledged.done():
                change.acknowledged.set_exception(reason)

    def _may_leave(self) -> bool:
        status = self._core.status
        if status.saved or self._hopeless() is not None:
            return True
        return status.connection != "online" and status.saved_on_device

    # Effects

    def _feed(self, given: Input) -> None:
        self._run(self._core.step(given, clock()))

    def _run(self, effects: Sequence[Effect]) -> None:
        """Carry out effects in the order in which they came, also those that they cause."""
        self._effects += effects
        if self._running:
            return
        self._running = True
        try:
            while self._effects:
                self._carry_out(self._effects.popleft())
        finally:
            self._running = False

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Connect():
                self._send = None
                self._line = self._task(self._talk())
            case SendFrame(frame):
                if self._send is not None:
                    self._send(frame)
            case Disconnect():
                self._send = None
                if self._line is not None:
                    self._line.cancel()
                self._line = None
            case Store(writes):
                self._task(self._store(writes))
            case SetTimer(name, ms):
                self._set_timer(name, ms)
            case AskHistory(client_id, first):
                self._asking = self._task(self._ask(client_id, first))
            case _:
                self._tell(effect)

    def _tell(self, effect: Kept | Decided | Event | Changed) -> None:
        """Tell the application."""
        match effect:
            case Kept(ref, durable):
                change = self._changes.get(ref)
                if change is not None and not change.stored.done():
                    change.stored.set_result(durable)
            case Decided(ref, error):
                self._decided(ref, error)
            case Event():
                for stream in list(self._streams):
                    stream.put(effect)
            case Changed():
                self._wake()
                if self._failure is not None or self._core.status.connection == "closed":
                    for stream in list(self._streams):
                        stream.end()
                if not self._closed and (reason := self._hopeless()) is not None:
                    self._give_up(reason)

    def _decided(self, ref: str, error: Mapping[str, Any] | None) -> None:
        change = self._changes.pop(ref, None)
        if change is None:
            return
        if not change.stored.done():
            change.stored.set_result(self._core.status.storage == "durable")
        if change.acknowledged.done():
            return
        if error is None:
            change.acknowledged.set_result(None)
        else:
            refused = ChangeRefused(error["message"], code=error["code"], path=error.get("path"))
            change.acknowledged.set_exception(refused)

    def _set_timer(self, name: TimerName, ms: float | None) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
        if ms is not None and not self._closed:
            self._timers[name] = self._loop.call_later(ms / 1000, self._fire, name)

    def _fire(self, name: TimerName) -> None:
        del self._timers[name]
        self._feed(TimerFired(name))

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failure = error
            context = {"message": "a Reattach session failed", "exception": error, "task": task}
            self._loop.call_exception_handler(context)
            self._tell(Changed())

    async def _talk(self) -> None:
        me = asyncio.current_task()

        def feed(given: Input) -> None:
            # Nothing of a line that was given up is heard any more.
            if self._line is me:
                self._feed(given)

        try:
            token = await self._fresh_token()
        except Exception as error:  # noqa: BLE001 - it is the application's, and may raise anything
            feed(Closed(4401, f"expected a token, got {error!r}"))
            return

        def opened(send: socket.Send) -> None:
            if self._line is me:
                self._send = send
                feed(Opened(token, self._user))

        code, reason = await socket.talk(
            self._address, opened=opened, received=lambda frame: feed(FrameReceived(frame))
        )
        feed(Closed(code, reason))

    async def _fresh_token(self) -> str | None:
        return await _ask_for(self._token)

    async def _store(self, writes: Sequence[tuple[str, Any]]) -> None:
        outcome: Input = Stored()
        try:
            await self._must_outbox().write(writes)
        except StoreError as error:
            outcome = StoreFailed(error.message)
        self._feed(outcome)

    def _must_outbox(self) -> SQLiteOutbox:
        if self._outbox is None:
            raise AssertionError("a client without an outbox stores nothing")
        return self._outbox

    async def _ask(self, client_id: str, first: int) -> None:
        commits: list[dict[str, Any]] | None = None
        # Also for want of a token: the core asks again.
        with contextlib.suppress(Exception):
            token = await self._fresh_token()
            commits = await asking.history(self._address, token, client_id, first)
        self._feed(History(commits))

    # Waiting

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _stream(self, read: Callable[[Event, ClientCore], _T | None]) -> _Stream[_T]:
        stream = _Stream(lambda event: read(event, self._core))
        if self._closed:
            stream.end()
        else:
            self._streams.add(stream)
        return stream


class _Stream(Generic[_T]):
    """Events as an iterator, from the moment at which it was made. Forgotten with it."""

    def __init__(self, read: Callable[[Event], _T | None]) -> None:
        self._read = read
        self._items: deque[_T] = deque()
        self._woken = asyncio.Event()
        self._ended = False

    def put(self, event: Event) -> None:
        item = self._read(event)
        if item is not None:
            self._items.append(item)
            self._woken.set()

    def end(self) -> None:
        self._ended = True
        self._woken.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        while not self._items:
            if self._ended:
                raise StopAsyncIteration
            self._woken.clear()
            await self._woken.wait()
        return self._items.popleft()


def connect(
    url: str,
    session_id: str,
    *,
    token: Token | None = None,
    outbox: str | os.PathLike[str] | None = None,
    create: Mapping[str, Any] | None = None,
    user: str | None = None,
    device: Mapping[str, Any] | None = None,
    schema_version: int | None = None,
) -> Session:
    """Return a session, to be opened by ``async with``.

    - ``url``: where the server is, with the prefix that it is mounted under
    - ``token``: a bearer token, or a function, ``async`` or not, that gets a fresh one
    - ``outbox``: a file of this session alone, where changes are kept until the server has them,
      whatever happens to this process. Without one they are kept in memory
    - ``create``: ``{"state": …, "schema": …}`` to create the session with, where it is not there.
      With a ``state``, and no server to be reached, work begins on that
    - ``user``: who it is, so that nobody else goes on with their outbox
    - ``device``: ``{"name": …, "info": …, "id": …}``, as other devices see it
    - ``schema_version``: of the session's schema, that this program was written for

        async with connect("http://127.0.0.1:8000", "draft-7", outbox="draft-7.db") as session:
            await session.set("/title", "Minutes")   # durable at the server
    """
    return Session(
        url,
        session_id,
        token=token,
        outbox=outbox,
        create=create,
        user=user,
        device=device,
        schema_version=schema_version,
    )


async def _ask_for(token: Token | None) -> str | None:
    found = token() if callable(token) else token
    return await found if inspect.isawaitable(found) else found


def clock() -> int:
    """Return the time, ms since 1970."""
    return time.time_ns() // 1_000_000


def uuid7() -> str:
    """Return a UUIDv7 (RFC 9562): ordered by time."""
    value = (clock() << 80 | secrets.randbits(80)) & ~(0xF << 76) | 0x7 << 76
    text = f"{value & ~(0x3 << 62) | 0x2 << 62:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _after(after: str | None) -> dict[str, Any]:
    return {} if after is _LEFT_OUT else {"after": after}


def _to_commit(event: Event, core: ClientCore) -> Commit | None:
    match event.type:
        case "stateUpdateReceived" | "sessionRestored":
            commit: Commit = msgspec.convert(own(event.detail), Commit)
            return commit
        case "initialStateReceived":
            whole = [{"op": "replace", "path": "", "value": own(core.confirmed_state)}]
            return StateUpdate(event.detail["version"], whole, By(None, source="server"), clock())
    return None

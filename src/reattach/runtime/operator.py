"""What an operator has done to sessions, whoever owns them: by the command line.

It goes the way of every other write: the session is opened, decides, and its commit is durable
before anybody hears of it. The same tasks are carried out by a running server that is told them
(`reattach.server.operators`) and by a node of the command line's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec

from reattach.core.checkpoints import mark_of, shown
from reattach.core.connection import Close
from reattach.core.effects import Request
from reattach.core.room import Room
from reattach.core.session import Proposal
from reattach.errors import BadRequest, SessionNotFound, Unavailable
from reattach.runtime.access import User
from reattach.runtime.compaction import Compactor
from reattach.runtime.erasure import erase_user
from reattach.runtime.exports import export_session, import_session
from reattach.runtime.host import Host
from reattach.runtime.registry import Registry
from reattach.store.base import Append, CommitRecord, Expected, Outcome
from reattach.wire import Op, encode

__all__ = [
    "Compact",
    "Erase",
    "EraseUser",
    "Export",
    "Import",
    "Operator",
    "Ping",
    "Progress",
    "RenewEpochs",
    "Restore",
    "SaveCheckpoint",
    "Task",
]

Progress: TypeAlias = Callable[[int], None]
"""Is told how many sessions are done."""

_SET_BACK: Final = "the session's history was set back: come back"


class Ping(msgspec.Struct, tag="ping", frozen=True):
    """Say which process it is, and of which release."""


class SaveCheckpoint(msgspec.Struct, tag="checkpoint", frozen=True):
    """Mark a session as it is."""

    session_id: str
    name: str | None = None
    data: bytes | None = None
    """JSON."""


class Restore(msgspec.Struct, tag="restore", frozen=True):
    """Make a session's state that of a version, or of a checkpoint (``latest`` too)."""

    session_id: str
    version: int | None = None
    checkpoint_id: str | None = None


class Export(msgspec.Struct, tag="export", frozen=True):
    """Return all that a session holds, as a file."""

    session_id: str


class Import(msgspec.Struct, tag="import", frozen=True):
    """Make a session of such a file, for a user, None: for its owner."""

    file: bytes
    user_id: str | None = None


class Compact(msgspec.Struct, tag="compact", frozen=True):
    """Take away history that is older than is kept, of one session or of all."""

    session_id: str | None = None


class RenewEpochs(msgspec.Struct, tag="epoch", frozen=True):
    """Begin another epoch in a session, or in all."""

    session_id: str | None = None


class Erase(msgspec.Struct, tag="erase", frozen=True):
    """Erase a session with its history."""

    session_id: str


class EraseUser(msgspec.Struct, tag="erase_user", frozen=True):
    """Erase all that a user owns, and end what they are in of others' sessions."""

    user_id: str


Task: TypeAlias = (
    Ping | SaveCheckpoint | Restore | Export | Import | Compact | RenewEpochs | Erase | EraseUser
)


class Operator:
    """Carries out tasks on a node; ``by`` is who stands in commits and activity logs."""

    def __init__(self, registry: Registry, *, history_days: int, by: str) -> None:
        self._registry = registry
        self._history_days = history_days
        self._by = by

    async def do(self, task: Task, progress: Progress) -> Any:
        """Carry out a task; returns what there is to tell, as MessagePack can have it.

        Raises what keeps it from being done, as `ReattachError`.
        """
        match task:
            case Ping():
                return None
            case SaveCheckpoint():
                return await self._save_checkpoint(task)
            case Restore():
                return await self._restore(task)
            case Export():
                host = await self._open(task.session_id, writes_state=False)
                return await export_session(self._registry, host, by=self._by)
            case Import():
                return await self._import(task)
            case Compact():
                return await self._compact(task, progress)
            case RenewEpochs():
                return await self._renew_epochs(task)
            case Erase():
                await self._registry.erase(task.session_id)
                return None
            case EraseUser():
                return await erase_user(self._registry, task.user_id, by=self._by, erased=progress)

    async def _open(self, session_id: str, *, writes_state: bool = True) -> Host:
        """Return the host of a session that stands where the database has it."""
        registry = self._registry
        host = await registry.open(session_id)
        await registry.nodes.keep_up(host)
        if host.closed:
            host = await registry.open(session_id)
        schema = host.room.recorded.schema_name
        if writes_state and schema is not None and schema not in registry.schemas:
            raise BadRequest(
                f"expected to know the schema {schema!r} of session {session_id!r}, whose rules"
                " hold for this, too: name the application that has it with --app",
                code="unknown_schema",
            )
        return host

    async def _save_checkpoint(self, task: SaveCheckpoint) -> bytes:
        """Return the checkpoint, as JSON."""
        registry = self._registry
        host = await self._open(task.session_id)
        data = None if task.data is None else msgspec.json.decode(task.data)
        mark = mark_of(registry.clock.new_id(), task.name, data, registry.limits)
        proposal = Proposal(client_id="", mark=mark, user_id=self._by)
        await host.submit(Request(proposal=proposal))
        record = await registry.store.checkpoint(task.session_id, mark.checkpoint_id)
        if record is None:
            raise Unavailable("the checkpoint was saved, and is no longer at hand")
        return encode(shown(record))

    async def _restore(self, task: Restore) -> bytes:
        """Return the commit that everybody is sent, as JSON."""
        host = await self._open(task.session_id)
        meant = Op(op="restore", version=task.version)
        if task.checkpoint_id is not None:
            meant = Op(op="restore", checkpoint_id=task.checkpoint_id)
        request = await self._registry.request(host, restore=meant, user_id=self._by)
        result = await host.submit(request)
        if not isinstance(result.decision, CommitRecord):
            raise Unavailable("the session was restored, and its commit is no longer at hand")
        return result.decision.body

    async def _import(self, task: Import) -> Any:
        user = None if task.user_id is None else User(task.user_id)
        record = await import_session(self._registry, task.file, user, by=self._by, role=None)
        return msgspec.to_builtins(record)

    async def _compact(self, task: Compact, progress: Progress) -> Any:
        registry = self._registry
        compactor = Compactor(
            registry.store,
            registry.clock,
            registry.limits,
            registry.nodes.name,
            history_days=self._history_days,
        )
        if task.session_id is None:
            return msgspec.to_builtins(await compactor.sweep(progress))
        if await registry.store.versions([task.session_id]) == {}:
            raise SessionNotFound("there is no such session")
        return msgspec.to_builtins(await compactor.compact(task.session_id))

    async def _renew_epochs(self, task: RenewEpochs) -> int:
        registry = self._registry
        if task.session_id is not None:
            await self._renew_epoch(task.session_id)
            return 1
        renewed = await registry.store.renew_epochs(registry.clock.new_id())
        # They find their histories set back; other nodes compare by themselves.
        for host in list(registry.hosts.values()):
            host.check()
        return renewed

    async def _renew_epoch(self, session_id: str) -> None:
        outcome = None
        while outcome is not Outcome.OK:
            host = await self._open(session_id, writes_state=False)
            part = await host.at_rest(partial(self._renewal, host))
            try:
                outcome = await self._registry.write(part)
            finally:
                host.close(Close.RESTART, _SET_BACK)

    def _renewal(self, host: Host, room: Room) -> Append:
        host.hold()
        record = room.recorded
        renewed = msgspec.structs.replace(
            record, epoch=self._registry.clock.new_id(), epoch_version=record.version
        )
        return Append(session_id=record.session_id, expected=Expected.of(record), session=renewed)

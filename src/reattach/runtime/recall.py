"""Looks up what a restore is about: a version's state, by its number or by a mark on it."""

from __future__ import annotations

from reattach.core.past import Past, document_of
from reattach.core.session import schema_version_of
from reattach.errors import ChangeRefused
from reattach.store.base import SessionRecord, Store
from reattach.wire import Op, encode

__all__ = ["look_up"]


async def look_up(store: Store, record: SessionRecord, restore: Op, epoch: str | None) -> Past:
    """Return the state that a `restore` operation means.

    ``record`` is the session's row, ``epoch`` that of the change's author, None for the present
    one. Raises `ChangeRefused` (``no_such_checkpoint``, ``version_gone``).
    """
    name: str | None = None
    if isinstance(restore.checkpoint_id, str):
        wanted = None if restore.checkpoint_id == "latest" else restore.checkpoint_id
        mark = await store.checkpoint(record.session_id, wanted)
        if mark is None:
            raise ChangeRefused(
                "there is no such checkpoint: list those that there are", code="no_such_checkpoint"
            )
        name, version = mark.checkpoint_id, mark.version
    else:
        version = restore.version
        # What another epoch calls by this number was lost with it.
        if epoch not in {None, record.epoch} and version > record.epoch_version:
            raise _gone(version)
    loaded = await store.load_at(record.session_id, version)
    if loaded is None:
        raise _gone(version)
    document, reached = document_of(loaded)
    if reached != version:
        raise _gone(version)
    schema_version = schema_version_of(loaded.saved.index) or record.schema_version
    return Past(version, encode(document.state), schema_version, name)


def _gone(version: int) -> ChangeRefused:
    return ChangeRefused(
        f"version {version} is not retained, or does not exist yet: restore a checkpoint, or a"
        " later version",
        code="version_gone",
    )

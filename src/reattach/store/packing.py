"""How saved states lie in both databases: as zstd, with what they weigh unpacked in front.

    0xff 'z' | the weight, 4 bytes, the highest first | a zstd frame (RFC 8878)

JSON never begins with 0xff (RFC 8259: it is UTF-8), so what is not packed is told by its first
byte: rows from before there was this form, and what would not become less. The weight stands in
front because a load has to know, before it reads them, what states come to in memory.
"""

from __future__ import annotations

from typing import Final

import msgspec
import zstandard

from reattach.store.base import SavedState

__all__ = ["HEAD", "MARK", "pack", "packed", "unpack", "unpacked"]

MARK: Final = b"\xffz"
HEAD: Final = len(MARK) + 4
"""Bytes in front of a frame."""

_LEVEL: Final = 1
"""Level 3 takes half as long again for 5 % less; a state is packed while a batch waits."""
_MOST: Final = 2**32 - 1


def pack(data: bytes) -> bytes:
    """Return what is kept of some bytes."""
    if len(data) > _MOST:
        return data
    frame = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
    if HEAD + len(frame) >= len(data) and not data.startswith(MARK):
        return data
    return MARK + len(data).to_bytes(4) + frame


def unpack(data: bytes) -> bytes:
    """Return the bytes of which this is kept."""
    if not data.startswith(MARK):
        return data
    return zstandard.ZstdDecompressor().decompress(data[HEAD:])


def packed(saved: SavedState) -> SavedState:
    """Return a state as it is kept."""
    return msgspec.structs.replace(saved, state=pack(saved.state), index=pack(saved.index))


def unpacked(version: int, state: bytes, index: bytes) -> SavedState:
    """Return the state that is kept in a row."""
    return SavedState(version=version, state=unpack(state), index=unpack(index))

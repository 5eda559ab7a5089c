"""The client cores under test, each with its disk: the Python one here, TypeScript's behind a pipe.

What a core wants done is given as plain objects with a ``type``, as TypeScript's core gives it:
``connect``, ``send`` (with the ``frame`` and, of a change, its ``ref``), ``disconnect``, ``store``,
``timer`` (``name``, ``ms`` or None), ``history`` (``clientId``, ``from``), ``event``, ``kept``,
``decided`` (``ref``, ``error``).
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

__all__ = ["Effects", "Look", "Peer", "Process", "Refused", "TypeScriptPeer", "View"]

Effects: TypeAlias = Sequence[Mapping[str, Any]]


class Refused(Exception):
    """The core did not take a change: its operations make no sense there."""


class View(msgspec.Struct):
    """What a client says of itself after each step."""

    client_id: str = ""
    connection: str = "connecting"
    epoch: str | None = None
    version: int | None = None
    pending: list[tuple[str, int, bool]] = msgspec.field(default_factory=list)
    """Its undecided changes: ref, number (0: none yet), whether it is on the disk."""
    rejected: list[str] = msgspec.field(default_factory=list)
    state: Any = msgspec.UNSET
    """The confirmed state, where it is another one than before."""


class Look(msgspec.Struct):
    """What a user sees: the state with the pending changes in it, and what is in conflict."""

    shown: dict[str, Any] | None
    conflicts: list[dict[str, Any]]


class Peer(Protocol):
    """One client's core and its disk. Times are its device's, ms since 1970."""

    view: View

    def boot(self, now: int) -> Effects:
        """Start a core from the disk, in place of the one that runs, if one does."""

    def step(self, given: Mapping[str, Any], now: int) -> Effects:
        """Give it an input."""

    def change(self, ops: Sequence[Mapping[str, Any]], ref: str, now: int) -> Effects:
        """Have its user make a change; raises `Refused`."""

    def take(self, now: int) -> None:
        """Begin the transaction that ``store`` asked for."""

    def commit(self) -> None:
        """Have that transaction on the disk. A step with ``stored`` follows."""

    def save(self, copy: str) -> None:
        """Copy the disk."""

    def put_back(self, copy: str) -> None:
        """Make the disk that of then. `boot` follows."""

    def look(self) -> Look:
        """Look at the screen."""


# TypeScript


class Process:
    """A Node.js process with ``packages/client/sim/peer.mjs`` in it."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it with a command that ends with that script's path."""
        self._process = subprocess.Popen(  # noqa: S603 - named by whoever starts the simulation
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, **request: Any) -> bytes:
        """Send a request and return its answer."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the client's process ended: status {process.wait()}")
        return line

    def close(self) -> None:
        """End it."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait()
        process.stdout.close()


class _Answer(msgspec.Struct):
    effects: list[dict[str, Any]] = msgspec.field(default_factory=list)
    view: View | None = None
    refused: str | None = None
    failed: str | None = None


_answer = msgspec.json.Decoder(_Answer)
_look = msgspec.json.Decoder(Look)


class TypeScriptPeer:
    """A client in a `Process`."""

    def __init__(self, process: Process, name: str, *, seed: int, create: Any) -> None:
        """Make one with an empty disk."""
        self.view = View()
        self._process = process
        self._name = name
        options = {"seed": seed, "device": name, "create": create}
        self._ask("new", 0, options=options)

    def boot(self, now: int) -> Effects:
        """Start a core from the disk."""
        return self._ask("boot", now)

    def step(self, given: Mapping[str, Any], now: int) -> Effects:
        """Give it an input."""
        return self._ask("step", now, input=given)

    def change(self, ops: Sequence[Mapping[str, Any]], ref: str, now: int) -> Effects:
        """Have its user make a change."""
        return self._ask("change", now, ops=ops, ref=ref)

    def take(self, now: int) -> None:
        """Begin a transaction."""
        self._ask("take", now)

    def commit(self) -> None:
        """Have it on the disk."""
        self._ask("commit", 0)

    def save(self, copy: str) -> None:
        """Copy the disk."""
        self._ask("save", 0, copy=copy)

    def put_back(self, copy: str) -> None:
        """Make the disk that of then."""
        self._ask("put back", 0, copy=copy)

    def look(self) -> Look:
        """Look at the screen."""
        return _look.decode(self._process.ask(name=self._name, act="look", now=0))

    def _ask(self, act: str, now: int, **more: Any) -> Effects:
        answer = _answer.decode(self._process.ask(name=self._name, act=act, now=now, **more))
        if answer.failed is not None:
            raise RuntimeError(f"the client failed: {answer.failed}")
        if answer.refused is not None:
            raise Refused(answer.refused)
        if answer.view is not None:
            self.view = answer.view
        return answer.effects

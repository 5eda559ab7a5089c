"""What the nodes do, gathered for whoever looks: each tells its own metrics, when it is asked.

Nodes on one Redis ask each other by the bus, on a channel of its own (`CHANNEL` is no session's
id). Nothing is said while nobody looks. Workers without one ask over the sockets that they have for
Prometheus. Other nodes do not know of each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from reattach.bus.base import Message, Missed, Watched, Whisper
from reattach.runtime.registry import Registry
from reattach.server.metrics import exposition
from reattach.wire import encode

__all__ = ["CHANNEL", "Figures", "Peers"]

CHANNEL: Final = "/inspector"
"""No session has such an id: it has a slash."""

_STALE_MS: Final = 5_000
"""A node that told nothing for so long is not shown any more."""
_MOST_ONLINE: Final = 1_000
"""Sessions with somebody online that a node names."""
_SETTLES_S: Final = 0.05
"""How long the first who asks waits for the others."""


class Figures(msgspec.Struct):
    """What one node does: ``figures`` by the name of the metric, without ``reattach_``.

    A metric with a label has its value in brackets behind it: ``resumes_total{delta}``.
    ``online`` are ids of sessions with somebody online there.
    """

    node: str
    name: str
    at: int
    figures: dict[str, float] = msgspec.field(default_factory=dict)
    online: list[str] = msgspec.field(default_factory=list)


class _Ask(msgspec.Struct, tag="ask"):
    pass


class _Tell(msgspec.Struct, tag="tell"):
    figures: Figures


_decoder: msgspec.json.Decoder[_Ask | _Tell] = msgspec.json.Decoder(_Ask | _Tell)


class Peers:
    """This node among those of its database, as an inspector sees them."""

    def __init__(self, registry: Registry, workers: Callable[[], Awaitable[bytes]]) -> None:
        """Stand beside a registry; ``workers`` returns everybody's metrics behind this port."""
        self._registry = registry
        self._workers = workers
        self._heard: dict[str, Figures] = {}
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        """Answer others, from now on."""
        bus = self._registry.bus
        if bus is not None:
            self._unsubscribe = bus.subscribe(self._hear)
            bus.watch(CHANNEL)

    def stop(self) -> None:
        """Answer nobody any more."""
        if self._unsubscribe is not None:
            self._unsubscribe()

    async def figures(self) -> list[Figures]:
        """Return what every node does that can be asked, this one first."""
        bus = self._registry.bus
        if bus is None or not bus.live:
            return self._of_workers(await self._workers())
        first = not self._known()
        self._say(_Ask())
        if first:
            await asyncio.sleep(_SETTLES_S)
        return [self._own(), *self._known()]

    async def online(self) -> set[str]:
        """Return the sessions that are known to have somebody online."""
        return {name for one in await self.figures() for name in one.online}

    def _own(self) -> Figures:
        registry = self._registry
        return Figures(
            node=registry.nodes.name,
            name=f"{socket.gethostname()}:{os.getpid()}",
            at=registry.clock.now(),
            figures=_read(exposition(registry)).get("", {}),
            online=self._online(),
        )

    def _online(self) -> list[str]:
        online = (host.session_id for host in self._registry.hosts.values() if host.room.online())
        return [name for name, _ in zip(online, range(_MOST_ONLINE), strict=False)]

    def _known(self) -> list[Figures]:
        since = self._registry.clock.now() - _STALE_MS
        self._heard = {name: one for name, one in self._heard.items() if one.at >= since}
        return [one for _, one in sorted(self._heard.items())]

    def _of_workers(self, text: bytes) -> list[Figures]:
        """Take apart what one or all processes behind this port told."""
        own, found = self._own(), _read(text)
        if set(found) <= {""}:
            return [own]
        return [
            Figures(
                node=f"{own.node}.{worker}",
                name=f"worker {worker}",
                at=own.at,
                figures=found[worker],
                # Which of them this one is, it is not told: what it knows stands with the first.
                online=own.online if number == 0 else [],
            )
            for number, worker in enumerate(sorted(found))
        ]

    def _hear(self, message: Message | Missed | Watched) -> None:
        if not isinstance(message, Whisper) or message.session_id != CHANNEL:
            return
        if message.node == self._registry.nodes.name:
            return
        with contextlib.suppress(msgspec.MsgspecError):  # of a node of another release
            said = _decoder.decode(message.frame)
            if isinstance(said, _Ask):
                self._say(_Tell(self._own()))
            else:
                # By this node's clock: the others' may be wrong.
                said.figures.at = self._registry.clock.now()
                self._heard[message.node] = said.figures

    def _say(self, what: _Ask | _Tell) -> None:
        name = self._registry.nodes.name
        self._registry.nodes.tell(Whisper(session_id=CHANNEL, node=name, frame=encode(what)))


def _read(text: bytes) -> dict[str, dict[str, float]]:
    """Read an exposition: the figures of each worker, of "" where there are none."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            worker = labels.pop("worker", "")
            found.setdefault(worker, {})[_name(sample.name, list(labels.values()))] = sample.value
    return found


def _name(name: str, labels: Sequence[Any]) -> str:
    short = name.removeprefix("reattach_")
    return f"{short}{{{labels[0]}}}" if labels else short

"""What a node tells Prometheus: made of plain counts when it is asked, and not before.

Each process answers for itself. Of several workers behind one port (``reattach serve --workers``)
whichever takes the scrape asks the others for theirs, over sockets in a folder that the parent made
for them, and every sample says of which ``worker`` it is. One that does not answer within a second
is missing, and counts as 0 in ``reattach_worker_up``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from reattach.runtime.counts import Buckets
from reattach.runtime.registry import Registry

__all__ = ["Crew", "exposition"]

log = structlog.get_logger("reattach.metrics")

_PATIENCE_S: Final = 1.0


def exposition(registry: Registry) -> bytes:
    """Return the metrics of this process, as Prometheus' text format 0.0.4 has them."""
    collectors = CollectorRegistry()
    ProcessCollector(registry=collectors)
    collectors.register(_Node(registry))
    return generate_latest(collectors)


class _Node(Collector):
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        yield from _present(self._registry)
        yield from _done(self._registry)
        yield from _bus(self._registry)

    def describe(self) -> Iterable[Metric]:
        return ()  # so that it is not collected when it is registered


def _present(registry: Registry) -> Iterator[Metric]:
    hosts = list(registry.hosts.values())
    outage = registry.outage
    yield _gauge("connections", "Lines that are open.", len(registry.connections))
    yield _gauge("sessions_open", "Sessions in memory.", len(hosts))
    yield _gauge(
        "changes_waiting",
        "Changes in line that no transaction has taken yet.",
        sum(len(host.room.inbox) for host in hosts),
    )
    yield _gauge(
        "changes_waiting_bytes",
        "What changes weigh that are not durable yet; beyond max_backlog_bytes nobody is read on.",
        registry.backlog.bytes,
    )
    yield _gauge(
        "database_up", "Whether the database commits, as far as is known.", not outage.suspected
    )
    yield _counter("database_outages", "Times that the database was away.", outage.times)


def _done(registry: Registry) -> Iterator[Metric]:
    counts = registry.counts
    yield _counter("commits", "Changes that became versions.", counts.commits)
    yield _counter("refusals", "Changes that were refused for good.", counts.refusals)
    yield _counter(
        "stale", "Sessions that another node had moved when they were written.", counts.stale
    )
    yield _counter("batches_lost", "Transactions of unknown outcome.", counts.lost)
    yield _histogram("batch_sessions", "Sessions in one transaction.", counts.parts)
    yield _histogram("append_seconds", "Until a transaction is durable.", counts.seconds)
    yield _counter("loads", "Sessions that were opened.", counts.loads)
    yield _counter("loads_failed", "Sessions that could not be opened.", counts.loads_failed)
    yield _labelled(
        "resumes",
        "Welcomes: with what was missed (delta), or with the whole state (snapshot).",
        "kind",
        {"delta": counts.welcomes.delta, "snapshot": counts.welcomes.snapshot},
    )


def _bus(registry: Registry) -> Iterator[Metric]:
    bus, counts = registry.bus, registry.counts
    if bus is None:
        return
    yield _gauge("bus_up", "Whether the bus between nodes (Redis) carries messages.", bus.live)
    yield _labelled(
        "bus_messages",
        "Messages of the bus: sent; heard; dropped, because it was down or too much waited;"
        " unread, because they are not ours.",
        "outcome",
        {
            "sent": bus.counts.sent,
            "heard": bus.counts.heard,
            "dropped": bus.counts.dropped,
            "unread": bus.counts.unread,
        },
    )
    yield _counter("bus_outages", "Times that the bus went down.", bus.counts.outages)
    yield _labelled(
        "snapshots",
        "Sessions that were opened from a hot snapshot (hit), or without one (miss).",
        "outcome",
        {"hit": counts.snapshots_used, "miss": counts.snapshots_missed},
    )


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(f"reattach_{name}", help_, value=float(value))


def _counter(name: str, help_: str, value: float) -> Metric:
    return CounterMetricFamily(f"reattach_{name}", help_, value=value)


def _labelled(name: str, help_: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"reattach_{name}", help_, labels=[label])
    for one, value in values.items():
        family.add_metric([one], value)
    return family


def _histogram(name: str, help_: str, buckets: Buckets) -> Metric:
    bounds = [*(str(float(bound)) for bound in buckets.bounds), "+Inf"]
    counts = list(zip(bounds, map(float, accumulate(buckets.counts)), strict=True))
    return HistogramMetricFamily(f"reattach_{name}", help_, buckets=counts, sum_value=buckets.total)


class Crew:
    """The workers behind one port, as one of them: worker ``number`` of ``count``, from 1."""

    def __init__(self, folder: Path, number: int, count: int) -> None:
        self._folder = folder
        self._number = number
        self._count = count
        self._server: asyncio.Server | None = None

    async def open(self, mine: Callable[[], bytes]) -> None:
        """Answer the others with what ``mine`` returns."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(mine())
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        path = self._path(self._number)
        path.unlink(missing_ok=True)  # of a life before this one
        self._server = await asyncio.start_unix_server(answer, path)

    async def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
            self._path(self._number).unlink(missing_ok=True)

    async def exposition(self, mine: bytes) -> bytes:
        """Return everybody's metrics, each with its ``worker``; ``mine`` are those of this one."""
        others = [number for number in range(1, self._count + 1) if number != self._number]
        answers = dict(zip(others, await asyncio.gather(*map(self._ask, others)), strict=True))
        return _merged({**answers, self._number: mine})

    async def _ask(self, number: int) -> bytes | None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer = await asyncio.open_unix_connection(self._path(number))
                try:
                    return await reader.read()
                finally:
                    writer.close()
        except OSError as error:  # a timeout is one
            log.warning(
                "a worker does not tell its metrics: they are missing from this scrape",
                worker=number,
                error=str(error) or type(error).__name__,
            )
            return None

    def _path(self, number: int) -> Path:
        return self._folder / f"worker-{number}"


def _merged(answers: dict[int, bytes | None]) -> bytes:
    families: dict[str, Metric] = {}
    up = GaugeMetricFamily(
        "reattach_worker_up", "Whether a worker told its metrics.", labels=["worker"]
    )
    for number, text in sorted(answers.items()):
        up.add_metric([str(number)], 0 if text is None else 1)
        for family in text_string_to_metric_families("" if text is None else text.decode()):
            merged = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                labels = {**sample.labels, "worker": str(number)}
                merged.samples.append(sample._replace(labels=labels))
    collectors = CollectorRegistry()
    collectors.register(_Ready([up, *families.values()]))
    return generate_latest(collectors)


class _Ready(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

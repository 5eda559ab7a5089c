"""`docs/performance.md` and its plots, of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.cases import LOADS, STORES, Case

__all__ = ["Found", "write"]

_WIDTH: Final = 720
_BAR: Final = 18
_LABEL: Final = 200
_COLORS: Final = ("#3b6ea5", "#4f9d69", "#c58b2b", "#a05195")

_INTRO: Final = """# Performance

Made by `make bench` and by nothing else: run it on your machine. Medians of {rounds} rounds that
took turns, with the least and the greatest in brackets; each round also measured what the machine
can do by itself, so that ratios hold where times do not. Everything is on that is on by default.
Server and load have a core each where there are two, and two nodes share one; the load's own share
of its core is told, because near 100 % it is the load that is measured. An edit is *acknowledged*
when its writer has its commit, and *seen* when the session's watchers have it, too.

Measured {when} on {machine}.
"""


class Found(msgspec.Struct):
    """All that was measured: a list of rounds for each thing."""

    machine: str
    when: str
    limits: dict[str, list[float]] = msgspec.field(default_factory=dict)
    loads: dict[tuple[str, str], list[dict[str, Any]]] = msgspec.field(default_factory=dict)
    """By store and case."""
    single: dict[str, list[float]] = msgspec.field(default_factory=dict)
    """Memory and opening."""


def write(found: Found, page: Path) -> None:
    """Write the page, and its plots beside it in ``images``."""
    rounds = max(map(len, found.limits.values()), default=0)
    parts = [_INTRO.format(rounds=rounds, when=found.when, machine=found.machine)]
    parts.append("## The machine by itself\n")
    parts.append(_table(("", "median"), [[name, _many(v)] for name, v in found.limits.items()]))
    images = page.parent / "images"
    for title, cases, name in (
        ("Edits", LOADS[:3], "edits"),
        ("What else costs", LOADS[3:6], "costs"),
        ("One session, many viewers", LOADS[6:], "viewers"),
    ):
        parts.append(f"## {title}\n")
        parts.append(_loads(found, cases))
        bars = _bars(found, cases)
        if bars:
            plot = images / f"performance-{name}.svg"
            plot.write_text(_plot(bars), encoding="utf-8")
            parts.append(f"![Edits a second](images/{plot.name})\n")
    parts.append("## Memory, coming back, opening\n")
    parts.append(_table(("", "median"), [[name, _many(v)] for name, v in found.single.items()]))
    page.write_text("\n".join(parts), encoding="utf-8")


def _loads(found: Found, cases: Sequence[Case]) -> str:
    heads = [
        *("", "on", "edits/s", "ack ms p50", "ack p99", "seen p50", "seen p99"),
        *("server CPU s / 10,000", "bytes received / edit", "load's core"),
    ]
    rows = []
    for case in cases:
        for store in STORES:
            runs = found.loads.get((store, case.name))
            if runs:
                rows.append([case.name, store, *_columns(runs)])
    return _table(heads, rows)


def _columns(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    def of(*keys: str) -> list[float]:
        values = []
        for run in runs:
            value: Any = run
            for key in keys:
                value = value[key]
            values.append(float(value))
        return values

    return [
        _many(of("edits_s")),
        _many(of("ack_ms", "p50")),
        _many(of("ack_ms", "p99")),
        _many(of("seen_ms", "p50")),
        _many(of("seen_ms", "p99")),
        _many(of("cpu_s_10k")),
        f"{statistics.median(of('received_bytes')):,.0f}",
        f"{100 * statistics.median(of('load_cpu')):.0f} %",
    ]


def _many(values: Sequence[float]) -> str:
    middle = _number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} [{_number(min(values))}–{_number(max(values))}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _bars(found: Found, cases: Sequence[Case]) -> list[tuple[str, int, Sequence[float]]]:
    """Return the bars of a plot: a label, the number of its color, and the rounds."""
    bars: list[tuple[str, int, Sequence[float]]] = []
    for case in cases:
        for number, store in enumerate(STORES):
            runs = found.loads.get((store, case.name))
            if runs:
                label = f"{case.name}, {store}"
                bars.append((label, number, [float(run["edits_s"]) for run in runs]))
    return bars


def _plot(bars: Sequence[tuple[str, int, Sequence[float]]]) -> str:
    """Draw medians as bars, with a line from the least to the greatest."""
    label = 2 * _LABEL
    most = max(max(values) for _, _, values in bars) or 1
    scale = (_WIDTH - label - 80) / most
    height = len(bars) * (_BAR + 6) + 10
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}">',
        "<style>text { font: 12px sans-serif }</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for line, (name, color, values) in enumerate(bars):
        top = 8 + line * (_BAR + 6)
        middle, low, high = statistics.median(values), min(values), max(values)
        text, end, fill = top + _BAR - 5, label + high * scale, _COLORS[color]
        drawn += [
            f'<text x="{label - 8}" y="{text}" text-anchor="end">{escape(name)}</text>',
            f'<path d="M{label},{top} h{middle * scale:.1f} v{_BAR} H{label}" fill="{fill}"/>',
            f'<path d="M{label + low * scale:.1f},{top + _BAR / 2} H{end:.1f}" stroke="#222"/>',
            f'<text x="{end + 6:.1f}" y="{text}">{middle:,.0f}</text>',
        ]
    return "\n".join([*drawn, "</svg>", ""])

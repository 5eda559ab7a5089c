"""Measure everything in turn, round after round, and write `docs/performance.md`.

python -m bench --rounds 3 --seconds 3 --output docs/performance.md
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from bench import report
from bench.cases import LOADS, STORES, Bench
from bench.machine import describe


async def _measure(said: argparse.Namespace) -> report.Found:
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    found = report.Found(machine=describe(), when=when)
    # Not where a test runner puts its files, which may be memory: a disk is to be measured.
    with tempfile.TemporaryDirectory(prefix="reattach-bench-", dir=said.folder) as folder:
        async with Bench(Path(folder), said.seconds) as bench:
            for number in range(said.rounds):
                await _round(found, bench, number)
                for name, value in (
                    *(await bench.memory()).items(),
                    *(await bench.opening()).items(),
                ):
                    found.single.setdefault(name, []).append(value)
                    _tell(f"{name}: {value:.3g}")
    return found


async def _round(found: report.Found, bench: Bench, number: int) -> None:
    for name, limit in (await bench.limits()).items():
        found.limits.setdefault(name, []).append(limit)
        _tell(f"round {number + 1}: {name}: {limit:,.0f}")
    for store in STORES:
        async with bench.servers(store) as servers:
            cases = [case for case in LOADS if not case.on or store in case.on]
            for run, case in enumerate(cases):
                result = await bench.load(servers, case, run)
                found.loads.setdefault((store, case.name), []).append(result)
                _tell(
                    f"round {number + 1}: {store}, {case.name}: {result['edits_s']:,.0f} edits/s, "
                    f"ack {result['ack_ms']['p50']} ms, server CPU {result['cpu_s_10k']:.2f} s for"
                    f" 10,000, load {100 * result['load_cpu']:.0f} % of a core"
                )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure Reattach on this machine.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.5, help="how long a load is measured")
    parser.add_argument("--folder", type=Path, help="where databases are made, on a disk")
    parser.add_argument("--output", type=Path, default=Path("docs/performance.md"))
    said = parser.parse_args()
    report.write(asyncio.run(_measure(said)), said.output)
    _tell(f"wrote {said.output}")


if __name__ == "__main__":
    main()

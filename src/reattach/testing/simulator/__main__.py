"""``python -m reattach.testing.simulator --seeds 2000``: play seeds, and tell what happened.

What it prints is its result; it ends with 1 where a promise was broken, or where something that is
to be survived never happened.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import sys
import time

from reattach.testing.simulator.run import (
    Outcome,
    Simulator,
    add_up,
    report,
    simulate,
    story_of,
)
from reattach.testing.simulator.totals import missing, table

_STORIES = 3
"""How many failed seeds are shrunk and told."""


def main() -> int:
    """Play what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m reattach.testing.simulator")
    parser.add_argument("--seeds", type=int, default=200, help="how many (200)")
    parser.add_argument("--first", type=int, help="the first seed (a random one)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--typescript",
        type=shlex.split,
        default=(),
        help="the command that runs packages/client/sim/peer.mjs: it plays one seed in ten",
    )
    asked = parser.parse_args()
    first = secrets.randbelow(10**9) if asked.first is None else asked.first
    say = sys.stdout.write
    say(f"seeds {first} to {first + asked.seeds - 1}\n")
    began = time.perf_counter()
    outcomes: list[Outcome] = []
    for outcome in simulate(
        range(first, first + asked.seeds),
        jobs=asked.jobs,
        typescript=asked.typescript,
    ):
        outcomes.append(outcome)
        if outcome.promise is not None:
            say(f"seed {outcome.seed} ({outcome.core}): {outcome.message[:300]}\n")
    totals = add_up(outcomes)
    say(f"{table(totals)}\n{time.perf_counter() - began:.0f} s; ")
    report(outcomes, say)
    failed = [outcome for outcome in outcomes if outcome.promise is not None]
    simulator = Simulator(asked.typescript)
    for outcome in sorted(failed, key=lambda one: one.seed)[:_STORIES]:
        say(f"\n{story_of(outcome, simulator)}\n")
    simulator.close()
    never = missing(totals)
    if never:
        say(f"never happened: {', '.join(never)}\n")
    return 1 if failed or never else 0


if __name__ == "__main__":
    sys.exit(main())

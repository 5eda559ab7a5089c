"""``python -m tests.simulation.hunt``: how many seeds it takes to catch each deliberate bug."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys

import pytest

from reattach.testing.simulator.run import Simulator
from reattach.testing.simulator.story import tell
from tests.simulation.bugs import BUGS


def hunt(name: str, first: int, most: int) -> tuple[str, int | None, str]:
    """Play seeds with a bug until one catches it; return the seed and what it said."""
    simulator = Simulator()
    with pytest.MonkeyPatch.context() as patch:
        BUGS[name](patch)
        for seed in range(first, first + most):
            outcome = simulator.play(tell(seed))
            if outcome.promise is not None:
                return name, seed, outcome.message
    return name, None, ""


def main() -> int:
    """Hunt every bug, or those that are named."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.hunt")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--most", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    names = asked.names or list(BUGS)
    free = 0
    with multiprocessing.get_context("spawn").Pool(asked.jobs) as pool:
        jobs = [pool.apply_async(hunt, (name, asked.first, asked.most)) for name in names]
        for job in jobs:
            name, seed, message = job.get()
            free += seed is None
            sys.stdout.write(f'    "{name}": {seed},  # {message[:110]}\n')
            sys.stdout.flush()
    return 1 if free else 0


if __name__ == "__main__":
    sys.exit(main())

"""What happens in one seed: a list of steps, decided up front, each with chances of its own.

So a story can be shrunk: with any of its steps left out, the others do what they did, as far as
what they met is still there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import msgspec

__all__ = ["CHANGES", "Step", "Story", "shrink", "told"]

CHANGES = 150
DEVICES = 4
FAULTS = 12


class Step(msgspec.Struct, frozen=True):
    """At ``at`` ms, ``kind`` happens to ``who``. ``seed`` decides the rest."""

    at: int
    kind: str
    who: int
    seed: int


class Story(msgspec.Struct, frozen=True):
    """A seed's steps, in the order of their times."""

    seed: int
    steps: Sequence[Step]


DEVICE_FAULTS = (
    "device killed",
    "disk fails",
    "device clock jumps",
    "line cut",
    "line stalls",
    "late close",
    "offline",
    "line superseded",
)
NODE_FAULTS = ("node killed", "node clock jumps", "node drained")
DATABASE_FAULTS = (
    "transaction before",
    "transaction after",
    "transaction lost",
    "transaction silent",
    "transaction slow",
    "transaction refused",
    "reads fail",
    "database down",
)
BUS_FAULTS = ("bus drop", "bus delay", "bus repeat", "bus gone")
KINDS = (*DEVICE_FAULTS, *NODE_FAULTS, *DATABASE_FAULTS, *BUS_FAULTS)


def tell(seed: int) -> Story:
    """Make up a seed's story."""
    chance = Random(f"story {seed}")
    steps: list[Step] = []

    def add(at: float, kind: str, who: int = 0) -> None:
        """Have something happen. Each step has chances of its own."""
        steps.append(Step(int(at), kind, who, chance.getrandbits(32)))

    now = 300.0
    pace = chance.choice([20, 60, 120])
    for _ in range(CHANGES):
        now += chance.expovariate(1 / pace)
        if chance.random() < 0.06:
            now += chance.uniform(200, 2_500)
        add(now, "change", chance.randrange(DEVICES))
    end = now
    for kind in chance.choices(KINDS, k=FAULTS + chance.randrange(6)):
        add(chance.uniform(300, end), kind, chance.randrange(DEVICES))
    if chance.random() < 0.4:
        # A client's first batch, in which the database hears of it, is there and nobody knows.
        add(chance.uniform(0, 120), chance.choice(["transaction after", "transaction lost"]))
    # One disaster in a story: of two at once, no protocol could tell what is whose.
    disaster = chance.random()
    at = chance.uniform(200, end * 0.8)
    if disaster < 0.35:
        steps = [step for step in steps if step.kind != "disk fails"]
        add(at, "backup")
        back = chance.uniform(at + 10, end)
        add(back, "backup restored", chance.randrange(2))
        if chance.random() < 0.5:
            # Somebody has work that the lost history never knew.
            add(max(at, back - chance.uniform(100, 4_000)), "offline", chance.randrange(DEVICES))
    elif disaster < 0.4:
        add(chance.uniform(end * 0.8, end), "session ended", chance.randrange(DEVICES))
    elif disaster < 0.7:
        add(at, "disk copied")
        add(chance.uniform(at + 10, end), "device comes back as it once was")
    if chance.random() < 0.5:
        # Somebody goes back, and may think better of it.
        for _ in range(chance.randrange(1, 4)):
            add(chance.uniform(300, end), "restore", chance.randrange(DEVICES))
    steps.sort(key=lambda step: step.at)
    return Story(seed, steps)


def shrink(story: Story, fails: Callable[[Story], bool], *, most: int = 400) -> Story:
    """Leave out steps while it still fails; ``most`` is how often that is tried (ddmin)."""
    steps = list(story.steps)
    size = len(steps) // 2
    tries = 0
    while size >= 1:
        start = 0
        while start < len(steps) and tries < most:
            fewer = steps[:start] + steps[start + size :]
            tries += 1
            if fails(Story(story.seed, fewer)):
                steps = fewer
            else:
                start += size
        size //= 2
    return Story(story.seed, steps)


def told(story: Story) -> str:
    """Return a story as lines to read."""
    lines = [f"{step.at / 1000:8.3f} s  {step.kind} ({step.who})" for step in story.steps]
    return "\n".join([f"seed {story.seed}, {len(lines)} steps:", *lines])

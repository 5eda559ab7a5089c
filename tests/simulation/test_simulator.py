"""The simulator itself: one seed is one story, it tests what production runs, and it can fail."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import reattach.client.core
import reattach.core.room
import reattach.runtime.committer
import reattach.runtime.host
import reattach.runtime.registry
from reattach.testing.simulator import node, python
from reattach.testing.simulator.loop import Asleep, VirtualLoop
from reattach.testing.simulator.run import Simulator
from reattach.testing.simulator.story import CHANGES, FAULTS, Step, Story, shrink, tell
from reattach.testing.simulator.world import NODES, World, play

ROOT = Path(__file__).resolve().parents[2]


def world(seed: int) -> World:
    return play(
        tell(seed), lambda name, seed, create: python.PythonPeer(name, seed=seed, create=create)
    )


def test_nodes_and_clients_are_the_production_ones() -> None:
    registry = reattach.runtime.registry
    used = [
        (node, "Registry", registry.Registry),
        (registry, "Committer", reattach.runtime.committer.Committer),
        (registry, "Host", reattach.runtime.host.Host),
        (registry, "Room", reattach.core.room.Room),
        (python, "ClientCore", reattach.client.core.ClientCore),
    ]
    for module, name, production in used:
        assert vars(module)[name] is production


def test_a_story_has_what_it_should() -> None:
    for seed in range(50):
        story = tell(seed)
        kinds = [step.kind for step in story.steps]
        assert kinds.count("change") == CHANGES >= 150
        assert len(kinds) - CHANGES >= FAULTS >= 10
        assert len({step.who for step in story.steps if step.kind == "change"}) >= 3
        assert tell(seed) == story
    assert NODES == 2


def test_one_seed_is_one_story_in_every_process() -> None:
    code = (
        "import hashlib, sys\n"
        "from tests.simulation.test_simulator import world\n"
        "truth = world(7).witness\n"
        "print(hashlib.sha256(repr([sorted(truth.states.items()), truth.counts]).encode())"
        ".hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": salt, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
        for salt in ("1", "2", "3")
    }
    assert len(digests) == 1


def test_shrinking_leaves_what_matters() -> None:
    steps = [Step(at, "change" if at % 7 else "node killed", 0, at) for at in range(100)]

    def fails(story: Story) -> bool:
        kept = {step.at for step in story.steps}
        return {14, 55} <= kept

    assert [step.at for step in shrink(Story(1, steps), fails).steps] == [14, 55]


def test_time_is_the_loops_own() -> None:
    loop = VirtualLoop()

    async def long() -> float:
        await asyncio.sleep(1_000_000)
        return loop.time()

    assert loop.run_until_complete(long()) == pytest.approx(1_000_000)
    with pytest.raises(Asleep):
        loop.run_until_complete(loop.create_future())
    loop.close()


def test_who_takes_a_dead_line_for_a_living_one_is_not_at_rest() -> None:
    """Regression, seed 340000257: it slept at the very end, and was asked before it could know."""
    step = Step(24978, "device clock jumps", 3, 3439601283)
    outcome = Simulator().play(Story(340000257, [step]))
    assert outcome.promise is None, outcome.message
    assert outcome.totals["line dead after sleep"] == 1


def test_totals_are_those_of_what_happened() -> None:
    outcome = Simulator().play(tell(3))
    assert outcome.promise is None, outcome.message
    assert outcome.totals["changes"] > 50
    assert msgspec.json.decode(msgspec.json.encode(outcome))["seed"] == 3

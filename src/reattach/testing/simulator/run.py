"""Many seeds over several processes, and what became of them."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from reattach.testing.simulator.broken import Broken
from reattach.testing.simulator.peers import Peer, Process, TypeScriptPeer
from reattach.testing.simulator.python import PythonPeer
from reattach.testing.simulator.story import Story, shrink, tell, told
from reattach.testing.simulator.totals import total
from reattach.testing.simulator.world import MakePeer, play

__all__ = ["Outcome", "Simulator", "simulate", "story_of"]

TYPESCRIPT_EVERY = 10
"""One seed in so many is played by TypeScript's core, where there is one."""


class Outcome(msgspec.Struct):
    """What became of a seed."""

    seed: int
    promise: str | None = None
    """The promise that was broken."""
    message: str = ""
    totals: dict[str, int] = msgspec.field(default_factory=dict)
    seconds: float = 0.0
    """Of work on one core; what Node.js did is not in it."""
    core: str = "Python"


class Simulator:
    """Plays stories, with clients in this process or in a Node.js one."""

    def __init__(self, typescript: Sequence[str] = ()) -> None:
        """``typescript`` is the command that runs ``packages/client/sim/peer.mjs``, if it is to."""
        self._typescript = typescript
        self._process: Process | None = None

    def core_of(self, seed: int) -> str:
        """Say whose core plays a seed."""
        turn = seed % TYPESCRIPT_EVERY == 0
        return "TypeScript" if self._typescript and turn else "Python"

    def play(self, story: Story) -> Outcome:
        """Let a story happen."""
        began = time.process_time()
        outcome = Outcome(story.seed, core=self.core_of(story.seed))
        before = structlog.get_config()
        # What nodes have to say of their troubles is what they are meant to have.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        try:
            outcome.totals = dict(total(play(story, self._maker(outcome.core))))
        except Broken as broken:
            outcome.promise, outcome.message = broken.promise, str(broken)
        except Exception as error:  # noqa: BLE001 - it is what is looked for, too
            outcome.promise, outcome.message = "nothing fails", f"{type(error).__name__}: {error}"
        finally:
            structlog.configure(**before)
        outcome.seconds = time.process_time() - began
        return outcome

    def close(self) -> None:
        """End the Node.js process, if there is one."""
        if self._process is not None:
            self._process.close()

    def _maker(self, core: str) -> MakePeer:
        if core == "Python":
            return _python
        if self._process is None:
            self._process = Process(self._typescript)
        process = self._process
        process.ask(act="clear")

        def make(name: str, seed: int, create: Any) -> Peer:
            return TypeScriptPeer(process, name, seed=seed, create=create)

        return make


def _python(name: str, seed: int, create: Any) -> Peer:
    return PythonPeer(name, seed=seed, create=create)


_simulator: Simulator | None = None


def _begin(typescript: Sequence[str]) -> None:
    global _simulator  # noqa: PLW0603 - a process of the pool has one
    _simulator = Simulator(typescript)


def _play(seed: int) -> Outcome:
    assert _simulator is not None
    return _simulator.play(tell(seed))


def simulate(
    seeds: Iterable[int], *, jobs: int, typescript: Sequence[str] = ()
) -> Iterator[Outcome]:
    """Play seeds in ``jobs`` processes; give what became of each as it is there."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, _begin, (typescript,)) as pool:
        yield from pool.imap_unordered(_play, seeds, chunksize=2)
        pool.close()
        pool.join()


def story_of(outcome: Outcome, simulator: Simulator) -> str:
    """Shrink the story of a failed seed, and tell it."""

    def fails(story: Story) -> bool:
        return simulator.play(story).promise == outcome.promise

    shrunk = shrink(tell(outcome.seed), fails)
    message = simulator.play(shrunk).message
    return f"{told(shrunk)}\n{message}"


def add_up(outcomes: Sequence[Outcome]) -> Mapping[str, int]:
    """Add up the totals."""
    totals: Counter[str] = Counter()
    for outcome in outcomes:
        totals.update(outcome.totals)
    return totals


Tell = Callable[[str], object]


def report(outcomes: Sequence[Outcome], tell_it: Tell = sys.stdout.write) -> None:
    """Tell how long it took, and how many failed."""
    cores = Counter(outcome.core for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    failed = sum(outcome.promise is not None for outcome in outcomes)
    tell_it(
        f"{len(outcomes)} seeds ({', '.join(f'{n} by {core}' for core, n in cores.items())}),"
        f" {seconds:.0f} s of work, {failed} failed\n"
    )

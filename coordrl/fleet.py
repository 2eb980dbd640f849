"""The actors of Ape-X on a Ray cluster: who plays, what is asked of whom, and who takes the place of one that is lost.

Nobody runs away: an actor has two chunks in hand at most, played or not, and gets another only when one was taken in. An
actor that is lost is replaced by one in its place: the same steps of the epsilon ladder, the same part of the replay memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

from coordrl.actor import Actor, Chunk, Place, Weights
from coordrl.algorithms import environment_seed
from coordrl.console import count_words
from coordrl.dqn import DQN
from coordrl.errors import CheckpointError, CoordrlError, RequestError, ResumableError
from coordrl.exactness import versions
from coordrl.footprint import STEPS
from coordrl.joining import join, shows_token, start
from coordrl.replay import FrameReplayBuffer
from coordrl.results import Spec
from coordrl.segments import append

IN_HAND = 2  # chunks of an actor: one that it plays while the other is on its way
LOSSES = 5  # in a row without a chunk in between, of one actor, until the run gives up
LATE_SECONDS = 30.0  # after which nobody counts on an actor's chunk, so that the others play on to the end
SILENT_SECONDS = 120.0  # after which an actor that has begun is taken for one that hangs
SLOWEST = 2.0  # steps a second of one that does not: Ray's processes are nice to all others, 4 busy ones on 2 cores left it 10
_MATTER = ("python", "coordrl", "torch", "stable_baselines3", "ale-py", "numpy")


@dataclass(frozen=True)
class Fleet:
    """Which actors play, and where.

    Args:
        actors: at least 1.
        n_envs: of each.
        address: of a Ray cluster that is there, or None for one of this machine that ends with the run.
    """

    actors: int
    n_envs: int
    address: str | None


@dataclass
class _Berth:
    """An actor's place: who is there now, and what it was asked for."""

    handle: Any = None
    asked: deque[tuple[Any, int]] = field(default_factory=deque)  # what will come, in order, and of how many steps
    served: int = 0  # when its last chunk was taken in, counted in chunks
    heard: float | None = None  # when something came from who is there now; None: it has not begun
    waits: float = 0.0  # since when nothing is ready that is asked of it
    losses: int = 0  # since the last chunk
    lives: int = 0


@final
class Actors:
    """The actors of a run on a Ray cluster.

    Args:
        fleet: which, and where.

    Raises:
        RequestError: ray is not installed, the cluster does not answer, or has too few cores.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._ray = join(fleet.address) if fleet.address else start(fleet.actors)
        cores = int(self._ray.cluster_resources().get("CPU", 0))
        if cores < fleet.actors:
            self._ray.shutdown()
            raise RequestError(
                f"--actors is {fleet.actors}, and the Ray cluster has {count_words(cores, 'core')}: an actor takes one. Add"
                " nodes to it, or ask for fewer in another --out"
            )
        self._berths = [_Berth() for _ in range(fleet.actors)]
        self._say: Callable[[str], None] = print
        self._silence = max(SILENT_SECONDS, STEPS * fleet.n_envs / SLOWEST)

    @property
    def summary(self) -> str:
        """What they are, in words."""
        nodes = sum(node["Alive"] for node in self._ray.nodes())
        where = f"a Ray cluster of {count_words(nodes, 'node')}" if self.fleet.address else "this machine"
        each = count_words(self.fleet.n_envs, "environment")
        return f"{count_words(self.fleet.actors, 'actor')} of {each} each on {where}"

    def begin(self, spec: Spec, model: DQN, *, fast: bool, say: Callable[[str], None]) -> None:
        """Man every place, for a model that `build_learner` made; nothing is played before the first `ask`."""
        assert isinstance(model.replay_buffer, FrameReplayBuffer)
        self._spec, self._parts, self._fast, self._say = spec, model.replay_buffer.parts, fast, say
        self._step = model.num_timesteps  # new seeds after each start
        self._versions = {name: found for name, found in versions().items() if name in _MATTER}
        self._remote = self._ray.remote(Actor).options(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")
        if not shows_token():
            say("the Ray cluster asks for no token: who reaches its ports can run programs on its nodes")
        for index in range(self.fleet.actors):
            self._man(index)

    def lend(self, weights: Weights) -> Any:
        """Put weights where actors can take them from; returns what `ask` takes."""
        return self._ray.put(weights)

    def ask(self, weights: Any, transitions: int) -> None:
        """Ask every actor that has something in hand to spare to play, up to so many transitions together, but for rounding."""
        self._hear()  # the learner may have been busy for long
        expected = self._expected()
        for berth in self._berths:
            while len(berth.asked) < IN_HAND and expected < transitions:
                steps = min(STEPS, -(-(transitions - expected) // self.fleet.n_envs))
                berth.waits = berth.waits if berth.asked else time.monotonic()
                berth.asked.append((berth.handle.play.remote(weights, steps), steps))
                expected += steps * self.fleet.n_envs

    def _expected(self) -> int:
        """Return how many transitions were asked for and will come soon: of actors that have been silent for long, none."""
        now = time.monotonic()
        soon = (berth for berth in self._berths if now - berth.waits < LATE_SECONDS)
        return sum(steps for berth in soon for _, steps in berth.asked) * self.fleet.n_envs

    def take(self, wait: float) -> Chunk | None:
        """Take one chunk in, of the actor that waits longest for it, into its part of the memory; None if none came in `wait` seconds.

        Raises:
            CoordrlError: an actor's, as it raised it.
            ResumableError: an actor is lost again and again.
        """
        ready = self._hear()
        if not ready:
            self._ray.wait([berth.asked[0][0] for berth in self._berths if berth.asked], timeout=wait)
            ready = self._hear()
        self._look_after_silent()
        if not ready:
            return None
        index = min(ready, key=lambda index: self._berths[index].served)  # Ray's own choice is not a fair one
        berth, part = self._berths[index], self._parts[index]
        try:
            chunk: Chunk = self._ray.get(berth.asked[0][0])
            append(part, chunk.first, chunk.last, chunk.rows)
        except self._ray.exceptions.RayTaskError as error:
            refused = isinstance(error.cause, RequestError)  # a node with other versions, for one
            if isinstance(error.cause, CoordrlError) and not (refused and any(other.served for other in self._berths)):
                raise error.cause from None
            self._lose(index, str(error.cause) if refused else repr(error.cause))
            return None
        except self._ray.exceptions.RayError as error:
            if "creation task" in str(error):
                last = str(error).strip().splitlines()[-1]
                raise RequestError(f"actor {index} cannot begin where it was put: {last}") from None
            self._lose(index, _first_words(error))
            return None
        except CheckpointError as error:
            self._lose(index, f"it sent {error}")
            return None
        berth.asked.popleft()
        berth.served = 1 + max(other.served for other in self._berths)
        berth.losses, berth.heard = 0, time.monotonic()
        berth.waits = berth.heard
        part.put_priorities(chunk.settled, chunk.priorities, chunk.largest)
        return chunk

    def _hear(self) -> list[int]:
        """Return which actors have a chunk ready."""
        first = {berth.asked[0][0]: index for index, berth in enumerate(self._berths) if berth.asked}
        ready, _ = self._ray.wait(list(first), num_returns=len(first), timeout=0) if first else ([], [])
        found = [first[reference] for reference in ready]
        for index in found:
            self._berths[index].waits = time.monotonic()
        return found

    def waiting(self) -> str:
        """Say what the learner waits for."""
        missing = sum(berth.heard is None for berth in self._berths)
        return f"waiting for actors; {count_words(missing, 'actor')} of {self.fleet.actors} did not begin yet"

    def close(self) -> None:
        """End the actors; a cluster that was there before goes on."""
        self._ray.shutdown()

    def _look_after_silent(self) -> None:
        """Replace actors that have begun and are silent: an emulator that hangs does so in C++, where nothing reaches it."""
        now = time.monotonic()
        for index, berth in enumerate(self._berths):
            if berth.asked and berth.heard is not None and now - berth.waits > self._silence:
                self._lose(index, f"silent for {self._silence:,.0f} s")

    def _man(self, index: int) -> None:
        """Put a new actor into a place."""
        berth, part, spec = self._berths[index], self._parts[index], self._spec
        seed = environment_seed(spec.seed, f"actor {index}, life {berth.lives}", self._step)
        place = Place(index, self.fleet.actors, self.fleet.n_envs, seed, part.adds, part.written.copy(), self._versions)
        berth.handle = self._remote.remote(spec, place, fast=self._fast)
        berth.asked, berth.heard = deque(), None
        berth.lives += 1

    def _lose(self, index: int, reason: str) -> None:
        """Replace an actor that is gone: the rows it left without priorities get the largest, its games go no further."""
        berth, part = self._berths[index], self._parts[index]
        berth.losses += 1
        if berth.losses >= LOSSES:
            raise ResumableError(
                f"actor {index} was lost {LOSSES} times before it could play: {reason}. Mend that; the same command goes on"
                " from the last checkpoint"
            )
        self._ray.kill(berth.handle)
        if part.adds:
            part.cut()
            part.let_go(min(part.n_steps, part.adds))
        self._man(index)
        self._say(f"actor {index} was lost ({reason}); another takes its place as soon as there is a core for it")


def _first_words(error: Exception) -> str:
    """Return what Ray says of a loss, without its list of what may have been the cause."""
    return " ".join(str(error).split()).partition(" Some common causes")[0][:300]

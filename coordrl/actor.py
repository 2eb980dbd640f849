"""An actor of Ape-X in a process or on a machine of its own: it plays, and sends what it played with first priorities.

Horgan et al. 2018 (arXiv 1803.00933), algorithm 1. It is a DQN that never learns: the same acting, memory and
priorities as where all actors live in one process, but for the random play at its beginning, which the paper has not.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import set_random_seed

from coordrl.algorithms import build_model, skip_compiler
from coordrl.dqn import DQN
from coordrl.environments import make_env
from coordrl.errors import RequestError
from coordrl.exactness import versions
from coordrl.footprint import STEPS
from coordrl.process import tune
from coordrl.replay import FrameReplayBuffer
from coordrl.results import Spec
from coordrl.segments import pack

_NEVER = 1 << 60
Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Place:
    """Where an actor stands among all, and in its part of the replay memory."""

    index: int
    actors: int
    n_envs: int  # of each actor
    seed: int  # environment i gets seed + i
    adds: int  # rows of the part so far
    written: NDArray[np.int64]  # its pictures so far, (n_envs,)
    versions: Mapping[str, str]  # of the learner's packages


@dataclass(frozen=True)
class Chunk:
    """What an actor has played since its last one."""

    first: int  # its rows, counted as the part counts them
    last: int
    rows: bytes  # see segments.pack
    settled: int  # the first row that `priorities` are of
    priorities: NDArray[np.float64]  # (rows, n_envs), to the power of alpha: of rows whose n steps are over
    largest: float  # |TD error| so far
    games: list[tuple[float, int]]  # return and length of each that ended


class Games(BaseCallback):
    """Notes the games that end."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[tuple[float, int]] = []

    def _on_step(self) -> bool:
        found = (info["episode"] for info in self.locals["infos"] if "episode" in info)
        self.ended += [(float(episode["r"]), int(episode["l"])) for episode in found]
        return True


@final
class Actor:
    """Plays `n_envs` environments with the weights that it is given, exploring on its steps of the ladder.

    Made where it plays, as an actor of Ray; nothing happens before the first `play`, whose errors come back as they are.
    """

    def __init__(self, spec: Spec, place: Place, *, fast: bool = True) -> None:
        self._spec, self._place, self._fast = spec, place, fast
        self._model: DQN | None = None
        self._games = Games()

    def play(self, weights: Weights, steps: int) -> Chunk:
        """Play `steps` of each environment.

        Args:
            weights: of the Q network, by name.
            steps: of each environment.

        Raises:
            RequestError: this node has other versions than the learner.
            DivergedError: a Q value is not a number.
        """
        model = self._model = self._model or self._begin()
        memory, env = model.replay_buffer, model.get_env()
        assert isinstance(memory, FrameReplayBuffer)
        assert memory.priorities is not None
        assert env is not None
        with torch.no_grad():
            for name, parameter in model.q_net.named_parameters():
                parameter.copy_(torch.from_numpy(np.array(weights[name])))  # what Ray lends is read-only
        first, settled = memory.adds, memory.adds - len(model.acting)
        self._games.ended = []
        frequency = TrainFreq(steps * self._place.n_envs, TrainFrequencyUnit.STEP)
        model.collect_rollouts(env, self._games, frequency, memory)
        rows = np.arange(settled, memory.adds - len(model.acting)) % memory.buffer_size
        priorities = memory.priorities.values.reshape(-1, memory.n_envs)[rows]
        return Chunk(
            first,
            memory.adds,
            pack(memory, first),
            settled,
            priorities,
            memory.max_priority,
            self._games.ended,
        )

    def _begin(self) -> DQN:
        """Build what plays."""
        place = self._place
        here = versions()
        others = {name: wanted for name, wanted in place.versions.items() if here[name] != wanted}
        if others:
            told = ", ".join(f"{name} {here[name]} and the learner {wanted}" for name, wanted in others.items())
            raise RequestError(f"node {socket.gethostname()} has {told}; install the same versions on all nodes")
        tune()
        skip_compiler()
        torch.set_num_threads(1)
        rows = 2 * (STEPS + int(self._spec.settings["n_steps"]))  # a chunk, and the pictures of games that begin in it
        settings = {**self._spec.settings, "n_envs": place.n_envs, "buffer_size": rows * place.n_envs}
        spec = replace(self._spec, settings={**settings, "target_update_interval": _NEVER})
        env = make_env(spec.game, place.n_envs, protocol=spec.protocol, num_threads=1)
        model: Any = build_model(spec, env, device="cpu", fast=self._fast)
        model.ladder_place = (place.index * place.n_envs, place.actors * place.n_envs)
        set_random_seed(place.seed)
        model.action_space.seed(place.seed)
        env.seed(place.seed)
        model.replay_buffer.begin_at(place.adds, place.written)
        model._setup_learn(_NEVER, self._games)
        assert isinstance(model, DQN)
        return model

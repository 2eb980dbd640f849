"""The learner of Ape-X over processes and machines (Horgan et al. 2018, arXiv 1803.00933); its actors are a `fleet`.

Each actor plays on while the learner learns, and takes the weights that are newest when it is asked for a chunk of play. The
learner makes the gradient steps that the steps so far are worth by the recipe, and no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import polyak_update

from coordrl.actor import Weights
from coordrl.algorithms import build_model
from coordrl.course import Course
from coordrl.dqn import DQN
from coordrl.environments import make_env
from coordrl.errors import DivergedError, RequestError, ResumableError
from coordrl.fleet import Actors, Fleet
from coordrl.replay import FrameReplayBuffer
from coordrl.results import Spec
from coordrl.vectors import WholeVecEnv

LOOK_SECONDS = 0.2  # between two looks for a signal while nothing comes
TELL_SECONDS = 30.0  # between two words about waiting


@final
class ElsewhereVecEnv(WholeVecEnv):
    """Stands in the learner for the environments that its actors play: their number and their spaces, no play."""

    made_of, seen_by = "played by actors", "evaluate plays games of its own"

    def __init__(self, one: WholeVecEnv, n_envs: int) -> None:
        super().__init__(n_envs, one.observation_space, one.action_space)
        self.game, self.protocol, self.training = one.game, one.protocol, one.training
        self.action_meanings = one.action_meanings

    def reset(self) -> NDArray[np.uint8]:
        """Return blank observations: the games begin where they are played."""
        shape, dtype = self.observation_space.shape, self.observation_space.dtype
        assert shape is not None
        return np.zeros((self.num_envs, *shape), dtype)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Refuse.

        Raises:
            RequestError: always.
        """
        raise RequestError("these environments are played by actors, not here")

    def step_wait(self) -> Any:
        """Refuse.

        Raises:
            RequestError: always.
        """
        raise RequestError("these environments are played by actors, not here")

    def close(self) -> None:
        """Do nothing: the actors end with the fleet."""


def build_learner(spec: Spec, fleet: Fleet, *, device: str, fast: bool) -> tuple[DQN, ElsewhereVecEnv]:
    """Build the learner of a run: a DQN whose transitions come from actors, a part of the replay memory for each."""
    one = make_env(spec.game, 1, protocol=spec.protocol)
    env = ElsewhereVecEnv(one, fleet.actors * fleet.n_envs)
    one.close()
    model = build_model(spec, env, device=device, fast=fast)
    assert isinstance(model, DQN)
    assert isinstance(model.replay_buffer, FrameReplayBuffer)
    model.replay_buffer.split(fleet.actors)
    return model, env


def learn_from(actors: Actors, model: DQN, course: Course, total: int, *, stopped: Callable[[], bool]) -> None:
    """Train until `total` steps have come from the actors.

    Args:
        actors: whose `begin` was called.
        model: as `build_learner` made it.
        course: what happens beside the learning.
        total: steps of the whole run.
        stopped: whether a signal asks for the end; asked while nothing comes.

    Raises:
        CoordrlError: an actor's.
        ResumableError: an actor is lost again and again.
    """
    memory, settings = model.replay_buffer, course.spec.settings
    assert isinstance(memory, FrameReplayBuffer)
    _, callback = model._setup_learn(total - model.num_timesteps, course, reset_num_timesteps=False)
    callback.on_training_start(locals(), globals())
    weights, made = actors.lend(_weights(model)), model._n_updates
    enough = min(int(settings["learning_starts"]), memory.buffer_size * memory.n_envs // 2)
    idle, since = 0.0, time.monotonic()
    while model.num_timesteps < total:
        callback.on_rollout_start()
        if model._n_updates > made:
            weights, made = actors.lend(_weights(model)), model._n_updates
        actors.ask(weights, total - model.num_timesteps)
        began = told = time.monotonic()
        try:
            while (chunk := actors.take(LOOK_SECONDS)) is None:
                actors.ask(weights, total - model.num_timesteps)  # of one that took another's place
                if stopped():
                    callback.on_rollout_start()
                course.wait()
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    course.line.say(actors.waiting())
        except DivergedError as error:
            raise course.divergence.error("an actor's Q values are not numbers") from error
        except (RequestError, ResumableError):
            course.keep()
            raise
        idle += time.monotonic() - began
        transitions = (chunk.last - chunk.first) * actors.fleet.n_envs
        _count(model, callback, chunk.games, transitions)
        if memory.transitions >= enough and memory.drawable:
            owed = model.owed + transitions * int(settings["gradient_steps"])
            due, model.owed = divmod(owed, int(settings["train_freq"]))
            if due:
                model.train(due, int(settings["batch_size"]))
        model.logger.record("train/learner_idle", idle / max(time.monotonic() - since, 1e-9))
        if time.monotonic() - since > 60:  # of the last minute
            idle, since = idle / 2, (since + time.monotonic()) / 2
    callback.on_training_end()


def _count(model: DQN, callback: BaseCallback, games: list[tuple[float, int]], transitions: int) -> None:
    """Count steps and games that have come, and let the target network follow where it is due."""
    before, interval = model.num_timesteps, model.target_update_interval
    model.num_timesteps += transitions
    infos: list[dict[str, Any]] = [{"episode": {"r": r, "l": length}} for r, length in games]
    model._update_info_buffer(infos, np.zeros(len(infos), np.bool_))
    callback.update_locals({"infos": infos})
    callback.on_step()
    model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
    if model.num_timesteps // interval > before // interval:
        polyak_update(model.q_net.parameters(), model.q_net_target.parameters(), model.tau)
    model.exploration_rate = float(model.epsilons(model.n_envs).mean())
    model.logger.record("rollout/exploration_rate", model.exploration_rate)


def _weights(model: DQN) -> Weights:
    """Return copies of the Q network's weights."""
    return {name: parameter.detach().cpu().numpy().copy() for name, parameter in model.q_net.named_parameters()}

"""Playing with a trained model: decisions drawn from generators of their own, and scores over whole games.

SB3's `predict` and `evaluate_policy` draw from the global generators, so an evaluation in the middle of
a training would change it, and DQN explores in all environments together with the training's epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from coordrl.environments import make_env
from coordrl.errors import DivergedError, RequestError
from coordrl.results import Spec

MAX_ENVS = 16  # games that an evaluation plays side by side


class Decision(NamedTuple):
    """What a model decides on a batch of observations."""

    actions: NDArray[np.int64]  # (n_envs,)
    values: NDArray[np.float32]  # (n_envs,), the value estimate; for DQN the largest Q value
    preferences: NDArray[np.float32]  # (n_envs, n_actions), probabilities; for DQN the Q values


@dataclass(frozen=True)
class Evaluation:
    """Raw returns and lengths of whole games."""

    returns: list[float]
    lengths: list[int]  # steps

    @property
    def mean(self) -> float:
        """The score."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """The spread over games (sample standard deviation; 0 for one game)."""
        return float(np.std(self.returns, ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def half_width(self) -> float | None:
        """Half the width of the 95 % interval of the mean (Student's t); None for one game, which has none."""
        from scipy.special import stdtrit  # a quarter of a second, which a training need not wait for

        games = len(self.returns)
        return float(stdtrit(games - 1, 0.975)) * self.std / math.sqrt(games) if games > 1 else None


@final
class Player:
    """Decides for a model: samples a policy's actions as in training, and follows Q values with `epsilon`.

    Args:
        model: an SB3 model with a discrete action space.
        seed: of its own generators; the global ones are not touched.
        epsilon: the probability of a random action, drawn for each environment; for Q values alone.
    """

    def __init__(self, model: BaseAlgorithm, *, seed: int, epsilon: float = 0.0) -> None:
        self.model = model
        self.epsilon = epsilon
        self._torch_rng = torch.Generator().manual_seed(seed)
        self._numpy_rng = np.random.default_rng(seed)

    @torch.no_grad()
    def decide(self, observations: NDArray[Any]) -> Decision:
        """Decide on observations (n_envs, ...).

        Raises:
            DivergedError: the network computes NaN or infinity.
        """
        policy = self.model.policy
        policy.set_training_mode(False)
        tensor, _ = policy.obs_to_tensor(observations)
        if isinstance(policy, ActorCriticPolicy):
            # One pass through the network for both heads, where get_distribution and predict_values take two.
            for_policy, for_value = policy.mlp_extractor(policy.extract_features(tensor))
            probabilities: Tensor = policy.action_net(for_policy).softmax(dim=1).cpu()
            self._check(probabilities)
            actions = torch.multinomial(probabilities, 1, generator=self._torch_rng).squeeze(1).numpy()
            values = policy.value_net(for_value).squeeze(1).cpu().numpy()
            return Decision(actions, values, probabilities.numpy())
        assert isinstance(self.model, DQN)
        outputs: Tensor = self.model.q_net(tensor).cpu()
        self._check(outputs)
        q_values: NDArray[np.float32] = outputs.numpy()
        n_envs, n_actions = q_values.shape
        explores = self._numpy_rng.random(n_envs) < self.epsilon
        actions = np.where(explores, self._numpy_rng.integers(0, n_actions, n_envs), q_values.argmax(axis=1))
        return Decision(actions, q_values.max(axis=1), q_values)

    def _check(self, outputs: Tensor) -> None:
        """Stop at a network whose weights are so large that its outputs are no numbers any more."""
        if not torch.isfinite(outputs).all():
            raise DivergedError(
                f"the training diverged by step {self.model.num_timesteps:,}: the network's outputs are not numbers; try a"
                " smaller learning rate, in another folder: --set learning_rate=... --out ..."
            )


def evaluation_epsilon(spec: Spec) -> float:
    """Return the epsilon with which a run's agent is evaluated; 0 for agents that sample from a policy."""
    return float(spec.settings.get("evaluation_epsilon", 0.0))


def evaluate(
    model: BaseAlgorithm,
    spec: Spec,
    episodes: int,
    *,
    seed: int,
    on_step: Callable[[list[float], int], None] = lambda returns, steps: None,
) -> Evaluation:
    """Play whole games under the run's protocol, with raw rewards and actions sampled as in training.

    Games are divided among environments beforehand: taking the first `episodes` to finish would favour
    short ones.

    Args:
        model: the model.
        spec: the run it belongs to.
        episodes: how many games, at least 1.
        seed: of the environments and of the player.
        on_step: called after every step with the returns and the number of steps so far; may raise to stop.

    Raises:
        RequestError: no episodes.
    """
    if episodes < 1:
        raise RequestError(f"episodes is {episodes}; it is at least 1")
    n_envs = min(episodes, MAX_ENVS)
    wanted = np.array([(episodes + index) // n_envs for index in range(n_envs)])
    returns: list[list[float]] = [[] for _ in range(n_envs)]
    lengths: list[list[int]] = [[] for _ in range(n_envs)]
    player = Player(model, seed=seed, epsilon=evaluation_epsilon(spec))
    env = make_env(spec.game, n_envs, protocol=spec.protocol, seed=seed, training=False)
    try:
        observations: Any = env.reset()  # SB3's hint allows dicts and tuples
        steps = 0
        done = np.zeros(n_envs, dtype=np.int64)
        while (done < wanted).any():
            observations, _, _, infos = env.step(player.decide(observations).actions)
            steps += n_envs
            for index, info in enumerate(infos):
                if "episode" in info and done[index] < wanted[index]:
                    done[index] += 1
                    returns[index].append(info["episode"]["r"])
                    lengths[index].append(info["episode"]["l"])
            on_step([value for one in returns for value in one], steps)
    finally:
        env.close()
    return Evaluation([r for one in returns for r in one], [n for one in lengths for n in one])


def describe_games(returns: list[float], steps: int, seconds: float) -> str:
    """Say how an evaluation goes: the mean so far and its speed."""
    mean = f"mean return {np.mean(returns):,.1f} so far" if returns else "no game finished yet"
    return f"{steps / max(seconds, 1e-9):,.0f} steps/s · {mean}"

"""What the vectors of environments have in common: how they check, and what they answer about single environments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn

from coordrl.errors import ReplayError, RequestError
from coordrl.journal import MAX_SEED, Games
from coordrl.suites import Protocol

Indices = None | int | Iterable[int]
OnStep = Callable[[int, int], None]  # called with the steps done and their number; may raise to stop


def spread_seed(seed: int | None, n_envs: int) -> list[int]:
    """Return the seeds of `n_envs` environments: number i gets seed + i, as in SB3. None draws one.

    Raises:
        RequestError: the seed is outside the range.
    """
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0]) % (MAX_SEED - n_envs)
    if not 0 <= seed <= MAX_SEED - n_envs:
        raise RequestError(f"seed is {seed}; it is from 0 to 2**31 - 1 - n_envs")
    return [int(seed) + index for index in range(n_envs)]


def check_actions(actions: NDArray[Any], n_envs: int, n_actions: int, game: str) -> NDArray[np.int64]:
    """Return one action for each environment, (n_envs,).

    Raises:
        RequestError: wrong shape or dtype, or an action that the game does not have.
    """
    chosen = np.asarray(actions)
    if chosen.shape != (n_envs,) or chosen.dtype.kind not in "iu":
        raise RequestError(
            f"actions have shape {chosen.shape} and dtype {chosen.dtype}; they are integers of shape ({n_envs},)"
        )
    if chosen.min() < 0 or chosen.max() >= n_actions:
        raise RequestError(f"actions are {chosen.tolist()}; {game} has 0 to {n_actions - 1}")
    return chosen.astype(np.int64)


class WholeVecEnv(VecEnv):
    """A vector whose single environments are no Python objects: what SB3 may ask about them, answered here once.

    A second level below SB3's VecEnv, because this is one contract, and twice the same forty lines without it.
    """

    made_of: ClassVar[str]  # what its environments are, in words
    seen_by: ClassVar[str]  # why nothing is rendered, and what to do instead
    game: str
    protocol: Protocol
    training: bool
    action_meanings: tuple[str, ...]

    _SHARED = ("game", "protocol", "training", "action_meanings", "observation_space", "action_space")

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next `reset`: environment i gets seed + i. Returns those seeds.

        Raises:
            RequestError: the seed is outside the range.
        """
        seeds = spread_seed(seed, self.num_envs)
        self._seeds = [*seeds]
        return seeds

    def step(self, actions: NDArray[Any]) -> VecEnvStepReturn:
        """Take one step; after an interruption of it (Ctrl-C) the next one can be taken all the same."""
        try:
            return super().step(actions)
        except Exception:
            raise
        except BaseException:
            self.drop_step()
            raise

    def drop_step(self) -> None:
        """Finish a step that was interrupted, if one was; its results are nobody's."""

    def save_games(self) -> Games | None:
        """Return the state of the games between two steps; None if it is not kept."""
        return None

    def load_games(self, games: Games, on_step: OnStep = lambda done, total: None) -> NDArray[np.uint8]:
        """Bring the games to a state that was saved, and return the observations of that moment.

        Args:
            games: as `save_games` of such a vector returned it.
            on_step: called after each step on the way there, with how many are done and how many there are.

        Raises:
            ReplayError: they do not come there. The vector must be reset before it is used.
        """
        raise ReplayError(f"this {type(self).__name__} keeps no state of its games")

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute that every environment of a game has, once for each.

        Raises:
            AttributeError: single environments do not exist as Python objects, so others cannot be read.
        """
        chosen = list(self._get_indices(indices))
        if attr_name in ("render_mode", "spec"):
            return [None for _ in chosen]
        if attr_name not in self._SHARED:
            raise AttributeError(
                f"{type(self).__name__} has no attribute {attr_name!r} of single environments; they are {self.made_of}. It"
                f" has {', '.join(self._SHARED)}, render_mode and spec"
            )
        return [getattr(self, attr_name) for _ in chosen]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Refuse.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(
            f"{attr_name!r} cannot be set: the environments of {type(self).__name__} are {self.made_of}. Construct another"
        )

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call `get_action_meanings`, the one method that single environments have here.

        Raises:
            AttributeError: any other method.
        """
        if method_name == "get_action_meanings":
            return [list(self.action_meanings) for _ in self._get_indices(indices)]
        raise AttributeError(
            f"{method_name!r} cannot be called: the environments of {type(self).__name__} are {self.made_of}, which have"
            " get_action_meanings alone"
        )

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Indices = None
    ) -> list[bool]:
        """Say whether environments behave as if wrapped in `wrapper_class`: only Monitor, which reports whole games."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Refuse.

        Raises:
            RequestError: always.
        """
        raise RequestError(f"{type(self).__name__} renders nothing; {self.seen_by}")

    def _get_indices(self, indices: Indices) -> Iterable[int]:
        """Return the chosen environments' numbers; IndexError if there is no such environment."""
        return [range(self.num_envs)[index] for index in super()._get_indices(indices)]

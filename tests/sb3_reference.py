"""SB3's own Atari environment, built from SB3's own wrappers: what AtariVecEnv is compared with.

`make_reference` is SB3's recipe untouched: gymnasium's "<Game>NoFrameskip-v4", Monitor, AtariWrapper, DummyVecEnv,
VecFrameStack. `make_aligned_reference` is the same with the two places changed where AtariVecEnv cannot do what SB3
does, so that both can be fed one sequence of actions and compared step by step.
"""

from __future__ import annotations

import functools
from typing import Any

import ale_py
import gymnasium as gym
from stable_baselines3.common.atari_wrappers import (
    AtariWrapper,
    ClipRewardEnv,
    EpisodicLifeEnv,
    FireResetEnv,
    MaxAndSkipEnv,
    NoopResetEnv,
    WarpFrame,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

# A trap: without this line the ids do not exist, and every process that makes an environment needs it. (In ale-py
# 0.12 the import alone registers them; the call keeps the import from looking unused, and older versions need it.)
gym.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner on stderr


def make_reference(game: str, n_envs: int = 1, *, training: bool = True) -> VecFrameStack:
    """Return SB3's environment for a game ("MsPacman"), as rl-baselines3-zoo builds it.

    Observations are (n_envs, 84, 84, 4) uint8, the newest frame last.

    Args:
        game: coordrl's name of it.
        n_envs: how many, in this process.
        training: end episodes at lost lives and clip rewards.
    """
    return _stack([functools.partial(_wrap, game, training)] * n_envs)


def make_aligned_reference(game: str) -> VecFrameStack:
    """Return one SB3 environment whose games start, and go on after a lost life, as AtariVecEnv's do.

    Everything else is SB3's own class: frame skip, lives, FIRE, clipping, Monitor, resizing, stacking. The changes:

    - A game starts with one frame of FIRE (where the game has it), then no-ops, `set_start_frames` in all. SB3
      starts with no-ops, then four frames of FIRE and four of action 2.
    - After a lost life SB3 steps a no-op, FIRE, action 2. The no-op is left out: AtariVecEnv cannot send it, because
      it cannot step one environment alone.
    """
    return _stack([functools.partial(_wrap_aligned, game)])


def set_start_frames(reference: VecFrameStack, frames: int) -> None:
    """Fix how many frames the next game of a reference with one environment emulates before the agent acts."""
    env = reference.unwrapped.envs[0]
    while not isinstance(env, NoopResetEnv):
        env = env.env
    env.override_num_noops = frames


def _stack(makers: list[Any]) -> VecFrameStack:
    return VecFrameStack(DummyVecEnv(makers), n_stack=4)


def _make(game: str) -> gym.Env[Any, Any]:
    return Monitor(gym.make(f"{game}NoFrameskip-v4"))


def _wrap(game: str, training: bool) -> gym.Env[Any, Any]:
    return AtariWrapper(_make(game), terminal_on_life_loss=training, clip_reward=training)


def _wrap_aligned(game: str) -> gym.Env[Any, Any]:
    env = MaxAndSkipEnv(_AlignedStart(_make(game)))
    env = _LifeWithoutNoop(env)
    if "FIRE" in env.unwrapped.get_action_meanings():
        env = _FireAfterLife(env)
    return ClipRewardEnv(WarpFrame(env))


class _AlignedStart(NoopResetEnv):
    """FIRE for one frame, then no-ops: the start that ale-py's vector environment gives a game."""

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        presses_fire = "FIRE" in self.unwrapped.get_action_meanings()
        for frame in range(self.override_num_noops or 0):
            observation, _, terminated, truncated, info = self.env.step(int(presses_fire and frame == 0))
            assert not terminated
            assert not truncated
        return observation, info


class _LifeWithoutNoop(EpisodicLifeEnv):
    """SB3's, without the no-op that it steps after a lost life."""

    def step(self, action: int) -> Any:
        result = super().step(action)
        self._last = result[0]
        return result

    def reset(self, **kwargs: Any) -> Any:
        if self.was_real_done:
            return super().reset(**kwargs)
        self.lives = self.unwrapped.ale.lives()
        return self._last, {}


class _FireAfterLife(FireResetEnv):
    """SB3's, which here leaves a game's start to _AlignedStart."""

    def reset(self, **kwargs: Any) -> Any:
        return self.env.reset(**kwargs) if self.env.was_real_done else super().reset(**kwargs)

"""How many pictures an observation stacks, where its environment says so."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)

from coordrl.vectors import WholeVecEnv

# What they hand on, or SB3's replay memories keep of it, is what lies below them. VecNormalize is among them: a memory
# keeps observations as they were, and normalises batches.
_CLEAR = (VecCheckNan, VecMonitor, VecNormalize, VecTransposeImage, VecVideoRecorder)


def find_stack(env: VecEnv, space: spaces.Space[Any]) -> int | None:
    """Return how many pictures an observation stacks along its first axis; None if it is not known to be a stack.

    A wrapper that may change observations (anybody's own) ends the search: under noise, or channels that are added, a
    picture does not come again one place further.

    Args:
        env: that a model plays in.
        space: of one environment's observations, as the model sees them.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        return None
    place: Any = env
    transposed = False  # from (height, width, n_stack), as Atari is in SB3
    while type(place) in _CLEAR:
        transposed ^= isinstance(place, VecTransposeImage) and not place.skip
        place = place.venv
    if isinstance(place, WholeVecEnv):
        return int(space.shape[0])
    if not isinstance(place, VecFrameStack):
        return None
    stacks = place.stacked_obs
    along_the_first = stacks.stack_dimension == (-1 if transposed else 1)
    return stacks.n_stack if along_the_first and space.shape[0] == stacks.n_stack else None

"""What every vector of environments checks in the same words: its seed and its actions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordrl.errors import RequestError

_MAX_SEED = 2**31 - 1  # Atari's emulator takes a C int and reads negative seeds as "none"


def spread_seed(seed: int | None, n_envs: int) -> list[int]:
    """Return the seeds of `n_envs` environments: number i gets seed + i, as in SB3. None draws one.

    Raises:
        RequestError: the seed is outside the range.
    """
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0]) % (_MAX_SEED - n_envs)
    if not 0 <= seed <= _MAX_SEED - n_envs:
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

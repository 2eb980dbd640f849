"""How much memory a replay memory takes, without making one, and whether this machine has it."""

from __future__ import annotations

import math

from coordrl.errors import RequestError
from coordrl.process import available_memory

_SPARE = 24  # one picture more than transitions in so many: those with which games begin

STEPS = 100  # of its environments that an actor of Ape-X sends together: 400 frames (Horgan et al. 2018, appendix C)


def frames_needed(rows: int, n_stack: int) -> int:
    """Return how many pictures of an environment are kept for so many transitions of it."""
    return rows + rows // _SPARE + 4 * n_stack


def memory_needed(buffer_size: int, n_envs: int, shape: tuple[int, ...], n_stack: int, itemsize: int = 1) -> int:
    """Return the bytes that a memory of `buffer_size` transitions takes, for observations of a shape."""
    rows = max(buffer_size // n_envs, 1)
    picture = math.prod(shape) // n_stack * itemsize
    each = 2 * n_stack * 8 + 8 + 3 * 4 + 16  # references, action, reward, done, timeout, priority with its inner node
    return n_envs * (frames_needed(rows, n_stack) * picture + rows * each)


def check_memory(
    buffer_size: int, n_envs: int, shape: tuple[int, ...], n_stack: int, itemsize: int = 1, runs: int = 1
) -> None:
    """Check that the replay memories of `runs` trainings at a time fit this machine, before anything is allocated.

    Raises:
        RequestError: they do not.
    """
    each, free = memory_needed(buffer_size, n_envs, shape, n_stack, itemsize), available_memory()
    needed = runs * each
    if free is not None and needed > free:
        many = "" if runs == 1 else f"; {runs} runs at a time take {needed / 1e9:.1f} GB"
        fewer = f", and so would --workers {free // each}" if free >= each else ""
        raise RequestError(
            f"a replay memory of {buffer_size:,} transitions takes {each / 1e9:.1f} GB{many}, and {free / 1e9:.1f} GB are free"
            f" here; choose a smaller buffer_size: {int(buffer_size * free / needed * 0.8):,} would fit{fewer}"
        )


def check_parts(buffer_size: int, n_envs: int, n_steps: int) -> None:
    """Check that a replay memory has room for what actors send at a time, and that twice.

    Raises:
        RequestError: it has not.
    """
    least = 2 * (STEPS + n_steps) * n_envs
    if buffer_size < least:
        raise RequestError(
            f"buffer_size is {buffer_size:,}; with {n_envs} environments of actors it is at least {least:,}, two times the"
            f" {STEPS} steps of each that are sent together"
        )

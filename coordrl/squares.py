"""Not-so-Clevr: a 9 x 9 square at every place of a 64 x 64 canvas where it is wholly seen.

Liu et al. 2018 (arXiv 1807.03247), section 3. A position is the square's centre (row, column), each from 4 to 59: 56 x 56
= 3,136 of them. numpy alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CANVAS = 64  # pixels a side
SQUARE = 9
MARGIN = SQUARE // 2  # pixels from a square's centre to its side
SIDE = CANVAS - SQUARE + 1  # positions a side
_TRAIN_SHARE = 0.8  # of the uniform split
_SPLIT_SEED = 1807_03247  # fixed: every seed of a run has the same positions to test on

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]


class Split(NamedTuple):
    """Which positions are trained on and which tested on: two sorted arrays of indices into `positions()`."""

    train: Integers
    test: Integers


def positions() -> Integers:
    """Return every position, (3136, 2) int64: row and column of the centre in pixels, row by row."""
    side = np.arange(MARGIN, MARGIN + SIDE)
    return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)


def split(name: str) -> Split:
    """Divide the positions.

    "uniform": 2,509 drawn at random to train on, 627 to test on. "quadrant": the 784 whose row and column both are 32 or
    more, beyond the middle of the canvas, to test on, and 2,352 to train on. (The authors' released code has 2,368 and
    768, 2,407 and 729.)

    Raises:
        ValueError: there is no such split.
    """
    every = positions()
    if name == "uniform":
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(every))
        count = round(_TRAIN_SHARE * len(every))
        return Split(np.sort(order[:count]), np.sort(order[count:]))
    if name == "quadrant":
        last = (every >= CANVAS // 2).all(axis=1)
        return Split(np.flatnonzero(~last), np.flatnonzero(last))
    raise ValueError(f'there is no split "{name}"')


def normalise(pixels: NDArray[Any]) -> Floats:
    """Return coordinates in pixels, 0 to 63, on the scale of the coordinate channels, -1 to 1, float32."""
    scaled: Floats = (pixels * (2 / (CANVAS - 1)) - 1).astype(np.float32)
    return scaled


def denormalise(coordinates: NDArray[Any]) -> NDArray[np.float64]:
    """Return coordinates from -1 to 1 in pixels, 0 to 63, float64."""
    return (coordinates.astype(np.float64) + 1) * ((CANVAS - 1) / 2)


def pixel_numbers(places: Integers) -> Integers:
    """Return the number of each position's pixel, (n,) int64 from 0 to 4095, counted row by row."""
    numbers: Integers = places[:, 0] * CANVAS + places[:, 1]
    return numbers


def draw_pixels(places: Integers) -> Floats:
    """Draw each position (n, 2) as one pixel: (n, 1, 64, 64) float32, 1 there and 0 elsewhere."""
    images = np.zeros((len(places), 1, CANVAS, CANVAS), dtype=np.float32)
    images[np.arange(len(places)), 0, places[:, 0], places[:, 1]] = 1
    return images


def draw_squares(places: Integers) -> Floats:
    """Draw the square at each position (n, 2): (n, 1, 64, 64) float32, 1 in it and 0 elsewhere."""
    side = np.arange(CANVAS)
    rows, columns = (np.abs(side - places[:, axis, None]) <= MARGIN for axis in (0, 1))  # (n, 64)
    images: Floats = (rows[:, None, :, None] & columns[:, None, None, :]).astype(np.float32)
    return images

"""Position maps as pictures, for TensorBoard and for the report: numpy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def draw_maps(
    maps: NDArray[np.float32], *, columns: int = 8, zoom: int = 4, largest: float | None = None
) -> NDArray[np.uint8]:
    """Draw position maps as a grid of small heat maps, (height, width, 3) uint8.

    Blue is negative, white 0, red positive; one scale for all, so that a filter that ignores its position
    looks white beside one that does not.

    Args:
        maps: (filters, height, width).
        columns: of the grid.
        zoom: pixels of the picture for one of a map, each way.
        largest: the value of the deepest colour; by default the largest of any filter.
    """
    largest = largest or float(np.abs(maps).max()) or 1.0
    tiles = [_draw(one / largest, zoom) for one in maps]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [_join(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    return _join(rows, axis=0)


def _draw(values: NDArray[np.float32], zoom: int) -> NDArray[np.uint8]:
    """Colour values from -1 to 1, enlarged, (height, width, 3)."""
    blue, white, red = (
        np.array(colour, dtype=np.float32) for colour in ((33, 102, 172), (255, 255, 255), (178, 24, 43))
    )
    strength = np.abs(values)[..., None]
    colours = white + strength * (np.where(values[..., None] < 0, blue, red) - white)
    return np.kron(colours, np.ones((zoom, zoom, 1))).round().astype(np.uint8)


def _join(images: Sequence[NDArray[np.uint8]], axis: int) -> NDArray[np.uint8]:
    """Join images of one size with a grey line between them."""
    gap_shape = list(images[0].shape)
    gap_shape[axis] = 2
    gap = np.full(gap_shape, 160, dtype=np.uint8)
    parts = [part for image in images for part in (gap, image)][1:]
    return np.concatenate(parts, axis=axis)

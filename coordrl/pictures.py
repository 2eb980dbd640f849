"""Position maps of trained agents as PNG pictures for the report, before and after training."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordrl.arrays import parse_array
from coordrl.errors import RequestError
from coordrl.files import open_own
from coordrl.heatmaps import draw_maps
from coordrl.record import Run

_MOST_BYTES = 1 << 24  # of a file of maps: hundreds of filters in the largest pictures
_ZOOM = 3  # pixels of the picture for one of a map
_COLOURS = 64  # enough for a scale from blue to red, and a third of the bytes


@dataclass(frozen=True)
class MapPicture:
    """The position maps of one run at one step."""

    step: int
    png: bytes
    width: int  # pixels
    height: int
    strength: float  # root mean square over all positions and filters
    strongest: float  # of a single filter


@dataclass(frozen=True)
class MapPictures:
    """The first and the last maps of a run, on one scale of colours."""

    run: Run
    first: MapPicture
    last: MapPicture


def draw_run(run: Run) -> MapPictures:
    """Draw the first and the last position maps of a run that has some.

    Raises:
        RequestError: a file of maps cannot be read.
    """
    (_, first), (_, last) = run.maps[0], run.maps[-1]
    arrays = [_load(run, index) for index in (0, -1)]
    largest = max(float(np.abs(array).max()) for array in arrays)
    pictures = [_picture(array, step, largest) for array, step in zip(arrays, (first, last), strict=True)]
    return MapPictures(run, *pictures)


def _load(run: Run, index: int) -> NDArray[np.float32]:
    """Read one file of maps, (filters, height, width)."""
    file = run.maps[index][0]
    try:
        with open_own(file) as opened:
            maps = parse_array(opened.read(_MOST_BYTES))
        if maps.ndim != 3 or 0 in maps.shape or maps.dtype.kind != "f" or not np.isfinite(maps).all():
            raise ValueError("these are no position maps")
    except (OSError, ValueError) as error:
        raise RequestError(f"{file} cannot be read: {error}; remove it to report without it") from error
    return maps


def _picture(maps: NDArray[np.float32], step: int, largest: float) -> MapPicture:
    """Draw maps as a PNG."""
    pixels = draw_maps(maps, zoom=_ZOOM, largest=largest)
    image = Image.fromarray(pixels).quantize(_COLOURS)
    data = BytesIO()
    image.save(data, "PNG", optimize=True)
    strengths = np.sqrt(np.square(maps, dtype=np.float64).mean(axis=(1, 2)))
    strength = float(np.sqrt(np.square(strengths).mean()))
    return MapPicture(step, data.getvalue(), image.width, image.height, strength, float(strengths.max()))

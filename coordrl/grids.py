"""The coordinate channels themselves: row and column from -1 to 1, the radius, and their patches."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from coordrl.errors import RequestError

Geometry = tuple[tuple[int, int], ...]  # kernel, stride, padding, dilation, each (height, width)

_KEPT_BYTES = 1 << 20  # patches larger than this are not worth their memory


class Grid(Protocol):
    """A function that makes the coordinate channels of an image: (1, 2 or 3, height, width).

    It depends on its arguments alone: what it returns may be kept for the next call.
    """

    def __call__(
        self,
        height: int,
        width: int,
        *,
        with_radius: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Make them on a device, in a dtype."""
        ...


def coordinate_grid(
    height: int,
    width: int,
    *,
    with_radius: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Make the coordinate channels row, column and, if asked for, radius.

    Returns (1, 2, height, width), or (1, 3, height, width) with the radius. Rows and columns run from
    -1 to 1; the radius is 0 in the centre and sqrt(2) in the corners.

    Half precision cannot hold a sum of many small steps: the grid is made in float32 (float64 for
    float64) and rounded once.

    Raises:
        RequestError: the dtype is an integer one, which cannot hold them.
    """
    if not (dtype.is_floating_point or dtype.is_complex):
        raise RequestError(
            f"coordinates run from -1 to 1, which {dtype} cannot hold; convert the images to float first"
        )
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    row = _axis(height, device, exact).view(1, 1, height, 1).expand(1, 1, height, width)
    column = _axis(width, device, exact).view(1, 1, 1, width).expand(1, 1, height, width)
    channels = [row, column]
    if with_radius:
        channels.append(torch.sqrt(row * row + column * column))
    return torch.cat(channels, dim=1).to(dtype)


def _axis(side: int, device: torch.device | None, dtype: torch.dtype) -> Tensor:
    """Make the coordinates of one side, (side,), from -1 to 1; a side of length 1 gives 0, its centre.

    Not linspace: its middle of an odd side is 3e-8 instead of 0. This is exactly symmetric.
    """
    centre = (side - 1) / 2
    # max, because an export with sides that vary takes a question about the side for an answer for all.
    return (torch.arange(side, device=device, dtype=dtype) - centre) / max(centre, 0.5)


class Patches(NamedTuple):
    """A grid as a convolution reads it: one row for each place of the output."""

    columns: NDArray[Any]  # (height' * width', 2 or 3 * kernel height * kernel width)
    shape: tuple[int, int]  # (height', width')


def grid_patches(
    grid: Grid, height: int, width: int, with_radius: bool, dtype: torch.dtype, geometry: Geometry
) -> Patches | None:
    """Return the patches of a grid under a convolution with zero padding, kept from call to call.

    None where they are large, or cannot be made: inside of torch.func's transforms no tensor has memory.

    Args:
        grid: makes the channels.
        height: of the images.
        width: of the images.
        with_radius: a third channel.
        dtype: float32 or float64.
        geometry: kernel, stride, padding and dilation.
    """
    try:
        return _make_patches(grid, height, width, with_radius, dtype, geometry)  # type: ignore[arg-type]  # mypy does not know that functions are hashable
    except RuntimeError:
        return None


@lru_cache(maxsize=32)
def _make_patches(
    grid: Grid, height: int, width: int, with_radius: bool, dtype: torch.dtype, geometry: Geometry
) -> Patches | None:
    """Make them. An array, because a kept tensor could be a fake one, made under some mode of torch."""
    kernel, stride, padding, dilation = geometry
    sides = zip((height, width), kernel, stride, padding, dilation, strict=True)
    rows, columns = ((side + 2 * pad - gap * (k - 1) - 1) // step + 1 for side, k, step, pad, gap in sides)
    channels = 3 if with_radius else 2
    size = rows * columns * channels * kernel[0] * kernel[1] * dtype.itemsize
    if rows < 1 or columns < 1 or size > _KEPT_BYTES:
        return None
    with torch.no_grad():
        made = grid(height, width, with_radius=with_radius, device=torch.device("cpu"), dtype=dtype)
        unfolded = torch.nn.functional.unfold(made, kernel, dilation, padding, stride)
        return Patches(unfolded[0].t().contiguous().numpy(), (rows, columns))

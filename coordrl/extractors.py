"""Feature extractors for SB3's image policies: NatureCNN and its CoordConv variants, by name.

    A2C("CnnPolicy", env, policy_kwargs=coordrl.policy_kwargs("coord"))

Each of the NatureCNN family differs from `nature` in one thing only. Images are converted to the
channels_last layout at the door: on CPUs the weight gradient of the first convolution is several
times faster so, and the function is the same up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, final

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import Tensor, nn

from coordrl.coordconv import CoordConv2d
from coordrl.errors import RequestError, suggest
from coordrl.grids import Grid, coordinate_grid
from coordrl.suites import NATURE_SMALLEST, check_extractor

Where = Literal["none", "first", "all"]
Channels = Literal["coordinates", "shuffled", "constant"]

_MOST_COLOURS = 4  # red, green, blue, alpha: a last side no longer than this, and the smallest, holds channels
_SHUFFLE_SEED = 1807_03247  # fixed for ever: the paper's number on arXiv


def shuffled_grid(
    height: int,
    width: int,
    *,
    with_radius: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Make the coordinate channels with their pixels permuted by a fixed seed, (1, 2 or 3, height, width).

    The same values in the same channels, each pixel keeps an address of its own, but neighbours do not
    have neighbouring addresses. All channels are permuted alike.
    """
    return shuffle_pixels(coordinate_grid(height, width, with_radius=with_radius, device=device, dtype=dtype))


def shuffle_pixels(grid: Tensor) -> Tensor:
    """Permute the pixels of a grid (1, channels, height, width) by the fixed seed, all channels alike."""
    height, width = grid.shape[-2:]
    order = torch.as_tensor(_shuffle(height * width), device=grid.device)
    return grid.flatten(2)[:, :, order].view_as(grid)


def constant_grid(
    height: int,
    width: int,
    *,
    with_radius: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Make channels that are 0.5 everywhere, (1, 2 or 3, height, width): no position at all."""
    return torch.full((1, 3 if with_radius else 2, height, width), 0.5, device=device, dtype=dtype)


@cache
def _shuffle(size: int) -> NDArray[np.int64]:
    """Return the fixed permutation of `size` pixels; the same on every machine (NumPy's frozen Mersenne twister).

    An array, because a kept tensor would be a fake one if torch.export or a `torch.device` context made it.
    """
    return np.random.RandomState(_SHUFFLE_SEED).permutation(size)


_GRIDS: dict[str, Grid] = {"coordinates": coordinate_grid, "shuffled": shuffled_grid, "constant": constant_grid}
_PLACES: dict[str, list[int]] = {"none": [], "first": [0], "all": [0, 2, 4]}  # of the convolutions in NatureCNN.cnn


@final
class CoordNatureCNN(NatureCNN):
    """SB3's NatureCNN (Mnih et al. 2015) with CoordConv in none, the first or all of its convolutions.

    Images (batch, channels, height, width) -> features (batch, features_dim). A subclass of NatureCNN,
    because SB3 passes `normalized_image` on to those alone.

    Args:
        observation_space: a Box of channel-first uint8 images of at least 36x36 pixels, or of any
            dtype with `normalized_image`.
        features_dim: outputs of the linear layer.
        normalized_image: the images are float already, and not divided by 255.
        coordinates: which convolutions see coordinates.
        with_radius: they see the radius too.
        channels: what the extra channels hold; "shuffled" and "constant" are controls.

    Raises:
        RequestError: the space holds no images that this network can take.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int = 512,
        normalized_image: bool = False,
        *,
        coordinates: Where = "none",
        with_radius: bool = False,
        channels: Channels = "coordinates",
    ) -> None:
        _check_options(coordinates, with_radius, channels)
        _check_images(observation_space, normalized_image, smallest=NATURE_SMALLEST)
        super().__init__(observation_space, features_dim, normalized_image)
        for place in _PLACES[coordinates]:
            conv = self.cnn[place]
            assert isinstance(conv, nn.Conv2d)
            self.cnn[place] = CoordConv2d.around(conv, with_radius=with_radius, grid=_GRIDS[channels], zero=False)

    def forward(self, observations: Tensor) -> Tensor:
        """Compute the features, (batch, features_dim)."""
        features: Tensor = self.linear(self.cnn(observations.contiguous(memory_format=torch.channels_last)))
        return features


@final
class PoolCNN(BaseFeaturesExtractor):
    """A network that is blind to position unless it is given coordinates, for control experiments.

    Three 3x3 convolutions (16, 32, 32 filters: enough for the suite controls, at half the time of twice as
    many) of stride 1 with circular padding, then the mean over all positions and a linear layer: rolling
    the image changes nothing. NatureCNN would not do: it flattens, and unpadded or strided convolutions
    leak position through their borders.

    Images (batch, channels, height, width) -> features (batch, features_dim). Arguments and errors as
    CoordNatureCNN's, but images of any size; `coordinates` adds them in the first convolution.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int = 512,
        normalized_image: bool = False,
        *,
        coordinates: Literal["none", "first"] = "none",
    ) -> None:
        image = _check_images(observation_space, normalized_image, smallest=1)
        super().__init__(observation_space, features_dim)
        first = nn.Conv2d(image.shape[0], 16, 3, padding=1, padding_mode="circular")
        self.cnn = nn.Sequential(
            first if coordinates == "none" else CoordConv2d.around(first, zero=False),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.linear = nn.Sequential(nn.Linear(32, features_dim), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        """Compute the features, (batch, features_dim)."""
        features: Tensor = self.linear(self.cnn(observations.contiguous(memory_format=torch.channels_last)))
        return features


@dataclass(frozen=True)
class Extractor:
    """A named network before the heads: an SB3 class and its arguments."""

    twin: str  # the name of its control, the same network without coordinates
    features_extractor_class: type[BaseFeaturesExtractor]
    features_extractor_kwargs: Mapping[str, Any]


def _nature(**options: Any) -> Extractor:
    """Describe a member of the NatureCNN family."""
    return Extractor("nature", CoordNatureCNN, options)


EXTRACTORS: dict[str, Extractor] = {
    "nature": _nature(),
    "coord": _nature(coordinates="first"),
    "coord-r": _nature(coordinates="first", with_radius=True),
    "coord-all": _nature(coordinates="all"),
    "shuffled": _nature(coordinates="first", channels="shuffled"),
    "constant": _nature(coordinates="first", channels="constant"),
    "pool": Extractor("pool", PoolCNN, {}),
    "coord-pool": Extractor("pool", PoolCNN, {"coordinates": "first"}),
}


def policy_kwargs(
    extractor: str = "coord", *, net_arch: Sequence[int] | Mapping[str, Sequence[int]] = (), **options: Any
) -> dict[str, Any]:
    """Return `policy_kwargs` that put an extractor into any SB3 or sb3-contrib algorithm with a CnnPolicy.

    Sets `net_arch=[]` as well: SB3's A2C, PPO, DQN and their like give an empty one to NatureCNN itself alone, and any
    other extractor would silently get two more layers of 64 units. Where the critic takes actions in (SAC, TD3, DDPG,
    TQC) it needs layers after the extractor, or it could not tell in which states an action is good: pass
    `net_arch=[256, 256]` there, or what the algorithm gives to NatureCNN.

    Args:
        extractor: a name of EXTRACTORS.
        net_arch: layers after the extractor, in SB3's form.
        options: `features_dim` (512), `normalized_image` (False; True also sets `normalize_images=False`,
            for float images).

    Raises:
        RequestError: the extractor, or an option of it, does not exist.
    """
    check_extractor(extractor)
    found = EXTRACTORS[extractor]
    known = list(inspect.signature(found.features_extractor_class.__init__).parameters)[2:]
    free = [name for name in known if name in ("features_dim", "normalized_image")]
    for name in options:
        if name not in free:
            raise RequestError(f'extractor "{extractor}" has no option "{name}"; it has {", ".join(free)}')
    kwargs: dict[str, Any] = {
        "features_extractor_class": found.features_extractor_class,
        "features_extractor_kwargs": {**found.features_extractor_kwargs, **options},
        "net_arch": dict(net_arch) if isinstance(net_arch, Mapping) else [*net_arch],
    }
    if options.get("normalized_image"):
        kwargs["normalize_images"] = False
    return kwargs


def _check_options(coordinates: str, with_radius: bool, channels: str) -> None:
    """Refuse options that do not exist, or that would have no effect."""
    for name, value, known in (("coordinates", coordinates, _PLACES), ("channels", channels, _GRIDS)):
        if value not in known:
            raise RequestError(f"{name} is {value!r}; it is one of {', '.join(known)}{suggest(str(value), known)}")
    if coordinates == "none" and (with_radius or channels != "coordinates"):
        raise RequestError('with coordinates="none" there is nothing for with_radius or channels to change')


def _check_images(space: spaces.Space[Any], normalized_image: bool, *, smallest: int) -> spaces.Box:
    """Return the space if it holds channel-first images that the network can take, else say why not."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        raise RequestError(
            f"the observation space is {space}; this extractor takes images, a Box of shape (channels, height, width)."
            " For vectors use MlpPolicy without it"
        )
    channels, height, width = space.shape
    if width < min(channels, height) and (width < smallest or width <= _MOST_COLOURS):
        raise RequestError(
            f"the observation space is {space}: its last side is the smallest, so it looks channels-last; this extractor"
            " takes (channels, height, width). SB3 transposes uint8 images by itself when the environment goes through"
            " the algorithm; float images have to be transposed by the environment"
        )
    if min(height, width) < smallest:
        raise RequestError(
            f"the observation space is {space}: images of {height}x{width} are too small, the convolutions need at least"
            f" {smallest}x{smallest}. Enlarge them, or use the extractor pool or coord-pool"
        )
    is_bytes = space.dtype == "uint8" and bool((space.low == 0).all()) and bool((space.high == 255).all())
    if not normalized_image and not is_bytes:
        raise RequestError(
            f"the observation space is {space}; images are uint8 from 0 to 255, which SB3 divides by 255. For images that"
            " are scaled already use coordrl.policy_kwargs(..., normalized_image=True)"
        )
    return space

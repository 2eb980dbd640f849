"""The networks of the paper's supervised tasks: CoordConv, and the plain convolution beside it.

Liu et al. 2018 (arXiv 1807.03247), sections 3 and 4. The CoordConv networks of classification and regression are the
paper's, layer by layer; in split form they have as many parameters as over concatenated channels, 7,553 and 906. The
other networks are of the paper's kind and about its size, and their details are chosen here.
"""

from __future__ import annotations

from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

from coordrl.coordconv import CoordConv2d
from coordrl.squares import CANVAS

_PAINTER = (32, 32, 64, 64, 1)  # channels of the 1 x 1 convolutions
_GROWING = (2, 128, 128, 64, 64, 32, 1)  # channels of six transposed convolutions; chosen
_SHRINKING = (1, 16, 16, 32, 32, 64, 64)  # channels of six convolutions; chosen


@final
class Tile(nn.Module):
    """Repeat two coordinates over the canvas: (batch, 2) -> (batch, 2, 64, 64)."""

    def forward(self, coordinates: Tensor) -> Tensor:
        """Repeat them."""
        return coordinates[:, :, None, None].expand(-1, -1, CANVAS, CANVAS)


def build_network(task: str, arm: str, seed: int) -> nn.Sequential:
    """Build a network with PyTorch's default initialisation from a seed, without touching the global generator.

    | task | input | output |
    |---|---|---|
    | classification | coordinates (batch, 2) in [-1, 1] | logits (batch, 1, 64, 64), one softmax over all pixels |
    | rendering | coordinates (batch, 2) in [-1, 1] | logits (batch, 1, 64, 64), a sigmoid for each pixel |
    | regression | images (batch, 1, 64, 64) of 0 and 1 | coordinates (batch, 2), meant to be in [-1, 1] |

    Args:
        task: classification, rendering or regression.
        arm: coord or plain.
        seed: of the weights.

    Raises:
        ValueError: there is no such network.
    """
    makers = {
        ("classification", "coord"): coord_painter,
        ("classification", "plain"): plain_painter,
        ("rendering", "coord"): coord_painter,
        ("rendering", "plain"): plain_painter,
        ("regression", "coord"): coord_finder,
        ("regression", "plain"): plain_finder,
    }
    if (task, arm) not in makers:
        raise ValueError(f'there is no network "{arm}" for the task "{task}"')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return makers[task, arm]()


def coord_painter() -> nn.Sequential:
    """Tile the coordinates, then 1 x 1 convolutions, the first a CoordConv: section 3, 7,553 parameters.

    For rendering too, where the paper's network has a little more on top: a square's pixel can be told from its own place
    and the centre's, so nothing is needed there.
    """
    layers: list[nn.Module] = [Tile(), CoordConv2d(2, _PAINTER[0], 1)]
    for before, after in pairwise(_PAINTER):
        layers += [nn.ReLU(inplace=True), nn.Conv2d(before, after, 1)]
    return nn.Sequential(*layers)


def plain_painter() -> nn.Sequential:
    """Six transposed convolutions of 4 x 4 and stride 2, from 1 x 1 to 64 x 64: 496,545 parameters.

    The paper's have between 46,465 and 1,632,001.
    """
    layers: list[nn.Module] = [nn.Unflatten(1, (2, 1, 1))]
    for before, after in pairwise(_GROWING):
        layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def coord_finder() -> nn.Sequential:
    """1 x 1 convolutions, the first a CoordConv, two of 3 x 3, then the largest value of each channel: 906 parameters.

    Without a ReLU the network is linear up to the maximum: it learns to raise the marked pixel above all others, and to
    add to it where that pixel is. Whether the paper's 3 x 3 convolutions are padded is not known. These are not: with padding
    the maximum is often found at the border, and only one of three seeds learnt both coordinates.
    """
    return nn.Sequential(
        CoordConv2d(1, 8, 1),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 2, 3),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
    )


def plain_finder() -> nn.Sequential:
    """Six convolutions of 3 x 3 and stride 2, from 64 x 64 to 1 x 1, and a linear layer: 71,922 parameters.

    The paper's have 72,850 (uniform split) and 12,914 (quadrant).
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(_SHRINKING):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(_SHRINKING[-1], 2))


def count_parameters(network: nn.Module) -> int:
    """Return how many numbers a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())

"""What an agent makes of its coordinates: the norms of its first layer, and each filter's position map."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from coordrl.coordconv import CoordConv2d


def first_coordconv(model: BaseAlgorithm) -> CoordConv2d | None:
    """Return a model's first layer that sees coordinates, or None."""
    network: nn.Module = model.policy
    return next((layer for layer in network.modules() if isinstance(layer, CoordConv2d)), None)


@torch.no_grad()
def weight_norms(layer: CoordConv2d) -> dict[str, float]:
    """Return the Frobenius norms of both halves and their ratio, per weight.

    "ratio" compares root mean squares, so that it does not depend on the number of channels; it is
    sqrt(2) at initialisation in a first layer of four images and two coordinates.
    """
    coordinates, image = layer.coordinates.weight, layer.image.weight
    ratio = coordinates.square().mean().sqrt() / image.square().mean().sqrt().clamp_min(1e-30)
    return {
        "coordinate_norm": float(coordinates.norm()),
        "image_norm": float(image.norm()),
        "ratio": float(ratio),
    }


@torch.no_grad()
def position_maps(layer: CoordConv2d, height: int, width: int) -> NDArray[np.float32]:
    """Return what the coordinates alone add to each filter's output: (filters, height', width').

    Args:
        layer: the first layer.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    weight = layer.coordinates.weight
    grid = layer.grid(height, width, with_radius=layer.with_radius, device=weight.device, dtype=weight.dtype)
    maps: NDArray[np.float32] = layer.coordinates(grid)[0].float().cpu().numpy()
    return maps

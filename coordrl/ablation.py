"""Does a trained agent use its coordinates? Take them from it, and score it over the same games again.

Nothing is trained. What a layer is told is changed at its two seams, the coordinate weights and the function
that makes the grid, and put back afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from coordrl.coordconv import CoordConv2d
from coordrl.errors import RequestError, suggest
from coordrl.evaluation import Evaluation, evaluate
from coordrl.extractors import shuffle_pixels
from coordrl.grids import Grid
from coordrl.results import Spec
from coordrl.suites import ABLATIONS


def shift_pixels(grid: Tensor) -> Tensor:
    """Roll a grid (1, channels, height, width) by half its height and half its width, rounded down.

    Each place is told that it is the one half an image away in both directions, as on a torus: the corner
    has the coordinates of the centre. The same values are there, and neighbours stay neighbours but at the seam.
    """
    height, width = grid.shape[-2:]
    return grid.roll((height // 2, width // 2), dims=(-2, -1))


_MOVES: dict[str, Callable[[Tensor], Tensor]] = {"shift": shift_pixels, "shuffle": shuffle_pixels}


@contextmanager
def ablated(model: BaseAlgorithm, kind: str) -> Iterator[None]:
    """Take the true coordinates from every CoordConv2d of a model while entered; afterwards it is as it was.

    Args:
        model: an SB3 model.
        kind: "zero" (coordinate weights 0), "shift" (the grid rolled by half its sides) or "shuffle" (its
            pixels permuted by a fixed seed).

    Raises:
        RequestError: there is no such ablation, the model has no coordinates, or theirs would not change.
    """
    layers = check_ablation(model, kind)
    weights = [layer.coordinates.weight.detach().clone() for layer in layers]
    grids = [layer.grid for layer in layers]
    try:
        for layer in layers:
            if kind == "zero":
                nn.init.zeros_(layer.coordinates.weight)
            else:
                layer.grid = _moved(layer.grid, kind)  # type: ignore[arg-type]  # mypy does not know that functions are hashable
        yield
    finally:
        with torch.no_grad():
            for layer, weight, grid in zip(layers, weights, grids, strict=True):
                layer.coordinates.weight.copy_(weight)
                layer.grid = grid


def check_ablation(model: BaseAlgorithm, kind: str) -> list[CoordConv2d]:
    """Return the layers of a model that an ablation changes.

    Raises:
        RequestError: as `ablated`.
    """
    if kind not in ABLATIONS:
        raise RequestError(f'there is no ablation "{kind}"; there are {", ".join(ABLATIONS)}{suggest(kind, ABLATIONS)}')
    network: nn.Module = model.policy
    layers = [layer for layer in network.modules() if isinstance(layer, CoordConv2d)]
    if not layers:
        raise RequestError("the model has no CoordConv2d layer, so there are no coordinates to take from it")
    height, width = (model.observation_space.shape or (1, 1))[-2:]
    for layer in layers if kind in _MOVES else ():
        grid = layer.grid(height, width, with_radius=layer.with_radius)
        if torch.equal(grid, _MOVES[kind](grid)):
            raise RequestError(
                f'"{kind}" would change nothing: every place of this model\'s images has the same coordinates. Use "zero"'
            )
    return layers


@cache
def _moved(grid: Grid, kind: str) -> Grid:
    """Return the function that makes a moved grid; the same one each time, because layers keep patches by function."""

    def moved(
        height: int,
        width: int,
        *,
        with_radius: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        return _MOVES[kind](grid(height, width, with_radius=with_radius, device=device, dtype=dtype))

    return moved


def evaluate_ablations(
    model: BaseAlgorithm,
    spec: Spec,
    kinds: Sequence[str],
    episodes: int,
    *,
    seed: int,
    on_step: Callable[[str, list[float], int], None] = lambda kind, returns, steps: None,
    on_score: Callable[[str, Evaluation], None] = lambda kind, score: None,
) -> dict[str, Evaluation]:
    """Score a model with its true coordinates ("true") and with ablations, over the same games.

    Args:
        model: the model; it is as before when this returns.
        spec: the run it belongs to.
        kinds: "true" and the ablations (see `ablated`), each once, in the order in which they are played.
        episodes: how many games for each score.
        seed: of the environments and of the sampled actions, the same for every score.
        on_step: called after every step with the kind, and as in `evaluate`.
        on_score: called with each kind and its score as soon as that is there.

    Raises:
        RequestError: as `ablated`, before the first game; or no episodes.
    """
    for kind in kinds:
        if kind != "true":
            check_ablation(model, kind)
    scores: dict[str, Evaluation] = {}
    for kind in kinds:
        with nullcontext() if kind == "true" else ablated(model, kind):
            scores[kind] = evaluate(model, spec, episodes, seed=seed, on_step=partial(on_step, kind))
        on_score(kind, scores[kind])
    return scores


class Difference(NamedTuple):
    """How far one mean lies from another."""

    estimate: float
    half_width: float | None  # of its 95 % interval; None where a mean has none of its own


def difference(score: Evaluation, reference: Evaluation) -> Difference:
    """Return the difference of two means with half its 95 % interval (Welch 1947).

    Unpaired: games begin alike, but after the first different action they are other games.
    """
    estimate = score.mean - reference.mean
    parts = [(one.std**2 / len(one.returns), len(one.returns) - 1) for one in (score, reference)]
    if any(freedom == 0 for _, freedom in parts):
        return Difference(estimate, None)
    variance = sum(part for part, _ in parts)
    if variance == 0.0:
        return Difference(estimate, 0.0)
    freedom = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    return Difference(estimate, float(stdtrit(freedom, 0.975)) * math.sqrt(variance))

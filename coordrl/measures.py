"""What a comparison measures: pure functions on scores of shape (seeds, games).

Scores are float64 and finite: NaN is refused with its place, never skipped. Rows and columns are counted from 0
in every message. The choice of measures is that of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of
the Statistical Precipice" (NeurIPS).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coordrl.errors import RequestError

Scores = NDArray[np.float64]

TRIM = 0.25  # of the runs that the IQM leaves out at each end
_CHUNK = 2**20  # numbers that one step of a resampling holds at once, 8 MiB as float64


def check_scores(scores: ArrayLike, name: str = "scores") -> Scores:
    """Return scores as a float64 matrix (seeds, games).

    Raises:
        RequestError: if they are no matrix of numbers, empty, or not finite; the message names the places.
    """
    matrix = finite_scores(scores, name)
    if matrix.ndim != 2:
        raise RequestError(
            f"{name} has the shape {matrix.shape}; give a matrix, a row for each seed and a column a game"
        )
    return matrix


def normalise(scores: ArrayLike, random: ArrayLike, human: ArrayLike) -> Scores:
    """Return human-normalised scores: 0 is random play, 1 the human.

    Args:
        scores: raw scores, (..., seeds, games).
        random: the score of random play in each game, (games,).
        human: the human score in each game, (games,).

    Raises:
        RequestError: where human and random score are equal, or a number is missing.
    """
    values = finite_scores(scores, "scores")
    low, high = (finite_numbers(one, name) for one, name in ((random, "random"), (human, "human")))
    for one, name in ((low, "random"), (high, "human")):
        if one.shape != values.shape[-1:]:
            raise RequestError(f"{name} has the shape {one.shape}; give one score for each of {values.shape[-1]} games")
    equal = np.flatnonzero(low == high)
    if equal.size:
        raise RequestError(
            f"game {equal[0]} has the human score {high[equal[0]]:g}, equal to random play's: "
            "it cannot be normalised; leave that game out"
        )
    return (values - low) / (high - low)


def finite_numbers(values: ArrayLike, name: str) -> Scores:
    """Return finite float64 numbers of any shape but an empty one."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise RequestError(f"{name} is no array of numbers: give numbers, as many in each row") from None
    if array.size == 0:
        raise RequestError(f"{name} is empty, of shape {array.shape}; give at least one seed and one game")
    if not np.isfinite(array).all():
        places = np.argwhere(~np.isfinite(array))
        shown = ", ".join(f"{name}[{', '.join(map(str, place))}] is {array[tuple(place)]}" for place in places[:5])
        rest = f" and {len(places) - 5} more" if len(places) > 5 else ""
        raise RequestError(
            f"{shown}{rest}; a score must be a finite number: finish those runs or leave them out openly"
        )
    return array


def finite_scores(scores: ArrayLike, name: str = "scores") -> Scores:
    """Return finite scores of shape (..., seeds, games)."""
    array = finite_numbers(scores, name)
    if array.ndim < 2:
        raise RequestError(
            f"{name} has the shape {array.shape}; give a matrix, a row for each seed and a column a game"
        )
    return array


# Statistics: (..., seeds, games) -> (...)


def mean(scores: ArrayLike) -> Scores:
    """Return the mean over all runs, (..., seeds, games) -> (...)."""
    value: Scores = finite_scores(scores).mean(axis=(-2, -1))
    return value


def median(scores: ArrayLike) -> Scores:
    """Return the median over games of the mean over seeds, (..., seeds, games) -> (...)."""
    value: Scores = np.median(finite_scores(scores).mean(axis=-2), axis=-1)
    return value


def iqm(scores: ArrayLike) -> Scores:
    """Return the interquartile mean, (..., seeds, games) -> (...).

    The mean of the runs that are left when a quarter of all runs, rounded down, is cut at each end (Agarwal
    et al. 2021; scipy.stats.trim_mean with 0.25). Of fewer than four runs it is their mean.
    """
    values = finite_scores(scores)
    runs = np.sort(values.reshape(*values.shape[:-2], -1), axis=-1)
    cut = int(TRIM * runs.shape[-1])
    value: Scores = runs[..., cut : runs.shape[-1] - cut].mean(axis=-1)
    return value


def optimality_gap(scores: ArrayLike, target: float = 1.0) -> Scores:
    """Return by how much runs fall short of `target` on average, (..., seeds, games) -> (...).

    A run above the target counts as at the target (Agarwal et al. 2021). 0 is best.
    """
    value: Scores = target - np.minimum(finite_scores(scores), target).mean(axis=(-2, -1))
    return value


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> Scores:
    """Return P(X > Y) + P(X = Y) / 2 for a run of x and one of y in the same game, averaged over games.

    Mann and Whitney's U over the number of pairs, averaged (Agarwal et al. 2021). (..., seeds of x, games) and
    (..., seeds of y, games) -> (...).
    """
    first, second = same_games(finite_scores(x, "x"), finite_scores(y, "y"))
    value: Scores = wins(first, second).mean(axis=(-3, -2, -1))
    return value


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Scores:
    """Return the fraction of runs that score more than each threshold, (seeds, games), (n,) -> (n,).

    The run-score distribution of Agarwal et al. 2021. Its area above 0 is the mean of scores that are not negative.
    """
    value: Scores = above(check_scores(scores), thresholds).mean(axis=(1, 2))
    return value


def wins(x: Scores, y: Scores) -> Scores:
    """Return 1, 1/2 or 0 for each pair of runs, (..., seeds of x, seeds of y, games)."""
    first, second = x[..., :, None, :], y[..., None, :, :]
    outcome: Scores = (first > second) + 0.5 * (first == second)
    return outcome


def above(scores: Scores, thresholds: ArrayLike) -> Scores:
    """Return 1 where a run scores more than a threshold, (thresholds, seeds, games)."""
    levels = finite_numbers(thresholds, "thresholds")
    if levels.ndim != 1:
        raise RequestError(f"thresholds has the shape {levels.shape}; give a list of numbers")
    return (scores > levels[:, None, None]).astype(np.float64)


def chunks(resamples: int, numbers_each: int) -> Iterator[int]:
    """Divide resamples of so many numbers each into parts that fit in memory."""
    size = max(1, _CHUNK // numbers_each)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def same_games(x: Scores, y: Scores) -> tuple[Scores, Scores]:
    """Return both arms if they have as many games."""
    if x.shape[-1] != y.shape[-1]:
        raise RequestError(f"x has {x.shape[-1]} games and y {y.shape[-1]}; compare arms on the same games")
    return x, y


def area_under_curve(steps: ArrayLike, values: ArrayLike, end: float) -> float:
    """Return the mean height of a learning curve from step 0 to `end`, in the unit of the values.

    Time-weighted: straight lines between points, the first value held back to step 0, the last one on to `end`.
    Values of one step (games that finish together) count as their mean. Points beyond `end` only bend the last line.

    Args:
        steps: of the points, not falling, (n,).
        values: the curve's height there, (n,).
        end: the step at which the area ends, above 0.
    """
    at, heights = finite_numbers(steps, "steps"), finite_numbers(values, "values")
    if at.ndim != 1 or at.shape != heights.shape:
        raise RequestError(f"steps and values have the shapes {at.shape} and {heights.shape}; give one value a step")
    if at[0] < 0 or (np.diff(at) < 0).any():
        raise RequestError("steps must rise from 0 or more; sort the points")
    if not 0 < end < math.inf:
        raise RequestError(f"end is {end}; it must be a step above 0")
    knots, which = np.unique(at, return_inverse=True)
    means = np.bincount(which, weights=heights) / np.bincount(which)
    inside = knots[knots < end]
    corners = np.concatenate([[0.0], inside, [float(end)]])
    curve = np.interp(corners, knots, means)  # holds the ends' values outside
    return float((np.diff(corners) * (curve[1:] + curve[:-1]) / 2).sum() / end)

"""The statistics of a comparison: everything a report needs, and the intervals, which are defined here.

Few seeds and skewed scores are the rule here, so the textbook's interval is not good enough: a percentile
bootstrap at ten log-normal seeds holds the true mean some 80 times in 100 instead of 95. The intervals are those
of the studentised bootstrap, stratified by game: each game's seeds are drawn anew, with replacement, and each
resample is measured in its own standard errors. docs/statistics.md says why and how often they hold the truth.

What is measured stands in `measures`, the tests in `significance`; both are to be had from here. Every generator is
passed in; nothing is drawn from global state.

Sources: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (resampling
within games); Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 12; Hall 1992, "The
Bootstrap and Edgeworth Expansion" (why studentised, why symmetric); Hesterberg 2015, "What Teachers Should Know
about the Bootstrap" (the expanded percentile interval).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, stdtrit

from coordrl.errors import RequestError
from coordrl.measures import (
    TRIM,
    Scores,
    above,
    area_under_curve,
    check_scores,
    chunks,
    iqm,
    mean,
    median,
    normalise,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    same_games,
    wins,
)
from coordrl.significance import (
    PermutationResult,
    can_claim,
    holm,
    permutation_test,
    smallest_effect,
    smallest_p_value,
)

__all__ = [
    "Interval",
    "PermutationResult",
    "Scores",
    "Statistic",
    "area_under_curve",
    "bootstrap",
    "bootstrap_difference",
    "bootstrap_improvement",
    "can_claim",
    "check_scores",
    "holm",
    "iqm",
    "mean",
    "median",
    "normalise",
    "optimality_gap",
    "performance_profile",
    "permutation_test",
    "probability_of_improvement",
    "profile_band",
    "smallest_effect",
    "smallest_p_value",
]

Statistic = Callable[[Any], Scores]  # (..., seeds, games) -> (...)

RESAMPLES = 50_000

# A resample's standard error counts as at least this part of the sample's own: in a resample that repeats nearly one
# seed only it is almost 0, and that resample alone would stretch the interval. Of a mean of few seeds more than a
# tenth costs coverage; of a share, whose resamples often have no spread at all, less than three tenths costs width.
_LEAST_ERROR = 0.1
_LEAST_ERROR_OF_SHARE = 0.3

_ROUNDING = 1e-12  # a standard error of less than this part of the largest score is 0 with rounding errors


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval, low <= estimate <= high, and how they were found."""

    estimate: float
    low: float
    high: float
    method: str


# Influence: what one run adds to a statistic, so that the mean of the influences moves as the statistic does.
# Its variance within games gives a standard error without a second level of resampling.


def _influence_of_iqm(scores: Scores) -> Scores:
    """Runs beyond the quartiles count as at the quartile (the winsorised variance of a trimmed mean)."""
    runs = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    count = runs.shape[-1]
    cut = int(TRIM * count)
    low, high = runs[..., cut, None, None], runs[..., count - cut - 1, None, None]
    winsorised: Scores = np.clip(scores, low, high)
    scaled: Scores = winsorised / (1 - 2 * cut / count)
    return scaled


_INFLUENCE: dict[Statistic, Callable[[Scores], Scores]] = {
    mean: lambda scores: scores,
    iqm: _influence_of_iqm,
    optimality_gap: lambda scores: -np.minimum(scores, 1.0),
}


def _squared_error(influence: Scores) -> Scores:
    """Return the squared standard error of a mean of independent games, (..., seeds, games) -> (...)."""
    seeds, games = influence.shape[-2:]
    return np.asarray(influence.var(axis=-2, ddof=1).sum(axis=-1) / (seeds * games**2))


def bootstrap(
    scores: ArrayLike,
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Return a statistic of one arm with its interval: seeds resampled within each game.

    mean, iqm and optimality_gap get the equal-tailed studentised interval (Efron and Tibshirani 1993, chapter 12),
    any other function, such as median, the expanded percentile interval (Hesterberg 2015), since a
    standard error of each resample is not known for it; so does an IQM whose middle half is one value. `method` says
    which. If all seeds of every game are equal, the interval has no width, and `method` says that they do not differ.

    The order of seeds has no influence, not even on the last digit.

    Args:
        scores: (seeds, games); two seeds at least.
        statistic: (..., seeds, games) -> (...).
        rng: the resamples are drawn from it.
        resamples: how many.
        level: confidence, between 0 and 1.
    """
    arm = _arm(scores, "scores")
    _check_request(resamples, level)
    estimate = float(statistic(arm))
    if not np.ptp(arm, axis=0).any():
        return Interval(estimate, estimate, estimate, "none: the seeds do not differ")
    draws, squares = _draw(arm, statistic, rng, resamples)
    influence = _INFLUENCE.get(statistic)
    error = math.sqrt(_squared_error(influence(arm))) if influence else 0.0
    if error <= _ROUNDING * np.abs(arm).max():
        return _expanded(estimate, draws, len(arm), level)
    ratios = (draws - estimate) / np.maximum(np.sqrt(squares), _LEAST_ERROR * error)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return _interval(estimate, estimate - high * error, estimate - low * error, "studentised bootstrap", resamples)


def bootstrap_difference(
    x: ArrayLike,
    y: ArrayLike,
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Return statistic(x) - statistic(y) with its interval: seeds of both arms resampled within each game, unpaired.

    As `bootstrap`, but the studentised interval is symmetric about the estimate (Hall 1992): two
    arms that are skewed alike have a difference that is hardly skewed, and there the symmetric one errs less.

    Args:
        x: (seeds of x, games); two seeds at least.
        y: (seeds of y, games); two seeds at least, the same games.
        statistic: (..., seeds, games) -> (...).
        rng: the resamples are drawn from it.
        resamples: how many.
        level: confidence, between 0 and 1.
    """
    first, second = same_games(_arm(x, "x"), _arm(y, "y"))
    _check_request(resamples, level)
    estimate = float(statistic(first)) - float(statistic(second))
    if not np.ptp(first, axis=0).any() and not np.ptp(second, axis=0).any():
        return Interval(estimate, estimate, estimate, "none: the seeds do not differ")
    draws_x, squares_x = _draw(first, statistic, rng, resamples)
    draws_y, squares_y = _draw(second, statistic, rng, resamples)
    draws, squares = draws_x - draws_y, squares_x + squares_y
    influence = _INFLUENCE.get(statistic)
    error = math.sqrt(_squared_error(influence(first)) + _squared_error(influence(second))) if influence else 0.0
    if error <= _ROUNDING * max(np.abs(first).max(), np.abs(second).max()):
        return _expanded(estimate, draws, min(len(first), len(second)), level)
    ratios = np.abs(draws - estimate) / np.maximum(np.sqrt(squares), _LEAST_ERROR * error)
    half = float(np.quantile(ratios, level)) * error
    return _interval(estimate, estimate - half, estimate + half, "symmetric studentised bootstrap", resamples)


def bootstrap_improvement(
    x: ArrayLike, y: ArrayLike, rng: np.random.Generator, *, resamples: int = RESAMPLES, level: float = 0.95
) -> Interval:
    """Return the probability of improvement of x over y with its interval, within 0 and 1.

    The symmetric studentised bootstrap with the standard error of DeLong et al. 1988. Arms that do not overlap
    have no spread in any resample although the next seed may overlap; so in each game the squared error is at
    least what Newcombe 2006 (Statistics in Medicine 25, page 559; his method 5) gives with one more seed that comes out even,
    and the multiplier is at least Student's t.

    Args:
        x: (seeds of x, games); two seeds at least.
        y: (seeds of y, games); two seeds at least, the same games.
        rng: the resamples are drawn from it.
        resamples: how many.
        level: confidence, between 0 and 1.
    """
    first, second = same_games(_arm(x, "x"), _arm(y, "y"))
    _check_request(resamples, level)
    (n_x, games), n_y = first.shape, len(second)
    won = wins(first, second)
    ones_x, ones_y = np.ones((1, games, n_x)), np.ones((1, games, n_y))
    shares, squares = (part[0] for part in _shares(won, ones_x, ones_y))
    extra = (n_x + n_y) / 2  # pairs that one more seed brings
    shrunk = (shares * n_x * n_y + extra / 2) / (n_x * n_y + extra)
    correlated = 1 + (extra - 1) * ((1 - shrunk) / (2 - shrunk) + shrunk / (1 + shrunk))
    squares = np.maximum(squares, shrunk * (1 - shrunk) * correlated / (n_x * n_y))
    estimate, error = float(shares.mean()), math.sqrt(squares.sum()) / games
    draws, errors = [], []
    for size in chunks(resamples, (n_x + n_y) * games * 4):
        drawn, drawn_squares = _shares(won, _counts(rng, size, games, n_x), _counts(rng, size, games, n_y))
        draws.append(drawn.mean(axis=-1))
        errors.append(np.sqrt(drawn_squares.sum(axis=-1)) / games)
    freedom = squares.sum() ** 2 / (squares**2 / (n_x + n_y - 2)).sum()
    ratios = np.abs(np.concatenate(draws) - estimate)
    ratios /= np.maximum(np.concatenate(errors), _LEAST_ERROR_OF_SHARE * error)
    half = max(float(np.quantile(ratios, level)), float(stdtrit(freedom, (1 + level) / 2))) * error
    low, high = max(estimate - half, 0.0), min(estimate + half, 1.0)
    return _interval(estimate, low, high, "symmetric studentised bootstrap, widened at 0 and 1", resamples)


def profile_band(
    scores: ArrayLike,
    thresholds: ArrayLike,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[Scores, Scores]:
    """Return the ends of the interval of the performance profile at each threshold, within 0 and 1.

    Pointwise: the band as a whole holds the whole curve less often than `level`. Found as in
    `bootstrap_improvement`; in each game the squared error is at least that of a share to which a few runs are
    added that come out even.

    Args:
        scores: (seeds, games); two seeds at least.
        thresholds: (n,).
        rng: the resamples are drawn from it.
        resamples: how many.
        level: confidence, between 0 and 1.
    """
    arm = _arm(scores, "scores")
    _check_request(resamples, level)
    seeds, games = arm.shape
    # Between two neighbouring scores the profile is flat: as many different thresholds as scores are enough.
    patterns, which = np.unique(above(arm, thresholds).reshape(-1, seeds * games), axis=0, return_inverse=True)
    exceeds = patterns.reshape(-1, seeds, games)
    shares = exceeds.mean(axis=1)  # (patterns, games)
    even = max(0.5, 2 / games)  # two runs above and two below in all, as Agresti and Coull 1998 add to one share
    shrunk = (shares * seeds + even) / (seeds + 2 * even)
    squares = np.maximum(shares * (1 - shares) / (seeds - 1), shrunk * (1 - shrunk) / seeds)
    estimate, error = shares.mean(axis=1), np.sqrt(squares.sum(axis=1)) / games
    freedom = squares.sum(axis=1) ** 2 / (squares**2 / (seeds - 1)).sum(axis=1)
    halves = []
    for block in range(0, len(exceeds), 32):  # so many at a time, so that memory does not grow with their number
        part = slice(block, block + 32)
        multiplier = _profile_multiplier(exceeds[part], estimate[part], error[part], rng, resamples, level)
        halves.append(np.maximum(multiplier, stdtrit(freedom[part], (1 + level) / 2)) * error[part])
    half, which = np.concatenate(halves), which.ravel()
    return np.maximum(estimate - half, 0.0)[which], np.minimum(estimate + half, 1.0)[which]


def _profile_multiplier(
    exceeds: Scores, estimate: Scores, error: Scores, rng: np.random.Generator, resamples: int, level: float
) -> Scores:
    """Return how many standard errors hold `level` of the resamples at each threshold, (n, seeds, games) -> (n,)."""
    count, seeds, games = exceeds.shape
    by_game = exceeds.transpose(2, 1, 0)  # (games, seeds, thresholds)
    ratios = []
    for size in chunks(resamples, games * (seeds + 3 * count)):
        weights = _counts(rng, size, games, seeds).transpose(1, 0, 2)  # (games, resamples, seeds)
        shares = weights @ by_game / seeds  # (games, resamples, thresholds)
        errors = np.sqrt((shares * (1 - shares)).sum(axis=0) / (seeds - 1)) / games
        ratios.append(np.abs(shares.mean(axis=0) - estimate) / np.maximum(errors, _LEAST_ERROR_OF_SHARE * error))
    return np.asarray(np.quantile(np.concatenate(ratios), level, axis=0))


def _arm(scores: ArrayLike, name: str) -> Scores:
    """Return the scores of one arm, each game's sorted, since the order of seeds must not matter."""
    matrix = check_scores(scores, name)
    if len(matrix) < 2:
        raise RequestError(f"{name} has one seed; an interval needs two at least: run more seeds")
    return np.sort(matrix, axis=0)


def _check_request(resamples: int, level: float) -> None:
    if not 0 < level < 1:
        raise RequestError(f"level is {level}; it must lie between 0 and 1, as 0.95 does")
    if resamples * (1 - level) < 2:
        least = math.ceil(2 / (1 - level))
        raise RequestError(f"resamples is {resamples}; an interval of level {level} needs {least} at least")


def _draw(arm: Scores, statistic: Statistic, rng: np.random.Generator, resamples: int) -> tuple[Scores, Scores]:
    """Return the statistic of each resample, and its squared standard error (0 where none is known), (resamples,)."""
    seeds, games = arm.shape
    influence = _INFLUENCE.get(statistic)
    values, squares = [], []
    for size in chunks(resamples, seeds * games):
        chosen = rng.integers(0, seeds, size=(size, seeds, games))
        resampled = np.take_along_axis(arm[None], chosen, axis=1)
        values.append(np.asarray(statistic(resampled), dtype=np.float64))
        squares.append(_squared_error(influence(resampled)) if influence else np.zeros(size))
    return np.concatenate(values), np.concatenate(squares)


def _counts(rng: np.random.Generator, size: int, games: int, seeds: int) -> Scores:
    """Return how often each seed is in each resample of a game, (size, games, seeds)."""
    chosen = rng.integers(0, seeds, size=(size * games, seeds))
    chosen += np.arange(size * games)[:, None] * seeds
    counts = np.bincount(chosen.ravel(), minlength=size * games * seeds)
    return counts.reshape(size, games, seeds).astype(np.float64)


def _shares(wins: Scores, counts_x: Scores, counts_y: Scores) -> tuple[Scores, Scores]:
    """Return x's share of pairs won in each game, and its squared standard error (DeLong et al. 1988).

    Args:
        wins: (seeds of x, seeds of y, games).
        counts_x: how often each seed of x is there, (resamples, games, seeds of x).
        counts_y: likewise, (resamples, games, seeds of y).

    Returns:
        Two arrays, (resamples, games).
    """
    n_x, n_y = wins.shape[:2]
    of_x = np.einsum("bgj,ijg->bgi", counts_y, wins, optimize=True) / n_y  # each seed of x against all of y
    of_y = np.einsum("bgi,ijg->bgj", counts_x, wins, optimize=True) / n_x
    shares = (counts_x * of_x).sum(axis=-1) / n_x
    spread_x = (counts_x * (of_x - shares[..., None]) ** 2).sum(axis=-1) / (n_x - 1)
    spread_y = (counts_y * (of_y - shares[..., None]) ** 2).sum(axis=-1) / (n_y - 1)
    return shares, spread_x / n_x + spread_y / n_y


def _expanded(estimate: float, draws: Scores, seeds: int, level: float) -> Interval:
    """Return the percentile interval, its level raised by what a small sample's spread falls short.

    Hesterberg 2015: the quantile of the normal distribution becomes sqrt(n / (n - 1)) times Student's.
    """
    tail = float(ndtr(-math.sqrt(seeds / (seeds - 1)) * stdtrit(seeds - 1, (1 + level) / 2)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return _interval(estimate, low, high, "expanded percentile bootstrap", len(draws))


def _interval(estimate: float, low: float, high: float, method: str, resamples: int) -> Interval:
    """An interval that holds its estimate."""
    text = f"{method}, {resamples:,} resamples within games"
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), text)

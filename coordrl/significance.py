"""Tests of one game's seeds, corrected for many games, and what a number of seeds can show at all.

Sources: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure"; Phipson and Smyth 2010, "Permutation
P-values Should Never Be Zero"; Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 15.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import nctdtr, stdtrit

from coordrl.errors import RequestError
from coordrl.measures import Scores, chunks, finite_numbers

EXACT_SEEDS = 40  # of both arms together: up to here every arrangement is counted; 20 against 20 takes a second
RESAMPLES = 99_999  # random arrangements beyond that


class PermutationResult(NamedTuple):
    """A two-sided p value, and of how many arrangements; exact if these are all that there are."""

    p_value: float
    exact: bool
    arrangements: int


def permutation_test(
    x: ArrayLike, y: ArrayLike, rng: np.random.Generator | None = None, *, resamples: int = RESAMPLES
) -> PermutationResult:
    """Test whether two arms differ in one game: two-sided, unpaired, by the difference of means.

    The p value is the fraction of all arrangements of the seeds into arms of these sizes whose absolute difference
    of means is at least the observed one. An arrangement that equals the observed one up to rounding counts, so ties
    can only raise the p value. Up to 40 seeds in both arms together every arrangement is counted; beyond,
    `resamples` random ones are drawn from `rng`, and p = (b + 1) / (m + 1) (Phipson and Smyth 2010).

    Args:
        x: the final returns of one arm's seeds, (seeds,).
        y: the other arm's.
        rng: needed beyond 40 seeds only.
        resamples: random arrangements beyond 40 seeds.

    Raises:
        RequestError: on NaN, or beyond 40 seeds without a generator.
    """
    first, second = finite_numbers(x, "x"), finite_numbers(y, "y")
    for one, name in ((first, "x"), (second, "y")):
        if one.ndim != 1:
            raise RequestError(f"{name} has the shape {one.shape}; give one game's scores, one a seed")
    pooled = np.concatenate([first, second])
    centred = np.sort(pooled - pooled.mean())
    smaller = min(len(first), len(second))
    # Centred, the sum of one group is as far from 0 as that of the other and tells the difference of means.
    observed = abs(float((first - pooled.mean()).sum()))
    rounding = 4 * len(pooled) * np.finfo(np.float64).eps * float(np.abs(pooled).sum())
    least = observed - rounding
    if len(pooled) <= EXACT_SEEDS:
        arrangements = math.comb(len(pooled), smaller)
        return PermutationResult(_count_extreme(centred, smaller, least) / arrangements, True, arrangements)
    if rng is None:
        raise RequestError(f"{len(pooled)} seeds are too many to count every arrangement; pass a generator as rng")
    if resamples < 1:
        raise RequestError(f"resamples is {resamples}; it must be 1 or more")
    extreme = 0
    for size in chunks(resamples, len(pooled)):
        shuffled = rng.permuted(np.broadcast_to(centred, (size, len(centred))), axis=1)
        extreme += int((np.abs(shuffled[:, :smaller].sum(axis=1)) >= least).sum())
    return PermutationResult((extreme + 1) / (resamples + 1), False, resamples)


def _count_extreme(values: Scores, size: int, least: float) -> int:
    """Count the subsets of `size` values whose absolute sum is at least `least`.

    Every subset is one of the first half's joined with one of the second half's; with the sums of the second half
    sorted, those that reach the limit are counted at once, so 2^40 subsets need two lists of 2^20.
    """
    if least <= 0:
        return math.comb(len(values), size)
    middle = len(values) // 2
    left, right = _sums_by_size(values[:middle]), _sums_by_size(values[middle:])
    extreme = 0
    for taken, sums in enumerate(left):
        if not 0 <= size - taken < len(right):
            continue
        others = right[size - taken]
        extreme += int((len(others) - np.searchsorted(others, least - sums, side="left")).sum())
        extreme += int(np.searchsorted(others, -least - sums, side="right").sum())
    return extreme


def _sums_by_size(values: Scores) -> list[Scores]:
    """Return the sums of all subsets of 0, 1, ... values, each sorted."""
    by_size = [np.zeros(1)]
    for value in values:
        grown = [sums + value for sums in by_size]
        joined = [np.concatenate([kept, new]) for kept, new in zip(by_size[1:], grown[:-1], strict=True)]
        by_size = [by_size[0], *joined, grown[-1]]
    return [np.sort(sums) for sums in by_size]


def holm(p_values: Sequence[float] | NDArray[np.float64]) -> Scores:
    """Return p values adjusted for as many tests as there are (Holm 1979), in the order given.

    Reject those that are at most alpha: the chance of any false rejection is then at most alpha, whatever the
    tests have to do with each other.
    """
    if not len(p_values):
        return np.empty(0)
    values = finite_numbers(p_values, "p_values")
    if values.ndim != 1 or values.min() < 0 or values.max() > 1:
        raise RequestError(f"p_values must be a list of numbers from 0 to 1, not {values.tolist()}")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def smallest_p_value(n_x: int, n_y: int) -> float:
    """Return the least p value that `permutation_test` can give for arms of these sizes.

    One arrangement of all, or two if the arms are of one size, since the mirror image is as extreme; where they are
    too many to be counted, one of the random ones and itself.
    """
    _check_sizes(n_x, n_y)
    least = (2 if n_x == n_y else 1) / math.comb(n_x + n_y, n_x)
    return min(1.0, least if n_x + n_y <= EXACT_SEEDS else max(least, 1 / (RESAMPLES + 1)))


def can_claim(n_x: int, n_y: int, n_tests: int, alpha: float = 0.05) -> bool:
    """Return whether any of `n_tests` tests can be significant after Holm's correction, however clear the data.

    Five seeds against five in nine games never can: the least p value is 2 of 252, and nine times that is 0.071.
    """
    _check_alpha(alpha)
    if n_tests < 1:
        raise RequestError(f"n_tests is {n_tests}; it must be 1 or more")
    return smallest_p_value(n_x, n_y) * n_tests <= alpha


def smallest_effect(n_x: int, n_y: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the least true difference of means that a test finds with probability `power`, in standard deviations.

    For normal scores of one spread; infinite if the exact test of these sizes can never reach alpha. Student's test
    (by the noncentral t distribution) stands in for the permutation test, at the level that the latter, whose p
    values are a few steps only, really has below alpha, less half a step; simulated, a power of
    0.8 is then 0.78 to 0.82 from five seeds an arm on (docs/statistics.md). For a test corrected for k games give
    alpha / k, Holm's strictest step.
    """
    _check_alpha(alpha)
    if not 0 < power < 1:
        raise RequestError(f"power is {power}; it must lie between 0 and 1, as 0.8 does")
    step = smallest_p_value(n_x, n_y)
    steps = math.floor(alpha / step * (1 + 1e-12))
    if steps == 0:
        return math.inf
    level = step * (steps - 0.5)
    if power <= level:
        return 0.0
    freedom = n_x + n_y - 2
    limit = float(stdtrit(freedom, 1 - level / 2))
    low, high = 0.0, 10 * (limit + 10)  # noncentralities
    for _ in range(100):
        middle = (low + high) / 2
        found = 1 - nctdtr(freedom, middle, limit) + nctdtr(freedom, middle, -limit)
        low, high = (middle, high) if found < power else (low, middle)
    return high * math.sqrt(1 / n_x + 1 / n_y)


def _check_sizes(n_x: int, n_y: int) -> None:
    if n_x < 1 or n_y < 1:
        raise RequestError(f"arms of {n_x} and {n_y} seeds cannot be compared; each needs one at least")


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise RequestError(f"alpha is {alpha}; it must lie between 0 and 1, as 0.05 does")

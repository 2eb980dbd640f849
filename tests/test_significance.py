"""Permutation tests, Holm's correction, and what a number of seeds can show."""

from __future__ import annotations

import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from coordrl import significance
from coordrl.errors import RequestError
from coordrl.significance import can_claim, holm, permutation_test, smallest_effect, smallest_p_value


def exact_p_value(x: list[int], y: list[int]) -> Fraction:
    """The definition, in whole numbers: the share of arrangements whose difference of means is as large or larger."""
    pooled, total = x + y, sum(x) + sum(y)

    def difference(first: int) -> Fraction:
        return abs(Fraction(first, len(x)) - Fraction(total - first, len(y)))

    observed = difference(sum(x))
    every = [difference(sum(group)) >= observed for group in itertools.combinations(pooled, len(x))]
    return Fraction(sum(every), len(every))


whole_numbers = st.lists(st.integers(-9, 9), min_size=1, max_size=5)


@given(whole_numbers, whole_numbers, st.sampled_from([1.0, 0.1, 1e-7, 1e9]), st.sampled_from([0.0, 0.3, -1000.7]))
def test_every_arrangement_is_counted_ties_too(x: list[int], y: list[int], unit: float, shift: float) -> None:
    # In tenths and shifted, equal sums differ in their last digits; they must count as equal all the same.
    found = permutation_test(np.array(x) * unit + shift * unit, np.array(y) * unit + shift * unit)
    assert found.p_value == pytest.approx(float(exact_p_value(x, y)), rel=1e-12)
    assert found.exact
    assert found.arrangements == math.comb(len(x) + len(y), len(x))


def test_a_p_value_by_hand() -> None:
    # 1 2 | 3 4: of six arrangements, this and its mirror image are the most extreme.
    assert permutation_test([1.0, 2.0], [3.0, 4.0]).p_value == pytest.approx(2 / 6)
    # Alone against three: no other arrangement is as extreme.
    assert permutation_test([9.0], [1.0, 2.0, 3.0]).p_value == pytest.approx(1 / 4)
    assert permutation_test([5.0, 5.0], [5.0, 5.0, 5.0]).p_value == 1.0
    assert permutation_test([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]).p_value == 1.0


@pytest.mark.parametrize(("n_x", "n_y"), [(6, 6), (5, 7), (3, 9), (8, 8)])
def test_the_p_value_is_scipys(n_x: int, n_y: int) -> None:
    rng = np.random.default_rng(n_x)
    x, y = rng.lognormal(size=n_x) + 0.8, rng.lognormal(size=n_y)
    expected = scipy.stats.permutation_test(
        (x, y),
        lambda a, b, axis: np.abs(a.mean(axis=axis) - b.mean(axis=axis)),
        vectorized=True,
        n_resamples=np.inf,
        alternative="greater",
    )
    assert permutation_test(x, y).p_value == pytest.approx(expected.pvalue, rel=1e-12)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.integers(0, 100))
def test_neither_the_order_of_seeds_nor_that_of_arms_matters(pooled: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = np.array(pooled[: len(pooled) // 2]), np.array(pooled[len(pooled) // 2 :])
    expected = permutation_test(x, y).p_value
    assert permutation_test(rng.permuted(x), rng.permuted(y)).p_value == expected
    assert permutation_test(y, x).p_value == expected
    assert 0 < expected <= 1


def test_twelve_against_twelve_are_counted_at_once_and_twenty_against_twenty_in_seconds() -> None:
    rng = np.random.default_rng(0)
    for seeds, limit in ((12, 2.0), (20, 20.0)):  # seconds; far from what an idle machine takes
        begun = time.process_time()
        found = permutation_test(rng.normal(size=seeds), rng.normal(size=seeds))
        assert time.process_time() - begun < limit
        assert found.exact
        assert found.arrangements == math.comb(2 * seeds, seeds)
        assert found.p_value * found.arrangements == pytest.approx(round(found.p_value * found.arrangements))


def test_more_seeds_than_can_be_counted_are_drawn_at_random() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=30), rng.normal(size=30) + 5
    with pytest.raises(RequestError, match="60 seeds are too many to count every arrangement; pass a generator as rng"):
        permutation_test(x, y)
    found = permutation_test(x, y, np.random.default_rng(6), resamples=999)
    assert found == (1 / 1000, False, 999)  # never 0, however far apart the arms are
    assert permutation_test(x, y, np.random.default_rng(6), resamples=999) == found
    assert permutation_test(np.ones(30), np.ones(30), rng, resamples=99).p_value == 1.0
    with pytest.raises(RequestError, match="resamples is 0"):
        permutation_test(x, y, rng, resamples=0)


def test_random_arrangements_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    x, y = rng.lognormal(size=8), rng.lognormal(size=11) + 0.5
    exact = permutation_test(x, y)
    monkeypatch.setattr(significance, "EXACT_SEEDS", 0)
    drawn = permutation_test(x, y, rng, resamples=20_000)
    assert exact.exact
    assert not drawn.exact
    assert 0.05 < exact.p_value < 0.95
    assert drawn.p_value == pytest.approx(exact.p_value, abs=4 * math.sqrt(0.25 / 20_000))


def test_a_test_refuses_what_is_no_game() -> None:
    with pytest.raises(RequestError, match=r"y\[1\] is nan"):
        permutation_test([1.0], [1.0, math.nan])
    with pytest.raises(RequestError, match=r"x has the shape \(1, 2\); give one game's scores, one a seed"):
        permutation_test([[1.0, 2.0]], [1.0])
    with pytest.raises(RequestError, match="x is empty"):
        permutation_test([], [1.0])


def false_positives(seeds: int, samples: int, alpha: float = 0.05) -> tuple[float, float]:
    """Shares of A/A comparisons of nine log-normal games: games with p <= alpha; any game after Holm's correction."""
    rng = np.random.default_rng(seeds)
    single, corrected = 0.0, 0.0
    for _ in range(samples):
        x, y = rng.lognormal(size=(2, seeds, 9))
        p_values = [permutation_test(x[:, game], y[:, game]).p_value for game in range(9)]
        single += sum(p <= alpha for p in p_values) / 9
        corrected += bool((holm(p_values) <= alpha).any())
    return single / samples, corrected / samples


def test_equal_arms_are_told_apart_no_more_often_than_stated() -> None:
    single, corrected = false_positives(10, 150)
    assert single <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 1350)
    assert single >= 0.05 - 4 * math.sqrt(0.05 * 0.95 / 1350)  # and the level is used up
    assert corrected <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 150)


@pytest.mark.slow
def test_equal_arms_are_told_apart_no_more_often_than_stated_by_many_samples() -> None:
    single, corrected = false_positives(10, 1000)
    assert single == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 9000))
    assert 0.02 < corrected <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert false_positives(5, 500)[1] == 0


# ---------------------------------------------------------------------------------------------- many tests


def test_holms_correction_by_hand() -> None:
    # 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1, which may not be less than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]).tolist() == [1.0, 1.0]
    assert holm([0.02]).tolist() == [0.02]
    assert holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 100))
def test_a_corrected_p_value_is_between_its_own_and_bonferronis(p_values: list[float], seed: int) -> None:
    values = np.array(p_values)
    adjusted = holm(values)
    assert (adjusted >= values).all()
    assert (adjusted <= np.minimum(values * len(values), 1)).all()
    assert (np.diff(adjusted[np.argsort(values)]) >= 0).all()
    order = np.random.default_rng(seed).permutation(len(values))
    assert holm(values[order]).tolist() == adjusted[order].tolist()


@pytest.mark.parametrize("p_values", [[1.1], [-0.1, 0.5], [[0.1, 0.2]]])
def test_what_is_no_list_of_p_values_is_not_corrected(p_values: list[float]) -> None:
    with pytest.raises(RequestError, match="must be a list of numbers from 0 to 1"):
        holm(p_values)
    with pytest.raises(RequestError, match=r"p_values\[0\] is nan"):
        holm([math.nan])


# ----------------------------------------------------------------------------------- what seeds can show


@pytest.mark.parametrize(("n_x", "n_y"), [(1, 1), (2, 2), (5, 5), (3, 6), (6, 1), (10, 10)])
def test_the_smallest_p_value_is_that_of_arms_far_apart(n_x: int, n_y: int) -> None:
    found = permutation_test(np.arange(n_x) + 1000.0, np.arange(n_y)).p_value
    assert smallest_p_value(n_x, n_y) == pytest.approx(found)


@given(st.lists(st.floats(-10, 10), min_size=6, max_size=6), st.lists(st.floats(-10, 10), min_size=4, max_size=4))
def test_no_data_have_a_smaller_p_value(x: list[float], y: list[float]) -> None:
    assert permutation_test(x, y).p_value >= smallest_p_value(6, 4) * (1 - 1e-12)


def test_five_seeds_can_never_claim_one_of_nine_games() -> None:
    assert not can_claim(5, 5, 9)
    # Arms as far apart as can be, in every game:
    p_values = [permutation_test(np.arange(5) + 1000.0 * game, np.arange(5)).p_value for game in range(1, 10)]
    assert holm(p_values).min() > 0.05
    assert can_claim(5, 5, 1)
    assert can_claim(5, 5, 6)
    assert not can_claim(5, 5, 7)


def test_ten_seeds_can_claim_all_of_nine_games_and_six_are_enough() -> None:
    assert can_claim(10, 10, 9)
    assert can_claim(6, 6, 9)
    p_values = [permutation_test(np.arange(10) + 1000.0 * game, np.arange(10)).p_value for game in range(1, 10)]
    assert holm(p_values).max() <= 0.05
    assert not can_claim(10, 1, 9)
    assert not can_claim(1, 1, 1)


def share_found(effect: float, seeds: int, alpha: float, samples: int) -> float:
    """How often the permutation test finds an effect in normal scores."""
    rng = np.random.default_rng(seeds)
    x, y = rng.normal(size=(2, samples, seeds))
    return sum(permutation_test(a + effect, b).p_value <= alpha for a, b in zip(x, y, strict=True)) / samples


@pytest.mark.parametrize(("seeds", "tests", "power"), [(5, 1, 0.8), (10, 1, 0.8), (10, 9, 0.5), (7, 9, 0.8)])
def test_the_smallest_effect_is_found_as_often_as_asked(seeds: int, tests: int, power: float) -> None:
    effect = smallest_effect(seeds, seeds, alpha=0.05 / tests, power=power)
    assert share_found(effect, seeds, 0.05 / tests, 800) == pytest.approx(power, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "tests"), [(5, 1), (6, 9), (8, 1), (8, 9), (10, 9)])
def test_the_smallest_effect_is_found_as_often_as_asked_by_many_samples(seeds: int, tests: int) -> None:
    effect = smallest_effect(seeds, seeds, alpha=0.05 / tests)
    assert share_found(effect, seeds, 0.05 / tests, 3000) == pytest.approx(0.79, abs=0.04)


def test_more_seeds_see_smaller_effects_and_too_few_see_none() -> None:
    effects = [smallest_effect(seeds, seeds) for seeds in range(2, 30)]
    assert effects[:2] == [math.inf, math.inf]  # 2 of 20 arrangements is 0.1
    assert all(np.diff(effects[2:]) < 0)
    assert smallest_effect(5, 5, alpha=0.05 / 9) == math.inf
    assert smallest_effect(10, 10, power=0.9) > smallest_effect(10, 10, power=0.8)
    assert smallest_effect(10, 10, alpha=0.5, power=0.4) == 0.0  # found without any effect
    # Many seeds: the normal approximation, (1.96 + 0.84) sqrt(2 / n).
    assert smallest_effect(400, 400) == pytest.approx(2.8016 * math.sqrt(2 / 400), rel=3e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: smallest_p_value(0, 5), "arms of 0 and 5 seeds cannot be compared"),
        (lambda: can_claim(5, 5, 0), "n_tests is 0"),
        (lambda: can_claim(5, 5, 9, alpha=0.0), "alpha is 0.0"),
        (lambda: smallest_effect(5, 5, alpha=1.0), "alpha is 1.0"),
        (lambda: smallest_effect(5, 5, power=1.0), "power is 1.0"),
        (lambda: smallest_effect(0, 5), "arms of 0 and 5"),
    ],
)
def test_a_question_without_sense_is_refused(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(RequestError, match=words):
        call()


@pytest.mark.parametrize("sizes", [(21, 21), (30, 12), (600, 600)])
def test_the_least_p_value_of_random_arrangements_is_one_of_them_and_itself(sizes: tuple[int, int]) -> None:
    x, y = np.arange(sizes[0]) + 1000.0, np.arange(sizes[1]) * 1.0
    found = permutation_test(x, y, np.random.default_rng(0))
    assert found.p_value == significance.smallest_p_value(*sizes) == 1e-5
    assert 0 < significance.smallest_effect(*sizes) < 1


def test_few_arrangements_stay_few_however_many_are_drawn() -> None:
    assert significance.smallest_p_value(1, 40) == 1 / 41
    assert significance.smallest_p_value(20, 20) == 2 / math.comb(40, 20)

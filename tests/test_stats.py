"""Intervals: degenerate data, symmetries, cost, and how often they hold the truth."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from coordrl import stats
from coordrl.errors import RequestError
from coordrl.stats import (
    Interval,
    Statistic,
    bootstrap,
    bootstrap_difference,
    bootstrap_improvement,
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    profile_band,
)

Scores = NDArray[np.float64]

STATISTICS = [mean, iqm, optimality_gap, median]

matrices = st.tuples(st.integers(2, 6), st.integers(1, 4)).flatmap(
    lambda shape: hnp.arrays(np.float64, shape, elements=st.integers(-3, 3).map(float))
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def test_the_module_offers_everything_a_report_needs() -> None:
    assert all(hasattr(stats, name) for name in stats.__all__)


def test_statistics_need_nothing_that_learns() -> None:
    code = (
        "import sys, coordrl.stats; "
        "print({'torch', 'stable_baselines3', 'gymnasium', 'ale_py', 'matplotlib', 'scipy.stats'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


# ------------------------------------------------------------------------------------------------ by hand


def test_the_interval_of_two_seeds_by_hand() -> None:
    # Of 0 and 1 the mean is 0.5 and its standard error 0.5. A resample is 0 1 (or 1 0), which is no deviation, or 0 0
    # or 1 1, whose standard error of 0 counts as a tenth of 0.5: 0.5 / 0.05 = 10 standard errors, each in a
    # quarter of the resamples. So the quantiles are -10 and 10.
    found = bootstrap([[0.0], [1.0]], mean, rng())
    assert found[:3] == pytest.approx((0.5, 0.5 - 10 * 0.5, 0.5 + 10 * 0.5))
    assert found.method == "studentised bootstrap, 50,000 resamples within games"


def test_the_interval_of_many_normal_seeds_is_students() -> None:
    scores = rng(1).normal(5, 2, (60, 1))
    expected = scipy.stats.t.interval(0.95, 59, scores.mean(), scipy.stats.sem(scores[:, 0]))
    width = expected[1] - expected[0]
    assert ends(bootstrap(scores, mean, rng())) == pytest.approx(expected, abs=0.08 * width)
    other = rng(2).normal(4, 1, (50, 1))
    welch = scipy.stats.ttest_ind(scores[:, 0], other[:, 0], equal_var=False).confidence_interval(0.95)
    width = welch.high - welch.low
    assert ends(bootstrap_difference(scores, other, mean, rng())) == pytest.approx(tuple(welch), abs=0.05 * width)


def test_a_resample_is_measured_in_the_standard_error_of_its_statistic() -> None:
    scores = rng(4).lognormal(size=(12, 1))
    assert math.sqrt(stats._squared_error(scores)) == pytest.approx(scipy.stats.sem(scores[:, 0]))
    expected = scipy.stats.mstats.trimmed_stde(scores[:, 0], limits=(0.25, 0.25))
    assert math.sqrt(stats._squared_error(stats._influence_of_iqm(scores))) == pytest.approx(float(expected))
    games = rng(4).lognormal(size=(12, 3))
    assert stats._squared_error(games) == pytest.approx((scipy.stats.sem(games) ** 2).sum() / 9)


def test_games_are_resampled_apart() -> None:
    # One game is ten times as high as the other, but seeds within each hardly differ: drawn from all runs alike, the
    # interval would span both.
    scores = np.array([[1.0, 10.0], [1.1, 10.1], [0.9, 10.2], [1.0, 9.9], [1.2, 10.0]])
    low, high = ends(bootstrap(scores, mean, rng()))
    assert 5.4 < low < scores.mean() < high < 5.7


def test_a_statistic_without_a_standard_error_gets_scipys_percentiles_at_a_raised_level() -> None:
    scores = rng(3).lognormal(size=(12, 1))
    tail = scipy.stats.norm.cdf(-math.sqrt(12 / 11) * scipy.stats.t.ppf(0.975, 11))

    def largest(stack: Scores) -> Scores:
        value: Scores = stack.std(axis=(-2, -1))
        return value

    expected = scipy.stats.bootstrap(
        (scores[:, 0],),
        np.std,
        vectorized=True,
        method="percentile",
        confidence_level=1 - 2 * tail,
        n_resamples=40_000,
        rng=rng(4),
    ).confidence_interval
    found = bootstrap(scores, largest, rng(5))
    assert ends(found) == pytest.approx(tuple(expected), rel=0.05)
    assert found.method.startswith("expanded percentile bootstrap")


def test_a_gap_to_another_target_is_any_other_statistic() -> None:
    scores = rng(3).lognormal(size=(8, 3))
    found = bootstrap(scores, partial(optimality_gap, target=2.0), rng())
    assert found.estimate == optimality_gap(scores, 2.0)
    assert found.method.startswith("expanded percentile")
    assert bootstrap(scores, optimality_gap, rng()).method.startswith("studentised")
    # Runs that all stay below the target: the gap is 1 less the mean, and its interval is the mirror image.
    low, high = ends(bootstrap(scores / 100, optimality_gap, rng()))
    assert (1 - high, 1 - low) == pytest.approx(ends(bootstrap(scores / 100, mean, rng())))


# ------------------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize("statistic", STATISTICS)
@given(matrices, st.integers(0, 100))
@settings(max_examples=25)
def test_the_order_of_seeds_changes_no_digit_of_an_interval(statistic: Statistic, scores: Scores, seed: int) -> None:
    x, y = rng(seed).permuted(scores, axis=0), rng(seed + 1).permuted(scores, axis=0)
    few = 200
    assert bootstrap(x, statistic, rng(), resamples=few) == bootstrap(y, statistic, rng(), resamples=few)
    z = scores[:, ::-1] + 0.5
    assert bootstrap_difference(x, z, statistic, rng(), resamples=few) == bootstrap_difference(
        y, z, statistic, rng(), resamples=few
    )
    assert bootstrap_improvement(x, z, rng(), resamples=few) == bootstrap_improvement(y, z, rng(), resamples=few)
    bands = [np.array(profile_band(one, [-1, 0, 1.5], rng(), resamples=few)) for one in (x, y)]
    assert (bands[0] == bands[1]).all()


@given(matrices, matrices, st.integers(0, 100))
@settings(max_examples=60)
def test_an_interval_holds_its_estimate_and_is_finite_whatever_the_ties(x: Scores, y: Scores, seed: int) -> None:
    for statistic in STATISTICS:
        found = bootstrap(x, statistic, rng(seed), resamples=60)
        assert -math.inf < found.low <= found.estimate <= found.high < math.inf
        assert found.estimate == statistic(x)
    games = min(x.shape[1], y.shape[1])
    x, y = x[:, :games], y[:, :games]
    for statistic in STATISTICS:
        found = bootstrap_difference(x, y, statistic, rng(seed), resamples=60)
        assert -math.inf < found.low <= found.estimate <= found.high < math.inf
        assert found.estimate == pytest.approx(float(statistic(x) - statistic(y)), abs=1e-12)
    found = bootstrap_improvement(x, y, rng(seed), resamples=60)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.low < found.high
    assert found.estimate == pytest.approx(float(probability_of_improvement(x, y)))
    low, high = profile_band(x, [-1.0, 0.0, 0.0, 7.0], rng(seed), resamples=60)
    profile = performance_profile(x, [-1.0, 0.0, 0.0, 7.0])
    assert (low >= 0).all()
    assert (low <= profile + 1e-12).all()
    assert (profile <= high + 1e-12).all()
    assert (high <= 1).all()
    assert (low < high).all()
    assert (low[1], high[1]) == (low[2], high[2])


@pytest.mark.parametrize("statistic", [mean, iqm, median])
@given(matrices, st.sampled_from([0.5, 4.0, 1024.0]), st.integers(-64, 64))
@settings(max_examples=25)
def test_an_interval_moves_with_its_unit(statistic: Statistic, scores: Scores, factor: float, shift: int) -> None:
    found = bootstrap(scores * factor + shift, statistic, rng(), resamples=100)
    expected = bootstrap(scores, statistic, rng(), resamples=100)
    assert found[:3] == pytest.approx([one * factor + shift for one in expected[:3]], abs=1e-6)
    difference = bootstrap_difference(scores * factor + shift, scores * factor, statistic, rng(), resamples=100)
    assert difference.estimate == pytest.approx(shift, abs=1e-9)
    assert difference.estimate - difference.low == pytest.approx(difference.high - difference.estimate, abs=1e-6) or (
        "percentile" in difference.method
    )


def test_arms_exchanged_exchange_the_ends() -> None:
    x, y = rng(1).lognormal(size=(8, 4)), rng(2).lognormal(size=(6, 4)) * 2
    for statistic in (mean, iqm, median):
        forth, back = (bootstrap_difference(a, b, statistic, rng()) for a, b in ((x, y), (y, x)))
        assert (-back.high, -back.low) == pytest.approx(ends(forth), abs=0.03 * (forth.high - forth.low))
    forth, back = bootstrap_improvement(x, y, rng()), bootstrap_improvement(y, x, rng())
    assert (1 - back.high, 1 - back.low) == pytest.approx(ends(forth), abs=0.01)


def test_more_confidence_makes_a_wider_interval_and_more_seeds_a_narrower() -> None:
    scores = rng(6).lognormal(size=(10, 9))
    widths = [
        np.ptp(ends(bootstrap(scores, iqm, rng(), level=level, resamples=4000))) for level in (0.5, 0.8, 0.95, 0.99)
    ]
    assert sorted(widths) == widths
    many = rng(6).lognormal(size=(160, 9))
    assert np.ptp(ends(bootstrap(many, iqm, rng(), resamples=4000))) < 0.5 * widths[2]


def test_the_generator_alone_decides_the_resamples() -> None:
    scores = rng(7).lognormal(size=(5, 3))
    np.random.seed(1)  # the global state, which must not matter
    first = bootstrap(scores, mean, rng(3))
    np.random.seed(2)
    assert bootstrap(scores, mean, rng(3)) == first
    assert bootstrap(scores, mean, rng(4)) != first
    assert ends(bootstrap(scores, mean, rng(4))) == pytest.approx(ends(first), rel=0.05)


# ---------------------------------------------------------------------------------------------- degenerate


def test_seeds_that_do_not_differ_have_an_interval_without_width_that_says_so() -> None:
    scores = np.tile([0.1, 0.7, 21.0], (5, 1))
    for statistic in STATISTICS:
        value = float(statistic(scores))
        assert bootstrap(scores, statistic, rng()) == (value, value, value, "none: the seeds do not differ")
        found = bootstrap_difference(scores, scores - 1, statistic, rng())
        assert found.low == found.estimate == found.high
        assert found.method == "none: the seeds do not differ"
    one_sided = bootstrap_difference(scores, scores + rng().normal(size=scores.shape), mean, rng())
    assert one_sided.low < one_sided.estimate < one_sided.high


def test_an_iqm_whose_middle_half_is_one_value_gets_percentiles() -> None:
    scores = np.array([[21.0, 21.0], [21.0, 21.0], [21.0, 21.0], [20.0, 21.0], [3.0, 21.0]])
    found = bootstrap(scores, iqm, rng())
    assert found.estimate == 21.0
    assert found.method.startswith("expanded percentile")
    assert found.low < found.high == 21.0
    low, high = ends(bootstrap_difference(scores, scores, iqm, rng()))
    assert low < 0 < high


def test_one_seed_has_no_interval() -> None:
    one, two = [[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]
    for call in (
        lambda: bootstrap(one, mean, rng()),
        lambda: profile_band(one, [0.0], rng()),
    ):
        with pytest.raises(RequestError, match="scores has one seed; an interval needs two at least: run more seeds"):
            call()
    with pytest.raises(RequestError, match="y has one seed"):
        bootstrap_difference(two, one, mean, rng())
    with pytest.raises(RequestError, match="x has one seed"):
        bootstrap_improvement(one, two, rng())


def test_arms_that_do_not_overlap_may_yet() -> None:
    # Every resample of such arms has x above y; the interval must not follow it down to no width.
    x, y = rng(1).normal(100, 1, (5, 1)), rng(2).normal(0, 1, (5, 1))
    found = bootstrap_improvement(x, y, rng())
    assert found.estimate == found.high == 1.0
    assert 0.5 < found.low < 0.8
    more = bootstrap_improvement(x + np.zeros(9), y + np.zeros(9), rng())
    assert found.low < more.low < 0.95
    low, high = profile_band(x, [0.0, 1000.0], rng())
    exact = scipy.stats.binomtest(5, 5).proportion_ci(0.95, "exact")  # of five runs above and none below
    assert low == pytest.approx([exact.low, 0.0], abs=0.03)
    assert high == pytest.approx([1.0, 1 - exact.low], abs=0.03)


def test_a_missing_score_is_refused_with_its_place() -> None:
    scores = np.ones((3, 2))
    bad = scores.copy()
    bad[1, 0] = math.nan
    calls: list[tuple[str, Callable[[], object]]] = [
        ("scores", lambda: bootstrap(bad, mean, rng())),
        ("x", lambda: bootstrap_difference(bad, scores, mean, rng())),
        ("y", lambda: bootstrap_difference(scores, bad, mean, rng())),
        ("y", lambda: bootstrap_improvement(scores, bad, rng())),
        ("scores", lambda: profile_band(bad, [0.0], rng())),
    ]
    for name, call in calls:
        with pytest.raises(RequestError, match=rf"^{name}\[1, 0\] is nan; a score must be a finite number"):
            call()
    with pytest.raises(RequestError, match=r"thresholds\[0\] is nan"):
        profile_band(scores, [math.nan], rng())


def test_a_request_without_sense_is_refused() -> None:
    scores = rng().lognormal(size=(5, 2))
    with pytest.raises(RequestError, match="level is 95"):
        bootstrap(scores, mean, rng(), level=95)
    with pytest.raises(RequestError, match="resamples is 10; an interval of level 0.95 needs 40 at least"):
        bootstrap_difference(scores, scores, mean, rng(), resamples=10)
    with pytest.raises(RequestError, match="x has 2 games and y 1"):
        bootstrap_difference(scores, scores[:, :1], mean, rng())
    with pytest.raises(RequestError, match="x has 1 games and y 2"):
        bootstrap_improvement(scores[:, :1], scores, rng())


# --------------------------------------------------------------------------------------------------- cost


def test_fifty_thousand_resamples_of_ten_seeds_and_nine_games_take_seconds_and_little_memory() -> None:
    x, y = rng(1).lognormal(size=(10, 9)), rng(2).lognormal(size=(10, 9))
    calls: list[Callable[[], object]] = [
        lambda: bootstrap(x, mean, rng()),
        lambda: bootstrap(x, iqm, rng()),
        lambda: bootstrap_difference(x, y, iqm, rng()),
        lambda: bootstrap_improvement(x, y, rng()),
        lambda: profile_band(x, np.linspace(0, 5, 200), rng()),
    ]
    for call in calls:
        tracemalloc.start()
        begun = time.process_time()
        call()
        assert time.process_time() - begun < 20  # seconds; about one on an idle core
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 96 * 2**20  # the 4.5 million numbers of all resamples, with their copies, would be far more


# ----------------------------------------------------------------------------------------------- coverage


def log_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Scores:
    return generator.lognormal(size=shape)


def take_off(generator: np.random.Generator, shape: tuple[int, ...]) -> Scores:
    off = generator.random(shape) < 0.3
    return np.where(off, generator.normal(1, 0.15, shape), generator.normal(0.1, 0.03, shape))


def coverage(
    draw: Callable[[np.random.Generator, tuple[int, ...]], Scores],
    statistic: Statistic,
    shape: tuple[int, int],
    samples: int,
    *,
    two_arms: bool = False,
) -> float:
    """The share of intervals that hold the truth; of two arms, the other is half as high again."""
    generator = rng(11)
    scales = np.geomspace(0.2, 5, shape[1]) if shape[1] > 1 else np.ones(1)
    truth = float(statistic(draw(rng(12), (400_000, shape[1])) * scales))
    held = 0
    for _ in range(samples):
        scores = draw(generator, shape) * scales
        if two_arms:
            other = draw(generator, shape) * scales * 1.5
            found = bootstrap_difference(other, scores, statistic, generator, resamples=399)
            held += found.low <= truth * 0.5 <= found.high
        else:
            found = bootstrap(scores, statistic, generator, resamples=399)
            held += found.low <= truth <= found.high
    return held / samples


def error(samples: int) -> float:
    """Three standard errors of a share about 0.93."""
    return 3 * math.sqrt(0.93 * 0.07 / samples)


def test_ten_skewed_seeds_are_covered_far_better_than_by_percentiles() -> None:
    generator, truth, samples = rng(13), math.exp(0.5), 500
    held, by_percentiles = 0, 0
    for _ in range(samples):
        scores = generator.lognormal(size=(10, 1))
        found = bootstrap(scores, mean, generator, resamples=399)
        held += found.low <= truth <= found.high
        resampled = scores[generator.integers(0, 10, (399, 10)), 0].mean(axis=1)
        low, high = np.quantile(resampled, [0.025, 0.975])
        by_percentiles += low <= truth <= high
    assert by_percentiles / samples < 0.80 + error(samples)
    assert held / samples > 0.915 - error(samples)


@pytest.mark.parametrize(
    ("statistic", "two_arms"), [(mean, False), (mean, True), (iqm, False), (iqm, True)], ids=lambda one: str(one)[:14]
)
def test_ten_skewed_seeds_of_nine_games_are_covered_nearly_as_stated(statistic: Statistic, two_arms: bool) -> None:
    assert 0.93 - error(200) < coverage(log_normal, statistic, (10, 9), 200, two_arms=two_arms)


@pytest.mark.slow
@pytest.mark.parametrize("draw", [log_normal, take_off])
@pytest.mark.parametrize("statistic", [mean, iqm])
@pytest.mark.parametrize("seeds", [5, 20])
@pytest.mark.parametrize("two_arms", [False, True])
def test_skewed_seeds_of_nine_games_are_covered_nearly_as_stated(
    draw: Callable[[np.random.Generator, tuple[int, ...]], Scores], statistic: Statistic, seeds: int, two_arms: bool
) -> None:
    found = coverage(draw, statistic, (seeds, 9), 300, two_arms=two_arms)
    assert found > (0.91 if seeds == 5 else 0.93) - error(300)


def test_equal_arms_rarely_differ() -> None:
    generator, samples = rng(14), 150
    false = {"mean": 0, "iqm": 0, "improvement": 0}
    for _ in range(samples):
        x, y = generator.lognormal(size=(2, 10, 9))
        for name, statistic in (("mean", mean), ("iqm", iqm)):
            found = bootstrap_difference(x, y, statistic, generator, resamples=399)
            false[name] += not found.low <= 0 <= found.high
        found = bootstrap_improvement(x, y, generator, resamples=399)
        false["improvement"] += not found.low <= 0.5 <= found.high
    assert max(false.values()) / samples < 0.05 + 3 * math.sqrt(0.05 * 0.95 / samples)
    assert min(false.values()) > 0


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_the_probability_of_improvement_is_covered_where_arms_overlap_and_where_they_hardly_do(shift: float) -> None:
    truth = scipy.stats.norm.cdf(shift / math.sqrt(2))
    generator, held = rng(15), 0
    for _ in range(200):
        x, y = generator.normal(size=(2, 5, 9))
        found = bootstrap_improvement(x + shift, y, generator, resamples=399)
        held += found.low <= truth <= found.high
    assert held / 200 > 0.95 - error(200)

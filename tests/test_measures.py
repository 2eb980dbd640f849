"""Measures: against matrices computed by hand, scipy, and the properties that each must have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordrl import measures
from coordrl.errors import RequestError
from coordrl.measures import (
    Scores,
    area_under_curve,
    check_scores,
    iqm,
    mean,
    median,
    normalise,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

# Four seeds, two games.
HAND = np.array([[1.0, 40.0], [3.0, 20.0], [2.0, 10.0], [4.0, 33.0]])

MEASURES = [mean, median, iqm, optimality_gap]


def matrices(seeds: st.SearchStrategy[int], games: st.SearchStrategy[int]) -> st.SearchStrategy[Scores]:
    """Matrices of scores in quarters, so that ties are common and sums are exact."""
    shapes = st.tuples(seeds, games)
    return shapes.flatmap(lambda shape: hnp.arrays(np.int64, shape, elements=st.integers(-400, 400))).map(
        lambda whole: whole / 4
    )


any_matrix = matrices(st.integers(1, 8), st.integers(1, 5))


def shuffled(scores: Scores, seed: int) -> Scores:
    """The same scores with the seeds of each game in another order."""
    return np.random.default_rng(seed).permuted(scores, axis=0)


# ------------------------------------------------------------------------------------------------------ by hand


def test_the_mean_is_that_of_all_runs() -> None:
    assert mean(HAND) == (10 + 103) / 8


def test_the_median_is_that_of_the_games_means() -> None:
    assert median(HAND) == (10 / 4 + 103 / 4) / 2
    assert median([[1.0, 100.0, 7.0], [3.0, 200.0, 9.0]]) == 8.0


def test_the_interquartile_mean_cuts_a_quarter_of_all_runs_at_each_end() -> None:
    assert iqm(HAND) == (3 + 4 + 10 + 20) / 4  # 1 2 | 3 4 10 20 | 33 40
    assert iqm([[5.0], [1.0], [100.0], [2.0], [3.0]]) == (2 + 3 + 5) / 3
    assert iqm([[1.0], [2.0], [6.0]]) == 3.0  # a quarter of three runs is none


def test_the_optimality_gap_counts_a_run_above_the_target_as_at_it() -> None:
    assert optimality_gap(HAND, 5.0) == 5 - (1 + 2 + 3 + 4 + 4 * 5) / 8
    assert optimality_gap([[0.5, 2.0]]) == 0.25


def test_an_improvement_counts_pairs_won_and_half_of_those_drawn() -> None:
    assert probability_of_improvement([[1.0], [3.0]], [[2.0], [3.0]]) == (0 + 0 + 1 + 0.5) / 4
    x, y = np.array([[1.0, 9.0], [3.0, 9.0]]), np.array([[2.0, 1.0], [3.0, 2.0], [0.0, 3.0]])
    assert probability_of_improvement(x, y) == pytest.approx(((1 + 2.5) / 6 + 1) / 2)


def test_the_profile_is_the_share_of_runs_above_each_threshold() -> None:
    assert performance_profile(HAND, [0, 1, 3.5, 40, 41]).tolist() == [1.0, 7 / 8, 5 / 8, 0.0, 0.0]


def test_a_human_scores_1_and_random_play_0() -> None:
    random, human = [10.0, -20.0], [110.0, 20.0]
    assert normalise([random, human, [60.0, 40.0]], random, human).tolist() == [[0, 0], [1, 1], [0.5, 1.5]]
    # A game in which the human is worse than random play counts the other way round.
    assert normalise([[5.0]], [10.0], [0.0]).tolist() == [[0.5]]


def test_the_area_under_a_curve_is_its_mean_height() -> None:
    # Held at 0 to step 10, a line to 10 at step 30, held to step 40.
    assert area_under_curve([10, 30], [0, 10], 40) == (0 * 10 + 5 * 20 + 10 * 10) / 40
    assert area_under_curve([0, 100], [0, 10], 50) == 2.5  # cut at the end
    assert area_under_curve([100], [7], 50) == 7.0
    # Two games that finish at one step count as their mean, in whichever order.
    assert area_under_curve([0, 10, 10, 20], [0, 4, 8, 6], 20) == (3 * 10 + 6 * 10) / 20
    assert area_under_curve([0, 10, 10, 20], [0, 8, 4, 6], 20) == 4.5


# --------------------------------------------------------------------------------------------- against scipy


@pytest.mark.parametrize("shape", [(3, 1), (5, 1), (5, 9), (10, 9), (7, 4)])
def test_the_interquartile_mean_is_scipys_trimmed_mean(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(1).lognormal(size=shape)
    assert iqm(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25, axis=None), rel=1e-13)


@pytest.mark.parametrize(("n_x", "n_y", "games"), [(5, 5, 1), (10, 10, 9), (3, 8, 4)])
def test_an_improvement_is_mann_and_whitneys_u_over_the_pairs(n_x: int, n_y: int, games: int) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 6, (n_x, games)), rng.integers(0, 6, (n_y, games))
    expected = np.mean(
        [scipy.stats.mannwhitneyu(x[:, game], y[:, game]).statistic / (n_x * n_y) for game in range(games)]
    )
    assert probability_of_improvement(x, y) == pytest.approx(expected, rel=1e-13)


# ------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("measure", MEASURES)
def test_a_stack_of_matrices_is_measured_one_by_one(measure: measures.Scores) -> None:
    stack = np.random.default_rng(3).lognormal(size=(2, 3, 6, 4))
    assert measure(stack).shape == (2, 3)
    assert measure(stack)[1, 2] == pytest.approx(measure(stack[1, 2]))
    other = stack[..., :5, :] * 2
    assert probability_of_improvement(stack, other)[1, 2] == probability_of_improvement(stack[1, 2], other[1, 2])


@pytest.mark.parametrize("measure", MEASURES)
@given(any_matrix, st.integers(0, 1000))
def test_the_order_of_seeds_does_not_matter(measure: measures.Scores, scores: Scores, seed: int) -> None:
    assert measure(shuffled(scores, seed)) == measure(scores)
    assert probability_of_improvement(shuffled(scores, seed), scores[:1]) == pytest.approx(
        probability_of_improvement(scores, scores[:1])
    )
    profile = performance_profile(shuffled(scores, seed), [-1, 0, 7.25])
    assert profile.tolist() == performance_profile(scores, [-1, 0, 7.25]).tolist()


@pytest.mark.parametrize("measure", [mean, median, iqm])
@given(any_matrix, st.integers(1, 8), st.integers(-50, 50))
def test_a_measure_moves_with_its_unit(measure: measures.Scores, scores: Scores, factor: int, shift: int) -> None:
    assert measure(scores * factor + shift) == pytest.approx(measure(scores) * factor + shift, abs=1e-9)
    assert scores.min() <= measure(scores) <= scores.max()


@given(any_matrix)
def test_what_one_arm_wins_the_other_loses(scores: Scores) -> None:
    other = np.flip(scores, axis=1)
    won, lost = probability_of_improvement(scores, other), probability_of_improvement(other, scores)
    assert won + lost == pytest.approx(1)
    assert 0 <= won <= 1
    assert probability_of_improvement(scores, scores) == pytest.approx(0.5)
    assert probability_of_improvement(scores + 1000, scores) == 1


@given(any_matrix)
def test_a_profile_falls_from_1_to_0(scores: Scores) -> None:
    profile = performance_profile(scores, [scores.min() - 1, *np.unique(scores)])
    assert profile[0] == 1
    assert profile[-1] == 0
    assert (np.diff(profile) < 0).all()


@given(any_matrix, st.integers(-20, 20))
def test_an_optimality_gap_is_0_where_every_run_reaches_the_target(scores: Scores, target: int) -> None:
    gap = optimality_gap(scores, target)
    assert gap >= 0
    assert (gap == 0) == (scores.min() >= target)
    assert optimality_gap(scores + 1, target) <= gap


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(-50, 50)), min_size=1, max_size=20),
    st.integers(1, 1200),
    st.integers(0, 1200),
)
def test_a_point_on_the_curve_changes_no_area(points: list[tuple[int, int]], end: int, extra: int) -> None:
    points = sorted(dict(points).items())
    steps, values = [step for step, _ in points], [value for _, value in points]
    area = area_under_curve(steps, values, end)
    assert min(values) - 1e-9 <= area <= max(values) + 1e-9
    if extra not in steps:
        more = sorted([*points, (extra, float(np.interp(extra, steps, values)))])
        assert area_under_curve([step for step, _ in more], [value for _, value in more], end) == pytest.approx(
            area, abs=1e-9
        )


# --------------------------------------------------------------------------------------------------- refusals


def test_a_missing_score_is_refused_with_its_place() -> None:
    scores = HAND.copy()
    scores[2, 1] = math.nan
    with pytest.raises(RequestError, match=r"^scores\[2, 1\] is nan; a score must be a finite number"):
        check_scores(scores)
    with pytest.raises(RequestError, match=r"^coord\[2, 1\] is nan"):
        check_scores(scores, "coord")
    for measure in MEASURES:  # sorted to an end, a NaN would be cut off by the IQM and go unseen
        with pytest.raises(RequestError, match=r"\[2, 1\] is nan"):
            measure(scores)
    with pytest.raises(RequestError, match=r"^y\[2, 1\] is nan"):
        probability_of_improvement(HAND, scores)
    with pytest.raises(RequestError, match=r"^scores\[0, 2, 1\] is nan"):
        mean(scores[None])


def test_many_missing_scores_are_counted() -> None:
    scores = np.full((4, 2), np.inf)
    with pytest.raises(RequestError, match=r"scores\[0, 0\] is inf, .*scores\[2, 0\] is inf and 3 more"):
        check_scores(scores)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([1.0, 2.0], r"has the shape \(2,\); give a matrix, a row for each seed and a column a game"),
        (3.0, r"has the shape \(\)"),
        (np.zeros((2, 2, 2)), r"has the shape \(2, 2, 2\)"),
        (np.zeros((0, 9)), r"is empty, of shape \(0, 9\)"),
        ([[1.0, 2.0], [3.0]], "is no array of numbers"),
        ([["much", "little"]], "is no array of numbers"),
        ([[1.0, None]], r"scores\[0, 1\] is nan"),
    ],
)
def test_what_is_no_matrix_is_refused(scores: object, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check_scores(scores)


def test_arms_on_different_games_are_refused() -> None:
    with pytest.raises(RequestError, match="x has 2 games and y 1; compare arms on the same games"):
        probability_of_improvement(HAND, HAND[:, :1])


def test_a_game_in_which_the_human_is_no_better_than_random_play_cannot_be_normalised() -> None:
    with pytest.raises(RequestError, match="game 1 has the human score 7, equal to random play's"):
        normalise(HAND, [0.0, 7.0], [1.0, 7.0])
    with pytest.raises(RequestError, match=r"human has the shape \(1,\); give one score for each of 2 games"):
        normalise(HAND, [0.0, 7.0], [1.0])
    with pytest.raises(RequestError, match=r"random\[1\] is nan"):
        normalise(HAND, [0.0, math.nan], [1.0, 7.0])


@pytest.mark.parametrize(
    ("steps", "values", "end", "words"),
    [
        ([0, 1], [1.0], 5, "give one value a step"),
        ([1, 0], [1.0, 1.0], 5, "sort the points"),
        ([-1, 0], [1.0, 1.0], 5, "rise from 0"),
        ([0], [math.nan], 5, r"values\[0\] is nan"),
        ([], [], 5, "steps is empty"),
        ([0], [1.0], 0, "end is 0"),
        ([0], [1.0], math.inf, "end is inf"),
    ],
)
def test_what_is_no_curve_has_no_area(steps: list[float], values: list[float], end: float, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        area_under_curve(steps, values, end)


def test_thresholds_are_a_list() -> None:
    with pytest.raises(RequestError, match=r"thresholds has the shape \(1, 1\); give a list of numbers"):
        performance_profile(HAND, [[1.0]])

"""The sum tree: its sums, what it finds, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from coordrl.errors import RequestError
from coordrl.sumtree import SumTree


@given(st.integers(1, 70), st.lists(st.tuples(st.integers(0, 69), st.floats(0, 1e9)), max_size=60), st.randoms())
def test_it_holds_the_numbers_and_finds_where_the_running_sum_passes(
    size: int, sets: list[tuple[int, float]], rng: object
) -> None:
    tree, naive = SumTree(size), np.zeros(size)
    for place, value in sets:
        tree.set(np.array([place % size]), value)
        naive[place % size] = value
    tree.check()
    assert np.array_equal(tree.values, naive)
    assert tree.total == pytest.approx(naive.sum())
    if tree.total > 0:
        targets = np.linspace(0, tree.total * (1 - 1e-12), 50)
        found = tree.find(targets)
        assert (naive[found] > 0).all()
        before = np.concatenate([[0], np.cumsum(naive)])
        slack = 1e-9 * tree.total
        assert (before[found] <= targets + slack).all()
        assert (targets <= before[found + 1] + slack).all()


def test_of_a_place_that_comes_twice_the_last_number_counts() -> None:
    tree = SumTree(5)
    tree.set(np.array([1, 3, 1]), np.array([2.0, 4.0, 7.0]))
    assert tree.values.tolist() == [0, 7, 0, 4, 0]
    assert tree.total == 11


def test_filling_is_setting_all() -> None:
    values = np.random.default_rng(0).random(37)
    filled, set_ = SumTree(37), SumTree(37)
    filled.fill(values)
    for place in range(37):
        set_.set(np.array([place]), values[place])
    assert filled.total == set_.total
    filled.check()


def test_after_a_million_updates_the_sum_is_that_of_the_leaves_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(1000)
    for _ in range(2000):
        tree.set(rng.integers(0, 1000, 500), 10.0 ** rng.uniform(-8, 8, 500))
    tree.check()
    again = SumTree(1000)
    again.fill(tree.values.copy())
    assert again.total == tree.total
    tree.set(np.arange(1000), 0.0)
    assert tree.total == 0.0


def test_places_are_found_as_often_as_their_numbers_are_large() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 10, 64).astype(float)
    tree = SumTree(64)
    tree.fill(values)
    counts = np.bincount(tree.find(rng.random(200_000) * tree.total), minlength=64)
    assert (counts[values == 0] == 0).all()
    some = values > 0
    assert chisquare(counts[some], 200_000 * values[some] / values.sum()).pvalue > 1e-3


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_a_number_that_is_none_is_refused_and_nothing_changes(value: float) -> None:
    tree = SumTree(4)
    tree.set(np.array([2]), 3.0)
    with pytest.raises(RequestError, match="negative or not finite"):
        tree.set(np.array([1, 2]), np.array([1.0, value]))
    with pytest.raises(RequestError, match="no 4 numbers"):
        tree.fill(np.full(4, value))
    assert tree.values.tolist() == [0, 0, 3, 0]


def test_places_that_are_not_there_and_trees_of_nothing_are_refused() -> None:
    with pytest.raises(RequestError, match="size is 0"):
        SumTree(0)
    for place in (-1, 4):
        with pytest.raises(RequestError, match="there are 0 to 3"):
            SumTree(4).set(np.array([place]), 1.0)
    with pytest.raises(RequestError, match="every priority is 0"):
        SumTree(4).find(np.array([0.0]))

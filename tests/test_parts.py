"""A replay memory in parts: each is filled by itself, and batches are drawn from the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from coordrl.errors import CheckpointError, RequestError
from coordrl.replay import Draw, FrameReplayBuffer
from coordrl.segments import append, pack
from coordrl.sumtree import SumTree
from tests.test_replay import ACTIONS, IMAGES, Stream, same

EACH = 2  # environments of a part
ROWS = 20


def memory(n_envs: int = EACH, rows: int = ROWS, **changes: Any) -> FrameReplayBuffer:
    given = {"n_steps": 3, "priority_exponent": 0.6, **changes}
    return FrameReplayBuffer(rows * n_envs, IMAGES, ACTIONS, "cpu", n_envs, **given)


def fill_up(part: FrameReplayBuffer, seed: int, count: int) -> None:
    stream = Stream(EACH, seed)
    for _ in range(count):
        part.add(*stream.next())
    rows, envs = np.divmod(np.arange(part.size() * EACH), EACH)
    part.set_priorities(Draw(rows, envs, None), np.random.default_rng(seed).gamma(1.0, size=len(rows)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 45), min_size=1, max_size=5).filter(any), st.integers(1, 40), st.integers(0, 99))
def test_the_whole_gives_what_its_parts_give(counts: list[int], batch_size: int, seed: int) -> None:
    whole = memory(len(counts) * EACH)
    alone = [memory() for _ in counts]  # twins of the parts, each by itself
    for index, (part, count) in enumerate(zip(whole.split(len(counts)), counts, strict=True)):
        fill_up(part, seed + index, count)
        fill_up(alone[index], seed + index, count)
    np.random.seed(seed)
    draw = whole.draw(batch_size)
    batch = whole.fetch(draw)
    assert draw.probabilities is not None
    total = sum(one.priorities.total for one in alone if isinstance(one.priorities, SumTree))
    assert whole.transitions == sum(one.size() for one in alone) * EACH
    for place, (row, env, probability) in enumerate(zip(*draw, strict=True)):
        one, within = alone[env // EACH], Draw(np.array([row]), np.array([env % EACH]), None)
        assert one.whole(*within[:2]).all()
        assert whole.whole(np.array([row]), np.array([env])).all()
        same(ReplayBufferSamples(*(None if v is None else v[place : place + 1] for v in batch)), one.fetch(within))
        assert one.priorities is not None
        assert probability == pytest.approx(one.priorities.get(row * EACH + env % EACH) / total)
        assert whole.ages(draw)[place] == one.ages(within)[0]


def test_each_transition_is_drawn_as_often_as_its_priority_says() -> None:
    whole = memory(3 * EACH)
    for part, seed, count in zip(whole.split(3), (1, 2, 3), (20, 0, 7), strict=True):
        fill_up(part, seed, count)
    np.random.seed(0)
    drawn = np.zeros((ROWS, 3 * EACH))
    for _ in range(400):
        draw = whole.draw(64)
        np.add.at(drawn, (draw.rows, draw.envs), 1)
    assert whole.priorities is not None
    expected = whole.priorities.values.reshape(ROWS, -1)
    expected = expected * drawn.sum() / expected.sum()
    there = expected > 5  # a test of frequencies needs some of each
    assert drawn[expected == 0].sum() == 0
    # Stratified draws scatter less than independent ones: far above is what must not be.
    assert chisquare(drawn[there], expected[there] * drawn[there].sum() / expected[there].sum()).pvalue > 1e-3


def test_new_priorities_reach_the_part_that_they_are_of() -> None:
    whole = memory(2 * EACH)
    parts = whole.split(2)
    for part, count in zip(parts, (9, 12), strict=True):
        fill_up(part, count, count)
    before = [part.priorities.values.copy() for part in parts if part.priorities]
    whole.set_priorities(Draw(np.array([3, 3, 8, 11]), np.array([0, 3, 2, 0]), None), np.array([7.0, -8.0, 9.0, 1.0]))
    after = [part.priorities.values for part in parts if part.priorities]
    changed = [np.flatnonzero(one != other).tolist() for one, other in zip(before, after, strict=True)]
    assert changed == [[6], [7, 16]]  # of row 11 the first part has nothing
    assert after[1][7] == pytest.approx((8.0 + 1e-6) ** 0.6)


@pytest.mark.parametrize("count", [0, 4])
def test_environments_that_cannot_be_shared_out_are_refused(count: int) -> None:
    with pytest.raises(RequestError, match=f"6 environments with 0 rows cannot be split into {count} memories"):
        memory(6).split(count)


def test_parts_without_rows_have_nothing_to_draw() -> None:
    whole = memory(2 * EACH)
    parts = whole.split(2)
    assert not whole.drawable
    with pytest.raises(RequestError, match="add transitions before a batch is drawn"):
        whole.sample(4)
    parts[1].add(*Stream(EACH, 0).next())
    parts[1].hold_back()
    assert not whole.drawable
    with pytest.raises(RequestError, match="every priority is 0"):
        whole.sample(4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 19), min_size=1, max_size=8), st.integers(0, 99), st.integers(0, 99))
def test_rows_that_are_sent_in_pieces_are_those_that_were_added(pieces: list[int], begin: int, seed: int) -> None:
    stream = Stream(EACH, seed)
    sender, receiver = memory(), memory()
    for one in (sender, receiver):
        one.begin_at(begin, np.full(EACH, begin * 3))
    for count in pieces:
        first = sender.adds
        for _ in range(count):
            sender.add(*stream.next())
        append(receiver, first, sender.adds, pack(sender, first))
        rows, envs = np.divmod(np.arange(ROWS * EACH), EACH)
        here = sender.whole(rows, envs)
        assert np.array_equal(receiver.whole(rows, envs), here)
        if here.any():
            draw = Draw(rows[here], envs[here], None)
            same(receiver.fetch(draw), sender.fetch(draw))


def test_a_piece_that_does_not_follow_or_is_damaged_is_refused() -> None:
    sender, receiver = memory(), memory()
    fill_up(sender, 1, 9)
    with pytest.raises(CheckpointError, match="rows 0 to 2 are missing"):
        append(receiver, 2, 9, pack(sender, 2))
    with pytest.raises(CheckpointError, match="rows 0 to 9"):
        append(receiver, 0, 9, pack(sender, 0)[:-9])


def test_a_row_that_takes_the_place_of_another_does_not_keep_its_priority() -> None:
    sender, receiver = memory(), memory()
    fill_up(sender, 1, 15)
    append(receiver, 0, 15, pack(sender, 0))
    receiver.put_priorities(0, np.ones((15, EACH)), 1.0)
    stream = Stream(EACH, 9)
    for _ in range(10):
        sender.add(*stream.next())
    append(receiver, 15, 25, pack(sender, 15))
    assert receiver.priorities is not None
    assert receiver.priorities.values.reshape(ROWS, EACH)[:, 0].tolist() == [0.0] * 5 + [1.0] * 10 + [0.0] * 5

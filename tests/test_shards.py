"""Shards of a replay memory: drawn from as if all transitions lay in one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from coordrl.errors import CheckpointError, RequestError
from coordrl.replay import Draw, FrameReplayBuffer
from coordrl.segments import append, pack
from coordrl.shards import Shards
from tests.test_replay import ACTIONS, IMAGES, Stream, same

EACH = 2  # environments of a shard


def memory(rows: int = 20, **changes: Any) -> FrameReplayBuffer:
    given = {"n_steps": 3, "priority_exponent": 0.6, **changes}
    return FrameReplayBuffer(rows * EACH, IMAGES, ACTIONS, "cpu", EACH, **given)


def filled(seed: int, count: int, **changes: Any) -> FrameReplayBuffer:
    made, stream = memory(**changes), Stream(EACH, seed)
    for _ in range(count):
        made.add(*stream.next())
    if count:
        errors = np.random.default_rng(seed).gamma(1.0, size=made.size() * EACH)
        rows, envs = np.divmod(np.arange(made.size() * EACH), EACH)
        made.set_priorities(Draw(rows, envs, None), errors)
    return made


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 45), min_size=1, max_size=5).filter(any), st.integers(1, 40), st.integers(0, 99))
def test_a_batch_holds_what_its_shards_hold(counts: list[int], batch_size: int, seed: int) -> None:
    shards = Shards([filled(seed + index, count) for index, count in enumerate(counts)])
    np.random.seed(seed)
    draw = shards.draw(batch_size)
    batch = shards.fetch(draw)
    assert draw.probabilities is not None
    total = sum(shard.priorities.total for shard in shards.shards if shard.priorities)
    for place, (row, env, probability) in enumerate(zip(*draw, strict=True)):
        shard = shards.shards[env // EACH]
        assert shard.adds > 0
        alone = Draw(np.array([row]), np.array([env % EACH]), None)
        assert shard.whole(*alone[:2]).all()
        one = shard.fetch(alone)
        same(ReplayBufferSamples(*(None if v is None else v[place : place + 1] for v in batch)), one)
        assert shard.priorities is not None
        assert probability == pytest.approx(shard.priorities.get(row * EACH + env % EACH) / total)
        assert shards.ages(draw)[place] == shard.ages(alone)[0]


def test_each_transition_is_drawn_as_often_as_its_priority_says() -> None:
    shards = Shards([filled(1, 20), filled(2, 0), filled(3, 7)])
    np.random.seed(0)
    drawn = np.zeros((6, 20))
    for _ in range(400):
        draw = shards.draw(64)
        np.add.at(drawn, (draw.envs, draw.rows), 1)
    expected = np.zeros((6, 20))
    for index, shard in enumerate(shards.shards):
        assert shard.priorities is not None
        expected[index * EACH : (index + 1) * EACH] = shard.priorities.values.reshape(20, EACH).T
    expected *= drawn.sum() / expected.sum()
    there = expected > 5  # a test of frequencies needs some of each
    assert drawn[expected == 0].sum() == 0
    # Stratified draws scatter less than independent ones: far above is what must not be.
    assert chisquare(drawn[there], expected[there] * drawn[there].sum() / expected[there].sum()).pvalue > 1e-3


def test_new_priorities_reach_the_shard_that_they_are_of() -> None:
    shards = Shards([filled(1, 9), filled(2, 12)])
    before = [shard.priorities.values.copy() for shard in shards.shards if shard.priorities]
    draw = Draw(np.array([3, 3, 8]), np.array([0, 3, 2]), None)
    shards.set_priorities(draw, np.array([7.0, -8.0, 9.0]))
    after = [shard.priorities.values for shard in shards.shards if shard.priorities]
    changed = [np.flatnonzero(one != other).tolist() for one, other in zip(before, after, strict=True)]
    assert changed == [[6], [7, 16]]
    assert after[1][7] == pytest.approx((8.0 + 1e-6) ** 0.6)


def test_one_shard_draws_what_a_single_memory_draws() -> None:
    alone, shards = filled(4, 30), Shards([filled(4, 30)])
    np.random.seed(1)
    expected = alone.sample(32)
    np.random.seed(1)
    same(shards.sample(32), expected)


@pytest.mark.parametrize(
    ("others", "rule"),
    [([], "0 shards"), ([memory(20), memory(21)], "alike"), ([memory(priority_exponent=None)], "no")],
)
def test_shards_that_do_not_fit_each_other_are_refused(others: list[FrameReplayBuffer], rule: str) -> None:
    with pytest.raises(RequestError, match=rule):
        Shards(others)


def test_empty_shards_say_so() -> None:
    shards = Shards([memory(), memory()])
    assert not shards.drawable
    with pytest.raises(RequestError, match="add transitions first"):
        shards.sample(4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 19), min_size=1, max_size=8), st.integers(0, 99), st.integers(0, 99))
def test_rows_that_are_sent_in_pieces_are_those_that_were_added(pieces: list[int], begin: int, seed: int) -> None:
    stream = Stream(EACH, seed)
    sender, whole, receiver = memory(40), memory(20), memory(20)
    place = np.full(EACH, begin * 3)
    for one in (sender, whole, receiver):
        one.begin_at(begin, place)
    for count in pieces:
        first = sender.adds
        for _ in range(count):
            row = stream.next()
            sender.add(*row)
            whole.add(*row)
        append(receiver, first, sender.adds, pack(sender, first))
        assert receiver.priorities is not None
        receiver.priorities.fill(whole.priorities.values) if whole.priorities else None
        rows, envs = np.divmod(np.arange(20 * EACH), EACH)
        assert np.array_equal(receiver.whole(rows, envs), whole.whole(rows, envs))
        here = whole.whole(rows, envs)
        if here.any():
            draw = Draw(rows[here], envs[here], None)
            same(receiver.fetch(draw), whole.fetch(draw))


def test_a_piece_that_does_not_follow_or_is_damaged_is_refused() -> None:
    sender, receiver = filled(1, 9), memory()
    with pytest.raises(CheckpointError, match="rows 0 to 2 are missing"):
        append(receiver, 2, 9, pack(sender, 2))
    with pytest.raises(CheckpointError, match="rows 0 to 9"):
        append(receiver, 0, 9, pack(sender, 0)[:-9])


def test_a_row_that_takes_the_place_of_another_does_not_keep_its_priority() -> None:
    sender, receiver = filled(1, 15), memory()
    append(receiver, 0, 15, pack(sender, 0))
    assert receiver.priorities is not None
    receiver.priorities.fill(np.ones(receiver.priorities.size) * np.repeat(np.arange(20) < 15, EACH))
    stream = Stream(EACH, 9)
    for _ in range(10):
        sender.add(*stream.next())
    append(receiver, 15, 25, pack(sender, 15))
    assert receiver.priorities.values.reshape(20, EACH)[:, 0].tolist() == [0.0] * 5 + [1.0] * 10 + [0.0] * 5
    assert torch.isfinite(receiver.sample(8).rewards).all()

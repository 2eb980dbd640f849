"""The replay memory: equal to SB3's on the same stream, to a naive twin on any, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray
from scipy.stats import chisquare
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from coordrl.atari import AtariVecEnv
from coordrl.errors import RequestError
from coordrl.footprint import memory_needed
from coordrl.replay import SMALLEST_PRIORITY, Draw, FrameReplayBuffer

IMAGES = spaces.Box(0, 255, (4, 3, 2), np.uint8)
ACTIONS = spaces.Discrete(5)


class Stream:
    """Transitions as a vector of games makes them: stacks that go on, games that end, are cut off or lose a life."""

    def __init__(self, n_envs: int, seed: int, *, ends: float = 0.1, shape: tuple[int, ...] = (4, 3, 2)) -> None:
        self.rng, self.n_envs, self.ends, self.shape = np.random.default_rng(seed), n_envs, ends, shape
        self.obs = np.stack([self.first() for _ in range(n_envs)])

    def first(self) -> NDArray[np.uint8]:
        stack = np.zeros(self.shape, np.uint8)
        stack[-1] = self.rng.integers(0, 256, self.shape[1:])
        return stack

    def next(self) -> tuple[Any, ...]:
        """Return the arguments of `add`."""
        following = np.roll(self.obs, -1, axis=1)
        following[:, -1] = self.rng.integers(0, 256, (self.n_envs, *self.shape[1:]))
        kind = self.rng.choice(4, self.n_envs, p=[1 - self.ends, self.ends / 3, self.ends / 3, self.ends / 3])
        infos = [{"TimeLimit.truncated": bool(k == 2)} for k in kind]
        add = (self.obs, following.copy(), self.rng.integers(0, 5, self.n_envs), self.rng.normal(size=self.n_envs))
        after = following.copy()
        for env in np.flatnonzero((kind == 1) | (kind == 2)):
            after[env] = self.first()  # after a lost life (3) the stack goes on
        self.obs = after
        return (*add, kind > 0, infos)


def same(one: ReplayBufferSamples, other: ReplayBufferSamples) -> None:
    for name, mine, theirs in zip(ReplayBufferSamples._fields, one, other, strict=True):
        if theirs is None:
            assert mine is None
            continue
        assert mine.dtype == theirs.dtype, name
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("n_steps", [1, 3, 5])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("handles", [True, False])
def test_it_gives_the_batches_of_sb3s_buffers_bit_for_bit(n_steps: int, n_envs: int, handles: bool) -> None:
    kwargs: dict[str, Any] = {"n_envs": n_envs, "device": "cpu", "handle_timeout_termination": handles}
    ours = FrameReplayBuffer(120, IMAGES, ACTIONS, **kwargs, n_steps=n_steps, gamma=0.97)
    theirs = (
        ReplayBuffer(120, IMAGES, ACTIONS, **kwargs)
        if n_steps == 1
        else NStepReplayBuffer(120, IMAGES, ACTIONS, **kwargs, n_steps=n_steps, gamma=0.97)
    )
    stream = Stream(n_envs, 5, ends=0.02)
    for step in range(300):
        add = stream.next()
        ours.add(*copy.deepcopy(add))
        theirs.add(*copy.deepcopy(add))
        assert ours.size() == theirs.size()
        if step % 7 == 0:
            assert ours.whole(np.arange(ours.size()), np.zeros(ours.size(), np.int64)).all()
            np.random.seed(step)
            mine = ours.sample(16)
            state = np.random.get_state()[2]
            np.random.seed(step)
            same(mine, theirs.sample(16))
            assert np.random.get_state()[2] == state  # as many numbers drawn


@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(7), spaces.Box(0, 255, (1, 8, 8), np.uint8)]
)
def test_other_observations_are_kept_too(space: spaces.Space[Any]) -> None:
    space.seed(0)
    kwargs: dict[str, Any] = {"n_envs": 2, "device": "cpu"}
    ours, theirs = FrameReplayBuffer(40, space, ACTIONS, **kwargs), ReplayBuffer(40, space, ACTIONS, **kwargs)
    rng = np.random.default_rng(0)
    obs = np.array([space.sample() for _ in range(2)])
    for step in range(60):
        following = np.array([space.sample() for _ in range(2)])
        done = rng.random(2) < 0.05
        add = (obs, following, rng.integers(0, 5, 2), rng.normal(size=2), done, [{}, {}])
        for buffer in (ours, theirs):
            buffer.add(*copy.deepcopy(add))
        obs = np.where(
            done.reshape(2, *[1] * (following.ndim - 1)), np.array([space.sample() for _ in range(2)]), following
        )
        np.random.seed(step)
        mine = ours.sample(8)
        np.random.seed(step)
        same(mine, theirs.sample(8))


def test_a_real_game_comes_out_as_it_went_in() -> None:
    env = AtariVecEnv("Breakout", 4, seed=3)
    ours = FrameReplayBuffer(1200, env.observation_space, env.action_space, "cpu", 4)
    theirs = ReplayBuffer(1200, env.observation_space, env.action_space, "cpu", 4)
    obs: Any = env.reset()
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(400):
        actions = rng.integers(0, 4, 4)
        following, rewards, dones, infos = env.step(actions)
        last = np.array(following)
        for index in np.flatnonzero(dones):
            last[index] = infos[index]["terminal_observation"]
            ended += "episode" in infos[index]
        for buffer in (ours, theirs):
            buffer.add(obs, last, actions, rewards, dones, infos)
        obs = following
    env.close()
    assert ended >= 4
    for seed in range(20):
        np.random.seed(seed)
        mine = ours.sample(32)
        np.random.seed(seed)
        same(mine, theirs.sample(32))
    assert ours.written.max() < 400 * 1.1 + 10


def test_n_step_returns_are_those_computed_by_hand() -> None:
    buffer = FrameReplayBuffer(8, IMAGES, ACTIONS, "cpu", 1, n_steps=3, gamma=0.5)
    stream = Stream(1, 0, ends=0)
    # rewards 1, 2, 4, 8, 16, 32; an episode ends after the third, one is cut off after the fifth
    for index, reward in enumerate((1.0, 2.0, 4.0, 8.0, 16.0, 32.0)):
        obs, following, action, _, _, _ = stream.next()
        infos = [{"TimeLimit.truncated": index == 4}]
        buffer.add(obs, following, action, np.array([reward]), np.array([index in (2, 4)]), infos)
    rows = np.arange(6)
    batch = buffer.fetch(Draw(rows, np.zeros(6, np.int64), None))
    assert batch.rewards.flatten().tolist() == [1 + 1 + 1, 2 + 2, 4, 8 + 8, 16, 32]
    assert batch.dones.flatten().tolist() == [1, 1, 1, 0, 0, 0]
    assert batch.discounts is not None
    assert batch.discounts.flatten().tolist() == [0.125, 0.25, 0.5, 0.25, 0.5, 0.5]
    ends = [2, 2, 2, 4, 4, 5]
    single = FrameReplayBuffer.fetch(buffer, Draw(np.array(ends), np.zeros(6, np.int64), None))
    assert torch.equal(batch.next_observations, single.next_observations)


@pytest.mark.filterwarnings("ignore:the replay memory has no room")  # it has not, and that is the test
@pytest.mark.parametrize("n_envs", [1, 3])
def test_games_of_a_step_lose_the_oldest_transitions_and_never_mix(n_envs: int) -> None:
    buffer = FrameReplayBuffer(600, IMAGES, ACTIONS, "cpu", n_envs, priority_exponent=0.6)
    stream = Stream(n_envs, 1, ends=0.9)
    history = []
    for _ in range(450):
        add = stream.next()
        history.append(copy.deepcopy(add))
        buffer.add(*add)
    assert buffer.priorities is not None
    whole = 0
    for row in range(buffer.buffer_size):
        for env in range(n_envs):
            there = bool(buffer.whole(np.array([row]), np.array([env]))[0])
            assert there == (buffer.priorities.values[row * n_envs + env] > 0)
            if there:
                whole += 1
                age = (buffer.adds - 1 - row) % buffer.buffer_size
                batch = buffer.fetch(Draw(np.array([row]), np.array([env]), None))
                assert np.array_equal(batch.observations[0].numpy(), history[-1 - age][0][env])
                assert np.array_equal(batch.next_observations[0].numpy(), history[-1 - age][1][env])
    assert whole < buffer.buffer_size * n_envs
    assert whole > 20


class Twin(RuleBasedStateMachine):
    """The memory beside a list of all that was added, through thousands of random operations."""

    @initialize(
        n_envs=st.integers(1, 3), rows=st.integers(2, 30), n_steps=st.integers(1, 4), seed=st.integers(0, 99),
        ends=st.sampled_from([0.0, 0.05, 0.5]), priorities=st.booleans(),
    )  # fmt: skip
    def begin(self, n_envs: int, rows: int, n_steps: int, seed: int, ends: float, priorities: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.buffer = FrameReplayBuffer(
            rows * n_envs, IMAGES, ACTIONS, "cpu", n_envs, n_steps=n_steps, gamma=0.9,
            priority_exponent=0.7 if priorities else None,
        )  # fmt: skip
        self.stream = Stream(n_envs, seed, ends=ends)
        self.rows, self.n_steps, self.n_envs = rows, n_steps, n_envs
        self.history: list[Any] = []
        self.errors: dict[tuple[int, int], float] = {}
        self.largest = 1.0

    @rule(count=st.integers(1, 40))
    def add(self, count: int) -> None:
        for _ in range(count):
            add = self.stream.next()
            self.history.append(copy.deepcopy(add))
            self.buffer.add(*add)
            for env in range(self.n_envs):
                self.errors[len(self.history) - 1, env] = self.largest

    @precondition(lambda self: self.history)
    @rule(batch=st.integers(1, 20), seed=st.integers(0, 1000))
    def sample(self, batch: int, seed: int) -> None:
        np.random.seed(seed)
        draw = self.buffer.draw(batch)
        samples = self.buffer.fetch(draw)
        for index, (row, env) in enumerate(zip(draw.rows, draw.envs, strict=True)):
            at = len(self.history) - 1 - (len(self.history) - 1 - row) % self.rows
            reward, discount, done, last = self.naive(at, env)
            assert np.array_equal(samples.observations[index].numpy(), self.history[at][0][env])
            assert np.array_equal(samples.next_observations[index].numpy(), self.history[last][1][env])
            assert int(samples.actions[index]) == self.history[at][2][env]
            assert float(samples.rewards[index]) == pytest.approx(reward, rel=1e-5, abs=1e-5)
            assert float(samples.dones[index]) == done
            if samples.discounts is not None:
                assert float(samples.discounts[index]) == pytest.approx(discount)

    def naive(self, at: int, env: int) -> tuple[float, float, float, int]:
        """Return the n-step return, its discount, whether the episode ended, and where it ends."""
        total, discount = 0.0, 1.0
        for index in range(at, min(at + self.n_steps, len(self.history))):
            total += discount * float(np.float32(self.history[index][3][env]))
            discount *= 0.9
            if self.history[index][4][env]:
                cut = self.history[index][5][env]["TimeLimit.truncated"]
                return total, discount, float(not cut), index
        return total, discount, 0.0, index

    @precondition(lambda self: self.history and self.buffer.priorities is not None)
    @rule(batch=st.integers(1, 10), seed=st.integers(0, 1000))
    def set_priorities(self, batch: int, seed: int) -> None:
        np.random.seed(seed)
        draw = self.buffer.draw(batch)
        errors = self.rng.normal(size=batch) * 3
        self.buffer.set_priorities(draw, errors)
        for row, env, error in zip(draw.rows, draw.envs, errors, strict=True):
            at = len(self.history) - 1 - (len(self.history) - 1 - row) % self.rows
            self.errors[at, env] = abs(error) + SMALLEST_PRIORITY
            self.largest = max(self.largest, abs(error) + SMALLEST_PRIORITY)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "buffer") or not self.history:
            return
        count = len(self.history)
        assert self.buffer.size() == min(count, self.rows)
        newest = np.full(self.n_envs, (count - 1) % self.rows)
        assert self.buffer.whole(newest, np.arange(self.n_envs)).all()
        if self.buffer.priorities is not None:
            self.buffer.priorities.check()
            for (at, env), error in self.errors.items():
                if at >= count - self.rows:
                    row = at % self.rows
                    there = self.buffer.whole(np.array([row]), np.array([env]))[0]
                    wanted = error**0.7 if there else 0.0
                    assert self.buffer.priorities.values[row * self.n_envs + env] == pytest.approx(wanted)


TestTwin = Twin.TestCase
TestTwin.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


def test_after_a_cut_no_return_reaches_into_the_games_that_follow() -> None:
    buffer = FrameReplayBuffer(8, IMAGES, ACTIONS, "cpu", 1, n_steps=3, gamma=0.9)
    stream = Stream(1, 0, ends=0)
    for reward in (1.0, 10.0):
        obs, following, action, _, _, infos = stream.next()
        buffer.add(obs, following, action, np.array([reward]), np.array([False]), infos)
        if reward == 1.0:
            last = following.copy()
            buffer.cut()
            stream = Stream(1, 1, ends=0)
    batch = buffer.fetch(Draw(np.array([0]), np.array([0]), None))
    assert (float(batch.rewards), float(batch.dones)) == (1.0, 0.0)
    assert np.array_equal(batch.next_observations.numpy(), last)


def test_without_priorities_all_transitions_are_drawn_alike() -> None:
    buffer = FrameReplayBuffer(40, IMAGES, ACTIONS, "cpu", 2)
    stream = Stream(2, 0)
    for _ in range(33):
        buffer.add(*stream.next())
    np.random.seed(0)
    draw = buffer.draw(100_000)
    assert chisquare(np.bincount(draw.rows * 2 + draw.envs, minlength=40)).pvalue > 1e-3


def test_with_priorities_they_are_drawn_in_proportion_and_weighed_back() -> None:
    buffer = FrameReplayBuffer(40, IMAGES, ACTIONS, "cpu", 2, priority_exponent=0.5)
    stream = Stream(2, 0)
    for _ in range(33):
        buffer.add(*stream.next())
    errors = np.random.default_rng(0).random(40) * 10
    places = np.arange(40)
    buffer.set_priorities(Draw(places // 2, places % 2, None), errors)
    expected = (errors + SMALLEST_PRIORITY) ** 0.5
    expected /= expected.sum()
    np.random.seed(0)
    draws = [buffer.draw(50) for _ in range(2000)]
    counts = sum(np.bincount(draw.rows * 2 + draw.envs, minlength=40) for draw in draws)
    assert chisquare(counts, 100_000 * expected).pvalue > 1e-3
    draw = draws[0]
    assert draw.probabilities is not None
    assert draw.probabilities == pytest.approx(expected[draw.rows * 2 + draw.envs])
    weights = (40 * draw.probabilities) ** -0.4
    assert buffer.weights(draw, 0.4) == pytest.approx(weights / weights.max())
    assert buffer.weights(draw, 0.0).tolist() == [1.0] * 50


def test_an_error_that_is_no_number_is_refused() -> None:
    buffer = FrameReplayBuffer(8, IMAGES, ACTIONS, "cpu", 1, priority_exponent=1.0)
    buffer.add(*Stream(1, 0).next())
    with pytest.raises(RequestError, match="not finite"):
        buffer.set_priorities(buffer.draw(1), np.array([np.nan]))
    obs, following, action, _, done, infos = Stream(1, 0).next()
    with pytest.raises(RequestError, match="rewards are"):
        buffer.add(obs, following, action, np.array([np.inf]), done, infos)
    assert buffer.adds == 1


def test_a_million_transitions_of_atari_take_less_than_seven_and_a_half_gigabytes() -> None:
    for n_envs in (1, 8, 256):
        assert memory_needed(1_000_000, n_envs, (4, 84, 84), 4) < 7.5e9
    buffer = FrameReplayBuffer(
        1000, spaces.Box(0, 255, (4, 84, 84), np.uint8), ACTIONS, "cpu", 4, priority_exponent=0.6
    )
    assert buffer.priorities is not None
    arrays = (buffer.frames, buffer.references, buffer.actions, buffer.rewards, buffer.dones, buffer.timeouts)
    taken = sum(array.nbytes for array in arrays) + buffer.priorities._nodes.nbytes
    assert taken == pytest.approx(memory_needed(1000, 4, (4, 84, 84), 4), rel=0.01)


def test_a_memory_that_does_not_fit_is_refused_with_its_size_and_what_to_change() -> None:
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    with pytest.raises(
        RequestError, match=r"takes 7,?\d+.\d GB, and .* GB are free here; choose a smaller buffer_size"
    ):
        FrameReplayBuffer(10**9, space, ACTIONS, "cpu", 1)


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"optimize_memory_usage": True}, "keeps nothing twice"),
        ({"n_steps": 0}, "n_steps 0"),
        ({"n_stack": 3}, "n_stack is 3; observations have 4"),
    ],
)
def test_wrong_arguments_are_refused(kwargs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        FrameReplayBuffer(8, IMAGES, ACTIONS, "cpu", 1, **kwargs)
    with pytest.raises(RequestError, match="the replay memory is empty"):
        FrameReplayBuffer(8, IMAGES, ACTIONS, "cpu", 1).sample(1)


def test_after_a_reset_it_is_as_new() -> None:
    buffer = FrameReplayBuffer(8, IMAGES, ACTIONS, "cpu", 1, priority_exponent=0.6)
    for add in (stream := Stream(1, 0)).next(), stream.next():
        buffer.add(*add)
    buffer.reset()
    assert buffer.size() == 0
    add = Stream(1, 7).next()
    buffer.add(*add)
    assert np.array_equal(buffer.sample(1).observations[0].numpy(), add[0][0])


def test_colours_are_no_stack_of_pictures_and_lose_nothing() -> None:
    colours = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    buffer, rng = FrameReplayBuffer(200, colours, spaces.Discrete(2), "cpu"), np.random.default_rng(0)
    images = rng.integers(0, 256, (301, 1, 3, 8, 8), dtype=np.uint8)
    for step in range(300):
        buffer.add(images[step], images[step + 1], np.array([0]), np.array([float(step)]), np.array([False]), [{}])
    assert (buffer.n_stack, buffer.size(), buffer.lost) == (1, 200, 0)
    for name, first in (("observations", 100), ("next_observations", 101)):
        found = np.roll(getattr(buffer, name), -100, axis=0)
        np.testing.assert_array_equal(found, images[first : first + 200])


@pytest.mark.filterwarnings("ignore:the replay memory has no room")  # it has not, and that is the test
def test_games_that_begin_with_blank_pictures_take_two_for_it_and_the_memory_says_what_it_lost() -> None:
    def play(length: int) -> FrameReplayBuffer:
        space = spaces.Box(0, 255, (4, 8, 8), np.uint8)
        buffer, rng = FrameReplayBuffer(1000, space, spaces.Discrete(2), "cpu"), np.random.default_rng(0)
        stack = np.zeros((1, 4, 8, 8), np.uint8)
        for step in range(2500):
            if step % length == 0:  # as SB3's VecFrameStack begins a game
                stack = np.concatenate([np.zeros((1, 3, 8, 8), np.uint8), picture(rng)], axis=1)
            after = np.concatenate([stack[:, 1:], picture(rng)], axis=1)
            over = np.array([step % length == length - 1])
            buffer.add(stack, after, np.array([0]), np.array([float(step)]), over, [{}])
            stack = after
        return buffer

    def picture(rng: np.random.Generator) -> NDArray[np.uint8]:
        return rng.integers(1, 256, (1, 1, 8, 8), dtype=np.uint8)

    whole, short = play(length=50), play(length=10)
    assert whole.lost == 0
    rewards = short.sample(20_000).rewards.numpy()
    assert short.lost > 0
    assert len(np.unique(rewards)) == 1000 - short.lost
    gone = (short.observations == 0).all(axis=(1, 2, 3, 4))
    assert gone.sum() == short.lost


def test_a_memory_that_is_called_full_by_hand_gives_zeros_in_its_dtypes_as_sb3s_does() -> None:
    space = spaces.Box(0, 255, (5,), np.float32)
    batches = []
    for kind in (ReplayBuffer, FrameReplayBuffer):
        buffer = kind(10, space, spaces.Discrete(2), "cpu")
        buffer.full = True
        batches.append(buffer.sample(4))
        assert buffer.observations.dtype == np.float32
    same(*batches)
    assert not batches[1].observations.any()

"""A replay memory that keeps each picture once: stacks and n-step returns are made when a batch is drawn.

SB3's own keeps two stacks of four 84x84 pictures for each transition, 56 GB for a million of them; this one takes
about 7.5 GB. It has the interface of SB3's ReplayBuffer and draws the same numbers from the same generator, so that a
batch is the same, too.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, NamedTuple, final

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from coordrl.errors import RequestError
from coordrl.footprint import check_memory, frames_needed
from coordrl.sumtree import SumTree, TreePart

SMALLEST_PRIORITY = 1e-6  # added to |TD error|, so that nothing is never drawn again (Schaul et al. 2016, section 3.3)
_MANY = 100  # transitions whose loss is worth a warning, if they are a tenth as well


class Draw(NamedTuple):
    """Which transitions a batch is made of."""

    rows: NDArray[np.int64]  # (batch,), of the ring
    envs: NDArray[np.int64]  # (batch,)
    probabilities: NDArray[np.float64] | None  # (batch,), with which each was drawn; None: all alike


@final
class FrameReplayBuffer(ReplayBuffer):
    """A replay memory for stacks of pictures (n_envs, n_stack, height, width), each picture kept once.

    An observation that goes on from the one before adds one picture; one that does not (a game's first) adds its
    stack, in which pictures that repeat count once. So it takes any observations, and is small where they are stacks.
    It has room for a twenty-fourth more pictures than transitions: for games of 48 steps on the average, if they begin
    with blank pictures and one more. Where more come, the oldest transitions are lost early; `lost` says how many, and
    a tenth of them is warned of.

    n-step returns (Sutton 1988) are made at sampling: never across the end of an episode, and cut at the newest
    transition, from where they bootstrap.

    Args:
        buffer_size: transitions, of all environments together.
        observation_space: of one environment: a Box, or Discrete.
        action_space: of one environment.
        device: that batches are put on.
        n_envs: environments.
        optimize_memory_usage: must be False: nothing is kept twice anyway.
        handle_timeout_termination: a game that was cut off (`TimeLimit.truncated`) is no terminal state.
        n_steps: of the returns.
        gamma: the discount; used where n_steps is above 1.
        n_stack: pictures of an observation, along its first axis; None takes the channels of uint8 images, but 1 for
            three, which are colours, and for all else.
        priority_exponent: alpha of prioritised replay (Schaul et al. 2016, equation 1); None draws all alike.

    Raises:
        RequestError: a number is wrong, or the memory does not fit this machine.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        n_stack: int | None = None,
        priority_exponent: float | None = None,
    ) -> None:
        if optimize_memory_usage:
            raise RequestError("FrameReplayBuffer keeps nothing twice: leave optimize_memory_usage out")
        if buffer_size < 1 or n_steps < 1:
            raise RequestError(f"buffer_size is {buffer_size} and n_steps {n_steps}; both are at least 1")
        if priority_exponent is not None and not 0 <= priority_exponent < np.inf:
            raise RequestError(f"priority_exponent is {priority_exponent}; it is a number from 0")
        if isinstance(observation_space, spaces.Dict | spaces.Tuple):
            raise RequestError(f"FrameReplayBuffer takes a single array, not {type(observation_space).__name__}")
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)  # SB3's would allocate
        self.buffer_size = rows = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps, self.gamma = n_steps, gamma
        self.n_stack = n_stack or default_stack(observation_space)
        if self.n_stack > 1 and self.obs_shape[0] != self.n_stack:
            raise RequestError(f"n_stack is {self.n_stack}; observations have {self.obs_shape[0]} pictures")
        dtype = np.dtype(observation_space.dtype)
        check_memory(buffer_size, n_envs, self.obs_shape or (1,), self.n_stack, dtype.itemsize)
        shape = self.obs_shape[1:] if self.n_stack > 1 else self.obs_shape
        self._all_envs = np.arange(n_envs)
        self.frames = np.zeros((n_envs, frames_needed(rows, self.n_stack), *shape), dtype)
        self.written = np.zeros(n_envs, dtype=np.int64)  # pictures so far; picture k lies at k % capacity
        # Pictures of the observation and of the next one, oldest first, counted from the very first one.
        self.references = np.zeros((rows, n_envs, 2, self.n_stack), dtype=np.int64)
        self.actions = np.zeros((rows, n_envs, self.action_dim), self._maybe_cast_dtype(action_space.dtype))
        self.rewards = np.zeros((rows, n_envs), dtype=np.float32)
        self.dones = np.zeros((rows, n_envs), dtype=np.float32)
        self.timeouts = np.zeros((rows, n_envs), dtype=np.float32)
        self.adds = 0  # rows so far; row k lies at k % buffer_size
        self.counts = np.zeros(n_envs, dtype=np.int64)  # the same of each environment, which differ where it was split
        self.parts: tuple[FrameReplayBuffer, ...] = ()  # see `split`
        self.priority_exponent = priority_exponent
        self.priorities: SumTree | TreePart | None = None if priority_exponent is None else SumTree(rows * n_envs)
        self.max_priority = 1.0  # of |TD error| so far: what a new transition gets
        self._oldest = np.zeros(n_envs, dtype=np.int64)  # the first row of each environment whose pictures are all here
        self._last: NDArray[Any] | None = None  # the next observations of the newest row, (n_envs, ...)

    _warned = False  # of transitions that are lost

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.adds, self.max_priority, self._last = 0, 1.0, None
        self.written[:], self.counts[:] = 0, 0
        self._oldest[:] = 0
        if self.priorities is not None:
            self.priorities.fill(np.zeros(self.priorities.size))

    def settle(self) -> None:
        """Take up what was put into the arrays from outside: rows up to `adds`, pictures up to `written`."""
        self.pos, self.full = self.adds % self.buffer_size, self.adds >= self.buffer_size
        self.counts[:] = self.adds
        self._lose()
        if self.adds:
            newest = self.references[self.pos - 1, :, 1] % self.capacity
            self._last = self.frames[self._all_envs[:, None], newest]

    def begin_at(self, adds: int, written: NDArray[np.int64]) -> None:
        """Count rows and pictures, (n_envs,), from these numbers on: an empty memory that another one is to go on with."""
        self.reset()
        self.adds, self.written[:], self._oldest[:], self.counts[:] = adds, written, adds, adds
        self.pos, self.full = adds % self.buffer_size, adds >= self.buffer_size

    def split(self, count: int) -> tuple[FrameReplayBuffer, ...]:
        """Return `count` memories that lie in this one, each of as many of its environments, in order.

        Each is filled by itself, at its own pace, and batches are drawn from this one, which is filled through them
        alone from now on.

        Raises:
            RequestError: the environments cannot be shared out evenly, or there are rows already.
        """
        if count < 1 or self.n_envs % count or self.adds:
            raise RequestError(
                f"{self.n_envs} environments with {self.adds} rows cannot be split into {count} memories"
            )
        each = self.n_envs // count
        parts = []
        for first in range(0, self.n_envs, each):
            part, own = copy.copy(self), slice(first, first + each)
            part.n_envs, part._all_envs = each, np.arange(each)
            for name in ("frames", "written", "counts", "_oldest"):
                setattr(part, name, getattr(self, name)[own])
            for name in ("references", "actions", "rewards", "dones", "timeouts"):
                setattr(part, name, getattr(self, name)[:, own])
            if isinstance(self.priorities, SumTree):
                part.priorities = TreePart(self.priorities, self.n_envs, first, each)
            parts.append(part)
        self.parts = tuple(parts)
        return self.parts

    @property
    def transitions(self) -> int:
        """How many transitions there are."""
        return int(np.minimum(self.counts, self.buffer_size).sum())

    @property
    def lost(self) -> int:
        """How many of the transitions are not drawn, because their pictures had to make room for newer ones."""
        first = np.maximum(self.counts - self.buffer_size, 0)
        return int(np.maximum(self._oldest - first, 0).sum())

    @property
    def observations(self) -> NDArray[Any]:  # type: ignore[override]  # an array of its own in SB3's
        """The observations as SB3's buffers keep them, (buffer_size, n_envs, ...): made anew, with all their size."""
        return self._unfold(0)

    @property
    def next_observations(self) -> NDArray[Any]:  # type: ignore[override]  # as above
        """What followed, as `observations`."""
        return self._unfold(1)

    def _unfold(self, which: int) -> NDArray[Any]:
        """Return the observations of all rows; zeros where there is none."""
        found = np.zeros((self.buffer_size, self.n_envs, *self.obs_shape), self.frames.dtype)
        for env in range(self.n_envs):
            rows = np.arange(self.buffer_size)
            rows = rows[self.whole(rows, np.full(self.buffer_size, env))]
            pictures = self.frames[env, self.references[rows, env, which] % self.capacity]
            found[rows, env] = pictures if self.n_stack > 1 else pictures[:, 0]
        found.flags.writeable = False  # what is written here would be lost
        return found

    @property
    def drawable(self) -> bool:
        """Whether a batch can be drawn: priorities may be missing as long as n steps are not over."""
        if isinstance(self.priorities, SumTree):
            return self.priorities.total > 0
        return self.transitions > 0

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Add a transition of each environment; arguments as SB3's, (n_envs, ...) each.

        Raises:
            RequestError: a reward is not finite.
        """
        if not np.isfinite(reward).all():
            raise RequestError(f"rewards are {np.asarray(reward).tolist()}; a replay memory takes finite ones alone")
        obs, next_obs = self._shape(obs), self._shape(next_obs)
        row = self.pos
        self.references[row, :, 0] = self._refer(obs)
        self.references[row, :, 1] = self._refer_next(obs, next_obs, self.references[row, :, 0])
        self.actions[row] = np.reshape(action, (self.n_envs, self.action_dim))
        self.rewards[row] = reward
        self.dones[row] = done
        if self.handle_timeout_termination:
            self.timeouts[row] = [info.get("TimeLimit.truncated", False) for info in infos]
        self._last = next_obs.copy()
        self.adds += 1
        self.counts[:] = self.adds
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0
        if self.priorities is not None:
            exponent = self.priority_exponent or 0.0
            self.priorities.set(self._places(np.full(self.n_envs, row), self._all_envs), self.max_priority**exponent)
        self._lose()

    @property
    def capacity(self) -> int:
        """Pictures that are kept of each environment."""
        return int(self.frames.shape[1])

    def _shape(self, observations: NDArray[Any]) -> NDArray[Any]:
        """Return observations as (n_envs, n_stack, ...)."""
        shaped: NDArray[Any] = np.asarray(observations).reshape(self.n_envs, *self.obs_shape)
        return shaped if self.n_stack > 1 else shaped[:, None]

    def _refer(self, observations: NDArray[Any]) -> NDArray[np.int64]:
        """Return references to observations, (n_envs, n_stack): the next ones of the row before, or new ones."""
        references = self.references[self.pos - 1, :, 1].copy()
        fresh = np.ones(self.n_envs, np.bool_) if self._last is None else ~_equal(observations, self._last)
        for env in np.flatnonzero(fresh):
            references[env] = self._keep(env, observations[env])
        return references

    def _refer_next(
        self, observations: NDArray[Any], following: NDArray[Any], references: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return references to the next observations: a step on, the same, or new ones."""
        moved = _equal(following[:, :-1], observations[:, 1:])
        found = np.roll(references, -1, axis=1)
        place = self.written % self.capacity
        self.frames[self._all_envs[moved], place[moved]] = following[moved, -1]
        found[moved, -1] = self.written[moved]
        self.written[moved] += 1
        for env in np.flatnonzero(~moved):
            found[env] = self._keep(env, following[env])
        return found

    def _keep(self, env: np.intp, stack: NDArray[Any]) -> NDArray[np.int64]:
        """Keep all pictures of a stack, and return references to them."""
        new = np.ones(self.n_stack, np.bool_)
        if self.n_stack > 1:
            new[1:] = ~_equal(stack[1:], stack[:-1])  # a game begins with blank pictures, or with one several times
        references: NDArray[np.int64] = self.written[env] + np.cumsum(new) - 1
        self.frames[env, references[new] % self.capacity] = stack[new]
        self.written[env] += new.sum()
        return references

    def _lose(self) -> None:
        """Leave out transitions that were overwritten, or whose pictures were."""
        np.maximum(self._oldest, self.adds - self.buffer_size, out=self._oldest)
        before = self._oldest.copy()
        while True:
            rows = self._oldest % self.buffer_size
            first = self.references[rows, self._all_envs, 0, 0]
            lost = (first < self.written - self.capacity) & (self._oldest < self.adds)
            if not lost.any():
                break
            if self.priorities is not None:
                self.priorities.set(self._places(rows[lost], self._all_envs[lost]), 0.0)
            self._oldest[lost] += 1
        if not self._warned and (self._oldest > before).any() and self.lost > max(self.transitions / 10, _MANY):
            self._warned = True
            mend = "give it a larger buffer_size, or use SB3's own"
            if self.n_stack > 1:
                mend = (
                    f"give it n_stack=1 where observations are no stacks of {self.n_stack} pictures on their first axis"
                )
            warnings.warn(
                f"the replay memory has no room for {self.lost:,} of its {self.transitions:,} transitions: more pictures"
                f" come than stacks and games of 48 steps bring; {mend}",
                stacklevel=3,
            )

    def _places(self, rows: NDArray[np.int64], envs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of transitions in the sum tree."""
        return rows * self.n_envs + envs

    def whole(self, rows: NDArray[np.int64], envs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say which transitions of the ring are there with all of their pictures."""
        newest = self.counts[envs] - 1
        absolute = newest - (newest - rows) % self.buffer_size
        kept: NDArray[np.bool_] = (absolute >= 0) & (absolute >= self._oldest[envs])
        return kept

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw a batch, as SB3's buffers do, from NumPy's global generator.

        Returns tensors: observations and next_observations (batch, ...), actions (batch, action_dim), rewards and
        dones (batch, 1); with n_steps above 1 also discounts (batch, 1).

        Raises:
            RequestError: nothing was added yet.
        """
        return self.fetch(self.draw(batch_size), env)

    def draw(self, batch_size: int) -> Draw:
        """Draw which transitions a batch is made of.

        Raises:
            RequestError: nothing was added yet.
        """
        if self.transitions == 0 and not self.full:  # who sets `full` by hand gets zeros, as from SB3's buffers
            raise RequestError("the replay memory is empty; add transitions before a batch is drawn")
        if isinstance(self.priorities, SumTree):
            return self._draw_by_priority(self.priorities, batch_size)
        rows = np.random.randint(0, self.size(), size=batch_size)
        envs = np.random.randint(0, self.n_envs, size=batch_size)
        while self.transitions and (lost := ~self.whole(rows, envs)).any():
            rows[lost] = np.random.randint(0, self.size(), size=lost.sum())
            envs[lost] = np.random.randint(0, self.n_envs, size=lost.sum())
        return Draw(rows, envs, None)

    def _draw_by_priority(self, tree: SumTree, batch_size: int) -> Draw:
        """Draw one transition from each of `batch_size` equal ranges of the sum (Schaul et al. 2016, appendix B.2.1)."""
        targets = (np.arange(batch_size) + np.random.random(batch_size)) * (tree.total / batch_size)
        places = tree.find(targets)
        rows, envs = np.divmod(places, self.n_envs)
        return Draw(rows, envs, tree.get(places) / tree.total)

    def fetch(self, draw: Draw, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Return the batch of a draw; tensors as `sample` returns them."""
        rows, envs, _ = draw
        if self.n_steps == 1:
            last, rewards, discounts = rows, self.rewards[rows, envs].reshape(-1, 1), None
            rewards = self._normalize_reward(rewards, env)
        else:
            last, rewards, discounts = self._sum_rewards(rows, envs, env)
        cut = self._is_cut(last, envs)
        dones = (self.dones[last, envs] * (1 - cut)).reshape(-1, 1)
        return ReplayBufferSamples(
            observations=self._gather(rows, envs, 0, env),
            actions=self.to_torch(self.actions[rows, envs], copy=False),
            next_observations=self._gather(last, envs, 1, env),
            dones=self.to_torch(dones, copy=False),
            rewards=self.to_torch(rewards, copy=False),
            discounts=None if discounts is None else self.to_torch(discounts, copy=False),
        )

    def _get_samples(self, batch_inds: NDArray[np.int64], env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Return transitions of some rows, each of a drawn environment: what SB3 asks its buffers for."""
        envs = np.random.randint(0, self.n_envs, size=len(batch_inds))
        return self.fetch(Draw(np.asarray(batch_inds), envs, None), env)

    def _is_cut(self, rows: NDArray[np.int64], envs: NDArray[np.int64]) -> NDArray[np.float32]:
        """Say, as 0 or 1, after which transitions an n-step return bootstraps though nothing follows."""
        timeouts: NDArray[np.float32] = self.timeouts[rows, envs]
        if self.n_steps == 1:
            return timeouts
        newest = (rows == (self.counts[envs] - 1) % self.buffer_size) & (self.dones[rows, envs] == 0)
        cut: NDArray[np.float32] = np.maximum(timeouts, newest.astype(np.float32))
        return cut

    def _sum_rewards(
        self, rows: NDArray[np.int64], envs: NDArray[np.int64], env: VecNormalize | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """Return the last row of each n-step return, its sum of rewards and its discount, (batch, 1) both."""
        ahead = (rows[:, None] + np.arange(self.n_steps)) % self.buffer_size
        across = envs[:, None]
        ends = (self.dones[ahead, across] > 0) | (self._is_cut(ahead, across) > 0)
        length = np.where(ends.any(axis=1), ends.argmax(axis=1), self.n_steps - 1)
        counted = np.arange(self.n_steps) <= length[:, None]
        discounts = self.gamma ** np.arange(self.n_steps, dtype=np.float32)
        rewards = self._normalize_reward(self.rewards[ahead, across], env) * discounts * counted
        discount = self.gamma ** counted.sum(axis=1, keepdims=True).astype(np.float32)
        return (rows + length) % self.buffer_size, rewards.sum(axis=1, keepdims=True), discount

    def _gather(
        self, rows: NDArray[np.int64], envs: NDArray[np.int64], which: int, env: VecNormalize | None
    ) -> torch.Tensor:
        """Return observations, (batch, ...): 0 for those of the rows, 1 for those that follow them."""
        references = self.references[rows, envs, which] % self.capacity
        found: Any = self.frames[envs[:, None], references]
        found = self._normalize_obs(found if self.n_stack > 1 else found[:, 0], env)
        return self.to_torch(found, copy=False)

    def set_priorities(self, draw: Draw, errors: NDArray[Any]) -> None:
        """Give transitions new priorities, |TD error| each; those that are gone meanwhile are left out.

        Raises:
            RequestError: an error is not finite, or this memory has no priorities.
        """
        if self.priorities is None or self.priority_exponent is None:
            raise RequestError("this memory has no priorities; construct it with a priority_exponent")
        sizes = np.abs(np.asarray(errors, dtype=np.float64)) + SMALLEST_PRIORITY
        here = self.whole(draw.rows, draw.envs)
        if not here.any():
            return
        self.priorities.set(self._places(draw.rows, draw.envs)[here], sizes[here] ** self.priority_exponent)
        self.max_priority = max(self.max_priority, float(sizes[here].max()))

    def hold_back(self) -> None:
        """Keep the newest row from being drawn until `release` gives it priorities."""
        if self.priorities is None:
            raise RequestError("this memory has no priorities; construct it with a priority_exponent")
        newest = np.full(self.n_envs, (self.pos - 1) % self.buffer_size)
        self.priorities.set(self._places(newest, self._all_envs), 0.0)

    def let_go(self, count: int) -> None:
        """Give those of the newest `count` rows that were held back the largest priority so far."""
        assert self.priorities is not None
        rows = (self.pos - 1 - np.arange(count)) % self.buffer_size
        places = (rows[:, None] * self.n_envs + self._all_envs).flatten()
        here = self.whole(np.repeat(rows, self.n_envs), np.tile(self._all_envs, count))
        held = places[here & (self.priorities.get(places) == 0)]
        self.priorities.set(held, self.max_priority ** (self.priority_exponent or 0.0))

    def put_priorities(self, first: int, priorities: NDArray[np.float64], largest: float) -> None:
        """Give the rows from `first` on, counted from the very first one, priorities that another memory computed.

        Args:
            first: of the rows.
            priorities: (rows, n_envs), to the power of the exponent.
            largest: |TD error| there so far.
        """
        assert self.priorities is not None
        rows = np.arange(first, first + len(priorities)) % self.buffer_size
        self.priorities.set(self._places(rows[:, None], self._all_envs).flatten(), priorities.flatten())
        self.max_priority = max(self.max_priority, largest)

    def cut(self) -> None:
        """Say that the newest row's games go no further: new ones begin."""
        if self.adds:
            self.timeouts[self.pos - 1] = np.where(self.dones[self.pos - 1] > 0, self.timeouts[self.pos - 1], 1)

    def release(self, taken: NDArray[np.float64], bests: NDArray[np.float64], env: VecNormalize | None = None) -> None:
        """Give the row before the newest `n_steps` ones the TD errors of its n steps, by Q values from acting.

        Where a game was cut off in between, the value of the last state that was acted in stands for the one after it.

        Args:
            taken: (n_envs,), of that row's observations and actions.
            bests: (n_steps + 1, n_envs), the largest of each observation of that row and of those after it.
            env: normalises rewards.
        """
        row = (self.pos - 1 - self.n_steps) % self.buffer_size
        rows, envs = np.full(self.n_envs, row), self._all_envs
        if self.n_steps == 1:
            last, discounts = rows, np.full((self.n_envs, 1), self.gamma)
            rewards = self._normalize_reward(self.rewards[rows, envs][:, None], env)
        else:
            last, rewards, discounts = self._sum_rewards(rows, envs, env)
        length = (last - row) % self.buffer_size
        ends, cut = self.dones[last, envs] > 0, self.timeouts[last, envs] > 0
        values = np.where(cut, bests[length, envs], np.where(ends, 0.0, bests[-1]))
        self.set_priorities(Draw(rows, envs, None), rewards[:, 0] + discounts[:, 0] * values - taken)

    def weights(self, draw: Draw, exponent: float) -> NDArray[np.float32]:
        """Return importance weights (batch,), the largest 1: (N P)^-beta (Schaul et al. 2016, section 3.4)."""
        if draw.probabilities is None:
            return np.ones(len(draw.rows), dtype=np.float32)
        weights = draw.probabilities**-exponent
        scaled: NDArray[np.float32] = (weights / weights.max()).astype(np.float32)
        return scaled

    def ages(self, draw: Draw) -> NDArray[np.int64]:
        """Return how many rows ago each transition was added, (batch,)."""
        ages: NDArray[np.int64] = (self.counts[draw.envs] - 1 - draw.rows) % self.buffer_size
        return ages


def default_stack(space: spaces.Space[Any]) -> int:
    """Return how many pictures an observation of a space holds: the channels of uint8 images, but of three, else 1.

    Three channels are the colours of one picture more often than three pictures.
    """
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3 or space.shape[0] == 3:
        return 1
    return int(space.shape[0])


def _equal(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Say of each environment whether two arrays (n_envs, ...) hold the same."""
    same: NDArray[np.bool_] = (one == other).reshape(len(one), -1).all(axis=1)
    return same

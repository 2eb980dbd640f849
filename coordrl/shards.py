"""Several replay memories as one: each actor's transitions in a shard of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from coordrl.errors import RequestError
from coordrl.replay import Draw, FrameReplayBuffer


@final
class Shards(ReplayBuffer):
    """Prioritised replay memories, drawn from as if all of their transitions lay in a single one.

    Environment j of shard i has the number i n + j, for shards of n environments each.

    Args:
        shards: at least one, all alike, with priorities.

    Raises:
        RequestError: there are none, or they are not alike.
    """

    def __init__(self, shards: Sequence[FrameReplayBuffer]) -> None:
        if len({(shard.n_envs, shard.n_steps, shard.gamma, shard.buffer_size) for shard in shards}) != 1:
            raise RequestError(f"{len(shards)} shards of different kinds; they are all alike, and one at least")
        if any(shard.priorities is None for shard in shards):
            raise RequestError("a shard has no priorities; construct it with a priority_exponent")
        one = shards[0]
        self.each = one.n_envs  # environments of a shard
        BaseBuffer.__init__(
            self, len(shards) * one.buffer_size, one.observation_space, one.action_space, one.device
        )  # SB3's would allocate
        self.n_envs, self.n_steps, self.gamma = len(shards) * self.each, one.n_steps, one.gamma
        self.buffer_size = one.buffer_size
        self.shards = list(shards)

    def reset(self) -> None:
        """Forget everything."""
        for shard in self.shards:
            shard.reset()

    def size(self) -> int:
        """Return how many rows of all environments there are, rounded down."""
        return self.transitions // self.n_envs

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: transitions come to a shard.

        Raises:
            RequestError: always.
        """
        raise RequestError("transitions are added to one of the shards")

    @property
    def transitions(self) -> int:
        """How many transitions there are."""
        return sum(shard.size() for shard in self.shards) * self.each

    @property
    def drawable(self) -> bool:
        """Whether a batch can be drawn."""
        return any(shard.drawable for shard in self.shards)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw a batch; see FrameReplayBuffer.

        Raises:
            RequestError: there is nothing to draw yet.
        """
        return self.fetch(self.draw(batch_size), env)

    def draw(self, batch_size: int) -> Draw:
        """Draw one transition from each of `batch_size` equal ranges of the sum of all priorities.

        Raises:
            RequestError: there is nothing to draw yet.
        """
        totals = np.array([shard.priorities.total if shard.priorities else 0.0 for shard in self.shards])
        ends = np.cumsum(totals)
        if ends[-1] <= 0:
            raise RequestError("every priority is 0; add transitions first")
        targets = (np.arange(batch_size) + np.random.random(batch_size)) * (ends[-1] / batch_size)
        # The last target may be rounded up to the end of everything.
        which = np.minimum(np.searchsorted(ends, targets, side="right"), np.flatnonzero(totals)[-1])
        rows, envs, priorities = np.zeros(batch_size, np.int64), which * self.each, np.zeros(batch_size)
        for index, chosen in self._split(which):
            tree = self.shards[index].priorities
            assert tree is not None
            places = tree.find(targets[chosen] - (ends[index - 1] if index else 0.0))
            rows[chosen] = places // self.each
            envs[chosen] += places % self.each
            priorities[chosen] = tree.get(places)
        return Draw(rows, envs, priorities / ends[-1])

    def fetch(self, draw: Draw, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Return the batch of a draw; tensors as FrameReplayBuffer's."""
        parts, places = [], []
        for index, chosen in self._split(draw.envs // self.each):
            parts.append(self.shards[index].fetch(self._part(draw, index, chosen), env))
            places.append(np.flatnonzero(chosen))
        back = torch.as_tensor(np.argsort(np.concatenate(places)), device=self.device)
        fields: dict[str, Any] = {}
        for name in ReplayBufferSamples._fields:
            values = [getattr(part, name) for part in parts]
            fields[name] = None if values[0] is None else torch.cat(values)[back]
        return ReplayBufferSamples(**fields)

    def set_priorities(self, draw: Draw, errors: NDArray[Any]) -> None:
        """Give transitions new priorities, |TD error| each; those that are gone meanwhile are left out.

        Raises:
            RequestError: an error is not finite.
        """
        for index, chosen in self._split(draw.envs // self.each):
            self.shards[index].set_priorities(self._part(draw, index, chosen), errors[chosen])

    def weights(self, draw: Draw, exponent: float) -> NDArray[np.float32]:
        """Return importance weights (batch,), the largest 1."""
        return self.shards[0].weights(draw, exponent)

    def ages(self, draw: Draw) -> NDArray[np.int64]:
        """Return how many rows of its shard ago each transition was added, (batch,)."""
        ages = np.zeros(len(draw.rows), np.int64)
        for index, chosen in self._split(draw.envs // self.each):
            ages[chosen] = self.shards[index].ages(self._part(draw, index, chosen))
        return ages

    def _split(self, which: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Go through the shards that occur, with which of a batch are of them."""
        for index in np.unique(which):
            yield int(index), which == index

    def _part(self, draw: Draw, index: int, chosen: NDArray[np.bool_]) -> Draw:
        """Return the part of a draw that is of a shard, with the shard's own numbers of environments."""
        probabilities = None if draw.probabilities is None else draw.probabilities[chosen]
        return Draw(draw.rows[chosen], draw.envs[chosen] - index * self.each, probabilities)

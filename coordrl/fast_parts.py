"""One A2C run divided over processes: each plays its part of a rollout, and computes its part of the gradient.

Exact: all act with the weights of one version, the parts of the gradient are added, and then comes one update. What
a part draws hangs on a seed that this process draws for it before each rollout, so that a run is a function of its
seed and the number of parts, and no part has a state but its games.

`Player` plays one part, in whatever process; `Division` leads all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from coordrl.divided import DividedVecEnv, Infos, Part, PartArrays, count_bytes, pack_infos, unpack_infos
from coordrl.fast_network import ConvolutionPart, FastNetwork, Parts
from coordrl.fast_rollout import bootstrap, gradients, sample
from coordrl.losses import A2CLoss
from coordrl.workers import Memory


@dataclass(frozen=True)
class Orders:
    """What all parts need to know of a rollout."""

    gamma: float  # of the returns: the buffer's
    bootstrap_gamma: float  # of what games that time cut off would have gone on to earn: the model's, as in SB3
    gae_lambda: float  # the buffer's
    ent_coef: float
    vf_coef: float
    n_envs: int  # of all parts


class Player:
    """Plays rollouts with one part of the environments, and computes their share of the gradient."""

    def __init__(self, env: VecEnv, network: FastNetwork, arrays: PartArrays) -> None:
        self.env, self.network, self.arrays = env, network, arrays
        spaces = env.observation_space, env.action_space
        self._buffer = RolloutBuffer(network.n_steps, *spaces, device="cpu", n_envs=network.n_envs)
        self._generator = torch.Generator()

    def play(self, orders: Orders, seed: int) -> tuple[list[Infos], A2CLoss]:
        """Play from the observations and starts that the arrays hold at step 0, and fill the arrays.

        Returns the infos of each step, their images in the arrays, and the part's own loss; the gradients of the
        network are weighted with its share of all environments.
        """
        network, arrays, buffer = self.network, self.arrays, self._buffer
        buffer.gamma, buffer.gae_lambda = orders.gamma, orders.gae_lambda
        buffer.reset()
        network.refresh()
        self._generator.manual_seed(seed)
        all_infos: list[Infos] = []
        starts = arrays.starts[0]
        with torch.no_grad():
            for step in range(network.n_steps):
                observations = arrays.observations[step]
                logits, values = network.forward(observations, step)
                drawn, log_probs = sample(logits, self._generator)
                actions = drawn.numpy()
                new_obs, raw_rewards, dones, infos = self.env.step(actions)
                arrays.observations[step + 1] = np.asarray(new_obs)
                arrays.actions[step], arrays.raw_rewards[step], arrays.dones[step] = actions, raw_rewards, dones
                rewards = raw_rewards.copy()
                bootstrap(network, orders.bootstrap_gamma, rewards, dones, infos)
                all_infos.append(pack_infos(infos, arrays.finals[step]))
                buffer.add(observations, actions[:, None], rewards, starts, values, log_probs)
                starts = dones
            _, last_values = network.forward(arrays.observations[network.n_steps], network.n_steps)
            arrays.values[network.n_steps] = last_values
            buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
            loss = gradients(
                network,
                buffer,
                ent_coef=orders.ent_coef,
                vf_coef=orders.vf_coef,
                normalize_advantage=False,
                share=network.n_envs / orders.n_envs,
            )
        for name in ("rewards", "log_probs", "advantages", "returns"):
            getattr(arrays, name)[:] = getattr(buffer, name)
        arrays.values[:-1] = buffer.values
        arrays.starts[:] = buffer.episode_starts
        return all_infos, loss


def describe(parts: Parts) -> dict[str, Any]:
    """Describe the shapes of a network, for `rebuild`."""
    convolutions = [
        {
            "weight": [*part.weight.shape],
            "stride": [*part.stride],
            "coordinates": None if part.coordinates is None else [*part.coordinates.shape],
            "columns": None if part.columns is None else [*part.columns.shape],
        }
        for part in parts.convolutions
    ]
    heads = {name: [*getattr(parts, name)[0].shape] for name in ("linear", "action", "value")}
    return {"convolutions": convolutions, **heads}


def rebuild(described: dict[str, Any], numbers: Tensor, columns: Tensor) -> Parts:
    """Make the tensors of a network of which `describe` told, as views of all its numbers and all its columns."""

    def carver(memory: Tensor) -> Any:
        taken = 0

        def carve(shape: list[int]) -> Tensor:
            nonlocal taken
            size = int(np.prod(shape))
            taken += size
            return memory[taken - size : taken].view(shape)

        return carve

    weight, patches = carver(numbers), carver(columns)
    convolutions = []
    for one in described["convolutions"]:  # in the order of Parts.tensors
        image, bias = weight(one["weight"]), weight(one["weight"][:1])
        coordinates = None if one["coordinates"] is None else weight(one["coordinates"])
        kept = None if one["columns"] is None else patches(one["columns"]).numpy()
        convolutions.append(ConvolutionPart(image, bias, (one["stride"][0], one["stride"][1]), coordinates, kept))
    heads = ((weight(described[name]), weight(described[name][:1])) for name in ("linear", "action", "value"))
    return Parts(tuple(convolutions), *heads)


def floats(memory: Memory) -> Tensor:
    """Return a memory as float32 numbers."""
    return torch.frombuffer(memory.buffer, dtype=torch.float32)


class _Distant:
    """The player of a part that lives in a worker process."""

    def __init__(
        self, part: Part, weights: Memory, columns: Memory, network: FastNetwork, words: dict[str, Any]
    ) -> None:
        self.part = part
        size = sum(tensor.numel() for tensor in network.parts.tensors())
        self._memory = Memory(count_bytes(part.n_envs, network.n_steps))
        self._gradients = Memory(4 * size)
        self.arrays = PartArrays(part.n_envs, network.n_steps, self._memory.buffer)
        own = torch.split(floats(self._gradients), [tensor.numel() for tensor in network.parts.tensors()])
        self.gradients = [one.view(tensor.shape) for one, tensor in zip(own, network.parts.tensors(), strict=True)]
        fds = [weights.fd, columns.fd, self._memory.fd, self._gradients.fd]
        part.worker.tell({"do": "network", **words, "columns": columns.size, "weights": weights.size}, fds)


@final
class Division:
    """All parts of a run.

    Args:
        env: whose parts play.
        network: of the policy, for the part of this process: `env.sizes[0]` environments.
    """

    def __init__(self, env: DividedVecEnv, network: FastNetwork) -> None:
        self.env, self.network = env, network
        env.played_by = self
        self.loss: A2CLoss | None = None
        n_steps, tensors = network.n_steps, network.parts.tensors()
        weights = Memory(4 * sum(tensor.numel() for tensor in tensors))
        kept = [
            torch.from_numpy(part.columns).flatten() for part in network.parts.convolutions if part.columns is not None
        ]
        columns = Memory(max(4, 4 * sum(len(one) for one in kept)))
        if kept:
            floats(columns)[:] = torch.cat(kept)
        views = torch.split(floats(weights), [tensor.numel() for tensor in tensors])
        self._shared = [view.view(tensor.shape) for view, tensor in zip(views, tensors, strict=True)]
        self._arrays = [PartArrays(env.sizes[0], n_steps)]
        self._player = Player(env.mine, network, self._arrays[0])
        words = {"n_steps": n_steps, "network": describe(network.parts)}
        self._distant = [_Distant(part, weights, columns, network, words) for part in env.parts]
        self._arrays += [one.arrays for one in self._distant]

    def collect(self, model: A2C, callback: BaseCallback, buffer: RolloutBuffer) -> bool | None:
        """Play a rollout, fill the buffer, and compute the network's gradients; what `loss` is then of.

        Returns whether to go on; None if a callback changed the weights, so that the gradients are not theirs.
        """
        with one_thread():
            infos = self._play(model, buffer)
        self._fill(buffer)
        went_on = self._show(model, callback, buffer, infos)
        self.env.note_lives(infos[-1])
        if not went_on:
            return False
        callback.on_rollout_end()
        return None if self.network.is_stale() else True

    def _play(self, model: A2C, buffer: RolloutBuffer) -> list[Infos]:
        """Let all parts play; returns the infos of each step."""
        orders = Orders(
            gamma=float(buffer.gamma),
            bootstrap_gamma=float(model.gamma),
            gae_lambda=float(buffer.gae_lambda),
            ent_coef=float(model.ent_coef),
            vf_coef=float(model.vf_coef),
            n_envs=self.env.num_envs,
        )
        observations, starts = np.asarray(model._last_obs), model._last_episode_starts
        assert starts is not None
        for one in self._distant:  # interrupted, it may still write to these arrays
            one.part.worker.settle()
        for arrays, chosen in zip(self._arrays, self.env.slices, strict=True):
            arrays.observations[0], arrays.starts[0] = observations[chosen], starts[chosen]
        seeds = torch.randint(2**32, (len(self._arrays),)).tolist()
        with torch.no_grad():
            torch._foreach_copy_(self._shared, self.network.parts.tensors())
        try:
            for one, seed in zip(self._distant, seeds[1:], strict=True):
                one.part.worker.tell({"do": "play", "orders": asdict(orders), "seed": seed})
            mine, loss = self._player.play(orders, seeds[0])
            answers = [one.part.worker.answer() for one in self._distant]
        except BaseException:  # an interruption most of all: the model may well be used again
            for one in self._distant:
                one.part.worker.forsake()
            model._last_obs = None  # the games have gone on, nobody knows how far: `learn` begins new ones
            raise
        all_infos = [unpack_infos(packed, finals) for packed, finals in zip(mine, self._arrays[0].finals, strict=True)]
        for one, answer in zip(self._distant, answers, strict=True):
            for infos, packed, finals in zip(all_infos, answer["infos"], one.arrays.finals, strict=True):
                infos += unpack_infos(packed, finals)
        own = [self.network.gradients[tensor] for tensor in self.network.parts.tensors()]
        for one in self._distant:
            torch._foreach_add_(own, one.gradients)
        parts = [[float(part) for part in found] for found in (loss[:3], *(answer["loss"] for answer in answers))]
        policy, value, entropy = torch.from_numpy(np.average(parts, axis=0, weights=self.env.sizes))
        self.loss = A2CLoss(policy, value, entropy, loss.logits, loss.values)
        return all_infos

    def _whole(self, name: str) -> Any:
        """Return an array of all environments, (n_steps, n_envs, ...)."""
        return np.concatenate([getattr(arrays, name) for arrays in self._arrays], axis=1)

    def _fill(self, buffer: RolloutBuffer) -> None:
        """Fill SB3's buffer, for callbacks and its own `train`."""
        buffer.reset()
        for arrays, chosen in zip(self._arrays, self.env.slices, strict=True):
            buffer.observations[:, chosen] = arrays.observations[:-1]
            buffer.actions[:, chosen] = arrays.actions[:, :, None]
            buffer.episode_starts[:, chosen] = arrays.starts
            buffer.values[:, chosen] = arrays.values[:-1]
            for name in ("rewards", "log_probs", "advantages", "returns"):
                getattr(buffer, name)[:, chosen] = getattr(arrays, name)
        buffer.pos, buffer.full = buffer.buffer_size, True

    def _show(self, model: A2C, callback: BaseCallback, buffer: RolloutBuffer, infos: list[Infos]) -> bool:
        """Show the callback every step, as SB3 would have; returns whether to go on."""
        observations, actions, dones = self._whole("observations"), self._whole("actions"), self._whole("dones") > 0
        rewards, values, log_probs = (self._whole(name) for name in ("raw_rewards", "values", "log_probs"))
        model._last_obs, model._last_episode_starts = observations[-1], dones[-1]
        for step, found in enumerate(infos):
            model.num_timesteps += self.env.num_envs
            callback.update_locals(
                {
                    "self": model,
                    "env": self.env,
                    "callback": callback,
                    "rollout_buffer": buffer,
                    "n_rollout_steps": len(infos),
                    "n_steps": step,
                    "obs_tensor": torch.from_numpy(observations[step]),
                    "actions": actions[step],
                    "clipped_actions": actions[step],
                    "values": torch.from_numpy(values[step])[:, None],
                    "log_probs": torch.from_numpy(log_probs[step]),
                    "new_obs": observations[step + 1],
                    "rewards": rewards[step],
                    "dones": dones[step],
                    "infos": found,
                }
            )
            if not callback.on_step():
                for late, over in zip(infos[step:], dones[step:], strict=True):  # played, whether wanted or not
                    model._update_info_buffer(late, over)
                return False
            model._update_info_buffer(found, dones[step])
        last = {"values": torch.from_numpy(values[-1])[:, None], "rewards": self._whole("rewards")[-1]}
        callback.update_locals({"n_steps": len(infos), **last})
        return True


def may_be_late(callback: BaseCallback | None) -> bool:
    """Whether a callback may hear of a rollout's steps when all of them are over.

    A class of callbacks says so by a class attribute of this name, or an instance by one of its own. Such a callback
    leaves the rollout as it is: the update's gradients are there already, so that changes of the rollout buffer or of
    the loss's weights come too late. One that stops in mid-rollout stops after games that have gone on to its end.
    """
    if isinstance(callback, CallbackList):
        return all(may_be_late(one) for one in callback.callbacks)
    if callback is None or isinstance(callback, ProgressBarCallback):
        return True
    if type(callback) is ConvertCallback:
        return callback.callback is None
    return bool(getattr(callback, "may_be_late", False))


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: the other cores have parts of their own.

    That goes for the smallest operation. After two threads' work, OpenMP's second one spins for milliseconds.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""A2C as stable-baselines3 has it, and faster where its network is one whose function we know."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, final

import stable_baselines3
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from coordrl import fast_rollout
from coordrl.divided import DividedVecEnv
from coordrl.fast_network import FastNetwork, make_network
from coordrl.fast_parts import Division, may_be_late, one_thread
from coordrl.losses import A2CLoss
from coordrl.signatures import extends


@final
class A2C(stable_baselines3.A2C):
    """SB3's A2C (Mnih et al. 2016), with the same constructor, callbacks, logger, `learn`, `save` and `load`.

    With a network of the NatureCNN family (SB3's own, and coordrl's nature, coord, coord-r, coord-all,
    shuffled and constant) on a CPU, acting keeps its activations and each update is one batched backward
    pass without autograd: the same loss and gradients up to float32's rounding. Everything else is
    SB3's own code: bit for bit SB3's A2C.

    On a `coordrl.DividedVecEnv`, each of its processes plays its part of a rollout and computes its part of the
    gradient. Callbacks then hear of a rollout's steps when all of them are over. One that does not say that it
    may (a class attribute `may_be_late = True`) hears of each step at once, and the network stays in one process.

    Args:
        *args: as SB3's.
        fast: False keeps to SB3's own code always.
        **kwargs: as SB3's.

    Attributes:
        path: how the last rollout was computed, in words: "fast", or "general" with the reason.
    """

    @extends(stable_baselines3.A2C.__init__)
    def __init__(self, *args: Any, fast: bool = True, **kwargs: Any) -> None:
        self.fast = fast
        self.path = "general: nothing was learnt yet"
        self._network: FastNetwork | None = None
        self._division: Division | None = None
        self._kept: RolloutBuffer | None = None  # of whose whole rollout the network holds the activations
        self._loss: A2CLoss | None = None  # of the rollout, where its gradients are there already
        super().__init__(*args, **kwargs)

    def choose_path(self) -> str:
        """Choose how the next rollout will be computed, and return it in words, as `path` holds it."""
        self._choose_network(self.env, None, self.rollout_buffer, self.n_steps)
        return self.path

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Play a rollout into the buffer; returns False if a callback asked to stop."""
        self._kept, self._loss = None, None
        choose = (env, callback, rollout_buffer, n_rollout_steps)
        if self._network is None and self._choose_network(*choose) is None:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        network = self._choose_network(*choose)  # only now: that may have changed the policy
        if network is None:
            begun: Any = _Begun(callback)
            return super().collect_rollouts(env, begun, rollout_buffer, n_rollout_steps)
        if self._division is not None:
            went_on = self._division.collect(self, callback, rollout_buffer)
            self._loss = self._division.loss
        else:
            arguments = (self, network, env, callback, rollout_buffer, n_rollout_steps)
            went_on = fast_rollout.collect(*arguments, watch=not may_be_late(callback))
        self._kept = rollout_buffer if went_on is True else None
        return went_on is not False

    def train(self) -> None:
        """Make one update from the rollout buffer."""
        if self._network is None or not self._is_kept(self._network):
            super().train()
            return
        loss = self._loss
        if loss is None:
            loss = fast_rollout.gradients(
                self._network,
                self.rollout_buffer,
                ent_coef=self.ent_coef,
                vf_coef=self.vf_coef,
                normalize_advantage=self.normalize_advantage,
            )
        for parameter, gradient in self._network.gradients.items():
            parameter.grad = gradient
        with one_thread() if self._division is not None else nullcontext():
            fast_rollout.update(self, loss)
        self._kept, self._loss = None, None

    def _is_kept(self, network: FastNetwork) -> bool:
        """Whether the activations are still those of the update.

        Nobody has changed or frozen weights meanwhile, or changed the network in any other way; nor put another buffer
        into the place of the one that was filled, or drawn from it, which puts its rows in another order.
        """
        if self._kept is not self.rollout_buffer or self.rollout_buffer.generator_ready:
            return False
        return not network.is_stale(thorough=True) and network.belongs_to(self.policy)

    def _choose_network(
        self, env: VecEnv | None, callback: BaseCallback | None, buffer: RolloutBuffer, n_steps: int
    ) -> FastNetwork | None:
        """Return the fast network for a rollout, or None and the reason in `path`; and choose the division."""
        self.path = self._rule_out(buffer)
        if self.path:
            self._network = self._division = None
            return None
        divided = self._divides(env, callback)
        n_envs = divided.sizes[0] if divided else self.n_envs
        kept = self._network
        if kept is None or not kept.belongs_to(self.policy) or (kept.n_envs, kept.n_steps) != (n_envs, n_steps):
            self._division = None
            made = make_network(self.policy, n_envs, n_steps)
            if isinstance(made, str):
                self.path = f"general: {made}"
                self._network = None
                return None
            self._network = made
        assert self._network is not None
        if divided is None:
            self._division = None
        elif self._division is None or divided.played_by is not self._division:
            self._division = Division(divided, self._network)
        self.path = f"fast, divided over {len(divided.sizes)} processes" if divided else "fast"
        return self._network

    def _rule_out(self, buffer: RolloutBuffer) -> str:
        """Say why the general path is taken whatever the network is, or return ""."""
        if not self.fast:
            return "general: the fast path is switched off"
        if type(buffer) is not RolloutBuffer:
            return f"general: the rollout buffer is a {type(buffer).__name__}"
        return ""

    def _divides(self, env: VecEnv | None, callback: BaseCallback | None) -> DividedVecEnv | None:
        """Return the environments if a rollout can be divided over their processes, else None."""
        if not isinstance(env, DividedVecEnv) or not env.parts or not may_be_late(callback):
            return None
        return None if self.normalize_advantage else env  # that needs the advantages of all parts at once

    def _excluded_save_params(self) -> list[str]:
        """Name what is no part of a saved model."""
        return [*super()._excluded_save_params(), "_network", "_division", "_kept", "_loss", "path"]


class _Begun:
    """A callback that has been told already that the rollout starts."""

    def __init__(self, callback: BaseCallback) -> None:
        self._callback = callback

    def on_rollout_start(self) -> None:
        """Say nothing twice."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._callback, name)

"""A2C as stable-baselines3 has it, and faster where its network is one whose function we know."""

from __future__ import annotations

from typing import Any, final

import stable_baselines3
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from coordrl import fast_rollout
from coordrl.fast_network import FastNetwork, make_network


@final
class A2C(stable_baselines3.A2C):
    """SB3's A2C (Mnih et al. 2016), with the same constructor, callbacks, logger, `learn`, `save` and `load`.

    With a network of the NatureCNN family (SB3's own, and coordrl's nature, coord, coord-r, coord-all,
    shuffled and constant) on a CPU, acting keeps its activations and each update is one batched backward
    pass without autograd: the same loss and gradients up to float32's rounding. Everything else is
    SB3's own code: bit for bit SB3's A2C.

    Args:
        *args: as SB3's.
        fast: False keeps to SB3's own code always.
        **kwargs: as SB3's.

    Attributes:
        path: how the last rollout was computed, in words: "fast", or "general" with the reason.
    """

    def __init__(self, *args: Any, fast: bool = True, **kwargs: Any) -> None:
        self.fast = fast
        self.path = "general: nothing was learnt yet"
        self._network: FastNetwork | None = None
        self._kept = False  # the network holds the activations of the whole rollout
        super().__init__(*args, **kwargs)

    def choose_path(self) -> str:
        """Choose how the next rollout will be computed, and return it in words, as `path` holds it."""
        self._choose_network(self.rollout_buffer, self.n_steps)
        return self.path

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Play a rollout into the buffer; returns False if a callback asked to stop."""
        network = self._choose_network(rollout_buffer, n_rollout_steps)
        if network is None:
            self._kept = False
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        went_on = fast_rollout.collect(self, network, env, callback, rollout_buffer, n_rollout_steps)
        self._kept = went_on is True
        return went_on is not False

    def train(self) -> None:
        """Make one update from the rollout buffer."""
        if self._kept and self._network is not None:
            fast_rollout.update(self, self._network, self.rollout_buffer)
            self._kept = False
        else:
            super().train()

    def _choose_network(self, buffer: RolloutBuffer, n_steps: int) -> FastNetwork | None:
        """Return the fast network for a rollout, or None and the reason in `path`."""
        if not self.fast:
            self.path = "general: the fast path is switched off"
            return None
        if type(buffer) is not RolloutBuffer:
            self.path = f"general: the rollout buffer is a {type(buffer).__name__}"
            return None
        kept = self._network
        if kept is None or not kept.belongs_to(self.policy) or (kept.n_envs, kept.n_steps) != (self.n_envs, n_steps):
            made = make_network(self.policy, self.n_envs, n_steps)
            if isinstance(made, str):
                self.path = f"general: {made}"
                self._network = None
                return None
            self._network = made
        self.path = "fast"
        return self._network

    def _excluded_save_params(self) -> list[str]:
        """Name what is no part of a saved model."""
        return [*super()._excluded_save_params(), "_network", "_kept", "path"]

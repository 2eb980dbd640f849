"""The worker process of a divided vector of environments: `python -m coordrl.divided_worker`, for workers.py alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch

from coordrl.atari import AtariVecEnv
from coordrl.divided import PartArrays, count_bytes, pack_infos
from coordrl.fast_network import FastNetwork
from coordrl.fast_parts import Orders, Player, floats, rebuild
from coordrl.journal import Games
from coordrl.workers import Memory, Message, serve


@final
class Servant:
    """Does what it is asked for with its part of the environments."""

    env: AtariVecEnv
    arrays: PartArrays
    player: Player | None = None

    def answer(self, request: Message, fds: Sequence[int]) -> dict[str, Any]:
        """Answer a request: make, reset, save, load, step, network, play."""
        found: dict[str, Any] = getattr(self, f"do_{request['do']}")(request, fds)
        return found

    def do_make(self, request: Message, fds: Sequence[int]) -> dict[str, Any]:
        """Make the environments, with the memory in which they are stepped."""
        n_envs = request["n_envs"]
        self._memory = Memory(count_bytes(n_envs, 1), fds[0])
        self.arrays = PartArrays(n_envs, 1, self._memory.buffer)
        self.env = AtariVecEnv(n_envs=n_envs, num_threads=1, **request["words"])
        return {}

    def do_reset(self, request: Message, fds: Sequence[int]) -> dict[str, Any]:
        """Start new games."""
        if request["seed"] is not None:
            self.env.seed(request["seed"])
        self.arrays.observations[0] = self.env.reset()
        return {"infos": self.env.reset_infos}

    def do_save(self, request: Message, fds: Sequence[int]) -> dict[str, Any]:
        """Return the state of the games."""
        games = self.env.save_games()
        return {"games": None if games is None else games.to_message()}

    def do_load(self, request: Message, fds: Sequence[int]) -> dict[str, Any]:
        """Play the games to a state."""
        self.arrays.observations[0] = self.env.load_games(Games.from_message(request["games"]))
        return {}

    def do_step(self, request: Message, fds: Sequence[int]) -> dict[str, Any]:
        """Take the actions that the arrays hold."""
        arrays = self.arrays
        observations, rewards, dones, infos = self.env.step(arrays.actions[0])
        arrays.observations[0], arrays.raw_rewards[0], arrays.dones[0] = np.asarray(observations), rewards, dones
        return {"infos": pack_infos(infos, arrays.finals[0])}

    def do_network(self, request: Message, fds: Sequence[int]) -> dict[str, Any]:
        """Make the network on the shared weights, with memory for rollouts and for gradients."""
        self.player = None  # whatever happens now, nobody goes on with the one before
        n_envs, n_steps = self.env.num_envs, request["n_steps"]
        self._shared = Memory(request["weights"], fds[0]), Memory(request["columns"], fds[1])
        parts = rebuild(request["network"], *(floats(memory) for memory in self._shared))
        self._rollout = Memory(count_bytes(n_envs, n_steps), fds[2])
        self._gradients = Memory(request["weights"], fds[3])
        sizes = [tensor.numel() for tensor in parts.tensors()]
        own = torch.split(floats(self._gradients), sizes)
        gradients = [one.view(tensor.shape) for one, tensor in zip(own, parts.tensors(), strict=True)]
        channels, height, width = self.env.observation_space.shape or (0, 0, 0)
        network = FastNetwork(parts, (channels, height, width), n_envs, n_steps, gradients)
        self.player = Player(self.env, network, PartArrays(n_envs, n_steps, self._rollout.buffer))
        return {}

    def do_play(self, request: Message, fds: Sequence[int]) -> dict[str, Any]:
        """Play a rollout and compute its gradient."""
        assert self.player is not None, "no network was made"
        infos, loss = self.player.play(Orders(**request["orders"]), request["seed"])
        return {"infos": infos, "loss": [part.item() for part in loss[:3]]}


def main() -> None:
    """Serve until the parent ends."""
    torch.set_num_threads(1)
    serve(Servant().answer)


if __name__ == "__main__":
    main()

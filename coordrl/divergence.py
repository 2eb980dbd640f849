"""When the numbers of a training are no numbers any more: found out, said, and kept for whoever looks for the cause."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from coordrl.arrays import array_bytes
from coordrl.dqn import DQN
from coordrl.errors import DivergedError
from coordrl.files import write_json
from coordrl.results import RunFolder, Spec

BATCH = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
LOSSES = ("train/loss", "train/policy_loss", "train/value_loss", "train/entropy_loss")


@final
class Divergence:
    """Watches the numbers of a run's model."""

    def __init__(self, spec: Spec, folder: RunFolder, model: BaseAlgorithm) -> None:
        self._spec, self._folder, self._model = spec, folder, model

    def check_losses(self) -> None:
        """Stop where a loss is not a number any more: nothing good comes after it.

        Raises:
            DivergedError: there is one.
        """
        for name in LOSSES:
            value = self._model.logger.name_to_value.get(name, 0.0)
            if not math.isfinite(value):
                raise self.error(f"{name} is {value}")

    def check_weights(self) -> None:
        """Stop where a weight is not a number any more: such a checkpoint would be worth nothing.

        Raises:
            DivergedError: there is one.
        """
        for name, parameter in self._model.policy.named_parameters():
            if not torch.isfinite(parameter).all():
                raise self.error(f"{name} is not finite")

    def error(self, sign: str) -> DivergedError:
        """Make the error that says how the training diverged."""
        kept = f"The last good checkpoint is kept in {self._folder.checkpoints}"
        if not self._folder.checkpoints.is_dir():
            kept = "There was no checkpoint yet"
        return DivergedError(
            f"the training diverged at step {self._model.num_timesteps:,}: {sign}. {kept}; try a smaller learning rate, in"
            " another folder: --set learning_rate=... --out ..."
        )

    def record(self, error: DivergedError) -> None:
        """Write diverged.json, and the batch of the update that it came to light after, as .npy in diverged/.

        A comparison counts such a run with the games that it finished before.
        """
        returns = [episode["r"] for episode in self._model.ep_info_buffer or ()]
        facts = {"spec": asdict(self._spec), "step": self._model.num_timesteps, "sign": str(error), "returns": returns}
        write_json(self._folder.diverged_file, facts)
        with suppress(OSError):  # a disk that is full for it is no reason to call this anything but diverged
            for name, values in self._last_batch().items():
                self._folder.diverged_batch.mkdir(exist_ok=True)
                (self._folder.diverged_batch / f"{name}.npy").write_bytes(array_bytes(values))

    def _last_batch(self) -> dict[str, NDArray[Any]]:
        """Return what the last update was made from, by name."""
        if isinstance(self._model, DQN):
            batch = self._model.last_batch._asdict() if self._model.last_batch else {}
            return {name: value.cpu().numpy() for name, value in batch.items() if value is not None}
        buffer = getattr(self._model, "rollout_buffer", None)
        return {} if buffer is None else {name: np.asarray(getattr(buffer, name)) for name in BATCH}

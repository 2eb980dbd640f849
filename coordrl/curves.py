"""The TensorBoard view of a run: everything in it also stands in the run's logs, which are the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from coordrl.coordinates import draw_maps
from coordrl.results import Spec
from coordrl.suites import FRAMES_PER_STEP


@final
class TensorBoardView:
    """Writes a run's rows as TensorBoard scalars, its position maps as images, its recipe as text.

    Args:
        folder: the run's tensorboard/.
        resumed_at: the step of the checkpoint that the run goes on from. What an earlier process wrote
            after it is taken back, so that the curve stays one line.
    """

    def __init__(self, folder: Path, *, resumed_at: int | None) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=None if resumed_at is None else resumed_at + 1)

    def write_spec(self, spec: Spec, recipe: str, command: str) -> None:
        """Write the recipe and the command as text, and the hyper-parameters."""
        self._writer.add_text("recipe", f"```toml\n{recipe}```", 0)
        self._writer.add_text("command", f"    {command}", 0)
        flat = {name: value for name, value in asdict(spec).items() if name != "settings"}
        metrics = {"rollout/ep_rew_mean": None, "eval/mean_reward": None}
        # Not add_hparams: it would make a run of its own.
        for summary in hparams({**flat, **spec.settings}, metrics):  # type: ignore[no-untyped-call]
            self._writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Write a row of progress.jsonl."""
        step = row["step"]
        self._scalar("time/fps", row["steps_per_second"], step)
        self._scalar("time/frames", row["frames"], step)
        self._scalar("rollout/ep_rew_mean", row["return_mean"], step)
        self._scalar("rollout/ep_len_mean", row["length_mean"], step)
        self._scalar("rollout/games", row["games_finished"], step)
        for name, value in {**row["train"], **row["coordinates"]}.items():
            self._scalar(name, value, step)

    def write_evaluation(self, row: Mapping[str, Any]) -> None:
        """Write a row of evaluations.jsonl: the score with its spread."""
        step, returns = row["step"], np.array(row["returns"])
        self._scalar("eval/mean_reward", row["mean"], step)
        self._scalar("eval/std_reward", row["std"], step)
        self._scalar("eval/min_reward", returns.min(), step)
        self._scalar("eval/max_reward", returns.max(), step)
        self._scalar("eval/mean_ep_length", np.mean(row["lengths"]), step)
        self._scalar("eval/frames", step * FRAMES_PER_STEP, step)
        self._writer.add_histogram("eval/returns", returns, step)

    def write_maps(self, maps: NDArray[np.float32], step: int) -> None:
        """Write position maps, (filters, height, width), as one picture."""
        self._writer.add_image("coordinates/position_maps", draw_maps(maps), step, dataformats="HWC")

    def flush(self) -> None:
        """Force what was written to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()

    def _scalar(self, name: str, value: float | None, step: int) -> None:
        if value is not None:
            self._writer.add_scalar(name, float(value), step)

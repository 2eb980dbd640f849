"""The TensorBoard view of a run: everything in it also stands in the run's logs, which are the source."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from coordrl.arrays import parse_array
from coordrl.files import read_rows
from coordrl.heatmaps import draw_maps
from coordrl.results import RunFolder, Spec


@final
class TensorBoardView:
    """Writes a run's rows as TensorBoard scalars, its position maps as images, its recipe as text.

    The view of a resumed run is made anew from its logs. (TensorBoard's own way to take events back,
    `purge_step`, is not known to the data server that it reads with by default.)

    Args:
        folder: the run.
        seconds: that the run has taken so far, in all of its processes.
    """

    def __init__(self, folder: RunFolder, seconds: float) -> None:
        shutil.rmtree(folder.tensorboard, ignore_errors=True)
        self._writer = SummaryWriter(str(folder.tensorboard))
        self._started = time.time() - seconds  # so that the axis of relative time is the run's own
        self._now: float | None = None
        for row in read_rows(folder.progress_file):
            self._now = self._started + row["seconds"]
            self.write_row(row)
        for row in read_rows(folder.evaluations_file):
            self._now = self._started + row["seconds"]
            self.write_evaluation(row)
        for file, step in folder.position_maps():
            self.write_maps(parse_array(file.read_bytes()), step)
        self._now = None

    def write_spec(self, spec: Spec, recipe: str, command: str) -> None:
        """Write the recipe and the command as text, and the hyper-parameters."""
        self._writer.add_text("recipe", f"```toml\n{recipe}```", 0)
        self._writer.add_text("command", f"    {command}", 0)
        flat = {name: value for name, value in asdict(spec).items() if name != "settings"}
        metrics = {"rollout/ep_rew_mean": None, "eval/mean_reward": None}
        # Not add_hparams: it would make a run of its own.
        for summary in hparams({**flat, **spec.settings}, metrics):  # type: ignore[no-untyped-call]  # torch has no hints here
            self._writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]  # nor here

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Write a row of progress.jsonl."""
        step = row["step"]
        self._scalar("time/fps", row["steps_per_second"], step)
        self._scalar("time/frames", row["frames"], step)
        for name in ("updates_per_second", "samples_per_second"):  # of an agent with a replay memory
            self._scalar(f"time/{name}", row.get(name), step)
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
        self._scalar("eval/frames", row["frames"], step)
        self._writer.add_histogram("eval/returns", returns, step, walltime=self._now)

    def write_maps(self, maps: NDArray[np.float32], step: int) -> None:
        """Write position maps, (filters, height, width), as one picture."""
        self._writer.add_image(
            "coordinates/position_maps", draw_maps(maps), step, walltime=self._now, dataformats="HWC"
        )

    def flush(self) -> None:
        """Force what was written to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()

    def _scalar(self, name: str, value: float | None, step: int) -> None:
        if value is not None:
            self._writer.add_scalar(name, float(value), step, walltime=self._now)

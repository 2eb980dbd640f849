"""What happens beside the learning: log rows, position maps, evaluations, checkpoints, stopping, the result."""

from __future__ import annotations

import math
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from coordrl.algorithms import environment_seed
from coordrl.arrays import array_bytes
from coordrl.checkpoint import needed_segments, write_checkpoint
from coordrl.console import ProgressLine, format_seconds, time_left
from coordrl.coordinates import first_coordconv, position_maps, weight_norms
from coordrl.curves import TensorBoardView
from coordrl.divergence import Divergence
from coordrl.dqn import DQN
from coordrl.errors import ResumableError, StoppedError
from coordrl.evaluation import describe_games, evaluate
from coordrl.faults import reach
from coordrl.files import append_row, read_rows, replace_data, replace_file, sync_file, write_json
from coordrl.marks import Marks, is_due
from coordrl.options import Options
from coordrl.replay import FrameReplayBuffer
from coordrl.results import ROWS, WINDOW, RunFolder, Spec
from coordrl.segments import Segment, Segments, drop
from coordrl.snapshot import snapshot
from coordrl.stopping import StopSignals
from coordrl.suites import ATARI, find_protocol
from coordrl.watchdog import Watchdog

MAPS = 20  # pictures of the position maps over a run


@final
class Course(BaseCallback):
    """What happens beside the learning: rows, evaluations, checkpoints, stopping.

    Everything happens between two updates (SB3 calls `on_rollout_start` there), where the weights, the
    optimiser and the counters belong together.
    """

    may_be_late = True  # of the steps of a rollout it notes finished games alone

    def __init__(
        self,
        spec: Spec,
        folder: RunFolder,
        options: Options,
        model: BaseAlgorithm,
        view: TensorBoardView,
        line: ProgressLine,
        signals: StopSignals,
        watchdog: Watchdog,
        marks: Marks,
        conditions: Mapping[str, Any],
        replay: Sequence[Segment] = (),
    ) -> None:
        super().__init__()
        self.spec, self.folder, self.options, self.view, self.line = spec, folder, options, view, line
        self._signals, self._watchdog = signals, watchdog
        self._marks, self._conditions = marks, dict(conditions)
        self.divergence = Divergence(spec, folder, model)
        self._layer = first_coordconv(model)
        begins_at = model.num_timesteps
        self._row_every = max(spec.steps // ROWS, 1)
        self._map_every = max(spec.steps // MAPS, 1)
        self._last_checkpoint = begins_at
        self._kept = begins_at or None  # the step of a checkpoint that is there and sound
        memory = getattr(model, "replay_buffer", None)
        self._refills, self._segments = False, None
        if isinstance(memory, FrameReplayBuffer) and not memory.parts:  # what actors elsewhere fill is not kept
            # One that has taken less than the run has played was lost on the way.
            self._refills = memory.adds * memory.n_envs < begins_at
            self._segments = Segments(folder.replay, memory, replay)
        self._began = self._row_time = time.monotonic()
        self._rate_from = begins_at  # the step at `_row_time`
        self._updates_from = model._n_updates  # there
        self._busy = 0.0  # seconds in evaluations and checkpoints since then
        model.set_logger(Logger(folder=None, output_formats=[]))  # SB3's values are read from it, see _row

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0:
            self._draw_maps()

    def _on_step(self) -> bool:
        reach("step")
        self._watchdog.beat()
        for info in self.locals["infos"]:
            if "episode" in info:
                self._marks.games.append([self.num_timesteps, info["episode"]["r"], info["episode"]["l"]])
        return True

    def _on_rollout_start(self) -> None:
        step = self.model.num_timesteps
        reach("update")
        self._watchdog.beat()
        self.divergence.check_losses()
        if self._segments is not None:
            self._segments.seal_if_due()
            self._hold_updates()
        self.line.update(step, lambda: self._describe(step))
        if is_due(self._row_every, self._marks.row, step):
            self._write_row()
        if is_due(self._map_every, self._marks.map, step):
            self._draw_maps()
        if self._signals.received:
            self._stop()
        if is_due(self.options.eval_every, self._marks.evaluation, step):
            self._evaluate()
        if is_due(self.options.checkpoint_every, self._last_checkpoint, step):
            self._write_checkpoint()

    def _hold_updates(self) -> None:
        """Let a DQN that has lost its replay memory play until that is as full as at its first update.

        It would learn at once, from batches of a handful of transitions. (Raising `learning_starts` would not do: it
        makes the play random as well.)
        """
        if self._refills and isinstance(self.model, DQN):
            memory = self.model.replay_buffer
            assert memory is not None
            self._refills = memory.size() < min(self.model.learning_starts // memory.n_envs, memory.buffer_size)
            self.model.gradient_steps = 0 if self._refills else int(self.spec.settings["gradient_steps"])

    def wait(self) -> None:
        """Say that nothing is there to do, which is no standstill."""
        self._watchdog.beat()

    def keep(self) -> None:
        """Write a checkpoint before an error ends the run."""
        self._write_checkpoint()

    def finish(self) -> None:
        """Write the last row, the last evaluation, the last checkpoint, SB3's export, and the result."""
        self.divergence.check_losses()
        self.divergence.check_weights()
        step = self.model.num_timesteps
        if step > self._marks.row:
            self._write_row()
        if step > self._marks.map:
            self._draw_maps()
        evaluation = read_rows(self.folder.evaluations_file)[-1:]
        if self.options.eval_every > 0 and step > self._marks.evaluation:
            evaluation = [self._evaluate()]
        self._write_checkpoint()
        self._export()
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        seconds = self._seconds()
        result = {
            "spec": asdict(self.spec),
            "steps": step,
            "frames": self.spec.frames(step),
            "games_finished": self._marks.games_finished,
            "final_return": float(np.mean(returns)) if returns else None,
            "final_return_games": len(returns),
            "final_returns": returns,
            "evaluation": evaluation[0] if evaluation else None,
            "seconds": round(seconds, 3),
            "steps_per_second": round(step / seconds, 1),
        }
        write_json(self.folder.result_file, result)
        reach("remove")
        shutil.rmtree(self.folder.replay, ignore_errors=True)
        self.folder.diverged_file.unlink(missing_ok=True)  # of an earlier try
        shutil.rmtree(self.folder.diverged_batch, ignore_errors=True)
        self.line.say(f"done after {format_seconds(seconds)} of training: {_final_return(returns)}")
        if evaluation:
            row = evaluation[0]
            self.line.say(f"score {row['mean']:,.1f} (spread {row['std']:,.1f}) over {len(row['returns'])} whole games")
        path = shlex.quote(str(self.folder.path))
        self.line.say(f"curves: tensorboard --logdir {path}")
        if find_protocol(self.spec.protocol).world is ATARI:
            self.line.say(f"video:  coordrl play {path}")

    def _describe(self, step: int) -> str:
        """Say where the training is."""
        rate = (step - self._rate_from) / max(time.monotonic() - self._row_time - self._busy, 1e-9)
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        mean = f"mean return {np.mean(returns):,.1f} (last {len(returns)} games)" if returns else "no game finished yet"
        speed = f"{rate:,.0f} steps/s" if step > self._rate_from else ""
        learning = ""
        if "buffer_size" in self.spec.settings and step > self._rate_from:
            updates, samples = self._throughput()
            learning = f"{updates:,.0f} updates/s, {samples:,.0f} samples/s ({samples / max(rate, 1e-9):.2f} a step)"
        return " · ".join(part for part in (f"{self.spec.frames(step):,} frames", speed, learning, mean) if part)

    def _throughput(self) -> tuple[float, float]:
        """Return updates and samples per second since the last row."""
        elapsed = max(time.monotonic() - self._row_time - self._busy, 1e-9)
        updates = (self.model._n_updates - self._updates_from) / elapsed
        return updates, updates * self.spec.settings["batch_size"]

    def _row(self) -> dict[str, Any]:
        """Make the row of progress.jsonl for the steps since the last one."""
        model, step = self.model, self.model.num_timesteps
        window = model.ep_info_buffer or ()
        elapsed = time.monotonic() - self._row_time - self._busy
        losses = {name: value for name, value in model.logger.name_to_value.items() if name.startswith("train/")}
        if "rollout/exploration_rate" in model.logger.name_to_value:
            losses["rollout/exploration_rate"] = model.logger.name_to_value["rollout/exploration_rate"]
        norms = weight_norms(self._layer) if self._layer is not None else {}
        learning: dict[str, float] = {}
        if "buffer_size" in self.spec.settings:
            updates, samples = self._throughput()
            learning = {"updates_per_second": round(updates, 1), "samples_per_second": round(samples, 1)}
        return {
            "step": step,
            "frames": self.spec.frames(step),
            "seconds": round(self._seconds(), 3),
            "steps_per_second": round((step - self._rate_from) / max(elapsed, 1e-9), 1),
            **learning,
            "return_mean": _mean(episode["r"] for episode in window),
            "length_mean": _mean(episode["l"] for episode in window),
            "games_finished": self._marks.games_finished,
            "games": self._marks.games,
            "train": {name: _finite(value) for name, value in losses.items()},
            "coordinates": {f"coordinates/{name}": _finite(value) for name, value in norms.items()},
        }

    def _write_row(self) -> None:
        self._marks.games_finished += len(self._marks.games)
        row = self._row()
        append_row(self.folder.progress_file, row)
        self.view.write_row(row)
        self._marks.games = []
        self._marks.row = self._rate_from = row["step"]
        self._updates_from = self.model._n_updates
        self._row_time, self._busy = time.monotonic(), 0.0

    def _draw_maps(self) -> None:
        """Keep the position maps of this moment, and show them in TensorBoard."""
        self._marks.map = step = self.model.num_timesteps
        if self._layer is None:
            return
        _, height, width = self.model.observation_space.shape or (0, 0, 0)
        maps = position_maps(self._layer, height, width)
        self.folder.coordinates.mkdir(exist_ok=True)
        file = self.folder.coordinates / f"maps-{step:012d}.npy"
        replace_data(file, array_bytes(maps))
        self.view.write_maps(maps, step)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Count time that is not training's, so that steps/s means what it says."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._busy += time.monotonic() - began

    def _evaluate(self) -> dict[str, Any]:
        """Play whole games and log their returns."""
        step = self.model.num_timesteps
        episodes = self.options.eval_episodes

        began = time.monotonic()
        self.divergence.check_weights()

        def on_step(returns: list[float], steps: int) -> None:
            self._watchdog.beat()

            def describe() -> str:
                games = describe_games(returns, steps, time.monotonic() - began)
                return f"evaluating: {len(returns)} of {episodes} games · {games}"

            def left() -> str:
                return time_left(len(returns), episodes, time.monotonic() - began)

            # After the last step of training the games alone are left.
            self.line.update(step, describe, left if step >= self.spec.steps else None)
            if self._signals.received:
                self._stop()

        with self._pause():
            reach("evaluation")
            seed = environment_seed(self.spec.seed, "evaluate", step)
            evaluation = evaluate(self.model, self.spec, episodes, seed=seed, on_step=on_step)
            row = {
                "step": step,
                "frames": self.spec.frames(step),
                "protocol": self.spec.protocol,
                "seconds": round(self._seconds(), 3),
                "mean": evaluation.mean,
                "std": evaluation.std,
                "returns": evaluation.returns,
                "lengths": evaluation.lengths,
            }
            append_row(self.folder.evaluations_file, row)
            self.view.write_evaluation(row)
            self._marks.evaluation = step
        return row

    def _write_checkpoint(self) -> None:
        """Keep all that the run needs to go on as if nothing had happened."""
        if self._kept == self.model.num_timesteps:
            return
        with self._pause():
            self.divergence.check_weights()
            self.view.flush()
            for log in (self.folder.progress_file, self.folder.evaluations_file):
                if log.exists():
                    sync_file(log)  # a checkpoint relies on the logs up to it
            marks = asdict(replace(self._marks, seconds=round(self._seconds(), 3)))
            more = {"marks": marks, "conditions": self._conditions}
            goes_on = self.model.num_timesteps < self.spec.steps  # a finished run learns no more
            replay = self._segments.seal() if self._segments is not None and goes_on else []
            write_checkpoint(self.folder.checkpoints, snapshot(self.model, more, replay))
            if goes_on and self.folder.replay.is_dir():
                with suppress(ResumableError):  # where one cannot be read, nobody knows what it needs
                    holds = self._segments.known if self._segments is not None else ()
                    drop(self.folder.replay, [*needed_segments(self.folder.checkpoints), *holds])
            self._last_checkpoint = self._kept = self.model.num_timesteps

    def _export(self) -> None:
        """Write model.zip for SB3."""
        if isinstance(self.model, DQN):
            self.model.gradient_steps = int(self.spec.settings["gradient_steps"])  # see _hold_updates

        def write(partial: Path) -> None:
            reach("write")
            self.model.save(partial)

        replace_file(self.folder.export_file, write)

    def _stop(self) -> None:
        """Keep everything and leave."""
        self._write_checkpoint()
        self._export()
        raise StoppedError(
            f"stopped at step {self.model.num_timesteps:,} with a checkpoint; the same command goes on from there",
            self._signals.received,
        )

    def _seconds(self) -> float:
        """Return the run's time so far, in all of its processes."""
        return self._marks.seconds + time.monotonic() - self._began


def _final_return(returns: list[float]) -> str:
    """Say the final return and over how many games."""
    if not returns:
        return "no game was finished, so there is no return yet"
    few = "" if len(returns) == WINDOW else f" (fewer than {WINDOW})"
    return f"mean return of the last {len(returns)} games{few} {np.mean(returns):,.1f}"


def _mean(values: Iterator[float]) -> float | None:
    """Return the mean, or None of nothing."""
    listed = list(values)
    return float(np.mean(listed)) if listed else None


def _finite(value: Any) -> float | None:
    """Return a number that JSON can hold; explained variance is NaN where all returns are equal."""
    return float(value) if math.isfinite(value) else None

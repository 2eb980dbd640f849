"""A run of one of the paper's tasks from its first update to its result: both arms, log, picture, and how it stops."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, final

import numpy as np
import torch
from stable_baselines3.common.utils import get_device

from coordrl.algorithms import check_device, skip_compiler
from coordrl.console import ProgressLine, count_words
from coordrl.errors import StoppedError
from coordrl.exactness import versions
from coordrl.faults import reach
from coordrl.files import replace_data, write_json
from coordrl.paper_pictures import save_picture
from coordrl.paper_results import PaperFolder, describe_stop, first_good, percent
from coordrl.paper_tasks import TASKS, PaperSpec
from coordrl.paper_training import Lesson, Scores
from coordrl.process import processor_name
from coordrl.squares import positions, split
from coordrl.stopping import StopSignals


@final
class Course:
    """Trains the arms of a run one after the other, and writes its folder.

    Args:
        spec: the run.
        folder: where it is written; held by the caller.
        device: auto, cpu or cuda.
        command: as it was typed.

    Raises:
        RequestError: the device cannot be used.
    """

    def __init__(self, spec: PaperSpec, folder: PaperFolder, device: str, command: str) -> None:
        skip_compiler()
        check_device(device)
        self._spec, self._folder, self._command = spec, folder, command
        self._device = get_device(device)
        self._split = split(spec.split)
        self._steps = 0  # updates of the arms before
        self._scores: dict[str, Scores] = {}
        self._ends: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, Any]:
        """Train every arm and return the result, which is written with its picture.

        Raises:
            StoppedError: SIGINT or SIGTERM; what was measured until then is written.
            DivergedError: a loss is not finite any more.
        """
        self._folder.begin(self._spec, self._facts())
        with StopSignals() as signals:
            lessons = {arm: Lesson(self._spec, arm, self._device) for arm in self._spec.rates}
            total = sum(lesson.total for lesson in lessons.values())
            with ProgressLine(f"{self._spec.task}, {self._spec.split}", total) as line:
                for lesson in lessons.values():
                    self._announce(line, lesson)
                    self._train(lesson, line, signals)
                    if signals.received:
                        break
            result = self._write()
            if signals.received and not self._finished:
                raise StoppedError(self._describe_stop(lesson), signals.received)
        return result

    @property
    def _finished(self) -> bool:
        """Whether every arm was trained to its end."""
        ends = [self._ends.get(arm) for arm in self._spec.rates]
        return all(end is not None and end["updates"] == end["total"] for end in ends)

    def _train(self, lesson: Lesson, line: ProgressLine, signals: StopSignals) -> None:
        """Train one arm until its end or a signal, and measure it at every position."""
        task = TASKS[self._spec.task]
        last = ""

        def on_point(row: dict[str, Any]) -> None:
            nonlocal last
            last = f", test {task.measure} {percent(row['test']['hits'], task.measure)}"
            self._folder.append({"step": self._steps + lesson.updates, **row})

        def on_update() -> bool:
            reach("update")
            line.update(self._steps + lesson.updates, lambda: f"{lesson.arm}{last}")
            return bool(signals.received)

        lesson.learn(on_update, on_point)
        scores = lesson.measure()
        row = lesson.row(scores)
        self._steps += lesson.updates
        self._folder.append({"step": self._steps, **row})
        self._scores[lesson.arm] = scores
        self._ends[lesson.arm] = {"parameters": lesson.parameters, "total": lesson.total, **row}

    def _write(self) -> dict[str, Any]:
        """Write positions, picture and, last, the result; returns it."""
        folder, rows = self._folder, self._folder.rows()
        arms = {
            arm: {
                "parameters": end["parameters"],
                "epochs": end["epoch"],
                "updates": end["updates"],
                "seconds": end["seconds"],
                "cpu_seconds": end["cpu_seconds"],
                "seconds_to_good": first_good(rows, arm),
                "loss": end["loss"],
                "train": end["train"],
                "test": end["test"],
            }
            for arm, end in self._ends.items()
        }
        sizes = {"train": len(self._split.train), "test": len(self._split.test)}
        result = {"spec": asdict(self._spec), "sizes": sizes, "arms": arms, **self._facts()}
        replace_data(folder.positions_file, _table(self._split.test, self._scores).encode())
        errors = {arm: scores.errors for arm, scores in self._scores.items()}
        save_picture(folder.picture_stem, self._spec, self._split, rows, errors, self._ends)
        write_json(folder.result_file if self._finished else folder.stopped_file, result)
        return result

    def _describe_stop(self, lesson: Lesson) -> str:
        """Say where it was stopped, and where what it measured is."""
        where = describe_stop(lesson.arm, lesson.updates, lesson.total, lesson.seconds)
        return f"stopped, {where}; what was measured is in {self._folder.path}. The same command begins anew"

    def _announce(self, line: ProgressLine, lesson: Lesson) -> None:
        """Say what is about to be trained."""
        line.say(
            f"{lesson.arm}: {lesson.parameters:,} parameters, {count_words(self._spec.epochs, 'epoch')} of {lesson.epoch_updates:,}"
            f" updates, {self._device}, into {self._folder.path}"
        )

    def _facts(self) -> Mapping[str, Any]:
        """Return what is recorded beside the spec."""
        return {
            "command": self._command,
            "versions": versions(),
            "hardware": {
                "processor": processor_name(),
                "system": platform.system(),
                "device": str(self._device),
                "torch_threads": torch.get_num_threads(),
            },
        }


def _table(test: Any, scores: Mapping[str, Scores]) -> str:
    """Return what became of every position as CSV."""
    names = [f"{arm}_{value}" for arm in scores for value in ("hit", "error")]
    tested = np.zeros(len(positions()), dtype=bool)
    tested[test] = True
    lines = [",".join(["row", "column", "part", *names])]
    for index, (row, column) in enumerate(positions().tolist()):
        values = [f"{value[index]:.6g}" for one in scores.values() for value in (one.hits, one.errors)]
        lines.append(",".join([str(row), str(column), "test" if tested[index] else "train", *values]))
    return "\n".join(lines) + "\n"

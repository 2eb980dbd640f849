"""Training one network on one of the paper's tasks, and measuring it position by position.

Adam with beta2 0.99, as Liu et al. 2018 (arXiv 1807.03247) use it; the batch size, the learning rates and their linear
fall to 0 are chosen here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coordrl.errors import DivergedError
from coordrl.paper_networks import build_network, count_parameters
from coordrl.paper_tasks import PaperSpec
from coordrl.squares import (
    CANVAS,
    Integers,
    Split,
    denormalise,
    draw_pixels,
    draw_squares,
    normalise,
    pixel_numbers,
    positions,
    split,
)

_BETAS = (0.9, 0.99)
_POINTS = 16  # of a curve, at most
_APART = 20  # updates for each point, at least; measuring would take longer than training
_FIRST = 10  # updates before the first of them
_SAMPLE = 4  # a curve measures every fourth position of those trained on
_AT_ONCE = 64  # positions that are measured in one batch

Values = NDArray[np.float64]


class Data(NamedTuple):
    """What a network is given and what it shall return, for all positions in their order."""

    inputs: Tensor  # (3136, 2), or (3136, 1, 64, 64)
    targets: Tensor  # (3136,) int64, (3136, 2), or (3136, 1, 64, 64)
    split: Split


@dataclass(frozen=True)
class Scores:
    """How well each position is done, (3136,) each; NaN where it was not measured.

    Attributes:
        hits: accuracy of a position, 0 or 1; of rendering its IoU.
        errors: distance from the true pixel in pixels; of rendering 1 - IoU.
    """

    hits: Values
    errors: Values

    def summary(self, part: Integers) -> dict[str, float]:
        """Return the means over the measured positions of a part."""
        return {"hits": float(np.nanmean(self.hits[part])), "error": float(np.nanmean(self.errors[part]))}


@final
@dataclass
class Lesson:
    """One network on one task while it is trained.

    Attributes:
        spec: the run.
        arm: which of its networks.
        device: where it is trained.
        updates: made so far.
        total: updates of the whole training.
        seconds: that the updates took; measuring is not counted.
        cpu_seconds: that they took of all cores together, which other work on the machine does not change.
        loss: mean over the updates since the last point of the curve.
    """

    spec: PaperSpec
    arm: str
    device: torch.device
    updates: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    loss: float = math.nan
    _losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data = make_data(self.spec.task, self.spec.split, self.device)
        self.network = build_network(self.spec.task, self.arm, self.spec.seed).to(self.device)
        self.parameters = count_parameters(self.network)
        self.total = self.spec.epochs * self.epoch_updates

    @property
    def epoch_updates(self) -> int:
        """Updates in one pass over the positions that are trained on."""
        return math.ceil(len(self.data.split.train) / self.spec.batch)

    def learn(self, on_update: Callable[[], bool], on_point: Callable[[dict[str, Any]], None]) -> None:
        """Train to the end, or until `on_update` returns True.

        Args:
            on_update: called after every update.
            on_point: called with each point of the curve, at updates that grow geometrically.

        Raises:
            DivergedError: the loss is not finite any more.
        """
        optimizer = torch.optim.Adam(self.network.parameters(), self.spec.rates[self.arm], betas=_BETAS)
        order = np.random.default_rng(self.spec.seed)  # the same for both arms
        points = curve_points(self.total)
        for _ in range(self.spec.epochs):
            shuffled = order.permutation(self.data.split.train)
            for batch in np.array_split(shuffled, self.epoch_updates):
                self._update(optimizer, torch.from_numpy(batch).to(self.device))
                if self.updates in points:
                    on_point(self.row(self.measure(self.curve_sample())))
                if on_update():
                    return

    def _update(self, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
        """Make one update, at a learning rate that falls to 0."""
        began, computed = time.perf_counter(), time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = self.spec.rates[self.arm] * (1 - self.updates / self.total)
        output = self.network(self.data.inputs[batch])
        loss = task_loss(self.spec.task, output, self.data.targets[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no hint here
        optimizer.step()
        value = float(loss.detach())
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - computed
        self.updates += 1
        self._losses.append(value)
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss of {self.arm} is {value} after {self.updates:,} updates; try another --seed, or report this"
            )

    def curve_sample(self) -> Integers:
        """Return the positions that a point of the curve is measured at: all to test on, some of the others."""
        return np.concatenate([self.data.split.test, self.data.split.train[::_SAMPLE]])

    def measure(self, where: Integers | None = None) -> Scores:
        """Measure the network at some positions, by default at all."""
        every = positions()
        hits, errors = np.full(len(every), np.nan), np.full(len(every), np.nan)
        chosen = np.arange(len(every)) if where is None else where
        with torch.no_grad():
            for batch in np.array_split(chosen, math.ceil(len(chosen) / _AT_ONCE)):
                output = self.network(self.data.inputs[torch.from_numpy(batch).to(self.device)]).cpu().numpy()
                hits[batch], errors[batch] = score(self.spec.task, output, every[batch])
        return Scores(hits, errors)

    def row(self, scores: Scores) -> dict[str, Any]:
        """Return a row of the log: how far the network is, and how good."""
        self.loss = float(np.mean(self._losses)) if self._losses else self.loss
        self._losses.clear()
        return {
            "arm": self.arm,
            "updates": self.updates,
            "epoch": round(self.updates / self.epoch_updates, 3),
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "loss": None if math.isnan(self.loss) else self.loss,
            "train": scores.summary(self.data.split.train),
            "test": scores.summary(self.data.split.test),
        }


def curve_points(total: int) -> frozenset[int]:
    """Return the updates after which a curve has a point; the end of the training has its own."""
    count = max(1, min(_POINTS, total // _APART))
    points = np.geomspace(min(_FIRST, total), total, count).round().astype(int).tolist()
    return frozenset(points) - {total}


def make_data(task: str, split_name: str, device: torch.device) -> Data:
    """Make inputs and targets of all positions for a task, on a device."""
    places = positions()
    coordinates = normalise(places)
    arrays: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        "classification": (coordinates, pixel_numbers(places)),
        "regression": (draw_pixels(places), coordinates),
        "rendering": (coordinates, draw_squares(places)),
    }
    inputs, targets = (torch.from_numpy(array).to(device) for array in arrays[task])
    return Data(inputs, targets, split(split_name))


def task_loss(task: str, output: Tensor, targets: Tensor) -> Tensor:
    """Return a task's loss, a scalar: cross entropy over all pixels, mean squared error, or cross entropy of each pixel."""
    if task == "classification":
        return nn.functional.cross_entropy(output.flatten(1), targets)
    if task == "regression":
        return nn.functional.mse_loss(output, targets)
    return nn.functional.binary_cross_entropy_with_logits(output, targets)


def score(task: str, output: NDArray[np.float32], places: Integers) -> tuple[Values, Values]:
    """Return hits and errors of each position, (n,) float64 each; see Scores.

    Args:
        task: classification: the pixel with the largest logit is compared; regression: a hit is right in both
            coordinates after rounding to whole pixels; rendering: pixels with a probability above 0.5.
        output: the network's, see `coordrl.paper_networks.build_network`.
        places: the true positions, (n, 2).
    """
    if task == "rendering":
        painted, true = output[:, 0] > 0, draw_squares(places)[:, 0] > 0
        both, either = (mask.sum(axis=(1, 2)) for mask in (painted & true, painted | true))
        iou: Values = both / either
        return iou, 1 - iou
    if task == "classification":
        numbers = output.reshape(len(places), -1).argmax(axis=1)
        found = np.stack(np.divmod(numbers, CANVAS), axis=1).astype(np.float64)
    else:
        found = denormalise(output)
    off = found - places  # pixels
    hits: Values = np.asarray(np.abs(off).max(axis=1) <= 0.5, dtype=np.float64)
    distances: Values = np.asarray(np.hypot(off[:, 0], off[:, 1]), dtype=np.float64)
    return hits, distances

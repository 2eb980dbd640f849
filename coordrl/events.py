"""A comparison as TensorBoard reads it: one run for each arm and seed, one chart for each game.

The log folder is derived from the runs' own logs and can be thrown away at any time. TensorBoard draws one chart
for each tag, so the tags carry the game ("return/MsPacman") and the runs do not ("a2c-coord/seed-0"). Each game of
each run has a file of its own, made anew in one move when its log has changed; its name carries a signature of the
log, so that nothing else has to be remembered.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from coordrl.errors import OutputError, RequestError
from coordrl.files import check_no_link, stream_rows
from coordrl.plan import PLAN_FILE, read_plan
from coordrl.results import RunFolder, find_runs

_FORMAT = 1  # of the files; another one makes all of them anew
_PREFIX, _SUFFIX = "events.out.tfevents.", ".coordrl"  # TensorBoard reads files whose name has "tfevents" in it


class Source(NamedTuple):
    """A run and the place of its curves."""

    arm: str
    game: str
    seed: int
    folder: RunFolder


class Curve(NamedTuple):
    """One quantity of one run over its steps."""

    steps: list[int]
    values: list[float]
    times: list[float]  # seconds of the run
    end: int  # the step that the run has reached, with a value or without


class Built(NamedTuple):
    """What a folder holds after it was built."""

    runs: int
    games: int
    arms: tuple[str, ...]
    written: int  # files that had changed


def find_sources(out: Path) -> list[Source]:
    """Return the runs of a comparison that have begun, or, without a plan, all runs below a folder.

    Raises:
        RequestError: there are none, or they cannot lie in one chart: two protocols, or the same run twice.
    """
    if not out.is_dir():
        raise RequestError(f"there is no folder {out}; give the one that compare or train wrote to")
    if (out / PLAN_FILE).is_file():
        cells = read_plan(out).runs
        found = [Source(c.arm.name, c.spec.game, c.spec.seed, RunFolder(c.path(out))) for c in cells]
        found = [source for source in found if source.folder.progress_file.exists()]
        if not found:
            raise RequestError(f"no run of the plan in {out} has begun; start them with: coordrl compare --out {out}")
        return sorted(found, key=lambda source: source[:3])
    folders = find_runs(out)
    if not folders:
        one = f"that is one run, see it with: tensorboard --logdir {out}" if RunFolder(out).spec_file.exists() else ""
        raise RequestError(f"{out} holds no runs; {one or 'give the folder that compare or train wrote to'}")
    specs = [folder.read_spec() for folder in folders]
    protocols = sorted({spec.protocol for spec in specs})
    if len(protocols) > 1:
        raise RequestError(
            f"{out} mixes the protocols {' and '.join(protocols)}, which are never compared; give a folder of one of them"
        )
    sources: dict[tuple[str, str, int], Source] = {}
    for spec, folder in zip(specs, folders, strict=True):
        arm = f"{spec.agent}-{spec.extractor}"
        known = sources.setdefault((arm, spec.game, spec.seed), Source(arm, spec.game, spec.seed, folder))
        if known.folder != folder:
            raise RequestError(
                f"{out} holds {arm} on {spec.game} with seed {spec.seed} twice, in {known.folder.path} and {folder.path};"
                " give a folder that holds one of them"
            )
    return [sources[key] for key in sorted(sources)]


def find_whole(out: Path, sources: Sequence[Source]) -> Path | None:
    """Return the folder of all runs that `out` is a part of, or None if `out` is whole.

    What is made inside a part lies inside the whole too, where TensorBoard would show each run a second time.
    """
    place = sources[0].folder.path.resolve()
    levels = sources[0].folder.read_spec().folder(Path()).parts
    whole = place.parents[len(levels) - 1]
    if place.parts[-len(levels) :] != levels or whole == out.resolve() or not out.resolve().is_relative_to(whole):
        return None  # out is the whole, or holds several; or was copied from one without its upper levels
    return whole


def build(sources: Sequence[Source], log_folder: Path) -> Built:
    """Make the log folder, or what has changed of it, and take away what belongs to no run any more.

    Args:
        sources: the runs, sorted.
        log_folder: where TensorBoard will read. Files that `build` did not make are left alone.

    Raises:
        OutputError: it cannot be written.
    """
    averaged = len({source.seed for source in sources}) > 1
    wanted: set[Path] = set()
    written = 0
    try:
        log_folder.mkdir(parents=True, exist_ok=True)
        for (arm, game), group in groupby(sources, key=lambda source: (source.arm, source.game)):
            files, count = _build_group(log_folder, arm, game, list(group), averaged=averaged)
            wanted |= files
            written += count
        _clean(log_folder, wanted)
    except OSError as error:
        raise OutputError(
            f"{error.filename or log_folder} cannot be had: {error.strerror or error}. Another log folder: --out PATH"
        ) from error
    arms = tuple(dict.fromkeys(source.arm for source in sources))
    return Built(len(sources), len({source.game for source in sources}), arms, written)


def _build_group(
    log_folder: Path, arm: str, game: str, group: Sequence[Source], *, averaged: bool
) -> tuple[set[Path], int]:
    """Make the files of one arm in one game: one for each seed, and one for their mean if that is asked for.

    Returns the files, and how many of them were made anew.
    """
    stamps = [_stamp(source.folder) for source in group]
    places = [log_folder / arm / f"seed-{source.seed}" for source in group]
    for place in (*places, log_folder / f"{arm} mean"):
        check_no_link(log_folder, place.relative_to(log_folder))
    names = [f"{_PREFIX}{stamp}.{game}{_SUFFIX}" for stamp in stamps]
    files = [place / name for place, name in zip(places, names, strict=True)]
    mean = log_folder / f"{arm} mean" / f"{_PREFIX}{_join(stamps)}.{game}{_SUFFIX}"
    wanted = {*files, mean} if averaged else set(files)
    missing = {file for file in wanted if not file.exists()}
    if not missing:
        return wanted, 0
    curves: list[dict[str, Curve]] = []
    starts: list[float] = []
    for source, file in zip(group, files, strict=True):
        if file in missing or mean in missing:
            curves.append(_read_curves(source.folder))
            starts.append(_start(source.folder, curves[-1]))
            if file in missing:
                _write(file, log_folder, game, curves[-1], starts[-1])
    if mean in missing:
        held = [source.folder.diverged_file.exists() for source in group]
        _write(mean, log_folder, game, _average(curves, held), min(starts))
    return wanted, len(missing)


def _stamp(folder: RunFolder) -> str:
    """Describe the state of a run's logs: when they were last written, and what tells them from others."""
    states = []
    for file in (folder.progress_file, folder.evaluations_file, folder.diverged_file):
        with suppress(FileNotFoundError):
            state = file.stat()
            states.append((file.name, state.st_size, state.st_mtime_ns, state.st_ino))
    return _seal(max((state[2] for state in states), default=0), repr(states))


def _join(stamps: Sequence[str]) -> str:
    """Describe the state of several runs' logs."""
    return _seal(max(int(stamp.partition(".")[0]) for stamp in stamps), repr(stamps))


def _seal(newest: int, text: str) -> str:
    """Write a time in nanoseconds, so that files sort by it, and a hash."""
    return f"{newest:020d}.{hashlib.sha256(f'{_FORMAT} {text}'.encode()).hexdigest()[:16]}"


def _read_curves(folder: RunFolder) -> dict[str, Curve]:
    """Read a run's logs as curves, by the first part of their tags."""
    curves: dict[str, Curve] = {}
    end = 0
    for row in stream_rows(folder.progress_file):
        end = row["step"]
        values = {"return": row.get("return_mean"), "speed": row.get("steps_per_second")}
        if isinstance(row.get("coordinates"), dict):
            values |= row["coordinates"]
        for tag in ("return", "speed", "coordinates/ratio"):
            _add(curves, tag, row, values.get(tag))
    curves = {tag: curve._replace(end=end) for tag, curve in curves.items()}
    for row in stream_rows(folder.evaluations_file):
        _add(curves, "score", row, row.get("mean"))
    return curves


def _add(curves: dict[str, Curve], tag: str, row: Mapping[str, Any], value: Any) -> None:
    """Add a point to a curve, if there is a value: a number, as a stranger's row may hold anything."""
    seconds = row.get("seconds", 0.0)
    if not (_is_number(value) and _is_number(seconds)):
        return
    curve = curves.get(tag, Curve([], [], [], 0))
    curve.steps.append(row["step"])
    curve.values.append(float(value))
    curve.times.append(float(seconds))
    curves[tag] = curve._replace(end=row["step"])


def _is_number(value: Any) -> bool:
    """Say whether a value is a number that a float can hold; NaN and the infinities are."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**1000)


def _start(folder: RunFolder, curves: Mapping[str, Curve]) -> float:
    """Return when a run would have begun if it had never been stopped, so that relative time is the run's own."""
    seconds = max((curve.times[-1] for curve in curves.values()), default=0.0)
    with suppress(FileNotFoundError):
        return folder.progress_file.stat().st_mtime - seconds
    return 0.0


def _average(runs: Sequence[Mapping[str, Curve]], held: Sequence[bool]) -> dict[str, Curve]:
    """Return the mean of runs, each curve at the steps of the run that has got furthest, and how many there are.

    A run counts up to the step that it has reached; one that diverged is held at its last value from there on,
    because leaving it out would flatter the rest. Where a run has no value yet, there is no mean.
    """
    averages: dict[str, Curve] = {}
    for tag in dict.fromkeys(tag for run in runs for tag in run):
        found = [(run[tag], hold) for run, hold in zip(runs, held, strict=True) if tag in run]
        longest = max((curve for curve, _ in found), key=lambda curve: (curve.end, len(curve.steps)))
        mean, count = Curve([], [], [], longest.end), Curve([], [], [], longest.end)
        for step, time in zip(longest.steps, longest.times, strict=True):
            reached = [curve for curve, hold in found if hold or curve.end >= step]
            places = [bisect_right(curve.steps, step) - 1 for curve in reached]
            if min(places) < 0:
                continue
            values = [curve.values[place] for curve, place in zip(reached, places, strict=True)]
            for curve, value in ((mean, sum(values) / len(values)), (count, float(len(values)))):
                curve.steps.append(step)
                curve.values.append(value)
                curve.times.append(time)
        averages[tag] = mean
        if tag == "return":
            averages["seeds"] = count
    return averages


def _write(file: Path, log_folder: Path, game: str, curves: Mapping[str, Curve], start: float) -> None:
    """Write an event file: beside its folder, under a name that TensorBoard does not read, then in one move."""
    from tensorboard.compat.proto.event_pb2 import Event  # a second to import
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    points: dict[int, tuple[float, list[Any]]] = {}
    for tag, curve in curves.items():
        for step, value, time in zip(curve.steps, curve.values, curve.times, strict=True):
            summaries = points.setdefault(step, (start + time, []))[1]
            summaries.append(Summary.Value(tag=f"{tag}/{game}", simple_value=value))
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = log_folder / f".partial-{os.getpid()}"
    try:
        partial.unlink(missing_ok=True)
        with partial.open("xb") as handle:  # and follows no link that somebody planted
            writer = RecordWriter(handle)
            writer.write(Event(wall_time=start, file_version="brain.Event:2").SerializeToString())
            for step, (time, summaries) in sorted(points.items()):
                event = Event(wall_time=time, step=step, summary=Summary(value=summaries))
                writer.write(event.SerializeToString())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _folders(file: Path, log_folder: Path) -> list[Path]:
    """Return the folders of a file below the log folder, the innermost first."""
    return list(file.relative_to(log_folder).parents)[:-1]


def _clean(log_folder: Path, wanted: Iterable[Path]) -> None:
    """Take away our files that belong to no run any more, and the folders that are empty then."""
    keep = set(wanted)
    ours = [*log_folder.glob(f"*/{_PREFIX}*{_SUFFIX}"), *log_folder.glob(f"*/seed-*/{_PREFIX}*{_SUFFIX}")]
    ours = [file for file in ours if not any((log_folder / part).is_symlink() for part in _folders(file, log_folder))]
    for file in ours:
        if file not in keep:
            file.unlink(missing_ok=True)
    folders = {parent for file in ours for parent in (file.parent, file.parent.parent)} - {log_folder}
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        with suppress(OSError):  # not empty
            folder.rmdir()

"""Checkpoints: tensors, arrays and JSON in a folder of their own, verified by a manifest, no pickle.

    checkpoints/000000050000/
        policy.safetensors, optimizer.safetensors, ...   tensors by name
        torch_rng.npy, ...                               arrays
        state.json                                       everything else
        manifest.json                                    format, length and SHA-256 of each file; written last

The replay memory of an agent that has one lies in segments beside them, which its checkpoints share: coordrl.segments.

A checkpoint is written beside its place, forced to the disk and moved there whole, so that a crash at
any moment leaves either the one before or this one.

It is read as if a stranger had sent it. Every file is read once, into memory, and measured, before a byte of it is
taken apart; nothing in it is unpickled, evaluated or imported, and no number in it decides how much memory is used
beyond a gibibyte.

Formats: 3 is what this coordrl writes. 2, which had no replay memory, and 1, which had no games in it either, are read
as well: a run goes on from 1 with new games. Every later coordrl is to read 3 or to say that it does not; a format that
is not known is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from coordrl.arrays import array_bytes, parse_array, parse_tensors
from coordrl.errors import CheckpointError, ResumableError
from coordrl.faults import reach
from coordrl.files import MAX_JSON, parse_json, sync_file, sync_folder, write_data
from coordrl.segments import Segment, missing

FORMAT = 3  # raised when the files change their meaning
READ = (1, 2, FORMAT)
KEEP = 2  # verified checkpoints of a run
MAX_FILES = 64
MAX_BYTES = 1 << 30  # of a checkpoint's files together; a NatureCNN with its optimiser takes 20 MB

_FORMAT = "format"  # begins what is said of one that another coordrl may read
_FILE = re.compile(r"[A-Za-z0-9_]+\.(?:safetensors|npy)|state\.json")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: groups of named tensors, named arrays, JSON state, and segments of a replay memory."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    arrays: Mapping[str, NDArray[Any]]
    state: Mapping[str, Any]
    skipped: list[str] = field(default_factory=list)  # newer checkpoints that cannot be used, and why
    replay: Sequence[Segment] = ()


class _Manifest(NamedTuple):
    """What a manifest says."""

    files: dict[str, dict[str, Any]]
    replay: list[Segment]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below `folder`, then drop what is older than the newest `KEEP` that verify.

    Returns its folder, named by the step in 12 digits. One that is there already is replaced.

    Raises:
        ResumableError: what was written does not verify; the older ones are kept.
        OSError: it cannot be written; the older ones are kept.
    """
    place = folder / f"{checkpoint.step:012d}"
    for left in folder.glob(".*.partial"):  # of a process that was killed
        _remove(left)
    partial = folder / f".{place.name}.partial"
    partial.mkdir(parents=True)
    try:
        _write_files(partial, checkpoint)
        if place.exists():  # one that could not be used
            _remove(place)
        reach("rename")
        partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # most often the disk is full: give the room back
        raise
    sync_folder(folder)
    fault = find_fault(place)
    if fault:
        raise ResumableError(f"the checkpoint {place} does not verify after it was written: {fault}. Look at the disk")
    _drop(folder, checkpoint.step)
    return place


def _drop(folder: Path, step: int) -> None:
    """Remove checkpoints that are older than the newest `KEEP` that verify, and those of steps to come."""
    verified = 0
    for place in _places(folder):
        # Newer ones could not be used when this run went on from an older one: they belong to no run any more.
        fault = "" if verified >= KEEP else find_fault(place)
        if verified >= KEEP or (int(place.name) > step and not fault.startswith(_FORMAT)):
            _remove(place)
        elif not fault:
            verified += 1


def _remove(place: Path) -> None:
    """Remove a checkpoint, whole: what is killed half-way leaves no half of one under its name."""
    if place.is_symlink() or not place.is_dir():
        place.unlink(missing_ok=True)
        return
    if not place.name.startswith("."):
        reach("rename")
        place = place.rename(place.with_name(f".{place.name}.old.partial"))
    reach("remove")
    shutil.rmtree(place, ignore_errors=True)


def _write_files(place: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint's files through to the disk, the manifest last."""
    files: dict[str, dict[str, Any]] = {}

    def write(name: str, data: bytes) -> None:
        write_data(place / name, data)
        files[name] = _measure(data)

    for group, tensors in checkpoint.tensors.items():
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write(f"{group}.safetensors", safetensors.torch.save(whole))
    for name, array in checkpoint.arrays.items():
        write(f"{name}.npy", array_bytes(array))
    state = {"step": checkpoint.step, **checkpoint.state}
    write("state.json", (json.dumps(state, allow_nan=False) + "\n").encode())
    manifest = {"format": FORMAT, "step": checkpoint.step, "files": {**files}}
    if checkpoint.replay:
        manifest["replay"] = [asdict(segment) for segment in checkpoint.replay]
    write("manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())
    for file in place.iterdir():
        sync_file(file)
    sync_folder(place)


def read_newest(folder: Path, use: Callable[[Checkpoint], None] = lambda checkpoint: None) -> Checkpoint | None:
    """Read the newest checkpoint that verifies and can be used, or return None where there is no checkpoint at all.

    Args:
        folder: the checkpoints.
        use: what is to be done with it; where that raises CheckpointError, the next older one is tried.

    Raises:
        CheckpointError: there are checkpoints, and none can be used.
        ResumableError: one cannot be read, though nothing says that it is damaged.
    """
    skipped: list[str] = []
    for place in _places(folder):
        try:
            checkpoint = _read(place, skipped)
            use(checkpoint)
            return checkpoint
        except CheckpointError as error:
            skipped.append(f"{place.name}: {error}")
    if skipped:
        raise CheckpointError(
            f"no checkpoint in {folder} can be read ({'; '.join(skipped)}). Restore one from a copy, or remove the run's"
            " folder to start over"
        )
    return None


def _places(folder: Path) -> list[Path]:
    """Return the checkpoints' folders, newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if re.fullmatch(r"[0-9]{12}", path.name)), reverse=True)


def find_fault(place: Path) -> str:
    """Say what is wrong with a checkpoint's files, or return ""."""
    try:
        with _translated(place):
            manifest = _read_manifest(place)
            for _ in _read_files(place, manifest):
                pass
        # By their lengths alone: a memory is read whole where it is used, and not at each checkpoint.
        return next(filter(None, (missing(_replay_folder(place), segment) for segment in manifest.replay)), "")
    except ResumableError as error:
        return str(error)


def needed_segments(folder: Path) -> list[Segment]:
    """Return the segments that the checkpoints in a folder refer to.

    Raises:
        ResumableError: what one of them refers to is not known.
    """
    found: list[Segment] = []
    for place in _places(folder):
        with _translated(place):
            found += _read_manifest(place).replay
    return found


def _replay_folder(place: Path) -> Path:
    """Return where the segments of a checkpoint lie."""
    return place.parent.parent / "replay"


def _read(place: Path, skipped: list[str]) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: it does not verify.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    arrays: dict[str, NDArray[Any]] = {}
    state: dict[str, Any] = {}
    with _translated(place):
        manifest = _read_manifest(place)
        for name, data in _read_files(place, manifest):
            stem, _, kind = name.partition(".")
            try:
                if kind == "safetensors":
                    tensors[stem] = parse_tensors(data)
                elif kind == "npy":
                    arrays[stem] = parse_array(data)
                else:
                    state = parse_json(data, finite=True)
            except (ValueError, safetensors.SafetensorError, KeyError, TypeError, OverflowError, RuntimeError) as error:
                raise CheckpointError(f"{name}: {error}") from error
    step = int(place.name)
    if state.get("step") != step:
        raise CheckpointError(f"state.json is of step {state.get('step')!r:.40}")
    return Checkpoint(step, tensors, arrays, state, skipped, manifest.replay)


def _read_files(place: Path, manifest: _Manifest) -> Iterable[tuple[str, bytes]]:
    """Yield the name and the content of each file of a checkpoint but the manifest, once it is as that says.

    Raises:
        CheckpointError: something is not as it should be.
    """
    for name, measured in manifest.files.items():
        data = (place / name).read_bytes()
        if _measure(data) != measured:
            raise CheckpointError(f"{name} has changed since it was written")
        yield name, data


@contextmanager
def _translated(place: Path) -> Iterator[None]:
    """Say what the system says of a checkpoint that is read in coordrl's words."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"it has gone: {error.strerror}") from error
    except OSError as error:  # nothing says that it is damaged: nobody may go on from an older one
        raise ResumableError(f"{place} cannot be read: {error.strerror or error}; mend that") from error


def _is_own(entry: os.DirEntry[str]) -> bool:
    """Say that something in a checkpoint is a file, or refuse it."""
    if not entry.is_file(follow_symlinks=False):
        raise CheckpointError(f"{entry.name} is not a file of its own")
    return True


def _read_manifest(place: Path) -> _Manifest:
    """Return what the manifest says, after checking that it speaks of the files that are there, in their lengths.

    Raises:
        CheckpointError: something is not as it should be.
    """
    if place.is_symlink() or not place.is_dir():
        raise CheckpointError("it is no folder of its own")
    with os.scandir(place) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries if _is_own(entry)}
    if "manifest.json" not in found:
        raise CheckpointError("manifest.json is missing")
    if found["manifest.json"] > MAX_JSON or len(found) > MAX_FILES:
        raise CheckpointError("manifest: it is too long, or there are too many files")
    try:
        manifest = parse_json((place / "manifest.json").read_bytes())
    except ValueError as error:
        raise CheckpointError(f"manifest: {error}") from error
    if manifest.get("format") not in READ:
        known = " and ".join(map(str, READ))
        raise CheckpointError(f"{_FORMAT} {manifest.get('format')!r:.40}; this coordrl reads formats {known}")
    if manifest.get("step") != int(place.name):
        raise CheckpointError(f"it is of step {manifest.get('step')!r:.40}")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError("manifest: it lists no files")
    differing = set(files) ^ (set(found) - {"manifest.json"})
    if differing or "state.json" not in files:
        listed = ", ".join(sorted(differing))[:200] or "state.json"
        raise CheckpointError(f"files are missing or foreign: {listed if listed.isprintable() else ascii(listed)}")
    for name, measured in files.items():
        if not _FILE.fullmatch(name) or not isinstance(measured, dict) or type(measured.get("bytes")) is not int:
            raise CheckpointError(f"manifest: {name} is no file of a checkpoint")
        if found[name] != measured["bytes"]:
            raise CheckpointError(f"{name} has changed since it was written")
    if sum(measured["bytes"] for measured in files.values()) > MAX_BYTES:  # sparse files take no room to send
        raise CheckpointError(f"manifest: its files have more than {MAX_BYTES:,} bytes together")
    replay = manifest.get("replay", [])
    if not isinstance(replay, list):
        raise CheckpointError("manifest: replay is no list")
    return _Manifest(files, [Segment.of(entry) for entry in replay])


def _measure(data: bytes) -> dict[str, Any]:
    """Return a file's length in bytes and its SHA-256."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

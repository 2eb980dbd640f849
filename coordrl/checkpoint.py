"""Checkpoints: tensors, arrays and JSON in a folder of their own, verified by a manifest, no pickle.

    checkpoints/000000050000/
        policy.safetensors, optimizer.safetensors, ...   tensors by name
        torch_rng.npy, ...                               arrays
        state.json                                       everything else
        manifest.json                                    format, length and SHA-256 of each file; written last

A checkpoint is written beside its place, forced to the disk and moved there whole, so that a crash at
any moment leaves either the one before or this one.

It is read as if a stranger had sent it. Every file is read once, into memory, and measured, before a byte of it is
taken apart; nothing in it is unpickled, evaluated or imported, and no number in it decides how much memory is used.

Formats: 2 is what this coordrl writes. 1, which had no games in it, is read as well: a run goes on from it with new
games. Every later coordrl is to read 2 or to say that it does not; a format that is not known is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from coordrl.errors import CheckpointError, ResumableError
from coordrl.faults import reach
from coordrl.files import MAX_JSON, parse_json, sync_file, sync_folder, write_data

FORMAT = 2  # raised when the files change their meaning
READ = (1, FORMAT)
KEEP = 2  # verified checkpoints of a run
MAX_HEADER = 1 << 20  # bytes of the JSON at the head of a .safetensors
MAX_FILES = 64

# What numpy writes for an array without pickle, in C order; numpy itself would evaluate it as Python.
_NPY = re.compile(
    rb"\{'descr': '([<|](?:b1|[iu][1248]|f[248]))', 'fortran_order': False, 'shape': \(((?:\d{1,15}, ?)*\d{0,15})\), \} *\n"
)
_FORMAT = "format"  # begins what is said of one that another coordrl may read
_FILE = re.compile(r"[A-Za-z0-9_]+\.(?:safetensors|npy)|state\.json")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: groups of named tensors, named arrays, and JSON state."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    arrays: Mapping[str, NDArray[Any]]
    state: Mapping[str, Any]
    skipped: list[str] = field(default_factory=list)  # newer checkpoints that cannot be used, and why


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
    write("manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())
    for file in place.iterdir():
        sync_file(file)
    sync_folder(place)


def array_bytes(array: NDArray[Any]) -> bytes:
    """Return an array in .npy's format, in C order, without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def parse_array(data: bytes) -> NDArray[Any]:
    """Return the array of a .npy, as `array_bytes` makes it.

    Raises:
        ValueError: it is none, or not as long as it says.
    """
    length = int.from_bytes(data[8:10], "little")
    found = _NPY.fullmatch(data[10 : 10 + length])
    if data[:8] != b"\x93NUMPY\x01\x00" or found is None:
        raise ValueError("it is no .npy of numbers")
    dtype = np.dtype(found[1].decode())
    shape = tuple(int(side) for side in found[2].split(b",") if side.strip())
    size = len(data) - 10 - length
    if len(shape) > 8 or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"an array of shape {shape} does not take {size} bytes")
    return np.frombuffer(data, dtype, math.prod(shape), 10 + length).reshape(shape).copy()


def _parse_tensors(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, whose header is checked first: the library takes a key twice."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(MAX_HEADER, len(data) - 8):
        raise ValueError(f"its header would have {length:,} bytes")
    for name, entry in parse_json(data[8 : 8 + length]).items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        sides = isinstance(shape, list) and all(type(side) is int and 0 <= side < 2**40 for side in shape)
        if name != "__metadata__" and not sides:
            raise ValueError(f"{name!r:.60} has shape {shape!r:.60}")
    return safetensors.torch.load(data)


def read_newest(folder: Path, use: Callable[[Checkpoint], None] = lambda checkpoint: None) -> Checkpoint | None:
    """Read the newest checkpoint that verifies and can be used, or return None where there is no checkpoint at all.

    Args:
        folder: the checkpoints.
        use: what is to be done with it; where that raises CheckpointError, the next older one is tried.

    Raises:
        ResumableError: there are checkpoints, and none can be used.
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
        raise ResumableError(
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
        for _ in _read_files(place):
            pass
    except ResumableError as error:
        return str(error)
    return ""


def _read(place: Path, skipped: list[str]) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: it does not verify.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    arrays: dict[str, NDArray[Any]] = {}
    state: dict[str, Any] = {}
    for name, data in _read_files(place):
        stem, _, kind = name.partition(".")
        try:
            if kind == "safetensors":
                tensors[stem] = _parse_tensors(data)
            elif kind == "npy":
                arrays[stem] = parse_array(data)
            else:
                state = parse_json(data, finite=True)
        except (ValueError, safetensors.SafetensorError, KeyError, TypeError, OverflowError, RuntimeError) as error:
            raise CheckpointError(f"{name}: {error}") from error
    step = int(place.name)
    if state.get("step") != step:
        raise CheckpointError(f"state.json is of step {state.get('step')!r:.40}")
    return Checkpoint(step, tensors, arrays, state, skipped)


def _read_files(place: Path) -> Iterable[tuple[str, bytes]]:
    """Yield the name and the content of each file of a checkpoint but the manifest, once it is as that says.

    Raises:
        CheckpointError: something is not as it should be.
    """
    try:
        if place.is_symlink() or not place.is_dir():
            raise CheckpointError("it is no folder of its own")
        with os.scandir(place) as entries:
            found = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries if _is_own(entry)}
        manifest = _parse_manifest(place, found)
        for name, measured in manifest.items():
            if found[name] != measured["bytes"]:
                raise CheckpointError(f"{name} has changed since it was written")
            data = (place / name).read_bytes()
            if _measure(data) != measured:
                raise CheckpointError(f"{name} has changed since it was written")
            yield name, data
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"it has gone: {error.strerror}") from error
    except OSError as error:  # nothing says that it is damaged: nobody may go on from an older one
        raise ResumableError(f"{place} cannot be read: {error.strerror or error}; mend that") from error


def _is_own(entry: os.DirEntry[str]) -> bool:
    """Say that something in a checkpoint is a file, or refuse it."""
    if not entry.is_file(follow_symlinks=False):
        raise CheckpointError(f"{entry.name} is not a file of its own")
    return True


def _parse_manifest(place: Path, found: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return what the manifest says of each file, after checking that it speaks of those that are there."""
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
    return files


def _measure(data: bytes) -> dict[str, Any]:
    """Return a file's length in bytes and its SHA-256."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

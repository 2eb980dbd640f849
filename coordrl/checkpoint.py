"""Checkpoints: tensors, arrays and JSON in a folder of their own, verified by a manifest, no pickle.

    checkpoints/000000050000/
        policy.safetensors, optimizer.safetensors, ...   tensors by name
        torch_rng.npy, ...                               arrays
        state.json                                       everything else
        manifest.json                                    format, length and SHA-256 of each file; written last

A checkpoint is written beside its place, forced to the disk and moved there whole, so that a crash at
any moment leaves either the one before or this one.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from coordrl.errors import ResumableError
from coordrl.results import sync_file, sync_folder

FORMAT = 1  # raised when the files change their meaning; another number is refused, never guessed at
KEEP = 2  # verified checkpoints of a run


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: groups of named tensors, named arrays, and JSON state."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    arrays: Mapping[str, NDArray[Any]]
    state: Mapping[str, Any]
    skipped: list[str] = field(default_factory=list)  # newer checkpoints that did not verify, and why


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below `folder`, then drop all but the newest `KEEP`.

    Returns its folder, named by the step in 12 digits. One that is there already is left alone.
    """
    place = folder / f"{checkpoint.step:012d}"
    if place.exists() and not _fault(place):
        return place
    partial = folder / f".{place.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_files(partial, checkpoint)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # most often the disk is full: give the room back
        raise
    if place.exists():  # the one that was there did not verify
        shutil.rmtree(place)
    partial.rename(place)
    sync_folder(folder)
    # Newer ones did not verify when this run went on from an older one: they belong to no run any more.
    kept = [old for old in _places(folder) if int(old.name) <= checkpoint.step][:KEEP]
    for old in _places(folder):
        if old not in kept:
            shutil.rmtree(old)
    return place


def _write_files(place: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint's files through to the disk, the manifest last.

    Every file goes through Python's own writing, because only that reports a full disk as an OSError.
    """
    for group, tensors in checkpoint.tensors.items():
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        (place / f"{group}.safetensors").write_bytes(safetensors.torch.save(whole))
    for name, array in checkpoint.arrays.items():
        (place / f"{name}.npy").write_bytes(array_bytes(array))
    state = {"step": checkpoint.step, **checkpoint.state}
    (place / "state.json").write_text(json.dumps(state, allow_nan=False) + "\n", encoding="utf-8")
    files = {file.name: _measure(file) for file in sorted(place.iterdir())}
    manifest = {"format": FORMAT, "step": checkpoint.step, "files": files}
    (place / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for file in place.iterdir():
        sync_file(file)
    sync_folder(place)


def array_bytes(array: NDArray[Any]) -> bytes:
    """Return an array in .npy's format, without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_newest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint that verifies, or return None where there is no checkpoint at all.

    Raises:
        ResumableError: there are checkpoints, and none verifies.
    """
    skipped: list[str] = []
    for place in _places(folder):
        fault = _fault(place)
        if not fault:
            try:
                return _read(place, skipped)
            except (OSError, ValueError, safetensors.SafetensorError) as error:
                fault = f"{type(error).__name__} {error}"
        skipped.append(f"{place.name}: {fault}")
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
    return sorted((path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()), reverse=True)


def _fault(place: Path) -> str:
    """Say what is wrong with a checkpoint's files, or return ""."""
    try:
        manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}; this coordrl reads format {FORMAT}"
        if int(place.name) != manifest["step"]:
            return f"it is of step {manifest['step']}"
        listed, found = set(manifest["files"]), {file.name for file in place.iterdir()} - {"manifest.json"}
        if listed != found or "state.json" not in listed:
            return f"files are missing or foreign: {', '.join(sorted(listed ^ found)) or 'state.json'}"
        for name, measured in manifest["files"].items():
            file = place / name
            if file.is_symlink() or not file.is_file():
                return f"{name} is not a file of its own"
            if file.stat().st_size != measured["bytes"] or _measure(file) != measured:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"manifest: {type(error).__name__} {error}"
    return ""


def _read(place: Path, skipped: list[str]) -> Checkpoint:
    """Read a checkpoint that verifies."""
    tensors = {file.stem: safetensors.torch.load_file(file) for file in place.glob("*.safetensors")}
    arrays = {file.stem: np.load(file, allow_pickle=False) for file in place.glob("*.npy")}
    state = json.loads((place / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(int(place.name), tensors, arrays, state, skipped)


def _measure(file: Path) -> dict[str, Any]:
    """Return a file's length in bytes and its SHA-256."""
    with file.open("rb") as handle:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}

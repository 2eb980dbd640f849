"""The replay memory of a run on disk: immutable segments that its checkpoints share.

    replay/000000000000-000000004096-1f0c….safetensors     rows 0 to 4,095: transitions, and the pictures they refer to
    replay/000000004096-000000006250-77ab….safetensors     those up to the next checkpoint

The name ends in the beginning of the content's SHA-256: no other content ever comes under it.
A segment is written when enough rows have come, and at each checkpoint with what there is: so a checkpoint has little
left to write. It is read as if a stranger had sent it.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import safetensors.numpy
from gymnasium import spaces
from numpy.typing import NDArray
from safetensors import SafetensorError

from coordrl.arrays import MAX_HEADER, parse_tensors
from coordrl.errors import CheckpointError, ResumableError
from coordrl.faults import reach
from coordrl.files import replace_data
from coordrl.replay import FrameReplayBuffer

TRANSITIONS = 4_096  # of a segment: of Atari 29 MB before they are packed, and half a second's work
_NAME = re.compile(r"([0-9]{12})-([0-9]{12})-([0-9a-f]{16})\.safetensors")
_DAMAGE = (KeyError, TypeError, ValueError, IndexError, OverflowError)
_LEVEL = 1  # of zlib: pictures of Atari shrink to a tenth even so


@dataclass(frozen=True)
class Segment:
    """A file of rows `first` to `last` - 1."""

    name: str
    first: int
    last: int
    bytes: int
    sha256: str

    @staticmethod
    def of(entry: Any) -> Segment:
        """Return a manifest's entry.

        Raises:
            CheckpointError: it is none.
        """
        try:
            segment = Segment(**entry)
            found = _NAME.fullmatch(segment.name)
            counts = (segment.first, segment.last, segment.bytes)
            if found is None or any(type(count) is not int or count < 0 for count in counts):
                raise ValueError("it names no segment")
            if (
                (int(found[1]), int(found[2])) != counts[:2]
                or segment.first >= segment.last
                or found[3] != segment.sha256[:16]
            ):
                raise ValueError("its name and its rows differ")
            return segment
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"manifest: {str(entry)[:200]} is no segment of a replay memory: {error}") from error


@final
class Segments:
    """The segments of a memory that is being filled.

    Args:
        folder: where they lie; made when the first is written.
        memory: what they are of.
        known: those that hold what is in the memory already.

    Attributes:
        known: those that hold what is in the memory.
    """

    def __init__(self, folder: Path, memory: FrameReplayBuffer, known: Iterable[Segment] = ()) -> None:
        self._folder, self._memory = folder, memory
        self.known = list(known)
        self._rows = max(1, min(TRANSITIONS // memory.n_envs, memory.buffer_size // 4))

    def seal_if_due(self) -> None:
        """Write a segment if enough rows have come."""
        if self._memory.adds - self._sealed >= self._rows:
            self.seal()

    @property
    def _sealed(self) -> int:
        return self.known[-1].last if self.known else 0

    def seal(self) -> list[Segment]:
        """Write what is in no segment yet, and return all segments that hold something."""
        memory = self._memory
        if memory.adds > self._sealed:
            first = max(self._sealed, memory.adds - memory.buffer_size)
            data = pack(memory, first)
            digest = hashlib.sha256(data).hexdigest()
            name = f"{first:012d}-{memory.adds:012d}-{digest[:16]}.safetensors"
            self._folder.mkdir(exist_ok=True)
            replace_data(self._folder / name, data)
            self.known.append(Segment(name, first, memory.adds, len(data), digest))
        oldest = memory.adds - memory.buffer_size
        self.known = [segment for segment in self.known if segment.last > oldest]
        return [*self.known]


def drop(folder: Path, needed: Iterable[Segment]) -> None:
    """Remove the segments that are not needed any more."""
    keep = {segment.name for segment in needed}
    for file in folder.glob("*"):
        ours = _NAME.fullmatch(file.name.removeprefix(".").replace(".partial", ""))
        if ours and file.name not in keep:
            reach("remove")
            file.unlink(missing_ok=True)


def pack(memory: FrameReplayBuffer, first: int) -> bytes:
    """Return the segment of the rows from `first` to the newest."""
    rows = np.arange(first, memory.adds) % memory.buffer_size
    references = memory.references[rows]
    gone = memory.written - memory.capacity  # pictures before that were overwritten
    starts = np.maximum(references[0].min(axis=(1, 2)), gone)
    pictures = zlib.compressobj(_LEVEL)
    packed = [
        pictures.compress(np.ascontiguousarray(memory.frames[env, np.arange(start, stop) % memory.capacity]).data)
        for env, (start, stop) in enumerate(zip(starts, memory.written, strict=True))
    ]
    packed.append(pictures.flush())
    return safetensors.numpy.save(
        {
            "starts": starts,
            "stops": memory.written.copy(),
            "pictures": np.frombuffer(b"".join(packed), np.uint8),
            "references": references,
            "actions": memory.actions[rows],
            "rewards": memory.rewards[rows],
            "dones": memory.dones[rows].astype(np.uint8),
            "timeouts": memory.timeouts[rows].astype(np.uint8),
        }
    )


def fill(memory: FrameReplayBuffer, folder: Path, segments: Iterable[Segment]) -> None:
    """Fill an empty memory from segments.

    Raises:
        CheckpointError: one of them is damaged, or they do not follow each other.
    """
    memory.reset()
    first = 0
    for index, segment in enumerate(segments):
        first = first if index else segment.first
        if index and segment.first != memory.adds:
            raise CheckpointError(f"{segment.name}: rows {memory.adds:,} to {segment.first:,} are missing")
        try:
            _unpack(memory, segment, parse_tensors(_read(folder, segment, _most(memory, segment))))
        except (*_DAMAGE, zlib.error, SafetensorError) as error:
            raise CheckpointError(f"{segment.name}: {error}") from error
    memory.settle()
    newest = np.full(memory.n_envs, (memory.adds - 1) % memory.buffer_size)
    if first > max(0, memory.adds - memory.buffer_size) or not memory.whole(newest, np.arange(memory.n_envs)).all():
        raise CheckpointError("a part of the replay memory is in none of its segments")


def append(memory: FrameReplayBuffer, first: int, last: int, data: bytes) -> None:
    """Add the rows `first` to `last` - 1, as `pack` of a memory that counts like this one returned them, without priorities.

    Raises:
        CheckpointError: they do not follow the newest row, or are none.
    """
    if first != memory.adds:
        raise CheckpointError(f"rows {memory.adds:,} to {first:,} are missing")
    try:
        _unpack(memory, Segment("", first, last, len(data), ""), parse_tensors(data))
    except (*_DAMAGE, zlib.error, SafetensorError) as error:
        raise CheckpointError(f"rows {first:,} to {last:,}: {error}") from error
    if memory.priorities is not None:  # of the rows that lay there before
        memory.put_priorities(first, np.zeros((last - first, memory.n_envs)), memory.max_priority)
    memory.settle()


def _most(memory: FrameReplayBuffer, segment: Segment) -> int:
    """Return how many bytes a segment of so many rows can have, however badly its pictures pack."""
    rows = min(segment.last - segment.first, memory.buffer_size)
    row: int = sum(
        getattr(memory, name)[0].nbytes for name in ("references", "actions", "rewards", "dones", "timeouts")
    )
    pictures: int = memory.frames.nbytes + memory.frames.nbytes // 1000
    return MAX_HEADER + 16 * memory.n_envs + rows * row + pictures + 1024


def missing(folder: Path, segment: Segment) -> str:
    """Say that a segment is not there in its length, or return ""."""
    file = folder / segment.name
    try:
        there = not file.is_symlink() and file.is_file() and file.stat().st_size == segment.bytes
    except OSError as error:
        return f"{segment.name} cannot be read: {error.strerror or error}"
    return "" if there else f"replay/{segment.name} is missing, or has changed since it was written"


def _read(folder: Path, segment: Segment, most: int) -> bytes:
    """Return a segment's content, once it is as the manifest says, and has not more than `most` bytes."""
    fault = missing(folder, segment)
    if segment.bytes > most:
        fault = f"{segment.name} has {segment.bytes:,} bytes, more than such a segment can have"
    if fault:
        raise CheckpointError(fault)
    try:
        data = (folder / segment.name).read_bytes()
    except OSError as error:  # nothing says that it is damaged: nobody may go on from an older one
        raise ResumableError(f"{folder / segment.name} cannot be read: {error.strerror or error}; mend that") from error
    if hashlib.sha256(data).hexdigest() != segment.sha256:
        raise CheckpointError(f"{segment.name} has changed since it was written")
    return data


def _unpack(memory: FrameReplayBuffer, segment: Segment, tensors: Mapping[str, Any]) -> None:
    """Put a segment's rows into a memory, after checking that they are some of such a memory."""
    count, n_envs = segment.last - segment.first, memory.n_envs
    wanted: dict[str, tuple[tuple[int, ...], Any]] = {
        "starts": ((n_envs,), np.int64),
        "stops": ((n_envs,), np.int64),
        "references": ((count, *memory.references.shape[1:]), np.int64),
        "actions": ((count, *memory.actions.shape[1:]), memory.actions.dtype),
        "rewards": ((count, n_envs), np.float32),
        "dones": ((count, n_envs), np.uint8),
        "timeouts": ((count, n_envs), np.uint8),
    }
    arrays: dict[str, NDArray[Any]] = {name: tensors[name].numpy() for name in (*wanted, "pictures")}
    for name, (shape, dtype) in wanted.items():
        if arrays[name].shape != shape or arrays[name].dtype != dtype:
            raise ValueError(f"{name} are of shape {arrays[name].shape} and {arrays[name].dtype}")
    if count > memory.buffer_size:
        raise ValueError(f"it has {count:,} rows, the memory {memory.buffer_size:,}")
    _check(memory, arrays)
    starts, stops = arrays["starts"], arrays["stops"]
    picture = memory.frames[0, 0].nbytes
    unpacker = zlib.decompressobj()  # never more than it says, whatever is in it
    data = unpacker.decompress(arrays["pictures"].tobytes(), int((stops - starts).sum()) * picture + 1)
    if len(data) != (stops - starts).sum() * picture or not unpacker.eof:
        raise ValueError("there are more or fewer pictures than it says")
    pictures = np.frombuffer(data, memory.frames.dtype).reshape(-1, *memory.frames.shape[2:])
    place = 0
    for env, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        memory.frames[env, np.arange(start, stop) % memory.capacity] = pictures[place : place + stop - start]
        place += stop - start
    rows = np.arange(segment.first, segment.last) % memory.buffer_size
    for name in ("references", "actions", "rewards", "dones", "timeouts"):
        getattr(memory, name)[rows] = arrays[name]
    memory.written[:] = stops
    memory.adds = segment.last


def _check(memory: FrameReplayBuffer, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Check that a segment's numbers are such as a memory holds."""
    starts, stops, references = arrays["starts"], arrays["stops"], arrays["references"]
    if (starts < 0).any() or (stops < starts).any() or (stops - starts > memory.capacity).any() or stops.max() > 2**48:
        raise ValueError(f"pictures are from {starts.tolist()[:4]} to {stops.tolist()[:4]}")
    if (memory.adds and (stops < memory.written).any()) or (references < 0).any():
        raise ValueError("references go backwards")
    if (references >= stops[:, None, None]).any() or (np.diff(references, axis=-1) < 0).any():
        raise ValueError("references are to pictures that are not there")
    actions, space = arrays["actions"], memory.action_space
    if isinstance(space, spaces.Discrete) and ((actions < 0).any() or (actions >= space.n).any()):
        raise ValueError(f"an action is none of {space.n}")
    if not np.isfinite(actions).all() or not np.isfinite(arrays["rewards"]).all():
        raise ValueError("a number is not finite")
    if arrays["dones"].max(initial=0) > 1 or arrays["timeouts"].max(initial=0) > 1:
        raise ValueError("an end is neither 0 nor 1")

"""The replay memory on disk: what comes back is what was there, and what somebody has damaged is refused."""

from __future__ import annotations

import copy
import hashlib
import random
import zlib
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_replay import ACTIONS, IMAGES, Stream

from coordrl.errors import CheckpointError
from coordrl.replay import FrameReplayBuffer
from coordrl.segments import Segment, Segments, drop, fill, missing, pack


def memory(rows: int, n_envs: int, n_steps: int = 3) -> FrameReplayBuffer:
    return FrameReplayBuffer(rows * n_envs, IMAGES, ACTIONS, "cpu", n_envs, n_steps=n_steps)


def same(one: FrameReplayBuffer, other: FrameReplayBuffer) -> None:
    """Check that two memories give the same batches, and take the same transitions alike."""
    assert (one.adds, one.pos, one.full) == (other.adds, other.pos, other.full)
    for seed in range(3):
        np.random.seed(seed)
        mine = one.sample(16)
        np.random.seed(seed)
        for left, right in zip(mine, other.sample(16), strict=True):
            assert (left is None and right is None) or torch.equal(left, right)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 40),
    n_envs=st.integers(1, 3),
    ends=st.sampled_from([0.0, 0.1, 0.6]),
    parts=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_a_memory_comes_back_from_its_segments_and_goes_on_alike(
    rows: int, n_envs: int, ends: float, parts: list[int], seed: int
) -> None:
    with TemporaryDirectory() as place:
        folder = Path(place) / "replay"
        first, stream = memory(rows, n_envs), Stream(n_envs, seed, ends=ends)
        writer = Segments(folder, first)
        for part in parts:
            for _ in range(part):
                first.add(*stream.next())
                writer.seal_if_due()
            segments = writer.seal()
        drop(folder, writer.known)
        assert {file.name for file in folder.iterdir()} == {segment.name for segment in segments}
        assert all(missing(folder, segment) == "" for segment in segments)
        again = memory(rows, n_envs)
        fill(again, folder, segments)
        same(first, again)
        assert np.array_equal(first.written, again.written)
        for _ in range(5):
            add = stream.next()
            for one in (first, again):
                one.add(*copy.deepcopy(add))
        same(first, again)
        assert np.array_equal(first.written, again.written)  # the last observation was known


def test_segments_are_written_once_and_go_when_the_memory_has_forgotten_them(tmp_path: Path) -> None:
    first, stream = memory(40, 1), Stream(1, 0)
    writer = Segments(tmp_path / "replay", first)
    for _ in range(10):
        first.add(*stream.next())
    (segment,) = writer.seal()
    times = (tmp_path / "replay" / segment.name).stat().st_mtime_ns
    assert writer.seal() == [segment]
    for _ in range(39):
        first.add(*stream.next())
        writer.seal_if_due()
    kept = writer.seal()
    assert segment in kept
    assert (tmp_path / "replay" / segment.name).stat().st_mtime_ns == times
    first.add(*stream.next())
    after = writer.seal()
    assert segment not in after
    drop(tmp_path / "replay", [segment, *writer.known])  # a checkpoint needs it still
    assert missing(tmp_path / "replay", segment) == ""
    drop(tmp_path / "replay", writer.known)
    assert (
        missing(tmp_path / "replay", segment)
        == f"replay/{segment.name} is missing, or has changed since it was written"
    )


@pytest.fixture
def written(tmp_path: Path) -> tuple[FrameReplayBuffer, Path, list[Segment]]:
    first, stream = memory(60, 2), Stream(2, 3)
    writer = Segments(tmp_path / "replay", first)
    for part in (30, 20):
        for _ in range(part):
            first.add(*stream.next())
        segments = writer.seal()
    return first, tmp_path / "replay", segments


def test_no_mutation_of_a_segment_is_loaded_in_silence(
    written: tuple[FrameReplayBuffer, Path, list[Segment]],
) -> None:
    _, folder, segments = written
    rng = random.Random(0)
    file = folder / segments[-1].name
    whole = file.read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        kind = rng.randrange(3)
        if kind == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(len(data)) : 0] = bytes([rng.randrange(256)])
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=segments[-1].name):
            fill(memory(60, 2), folder, segments)
    file.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        fill(memory(60, 2), folder, segments)
    file.symlink_to(folder / segments[0].name)
    with pytest.raises(CheckpointError, match="is missing"):
        fill(memory(60, 2), folder, segments)


def forge(folder: Path, segment: Segment, **changes: Any) -> Segment:
    """Write another content under a segment's name, with an entry that fits it."""
    arrays = {**safetensors.numpy.load((folder / segment.name).read_bytes()), **changes}
    data = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    return entry_of(folder, segment.first, segment.last, data)


def entry_of(folder: Path, first: int, last: int, data: bytes) -> Segment:
    """Write a file as the segment of some rows, and return its entry."""
    digest = hashlib.sha256(data).hexdigest()
    name = f"{first:012d}-{last:012d}-{digest[:16]}.safetensors"
    (folder / name).write_bytes(data)
    return Segment(name, first, last, len(data), digest)


FORGERIES: dict[str, Any] = {
    "starts": [lambda a: a - 100, lambda a: a + 10**9, lambda a: a.astype(np.int32), lambda a: a[:1]],
    "stops": [lambda a: a + 1, lambda a: a * 0, lambda a: a + 2**62],
    "pictures": [lambda a: a[:-3], lambda a: np.zeros(0, np.uint8), lambda a: np.zeros(100, np.uint8)],
    "references": [lambda a: a - 10**6, lambda a: a + 10**6, lambda a: a[:, :, :, ::-1], lambda a: a[:-1]],
    "actions": [lambda a: a + 5, lambda a: a - 9, lambda a: a.astype(np.int32)],
    "rewards": [lambda a: a * np.nan, lambda a: a * np.inf, lambda a: a.astype(np.float64)],
    "dones": [lambda a: a + 2],
    "timeouts": [lambda a: a + 2],
}


@pytest.mark.parametrize(("name", "change"), [(name, change) for name in FORGERIES for change in FORGERIES[name]])
def test_a_segment_that_no_memory_wrote_is_refused(
    name: str, change: Any, written: tuple[FrameReplayBuffer, Path, list[Segment]]
) -> None:
    _, folder, segments = written
    whole = safetensors.numpy.load((folder / segments[-1].name).read_bytes())
    forged = forge(folder, segments[-1], **{name: change(whole[name])})
    with pytest.raises(CheckpointError, match=forged.name):
        fill(memory(60, 2), folder, [segments[0], forged])


def test_a_part_of_a_memory_is_none(written: tuple[FrameReplayBuffer, Path, list[Segment]]) -> None:
    _, folder, segments = written
    with pytest.raises(CheckpointError, match="a part of the replay memory is in none of its segments"):
        fill(memory(60, 2), folder, segments[1:])
    whole = safetensors.numpy.load((folder / segments[1].name).read_bytes())
    empty = {
        "starts": whole["starts"] * 0 + 2**40,
        "stops": whole["stops"] * 0 + 2**40,
        "pictures": np.frombuffer(zlib.compress(b""), np.uint8),
    }
    with pytest.raises(CheckpointError, match="a part of the replay memory is in none of its segments"):
        fill(memory(60, 2), folder, [segments[0], forge(folder, segments[1], **empty)])


def test_damage_that_the_library_finds_is_a_refusal(written: tuple[FrameReplayBuffer, Path, list[Segment]]) -> None:
    _, folder, segments = written
    data = bytearray((folder / segments[1].name).read_bytes())
    place = data.index(b'"data_offsets":[') + 16
    data[place : place + 1] = b"9"
    with pytest.raises(CheckpointError, match="000000000030-000000000050"):
        fill(memory(60, 2), folder, [segments[0], entry_of(folder, 30, 50, bytes(data))])


def test_a_file_that_is_larger_than_any_segment_is_not_read(
    written: tuple[FrameReplayBuffer, Path, list[Segment]],
) -> None:
    _, folder, segments = written
    large = replace(segments[1], bytes=2**42)
    with (folder / large.name).open("r+b") as handle:
        handle.truncate(2**42)  # a hole, which takes no room
    with pytest.raises(CheckpointError, match="more than such a segment can have"):
        fill(memory(60, 2), folder, [segments[0], large])


def test_segments_of_another_memory_or_in_another_order_are_refused(
    written: tuple[FrameReplayBuffer, Path, list[Segment]],
) -> None:
    _, folder, segments = written
    with pytest.raises(CheckpointError, match="are missing"):
        fill(memory(60, 2), folder, segments[::-1])
    with pytest.raises(CheckpointError, match="are of shape"):
        fill(memory(60, 3), folder, segments)
    with pytest.raises(CheckpointError, match="it has 30 rows, the memory 20"):
        fill(memory(20, 2), folder, segments)


@pytest.mark.parametrize(
    "change",
    [{"name": "../../etc"}, {"first": 1}, {"last": True}, {"bytes": -1}, {"extra": 1}, {"first": "0"}, {"name": 3}],
)
def test_an_entry_that_names_no_segment_is_refused(change: dict[str, Any]) -> None:
    name = "000000000000-000000000005-" + "0" * 16 + ".safetensors"
    entry = {"name": name, "first": 0, "last": 5, "bytes": 3, "sha256": "0" * 64}
    assert Segment.of(entry).last == 5
    with pytest.raises(CheckpointError, match="is no segment of a replay memory"):
        Segment.of({**entry, **change})
    with pytest.raises(CheckpointError, match="is no segment of a replay memory"):
        Segment.of(3)


def test_pictures_are_packed(written: tuple[FrameReplayBuffer, Path, list[Segment]]) -> None:
    still, stream = memory(200, 1), Stream(1, 0)
    for _ in range(200):
        obs, following, *rest = stream.next()
        still.add(np.zeros_like(obs), np.zeros_like(following), *rest)
    assert len(pack(still, 0)) < 200 * (16 + 64 + 8 + 4 + 2) + 2000  # next to nothing but the numbers

"""Checkpoints: whole or not there, verified, without pickle."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordrl.checkpoint import KEEP, Checkpoint, read_newest, write_checkpoint
from coordrl.errors import ResumableError


def make(step: int, size: int = 3) -> Checkpoint:
    rng = torch.Generator().manual_seed(step)
    tensors = {"policy": {"a.weight": torch.randn(size, 4, generator=rng), "b": torch.randn(2, generator=rng)}}
    tensors["optimizer"] = {"0.square_avg": torch.randn(size, 4, generator=rng)}
    return Checkpoint(step, tensors, {"torch_rng": np.arange(size, dtype=np.uint8)}, {"counters": {"n": step}})


@given(st.integers(0, 10**11), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_a_checkpoint_comes_back_as_it_was_written(step: int, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = make(step, size)
        place = write_checkpoint(Path(folder), written)
        assert place.name == f"{step:012d}"
        read = read_newest(Path(folder))
        assert read is not None
        assert read.step == step
        assert read.state["counters"] == {"n": step}
        for group, tensors in written.tensors.items():
            assert set(read.tensors[group]) == set(tensors)
            assert all(torch.equal(read.tensors[group][name], tensors[name]) for name in tensors)
        assert np.array_equal(read.arrays["torch_rng"], written.arrays["torch_rng"])


def test_a_tensor_in_another_layout_comes_back_with_the_same_values(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    write_checkpoint(tmp_path, Checkpoint(1, {"policy": {"w": weight}}, {}, {}))
    read = read_newest(tmp_path)
    assert read is not None
    assert torch.equal(read.tensors["policy"]["w"], weight)


def test_there_is_none_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert read_newest(tmp_path) is None
    assert read_newest(tmp_path / "none") is None


def test_the_newest_ones_are_kept(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400):
        write_checkpoint(tmp_path, make(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{step:012d}" for step in (400 - 100 * (KEEP - 1), 400)
    ]


def test_an_unfinished_one_is_ignored_and_written_over(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, make(100))
    (tmp_path / ".000000000200.partial").mkdir()
    (tmp_path / ".000000000200.partial" / "rest").write_text("")
    read = read_newest(tmp_path)
    assert read is not None
    assert read.step == 100
    write_checkpoint(tmp_path, make(200))
    read = read_newest(tmp_path)
    assert read is not None
    assert read.step == 200


def test_writing_the_same_step_again_mends_a_damaged_one_and_leaves_a_good_one(tmp_path: Path) -> None:
    place = write_checkpoint(tmp_path, make(100))
    before = (place / "manifest.json").stat().st_ino
    write_checkpoint(tmp_path, make(100))
    assert (place / "manifest.json").stat().st_ino == before
    (place / "state.json").write_text("{}")
    write_checkpoint(tmp_path, make(100))
    read = read_newest(tmp_path)
    assert read is not None
    assert read.state["counters"] == {"n": 100}


def test_any_changed_byte_makes_load_fall_back_to_the_one_before(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, make(100))
    newest = write_checkpoint(tmp_path, make(200))
    files = sorted(newest.iterdir())
    rng = random.Random(0)
    for _ in range(300):
        file = rng.choice(files)
        whole = file.read_bytes()
        place = rng.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= rng.randrange(1, 256)
        file.write_bytes(damaged)
        read = read_newest(tmp_path)
        assert read is not None
        if file.name != "manifest.json":  # in the manifest, white space may change without harm
            assert read.step == 100
            assert read.skipped[0].startswith("000000000200: ")
        file.write_bytes(whole)


@pytest.mark.parametrize("harm", ["cut", "gone", "empty"])
def test_a_file_cut_short_or_gone_makes_load_fall_back(harm: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, make(100))
    newest = write_checkpoint(tmp_path, make(200))
    whole = tmp_path.parent / f"{tmp_path.name}-whole"
    shutil.copytree(newest, whole)
    for name in sorted(path.name for path in whole.iterdir()):
        file = newest / name
        if harm == "gone":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[: 0 if harm == "empty" else -1])
        read = read_newest(tmp_path)
        assert read is not None
        assert read.step == (200 if (name, harm) == ("manifest.json", "cut") else 100)  # there: a final newline
        shutil.copy(whole / name, file)


def test_where_none_verifies_the_reasons_are_said(tmp_path: Path) -> None:
    place = write_checkpoint(tmp_path, make(100))
    (place / "state.json").write_text("{}")
    with pytest.raises(ResumableError, match=r"no checkpoint in .*000000000100: state.json has changed"):
        read_newest(tmp_path)


def test_another_format_is_refused_not_guessed_at(tmp_path: Path) -> None:
    place = write_checkpoint(tmp_path, make(100))
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ResumableError, match="format 99; this coordrl reads formats 1 and 2"):
        read_newest(tmp_path)


def test_a_manifest_that_points_outside_is_refused(tmp_path: Path) -> None:
    place = write_checkpoint(tmp_path, make(100))
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": "x"}
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ResumableError, match="missing or foreign: ../secret"):
        read_newest(tmp_path)


def test_a_planted_file_or_link_is_refused(tmp_path: Path) -> None:
    place = write_checkpoint(tmp_path, make(100))
    (place / "extra.npy").write_bytes(b"x")
    with pytest.raises(ResumableError, match="missing or foreign: extra.npy"):
        read_newest(tmp_path)
    (place / "extra.npy").unlink()
    (place / "state.json").rename(tmp_path / "elsewhere.json")
    (place / "state.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ResumableError, match="state.json is not a file of its own"):
        read_newest(tmp_path)


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    place = write_checkpoint(tmp_path, make(100))
    for file in place.iterdir():
        file.unlink()
    (place / "manifest.json").write_text('{"format": 1, "step": 100, "files": {}}')
    with pytest.raises(ResumableError, match="missing or foreign: state.json"):
        read_newest(tmp_path)


def test_not_a_number_in_the_state_is_refused_at_writing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_checkpoint(tmp_path, Checkpoint(1, {}, {}, {"loss": float("nan")}))
    assert read_newest(tmp_path) is None

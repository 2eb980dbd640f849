"""Checkpoints: whole or not there, verified, without pickle."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordrl.algorithms import build_model
from coordrl.checkpoint import FORMAT, KEEP, Checkpoint, read_newest, write_checkpoint
from coordrl.environments import make_env
from coordrl.errors import ReplayError, ResumableError
from coordrl.results import RunFolder
from coordrl.snapshot import restore, restore_games


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


def test_writing_the_same_step_again_replaces_what_is_there(tmp_path: Path) -> None:
    place = write_checkpoint(tmp_path, make(100))
    (place / "state.json").write_text("{}")
    write_checkpoint(tmp_path, make(100))
    read = read_newest(tmp_path)
    assert read is not None
    assert read.state["counters"] == {"n": 100}
    write_checkpoint(tmp_path, replace(make(100), state={"counters": {"n": 3}}))
    read = read_newest(tmp_path)
    assert read is not None
    assert read.state["counters"] == {"n": 3}


def test_an_older_one_goes_only_when_two_newer_ones_verify(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, make(100))
    write_checkpoint(tmp_path, make(200))
    (tmp_path / "000000000200" / "policy.safetensors").write_bytes(b"")
    write_checkpoint(tmp_path, make(300))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000000100", "000000000200", "000000000300"]
    write_checkpoint(tmp_path, make(400))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000000300", "000000000400"]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of a control, whose checkpoints have a few kilobytes."""
    from coordrl.train import main

    out = tmp_path_factory.mktemp("small")
    words = "--game PlaceMatters --steps 400 --set n_envs=4 --checkpoint-every 200 --eval-every 0"
    assert main([*words.split(), "--out", str(out)]) == 0
    return RunFolder(next(out.glob("*/*/*/seed-*/run.json")).parent)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change, cut, repeat or insert bytes."""
    changed = bytearray(data)
    kind, place = rng.randrange(5), rng.randrange(len(changed))
    if kind == 0:
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        changed[place] = rng.choice(b'0"{}[]:,-\x00\xff')
    elif kind == 2:
        del changed[place : place + rng.randrange(1, 1 << rng.randrange(1, 12))]
    elif kind == 3:
        changed[place:place] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 64)))
    else:
        changed[place:place] = changed[place : place + rng.randrange(1, 256)]
    return bytes(changed)


MUTATIONS = int(os.environ.get("COORDRL_MUTATIONS", "20000"))  # more by the environment


@pytest.mark.parametrize("mutations", [1000, pytest.param(MUTATIONS, marks=pytest.mark.slow)])
def test_no_mutation_of_a_file_is_loaded_in_silence(mutations: int, small_run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(small_run.checkpoints, folder)
    newest = max(folder.iterdir())
    whole = {file: file.read_bytes() for file in newest.iterdir()}
    sound = read_newest(folder)
    assert sound is not None
    rng = random.Random(0)
    fell_back = 0
    for number in range(mutations):
        file = sorted(whole)[number % len(whole)]
        changed = mutate(whole[file], rng)
        file.write_bytes(changed)
        read = read_newest(folder)
        assert read is not None
        if read.step == 200:
            fell_back += 1
        else:  # white space in the manifest, or no change at all
            assert changed == whole[file] or file.name == "manifest.json"
            assert read.state == sound.state
        file.write_bytes(whole[file])
    assert fell_back > 0.97 * mutations


def test_a_forged_file_is_refused_cleanly_whatever_is_in_it(small_run: RunFolder, tmp_path: Path) -> None:
    # The manifest is made to fit: this is what a stranger can send, not what a disk can do.
    spec = small_run.read_spec()
    env = make_env(spec.game, 4, protocol=spec.protocol, reseed_every=100)
    model = build_model(spec, env, device="cpu")
    folder = tmp_path / "checkpoints"
    shutil.copytree(small_run.checkpoints, folder)
    shutil.rmtree(min(folder.iterdir()))
    (newest,) = folder.iterdir()
    whole = {file: file.read_bytes() for file in newest.iterdir() if file.name != "manifest.json"}
    state = json.loads((newest / "state.json").read_text())
    rng = random.Random(1)
    outcomes: Counter[str] = Counter()
    size = sum(map(len, whole.values()))
    sound = read_newest(folder, lambda found: restore(model, found))  # what is imported now is not measured below
    assert sound is not None
    restore_games(model, sound)
    for number in range(MUTATIONS // 20):
        file = sorted(whole)[number % len(whole)]
        data = mutate(whole[file], rng)
        if file.name == "state.json" and number % 2:
            data = json.dumps(poison(state, rng)).encode()
        file.write_bytes(data)
        fit_manifest(newest)
        with memory_below(2 * size + 2**20):
            try:
                read = read_newest(folder, lambda found: restore(model, found))
                assert read is not None
                assert model.num_timesteps == read.step == 400
                restore_games(model, read)
                outcomes["taken"] += 1  # another weight, or another number of games: nothing can tell
            except (ResumableError, ReplayError) as error:
                outcomes[type(error).__name__] += 1
        file.write_bytes(whole[file])
    env.close()
    assert outcomes["CheckpointError"] > 100
    assert outcomes["ReplayError"] > 1


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Check the peak of what Python and NumPy take meanwhile, in bytes; torch's own memory is not counted."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def poison(state: Any, rng: random.Random) -> Any:
    """Put something else in one place of a JSON value."""
    strange: list[Any] = [
        None,
        True,
        -1,
        1e308,
        10**30,
        "nan",
        float("inf"),
        10**400,
        "x",
        [],
        {},
        [[]],
        "__class__",
        2**64,
        -0.5,
    ]
    if isinstance(state, dict) and state and rng.random() < 0.95:
        key = rng.choice(sorted(state))
        return {**state, key: poison(state[key], rng)}
    if isinstance(state, list) and state and rng.random() < 0.8:
        place = rng.randrange(len(state))
        return [*state[:place], poison(state[place], rng), *state[place + 1 :]]
    return rng.choice(strange)


def fit_manifest(place: Path) -> None:
    """Make the manifest fit the files."""
    files = {}
    for file in place.iterdir():
        if file.name != "manifest.json":
            data = file.read_bytes()
            files[file.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {"format": FORMAT, "step": int(place.name), "files": files}
    (place / "manifest.json").write_text(json.dumps(manifest))


def npy(header: str, body: bytes = b"") -> bytes:
    """Make a .npy with any header."""
    padded = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + body


def tensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """Make a .safetensors with any header."""
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        (
            "torch_rng.npy",
            npy("{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999,), }"),
            "does not take 0 bytes",
        ),
        ("torch_rng.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }"), "no .npy of numbers"),
        ("torch_rng.npy", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n"), "no .npy"),
        (
            "torch_rng.npy",
            npy("{'descr': __import__('os').abort(), 'fortran_order': False, 'shape': (1,), }"),
            "no .npy",
        ),
        ("torch_rng.npy", b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little"), "no .npy of numbers"),
        (
            "policy.safetensors",
            tensors({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0000"),
            "shape",
        ),
        (
            "policy.safetensors",
            tensors({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"0000"),
            "has shape",
        ),
        (
            "policy.safetensors",
            tensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}, b"0000"),
            "Error|Invalid",
        ),
        ("policy.safetensors", tensors("{}", length=2**62), "header would have"),
        ("policy.safetensors", tensors('{"a": {"shape": []}, "a": {"shape": []}}'), "a key twice"),
        ("policy.safetensors", tensors("[" * 100_000), "nested too deeply"),
        ("state.json", b'{"step": 400, "step": 400}', "a key twice"),
        ("state.json", b'{"step": NaN}', "NaN is no number"),
        ("state.json", b"[" * 100_000, "nested too deeply"),
        ("state.json", b'{"a": "' + b"x" * (5 << 20) + b'"}', "more than the 4,194,304"),
        ("state.json", b'{"step": ' + b"1" * 10_000 + b"}", "digits"),
        ("state.json", b'"step"', "it is no object"),
        ("state.json", b'{"step": 399}', "it is of step 399|state.json is of step 399"),
    ],
)
def test_what_lies_about_itself_is_refused_before_it_costs_anything(
    name: str, data: bytes, complaint: str, small_run: RunFolder, tmp_path: Path
) -> None:
    place = tmp_path / "000000000400"
    shutil.copytree(max(small_run.checkpoints.iterdir()), place)
    (place / name).write_bytes(data)
    fit_manifest(place)
    size = sum(file.stat().st_size for file in place.iterdir())
    with memory_below(2 * size + 2**20), pytest.raises(ResumableError, match=complaint):
        read_newest(tmp_path)


@pytest.mark.parametrize("what", ["a file", "the manifest", "the checkpoint", "a folder in it", "a pipe in it"])
def test_what_is_no_file_of_its_own_is_refused(what: str, small_run: RunFolder, tmp_path: Path) -> None:
    place = tmp_path / "000000000400"
    shutil.copytree(max(small_run.checkpoints.iterdir()), place)
    elsewhere = tmp_path / "elsewhere"
    if what == "the checkpoint":
        place.rename(elsewhere)
        place.symlink_to(elsewhere)
    elif what == "a folder in it":
        (place / "more.npy").mkdir()
    elif what == "a pipe in it":
        os.mkfifo(place / "more.npy")
    else:
        file = place / ("manifest.json" if what == "the manifest" else "policy.safetensors")
        file.rename(elsewhere)
        file.symlink_to(elsewhere)
    with pytest.raises(ResumableError, match="not a file of its own|no folder of its own"):
        read_newest(tmp_path)


@pytest.mark.parametrize("name", ["../../stolen.npy", "/etc/passwd", "a/b.npy", "run.py", "state.json\0"])
def test_a_manifest_that_names_other_places_is_refused(name: str, small_run: RunFolder, tmp_path: Path) -> None:
    place = tmp_path / "000000000400"
    shutil.copytree(max(small_run.checkpoints.iterdir()), place)
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ResumableError, match="missing or foreign"):
        read_newest(tmp_path)


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


def test_a_sparse_file_of_a_terabyte_is_refused_and_the_one_before_is_read(tmp_path: Path) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path, make(step))
    place = tmp_path / "000000000002"
    name = next(file.name for file in place.iterdir() if file.suffix == ".safetensors")
    os.truncate(place / name, 1 << 40)
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"][name]["bytes"] = 1 << 40
    (place / "manifest.json").write_text(json.dumps(manifest))
    found = read_newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "its files have more than" in found.skipped[0]

"""The paper's supervised tasks: data, networks, and the command that trains them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from coordrl import faults, paper_training
from coordrl.coordconv import AddCoords, CoordConv2d
from coordrl.errors import DivergedError
from coordrl.paper import main
from coordrl.paper_networks import build_network, count_parameters
from coordrl.paper_results import PaperFolder, describe_result, percent
from coordrl.paper_tasks import PaperSpec, specify
from coordrl.paper_training import Lesson, curve_points, score
from coordrl.process import tune
from coordrl.results import RunFolder
from coordrl.squares import denormalise, draw_pixels, draw_squares, normalise, pixel_numbers, positions, split

CPU = torch.device("cpu")
SHORT = ["regression", "--epochs", "1", "--device", "cpu"]


def test_there_are_3136_positions_of_a_square_that_is_wholly_seen() -> None:
    places = positions()
    assert places.shape == (3136, 2)
    assert len({tuple(place) for place in places.tolist()}) == 56 * 56
    assert (places.min(), places.max()) == (4, 59)
    assert draw_squares(places).sum(axis=(1, 2, 3)).tolist() == [81.0] * 3136


def test_a_square_and_a_pixel_are_where_the_position_says() -> None:
    places = np.array([[4, 59], [30, 7]])
    squares, pixels = draw_squares(places), draw_pixels(places)
    for index, (row, column) in enumerate(places):
        assert squares[index, 0, row - 4 : row + 5, column - 4 : column + 5].all()
        assert np.argwhere(pixels[index, 0]).tolist() == [[row, column]]
    assert pixels.reshape(2, -1).argmax(axis=1).tolist() == pixel_numbers(places).tolist()
    assert squares.dtype == pixels.dtype == np.float32


def test_coordinates_are_on_the_scale_of_the_coordinate_channels() -> None:
    pixels = np.arange(64)
    channel = AddCoords()(torch.zeros(1, 1, 64, 64))[0, 1, :, 0]
    assert np.allclose(normalise(pixels), channel.numpy(), atol=1e-6)
    assert np.allclose(denormalise(normalise(pixels)), pixels, atol=1e-5)


@pytest.mark.parametrize(("name", "train", "test"), [("uniform", 2509, 627), ("quadrant", 2352, 784)])
def test_a_split_has_every_position_once(name: str, train: int, test: int) -> None:
    parts = split(name)
    assert (len(parts.train), len(parts.test)) == (train, test)
    assert sorted(np.concatenate(parts).tolist()) == list(range(3136))
    assert all(np.array_equal(part, again) for part, again in zip(parts, split(name), strict=True))


def test_the_quadrant_that_is_tested_on_is_never_trained_on() -> None:
    parts = split("quadrant")
    assert (positions()[parts.test] >= 32).all()
    assert not (positions()[parts.train] >= 32).all(axis=1).any()


@pytest.mark.parametrize(
    ("task", "arm", "parameters"),
    [
        ("classification", "coord", 7_553),
        ("rendering", "coord", 7_553),
        ("regression", "coord", 906),
        ("classification", "plain", 496_545),
        ("rendering", "plain", 496_545),
        ("regression", "plain", 71_922),
    ],
)
def test_a_network_has_the_size_and_the_shape_that_it_should(task: str, arm: str, parameters: int) -> None:
    network = build_network(task, arm, seed=0)
    assert count_parameters(network) == parameters
    places = positions()[:2]
    inputs = draw_pixels(places) if task == "regression" else normalise(places)
    assert network(torch.from_numpy(inputs)).shape == ((2, 2) if task == "regression" else (2, 1, 64, 64))


@pytest.mark.parametrize(("task", "parameters"), [("classification", 7_553), ("regression", 906)])
def test_over_concatenated_channels_it_is_the_same_function_with_as_many_parameters(task: str, parameters: int) -> None:
    network = build_network(task, "coord", seed=0)
    layers = [
        part
        for layer in network
        for part in ([AddCoords(), layer.to_concatenated()] if isinstance(layer, CoordConv2d) else [layer])
    ]
    concatenated = nn.Sequential(*layers)
    assert count_parameters(concatenated) == parameters
    places = positions()[100:103]
    inputs = torch.from_numpy(draw_pixels(places) if task == "regression" else normalise(places))
    assert torch.allclose(concatenated(inputs), network(inputs), atol=1e-5)


def test_building_a_network_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build_network("regression", "coord", seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = list(zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_a_network_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match='no network "shuffled"'):
        build_network("regression", "shuffled", seed=0)
    with pytest.raises(ValueError, match='no split "half"'):
        split("half")


def test_scores_are_those_that_one_counts_by_hand() -> None:
    places = np.array([[10, 20], [30, 40]])
    logits = np.zeros((2, 1, 64, 64), dtype=np.float32)
    logits[0, 0, 10, 20] = logits[1, 0, 33, 44] = 1.0  # 3 rows and 4 columns off
    hits, errors = score("classification", logits, places)
    assert (hits.tolist(), errors.tolist()) == ([1.0, 0.0], [0.0, 5.0])
    found = normalise(places + np.array([[0.4, -0.4], [0.6, 0.0]]))
    hits, errors = score("regression", found, places)
    assert hits.tolist() == [1.0, 0.0]
    assert errors == pytest.approx([0.4 * 2**0.5, 0.6], abs=1e-4)
    painted = draw_squares(places + np.array([[0, 0], [0, 3]])) - 0.5  # the second shares 6 of its 9 columns
    hits, errors = score("rendering", painted, places)
    assert hits.tolist() == [1.0, 54 / 108]
    assert errors.tolist() == [0.0, 0.5]


def test_only_what_is_perfect_is_written_as_perfect() -> None:
    assert [percent(share, "accuracy") for share in (1.0, 0.9999, 0.5)] == ["100.0 %", "99.9 %", "50.0 %"]
    assert [percent(share, "IoU") for share in (1.0, 0.9999, 0.25)] == ["1.000", "0.999", "0.250"]


def test_the_points_of_a_curve_grow_and_leave_out_the_end() -> None:
    points = sorted(curve_points(1570))
    assert points[0] == 10
    assert len(points) == 15
    assert all(low < high for low, high in pairwise(points))
    assert points[-1] < 1570
    assert len(curve_points(157)) == 6
    assert curve_points(1) == curve_points(10) == frozenset()


def test_the_loss_falls_from_the_first_updates() -> None:
    for task, arm in (("classification", "coord"), ("rendering", "plain")):
        lesson = Lesson(specify(task, "uniform", [arm], 0, 1), arm, CPU)
        losses: list[float] = []

        def on_update(lesson: Lesson = lesson, losses: list[float] = losses) -> bool:
            losses.append(lesson._losses[-1])
            return len(losses) == 6

        lesson.learn(on_update, lambda row: None)
        assert lesson.updates == 6
        assert min(losses[3:]) < losses[0]


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    spec = PaperSpec("regression", "uniform", 0, 1, 16, {"plain": 1e30})
    with pytest.raises(DivergedError, match="the loss of plain is (nan|inf) after 2 updates"):
        Lesson(spec, "plain", CPU).learn(lambda: False, lambda row: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short finished run of both arms; tests read it."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("paper") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_training, "_POINTS", 2)  # measuring takes longer than training
        assert main([*SHORT, "--split", "quadrant", "--out", str(out)]) == 0
    return out


def test_a_run_leaves_its_result_its_log_every_position_and_a_picture(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["spec"] == json.loads((finished / "run.json").read_text())["spec"]
    assert result["sizes"] == {"train": 2352, "test": 784}
    assert {arm: one["parameters"] for arm, one in result["arms"].items()} == {"coord": 906, "plain": 71_922}
    assert {"python", "torch", "coordrl"} <= set(result["versions"])
    assert result["hardware"]["torch_threads"] == 1
    rows = PaperFolder(finished).rows()
    assert [row["arm"] for row in rows] == ["coord"] * (len(rows) // 2) + ["plain"] * (len(rows) // 2)
    assert [row["updates"] for row in rows if row["arm"] == "plain"][-1] == 147
    with (finished / "positions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 3136
    tested = [row for row in table if row["part"] == "test"]
    assert np.mean([float(row["plain_error"]) for row in tested]) == pytest.approx(
        result["arms"]["plain"]["test"]["error"], rel=1e-4
    )
    assert not (finished / "stopped.json").exists()


def test_the_picture_is_not_blank(finished: Path) -> None:
    with Image.open(finished / "picture.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert "plain convolution" in (finished / "picture.svg").read_text()


def test_the_same_command_again_prints_the_table_and_changes_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in finished.iterdir()}
    assert main([*SHORT, "--split", "quadrant", "--out", str(finished)]) == 0
    shown = capsys.readouterr().out
    assert f"{finished} is finished" in shown
    assert "906" in shown
    assert "71,922" in shown
    assert {file.name: file.stat().st_mtime_ns for file in finished.iterdir()} == before


def test_another_run_on_the_same_folder_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, difference in (
        (["--split", "quadrant", "--seed", "1"], "seed is 0 there and 1 here"),
        ([], "split is 'quadrant' there and 'uniform' here"),
    ):
        assert main([*SHORT, *words, "--out", str(finished)]) == 2
        complaint = capsys.readouterr().err
        assert difference in complaint
        assert complaint.count("\n") == 1


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text('{"spec": {"game": "Pong"}}')
    assert main([*SHORT, "--out", str(tmp_path)]) == 2
    assert "cannot be read: it has no spec of one of the paper's tasks" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([*SHORT, "--out", str(tmp_path / "file")]) == 2
    assert "is a file; name a folder with --out" in capsys.readouterr().err


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """Leave out what no two runs share: seconds, and the name of the folder."""
    arms = {
        arm: {name: value for name, value in one.items() if "seconds" not in name}
        for arm, one in result["arms"].items()
    }
    return {**result, "arms": arms, "command": ""}


def test_one_seed_gives_one_result(tmp_path: Path) -> None:
    results = []
    for name in ("a", "b"):
        assert main([*SHORT, "--arms", "plain", "--out", str(tmp_path / name)]) == 0
        results.append(without_times(json.loads((tmp_path / name / "result.json").read_text())))
    assert results[0] == results[1]
    assert (tmp_path / "a" / "positions.csv").read_bytes() == (tmp_path / "b" / "positions.csv").read_bytes()


@pytest.mark.parametrize(("kind", "code"), [("interrupt", 130), ("stop", 143)])
def test_a_run_that_is_stopped_keeps_what_it_measured_and_begins_anew(
    kind: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SHORT, "--arms", "plain", "--out", str(tmp_path)]
    faults.arm(f"update:20:{kind}")
    try:
        assert main(words) == code
    finally:
        faults.arm(None)
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = [line for line in said.err.splitlines() if line.startswith("coordrl: ")]
    assert line.startswith("coordrl: stopped, plain at update 20 of 157, after ")
    assert str(tmp_path) in line
    stopped = json.loads((tmp_path / "stopped.json").read_text())
    assert stopped["arms"]["plain"]["updates"] == 20
    assert describe_result(stopped)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert not (tmp_path / "result.json").exists()
    if kind == "interrupt":
        assert main(words) == 0
        assert f"{tmp_path} was begun and not finished; it begins anew" in capsys.readouterr().err
        assert (tmp_path / "result.json").exists()
        assert not (tmp_path / "stopped.json").exists()


def test_a_damaged_result_is_none(tmp_path: Path) -> None:
    spec = specify("regression", "uniform", ["plain"], 0, 1)
    folder = PaperFolder(tmp_path)
    folder.begin(spec, {})
    assert folder.check(spec)
    spec_there = json.loads((tmp_path / "run.json").read_text())["spec"]
    sizes = {"train": 1, "test": 1}
    whole = [{"spec": spec_there}, {"spec": spec_there, "sizes": sizes, "arms": []}]
    for text in ("{", "{}", *map(json.dumps, whole)):
        folder.result_file.write_text(text)
        assert folder.read_result(spec) is None


def test_a_full_disk_ends_with_74(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults.arm("append:2:full")
    try:
        assert main([*SHORT, "--arms", "plain", "--out", str(tmp_path)]) == 74
    finally:
        faults.arm(None)
    complaint = capsys.readouterr().err
    assert "No space left on device; mend that, and the same command begins anew" in complaint


def test_a_folder_that_another_process_holds_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder(tmp_path).lock():
        assert main([*SHORT, "--out", str(tmp_path)]) == 75
    assert f"is in use by process {os.getpid()}" in capsys.readouterr().err
    assert not (tmp_path / "run.json").exists()


def test_the_command_runs_as_a_user_starts_it(tmp_path: Path) -> None:
    words = ["-m", "coordrl", "paper", *SHORT, "--arms", "plain"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "71,922" in done.stdout
    assert "plain: 71,922 parameters, 1 epoch of 157 updates, cpu" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "paper" / "regression-uniform-seed-0" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("task", "epochs"), [("classification", 1), ("regression", 3)])
def test_with_coordinates_a_network_learns_within_a_few_epochs(task: str, epochs: int) -> None:
    tune()  # as the command does: without it half of the time goes into giving memory back to the system
    lesson = Lesson(specify(task, "uniform", ["coord"], 0, epochs), "coord", CPU)
    lesson.learn(lambda: False, lambda row: None)
    assert lesson.row(lesson.measure())["test"]["hits"] > 0.95

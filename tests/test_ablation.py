"""Taking the coordinates from a trained agent: what it then computes, how it is undone, and the command."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind
from stable_baselines3.common.base_class import BaseAlgorithm

from coordrl.ablation import ablated, check_ablation, difference, evaluate_ablations, shift_pixels
from coordrl.algorithms import build_model
from coordrl.atari import AtariVecEnv
from coordrl.errors import RequestError
from coordrl.evaluate import main
from coordrl.evaluation import Evaluation, evaluate
from coordrl.extractors import EXTRACTORS, shuffled_grid
from coordrl.files import write_json
from coordrl.grids import coordinate_grid
from coordrl.recipes import find_recipe
from coordrl.results import RunFolder, Spec
from coordrl.suites import ABLATIONS, WITHOUT_COORDINATES, ablations_of

SMALL = {"a2c": ["n_envs=2"], "dqn": ["buffer_size=500", "n_envs=2"]}


def make_spec(extractor: str, agent: str = "a2c") -> Spec:
    recipe = find_recipe(agent, SMALL[agent])
    return Spec("Breakout", agent, recipe.algorithm, extractor, "zoo-v4", 3, 1000, dict(recipe.settings))


@pytest.fixture(scope="module")
def env() -> Iterator[AtariVecEnv]:
    made = AtariVecEnv("Breakout", 2, seed=0)
    yield made
    made.close()


def build(env: AtariVecEnv, extractor: str, agent: str = "a2c") -> BaseAlgorithm:
    """Build a model whose coordinates matter; every weight that it shares with its twin is bit-equal to it."""
    model = build_model(make_spec(extractor, agent), env, device="cpu")
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            if ".coordinates." in name:
                parameter.mul_(30.0)
            if name == "action_net.weight":  # SB3 makes it so small that every policy is uniform at first
                parameter.mul_(30.0)
    return model


def features(model: BaseAlgorithm) -> torch.Tensor:
    """Compute what the model makes of fixed images."""
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 84, 84), dtype=np.uint8)
    policy: Any = model.policy
    extractor = policy.q_net.features_extractor if hasattr(policy, "q_net") else policy.features_extractor
    with torch.no_grad():
        found: torch.Tensor = extractor(policy.obs_to_tensor(images)[0].float() / 255)
    return found


def grids(model: BaseAlgorithm, kind: str) -> list[torch.Tensor]:
    """Return the grid of each layer, 6 x 9 pixels, under an ablation."""
    with ablated(model, kind):
        return [layer.grid(6, 9, with_radius=layer.with_radius) for layer in check_ablation(model, "zero")]


@pytest.mark.parametrize("agent", ["a2c", "dqn"])
def test_without_its_coordinates_an_agent_plays_the_games_of_its_nature_twin(env: AtariVecEnv, agent: str) -> None:
    coord, nature = (build(env, extractor, agent) for extractor in ("coord", "nature"))
    assert not torch.allclose(features(coord), features(nature))
    with ablated(coord, "zero"):
        assert torch.equal(features(coord), features(nature))
        games = evaluate(coord, make_spec("coord", agent), 2, seed=5)
    assert games == evaluate(nature, make_spec("nature", agent), 2, seed=5)  # returns and lengths of each


@pytest.mark.parametrize("extractor", ["coord", "coord-r", "coord-all", "shuffled"])
@pytest.mark.parametrize("kind", list(ABLATIONS))
def test_an_ablation_reaches_the_network_and_is_undone(env: AtariVecEnv, extractor: str, kind: str) -> None:
    model = build(env, extractor)
    before, weights = features(model), {name: p.clone() for name, p in model.policy.named_parameters()}
    layers = check_ablation(model, kind)
    assert len(layers) == (3 if extractor == "coord-all" else 1)
    own = [layer.grid for layer in layers]
    for _ in range(2):  # the second time, patches may have been kept
        with ablated(model, kind):
            assert not torch.allclose(features(model), before)
        assert torch.equal(features(model), before)
    assert all(torch.equal(weights[name], p) for name, p in model.policy.named_parameters())
    assert [layer.grid for layer in layers] == own


def test_it_is_undone_after_an_error_too(env: AtariVecEnv) -> None:
    model = build(env, "coord")
    before = features(model)
    for kind in ABLATIONS:
        with pytest.raises(KeyboardInterrupt), ablated(model, kind):
            raise KeyboardInterrupt
        assert torch.equal(features(model), before)


def test_zero_zeroes_the_weights_of_every_layer(env: AtariVecEnv) -> None:
    model = build(env, "coord-all")
    with ablated(model, "zero"):
        weights = {name: p for name, p in model.policy.named_parameters() if ".coordinates." in name}
        assert len(weights) == 3
        assert not any(weight.any() for weight in weights.values())


def test_shift_tells_each_place_that_it_is_the_one_half_an_image_away(env: AtariVecEnv) -> None:
    for shifted in grids(build(env, "coord-all"), "shift"):
        true = coordinate_grid(6, 9)
        assert torch.equal(shifted[..., 3, 4], true[..., 0, 0])  # the middle has the coordinates of a corner
        assert torch.equal(shifted[..., 0, 0], true[..., 3, 5])
        assert not (shifted == true).all(dim=1).any()  # no place has its own
        assert torch.equal(shifted.flatten(2).sort().values, true.flatten(2).sort().values)


def test_shift_of_a_single_row_moves_along_it() -> None:
    assert shift_pixels(coordinate_grid(1, 4))[0, 1, 0].tolist() == pytest.approx([1 / 3, 1, -1, -1 / 3])


def test_shuffle_is_the_grid_of_the_control(env: AtariVecEnv) -> None:
    assert all(torch.equal(grid, shuffled_grid(6, 9)) for grid in grids(build(env, "coord"), "shuffle"))
    assert all(
        torch.equal(grid, shuffled_grid(6, 9, with_radius=True)) for grid in grids(build(env, "coord-r"), "shuffle")
    )
    (again,) = grids(build(env, "shuffled"), "shuffle")  # which has it already: it is permuted once more
    assert not torch.equal(again, shuffled_grid(6, 9))


def test_what_would_change_nothing_is_refused(env: AtariVecEnv) -> None:
    constant = build(env, "constant")
    for kind in ("shift", "shuffle"):
        with pytest.raises(RequestError, match=f'"{kind}" would change nothing'), ablated(constant, kind):
            pass
    before = features(constant)
    with ablated(constant, "zero"):
        assert not torch.allclose(features(constant), before)


def test_a_model_without_coordinates_and_an_unknown_ablation_are_refused_before_any_game(env: AtariVecEnv) -> None:
    with pytest.raises(RequestError, match="no CoordConv2d layer"):
        evaluate_ablations(build(env, "nature"), make_spec("nature"), ["zero"], 10**6, seed=0)
    with pytest.raises(RequestError, match='no ablation "shufle"; .*did you mean shuffle'):
        evaluate_ablations(build(env, "coord"), make_spec("coord"), ["zero", "shufle"], 10**6, seed=0)


@pytest.mark.parametrize("extractor", list(EXTRACTORS))
def test_the_ablations_of_an_extractor_are_those_that_are_not_refused(env: AtariVecEnv, extractor: str) -> None:
    model = build(env, extractor)
    possible = []
    for kind in ABLATIONS:
        with contextlib.suppress(RequestError):
            check_ablation(model, kind)
            possible.append(kind)
    assert tuple(possible) == ablations_of(extractor)


def test_the_extractors_named_as_without_coordinates_are_those_that_are_their_own_twins() -> None:
    assert set(WITHOUT_COORDINATES) == {name for name, found in EXTRACTORS.items() if found.twin == name}


def test_the_interval_of_a_difference_is_welchs() -> None:
    one, two = [3.0, 9.0, 4.0, 4.0], [1.0, 2.0, 2.0, 30.0, 5.0, 6.0]
    found = difference(Evaluation(one, [1] * 4), Evaluation(two, [1] * 6))
    low, high = ttest_ind(one, two, equal_var=False).confidence_interval(0.95)
    assert found.half_width is not None
    assert (found.estimate - found.half_width, found.estimate + found.half_width) == pytest.approx((low, high))
    assert difference(Evaluation([5.0], [1]), Evaluation(two, [1] * 6)).half_width is None
    assert difference(Evaluation([5.0, 5.0], [1, 1]), Evaluation([2.0, 2.0], [1, 1])) == (3.0, 0.0)


# The command, on a real run.


@pytest.fixture(scope="module")
def a_run(finished_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A copy of the finished run, to write into."""
    return RunFolder(shutil.copytree(finished_run.path, tmp_path_factory.mktemp("ablation") / "seed-7"))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_prints_a_table_and_writes_one_file(a_run: RunFolder) -> None:
    before = contents(a_run.path)
    words = ["evaluate", "--ablate", "zero", "shift,shuffle", str(a_run.path), "--episodes", "2", "--device", "cpu"]
    command = [sys.executable, "-m", "coordrl", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    title, _, heads, *rows = done.stdout.splitlines()
    assert title == "Breakout (zoo-v4): a2c with coord, seed 7, after 2,400 steps"
    assert heads.split() == ["coordinates", "mean", "±", "games", "difference", "±"]
    assert [row.split()[0] for row in rows] == ["true", "zero", "shift", "shuffle"]
    after = contents(a_run.path)
    written = json.loads(after.pop("ablation.json"))
    assert after == before
    assert (written.pop("protocol"), written.pop("step")) == ("zoo-v4", 2400)
    for row in rows:
        kind, mean, half, games, *more = row.split()
        score = written.pop(kind)
        assert set(score) == {"mean", "half_width_95", "returns", "seed"}
        assert score["seed"] == 0
        assert score["mean"] == pytest.approx(np.mean(score["returns"]))
        assert (mean, half, int(games)) == (f"{score['mean']:.1f}", f"{score['half_width_95']:.1f}", 2)
        assert len(more) == (0 if kind == "true" else 2)
    assert written == {}


@pytest.mark.slow
def test_true_coordinates_score_what_evaluate_scores_without_ablations(
    a_run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (str(a_run.path), "--episodes", "2", "--seed", "4", "--json")
    plain = json.loads(run(capsys, *words)[1])
    shown = json.loads(run(capsys, *words, "--ablate=zero")[1])
    assert shown["true"] == {name: plain[name] for name in shown["true"]}
    assert shown["zero"]["difference"] == pytest.approx(shown["zero"]["mean"] - plain["mean"])
    assert (shown["seed"], shown["games"], shown["step"], shown["game"]) == (4, 2, 2400, "Breakout")
    assert json.loads(a_run.ablation_file.read_text())["zero"]["returns"] == shown["zero"]["returns"]


@pytest.mark.slow
def test_one_game_has_no_interval(a_run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, str(a_run.path), "--ablate", "zero", "--episodes", "1")
    assert [out.splitlines()[place].split()[2] for place in (-2, -1)] == ["-", "-"]
    assert json.loads(a_run.ablation_file.read_text())["true"]["half_width_95"] is None


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--ablate", "zeros"), 'no ablation "zeros"; there are zero, shift, shuffle; did you mean zero?'),
        (("--ablate",), "--ablate takes one or several of zero, shift, shuffle"),
        (("--ablate", "--json"), "--ablate takes one or several of zero, shift, shuffle"),
        (("--ablate=",), "--ablate takes one or several of zero, shift, shuffle"),
    ],
)
def test_a_wrong_ablation_is_one_line(
    a_run: RunFolder, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], complaint: str
) -> None:
    code, out, err = run(capsys, str(a_run.path), *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert complaint in err


def test_a_run_without_coordinates_is_refused_in_one_line(
    a_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nature = RunFolder(tmp_path)
    write_json(nature.spec_file, {"spec": vars(replace(a_run.read_spec(), extractor="nature"))})
    code, out, err = run(capsys, str(tmp_path), "--ablate", "zero")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert 'extractor "nature", which has no coordinates to ablate' in err


def test_a_run_that_cannot_be_written_is_refused_before_the_games(
    a_run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordrl.evaluate.os.access", lambda path, mode: False)
    code, out, err = run(capsys, str(a_run.path), "--ablate", "zero", "--episodes", "1000000")
    assert (code, out) == (73, "")
    assert "cannot be written, and --ablate writes ablation.json there" in err


def test_scores_are_printed_even_if_they_cannot_be_written(
    a_run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coordrl.ablations.write_json", full)
    code, out, err = run(capsys, str(a_run.path), "--ablate", "zero", "--episodes", "1")
    assert (code, "ablation.json cannot be written: No space left on device" in err) == (73, True)
    assert out.splitlines()[-1].split()[0] == "zero"


class Games:
    """Stands for evaluate: no game is played, and each score is the number of scores before it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int = 10**6) -> None:
        self.played, self.stop_after = 0, stop_after
        monkeypatch.setattr("coordrl.ablation.evaluate", self)

    def __call__(self, model: Any, spec: Spec, episodes: int, *, seed: int, on_step: Any) -> Evaluation:
        if self.played == self.stop_after:
            raise KeyboardInterrupt
        returns = [float(self.played)] * episodes
        self.played += 1
        on_step(returns, 7)
        return Evaluation(returns, [7] * episodes)


def scores_of(folder: RunFolder) -> dict[str, float]:
    written = json.loads(folder.ablation_file.read_text())
    return {kind: written[kind]["mean"] for kind in ("true", *ABLATIONS) if kind in written}


def test_scores_of_other_kinds_stay_until_the_agent_trains_on(
    a_run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run.ablation_file.unlink(missing_ok=True)
    Games(monkeypatch)
    words = (str(a_run.path), "--episodes", "2")
    assert run(capsys, *words, "--ablate", "zero")[0] == 0
    assert scores_of(a_run) == {"true": 0, "zero": 1}
    assert run(capsys, *words, "--ablate", "shuffle", "--seed", "5")[0] == 0
    assert scores_of(a_run) == {"true": 2, "zero": 1, "shuffle": 3}
    written = json.loads(a_run.ablation_file.read_text())
    assert [written[kind]["seed"] for kind in ("true", "zero", "shuffle")] == [5, 0, 5]
    write_json(a_run.ablation_file, {**written, "step": 1200})  # what an agent half as old would have left
    assert run(capsys, *words, "--ablate", "shift")[0] == 0
    assert scores_of(a_run) == {"true": 4, "shift": 5}
    a_run.ablation_file.write_text('{"step": 2400, "true": [], "zero": {"me')
    assert run(capsys, *words, "--ablate", "shift")[0] == 0
    assert scores_of(a_run) == {"true": 6, "shift": 7}


@pytest.fixture
def some_runs(finished_run: RunFolder, tmp_path: Path) -> list[RunFolder]:
    """Two finished runs with coordinates; beside them one without, one of constant ones, and one that is not finished."""
    place = tmp_path / "runs" / "zoo-v4"
    found = []
    for extractor, seed in (("coord", 7), ("coord", 8), ("nature", 7), ("constant", 7), ("coord", 9)):
        folder = RunFolder(place / f"a2c-{extractor}" / "Breakout" / f"seed-{seed}")
        shutil.copytree(finished_run.path, folder.path)
        for file in (folder.spec_file, folder.result_file):
            facts = json.loads(file.read_text())
            facts["spec"].update(extractor=extractor, seed=seed)
            write_json(file, facts)
        found.append(folder)
    found[4].result_file.unlink()
    return found


def test_a_folder_of_runs_is_scored_in_one_command_that_can_be_stopped(
    some_runs: list[RunFolder], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = some_runs[0].path.parents[3]
    words = (str(out), "--ablate", "shuffle", "shift", "--episodes", "3")
    Games(monkeypatch, stop_after=4)
    code, _, said = run(capsys, *words)
    assert code == 130
    assert "stopped with 1 of 2 runs scored" in said
    assert f"{some_runs[0].path}: true 0.0, shift 2.0, shuffle 1.0" in said
    assert scores_of(some_runs[0]) == {"true": 0, "shuffle": 1, "shift": 2}
    assert scores_of(some_runs[1]) == {"true": 3}
    games = Games(monkeypatch)
    code, shown, _ = run(capsys, *words)
    assert (code, games.played) == (0, 2)  # what was whole is not played again
    assert shown.startswith("1 runs scored with shuffle, shift; 1 had every score before; 1 not finished yet\n")
    assert scores_of(some_runs[1]) == {"true": 3, "shuffle": 0, "shift": 1}
    assert run(capsys, *words)[1].startswith("0 runs scored with shuffle, shift; 2 had every score before")
    assert games.played == 2
    run(capsys, str(out), "--ablate", "shift", "--episodes", "4")  # more games than before
    assert games.played == 6
    assert not any(folder.ablation_file.exists() for folder in some_runs[2:])


def test_a_run_that_cannot_be_scored_is_said_and_the_others_are_scored(
    some_runs: list[RunFolder], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(some_runs[0].checkpoints)
    Games(monkeypatch)
    with some_runs[1].lock():
        code, shown, said = run(capsys, str(some_runs[0].path.parents[3]), "--ablate=shift", "--episodes", "1")
    assert code == 1
    assert "0 runs scored with shift; 0 had every score before; 1 failed; 1 not finished yet" in shown
    assert f"not scored: {some_runs[0].path}" in said
    assert f"left alone: {some_runs[1].path} is in use by process {os.getpid()}" in said


def test_a_folder_of_runs_where_nothing_can_be_scored_is_refused(
    some_runs: list[RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    arms = some_runs[0].path.parents[2]
    for words, complaint in (
        ((str(arms / "a2c-nature"), "--ablate", "zero"), "holds no finished run with coordinates"),
        ((str(arms / "a2c-constant"), "--ablate", "shift"), "holds no finished run with coordinates"),
        ((str(arms), "--ablate", "shift", "--json"), "--json is for one run"),
        ((str(arms),), "is no run: it has no run.json"),
    ):
        code, out, err = run(capsys, *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert complaint in err

"""The controls: what each picture asks for, what a blind agent can get, the VecEnv, and runs by the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecCheckNan
from stable_baselines3.common.vec_env.vec_monitor import VecMonitor

import coordrl
from coordrl.atari import AtariVecEnv
from coordrl.controls import PICTURES_PER_GAME, QUADRANTS, SHAPES, ControlVecEnv, answers, pictures
from coordrl.environments import make_env
from coordrl.errors import RequestError
from coordrl.extractors import EXTRACTORS
from coordrl.files import read_rows
from coordrl.recipes import find_recipe
from coordrl.references import published, random_and_human
from coordrl.results import RunFolder
from coordrl.suites import CONTROL_GAMES, CONTROLS, PROTOCOLS
from coordrl.train import main

PLACES = list(product(range(6), range(6)))
Make = Callable[..., ControlVecEnv]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[ControlVecEnv] = []

    def _make(game: str = "PlaceMatters", n_envs: int = 3, *, seed: int | None = 0, **options: Any) -> ControlVecEnv:
        env = ControlVecEnv(game, n_envs, seed=seed, **options)
        made.append(env)
        return env

    yield _make
    for env in made:
        env.close()


def watch(env: ControlVecEnv, steps: int, seed: int = 0) -> np.ndarray:
    """Reset and step with random actions; return all observations, (steps + 1, n_envs, 1, 8, 8)."""
    actions = np.random.default_rng(seed).integers(4, size=(steps, env.num_envs))
    return np.stack([env.reset(), *(env.step(row)[0] for row in actions)])


def right_actions(game: str, observations: np.ndarray) -> np.ndarray:
    """Look up the right answers to pictures, (n,), by comparing pixels."""
    all_pictures = pictures().reshape(144, -1)
    numbers = [int(np.flatnonzero((all_pictures == one.ravel()).all(axis=1))[0]) for one in observations]
    return answers(game).ravel()[numbers]


# ------------------------------------------------------------------------------------------------------- the pictures


def test_there_are_144_pictures_no_two_alike_and_none_brighter_than_another() -> None:
    drawn = pictures()
    assert drawn.shape == (4, 6, 6, *CONTROLS.image)
    assert drawn.dtype == np.uint8
    flat = drawn.reshape(144, -1)
    assert len(np.unique(flat, axis=0)) == 144
    assert set(flat.sum(axis=1).tolist()) == {5 * 255}
    with pytest.raises(ValueError, match="read-only"):
        drawn[0] = 1


@pytest.mark.parametrize("shape", range(4))
def test_all_pictures_of_a_shape_are_one_picture_rolled_and_no_other_shape_is(shape: int) -> None:
    drawn = pictures()
    for row, column in PLACES:
        rolled = np.roll(drawn[shape, 0, 0], (row, column), axis=(1, 2))
        np.testing.assert_array_equal(rolled, drawn[shape, row, column])
    rolls = [np.roll(drawn[shape, 0, 0], place, axis=(1, 2)) for place in product(range(8), range(8))]
    others = np.delete(drawn, shape, axis=0).reshape(108, 1, 8, 8)
    assert not any((other == roll).all() for other in others for roll in rolls)


def test_the_answer_of_one_is_the_quadrant_of_the_centre_and_of_the_other_the_shape() -> None:
    for shape, (row, column) in product(range(4), PLACES):
        lit_rows, lit_columns = np.nonzero(pictures()[shape, row, column, 0])
        centre = (lit_rows.min() + lit_rows.max()) / 2, (lit_columns.min() + lit_columns.max()) / 2
        quadrant = QUADRANTS[answers("PlaceMatters")[shape, row, column]]
        assert quadrant == f"{'UPPER' if centre[0] < 3.5 else 'LOWER'} {'LEFT' if centre[1] < 3.5 else 'RIGHT'}"
        assert answers("PlaceIsNoise")[shape, row, column] == shape


def test_rolling_changes_the_answer_where_place_matters_and_never_where_it_is_noise() -> None:
    for shape, (row, column) in product(range(4), PLACES):
        opposite = (row + 3) % 6, (column + 3) % 6
        assert answers("PlaceMatters")[shape, row, column] == 3 - answers("PlaceMatters")[shape, *opposite]
        assert answers("PlaceIsNoise")[shape, row, column] == answers("PlaceIsNoise")[shape, *opposite]


def test_each_answer_is_right_for_as_many_pictures_in_both_and_says_nothing_about_the_other() -> None:
    for game in CONTROL_GAMES:
        assert np.bincount(answers(game).ravel()).tolist() == [36] * 4
    together = np.zeros((4, 4), dtype=int)
    np.add.at(together, (answers("PlaceMatters"), answers("PlaceIsNoise")), 1)
    assert (together == 9).all()


def test_an_atari_game_has_no_answers() -> None:
    with pytest.raises(RequestError, match="Pong is no control; there are PlaceMatters, PlaceIsNoise"):
        answers("Pong")


# ---------------------------------------------------------------------------------------------------- exact chance


def expected_return(game: str, policy: np.ndarray) -> float:
    """Return the exact expected return of a game for action probabilities (4 shapes, 6 rows, 6 columns, 4)."""
    chance_of_right = np.take_along_axis(policy, answers(game)[..., None], axis=-1)
    return float(PICTURES_PER_GAME * chance_of_right.mean())


@pytest.mark.parametrize("seed", range(5))
def test_whatever_depends_on_the_shape_alone_is_at_chance_where_place_matters(seed: int) -> None:
    of_shape = np.random.default_rng(seed).dirichlet(np.full(4, 0.3), size=4)
    policy = np.broadcast_to(of_shape[:, None, None], (4, 6, 6, 4))
    assert expected_return("PlaceMatters", policy) == pytest.approx(random_and_human("PlaceMatters")[0], abs=1e-12)


def test_what_knows_the_place_alone_is_at_chance_where_place_is_noise() -> None:
    of_place = np.random.default_rng(0).dirichlet(np.full(4, 0.3), size=(6, 6))
    policy = np.broadcast_to(of_place, (4, 6, 6, 4))
    assert expected_return("PlaceIsNoise", policy) == pytest.approx(5, abs=1e-12)


@pytest.mark.parametrize("game", CONTROL_GAMES)
def test_the_references_are_the_exact_returns_of_random_and_of_the_best_play(game: str) -> None:
    uniform, best = np.full((4, 6, 6, 4), 0.25), np.eye(4)[answers(game)]
    assert random_and_human(game) == (expected_return(game, uniform), expected_return(game, best)) == (5, 20)
    assert published(game) == []


def test_a_network_of_the_extractor_pool_is_at_chance_whatever_its_weights_and_coord_pool_is_not() -> None:
    space = spaces.Box(0, 255, CONTROLS.image, np.uint8)
    images = torch.from_numpy(pictures().reshape(144, *CONTROLS.image).astype(np.float64) / 255)
    returns = {}
    for name in ("pool", "coord-pool"):
        found = EXTRACTORS[name]
        torch.manual_seed(0)
        network = found.features_extractor_class(space, **found.features_extractor_kwargs).double()
        with torch.no_grad():
            logits = torch.nn.Linear(512, 4).double()(network(images))
        logits = 10 * (logits - logits.mean(dim=0)) / logits.std(dim=0)  # as decided as a trained one's
        policy = logits.softmax(dim=1).reshape(4, 6, 6, 4).numpy()
        returns[name] = expected_return("PlaceMatters", policy)
    assert returns["pool"] == pytest.approx(5, abs=1e-9)
    assert abs(returns["coord-pool"] - 5) > 0.01


# --------------------------------------------------------------------------------------------------- seed and chance


def test_one_seed_shows_the_same_pictures_in_both_games_whatever_is_answered(make: Make) -> None:
    seen = watch(make("PlaceMatters"), 50)
    np.testing.assert_array_equal(seen, watch(make("PlaceIsNoise"), 50, seed=1))
    np.testing.assert_array_equal(seen, watch(make("PlaceIsNoise", training=False), 50))


def test_everything_is_a_function_of_the_seed_and_the_actions(make: Make) -> None:
    actions = np.random.default_rng(0).integers(4, size=(45, 3))
    runs = []
    for env in (make(), make()):
        env.reset()
        runs.append([env.step(row) for row in actions])
    for (left, left_rewards, left_dones, left_infos), (right, right_rewards, right_dones, right_infos) in zip(
        *runs, strict=True
    ):
        np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(left_rewards, right_rewards)
        np.testing.assert_array_equal(left_dones, right_dones)
        assert [i.get("episode", {}).get("r") for i in left_infos] == [
            i.get("episode", {}).get("r") for i in right_infos
        ]


def test_environment_i_has_seed_plus_i_in_whatever_company(make: Make) -> None:
    many, one = watch(make(n_envs=5, seed=10), 30), watch(make(n_envs=1, seed=13), 30)
    np.testing.assert_array_equal(many[:, 3:4], one)
    assert not np.array_equal(many[:, 0], many[:, 1])


def test_seeding_again_begins_again_and_without_it_new_pictures_come(make: Make) -> None:
    env = make()
    first = watch(env, 10)
    assert not np.array_equal(watch(env, 10), first)
    assert env.seed(0) == [0, 1, 2]
    np.testing.assert_array_equal(watch(env, 10), first)
    assert not np.array_equal(watch(make(seed=None), 10), watch(make(seed=None), 10))


def test_every_picture_comes_as_often_as_any_other_and_says_nothing_about_the_next(make: Make) -> None:
    shown = watch(make(n_envs=64), 899).reshape(900, 64, -1)
    order = {picture.tobytes(): number for number, picture in enumerate(pictures().reshape(144, 64))}
    numbers = np.array([[order[one.tobytes()] for one in row] for row in shown])
    counts = np.bincount(numbers.ravel(), minlength=144)
    assert abs(_chi_square_z(counts)) < 4
    right = answers("PlaceMatters").ravel()[numbers]
    for after, before in ((right[1:], right[:-1]), (right[:, 1:], right[:, :-1])):  # in time, and between neighbours
        assert abs(_chi_square_z(np.bincount((4 * after + before).ravel(), minlength=16))) < 4


def _chi_square_z(counts: np.ndarray) -> float:
    """Return how many standard deviations the chi-square of even counts lies from its mean."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


# ------------------------------------------------------------------------------------------------ the VecEnv contract


def test_observations_rewards_and_dones_have_sb3s_shapes_and_types(make: Make) -> None:
    env = make()
    assert env.observation_space == spaces.Box(0, 255, (1, 8, 8), np.uint8)
    assert env.action_space == spaces.Discrete(4)
    assert env.reset().shape == (3, 1, 8, 8)
    observations, rewards, dones, infos = env.step(np.array([0, 1, 2]))
    assert isinstance(observations, np.ndarray)
    assert all(env.observation_space.contains(one) for one in observations)
    assert (rewards.dtype, rewards.shape, dones.dtype, dones.shape) == (np.float32, (3,), np.bool_, (3,))
    assert [info["TimeLimit.truncated"] for info in infos] == [False] * 3
    assert env.action_meanings == QUADRANTS
    assert make("place is noise").action_meanings == tuple(SHAPES)


@pytest.mark.parametrize("game", CONTROL_GAMES)
def test_a_right_answer_is_worth_1_and_a_wrong_one_0(make: Make, game: str) -> None:
    env = make(game, 8)
    observations = env.reset()
    for step in range(30):
        right = right_actions(game, observations)
        wrong = (right + 1 + step % 3) % 4
        actions = np.where(np.arange(8) < 4, right, wrong)
        observations, rewards, _, _ = env.step(actions)
        assert rewards.tolist() == [1.0] * 4 + [0.0] * 4


def test_in_training_each_answer_ends_an_episode_and_the_game_is_reported_at_its_end(make: Make) -> None:
    env = make()
    env.reset()
    total = np.zeros(3)
    for step in range(1, 2 * PICTURES_PER_GAME + 1):
        observations, rewards, dones, infos = env.step(np.array([0, 1, 2]))
        total += rewards
        assert dones.all()
        for info, observation in zip(infos, observations, strict=True):
            np.testing.assert_array_equal(info["terminal_observation"], observation)
        if step % PICTURES_PER_GAME:
            assert not any("episode" in info for info in infos)
        else:
            assert [info["episode"]["r"] for info in infos] == total.tolist()
            assert {info["episode"]["l"] for info in infos} == {PICTURES_PER_GAME}
            assert all(info["episode"]["t"] >= 0 for info in infos)
            total[:] = 0


def test_outside_training_an_episode_is_a_whole_game(make: Make) -> None:
    env = make(training=False)
    env.reset()
    for step in range(1, 2 * PICTURES_PER_GAME + 1):
        _, _, dones, infos = env.step(np.array([0, 1, 2]))
        over = step % PICTURES_PER_GAME == 0
        assert dones.tolist() == [over] * 3
        assert [("terminal_observation" in info, "episode" in info) for info in infos] == [(over, over)] * 3


def test_a_terminal_observation_survives_what_the_caller_does_to_the_observations(make: Make) -> None:
    env = make()
    env.reset()
    observations, _, _, infos = env.step(np.zeros(3, dtype=np.int64))
    kept = infos[0]["terminal_observation"].copy()
    observations[:] = 7
    np.testing.assert_array_equal(infos[0]["terminal_observation"], kept)
    assert pictures().max() == 255


def test_a_reset_in_the_middle_of_a_game_counts_from_zero(make: Make) -> None:
    env = make(training=False)
    watch(env, 7)
    watch(env, PICTURES_PER_GAME - 1)
    _, _, dones, infos = env.step(np.zeros(3, dtype=np.int64))
    assert dones.all()
    assert infos[0]["episode"]["l"] == PICTURES_PER_GAME


class Oracle:
    """Predicts the right answer, as an SB3 model predicts."""

    def __init__(self, game: str) -> None:
        self.game = game

    def predict(self, observations: np.ndarray, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
        return right_actions(self.game, observations), None


@pytest.mark.parametrize("game", CONTROL_GAMES)
def test_sb3_scores_whole_games_and_the_best_play_gets_the_reference(make: Make, game: str) -> None:
    env = make(game, training=False)
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(coordrl.AtariVecEnv) == [False] * 3
    returns, lengths = evaluate_policy(Oracle(game), env, 5, return_episode_rewards=True)
    assert returns == [random_and_human(game)[1]] * 5
    assert lengths == [PICTURES_PER_GAME] * 5


def test_sb3s_own_wrappers_count_the_same(make: Make) -> None:
    checked = VecCheckNan(make(training=False), raise_exception=True)
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        env = VecMonitor(checked)  # counts for itself
    env.reset()
    total = np.zeros(3)
    for _ in range(PICTURES_PER_GAME):
        _, rewards, _, infos = env.step(np.array([3, 2, 1]))
        total += rewards
    assert [info["episode"]["r"] for info in infos] == total.tolist()
    assert {info["episode"]["l"] for info in infos} == {PICTURES_PER_GAME}


@pytest.mark.parametrize(
    ("actions", "complaint"),
    [
        ([0, 1], r"actions have shape \(2,\)"),
        ([0.0, 1.0, 2.0], "they are integers"),
        ([0, 4, 0], r"\[0, 4, 0\]; PlaceMatters has 0 to 3"),
        ([0, -1, 0], "PlaceMatters has 0 to 3"),
    ],
)
def test_a_wrong_action_is_refused_as_on_atari_and_the_game_goes_on(make: Make, actions: Any, complaint: str) -> None:
    env = make()
    env.reset()
    with pytest.raises(RequestError, match=complaint):
        env.step(np.array(actions))
    env.step(np.array([0, 1, 2]))


def test_steps_out_of_order_are_refused(make: Make) -> None:
    env = make()
    with pytest.raises(RequestError, match="never reset; call reset before the first step"):
        env.step(np.zeros(3, dtype=np.int64))
    env.reset()
    with pytest.raises(RequestError, match="step_wait was called without step_async"):
        env.step_wait()
    env.step_async(np.zeros(3, dtype=np.int64))
    with pytest.raises(RequestError, match="step_async was called twice"):
        env.step_async(np.zeros(3, dtype=np.int64))
    env.reset()  # drops the step under way
    with pytest.raises(RequestError, match="step_wait was called without step_async"):
        env.step_wait()


def test_closing_twice_is_fine_and_use_after_closing_is_refused(make: Make) -> None:
    env = make()
    env.reset()
    env.close()
    env.close()
    for use in (env.reset, lambda: env.step(np.zeros(3, dtype=np.int64)), env.step_wait):
        with pytest.raises(RequestError, match="this ControlVecEnv is closed"):
            use()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"n_envs": 0}, "n_envs is 0; it is at least 1"),
        ({"seed": -1}, "seed is -1; it is from 0"),
        ({"seed": 2**31}, "it is from 0 to 2"),
        ({"game": "Pong"}, "Pong is not played under controls-v1; its protocol is zoo-v4 or machado-v5"),
        ({"game": "Pong", "protocol": "zoo-v4"}, "Pong is no control; use coordrl.AtariVecEnv"),
        ({"protocol": "zoo-v4"}, "PlaceMatters is not played under zoo-v4; its protocol is controls-v1"),
        ({"protocol": "controls"}, 'no protocol "controls"; there are .*; did you mean controls-v1?'),
        ({"game": "PlaceMaters"}, 'no game "PlaceMaters"; did you mean PlaceMatters'),
    ],
)
def test_a_wrong_request_is_refused(make: Make, words: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        make(**words)


def test_attributes_are_those_of_an_atari_environment(make: Make) -> None:
    env = make()
    assert env.get_attr("game") == ["PlaceMatters"] * 3
    assert env.get_attr("training", 0) == [True]
    assert env.get_attr("protocol", [0, 2]) == [PROTOCOLS["controls-v1"]] * 2
    assert env.get_attr("action_space") == [env.action_space] * 3
    assert env.get_attr("render_mode") == env.get_attr("spec") == [None] * 3
    assert env.env_method("get_action_meanings", indices=1) == [list(QUADRANTS)]
    with pytest.raises(AttributeError, match="no attribute 'lives'"):
        env.get_attr("lives")
    with pytest.raises(AttributeError, match="cannot be set"):
        env.set_attr("game", "PlaceIsNoise")
    with pytest.raises(AttributeError, match="cannot be called"):
        env.env_method("reset")
    with pytest.raises(IndexError):
        env.get_attr("game", 3)
    with pytest.raises(RequestError, match="renders nothing"):
        env.get_images()


def test_one_function_makes_either_kind_of_environment() -> None:
    for game, kind, rules in (("place_matters", ControlVecEnv, "controls-v1"), ("pong", AtariVecEnv, "zoo-v4")):
        env = make_env(game, 2, seed=5, training=False)
        assert type(env) is kind
        assert (env.get_attr("protocol")[0].name, env.get_attr("training")[0]) == (rules, False)
        assert env.seed(5) == [5, 6]
        env.close()
    with pytest.raises(RequestError, match="PlaceMatters is not played under machado-v5"):
        make_env("PlaceMatters", 1, protocol="machado-v5")
    with pytest.raises(RequestError, match="PlaceMatters is no Atari game; use coordrl.controls.ControlVecEnv"):
        AtariVecEnv("PlaceMatters", 1, protocol="controls-v1")


# ------------------------------------------------------------------------------------------------------ runs of them


def test_the_recipe_for_the_controls_is_a2c_but_for_the_optimiser() -> None:
    ours, theirs = find_recipe("a2c-controls"), find_recipe("a2c")
    assert ours.algorithm == theirs.algorithm
    assert {name for name, value in ours.settings.items() if value != theirs.settings[name]} == {
        "learning_rate",
        "rmsprop_alpha",
        "rmsprop_eps",
    }


WORDS = "--game {game} --extractor {extractor} --steps 960 --checkpoint-every 480 --eval-every 480 --eval-episodes 3"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both games with both extractors, a few hundred steps each."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("controls")
    for game, extractor in product(CONTROL_GAMES, CONTROLS.extractors):
        assert main([*WORDS.format(game=game, extractor=extractor).split(), "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("game", CONTROL_GAMES)
@pytest.mark.parametrize("extractor", CONTROLS.extractors)
def test_a_run_is_written_as_any_other_and_counts_a_frame_a_step(runs: Path, game: str, extractor: str) -> None:
    folder = RunFolder(runs / "controls-v1" / f"a2c-controls-{extractor}" / game / "seed-0")
    spec = folder.read_spec()
    assert folder.is_finished(spec)
    result = json.loads(folder.result_file.read_text())
    assert (result["steps"], result["frames"], result["final_return_games"]) == (960, 960, 48)
    assert 2 < result["final_return"] < 8
    rows = read_rows(folder.progress_file)
    assert all(row["frames"] == row["step"] for row in rows)
    assert sum(len(row["games"]) for row in rows) == 48
    assert {length for row in rows for _, _, length in row["games"]} == {PICTURES_PER_GAME}
    evaluations = read_rows(folder.evaluations_file)
    assert [(row["step"], row["frames"], len(row["returns"])) for row in evaluations] == [(480, 480, 3), (960, 960, 3)]
    assert bool(folder.position_maps()) == (extractor == "coord-pool")


def test_a_run_is_loaded_with_an_environment_for_whole_games(runs: Path) -> None:
    model = coordrl.load(runs / "controls-v1" / "a2c-controls-pool" / "PlaceMatters" / "seed-0", device="cpu")
    env = model.get_env()
    assert env is not None
    assert env.get_attr("game") == ["PlaceMatters"]
    assert env.get_attr("training") == [False]
    actions, _ = model.predict(env.reset())
    assert actions.shape == (1,)


def test_a_run_that_was_cut_off_goes_on_from_its_checkpoint(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = runs / "controls-v1" / "a2c-controls-pool" / "PlaceMatters" / "seed-0"
    cut = tmp_path / "controls-v1" / "a2c-controls-pool" / "PlaceMatters" / "seed-0"
    shutil.copytree(whole, cut)
    (cut / "result.json").unlink()
    shutil.rmtree(cut / "checkpoints" / f"{960:012d}")
    words = WORDS.format(game="PlaceMatters", extractor="pool").split()
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert "going on from the checkpoint at step 480" in capfd.readouterr().err
    before, after = (read_rows(RunFolder(path).progress_file) for path in (whole, cut))
    same = [row for row in before if row["step"] <= 480]
    assert after[: len(same)] == same
    assert json.loads((cut / "result.json").read_text())["steps"] == 960
    assert main([*words, "--out", str(tmp_path)]) == 0  # and again: it is finished
    assert "is finished" in capfd.readouterr().out


def test_evaluate_scores_it_and_play_refuses_in_one_line(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from coordrl.evaluate import main as evaluate
    from coordrl.play import main as play

    run = runs / "controls-v1" / "a2c-controls-coord-pool" / "PlaceIsNoise" / "seed-0"
    words = [str(run), "--episodes", "20", "--device", "cpu"]
    assert evaluate([*words, "--json"]) == 0
    score = json.loads(capfd.readouterr().out)
    assert (score["protocol"], score["lengths"]) == ("controls-v1", [PICTURES_PER_GAME] * 20)
    assert evaluate(words) == 0
    assert "mean length 20 frames" in capfd.readouterr().out
    assert play([str(run)]) == 2
    said = capfd.readouterr().err
    assert "PlaceIsNoise is no Atari game, so there is nothing to film" in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_coordinates_are_learnt_where_place_matters_and_without_them_nothing_is(tmp_path: Path) -> None:
    returns = {}
    for extractor in CONTROLS.extractors:
        words = f"--game PlaceMatters --extractor {extractor} --steps 60k --eval-every 0".split()
        assert main([*words, "--out", str(tmp_path)]) == 0
        folder = tmp_path / "controls-v1" / f"a2c-controls-{extractor}" / "PlaceMatters" / "seed-0"
        returns[extractor] = json.loads((folder / "result.json").read_text())["final_return"]
    assert abs(returns["pool"] - 5) < 1  # 100 games of 20 pictures: the standard deviation is 0.19
    assert returns["coord-pool"] > 15

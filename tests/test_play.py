"""The command that makes videos: what it writes, what it shows, that both emulators play one game, and its errors."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

import coordrl
from coordrl import play, train
from coordrl.algorithms import environment_seed
from coordrl.errors import CoordrlError, OutputError, RequestError
from coordrl.lockstep import Lockstep
from coordrl.play import make_card, play_game
from coordrl.results import RunFolder
from coordrl.video import SIZE, Card, ContactSheet, Moment, Painter, clock, write_video

END = 30  # pictures: the last one stays for two seconds
CARD = Card("Breakout", "a2c-coord", "zoo-v4", 4_000, ("NOOP", "FIRE", "RIGHT", "LEFT"), True, True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run. Breakout, because a bad player's game is short and FIRE is pressed after lost lives."""
    out = tmp_path_factory.mktemp("runs")
    words = ["--game", "Breakout", "--steps", "160", "--eval-every", "0", "--device", "cpu", "--out", str(out)]
    assert train.main([*words, "--set", "n_envs=2"]) == 0
    return out / "zoo-v4" / "a2c-coord" / "Breakout" / "seed-0"


def moment(step: int = 0, **changes: Any) -> Moment:
    """A moment of Breakout."""
    frame = np.random.default_rng(step).integers(0, 256, (210, 160, 3), dtype=np.uint8)
    preferences = np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)
    return replace(Moment(step, frame, frame[:84, :84, 0], 1_234.0, 3, 0.5, preferences, 2), **changes)


def ffmpeg(*words: str) -> tuple[bytes, str]:
    """Run ffmpeg; what it writes and what it says. (imageio_ffmpeg.read_frames leaves pipes open: a warning here.)"""
    done = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *words, "-"], capture_output=True, check=True)
    return done.stdout, done.stderr.decode()


def count_frames(file: Path) -> int:
    """Decode a whole video: one line for each frame."""
    lines = ffmpeg("-i", str(file), "-f", "framemd5")[0].decode().splitlines()
    return sum(not line.startswith("#") for line in lines)


# What the command writes


@dataclass(frozen=True)
class Played:
    """What the command did in one whole game."""

    video: Path
    sheet: Path
    moments: list[Moment]
    said: str


@pytest.fixture(scope="module")
def played(run: Path) -> Played:
    """One whole game, a short one, by the command with its default places."""
    moments: list[Moment] = []

    def overheard(*args: Any, **kwargs: Any) -> Iterator[Moment]:
        for one in play_game(*args, **kwargs):
            moments.append(one)
            yield one

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(play, "play_game", overheard)
        assert play.main([str(run), "--device", "cpu", "--seed", "1"]) == 0
    video = run / "video" / "Breakout-step-160-seed-1.mp4"
    return Played(video, video.with_suffix(".png"), moments, said.getvalue())


def test_the_video_of_a_game_is_whole_and_in_real_time(played: Played) -> None:
    assert count_frames(played.video) == played.moments[-1].step + END
    said = ffmpeg("-i", str(played.video), "-f", "null")[1]
    stream = next(line for line in said.splitlines() if "Video: h264" in line)
    assert "yuv420p" in stream
    assert f"{SIZE[0]}x{SIZE[1]}" in stream
    assert "15 fps" in stream  # 60 frames a second, 4 a step


def test_the_picture_of_a_game_opens_and_nothing_half_written_lies_beside_it(played: Played) -> None:
    with Image.open(played.sheet) as picture:
        assert (picture.format, picture.width) == ("PNG", 1360)
        picture.load()
    assert sorted(played.video.parent.iterdir()) == [played.video, played.sheet]


def test_the_last_line_says_what_was_played_and_where_it_is(played: Played) -> None:
    last = played.moments[-1]
    assert played.said == (
        f"score {last.score:,.0f} in {last.step:,} steps = {4 * last.step:,} frames = {last.step / 15:,.1f} s of play,"
        f" zoo-v4, checkpoint of step 160, seed 1: {played.video} and {played.sheet}\n"
    )


def test_the_video_ends_with_the_last_life(played: Played) -> None:
    moments = played.moments
    assert [one.step for one in moments] == list(range(len(moments)))
    assert (moments[0].lives, moments[0].score, moments[0].ending) == (5, 0.0, "")
    assert (moments[-1].lives, moments[-1].ending) == (0, "GAME OVER")
    assert [one.lives for one in moments] == sorted((one.lives for one in moments), reverse=True)
    assert not any(one.ending for one in moments[:-1])


def test_fire_after_a_lost_life_is_shown_as_pressed_by_the_rules(played: Played) -> None:
    forced = [(one.texts(CARD)["action"], one.lives) for one in played.moments if one.forced]
    assert forced[0] == ("FIRE (by the rules)", 4)
    assert len(forced) == 8  # FIRE and action 2, after each of four lost lives


def test_max_steps_stops_the_video_and_folders_are_made(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, sheet = tmp_path / "new" / "game.mp4", tmp_path / "other" / "all.png"
    assert play.main([str(run), "--video", str(video), "--sheet", str(sheet), "--max-steps", "40", "--seed", "7"]) == 0
    assert count_frames(video) == 40 + END
    assert sheet.exists()
    said = capsys.readouterr()
    assert "in 40 steps = 160 frames = 2.7 s of play (stopped after 40 steps)" in said.out
    assert "a2c-coord plays Breakout until the game is over, or to step 40" in said.err


def test_the_sheet_lies_beside_the_video_by_default(run: Path, tmp_path: Path) -> None:
    before = sorted(run.iterdir())
    assert play.main([str(run), "--video", str(tmp_path / "a.mp4"), "--max-steps", "2"]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "a.png"]
    assert sorted(run.iterdir()) == before  # nothing is written into the run


def test_an_interrupted_video_leaves_nothing_behind(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Iterator[Moment]:
        yield moment(0)
        raise KeyboardInterrupt

    monkeypatch.setattr(play, "play_game", interrupted)
    assert play.main([str(run), "--video", str(tmp_path / "a.mp4")]) == 130
    assert list(tmp_path.iterdir()) == []


# The game


@pytest.mark.parametrize("game", ["Breakout", "MsPacman"])
def test_both_emulators_show_the_same_game(game: str) -> None:
    rng = np.random.default_rng(0)
    forced = 0
    with Lockstep(game, protocol="zoo-v4", seed=11) as both:
        turn = both.reset()
        for _ in range(200):
            grey = Image.fromarray(turn.frame).convert("L").resize((84, 84), Image.Resampling.BOX)
            assert np.abs(np.asarray(grey, dtype=float) - turn.observations[0, -1]).max() < 80  # a step apart: 110
            if turn.over:
                break
            turn = both.step(rng.integers(0, len(both.env.action_meanings), 1))
            forced += turn.forced
    assert forced > 0 if game == "Breakout" else forced == 0


def test_frames_keep_the_height_of_games_that_are_higher_than_others() -> None:
    with Lockstep("Pacman", protocol="machado-v5", seed=0) as both:
        assert both.reset().frame.shape == (250, 160, 3)


def test_emulators_that_part_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Lockstep("Breakout", protocol="zoo-v4", seed=0) as both:
        both.reset()
        step = both.env.step

        def richer(actions: Any) -> Any:
            observations, rewards, dones, infos = step(actions)
            return observations, rewards + 1, dones, infos

        monkeypatch.setattr(both.env, "step", richer)
        with pytest.raises(CoordrlError, match=r"parted at step 1: reward 1\.0 for the agent, 0\.0 in colours"):
            both.step(np.array([0]))


def test_a_game_is_a_function_of_its_seed(run: Path, played: Played) -> None:
    spec = RunFolder(run).read_spec()
    model = coordrl.load(run, device="cpu")

    def game(seed: int) -> list[Moment]:
        with Lockstep(spec.game, protocol=spec.protocol, seed=seed) as both:
            start = both.reset()
            card = make_card(spec, model, both.env.action_meanings, start)
            assert card == replace(CARD, training_steps=160)
            return list(play_game(model, spec, both, start, seed=seed, max_steps=30))

    again, other = game(environment_seed(1, "play")), game(5)
    assert [one.action for one in again[:30]] == [one.action for one in played.moments[:30]]
    assert all((a.frame == b.frame).all() for a, b in zip(again, played.moments[:31], strict=True))
    assert again[-1].ending == "STOPPED AFTER 30 STEPS"
    assert [one.action for one in other] != [one.action for one in again]
    env = model.get_env()
    assert env is not None
    env.close()


# The pictures


def test_the_panel_says_score_lives_time_value_and_action() -> None:
    texts = moment(975).texts(CARD)
    assert texts == {"score": "1,234", "lives": "3", "time": "1:05", "value": "0.500", "action": "RIGHT"}
    assert moment(action=1, forced=True).texts(CARD)["action"] == "FIRE (by the rules)"
    assert moment(lives=0).texts(CARD)["lives"] == "0"
    assert moment(lives=0).texts(replace(CARD, counts_lives=False))["lives"] == ""
    assert CARD.lines == ("a2c-coord · zoo-v4", "after 4,000 steps of training (16,000 frames)")


def test_the_clock_counts_the_consoles_time() -> None:
    assert [clock(step) for step in (0, 14, 15, 900, 26_999)] == ["0:00", "0:00", "0:01", "1:00", "29:59"]


def test_the_games_pixels_and_what_the_agent_sees_are_drawn_unchanged() -> None:
    one = moment()
    picture = Painter(CARD).paint(one)
    assert picture.size == SIZE
    assert picture.mode == "RGB"
    assert (np.asarray(picture)[45 + 1 : 675 : 3, 32 + 2 : 832 : 5] == one.frame).all()
    assert (np.asarray(picture)[268:436:2, 864:1032:2, 0] == one.seen).all()


def test_every_part_of_a_moment_changes_the_picture() -> None:
    others: list[dict[str, Any]] = [
        {"score": 7.0},
        {"lives": 1},
        {"step": 990},
        {"value": 0.7},
        {"action": 3},
        {"preferences": np.array([0.7, 0.1, 0.1, 0.1], dtype=np.float32)},
        {"forced": True},
        {"ending": "GAME OVER"},
    ]
    one = moment()
    plain = np.asarray(Painter(CARD).paint(one))
    for change in others:
        assert (np.asarray(Painter(CARD).paint(replace(one, **change))) != plain).any(), change


@pytest.mark.parametrize("actions", [3, 9, 10, 18])
@pytest.mark.parametrize("is_policy", [True, False])
def test_any_number_of_actions_fits_below_one_another(actions: int, is_policy: bool) -> None:
    card = replace(CARD, actions=("DOWNRIGHTFIRE",) * actions, is_policy=is_policy)
    preferences = np.linspace(-1, 1, actions, dtype=np.float32)
    picture = np.asarray(Painter(card).paint(moment(preferences=preferences)))
    background = picture[0, 0]
    assert (picture[680:] == background).all()
    assert (picture[:, 1250:] == background).all()


def test_a_contact_sheet_takes_sixteen_moments_evenly_whatever_the_length() -> None:
    for length in (1, 5, 16, 700, 5_000):
        sheet = ContactSheet(CARD)
        frame = moment().frame
        for step in range(length):
            sheet.add(moment_like(frame, step))
        chosen = [one.step for one in sheet.chosen()]
        assert len(chosen) == min(length, 16)
        assert (chosen[0], chosen[-1]) == (0, length - 1)
        gaps = np.diff(chosen)
        assert length == 1 or gaps.max() - gaps.min() <= max(2, length / 64)


def moment_like(frame: np.ndarray[Any, Any], step: int) -> Moment:
    """A moment that shares its pixels with others."""
    return Moment(step, frame, frame[:84, :84, 0], 0.0, 3, 0.0, np.full(4, 0.25, dtype=np.float32), 0)


# Errors


def test_a_folder_that_is_no_run_is_refused_in_one_line_before_torch_is_loaded(tmp_path: Path) -> None:
    code = "import sys; from coordrl.play import main; c = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(c)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"coordrl: {tmp_path} is no run: it has no run.json. A run's folder ends in seed-N\n"
    assert done.stdout == ""


def test_a_run_without_a_checkpoint_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes())
    assert play.main([str(tmp_path)]) == 2
    assert "has no checkpoint; a training writes one every" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--video", "game.avi"], '--video is "game.avi"; its name ends in .mp4'),
        (["--sheet", "game.jpg"], '--sheet is "game.jpg"; its name ends in .png'),
        (["--max-steps", "0"], "--max-steps is 0; it is a whole number from 1"),
        (["--seed", "-1"], "--seed is -1; it is a whole number from 0 to 2**31 - 1"),
        (["--viedo", "x.mp4"], "--viedo"),
    ],
)
def test_a_wrong_request_exits_with_2_and_says_the_rule(
    run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play.main([str(run), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_no_run_at_all_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert play.main([]) == 2
    assert "RUN" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--video", "--sheet"])
def test_an_output_that_cannot_be_written_exits_with_73(
    run: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    suffix = {"--video": ".mp4", "--sheet": ".png"}[option]
    (tmp_path / "file").touch()
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    for place in (tmp_path / "file" / f"game{suffix}", folder):
        assert play.main([str(run), option, str(place)]) == 73
        said = capsys.readouterr().err
        assert f"coordrl: {place} cannot be written" in said
        assert said.count("\n") == 1


def test_an_encoder_that_fails_is_an_output_error(tmp_path: Path) -> None:
    pictures = (Painter(CARD).paint(moment(step)) for step in range(3))
    with pytest.raises(OutputError, match=r"^no video can be written to .*nowhere; the encoder says: .*No such file"):
        write_video(tmp_path / "nowhere" / "game.mp4", pictures)


def test_a_machine_without_an_encoder_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(RequestError, match="install one and name it in IMAGEIO_FFMPEG_EXE"):
        write_video(tmp_path / "game.mp4", [])


def test_a_video_keeps_the_colours_of_its_pictures(tmp_path: Path) -> None:
    colours = np.array([[184, 50, 50], [0, 28, 136], [187, 187, 53], [228, 111, 111]], dtype=np.uint8)  # MsPacman's
    frame = np.repeat(np.repeat(colours.reshape(2, 2, 3), 105, axis=0), 80, axis=1)
    file = tmp_path / "game.mp4"
    write_video(file, (Painter(CARD).paint(moment(frame=frame)) for _ in range(3)))
    decoded = ffmpeg("-i", str(file), "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24")[0]
    picture = np.frombuffer(decoded, dtype=np.uint8).reshape(SIZE[1], SIZE[0], 3)
    shown = picture[[[200], [520]], [232, 632]].reshape(4, 3)
    assert np.abs(shown.astype(int) - colours).max() <= 6

"""Names, suites and protocols: how a game is found, and how a misspelt one is answered."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
import subprocess
import sys
import textwrap

import ale_py
import gymnasium as gym
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordrl.errors import CoordrlError, RequestError
from coordrl.recipes import find_recipe
from coordrl.suites import (
    ATARI,
    CONTROL_GAMES,
    CONTROLS,
    EXTRACTOR_SUMMARIES,
    FRAMES_PER_STEP,
    MAX_GAME_FRAMES,
    PROTOCOLS,
    SUITES,
    WITHOUT_COORDINATES,
    Protocol,
    check_extractor,
    choose_protocol,
    find_game,
    find_protocol,
    find_suite,
    games,
)

gym.register_envs(ale_py)

# ------------------------------------------------------------------------------------------------------- finding games


@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("MsPacman", "MsPacman"),
        ("mspacman", "MsPacman"),
        ("MSPACMAN", "MsPacman"),
        ("ms_pacman", "MsPacman"),
        ("ms-pacman", "MsPacman"),
        ("Ms. Pac-Man", "MsPacman"),
        ("  Ms Pac Man\n", "MsPacman"),
        ("ALE/MsPacman-v5", "MsPacman"),
        ("MsPacman-v0", "MsPacman"),
        ("MsPacman-v4", "MsPacman"),
        ("MsPacmanNoFrameskip-v4", "MsPacman"),
        ("Pac-Man", "Pacman"),
        ("space invaders", "SpaceInvaders"),
        ("Space_Invaders", "SpaceInvaders"),
        ("QBERT", "Qbert"),
        ("Q*bert", "Qbert"),
        ("River Raid", "Riverraid"),
        ("H.E.R.O.", "Hero"),
        ("James Bond", "Jamesbond"),
        ("Yars' Revenge", "YarsRevenge"),
        ("Up'n Down", "UpNDown"),
        ("Mr. Do!", "MrDo"),
        ("Tic-Tac-Toe 3D", "TicTacToe3D"),
        ("Pitfall!", "Pitfall"),
        ("pitfall 2", "Pitfall2"),
        ("E.T.", "Et"),
        ("PlaceMatters", "PlaceMatters"),
        ("place_is_noise", "PlaceIsNoise"),
    ],
)
def test_usual_spellings_find_the_game(name, game):
    assert find_game(name) == game


@pytest.mark.parametrize("game", list(games()))
def test_every_game_is_found_by_its_name_its_rom_and_its_ids(game):
    for name in (game, games()[game], f"ALE/{game}-v5", f"{game}NoFrameskip-v4", f"{game}-v0"):
        assert find_game(name) == game


@settings(deadline=None)  # another process may hold the cores
@given(st.sampled_from(sorted(games())), st.randoms(use_true_random=False))
def test_case_and_punctuation_do_not_matter(game: str, chance: random.Random):
    mangled = "".join(
        chance.choice(["", "", " ", ".", "_", "-", "'", "*", "!"]) + chance.choice([letter.upper(), letter.lower()])
        for letter in chance.choice([game, games()[game]])
    )
    assert find_game(mangled) == game


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=30))
def test_any_text_finds_a_game_or_is_refused_by_name(name):
    with contextlib.suppress(RequestError):
        assert find_game(name) in (*CONTROL_GAMES, *games())
        return
    shown = name if name.isprintable() else name.encode("unicode_escape").decode()
    with pytest.raises(RequestError, match=re.escape(f'"{shown}"')) as refused:
        find_game(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("MsPacmn", "MsPacman"),
        ("brekout", "Breakout"),
        ("Space Invader", "SpaceInvaders"),
        ("SeaQuests", "Seaquest"),
        ("ALE/Astroids-v5", "Asteroids"),
        ("BeemRiderNoFrameskip-v4", "BeamRider"),
        ("PlaceMater", "PlaceMatters"),
    ],
)
def test_a_misspelt_game_is_refused_with_its_value_and_up_to_three_suggestions(wrong, right):
    with pytest.raises(RequestError) as caught:
        find_game(wrong)
    message = str(caught.value)
    assert message.startswith(f'there is no game "{wrong}"; did you mean ')
    suggested = re.split(r", | or ", message.split("did you mean ")[1].removesuffix("?"))
    assert right in suggested
    assert 1 <= len(suggested) <= 3
    assert set(suggested) <= {*CONTROL_GAMES, *games()}
    assert "\n" not in message


def test_several_suggestions_are_listed_as_words_are():
    with pytest.raises(RequestError, match=r"; did you mean Pitfall or Pitfall2\?$"):
        find_game("pitfal")
    with pytest.raises(RequestError, match=r"; did you mean (\w+), (\w+) or (\w+)\?$"):
        find_game("pacma")
    with pytest.raises(RequestError, match=r"; did you mean Zaxxon\?$"):
        find_game("zaxon")


@pytest.mark.parametrize("name", ["", "   ", "!?", "ALE/", "-v5", "xyzzy", "Kobe Bryant's Wine Cellar", "ゲーム"])
def test_nonsense_is_refused_with_a_pointer_to_the_list(name):
    with pytest.raises(RequestError) as caught:
        find_game(name)
    assert str(caught.value) == f'there is no game "{name}"; see them all with: coordrl train --list'


def test_a_refusal_is_a_value_error_with_exit_code_2():
    with pytest.raises(ValueError, match="no game") as caught:
        find_game("xyzzy")
    assert isinstance(caught.value, CoordrlError)
    assert caught.value.exit_code == 2


# ------------------------------------------------------------------------------------------------------ the list itself


def test_no_two_games_have_the_same_letters_and_digits():
    plain = [re.sub("[^a-z0-9]", "", name.lower()) for name in (*CONTROL_GAMES, *games())]
    assert len(set(plain)) == len(plain) == len(CONTROL_GAMES) + len(set(games().values()))


def test_the_games_are_those_that_ale_py_registers_under_their_names_and_with_their_roms():
    registered = {
        name.removeprefix("ALE/").removesuffix("-v5"): spec.kwargs["game"]
        for name, spec in gym.registry.items()
        if name.startswith("ALE/") and name.endswith("-v5")
    }
    assert len(registered) > 100
    assert games() == registered


def test_the_games_are_in_alphabetical_order():
    assert list(games()) == sorted(games())


def test_roms_without_a_single_player_mode_are_left_out():
    available = set(ale_py.roms.get_all_rom_ids())
    for rom in ("combat", "joust", "maze_craze", "warlords"):
        assert rom in available
        assert rom not in games().values()
        with pytest.raises(RequestError):
            find_game(rom)


# ------------------------------------------------------------------------------------------------ suites and protocols


def test_atari9_is_the_nine_games_of_the_design_in_its_order():
    assert SUITES["atari9"] == (
        "Asteroids",
        "BeamRider",
        "Breakout",
        "MsPacman",
        "Pong",
        "Qbert",
        "RoadRunner",
        "Seaquest",
        "SpaceInvaders",
    )


def test_every_suite_names_games_by_their_own_names_and_none_twice():
    for suite in SUITES.values():
        assert [find_game(game) for game in suite] == list(suite)
        assert len(set(suite)) == len(suite)


def test_the_rules_of_the_protocols_are_those_of_the_design():
    rules = {name: dataclasses.asdict(protocol) for name, protocol in PROTOCOLS.items()}
    summaries = {name: rule.pop("summary") for name, rule in rules.items()}
    worlds = {name: rule.pop("world")["name"] for name, rule in rules.items()}
    assert worlds == {"zoo-v4": "atari", "machado-v5": "atari", "controls-v1": "controls"}
    assert rules.pop("controls-v1") == {
        "name": "controls-v1",
        "sticky_actions": 0.0,
        "full_action_space": False,
        "noop_max": 0,
        "fire": False,
        "life_loss_ends_episode": False,
        "clip_rewards": False,
    }
    assert rules == {
        "zoo-v4": {
            "name": "zoo-v4",
            "sticky_actions": 0.0,
            "full_action_space": False,
            "noop_max": 30,
            "fire": True,
            "life_loss_ends_episode": True,
            "clip_rewards": True,
        },
        "machado-v5": {
            "name": "machado-v5",
            "sticky_actions": 0.25,
            "full_action_space": True,
            "noop_max": 0,
            "fire": False,
            "life_loss_ends_episode": False,
            "clip_rewards": True,
        },
    }
    assert all(summaries.values())


def test_a_step_is_four_frames_on_atari_and_one_on_controls_and_a_game_at_most_half_an_hour():
    assert FRAMES_PER_STEP == ATARI.frames_per_step == 4
    assert CONTROLS.frames_per_step == 1
    assert MAX_GAME_FRAMES == 30 * 60 * 60


def test_a_protocol_cannot_be_changed():
    protocol = find_protocol("zoo-v4")
    assert isinstance(protocol, Protocol)
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.sticky_actions = 0.25


@pytest.mark.parametrize(
    ("name", "hint"), [("zoo-v5", "; did you mean zoo-v4?"), ("machado", "; did you mean machado-v5?"), ("", "")]
)
def test_a_misspelt_protocol_is_refused_with_those_there_are_and_a_suggestion(name, hint):
    with pytest.raises(RequestError) as caught:
        find_protocol(name)
    assert str(caught.value) == f'there is no protocol "{name}"; there are zoo-v4, machado-v5, controls-v1{hint}'


@pytest.mark.parametrize(
    ("played", "name", "protocol"),
    [
        (["Pong"], None, "zoo-v4"),
        (["Pong"], "machado-v5", "machado-v5"),
        (SUITES["atari9"], None, "zoo-v4"),
        (["PlaceMatters"], None, "controls-v1"),
        (SUITES["controls"], "controls-v1", "controls-v1"),
    ],
)
def test_games_choose_their_protocol_by_themselves(played, name, protocol):
    assert choose_protocol(played, name).name == protocol


@pytest.mark.parametrize(
    ("played", "name", "complaint"),
    [
        (["Pong"], "controls-v1", "Pong is not played under controls-v1; its protocol is zoo-v4 or machado-v5"),
        (["PlaceMatters"], "zoo-v4", "PlaceMatters is not played under zoo-v4; its protocol is controls-v1"),
        (["Pong", "PlaceMatters"], None, "PlaceMatters is not played under zoo-v4; its protocol is controls-v1"),
        (["PlaceIsNoise", "Pong"], None, "Pong is not played under controls-v1; its protocol is zoo-v4 or machado-v5"),
        (
            ["Pong"],
            "zoo",
            'there is no protocol "zoo"; there are zoo-v4, machado-v5, controls-v1; did you mean zoo-v4?',
        ),
    ],
)
def test_a_game_under_another_worlds_protocol_is_refused(played, name, complaint):
    with pytest.raises(RequestError) as caught:
        choose_protocol(played, name)
    assert str(caught.value) == complaint


def test_what_is_usual_in_a_world_exists_and_suits_it():
    for world in (ATARI, CONTROLS):
        assert find_recipe(world.agent).name == world.agent
        assert world.extractors[0] in WITHOUT_COORDINATES
        for extractor in world.extractors:
            check_extractor(extractor, world)


@pytest.mark.parametrize("extractor", [name for name in EXTRACTOR_SUMMARIES if name not in ("pool", "coord-pool")])
def test_an_extractor_for_large_images_is_refused_on_the_controls(extractor):
    check_extractor(extractor, ATARI)
    with pytest.raises(RequestError, match=rf"the controls are 8x8, too small for the extractor {extractor}, .*36x36"):
        check_extractor(extractor, CONTROLS)


def test_the_extractors_are_those_of_the_design():
    names = ["nature", "coord", "coord-r", "coord-all", "shuffled", "constant", "pool", "coord-pool"]
    assert list(EXTRACTOR_SUMMARIES) == names
    for name in names:
        check_extractor(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cord", r'^there is no extractor "cord"; did you mean coord\b.*\?$'),
        ("", r'^there is no extractor ""; there are nature, coord, .*coord-pool$'),
    ],
)
def test_a_misspelt_extractor_is_refused_with_a_suggestion_or_the_list(name, message):
    with pytest.raises(RequestError, match=message):
        check_extractor(name)


# ---------------------------------------------------------------------------------------------------------- start-up


def test_a_game_is_found_without_importing_torch_numpy_or_the_emulator():
    script = """
        import sys
        from coordrl.suites import find_game, games
        assert find_game("ms_pacman") == "MsPacman" and len(games()) > 100
        try:
            find_game("MsPacmn")
        except ValueError:
            pass
        heavy = {"torch", "numpy", "ale_py", "gymnasium", "stable_baselines3"} & set(sys.modules)
        assert not heavy, heavy
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_suite_is_a_name_or_a_list_of_games() -> None:
    assert find_suite("atari9") == SUITES["atari9"]
    assert find_suite("ms_pacman, Pong") == ("MsPacman", "Pong")
    assert find_suite("pong") == ("Pong",)
    assert find_suite("controls") == CONTROL_GAMES
    assert find_suite("place-matters") == ("PlaceMatters",)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("atari8", 'no suite "atari8"; did you mean atari9'),
        ("", 'no suite ""; there are atari9'),
        ("Pong,Breakuot", 'no game "Breakuot"; did you mean Breakout'),
        ("Pong,pong", "names Pong twice"),
    ],
)
def test_a_suite_that_is_none_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        find_suite(name)

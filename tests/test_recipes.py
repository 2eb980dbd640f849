"""Recipes: parsed, checked, overridden, never executed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordrl.errors import RequestError
from coordrl.recipes import RULES, find_recipe, recipe_folder, recipe_names


def test_the_recipes_of_the_first_day_are_there() -> None:
    assert {"a2c", "dqn"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_holds_every_setting_with_its_source_beside_it(name: str) -> None:
    recipe = find_recipe(name)
    assert set(recipe.settings) == set(RULES[recipe.algorithm])
    assert recipe.summary
    for line in (recipe_folder() / f"{name}.toml").read_text().split("[settings]")[1].splitlines():
        assert not line.strip() or len(line.partition("#")[2].strip()) > 3, line


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_being_written_and_read_again(name: str, tmp_path: Path) -> None:
    recipe = find_recipe(name)
    file = tmp_path / f"{name}.toml"
    file.write_text(recipe.to_toml())
    assert find_recipe(str(file)) == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_the_readme_of_the_recipes_lists_each(name: str) -> None:
    assert f"[{name}]({name}.toml)" in (recipe_folder() / "README.md").read_text()


def test_the_numbers_are_rl_zoos() -> None:
    a2c = find_recipe("a2c").settings
    assert (a2c["n_envs"], a2c["n_steps"], a2c["learning_rate"], a2c["ent_coef"], a2c["vf_coef"]) == (
        16,
        5,
        7e-4,
        0.01,
        0.25,
    )
    dqn = find_recipe("dqn").settings
    assert (dqn["buffer_size"], dqn["learning_starts"], dqn["target_update_interval"]) == (100_000, 100_000, 1_000)
    assert (dqn["learning_rate"], dqn["batch_size"], dqn["exploration_final_eps"]) == (1e-4, 32, 0.01)


def test_an_override_changes_one_setting_and_nothing_else() -> None:
    before, after = find_recipe("a2c").settings, find_recipe("a2c", ["learning_rate=3e-4"]).settings
    assert {name for name in before if before[name] != after[name]} == {"learning_rate"}
    assert after["learning_rate"] == 3e-4


def test_a_whole_number_may_be_written_as_a_float_and_a_float_as_a_whole_number() -> None:
    settings = find_recipe("a2c", ["n_envs=8.0", "gamma=1"]).settings
    assert settings["n_envs"] == 8
    assert isinstance(settings["n_envs"], int)
    assert isinstance(settings["gamma"], float)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("learning_rat=1", 'no setting "learning_rat"; did you mean learning_rate'),
        ("zzz=1", 'no setting "zzz"; it has n_envs'),
        ("gamma", 'NAME=VALUE, not "gamma"'),
        ("gamma=2", "gamma is 2; it is a number from 0 to 1"),
        ("gamma=nan", "gamma is nan; it is a number"),
        ("learning_rate=inf", "learning_rate is inf; it is a number above 0"),
        ("learning_rate=0", "learning_rate is 0; it is a number above 0"),
        ("n_envs=0", "n_envs is 0; it is a whole number from 1"),
        ("n_envs=2.5", "n_envs is 2.5; it is a whole number"),
        ("n_envs=true", "n_envs is True; it is a whole number"),
        ('n_envs="8"', "n_envs is '8'; it is a whole number"),
        ("n_envs=__import__('os')", "is not a TOML value"),
        ("n_envs=8\nx=1", "is not a TOML value|no setting"),
    ],
)
def test_a_wrong_override_is_refused_with_the_rule(override: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        find_recipe("a2c", [override])


def test_an_unknown_agent_is_refused_with_the_closest_one() -> None:
    with pytest.raises(RequestError, match='no agent "a2d"; did you mean a2c'):
        find_recipe("a2d")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("algorithm = ", "not valid TOML"),
        ("algorithm = 'ppo'", "algorithm 'ppo'; there are a2c, dqn"),
        ("algorithm = 'a2c'", "lacks n_envs"),
        ("algorithm = 'a2c'\nsetings = 1", 'has "setings"; a recipe has .* did you mean settings'),
        ("algorithm = 'a2c'\nsettings = 1", "is a table"),
        ("algorithm = 'a2c'\nsummary = 1", "summary a string"),
        ("algorithm = 'a2c'\n[settings]\nlr = 1", 'no setting "lr"'),
    ],
)
def test_a_wrong_recipe_file_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(RequestError, match=complaint):
        find_recipe(str(file))


def test_a_recipe_file_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        find_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="cannot be read"):
        find_recipe(str(tmp_path / "bytes.toml"))


def test_a_recipe_whose_name_is_no_folder_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "my agent.toml"
    file.write_text(find_recipe("a2c").to_toml())
    with pytest.raises(RequestError, match='"my agent" names run folders'):
        find_recipe(str(file))


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-12, max_value=1e6))
def test_any_float_survives_as_an_override_and_in_the_written_recipe(value: float) -> None:
    recipe = find_recipe("a2c", [f"learning_rate={value!r}"])
    assert recipe.settings["learning_rate"] == value
    assert tomllib.loads(recipe.to_toml())["settings"]["learning_rate"] == value

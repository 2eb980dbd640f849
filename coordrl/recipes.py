"""Recipes: an agent is a TOML file with an algorithm's name and all of its numbers.

Standard library only: a misspelt agent or setting must be answered in well under a second. A recipe is
parsed, never executed, and has no hidden defaults: every setting of its algorithm stands in the file, or in that of
the recipe that comes with coordrl and that it names as its base.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from coordrl.errors import RequestError, suggest

Value = bool | int | float
_PARTS = ("algorithm", "base", "summary", "settings")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of a recipe, which names run folders


@dataclass(frozen=True)
class Rule:
    """What a setting's value may be: true or false, or a whole number or any number from `low` to `high`."""

    kind: type[bool] | type[int] | type[float]
    low: float = 0.0
    high: float = float("inf")
    above_low: bool = False  # low itself is not allowed

    def __str__(self) -> str:
        """Say the rule in words."""
        if self.kind is bool:
            return "true or false"
        what = "a whole number" if self.kind is int else "a number"
        low = f"above {self.low:g}" if self.above_low else f"from {self.low:g}"
        return f"{what} {low}" + (f" to {self.high:g}" if self.high != float("inf") else "")


_COUNT = Rule(int, 1, 10**12)
_POSITIVE = Rule(float, 0, above_low=True)
_FRACTION = Rule(float, 0, 1)
_SWITCH = Rule(bool)

_REPLAY: dict[str, Rule] = {
    "n_envs": Rule(int, 1, 1024),
    "learning_rate": _POSITIVE,
    "buffer_size": _COUNT,
    "learning_starts": Rule(int, 0, 10**12),
    "batch_size": Rule(int, 1, 10**6),
    "gamma": _FRACTION,
    "train_freq": _COUNT,
    "gradient_steps": Rule(int, 1, 10**6),
    "target_update_interval": _COUNT,
    "max_grad_norm": _POSITIVE,
    "n_steps": Rule(int, 1, 1000),
    "priority_exponent": _FRACTION,
    "importance_exponent": _FRACTION,
    "evaluation_epsilon": _FRACTION,
}

# The settings of each algorithm, under SB3's own names where SB3 has them.
RULES: dict[str, dict[str, Rule]] = {
    "a2c": {
        "n_envs": Rule(int, 1, 1024),
        "n_steps": Rule(int, 1, 10_000),  # a rollout is kept in memory
        "learning_rate": _POSITIVE,
        "gamma": _FRACTION,
        "gae_lambda": _FRACTION,
        "ent_coef": Rule(float, 0),
        "vf_coef": Rule(float, 0),
        "max_grad_norm": _POSITIVE,
        "rmsprop_alpha": _FRACTION,
        "rmsprop_eps": _POSITIVE,
    },
    "dqn": {
        **_REPLAY,
        "exploration_fraction": Rule(float, 0, 1, above_low=True),
        "exploration_initial_eps": _FRACTION,
        "exploration_final_eps": _FRACTION,
        "double": _SWITCH,
        "dueling": _SWITCH,
        "prioritized": _SWITCH,
    },
    "apex": {
        **_REPLAY,
        "n_envs": Rule(int, 1, 10_000),  # of actors on many machines
        "ladder_base": _FRACTION,
        "ladder_exponent": Rule(float, 0, 100),
        "rmsprop_alpha": _FRACTION,
        "rmsprop_eps": _POSITIVE,
    },
}


@dataclass(frozen=True)
class Recipe:
    """An agent: its name (which names its run folders), its algorithm, and every setting."""

    name: str
    algorithm: str
    summary: str
    settings: Mapping[str, Value]

    def to_toml(self) -> str:
        """Write the recipe as resolved, overrides included."""
        # A JSON string is a TOML string, but for surrogate pairs and DEL.
        summary = json.dumps(self.summary, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines = [f'algorithm = "{self.algorithm}"', f"summary = {summary}", "", "[settings]"]
        lines += [f"{name} = {str(value).lower()}" for name, value in self.settings.items()]  # true is True in Python
        return "\n".join(lines) + "\n"


def recipe_folder() -> Path:
    """Return the folder of the recipes that come with coordrl.

    A wheel carries it inside the package; a checkout has it at the top, beside its pyproject.toml.
    """
    package = Path(__file__).parent
    if (package / "agents").is_dir():
        return package / "agents"
    checkout = package.parent
    if (checkout / "agents").is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / "agents"
    raise RequestError(f"the folder agents is missing beside {package}; install coordrl again: pip install .")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with coordrl, in alphabetical order."""
    return sorted(path.stem for path in recipe_folder().glob("*.toml"))


def find_recipe(agent: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of an agent with some of its settings overridden.

    Args:
        agent: a name that comes with coordrl, or the path of a .toml file.
        overrides: "NAME=VALUE" each, the value in TOML's notation.

    Raises:
        RequestError: no such agent or setting, or a value against its rule.
    """
    path = Path(agent) if agent.endswith(".toml") else recipe_folder() / f"{agent}.toml"
    if not agent.endswith(".toml") and agent not in recipe_names():
        hint = suggest(agent, recipe_names()) or f"; there are {', '.join(recipe_names())}"
        raise RequestError(f'there is no agent "{agent}"{hint} A path to a recipe ends in .toml')
    recipe = _parse(path)
    settings = dict(recipe.settings)
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals:
            raise RequestError(f'--set takes NAME=VALUE, not "{override}"; for example --set learning_rate=3e-4')
        settings[name] = check_setting(recipe.algorithm, name, _parse_value(name, text), f"agent {recipe.name}")
    return Recipe(recipe.name, recipe.algorithm, recipe.summary, settings)


def _parse(path: Path) -> Recipe:
    """Read and check one recipe file."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the recipe {path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:  # tomllib's own are ValueErrors, and so is a number of 5,000 digits
        raise RequestError(f"the recipe {path} is not valid TOML: {error}") from error
    if not NAME.fullmatch(path.stem):
        raise RequestError(f'the recipe\'s name "{path.stem}" names run folders; use letters, digits, ., _ and - alone')
    for name in data:
        if name not in _PARTS:
            raise RequestError(
                f'{path} has "{name}"; a recipe has {", ".join(_PARTS[:-1])} and [settings]{suggest(name, _PARTS)}'
            )
    base = _find_base(path, data["base"]) if "base" in data else None
    algorithm = data.get("algorithm", base.algorithm if base else None)
    if not isinstance(algorithm, str) or algorithm not in RULES:
        raise RequestError(f"{path} has algorithm {algorithm!r}; there are {', '.join(RULES)}")
    settings = data.get("settings", {})
    summary = data.get("summary", "")
    if not isinstance(settings, dict) or not isinstance(summary, str):
        raise RequestError(f"{path}: [settings] is a table and summary a string")
    if base and base.algorithm != algorithm:
        raise RequestError(f"{path} has algorithm {algorithm}, and its base {base.algorithm}; leave algorithm out")
    checked = dict(base.settings) if base else {}
    checked |= {name: check_setting(algorithm, name, value, str(path)) for name, value in settings.items()}
    missing = [name for name in RULES[algorithm] if name not in checked]
    if missing:
        raise RequestError(f"{path} lacks {', '.join(missing)}; a recipe holds every setting of its algorithm")
    return Recipe(path.stem, algorithm, summary, checked)


def _find_base(path: Path, name: Any) -> Recipe:
    """Return the recipe that another one differs from."""
    if name not in recipe_names() or path.resolve() == (recipe_folder() / f"{name}.toml").resolve():
        raise RequestError(f"{path} has base {name!r}; it is another recipe of coordrl's: {', '.join(recipe_names())}")
    return _parse(recipe_folder() / f"{name}.toml")


def _parse_value(name: str, text: str) -> Any:
    """Parse the value of an override as TOML."""
    try:
        parsed = tomllib.loads(f"value = {text.strip()}")
    except (ValueError, RecursionError):
        parsed = {}
    if set(parsed) != {"value"}:
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise RequestError(f'--set {name}: "{shown}" is not a TOML value; for example 3e-4, 16, 100_000 or true')
    return parsed["value"]


def check_setting(algorithm: str, name: str, value: Any, where: str) -> Value:
    """Return the value in its rule's type, or raise the RequestError that states the rule."""
    rules = RULES[algorithm]
    if name not in rules:
        hint = suggest(name, rules) or f"; it has {', '.join(rules)}"
        raise RequestError(f'{where}: {algorithm} has no setting "{name}"{hint}')
    rule = rules[name]
    if rule.kind is bool and isinstance(value, bool):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and rule.kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e5 is a fine way to write a count
    if not number or rule.kind is bool or (rule.kind is int and not isinstance(value, int)):
        raise RequestError(f"{where}: {name} is {value!r}; it is {rule}")
    within = rule.low <= value <= rule.high and (isinstance(value, int) or isfinite(value))
    if not within or (rule.above_low and value == rule.low):
        raise RequestError(f"{where}: {name} is {value!r}; it is {rule}")
    return rule.kind(value)

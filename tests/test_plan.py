"""The plan of a comparison: its matrix, its file, its hash."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from coordrl.errors import OutputError, RequestError
from coordrl.plan import Extension, Plan, _parse, make_plan, read_plan, write_plan
from coordrl.recipes import find_recipe
from coordrl.suites import SUITES


def small(**changes: Any) -> Plan:
    words: dict[str, Any] = {
        "suite": "atari9",
        "agents": ["a2c", "dqn"],
        "extractors": ["coord", "nature"],
        "seeds": 3,
        "steps": 1000,
    }
    return make_plan(**{**words, **changes})


def test_the_matrix_holds_every_run_once() -> None:
    plan = small()
    wanted = set(product(SUITES["atari9"], ("a2c", "dqn"), ("coord", "nature"), (0, 1, 2)))
    specs = [(cell.spec.game, cell.spec.agent, cell.spec.extractor, cell.spec.seed) for cell in plan.runs]
    assert set(specs) == wanted
    assert len(specs) == len(wanted)
    assert plan.runs[1].folder == "zoo-v4/a2c-nature/Asteroids/seed-0"
    assert plan.runs[1].path(Path("out")) == plan.runs[1].spec.folder(Path("out"))


def test_the_arms_of_one_seed_and_game_are_neighbours_and_seeds_outermost() -> None:
    plan = small()
    blocks = [plan.runs[start : start + 4] for start in range(0, len(plan.runs), 4)]
    assert all([cell.arm for cell in block] == plan.arms() for block in blocks)
    assert [(block[0].spec.seed, block[0].spec.game) for block in blocks] == list(product((0, 1, 2), SUITES["atari9"]))
    assert all(len({(cell.spec.seed, cell.spec.game) for cell in block}) == 1 for block in blocks)


def test_each_extractor_is_compared_with_the_control_of_its_own_agent() -> None:
    plan = small(extractors=["coord", "nature", "shuffled"])
    assert plan.control == "nature"
    assert [(treatment.name, control.name) for treatment, control in plan.pairs()] == [
        ("a2c-coord", "a2c-nature"),
        ("a2c-shuffled", "a2c-nature"),
        ("dqn-coord", "dqn-nature"),
        ("dqn-shuffled", "dqn-nature"),
    ]
    assert small(extractors=["coord-pool", "pool"]).control == "pool"
    assert small(extractors=["coord", "coord-r"]).control == "coord"
    assert small(extractors=["coord"]).pairs() == []


def test_the_controls_are_planned_under_their_own_protocol_with_extractors_for_small_images() -> None:
    plan = small(suite="controls", agents=["a2c-controls"], extractors=["pool", "coord-pool"], seeds=10)
    assert (plan.protocol, plan.control, len(plan.runs)) == ("controls-v1", "pool", 40)
    assert plan.runs[1].folder == "controls-v1/a2c-controls-coord-pool/PlaceMatters/seed-0"
    with pytest.raises(RequestError, match="too small for the extractor nature"):
        small(suite="controls", extractors=["pool", "nature"])
    with pytest.raises(RequestError, match="Pong is not played under controls-v1"):
        small(suite="PlaceMatters,Pong")


def test_overrides_are_in_every_spec() -> None:
    plan = small(agents=["a2c"], overrides=["learning_rate=3e-4"])
    assert {cell.spec.settings["learning_rate"] for cell in plan.runs} == {3e-4}
    assert plan.runs[0].spec.settings == find_recipe("a2c", ["learning_rate=3e-4"]).settings


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = small(overrides=["gamma=1"])
    write_plan(tmp_path / "runs", plan)
    assert read_plan(tmp_path / "runs") == plan
    assert json.loads((tmp_path / "runs" / "plan.json").read_text())["hash"] == plan.hash
    assert [file.name for file in (tmp_path / "runs").iterdir()] == ["plan.json"]


def test_the_hash_covers_everything() -> None:
    plan = small()
    changes: list[dict[str, Any]] = [
        {"question": "?"},
        {"better": "faster"},
        {"tests": ()},
        {"exclusions": ("the bad ones",)},
        {"steps": 1001},
        {"seeds": (0, 1)},
        {"runs": plan.runs[:-1]},
        {"eval_episodes": 11},
        {"control": "coord"},
        {"alpha": 0.1},
        {"fewest_seeds": 2},
        {"interval": "percentile bootstrap"},
        {"references": {**plan.references, "Pong": (-20.7, 14.7)}},
        {"extensions": (Extension("2026-11-25", 2, 3, "0" * 16),)},
    ]
    hashes = {plan.hash, *(replace(plan, **change).hash for change in changes)}
    assert len(hashes) == 1 + len(changes)
    assert small().hash == plan.hash


def test_seeds_added_later_are_said_openly(tmp_path: Path) -> None:
    plan = small()
    grown = plan.extended(5, "2026-11-25")
    assert grown.extensions == (Extension("2026-11-25", 3, 5, plan.hash),)
    assert grown.hashes == (plan.hash, grown.hash)
    assert grown.runs == small(seeds=5).runs
    assert grown.runs[: len(plan.runs)] == plan.runs
    assert grown.hash != small(seeds=5).hash  # it was not decided at once, and its hash says so
    assert grown.extended(6, "2026-12-01").hashes[:2] == grown.hashes
    assert grown.extended(6, "2026-12-01").before() == grown
    write_plan(tmp_path, grown)
    assert read_plan(tmp_path) == grown
    with pytest.raises(RequestError, match="the plan has 3 seeds; ask for more"):
        plan.extended(3, "2026-11-25")


def test_two_plans_are_told_apart_in_words() -> None:
    plan = small()
    assert plan.differences(plan.extended(5, "2026-11-25")) == []
    assert plan.differences(small(steps=2000)) == ["steps is 1000 there and 2000 here"]
    assert plan.differences(small(overrides=["gamma=0.5"])) == ['overrides is [] there and ["gamma=0.5"] here']
    other = replace(plan.runs[0].spec, settings={**plan.runs[0].spec.settings, "gamma": 0.5})
    changed = replace(plan, runs=(replace(plan.runs[0], spec=other), *plan.runs[1:]))
    assert plan.differences(changed) == ["zoo-v4/a2c-coord/Asteroids/seed-0: gamma is 0.99 there and 0.5 here"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"suite": "atari8"}, 'no suite "atari8"; did you mean atari9?'),
        ({"suite": "go"}, 'no suite "go"; there are atari9'),
        ({"agents": ["a2"]}, 'no agent "a2"; did you mean a2c?'),
        ({"extractors": ["nature", "cord"]}, 'no extractor "cord"; did you mean coord'),
        ({"protocol": "zoo"}, 'no protocol "zoo"'),
        ({"seeds": 0}, "--seeds is 0; it is a whole number from 1"),
        ({"steps": 0}, "--steps is 0"),
        ({"eval_every": -1}, "--eval-every is -1"),
        ({"agents": []}, "--agents is empty"),
        ({"extractors": []}, "--extractors is empty"),
        ({"extractors": ["coord", "coord"]}, "--extractors has coord twice"),
        ({"agents": ["a2c", "a2c"]}, "--agents has a2c twice"),
        ({"agents": ["a2c", "dqn"], "overrides": ["buffer_size=10"]}, "a2c has no setting"),
    ],
)
def test_a_wrong_request_is_one_clear_line(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError) as caught:
        small(**change)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read: KeyError"),
        ('{"format": 1, "runs": []}', "has format 1, and this coordrl reads format 2: another version wrote it"),
        ('{"format": 2, "runs": 3, "extensions": []}', "cannot be read"),
        ('{"format": 2, "runs": [], "extensions": [], "references": {"Pong": [1]}}', "cannot be read: ValueError"),
    ],
)
def test_a_damaged_plan_is_one_clear_line(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(RequestError) as caught:
        read_plan(tmp_path)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_changed_by_hand_is_refused(tmp_path: Path) -> None:
    write_plan(tmp_path, small())
    file = tmp_path / "plan.json"
    file.write_text(file.read_text().replace("Better means one thing", "Better means anything"))
    with pytest.raises(RequestError, match="was changed after it was written"):
        read_plan(tmp_path)


def rewritten(out: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a plan's file, and its hash with it, as somebody might who knows how it is made."""
    file = out / "plan.json"
    data = json.loads(file.read_text())
    edit(data)
    data["hash"] = _parse(data).hash
    file.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["extensions"].pop(0),
        lambda data: data["extensions"].pop(1),
        lambda data: data["extensions"].reverse(),
        lambda data: data["extensions"][0].update(date="2026-11-24"),
        lambda data: data["extensions"][0].update(seeds_before=2),
        lambda data: data["extensions"][0].update(hash_before="0" * 16),
        lambda data: data["extensions"][1].update(seeds_after=7),
        lambda data: data["extensions"][1].update(seeds_before=3),
        lambda data: data.update(better="What we found."),
        lambda data: data.update(references={}),
    ],
)
def test_a_history_that_was_changed_is_refused_even_if_the_hash_was_made_anew(
    edit: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    write_plan(tmp_path, small().extended(5, "2026-11-25").extended(6, "2026-12-01"))
    rewritten(tmp_path, lambda data: None)
    read_plan(tmp_path)
    rewritten(tmp_path, edit)
    with pytest.raises(RequestError, match="that does not follow from the plan before it") as caught:
        read_plan(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_extension_that_was_taken_out_or_rewritten_is_refused(tmp_path: Path) -> None:
    grown = small().extended(5, "2026-11-25")
    for extensions in ((), (replace(grown.extensions[0], seeds_before=4),)):
        write_plan(tmp_path, grown)
        data = json.loads((tmp_path / "plan.json").read_text())
        data["extensions"] = [asdict(extension) for extension in extensions]
        (tmp_path / "plan.json").write_text(json.dumps(data))
        with pytest.raises(RequestError, match="was changed after it was written"):
            read_plan(tmp_path)


def test_no_plan_and_no_place_for_one_are_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"holds no comparison: it has no plan\.json"):
        read_plan(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_plan(tmp_path / "file", small())

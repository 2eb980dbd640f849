"""The house: floors, lazy imports, and what the package promises to be importable."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import coordrl

PACKAGE = Path(coordrl.__file__).parent

# Each module imports only from lower floors.
FLOORS = [
    {"errors"},
    {
        "grids",
        "process",
        "suites",
        "recipes",
        "heatmaps",
        "references",
        "panels",
        "measures",
        "losses",
        "signatures",
        "faults",
        "joining",
        "stopping",
        "squares",
        "paper_tasks",
    },
    {"coordconv", "journal", "workers", "files", "sumtree", "footprint", "options"},
    {"vectors"},
    {"extractors", "atari", "controls", "results", "coordinates", "significance", "stacking"},
    {"plan", "attempts", "stats", "fast_network", "divided", "replay", "dueling", "arrays"},
    {"segments"},
    {"checkpoint"},
    {"fast_rollout", "environments"},
    {"fast_parts"},
    {"a2c", "dqn", "divided_worker"},
    {"snapshot"},
    {
        "algorithms",
        "evaluation",
        "curves",
        "console",
        "lockstep",
        "video",
        "backends",
        "record",
        "events",
        "exactness",
        "watchdog",
        "marks",
        "divergence",
    },
    {"course", "launch", "evidence", "ablation", "actor", "paper_networks", "paper_results"},
    {"fleet", "paper_training"},
    {"apex"},
    {"training", "scoreboard", "estimate", "slurm", "cluster", "findings", "ablations"},
    {"words", "pictures", "figures"},
    {"tables"},
    {"charts", "paper_pictures"},
    {"usage", "paper_course"},
    {"page"},
    {"train", "evaluate", "play", "compare", "report", "board", "paper"},
    {"__main__"},
]


def modules() -> dict[str, ast.Module]:
    return {file.stem: ast.parse(file.read_text()) for file in sorted(PACKAGE.glob("*.py")) if file.stem != "__init__"}


def coordrl_imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("coordrl."):
            found.add((node.module or "").split(".")[1])
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("coordrl.")}
    return found


def test_every_module_stands_on_a_floor() -> None:
    assert set(modules()) == set().union(*FLOORS)


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_from_lower_floors(name: str) -> None:
    floor = next(index for index, floor in enumerate(FLOORS) if name in floor)
    lower = set().union(*FLOORS[:floor])
    assert coordrl_imports(modules()[name]) <= lower


def test_the_list_of_public_names_is_complete_and_every_name_is_there() -> None:
    assert set(coordrl.__all__) == set(coordrl._HOMES)
    assert {name for name in coordrl.__all__ if getattr(coordrl, name) is None} == set()
    assert set(coordrl.__all__) <= set(dir(coordrl))


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'CordConv2d'"):
        _ = coordrl.CordConv2d


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_importing_coordrl_imports_nothing_else() -> None:
    heavy = "{'torch', 'numpy', 'gymnasium', 'stable_baselines3', 'ale_py', 'tyro', 'rich'}"
    assert run_python(f"import coordrl, sys; print({heavy} & set(sys.modules))") == "set()"


@pytest.mark.parametrize(
    "words",
    [
        "train --game MsPacmn",
        "train --game Pong --agent a2",
        "train --game Pong --extractor cord",
        "train --game Pong --set gama=1",
        "train --gaem Pong",
        "evaluate nowhere",
        "evaluate nowhere --ablate",
        "evaluate nowhere --ablate zeros",
        "play nowhere",
        "board nowhere",
        "board . --port 70000",
        "compare --suite atari8",
        "compare --extractors nature,cord",
        "report nowhere",
        "paper clasification",
        "paper rendering --split quarter",
        "paper regression --arms coord,plane",
    ],
)
def test_a_wrong_request_is_answered_without_a_slow_import(words: str) -> None:
    heavy = "{'torch', 'numpy', 'scipy', 'gymnasium', 'stable_baselines3', 'ale_py', 'rich.console'}"
    code = f"import sys; from coordrl.__main__ import main; print(main({words.split()!r}), {heavy} & set(sys.modules))"
    assert run_python(code) == "2 set()"


def test_the_evidence_column_never_imports_torch() -> None:
    names = [
        "plan",
        "record",
        "evidence",
        "stats",
        "findings",
        "words",
        "figures",
        "charts",
        "pictures",
        "page",
        "report",
        "compare",
        "events",
        "board",
    ]
    heavy = "{'torch', 'gymnasium', 'stable_baselines3', 'ale_py', 'tensorboard'}"
    code = f"import sys, importlib; [importlib.import_module('coordrl.' + name) for name in {names}]"
    assert run_python(f"{code}; print({heavy} & set(sys.modules))") == "set()"


def test_the_type_marker_is_there() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_nothing_evaluates_unpickles_or_swallows() -> None:
    forbidden = {"eval", "exec", "__import__"}
    for name, tree in modules().items():
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & forbidden, name
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not imported & {"pickle", "cloudpickle", "dill"}, name
        bare = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type is None]
        assert not bare, name


@pytest.mark.skipif(not (PACKAGE.parent / "pyproject.toml").is_file(), reason="the checkout's files are not installed")
def test_no_tracked_file_names_this_machine() -> None:
    root = PACKAGE.parent
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False, timeout=30)
    for name in listed.stdout.split():
        file = root / name
        if file.suffix in (".py", ".md", ".toml", ".txt", "") and file.is_file():
            assert str(root) + os.sep not in file.read_text(errors="replace"), name

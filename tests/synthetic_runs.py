"""Folders of runs that nobody trained, with logs as coordrl.train writes them, for the report's tests.

    python tests/synthetic_runs.py OUT --seeds 10 --agents a2c,dqn     # 9 games x 2 arms x agents x seeds

Returns rise from random play to about what rl-zoo reports, with a spread among seeds that is skewed as real
ones are; `effect` says by how much the treatment's gain over random play is larger than the control's.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from coordrl.files import write_json
from coordrl.plan import Cell, Plan, make_plan, write_plan

# random play, final level of the control, game's length in steps
LEVELS = {
    "Asteroids": (719.0, 1290.0, 700),
    "BeamRider": (364.0, 2900.0, 1400),
    "Breakout": (1.7, 280.0, 900),
    "MsPacman": (307.0, 1670.0, 620),
    "Pong": (-20.7, 17.3, 1800),
    "Qbert": (164.0, 3880.0, 800),
    "RoadRunner": (11.5, 31700.0, 900),
    "Seaquest": (68.0, 1720.0, 1100),
    "SpaceInvaders": (148.0, 630.0, 600),
}
EFFECT = {"MsPacman": 0.9, "Seaquest": 0.5, "Qbert": 0.25, "SpaceInvaders": 0.15, "BeamRider": -0.2}


def write_matrix(
    out: Path,
    plan: Plan,
    *,
    rows: int = 1000,
    effect: Mapping[str, float] | None = None,
    states: Mapping[str, str] | None = None,
    ablations: bool = False,
    maps: bool = True,
) -> None:
    """Write a plan and its runs; `states` maps a cell's folder to missing, unfinished or diverged."""
    write_plan(out, plan)
    for cell in plan.runs:
        state = (states or {}).get(cell.folder, "finished")
        if state != "missing":
            gain = (EFFECT if effect is None else effect).get(cell.spec.game, 0.0)
            write_run(
                out, cell, plan, state, rows, 0.0 if cell.spec.extractor == plan.control else gain, ablations, maps
            )


def write_run(
    out: Path, cell: Cell, plan: Plan, state: str, rows: int, gain: float, ablations: bool, maps: bool
) -> None:
    spec = cell.spec
    rng = np.random.default_rng(zlib.crc32(cell.folder.encode()))
    folder = cell.path(out)
    folder.mkdir(parents=True)
    last = {"finished": 1.0, "unfinished": 0.6, "diverged": 0.45}[state]
    batch = 80
    steps = np.unique(np.linspace(spec.steps / rows, spec.steps * last, round(rows * last)) // batch * batch + batch)
    steps = steps.astype(np.int64)
    low, high, length = LEVELS.get(spec.game, (0.0, 1.0, 50))
    level = low + (high - low) * (1 + gain) * rng.lognormal(-0.06, 0.35)
    tau = spec.steps * rng.uniform(0.12, 0.3)
    counts = rng.poisson(np.diff(steps, prepend=0) / length)
    at = np.repeat(steps, counts)
    mean = low + (level - low) * (1 - np.exp(-at / tau))
    if spec.game == "Pong":
        returns = np.clip(np.round(np.minimum(mean, 20.5) + rng.normal(0, 3, len(at))), -21, 21)
    else:
        returns = np.round(mean * rng.gamma(4.0, 0.25, len(at)), 0 if high > 10 else 3)
    sums = np.concatenate([[0.0], np.cumsum(returns)])
    speed = rng.uniform(540, 610) * (0.93 if spec.extractor != plan.control else 1.0)
    ends = np.cumsum(counts)
    ratio = np.sqrt(2) * (1 + (0.6 + gain) * (1 - np.exp(-steps / tau)))
    with (folder / "progress.jsonl").open("w", encoding="utf-8") as log:
        for index, step in enumerate(steps.tolist()):
            end = int(ends[index])
            first = max(end - 100, 0)
            mine = returns[end - counts[index] : end].tolist()
            row = {
                "step": step,
                "frames": 4 * step,
                "seconds": round(step / speed, 3),
                "steps_per_second": round(speed * rng.uniform(0.95, 1.05), 1),
                "return_mean": (sums[end] - sums[first]) / (end - first) if end else None,
                "length_mean": float(length) if end else None,
                "games_finished": end,
                "games": [[step, value, length] for value in mine],
                "train": {
                    "train/learning_rate": 0.0007,
                    "train/n_updates": step / batch,
                    "train/explained_variance": 0.8152994513511658,
                    "train/entropy_loss": -1.3774595260620117,
                    "train/policy_loss": -0.018956558778882027,
                    "train/value_loss": 0.02165653184056282,
                },
                "coordinates": {
                    "coordinates/coordinate_norm": 1.0,
                    "coordinates/image_norm": 1.0,
                    "coordinates/ratio": float(ratio[index]),
                }
                if "coord" in spec.extractor or spec.extractor in ("shuffled", "constant")
                else {},
            }
            log.write(json.dumps(row) + "\n")
    final = returns[-100:].tolist()
    speed_facts = {
        "processor": "A Processor 9000",
        "machine": "x86_64",
        "system": "Linux",
        "cores": 2,
        "torch_threads": 2,
    }
    facts = {
        "command": f"coordrl train --game {spec.game} --agent {spec.agent} --extractor {spec.extractor}"
        f" --seed {spec.seed} --steps {spec.steps}",
        "plan": plan.hash,
        "parameters": 1_686_693 + (4_096 if spec.extractor != plan.control else 0),
        "versions": {"python": "3.11.7", "coordrl": "0.1.0", "torch": "2.13.0+cpu", "ale-py": "0.12.1"},
        "hardware": {**speed_facts, "cuda": None},
    }
    write_json(folder / "run.json", {"spec": asdict(spec), **facts})
    if state == "diverged":
        sign = "train/value_loss is nan"
        write_json(
            folder / "diverged.json", {"spec": asdict(spec), "step": int(steps[-1]), "sign": sign, "returns": final}
        )
    if state == "finished":
        evaluation = {"mean": float(np.mean(final[-10:])), "std": 1.0, "returns": final[-10:]} if final else None
        result = {
            "spec": asdict(spec),
            "steps": int(steps[-1]),
            "games_finished": len(returns),
            "final_return": float(np.mean(final)) if final else None,
            "final_return_games": len(final),
            "final_returns": final,
            "evaluation": evaluation,
            "seconds": round(float(steps[-1]) / speed * 1.04, 3),
            "steps_per_second": round(speed / 1.04, 1),
        }
        write_json(folder / "result.json", result)
    if maps and "coord" in spec.extractor:
        (folder / "coordinates").mkdir()
        rows_, columns = np.mgrid[-1:1:20j, -1:1:20j]
        a, b = rng.normal(0, 1, (2, 32, 1, 1))
        bend = rng.normal(0, 0.15, (32, 20, 20)).cumsum(1).cumsum(2) / 12
        for share in (0.0, 0.5, last):
            drawn = ((a * rows_ + b * columns) * (0.3 + share) + bend * share).astype(np.float32)
            np.save(folder / "coordinates" / f"maps-{int(spec.steps * share):012d}.npy", drawn)
    if ablations and spec.extractor == "coord" and state == "finished":
        true = float(np.mean(final))
        kinds = {"true": 1.0, "zero": 0.45, "shuffle": 0.3}
        scores: dict[str, object] = {"step": spec.steps}
        for kind, share in kinds.items():
            played = (low + (true - low) * share) * rng.gamma(4, 0.25, 30)
            half = 2.045 * float(played.std(ddof=1)) / 30**0.5
            scores[kind] = {"mean": float(played.mean()), "half_width_95": half, "returns": played.tolist()}
        write_json(folder / "ablation.json", scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--suite", default="atari9")
    parser.add_argument("--agents", default="a2c")
    parser.add_argument("--extractors", default="nature,coord")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--no-effect", action="store_true")
    parser.add_argument("--ablations", action="store_true")
    words = parser.parse_args()
    plan = make_plan(words.suite, words.agents.split(","), words.extractors.split(","), words.seeds, words.steps)
    write_matrix(words.out, plan, rows=words.rows, effect={} if words.no_effect else None, ablations=words.ablations)
    print(f"{len(plan.runs)} runs in {words.out}", file=sys.stderr)


if __name__ == "__main__":
    main()

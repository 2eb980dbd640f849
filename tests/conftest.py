"""What several test files share: one small real run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coordrl.results import RunFolder

# Small enough for seconds, long enough that games finish: Breakout's last about 200 steps.
RUN_WORDS = (
    "--game Breakout --steps 2400 --seed 7 --set n_envs=4 --checkpoint-every 800 --eval-every 1200 --eval-episodes 2"
)


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Tests share two cores with each other's subprocesses; spinning OpenMP threads would slow all of them."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A small finished run of coordrl.train; tests read it and write nothing into it."""
    from coordrl.train import main

    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")
    assert main([*RUN_WORDS.split(), "--out", str(out)]) == 0
    return RunFolder(Path(out) / "zoo-v4" / "a2c-coord" / "Breakout" / "seed-7")

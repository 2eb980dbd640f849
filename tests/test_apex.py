"""Ape-X on Ray: real clusters on this machine, whose actors, nodes and learner are killed while it trains."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordrl.files import read_rows
from coordrl.launch import newest_checkpoint
from coordrl.results import RunFolder
from tests.test_board import listening
from tests.test_cluster import Cluster, wait_for

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
ENVIRONMENT |= {"RAY_worker_niceness": "0"}  # other tests run beside these
SMALL = "learning_starts=300 buffer_size=2000 batch_size=16 train_freq=20"


def command(out: Path, words: str) -> list[str]:
    fixed = f"-m coordrl.train --game Pong --agent apex --backend ray --envs-per-actor 2 --eval-every 0 --out {out}"
    return [sys.executable, *fixed.split(), "--set", *SMALL.split(), *words.split()]


def run_of(out: Path) -> RunFolder:
    return RunFolder(out / "zoo-v4" / "apex-coord" / "Pong" / "seed-0")


def children(pid: int) -> list[int]:
    """Return the processes below one, of any generation."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for one in found for child in (int(one), *children(int(one)))]


def actors_below(pid: int) -> list[int]:
    # Ray's actors are children of its raylet, and name themselves.
    names = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in children(pid)}
    return [child for child, name in names.items() if name.startswith(b"ray::Actor")]


@pytest.fixture
def train(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(words: str) -> subprocess.Popen[str]:
        with (tmp_path / "log").open("w") as log:
            learner = subprocess.Popen(
                command(tmp_path / "runs", words),
                env=ENVIRONMENT,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        started.append(learner)
        return learner

    yield begin
    for learner in started:
        if learner.poll() is None:
            learner.kill()
            learner.wait()


def said(place: Path) -> str:
    return (place / "log").read_text()


@pytest.mark.slow
def test_lost_actors_are_replaced_and_a_lost_learner_goes_on(
    train: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    words = "--actors 2 --steps 6000 --checkpoint-every 600"
    learner, run = train(words), run_of(tmp_path / "runs")
    wait_for(lambda: newest_checkpoint(run))
    victim = actors_below(learner.pid)[0]
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: "another takes its place" in said(tmp_path))
    kept = newest_checkpoint(run)
    wait_for(lambda: newest_checkpoint(run) > kept)  # the learner did not wait for it
    wait_for(lambda: len(actors_below(learner.pid)) == 2)
    family = [child for child in children(learner.pid) if b"Agent" not in Path(f"/proc/{child}/cmdline").read_bytes()]
    learner.kill()
    learner.wait()
    kept = newest_checkpoint(run)
    wait_for(lambda: not any(alive(member) for member in family), 60)  # two agents of Ray's take a minute to notice
    learner = train(words)
    assert learner.wait(300) == 0, said(tmp_path)
    assert f"going on from the checkpoint at step {int(kept):,}" in said(tmp_path)
    assert "an empty replay memory, which fills again" in said(tmp_path)
    result = json.loads(run.result_file.read_text())
    assert result["steps"] == 6000
    row = read_rows(run.progress_file)[-1]
    ladder = [0.4 ** (1 + 7 * index / 3) for index in range(4)]
    assert row["train"]["rollout/exploration_rate"] == pytest.approx(sum(ladder) / 4)
    assert row["train"]["train/n_updates"] <= 6000 / 20  # never more than the recipe's ratio
    facts = json.loads(run.spec_file.read_text())
    assert (facts["processes"], facts["options"]["actors"]) == (3, 2)
    assert facts["exact_resume"].startswith("no: ")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster(ENVIRONMENT)
    yield made
    made.close()


@pytest.mark.slow
def test_a_node_that_is_lost_takes_its_actors_along_and_the_others_play_on(
    cluster: Cluster, train: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    cluster.do("add")
    cluster.do("add")
    train(f"--actors 2 --steps 1000000 --checkpoint-every 400 --address {cluster.address}")
    run = run_of(tmp_path / "runs")
    wait_for(lambda: newest_checkpoint(run))
    cluster.do("kill")
    wait_for(lambda: "another takes its place as soon as there is a core" in said(tmp_path))
    kept = newest_checkpoint(run)
    wait_for(lambda: int(newest_checkpoint(run)) > int(kept) + 800)  # the other actor plays, the learner learns
    assert len(actors_below(cluster.pid)) == 1
    cluster.do("add")
    wait_for(lambda: len(actors_below(cluster.pid)) == 2)
    kept = newest_checkpoint(run)
    wait_for(lambda: newest_checkpoint(run) > kept)


IN_TURN = """
import os, pathlib, signal, time
from coordrl.apex import build_learner
from coordrl.fleet import Actors, Fleet
from coordrl.recipes import find_recipe
from coordrl.results import Spec

def starter_of(pid):  # the process that started the raylet that started this one
    for _ in range(2):
        pid = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid

recipe = find_recipe("apex", ["n_envs=3", "buffer_size=3000"])
spec = Spec("PlaceMatters", "apex", "apex", "pool", "controls-v1", 0, 10**6, dict(recipe.settings))
actors = Actors(Fleet(3, 1, None))
model, _ = build_learner(spec, actors.fleet, device="cpu", fast=True)
told = []
actors.begin(spec, model, fast=True, say=told.append)
weights = actors.lend({name: p.detach().numpy().copy() for name, p in model.q_net.named_parameters()})
parts = model.replay_buffer.parts

def take(enough):
    until = time.monotonic() + 600
    while not enough():
        assert time.monotonic() < until, told
        actors.ask(weights, 10**6)
        actors.take(0.2)

take(lambda: min(part.adds for part in parts) > 0)  # all have begun
begun = [part.adds for part in parts]
for _ in range(15):  # a learner so slow that all are ready every time
    actors.ask(weights, 10**6)
    time.sleep(0.6)
    assert actors.take(30.0) is not None  # at once, unless the machine is busy
print([(part.adds - before) // 100 for part, before in zip(parts, begun)], flush=True)

names = {int(p.parent.name): p.read_bytes() for p in pathlib.Path("/proc").glob("[0-9]*/cmdline") if p.exists()}
mine = [pid for pid, name in names.items() if name.startswith(b"ray::Actor") and starter_of(pid) == os.getpid()]
os.kill(mine[0], signal.SIGSTOP)  # an emulator that hangs
actors._silence = 20.0  # the others are never silent for so long, however busy the machine is
before = [part.adds for part in parts]
take(lambda: any("silent for 20 s" in word for word in told))
take(lambda: all(part.adds > count + 300 for part, count in zip(parts, before)))
print(sum("silent" in word for word in told), flush=True)
actors.close()
"""


@pytest.mark.slow
def test_a_slow_learner_serves_actors_in_turn_and_one_that_is_silent_is_replaced() -> None:
    done = subprocess.run([sys.executable, "-c", IN_TURN], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    served, silent = done.stdout.strip().splitlines()[-2:]
    assert served == "[5, 5, 5]"
    assert silent == "1"


@pytest.mark.slow
def test_a_run_comes_to_its_end_with_the_actors_that_are_left(
    cluster: Cluster, train: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    cluster.do("add")
    cluster.do("add")
    learner = train(f"--actors 2 --steps 3000 --checkpoint-every 400 --address {cluster.address}")
    wait_for(lambda: newest_checkpoint(run_of(tmp_path / "runs")))
    cluster.do("kill")
    assert learner.wait(300) == 0, said(tmp_path)
    assert "actor 0 was lost" in said(tmp_path) or "actor 1 was lost" in said(tmp_path)
    assert json.loads(run_of(tmp_path / "runs").result_file.read_text())["steps"] == 3000


@pytest.mark.slow
def test_what_lies_in_the_current_folder_is_imported_by_nobody(tmp_path: Path) -> None:
    out, strange = tmp_path / "runs", tmp_path / "strange"
    strange.mkdir()
    for name in ("tomllib", "ale_py", "sitecustomize", "queue"):
        (strange / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write('{name}')")
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    words = command(out, "--actors 1 --steps 1000")
    done = subprocess.run([words[0], "-P", *words[1:]], cwd=strange, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "imported").exists()


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_its_actors(train: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    learner = train("--actors 2 --steps 100000 --checkpoint-every 200")
    wait_for(lambda: newest_checkpoint(run_of(tmp_path / "runs")))
    learner.send_signal(signal.SIGINT)
    assert learner.wait(60) == 130
    words = [word for word in command(tmp_path / "runs", "--steps 100000") if word != "--envs-per-actor"]
    words.remove("2")
    with (tmp_path / "log").open("a") as log:
        again = subprocess.Popen(words, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    wait_for(lambda: said(tmp_path).count("2 actors of 2 environments each on this machine") == 2)
    again.send_signal(signal.SIGTERM)
    assert again.wait(60) == 143


@pytest.mark.slow
def test_a_node_with_another_coordrl_is_refused_in_one_line(
    cluster: Cluster, train: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    cluster.do("add-older")
    learner = train(f"--actors 1 --steps 2000 --address {cluster.address}")
    assert learner.wait(200) == 2, said(tmp_path)
    last = said(tmp_path).strip().splitlines()[-1]
    assert re.fullmatch(
        r"coordrl: node \S+ has coordrl 0\.0\.1 and the learner [\d.]+; install the same versions .*", last
    )


@pytest.mark.slow
def test_more_actors_than_the_cluster_has_cores_are_refused(
    cluster: Cluster, train: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    cluster.do("add")
    learner = train(f"--actors 2 --steps 2000 --address {cluster.address}")
    assert learner.wait(200) == 2
    assert "--actors is 2, and the Ray cluster has 1 core: an actor takes one" in said(tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_cluster_of_its_own_listens_on_loopback_and_asks_for_a_token(
    train: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    learner = train("--actors 1 --steps 1000000 --checkpoint-every 200")
    wait_for(lambda: newest_checkpoint(run_of(tmp_path / "runs")))
    places = [place.split(":") for place in listening([learner.pid, *children(learner.pid)])]
    assert {host for host, _ in places} <= {
        "0100007F",
        "0000000000000000FFFF00000100007F",
    }  # 127.0.0.1, ::ffff:127.0.0.1
    assert places
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(learner.pid)]
    port = next(
        found[1].decode() for line in commands if (found := re.search(rb"--gcs-address=127\.0\.0\.1:(\d+)", line))
    )
    program = (
        "import sys, ray; ray.init(address=sys.argv[1], logging_level='error', _node_ip_address='127.0.0.1'); print(1)"
    )
    environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in children(learner.pid)]
    right = next(found[1].decode() for text in environments if (found := re.search(rb"RAY_AUTH_TOKEN=(\w+)", text)))
    assert right != ENVIRONMENT["RAY_AUTH_TOKEN"]  # made for this cluster alone
    for mode, token, joins in (("disabled", "", False), ("token", "0" * 64, False), ("token", right, True)):
        outside = {
            **os.environ,
            "RAY_AUTH_MODE": mode,
            "RAY_AUTH_TOKEN": token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        words = ["timeout", "20", sys.executable, "-c", program, f"127.0.0.1:{port}"]
        done = subprocess.run(words, env=outside, capture_output=True, text=True)
        assert (done.returncode == 0) is joins, done.stderr
    learner.send_signal(signal.SIGTERM)
    assert learner.wait(60) == 143
    assert run_of(tmp_path / "runs").export_file.exists()


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("--actors 0", "--actors is 0; it is from 1 to 10,000"),
        ("--actors 1000", "--actors is 1000, and this machine has"),
        ("--actors 5000 --address 127.0.0.1:1", "5000 actors of 8 environments are 40,000; there are 10,000 at most"),
        ("--set buffer_size=1000", "buffer_size is 1,000; with 8 environments of actors it is at least 1,648"),
        ("--workers 2", "--workers divides an a2c; with --backend ray --actors says how many processes play"),
        ("--envs-per-actor 0", "--envs-per-actor is 0; it is from 1 to 10,000"),
        ("--actors 2 --set n_envs=4", "n_envs is set, but with --backend ray it is --actors times --envs-per-actor"),
        ("--agent dqn", "--backend ray is for --agent apex; dqn plays in the process that learns"),
        ("--backend local --actors 2", "--actors is 2, which is of --backend ray; give both, or leave it out"),
        ("--backend Ray", '--backend is "Ray"; it is local or ray'),
        ("--address 127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("--address nowhere", '--address is "nowhere"; it is HOST:PORT of a running Ray cluster, or auto'),
    ],
)
def test_a_wrong_request_for_actors_is_one_line_and_makes_no_folder(words: str, rule: str, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    fixed = f"-m coordrl.train --game Pong --agent apex --backend ray --actors 1 --out {out} {words}"
    done = subprocess.run([sys.executable, *fixed.split()], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert rule in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()

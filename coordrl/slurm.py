"""A comparison as one Slurm job array: a script to look at and submit; nothing is submitted here."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from coordrl.files import replace_file
from coordrl.launch import train_words
from coordrl.plan import Plan
from coordrl.process import module_environment

_BESIDE = 4  # GiB for all but the replay memory

_SCRIPT = """\
#!/usr/bin/env bash
# All {count} runs of plan {hash}, one array task each. Submit it with: sbatch {name}
# Submitting it again is safe: a finished run says so and ends, an unfinished one goes on from its checkpoint.
#SBATCH --job-name=coordrl-{hash}
#SBATCH --array=0-{last}{limit}
#SBATCH --cpus-per-task=1
#SBATCH --mem={memory}G{gpu}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="{logs}/slurm-%a.log"
#SBATCH --signal=B:TERM@120
# Two minutes before its time is up, or when it is preempted, a task gets SIGTERM: it writes a checkpoint, and is queued again.
set -u
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
export PYTHONPATH={paths} # with -P: where modules are looked for, and never in the folder of the job

runs=(
{runs}
)
folders=(
{folders}
)

eval "set -- ${{runs[${{SLURM_ARRAY_TASK_ID:?run it with sbatch, or set SLURM_ARRAY_TASK_ID to a number from 0 to {last}}}]}}"
folder="${{folders[$SLURM_ARRAY_TASK_ID]}}"
tally={tallies}/slurm-"$SLURM_ARRAY_TASK_ID".crashes # how many in a row without a new checkpoint, and the newest one
newest() {{ find "$folder/checkpoints" -maxdepth 1 -name '[0-9]*' -printf '%f\\n' 2>/dev/null | sort | tail -n 1; }}

{python} -P -m coordrl.train "$@" --out {out} &
child=$!
trap 'kill -TERM "$child" 2>/dev/null' TERM INT
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the training
  wait "$child"
  code=$?
done

again() {{
  if command -v scontrol >/dev/null && [ -n "${{SLURM_JOB_ID:-}}" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
}}
crashed() {{
  local count=0 checkpoint="" now
  now="$(newest)"
  if [ -f "$tally" ]; then read -r count checkpoint <"$tally"; fi
  if [ "$now" != "$checkpoint" ]; then count=0; fi
  count=$((count + 1))
  if [ "$count" -gt {retries} ]; then
    echo "coordrl: given up after $count crashes without progress" >&2
    rm -f "$tally" # whoever submits it again wants it tried again
  else
    printf '%s %s\\n' "$count" "$now" >"$tally"
    again
  fi
}}
# Slurm's own count of restarts would not do: a node that fails, and a job that is preempted, are no crashes of the run.
case "$code" in
  0) rm -f "$tally" ;;
  70) code=0 ;;                    # diverged: it counts as it is
  2) ;;                            # refused: asking again changes nothing
  130 | 143 | 75) again ;;         # stopped, or its folder was still held: it goes on later
  *) crashed ;;
esac
exit "$code"
"""


def write_script(
    plan: Plan,
    out: Path,
    *,
    workers: int,
    retries: int,
    memory: int = 0,
    on_gpu: bool = False,
    more_words: Sequence[str] = (),
) -> Path:
    """Write the array's script and return its path.

    Args:
        plan: the runs, in the order of their numbers.
        out: the folder of all runs, which every node has to see under the same path.
        workers: tasks at a time; 0 for as many as the cluster gives.
        retries: how often a task that crashed is queued again without a new checkpoint; a new one begins the count anew.
        memory: bytes of the largest replay memory of a run.
        on_gpu: each task asks for one.
        more_words: for `coordrl train`, beyond the plan's.
    """
    place = out.absolute()
    file = place / "compare" / "slurm.sh"
    logs = place / "compare" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    runs = [shlex.join([*train_words(plan, cell, place), *more_words]) for cell in plan.runs]
    text = _SCRIPT.format(
        count=len(runs),
        hash=plan.hash,
        name=shlex.quote(str(file)),
        last=len(runs) - 1,
        limit=f"%{workers}" if workers else "",
        memory=_BESIDE + math.ceil(memory / 2**30),
        gpu="\n#SBATCH --gres=gpu:1" if on_gpu else "",
        logs=str(logs).replace("%", "%%"),
        runs="\n".join(f"  {shlex.quote(words)}" for words in runs),
        folders="\n".join(f"  {shlex.quote(str(cell.path(place)))}" for cell in plan.runs),
        tallies=shlex.quote(str(logs)),
        python=shlex.quote(sys.executable),
        paths=shlex.quote(module_environment()["PYTHONPATH"]),
        out=shlex.quote(str(place)),
        retries=retries,
    )

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")
        partial.chmod(0o755)

    replace_file(file, write)
    return file

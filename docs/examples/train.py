"""A training that may be stopped at any step and goes on from its checkpoint: what the pages on Slurm, containers and Kubernetes start.

All ranks log into one run, whose id is in STEPD_RUN_ID. SIGTERM ends it behind the step it is in, with code 75: start me again.

Nothing holds the ranks of this example together, as the all-reduce of a real training does: the signal finds each at another step. So
each rank says how far it is, and all go on from the one that is least far. What the others had logged behind that is hidden and comes
again, so that in the end every step of every rank is there once. Where ranks stop at the same step one checkpoint is enough.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import sdk

STEPS = int(os.environ.get("STEPS", "1000"))
STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "0.01"))  # stands for the work
SAVE_EVERY = int(os.environ.get("SAVE_EVERY", "100"))
CHECKPOINT = Path(
    os.environ.get("CHECKPOINT", "checkpoint.json")
)  # of rank 3: checkpoint.3.json; all ranks see all of them
RANK = int(os.environ.get("SLURM_PROCID") or os.environ.get("RANK") or "0")
RANKS = int(os.environ.get("SLURM_NTASKS") or os.environ.get("WORLD_SIZE") or "1")
AGAIN = 75


def main() -> int:
    begin = min(map(saved, range(RANKS)))
    # Always with the step: what an earlier attempt logged behind its last checkpoint is hidden.
    run = sdk.init(project="digits", resume="allow", resume_step=begin)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    for step in range(begin, STEPS):
        time.sleep(STEP_SECONDS)
        run.log({"loss": 1 / (1 + step)}, step=step, commit=True)
        if told or (step + 1) % SAVE_EVERY == 0:
            save(step + 1)
        if told:
            run.mark_preempting()
            break
    run.finish(exit_code=AGAIN if told else 0)
    return AGAIN if told else 0


def of_rank(rank: int) -> Path:
    return CHECKPOINT.with_suffix(f".{rank}.json")


def saved(rank: int) -> int:
    return int(json.loads(of_rank(rank).read_text())["step"]) if of_rank(rank).exists() else 0


def save(step: int) -> None:
    draft = of_rank(RANK).with_suffix(".new")
    draft.write_text(json.dumps({"step": step}))
    draft.replace(of_rank(RANK))


if __name__ == "__main__":
    sys.exit(main())

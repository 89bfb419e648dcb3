"""A training that may be stopped at any step and goes on from its checkpoint: what the pages on Slurm, containers and Kubernetes start.

All ranks log into one run, whose id is in STEPD_RUN_ID. SIGTERM ends it behind the step it is in, with code 75: start me again.
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
CHECKPOINT = Path(os.environ.get("CHECKPOINT", "checkpoint.json"))
AGAIN = 75


def main() -> int:
    begin = json.loads(CHECKPOINT.read_text())["step"] if CHECKPOINT.exists() else 0
    # Always with the step: what an earlier attempt logged behind its last checkpoint is hidden, and all ranks begin at the same one.
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


def save(step: int) -> None:
    if (os.environ.get("SLURM_PROCID") or os.environ.get("RANK") or "0") == "0":
        draft = CHECKPOINT.with_suffix(".new")
        draft.write_text(json.dumps({"step": step}))
        draft.replace(CHECKPOINT)


if __name__ == "__main__":
    sys.exit(main())

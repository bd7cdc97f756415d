"""A batch script for SLURM: the cells as an array of jobs, one GPU each, that requeue themselves."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SCRIPT = """#!/bin/bash
# The experiments of Li, Pei and Guo 2021 as an array of jobs, one GPU each, made by ctcovid paper sbatch.
# With ctcovid's environment activated:  sbatch paper.sbatch
# The first job prepares the data, and the others wait for it. Each job makes results.md of all that is done.
#
#SBATCH --job-name=ctcovid-paper
#SBATCH --array=1-{count}
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@180

# A job that is preempted gets SIGTERM, this shell too: it waits for the training to save.
trap : TERM USR1
# In a container on the node there may be no srun.
srun=$(command -v srun || true)
code=0
$srun {line} --cell "$SLURM_ARRAY_TASK_ID" || code=$?
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
else
    exit "$code"
fi
"""


@dataclass(frozen=True)
class Script:
    """The text of a batch script."""

    script: str

    def document(self) -> dict[str, Any]:
        return {"script": self.script}

    def terminal(self, width: int) -> Any:
        from rich.text import Text

        return Text(self.text())

    def text(self) -> str:
        return self.script.rstrip("\n")


def batch_script(count: int, words: Sequence[str]) -> Script:
    """The script for so many cells; `words` follow ``ctcovid paper run``."""
    return Script(SCRIPT.format(count=count, line=shlex.join(["ctcovid", "paper", "run", *words])))

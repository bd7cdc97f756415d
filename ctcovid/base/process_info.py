"""Which of several processes this is, from the environment that torchrun or SLURM's srun sets."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from ctcovid.base.errors import UsageError

LOOPBACK = "127.0.0.1"
# Below the ports that operating systems assign by themselves.
FIRST_PORT, PORTS = 10000, 20000
# Steps of SLURM that are a batch script or the shell of salloc: 2^32 - 5 and - 6.
SHELLS = ("4294967291", "4294967290", "batch", "interactive")
# Commands that several processes can run together.
TOGETHER = ("train", "evaluate", "predict")


@dataclass(frozen=True)
class ProcessInfo:
    """Process `rank` of `size`, and `local_rank` of the `local_size` on its node; they meet at `address`:`port`.

    `hosted` says that a server listens there already (torchrun's own); otherwise rank 0 starts it. `attempt` distinguishes restarts.
    `own_cpus` says that this process does not share the CPUs that it sees with other processes of its node.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = LOOPBACK
    port: int = 0
    hosted: bool = False
    attempt: str = "0"
    own_cpus: bool = True


def process_info(environment: Mapping[str, str] = os.environ) -> ProcessInfo:
    """This process, from torchrun's variables or else from those of an srun step; without either, a single process.

    Raises UsageError if the variables contradict each other.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        found = _torchrun(environment)
    elif _in_step(environment):
        found = _slurm(environment)
    else:
        return ProcessInfo()
    if not (0 <= found.rank < found.size and 0 <= found.local_rank < found.local_size):
        raise UsageError(f"The environment gives process number {found.rank} of {found.size}. Start the processes with torchrun or srun.")
    return found if found.size > 1 else ProcessInfo()


def require_alone(command: str, engine: str | None = None) -> None:
    """Raises UsageError if several processes were started for a command that works in one.

    With the `engine` mpi this is allowed: the first process distributes tasks to the others.
    """
    size = process_info().size
    if size > 1 and command not in TOGETHER and engine != "mpi":
        raise UsageError(
            f"ctcovid {command} works in one process, and {size} were started. Start it without torchrun, or with srun --ntasks=1."
        )
    if size > 1:
        # We report a broken connection in one sentence; torch would print a page of addresses before it.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def _torchrun(environment: Mapping[str, str]) -> ProcessInfo:
    size = _number(environment, "WORLD_SIZE")
    if size > 1 and not environment.get("MASTER_ADDR"):
        raise UsageError("WORLD_SIZE is set and MASTER_ADDR is not. Start the processes with torchrun or srun.")
    return ProcessInfo(
        _number(environment, "RANK"),
        size,
        _number(environment, "LOCAL_RANK", "0"),
        _number(environment, "LOCAL_WORLD_SIZE", str(size)),
        environment.get("MASTER_ADDR", LOOPBACK),
        _number(environment, "MASTER_PORT", "29500"),
        environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
        own_cpus=False,
    )


def working_alone(command: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence if SLURM gave the job several tasks, and srun did not start this one of a command that could use them."""
    tasks = environment.get("SLURM_NTASKS", "")
    if command not in TOGETHER or not tasks.isdecimal() or int(tasks) < 2 or "RANK" in environment or _in_step(environment):
        return []
    return [f"the job has {tasks} tasks, but srun did not start this process, so it works alone. To use all, start it with srun."]


def _in_step(environment: Mapping[str, str]) -> bool:
    """Whether srun started this. A batch script outside of srun has a rank and the job's number of tasks too, but no step.

    The shell of salloc is a step with a number of its own. What is typed into a shell of srun --pty runs once, whatever the number of
    tasks.
    """
    if not {"SLURM_PROCID", "SLURM_NTASKS"} <= set(environment):
        return False
    if "SLURM_PTY_PORT" in environment and environment.get("SLURM_TASK_PID") != str(os.getpid()) and sys.stdin and sys.stdin.isatty():
        return False
    if (step := environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID"))) is not None:
        return step not in SHELLS
    return environment.get("ENVIRONMENT") != "BATCH" and environment.get("SLURM_GTIDS") != "0"


def _slurm(environment: Mapping[str, str]) -> ProcessInfo:
    size = _number(environment, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS")
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    hosts = next((environment[name] for name in names if environment.get(name)), "")
    # srun numbers the processes of a node, but gives their count only as "4(x2),3".
    tasks = next((environment[n] for n in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") if environment.get(n)), str(size))
    local = _number(environment, "SLURM_LOCALID", "0")
    job, step = _number(environment, "SLURM_JOB_ID", "0"), environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", "0"))
    derived = FIRST_PORT + (job + 1009 * int(step if step.isdigit() else 0)) % PORTS
    return ProcessInfo(
        _number(environment, "SLURM_PROCID"),
        size,
        local,
        max(local + 1, min(size, int(re.match(r"\d*", tasks)[0] or size))),  # type: ignore[index]
        environment.get("MASTER_ADDR") or first_host(hosts),
        _number(environment, "MASTER_PORT", str(derived)),
    )


def first_host(hosts: str) -> str:
    """The first host of SLURM's list, as ``node003`` of ``node[003-005,9],login``; the loopback address for a single host.

    Raises UsageError if the list is not in SLURM's format.
    """
    if not re.search(r"[,\[]", hosts):
        return LOOPBACK
    found = re.match(r"(?:[^,\[\]]|\[[^\[\]]*\])+(?=,|$)", hosts)
    # Each bracket stands for numbers of a fixed width, of which the first comes before a hyphen, a comma or the end.
    name = re.sub(r"\[(\w+)[^\[\]]*\]", r"\1", found[0]) if found else ""
    if not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(f"SLURM's list of hosts {hosts} cannot be read. Set MASTER_ADDR to the first host.")
    return name


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    value = environment.get(name, default)
    if not value.isdigit():
        raise UsageError(f"{name}={value} in the environment is not a number. Start the processes with torchrun or srun.")
    return int(value)

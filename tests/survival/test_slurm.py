"""The SLURM script, with stand-ins for SLURM's own commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests import REPOSITORY
from tests.survival.killed_runs import Run, assert_same_end, free_port, small_words

STOPPED_AFTER = 3
"""Optimizer steps that are done when the job's time is over; the one that is going on is, too."""
SCRIPT = REPOSITORY / "slurm" / "train.sbatch"


def stand_in(directory: Path, name: str, script: str) -> None:
    """Write a command."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def submit(run: Run, commands: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start the script as SLURM would, with one task."""
    config, *words = run.words
    slurm = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "interstack",
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "localhost",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "MASTER_PORT": str(free_port()),  # else the job's number says it
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        "PATH": f"{commands}:{os.environ['PATH']}",
    }
    command = ["bash", str(SCRIPT), config.partition("=")[2], *words]
    command += [f"--trainer.default_root_dir={run.directory}", "--trainer.accelerator=cpu", *more]
    with run.log.open("ab") as log:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | slurm, stdout=log, stderr=log
        )


def test_a_job_out_of_time_saves_requeues_itself_and_goes_on(
    tmp_path: Path, teacher_directory: Path
) -> None:
    """SIGUSR1 reaches the task; the same script, started again, brings the run to its end."""
    words = small_words(teacher_directory)
    whole, run = Run(tmp_path / "whole", words), Run(tmp_path / "run", words)
    whole.finish()
    commands = tmp_path / "bin"
    commands.mkdir()
    stand_in(commands, "srun", f'echo $$ > "{tmp_path}/task"\nexec "$@"')
    stand_in(commands, "scontrol", f'echo "$@" >> "{tmp_path}/asked"')

    # A signal that is sent as soon as a file appears may come at any step, or after the last one.
    job = submit(run, commands, run.pause(STOPPED_AFTER, "step"))
    run.wait_for_pause(lambda: job.poll() is None)
    os.kill(int((tmp_path / "task").read_text()), signal.SIGUSR1)
    run.flag.unlink()
    assert job.wait(600) == 75, run.log.read_text()
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert f"stopped by SIGUSR1 after step {STOPPED_AFTER + 1}:" in run.log.read_text()

    assert submit(run, commands).wait(600) == 0, run.log.read_text()
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert_same_end(whole, run)

"""Several processes through the launchers that users have: torchrun, make, two nodes, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.survival.killed_runs import (
    GROWN_AT,
    NUM_STEPS,
    REPOSITORY,
    Run,
    assert_same_end,
    free_port,
    small_words,
)

DDP = ("--trainer.strategy=ddp", "--trainer.accelerator=cpu")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
TWO = ("--standalone", "--nproc-per-node=2")
FIT = ("-m", "interstack.cli", "fit")


def launch(run: Run, command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a launcher whose output goes to the run's log."""
    with run.log.open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def torchrun(run: Run, *more: str) -> subprocess.Popen[bytes]:
    """Start a run on two processes of one node."""
    where = f"--trainer.default_root_dir={run.directory}"
    words = [*FIT, *run.words, where, *DDP, "--trainer.devices=2", *more]
    return launch(run, [*TORCHRUN, *TWO, *words])


def succeed(run: Run, *processes: subprocess.Popen[bytes]) -> None:
    """Wait for processes that have to end well."""
    for process in processes:
        assert process.wait(600) == 0, run.log.read_text()


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Run:
    """The run on two processes that was never cut."""
    run = Run(tmp_path_factory.mktemp("two") / "run", small_words(teacher_directory))
    succeed(run, torchrun(run))
    return run


def test_two_nodes_train_as_two_processes_of_one(on_two: Run, tmp_path: Path) -> None:
    """One process each, over the loopback."""
    run = Run(tmp_path / "run", on_two.words)
    nodes, port = [], free_port()
    for rank in range(2):
        rendezvous = ["--master-addr=127.0.0.1", f"--master-port={port}"]
        nodes_of = ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"]
        words = [*FIT, *run.words, f"--trainer.default_root_dir={run.directory}", *DDP]
        words += ["--trainer.devices=1", "--trainer.num_nodes=2"]
        nodes.append(launch(run, [*TORCHRUN, *nodes_of, *rendezvous, *words]))
    succeed(run, *nodes)
    assert_same_end(on_two, run)


def test_a_signal_stops_all_ranks_and_the_run_goes_on_exactly(on_two: Run, tmp_path: Path) -> None:
    """SIGTERM to the launcher, as schedulers send it."""
    run = Run(tmp_path / "run", on_two.words)
    process = torchrun(run)
    last = run.directory / "checkpoints" / "last.ckpt"
    while not last.exists():
        assert process.poll() is None, run.log.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    assert "stopped by SIGTERM after step" in run.log.read_text()
    succeed(run, torchrun(run, "--ckpt_path=last"))
    assert_same_end(on_two, run)


def test_make_goes_on_with_two_processes_where_one_was_cut(on_two: Run, tmp_path: Path) -> None:
    """A checkpoint of one rank resumes on two: all is taken over but the order of the data."""
    run = Run(tmp_path / "run", on_two.words)
    run.kill_at(GROWN_AT + 2, "step")
    before = run.checkpoint()
    words = [word for word in run.words if not word.startswith("--config")]  # CONFIG has it
    words += [f"--trainer.default_root_dir={run.directory}", "--ckpt_path=last"]
    settings = f"CONFIG=configs/interleaved.yaml DEVICES=2 ARGS={' '.join(words)!r}"
    command = ["bash", "-c", f"make train-ddp {settings}"]
    succeed(run, launch(run, command))
    assert before["global_step"] == GROWN_AT + 2
    assert run.checkpoint()["global_step"] == NUM_STEPS
    assert "saved on 1 ranks and continues on 2" in run.log.read_text()
    steps = [row["step"] for row in run.metrics()]
    assert sorted(set(map(int, steps))) == list(range(NUM_STEPS))


def test_one_process_goes_on_where_two_were(on_two: Run, tmp_path: Path) -> None:
    """The other way round, from the end of a stage, which is at a different place in the epoch."""
    run = Run(tmp_path / "run", on_two.words)
    stage = on_two.directory / "checkpoints" / "stage-1.ckpt"
    run.finish(f"--ckpt_path={stage}")
    assert "saved on 2 ranks and continues on 1" in run.log.read_text()
    assert run.checkpoint()["global_step"] == NUM_STEPS

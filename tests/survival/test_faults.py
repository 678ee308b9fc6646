"""What goes wrong in a long run: one clear message, and nothing of it is lost."""

from __future__ import annotations

import os
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.survival.killed_runs import (
    EPOCH,
    GROWN_AT,
    NUM_STEPS,
    SPEECH,
    Run,
    assert_same_end,
    small_words,
)

LAST = "--ckpt_path=last"
ONLY_WHEN_NEEDED = ("--checkpoint.every_n_steps=null", "--checkpoint.every_minutes=null")
"""So that what is saved was saved because of the fault."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A copy of the embedded speech that may be spoilt."""
    shutil.copytree(SPEECH / "LibriSpeech", tmp_path / "corpus" / "LibriSpeech")
    return tmp_path / "corpus"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Run:
    """The run that nothing happened to."""
    words = small_words(teacher_directory, *ONLY_WHEN_NEEDED)
    run = Run(tmp_path_factory.mktemp("whole") / "run", words)
    run.finish()
    return run


def send(process: BaseProcess, signum: signal.Signals) -> None:
    """Send a signal to a run's process."""
    assert process.pid is not None
    os.kill(process.pid, signum)


def errors_of(run: Run) -> list[str]:
    """Return the error lines that a run has printed, and see that it printed no traceback."""
    log = run.log.read_text()
    assert "Traceback" not in log, log
    return [line for line in log.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_audio_that_turns_corrupt_amid_an_epoch(
    num_workers: int, whole: Run, corpus: Path, tmp_path: Path
) -> None:
    """It is named, the steps before it are saved, and with the file mended the run goes on."""
    more = (f"--data.source.init_args.root={corpus}", f"--data.num_workers={num_workers}")
    run = Run(tmp_path / "run", (*whole.words, *more))
    process = run.pause_at(1, "step")
    files = sorted((corpus / "LibriSpeech" / "train-clean-100").rglob("*.flac"))
    sound = {file: file.read_bytes() for file in files}
    for file in files:
        file.write_bytes(b"no audio")
    assert run.go_on(process) == 2, run.log.read_text()
    (error,) = errors_of(run)
    assert ".flac" in error
    assert run.checkpoint()["global_step"] in range(2, 12)
    for file, content in sound.items():
        file.write_bytes(content)
    run.finish(LAST)
    assert_same_end(whole, run)


def test_a_data_directory_that_vanishes(whole: Run, corpus: Path, tmp_path: Path) -> None:
    """A file server that is gone for a while costs no step."""
    run = Run(tmp_path / "run", (*whole.words, f"--data.source.init_args.root={corpus}"))
    process = run.pause_at(3, "step")
    corpus.rename(tmp_path / "gone")
    assert run.go_on(process) == 2, run.log.read_text()
    (error,) = errors_of(run)
    assert str(corpus) in error
    assert run.checkpoint()["global_step"] == 4
    (tmp_path / "gone").rename(corpus)
    run.finish(LAST)
    assert_same_end(whole, run)


def test_a_worker_that_dies(whole: Run, tmp_path: Path) -> None:
    """The kernel kills one for want of memory; the run says so, saves and can go on."""
    run = Run(tmp_path / "run", (*whole.words, "--data.num_workers=1"))
    process = run.pause_at(1, "step")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    assert run.go_on(process) == 2, run.log.read_text()
    (error,) = errors_of(run)
    assert "killed by SIGKILL" in error
    assert "data.num_workers" in error
    assert run.checkpoint()["global_step"] == 2
    run.finish(LAST)
    assert_same_end(whole, run)


@pytest.mark.parametrize("where", ["before_growth", "after_growth"])
def test_ctrl_c_during_growth(where: str, whole: Run, tmp_path: Path) -> None:
    """Growth is finished, then the run stops, as a shell expects it."""
    run = Run(tmp_path / "run", whole.words)
    process = run.pause_at(GROWN_AT, where)
    send(process, signal.SIGINT)
    assert run.go_on(process) == 130
    assert errors_of(run) == []
    assert f"stopped by SIGINT after step {GROWN_AT}" in run.log.read_text()
    run.finish(LAST)
    assert_same_end(whole, run)


@pytest.mark.parametrize(
    ("step", "where"),
    [(EPOCH, "validation"), (EPOCH, "epoch"), (GROWN_AT, "checkpoint"), (NUM_STEPS - 2, "step")],
)
def test_a_schedulers_warning_at_any_moment(
    step: int, where: str, whole: Run, tmp_path: Path
) -> None:
    """Between epochs, in the checkpoint of a stage's end, before the last step: bitwise resumed."""
    run = Run(tmp_path / "run", whole.words)
    process = run.pause_at(step, where)
    send(process, signal.SIGUSR1)
    assert run.go_on(process) == 75
    assert "stopped by SIGUSR1 after step" in run.log.read_text()
    run.finish(LAST)
    assert_same_end(whole, run)


def test_a_second_ctrl_c_does_not_wait(whole: Run, tmp_path: Path) -> None:
    """The end of the stage is on the disk, and the run goes on from there."""
    run = Run(tmp_path / "run", whole.words)
    process = run.pause_at(GROWN_AT + 1, "step")
    send(process, signal.SIGINT)
    while "SIGINT received" not in run.log.read_text():
        time.sleep(0.02)
    send(process, signal.SIGINT)
    process.join(60)
    assert process.exitcode not in (0, None)
    assert run.checkpoint()["global_step"] == GROWN_AT
    run.finish(LAST)
    assert_same_end(whole, run)


def test_sigterm_during_a_checkpoint(whole: Run, tmp_path: Path) -> None:
    """The checkpoint is finished, and the run stops in order."""
    run = Run(tmp_path / "run", (*whole.words, "--checkpoint.every_n_steps=3"))
    process = run.pause_at(3, "checkpoint")
    send(process, signal.SIGTERM)
    assert run.go_on(process) == 75
    assert "stopped by SIGTERM after step" in run.log.read_text()
    run.finish(LAST)
    assert_same_end(whole, run)


def test_a_kill_during_a_checkpoint_leaves_the_one_before(whole: Run, tmp_path: Path) -> None:
    """And what was half-written is cleared away."""
    run = Run(tmp_path / "run", (*whole.words, "--checkpoint.every_n_steps=2"))
    run.kill_at(4, "checkpoint")
    assert run.checkpoint()["global_step"] == 2
    part = run.directory / "checkpoints" / ".last.ckpt.part"
    part.write_bytes(b"half")
    run.finish(LAST)
    assert not part.exists()
    assert_same_end(whole, run)


def test_two_runs_in_one_directory(whole: Run, tmp_path: Path) -> None:
    """The second is refused and touches nothing; the first goes on undisturbed."""
    run = Run(tmp_path / "run", whole.words)
    process = run.pause_at(2, "step")
    second = run.start()
    second.join(60)
    assert second.exitcode == 2
    (error,) = errors_of(run)
    assert f"another run is in progress in {run.directory} (process {process.pid} on" in error
    assert run.go_on(process) == 0
    assert_same_end(whole, run)


def test_a_disk_that_is_full_for_a_while(whole: Run, tmp_path: Path) -> None:
    """Training goes on, the last good checkpoint stays, and the next one that fits is written."""
    full = '{"class_path": "tests.survival.pauses.FullDisk", "init_args": {"first": 3, "last": 8}}'
    words = (*whole.words, "--checkpoint.every_n_steps=1", "--trainer.callbacks=" + f"[{full}]")
    run = Run(tmp_path / "run", words)
    process = run.pause_at(7, "step")
    assert run.checkpoint()["global_step"] == 2
    assert run.go_on(process) == 0
    log = run.log.read_text()
    assert "step 5: the checkpoint can't be written (File too large)" in log
    assert_same_end(whole, run)

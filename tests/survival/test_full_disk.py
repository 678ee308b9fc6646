"""A disk that is full for files of every size: what can wait waits, the rest ends in a line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.survival.killed_runs import GROWN_AT, NUM_STEPS, Run, assert_same_end, small_words

LAST = "--ckpt_path=last"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Run:
    """The run whose disk has space."""
    run = Run(tmp_path_factory.mktemp("whole") / "run", small_words(teacher_directory))
    run.finish()
    return run


def without_space(run: Run, **when: object) -> str:
    """Return the option that lets a run's disk be full; see ``pauses.NoSpaceLeft``."""
    disk = {
        "class_path": "tests.survival.pauses.NoSpaceLeft",
        "init_args": {"directory": str(run.directory)},
    }
    return f"--trainer.callbacks+={json.dumps(disk | {'init_args': disk['init_args'] | when})}"


def fail(run: Run, *more: str) -> str:
    """Let a run end by a single error line; return the line."""
    process = run.start(*more)
    process.join(600)
    log = run.log.read_text()
    assert process.exitcode == 2, log
    assert "Traceback" not in log, log
    (error,) = [line for line in log.splitlines() if line.startswith("error: ")]
    return error


def events(run: Run) -> list[tuple[str, int]]:
    """Return kind and step of a run's events."""
    lines = (run.directory / "events.jsonl").read_text().splitlines()
    return [(event["kind"], event["step"]) for event in map(json.loads, lines)]


def test_training_goes_on_through_a_growth_and_every_record_is_written_later(
    whole: Run, tmp_path: Path
) -> None:
    """Stages, events, metrics, TensorBoard's events and checkpoints, small as they are."""
    run = Run(tmp_path / "run", whole.words)
    board = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(run.directory)}}
    loggers = json.dumps([{"class_path": "MetricsFile"}, board])
    space = without_space(run, first=GROWN_AT - 1, last=GROWN_AT + 2)
    run.finish(space, f"--trainer.logger={loggers}")
    log = run.log.read_text()
    assert "Traceback" not in log, log
    for name in ("stages.json", "events.jsonl", "metrics.csv"):
        assert log.count(f"{name} can't be written (No space left on device)") == 1
        assert f"{name} is written now" in log
    assert f"step {GROWN_AT}: the checkpoint can't be written (No space left on device)" in log
    assert_same_end(whole, run)
    assert events(run) == events(whole)
    assert json.loads((run.directory / "stages.json").read_text())["status"] == "finished"
    assert scalars(run) == [*range(NUM_STEPS)]
    assert (run.directory / "student" / "model.safetensors").exists()
    assert not list(run.directory.rglob("*.part"))


def scalars(run: Run) -> list[int]:
    """Return the steps of a run's training losses in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = run.directory.rglob("events.out.tfevents*")
    accumulator = EventAccumulator(str(file))
    accumulator.Reload()
    return [scalar.step for scalar in accumulator.Scalars("train/loss")]


def test_a_run_that_ends_without_space_keeps_its_last_checkpoint(
    whole: Run, tmp_path: Path
) -> None:
    """With space again the same command brings it to its end."""
    run = Run(tmp_path / "run", whole.words)
    error = fail(run, without_space(run, first=NUM_STEPS - 3))
    assert "stage-2.ckpt can't be written (No space left on device): free space" in error
    assert run.checkpoint()["global_step"] == NUM_STEPS - 4
    run.finish(LAST)
    assert_same_end(whole, run)
    assert events(run) == events(whole)


def test_a_student_without_space_is_written_by_the_same_command_later(
    whole: Run, tmp_path: Path
) -> None:
    """What is trained is in the checkpoint, and not trained again."""
    run = Run(tmp_path / "run", whole.words)
    error = fail(run, without_space(run, from_fit_end=True))
    student = run.directory / "student"
    assert f"{student} can't be written (" in error
    assert "No space left on device): free space; the run is finished" in error
    assert run.checkpoint()["global_step"] == NUM_STEPS
    assert not list(run.directory.glob("*student*"))
    run.finish(LAST)
    assert (student / "model.safetensors").exists()
    assert (student / "README.md").exists()
    assert_same_end(whole, run)
    assert events(run) == events(whole)
    assert json.loads((run.directory / "stages.json").read_text())["status"] == "finished"


def test_records_that_can_not_be_finished_are_named(whole: Run, tmp_path: Path) -> None:
    """The checkpoint is written all the same, and nothing is trained again."""
    run = Run(tmp_path / "run", whole.words)
    error = fail(run, without_space(run, first=NUM_STEPS - 2, pattern="*.jsonl"))
    assert f"{run.directory / 'events.jsonl'}: No space left on device" in error
    assert run.checkpoint()["global_step"] == NUM_STEPS


def test_a_run_is_not_begun_without_space(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is loaded; with a growing number of files that could be made."""
    from interstack.cli import main
    from tests import REPOSITORY
    from tests.checkpointing.full_disks import NoSpace

    monkeypatch.chdir(REPOSITORY)
    words = ["fit", *whole.words, f"--trainer.default_root_dir={tmp_path / 'run'}"]
    for pattern in ("*.lock", "run", "run/*"):
        with NoSpace(tmp_path, pattern):
            assert main(words) == 2
        (error,) = re.findall("^error: .*$", capsys.readouterr().err, re.MULTILINE)
        assert "(No space left on device): " in error
    with NoSpace(tmp_path, "run/*.yaml.part"):
        assert main(words) == 2
    assert "config.yaml can't be written (No space left on device): free" in capsys.readouterr().err

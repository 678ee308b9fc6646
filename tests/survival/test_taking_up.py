"""What a resumed run may and may not be told, and a checkpoint that opens from its path alone."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from interstack.cli import main
from interstack.distillation.module import Distillation
from tests.survival.killed_runs import (
    GROWN_AT,
    NUM_STEPS,
    REPOSITORY,
    Run,
    assert_same_end,
    small_words,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Run:
    """A run that has come to its end."""
    run = Run(tmp_path_factory.mktemp("finished") / "run", small_words(teacher_directory))
    run.finish()
    return run


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration names its files from there."""
    monkeypatch.chdir(REPOSITORY)


def files_of(run: Run) -> dict[str, int]:
    """Return what lies in a run's directory, and when it was written."""
    return {str(path): path.stat().st_mtime_ns for path in run.directory.rglob("*")}


def resume(run: Run, *more: str) -> int:
    """Take a run up from the end of its first stage, in this process."""
    stage = f"--ckpt_path={run.directory / 'checkpoints' / 'stage-1.ckpt'}"
    where = f"--trainer.default_root_dir={run.directory}"
    return main(["fit", *run.words, where, stage, *more])


@pytest.mark.parametrize(
    ("change", "now"),
    [
        ("--growth.schedule=prop", "0 to  4 steps"),
        ("--growth.depths=[2,3,4]", "3 layers"),
        ("--growth.depths=[3,4]", "3 layers"),
        ("--growth.operator=midas", "midas"),
        ("--growth.optimizer_state=carry", "carry"),
        ("--trainer.max_steps=14", "14 steps"),
    ],
)
def test_another_schedule_is_refused_and_nothing_is_touched(
    change: str, now: str, finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both schedules are printed."""
    before = files_of(finished)
    assert resume(finished, change) == 2
    error = capsys.readouterr().err
    assert now in error
    assert "12 steps" in error
    assert files_of(finished) == before


def test_other_settings_of_the_model_are_refused_by_name(
    finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with what it was and what it is; nothing is touched."""
    before = files_of(finished)
    changes = ("--model.optimizer.learning_rate=0.1", "--model.objective.intermediate_weight=2")
    assert resume(finished, *changes) == 2
    error = capsys.readouterr().err
    assert "model.optimizer.learning_rate was 0.001 and is 0.1" in error
    assert "model.objective.intermediate_weight was 0.5 and is 2.0" in error
    assert files_of(finished) == before


@pytest.mark.parametrize("name", ["stage-1", "stage-2"])
@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_of_any_stage_is_judged_from_its_path_alone(
    command: str, name: str, finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No configuration, no run directory: the checkpoint knows all."""
    alone = tmp_path / "somewhere.ckpt"
    alone.write_bytes((finished.directory / "checkpoints" / f"{name}.ckpt").read_bytes())
    assert main([command, f"--ckpt_path={alone}", "--trainer.limit_test_batches=1"]) == 0
    assert f"{'val' if command == 'validate' else 'test'}/loss" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "depth", "step"), [("stage-1", 2, GROWN_AT), ("last", 4, 12)])
def test_a_checkpoint_loads_in_python_from_its_path_alone(
    name: str, depth: int, step: int, finished: Run
) -> None:
    """The end of a stage is from before the growth that follows."""
    path = finished.directory / "checkpoints" / f"{name}.ckpt"
    assert Distillation.load_from_checkpoint(path).depth == depth
    assert torch.load(path, weights_only=True)["global_step"] == step


def test_nothing_is_judged_without_a_checkpoint(
    finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss of random weights would be no use to anybody."""
    assert main(["validate", *finished.words]) == 2
    assert "give --ckpt_path" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_named(
    content: bytes | None, finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Empty, rubbish, cut off."""
    path = tmp_path / "damaged.ckpt"
    whole = (finished.directory / "checkpoints" / "last.ckpt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert main(["validate", f"--ckpt_path={path}"]) == 2
    assert f"{path} can't be read as a checkpoint" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(
    finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip of the pen."""
    path = finished.directory / "checkpoints" / "lost.ckpt"
    assert main(["test", f"--ckpt_path={path}"]) == 2
    assert "has last.ckpt, stage-1.ckpt, stage-2.ckpt" in capsys.readouterr().err


def test_a_checkpoint_is_small_and_without_the_teacher(
    teacher_directory: Path, tmp_path: Path
) -> None:
    """Three numbers of 4 bytes a parameter, and 5 per cent."""
    wide = ("--model.student.hidden_size=128", "--model.student.intermediate_size=512")
    words = (*small_words(teacher_directory, *wide), "--model.student.num_attention_heads=4")
    run = Run(tmp_path / "run", words)
    run.finish("--trainer.max_steps=2", "--trainer.limit_val_batches=0")
    path = run.directory / "checkpoints" / "last.ckpt"
    module = Distillation.load_from_checkpoint(path)
    count = sum(parameter.numel() for parameter in module.student.parameters())
    assert path.stat().st_size <= 4 * count * 3 * 1.05


@pytest.fixture
def broken(finished: Run, tmp_path: Path) -> Run:
    """A copy of the finished run that may be spoilt."""
    shutil.copytree(finished.directory, tmp_path / "run")
    return Run(tmp_path / "run", finished.words)


def resume_last(run: Run, *more: str) -> int:
    """Take a run up from its newest checkpoint, in this process."""
    return resume_from(run, "last", *more)


def resume_from(run: Run, checkpoint: str | Path, *more: str) -> int:
    """Take a run up from a checkpoint, in this process."""
    where = f"--trainer.default_root_dir={run.directory}"
    return main(["fit", *run.words, where, f"--ckpt_path={checkpoint}", *more])


def test_a_run_whose_checkpoints_are_all_unreadable_is_not_begun_anew(
    broken: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A passing fault would cost all of it; everything that was tried is named, and left alone."""
    names = ("last", "stage-1", "stage-2")
    for name in names:
        path = broken.directory / "checkpoints" / f"{name}.ckpt"
        path.unlink()  # the last one may share its file
        path.write_bytes(b"no checkpoint")
    before = files_of(broken)
    assert resume_last(broken) == 2
    (error,) = re.findall("^error: .*$", capsys.readouterr().err, re.MULTILINE)
    assert "none of the checkpoints in " in error
    assert all(f"{name}.ckpt can't be read" in error for name in names)
    assert files_of(broken) == before
    assert list(broken.directory.parent.glob("run.*")) == []


def test_a_damaged_newest_checkpoint_is_skipped_aloud_and_kept(broken: Run, finished: Run) -> None:
    """The run goes on from the newest that can be read, and never overwrites the damaged one."""
    checkpoints = broken.directory / "checkpoints"
    for name in ("last", "stage-2"):
        (checkpoints / f"{name}.ckpt").unlink()
        (checkpoints / f"{name}.ckpt").write_bytes(b"damaged")
    broken.finish("--ckpt_path=last")
    log = broken.log.read_text()
    assert "the newest checkpoint is skipped" in log
    assert f"stage-1.ckpt of step {GROWN_AT}, and steps after it" in log
    assert (checkpoints / "last.ckpt.1").read_bytes() == b"damaged"
    assert (checkpoints / "stage-2.ckpt.1").read_bytes() == b"damaged"
    assert_same_end(finished, broken)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Path]]:
    """Paths that the file server fails to read, as long as a test keeps them in here."""

    class Paths(set[Path]):
        """Those that are refused, and why."""

        denied = False

    paths = Paths()
    load, opened, listed = torch.load, Path.open, Path.iterdir

    def refuse(path: object) -> None:
        if path in paths:
            code = errno.EACCES if paths.denied else errno.EIO
            raise OSError(code, os.strerror(code), str(path))

    def failing_load(path: Path, *arguments: object, **named: object) -> object:
        if path in paths:
            raise RuntimeError("PytorchStreamReader failed reading zip archive")
        return load(path, *arguments, **named)  # type: ignore[arg-type]

    def failing_open(path: Path, *arguments: object, **named: object) -> object:
        refuse(path)
        return opened(path, *arguments, **named)  # type: ignore[call-overload]

    def failing_list(path: Path) -> object:
        refuse(path)
        return listed(path)

    monkeypatch.setattr(torch, "load", failing_load)
    monkeypatch.setattr(Path, "open", failing_open)
    monkeypatch.setattr(Path, "iterdir", failing_list)
    return paths


@pytest.mark.parametrize("where", ["last.ckpt", "."])
def test_a_fault_of_the_file_server_stops_instead_of_going_back(
    where: str, broken: Run, faulty: set[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest one may be sound: an older one would cost a stage, a new run everything."""
    before = files_of(broken)
    faulty.add(broken.directory / "checkpoints" / where)
    assert resume_last(broken) == 2
    error = capsys.readouterr().err
    assert "can't be read (Input/output error): give the same command again once it can" in error
    if where == "last.ckpt":
        assert f"stage-2.ckpt at step {NUM_STEPS} instead" in error
    assert files_of(broken) == before
    faulty.clear()
    assert resume_last(broken) == 0


@pytest.mark.parametrize(
    "name", ["checkpoints", "checkpoints/last.ckpt", "events.jsonl", "metrics.csv"]
)
def test_a_link_to_a_disk_that_is_not_mounted_is_no_missing_file(
    name: str, broken: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose checkpoints lie on another disk would begin anew without it."""
    link = broken.directory / name
    away = broken.directory.parent / "unmounted"
    link.rename(away)
    link.symlink_to(broken.directory.parent / "nowhere")
    before = sorted(broken.directory.rglob("*"))
    from_here = "last"
    if "checkpoints" not in name:  # a finished run is not recorded again
        from_here = str(broken.directory / "checkpoints" / "stage-1.ckpt")
    assert resume_from(broken, from_here) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert f"(it is a link to {broken.directory.parent / 'nowhere'}, which is not there)" in error
    assert name.rpartition("/")[2] in error
    assert sorted(broken.directory.rglob("*")) == before
    link.unlink()
    link.symlink_to(away)
    assert resume_last(broken) == 0


@pytest.mark.parametrize("name", ["last.ckpt", "checkpoints", "events.jsonl", "metrics.csv"])
def test_a_file_of_a_run_that_may_not_be_read_is_named(
    name: str, broken: Run, faulty: set[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a line, and nothing is moved aside."""
    before = files_of(broken)
    records = name in ("events.jsonl", "metrics.csv")
    first = broken.directory / "checkpoints" / "stage-1.ckpt"
    (path,) = (each for each in broken.directory.rglob("*") if each.name == name)
    faulty.denied = True  # type: ignore[attr-defined]
    faulty.add(path)
    assert resume_from(broken, first if records else "last") == 2
    error = capsys.readouterr().err
    assert "Permission denied" in error
    assert str(path) in error
    faulty.clear()
    assert files_of(broken) == before


def test_only_a_damaged_later_checkpoint_is_set_aside(
    broken: Run, faulty: set[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """One that the file server fails to read may be sound: the run does not go back behind it."""
    checkpoints = broken.directory / "checkpoints"
    last, first = checkpoints / "last.ckpt", checkpoints / "stage-1.ckpt"
    where = f"--trainer.default_root_dir={broken.directory}"
    words = ["fit", *broken.words, where, f"--ckpt_path={first}"]
    before = files_of(broken)
    faulty.add(last)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"{last} can't be read (Input/output error): give the same command again" in error
    assert f"or move it away to resume from {first} at step {GROWN_AT} instead" in error
    assert files_of(broken) == before
    faulty.clear()
    content = last.read_bytes()
    faulty.add(first)  # an older one is left where it is
    assert resume_last(broken) == 0
    assert first.exists()
    faulty.clear()
    last.unlink()
    last.write_bytes(b"damaged")
    assert resume_last(broken) == 0
    assert (checkpoints / "last.ckpt.1").read_bytes() == b"damaged"
    assert len(content) > len(b"damaged")


def test_a_new_run_never_takes_the_place_of_checkpoints(broken: Run) -> None:
    """Not even where the records beside them are lost, or the directory is another one."""
    for name in ("config.yaml", "events.jsonl", "metrics.csv", "stages.json"):
        (broken.directory / name).unlink()
    elsewhere = broken.directory.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "last.ckpt").write_bytes(b"of an earlier run")
    where = f"--trainer.default_root_dir={broken.directory}"
    short = ("--trainer.max_steps=2", f"--checkpoint.dirpath={elsewhere}")
    assert main(["fit", *broken.words, where, *short]) == 0
    aside = broken.directory.with_name("run.1") / "checkpoints" / "last.ckpt"
    assert torch.load(aside, weights_only=True)["global_step"] == NUM_STEPS
    assert (elsewhere / "last.ckpt.1").read_bytes() == b"of an earlier run"
    assert torch.load(elsewhere / "last.ckpt", weights_only=True)["global_step"] == 2

"""What a resumed run may and may not be told, and a checkpoint that opens from its path alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from killed_runs import GROWN_AT, REPOSITORY, Run, small_words

from interstack.cli import main
from interstack.distillation.module import Distillation


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

"""Bad input gets one clear error that names the thing and the mend, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from interstack.cli import main
from tests.cli.test_cli import small_run


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--growth.depths=[4,2]"], ["growth.depths", "increase"]),
        (["--growth.depths=[]"], ["growth.depths"]),
        (["--trainer.max_steps=1"], ["1 steps", "2 stages"]),
        (
            ["--growth.schedule=explicit", "--growth.lengths=[1,2]", "--growth.unit=steps"],
            ["growth.lengths", "sum to 3 steps", "run has 4"],
        ),
        (["--growth.schedule=explicit", "--growth.lengths=[2,2]"], ["growth.unit", "max_steps"]),
        (["--growth.lengths=[2,2]"], ["growth.lengths", "explicit"]),
        (["--growth.operator=append", "--growth.depths=[2,3]"], ["append", "multiple of 2"]),
        (["--growth.operator=midas", "--growth.depths=[2,4,5,8]"], ["midas"]),
        (["--model.teacher.taps=[2,5]"], ["tap", "5", "4"]),
        (["--model.student.num_attention_heads=3"], ["hidden_size 16", "num_attention_heads 3"]),
        (["--data.source.init_args.validation=[dev-none]"], ["dev-none", "dev-clean"]),
        (["--data.min_seconds=0.01"], ["data.min_seconds", "receptive field"]),
        (["--model.teacher.source=nowhere/at-all-at-all"], ["nowhere/at-all-at-all", "local"]),
        (["--trainer.max_epochs=2"], ["max_steps", "max_epochs"]),
        (["--data.validation_batch_seconds=1"], ["raise data.validation_batch_seconds"]),
        (
            ["--data.global_batch_seconds=64", "--trainer.accumulate_grad_batches=2"],
            ["trainer.accumulate_grad_batches is 2", "data.global_batch_seconds", "remove"],
        ),
        (["--data.global_batch_seconds=0"], ["data.global_batch_seconds is 0"]),
        (["--data.global_batch_seconds=1"], ["data.global_batch_seconds is 1", "takes", "raise"]),
        (
            [
                "--data.global_batch_seconds=64",
                '--trainer.callbacks+={"class_path": "GradientAccumulationScheduler", '
                '"init_args": {"scheduling": {"0": 2}}}',
            ],
            ["GradientAccumulationScheduler", "data.global_batch_seconds"],
        ),
    ],
    ids=lambda value: value[0].removeprefix("--").split("=")[0] if "--" in value[0] else "",
)
def test_a_contradiction_is_named_before_training(
    options: Sequence[str],
    named: Sequence[str],
    tmp_path: Path,
    teacher_directory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message names the setting and the mend; nothing has been trained."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    directory = tmp_path / "run"
    assert main(["fit", *small_run(directory, teacher_directory), *options]) == 2
    message = capsys.readouterr().err
    assert "error: " in message
    for word in named:
        assert word in message
    assert "Traceback" not in message
    assert not (directory / "metrics.csv").exists()


def test_a_teacher_without_weights_is_refused(
    tmp_path: Path, teacher_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory that holds a configuration alone would be a random teacher."""
    empty = tmp_path / "teacher"
    empty.mkdir()
    (empty / "config.json").write_text((teacher_directory / "config.json").read_text())
    options = small_run(tmp_path / "run", empty)
    assert main(["fit", *options]) == 2
    assert str(empty) in capsys.readouterr().err


def test_a_run_directory_that_cannot_be_made_is_refused(
    tmp_path: Path, teacher_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where the directory should be is found before anything is computed."""
    (tmp_path / "run").write_text("in the way")
    assert main(["fit", *small_run(tmp_path / "run", teacher_directory)]) == 2
    assert "trainer.default_root_dir" in capsys.readouterr().err

"""Lightning's own options and callbacks: what works, and what is refused in one line."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from interstack.cli import main
from interstack.commands.dry_run import describe_run
from interstack.data.batch import Batch
from interstack.distillation.module import FOUND_RATE_KEY
from interstack.tracking.stages import StageRecorder
from tests.cli.test_cli import small_run


def callbacks(*named: tuple[str, dict[str, Any]]) -> str:
    """Return the option that adds callbacks of Lightning's."""
    added = [{"class_path": name, "init_args": settings} for name, settings in named]
    return f"--trainer.callbacks={json.dumps(added)}"


TWELVE_STEPS = ["--trainer.max_epochs=6", "--trainer.limit_train_batches=2"]
EPOCHS = ["--trainer.limit_train_batches=2", "--trainer.check_val_every_n_epoch=1"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--trainer.accelerator=tpu"], ["trainer.accelerator is tpu", "auto"]),
        (["--trainer.accelerator=bogus"], ["trainer.accelerator is bogus", "auto"]),
        (["--trainer.devices=0", "--trainer.accelerator=cpu"], ["trainer.devices is 0"]),
        (["--trainer.strategy=fsdp"], ["trainer.strategy is fsdp", "give ddp"]),
        (["--trainer.strategy=deepspeed"], ["trainer.strategy is deepspeed", "give ddp"]),
        (["--trainer.strategy=ddp_spawn"], ["trainer.strategy is ddp_spawn", "give ddp"]),
        (["--trainer.strategy=bogus"], ["trainer.strategy is bogus", "give ddp"]),
        (
            [
                '--trainer.strategy={"class_path": "lightning.pytorch.strategies.DDPStrategy", '
                '"init_args": {"start_method": "spawn"}}'
            ],
            ["trainer.strategy is lightning.pytorch.strategies.DDPStrategy", "give ddp"],
        ),
        (["--trainer.profiler=bogus"], ["trainer.profiler is bogus", "simple"]),
        (["--trainer.max_time=bogus"], ["trainer.max_time is bogus", "DD:HH:MM:SS"]),
        (["--trainer.accumulate_grad_batches=0"], ["accumulate_grad_batches is 0", "1 or more"]),
        (["--trainer.limit_train_batches=0"], ["limit_train_batches is 0", "nothing is trained"]),
        (["--trainer.min_steps=5"], ["trainer.min_steps is 5", "trainer.max_steps 4"]),
        (["--trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val is -1", "more than 0"]),
        (
            ["--trainer.gradient_clip_val=null", "--trainer.gradient_clip_algorithm=value"],
            ["trainer.gradient_clip_algorithm is value", "give trainer.gradient_clip_val"],
        ),
        (["--trainer.sync_batchnorm=true"], ["trainer.sync_batchnorm is true", "leave it out"]),
        (["--trainer.use_distributed_sampler=true"], ["trainer.use_distributed_sampler is true"]),
        (
            ["--trainer.logger=false", callbacks(("LearningRateMonitor", {}))],
            ["LearningRateMonitor, which logs", "there is no logger"],
        ),
        (["--trainer.limit_train_batches=0.0001"], ["limit_train_batches is 0.0001"]),
        (["--trainer.limit_val_batches=0.0001"], ["limit_val_batches is 0.0001"]),
        (["--trainer.val_check_interval=1000000"], ["val_check_interval is 1000000"]),
        (["--trainer.val_check_interval=1.5"], ["trainer.val_check_interval is 1.5"]),
        (["--trainer.check_val_every_n_epoch=0"], ["trainer.check_val_every_n_epoch is 0"]),
        (["--trainer.logger=CometLogger"], ["CometLogger", "comet-ml"]),
        (["--trainer.fast_dev_run=1", "--ckpt_path=last"], ["trainer.fast_dev_run", "ckpt_path"]),
        ([callbacks(("BatchSizeFinder", {}))], ["BatchSizeFinder", "data.batch_seconds"]),
        (
            [callbacks(("LearningRateFinder", {"attr_name": "rate"}))],
            ["LearningRateFinder.attr_name is rate", "model.optimizer.learning_rate"],
        ),
        (
            [callbacks(("LearningRateFinder", {"update_attr": False}))],
            ["LearningRateFinder.update_attr is false", "leave it out"],
        ),
        (
            [callbacks(("LearningRateFinder", {"num_training_steps": 12}))],
            ["LearningRateFinder.num_training_steps is 12", "give 13 or more"],
        ),
        (
            [callbacks(("LearningRateFinder", {})), "--trainer.max_steps=-1", *TWELVE_STEPS],
            ["LearningRateFinder ended after 12 steps", "too few", "trainer.max_epochs"],
        ),
        (
            [callbacks(("EarlyStopping", {"monitor": "val_loss"}))],
            ["EarlyStopping.monitor is val_loss", "give val/loss"],
        ),
        (
            [callbacks(("ModelCheckpoint", {"monitor": "val_loss"}))],
            ["ModelCheckpoint.monitor is val_loss", "give val/loss"],
        ),
        (
            [
                callbacks(("EarlyStopping", {"monitor": "val/loss"})),
                "--trainer.limit_val_batches=0",
            ],
            ["EarlyStopping.monitor is val/loss", "trainer.limit_val_batches"],
        ),
        (
            [
                callbacks(
                    ("EarlyStopping", {"monitor": "val/loss", "check_on_train_epoch_end": True})
                )
            ],
            ["EarlyStopping.check_on_train_epoch_end", "trainer.check_val_every_n_epoch is 4"],
        ),
        (
            [callbacks(("EarlyStopping", {"monitor": "val/loss", "mode": "best"}))],
            ["mode", "best", "trainer.callbacks"],
        ),
        (
            [callbacks(("ModelCheckpoint", {}), ("ModelCheckpoint", {}))],
            ["ModelCheckpoint", "more than one"],
        ),
        (
            [callbacks(("TQDMProgressBar", {})), "--trainer.enable_progress_bar=false"],
            ["enable_progress_bar is False", "TQDMProgressBar"],
        ),
    ],
    ids=lambda value: value[-1].removeprefix("--trainer.")[:48] if "--" in value[-1] else "",
)
def test_what_cannot_be_is_refused_in_one_line(
    options: Sequence[str],
    named: Sequence[str],
    tmp_path: Path,
    teacher_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the setting, its value and the fix, before anything is trained."""
    directory = tmp_path / "run"
    assert main(["fit", *small_run(directory, teacher_directory), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert line == lines[-1]
    for word in named:
        assert word in line
    assert not (directory / "stages.json").exists() or "running" in (
        directory / "stages.json"
    ).read_text(encoding="utf-8")


def test_a_defect_of_ours_keeps_its_traceback(
    tmp_path: Path, teacher_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what Lightning refuses becomes one line."""

    def fail(*_: object) -> None:
        raise ValueError("a slip")

    monkeypatch.setattr(StageRecorder, "on_fit_end", fail)
    with pytest.raises(ValueError, match="a slip"):
        main(["fit", *small_run(tmp_path / "run", teacher_directory)])


@pytest.mark.parametrize("option", ["enable_checkpointing=false", "barebones=true"])
def test_a_run_without_checkpoints_leaves_its_student(
    option: str, tmp_path: Path, teacher_directory: Path
) -> None:
    """Nothing that resumes it is written, and the rest is as ever."""
    directory = tmp_path / "run"
    assert main(["fit", *small_run(directory, teacher_directory), f"--trainer.{option}"]) == 0
    assert not (directory / "checkpoints").exists()
    assert (directory / "student" / "model.safetensors").is_file()
    assert len(json.loads((directory / "stages.json").read_text())["stages"]) == 2


@pytest.mark.parametrize("duration", ["00:01:00:00", {"hours": 1}])
def test_a_timer_takes_its_duration_from_the_configuration(
    duration: object, tmp_path: Path, teacher_directory: Path
) -> None:
    """And the saved configuration holds it."""
    directory = tmp_path / "run"
    options = [*small_run(directory, teacher_directory), "--trainer.max_steps=2"]
    assert main(["fit", *options, callbacks(("Timer", {"duration": duration}))]) == 0
    (saved,) = yaml.safe_load((directory / "config.yaml").read_text())["trainer"]["callbacks"]
    assert saved["init_args"] == {
        "duration": "00:01:00:00",
        "interval": "step",
        "verbose": True,
    }
    again = ["--trainer.default_root_dir", str(tmp_path / "again")]
    assert main(["fit", f"--config={directory / 'config.yaml'}", *again]) == 0


def test_durations_and_forked_processes_are_taken_as_they_are_given(
    tmp_path: Path, teacher_directory: Path
) -> None:
    """The configuration holds a duration in parts as words, and ranks that are forked."""
    fork = {"class_path": "lightning.pytorch.strategies.DDPStrategy"}
    for strategy in ("ddp_fork", json.dumps(fork | {"init_args": {"start_method": "fork"}})):
        run = describe_run(
            "fit",
            [
                *small_run(tmp_path / "run", teacher_directory),
                f"--trainer.strategy={strategy}",
                "--trainer.val_check_interval={hours: 1, minutes: 30}",
                "--trainer.max_time={days: 2}",
            ],
            trains=True,
        )
        assert run.config.trainer.val_check_interval == "00:01:30:00"
        assert run.config.trainer.max_time == "02:00:00:00"


@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging")
def test_a_metric_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, teacher_directory: Path
) -> None:
    """What is logged every third step is not there at the end of an epoch of two."""
    stops = {"monitor": "data/padding", "check_on_train_epoch_end": True, "strict": True}
    options = [*small_run(tmp_path / "run", teacher_directory), *EPOCHS]
    options += ["--trainer.log_every_n_steps=3", callbacks(("EarlyStopping", stops))]
    options.append("--model.teacher.taps=null")  # then the names of their losses are not known yet
    assert main(["fit", *options]) == 0
    assert _last(tmp_path / "run")["global_step"] == 4


@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_the_user_s_progress_bar_replaces_ours(
    bar: str,
    tmp_path: Path,
    teacher_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One bar is shown, the one that was asked for."""
    options = small_run(tmp_path / "run", teacher_directory)
    assert main(["fit", *options, callbacks((bar, {}))]) == 0
    shown = capsys.readouterr()
    assert "Epoch 0" in shown.out + shown.err
    assert "stage 1/2, depth 2" not in shown.out


@pytest.mark.parametrize(("steps", "depth"), [(1, 2), (2, 4)])
def test_fast_dev_run_tries_the_first_steps_and_keeps_nothing(
    steps: int,
    depth: int,
    tmp_path: Path,
    teacher_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An earlier run in the directory is left as it is."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.yaml").write_text("{}")
    options = small_run(directory, teacher_directory)
    assert main(["fit", *options, f"--trainer.fast_dev_run={steps}"]) == 0
    shown = capsys.readouterr().out
    assert f"depth {depth}, step {steps}/{steps}" in shown
    assert "nothing is kept" in shown
    assert [each.name for each in tmp_path.rglob("*")] == ["run", "config.yaml"]


def test_fast_dev_run_keeps_the_shares_of_explicit_stages(
    tmp_path: Path, teacher_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the whole run is measured in."""
    lengths = ["--growth.schedule=explicit", "--growth.lengths=[60,20]", "--growth.unit=epochs"]
    options = [*small_run(tmp_path / "run", teacher_directory), *lengths]
    assert main(["fit", *options, "--trainer.fast_dev_run=4"]) == 0
    assert "step 3: grown from 2 to 4 layers" in capsys.readouterr().out


def test_overfit_batches_repeats_the_same_batches(
    tmp_path: Path, teacher_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every epoch, as Lightning promises."""
    seen: list[tuple[str, ...]] = []
    count = StageRecorder.on_train_batch_end

    def note(
        self: StageRecorder,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        seen.append(batch.ids)
        count(self, trainer, module, outputs, batch, batch_idx)

    monkeypatch.setattr(StageRecorder, "on_train_batch_end", note)
    options = small_run(tmp_path / "run", teacher_directory)
    assert main(["fit", *options, "--trainer.overfit_batches=2"]) == 0
    assert len(seen) == 4
    assert seen[:2] == seen[2:]


def test_a_search_sets_the_learning_rate_and_leaves_no_other_trace(
    tmp_path: Path, teacher_directory: Path
) -> None:
    """The run is that of the found rate from its first step; a resumed one keeps the rate."""
    finder = callbacks(("LearningRateFinder", {"num_training_steps": 20, "max_lr": 0.1}))
    searched = small_run(tmp_path / "searched", teacher_directory)
    assert main(["fit", *searched, finder]) == 0
    found = _last(tmp_path / "searched")
    rate = found[FOUND_RATE_KEY]
    assert 1e-8 < rate <= 0.1
    given = small_run(tmp_path / "given", teacher_directory)
    assert main(["fit", *given, f"--model.optimizer.learning_rate={rate!r}"]) == 0
    plain = _last(tmp_path / "given")
    assert FOUND_RATE_KEY not in plain
    for name, weight in plain["state_dict"].items():
        assert torch.equal(weight, found["state_dict"][name]), name
    assert not list((tmp_path / "searched").glob(".lr_find*"))
    first = tmp_path / "searched" / "checkpoints" / "stage-1.ckpt"
    assert main(["fit", *searched, finder, f"--ckpt_path={first}"]) == 0
    again = _last(tmp_path / "searched")
    assert again[FOUND_RATE_KEY] == rate
    for name, weight in found["state_dict"].items():
        assert torch.equal(weight, again["state_dict"][name]), name


def _last(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(
        directory / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True
    )
    return content


def test_a_run_that_ends_early_says_where(
    tmp_path: Path,
    teacher_directory: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the log, the records, the student's card, the report and an export of its checkpoint."""
    monkeypatch.setattr(logging.getLogger("interstack"), "handlers", [caplog.handler])
    directory = tmp_path / "run"
    stops = {"monitor": "val/loss", "stopping_threshold": 1e9}
    options = [*small_run(directory, teacher_directory), *EPOCHS, "--trainer.max_steps=8"]
    with caplog.at_level(logging.INFO, logger="interstack"):
        assert main(["fit", *options, callbacks(("EarlyStopping", stops))]) == 0
    where = "in stage 1 of 2, at depth 2 of 4, after step 2 of 8"
    assert f"the run ended early, {where}" in caplog.text
    assert "the student, not fully trained, at depth 2 is in" in caplog.text.replace(", is", " is")
    record = json.loads((directory / "stages.json").read_text())
    assert record["status"] == "ended_early"
    assert not record["stages"][0]["finished"]
    card = (directory / "student" / "README.md").read_text(encoding="utf-8")
    assert f"its run ended early, {where}" in card
    page = tmp_path / "report.html"
    assert main(["report", str(directory), "-o", str(page)]) == 0
    assert f"ended early, {where}" in page.read_text(encoding="utf-8")
    exported = tmp_path / "exported"
    assert main(["export", f"--checkpoint={directory}", f"--output={exported}"]) == 0
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert f"its run ended early, {where}" in card

"""The record of a run's stages."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from interstack.data.batch import Batch
from interstack.distillation.module import Distillation
from interstack.growth.plan import GrowthPlan
from interstack.tracking import stages as stages_module
from interstack.tracking.meters import Stopwatch
from interstack.tracking.stage_records import StageRecord
from interstack.tracking.stages import StageRecorder
from tests.tracking.tracked_runs import DEPTHS, NUM_STEPS, MakeRun, RandomData, Witness


class Snapshots(L.Callback):
    """Saves a checkpoint where a stage ends and where the next begins."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.paths: list[Path] = []

    def _save(self, trainer: L.Trainer) -> None:
        self.paths.append(self.directory / f"{len(self.paths)}.ckpt")
        trainer.save_checkpoint(self.paths[-1])

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end of a stage."""
        del pl_module
        self._save(trainer)

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Save the beginning of the next."""
        del pl_module, plan
        self._save(trainer)


class At(L.Callback):
    """Saves a checkpoint, or fails, after a step."""

    def __init__(self, step: int, checkpoint: Path | None = None) -> None:
        self.step = step
        self.checkpoint = checkpoint

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save."""
        del pl_module
        if self.checkpoint is not None and trainer.global_step == self.step:
            trainer.save_checkpoint(self.checkpoint)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Fail."""
        del pl_module, batch, batch_idx
        if self.checkpoint is None and trainer.global_step == self.step:
            raise KeyError("pulled the plug")


class FakeTime(L.Callback):
    """A clock by which a batch takes 1 s, a growth 5 s and a validation batch 100 s."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def on_train_batch_end(self, *_: object) -> None:
        """Let a batch's time pass."""
        self.now += 1

    def on_validation_batch_end(self, *_: object) -> None:
        """Let a validation batch's time pass."""
        self.now += 100

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let no time pass."""

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Let a growth's time pass."""
        del trainer, pl_module, plan
        self.now += 5

    def validation_loss(self, trainer: L.Trainer, module: Distillation) -> float:
        """Let a measurement's time pass."""
        del trainer, module
        self.now += 10_000
        return 0.0


def untimed(stages: list[StageRecord]) -> list[dict[str, Any]]:
    """The stages without their wall-clock."""
    return [asdict(stage) | {"training_seconds": 0.0} for stage in stages]


def read(directory: Path) -> dict[str, Any]:
    """The record that lies in a run's directory."""
    record: dict[str, Any] = json.loads((directory / "stages.json").read_text())
    return record


def test_every_stage_is_recorded_with_its_steps_and_parameters(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """Depths, first steps, steps and parameters are those of the run."""
    recorder = StageRecorder()
    run = make_run([recorder])
    run.fit()
    stages = recorder.stages
    assert [stage.stage for stage in stages] == [1, 2, 3]
    assert [stage.depth for stage in stages] == list(DEPTHS)
    assert [stage.first_step for stage in stages] == [0, 3, 6]
    assert [stage.steps for stage in stages] == [3, 3, 3]
    parameters = [stage.num_parameters for stage in stages]
    assert parameters[2] == sum(p.numel() for p in run.module.student.model.parameters())
    assert parameters[1] - parameters[0] == parameters[2] - parameters[1] > 0
    assert all(stage.training_seconds > 0 for stage in stages)
    record = read(tmp_path)
    assert record == {"status": "finished", "stages": [asdict(stage) for stage in stages]}


def test_the_audio_recorded_is_the_audio_trained_on(make_run: MakeRun) -> None:
    """Padding does not count, validation does not count."""
    recorder, witness = StageRecorder(), Witness()
    make_run([recorder, witness]).fit()
    seen = [sum(witness.seconds[first : first + 3]) for first in (0, 3, 6)]
    assert [stage.audio_seconds for stage in recorder.stages] == pytest.approx(seen)


def test_losses_before_and_after_equal_separate_validations(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """Each figure is what a validation of the student at that moment says."""
    recorder, snapshots = StageRecorder(), Snapshots(tmp_path)
    run = make_run([snapshots, recorder])
    run.fit()
    recorded = [
        loss
        for stage in recorder.stages
        for loss in (stage.validation_loss_before, stage.validation_loss_after)
    ]
    separate = [make_run().validate()]
    for path in snapshots.paths:
        module = Distillation.load_from_checkpoint(path)
        separate.append(make_run()._replace(module=module).validate())
    separate.append(run.validate())
    assert recorded == pytest.approx(separate, rel=1e-5)
    assert len(set(recorded)) == 6


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_loss_is_measured_in_the_precision_of_the_run(
    make_run: MakeRun, precision: str
) -> None:
    """The last figure is exactly what the Trainer's own validation says in its precision."""
    recorder = StageRecorder()
    run = make_run([recorder], precision=precision, max_steps=3)
    run.fit()
    assert recorder.stages[-1].validation_loss_after == run.validate()


def test_the_limit_of_validation_batches_is_kept(make_run: MakeRun) -> None:
    """With one batch, as with all, the figure is the Trainer's own."""
    recorder = StageRecorder()
    run = make_run([recorder], limit_val_batches=1, max_steps=3)
    run.data.validation_batch_seconds = 1.5
    run.fit()
    limited = run.validate()
    assert recorder.stages[-1].validation_loss_after == limited
    run.trainer.limit_val_batches = 1.0
    assert run.validate() != limited


def test_training_is_bitwise_the_same_without_the_recorder(make_run: MakeRun) -> None:
    """Weights and random states, although measuring draws numbers of its own."""
    weights, states = [], []
    for callbacks in ([StageRecorder()], []):
        run = make_run(callbacks, data_class=RandomData)  # with dropout
        run.fit()
        weights.append(run.module.state_dict())
        states.append((torch.get_rng_state().tolist(), np.random.get_state(), random.getstate()))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert repr(states[0]) == repr(states[1])


def test_a_resumed_run_continues_the_record(make_run: MakeRun, tmp_path: Path) -> None:
    """Cut in the middle of its second stage, a run ends with the record of an uncut one."""
    checkpoint = tmp_path / "cut.ckpt"
    uncut = StageRecorder()
    make_run([uncut, At(4, checkpoint)], dropout=0.0).fit()
    resumed = StageRecorder()
    make_run([resumed], dropout=0.0).fit(checkpoint)
    assert untimed(resumed.stages) == untimed(uncut.stages)

    saved = torch.load(checkpoint, weights_only=True)["callbacks"]["StageRecorder"]["stages"]
    assert [stage["steps"] for stage in saved] == [3, 1]
    assert resumed.stages[0].training_seconds == saved[0]["training_seconds"]
    assert resumed.stages[1].training_seconds > saved[1]["training_seconds"]


def test_an_interrupted_run_writes_its_record(make_run: MakeRun, tmp_path: Path) -> None:
    """The stage that was going on is there with its steps and audio, but without an end."""
    witness = Witness()
    run = make_run([StageRecorder(), witness, At(5)])
    with pytest.raises(KeyError, match="pulled the plug"):
        run.fit()
    record = read(tmp_path)
    first, second = record["stages"]
    assert record["status"] == "interrupted"
    assert first["finished"]
    assert first["validation_loss_after"] is not None
    assert not second["finished"]
    assert second["validation_loss_after"] is None
    assert second["steps"] == 2
    assert second["audio_seconds"] == pytest.approx(sum(witness.seconds[3:]))


def test_a_run_that_fails_before_training_leaves_the_record_alone(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """Nothing is written unless something was trained."""
    run = make_run([StageRecorder()], max_steps=2)  # no room for three stages
    with pytest.raises(ValueError, match="no room"):
        run.fit()
    assert not (tmp_path / "stages.json").exists()


def test_validation_is_no_part_of_the_wall_clock(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only batches and growth count, neither the Trainer's validation nor the recorder's own."""
    clock, recorder = FakeTime(), StageRecorder()
    monkeypatch.setattr(recorder, "_stopwatch", Stopwatch(clock))
    monkeypatch.setattr(stages_module, "validation_loss", clock.validation_loss)
    make_run([clock, recorder]).fit()
    assert clock.now > 60_000
    assert [stage.training_seconds for stage in recorder.stages] == [3.0, 8.0, 8.0]


def test_a_run_without_validation_has_no_losses(make_run: MakeRun) -> None:
    """The rest of the record is there."""
    recorder = StageRecorder()
    make_run([recorder], limit_val_batches=0).fit()
    assert sum(stage.steps for stage in recorder.stages) == NUM_STEPS
    assert {stage.validation_loss_before for stage in recorder.stages} == {None}
    assert {stage.validation_loss_after for stage in recorder.stages} == {None}


def test_the_run_closes_with_the_table(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every stage has its row, and the directory its line."""
    recorder = StageRecorder()
    make_run([recorder]).fit()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines]
    for stage in recorder.stages:
        (row,) = (row for row in rows if row[:2] == [str(stage.stage), str(stage.depth)])
        assert row[-2] == f"{stage.validation_loss_before:.4f}"
        assert row[-1] == f"{stage.validation_loss_after:.4f}"
    assert lines[-1] == f"The run is in {tmp_path}"


def test_another_module_is_refused(make_run: MakeRun) -> None:
    """A module whose loss can't be measured is named."""
    run = make_run()
    with pytest.raises(TypeError, match="LightningModule is no Distillation"):
        StageRecorder().setup(run.trainer, L.LightningModule(), "fit")

"""The check at a fit's start: what it says, what it stops, and that it leaves no trace."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.hubert.modeling_hubert import HubertFeedForward

from interstack.distillation import precision as precision_file
from interstack.distillation.module import Distillation
from interstack.distillation.precision import _worst_of_ranks
from interstack.errors import DataError, PrecisionError
from interstack.models.config import TeacherConfig
from interstack.models.precision import PrecisionReport
from interstack.tracking.events import read_events
from tests.distillation.small_runs import SMALL, fit, make_module, make_trainer, training_batches
from tests.target_cache.cached_runs import fit as fit_by_command

BF16 = ("--trainer.precision=bf16-mixed", "--model.teacher.dtype=bfloat16")
WRONG_LAYER = "model.encoder.layers.0.feed_forward"


@pytest.fixture
def wrong_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Feed-forward networks that are right in float32 alone."""
    right = HubertFeedForward.forward

    def wrong(self: HubertFeedForward, hidden: Tensor) -> Tensor:
        found: Tensor = right(self, hidden)
        return found if found.dtype == torch.float32 else -found

    monkeypatch.setattr(HubertFeedForward, "forward", wrong)


def precision_events(directory: Path) -> list[dict[str, Any]]:
    """A run's events of the check."""
    return [dict(event) for event in read_events(directory) if event["kind"] == "precision"]


def test_student_and_teacher_are_reported_and_nothing_else_changes(
    teacher_directory: Path, tmp_path: Path
) -> None:
    """In events.jsonl; the weights are those of a run without the check, bit by bit."""
    assert fit_by_command(tmp_path / "checked", teacher_directory, *BF16) == 0
    off = "--model.precision_check=false"
    assert fit_by_command(tmp_path / "unchecked", teacher_directory, *BF16, off) == 0
    teacher, student = precision_events(tmp_path / "checked")
    assert (teacher["model"], teacher["format"], teacher["step"]) == ("teacher", "bfloat16", 0)
    assert (student["model"], student["format"], student["step"]) == ("student", "bf16-mixed", 0)
    for event in (teacher, student):
        assert 0 < event["error"] < event["bound"]
        assert event["layer"]
    assert not precision_events(tmp_path / "unchecked")
    checked, unchecked = (
        load_file(tmp_path / name / "student" / "model.safetensors")
        for name in ("checked", "unchecked")
    )
    assert all(torch.equal(checked[name], unchecked[name]) for name in checked)


@pytest.mark.usefixtures("wrong_in_bfloat16")
def test_a_run_with_a_wrong_layer_stops_before_its_first_step(teacher_directory: Path) -> None:
    """With layer, setting and fix; unless the check is off."""
    batches = training_batches(1)
    trainer = make_trainer(max_steps=1, depths=(2,), precision="bf16-mixed")
    expected = rf"trainer.precision bf16-mixed computes {WRONG_LAYER} .* give .* 32-true, or "
    with pytest.raises(PrecisionError, match=expected):
        fit(trainer, make_module(teacher_directory), batches)
    assert trainer.global_step == 0
    unchecked = Distillation(
        TeacherConfig(str(teacher_directory), (2, 4)), SMALL, initial_depth=2, precision_check=False
    )
    trainer = make_trainer(max_steps=1, depths=(2,), precision="bf16-mixed")
    fit(trainer, unchecked, batches)
    assert trainer.global_step == 1


@pytest.mark.usefixtures("wrong_in_bfloat16")
def test_a_wrong_teacher_is_named_by_its_own_setting(teacher_directory: Path) -> None:
    """The student in float32 has no part in it."""
    teacher = TeacherConfig(str(teacher_directory), (2, 4), dtype="bfloat16")
    module = Distillation(teacher, SMALL, initial_depth=2)
    trainer = make_trainer(max_steps=1, depths=(2,))
    expected = "model.teacher.dtype bfloat16 computes body.encoder.layers.0.feed_forward of the tea"
    with pytest.raises(PrecisionError, match=expected):
        fit(trainer, module, training_batches(1))


def test_nothing_is_computed_where_all_is_float32(
    teacher_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No batch is read, either."""
    monkeypatch.setattr(precision_file, "_sample", lambda _: pytest.fail("a batch was read"))
    module = make_module(teacher_directory)
    fit(make_trainer(max_steps=1, depths=(2,)), module, training_batches(1))
    assert module.precision_reports == []


def test_without_validation_training_data_serve(
    teacher_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says what was found."""
    module = make_module(teacher_directory)
    trainer = make_trainer(max_steps=1, depths=(2,), precision="bf16-mixed", limit_val_batches=0)
    with caplog.at_level(logging.INFO, "interstack"):
        fit(trainer, module, training_batches(1))
    (report,) = module.precision_reports
    assert report.model == "student"
    assert str(report) in caplog.messages


def test_ranks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them have the worst report of each model, or the error of any."""
    mine = PrecisionReport("student", "bf16-mixed", "a", 0.01, 0.5)
    other = PrecisionReport("student", "bf16-mixed", "b", 1.2, 0.5)
    others: list[Any] = [[other]]

    def gather(everyone: list[Any], own: Any) -> None:  # noqa: ANN401
        everyone[:] = [own, *others]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert _worst_of_ranks([mine], 1) == [mine]
    assert _worst_of_ranks([mine], 2) == [other]
    others[0] = DataError("clips/a.flac is damaged")
    with pytest.raises(DataError, match="damaged"):
        _worst_of_ranks([mine], 2)

"""Runs whose layers are compiled: from the first step to the last growth, also when resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from interstack.distillation.module import Distillation
from interstack.errors import ConfigurationError
from interstack.models.config import TeacherConfig
from interstack.models.teacher import Teacher
from tests.distillation.small_runs import (
    SMALL,
    SaveAfterFirstEpoch,
    fit,
    loader,
    make_trainer,
    training_batches,
)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Layers that were compiled, in that order; they run as they are."""
    layers: list[nn.Module] = []

    def compile_(self: nn.Module, *, dynamic: bool) -> None:
        assert dynamic
        self._compiled_call_impl = self._call_impl
        layers.append(self)

    monkeypatch.setattr(nn.Module, "compile", compile_)
    return layers


def make(teacher_directory: Path) -> Distillation:
    """A module whose layers are to be compiled."""
    teacher = TeacherConfig(str(teacher_directory), (2, 4))
    return Distillation(teacher, SMALL, initial_depth=2, compile_layers=True)


def layers_of(module: Distillation) -> list[nn.Module]:
    """The student's layers and the teacher's."""
    assert isinstance(module.teacher, Teacher)
    teachers = module.teacher.body.encoder.layers
    assert isinstance(teachers, nn.ModuleList)
    return [*module.student.layers, *teachers]


def train(module: Distillation, *callbacks: Callback, checkpoint: Path | None = None) -> None:
    """Train for two epochs of two batches, with a growth between them."""
    fit(make_trainer(*callbacks, max_epochs=2), module, training_batches(2), checkpoint)


def test_every_layer_is_compiled_once(
    compiled: list[nn.Module], teacher_directory: Path, tmp_path: Path
) -> None:
    """In a run that grows, and in one that goes on amid it; checkpoints say nothing of it."""
    path = tmp_path / "cut.ckpt"
    whole = make(teacher_directory)
    train(whole, SaveAfterFirstEpoch(path))
    assert (whole.depth, len(compiled)) == (4, 8)
    assert {id(layer) for layer in compiled} == {id(layer) for layer in layers_of(whole)}
    saved = torch.load(path, weights_only=True)
    assert not [name for name in saved["state_dict"] if "compile" in name or "orig_mod" in name]
    assert "compile_layers" not in saved["hyper_parameters"]
    compiled.clear()
    resumed = make(teacher_directory)
    train(resumed, checkpoint=path)
    assert {id(layer) for layer in compiled} == {id(layer) for layer in layers_of(resumed)}
    for name, weight in resumed.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name])


def test_a_judge_compiles_nothing(compiled: list[nn.Module], teacher_directory: Path) -> None:
    """A single pass does not earn the time back."""
    make_trainer().validate(make(teacher_directory), loader(training_batches(1)), verbose=False)
    assert not compiled


def test_a_run_that_can_not_compile_does_not_begin(
    teacher_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is missing."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigurationError, match="compile_layers needs no-such-compiler on a CPU"):
        train(make(teacher_directory))

"""Batches whose loss is not finite stop the run, and it is said whose fault it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interstack.distillation.module import Distillation
from interstack.distillation.nan_guard import NonFiniteBatches, NonFinitePolicy, NumberFormats
from interstack.errors import ConfigurationError, DataError
from interstack.models.teacher import TeacherOutput
from tests.distillation.small_runs import (
    loader,
    make_batch,
    make_module,
    make_trainer,
    training_batches,
)
from tests.distillation.spoilt_runs import NAN, skipping, spoilt, train


def ready(module: Distillation) -> Distillation:
    """A module as it is after setup, in eval mode."""
    module.setup("validate")
    return module.eval()


def poison(
    module: Distillation,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Tensor], object],
) -> None:
    """Change the teacher's last hidden state before the module sees it."""
    ask = module.teacher.forward

    def forward(waveforms: Tensor, num_samples: Tensor, **options: bool) -> TeacherOutput:
        told = ask(waveforms, num_samples, **options)
        change(told.hidden_states[-1])
        return told

    monkeypatch.setattr(module.teacher, "forward", forward)


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_target_that_is_not_finite_stops_the_run_with_step_and_name(
    value: float, teacher_directory: Path, clips: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any weight has changed; the other utterances are not blamed."""
    module = make_module(teacher_directory)
    module.setup("fit")
    poison(module, monkeypatch, lambda states: states[1, 3].fill_(value))
    poison(module, monkeypatch, lambda states: states[2, -1].fill_(value))  # its padding
    before = {name: weight.clone() for name, weight in module.student.state_dict().items()}
    batch = make_batch(clips)._replace(ids=("9001-1", "9002-2", "9003-3"))
    with pytest.raises(
        DataError, match=r"^step 0: the target of 9002-2 is not.*overflows there, in"
    ):
        train(make_trainer(max_steps=4), module, [batch])
    for name, weight in module.student.state_dict().items():
        assert torch.equal(weight, before[name])


def test_a_run_stops_at_the_step_of_the_bad_batch_and_says_which(teacher_directory: Path) -> None:
    """With the way to go on without it."""
    batches = training_batches(3)
    module = make_module(teacher_directory)
    with pytest.raises(
        DataError, match=r"^step 2: the audio of bad is not.*model\.non_finite skip"
    ):
        train(make_trainer(max_steps=4), module, [*batches[:2], spoilt(batches[2])])


def test_what_padding_holds_does_not_stop_a_run(
    teacher_directory: Path, clips: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last frames of the shortest utterance mean nothing."""
    module = ready(make_module(teacher_directory))
    clean = module.batch_loss(make_batch(clips)).sums.by_tap
    poison(module, monkeypatch, lambda states: states[2, -20:].fill_(NAN))
    assert torch.equal(module.batch_loss(make_batch(clips)).sums.by_tap, clean)


def test_audio_that_is_not_finite_is_blamed_before_what_comes_of_it(
    teacher_directory: Path, clips: list[Tensor]
) -> None:
    """NaN after an utterance's end is nobody's fault."""
    module = ready(make_module(teacher_directory))
    batch = spoilt(make_batch(clips), row=1)
    batch.waveforms[2, -1] = NAN
    assert module.batch_loss(batch).fault("here").startswith("here: the audio of bad is not finite")


def test_a_student_that_has_diverged_is_told_from_a_bad_target(
    teacher_directory: Path, clips: list[Tensor]
) -> None:
    """The mend is another one."""
    module = ready(make_module(teacher_directory))
    with torch.no_grad():
        next(module.student.heads.parameters()).fill_(float("inf"))
    loss = module.batch_loss(make_batch(clips))
    assert not loss.is_finite
    assert loss.fault("here").startswith("here: the prediction of a, b, c is not finite")
    assert "model.optimizer.learning_rate" in loss.fault("here")


def test_an_overflow_of_the_loss_alone_points_to_the_target_norm(
    teacher_directory: Path, clips: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets of 1e30 are finite, their squares are not."""
    module = ready(make_module(teacher_directory))
    poison(module, monkeypatch, lambda states: states.fill_(1e30))
    loss = module.batch_loss(make_batch(clips))
    assert not loss.is_finite
    assert loss.fault("here").startswith("here: the loss of a, b, c overflows")
    assert loss.fault("here").endswith("target_norm to layer_norm")


@pytest.mark.parametrize(
    ("formats", "whose", "advised", "not_advised"),
    [
        (("float16", "32-true", "none"), "target", "float32 or bfloat16", "trainer"),
        (("bfloat16", "32-true", "none"), "target", "dtype float32,", "bfloat16"),
        (("float32", "32-true", "none"), "target", "leave these utterances out", "dtype"),
        (("float32", "16-mixed", "none"), "prediction", "bf16-mixed or 32-true", "dtype"),
        (("float32", "32-true", "none"), "prediction", "model.optimizer.learning_rate", "32-true"),
    ],
)
def test_no_fix_is_advised_that_is_in_place_already(
    formats: tuple[str, str, str], whose: str, advised: str, not_advised: str
) -> None:
    """Such as float32 for a teacher that overflows in float32."""
    fix = NumberFormats(*formats).fix(whose)
    assert advised in fix
    assert not_advised not in fix


def test_a_layer_norm_is_not_advised_twice() -> None:
    """Where targets are normalised already, the student is what is left."""
    assert "learning_rate" in NumberFormats("float32", "32-true", "layer_norm").overflow_fix


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("kind", ["validation", "test"])
def test_validation_and_test_stop_whatever_training_does(
    kind: str, policy: NonFinitePolicy, teacher_directory: Path
) -> None:
    """A loss without a batch of its data is another loss; the message says which batch it was."""
    first, second = training_batches(2)
    module = skipping(teacher_directory, non_finite=policy)
    trainer = make_trainer()
    judge = trainer.validate if kind == "validation" else trainer.test
    with pytest.raises(DataError, match=f"^{kind} batch 1: the audio of bad is not finite"):
        judge(module, loader([first, spoilt(second)]), verbose=False)
    (clean,) = judge(module, loader([first, second]), verbose=False)
    assert all(value > 0 for value in clean.values())


def test_another_policy_is_refused() -> None:
    """With what there is."""
    with pytest.raises(ConfigurationError, match="no non_finite 'warn': choose one of stop, skip"):
        NonFiniteBatches("warn")  # type: ignore[arg-type]

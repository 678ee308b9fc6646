"""The LightningModule: its loss, its validation, and a teacher that is only asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, WhisperModel

from interstack.data.batch import Batch
from interstack.data.datamodule import SpeechDataModule
from interstack.data.folder import LibriSpeechFolder
from interstack.distillation.module import FINAL_NORM_KEY, Distillation
from interstack.distillation.objective import ObjectiveConfig
from interstack.distillation.optimizer import OptimizerConfig
from interstack.errors import ConfigurationError
from interstack.models.student import StudentOutput
from tests.distillation.small_runs import (
    SaveAfterFirstEpoch,
    fit,
    loader,
    make_batch,
    make_module,
    make_trainer,
    small_student,
    training_batches,
)
from tests.models.families import pad, read_speech, save, whisper_config

SPEECH = Path(__file__).parents[2] / "assets/speech"


def ready(module: Distillation) -> Distillation:
    """A module as it is after setup, in eval mode."""
    module.setup("validate")
    return module.eval()


@pytest.fixture
def whisper_directory(tmp_path: Path) -> Path:
    """A small Whisper with random weights and positions for one second."""
    torch.manual_seed(2)
    WhisperModel(whisper_config()).save_pretrained(tmp_path / "whisper")
    return tmp_path / "whisper"


def hidden_states(directory: Path, clip: Tensor, taps: Sequence[int]) -> list[Tensor]:
    """The teacher's hidden states of one utterance, (frames, width), by transformers alone."""
    model = AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        told = model(clip[None], output_hidden_states=True).hidden_states
    return [told[tap][0] for tap in taps]


# Loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["none", "layer_norm"])
def test_the_loss_is_the_papers_over_transformers_hidden_states(
    norm: Any,  # noqa: ANN401, a Literal
    teacher_directory: Path,
    clips: list[Tensor],
) -> None:
    """Computed by hand: utterances one by one, teacher and student by transformers."""
    module = ready(make_module(teacher_directory, objective=ObjectiveConfig(target_norm=norm)))
    squares: list[list[Tensor]] = [[], []]
    for clip in clips:
        targets = hidden_states(teacher_directory, clip, (2, 4))
        states = module.student.model(clip[None], output_hidden_states=True).hidden_states
        for tap, (target, layer) in enumerate(zip(targets, (1, 2), strict=True)):
            if norm == "layer_norm":
                target = torch.nn.functional.layer_norm(target, (16,))
            squares[tap].append((module.student.heads[tap](states[layer][0]) - target) ** 2)
    means = torch.stack([torch.cat(each).mean() for each in squares])
    sums = module.batch_loss(make_batch(clips)).sums
    torch.testing.assert_close(sums.by_tap / sums.num_frames, means, atol=1e-4, rtol=1e-4)
    trainer = make_trainer()
    (measured,) = trainer.validate(module, loader([make_batch(clips)]), verbose=False)
    assert measured["val/loss"] == pytest.approx((means[1] + 0.5 * means.mean()).item(), rel=1e-4)
    assert measured["val/loss_tap_2"] == pytest.approx(means[0].item(), rel=1e-4)
    assert measured["val/loss_tap_4"] == pytest.approx(means[1].item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["mse", "distilhubert"])
@pytest.mark.parametrize("teacher", ["hubert", "whisper"])
def test_an_utterances_loss_does_not_depend_on_its_batch(
    kind: Any,  # noqa: ANN401, a Literal
    teacher: str,
    teacher_directory: Path,
    whisper_directory: Path,
) -> None:
    """The batch's sums are those of its utterances alone, for both kinds of front end."""
    clips = read_speech(0.6, 0.95, 0.7)
    directory = teacher_directory if teacher == "hubert" else whisper_directory
    objective = ObjectiveConfig(kind, target_norm="layer_norm")
    module = ready(make_module(directory, taps=(1, 3), objective=objective))
    together = module.batch_loss(make_batch(clips)).sums
    alone = [module.batch_loss(make_batch([clip])).sums for clip in clips]
    assert sum(int(sums.num_frames) for sums in alone) == together.num_frames
    summed = torch.stack([sums.by_tap for sums in alone]).sum(0)
    torch.testing.assert_close(summed, together.by_tap, atol=1e-4, rtol=1e-4)


def test_validation_does_not_depend_on_how_utterances_are_batched(
    teacher_directory: Path, clips: list[Tensor]
) -> None:
    """The loss is over all frames, not the mean of batches' means."""
    module = make_module(teacher_directory)
    losses = []
    for division in ([clips], [clips[:1], clips[1:]], [[clip] for clip in clips]):
        batches = [make_batch(each) for each in division]
        (measured,) = make_trainer().validate(module, loader(batches), verbose=False)
        losses.append(measured["val/loss"])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)


def test_each_validation_starts_anew(teacher_directory: Path) -> None:
    """Nothing of the last one is left in the metric, and test has one of its own."""
    module = make_module(teacher_directory)
    first, second = (loader([batch]) for batch in training_batches(2))
    trainer = make_trainer()
    (before,) = trainer.validate(module, first, verbose=False)
    trainer.validate(module, second, verbose=False)
    (after,) = trainer.validate(module, first, verbose=False)
    (tested,) = trainer.test(module, first, verbose=False)
    assert before == after
    assert tested["test/loss"] == pytest.approx(before["val/loss"])


def test_training_lowers_the_loss_at_both_depths(teacher_directory: Path) -> None:
    """Thirty steps on one batch, grown in between."""
    (batch,) = training_batches(1)
    optimizer = OptimizerConfig(learning_rate=3e-3)
    module = make_module(teacher_directory, optimizer=optimizer)
    losses: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    fit(make_trainer(Watch(), max_steps=30), module, [batch])
    assert len(losses) == 30
    assert module.depth == 4
    assert losses[14] < 0.9 * losses[0]
    assert losses[-1] < losses[15]


def test_predictions_are_the_students_hidden_states(
    teacher_directory: Path, clips: list[Tensor]
) -> None:
    """As many as layers, and one; valid frames told."""
    module = make_module(teacher_directory)
    module.setup("fit")
    predicted = make_trainer().predict(module, loader([make_batch(clips)]))
    assert predicted is not None
    output = predicted[0]
    assert isinstance(output, StudentOutput)
    expected = module.student.eval()(*pad(clips))
    assert len(output.hidden_states) == 3
    for mine, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, theirs)


# Teacher ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("front_end", ["own", "shared"])
def test_the_teacher_is_never_trained_and_no_part_of_the_module(
    front_end: Any,  # noqa: ANN401, a Literal
    teacher_directory: Path,
) -> None:
    """No parameter of it is the module's or the optimizer's, and none changes in training."""
    module = make_module(teacher_directory, student=small_student(front_end=front_end))
    module.setup("fit")
    before = {name: weight.clone() for name, weight in module.teacher.state_dict().items()}
    own = {weight.data_ptr() for weight in module.teacher.parameters()}
    trainer = make_trainer(max_steps=4)
    fit(trainer, module, training_batches(2))
    assert own.isdisjoint(parameter.data_ptr() for parameter in module.parameters())
    assert all(name.startswith("student.") for name, _ in module.named_parameters())
    (optimizer,) = trainer.optimizers
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in module.student.parameters() if p.requires_grad}
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())
    for name, weight in module.teacher.state_dict().items():
        assert torch.equal(weight, before[name])


def test_a_shared_front_end_stays_the_teachers(teacher_directory: Path) -> None:
    """Training, weight decay and growth leave it as it is."""
    student = small_student(front_end="shared")
    optimizer = OptimizerConfig(learning_rate=1e-2, weight_decay=0.5)
    module = make_module(teacher_directory, student=student, optimizer=optimizer)
    fit(make_trainer(max_steps=4), module, training_batches(2))
    mine = module.student.model.feature_extractor.state_dict()
    for name, weight in module.teacher.feature_extractor.state_dict().items():
        assert torch.equal(mine[name], weight)


def test_the_teacher_is_in_eval_mode_whatever_the_module_is(
    teacher_directory: Path, clips: list[Tensor]
) -> None:
    """Its dropout would blur the targets."""
    module = make_module(teacher_directory)
    module.setup("fit")
    module.train()
    module.teacher.train()
    assert module.student.training
    assert not any(part.training for part in module.teacher.modules())
    first, second = (module.teacher(*pad(clips)).hidden_states for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# Channel statistics -----------------------------------------------------------------------------


def channel_statistics(
    directory: Path, batches: Sequence[Batch], tap: int
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a teacher's channels over these batches, one by one."""
    frames = torch.cat(
        [
            hidden_states(directory, waveform[:length], (tap,))[0]
            for batch in batches
            for waveform, length in zip(batch.waveforms, batch.num_samples.tolist(), strict=True)
        ]
    )
    return frames.mean(0), frames.std(0, correction=0)


@pytest.mark.parametrize(("seconds", "used"), [(600.0, 3), (2.0, 2)])
def test_channel_statistics_are_measured_on_the_training_data_at_fit_start(
    seconds: float, used: int, teacher_directory: Path
) -> None:
    """On as many batches as make the seconds asked for, by way of plain data loaders too."""
    batches = training_batches(3)
    objective = ObjectiveConfig(target_norm="channel", target_norm_seconds=seconds)
    module = make_module(teacher_directory, objective=objective)
    fit(make_trainer(max_steps=2), module, batches)
    for tap, layer in enumerate((2, 4)):
        mean, std = channel_statistics(teacher_directory, batches[:used], layer)
        torch.testing.assert_close(module.target_norm.mean[tap], mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(module.target_norm.std[tap], std, atol=1e-4, rtol=1e-4)


def test_channel_statistics_are_kept_in_the_checkpoint(
    teacher_directory: Path, tmp_path: Path
) -> None:
    """A resumed run goes on with the statistics it began with, whatever data it is given."""
    objective = ObjectiveConfig(target_norm="channel")
    module = make_module(teacher_directory, objective=objective)
    path = tmp_path / "cut.ckpt"
    fit(make_trainer(SaveAfterFirstEpoch(path), max_epochs=2), module, training_batches(2))
    resumed = make_module(teacher_directory, objective=objective)
    other = [batch._replace(waveforms=0.1 * batch.waveforms) for batch in training_batches(2)]
    fit(make_trainer(max_epochs=2), resumed, other, path)
    assert torch.equal(resumed.target_norm.mean, module.target_norm.mean)
    assert torch.equal(resumed.target_norm.std, module.target_norm.std)
    assert not resumed.target_norm.wants_statistics


def test_only_what_loggers_are_given_is_kept(teacher_directory: Path) -> None:
    """But the loss, which callbacks may ask for at any step."""
    kept: list[set[str]] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            results: Any = trainer._results
            kept.append({key.partition(".")[2] for key in results})

    trainer = make_trainer(Look(), max_steps=4, log_every_n_steps=3)
    fit(trainer, make_module(teacher_directory), training_batches(4))
    assert kept[0] == kept[1] == {"train/loss"}
    assert kept[2] > {"train/loss", "train/loss_tap_4", "train/learning_rate", "train/depth"}


# Real data --------------------------------------------------------------------------------------


def test_a_run_on_the_embedded_speech_grows_and_validates(teacher_directory: Path) -> None:
    """With the project's own data module, batches by duration and a new order every epoch."""
    source = LibriSpeechFolder(SPEECH, train=("test-clean",), validation=("dev-clean",))
    data = SpeechDataModule(source, batch_seconds=10.0, max_seconds=1.0, num_workers=0)
    objective = ObjectiveConfig(target_norm="channel", target_norm_seconds=5.0)
    module = make_module(
        teacher_directory, objective=objective, optimizer=OptimizerConfig(learning_rate=3e-3)
    )
    trainer = make_trainer(
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )
    (before,) = trainer.validate(module, data, verbose=False)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 2 * trainer.num_training_batches
    assert module.depth == 4
    assert trainer.callback_metrics["train/depth"] == 4
    after = trainer.callback_metrics["val/loss"].item()
    assert after < before["val/loss"]


def test_a_run_of_before_the_final_norm_is_not_resumed(tmp_path: Path) -> None:
    """Its top target was another one, where a pre-LN teacher is tapped at its top layer."""
    teacher = save("hubert-large", tmp_path)
    path, batches = tmp_path / "run.ckpt", training_batches(2)
    trainer = make_trainer(max_steps=2)
    fit(trainer, make_module(teacher, taps=(1, 3)), batches)
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint[FINAL_NORM_KEY]
    torch.save(checkpoint, path)
    with pytest.raises(ConfigurationError, match="lacked its final layer norm: start a new run"):
        fit(make_trainer(max_steps=4), make_module(teacher, taps=(1, 3)), batches, path)

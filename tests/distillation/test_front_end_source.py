"""A front end of another model than the teacher: trained, frozen or cached beside the targets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Literal

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from transformers import AutoFeatureExtractor, AutoModel, HubertConfig, HubertModel

from interstack.checkpointing.inspect import read_checkpoint
from interstack.cli import main
from interstack.commands.resuming import check_same_model
from interstack.data import LibriSpeechFolder, SpeechDataModule
from interstack.distillation.module import Distillation
from interstack.errors import ConfigurationError
from interstack.export.huggingface import load_student
from interstack.models.config import TeacherConfig
from interstack.models.flops import forward_macs
from interstack.models.pretrained_front_end import PretrainedFrontEnd
from interstack.tracking.flops import training_flops
from tests.distillation.small_runs import (
    SaveAfterFirstEpoch,
    make_batch,
    make_trainer,
    small_student,
    training_batches,
)
from tests.distillation.small_runs import fit as fit_module
from tests.models.families import TRANSFORMER, pad, read_speech, save
from tests.target_cache.cached_runs import MAX_SECONDS, SPEECH, cache, fit, fit_words, settings

FrontEnd = Literal["copy", "shared"]
TAPS: Final = (1, 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models: a Whisper, HuBERTs with both kinds of front end, one of 10 ms a frame."""
    directory = tmp_path_factory.mktemp("models")
    for family in ("whisper", "hubert-base", "hubert-large"):
        save(family, directory)
    shape = {**TRANSFORMER, "conv_stride": (5, 2, 2, 2, 2, 2, 1)}
    HubertModel(HubertConfig(**shape)).save_pretrained(directory / "hubert-10ms")
    return directory


@pytest.fixture(scope="module")
def whisper_cache(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """A finished cache in float32 of the Whisper, with features of the large HuBERT."""
    directory = tmp_path_factory.mktemp("caches") / "float32"
    assert cache(directory, models / "whisper", *words(models), "--dtype=float32") == 0
    return directory


def words(models: Path, source: str = "hubert-large") -> list[str]:
    """Return the options of a run with the Whisper and a shared front end of another model."""
    return [f"--model.student.front_end_source={models / source}", "--model.teacher.taps=[1,3]"]


def make_module(teacher: Path, source: Path | None, front_end: FrontEnd = "shared") -> Distillation:
    """Return a module that is not set up."""
    student = small_student(front_end=front_end)
    student = replace(student, front_end_source=None if source is None else str(source))
    return Distillation(TeacherConfig(str(teacher), TAPS), student, initial_depth=2)


def losses_by_tap(module: Distillation, target_cache: Path | None = None) -> list[torch.Tensor]:
    """Return the sums of the loss of two training batches, by tap."""
    datamodule = SpeechDataModule(
        LibriSpeechFolder(SPEECH),
        batch_seconds=8.0,
        max_seconds=MAX_SECONDS,
        crop="fixed",
        num_workers=0,
        target_cache=None if target_cache is None else str(target_cache),
    )
    datamodule.setup("fit")
    trainer: Any = SimpleNamespace(precision="32-true", datamodule=datamodule)
    module._trainer = trainer
    torch.manual_seed(0)
    module.setup("fit")
    module.eval()
    with torch.no_grad():
        batches = [batch for batch, _ in zip(datamodule.train_dataloader(), range(2), strict=False)]
        return [module.batch_loss(batch).sums.by_tap for batch in batches]


@pytest.mark.parametrize("front_end", ["copy", "shared"])
def test_live_is_cached_although_frames_differ(
    front_end: FrontEnd, models: Path, whisper_cache: Path
) -> None:
    """Whisper makes a frame more of a second than HuBERT; the cache needs no other files."""
    teacher, source = models / "whisper", models / "hubert-large"
    live = losses_by_tap(make_module(teacher, source, front_end))
    away = source.rename(models / "away")
    try:
        module = make_module(teacher, source, front_end)
        cached = losses_by_tap(module, whisper_cache)
    finally:
        away.rename(source)
    torch.testing.assert_close(cached, live, rtol=1e-6, atol=0)
    assert module.student.normalises_waveform
    assert module.extracts_features is False


@pytest.mark.parametrize("name", ["hubert-base", "hubert-10ms"])
def test_float16_is_within_its_bound(name: str, models: Path, tmp_path: Path) -> None:
    """Whether features or targets have more frames; what is stored is checked for precision."""
    teacher, source = models / "whisper", models / name
    assert cache(tmp_path / "half", teacher, *words(models, name)) == 0
    live = losses_by_tap(make_module(teacher, source))
    cached = losses_by_tap(make_module(teacher, source), tmp_path / "half")
    torch.testing.assert_close(cached, live, rtol=1e-4, atol=0)


@pytest.mark.parametrize("front_end", ["copy", "shared"])
def test_the_teacher_itself_as_source_is_no_source(front_end: FrontEnd, models: Path) -> None:
    """The same numbers, bit by bit; the arithmetic of the student's own front end is counted."""
    teacher = models / "hubert-large"
    with_source = make_module(teacher, teacher, front_end)
    without = make_module(teacher, None, front_end)
    pairs = zip(losses_by_tap(with_source), losses_by_tap(without), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    more = (
        2 * forward_macs(with_source.student.config, 2, 10.0).front_end
        if front_end == "shared"
        else 0.0
    )
    assert training_flops(with_source, 2) - training_flops(without, 2) == pytest.approx(more)


@pytest.mark.parametrize("source", ["hubert-base", "hubert-large"])
def test_an_utterance_does_not_depend_on_its_batch(source: str, models: Path) -> None:
    """Features and predictions of a short clip beside a long one; the source's own features."""
    module = make_module(models / "whisper", models / source)
    module.setup("fit")
    module.eval()
    clips = read_speech(0.6, 1.0)
    with torch.no_grad():
        together, _ = module(make_batch(clips))
        features = module.teacher_forward(make_batch(clips)).features
        alone, _ = module(make_batch(clips[:1]))
    frames = int(alone.num_frames)
    for padded, own in zip(together.predictions, alone.predictions, strict=True):
        torch.testing.assert_close(padded[0, :frames], own[0], rtol=0, atol=1e-4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        again = module.teacher_forward(make_batch(clips)).features
    expected = PretrainedFrontEnd(str(models / source))(*pad(clips))
    assert features is not None
    assert again is not None
    assert torch.equal(features, expected)
    assert torch.equal(again, expected)  # in float32 whatever the student computes in


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_a_resumed_run_ends_as_one_that_was_never_cut(models: Path, tmp_path: Path) -> None:
    """Bit by bit across a growth step, with an average; the source may lie elsewhere."""
    teacher, source = models / "whisper", models / "hubert-base"
    path = tmp_path / "cut.ckpt"
    batches = training_batches(2)
    torch.manual_seed(0)
    whole, resumed = make_module(teacher, source), make_module(teacher, tmp_path / "moved")
    saving = make_trainer(SaveAfterFirstEpoch(path), EMAWeightAveraging(), max_epochs=2)
    fit_module(saving, whole, batches)
    save("hubert-base", tmp_path).rename(tmp_path / "moved")
    fit_module(make_trainer(EMAWeightAveraging(), max_epochs=2), resumed, batches, path)
    assert resumed.depth == 4
    state = resumed.state_dict()
    assert all(torch.equal(state[name], each) for name, each in whole.state_dict().items())
    other = make_module(teacher, models / "other")
    save("hubert-base", tmp_path).rename(models / "other")
    shift_front_end(models / "other")
    with pytest.raises(ConfigurationError, match=r"front_end_source is .*other, but the run was"):
        fit_module(make_trainer(EMAWeightAveraging(), max_epochs=2), other, batches, path)


def shift_front_end(directory: Path) -> None:
    """Change the weights of a saved model's front end."""
    model = AutoModel.from_pretrained(directory)
    with torch.no_grad():
        model.feature_extractor.conv_layers[0].conv.weight.add_(0.1)
    model.save_pretrained(directory)


def test_a_cached_run_is_exported_and_resumes_with_its_own_source(
    models: Path, whisper_cache: Path, tmp_path: Path
) -> None:
    """By the command line: the export is the student, and its card names the front end's model."""
    target_cache = f"--data.target_cache={whisper_cache}"
    run, source = tmp_path / "run", str(models / "hubert-large")
    assert fit(run, models / "whisper", *words(models), target_cache) == 0
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert main(["export", f"--checkpoint={checkpoint}", f"--output={tmp_path / 'out'}"]) == 0
    assert f"`shared`, of `{source}`" in (tmp_path / "out" / "README.md").read_text()
    facts = json.loads((tmp_path / "out" / "interstack.json").read_text())
    assert facts["front_end_source"] == source
    (clip,) = read_speech(0.8)
    prepare = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    inputs = prepare(clip.numpy(), sampling_rate=16_000, return_tensors="pt")
    student, _ = load_student(checkpoint)
    with torch.inference_mode():
        exported = AutoModel.from_pretrained(tmp_path / "out").eval()(**inputs).last_hidden_state
        trained = student(*pad([clip])).hidden_states[-1]
    torch.testing.assert_close(exported, trained, rtol=0, atol=1e-5 * float(trained.abs().max()))
    saved = read_checkpoint(checkpoint)
    given = {**saved.model, "student": {**saved.model["student"], "front_end_source": "x/y"}}
    check_same_model(given, saved, resumes=True)  # another place
    given["student"]["front_end_source"] = None
    with pytest.raises(ConfigurationError, match=r"student\.front_end_source was .* and is None"):
        check_same_model(given, saved, resumes=True)
    older = {**saved.model["student"]}
    older.pop("front_end_source")
    saved = saved._replace(model={**saved.model, "student": older})
    given["student"]["front_end_source"] = source
    with pytest.raises(ConfigurationError, match=r"student\.front_end_source was None"):
        check_same_model(given, saved, resumes=True)


def test_another_front_end_than_the_caches_is_refused(
    models: Path, whisper_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a run and by the cache command; a source that only lies elsewhere is none."""
    elsewhere = save("hubert-large", tmp_path)
    moved = make_module(models / "whisper", elsewhere)
    assert len(losses_by_tap(moved, whisper_cache)) == 2
    other = words(models, "hubert-base")
    target_cache = f"--data.target_cache={whisper_cache}"
    assert fit(tmp_path / "run", models / "whisper", *other, target_cache) == 2
    line = capsys.readouterr().err
    assert "hubert-base, but the cache of targets holds features of the front end of" in line
    assert cache(whisper_cache, models / "whisper", *other, "--dtype=float32") == 2
    assert "hubert-base: give another --output" in capsys.readouterr().err


def test_a_plan_counts_the_front_end_apart(models: Path, tmp_path: Path) -> None:
    """In the steps' parts and in the arithmetic; a cache would save it with the teacher."""
    report = tmp_path / "plan.json"
    given = [*words(models), "--trainer.max_steps=4", "--seconds=0.1", f"--json={report}"]
    assert main(["plan", *settings(models / "whisper", *given)]) == 0
    plan = json.loads(report.read_text())
    assert list(plan["predicted"]["speedups"]) == ["as configured", "targets cached"]
    assert all(split["front_end"] > 0 for split in plan["measured"]["splits"].values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.student.front_end=own"], "has no effect with model.student.front_end own"),
        (["--model.student.front_end_source=/no/where"], "front_end_source is /no/where, which"),
        (["--model.student.front_end_source=WHISPER"], "is a model of type 'whisper', which can't"),
        (["--model.student.front_end_source=null"], "model.student.front_end_source a model that"),
    ],
)
def test_a_source_that_can_not_be_used_is_named(
    options: list[str],
    message: str,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line, before anything is trained."""
    given = [option.replace("WHISPER", str(models / "whisper")) for option in options]
    assert main([*fit_words(tmp_path, models / "whisper", *words(models)), *given]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "front_end" in line]
    assert message in line

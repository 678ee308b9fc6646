"""A checkpoint's student as a Hugging Face directory: exact, atomic, and with its provenance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel

from interstack.cli import main
from interstack.constants import SAMPLE_RATE
from interstack.export.card import write_card
from interstack.export.huggingface import (
    atomic_directory,
    export_student,
    load_student,
    padding_gap,
)
from interstack.export.provenance import Provenance
from tests.checkpointing.full_disks import NoSpace, full_disk
from tests.export.small_students import small_student
from tests.target_cache.cached_runs import fit


def export(checkpoint: Path, output: Path, *more: str) -> int:
    """Run the command and return its exit status."""
    return main(["export", f"--checkpoint={checkpoint}", f"--output={output}", *more])


@pytest.mark.parametrize("run", ["grown_run", "layer_norm_run"])
@pytest.mark.parametrize(("checkpoint", "depth"), [("stage-1.ckpt", 2), ("last.ckpt", 4)])
def test_transformers_gives_the_students_own_hidden_states(
    run: str,
    checkpoint: str,
    depth: int,
    tmp_path: Path,
    clips: list[Tensor],
    request: pytest.FixtureRequest,
) -> None:
    """At every stage's depth, for either norm, up to 1e-5 of their size, clip by clip."""
    path = request.getfixturevalue(run) / "checkpoints" / checkpoint
    assert export(path, tmp_path / "student") == 0
    card = (tmp_path / "student" / "README.md").read_text(encoding="utf-8")
    assert ("it is of stage 1 of 2, at depth 2 of 4" in card) is (depth == 2)
    model = AutoModel.from_pretrained(tmp_path / "student").eval()
    prepare = AutoFeatureExtractor.from_pretrained(tmp_path / "student")
    student, _ = load_student(path)
    assert student.depth == model.config.num_hidden_layers == depth
    for clip in clips:
        inputs = prepare(clip.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        with torch.inference_mode():
            theirs = model(**inputs, output_hidden_states=True)
            ours = student(clip[None], torch.tensor([len(clip)]))
        assert len(theirs.hidden_states) == depth + 1
        for exported, trained in zip(theirs.hidden_states, ours.hidden_states, strict=True):
            scale = float(trained.abs().max())
            torch.testing.assert_close(exported, trained, rtol=0, atol=1e-5 * scale)


def test_padding_disturbs_a_group_norm_and_not_a_layer_norm(
    grown_run: Path, layer_norm_run: Path, tmp_path: Path, clips: list[Tensor]
) -> None:
    """It is measured for the card, and the other front end is the way out."""
    gaps = []
    for run in (grown_run, layer_norm_run):
        assert export(run, tmp_path / run.name) == 0
        gaps.append(padding_gap(tmp_path / run.name, clips))
        card = (tmp_path / run.name / "README.md").read_text()
        assert "On clips of its corpus, padded to the longest" in card
    assert gaps[0] > 1e-2
    assert gaps[1] < 1e-5


def test_the_card_names_teacher_corpus_layers_and_stages(
    grown_run: Path, teacher_directory: Path, tmp_path: Path
) -> None:
    """Teacher, corpus, every layer's descent, stages with losses, command and versions."""
    assert export(grown_run / "checkpoints" / "last.ckpt", tmp_path / "student") == 0
    card = (tmp_path / "student" / "README.md").read_text()
    stages = json.loads((grown_run / "stages.json").read_text())["stages"]
    expected = [
        str(teacher_directory),
        "LibriSpeechFolder",
        "| 1 | 1 | 1 | original |  |",
        "| 2 | 1 | 2 | clone | hidden state 2 |",
        "| 4 | 2 | 2 | clone | hidden state 4 |",
        "python -m interstack.cli fit",
        "torch 2.",
        *(f"{stage['validation_loss_before']:.4f}" for stage in stages),
    ]
    for text in expected:
        assert text in card
    facts = json.loads((tmp_path / "student" / "interstack.json").read_text())
    assert facts["teacher"] == str(teacher_directory)
    assert [layer["block"] for layer in facts["layers"]] == [1, 1, 2, 2]
    assert facts["operator"] == "interleave"
    assert facts["step"] == 4


def test_a_finished_run_leaves_the_same_export(grown_run: Path, tmp_path: Path) -> None:
    """What the run wrote at its end is what the command writes of its last checkpoint."""
    assert export(grown_run, tmp_path / "student") == 0
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        written = (grown_run / "student" / name).read_bytes()
        assert written == (tmp_path / "student" / name).read_bytes(), name
    card = (grown_run / "student" / "README.md").read_text()
    assert "python -m interstack.cli fit" in card
    stages = json.loads((grown_run / "stages.json").read_text())["stages"]
    assert f"{stages[-1]['validation_loss_after']:.4f}" in card


def test_an_averaged_student_is_exported_and_its_card_says_so(
    teacher_directory: Path, tmp_path: Path
) -> None:
    """By the run at its end and by the command alike, also of a stage before; not the last step's.

    The run is none that other tests export from: their cards say nothing of an average.
    """
    average = {"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.5}}
    run = tmp_path / "run"
    assert fit(run, teacher_directory, f"--trainer.callbacks+={json.dumps(average)}") == 0
    for checkpoint, updates in (("stage-1.ckpt", 2), ("last.ckpt", 4)):
        content = torch.load(run / "checkpoints" / checkpoint, weights_only=True)
        output = tmp_path / checkpoint
        assert export(run / "checkpoints" / checkpoint, output) == 0
        exported = AutoModel.from_pretrained(output).state_dict()
        trained = []
        for name, weight in exported.items():
            if "parametrizations" not in name:  # weight norm, which transformers renames
                assert torch.equal(weight, content["state_dict"][f"student.model.{name}"]), name
                own = content["current_model_state"][f"student.model.{name}"]
                trained.append(torch.equal(weight, own))
        assert trained
        assert not all(trained)
        facts = json.loads((output / "interstack.json").read_text())["averaging"]
        assert (facts["callback"], facts["updates"]) == ("EMAWeightAveraging", updates)
        assert facts["settings"]["decay"] == 0.5
        said = "average over the training by `EMAWeightAveraging` with `{"
        assert said in (output / "README.md").read_text()
    last = (tmp_path / "last.ckpt" / "model.safetensors").read_bytes()
    assert (run / "student" / "model.safetensors").read_bytes() == last
    for name in ("README.md", "interstack.json"):
        written = (run / "student" / name).read_text()
        assert written == (tmp_path / "last.ckpt" / name).read_text(), name


def test_without_its_speech_a_checkpoint_is_exported_all_the_same(
    grown_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the padding gap is not measured then, with a warning."""
    content = torch.load(grown_run / "checkpoints" / "last.ckpt", weights_only=True)
    config = content["interstack_config"]
    content["interstack_config"] = config.replace("assets/speech", "assets/nowhere")
    assert content["interstack_config"] != config
    torch.save(content, tmp_path / "moved.ckpt")
    assert export(tmp_path / "moved.ckpt", tmp_path / "student") == 0
    assert "padding is not measured" in caplog.text
    assert "On clips of its corpus" not in (tmp_path / "student" / "README.md").read_text()


def test_what_can_not_be_exported_is_named(
    grown_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No checkpoint, a stranger's, a directory without any; and nothing is written."""
    stranger = tmp_path / "stranger.ckpt"
    torch.save({"state_dict": {}}, stranger)
    damaged = tmp_path / "damaged.ckpt"
    whole = (grown_run / "checkpoints" / "last.ckpt").read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("nothing.ckpt", "there is no checkpoint"),
        ("stranger.ckpt", "no checkpoint of an interstack run"),
        ("damaged.ckpt", "can't be read as a checkpoint"),
        ("empty", "has no checkpoint"),
    ):
        assert export(tmp_path / name, tmp_path / "student") == 2
        error = capsys.readouterr().err
        assert message in error
        assert name in error
    assert not (tmp_path / "student").exists()


def test_an_export_never_takes_the_place_of_anything(
    grown_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty directory is as good as none."""
    (tmp_path / "thesis.tex").write_text("years of work")
    assert export(grown_run, tmp_path) == 2
    assert "already there" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    assert export(grown_run, tmp_path / "empty") == 0
    assert (tmp_path / "empty" / "config.json").exists()


@pytest.mark.parametrize("size", [0, 10_000])
def test_an_export_on_a_full_disk_is_a_line(
    size: int, grown_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether the first file doesn't fit, or the weights, which another library writes."""
    with full_disk(size) if size else NoSpace(tmp_path):
        assert export(grown_run, tmp_path / "student") == 2
    error = capsys.readouterr().err
    why = "File too large" if size else "No space left on device"
    assert f"{tmp_path / 'student'} can't be written (" in error
    assert f"{why}): free space, or give --output another place" in error
    assert not list(tmp_path.iterdir())


def test_hidden_states_on_a_full_disk_are_a_line(
    grown_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that are written are whole."""
    words = [f"--ckpt_path={grown_run / 'checkpoints' / 'last.ckpt'}"]
    words += [f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_predict_batches=1"]
    assert main(["predict", *words]) == 0
    (first, *others) = sorted((tmp_path / "hidden_states").iterdir())
    for path in others:
        path.unlink()
    with full_disk(first.stat().st_size - 1):
        assert main(["predict", *words]) == 2
    error = capsys.readouterr().err
    assert ".safetensors can't be written (File too large): free space" in error
    assert "Traceback" not in error
    assert load_file(first)["hidden_states"].shape[0] == 5


def test_an_export_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    """Neither a partial directory nor its temporary one."""

    def break_off() -> None:
        with atomic_directory(tmp_path / "student") as part:
            (part / "config.json").touch()
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        break_off()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pre_ln", [False, True])
@pytest.mark.parametrize("stride", [(5, 2, 2, 2, 2, 2, 2), (5, 2, 2, 2, 2, 2, 1)])
def test_the_card_is_right_about_frames_and_the_last_hidden_state(
    pre_ln: bool, stride: tuple[int, ...], tmp_path: Path, clips: list[Tensor]
) -> None:
    """The hop is the student's, s3prl is named where it works, and transformers gives the norm."""
    student = small_student(pre_ln, stride)
    export_student(student, tmp_path)
    provenance = Provenance("teacher", (2,), "own", None, None, 1, None, (), (), None, {})
    write_card(tmp_path, provenance, student.config, student.num_parameters())
    card = (tmp_path / "README.md").read_text()
    published = stride[-1] == 2
    assert f"a frame each {20 if published else 10} ms" in card
    assert ("s3prl takes the directory" in card) is published
    assert ("expects a frame each 320 samples, and here it is 160" in card) is not published
    assert ("`last_hidden_state`" in card) is pre_ln
    model = AutoModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        theirs = model(clips[0][None], output_hidden_states=True)
        ours = student(clips[0][None], torch.tensor([len(clips[0])])).hidden_states
    torch.testing.assert_close(theirs.hidden_states, tuple(ours), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.last_hidden_state, ours[-1], rtol=1e-4, atol=1e-4)


def test_padding_is_measured_in_float32_whatever_the_weights_are(
    tmp_path: Path, clips: list[Tensor]
) -> None:
    """A directory in half precision is no error."""
    export_student(small_student(), tmp_path)
    AutoModel.from_pretrained(tmp_path, dtype=torch.float16).save_pretrained(tmp_path)
    assert padding_gap(tmp_path, clips) > 1e-3

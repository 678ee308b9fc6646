"""What is refused before anything is trained, and the table beside the published rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from interstack.errors import ConfigurationError
from interstack.evaluation.superb.results import collect, published, superb_score
from interstack.evaluation.superb.tasks import TASKS, presets, protocol
from tests.checkpointing.full_disks import NoSpace
from tests.models.families import edit_json
from tests.superb.superb_runs import superb


def test_a_mistyped_task_is_named(
    upstream: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With those that there are."""
    assert superb(upstream, data_root, tmp_path, "pr", "asrr") == 2
    error = capsys.readouterr().err
    assert "no SUPERB task asrr" in error
    assert "pr asr ks" in error


def test_another_architecture_is_refused(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text model is no upstream, and a directory that isn't there neither."""
    stranger = tmp_path / "bert"
    stranger.mkdir()
    (stranger / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (stranger / "model.safetensors").touch()
    assert superb(stranger, data_root, tmp_path / "out", "pr") == 2
    assert "model of type 'bert'" in capsys.readouterr().err
    assert superb(tmp_path / "nowhere", data_root, tmp_path / "out", "pr") == 2
    assert "nowhere" in capsys.readouterr().err


def test_frames_of_another_length_are_refused(
    upstream: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is trained or written: s3prl would end in an assertion."""
    fast = shutil.copytree(upstream, tmp_path / "fast")
    edit_json(fast / "config.json", conv_stride=[5, 2, 2, 2, 2, 2, 1])
    assert superb(fast, data_root, tmp_path / "out", "pr") == 2
    error = capsys.readouterr().err
    assert "fast has a frame each 160 samples (10 ms), but s3prl's recipes take 320" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", TASKS)
def test_missing_data_is_named_with_its_source(
    task: str, upstream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it at once, for every task, and nothing is written."""
    assert superb(upstream, tmp_path / "empty", tmp_path / "out", task) == 2
    error = capsys.readouterr().err
    assert f"the data of {task.upper()}" in error
    assert "is missing" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("task", "spoil", "message"),
    [
        ("pr", "LibriSpeech/dev-clean", "dev-clean is missing: LibriSpeech's parts"),
        ("pr", "lexicon/librispeech-lexicon-200k-g2p.txt", "s3prl's lexicons"),
        ("ks", "speech_commands_v0.01/_background_noise_/white_noise.wav", "has no *.wav below"),
        ("sid", "VoxCeleb1/dev/wav/id10001/video/00000.wav", "1 of the 32 files"),
        ("sf", "SNIPS/slots.txt", "slots.txt is missing: Audio SNIPS"),
        ("er", "IEMOCAP/Session3", "Session3/sentences/wav is missing"),
        ("qbe", "quesst14Database/scoring/language_key_dev.lst", "QUESST 2014"),
    ],
)
def test_a_gap_in_the_data_is_found_before_training(
    task: str,
    spoil: str,
    message: str,
    upstream: Path,
    data_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One thing that is missing among many that are there."""
    data = tmp_path / "data"
    shutil.copytree(data_root, data, copy_function=shutil.copy)
    gap = data / spoil
    shutil.rmtree(gap) if gap.is_dir() else gap.unlink()
    assert superb(upstream, data, tmp_path / "out", task) == 2
    assert message in capsys.readouterr().err


def test_words_without_phones_are_named(
    upstream: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lexicons have to know every word of the transcripts."""
    data = tmp_path / "data"
    shutil.copytree(data_root, data)
    lexicon = data / "lexicon" / "librispeech-lexicon-200k-g2p.txt"
    word = lexicon.read_text().split()[0]
    lexicon.write_text("\n".join(lexicon.read_text().splitlines()[1:]) + "\n")
    assert superb(upstream, data, tmp_path / "out", "pr") == 2
    assert f"no phones for {word!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pr.optimiser.lr=1", "no such setting"),
        ("name=1", "several such settings"),
        ("lr", "KEY=VALUE"),
    ],
)
def test_settings_that_are_not_there_are_refused(
    change: str,
    message: str,
    upstream: Path,
    data_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A mistyped setting must not be an option that does nothing."""
    assert superb(upstream, data_root, tmp_path, "pr", changes=(change,)) == 2
    assert message in capsys.readouterr().err


def test_presets_lay_their_changes_over_the_protocol() -> None:
    """ARMHuBERT's: a schedule, and SID ten times as fast; a change of ours comes last."""
    sid = TASKS["sid"]
    assert protocol(sid, "superb", {})["optimizer"]["lr"] == 1e-4
    changed = protocol(sid, "armhubert", {})
    assert changed["optimizer"] == {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1e-3}
    assert changed["scheduler"]["num_warmup_steps"] == 5000
    ours = protocol(sid, "armhubert", {"sid.lr": 0.5, "ks.lr": 3})
    assert ours["optimizer"]["lr"] == 0.5
    assert presets() == ["superb", "armhubert"]
    with pytest.raises(ConfigurationError, match="wavlm"):
        protocol(sid, "wavlm", {})


def test_the_score_runs_from_fbank_to_hubert_large() -> None:
    """By the leaderboard's references; a task with two metrics counts once."""
    references = published()["references"]
    assert superb_score({key: floor for key, (floor, _) in references.items()}) == pytest.approx(0)
    ceilings = {key: ceiling for key, (_, ceiling) in references.items()}
    assert superb_score(ceilings) == pytest.approx(1000)
    slots = {key: floor for key, (floor, _) in references.items()} | {"sf_f1": ceilings["sf_f1"]}
    judged = [task for task in TASKS.values() if task.metrics]
    assert superb_score(slots) == pytest.approx(1000 / 2 / len(judged))
    assert superb_score({"sf_f1": 80.0}) is None
    assert superb_score({}) is None


def test_published_rows_have_sources_and_known_metrics() -> None:
    """And no figure that a percentage or a weighted value can't have."""
    known = {metric.key for task in TASKS.values() for metric in task.metrics} | {"qbe_mtwv"}
    assert set(published()["references"]) == known
    for row in published()["rows"]:
        assert "arXiv" in row["source"]
        figures = {key: row[key] for key in row if key not in ("model", "parameters", "source")}
        assert figures.keys() <= known
        assert all(0 < value < 100 for value in figures.values())


def test_figures_are_means_over_variants_and_then_over_seeds() -> None:
    """With the spread over seeds, and a mark where a fold is missing."""

    def result(seed: int, fold: int, value: float) -> dict[str, Any]:
        return {"upstream": "mine", "seed": seed, "variant": fold, "metrics": {"er_acc": value}}

    seeds = {0: [10.0, 20, 30, 40, 50], 1: [40.0, 50, 60, 70, 80]}
    results = [
        result(seed, fold, value) for seed in seeds for fold, value in enumerate(seeds[seed], 1)
    ]
    figure = collect(results)["mine"]["er_acc"]
    assert figure.mean == pytest.approx(45)
    assert figure.spread == pytest.approx(30 / 2**0.5)
    assert figure.complete
    assert not collect(results[:-1])["mine"]["er_acc"].complete


def test_fbank_and_other_families_are_upstreams_too(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SUPERB's baseline, and a WavLM, which s3prl has no Hugging Face expert for."""
    from tests.models.families import save

    wavlm = save("wavlm-base", tmp_path)
    assert superb("fbank", data_root, tmp_path / "out", "pr", steps=1) == 0
    assert superb(wavlm, data_root, tmp_path / "out", "pr", steps=1) == 0
    printed = capsys.readouterr().out
    assert "fbank" in printed
    assert "DistilHuBERT" in printed


@pytest.mark.parametrize("num_workers", [0, 2])
def test_audio_that_can_not_be_read_is_named(
    num_workers: int,
    upstream: Path,
    data_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a line, whichever process reads it."""
    data = tmp_path / "data"
    shutil.copytree(data_root, data)
    spoilt = data / "VoxCeleb1" / "dev" / "wav" / "id10002" / "video" / "00001.wav"
    spoilt.write_bytes(b"RIFF")
    more = ("--num-workers", str(num_workers))
    assert superb(upstream, data, tmp_path / "out", "sid", steps=20, more=more) == 2
    error = capsys.readouterr().err
    assert f"error: {spoilt} can't be read as audio" in error
    assert "Traceback" not in error


def test_a_full_disk_is_said(
    upstream: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the same command goes on once there is room."""
    with NoSpace(tmp_path, "*.ckpt*"):
        assert superb(upstream, data_root, tmp_path, "pr", steps=2) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "same command again" in error
    assert superb(upstream, data_root, tmp_path, "pr", steps=2) == 0
    capsys.readouterr()
    with NoSpace(tmp_path, "*results.jsonl*"):
        assert superb(upstream, data_root, tmp_path, "pr", steps=2) == 2
    printed = capsys.readouterr()
    assert "results.jsonl can't be written (No space left on device): free space" in printed.err
    assert "SUPERB" in printed.out  # the table first


def test_records_of_jobs_that_can_not_be_read_are_no_new_jobs(
    upstream: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file server's fault costs no finished job: nobody is told to remove anything."""
    assert superb(upstream, data_root, tmp_path, "pr", steps=2) == 0
    (result,) = tmp_path.rglob("result.json")
    result.rename(result.with_suffix(".kept"))
    result.mkdir()
    capsys.readouterr()
    assert superb(upstream, data_root, tmp_path, "pr", steps=2) == 2
    error = capsys.readouterr().err
    assert f"{result} can't be read (Is a directory): give the same command again" in error
    assert "remove" not in error

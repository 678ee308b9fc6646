"""The probes of whole clips: whose voice, which kind of prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch

from benchmarks.clip_probe import (
    MOST_CLIPS,
    main,
    pool_clips,
    read_labelled_clips,
    run_clip_probe,
)
from interstack.errors import DataError
from interstack.evaluation.probe import ProbeSettings
from interstack.evaluation.upstreams import LogMelUpstream
from tests.checkpointing.full_disks import NoSpace

SPEECH = Path(__file__).parents[2] / "assets" / "speech" / "LibriSpeech"
QUICK = ProbeSettings(steps=200, evaluations=4, learning_rate=1e-2)
SPLITS = {"train-clean-100": 12, "dev-clean": 2, "test-clean": 3}
VOICES = {9001: "Allison Smith", 9002: "Fish Fillets cs small", 9003: "Fish Fillets cs big"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real voices, of which two play characters; the third says prompts of two folders."""
    root = tmp_path_factory.mktemp("voices")
    for split, count in SPLITS.items():
        for speaker in VOICES:
            clips = sorted((SPEECH / split / str(speaker)).rglob("*.flac"))
            clips = [clip for clip in clips if clip.stat().st_size > 20_000][: 2 * count]
            for number, clip in enumerate(clips):
                chapter = (1001, 1003)[number % 2] if speaker == 9001 else int(clip.parent.name)
                name = f"{speaker}-{chapter}-{number:04}.flac"
                target = root / "LibriSpeech" / split / str(speaker) / str(chapter) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(clip, target)
    rows = [f"{speaker} | F | train-clean-100 | 1.00 | {name}" for speaker, name in VOICES.items()]
    (root / "LibriSpeech" / "SPEAKERS.TXT").write_text("\n".join([";ID", *rows]) + "\n")
    return root


def test_voices_are_told_apart_and_prompts_are_not_among_them(corpus: Path) -> None:
    """Log-mel is enough for two characters; the labels are their names."""
    report = run_clip_probe("speaker", corpus, ["log-mel"], seeds=2, settings=QUICK)
    assert report.labels == ("cs big", "cs small")
    (one,) = report.upstreams
    assert min(one.score.test) >= 0.8
    assert min(one.score.balanced) >= 0.8
    assert one.score.test_standard_error >= 0


def test_a_folder_of_prompts_is_a_domain(corpus: Path, tmp_path: Path) -> None:
    """By its number, or by its name where the corpus has its manifest; dialogue has none."""
    clips = read_labelled_clips(corpus, "domain")
    labels = {clip.label for split in clips.values() for clip in split}
    assert labels == {"folder 1", "folder 3"}
    assert all(clip.id.startswith("9001-") for split in clips.values() for clip in split)
    named = tmp_path / "named"
    shutil.copytree(corpus, named)
    first = next((named / "LibriSpeech").glob("train-clean-100/9001/1001/*.flac"))
    samples, rate = soundfile.read(first)
    soundfile.write(first.with_suffix(".wav"), samples, rate)  # ids are paths then
    header = "id\tsplit\tsource_package\tsource_file"
    rows = [
        "9001-1001-0000\ttrain-clean-100\tasterisk-core\ten_US/activated.g722",
        "9001-1003-0001\ttrain-clean-100\tasterisk-core\ten_US/digits/1.g722",
    ]
    (named / "manifest.tsv").write_text("\n".join([header, *rows]) + "\n")
    renamed = read_labelled_clips(named, "domain")
    assert {clip.label for clip in renamed["train"]} == {"main", "digits"}


def test_clips_stay_in_the_corpus_splits(corpus: Path) -> None:
    """No clip is in two of them."""
    clips = read_labelled_clips(corpus, "speaker")
    for split, folder in zip(clips, SPLITS, strict=True):
        files = {file.stem for file in (corpus / "LibriSpeech" / folder).rglob("*.flac")}
        assert {clip.id for clip in clips[split]} <= files


def test_a_frequent_voice_is_drawn_from_by_ids(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more than the most of each label, and the same ones whatever else is there."""
    monkeypatch.setitem(MOST_CLIPS, "train", 6)
    few = read_labelled_clips(corpus, "speaker")["train"]
    counts = {label: sum(clip.label == label for clip in few) for label in ("cs big", "cs small")}
    assert counts == {"cs big": 6, "cs small": 6}
    monkeypatch.setitem(MOST_CLIPS, "train", 8)
    more = {clip.id for clip in read_labelled_clips(corpus, "speaker")["train"]}
    assert {clip.id for clip in few} < more


def test_a_clips_features_are_its_mean_over_time(corpus: Path) -> None:
    """Of each hidden state; log-mel is not normalised away for it."""
    clip = read_labelled_clips(corpus, "speaker")["test"][0]
    upstream = LogMelUpstream(pooled=True)
    pooled = pool_clips(upstream, [clip], ["cs big", "cs small"])
    expected = upstream.hidden_states(clip.waveform).mean(0)
    torch.testing.assert_close(pooled.hidden_states[0].float(), expected, rtol=1e-2, atol=1e-3)
    assert float(expected.abs().max()) > 0.1
    assert ["cs big", "cs small"][int(pooled.labels[0])] == clip.label


def test_the_command_probes_several_tasks_at_once(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table each, and one file of all; a mistyped one is named first."""
    path = tmp_path / "probes.json"
    words = ["--corpus", str(corpus), "--upstream", "log-mel", "--seeds", "1"]
    tasks = ["--tasks", "speaker", "domain"]
    assert main([*words, *tasks, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    probes = json.loads(path.read_text())["probes"]
    assert [probe["task"] for probe in probes] == ["speaker", "domain"]
    for probe in probes:
        assert f"{probe['upstreams'][0]['score']['test'][0]:.3f}" in printed
    with pytest.raises(SystemExit):
        main([*words, "--tasks", "speakers"])
    assert "invalid choice: 'speakers'" in capsys.readouterr().err
    nowhere = str(tmp_path / "no" / "probes.json")
    assert main([*words, *tasks, "--json", nowhere]) == 2
    assert "lies in no directory" in capsys.readouterr().err
    with NoSpace(tmp_path):
        assert main([*words, *tasks, "--json", str(tmp_path / "other.json")]) == 2
    assert "--json" in (printed := capsys.readouterr()).err
    assert "(No space left on device): free space" in printed.err
    assert not printed.out  # before anything is computed


def test_a_corpus_without_such_labels_is_refused(corpus: Path, tmp_path: Path) -> None:
    """Neither without speakers' names, nor with a single character."""
    bare = tmp_path / "bare"
    shutil.copytree(corpus, bare)
    table = bare / "LibriSpeech" / "SPEAKERS.TXT"
    table.write_text(table.read_text().replace("Fish Fillets cs big", "Somebody"))
    with pytest.raises(DataError, match="no two labels of speaker"):
        read_labelled_clips(bare, "speaker")
    table.unlink()
    with pytest.raises(DataError, match=r"SPEAKERS\.TXT is missing"):
        read_labelled_clips(bare, "speaker")


def test_random_is_an_untrained_copy_of_the_first_encoder(
    corpus: Path, teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And of nothing, where no encoder is given, which is said."""
    path = tmp_path / "probe.json"
    words = ["--corpus", str(corpus), "--tasks", "speaker", "--seeds", "1", "--json", str(path)]
    names = ["--upstream", "log-mel", "--upstream", str(teacher_directory), "--upstream", "random"]
    assert main([*words, *names]) == 0
    (probe,) = json.loads(path.read_text())["probes"]
    assert [one["upstream"] for one in probe["upstreams"]] == [
        "log-mel",
        str(teacher_directory),
        f"random:{teacher_directory}",
    ]
    assert main([*words, "--upstream", "random"]) == 2
    assert "names no model: give one to copy" in capsys.readouterr().err


def test_clips_that_can_not_be_used_are_skipped_by_the_command(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that breaks off and one below a frame: refused by name, or counted in table and file."""
    spoilt = tmp_path / "spoilt"
    shutil.copytree(corpus, spoilt)
    late, short = sorted((spoilt / "LibriSpeech" / "train-clean-100" / "9002").rglob("*.flac"))[:2]
    late.write_bytes(late.read_bytes()[:-2000])
    samples, rate = soundfile.read(short)
    soundfile.write(short, samples[:399], rate)
    path = tmp_path / "probe.json"
    words = ["--corpus", str(spoilt), "--tasks", "speaker", "--seeds", "1", "--json", str(path)]
    words += ["--upstream", "log-mel"]
    assert main([*words]) == 2
    assert f"error: {late} is corrupt" in capsys.readouterr().err
    assert main([*words, "--on-corrupt", "skip"]) == 0
    assert "skipped: 2 of train" in " ".join(capsys.readouterr().out.split())
    (probe,) = json.loads(path.read_text())["probes"]
    assert probe["num_skipped"] == {"train": 2, "validation": 0, "test": 0}
    assert probe["num_clips"]["train"] == len(read_labelled_clips(corpus, "speaker")["train"]) - 2

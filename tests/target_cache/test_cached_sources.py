"""Caches of streams, of a corpus with clips that can't be read, and of splits that are left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from interstack.cli import main
from interstack.data import skips
from interstack.target_cache.reader import SplitIndex
from tests.target_cache.cached_runs import SPEECH, cache, fit, losses, settings


def test_a_streamed_corpus_is_cached_as_a_folder_is(
    teacher_directory: Path, tmp_path: Path
) -> None:
    """The same losses with and without the cache, batch by batch."""
    packing = ["--source=LibriSpeechFolder", f"--source.root={SPEECH}"]
    assert main(["pack", *packing, f"--output={tmp_path / 'packed'}"]) == 0
    folders = {split: [str(tmp_path / "packed" / split)] for split in ("train", "validation")}
    stream = (
        f"--data.source={json.dumps({'class_path': 'Shards', 'init_args': folders})}",
        "--data.epoch_batches=6",
    )
    output = tmp_path / "cache"
    assert cache(output, teacher_directory, "--dtype=float32", *stream) == 0
    target_cache = f"--data.target_cache={output}"
    assert fit(tmp_path / "live", teacher_directory, *stream) == 0
    assert fit(tmp_path / "cached", teacher_directory, *stream, target_cache) == 0
    live, recalled = losses(tmp_path / "live"), losses(tmp_path / "cached")
    assert live.keys() == recalled.keys()
    for name, values in live.items():
        assert recalled[name] == pytest.approx(values, rel=1e-5), name


def test_clips_that_are_left_out_are_not_in_the_cache(
    teacher_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cache is finished without them and counts them; a run that skips them too takes it."""
    lines: list[str] = []
    monkeypatch.setattr(skips._log, "warning", lambda text, *parts: lines.append(text % parts))
    corpus = tmp_path / "speech"
    shutil.copytree(SPEECH, corpus)
    spoilt = sorted((corpus / "LibriSpeech" / "train-clean-100").rglob("*.flac"))[5]
    whole = spoilt.read_bytes()
    spoilt.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    options = (f"--data.source.init_args.root={corpus}", "--data.on_corrupt=skip")
    options += ("--data.max_seconds=30", "--data.batch_seconds=31")
    output = tmp_path / "cache"
    assert cache(output, teacher_directory, "--dtype=float16", *options) == 0
    assert [
        line
        for line in lines
        if line.startswith("1 utterances of train can't be read and are skipped, the first: ")
        and str(spoilt) in line
    ] == lines
    kept = SplitIndex.read(output / "train").places
    assert spoilt.stem not in kept
    clips = list(spoilt.parents[2].rglob("*.flac"))
    assert len(kept) == len(clips) - 1
    capsys.readouterr()
    target_cache = f"--data.target_cache={output}"
    assert fit(tmp_path / "run", teacher_directory, *options, target_cache) == 0


def test_a_split_that_was_not_cached_is_named(
    exact_cache: Path, teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Testing needs the test split's targets, and the message says how they are made."""
    run = tmp_path / "run"
    target_cache = f"--data.target_cache={exact_cache}"
    assert fit(run, teacher_directory, target_cache) == 0
    capsys.readouterr()
    words = settings(teacher_directory, target_cache, f"--trainer.default_root_dir={run}")
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    assert main(["test", *words, checkpoint]) == 2
    error = capsys.readouterr().err
    assert "test" in error
    assert "--splits" in error

"""Runs with a cache that are cut, caching that is stopped, and a teacher of another family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interstack.distillation.module import Distillation
from interstack.target_cache import writer
from interstack.target_cache.reader import SplitIndex, TargetCache
from tests.models.families import save
from tests.target_cache.cached_runs import cache, fit, losses, stopping_at


def test_a_stopped_run_with_a_cache_ends_as_the_whole_one(
    exact_cache: Path, teacher_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after some steps and taken up again: the same losses and the same weights."""
    target_cache = f"--data.target_cache={exact_cache}"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert fit(whole, teacher_directory, target_cache) == 0
    with monkeypatch.context() as patched:
        step = stopping_at(2, Distillation.training_step)
        patched.setattr(Distillation, "training_step", step)
        assert fit(cut, teacher_directory, target_cache) == 75
    assert len(losses(cut)["train/loss"]) < 4
    assert fit(cut, teacher_directory, target_cache, "--ckpt_path=last") == 0
    assert losses(cut) == losses(whole)
    ends = [
        torch.load(each / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for each in (cut, whole)
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_stopped_caching_keeps_what_is_done(
    exact_cache: Path,
    teacher_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The batches up to the signal are on the disk, and the same command computes the others."""
    output = tmp_path / "cache"
    with monkeypatch.context() as patched:
        patched.setattr(writer, "compute_targets", stopping_at(3, writer.compute_targets))
        assert cache(output, teacher_directory, "--dtype=float32") == 75
    assert "continues from there" in capsys.readouterr().err
    first = {path: path.stat().st_mtime_ns for path in output.glob("*/*.safetensors")}
    assert first
    assert cache(output, teacher_directory, "--dtype=float32") == 0
    assert {path: path.stat().st_mtime_ns for path in first} == first
    for split in ("train", "validation"):
        ids = sorted(SplitIndex.read(output / split).places)
        assert ids == sorted(SplitIndex.read(exact_cache / split).places)
        values, expected = (
            TargetCache(each).collate(split, ids[::20]).values for each in (output, exact_cache)
        )
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


def test_a_teacher_without_waveform_front_end_is_cached_too(tmp_path: Path) -> None:
    """Whisper's encoder hears log-mel; the student has a front end of its own."""
    teacher = save("whisper", tmp_path)
    options = (
        "--model.teacher.taps=[2,3]",
        "--model.student.front_end=own",
        "--model.student.conv_dim=[8,8,8,8,8,8,8]",
    )
    output = tmp_path / "cache"
    assert cache(output, teacher, "--dtype=float32", *options) == 0
    assert fit(tmp_path / "live", teacher, *options) == 0
    assert fit(tmp_path / "cached", teacher, *options, f"--data.target_cache={output}") == 0
    live, recalled = losses(tmp_path / "live"), losses(tmp_path / "cached")
    assert live.keys() == recalled.keys()
    for name, values in live.items():
        assert recalled[name] == pytest.approx(values, rel=1e-5), name

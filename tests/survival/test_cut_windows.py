"""A fault amid a window of accumulated gradients: the window is done again, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from interstack.cli import main
from interstack.data.batch import Batch
from interstack.data.dataset import BatchDataset
from interstack.errors import DataError
from tests.survival.killed_runs import Run, assert_same_end, small_words

FAULT = 3
"""Batch of an epoch of five that can't be read; it is the second of its window."""


def fit(run: Run, *more: str) -> int:
    """Run the command line in this process."""
    return main(["fit", *run.words, f"--trainer.default_root_dir={run.directory}", *more])


def test_a_window_that_is_cut_is_done_again_bit_by_bit(
    teacher_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, moments, dropout, counts of audio and log: as if it had never been cut."""
    more = ("--trainer.accumulate_grad_batches=2", "--checkpoint.every_n_steps=null")
    words = small_words(teacher_directory, *more, "--data.on_corrupt=skip")
    whole, run = Run(tmp_path / "whole", words), Run(tmp_path / "run", words)
    assert fit(whole) == 0
    read = BatchDataset.batch

    def failing(self: BatchDataset, index: int) -> Batch | DataError:
        return DataError("clips/a.flac is gone") if index == FAULT else read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(BatchDataset, "batch", failing)
        assert fit(run) == 2
    saved = run.checkpoint()
    assert saved["global_step"] == 1
    position = saved["interstack_run"]
    assert isinstance(position, dict)
    assert position["position"]["batch"] == 2
    assert fit(run, "--ckpt_path=last") == 0
    assert_same_end(whole, run)

"""What s3prl's experts are supplied with does what the originals did."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
import torchaudio

from interstack.errors import ConfigurationError
from interstack.evaluation.superb.compatibility import (
    NotDistributed,
    find_files,
    s3prl_supplied,
    threads,
)
from interstack.evaluation.superb.corpora import BucketedTranscripts, read_lexicons
from interstack.evaluation.superb.preparation import phone_inventory
from interstack.evaluation.superb.tasks import TASKS
from tests.superb.small_sets import LETTERS

ABSENT = ("torchaudio.sox_effects", "librosa", "catalyst", "sox")


def test_every_expert_can_be_imported_and_nothing_stays(tmp_path: Path) -> None:
    """The stand-ins are gone afterwards, and torchaudio is as it was."""
    loader, mover = torchaudio.load, torch.Tensor.cuda
    missing = [name for name in ABSENT if name not in sys.modules]
    with s3prl_supplied(tmp_path):
        for task in TASKS.values():
            expert = importlib.import_module(f"s3prl.downstream.{task.expert}.expert")
            assert hasattr(expert, "DownstreamExpert")
        assert torchaudio.load is not loader
    assert torchaudio.load is loader
    assert torch.Tensor.cuda is mover
    assert not [name for name in missing if name in sys.modules]


def test_audio_files_are_found_as_librosa_does(tmp_path: Path) -> None:
    """All kinds, at any depth, whatever the case of their endings, absolute and in order."""
    for name in ("b.wav", "a/c.FLAC", "a/b/d.mp3", "a/notes.txt", "e.ogg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    expected = ["a/b/d.mp3", "a/c.FLAC", "b.wav", "e.ogg"]
    assert find_files(tmp_path) == [str(tmp_path / name) for name in expected]


def test_buckets_are_neighbours_and_full() -> None:
    """Those with the most tokens first; the last begin early enough; a small corpus is one."""
    examples = [(f"{length}.wav", [0] * length) for length in (3, 9, 5, 7, 1)]
    buckets = BucketedTranscripts(examples, 2)
    assert len(buckets) == 5
    assert [name for name, _ in buckets[0]] == ["9.wav", "7.wav"]
    assert [name for name, _ in buckets[4]] == ["3.wav", "1.wav"]
    assert BucketedTranscripts(examples, 1)[1] == ("7.wav", [0] * 7)
    assert len(BucketedTranscripts(examples, 16)[3]) == 5


def test_the_first_pronunciation_counts(tmp_path: Path) -> None:
    """Within a file and over files."""
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("READ\tR EH1 D\nREAD\tR IY1 D\n\nA\tAH0\n")
    second.write_text("READ R AA0 D\nTHE DH AH0\n")
    phones = read_lexicons([first, second])
    assert phones == {"READ": ["R", "EH1", "D"], "A": ["AH0"], "THE": ["DH", "AH0"]}


def test_phones_are_arpabet_with_stress() -> None:
    """15 vowels of three stresses, 24 consonants, silence and noise, as in s3prl's vocabulary."""
    phones = phone_inventory()
    assert len(phones) == len(set(phones)) == 15 * 3 + 24 + 2
    assert phones[:2] == ["SIL", "SPN"]
    assert phones[2:] == sorted(phones[2:])
    assert set(LETTERS.values()) <= set(phones)


def test_a_job_in_one_process_has_no_use_for_a_distributed_sampler() -> None:
    """Which is said, where an expert should ask for it."""
    with pytest.raises(ConfigurationError, match="--share"):
        NotDistributed([1, 2])


def test_parallel_work_is_done_by_threads_of_this_process() -> None:
    """In order, with objects that no other process could be given."""
    made: list[object] = []

    def work(number: int) -> int:
        made.append(object())
        return 2 * number

    joblib = importlib.import_module("joblib")
    assert threads(n_jobs=12)(joblib.delayed(work)(each) for each in range(5)) == [0, 2, 4, 6, 8]
    assert len(made) == 5

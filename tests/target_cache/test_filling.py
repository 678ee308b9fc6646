"""A cache is computed in parts: it may stop anywhere, go on, and be shared out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interstack.target_cache import writer
from interstack.target_cache.reader import SplitIndex, TargetCache
from tests.target_cache.cached_runs import cache, fit

SMALL_SHARDS = ("--dtype=float32", "--shard_megabytes=0.3")


def shards(directory: Path) -> dict[str, int]:
    """Return a training split's shards and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("train/*.safetensors")}


def assert_same_targets(one: Path, other: Path) -> None:
    """Both caches hold the same utterances with the same targets."""
    for split in ("train", "validation"):
        ids = sorted(SplitIndex.read(one / split).places)
        assert ids == sorted(SplitIndex.read(other / split).places)
        for id_ in ids[::10]:
            values, expected = (
                TargetCache(each).collate(split, [id_]).values for each in (one, other)
            )
            torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


def test_a_cache_goes_on_where_it_stopped(
    exact_cache: Path,
    teacher_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A disk that fills up costs one shard; what had been written is not computed again."""
    write, written = writer.write_shard, []

    def fill_up(path: Path, *rest: object) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "write_shard", fill_up)
    assert cache(tmp_path / "cache", teacher_directory, *SMALL_SHARDS) != 0
    assert "No space left" in capsys.readouterr().err
    first = shards(tmp_path / "cache")
    assert len(first) == 2
    assert not (tmp_path / "cache" / "train" / "index.json").exists()

    monkeypatch.setattr(writer, "write_shard", write)
    assert cache(tmp_path / "cache", teacher_directory, *SMALL_SHARDS) == 0
    after = shards(tmp_path / "cache")
    assert len(after) > 2
    assert {name: after[name] for name in first} == first
    assert_same_targets(tmp_path / "cache", exact_cache)

    assert cache(tmp_path / "cache", teacher_directory, *SMALL_SHARDS) == 0
    assert shards(tmp_path / "cache") == after


def test_two_shares_make_a_whole(
    exact_cache: Path,
    teacher_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Given by hand or by torchrun's environment; half a cache is not one."""
    output = tmp_path / "cache"
    assert cache(output, teacher_directory, "--dtype=float32", "--share=0/2") == 0
    assert "still to come" in capsys.readouterr().out
    assert fit(tmp_path / "run", teacher_directory, f"--data.target_cache={output}") == 2
    assert "no finished split" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cache(output, teacher_directory, "--dtype=float32") == 0
    assert "train with" in capsys.readouterr().out
    assert_same_targets(output, exact_cache)


def test_a_share_that_is_none_is_refused(
    teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The index is counted from 0."""
    assert cache(tmp_path / "cache", teacher_directory, "--share=2/2") == 2
    assert "--share 2/2" in capsys.readouterr().err

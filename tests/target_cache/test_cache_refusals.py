"""What doesn't fit a cache is refused before anything is computed, by name and with the mend."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from interstack.errors import ConfigurationError, TeacherError
from interstack.target_cache.manifest import RECORD_FILE, CacheRecord
from interstack.target_cache.reader import CachedTeacher
from tests.checkpointing.full_disks import NoSpace
from tests.target_cache.cached_runs import SPEECH, cache, fit

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.teacher.taps=[1,4]", "taps was [2, 4] and is [1, 4]"),
        ("--model.teacher.dtype=bfloat16", "dtype was 'float32' and is 'bfloat16'"),
        ("--data.max_seconds=0.8", "max_seconds"),
        ("--data.crop=random", "data.crop fixed"),
    ],
)
def test_a_run_that_differs_is_refused(
    option: str,
    message: str,
    exact_cache: Path,
    teacher_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Teacher, taps and crops have to be the cache's."""
    words = (f"--data.target_cache={exact_cache}", option)
    assert fit(tmp_path / "run", teacher_directory, *words) == 2
    assert message in capsys.readouterr().err


def test_other_weights_of_the_same_teacher_are_refused(
    exact_cache: Path, teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A digest of the files tells, without loading the model; the cache command sees it too."""
    other = tmp_path / "other"
    shutil.copytree(teacher_directory, other)
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if "layers.0." in name)
    weights[name] = weights[name] + 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    assert fit(tmp_path / "run", other, f"--data.target_cache={exact_cache}") == 2
    assert "other files" in capsys.readouterr().err
    copied = tmp_path / "cache"
    shutil.copytree(exact_cache, copied)
    assert cache(copied, other, "--dtype=float32") == 2
    assert "holds other targets" in capsys.readouterr().err


def test_a_cache_is_not_filled_up_in_another_format(
    exact_cache: Path, teacher_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Format and the directory are named."""
    assert cache(exact_cache, teacher_directory, "--dtype=int8") == 2
    error = capsys.readouterr().err
    assert "dtype was 'float32' and is 'int8'" in error
    assert "--output" in error


def test_an_utterance_that_the_cache_lacks_is_refused(
    exact_cache: Path, teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A corpus that has grown needs the cache command again."""
    corpus = tmp_path / "speech"
    shutil.copytree(SPEECH, corpus)
    clip = next(iter(sorted(corpus.rglob("train-clean-100/**/*.flac"))))
    shutil.copy(clip, clip.with_name(clip.stem + "9.flac"))
    words = (f"--data.target_cache={exact_cache}", f"--data.source.init_args.root={corpus}")
    assert fit(tmp_path / "run", teacher_directory, *words) == 2
    error = capsys.readouterr().err
    assert f"lacks the utterance {clip.stem}9" in error
    assert "run the cache command" in error


def test_a_damaged_shard_is_named(
    exact_cache: Path, teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And made anew by the cache command once it is removed, as the message says."""
    directory = tmp_path / "cache"
    shutil.copytree(exact_cache, directory)
    shard = next((directory / "train").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    words = f"--data.target_cache={directory}"
    assert fit(tmp_path / "run", teacher_directory, words) == 2
    assert shard.name in capsys.readouterr().err
    shard.unlink()
    (directory / "train" / "index.json").unlink()
    assert cache(directory, teacher_directory, "--dtype=float32") == 0
    assert fit(tmp_path / "run", teacher_directory, words) == 0


def test_a_disk_that_is_too_small_is_refused_before_the_first_shard(
    teacher_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With what is needed, what is free and what would help."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**5, 0, 10**5))
    assert cache(tmp_path / "cache", teacher_directory) == 2
    error = capsys.readouterr().err
    assert "0.1 MB free" in error
    assert "int8" in error
    assert not list((tmp_path / "cache").rglob("train/*.safetensors"))


def test_directories_that_hold_no_cache_are_refused(
    teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither is anything written beside strangers' files, nor is nothing taken for a cache."""
    (tmp_path / "thesis.tex").touch()
    assert cache(tmp_path, teacher_directory) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert fit(tmp_path / "run", teacher_directory, f"--data.target_cache={tmp_path / 'no'}") == 2
    assert "there is no cache of targets" in capsys.readouterr().err


def test_audio_that_has_changed_is_told_from_what_the_teacher_heard(
    exact_cache: Path, teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many samples, but another recording: seen wherever audio is decoded at all."""
    corpus = tmp_path / "speech"
    shutil.copytree(SPEECH, corpus)
    for clip in corpus.rglob("train-clean-100/**/*.flac"):
        audio, rate = soundfile.read(clip, dtype="float32")
        soundfile.write(clip, torch.from_numpy(audio).flip(0).numpy(), rate)
    words = (f"--data.target_cache={exact_cache}", f"--data.source.init_args.root={corpus}")
    own = ("--model.student.front_end=own", "--model.student.conv_dim=[8,8,8,8,8,8,8]")
    assert fit(tmp_path / "run", teacher_directory, *words, *own) == 2
    assert "is not what the cache of targets" in capsys.readouterr().err


@pytest.mark.parametrize(
    "pattern",
    ["validation", ".share-*", "*cache.json*", "*front_end*", "*.safetensors*", "*index*"],
)
def test_a_full_disk_is_a_line_whatever_it_refuses(
    pattern: str, teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Directories, locks, facts, weights, shards and the seal; the same command goes on later."""
    output, few = tmp_path / "cache", ("--splits=[validation]", "--data.max_seconds=0.5")
    output.mkdir()
    with NoSpace(output, pattern):
        assert cache(output, teacher_directory, *few) == 2
    error = capsys.readouterr().err
    assert "can't be written" in error
    assert "(No space left on device): " in error
    assert "Traceback" not in error
    assert cache(output, teacher_directory, *few) == 0


def test_a_cache_that_can_not_be_read_now_is_not_taken_for_damaged(
    exact_cache: Path, teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody is told to make it anew."""
    for name in ("cache.json", "train/index.json"):
        copied = tmp_path / name.replace("/", "-")
        shutil.copytree(exact_cache, copied)
        (copied / name).unlink()
        (copied / name).mkdir()
        words = (f"--data.target_cache={copied}",)
        assert fit(tmp_path / "run", teacher_directory, *words) == 2
        error = capsys.readouterr().err
        assert f"{copied / name} can't be read (Is a directory): give the same command" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no front end of whisper"), (b"cut", "front_end.safetensors can't be read")],
)
def test_a_front_end_that_cant_be_read_is_named(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    """Missing, as of a teacher that takes log-mel, or corrupt."""
    if content is not None:
        (tmp_path / "front_end.safetensors").write_bytes(content)
    cached = CachedTeacher.__new__(CachedTeacher)
    cached.cache = SimpleNamespace(directory=tmp_path)  # type: ignore[assignment]
    cached.source = "whisper"
    with pytest.raises(TeacherError, match=message):
        cached.front_end_state()


def test_a_cache_of_a_pre_ln_teacher_without_its_final_norm_is_refused(
    exact_cache: Path, tmp_path: Path
) -> None:
    """Earlier versions stored the last hidden state as the last layer leaves it."""
    old = shutil.copytree(exact_cache, tmp_path / "cache")
    facts = json.loads((old / RECORD_FILE).read_text())
    del facts["has_final_norm"]
    (old / RECORD_FILE).write_text(json.dumps(facts))
    assert not CacheRecord.read(old).has_final_norm
    facts["config"]["do_stable_layer_norm"] = True
    (old / RECORD_FILE).write_text(json.dumps(facts))
    with pytest.raises(ConfigurationError, match=r"hidden state 4 .* without its final layer norm"):
        CacheRecord.read(old)

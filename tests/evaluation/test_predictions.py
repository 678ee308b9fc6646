"""Predict: whole utterances, one file each, and none lost, replaced or out of its folder."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import datasets
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from interstack.cli import main
from interstack.evaluation.predictions import file_of
from interstack.export.huggingface import load_student
from interstack.models.front_end import num_frames
from tests.target_cache.cached_runs import SPEECH, fit, settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Path:
    """A finished run that was trained on crops of a second."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert fit(directory, teacher_directory) == 0
    return directory


def speech() -> list[Path]:
    """The embedded test clips."""
    return sorted((SPEECH / "LibriSpeech" / "test-clean").rglob("*.flac"))


def predict(run: Path, teacher: Path, corpus: Path, output: Path, *more: str) -> int:
    """Run the command on a corpus' test split and return its exit status."""
    words = settings(teacher, f"--trainer.default_root_dir={output}", *more)
    words += [f"--data.source.init_args.root={corpus}"] if corpus.name != "hub" else []
    return main(["predict", *words, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"])


def lay(corpus: Path, *names: str) -> list[Path]:
    """Copy clips to names below a test split."""
    files = [corpus / "LibriSpeech" / "test-clean" / name for name in names]
    for file, clip in zip(files, speech(), strict=False):
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, file)
    return files


@given(st.lists(st.text(alphabet="ab_/.%2E\0", max_size=8), unique=True, max_size=6))
def test_ids_make_files_of_their_own_inside_the_folder(ids: list[str]) -> None:
    """Also those that climb out of it, begin at the root, or have empty parts."""
    directory = Path("/run/hidden_states")
    files = [file_of(directory, id_) for id_ in ids]
    assert len(set(files)) == len(ids)
    for file in files:
        assert ".." not in file.parts
        assert file.is_relative_to(directory)
        assert "\0" not in str(file)
    assert file_of(directory, "84/12-1") == directory / "84" / "12-1.safetensors"
    assert file_of(directory, "/etc/../x") == directory / "%" / "etc" / "%2E%2E" / "x.safetensors"


def test_folders_of_ids_are_mirrored_and_long_utterances_whole(
    run: Path, teacher_directory: Path, tmp_path: Path
) -> None:
    """Names that an underscore would join; and a clip of several batches has all its frames."""
    files = lay(tmp_path / "corpus", "a/b_c.flac", "a_b/c.flac", "a/c.flac", "long.flac")
    samples = [soundfile.read(clip, dtype="float32")[0] for clip in speech()[:6]]
    long = torch.cat([torch.from_numpy(each) for each in samples])
    soundfile.write(files[-1], long.numpy(), 16_000)
    output = tmp_path / "out"
    words = ("--data.validation_batch_seconds=8", "--data.num_workers=2")
    assert predict(run, teacher_directory, tmp_path / "corpus", output, *words) == 0
    student, _ = load_student(run)
    directory = output / "hidden_states" / "test-clean"
    written = {file.relative_to(directory) for file in directory.rglob("*") if file.is_file()}
    wanted = ("a/b_c", "a_b/c", "a/c", "long")
    assert written == {Path(f"{name}.safetensors") for name in wanted}
    assert len(long) > 8 * 16_000
    for name, file in zip(wanted, files, strict=True):
        waveform = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
        with torch.no_grad():
            expected = torch.stack(
                student(waveform[None], torch.tensor([len(waveform)])).hidden_states
            )[:, 0]
        path = directory / f"{name}.safetensors"
        found = load_file(path)["hidden_states"]
        assert found.shape == expected.shape
        assert found.shape[1] == int(num_frames(student.config, torch.tensor(len(waveform))))
        exact = found.shape[0] if name != "long" else 1
        torch.testing.assert_close(found[:exact], expected[:exact], rtol=1e-4, atol=1e-4)
        assert (found - expected).norm() < 0.2 * expected.norm()
        with safe_open(path, "pt") as content:
            assert content.metadata() == {"id": f"test-clean/{name}"}


def test_a_stream_is_predicted_whole_and_inside_the_folder(
    run: Path, teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ids are the dataset's, of any kind; one that occurs twice ends the prediction."""
    clips = speech()[:3]

    def dataset(*ids: str) -> Path:
        rows = {
            "id": list(ids),
            "audio": [{"bytes": clip.read_bytes(), "path": None} for clip in clips],
        }
        columns = datasets.Dataset.from_dict(rows)
        hub = tmp_path / "-".join(map(str, range(len(list(tmp_path.iterdir()))))) / "hub"
        (hub / "data").mkdir(parents=True)
        columns.cast_column("audio", datasets.Audio(decode=False)).to_parquet(
            hub / "data" / "test-00000-of-00001.parquet"
        )
        return hub

    def words(hub: Path) -> tuple[str, ...]:
        source = (
            f'{{"class_path": "HubDataset", "init_args": {{"path": "{hub}", "test": ["test"]}}}}'
        )
        return (f"--data.source={source}", "--data.max_seconds=1", "--data.batch_seconds=2")

    output = tmp_path / "run" / "out"
    hub = dataset("../climbs", "/at/root", "a/b")
    assert predict(run, teacher_directory, hub, output, *words(hub)) == 0
    names = ("%2E%2E/climbs", "%/at/root", "a/b")
    for name, clip in zip(names, clips, strict=True):
        found = load_file(output / "hidden_states" / f"{name}.safetensors")["hidden_states"]
        assert found.shape[1] == (soundfile.info(clip).frames - 400) // 320 + 1
    assert not (output / "climbs.safetensors").exists()
    capsys.readouterr()
    hub = dataset("x", "y", "x")
    assert predict(run, teacher_directory, hub, tmp_path / "run" / "twice", *words(hub)) == 2
    error = capsys.readouterr().err
    assert "holds the utterance x twice: set data.source.id_column" in error


def test_a_name_that_the_file_system_does_not_take_is_refused_before_anything_is_written(
    run: Path, teacher_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the utterance and the fix, as one line."""
    lay(tmp_path / "corpus", "a.flac", f"{'n' * 245}.flac")
    assert predict(run, teacher_directory, tmp_path / "corpus", tmp_path / "out") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(error) == 1
    assert "257 bytes, and it takes 255): give the utterance a shorter id" in error[0]
    assert not list((tmp_path / "out" / "hidden_states").iterdir())


def test_a_full_disk_leaves_no_half_file(
    run: Path,
    teacher_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was written before is complete, and the reason is a line."""
    lay(tmp_path / "corpus", "a.flac", "b.flac", "c.flac")
    calls = itertools.count()
    real = Path.replace

    def fill(path: Path, target: Path) -> Path:
        if target.suffix == ".safetensors" and next(calls) == 1:
            raise OSError(28, "No space left on device")
        return real(path, target)

    monkeypatch.setattr(Path, "replace", fill)
    assert predict(run, teacher_directory, tmp_path / "corpus", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "b.safetensors can't be written (No space left on device): free space" in error
    left = [path.name for path in (tmp_path / "out" / "hidden_states").rglob("*")]
    assert left == ["a.safetensors"]

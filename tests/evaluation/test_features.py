"""`features`: what it writes for real speech, whole, in windows, in parts, and again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import HubertModel

from interstack.cli import main
from interstack.models.teacher import Teacher
from tests.checkpointing.full_disks import NoSpace
from tests.models.families import save

SPEECH = Path(__file__).parents[2] / "assets" / "speech" / "LibriSpeech" / "dev-clean"


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """Three clips of real speech in two folders, one of them at 44.1 kHz and in stereo."""
    clips = sorted(SPEECH.rglob("*.flac"), key=lambda path: path.stat().st_size)[-3:]
    folder = tmp_path / "audio"
    (folder / "a" / "b").mkdir(parents=True)
    shutil.copy(clips[0], folder / "a" / "b" / "one.flac")
    shutil.copy(clips[1], folder / "a" / "two.flac")
    samples, _ = soundfile.read(clips[2])
    soundfile.write(folder / "three.wav", np.stack([samples, samples], axis=1), 44_100)
    return folder


def run(model: Path, audio: Path, output: Path, *words: str) -> int:
    """Run the command."""
    return main(["features", f"--model={model}", f"--audio={audio}", f"--output={output}", *words])


def read(path: Path) -> Tensor:
    """What a file holds."""
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path))
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor("hidden_states")
    return tensor


def written(output: Path) -> set[str]:
    """The files of a directory but its settings."""
    files = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    return files - {"features.json"}


def test_a_file_holds_what_transformers_computes(
    teacher_directory: Path, audio: Path, tmp_path: Path
) -> None:
    """In folders like the audio's, in either format, with what is needed to place a frame."""
    output = tmp_path / "out"
    assert run(teacher_directory, audio, output, "--layers", "0", "2", "4") == 0
    assert written(output) == {"a/b/one.safetensors", "a/two.safetensors", "three.safetensors"}
    model = HubertModel.from_pretrained(teacher_directory).eval()
    samples, _ = soundfile.read(audio / "a" / "two.flac", dtype="float32")
    with torch.no_grad():
        states = model(torch.from_numpy(samples)[None], output_hidden_states=True).hidden_states
    expected = torch.cat([states[layer] for layer in (0, 2, 4)])
    torch.testing.assert_close(read(output / "a" / "two.safetensors"), expected)
    with safe_open(output / "a" / "two.safetensors", "pt") as file:
        facts = file.metadata()
    assert (facts["layers"], facts["frame_hop"], facts["first_frame_centre"]) == (
        "0 2 4",
        "320",
        "199.5",
    )
    words = ["--layers", "all", "--format", "npy", "--dtype", "float16"]
    assert run(teacher_directory, audio / "a" / "two.flac", tmp_path / "npy", *words) == 0
    assert written(tmp_path / "npy") == {"two.npy"}
    found = read(tmp_path / "npy" / "two.npy")
    assert (found.dtype, found.shape) == (torch.float16, (5, *expected.shape[1:]))
    torch.testing.assert_close(found[[0, 2, 4]].float(), expected, rtol=1e-3, atol=1e-3)


def test_the_mean_is_that_of_the_frames(
    teacher_directory: Path, audio: Path, tmp_path: Path
) -> None:
    """Also of windows; at another rate and in stereo."""
    words = ["--layers", "all", "--window-seconds", "1"]
    assert run(teacher_directory, audio, tmp_path / "frames", *words) == 0
    assert run(teacher_directory, audio, tmp_path / "mean", *words, "--pool", "mean") == 0
    frames = read(tmp_path / "frames" / "three.safetensors")
    mean = read(tmp_path / "mean" / "three.safetensors")
    assert mean.shape == (5, frames.shape[2])
    torch.testing.assert_close(mean, frames.mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["hubert-base", "data2vec-audio", "wavlm-base"])
def test_windows_change_nothing_below_attention(family: str, audio: Path, tmp_path: Path) -> None:
    """As many frames as the whole has, and its features and positions."""
    model = save(family, tmp_path / "model")
    words = ["--layers", "0"]
    assert run(model, audio, tmp_path / "whole", *words) == 0
    assert run(model, audio, tmp_path / "parts", *words, "--window-seconds", "2") == 0
    for name in written(tmp_path / "whole"):
        whole, parts = read(tmp_path / "whole" / name), read(tmp_path / "parts" / name)
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)


def test_windows_of_a_whisper_are_utterances_of_their_own(audio: Path, tmp_path: Path) -> None:
    """At most as long as it has positions for; the first one's kept frames are the utterance's."""
    model = save("whisper", tmp_path / "model")
    teacher = Teacher(str(model), [1])
    assert teacher.max_samples == 16_000
    assert run(model, audio, tmp_path / "out", "--layers", "1") == 0
    samples, _ = soundfile.read(audio / "a" / "two.flac", dtype="float32")
    found = read(tmp_path / "out" / "a" / "two.safetensors")
    assert found.shape[1] == -(-(len(samples) // 160) // 2)
    first = teacher(torch.from_numpy(samples)[None, :16_000], torch.tensor([16_000]))
    torch.testing.assert_close(found[0, :20], first.hidden_states[0][0, :20])


def test_the_same_command_continues(
    teacher_directory: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It computes what is missing; other settings or another model are refused by name."""
    output = tmp_path / "out"
    assert run(teacher_directory, audio, output) == 0
    kept = (output / "three.safetensors").stat().st_mtime_ns
    lost = output / "a" / "two.safetensors"
    content = lost.read_bytes()
    lost.unlink()
    assert run(teacher_directory, audio, output) == 0
    assert lost.read_bytes() == content
    assert (output / "three.safetensors").stat().st_mtime_ns == kept
    assert "2 of 3 files are there already" in capsys.readouterr().err
    assert run(teacher_directory, audio, output, "--layers", "all") == 2
    assert "made with other settings (layers [4])" in capsys.readouterr().err
    other = save("hubert-base", tmp_path / "model")
    assert run(other, audio, output, "--layers", "last") == 2
    assert "made with other settings" in capsys.readouterr().err


def test_partitions_together_are_the_whole(
    teacher_directory: Path, audio: Path, tmp_path: Path
) -> None:
    """Side by side in one directory."""
    names = []
    for index in range(2):
        before = written(tmp_path / "out")
        assert run(teacher_directory, audio, tmp_path / "out", f"--partition={index}/2") == 0
        names.append(written(tmp_path / "out") - before)
    assert names[0].isdisjoint(names[1])
    assert len(names[0] | names[1]) == 3


def test_what_can_not_be_done_is_one_line(
    teacher_directory: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the setting or file; corrupt audio is skipped where that is required."""
    output = tmp_path / "out"
    refused = {
        ("--layers", "5"): "--layers is 5: give all, last, or numbers from 0",
        ("--window-seconds", "0.01"): "--window-seconds is 0.01, but one frame needs",
        ("--partition", "2/2"): "--partition 2/2",
    }
    for words, message in refused.items():
        assert run(teacher_directory, audio, output, *words) == 2
        assert message in capsys.readouterr().err
    assert run(teacher_directory, tmp_path / "nowhere", output) == 2
    assert "which is not there" in capsys.readouterr().err
    shutil.copy(audio / "a" / "two.flac", audio / "three.flac")
    assert run(teacher_directory, audio, output) == 2
    assert "would both write" in capsys.readouterr().err
    (audio / "three.flac").unlink()
    long_name = audio / ("x" * 250 + ".wav")
    shutil.copy(audio / "three.wav", long_name)
    assert run(teacher_directory, audio, output) == 2
    assert f"rename {long_name}" in capsys.readouterr().err
    long_name.unlink()
    shutil.rmtree(output)
    late = audio / "a" / "two.flac"
    late.write_bytes(late.read_bytes()[:-2000])
    assert run(teacher_directory, audio, output) == 2
    assert f"error: {late} is corrupt" in capsys.readouterr().err
    assert run(teacher_directory, audio, output, "--on-corrupt", "skip") == 0
    assert "1 files can't be read and are skipped" in capsys.readouterr().err
    assert written(output) == {"a/b/one.safetensors", "three.safetensors"}


def test_a_full_disk_leaves_no_half_file(
    teacher_directory: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with the fix; what was finished stays, and the same command continues."""
    output = tmp_path / "out"
    assert run(teacher_directory, audio, output) == 0
    settings = json.loads((output / "features.json").read_text())
    assert settings["settings"]["layers"] == [4]
    (output / "a" / "two.safetensors").unlink()
    with NoSpace(output):
        assert run(teacher_directory, audio, output) == 2
    assert "free space, then give the same command again" in capsys.readouterr().err
    assert written(output) == {"a/b/one.safetensors", "three.safetensors"}
    assert run(teacher_directory, audio, output) == 0
    assert len(written(output)) == 3

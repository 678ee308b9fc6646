"""The ONNX graph computes what torch computes, at any length."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from interstack.cli import main
from interstack.errors import PrecisionError
from interstack.export import huggingface
from interstack.export.huggingface import load_student
from interstack.export.onnx import check_onnx, export_onnx
from tests.export.small_students import small_student


@pytest.mark.parametrize("run", ["grown_run", "layer_norm_run"])
def test_onnxruntime_gives_the_hidden_states_of_any_length(
    run: str, tmp_path: Path, clips: list[Tensor], request: pytest.FixtureRequest
) -> None:
    """Alone and in batches, from the shortest audio on, normalised where the student wants it."""
    directory = request.getfixturevalue(run)
    student, _ = load_student(directory)
    words = ["export", f"--checkpoint={directory}", f"--output={tmp_path / 'student'}", "--onnx"]
    assert main(words) == 0
    session = onnxruntime.InferenceSession(tmp_path / "student" / "model.onnx")
    two = torch.stack([clips[0][:9000], clips[1][:9000]])
    for waveforms in (*(clip[None] for clip in clips), clips[0][None, :400], two):
        lengths = torch.full((len(waveforms),), waveforms.shape[1])
        with torch.inference_mode():
            expected = torch.stack(student(waveforms, lengths).hidden_states)
        (found,) = session.run(None, {"waveforms": waveforms.numpy()})
        scale = float(expected.abs().max())
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5 * scale)


def test_an_onnx_export_leaves_the_student_as_it_is(grown_run: Path, tmp_path: Path) -> None:
    """Folding the weight norm for the graph must not reach the model that it is made from."""
    for name, options in (("plain", []), ("both", ["--onnx"])):
        words = ["export", f"--checkpoint={grown_run}", f"--output={tmp_path / name}", *options]
        assert main(words) == 0
    plain, both = (
        AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("plain", "both")
    )
    torch.testing.assert_close(plain, both, rtol=0, atol=0)


def test_a_graph_is_checked_against_the_student(
    grown_run: Path,
    tmp_path: Path,
    clips: list[Tensor],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The export logs by how much they differ, and refuses a graph of something else by name."""
    words = ["export", f"--checkpoint={grown_run}", f"--output={tmp_path / 'student'}", "--onnx"]
    with caplog.at_level("INFO", "interstack"):
        assert main(words) == 0
    assert [each for each in caplog.messages if each.startswith("the ONNX graph in float32")]
    student, _ = load_student(grown_run)
    path = tmp_path / "student" / "model.onnx"
    report = check_onnx(student, path, clips)
    assert report is not None
    assert 0 < report.error < 1e-4
    with torch.no_grad():
        student.layers[2].final_layer_norm.weight.mul_(1.1)  # type: ignore[operator, union-attr]
    with pytest.raises(PrecisionError, match=r"hidden state 3 of the ONNX graph .*: give"):
        check_onnx(student, path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with caplog.at_level("WARNING", "interstack"):
        assert check_onnx(student, path, clips) is None
    assert "install onnxruntime" in caplog.messages[-1]


def test_the_check_of_a_graph_can_be_disabled(
    grown_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that fails it is not exported; without a graph the option is refused."""

    def refuse(*_: object) -> None:
        raise PrecisionError("hidden state 1 is wrong")

    monkeypatch.setattr(huggingface, "export_onnx", lambda _, directory: directory)
    monkeypatch.setattr(huggingface, "check_onnx", refuse)
    target, off = f"--output={tmp_path / 'student'}", "--no-precision-check"
    words = ["export", f"--checkpoint={grown_run}", target]
    assert main([*words, "--onnx"]) == 2
    assert not (tmp_path / "student").exists()
    assert main([*words, off]) == 2
    assert main([*words, "--onnx", off]) == 0


def test_a_pre_ln_student_of_another_hop_keeps_its_last_hidden_state(
    tmp_path: Path, clips: list[Tensor]
) -> None:
    """After the final norm, and down to the shortest audio that its own front end takes."""
    student = small_student(pre_ln=True, stride=(5, 2, 2, 2, 2, 2, 1))
    session = onnxruntime.InferenceSession(export_onnx(student, tmp_path))
    for waveforms in (clips[0][None], clips[0][None, :400]):
        with torch.inference_mode():
            output = student(waveforms, torch.tensor([waveforms.shape[1]]))
        (found,) = session.run(None, {"waveforms": waveforms.numpy()})
        expected = torch.stack(output.hidden_states)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)

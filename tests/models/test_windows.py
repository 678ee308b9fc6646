"""A long utterance window by window: what is exact, what is kept, and what each frame sees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from interstack.errors import ConfigurationError
from interstack.models.config import StudentConfig, student_hubert_config
from interstack.models.front_end import num_frames
from interstack.models.student import Student
from interstack.models.windows import WindowedOutput, context_frames, plan_windows
from tests.models.families import pad, read_speech


def small_student(norm: str = "group", **changes: object) -> Student:
    """A student with random weights that costs next to nothing."""
    settings = StudentConfig(
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,  # type: ignore[arg-type]
        **changes,  # type: ignore[arg-type]
    )
    student = Student(
        student_hubert_config(settings, 2), [2], 8, normalises_waveform=norm == "layer"
    )
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student.eval()


def windowed(student: Student, waveform: Tensor, window_samples: int) -> WindowedOutput:
    """The hidden states of an utterance, window by window."""
    normalises = student.normalises_waveform
    return WindowedOutput(student.model, waveform, window_samples, normalises_waveform=normalises)


def with_a_pause() -> Tensor:
    """Five seconds of speech whose middle is nearly silent, with an offset."""
    (speech,) = read_speech(5.0)
    speech[32_000:64_000] *= 1e-3
    return speech + 0.01


def whole(student: Student, waveform: Tensor) -> Tensor:
    """All hidden states of an utterance that is computed at once."""
    with torch.no_grad():
        return torch.stack(student(*pad([waveform])).hidden_states)[:, 0]


@given(frames=st.integers(1, 5000), window=st.integers(1, 400), kernel=st.integers(1, 128))
def test_windows_cover_each_frame_once_with_context(frames: int, window: int, kernel: int) -> None:
    """Whatever the lengths; windows are alike, and only the utterance's ends lack context."""
    context = context_frames(window, kernel)
    windows = plan_windows(frames, window, context)
    kept = [frame for each in windows for frame in range(each.first, each.last)]
    assert kept == list(range(frames))
    for each in windows:
        assert each.end - each.begin == min(window, frames)
        assert each.begin == 0 or each.first - each.begin >= context
        assert each.end == frames or each.end - each.last >= context


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_all_but_attention_is_as_if_the_whole_were_computed(norm: str) -> None:
    """Frame count, normalisation, statistics, features and positions: with attention off, all."""
    student, waveform = small_student(norm), with_a_pause()
    with torch.no_grad():
        for layer in student.layers:
            layer.attention.out_proj.weight.zero_()
    expected = whole(student, waveform)
    output = windowed(student, waveform, 16_000)
    pieces = list(output)
    assert len(pieces) == len(output.windows) > 6
    joined = torch.cat(pieces, dim=1)
    assert joined.shape[1] == output.num_frames == num_frames(student.config, torch.tensor(80_000))
    torch.testing.assert_close(joined, expected, rtol=1e-4, atol=1e-4)


def test_with_attention_the_encoders_input_is_exact_and_the_rest_is_near() -> None:
    """Nearer the longer the windows are; one that holds the whole utterance is the whole."""
    student, waveform = small_student(), with_a_pause()
    expected = whole(student, waveform)
    errors = []
    for seconds in (1, 3, 5):
        joined = torch.cat(list(windowed(student, waveform, seconds * 16_000)), dim=1)
        torch.testing.assert_close(joined[0], expected[0], rtol=1e-4, atol=1e-4)
        errors.append(float((joined[-1] - expected[-1]).norm() / expected[-1].norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] < 0.2
    assert errors[2] < 1e-5


def test_no_more_than_a_window_is_computed_at_a_time() -> None:
    """In the statistics' pass and in every layer, however long the utterance is."""
    student, waveform = small_student(), with_a_pause()
    longest = 0

    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal longest
        longest = max(longest, inputs[0].shape[-1])

    first = student.model.feature_extractor.conv_layers[0]
    assert isinstance(first.conv, nn.Conv1d)
    first.conv.register_forward_pre_hook(note)
    for piece in windowed(student, waveform, 16_000):
        assert piece.shape[1] <= 49
    assert 15_000 < longest <= 16_000


def test_a_window_without_a_frame_is_refused() -> None:
    """By the settings' names."""
    with pytest.raises(ConfigurationError, match=r"windows of 399 samples \(data\.valid"):
        windowed(small_student(), with_a_pause(), 399)

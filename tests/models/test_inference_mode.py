"""The teacher computes in inference mode, and nobody who takes its word notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interstack.models.teacher import Teacher, TeacherOutput
from tests.models.families import MODELS, pad, read_speech, save


def told_by(family: str, directory: Path, **options: Any) -> tuple[TeacherOutput, list[bool]]:  # noqa: ANN401
    """What a teacher says of two clips, and whether each of its layers was in inference mode."""
    teacher = Teacher(str(save(family, directory)), (0, 2), **options)
    modes: list[bool] = []
    layers = teacher.body.encoder.layers
    assert isinstance(layers, nn.ModuleList)
    for layer in layers:
        layer.register_forward_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    return teacher(*pad(read_speech(0.6, 0.8)), with_features=True), modes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", list(MODELS))
def test_what_leaves_the_teacher_are_ordinary_tensors(
    family: str, dtype: str, tmp_path: Path
) -> None:
    """In float32, which is its own number format or another; a gradient can be taken with them."""
    told, modes = told_by(family, tmp_path, dtype=dtype)
    assert modes == [True, True]
    tensors = [*told.hidden_states, told.num_frames]
    tensors += [] if told.features is None else [told.features]
    assert not any(tensor.is_inference() for tensor in tensors)
    for tensor in (each for each in tensors if each.is_floating_point()):
        assert tensor.dtype == torch.float32
        weight = torch.ones_like(tensor, requires_grad=True)
        (weight * tensor).sum().backward()  # autograd saves the tensor for this
        assert isinstance(weight.grad, Tensor)
        assert torch.equal(weight.grad, tensor)
        tensor.mul_(2.0)


def test_what_several_taps_say_is_not_the_same_memory(tmp_path: Path) -> None:
    """Who changes one target leaves the others and the features alone."""
    told, _ = told_by("hubert-base", tmp_path)
    assert told.features is not None
    pointers = {each.data_ptr() for each in (*told.hidden_states, told.features)}
    assert len(pointers) == 3

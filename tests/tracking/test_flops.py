"""The arithmetic of training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from transformers import HubertConfig

from interstack.distillation.module import Distillation
from interstack.models.flops import forward_macs
from interstack.models.student import Student
from interstack.tracking.flops import training_flops
from interstack.tracking.metrics import totals_of
from interstack.tracking.stage_records import StageRecord


@pytest.mark.parametrize("frozen", [False, True])
def test_training_is_three_forward_passes_of_what_is_trained(frozen: bool) -> None:
    """Two operations a multiply-accumulate; a frozen front end costs the student nothing."""
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    student = Student(config, [2, 4], 12, freeze_front_end=frozen)
    parts = SimpleNamespace(student=student, teacher=None, extracts_features=False)
    module = cast("Distillation", parts)
    for depth in (2, 3):  # the one that it has, and one that it will have
        macs = forward_macs(config, depth, 5.0)
        trained = macs.encoder + 50 * 2 * 16 * 12 + (0 if frozen else macs.front_end)
        assert training_flops(module, depth, 5.0) == pytest.approx(6 * trained)


def test_a_runs_arithmetic_goes_by_padded_audio_and_by_steps() -> None:
    """What the optimizer computes does not depend on how much audio a step holds."""
    stages = [
        StageRecord(1, 2, 0, 0, steps=3, audio_seconds=50.0, padded_seconds=60.0),
        StageRecord(2, 4, 0, 3, steps=2, audio_seconds=30.0, padded_seconds=40.0),
    ]
    totals = totals_of(stages, lambda depth: 10.0 * depth, lambda depth: 1000.0 * depth)
    assert totals.flops == 60 * 20 + 3 * 2000 + 40 * 40 + 2 * 4000

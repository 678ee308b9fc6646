"""Linear CKA, the spike after a growth, and the arithmetic of training: the pure parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from transformers import HubertConfig

from interstack.distillation.module import Distillation
from interstack.models.flops import forward_macs
from interstack.models.student import Student
from interstack.tracking.flops import training_flops
from interstack.tracking.layer_similarity import linear_cka
from interstack.tracking.meters import SpikeMeter
from interstack.tracking.metrics import totals_of
from interstack.tracking.stage_records import StageRecord


def test_cka_knows_neither_rotation_nor_scale_nor_offset() -> None:
    """And tells what has nothing to do with each other, and what is half the same."""
    torch.manual_seed(0)
    states = torch.randn(4000, 6)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6))
    same = 3.0 * states @ rotation + 5.0
    other = torch.randn(4000, 9)
    half = torch.cat([states[:, :3], torch.randn(4000, 3)], dim=1)
    ((to_same, to_other, to_half),) = linear_cka([states], [same, other, half]).tolist()
    assert to_same == pytest.approx(1.0, abs=1e-5)
    assert to_other < 0.01
    assert to_half == pytest.approx(0.5, abs=0.03)


def test_cka_is_the_textbooks_formula() -> None:
    """By Gram matrices, as its other form has it."""
    torch.manual_seed(1)
    x, y = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 7, dtype=torch.float64)
    grams = [(each - each.mean(0)) @ (each - each.mean(0)).T for each in (x, y)]
    expected = (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
    torch.testing.assert_close(linear_cka([x], [y])[0, 0], expected)


def test_a_constant_is_like_nothing() -> None:
    """Not a number would be no answer."""
    constant = torch.ones(10, 3)
    assert linear_cka([constant], [torch.randn(10, 3), constant]).tolist() == [[0.0, 0.0]]


def test_a_spike_is_its_peak_and_the_way_back() -> None:
    """Smoothed over five steps, against the twenty before; told once."""
    meter = SpikeMeter()
    for _ in range(30):
        meter.add(1.0)
    assert not meter.is_unlogged
    meter.start()
    assert meter.before == 1.0
    losses = [2.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.5, 0.5, 0.5]
    told = []
    for loss in losses:
        meter.add(loss)
        told.append(meter.is_unlogged)
        meter.is_unlogged = False  # as who tells it does
    assert told.index(True) == 9  # the first five whose mean is 1 again: 1.5 1.0 0.5 0.5 0.5 …
    assert sum(told) == 1
    assert meter.recovered_after == 10
    assert meter.peak == 2.0
    again = SpikeMeter.of_state(meter.state_dict())
    assert again.state_dict() == meter.state_dict()


def test_without_a_step_before_it_a_growth_has_no_spike() -> None:
    """Two growths in a row, or a run that begins with one."""
    meter = SpikeMeter()
    meter.start()
    for _ in range(10):
        meter.add(1.0)
    assert not meter.is_unlogged
    assert meter.peak is None


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

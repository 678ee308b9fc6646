"""The objective: the formulas, and that padding and batching never count."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from interstack.distillation.metrics import DistillationLoss
from interstack.distillation.objective import (
    ObjectiveConfig,
    TapSums,
    layer_normed,
    tap_sums,
    total_loss,
)
from interstack.errors import ConfigurationError

NUM_TAPS, BATCH, FRAMES, WIDTH = 3, 4, 7, 5
NUM_FRAMES = [7, 3, 1, 5]
OBJECTIVES = pytest.mark.parametrize(
    "config",
    [ObjectiveConfig("mse", 0.5), ObjectiveConfig("distilhubert", cosine_weight=2.0)],
    ids=["mse", "distilhubert"],
)


def example() -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Predictions, targets and a mask."""
    predictions = [torch.randn(BATCH, FRAMES, WIDTH) for _ in range(NUM_TAPS)]
    targets = [torch.randn(BATCH, FRAMES, WIDTH) for _ in range(NUM_TAPS)]
    return predictions, targets, torch.arange(FRAMES) < torch.tensor(NUM_FRAMES)[:, None]


def loss_of(
    predictions: list[Tensor], targets: list[Tensor], mask: Tensor, config: ObjectiveConfig
) -> float:
    """The loss of a batch."""
    sums = tap_sums(predictions, targets, mask, config)
    return total_loss(sums.by_tap / sums.num_frames, config).item()


def valid_pairs(tap: int) -> list[tuple[list[float], list[float]]]:
    """Prediction and target of every valid frame of the example, as plain lists."""
    torch.manual_seed(0)
    predictions, targets, _ = example()
    return [
        (predictions[tap][row, frame].tolist(), targets[tap][row, frame].tolist())
        for row in range(BATCH)
        for frame in range(NUM_FRAMES[row])
    ]


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_mse_is_the_papers_formula(weight: float) -> None:
    """MSE of the last tap plus w times the mean of all taps', each over valid frames."""
    means = []
    for tap in range(NUM_TAPS):
        errors = [(p - t) ** 2 for ps, ts in valid_pairs(tap) for p, t in zip(ps, ts, strict=True)]
        means.append(sum(errors) / len(errors))
    expected = means[-1] + weight * sum(means) / len(means)
    torch.manual_seed(0)
    config = ObjectiveConfig(intermediate_weight=weight)
    assert loss_of(*example(), config) == pytest.approx(expected, rel=1e-5)


def test_distilhubert_is_its_papers_formula() -> None:
    """The taps' sum of mean L1 minus λ log σ(cos)."""
    expected = 0.0
    for tap in range(NUM_TAPS):
        distances = []
        for ps, ts in valid_pairs(tap):
            dot = sum(p * t for p, t in zip(ps, ts, strict=True))
            cosine = dot / math.hypot(*ps) / math.hypot(*ts)
            l1 = sum(abs(p - t) for p, t in zip(ps, ts, strict=True)) / WIDTH
            distances.append(l1 - 2.0 * math.log(1 / (1 + math.exp(-cosine))))
        expected += sum(distances) / len(distances)
    torch.manual_seed(0)
    config = ObjectiveConfig("distilhubert", cosine_weight=2.0)
    assert loss_of(*example(), config) == pytest.approx(expected, rel=1e-5)


@OBJECTIVES
@pytest.mark.parametrize("rubbish", [0.0, 1e6, math.inf, math.nan])
def test_padding_never_counts(config: ObjectiveConfig, rubbish: float) -> None:
    """Nor in the gradient: whatever stands there, even NaN."""
    predictions, targets, mask = example()
    clean = loss_of(predictions, targets, mask, config)
    for tensor in predictions + targets:
        tensor[~mask] = rubbish
    assert loss_of(predictions, targets, mask, config) == clean


@OBJECTIVES
def test_padding_gets_no_gradient(config: ObjectiveConfig) -> None:
    """Valid frames get one."""
    predictions, targets, mask = example()
    for prediction in predictions:
        prediction.requires_grad_()
    torch.autograd.backward(tap_sums(predictions, targets, mask, config).by_tap.sum())
    for prediction in predictions:
        assert prediction.grad is not None
        assert not prediction.grad[~mask].any()
        assert bool(prediction.grad[mask].any(-1).all())


@OBJECTIVES
def test_sums_add_up_over_batches(config: ObjectiveConfig) -> None:
    """However the utterances are divided, also among ranks."""
    predictions, targets, mask = example()
    whole = tap_sums(predictions, targets, mask, config)
    parts = [
        tap_sums([p[rows] for p in predictions], [t[rows] for t in targets], mask[rows], config)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(parts[0].by_tap + parts[1].by_tap, whole.by_tap)
    assert parts[0].num_frames + parts[1].num_frames == whole.num_frames == sum(NUM_FRAMES)


def test_losses_are_computed_in_single_precision() -> None:
    """Half precision would overflow in the squares."""
    predictions, targets, mask = example()
    half = [(300.0 * tensor).half() for tensor in predictions]
    sums = tap_sums(half, [target.half() for target in targets], mask, ObjectiveConfig())
    assert sums.by_tap.dtype == torch.float32
    assert bool(torch.isfinite(sums.by_tap).all())


def test_layer_normed_frames_have_zero_mean_and_unit_variance() -> None:
    """Each over its own channels."""
    normed = layer_normed(50.0 + 30.0 * torch.randn(2, 3, 64))
    torch.testing.assert_close(normed.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.var(-1, correction=0), torch.ones(2, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sizes", [[3], [1, 3], [3, 1, 2]])
def test_the_metric_is_the_mean_over_all_frames_of_all_batches(sizes: list[int]) -> None:
    """Large batches weigh more, by their frames and not by their number."""
    config = ObjectiveConfig()
    batches = [TapSums(torch.rand(2) * size, torch.tensor(size)) for size in sizes]
    metric = DistillationLoss(config, 2)
    for batch in batches:
        metric.update(batch)
    loss, by_tap = metric.compute()
    mean = torch.stack([batch.by_tap for batch in batches]).sum(0) / sum(sizes)
    torch.testing.assert_close(by_tap, mean)
    torch.testing.assert_close(loss, total_loss(mean, config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"intermediate_weight": -0.1}, "intermediate_weight -0.1 is below 0"),
        ({"cosine_weight": -1.0}, "cosine_weight -1.0 is below 0"),
        ({"target_norm_seconds": 0.0}, "target_norm_seconds 0.0 must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    """By name."""
    with pytest.raises(ConfigurationError, match=message):
        ObjectiveConfig(**settings)


@pytest.mark.parametrize("setting", ["kind", "target_norm"])
def test_an_unknown_name_is_refused_in_python_too(setting: str) -> None:
    """Whoever lifts the objective out has no command line to check names."""
    with pytest.raises(ConfigurationError, match=f"no model.objective.{setting} 'other'"):
        ObjectiveConfig(**{setting: "other"})

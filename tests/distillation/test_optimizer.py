"""The learning rate as a function of progress, and what the optimizer holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from interstack.distillation.optimizer import OptimizerConfig, make_optimizer
from interstack.errors import ConfigurationError


def test_the_defaults_are_the_papers() -> None:
    """AdamW with 5e-4, weight decay 1e-4, 7 % warm-up and linear decay."""
    config = OptimizerConfig()
    assert (config.learning_rate, config.weight_decay) == (5e-4, 1e-4)
    assert (config.warmup, config.decay) == (0.07, "linear")


@pytest.mark.parametrize(
    ("progress", "share"),
    [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.55, 0.5), (0.91, 0.1), (1.0, 0.0), (1.2, 0.0)],
)
def test_the_rate_warms_up_and_falls_to_zero(progress: float, share: float) -> None:
    """Linearly, both."""
    config = OptimizerConfig(learning_rate=2.0, warmup=0.1)
    assert config.learning_rate_at(progress) == pytest.approx(2.0 * share)


@pytest.mark.parametrize(("progress", "share"), [(0.05, 0.5), (0.1, 1.0), (0.5, 1.0), (1.0, 1.0)])
def test_a_constant_rate_stays_after_the_warm_up(progress: float, share: float) -> None:
    """To the end."""
    config = OptimizerConfig(learning_rate=2.0, warmup=0.1, decay="constant")
    assert config.learning_rate_at(progress) == pytest.approx(2.0 * share)


def test_without_warm_up_the_peak_comes_first() -> None:
    """No division by zero either."""
    assert OptimizerConfig(learning_rate=2.0, warmup=0.0).learning_rate_at(0.0) == 2.0


@given(st.floats(0, 0.99), st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_the_rate_rises_to_its_peak_and_then_only_falls(warmup: float, points: list[float]) -> None:
    """It never exceeds the peak, and never jumps."""
    config = OptimizerConfig(learning_rate=1.0, warmup=warmup)
    rising = [config.learning_rate_at(p) for p in sorted(points) if p < warmup]
    falling = [config.learning_rate_at(p) for p in sorted(points) if p >= warmup]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert all(0.0 <= rate <= 1.0 for rate in rising + falling)
    assert config.learning_rate_at(warmup) == pytest.approx(1.0)


def test_the_optimizer_holds_what_is_trained_with_its_settings() -> None:
    """Frozen parameters stay out; names are kept for checkpoints."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    config = OptimizerConfig(3e-4, 2e-2, (0.8, 0.95), 1e-6)
    optimizer = make_optimizer(model.named_parameters(), config)
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]
    assert group["param_names"] == ["1.weight", "1.bias"]
    assert isinstance(optimizer, torch.optim.AdamW)
    settings = (group["lr"], group["weight_decay"], group["betas"], group["eps"])
    assert settings == (3e-4, 2e-2, (0.8, 0.95), 1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate 0.0 must be above 0"),
        ({"warmup": 1.0}, r"warmup 1.0 is a share of the run and must lie in \[0, 1\)"),
        ({"warmup": -0.1}, r"must lie in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    """By name."""
    with pytest.raises(ConfigurationError, match=message):
        OptimizerConfig(**settings)

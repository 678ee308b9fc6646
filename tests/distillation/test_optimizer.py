"""The learning rate as a function of progress, and what the optimizer holds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from interstack.distillation.optimizer import Decay, OptimizerConfig, make_optimizer
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


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"decay": "cosine"}, {0.05: 0.5, 0.1: 1.0, 0.55: 0.5, 0.775: 0.146447, 1.0: 0.0}),
        ({"decay": "wsd"}, {0.05: 0.5, 0.1: 1.0, 0.7: 1.0, 0.85: 0.5, 1.0: 0.0, 1.2: 0.0}),
        ({"decay": "wsd", "decay_share": 0.2}, {0.1: 1.0, 0.8: 1.0, 0.9: 0.5, 1.0: 0.0}),
        ({"decay": "wsd", "decay_share": 0.9}, {0.1: 1.0, 0.55: 0.5, 1.0: 0.0}),
        (
            {"decay": "wsd", "decay_share": 0.4, "decay_shape": "sqrt"},
            {0.6: 1.0, 0.7: 0.5, 0.76: 1 - 0.4**0.5, 1.0: 0.0},
        ),
    ],
    ids=str,
)
def test_schedules_are_shares_of_the_run(
    settings: dict[str, Any], shares: dict[float, float]
) -> None:
    """Cosine to zero; warm-up, stable and decay over the last share, linear or 1 - sqrt."""
    config = OptimizerConfig(learning_rate=2.0, warmup=0.1, **settings)
    rates = {progress: config.learning_rate_at(progress) / 2.0 for progress in shares}
    assert rates == pytest.approx(shares, abs=1e-6)


def test_without_warm_up_the_peak_comes_first() -> None:
    """No division by zero either."""
    assert OptimizerConfig(learning_rate=2.0, warmup=0.0).learning_rate_at(0.0) == 2.0


@given(
    st.floats(0, 0.7),
    st.lists(st.floats(0, 1), min_size=2, max_size=8),
    st.sampled_from(["linear", "cosine", "wsd", "constant"]),
)
def test_the_rate_rises_to_its_peak_and_then_only_falls(
    warmup: float, points: list[float], decay: Decay
) -> None:
    """It never exceeds the peak, and never jumps."""
    config = OptimizerConfig(learning_rate=1.0, warmup=warmup, decay=decay)
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
        ({"decay": "step"}, "decay is 'step': choose one of linear, cosine, wsd, constant"),
        ({"kind": "sgd"}, "kind is 'sgd': choose one of adamw, muon"),
        ({"decay": "wsd", "decay_shape": "cube"}, "decay_shape is 'cube': choose one of linear"),
        ({"decay": "wsd", "decay_share": 0.95}, r"must lie in \(0, 0.93\], since the warm-up"),
        ({"decay": "wsd", "decay_share": 0.0}, r"decay_share 0.0 is a share of the run"),
        ({"kind": "muon", "momentum": 1.0}, r"momentum 1.0 must lie in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    """By name."""
    with pytest.raises(ConfigurationError, match=message):
        OptimizerConfig(**settings)


def layers(*names: str) -> dict[str, nn.Parameter]:
    """Parameters of one shape, so that only their names tell them apart."""
    return {name: nn.Parameter(torch.ones(2)) for name in names}


def stepped(parameters: dict[str, nn.Parameter]) -> torch.optim.AdamW:
    """An optimizer in which the parameter called "3" has had a gradient of 3."""
    optimizer = make_optimizer(parameters.items(), OptimizerConfig(betas=(0.0, 0.0)))
    for name, parameter in parameters.items():
        parameter.grad = torch.full_like(parameter, float(name))
    optimizer.step()
    return optimizer


def moments(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]
) -> dict[str, Any]:
    """Every parameter's first moment, which is its last gradient."""
    return {name: optimizer.state[each]["exp_avg"].tolist() for name, each in parameters.items()}


# Fused ------------------------------------------------------------------------------------------


def test_it_is_fused_and_leaves_unscaling_to_the_scaler() -> None:
    """Lightning asks this attribute, and would refuse to clip gradients in mixed precision."""
    optimizer = make_optimizer(layers("1").items(), OptimizerConfig())
    assert optimizer.param_groups[0]["fused"] is True
    assert optimizer._step_supports_amp_scaling is False


def test_a_step_can_be_held_back_on_the_device() -> None:
    """Neither weights nor moments nor step counts change, whatever the gradient is."""
    parameters = layers("1", "2")
    optimizer: Any = stepped(parameters)
    before = copy.deepcopy((parameters, optimizer.state_dict()["state"]))
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    after = parameters, optimizer.state_dict()["state"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    optimizer.found_inf = torch.tensor(0.0)
    parameters["1"].grad = parameters["2"].grad = torch.ones(2)
    optimizer.step()
    assert optimizer.state[parameters["1"]]["step"] == 2
    assert not torch.equal(parameters["1"], before[0]["1"])


def test_state_of_before_it_was_fused_goes_on_fused() -> None:
    """The checkpoint's group says how its steps were computed, which is none of its business."""
    saved = stepped(layers("1", "2")).state_dict()
    saved["param_groups"][0]["fused"] = None
    present = layers("1", "2")
    optimizer = make_optimizer(present.items(), OptimizerConfig())
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["fused"] is True
    assert moments(optimizer, present) == {"1": [1.0, 1.0], "2": [2.0, 2.0]}
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}


# State that is loaded ---------------------------------------------------------------------------


def test_saved_state_is_matched_by_name_in_any_order() -> None:
    """Torch alone goes by position, and would give each the moments of another."""
    saved = stepped(layers("1", "2", "3")).state_dict()
    present = layers("3", "1", "2")
    optimizer = make_optimizer(present.items(), OptimizerConfig())
    optimizer.load_state_dict(saved)
    assert moments(optimizer, present) == {"3": [3.0, 3.0], "1": [1.0, 1.0], "2": [2.0, 2.0]}
    assert optimizer.param_groups[0]["param_names"] == ["3", "1", "2"]
    assert saved["param_groups"][0]["param_names"] == ["1", "2", "3"]
    again = optimizer.state_dict()
    optimizer.load_state_dict(again)
    assert moments(optimizer, present) == {"3": [3.0, 3.0], "1": [1.0, 1.0], "2": [2.0, 2.0]}


def test_parameters_without_state_may_be_among_the_saved() -> None:
    """Clones that have not stepped yet have none, and others keep theirs."""
    parameters = layers("1", "2", "3")
    optimizer = stepped(parameters)
    del optimizer.state[parameters["2"]]
    present = layers("2", "3", "1")
    loaded = make_optimizer(present.items(), OptimizerConfig())
    loaded.load_state_dict(optimizer.state_dict())
    with_state = {name: each for name, each in present.items() if each in loaded.state}
    assert moments(loaded, with_state) == {"3": [3.0, 3.0], "1": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("saved", "present", "message"),
    [
        ("12", "123", r"lacking: 3; unknown: none"),
        ("123", "12", r"lacking: none; unknown: 3"),
        ("124", "123", r"lacking: 3; unknown: 4"),
        ("1", "123456", r"lacking: 2, 3, 4 and 2 more; unknown: none"),
    ],
)
def test_state_of_other_parameters_is_refused(saved: str, present: str, message: str) -> None:
    """As many, more or fewer; with their names."""
    state = stepped(layers(*saved)).state_dict()
    with pytest.raises(ConfigurationError, match=message):
        make_optimizer(layers(*present).items(), OptimizerConfig()).load_state_dict(state)


def test_state_without_names_is_refused() -> None:
    """Nothing says whose it is, even where the numbers agree."""
    state = stepped(layers("1", "2")).state_dict()
    del state["param_groups"][0]["param_names"]
    with pytest.raises(ConfigurationError, match=r"lacking: 1, 2; unknown: none"):
        make_optimizer(layers("1", "2").items(), OptimizerConfig()).load_state_dict(state)

"""The optimizer's settings, and the learning rate as a function of the run's progress.

The rate is no torch scheduler: growth makes a new optimizer, which would start one afresh, while
progress goes on through growth and resume alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from interstack.errors import ConfigurationError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and decay. Defaults are the paper's (arXiv 2606.11766).

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay of all parameters.
        betas: Decay rates of Adam's first and second moment.
        eps: Added to the root of the second moment.
        warmup: Share of the run over which the rate rises linearly from 0.
        decay: ``linear``: fall to 0 at the run's end after the warm-up; ``constant``: stay.
    """

    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: float = 0.07
    decay: Literal["linear", "constant"] = "linear"

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ConfigurationError(
                f"model.optimizer.learning_rate {self.learning_rate} must be above 0"
            )
        if not 0.0 <= self.warmup < 1.0:
            raise ConfigurationError(
                f"model.optimizer.warmup {self.warmup} is a share of the run and must lie in [0, 1)"
            )

    def learning_rate_at(self, progress: float) -> float:
        """Return the learning rate at a point of the run.

        Args:
            progress: Share of the run that is done, 0 to 1.
        """
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        if self.decay == "constant":
            return self.learning_rate
        return self.learning_rate * max(0.0, 1.0 - progress) / (1.0 - self.warmup)


def make_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> torch.optim.AdamW:
    """Make a fused AdamW over the parameters that are trained, with their names in its state.

    State that is loaded into it is matched by these names: ``load_state_dict`` raises a
    ConfigurationError if they are not those of the parameters that are trained. Where its
    ``found_inf`` is a tensor that holds 1, a step leaves weights, moments and step counts alone.
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,  # one kernel for all parameters, on a GPU and on a CPU
    )
    # Lightning would refuse to clip gradients in mixed precision, also in bf16: torch says that a
    # fused optimizer unscales them by itself. It need not: the scaler does where this is False.
    optimizer._step_supports_amp_scaling = False
    optimizer.register_load_state_dict_pre_hook(_match_by_name)
    return optimizer


def _match_by_name(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Bring saved state into the order of the optimizer's parameters; torch goes by position."""
    (group,) = optimizer.param_groups
    (saved,) = state_dict["param_groups"]
    names: list[str] = group["param_names"]
    places = dict(zip(saved.get("param_names", ()), saved["params"], strict=False))
    lacking = [name for name in names if name not in places]
    unknown = [name for name in places if name not in names]
    if lacking or unknown:
        raise ConfigurationError(
            "the checkpoint's optimizer state is not that of the parameters that are trained "
            f"(lacking: {_some(lacking)}; unknown: {_some(unknown)}): resume with the settings and "
            "the version of interstack that the run began with"
        )
    matched = saved | {"params": [places[name] for name in names], "param_names": list(names)}
    matched["fused"] = group["fused"]  # how a step is computed is no affair of the checkpoint's
    return state_dict | {"param_groups": [matched]}


def _some(names: Sequence[str]) -> str:
    """Write the first few of many names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3]) or 'none'}{more}"

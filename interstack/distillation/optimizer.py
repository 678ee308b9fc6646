"""The optimizer's settings, and the learning rate as a function of the run's progress.

The rate is no torch scheduler: growth makes a new optimizer, which would start one afresh, while
progress goes on through growth and resume alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

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
                f"optimizer.learning_rate {self.learning_rate} must be above 0"
            )
        if not 0.0 <= self.warmup < 1.0:
            raise ConfigurationError(
                f"optimizer.warmup {self.warmup} is a share of the run and must lie in [0, 1)"
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
    """Make an AdamW over the parameters that are trained, with their names in its state."""
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    return torch.optim.AdamW(
        trained,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )

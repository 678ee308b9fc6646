"""The optimizer's settings, and the learning rate as a function of the run's progress.

The rate is no torch scheduler: growth makes a new optimizer, which would start one afresh, while
progress continues through growth and resume alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from interstack.distillation.muon import MuonAdamW
from interstack.errors import ConfigurationError
from interstack.settings import Owners, check_effects, defaults_of

Decay = Literal["linear", "cosine", "wsd", "constant"]
DecayShape = Literal["linear", "sqrt"]
OptimizerKind = Literal["adamw", "muon"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, warm-up and decay. Defaults are the paper's (arXiv 2606.11766).

    All lengths are shares of the run, so that growth may come anywhere in them.

    Attributes:
        kind: ``adamw`` for all parameters, or ``muon`` for the matrices of the encoder's layers and
            AdamW for the rest, with one learning rate.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay of all parameters.
        betas: Decay rates of Adam's first and second moment.
        eps: Added to the root of the second moment.
        momentum: Decay rate of Muon's momentum. Belongs to ``kind: muon``.
        warmup: Share of the run over which the rate rises linearly from 0.
        decay: ``linear`` or ``cosine``: fall to 0 at the run's end after the warm-up. ``wsd``
            (warm-up, stable, decay): stay at the peak, and fall to 0 over the last ``decay_share``.
            ``constant``: stay.
        decay_share: Share of the run over which ``wsd`` falls. Belongs to ``wsd``.
        decay_shape: How ``wsd`` falls: ``linear``, or ``sqrt``: as 1 − √x with the
            share x of the decay that is done (arXiv 2405.18392). Belongs to ``wsd``.

    Raises:
        ConfigurationError: If a value is out of range or contradicts another.
    """

    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: float = 0.07
    decay: Decay = "linear"
    decay_share: float = 0.3
    decay_shape: DecayShape = "linear"
    kind: OptimizerKind = "adamw"
    momentum: float = 0.95

    OWNERS: ClassVar[Owners] = {
        "decay_share": ("decay", ("wsd",)),
        "decay_shape": ("decay", ("wsd",)),
        "momentum": ("kind", ("muon",)),
    }

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ConfigurationError(
                f"model.optimizer.learning_rate {self.learning_rate} must be above 0"
            )
        if not 0.0 <= self.warmup < 1.0:
            raise ConfigurationError(
                f"model.optimizer.warmup {self.warmup} is a share of the run and must lie in [0, 1)"
            )
        _check_one_of("decay", self.decay, Decay)
        _check_one_of("kind", self.kind, OptimizerKind)
        _check_one_of("decay_shape", self.decay_shape, DecayShape)
        if self.decay == "wsd" and not 0.0 < self.decay_share <= 1.0 - self.warmup:
            raise ConfigurationError(
                f"model.optimizer.decay_share {self.decay_share} is a share of the run and must "
                f"lie in (0, {1.0 - self.warmup:g}], since the warm-up takes {self.warmup:g}"
            )
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigurationError(f"model.optimizer.momentum {self.momentum} must lie in [0, 1)")

    def check_effects(self) -> None:
        """Refuse options that have no effect beside the others.

        Raises:
            ConfigurationError: In that case.
        """
        check_effects("model.optimizer", asdict(self), defaults_of(OptimizerConfig), self.OWNERS)

    def learning_rate_at(self, progress: float) -> float:
        """Return the learning rate at a point of the run.

        Args:
            progress: Share of the run that is done, 0 to 1.
        """
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        return self.learning_rate * self._decayed(min(1.0, progress))

    def _decayed(self, progress: float) -> float:
        """Return the share of the peak that is left after the warm-up, 1 to 0."""
        if self.decay == "constant":
            return 1.0
        start = self.warmup
        if self.decay == "wsd":
            start = max(start, 1.0 - self.decay_share)
        done = max(0.0, progress - start) / (1.0 - start)
        if self.decay == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        falls_by_root = self.decay == "wsd" and self.decay_shape == "sqrt"
        return 1.0 - (math.sqrt(done) if falls_by_root else done)


def _check_one_of(name: str, value: str, kind: Any) -> None:  # noqa: ANN401, a Literal
    if value not in get_args(kind):
        raise ConfigurationError(
            f"model.optimizer.{name} is {value!r}: choose one of {', '.join(get_args(kind))}"
        )


def make_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    layer_prefix: str = "",
) -> torch.optim.Optimizer:
    """Make a fresh optimizer over the parameters that are trained, with their names in its state.

    State that is loaded into it is matched by these names: ``load_state_dict`` raises a
    ConfigurationError if they are not those of the parameters that are trained. Where its
    ``found_inf`` is a tensor that holds 1, a step leaves weights, moments and step counts alone.

    Args:
        named_parameters: A module's; those without ``requires_grad`` are skipped.
        config: The settings.
        layer_prefix: What the names of the encoder layers' parameters begin with; under ``muon``
            their matrices are Muon's.
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if config.kind == "muon":
        is_matrix = [name.startswith(layer_prefix) and each.ndim == 2 for name, each in trained]
        optimizer = MuonAdamW(
            itertools.compress(trained, is_matrix),
            itertools.compress(trained, [not each for each in is_matrix]),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            betas=config.betas,
            eps=config.eps,
        )
    else:
        optimizer = torch.optim.AdamW(
            trained,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,  # one kernel for all parameters, on a GPU and on a CPU
        )
        # Lightning would refuse to clip gradients in mixed precision, also in bf16: torch says that
        # a fused optimizer unscales them by itself. It need not: the scaler does where this is
        # False.
        optimizer._step_supports_amp_scaling = False
    optimizer.register_load_state_dict_pre_hook(_match_by_name)
    return optimizer


def _match_by_name(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Bring saved state into the order of the optimizer's parameters; torch goes by position."""
    present, saved = optimizer.param_groups, state_dict["param_groups"]
    indices = {
        name: index
        for group in saved
        for name, index in zip(group.get("param_names", ()), group["params"], strict=False)
    }
    names: list[str] = [name for group in present for name in group.get("param_names", ())]
    lacking = [name for name in names if name not in indices]
    unknown = [name for name in indices if name not in names]
    if lacking or unknown or len(present) != len(saved):
        raise ConfigurationError(
            "the checkpoint's optimizer state is not that of the parameters that are trained "
            f"(lacking: {_some(lacking)}; unknown: {_some(unknown)}; groups: {len(saved)} for "
            f"{len(present)}): resume with the settings and the version of interstack that the run "
            "began with"
        )
    groups = []
    for group, old in zip(present, saved, strict=True):
        group_names = list(group.get("param_names", ()))
        # how a step is computed is not the checkpoint's to decide
        computed = {"fused": group["fused"]} if "fused" in group else {}
        params = {"params": [indices[name] for name in group_names], "param_names": group_names}
        groups.append(old | params | computed)
    return state_dict | {"param_groups": groups}


def _some(names: Sequence[str]) -> str:
    """Write the first few of many names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3]) or 'none'}{more}"

"""Distillation objectives: pure functions of predictions, targets and a mask.

Losses come as sums over valid frames together with the number of those frames, so that padding
never counts and batches of different sizes, or ranks, can be averaged rightly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from interstack.errors import ConfigurationError
from interstack.settings import Owners, check_effects, defaults_of

ObjectiveKind = Literal["mse", "distilhubert"]
TargetNormKind = Literal["none", "layer_norm", "channel"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the student minimises.

    Attributes:
        kind: ``mse``: mean squared error on the last tap plus ``intermediate_weight`` times its
            mean over all taps (arXiv 2606.11766), so that of three taps the last weighs 1 + w/3;
            the paper leaves open whether it counts twice, and whether sums or means are taken.
            ``distilhubert``: the sum over the taps of L1 − ``cosine_weight`` · log σ(cosine
            similarity) (arXiv 2110.01900).
        intermediate_weight: w, the weight of the layer-to-layer term of ``mse``.
        cosine_weight: λ, the weight of the cosine term of ``distilhubert``.
        target_norm: ``none``; ``layer_norm``: each frame to zero mean and unit variance over its
            channels; ``channel``: each channel to zero mean and unit variance over the corpus.
            Teachers with huge outlier channels, Whisper among them, want one of the latter two.
        target_norm_seconds: Seconds of training audio that the channel statistics are taken from.
    """

    kind: ObjectiveKind = "mse"
    intermediate_weight: float = 0.5
    cosine_weight: float = 1.0
    target_norm: TargetNormKind = "none"
    target_norm_seconds: float = 600.0

    OWNERS: ClassVar[Owners] = {
        "intermediate_weight": ("kind", ("mse",)),
        "cosine_weight": ("kind", ("distilhubert",)),
        "target_norm_seconds": ("target_norm", ("channel",)),
    }

    def __post_init__(self) -> None:
        for name, known in (("kind", ObjectiveKind), ("target_norm", TargetNormKind)):
            if getattr(self, name) not in get_args(known):
                raise ConfigurationError(
                    f"there is no model.objective.{name} {getattr(self, name)!r}: choose one of "
                    f"{', '.join(get_args(known))}"
                )
        for name in ("intermediate_weight", "cosine_weight"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"model.objective.{name} {getattr(self, name)} is below 0")
        if self.target_norm_seconds <= 0:
            raise ConfigurationError(
                f"model.objective.target_norm_seconds {self.target_norm_seconds} must be above 0"
            )

    def check_effects(self) -> None:
        """Refuse options that have no effect beside the others.

        Raises:
            ConfigurationError: In that case.
        """
        check_effects("model.objective", asdict(self), defaults_of(ObjectiveConfig), self.OWNERS)


class TapSums(NamedTuple):
    """Sums of a batch's loss, additive over batches and ranks.

    Attributes:
        by_tap: Sum of each tap's distance over valid frames, (taps,).
        num_frames: Number of those frames, ().
    """

    by_tap: Tensor
    num_frames: Tensor


def tap_sums(
    predictions: Sequence[Tensor], targets: Sequence[Tensor], mask: Tensor, config: ObjectiveConfig
) -> TapSums:
    """Sum each tap's distance between prediction and target over the valid frames.

    Args:
        predictions: One tensor a tap, (batch, frames, channels).
        targets: The same of the teacher, already normalised.
        mask: True at valid frames, (batch, frames).
        config: The objective.
    """
    sums = []
    for prediction, target in zip(predictions, targets, strict=True):
        distance = frame_distance(prediction.float(), target.float(), config)
        # where, not a product: whatever padding holds, even NaN, must not leak into the sum
        sums.append(torch.where(mask, distance, 0.0).sum())
    return TapSums(torch.stack(sums), mask.sum())


def frame_distance(prediction: Tensor, target: Tensor, config: ObjectiveConfig) -> Tensor:
    """Return each frame's distance, (batch, frames), averaged over channels."""
    if config.kind == "mse":
        return (prediction - target).square().mean(dim=-1)
    cosine = F.cosine_similarity(prediction, target, dim=-1)
    l1 = (prediction - target).abs().mean(dim=-1)
    return l1 - config.cosine_weight * F.logsigmoid(cosine)


def total_loss(by_tap: Tensor, config: ObjectiveConfig) -> Tensor:
    """Combine the taps' mean distances into the loss.

    Args:
        by_tap: Mean distance of each tap over valid frames, (taps,), the last layer's last.
        config: The objective.

    Returns:
        The loss, ().
    """
    if config.kind == "mse":
        return by_tap[-1] + config.intermediate_weight * by_tap.mean()
    return by_tap.sum()


def layer_normed(target: Tensor) -> Tensor:
    """Bring each frame to zero mean and unit variance over its channels."""
    return F.layer_norm(target, target.shape[-1:])

"""Distillation objectives: pure functions of predictions, targets and a mask.

An objective gives each frame's distance and each tap's weight. Masking, sums and means are done
here: losses come as sums over valid frames together with the number of those frames, so that
padding never counts and batches of different sizes, or ranks, can be averaged exactly. The loss is
linear in the sums, on which accumulation over batches relies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from interstack.errors import ConfigurationError, first_line
from interstack.settings import Owners, check_effect, check_effects, defaults_of
from interstack.utils.dotted import import_dotted, is_dotted

ObjectiveKind = Literal["mse", "distilhubert"]
"""The objectives that there are."""
ObjectiveChoice: TypeAlias = ObjectiveKind | str
"""One of these, or the dotted name of a user's own class."""
TargetNormKind = Literal["none", "layer_norm", "channel"]


class Objective(ABC):
    """What the student minimises: the weighted sum over the taps of mean frame distances.

    The base of a user's own objective, which ``model.objective.kind`` names and
    ``model.objective.init_args`` makes. It has no parameters to train.

    Example:
        >>> class Cosine(Objective):
        ...     def frame_distance(self, prediction, target, mask):
        ...         return 1 - F.cosine_similarity(prediction, target, dim=-1)
    """

    @abstractmethod
    def frame_distance(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return each frame's distance at a tap.

        The distance of an utterance's frames may depend on that utterance alone, and not on its
        padding, whose values are finite and meaningless.

        Args:
            prediction: The student's, (batch, frames, channels) in float32.
            target: The teacher's, normalised, of the same shape.
            mask: True at valid frames, (batch, frames).

        Returns:
            (batch, frames); what it holds at padding is not read.
        """

    def tap_weights(self, num_taps: int) -> Sequence[float]:
        """Return the weight of each tap's mean distance, the top layer's last; 1 each by default.

        Args:
            num_taps: Taps of the student, the same in all stages.
        """
        return [1.0] * num_taps

    def weighted_sum(self, by_tap: Tensor) -> Tensor:
        """Return the loss, (), of the taps' mean distances, (taps,): linear in them.

        Raises:
            ConfigurationError: If ``tap_weights`` are those of another number of taps.
        """
        weights = self.tap_weights(len(by_tap))
        if len(weights) != len(by_tap):
            raise ConfigurationError(
                f"model.objective.kind is a {type(self).__name__}, whose tap_weights returns "
                f"{len(weights)} numbers for {len(by_tap)} taps: return one for each tap"
            )
        # numbers of the processor: a tensor of weights would have to be copied to the device
        terms = [weight * mean for weight, mean in zip(weights, by_tap.unbind(), strict=True)]
        return torch.stack(terms).sum()


@dataclass(frozen=True)
class MeanSquaredError(Objective):
    """``mse``: the last tap's plus ``intermediate_weight`` times the mean over all taps."""

    intermediate_weight: float

    def frame_distance(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the squared error, averaged over channels."""
        del mask
        return (prediction - target).square().mean(dim=-1)

    def tap_weights(self, num_taps: int) -> Sequence[float]:
        """Return w/n for each of n taps, and 1 more for the last."""
        each = self.intermediate_weight / num_taps
        return [each] * (num_taps - 1) + [1.0 + each]

    def weighted_sum(self, by_tap: Tensor) -> Tensor:
        """Return the same, rounded as it always was: as the formula is written."""
        return by_tap[-1] + self.intermediate_weight * by_tap.mean()


@dataclass(frozen=True)
class DistilHubertLoss(Objective):
    """``distilhubert``: L1 − ``cosine_weight`` · log σ(cosine similarity), summed over the taps."""

    cosine_weight: float

    def frame_distance(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return both terms, L1 averaged over channels."""
        del mask
        cosine = F.cosine_similarity(prediction, target, dim=-1)
        l1 = (prediction - target).abs().mean(dim=-1)
        return l1 - self.cosine_weight * F.logsigmoid(cosine)

    def weighted_sum(self, by_tap: Tensor) -> Tensor:
        """Return the sum over the taps."""
        return by_tap.sum()


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the student minimises.

    Attributes:
        kind: ``mse``: mean squared error on the last tap plus ``intermediate_weight`` times its
            mean over all taps (arXiv 2606.11766), so that of three taps the last weighs 1 + w/3;
            the paper leaves open whether it counts twice, and whether sums or means are taken.
            ``distilhubert``: the sum over the taps of L1 − ``cosine_weight`` · log σ(cosine
            similarity) (arXiv 2110.01900). Or the dotted name of a class of yours, such as
            ``mymodule.MyObjective``; see ``Objective``.
        intermediate_weight: w, the weight of the layer-to-layer term of ``mse``.
        cosine_weight: λ, the weight of the cosine term of ``distilhubert``.
        target_norm: ``none``; ``layer_norm``: each frame to zero mean and unit variance over its
            channels; ``channel``: each channel to zero mean and unit variance over the corpus.
            Teachers with huge outlier channels, Whisper among them, want one of the latter two.
        target_norm_seconds: Seconds of training audio that the channel statistics are taken from.
        init_args: Arguments by name for the class of yours that ``kind`` names.
    """

    kind: ObjectiveChoice = "mse"
    intermediate_weight: float = 0.5
    cosine_weight: float = 1.0
    target_norm: TargetNormKind = "none"
    target_norm_seconds: float = 600.0
    init_args: dict[str, Any] | None = None

    OWNERS: ClassVar[Owners] = {
        "intermediate_weight": ("kind", ("mse",)),
        "cosine_weight": ("kind", ("distilhubert",)),
        "target_norm_seconds": ("target_norm", ("channel",)),
    }

    def __post_init__(self) -> None:
        for name, known in (("kind", ObjectiveKind), ("target_norm", TargetNormKind)):
            value = getattr(self, name)
            if value in get_args(known) or (name == "kind" and is_dotted(value)):
                continue
            own = ", or give the dotted name of a class of yours, such as mymodule.MyObjective"
            raise ConfigurationError(
                f"there is no model.objective.{name} {value!r}: choose one of "
                f"{', '.join(get_args(known))}{own if name == 'kind' else ''}"
            )
        for name in ("intermediate_weight", "cosine_weight"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"model.objective.{name} {getattr(self, name)} is below 0")
        if self.target_norm_seconds <= 0:
            raise ConfigurationError(
                f"model.objective.target_norm_seconds {self.target_norm_seconds} must be above 0"
            )

    def check_effects(self) -> None:
        """Refuse options that have no effect beside the others, and a class that can't be made.

        Raises:
            ConfigurationError: In that case.
        """
        check_effects("model.objective", asdict(self), defaults_of(ObjectiveConfig), self.OWNERS)
        if self.kind in get_args(ObjectiveKind):
            where = f"with model.objective.kind {self.kind}"
            check_effect("model.objective.init_args", self.init_args, None, where)
        _ = self.objective

    @cached_property
    def objective(self) -> Objective:
        """The objective itself.

        Raises:
            ConfigurationError: If a user's own class can't be found or made.
        """
        if self.kind == "mse":
            return MeanSquaredError(self.intermediate_weight)
        if self.kind == "distilhubert":
            return DistilHubertLoss(self.cosine_weight)
        return _own_objective(self.kind, self.init_args or {})


def _own_objective(name: str, arguments: dict[str, Any]) -> Objective:
    """Make a user's objective of its class, which is not called unless it is one."""
    kind = import_dotted("model.objective.kind", name)
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise ConfigurationError(
            f"model.objective.kind is {name}, which is no class of an objective: derive it from "
            "interstack.distillation.objective.Objective"
        )
    make: Callable[..., Objective] = kind
    try:
        return make(**arguments)
    except Exception as error:  # whatever a user's class raises
        raise ConfigurationError(
            f"model.objective.kind is {name}, which can't be made with model.objective.init_args "
            f"{arguments} ({type(error).__name__}: {first_line(error)}): correct one of them"
        ) from error


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

    Raises:
        ConfigurationError: If a user's own objective returns anything else than frames' distances.
    """
    sums = []
    for prediction, target in zip(predictions, targets, strict=True):
        distance = config.objective.frame_distance(prediction.float(), target.float(), mask)
        if distance.shape != mask.shape:
            raise ConfigurationError(
                f"model.objective.kind is {config.kind}, whose frame_distance returns the shape "
                f"{tuple(distance.shape)}: return (batch, frames), here {tuple(mask.shape)}"
            )
        # where, not a product: whatever padding holds, even NaN, must not leak into the sum
        sums.append(torch.where(mask, distance, 0.0).sum())
    return TapSums(torch.stack(sums), mask.sum())


def total_loss(by_tap: Tensor, config: ObjectiveConfig) -> Tensor:
    """Combine the taps' mean distances into the loss.

    Args:
        by_tap: Mean distance of each tap over valid frames, (taps,), the last layer's last.
        config: The objective.

    Returns:
        The loss, ().

    Raises:
        ConfigurationError: If a user's own objective has weights for another number of taps.
    """
    return config.objective.weighted_sum(by_tap)


def layer_normed(target: Tensor) -> Tensor:
    """Bring each frame to zero mean and unit variance over its channels."""
    return F.layer_norm(target, target.shape[-1:])

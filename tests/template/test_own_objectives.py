"""A user's objective: sums and weights, as exact as ours."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from interstack import Objective
from interstack.distillation.objective import ObjectiveConfig, tap_sums, total_loss
from interstack.errors import ConfigurationError
from tests.distillation.test_objective import NUM_TAPS, example, loss_of


class SquaredDistance(Objective):
    """``mse``, written as a user would."""

    def __init__(self, weight: float = 0.5) -> None:
        self.weight = weight

    def frame_distance(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the squared error."""
        del mask
        return (prediction - target).square().mean(-1)

    def tap_weights(self, num_taps: int) -> list[float]:
        """Return those of ``mse``."""
        weights = [self.weight / num_taps] * num_taps
        weights[-1] += 1.0
        return weights


class WithinUtterance(Objective):
    """Looks along time, at valid frames alone; of the default weights."""

    def frame_distance(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return how far each frame's similarities to the utterance's frames are off."""
        valid = mask[..., None]
        ours = prediction.masked_fill(~valid, 0.0) @ prediction.masked_fill(~valid, 0.0).mT
        theirs = target.masked_fill(~valid, 0.0) @ target.masked_fill(~valid, 0.0).mT
        return (ours - theirs).square().sum(-1) / mask.sum(-1, keepdim=True)


class OfTheBatch(Objective):
    """Forgets the frames."""

    def frame_distance(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return a mean."""
        del mask
        return (prediction - target).abs().mean()


class TwoWeights(SquaredDistance):
    """Counts on two taps."""

    def tap_weights(self, num_taps: int) -> list[float]:
        """Return two."""
        del num_taps
        return [0.5, 1.0]


def config(kind: type[Objective], **init_args: object) -> ObjectiveConfig:
    """Name a class of this file."""
    return ObjectiveConfig(f"{__name__}.{kind.__name__}", init_args=init_args or None)


def test_an_own_objective_with_the_formula_of_ours_gives_its_loss() -> None:
    """By its weights alone, up to rounding."""
    speech = example()
    ours = loss_of(*speech, ObjectiveConfig(intermediate_weight=0.25))
    own = loss_of(*speech, config(SquaredDistance, weight=0.25))
    assert own == pytest.approx(ours, rel=1e-6)


@pytest.mark.parametrize("ours", [ObjectiveConfig(), ObjectiveConfig("distilhubert")])
def test_the_weights_of_our_objectives_are_those_of_their_formulas(ours: ObjectiveConfig) -> None:
    """Which are written out, so that their rounding stays."""
    by_tap = torch.rand(NUM_TAPS)
    weighted = Objective.weighted_sum(ours.objective, by_tap)
    torch.testing.assert_close(weighted, total_loss(by_tap, ours))


@pytest.mark.parametrize("kind", [SquaredDistance, WithinUtterance])
def test_sums_of_an_own_objective_add_up(kind: type[Objective]) -> None:
    """Over batches and ranks, and whatever stands in the padding."""
    predictions, targets, mask = example()
    whole = tap_sums(predictions, targets, mask, config(kind))
    for tensor in predictions + targets:
        tensor[~mask] = math.nan
    parts = [
        tap_sums(
            [p[rows] for p in predictions], [t[rows] for t in targets], mask[rows], config(kind)
        )
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(parts[0].by_tap + parts[1].by_tap, whole.by_tap)
    assert parts[0].num_frames + parts[1].num_frames == whole.num_frames


def test_taps_weigh_alike_by_default() -> None:
    """One each."""
    by_tap = torch.arange(1.0, NUM_TAPS + 1)
    assert float(total_loss(by_tap, config(WithinUtterance))) == float(by_tap.sum())


def test_the_loss_is_linear_in_the_sums() -> None:
    """On which accumulation relies."""
    one, other = torch.rand(NUM_TAPS), torch.rand(NUM_TAPS)
    mine = config(SquaredDistance)
    together = total_loss(one + other, mine)
    torch.testing.assert_close(together, total_loss(one, mine) + total_loss(other, mine))


def test_what_is_no_frame_distance_is_refused() -> None:
    """A mean can't be added up over ranks."""
    with pytest.raises(ConfigurationError, match=r"shape \(\): return \(batch, frames\)"):
        tap_sums(*example(), config(OfTheBatch))


def test_weights_of_another_number_of_taps_are_refused() -> None:
    """With both numbers."""
    with pytest.raises(ConfigurationError, match="returns 2 numbers for 3 taps"):
        total_loss(torch.ones(3), config(TwoWeights))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            config(SquaredDistance, width=3),
            "can't be made with .*unexpected keyword argument 'width'",
        ),
        (ObjectiveConfig("nomodule.Loss"), "nomodule can't be imported"),
        (ObjectiveConfig("os.system", init_args={"command": "x"}), "os.system.*derive it from"),
        (ObjectiveConfig(init_args={"weight": 1.0}), "no effect with model.objective.kind mse"),
        (
            ObjectiveConfig(f"{__name__}.SquaredDistance", intermediate_weight=1.0),
            "intermediate_weight is 1.0, which has no effect",
        ),
    ],
)
def test_an_objective_that_cannot_be_made_is_refused(
    settings: ObjectiveConfig, message: str
) -> None:
    """Before any training; what is no objective is never called."""
    with pytest.raises(ConfigurationError, match=message):
        settings.check_effects()

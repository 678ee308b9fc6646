"""The learning rate after growth: it goes on, or rises anew over so many steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interstack.distillation.optimizer import OptimizerConfig
from interstack.errors import ConfigurationError
from interstack.growth.callback import InterleavedStacking
from tests.distillation.small_runs import fit, make_module, make_trainer, training_batches
from tests.growth.growing_runs import Saver, Witness, train

REWARM: dict[str, Any] = {"learning_rate": "rewarm", "rewarm_steps": 3}
SCALES = [1, 1, 1, 1, 1 / 3, 2 / 3, 1, 1, 1 / 3, 2 / 3, 1, 1]
"""Factors of the twelve steps of a run that grows before its 5th and its 9th."""


def due(scales: list[float]) -> list[float]:
    """The last so many rates of a run of twelve steps."""
    config = OptimizerConfig()
    steps = range(12 - len(scales), 12)
    return [
        config.learning_rate_at(step / 12) * scale
        for step, scale in zip(steps, scales, strict=True)
    ]


def rates(teacher_directory: Path, *callbacks: Saver, **settings: Any) -> list[float]:  # noqa: ANN401
    """Every step's learning rate in a run of twelve steps with two growths."""
    settings = {"growth": REWARM, "max_steps": 12, "num_batches": 1, **settings}
    _, witness = train(teacher_directory, *callbacks, depths=(2, 3, 4), **settings)
    return witness.rates


def test_the_rate_rises_linearly_after_every_growth(teacher_directory: Path) -> None:
    """To what the schedule says, whose own warm-up opens the run; the first steps are no growth."""
    assert rates(teacher_directory) == pytest.approx(due(SCALES), rel=1e-12)


def test_the_rate_goes_on_by_default(teacher_directory: Path) -> None:
    """One schedule over the whole run."""
    assert rates(teacher_directory, growth=None) == pytest.approx(due([1] * 12), rel=1e-12)


@pytest.mark.parametrize("cut", [3, 4, 5, 6, 9, 11])
def test_a_resumed_run_rises_alike(cut: int, teacher_directory: Path, shared_run: Path) -> None:
    """The checkpoint knows when the last growth was."""
    rest = rates(teacher_directory, checkpoint=shared_run / f"{cut}.ckpt")
    assert rest == pytest.approx(due(SCALES[cut:]), rel=1e-12)


@pytest.fixture(scope="module")
def shared_run(teacher_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every step of the run that is never cut."""
    directory = tmp_path_factory.mktemp("rewarmed")
    rates(teacher_directory, Saver(directory))
    return directory


def test_the_rise_counts_optimizer_steps_and_not_batches(teacher_directory: Path) -> None:
    """Of two batches each."""
    noted = rates(teacher_directory, accumulate_grad_batches=2, num_batches=2)
    assert noted == pytest.approx(due(SCALES), rel=1e-12)


def test_stages_that_are_shorter_than_the_rise_begin_it_anew(teacher_directory: Path) -> None:
    """Growth interrupts a rise that has not come to its end."""
    growth = {"learning_rate": "rewarm", "rewarm_steps": 8}
    rise = [each / 8 for each in (1, 2, 3, 4)]
    noted = rates(teacher_directory, growth=growth)
    assert noted == pytest.approx(due([1, 1, 1, 1, *rise, *rise]), rel=1e-12)


def test_a_callback_that_is_fitted_again_forgets_its_last_growth(teacher_directory: Path) -> None:
    """A second fit begins at the beginning, with nothing to rise from."""
    stacking = InterleavedStacking((2, 4), **REWARM)
    for _ in range(2):
        witness = Witness()
        trainer = make_trainer(witness, max_steps=4)
        trainer.callbacks = [witness, stacking]
        fit(trainer, make_module(teacher_directory), training_batches(2))
        rate = OptimizerConfig().learning_rate_at
        expected = [rate(0.0), rate(0.25), rate(0.5) / 3, rate(0.75) * 2 / 3]
        assert witness.rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": "rewarm"}, "rewarm_steps belongs to growth.learning_rate: rewarm, and"),
        ({"rewarm_steps": 500}, "learning_rate is 'continue' and growth.rewarm_steps is 500"),
        ({"learning_rate": "rewarm", "rewarm_steps": 0}, "rewarm_steps 0 must be 1 or more"),
        ({"learning_rate": "restart"}, "no growth.learning_rate 'restart': .* continue, rewarm"),
        ({"optimizer_state": "keep"}, "no growth.optimizer_state 'keep': .* reset, carry, clone"),
    ],
)
def test_policies_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    """By name, when the callback is made, in Python as on the command line."""
    with pytest.raises(ConfigurationError, match=message):
        InterleavedStacking(**settings)

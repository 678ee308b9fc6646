"""The callback before training: its settings, the run it is laid over, what it refuses."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from interstack.errors import ConfigurationError
from interstack.growth.callback import InterleavedStacking, check_strategy
from interstack.growth.schedule import run_length, run_progress


def trainer_with(**attributes: Any) -> L.Trainer:  # noqa: ANN401
    """What the functions under test read of a Trainer."""
    return cast(L.Trainer, SimpleNamespace(**attributes))


def test_the_defaults_are_the_papers() -> None:
    """3, 6, 9 and 12 layers, interleaved, equally long."""
    stages = InterleavedStacking().make_schedule(75, "epochs").stages
    assert [stage.depth for stage in stages] == [3, 6, 9, 12]
    assert [stage.end - stage.start for stage in stages] == pytest.approx([0.25] * 4)


def test_prop_takes_its_alpha() -> None:
    """EQL, which is PROP-0, refuses it."""
    prop = InterleavedStacking(schedule="prop", alpha=2.0, depths=(1, 2, 3))
    eql = InterleavedStacking(schedule="eql", depths=(1, 2))
    assert prop.make_schedule(100, "steps").stages[1].start == pytest.approx(1 / 14)
    assert eql.make_schedule(100, "steps").stages[1].start == pytest.approx(1 / 2)


def test_explicit_lengths_are_laid_over_the_run() -> None:
    """Fractions of epochs included."""
    stacking = InterleavedStacking((3, 6), schedule="explicit", lengths=(0.5, 1.5))
    assert stacking.make_schedule(2, "epochs").stages[1].start == pytest.approx(0.25)


def test_a_single_depth_is_training_at_full_depth() -> None:
    """The baseline is the same callback with nothing to grow."""
    schedule = InterleavedStacking((12,)).make_schedule(10, "steps")
    assert {schedule.depth_at(step / 10) for step in range(11)} == {12}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": (3, 3)}, "have to increase"),
        ({"depths": (0, 3)}, "begin with 1 layer"),
        ({"depths": ()}, "begin with 1 layer"),
        ({"operator": "braid"}, "no growth operator 'braid'"),
        ({"operator": "append"}, "append repeats the whole stack.*6 layers to 9"),
        ({"operator": "midas", "depths": (3, 6, 8)}, None),
        ({"operator": "midas", "depths": (3, 5)}, "midas copies a block of 2"),
        ({"operator": "gradual", "depths": (2, 12)}, "gradual copies layers once"),
        ({"operator": "lidas", "depths": (2, 4, 12)}, "lidas copies layers once.*4 layers to 12"),
        ({"schedule": "explicit"}, "lengths belongs to growth.schedule: explicit"),
        ({"lengths": (1.0, 1.0, 1.0, 1.0)}, "schedule is 'eql' and growth.lengths is"),
    ],
)
def test_settings_are_judged_before_anything_runs(
    settings: dict[str, Any], message: str | None
) -> None:
    """Every growth is rehearsed when the callback is made."""
    if message is None:
        InterleavedStacking(**settings)
        return
    with pytest.raises(ConfigurationError, match=message):
        InterleavedStacking(**settings)


def test_lengths_count_in_the_unit_of_the_run() -> None:
    """Stages in epochs don't fit a run in steps."""
    stacking = InterleavedStacking((3, 6), schedule="explicit", lengths=(1, 1), unit="epochs")
    with pytest.raises(ConfigurationError, match=r"'epochs', but trainer.max_steps"):
        stacking.make_schedule(2, "steps")


def test_lengths_have_to_sum_to_the_run_and_match_the_depths() -> None:
    """Both are known only when the run is."""
    stacking = InterleavedStacking((3, 6), schedule="explicit", lengths=(1, 1, 1))
    with pytest.raises(ConfigurationError, match="sum to 3 epochs, but the run has 2"):
        stacking.make_schedule(2, "epochs")
    with pytest.raises(ConfigurationError, match=r"2 stage depths .* need 2 lengths, not 3"):
        stacking.make_schedule(3, "epochs")


def test_a_run_too_short_for_its_stages_is_refused() -> None:
    """Every stage gets a step or more."""
    with pytest.raises(ConfigurationError, match="3 steps has no room for 4 stages"):
        InterleavedStacking().make_schedule(3, "steps")
    with pytest.raises(ConfigurationError, match=r"9 steps has no room .* would have 0.90 steps"):
        InterleavedStacking(schedule="prop").make_schedule(9, "steps")
    assert len(InterleavedStacking().make_schedule(4, "steps").stages) == 4


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "length"),
    [(100, -1, (100, "steps")), (100, None, (100, "steps")), (-1, 3, (3, "epochs"))],
)
def test_the_runs_length_is_the_trainers(
    max_steps: int, max_epochs: int | None, length: tuple[float, str]
) -> None:
    """In steps or in epochs."""
    assert run_length(trainer_with(max_steps=max_steps, max_epochs=max_epochs)) == length


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "message"),
    [(-1, -1, "the run has no end"), (-1, None, "the run has no end"), (9, 2, "both end the run")],
)
def test_a_run_without_one_clear_end_is_refused(
    max_steps: int, max_epochs: int | None, message: str
) -> None:
    """Stages are shares of it."""
    with pytest.raises(ConfigurationError, match=message):
        run_length(trainer_with(max_steps=max_steps, max_epochs=max_epochs))


def test_progress_counts_the_batches_of_a_run_in_epochs() -> None:
    """Batch 3 of 10 in the second of four epochs."""
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_idx=3))
    trainer = trainer_with(
        max_steps=-1,
        max_epochs=4,
        num_training_batches=10,
        current_epoch=1,
        fit_loop=loop,
        accumulate_grad_batches=1,
    )
    assert run_progress(trainer) == pytest.approx((1 + 0.3) / 4)
    trainer.accumulate_grad_batches = 2
    assert run_progress(trainer) == pytest.approx((1 + 0.2) / 4)


def test_progress_in_epochs_needs_their_length() -> None:
    """A stream without length is measured in steps."""
    trainer = trainer_with(max_steps=-1, max_epochs=4, num_training_batches=math.inf)
    with pytest.raises(ConfigurationError, match=r"give trainer.max_steps instead"):
        run_progress(trainer)


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_shard_parameters_are_refused(strategy: type[Strategy]) -> None:
    """DeepSpeed's too, which passes for DDP by its class."""
    made = strategy.__new__(strategy)  # DeepSpeed's constructor wants deepspeed
    with pytest.raises(ConfigurationError, match=f"{strategy.__name__}.*give ddp"):
        check_strategy(trainer_with(strategy=made))


def test_a_single_device_and_ddp_are_let_through() -> None:
    """Both follow a growth."""
    for strategy in (SingleDeviceStrategy("cpu"), DDPStrategy()):
        check_strategy(trainer_with(strategy=strategy))


def test_an_unknown_schedule_is_refused_in_python_too() -> None:
    """A slip such as prop1 must not silently train another schedule."""
    with pytest.raises(ConfigurationError, match=r"no growth\.schedule 'prop1'"):
        InterleavedStacking(schedule=cast("Any", "prop1"))

"""A resumed run has the schedule that it began with, or does not go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from interstack.errors import ConfigurationError
from interstack.growth.callback import InterleavedStacking
from tests.distillation.small_runs import loader, make_module, make_trainer, training_batches
from tests.growth.growing_runs import Saver, train

BEGAN = """\
the run was started with this growth schedule
    stage 1:   2 layers, 0 to 4 steps
    stage 2:   4 layers, 4 to 8 steps
    operator interleave, optimizer_state reset, learning_rate continue
and is resumed with this one
"""
MEND = """
Give the settings that it was started with, which are in its config.yaml, or start a new run in \
another directory"""


@pytest.fixture(scope="module")
def begun(teacher_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a run of eight steps that grows from two layers to four in the middle."""
    directory = tmp_path_factory.mktemp("begun")
    train(teacher_directory, Saver(directory), max_steps=8)
    return directory


def resume(teacher_directory: Path, checkpoint: Path, **settings: Any) -> None:  # noqa: ANN401
    """Go on from a checkpoint in a module that knows only its settings."""
    settings = {"max_steps": 8, **settings}
    train(teacher_directory, checkpoint=checkpoint, **settings)


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        (
            {"growth": {"operator": "append"}},
            """\
    stage 1:   2 layers, 0 to 4 steps
    stage 2:   4 layers, 4 to 8 steps
    operator append, optimizer_state reset, learning_rate continue""",
        ),
        (
            {"growth": {"schedule": "explicit", "lengths": (5, 3), "unit": "steps"}},
            """\
    stage 1:   2 layers, 0 to 5 steps
    stage 2:   4 layers, 5 to 8 steps
    operator interleave, optimizer_state reset, learning_rate continue""",
        ),
        (
            {"depths": (2, 3, 12)},
            """\
    stage 1:   2 layers,    0 to 2.67 steps
    stage 2:   3 layers, 2.67 to 5.33 steps
    stage 3:  12 layers, 5.33 to    8 steps
    operator interleave, optimizer_state reset, learning_rate continue""",
        ),
        (
            {"max_steps": 100},
            """\
    stage 1:   2 layers,   0 to  50 steps
    stage 2:   4 layers,  50 to 100 steps
    operator interleave, optimizer_state reset, learning_rate continue""",
        ),
        (
            {"max_steps": -1, "max_epochs": 3},
            """\
    stage 1:   2 layers,   0 to 1.5 epochs
    stage 2:   4 layers, 1.5 to   3 epochs
    operator interleave, optimizer_state reset, learning_rate continue""",
        ),
        (
            {
                "growth": {
                    "optimizer_state": "carry",
                    "learning_rate": "rewarm",
                    "rewarm_steps": 2,
                }
            },
            """\
    stage 1:   2 layers, 0 to 4 steps
    stage 2:   4 layers, 4 to 8 steps
    operator interleave, optimizer_state carry, learning_rate rewarm over 2 steps""",
        ),
    ],
    ids=["operator", "boundaries", "depths", "length", "unit", "policies"],
)
def test_another_schedule_is_refused_with_both_printed(
    settings: dict[str, Any], shown: str, teacher_directory: Path, begun: Path
) -> None:
    """Stage by stage in the run's own unit, before a step is made, with what to do."""
    with pytest.raises(ConfigurationError) as refused:
        resume(teacher_directory, begun / "2.ckpt", **settings)
    assert str(refused.value) == BEGAN + shown + MEND


@pytest.mark.parametrize(
    "settings",
    [
        {"depths": (4,)},
        {"depths": (2, 5)},
        {"growth": {"optimizer_state": "clone"}},
    ],
    ids=["present depth alone", "later depth", "one policy"],
)
def test_any_one_difference_is_enough(
    settings: dict[str, Any], teacher_directory: Path, begun: Path
) -> None:
    """Also where the rest of the run would go on as it was."""
    with pytest.raises(ConfigurationError, match="started with this growth schedule"):
        resume(teacher_directory, begun / "6.ckpt", **settings)


@pytest.mark.parametrize("one", [2, 3])
def test_another_number_of_rewarming_steps_is_refused(
    one: int, teacher_directory: Path, tmp_path: Path
) -> None:
    """The rest of a rise would be another."""
    growth = {"learning_rate": "rewarm", "rewarm_steps": one}
    train(teacher_directory, Saver(tmp_path), growth=growth, max_steps=2)
    with pytest.raises(ConfigurationError, match=f"(?s)over {one} steps.*over {one + 1} steps"):
        resume(
            teacher_directory,
            tmp_path / "1.ckpt",
            growth=growth | {"rewarm_steps": one + 1},
            max_steps=2,
        )


@pytest.mark.parametrize(
    "growth",
    [
        {"schedule": "prop", "alpha": 0.0},
        {"schedule": "explicit", "lengths": (4, 4), "unit": "steps"},
    ],
    ids=["prop", "explicit"],
)
def test_the_same_stages_in_other_words_go_on(
    growth: dict[str, Any], teacher_directory: Path, begun: Path
) -> None:
    """What counts is when the student grows, and how."""
    resume(teacher_directory, begun / "6.ckpt", growth=growth)


def test_shares_that_differ_by_rounding_are_the_same(
    teacher_directory: Path, tmp_path: Path
) -> None:
    """PROP-1 sums 1/6, 2/6 and 3/6; given as 1, 2 and 3 of 6 steps, the sums end otherwise."""
    depths = (2, 3, 4)
    prop = InterleavedStacking(depths, schedule="prop").make_schedule(6, "steps")
    assert prop.stages[1].end == pytest.approx(0.5)
    train(
        teacher_directory,
        Saver(tmp_path),
        depths=depths,
        growth={"schedule": "prop"},
        max_steps=6,
    )
    checkpoint = torch.load(tmp_path / "4.ckpt", weights_only=True)
    stages = checkpoint["callbacks"]["InterleavedStacking"]["schedule"]["stages"]
    stages[0]["end"] += 1e-15
    torch.save(checkpoint, tmp_path / "rounded.ckpt")
    growth = {"schedule": "explicit", "lengths": (1, 2, 3), "unit": "steps"}
    resume(teacher_directory, tmp_path / "rounded.ckpt", depths=depths, growth=growth, max_steps=6)


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_checkpoint_is_judged_under_any_schedule(
    verb: str, teacher_directory: Path, begun: Path
) -> None:
    """Also by a Trainer that has trained under another one just before."""
    batches = loader(training_batches(1))
    trainer = make_trainer(depths=(2, 3), growth={"operator": "random"}, max_steps=2)
    module = make_module(teacher_directory)
    getattr(trainer, verb)(module, batches, ckpt_path=begun / "6.ckpt")
    assert module.depth == 4
    other = make_module(teacher_directory)
    trainer.fit(other, batches, batches)
    getattr(trainer, verb)(other, batches, ckpt_path=begun / "6.ckpt")
    assert other.depth == 4


def test_a_checkpoint_holds_schedule_and_last_growth_as_primitives(
    begun: Path,
) -> None:
    """Letter by letter, under a name of its own, readable without pickled objects."""
    schedule = {
        "run": [8, "steps"],
        "stages": [
            {"depth": 2, "start": 0.0, "end": 0.5},
            {"depth": 4, "start": 0.5, "end": 1.0},
        ],
        "operator": "interleave",
        "optimizer_state": "reset",
        "learning_rate": "continue",
        "rewarm_steps": None,
    }
    for step, last_growth in ((4, None), (5, 4), (8, 4)):
        checkpoint = torch.load(begun / f"{step}.ckpt", weights_only=True)
        state = checkpoint["callbacks"]["InterleavedStacking"]
        assert state == {"schedule": schedule, "last_growth": last_growth}


def test_a_subclass_finds_the_state_too(begun: Path) -> None:
    """The name in a checkpoint is the method's, not the class's."""

    class Renamed(InterleavedStacking):
        pass

    assert Renamed().state_key in torch.load(begun / "8.ckpt", weights_only=True)["callbacks"]


def test_a_checkpoint_without_a_schedule_goes_on(
    teacher_directory: Path, begun: Path, tmp_path: Path
) -> None:
    """Such as one from before schedules were kept."""
    checkpoint = torch.load(begun / "6.ckpt", weights_only=True)
    del checkpoint["callbacks"]["InterleavedStacking"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    resume(teacher_directory, tmp_path / "old.ckpt")

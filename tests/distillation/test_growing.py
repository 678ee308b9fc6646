"""Growth in training: when it happens, with what optimizer it goes on, what a checkpoint keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from torch import Tensor

from interstack.distillation.module import Distillation
from interstack.distillation.optimizer import OptimizerConfig
from interstack.growth.plan import GrowthPlan
from tests.distillation.small_runs import (
    fit,
    make_module,
    make_trainer,
    small_student,
    training_batches,
)
from tests.models.families import pad


class Step(NamedTuple):
    """What a training batch left behind."""

    epoch: int
    batch: int
    global_step: int
    depth: int
    rate: float
    adam_steps: set[int]


class Recorder(L.Callback):
    """Notes every batch, and holds the optimizer to the module whenever it steps."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @property
    def depths(self) -> list[int]:
        """Depth at each batch."""
        return [step.depth for step in self.steps]

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Every trained parameter is in the optimizer, in the module's order, with a gradient."""
        assert [id(trainer.optimizers[0])] == [id(optimizer)]
        (group,) = optimizer.param_groups
        trained = [p for p in pl_module.parameters() if p.requires_grad]
        assert [id(p) for p in group["params"]] == [id(p) for p in trained]
        assert all(p.grad is not None for p in trained)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Note where the run stands."""
        del outputs, batch
        assert isinstance(pl_module, Distillation)
        (optimizer,) = trainer.optimizers
        self.steps.append(
            Step(
                trainer.current_epoch,
                batch_idx,
                trainer.global_step,
                pl_module.depth,
                optimizer.param_groups[0]["lr"],
                {int(state["step"]) for state in optimizer.state.values()},
            )
        )


class Saver(L.Callback):
    """Saves a checkpoint after every step, as ModelCheckpoint does but without a state."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """Save one named for the step."""
        trainer.save_checkpoint(self.directory / f"{trainer.global_step}.ckpt")


def grow_over(
    teacher_directory: Path,
    num_batches: int,
    *callbacks: L.Callback,
    initial_depth: int = 2,
    taps: tuple[int, ...] = (2, 4),
    **settings: Any,  # noqa: ANN401, the Trainer's
) -> tuple[Distillation, Recorder]:
    """Train on so many batches an epoch and record what happens."""
    recorder = Recorder()
    module = make_module(teacher_directory, taps=taps, initial_depth=initial_depth)
    trainer = make_trainer(recorder, *callbacks, **settings)
    fit(trainer, module, training_batches(num_batches))
    return module, recorder


# When -------------------------------------------------------------------------------------------


def test_the_student_grows_at_the_step_that_is_due(teacher_directory: Path) -> None:
    """Half of eight steps at two layers, half at four; epochs of three batches don't matter."""
    module, recorder = grow_over(teacher_directory, 3, max_steps=8)
    assert recorder.depths == [2] * 4 + [4] * 4
    assert module.lineage == (0, 0, 1, 1)


def test_prop_stages_have_their_shares_of_the_steps(teacher_directory: Path) -> None:
    """PROP-1 of ten steps: one, two, three and four."""
    _, recorder = grow_over(
        teacher_directory,
        5,
        initial_depth=1,
        taps=(4,),
        depths=(1, 2, 3, 4),
        growth={"schedule": "prop"},
        max_steps=10,
    )
    assert recorder.depths == [1] + [2] * 2 + [3] * 3 + [4] * 4


@pytest.mark.parametrize(
    ("lengths", "grown_at"), [((1, 1), (1, 0)), ((0.5, 1.5), (0, 2)), ((1.75, 0.25), (1, 3))]
)
def test_stages_in_epochs_end_where_they_say(
    lengths: tuple[float, float], grown_at: tuple[int, int], teacher_directory: Path
) -> None:
    """On an epoch's boundary or within it, to the batch."""
    growth = {"schedule": "explicit", "lengths": lengths}
    _, recorder = grow_over(teacher_directory, 4, growth=growth, max_epochs=2)
    assert len(recorder.steps) == 8
    for step in recorder.steps:
        assert step.depth == (4 if (step.epoch, step.batch) >= grown_at else 2)


def test_growth_waits_for_the_end_of_a_window_of_accumulated_gradients(
    teacher_directory: Path,
) -> None:
    """Due at batch 3 of 6 with windows of two batches, it comes at batch 4."""
    _, recorder = grow_over(teacher_directory, 6, max_epochs=1, accumulate_grad_batches=2)
    assert recorder.depths == [2, 2, 2, 2, 4, 4]
    assert [step.global_step for step in recorder.steps] == [0, 1, 1, 2, 2, 3]


def test_growth_counts_optimizer_steps_with_accumulated_gradients(teacher_directory: Path) -> None:
    """Two of four steps are four of eight batches; an epoch's last window may be short."""
    _, recorder = grow_over(teacher_directory, 3, max_steps=4, accumulate_grad_batches=2)
    assert recorder.depths == [2, 2, 2, 4, 4, 4]
    assert [step.global_step for step in recorder.steps] == [0, 1, 2, 2, 3, 4]


def test_several_stages_within_one_batch_are_all_gone_through(teacher_directory: Path) -> None:
    """An epoch of two batches has no room for the stage of three layers; its clones come."""
    growth = {"schedule": "explicit", "lengths": (0.5, 0.1, 0.4)}
    module, recorder = grow_over(
        teacher_directory, 2, depths=(2, 3, 4), growth=growth, max_epochs=1
    )
    assert recorder.depths == [2, 3]
    growth = {"schedule": "explicit", "lengths": (0.4, 0.1, 0.5)}
    module, recorder = grow_over(
        teacher_directory, 2, depths=(2, 3, 4), growth=growth, max_epochs=1
    )
    assert recorder.depths == [2, 4]
    assert module.lineage == (0, 0, 1, 1)


# With what --------------------------------------------------------------------------------------


def test_growth_begins_a_fresh_optimizer_and_the_run_goes_on(teacher_directory: Path) -> None:
    """Adam's state begins anew; step count and learning rate do not."""
    _, recorder = grow_over(teacher_directory, 4, max_steps=8)
    assert [step.adam_steps for step in recorder.steps] == [{1}, {2}, {3}, {4}] * 2
    assert [step.global_step for step in recorder.steps] == list(range(1, 9))
    config = OptimizerConfig()
    due = [config.learning_rate_at(step / 8) for step in range(8)]
    assert [step.rate for step in recorder.steps] == pytest.approx(due)


def test_only_the_present_layers_are_in_the_optimizer(teacher_directory: Path) -> None:
    """At two layers those of two, after growth those of four."""
    counts = []

    class Count(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            names = trainer.optimizers[0].param_groups[0]["param_names"]
            counts.append({name.split(".")[4] for name in names if ".encoder.layers." in name})

    grow_over(teacher_directory, 2, Count(), max_steps=2)
    assert counts == [{"0", "1"}, {"0", "1", "2", "3"}]


def test_originals_go_on_from_their_weights_and_clones_begin_as_copies(
    teacher_directory: Path,
) -> None:
    """Nothing is lost or drawn anew when a run grows, and listeners see before and after."""
    seen: list[tuple[str, int, object]] = []
    states: list[dict[str, Tensor]] = []

    class Listener(L.Callback):
        def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            assert isinstance(pl_module, Distillation)
            seen.append(("before", pl_module.depth, trainer.optimizers[0]))
            states.extend(
                {name: weight.clone() for name, weight in layer.state_dict().items()}
                for layer in pl_module.student.layers
            )

        def on_growth_end(
            self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
        ) -> None:
            assert isinstance(pl_module, Distillation)
            seen.append(("after", pl_module.depth, trainer.optimizers[0]))
            assert plan.parents == (0, 0, 1, 1)
            for layer, parent in zip(pl_module.student.layers, plan.parents, strict=True):
                for name, weight in layer.state_dict().items():
                    assert torch.equal(weight, states[parent][name])

    grow_over(teacher_directory, 2, Listener(), max_steps=4)
    (before, old_depth, old), (after, depth, new) = seen
    assert (before, old_depth, after, depth) == ("before", 2, "after", 4)
    assert old is not new


# Checkpoints ------------------------------------------------------------------------------------


def test_a_checkpoint_of_a_grown_student_loads_from_its_path_alone(
    teacher_directory: Path, clips: list[Tensor], tmp_path: Path
) -> None:
    """Depth, lineage, taps and every weight, without settings and without the teacher."""
    module, _ = grow_over(teacher_directory, 4, max_steps=4)
    module.trainer.save_checkpoint(tmp_path / "grown.ckpt")
    loaded = Distillation.load_from_checkpoint(tmp_path / "grown.ckpt")
    assert (loaded.depth, loaded.lineage) == (4, (0, 0, 1, 1))
    assert loaded.student.hidden_taps == module.student.hidden_taps == (2, 4)
    assert loaded.hparams == module.hparams
    mine, theirs = module.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    output, same = (each.student.eval()(*pad(clips)) for each in (module, loaded))
    for state, loaded_state in zip(output.hidden_states, same.hidden_states, strict=True):
        assert torch.equal(state, loaded_state)


@pytest.mark.parametrize(
    "changes",
    [
        {"front_end": "shared"},
        {"do_stable_layer_norm": True, "feat_extract_norm": "layer"},
        {"tap_placement": "original"},
    ],
    ids=["shared", "pre-LN", "taps on originals"],
)
def test_a_checkpoint_keeps_all_of_a_students_structure(
    changes: dict[str, Any], teacher_directory: Path, clips: list[Tensor], tmp_path: Path
) -> None:
    """Front end, norms and taps come back without their settings being given."""
    module = make_module(teacher_directory, student=small_student(**changes))
    trainer = make_trainer(max_steps=4)
    fit(trainer, module, training_batches(2))
    trainer.save_checkpoint(tmp_path / "grown.ckpt")
    loaded = Distillation.load_from_checkpoint(tmp_path / "grown.ckpt")
    assert loaded.student.hidden_taps == module.student.hidden_taps
    assert loaded.student.normalises_waveform == module.student.normalises_waveform
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert {name for name, p in loaded.named_parameters() if not p.requires_grad} == frozen
    predictions, same = (each.student.eval()(*pad(clips))[0] for each in (module, loaded))
    assert all(torch.equal(one, other) for one, other in zip(predictions, same, strict=True))


def test_the_teacher_is_not_in_the_checkpoint(teacher_directory: Path, tmp_path: Path) -> None:
    """Nothing but the student's tensors, and all of it readable without pickled objects."""
    module, _ = grow_over(teacher_directory, 2, max_steps=2)
    module.trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    names = {f"student.{name}" for name in module.student.state_dict()}
    assert set(checkpoint["state_dict"]) == names
    weights = [weight for weight in module.teacher.parameters() if weight.dim() > 1]
    for saved in checkpoint["state_dict"].values():
        assert not any(saved.shape == w.shape and torch.equal(saved, w) for w in weights)


@pytest.mark.parametrize("cut", [2, 4, 6], ids=["before growth", "at growth", "after growth"])
def test_a_resumed_run_ends_as_one_that_was_never_cut(
    cut: int, teacher_directory: Path, tmp_path: Path
) -> None:
    """Bitwise, wherever it is cut between epochs, in a module that knows only its settings."""
    module, recorder = grow_over(teacher_directory, 2, Saver(tmp_path), max_steps=8)
    assert recorder.depths == [2] * 4 + [4] * 4
    torch.manual_seed(5)  # a fresh process draws other numbers
    rest = Recorder()
    other = make_module(teacher_directory)
    fit(make_trainer(rest, max_steps=8), other, training_batches(2), tmp_path / f"{cut}.ckpt")
    assert rest.steps == recorder.steps[cut:]
    mine, theirs = module.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)

"""InterleavedStacking on LightningModules that are not ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from interstack import GrowthPlan, InterleavedStacking, grow_on_load
from interstack.errors import CheckpointError, ConfigurationError
from interstack.growth.averages import averages_of

NOT_EMPTY = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
"""Of ModelCheckpoint, as it resumes."""

MakeScheduler = Callable[[torch.optim.Optimizer], Any]


class Tower(L.LightningModule):
    """Linear layers in a list, with something that hangs on them."""

    def __init__(self, depth: int = 2, make_scheduler: MakeScheduler | None = None) -> None:
        super().__init__()
        self.tower = nn.Module()
        self.tower.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))
        self.single = nn.Linear(4, 4)
        self.make_scheduler = make_scheduler
        self.grown: list[GrowthPlan] = []

    def on_layers_grown(self, plan: GrowthPlan) -> None:
        """Note the growth step."""
        self.grown.append(plan)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Any loss will do."""
        del batch_idx
        for layer in self.tower.layers:  # type: ignore[union-attr]
            batch = batch + layer(batch).tanh()
        return batch.square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the loss."""
        self.log("val", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:  # noqa: ANN401
        """Without names."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        if self.make_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.make_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Rates(L.Callback):
    """Notes what each step is made with: learning rate and, where it is set, Adam's betas."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.betas: list[float] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note them."""
        del trainer, pl_module
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.betas.append(optimizer.param_groups[0]["betas"][0])


def fit(
    module: L.LightningModule,
    *callbacks: L.Callback,
    depths: tuple[int, ...] = (2, 4, 6),
    layers: str = "tower.layers",
    checkpoint: Path | None = None,
    growth: dict[str, Any] | None = None,
    **settings: Any,  # noqa: ANN401, the Trainer's
) -> L.Trainer:
    """Train for twelve steps of three epochs, and validate after each epoch."""
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, InterleavedStacking(depths, layers=layers, **growth or {})],
        **settings,
    )
    data = torch.randn(16, 4, generator=torch.Generator().manual_seed(5))
    loader: DataLoader[Any] = DataLoader(data, batch_size=4)  # type: ignore[arg-type]
    trainer.fit(module, loader, loader, ckpt_path=checkpoint)
    return trainer


SCHEDULERS: dict[str, MakeScheduler] = {
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 12),
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 5, 0.5),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, 13),
    "sequential": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, 1, 3), lr_scheduler.ExponentialLR(optimizer, 0.9)],
        [3],
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_continue_through_growth(name: str) -> None:
    """Bit by bit the rates, and the momentum, of a run that does not grow."""
    grows, stays = Rates(), Rates()
    fit(Tower(2, SCHEDULERS[name]), grows)
    fit(Tower(2, SCHEDULERS[name]), stays, depths=(2,))
    assert len(set(stays.rates)) > 2
    assert (grows.rates, grows.betas) == (stays.rates, stays.betas)


def test_rewarming_holds_for_the_steps_alone() -> None:
    """A recursive scheduler is not misled, and what is saved is the scheduler's rate."""
    rewarm = {"learning_rate": "rewarm", "rewarm_steps": 2}
    warms, stays = Rates(), Rates()
    trainer = fit(Tower(2, SCHEDULERS["cosine"]), warms, growth=rewarm)
    fit(Tower(2, SCHEDULERS["cosine"]), stays, depths=(2,))
    factors = [0.5 if step in (4, 8) else 1 for step in range(12)]
    assert warms.rates == [rate * factor for rate, factor in zip(stays.rates, factors, strict=True)]
    (scheduler,) = trainer.lr_scheduler_configs
    assert trainer.optimizers[0].param_groups[0]["lr"] == scheduler.scheduler.get_last_lr()[0]


@NOT_EMPTY
@pytest.mark.parametrize("epoch", [0, 1])
def test_lightnings_own_checkpoints_resume_exactly(epoch: int, tmp_path: Path) -> None:
    """At ends of epochs where a growth step is due; weights, moments and what hangs on layers."""
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole = Tower(2, SCHEDULERS["one cycle"])
    expected = fit(whole, saves, growth={"optimizer_state": "clone"})
    resumed = Tower(2, SCHEDULERS["one cycle"])
    trainer = fit(
        resumed,
        ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1),
        growth={"optimizer_state": "clone"},
        checkpoint=tmp_path / f"epoch={epoch}.ckpt",
    )
    assert resumed.grown == whole.grown
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    moments = [
        [state["exp_avg"] for state in each.optimizers[0].state.values()]
        for each in (expected, trainer)
    ]
    assert all(map(torch.equal, *moments))


def test_a_checkpoint_of_any_depth_is_validated(tmp_path: Path) -> None:
    """By a Trainer with the callback, and without it where the module says ``grow_on_load``."""
    trainer = fit(Tower())
    trainer.save_checkpoint(tmp_path / "6.ckpt")
    judged = Tower()
    data: DataLoader[Any] = DataLoader(torch.ones(4, 4))  # type: ignore[arg-type]
    other = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[InterleavedStacking((2, 4, 6), layers="tower.layers")],
    )
    other.validate(judged, data, ckpt_path=tmp_path / "6.ckpt", verbose=False)
    assert len(judged.tower.layers) == 6  # type: ignore[arg-type]

    class Loadable(Tower):
        def __init__(self) -> None:
            super().__init__()
            grow_on_load(self.tower.layers, self.on_layers_grown)  # type: ignore[arg-type]

    loaded = Loadable.load_from_checkpoint(tmp_path / "6.ckpt")
    assert all(map(torch.equal, loaded.state_dict().values(), judged.state_dict().values()))
    assert [plan.parents for plan in loaded.grown] == [(0, 0, 0, 1, 1, 1)]


@NOT_EMPTY
def test_averages_grow_and_resume_with_the_module(tmp_path: Path) -> None:
    """Lightning's EMAWeightAveraging, whichever of the callbacks comes first."""
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole, ema = Tower(), EMAWeightAveraging(decay=0.5)
    first = fit(whole, ema, saves)
    resumed = Tower()
    callbacks = (
        ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1),
        EMAWeightAveraging(decay=0.5),
    )
    second = fit(resumed, *callbacks, checkpoint=tmp_path / "epoch=1.ckpt")
    for trainer, module in ((first, whole), (second, resumed)):
        (average,) = averages_of(trainer, module)
        assert len(average.module.tower.layers) == 6  # type: ignore[union-attr,arg-type]
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))


def test_fresh_layers_of_any_module() -> None:
    """Operator random initialises by reset_parameters; the originals stay what they were."""
    module = Tower()
    first = [each.weight for each in module.tower.layers]  # type: ignore[union-attr]
    fit(module, growth={"operator": "random"})
    layers = list(module.tower.layers)  # type: ignore[arg-type]
    assert layers[0].weight is first[0]
    assert layers[3].weight is first[1]


class Scaled(nn.Module):
    """A layer that can't initialise itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.scale = nn.Parameter(torch.ones(4))

    def forward(self, batch: Tensor) -> Tensor:
        """Scale it."""
        return batch * self.inner.scale


def shared() -> Tower:
    """A module whose two layers are one."""
    module = Tower(1)
    module.tower.layers.append(module.tower.layers[0])  # type: ignore[operator,union-attr,index]
    return module


def unresettable() -> Tower:
    """A module whose layers can't be drawn."""
    module = Tower(0)
    module.tower.layers.extend([Scaled(), Scaled()])  # type: ignore[operator,union-attr]
    return module


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (Tower, {"layers": "encoder.layers"}, "Tower has no module 'encoder': give .*tower.layers"),
        (Tower, {"layers": "single"}, "a Linear and no ModuleList: give one of tower.layers"),
        (lambda: Tower(3), {}, "begin with 2 layers, but tower.layers has 3 .* build the model"),
        (shared, {}, "whose layers 0 and 1 are one module"),
        (
            unresettable,
            {"growth": {"operator": "random"}},
            "a Scaled, but its submodule inner, a Module, has parameters and no reset_parameters",
        ),
    ],
)
def test_what_cannot_grow_is_refused_before_training(
    make: Callable[[], Tower], settings: dict[str, Any], message: str
) -> None:
    """With the setting, what was found and the fix."""
    module = make()
    before = [each.clone() for each in module.parameters()]
    with pytest.raises(ConfigurationError, match=message):
        fit(module, **settings)
    assert all(map(torch.equal, before, module.parameters()))


def test_checkpoints_of_other_depths_are_refused(tmp_path: Path) -> None:
    """Deeper ones that the depths do not lead to, and shallower ones than the module."""
    fit(Tower()).save_checkpoint(tmp_path / "6.ckpt")
    with pytest.raises(CheckpointError, match=r"6 layers at tower.layers, .* are \[2, 4\]: give"):
        fit(Tower(), depths=(2, 4), checkpoint=tmp_path / "6.ckpt")
    deep = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    grow_on_load(deep)
    with pytest.raises(CheckpointError, match=r"has 2 layers .* the module has 3 already"):
        deep.load_state_dict(nn.ModuleList(nn.Linear(4, 4) for _ in range(2)).state_dict())

"""One rank of several small runs; ``test_ranks`` starts two with torchrun and reads what they say.

Usage: torchrun --nproc-per-node 2 -m tests.distillation.ranks_worker OUTPUT TEACHER
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from interstack.checkpointing.callback import Checkpoints
from interstack.data.batch import Batch
from interstack.distillation.module import Distillation
from interstack.distillation.objective import ObjectiveConfig
from interstack.distillation.optimizer import OptimizerConfig, OptimizerKind
from interstack.errors import DataError, InterstackError
from interstack.growth.averages import averages_of
from interstack.growth.optimizer_state import OptimizerStatePolicy
from interstack.growth.plan import GrowthPlan
from interstack.models.config import TeacherConfig
from tests.distillation.small_runs import SMALL, loader, make_batch, make_trainer
from tests.models.families import read_speech

DEPTHS: Final = (1, 2, 4)
BAD: Final = 4
"""The training batch, amid a stage, in which rank 1 may have an utterance that is not finite."""
RUNS: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "accumulated": {
        "steps": 4,
        "accumulate": 2,
        "objective": ObjectiveConfig(target_norm="channel", target_norm_seconds=6.0),
    },
    "windows": {"steps": 4, "accumulate": 2},
    "muon": {"steps": 4, "optimizer": "muon", "optimizer_state": "clone"},
    "unreadable": {"steps": 4, "accumulate": 2, "unreadable": 3},
    "random": {"steps": 4, "operator": "random", "seed_by_rank": True, "averages": True},
    "skip": {"bad": BAD, "non_finite": "skip"},
    "bad validation": {"steps": 3, "bad_validation": 1},
    "stop later": {"bad": BAD, "patience": 3},
    "stop": {"bad": BAD},
}
"""The runs of a launch, by name."""
SECONDS: Final = (((0.9, 1.3), (0.5,)), ((1.2,), (0.4, 0.6)), ((0.4,), (1.6, 0.8)))
"""For three batches, the utterances of each rank; the ranks' shares differ up to sixfold."""


def rank_batches(rank: int | None, number: int, *, bad: int | None = None) -> list[Batch]:
    """Give a rank's batches, or whole ones for a single process, with names that tell the rank."""
    batches = []
    for index in range(number):
        shares = SECONDS[index % len(SECONDS)]
        clips = read_speech(*(length for share in shares for length in share))
        names = [f"rank{r}-{i}" for r, share in enumerate(shares) for i in range(len(share))]
        mine = [i for i, name in enumerate(names) if rank is None or name[4] == str(rank)]
        if index == bad:
            clips[names.index("rank1-0")][4000] = float("nan")
        batch = make_batch([clips[i] for i in mine])
        batches.append(batch._replace(ids=tuple(names[i] for i in mine)))
    return batches


def join(batches: Sequence[Batch]) -> Batch:
    """Make one batch of several."""
    if len(batches) == 1:
        return batches[0]
    rows = [
        waveform[:length]
        for batch in batches
        for waveform, length in zip(batch.waveforms, batch.num_samples.tolist(), strict=True)
    ]
    return make_batch(rows)._replace(ids=tuple(name for batch in batches for name in batch.ids))


class Unreadable:
    """Batches of which one can't be read on rank 1."""

    def __init__(self, batches: Sequence[Batch], bad: int, rank: int | None) -> None:
        self.batches = batches
        self.bad = bad if rank == 1 else None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.batches):
            if number == self.bad:
                raise DataError("rank1.flac is gone")
            yield batch


def digest(tensors: Sequence[Tensor]) -> str:
    """Hash tensors bit by bit."""
    together = hashlib.sha256()
    for tensor in tensors:
        together.update(tensor.detach().numpy().tobytes())
    return together.hexdigest()


class Diary(L.Callback):
    """Writes down losses, the weights' hashes, and what DDP is told."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.minimised: list[float] = []
        self.weights: list[str] = []
        self.moments: list[str] = []
        self.grown: list[str] = []
        self.averages: list[str] = []
        self.averaged_fresh: list[bool] = []
        self.searches_unused: list[bool] = []
        self.collectives: list[list[str]] = []

    def on_train_batch_start(self, *_: object) -> None:
        """Forget the collectives of before."""
        COLLECTIVES.clear()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401, Lightning's
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Note the losses and hash the weights and moments of every step."""
        del batch, batch_idx
        self.collectives.append(list(COLLECTIVES))
        self.minimised.append(float(outputs["loss"]))
        metrics = trainer.callback_metrics.items()
        self.losses.append({k: v.item() for k, v in metrics if k.startswith("train/loss")})
        self.weights.append(digest(list(pl_module.state_dict().values())))
        for average in averages_of(trainer, pl_module):
            self.averages.append(digest(list(average.state_dict().values())))
        state: Any = trainer.optimizers[0].state
        self.moments.append(digest([t for each in state.values() for t in each.values()]))
        wrapped: Any = trainer.strategy.model
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            self.searches_unused.append(wrapped.find_unused_parameters)

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing yet."""

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Hash the grown student before its first step; and hold its average's new layers to it."""
        own = pl_module.state_dict()
        self.grown.append(digest(list(own.values())))
        for average in averages_of(trainer, pl_module):
            averaged = average.module.state_dict()
            clones = [place for place in range(plan.depth) if plan.is_clone(place)]
            fresh = tuple(f"student.model.encoder.layers.{place}." for place in clones)
            names = [name for name in own if name.startswith(fresh)]
            same = all(torch.equal(own[name], averaged[name]) for name in names)
            self.averaged_fresh.append(bool(names) and same)


COLLECTIVES: Final[list[str]] = []
"""Names of the collectives that Python code has asked for so far."""


def count_collectives() -> None:
    """Note every call of a collective from now on; DDP's own reducer is not written in Python."""
    for name in ("all_reduce", "all_gather", "broadcast", "barrier"):
        ask = getattr(torch.distributed, name)

        def noted(*args: Any, _name: str = name, _ask: Any = ask, **options: Any) -> Any:  # noqa: ANN401
            COLLECTIVES.append(_name)
            return _ask(*args, **options)

        setattr(torch.distributed, name, noted)


def run(
    teacher: Path,
    rank: int | None,
    *,
    steps: int = 9,
    operator: str = "interleave",
    seed_by_rank: bool = False,
    bad: int | None = None,
    bad_validation: int | None = None,
    non_finite: Any = "stop",  # noqa: ANN401, a Literal
    objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008, frozen
    accumulate: int = 1,
    merge: int = 1,
    unreadable: int | None = None,
    patience: int | None = None,
    averages: bool = False,
    optimizer: OptimizerKind = "adamw",
    optimizer_state: OptimizerStatePolicy = "reset",
) -> dict[str, Any]:
    """Train through all depths as a rank of two, or as a single process with both ranks' data.

    ``merge`` makes one batch of so many.
    """
    torch.manual_seed(rank if seed_by_rank and rank is not None else 5)
    module = Distillation(
        TeacherConfig(str(teacher), (0, 4)),
        SMALL,
        objective,
        OptimizerConfig(learning_rate=1e-3, kind=optimizer),
        DEPTHS[0],
        non_finite,
    )
    module.non_finite.patience = patience
    diary = Diary()
    ranks: dict[str, Any] = {"devices": 1}
    if rank is not None:
        ranks = {"devices": 2, "strategy": "ddp"}
    saves: list[L.Callback] = []
    if unreadable is not None:
        ranks["enable_checkpointing"] = True
        saves = [Checkpoints(dirpath=str(teacher.parent / "unreadable"))]
    trainer = make_trainer(
        *([EMAWeightAveraging(decay=0.5)] if averages else []),
        diary,
        *saves,
        depths=DEPTHS,
        growth={"operator": operator, "optimizer_state": optimizer_state},
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        val_check_interval=steps * accumulate,
        log_every_n_steps=1 if patience is None else 50,  # what is logged is looked at
        **ranks,
    )
    batches = rank_batches(rank, steps * accumulate * merge, bad=bad)
    training: Any = loader([join(batches[at : at + merge]) for at in range(0, len(batches), merge)])
    if unreadable is not None:
        training = Unreadable(batches, unreadable, rank)
    validation = loader(rank_batches(rank, 2, bad=bad_validation))
    message = ""
    try:
        trainer.fit(module, training, validation)
    except InterstackError as error:
        message = str(error)
    metrics = trainer.callback_metrics
    return {
        "losses": diary.losses,
        "minimised": diary.minimised,
        "weights": diary.weights,
        "moments": diary.moments,
        "grown": diary.grown,
        "averages": diary.averages,
        "averaged_fresh": diary.averaged_fresh,
        "searches_unused": diary.searches_unused,
        "collectives": diary.collectives,
        "depth": module.depth,
        "steps": trainer.global_step,
        "skipped": module.non_finite.skipped,
        "validation_loss": float(metrics.get("val/loss", float("nan"))),
        "message": message,
    }


def main(output: Path, teacher: Path) -> None:
    """Make all runs, write down what this rank saw, and end as the last one ends."""
    rank = int(os.environ["RANK"])
    count_collectives()
    results = {name: run(teacher, rank, **options) for name, options in RUNS.items()}
    (output / f"rank{rank}.json").write_text(json.dumps(results))
    torch.distributed.barrier()  # both have written before one of them ends
    if results["stop"]["message"]:
        raise DataError(results["stop"]["message"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

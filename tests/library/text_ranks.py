"""What one rank, or a single process, sees of runs of docs/library.md; run by torchrun.

Arguments: the directory that results are written to, and that has a README.md.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

from tests.library.library_page import Losses, definitions, fingerprint


def lightning_run(page: dict[str, Any], rank: int | None, operator: str) -> dict[str, Any]:
    """Train under the callback for Lightning, on this rank's half of every batch."""
    torch.manual_seed(0)
    module, losses = page["TextModule"](dropout=0.0), Losses()
    torch.manual_seed(rank or 0)  # fresh layers are drawn unlike on the ranks
    batches = page["Batches"](page["texts"])
    ranks: dict[str, Any] = {}
    if rank is not None:
        batches.batches = [each.chunk(2)[rank] for each in batches.batches]
        ranks = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    page["fit"](module, losses, batches=batches, operator=operator, **ranks)
    return {"losses": losses.losses, "weights": fingerprint(module)}


def trainer_run(page: dict[str, Any], rank: int | None) -> dict[str, Any]:
    """Train under transformers' Trainer; accelerate gives each rank its half of every batch."""
    torch.manual_seed(0)
    trainer = page["make_trainer"](dropout=0.0, batch=8 if rank is None else 4)
    trainer.train()
    history = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    return {"losses": history, "weights": fingerprint(trainer.model)}


def main(directory: Path) -> None:
    """Make all runs and write down what this rank saw."""
    os.chdir(directory)
    page, rank = definitions(), int(os.environ["RANK"])
    results = {name: lightning_run(page, rank, name) for name in ("interleave", "random")}
    results["trainer"] = trainer_run(page, rank)
    Path(f"rank{rank}.json").write_text(json.dumps(results))
    torch.distributed.barrier()


if __name__ == "__main__":
    L.seed_everything(0)
    main(Path(sys.argv[1]))

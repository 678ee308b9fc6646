"""Training of s3prl's downstream model on a frozen upstream, its resume, and its evaluation."""

from __future__ import annotations

import copy
import importlib
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from interstack.data.skips import OnCorrupt
from interstack.data.workers import prepare_worker
from interstack.errors import CheckpointError, DataError
from interstack.evaluation.superb.compatibility import without_unreadable
from interstack.evaluation.superb.reading import (
    Unreadable,
    read_batches,
    remove_from_scores,
)
from interstack.evaluation.superb.tasks import Config, Task
from interstack.utils.atomic import AtomicCheckpointIO
from interstack.utils.disk import disk_fault, is_there, unread, write_errors
from interstack.utils.random_state import random_state, restore_random_state

STATES_FILE: Final = "states.ckpt"
BEST_FILE: Final = "best.ckpt"


class DownstreamTraining:
    """Training state of a job: s3prl's expert, featurizer, optimizer and schedule.

    It replaces s3prl's runner, so that a job interrupted anywhere resumes exactly: generators are
    seeded for each epoch, and a resumed job reads the batches done of its epoch again, untrained.

    Args:
        task: The task.
        config: Its settings, with directories.
        upstream: Frozen upstream in s3prl's form, on the device.
        directory: The job's directory; it exists.
        seed: Seed of weights and data.
        device: The device.
        on_corrupt: What to do at audio that can't be decoded.

    Attributes:
        skipped: What is wrong with each skipped file, in the order of reading.
    """

    def __init__(
        self,
        task: Task,
        config: Config,
        upstream: nn.Module,
        directory: Path,
        seed: int,
        device: torch.device,
        on_corrupt: OnCorrupt = "raise",
    ) -> None:
        self.task = task
        self.on_corrupt = on_corrupt
        self.skipped: dict[str, None] = {}
        self.config = copy.deepcopy(config)
        self.directory = directory
        self.seed = seed
        self.device = device
        self.step = self.epoch = self.batches = 0
        self.best: tuple[float, int] | None = None
        self._random: dict[str, Any] | None = None
        runner = self.config["runner"]
        self.total_steps = int(runner["total_steps"])
        self._seed_all("weights")
        self.upstream = upstream
        interfaces = importlib.import_module("s3prl.upstream.interfaces")
        self.featurizer: nn.Module = interfaces.Featurizer(
            upstream,
            "hidden_states",
            upstream_device=device,
            layer_selection=self.config.get("layer"),
        ).to(device)
        module = importlib.import_module(f"s3prl.downstream.{task.expert}.expert")
        with ExitStack() as tolerant:
            if on_corrupt == "skip":
                tolerant.enter_context(without_unreadable(self.skipped.setdefault))
            self.expert: Any = module.DownstreamExpert(
                upstream_dim=self.featurizer.output_dim,
                upstream_rate=self.featurizer.downsample_rate,
                **copy.deepcopy(self.config),
                expdir=str(directory),
                device=str(device),
            ).to(device)
        self._learners: list[nn.Module] = [self.featurizer, self.expert]
        self._parameters = [each for learner in self._learners for each in learner.parameters()]
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: Any = None
        self._augment: nn.Module | None = None
        if self.total_steps:
            self._prepare_training()

    def _prepare_training(self) -> None:
        optimizers = importlib.import_module("s3prl.optimizers")
        self.optimizer = optimizers.get_optimizer(
            self._learners, self.total_steps, self.config["optimizer"]
        )
        if self.config.get("scheduler"):
            schedulers = importlib.import_module("s3prl.schedulers")
            self.scheduler = schedulers.get_scheduler(
                self.optimizer, self.total_steps, self.config["scheduler"]
            )
        if self.config.get("specaug"):
            specaug = importlib.import_module("s3prl.downstream.specaug")
            self._augment = specaug.SpecAug(**self.config["specaug"])

    def train(self, after_step: Callable[[float], None]) -> None:
        """Train to the last step; evaluate and save at the protocol's intervals.

        Args:
            after_step: Called with each optimizer step's loss; what it raises ends the training,
                whose last step is not lost if `save` is called first.

        Raises:
            DataError: If an epoch has no batch.
        """
        if not self.total_steps:
            return
        runner = self.config["runner"]
        every, accumulated = int(runner["gradient_accumulate_steps"]), 0
        losses: list[float] = []
        for learner in self._learners:
            learner.train()
        while self.step < self.total_steps:
            for loss in self._micro_batches(every):
                losses.append(loss)
                accumulated += 1
                if accumulated % every:
                    continue
                self._update(float(runner["gradient_clipping"]))
                self.step += 1
                if self.step % int(runner["eval_step"]) == 0 or self.step == self.total_steps:
                    self._judge()
                if self.step % int(runner["save_step"]) == 0 or self.step == self.total_steps:
                    self.save()
                after_step(sum(losses) / len(losses))
                losses.clear()
                if self.step >= self.total_steps:
                    return
            self.epoch += 1
            self.batches = 0

    def _micro_batches(self, every: int) -> Iterator[float]:
        """Yield the losses of an epoch's batches, each backpropagated."""
        self._seed_all(f"epoch {self.epoch}")
        batches = read_batches(self._loader("train"), self.on_corrupt)
        usable = False
        for _ in islice(batches, self.batches):
            pass  # trained on before the job was interrupted
        if self._random is not None:
            restore_random_state(self._random, self.device)
            self._random = None
        for content, skipped in batches:
            self.batches += 1
            self._count_skipped(skipped)
            if content is None:
                continue
            usable = True
            loss = self._forward("train", content, defaultdict(list))
            torch.autograd.backward(loss / every)
            yield float(loss)
        if self.batches and not usable and not self.step:
            raise DataError(
                f"no training audio of {self.task.name.upper()} can be decoded, the first: "
                f"{next(iter(self.skipped))}"
            )
        if not self.batches:
            raise DataError(
                f"{self.task.name.upper()} has too little training data for a batch: give more, "
                "or a smaller batch with --set"
            )

    def _update(self, clipping: float) -> None:
        assert self.optimizer is not None
        norm = float(nn.utils.clip_grad_norm_(self._parameters, clipping))
        if not math.isnan(norm):  # s3prl's protocol skips such a step
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scheduler is not None:
            self.scheduler.step()

    def _forward(
        self, split: str, content: tuple[Any, ...], records: dict[str, list[Any]], **named: int
    ) -> torch.Tensor:
        wavs, *others = content
        waveforms = [torch.as_tensor(np.asarray(wav)).float().to(self.device) for wav in wavs]
        with torch.no_grad():
            hidden_states = self.upstream(waveforms)
        features = self.featurizer(waveforms, hidden_states)
        if split == "train" and self._augment is not None:
            features, _ = self._augment(features)
        loss: torch.Tensor = self.expert(split, features, *others, records=records, **named)
        return loss

    def _judge(self) -> None:
        """Evaluate on the dev split, and keep the weights if they are the best so far."""
        metric = self.task.select
        assert metric is not None
        value = self.evaluate(self.task.dev)[metric.scalar]
        sign = 1 if metric.higher_better else -1
        if self.best is None or sign * value > sign * self.best[0]:
            self.best = (value, self.step)
            weights = {
                "featurizer": self.featurizer.state_dict(),
                "expert": self.expert.state_dict(),
            }
            self._write(BEST_FILE, {"step": self.step, "value": value, **weights})

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """Return the expert's scalars of a split; the random state of training is kept."""
        before = random_state(self.device)
        self._seed_all("evaluation")
        training = self.expert.training
        for learner in self._learners:
            learner.eval()
        log, loader = _ScalarLog(), self._loader(split)
        records: dict[str, list[Any]] = defaultdict(list)
        numbers: list[int] = []
        unreadable: list[Unreadable] = []
        for number, (content, skipped) in enumerate(read_batches(loader, self.on_corrupt)):
            self._count_skipped(skipped)
            unreadable += skipped
            if content is None:
                continue
            self._forward(split, content, records, batch_id=number)
            numbers.append(number)
        if not numbers:
            raise DataError(
                f"no audio of {self.task.name.upper()}'s split {split} can be decoded, the first: "
                f"{unreadable[0].message if unreadable else 'there is none'}"
            )
        remove_from_scores(getattr(self.expert, "test_dataset", None), unreadable, records)
        self.expert.log_records(
            split,
            records=records,
            logger=log,
            global_step=self.step,
            batch_ids=numbers,
            total_batch_num=len(loader),
        )
        for learner in self._learners:
            learner.train(training)
        restore_random_state(before, self.device)
        return log.of_split(split)

    def _count_skipped(self, skipped: Sequence[Unreadable]) -> None:
        self.skipped.update(dict.fromkeys(each.message for each in skipped))

    def load_best(self) -> int:
        """Load the best step's weights and return that step; 0 if nothing is trained."""
        if not self.total_steps:
            return 0
        content = self._read(BEST_FILE)
        self.featurizer.load_state_dict(content["featurizer"])
        self.expert.load_state_dict(content["expert"])
        return int(content["step"])

    def save(self) -> None:
        """Write the state that `resume` reads."""
        assert self.optimizer is not None
        self._write(
            STATES_FILE,
            {
                "step": self.step,
                "epoch": self.epoch,
                "batches": self.batches,
                "best": None if self.best is None else list(self.best),
                "featurizer": self.featurizer.state_dict(),
                "expert": self.expert.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
                "random": random_state(self.device),
                "skipped": list(self.skipped),
            },
        )

    def resume(self) -> None:
        """Restore the state that `save` wrote, if there is one.

        Raises:
            CheckpointError: If the file is damaged.
        """
        if self.optimizer is None or not is_there(self.directory / STATES_FILE):
            return
        states = self._read(STATES_FILE)
        self.step, self.epoch = states["step"], states["epoch"]
        self.batches = states["batches"]
        self.best = None if states["best"] is None else (states["best"][0], states["best"][1])
        self.featurizer.load_state_dict(states["featurizer"])
        self.expert.load_state_dict(states["expert"])
        self.optimizer.load_state_dict(states["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(states["scheduler"])
        self._random = states["random"]
        self.skipped = dict.fromkeys([*states.get("skipped", ()), *self.skipped])

    def _write(self, name: str, content: dict[str, Any]) -> None:
        writer = AtomicCheckpointIO()
        writer.save_checkpoint(content, self.directory / name)
        with write_errors(self.directory / name, "free space, then give the same command again"):
            if writer.failure is not None:
                raise writer.failure

    def _read(self, name: str) -> dict[str, Any]:
        path = self.directory / name
        try:
            content: dict[str, Any] = torch.load(path, self.device, weights_only=True)
        except Exception as error:  # torch raises half a dozen kinds for a damaged file
            fault = disk_fault(path)
            if fault is not None:
                raise CheckpointError(unread(path, fault)) from error
            raise CheckpointError(
                f"{path} can't be read ({type(error).__name__}): remove {self.directory}, and the "
                "job restarts"
            ) from error
        return content

    def _loader(self, split: str) -> DataLoader[Any]:
        """Return s3prl's loader of a split."""
        corpus = getattr(self.expert, "corpus", None)
        if isinstance(corpus, dict):  # the ctc recipe pops the setting at its first use
            corpus["num_workers"] = self.config["downstream_expert"]["corpus"]["num_workers"]
        loader: DataLoader[Any] = self.expert.get_dataloader(split)
        loader.worker_init_fn = prepare_worker  # ignores the signals that end a job
        return loader

    def _seed_all(self, purpose: str) -> None:
        """Seed every generator from the job's seed and a purpose."""
        drawn = random.Random(f"{self.seed} {purpose}").getrandbits(32)
        random.seed(drawn)
        np.random.seed(drawn)
        torch.manual_seed(drawn)


class _ScalarLog:
    """Stands for TensorBoard's writer, and keeps what an expert logs."""

    def __init__(self) -> None:
        self._scalars: dict[str, float] = {}

    def add_scalar(self, name: str, value: float, global_step: int = 0) -> None:  # noqa: ARG002
        """Keep a scalar; its name is ``task/split-metric``."""
        self._scalars[name.rpartition("/")[2]] = float(value)

    def of_split(self, split: str) -> dict[str, float]:
        """Return a split's scalars by the expert's own names."""
        prefix = f"{split}-"
        return {
            name.removeprefix(prefix): value
            for name, value in self._scalars.items()
            if name.startswith(prefix)
        }

"""Costs of models at inference: size, multiply-accumulates, and time on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from interstack.constants import SAMPLE_RATE
from interstack.errors import ConfigurationError
from interstack.models.flops import forward_macs
from interstack.models.pretrained import WEIGHT_FILES, Source
from interstack.models.teacher import Teacher


@dataclass(frozen=True)
class ModelCosts:
    """Costs of a model.

    Attributes:
        model: Name that the user gave it.
        family: transformers' model type.
        depth: Encoder layers.
        width: Channels of a hidden state.
        num_parameters: Parameters of the whole model.
        megabytes: Size of its weights on disk, in 10⁶ bytes; None for one from the hub.
        gigamacs_per_second: Multiply-accumulates for a second of audio, in 10⁹.
        real_time_factors: Seconds of computation a second of audio, one a round.
    """

    model: str
    family: str
    depth: int
    width: int
    num_parameters: int
    megabytes: float | None
    gigamacs_per_second: float
    real_time_factors: tuple[float, ...]

    def to_primitives(self) -> dict[str, Any]:
        """Return the fields as JSON values, with the median real-time factor."""
        return asdict(self) | {"real_time_factor": median(self.real_time_factors)}


class _Measured:
    """A model that is measured: loaded once, timed once a round."""

    def __init__(self, name: str, location: str, device: torch.device) -> None:
        source = Source(location)
        config: Any = source.read_config()
        whole = source.load(config).model  # a Teacher drops parts of it and folds its weight norm
        self.name, self.config, self.directory = name, config, source.directory
        self.num_parameters = sum(parameter.numel() for parameter in whole.parameters())
        self._model = Teacher(location, [config.num_hidden_layers]).to(device)
        self._device = device
        self.max_samples = self._model.max_samples
        self.times: list[float] = []

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> None:
        start = time.perf_counter()
        self._model(waveforms, num_samples)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.times.append(time.perf_counter() - start)

    def costs(self, seconds: float) -> ModelCosts:
        depth = self._model.num_layers
        return ModelCosts(
            model=self.name,
            family=self.config.model_type,
            depth=depth,
            width=self._model.width,
            num_parameters=self.num_parameters,
            megabytes=None if self.directory is None else _megabytes(self.directory),
            gigamacs_per_second=forward_macs(self.config, depth, seconds).gigamacs,
            real_time_factors=tuple(taken / seconds for taken in self.times[1:]),
        )


def measure_costs(
    models: Sequence[tuple[str, str]],
    *,
    seconds: float = 10.0,
    rounds: int = 5,
    device: torch.device | None = None,
) -> list[ModelCosts]:
    """Return the costs of models, measured side by side.

    They take turns, so that a drift of the machine's speed favours none, on one utterance at a
    time, as on a device; the first round is not counted.

    Args:
        models: Name of each, and its directory or hub id.
        seconds: Length of the utterance.
        rounds: Timed forward passes of each.
        device: The device; the CPU if None.

    Raises:
        TeacherError: If one can't be loaded.
        ConfigurationError: If the utterance is longer than one takes.
    """
    device = device or torch.device("cpu")
    waveforms = 0.1 * torch.randn(1, round(seconds * SAMPLE_RATE), device=device)
    num_samples = torch.tensor([waveforms.shape[1]], device=device)
    measured = [_Measured(name, location, device) for name, location in models]
    for model in measured:
        limit = model.max_samples
        if limit is not None and waveforms.shape[1] > limit:
            raise ConfigurationError(
                f"--seconds is {seconds:g}, but {model.name} has positions for "
                f"{limit / SAMPLE_RATE:g} s: give --seconds {limit / SAMPLE_RATE:g} or less"
            )
    for _ in range(rounds + 1):
        for model in measured:
            model.forward(waveforms, num_samples)
    return [model.costs(seconds) for model in measured]


def costs_table(costs: Sequence[ModelCosts], seconds: float, machine: str) -> Table:
    """Return a table of costs, one model a row.

    Args:
        costs: The models.
        seconds: Length of the utterance.
        machine: Description of the machine.
    """
    table = Table(
        box=SIMPLE_HEAD,
        caption=f"one utterance of {seconds:g} s at a time, in fp32, on {machine}; real-time "
        "factor: seconds of computation a second of audio, median (lowest–highest)",
    )
    table.add_column("model", overflow="fold")
    headings = ("layers", "width", "parameters", "on disk", "GMACs/s", "real-time factor")
    for heading in headings:
        table.add_column(heading, justify="right")
    for one in costs:
        factors = one.real_time_factors
        table.add_row(
            one.model,
            str(one.depth),
            str(one.width),
            f"{one.num_parameters / 1e6:.2f} M",
            "–" if one.megabytes is None else f"{one.megabytes:.1f} MB",
            f"{one.gigamacs_per_second:.2f}",
            f"{median(factors):.4f} ({min(factors):.4f}–{max(factors):.4f})",
        )
    return table


def _megabytes(directory: Path) -> float:
    """Return the size of a directory's weights, in 10⁶ bytes, of the kind that is loaded."""
    for name in WEIGHT_FILES:
        if (directory / name).is_file():
            if not name.endswith(".json"):
                return (directory / name).stat().st_size / 1e6
            shards = directory.glob("*" + Path(name.removesuffix(".index.json")).suffix)
            return sum(shard.stat().st_size for shard in shards) / 1e6
    return 0.0

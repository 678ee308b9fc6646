"""SUPERB's linear probe: a learned weighted sum of hidden states and a linear layer (2105.01051).

The upstream's hidden states are computed once; a probe is trained on them in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import mean, stdev
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from interstack.data.base import Split


class Frames(NamedTuple):
    """The labelled frames of a split."""

    hidden_states: Tensor
    """(frames, layers, width) float16: half the memory, and ample for a probe."""
    labels: Tensor
    """(frames,) int64 classes."""
    clips: Tensor
    """(frames,) int64, which clip of the split a frame comes from."""


@dataclass(frozen=True)
class ProbeSettings:
    """How a probe is trained: Adam, the learning rate falling linearly to zero.

    Steps, not epochs, so that a small corpus trains as long as a large one.

    Args:
        steps: Optimizer steps.
        batch_frames: Frames of a step, drawn from all clips.
        learning_rate: Initial learning rate.
        evaluations: Evaluations on the dev split, evenly spread; the best one counts.
    """

    steps: int = 2000
    batch_frames: int = 256
    learning_rate: float = 2e-3
    evaluations: int = 20


class Outcome(NamedTuple):
    """A trained probe at its best step on the dev split."""

    dev_accuracy: float
    test_predictions: Tensor
    """(frames,) int64 classes."""
    layer_weights: tuple[float, ...]
    """Weight of each hidden state in the sum; empty for a probe of a single layer."""


class LinearProbe(nn.Module):
    """Linear heads on frames: one on the weighted sum of layers, or one on each layer.

    Args:
        num_layers: Hidden states of a frame.
        width: Channels of a hidden state.
        num_classes: Number of labels.
        per_layer: Train a head on each layer instead, side by side.
    """

    def __init__(self, num_layers: int, width: int, num_classes: int, per_layer: bool) -> None:
        super().__init__()
        heads = num_layers if per_layer else 1
        self.scores = None if per_layer else nn.Parameter(torch.zeros(num_layers))
        self.weight = nn.Parameter(torch.randn(heads, width, num_classes) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(heads, 1, num_classes))

    @property
    def layer_weights(self) -> Tensor:
        """(layers,) weights of the sum; empty if there is none."""
        return self.bias.new_empty(0) if self.scores is None else self.scores.softmax(0)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return every head's logits, (heads, frames, classes), of (frames, layers, width)."""
        inputs = hidden_states.float().transpose(0, 1)
        if self.scores is not None:
            inputs = torch.tensordot(self.layer_weights, inputs, dims=1)[None]
        return torch.baddbmm(self.bias, inputs, self.weight)


def train_probe(
    frames: Mapping[Split, Frames],
    num_classes: int,
    settings: ProbeSettings,
    seed: int,
    per_layer: bool = False,
) -> list[Outcome]:
    """Train a probe on the train split, and return its outcome at its best step on the dev split.

    Args:
        frames: The labelled frames of train, validation and test.
        num_classes: Number of labels.
        settings: How to train.
        seed: Seed of the initial weights and of the frames' order.
        per_layer: Probe each layer alone instead of the weighted sum.

    Returns:
        One outcome, or one for each layer.
    """
    train, dev, test = frames["train"], frames["validation"], frames["test"]
    num_layers, width = train.hidden_states.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = LinearProbe(num_layers, width, num_classes, per_layer)
        heads = len(probe.weight)
        optimizer = torch.optim.Adam(probe.parameters(), lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.steps)
        best_dev = torch.full((heads,), -1.0)
        predictions = torch.zeros(heads, len(test.labels), dtype=torch.int64)
        layer_weights = probe.layer_weights.detach()
        times = {settings.steps * k // settings.evaluations for k in range(1, settings.evaluations)}
        batches = _random_batches(len(train.labels), settings.batch_frames)
        for step, batch in enumerate(islice(batches, settings.steps), start=1):
            logits = probe(train.hidden_states[batch])
            labels = train.labels[batch].expand(heads, -1)
            # Summed over heads, so that each learns as if it were alone.
            loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten()) * heads
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            if step not in times and step != settings.steps:
                continue
            with torch.no_grad():
                dev_accuracy = (_predict(probe, dev.hidden_states) == dev.labels).float().mean(1)
                improved = dev_accuracy > best_dev
                best_dev = torch.where(improved, dev_accuracy, best_dev)
                found = _predict(probe, test.hidden_states)
                predictions = torch.where(improved[:, None], found, predictions)
                if improved.any():
                    layer_weights = probe.layer_weights.detach()
    weights = tuple(layer_weights.tolist())
    pairs = zip(best_dev.tolist(), predictions, strict=True)
    return [Outcome(accuracy, predicted, weights) for accuracy, predicted in pairs]


def _random_batches(count: int, size: int) -> Iterator[Tensor]:
    """Yield indices of frames endlessly, in a new random order each epoch."""
    while True:
        yield from torch.split(torch.randperm(count), size)


def _predict(probe: LinearProbe, hidden_states: Tensor) -> Tensor:
    """Return every head's most likely classes, (heads, frames); in parts, to bound memory."""
    return torch.cat([probe(part).argmax(-1) for part in torch.split(hidden_states, 4096)], dim=1)


def mean_and_spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation as text; the mean alone of a single value."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"

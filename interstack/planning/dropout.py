"""The time of each kind of dropout in a training step, measured by steps without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from torch import nn

from interstack.data.batch import Batch
from interstack.models.student import Student
from interstack.planning.timed_step import TimedStep

DropoutKind = Literal["attention", "activation", "hidden"]
_KINDS: Final[tuple[DropoutKind, ...]] = get_args(DropoutKind)


@dataclass(frozen=True)
class DropoutCost:
    """The cost of one kind of dropout.

    Attributes:
        kind: Of attention weights, of activations within feed-forward networks, of hidden states.
        probability: The student's.
        seconds: Its part of a step.
    """

    kind: DropoutKind
    probability: float
    seconds: float


@dataclass(frozen=True)
class DropoutCosts:
    """The cost of all kinds of dropout, for the deepest student.

    Attributes:
        depth: Its encoder layers.
        step: Seconds of the whole step.
        kinds: Those whose probability is not 0; each was switched off after the ones before it, so
            that they add up.
    """

    depth: int
    step: float
    kinds: tuple[DropoutCost, ...]

    @property
    def seconds(self) -> float:
        """Seconds that a step without dropout would be shorter."""
        return sum(each.seconds for each in self.kinds)

    def __str__(self) -> str:
        parts = ", ".join(
            f"{each.kind} {each.probability:g}: {_milliseconds(each.seconds)} ms"
            for each in self.kinds
        )
        return (
            f"dropout takes {_milliseconds(self.seconds)} of the {_milliseconds(self.step)} ms of "
            f"a step at {self.depth} layers ({parts})"
        )


class DropoutMeter:
    """Measures the time of each kind of dropout.

    Args:
        step: Takes the steps.
    """

    def __init__(self, step: TimedStep) -> None:
        self._step = step
        self._student = step.module.student
        self._probabilities = dropout_probabilities(self._student)
        self._sums = [0.0] * (len(self._probabilities) + 1)
        self._is_forward = True

    def warm_up(self, batch: Batch) -> None:
        """Take the first step without each kind, which is slower."""
        for switched_off in range(1, len(self._sums)):
            self._run(batch, switched_off)

    def measure(self, batch: Batch) -> None:
        """Take a step with all kinds, then one more for every kind that is switched off.

        The order is reversed from batch to batch, so that a machine's drift favours none.
        """
        if not self._probabilities:
            return
        order = range(len(self._sums))
        for switched_off in order if self._is_forward else reversed(order):
            self._sums[switched_off] += self._run(batch, switched_off)
        self._is_forward = not self._is_forward

    def costs(self, scale: float, step_seconds: float) -> DropoutCosts | None:
        """Return the costs; None where there is no dropout.

        Args:
            scale: Brings the sum over the batches to a step.
            step_seconds: Of the whole step.
        """
        if not self._probabilities:
            return None
        kinds = tuple(
            DropoutCost(kind, probability, scale * (self._sums[number] - self._sums[number + 1]))
            for number, (kind, probability) in enumerate(self._probabilities.items())
        )
        return DropoutCosts(self._step.depth, step_seconds, kinds)

    def _run(self, batch: Batch, switched_off: int) -> float:
        """Return the seconds of forward and backward without the first kinds."""
        with without_dropout(self._student, list(self._probabilities)[:switched_off]):
            split = self._step.run(batch)
        return split.student_forward + split.backward


def dropout_probabilities(student: Student) -> dict[DropoutKind, float]:
    """Return the kinds of dropout that a student has, with their probabilities."""
    config = student.config
    probabilities = (config.attention_dropout, config.activation_dropout, config.hidden_dropout)
    pairs = zip(_KINDS, probabilities, strict=True)
    return {kind: float(probability) for kind, probability in pairs if probability > 0}


@contextmanager
def without_dropout(student: Student, kinds: Sequence[DropoutKind]) -> Iterator[None]:
    """Switch some kinds of dropout off in this context.

    Args:
        student: Changed in place, and restored.
        kinds: The kinds.
    """
    attributes = [each for kind in kinds for each in _attributes(student, kind)]
    before = [getattr(*each) for each in attributes]
    for each in attributes:
        setattr(*each, 0.0)
    try:
        yield
    finally:
        for each, probability in zip(attributes, before, strict=True):
            setattr(*each, probability)


def _attributes(student: Student, kind: DropoutKind) -> list[tuple[nn.Module, str]]:
    """Return the modules that drop, and the name of their probability."""
    encoder: Any = student.model.encoder
    layers: list[Any] = list(encoder.layers)
    if kind == "attention":
        return [(layer.attention, "dropout") for layer in layers]
    if kind == "activation":
        return [(layer.feed_forward.intermediate_dropout, "p") for layer in layers]
    hidden = [encoder.dropout, *(layer.dropout for layer in layers)]
    hidden += [layer.feed_forward.output_dropout for layer in layers]
    return [(each, "p") for each in hidden]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * max(0.0, seconds):.0f}"

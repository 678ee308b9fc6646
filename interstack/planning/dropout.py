"""What each kind of dropout takes of a training step: measured by leaving it out."""

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
    """What one kind takes.

    Attributes:
        kind: Of attention weights, of activations within feed-forward networks, of hidden states.
        probability: As the student has it.
        seconds: Of a step.
    """

    kind: DropoutKind
    probability: float
    seconds: float


@dataclass(frozen=True)
class DropoutCosts:
    """What all kinds take of a step of the deepest student.

    Attributes:
        depth: Its encoder layers.
        step: Seconds of the whole step.
        kinds: Those whose probability is not 0; each was left out after the ones before it, so that
            they add up.
    """

    depth: int
    step: float
    kinds: tuple[DropoutCost, ...]

    @property
    def seconds(self) -> float:
        """What a step without dropout would save."""
        return sum(each.seconds for each in self.kinds)

    def __str__(self) -> str:
        """Write it as a sentence."""
        parts = ", ".join(
            f"{each.kind} {each.probability:g}: {_milliseconds(each.seconds)} ms"
            for each in self.kinds
        )
        return (
            f"dropout takes {_milliseconds(self.seconds)} of the {_milliseconds(self.step)} ms of "
            f"a step at {self.depth} layers ({parts})"
        )


class DropoutMeter:
    """Measures what each kind of dropout takes; nothing where there is none.

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
        """Take a first step with each setting, which is slower."""
        for left_out in range(1, len(self._sums)):
            self._run(batch, left_out)

    def measure(self, batch: Batch) -> None:
        """Take a step with all kinds and one with each setting that has one kind less.

        The order is turned round from batch to batch, so that a machine's drift favours none.
        """
        if not self._probabilities:
            return
        order = range(len(self._sums))
        for left_out in order if self._is_forward else reversed(order):
            self._sums[left_out] += self._run(batch, left_out)
        self._is_forward = not self._is_forward

    def costs(self, scale: float, step_seconds: float) -> DropoutCosts | None:
        """Return what was measured; None where there is no dropout.

        Args:
            scale: What brings the sum over the batches to a step.
            step_seconds: Of the whole step.
        """
        if not self._probabilities:
            return None
        kinds = tuple(
            DropoutCost(kind, probability, scale * (self._sums[place] - self._sums[place + 1]))
            for place, (kind, probability) in enumerate(self._probabilities.items())
        )
        return DropoutCosts(self._step.depth, step_seconds, kinds)

    def _run(self, batch: Batch, left_out: int) -> float:
        """Return the seconds of forward and backward without the first so many kinds."""
        with without_dropout(self._student, list(self._probabilities)[:left_out]):
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
    """Let a student have no dropout of some kinds for a while.

    Args:
        student: It is changed in place and put back.
        kinds: What is left out.
    """
    places = [place for kind in kinds for place in _places(student, kind)]
    before = [getattr(*place) for place in places]
    for place in places:
        setattr(*place, 0.0)
    try:
        yield
    finally:
        for place, probability in zip(places, before, strict=True):
            setattr(*place, probability)


def _places(student: Student, kind: DropoutKind) -> list[tuple[nn.Module, str]]:
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

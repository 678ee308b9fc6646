"""Dropout that is left out for a while, and what a meter makes of the times without it."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from interstack.models.config import StudentConfig, student_hubert_config
from interstack.models.student import Student
from interstack.planning.dropout import (
    DropoutCost,
    DropoutCosts,
    DropoutKind,
    dropout_probabilities,
    without_dropout,
)
from tests.models.families import pad, read_speech


def hidden(student: Student) -> torch.Tensor:
    """Run a student with random numbers that are always the same."""
    torch.manual_seed(3)
    with torch.no_grad():
        states: torch.Tensor = student(*pad(read_speech(0.5, 0.3))).hidden_states[-1]
    return states


@pytest.mark.parametrize("pre_ln", [False, True])
def test_a_kind_that_is_switched_off_drops_nothing_and_is_restored(pre_ln: bool) -> None:
    """Each alone changes the output; without all of them it is that of evaluation, to the bit."""
    config = StudentConfig(
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        dropout=0.1,
        activation_dropout=0.2,
        attention_dropout=0.3,
        do_stable_layer_norm=pre_ln,
    )
    student = Student(student_hubert_config(config, 2), (1, 2), 16)
    kinds: dict[DropoutKind, float] = {"attention": 0.3, "activation": 0.2, "hidden": 0.1}
    assert dropout_probabilities(student) == kinds
    still = hidden(student.eval())
    whole = hidden(student.train())
    outputs = [still, whole]
    for kind in kinds:
        with without_dropout(student, [each for each in kinds if each != kind]):
            outputs.append(hidden(student))
        assert torch.equal(hidden(student), whole)
    assert not any(torch.equal(one, two) for one, two in combinations(outputs, 2))
    with without_dropout(student, list(kinds)):
        assert torch.equal(hidden(student), still)


def test_the_cost_of_dropout_is_a_sentence() -> None:
    """Parts that add up; noise below 0 is 0."""
    kinds = (DropoutCost("attention", 0.1, 0.31), DropoutCost("hidden", 0.2, 0.06))
    assert str(DropoutCosts(12, 1.1, kinds)) == (
        "dropout takes 370 of the 1100 ms of a step at 12 layers "
        "(attention 0.1: 310 ms, hidden 0.2: 60 ms)"
    )
    assert "dropout takes 0 of" in str(DropoutCosts(3, 1.0, (DropoutCost("hidden", 0.1, -0.01),)))

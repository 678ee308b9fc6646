"""Layers compiled in place: few graphs, whatever the lengths and growths, and the same results."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import HubertConfig

from interstack.errors import ConfigurationError
from interstack.growth.operators import get_operator, plan_growth
from interstack.models.student import Student
from interstack.models.teacher import Teacher
from interstack.utils import compiling
from tests.models.families import pad, read_speech

# torch looks for gradients where there are none, while it traces, and silences that for users
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """Graphs are counted from none, and none stays behind."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every graph that torch makes; it runs as it is, for which no C++ compiler is needed."""
    made: list[object] = []

    def backend(graph: Any, inputs: object) -> Callable[..., Any]:  # noqa: ANN401, torch's
        del inputs
        made.append(graph)
        run: Callable[..., Any] = graph.forward
        return run

    compile_ = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: compile_(self, backend=backend, **how)
    )
    return made


def small_student() -> Student:
    """Two layers without dropout, which would differ by chance."""
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
    )
    return Student(config, (2, 4), 16)


def step(student: Student, *seconds: float) -> list[Tensor]:
    """Hidden states of clips of so many seconds, and the gradients of all parameters."""
    student.zero_grad()
    output = student(*pad(read_speech(*seconds)))
    torch.stack([each.square().mean() for each in output.predictions]).sum().backward()
    grads = [each.grad for each in student.parameters() if each.grad is not None]
    return [each.detach() for each in (*output.hidden_states, *grads)]


def test_growth_and_lengths_cost_no_compilation(graphs: list[object]) -> None:
    """All layers share a graph, also clones and fresh ones; a batch of one asks for another."""
    student = small_student()
    plain = copy.deepcopy(student)
    student.compile_layers()
    compared = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)
    for seconds in ((0.6, 0.8), (0.5, 0.9, 1.1), (1.3, 0.4)):
        compared(step(student, *seconds), step(plain, *seconds))
    assert len(graphs) == 1
    for operator, depth in (("interleave", 4), ("random", 6)):
        plan = plan_growth(get_operator(operator), student.lineage, depth)
        student.grow(plan)
        assert all(layer._compiled_call_impl is not None for layer in student.layers)
        step(student, 0.6, 0.8)
    assert student.depth == 6
    assert len(graphs) == 1
    step(student, 0.7)
    step(student, 1.2)
    assert len(graphs) == 2


def test_names_and_weights_stay(graphs: list[object], tmp_path: Path) -> None:
    """So a checkpoint and an export know nothing of it."""
    student = small_student()
    before = student.state_dict()
    student.compile_layers()
    step(student, 0.5, 0.6)
    after = student.state_dict()
    assert list(after) == list(before)
    student.model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert copy.deepcopy(student).layers[0]._compiled_call_impl is None
    assert graphs


def test_the_teacher_says_the_same(graphs: list[object], teacher_directory: Path) -> None:
    """In inference mode, with one graph for its four layers."""
    teacher = Teacher(str(teacher_directory), (2, 4))
    clips = pad(read_speech(0.6, 0.9))
    plain = teacher(*clips).hidden_states
    teacher.compile_layers()
    compiled = teacher(*clips).hidden_states
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)
    assert len(graphs) == 1


@pytest.mark.slow
@torch.no_grad()
def test_compiled_code_gives_the_same_hidden_states() -> None:
    """With torch's own compiler, which is what a run uses."""
    student = small_student().eval()
    clips = pad(read_speech(0.6, 0.9))
    plain = student(*clips).hidden_states
    student.compile_layers()
    compiled = student(*clips).hidden_states
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)


def test_a_missing_compiler_is_told_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, which needs it; torch itself would say it late and at length."""
    compiling.check_can_compile("cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ConfigurationError, match=r"compile_layers needs no-such-compiler on a CPU: install"
    ):
        compiling.check_can_compile("cpu")
    compiling.check_can_compile("cuda")

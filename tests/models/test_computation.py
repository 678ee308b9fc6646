"""Number formats against float32: every shape that a configuration uses, and layers made wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from interstack.errors import PrecisionError
from interstack.models.config import StudentConfig, student_hubert_config
from interstack.models.precision import (
    BOUNDS,
    PrecisionReport,
    compare_with_float32,
    evaluating,
    number_format,
    relative_error,
)
from interstack.models.student import Student
from interstack.models.teacher import Teacher, check_teacher
from tests.models.families import WAVEFORM_MODELS, pad, read_speech, save

CPU = torch.device("cpu")
CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
FORMATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
POSITIONS = "model.encoder.pos_conv_embed.conv"


def configured_shapes() -> set[tuple[int, int, int, int]]:
    """Width, heads, groups and kernel of the students of all configurations, and of small ones."""
    shapes = {(96, 4, 16, 16), (32, 4, 4, 16), (128, 4, 16, 64)}
    for path in CONFIGS:
        student = yaml.safe_load(path.read_text()).get("model", {}).get("student", {})
        known = StudentConfig(
            **{key: value for key, value in student.items() if key in SHAPE_KEYS},
        )
        shapes.add(tuple(getattr(known, key) for key in SHAPE_KEYS))  # type: ignore[arg-type]
    return shapes


SHAPE_KEYS = (
    "hidden_size",
    "num_attention_heads",
    "num_conv_pos_embedding_groups",
    "num_conv_pos_embeddings",
)


def make_student(shape: tuple[int, ...] = (32, 4, 4, 16), depth: int = 2, **more: Any) -> Student:  # noqa: ANN401
    """A student of a configuration's width and positional convolution; the rest is small."""
    sizes: dict[str, Any] = dict(zip(SHAPE_KEYS, shape, strict=True))
    config = StudentConfig(**sizes, intermediate_size=64, conv_dim=(8,) * 7, **more)
    return Student(student_hubert_config(config, depth), (1, 2)[:depth], 24)


def autocast(format: str) -> Callable[[], AbstractContextManager[Any]]:
    """A mixed format on the CPU."""
    return partial(torch.autocast, "cpu", dtype=FORMATS[format])


def compare(student: Student, format: str) -> PrecisionReport:
    """A student's report under autocast."""
    waveforms, num_samples = pad(read_speech(0.6, 0.8))

    def run(model: Student) -> Sequence[Tensor]:
        output = model(waveforms, num_samples)
        return (*output.hidden_states, *output.predictions)

    return compare_with_float32(
        student, run, CPU, name="student", format=format, context=autocast(format)
    )


def grouped_convolutions_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute grouped convolutions in bfloat16 as oneDNN 3.12 does on CPUs with AMX."""
    right = nn.Conv1d._conv_forward

    def wrong(self: nn.Conv1d, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = right(self, hidden, weight, bias)
        faulty = self.groups > 1 and found.dtype == torch.bfloat16
        return found.flip(1) if faulty else found

    monkeypatch.setattr(nn.Conv1d, "_conv_forward", wrong)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", sorted(configured_shapes()))
def test_every_format_is_float32_but_for_rounding(shape: tuple[int, ...], format: str) -> None:
    """Over the widths and positional convolutions of all configurations."""
    report = compare(make_student(shape, depth=1), format)
    assert 0 < report.error < report.bound / 2
    assert report.bound == BOUNDS[format]


@pytest.mark.parametrize("pre_norm", [False, True])
def test_positions_of_a_student_are_computed_in_float32_on_a_cpu(
    pre_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the processor makes of a grouped convolution in bfloat16."""
    student = make_student(do_stable_layer_norm=pre_norm)
    assert compare(student, "bfloat16").passes
    grouped_convolutions_fail(monkeypatch)
    assert compare(student, "bfloat16").passes


@pytest.mark.parametrize("family", WAVEFORM_MODELS)
def test_positions_of_a_teacher_are_computed_in_float32_on_a_cpu(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every family, whose positional convolutions differ."""
    teacher = Teacher(str(save(family, tmp_path)), [3], dtype="bfloat16")
    before = [each.clone() for each in teacher.state_dict().values()]
    grouped_convolutions_fail(monkeypatch)
    report = check_teacher(teacher, *pad(read_speech(0.6, 0.8)))
    assert report.passes, report
    assert report.error > 0
    assert all(map(torch.equal, before, teacher.state_dict().values()))
    assert {each.dtype for each in teacher.parameters()} == {torch.bfloat16}


class Wrong(nn.Module):
    """A layer that is right in float32 alone."""

    def __init__(self, layer: nn.Module, factor: float = -1.0) -> None:
        super().__init__()
        self.layer = layer
        self.factor = factor

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute it, and spoil it in 16 bits."""
        found: Tensor = self.layer(hidden)
        return found if found.dtype == torch.float32 else self.factor * found


@pytest.mark.parametrize("place", ["feed_forward.output_dense", "attention.k_proj"])
@pytest.mark.parametrize(("format", "factor"), [("bfloat16", -1.0), ("float16", float("inf"))])
def test_a_layer_made_wrong_is_named(place: str, format: str, factor: float) -> None:
    """It and no other, with its error, what would be rounding, and what to give instead."""
    student = make_student()
    part, name = place.split(".")
    holder = getattr(student.layers[1], part)
    setattr(holder, name, Wrong(getattr(holder, name), factor))
    report = compare(student, format)
    assert report.layer == f"model.encoder.layers.1.{place}"
    assert report.error == pytest.approx(2.0, rel=0.1) or factor != -1.0
    with pytest.raises(PrecisionError) as raised:
        report.require("trainer.precision mixed", "give trainer.precision 32-true")
    message = str(raised.value)
    assert "\n" not in message
    for part in ("trainer.precision mixed", report.layer, f"{report.error:.2g}", "give trainer"):
        assert part in message


def test_a_layer_of_a_teacher_that_is_wrong_in_its_format_is_named(tmp_path: Path) -> None:
    """Its reference is the same weights in float32."""
    teacher = Teacher(str(save("whisper", tmp_path)), [3], dtype="bfloat16")
    layer: Any = teacher.body.encoder.layers
    layer[2].fc1 = Wrong(layer[2].fc1)
    report = check_teacher(teacher, *pad(read_speech(0.6, 0.8)))
    assert (report.layer, report.passes) == ("body.encoder.layers.2.fc1", False)


def test_a_compiled_layer_made_wrong_shows_in_its_hidden_state() -> None:
    """What is compiled is compared with what is not, and not looked into."""
    student = make_student()
    compiled = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)

        def run(*arguments: Any) -> Any:  # noqa: ANN401
            found = graph(*arguments)
            return [-each if each.dtype.is_floating_point else each for each in found]

        return run

    student.layers[1].compile(backend=backend)
    report = compare(student, "bfloat16")
    torch.compiler.reset()
    assert compiled
    assert (report.layer, report.passes) == ("hidden state 2", False)


def test_the_check_leaves_no_trace() -> None:
    """Random state, weights, modes, hooks and the precision of products are as they were."""
    student = make_student(dropout=0.5).train()
    student.layers[0].eval()
    modes = [each.training for each in student.modules()]
    weights = [each.clone() for each in student.state_dict().values()]
    state = torch.get_rng_state()
    compare(student, "bfloat16")
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [each.training for each in student.modules()]
    assert all(map(torch.equal, weights, student.state_dict().values()))
    assert not any(each._forward_hooks for each in student.modules())
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.is_autocast_enabled("cpu")


def test_formats_are_told_by_weights_and_by_what_torch_may_do() -> None:
    """Products in float32 may be computed in fewer bits, if torch is told so."""
    layer = nn.Linear(2, 2)
    assert number_format(layer, CPU) == "float32"
    assert number_format(nn.Linear(2, 2, dtype=torch.float16), CPU) == "float16"
    torch.set_float32_matmul_precision("medium")
    try:
        assert number_format(layer, CPU) == "bfloat16"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_relative_errors() -> None:
    """What is not finite in float32 either is no fault of a format."""
    one = torch.tensor([3.0, 4.0])
    assert relative_error(1.5 * one, one) == pytest.approx(0.5)
    assert relative_error(one * float("nan"), one) == float("inf")
    assert relative_error(one, one * float("inf")) == 0.0
    assert relative_error(0 * one, 0 * one) == 0.0
    assert relative_error(one, 0 * one) == float("inf")


def test_evaluating_is_undone_after_an_error() -> None:
    """Modes come back whatever happens."""
    layer = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    with pytest.raises(RuntimeError), evaluating(layer), nullcontext():
        raise RuntimeError
    assert all(each.training for each in layer.modules())

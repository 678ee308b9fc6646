"""The student: its size, its growth, its front ends, and what it is to the outside."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from interstack.errors import ConfigurationError, TeacherError
from interstack.growth.operators import OperatorName, get_operator, plan_growth
from interstack.growth.plan import GrowthPlan, TapPlacement
from interstack.models.config import (
    FrontEnd,
    StudentConfig,
    TeacherConfig,
    student_hubert_config,
)
from interstack.models.factory import build_student, load_teacher
from interstack.models.student import Student
from interstack.models.teacher import Teacher
from tests.models.families import pad, whisper_config

PAPER_TAPS = (4, 8, 12)
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
POST_AND_PRE_LN = pytest.mark.parametrize("pre_ln", [False, True], ids=["post-LN", "pre-LN"])


def small_student(
    depth: int = 3,
    taps: tuple[int, ...] = PAPER_TAPS,
    *,
    pre_ln: bool = False,
    **changes: Any,  # noqa: ANN401 - StudentConfig's fields
) -> Student:
    """A student as the paper's but for its width; every weight random, also norms'."""
    settings = StudentConfig(**SMALL | {"do_stable_layer_norm": pre_ln} | changes)
    student = Student(student_hubert_config(settings, depth), taps, 24)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student.eval()


def grow_to(student: Student, *depths: int, operator: OperatorName = "interleave") -> None:
    """Grow through these depths."""
    for depth in depths:
        student.grow(plan_growth(get_operator(operator), student.lineage, depth))


@pytest.fixture
def teacher(teacher_directory: Path) -> Teacher:
    """The small teacher, tapped at layers 1, 2 and 4."""
    return load_teacher(TeacherConfig(str(teacher_directory), (1, 2, 4)), 3)


@contextmanager
def calls_of(student: Student) -> Iterator[list[nn.Module]]:
    """Collect the layers in the order in which they run."""
    calls: list[nn.Module] = []
    hooks = [
        layer.register_forward_hook(lambda layer, _inputs, _output: calls.append(layer))
        for layer in student.layers
    ]
    yield calls
    for hook in hooks:
        hook.remove()


# Size -------------------------------------------------------------------------------------------


def test_the_papers_student_has_the_papers_parameters_at_every_depth() -> None:
    """10.90, 16.23, 21.55 and 26.87 millions, grown."""
    with torch.device("meta"):
        student = Student(student_hubert_config(StudentConfig(), 3), PAPER_TAPS, 768)
    millions = [round(student.num_parameters() / 1e6, 2)]
    for depth in (6, 9, 12):
        grow_to(student, depth)
        millions.append(round(student.num_parameters() / 1e6, 2))
    assert millions == [10.90, 16.23, 21.55, 26.87]


def test_a_student_built_at_full_depth_is_as_large_as_a_grown_one() -> None:
    """The full-depth baseline has the same 26.87 millions."""
    with torch.device("meta"):
        student = Student(student_hubert_config(StudentConfig(), 12), PAPER_TAPS, 768)
    assert round(student.num_parameters() / 1e6, 2) == 26.87


def test_only_the_present_depth_is_computed_stored_and_trained(clips: list[Tensor]) -> None:
    """Three layers run and three layers have parameters, until the student grows."""
    student = small_student()
    for depth in (3, 6, 12):
        if depth > 3:
            grow_to(student, depth)
        with calls_of(student) as calls:
            output = student(*pad(clips))
        assert calls == list(student.layers)
        assert len(output.hidden_states) == depth + 1
        layers = {
            name.split(".")[3] for name, _ in student.named_parameters() if ".layers." in name
        }
        assert layers == {str(layer) for layer in range(depth)}


# Growth -----------------------------------------------------------------------------------------


@POST_AND_PRE_LN
def test_originals_keep_their_parameter_objects(pre_ln: bool) -> None:
    """An original is moved, not made anew, and so are all parts outside the stack."""
    student = small_student(pre_ln=pre_ln)
    before = list(student.layers)
    parameters = [list(layer.parameters()) for layer in before]
    rest = {name: p for name, p in student.named_parameters() if ".layers." not in name}
    plan = plan_growth(get_operator("interleave"), student.lineage, 6)
    student.grow(plan)
    for layer, kept, place in zip(before, parameters, plan.original_indices, strict=True):
        assert student.layers[place] is layer
        now = list(student.layers[place].parameters())
        assert [id(parameter) for parameter in now] == [id(parameter) for parameter in kept]
    for name, parameter in student.named_parameters():
        if ".layers." not in name:
            assert parameter is rest[name]


@POST_AND_PRE_LN
def test_clones_equal_their_originals_and_are_independent_of_them(pre_ln: bool) -> None:
    """Training one does not train the other."""
    student = small_student(pre_ln=pre_ln)
    grow_to(student, 6)
    original, clone = student.layers[2], student.layers[3]
    for kept, copied in zip(original.parameters(), clone.parameters(), strict=True):
        assert torch.equal(kept, copied)
        assert copied.requires_grad
        with torch.no_grad():
            copied.add_(1.0)
        assert not torch.equal(kept, copied)
    key = "attention.k_proj.weight"
    assert not torch.equal(student.layers[0].get_parameter(key), original.get_parameter(key))


def test_a_student_grows_into_the_papers_blocks() -> None:
    """Depth, lineage and configuration go along."""
    student = small_student()
    grow_to(student, 6, 9, 12)
    assert student.depth == student.config.num_hidden_layers == 12
    assert student.lineage == (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)


@pytest.mark.parametrize(
    ("placement", "taps"), [("block_end", (4, 8, 12)), ("original", (1, 5, 12))]
)
def test_heads_stay_and_their_taps_move_with_the_blocks(
    placement: TapPlacement, taps: tuple[int, ...], clips: list[Tensor]
) -> None:
    """A head is the same object after growth and reads its block's hidden state."""
    settings = StudentConfig(**SMALL)
    config = student_hubert_config(settings, 3)
    student = Student(config, PAPER_TAPS, 24, tap_placement=placement).eval()
    heads = list(student.heads)
    weights = [head.weight for head in heads]
    assert student.hidden_taps == (1, 2, 3)
    grow_to(student, 6, 9, 12)
    assert student.hidden_taps == taps
    assert list(student.heads) == heads
    assert [id(head.weight) for head in student.heads] == [id(weight) for weight in weights]
    output = student(*pad(clips))
    for head, tap, prediction in zip(heads, taps, output.predictions, strict=True):
        assert torch.equal(prediction, head(output.hidden_states[tap]))


def test_a_tap_on_the_teachers_input_stays_on_the_students() -> None:
    """Tap 0 belongs to no block; the others share the layers."""
    student = small_student(depth=2, taps=(0, 6, 12))
    assert student.hidden_taps == (0, 1, 2)
    grow_to(student, 5)
    assert student.hidden_taps == (0, 2, 5)


def test_random_growth_makes_fresh_layers_as_transformers_makes_them() -> None:
    """Not copies: new weights of the initial spread, biases 0, norms 1."""
    student = small_student(hidden_size=64, intermediate_size=256)
    originals = [copy.deepcopy(layer.state_dict()) for layer in student.layers]
    grow_to(student, 6, operator="random")
    assert student.lineage == (0, 0, 1, 1, 2, 2)
    for place in (0, 2, 4):
        state = student.layers[place].state_dict()
        assert all(torch.equal(state[name], originals[place // 2][name]) for name in state)
        fresh = student.layers[place + 1]
        spread = fresh.get_parameter("feed_forward.intermediate_dense.weight").std().item()
        assert spread == pytest.approx(student.config.initializer_range, rel=0.05)
        assert not fresh.get_parameter("attention.q_proj.bias").any()
        assert bool((fresh.get_parameter("layer_norm.weight") == 1).all())
    weights = [layer.get_parameter("attention.q_proj.weight") for layer in student.layers]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(6) for j in range(i))


@pytest.mark.parametrize("operator", ["interleave", "random"])
@pytest.mark.parametrize("training", [True, False])
def test_new_layers_are_in_the_mode_and_precision_of_the_old(
    operator: OperatorName, training: bool
) -> None:
    """A growing student in training has dropout in its clones too."""
    student = small_student().train(training).double()
    grow_to(student, 6, operator=operator)
    modules = [module for layer in student.layers for module in layer.modules()]
    assert all(module.training is training for module in modules)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float64}
    assert all(parameter.requires_grad for parameter in student.layers.parameters())


def test_growth_leaves_no_gradient_on_the_clones(clips: list[Tensor]) -> None:
    """What an original has gathered is not a clone's."""
    student = small_student()
    student(*pad(clips)).predictions[-1].sum().backward()
    grow_to(student, 6)
    assert all(parameter.grad is None for parameter in student.layers[1].parameters())


def test_a_plan_for_another_depth_is_refused_and_changes_nothing() -> None:
    """The student stays as it was."""
    student = small_student()
    layers = list(student.layers)
    with pytest.raises(ValueError, match="a plan for 2 layers can't grow 3"):
        student.grow(GrowthPlan((0, 0, 1, 1)))
    assert list(student.layers) == layers
    assert student.lineage == (0, 1, 2)


@POST_AND_PRE_LN
def test_every_trained_parameter_gets_a_gradient(pre_ln: bool, clips: list[Tensor]) -> None:
    """DDP stops at one that does not, at any depth."""
    student = small_student(pre_ln=pre_ln).train()
    for growth in ((), (6,)):
        grow_to(student, *growth)
        student.zero_grad()
        predictions = student(*pad(clips)).predictions
        torch.autograd.backward(torch.cat(predictions).square().sum())
        without = [name for name, p in student.named_parameters() if p.grad is None]
        assert without == []


# Front ends -------------------------------------------------------------------------------------


def built(front_end: FrontEnd, teacher: Teacher, **changes: Any) -> Student:  # noqa: ANN401
    """A student for the small teacher."""
    return build_student(StudentConfig(**SMALL | {"front_end": front_end} | changes), 3, teacher)


def test_an_own_front_end_is_fresh_and_has_the_settings_shape(teacher: Teacher) -> None:
    """Nothing of the teacher's is in it."""
    student = built("own", teacher, conv_dim=(4, 6, 8, 8, 8, 8, 12))
    weights = [f"conv_layers.{layer}.conv.weight" for layer in range(7)]
    mine = [student.model.feature_extractor.get_parameter(name) for name in weights]
    assert [len(weight) for weight in mine] == [4, 6, 8, 8, 8, 8, 12]
    alike = built("own", teacher).model.feature_extractor.get_parameter(weights[1])
    assert not torch.equal(alike, teacher.feature_extractor.get_parameter(weights[1]))
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("front_end", ["copy", "shared"])
def test_a_copied_or_shared_front_end_has_the_teachers_weights(
    front_end: FrontEnd, teacher: Teacher
) -> None:
    """Of its own memory; a copy is trained and a shared one is not."""
    student = built(front_end, teacher, conv_dim=(2,) * 7)
    extractor = student.model.feature_extractor
    for name, weight in teacher.feature_extractor.state_dict().items():
        mine = extractor.state_dict()[name]
        assert torch.equal(mine, weight)
        assert mine.data_ptr() != weight.data_ptr()
    trained = front_end == "copy"
    assert all(parameter.requires_grad is trained for parameter in extractor.parameters())
    assert all(parameter.requires_grad for parameter in student.model.encoder.parameters())
    assert student.freeze_front_end is not trained


def test_shared_features_give_what_the_student_computes_itself(
    teacher: Teacher, clips: list[Tensor]
) -> None:
    """Front-end features from the teacher replace the student's own, with the same result."""
    student = built("shared", teacher).eval()
    waveforms, num_samples = pad(clips)
    told = teacher(waveforms, num_samples, with_features=True)
    assert told.features is not None
    given = student(waveforms, num_samples, told.features)
    alone = student(waveforms, num_samples)
    for mine, theirs in zip(alone.hidden_states, given.hidden_states, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    other = student(waveforms, num_samples, told.features + 1.0)
    assert not torch.allclose(other.hidden_states[-1], given.hidden_states[-1])


def test_shared_features_leave_no_gradient_in_the_front_end(
    teacher: Teacher, clips: list[Tensor]
) -> None:
    """What is frozen stays so when the student computes the features itself."""
    student = built("shared", teacher)
    student(*pad(clips)).predictions[-1].sum().backward()
    assert all(p.grad is None for p in student.model.feature_extractor.parameters())
    assert all(p.grad is not None for p in student.model.feature_projection.parameters())


def test_a_front_end_with_layer_norms_takes_normalised_waveforms(clips: list[Tensor]) -> None:
    """The loudness of a recording does not matter there."""
    config = student_hubert_config(StudentConfig(**SMALL | {"feat_extract_norm": "layer"}), 2)
    student = Student(config, (1, 2), 24, normalises_waveform=True).eval()
    waveforms, num_samples = pad(clips)
    loud = student(waveforms, num_samples).hidden_states[-1]
    quiet = student(0.3 * waveforms, num_samples).hidden_states[-1]
    torch.testing.assert_close(quiet, loud, atol=1e-3, rtol=1e-3)


def test_a_front_end_that_the_teacher_lacks_cannot_be_shared() -> None:
    """Whisper takes log-mel."""
    with pytest.raises(
        ConfigurationError, match=r"log-mel features.*give model\.student\.front_end own"
    ):
        student_hubert_config(StudentConfig(front_end="shared"), 3, whisper_config())
    with pytest.raises(ConfigurationError, match=r"give model\.student\.front_end own"):
        student_hubert_config(StudentConfig(front_end="copy"), 3, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 390},
            "hidden_size 390 is not divisible by model.student.num_attention_heads 8",
        ),
        ({"num_conv_pos_embedding_groups": 7}, "384 is not divisible by .*embedding_groups 7"),
        ({"conv_stride": (5, 2)}, "one entry a convolution each, but have 7, 7 and 2"),
        ({"dropout": 1.0}, r"model.student.dropout 1.0 must lie in \[0, 1\)"),
        ({"attention_dropout": -0.1}, r"student.attention_dropout -0.1 must lie in \[0, 1\)"),
    ],
)
def test_settings_that_make_no_student_are_refused(changes: dict[str, Any], message: str) -> None:
    """By name and with what they contradict."""
    with pytest.raises(ConfigurationError, match=message):
        student_hubert_config(StudentConfig(**changes), 3)


@pytest.mark.parametrize("placement", ["block_end", "original"])
def test_taps_share_the_top_layer_until_there_is_one_for_each(placement: TapPlacement) -> None:
    """Growth from one layer spreads them evenly; heads stay, and all learn from the beginning."""
    student = small_student(1, (0, 6, 12), tap_placement=placement)
    student.tap_placement = placement
    heads = list(student.heads)
    output = student(torch.randn(1, 4000), torch.tensor([4000]))
    assert student.tap_layers == (0, 0)
    expected = [heads[0](output.hidden_states[0])]
    expected += [head(output.hidden_states[1]) for head in heads[1:]]
    torch.testing.assert_close(list(output.predictions), expected, rtol=0, atol=0)
    for depth, taps in ((2, (0, 1)), (6, (2, 5))):
        grow_to(student, depth)
        assert student.tap_layers == taps
        assert list(student.heads) == heads
    assert student.lineage == (0,) * 6


def test_dropouts_are_set_apart() -> None:
    """``dropout`` is that of hidden states, and of the others where they are not given."""
    config = student_hubert_config(StudentConfig(dropout=0.2, attention_dropout=0.0), 3)
    assert (config.hidden_dropout, config.activation_dropout) == (0.2, 0.2)
    assert config.attention_dropout == 0.0
    config = student_hubert_config(StudentConfig(dropout=0.0, activation_dropout=0.3), 3)
    assert (config.hidden_dropout, config.attention_dropout) == (0.0, 0.0)
    assert config.activation_dropout == 0.3


def test_a_teacher_without_given_taps_gets_one_a_layer_of_the_first_stage(
    teacher_directory: Path,
) -> None:
    """Spread evenly: 2 and 4 of four layers for a first stage of two; all four for one of six."""
    source = TeacherConfig(str(teacher_directory))
    assert load_teacher(source, 2).taps == (2, 4)
    assert load_teacher(source, 6).taps == (1, 2, 3, 4)


def test_a_tap_beyond_the_teacher_is_refused(teacher_directory: Path) -> None:
    """Before any student is made."""
    with pytest.raises(TeacherError, match="reach beyond the teacher"):
        load_teacher(TeacherConfig(str(teacher_directory), (2, 5)), 2)


# Properties -------------------------------------------------------------------------------------


@POST_AND_PRE_LN
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_an_utterance_does_not_depend_on_its_batch(
    pre_ln: bool, norm: str, clips: list[Tensor]
) -> None:
    """Hidden states and predictions, alone and padded, at a grown depth."""
    student = small_student(pre_ln=pre_ln, feat_extract_norm=norm)
    student.normalises_waveform = norm == "layer"
    grow_to(student, 6)
    together = student(*pad(clips))
    for row, clip in enumerate(clips):
        alone = student(*pad([clip]))
        frames = int(together.num_frames[row])
        assert alone.mask.all()
        assert frames == alone.mask.shape[1] == int(together.mask[row].sum())
        for mine, theirs in zip(
            [*alone.hidden_states, *alone.predictions],
            [*together.hidden_states, *together.predictions],
            strict=True,
        ):
            torch.testing.assert_close(theirs[row, :frames], mine[0], atol=1e-4, rtol=1e-4)


@POST_AND_PRE_LN
@pytest.mark.parametrize("depth", [3, 12])
def test_the_export_is_a_plain_hubert_with_the_same_hidden_states(
    pre_ln: bool, depth: int, clips: list[Tensor], tmp_path: Path
) -> None:
    """Saved and loaded with transformers alone, at the first depth and grown."""
    student = small_student(pre_ln=pre_ln)
    for grown in range(6, depth + 1, 3):
        grow_to(student, grown)
    student.model.save_pretrained(tmp_path)
    exported = AutoModel.from_pretrained(tmp_path).eval()
    assert type(exported).__name__ == "HubertModel"
    waveforms, num_samples = pad(clips[:1])
    with torch.no_grad():
        theirs = exported(waveforms, output_hidden_states=True)
        predictions, mine, *_ = student(waveforms, num_samples)
    assert len(theirs.hidden_states) == depth + 1
    # The last one is the encoder's output, after a pre-LN encoder's norm, and a head reads it so.
    torch.testing.assert_close(theirs.last_hidden_state, mine[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(predictions[-1], student.heads[-1](mine[-1]), atol=1e-5, rtol=1e-5)
    for exported_state, state in zip(theirs.hidden_states, mine, strict=True):
        torch.testing.assert_close(exported_state, state, atol=1e-5, rtol=1e-5)

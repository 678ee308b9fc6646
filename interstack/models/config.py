"""Settings of teacher and student, and the student's Hugging Face configuration made from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import HubertConfig, PretrainedConfig

from interstack.errors import ConfigurationError
from interstack.growth.plan import TapPlacement
from interstack.settings import Owners, check_effect, check_effects, defaults_of

FrontEnd = Literal["own", "copy", "shared"]
TeacherDtype = Literal["float32", "bfloat16", "float16"]

FRONT_END_KEYS = (
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "feat_extract_norm",
    "feat_extract_activation",
    "num_feat_extract_layers",
)
"""Keys of a Hugging Face configuration that describe the convolutional front end."""


@dataclass(frozen=True)
class TeacherConfig:
    """The speech foundation model that is distilled.

    Attributes:
        source: Hub id or local directory of a HuBERT, WavLM, wav2vec 2.0, data2vec-audio or Whisper
            model in Hugging Face's format.
        taps: Indices into the teacher's hidden states that the student learns, strictly increasing;
            0 is the encoder's input, the last layer has the teacher's depth. None: one tap for each
            layer of the student's first stage, spread evenly.
        revision: Branch, tag or commit on the hub; refused for a directory.
        dtype: Number format of the teacher's weights and computation; targets are fp32 in any case.
        local_files_only: Never contact the hub, but take what is in the local cache; refused for
            a directory.
        pad_to_30s: Whisper alone: let each utterance attend to silence up to 30 s, as in OpenAI's
            own pipeline, instead of its own frames alone. Each utterance then costs the teacher
            30 s of computation.
        family: Dotted name of a class of yours that loads ``source``, such as
            ``mymodule.MyEncoder``, for an encoder that none of these is; see ``TeacherEncoder``.
    """

    source: str
    taps: tuple[int, ...] | None = None
    revision: str | None = None
    dtype: TeacherDtype = "float32"
    local_files_only: bool = False
    pad_to_30s: bool = False
    family: str | None = None

    def check_effects(self, front_end_source: str | None = None) -> None:
        """Refuse options of the hub for a local directory or a family of one's own.

        Args:
            front_end_source: The student's, which ``local_files_only`` holds for too.

        Raises:
            ConfigurationError: In that case.
        """
        where = f"with model.teacher.source {self.source}, a directory"
        if self.family is not None:
            where = f"with model.teacher.family {self.family}"
            check_effect("model.teacher.pad_to_30s", self.pad_to_30s, False, where)
        elif not Path(self.source).expanduser().is_dir():
            return
        check_effect("model.teacher.revision", self.revision, None, where)
        if front_end_source is None or Path(front_end_source).expanduser().is_dir():
            check_effect("model.teacher.local_files_only", self.local_files_only, False, where)


@dataclass(frozen=True)
class StudentConfig:
    """The student: a HuBERT whose depth is the growth schedule's. Widths and heads are the paper's.

    The four settings of an ``own`` front end are refused where it is a pretrained model's.

    Attributes:
        hidden_size: Width of the encoder.
        intermediate_size: Width of the feed-forward networks.
        num_attention_heads: Attention heads; they divide ``hidden_size``.
        front_end: ``own``: fresh and trained. ``copy``: the teacher's weights, trained. ``shared``:
            the teacher's, frozen, and computed once for both.
        front_end_source: Local directory or hub id of the HuBERT, WavLM, wav2vec 2.0 or
            data2vec-audio model whose front end is copied or shared in place of the teacher's, as a
            Whisper has none. A shared one is computed once a batch in float32, or cached. None: the
            teacher's.
        conv_dim: Channels of each convolution of an ``own`` front end.
        conv_kernel: Kernel of each convolution of an ``own`` front end, in samples of its input.
        conv_stride: Stride of each convolution of an ``own`` front end.
        feat_extract_norm: Norm of an ``own`` front end: ``group`` (HuBERT Base) or ``layer``.
        num_conv_pos_embeddings: Kernel of the positional convolution, in frames.
        num_conv_pos_embedding_groups: Groups of the positional convolution.
        do_stable_layer_norm: Pre-LN encoder (HuBERT Large) instead of post-LN (HuBERT Base).
        dropout: Probability for hidden states, and the default of the next two.
        activation_dropout: Probability for the activations within the feed-forward networks.
        attention_dropout: Probability for attention weights. Any above 0 keeps a CPU from the fused
            attention kernel; ``interstack plan`` measures what it costs.
        tap_placement: ``block_end``: a tap sits on its block's last layer. ``original``: it stays
            on its first layer, but the uppermost, which is always on the top layer.
    """

    hidden_size: int = 384
    intermediate_size: int = 1536
    num_attention_heads: int = 8
    front_end: FrontEnd = "own"
    front_end_source: str | None = None
    conv_dim: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    feat_extract_norm: Literal["group", "layer"] = "group"
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    dropout: float = 0.1
    activation_dropout: float | None = None
    attention_dropout: float | None = None
    tap_placement: TapPlacement = "block_end"

    OWNERS: ClassVar[Owners] = dict.fromkeys(
        ("conv_dim", "conv_kernel", "conv_stride", "feat_extract_norm"), ("front_end", ("own",))
    ) | {"front_end_source": ("front_end", ("copy", "shared"))}

    def check_effects(self) -> None:
        """Refuse options that have no effect beside the others.

        Raises:
            ConfigurationError: In that case.
        """
        check_effects("model.student", asdict(self), defaults_of(StudentConfig), self.OWNERS)


def student_hubert_config(
    student: StudentConfig, depth: int, pretrained: PretrainedConfig | None = None
) -> HubertConfig:
    """Return the Hugging Face configuration of a student.

    Args:
        student: The student's settings.
        depth: Encoder layers.
        pretrained: The configuration of the model whose front end is copied or shared.

    Raises:
        ConfigurationError: If the settings contradict each other, or that model has no waveform
            front end.
    """
    _check_student(student)
    if student.front_end == "own":
        own = ("conv_dim", "conv_kernel", "conv_stride", "feat_extract_norm")
        front_end = {key: getattr(student, key) for key in own}
    elif pretrained is None or not hasattr(pretrained, "conv_kernel"):
        raise ConfigurationError(
            f"model.student.front_end is {student.front_end!r}, but the teacher has no waveform "
            "front end, as one that takes log-mel features: give model.student.front_end own, or "
            "model.student.front_end_source a model that has one, such as HuBERT"
        )
    else:
        front_end = front_end_fields(pretrained)
    return HubertConfig(
        hidden_size=student.hidden_size,
        intermediate_size=student.intermediate_size,
        num_attention_heads=student.num_attention_heads,
        num_hidden_layers=depth,
        num_conv_pos_embeddings=student.num_conv_pos_embeddings,
        num_conv_pos_embedding_groups=student.num_conv_pos_embedding_groups,
        do_stable_layer_norm=student.do_stable_layer_norm,
        hidden_dropout=student.dropout,
        activation_dropout=_default(student.activation_dropout, student.dropout),
        attention_dropout=_default(student.attention_dropout, student.dropout),
        feat_proj_dropout=0.0,
        layerdrop=0.0,  # a dropped layer has no gradient, and growth already trains shallow stacks
        mask_time_prob=0.0,  # no masking in distillation, hence no embedding without a gradient
        **front_end,
    )


def front_end_fields(pretrained: PretrainedConfig) -> dict[str, Any]:
    """Return the fields of a ``HubertConfig`` that describe a waveform model's front end.

    Args:
        pretrained: The model's configuration.
    """
    keys = (key for key in FRONT_END_KEYS if hasattr(pretrained, key))
    fields = {key: getattr(pretrained, key) for key in keys}
    # data2vec-audio has layer norms throughout and no key that says so
    fields.setdefault("feat_extract_norm", "layer")
    fields.pop("num_feat_extract_layers", None)
    return fields


def _check_student(student: StudentConfig) -> None:
    """Refuse settings that transformers would take and fail on later."""
    if student.hidden_size % student.num_attention_heads:
        raise ConfigurationError(
            f"model.student.hidden_size {student.hidden_size} is not divisible by "
            f"model.student.num_attention_heads {student.num_attention_heads}: change one of them"
        )
    if student.hidden_size % student.num_conv_pos_embedding_groups:
        raise ConfigurationError(
            f"model.student.hidden_size {student.hidden_size} is not divisible by "
            f"model.student.num_conv_pos_embedding_groups {student.num_conv_pos_embedding_groups}: "
            "change one of them"
        )
    lengths = {len(student.conv_dim), len(student.conv_kernel), len(student.conv_stride)}
    if len(lengths) != 1:
        raise ConfigurationError(
            "model.student.conv_dim, conv_kernel and conv_stride must have one entry a convolution "
            f"each, but have {len(student.conv_dim)}, {len(student.conv_kernel)} and "
            f"{len(student.conv_stride)}"
        )
    for name in ("dropout", "activation_dropout", "attention_dropout"):
        probability = getattr(student, name)
        if probability is not None and not 0.0 <= probability < 1.0:
            raise ConfigurationError(f"model.student.{name} {probability} must lie in [0, 1)")


def _default(value: float | None, default: float) -> float:
    return default if value is None else value

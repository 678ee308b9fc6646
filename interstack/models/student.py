"""The student: a Hugging Face ``HubertModel`` that grows in depth, with distillation heads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from interstack.growth.plan import GrowthPlan, TapPlacement, descend, even_ends
from interstack.growth.surgery import grow_at
from interstack.models.encoder import encode, project, tie_last_hidden_state
from interstack.models.front_end import (
    extract_features,
    frame_mask,
    normalise_waveform,
    num_frames,
)
from interstack.models.pretrained_front_end import frozen_features
from interstack.utils.compiling import compile_layers


class StudentOutput(NamedTuple):
    """The student's output for a batch.

    Attributes:
        predictions: One tensor a tap, (batch, frames, teacher width): the heads' predictions of
            the teacher's hidden states.
        hidden_states: Depth + 1 tensors (batch, frames, width); 0 is the encoder's input, the last
            one the encoder's output: in a pre-LN student after the final layer norm.
        num_frames: Valid frames of each utterance, (batch,).
        mask: True at valid frames, (batch, frames).
    """

    predictions: tuple[Tensor, ...]
    hidden_states: list[Tensor]
    num_frames: Tensor
    mask: Tensor


class Student(nn.Module):
    """A growing ``HubertModel`` with one linear distillation head for each tap.

    Heads belong to taps, and taps to blocks of layers: growth moves a tap with its block and keeps
    its head. Tap 0 of the teacher is tied to the student's encoder input and never moves. While
    there are fewer layers than taps, the upper taps share the top layer, so that every head is
    trained from the beginning; where the first stack has fewer layers than taps, they are spread
    evenly over the grown stack at each growth step.

    Args:
        config: Configuration of the ``HubertModel``; ``num_hidden_layers`` is the depth.
        teacher_taps: Indices into the teacher's hidden states, strictly increasing.
        teacher_width: Channels of the teacher's hidden states.
        tap_placement: Which layer of a block is tapped.
        normalises_waveform: Bring each utterance to zero mean and unit variance first.
        freeze_front_end: Never train the front end (a pretrained model's, shared).
    """

    def __init__(
        self,
        config: HubertConfig,
        teacher_taps: Sequence[int],
        teacher_width: int,
        *,
        tap_placement: TapPlacement = "block_end",
        normalises_waveform: bool = False,
        freeze_front_end: bool = False,
    ) -> None:
        super().__init__()
        self.teacher_taps = tuple(teacher_taps)
        self.teacher_width = teacher_width
        self.tap_placement: TapPlacement = tap_placement
        self.normalises_waveform = normalises_waveform
        self.freeze_front_end = freeze_front_end
        tie_last_hidden_state(config)
        self.model = HubertModel(config)
        self.heads = nn.ModuleList(
            nn.Linear(config.hidden_size, teacher_width) for _ in self.teacher_taps
        )
        self.lineage: tuple[int, ...] = tuple(range(self.depth))
        layer_taps = sum(tap > 0 for tap in self.teacher_taps)
        self.tap_layers = even_ends(self.depth, layer_taps) if layer_taps else ()
        if freeze_front_end:
            self.model.feature_extractor.requires_grad_(False)

    @property
    def config(self) -> HubertConfig:
        """The ``HubertModel``'s configuration at the current depth."""
        return self.model.config

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's layers, bottom first."""
        layers = self.model.encoder.layers
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def depth(self) -> int:
        """Current number of encoder layers."""
        return len(self.layers)

    @property
    def hidden_taps(self) -> tuple[int, ...]:
        """For each tap, the index into ``hidden_states`` that its head reads."""
        layer_taps = tuple(layer + 1 for layer in self.tap_layers)
        return layer_taps if len(layer_taps) == len(self.teacher_taps) else (0, *layer_taps)

    def forward(
        self, waveforms: Tensor, num_samples: Tensor, features: Tensor | None = None
    ) -> StudentOutput:
        """Run the student at its current depth.

        Args:
            waveforms: (batch, samples), 16 kHz in [-1, 1], zero-padded on the right.
            num_samples: Valid samples of each utterance, (batch,).
            features: Front-end features (batch, channels, frames) if they are known already, as
                with a shared front end.
        """
        frames = num_frames(self.config, num_samples)
        if features is None:
            if self.normalises_waveform:
                waveforms = normalise_waveform(waveforms, num_samples)
            features = extract_features(self.model.feature_extractor, waveforms, num_samples)
        mask = frame_mask(frames, features.shape[-1])
        projected = project(self.model.feature_projection, features)
        hidden_states = encode(self.model.encoder, projected, mask)
        return StudentOutput(self._predict(hidden_states), hidden_states, frames, mask)

    def front_end_features(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """Compute the features of a frozen front end in float32; see `frozen_features`."""
        return frozen_features(
            self.model.feature_extractor,
            waveforms,
            num_samples,
            normalises_waveform=self.normalises_waveform,
        )

    def _predict(self, hidden_states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return every head's prediction from the hidden state of its tap."""
        taps = zip(self.heads, self.hidden_taps, strict=True)
        return tuple(head(hidden_states[tap]) for head, tap in taps)

    def grow(self, plan: GrowthPlan) -> None:
        """Grow in place, with heads and taps; see ``grow_layers``.

        Args:
            plan: A growth step of a stack of this depth.

        Raises:
            ConfigurationError: If the plan is for another depth.
        """
        grow_at(self, "model.encoder.layers", plan)

    def on_layers_grown(self, plan: GrowthPlan) -> None:
        """Move the taps with their blocks, now that the layers have grown."""
        self.model.config.num_hidden_layers = plan.depth
        self.lineage = descend(self.lineage, plan)
        if len(set(self.lineage)) < len(self.tap_layers):  # there is no block for each tap
            self.tap_layers = even_ends(plan.depth, len(self.tap_layers))
        elif self.tap_layers:
            self.tap_layers = plan.move_taps(self.tap_layers, self.tap_placement)

    def compile_layers(self) -> None:
        """Compile each layer, and so their clones; names and results stay the same."""
        compile_layers(self.layers)

    def fresh_layer(self, like: nn.Module) -> nn.Module:
        """Initialise a layer as transformers does, with device, dtype and mode of another one."""
        layer = type(like)(self.config)
        layer.apply(self.model._init_weights)
        parameter = next(like.parameters())
        return layer.to(parameter.device, parameter.dtype).train(like.training)

    def num_parameters(self) -> int:
        """Count the ``HubertModel``'s parameters, without the heads that training alone needs."""
        return sum(parameter.numel() for parameter in self.model.parameters())


CHECKPOINT_KEY = "interstack_student"


def student_structure(student: Student) -> dict[str, Any]:
    """Describe a student in primitives, as ``torch.load(weights_only=True)`` wants them."""
    return {
        "hubert_config": student.config.to_json_string(use_diff=False),
        "teacher_taps": list(student.teacher_taps),
        "teacher_width": student.teacher_width,
        "tap_placement": student.tap_placement,
        "tap_layers": list(student.tap_layers),
        "lineage": list(student.lineage),
        "normalises_waveform": student.normalises_waveform,
        "freeze_front_end": student.freeze_front_end,
    }


def rebuild_student(structure: dict[str, Any]) -> Student:
    """Build a student of this structure; its weights are random until they are loaded."""
    student = Student(
        HubertConfig(**json.loads(structure["hubert_config"])),
        structure["teacher_taps"],
        structure["teacher_width"],
        tap_placement=structure["tap_placement"],
        normalises_waveform=structure["normalises_waveform"],
        freeze_front_end=structure["freeze_front_end"],
    )
    student.lineage = tuple(structure["lineage"])
    student.tap_layers = tuple(structure["tap_layers"])
    return student

"""A user's own family of teachers: an encoder that transformers lacks, given by its dotted name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from interstack.constants import SAMPLE_RATE
from interstack.errors import InterstackError, TeacherError, first_line
from interstack.models.precision import evaluating, relative_error
from interstack.utils.dotted import import_dotted

_OPTION: Final = "model.teacher.family"
_TOLERANCE: Final = 1e-3
"""Most that ‖padded − alone‖ / ‖alone‖ of a hidden state may be; rounding is below 1e-5."""
_SECONDS: Final = (1.0, 0.6)
"""Lengths of the noise that an encoder is checked with."""


class TeacherEncoder(nn.Module, ABC):
    """Base of an encoder of one's own that can be a teacher; ``model.teacher.family`` names it.

    It is made with ``model.teacher.source`` as its only argument, in float32, and is then frozen
    and put in eval mode. ``__init__`` has to set the attributes below.

    Its duty: what it outputs for an utterance depends on that utterance alone, not on its batch and
    padding. Norms over time, convolutions and attention must see valid samples and frames only.
    ``check_encoder`` verifies this whenever it is loaded.

    Attributes:
        num_layers: Layers, the index of the last hidden state.
        width: Channels of a hidden state.
        frame_hop: Samples from one frame's centre to the next one's, at 16 kHz.
        first_frame_centre: Sample at the centre of frame 0.
        max_samples: Longest utterance that it can take; None if there is no bound.
    """

    num_layers: int
    width: int
    frame_hop: int
    first_frame_centre: float
    max_samples: int | None = None

    @abstractmethod
    def forward(self, waveforms: Tensor, num_samples: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Return hidden states and the number of valid frames.

        Args:
            waveforms: (batch, max_num_samples) float32 in [-1, 1] at 16 kHz, padded on the right.
            num_samples: (batch,) valid samples of each.

        Returns:
            Hidden states 0 (the encoder's input) to the last layer that is kept, each (batch,
            frames, width), finite also past an utterance's end; and (batch,) valid frames.
        """

    def keep_layers(self, num_layers: int) -> None:
        """Drop the layers above the deepest tap; by default they are computed in vain.

        Args:
            num_layers: Layers to keep.
        """
        del num_layers


class EncoderBody(nn.Module):
    """A user's encoder in the form that `Teacher` runs: without a front end to share.

    Args:
        encoder: The encoder, whose layers above `num_layers` are dropped.
        num_layers: Layers to keep.
    """

    def __init__(self, encoder: TeacherEncoder, num_layers: int) -> None:
        super().__init__()
        encoder.keep_layers(num_layers)
        self.encoder = encoder

    def forward(
        self, waveforms: Tensor, num_samples: Tensor
    ) -> tuple[None, Sequence[Tensor], Tensor]:
        """Return no features, the hidden states and the valid frames of each utterance."""
        hidden_states, num_frames = self.encoder(waveforms, num_samples)
        return None, hidden_states, num_frames


def load_encoder(family: str, source: str) -> TeacherEncoder:
    """Make an encoder of a user's family and check it.

    Args:
        family: The dotted name of its class, a `TeacherEncoder`.
        source: What the class is made with.

    Raises:
        ConfigurationError: If the class can't be found.
        TeacherError: If it is no such class, can't be made, or fails `check_encoder`.
    """
    kind = import_dotted(_OPTION, family)
    if not (isinstance(kind, type) and issubclass(kind, TeacherEncoder)):
        raise TeacherError(
            f"{_OPTION} is {family}, which is no class of an encoder: derive it from "
            "interstack.models.family.TeacherEncoder"
        )
    make: Callable[[str], TeacherEncoder] = kind
    try:
        encoder = make(source).float().eval()
    except InterstackError:
        raise
    except Exception as error:  # whatever a user's class raises
        raise TeacherError(
            f"{_OPTION} is {family}, which can't load model.teacher.source {source} "
            f"({type(error).__name__}: {first_line(error)}): correct one of them"
        ) from error
    for name in ("num_layers", "width", "frame_hop", "first_frame_centre"):
        if not hasattr(encoder, name):
            raise TeacherError(
                f"{_OPTION} is {family}, whose objects have no {name}: set it in __init__"
            )
    check_encoder(encoder, family)
    return encoder


def encoder_config(encoder: TeacherEncoder, family: str) -> PretrainedConfig:
    """Return what a teacher's transformers configuration has to say of an encoder.

    Args:
        encoder: The encoder.
        family: The dotted name of its class.
    """
    fields = {"num_hidden_layers": encoder.num_layers, "hidden_size": encoder.width}
    make: Any = PretrainedConfig  # takes more fields than its stub has
    config: PretrainedConfig = make(family=family, **fields)
    return config


@torch.no_grad()
def check_encoder(encoder: TeacherEncoder, name: str) -> None:
    """Refuse an encoder whose outputs have another form, or depend on batch or padding.

    Two utterances of noise are encoded alone, and together with whatever in the padding.

    Args:
        encoder: In float32.
        name: What to call it.

    Raises:
        TeacherError: With the hidden state and how far it is off.
    """
    longest = min(SAMPLE_RATE, encoder.max_samples or SAMPLE_RATE)
    lengths = torch.tensor([int(seconds * longest) for seconds in _SECONDS])
    noise = torch.randn(2, longest, generator=torch.Generator().manual_seed(0)) / 10
    with evaluating(encoder):
        together, frames = encoder(noise, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone, own_frames = encoder(noise[row : row + 1, :length], lengths[row : row + 1])
            _check_form(encoder, alone, own_frames, name)
            if int(own_frames) != int(frames[row]):
                raise TeacherError(
                    f"{name} makes {int(own_frames)} frames of an utterance alone and "
                    f"{int(frames[row])} of the same one in a batch: count valid samples only"
                )
            for index, (padded, expected) in enumerate(zip(together, alone, strict=True)):
                error = relative_error(padded[row, : int(own_frames)], expected[0])
                if not error <= _TOLERANCE:
                    raise TeacherError(
                        f"hidden state {index} of {name} depends on what an utterance is padded "
                        f"with: it differs by {error:.2g} (relative) from that of the utterance "
                        "alone: mask padding in norms, convolutions and attention"
                    )


def _check_form(
    encoder: TeacherEncoder, hidden_states: Sequence[Tensor], num_frames: Tensor, name: str
) -> None:
    """Refuse hidden states of an utterance alone that are too few or of another shape."""
    shapes = {tuple(each.shape) for each in hidden_states}
    expected = (1, int(num_frames), encoder.width)
    if len(hidden_states) != encoder.num_layers + 1 or shapes != {expected}:
        raise TeacherError(
            f"{name} outputs {len(hidden_states)} hidden states of shapes {sorted(shapes)} for one "
            f"utterance: return {encoder.num_layers + 1} (num_layers + 1) of shape {expected} "
            "(batch, frames, width)"
        )

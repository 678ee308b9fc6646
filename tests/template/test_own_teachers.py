"""A user's teacher: cut off, frozen and told apart as ours, and checked for padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interstack import Teacher, TeacherEncoder
from interstack.errors import TeacherError
from interstack.models.family import check_encoder
from interstack.models.flops import teacher_macs
from tests.models.families import pad, read_speech


class Frames(TeacherEncoder):
    """Two linear layers over frames of 25 ms."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.num_layers, self.width, self.frame_hop, self.first_frame_centre = 2, 8, 320, 199.5
        torch.manual_seed(len(source))
        self.frames = nn.Conv1d(1, 8, 400, stride=320)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.dropout = nn.Dropout()

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return three hidden states."""
        waveforms = waveforms.to(self.frames.weight.dtype)
        states = [self.dropout(self.frames(waveforms[:, None]).transpose(1, 2))]
        for layer in self.layers:
            states.append(layer(states[-1]).tanh())
        return states, (num_samples - 400) // 320 + 1

    def keep_layers(self, num_layers: int) -> None:
        """Drop the rest."""
        self.layers = self.layers[:num_layers]


class NormOverTime(Frames):
    """Takes statistics of a padded batch."""

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> tuple[list[Tensor], Tensor]:
        """Centre the last hidden state over time."""
        states, frames = super().forward(waveforms, num_samples)
        return [*states[:-1], states[-1] - states[-1].mean(1, keepdim=True)], frames


class CountsPadding(Frames):
    """Counts the padded batch's frames."""

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return as many frames for all."""
        states, frames = super().forward(waveforms, num_samples)
        return states, frames.amax().expand_as(frames)


class LastAlone(Frames):
    """Returns one hidden state."""

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the last."""
        states, frames = super().forward(waveforms, num_samples)
        return states[-1:], frames


class Nameless(Frames):
    """Does not say how wide it is."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        del self.width


def family(kind: type) -> str:
    """Name a class of this file."""
    return f"{__name__}.{kind.__name__}"


def test_an_own_teacher_gives_its_taps_alone() -> None:
    """In float32, without dropout or gradient; layers above the deepest tap are gone."""
    speech = pad(read_speech(1.0, 0.4))
    whole = Teacher("a", [0, 1, 2], family=family(Frames))
    cut = Teacher("a", [1], family=family(Frames), dtype="bfloat16").train()
    assert (whole.num_layers, whole.width, whole.frame_hop) == (2, 8, 320)
    output = cut(*speech)
    assert output.hidden_states[0].dtype == torch.float32
    expected = whole(*speech).hidden_states[1]
    torch.testing.assert_close(output.hidden_states[0], expected, rtol=0.02, atol=0.02)
    assert not any(each.requires_grad for each in cut.parameters())
    body: Any = cut.body
    assert len(body.encoder.layers) == 1


def test_an_own_teacher_is_told_apart() -> None:
    """By its weights, for a cache of its targets."""
    same, again, other = (
        Teacher(source, [2], family=family(Frames)).fingerprint() for source in ("a", "b", "ab")
    )
    assert same == again != other


def test_an_own_teacher_has_no_front_end_to_share() -> None:
    """Which the message says."""
    with pytest.raises(TeacherError, match=r"family .*Frames, which has no front end"):
        _ = Teacher("a", [2], family=family(Frames)).feature_extractor


def test_the_arithmetic_of_an_own_teacher_is_counted() -> None:
    """49 frames of a second: 400 × 8 of the convolution, and two layers of 8 × 8."""
    front_end, rest = teacher_macs(Teacher("a", [2], family=family(Frames)), 1.0)
    assert front_end == 0
    assert rest == pytest.approx(49 * (400 * 8 + 2 * 8 * 8))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NormOverTime, "hidden state 2 of .* depends on what an utterance is padded with"),
        (CountsPadding, "frames of an utterance alone and 49 of the same one in a batch"),
        (
            LastAlone,
            r"outputs 1 hidden states .*return 3 \(num_layers \+ 1\) of shape \(1, 49, 8\)",
        ),
        (Nameless, "have no width: set it in __init__"),
        (Tensor, "derive it from"),
    ],
)
def test_an_encoder_that_fails_its_duty_is_refused(kind: type, message: str) -> None:
    """When it is loaded."""
    with pytest.raises(TeacherError, match=message):
        Teacher("a", [2], family=family(kind))


def test_the_check_is_a_function_for_a_user_s_own_test() -> None:
    """It draws no random numbers of the run."""
    before = torch.get_rng_state()
    encoder = Frames("a")
    torch.set_rng_state(before)
    check_encoder(encoder, "mine")
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(TeacherError, match="of mine depends on"):
        check_encoder(NormOverTime("a"), "mine")

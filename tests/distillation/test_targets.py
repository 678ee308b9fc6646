"""Targets: the teacher's frames laid on the student's, and their normalisation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interstack.distillation.objective import ObjectiveConfig
from interstack.distillation.targets import FrameGrid, TargetNorm, align_frames, channel_sums

HUBERT = FrameGrid(199.5, 320)
WHISPER = FrameGrid(0.0, 320)


def numbered(batch: int, frames: int, width: int = 2) -> Tensor:
    """Hidden states that say which frame they are."""
    return torch.arange(float(frames))[None, :, None].expand(batch, frames, width)


def picked(
    teacher: FrameGrid, student: FrameGrid, num_frames: list[int], student_frames: int
) -> list[list[int]]:
    """Which teacher frame each student frame gets."""
    states = (numbered(len(num_frames), max(num_frames)),)
    (aligned,) = align_frames(states, torch.tensor(num_frames), teacher, student, student_frames)
    return aligned[..., 0].int().tolist()


def test_a_hubert_student_takes_whispers_next_frame() -> None:
    """Its frame 0 is centred on sample 199.5, nearer to Whisper's at 320 than to that at 0."""
    assert picked(WHISPER, HUBERT, [50], 6) == [[1, 2, 3, 4, 5, 6]]


def test_frames_past_an_utterances_last_one_repeat_it() -> None:
    """Each utterance has its own last frame, and never gets another's padding."""
    assert picked(WHISPER, HUBERT, [5, 3, 1], 5) == [[1, 2, 3, 4, 4], [1, 2, 2, 2, 2], [0] * 5]


def test_an_utterance_without_a_frame_does_no_harm() -> None:
    """It has nothing valid to be compared with, but must not break its batch."""
    assert picked(WHISPER, HUBERT, [4, 0], 3) == [[1, 2, 3], [0, 0, 0]]


def test_equal_grids_are_left_untouched() -> None:
    """No copy and no cut."""
    states = (numbered(2, 4), numbered(2, 4))
    aligned = align_frames(states, torch.tensor([4, 2]), HUBERT, FrameGrid(199.5, 320), 4)
    assert [id(state) for state in aligned] == [id(state) for state in states]


@given(
    st.tuples(st.floats(0, 400), st.integers(80, 640)),
    st.tuples(st.floats(0, 400), st.integers(80, 640)),
    st.integers(1, 40),
)
def test_the_nearest_centre_is_picked(
    teacher: tuple[float, int], student: tuple[float, int], frames: int
) -> None:
    """On any two grids: no other teacher frame is nearer to a student's frame."""
    if teacher == student:
        return
    (row,) = picked(FrameGrid(*teacher), FrameGrid(*student), [frames], 30)
    for own, chosen in enumerate(row):
        centre = student[0] + own * student[1]
        distances = [abs(teacher[0] + frame * teacher[1] - centre) for frame in range(frames)]
        assert distances[chosen] <= min(distances) + 1e-2


def masked_example() -> tuple[list[Tensor], Tensor]:
    """Two taps of two batches' worth of targets with offset and outlier channels, and a mask."""
    scale = torch.tensor([0.01, 1.0, 200.0])
    targets = [
        torch.tensor([5.0, -100.0, 30.0]) * tap + scale * torch.randn(4, 9, 3) for tap in (1, 2)
    ]
    return targets, torch.arange(9) < torch.tensor([9, 4, 1, 6])[:, None]


def test_channel_norm_gives_measured_frames_zero_mean_and_unit_variance() -> None:
    """Each channel of each tap on its own, whatever padding holds."""
    targets, mask = masked_example()
    for target in targets:
        target[~mask] = 1e9
    norm = TargetNorm(ObjectiveConfig(target_norm="channel"), 2, 3)
    wanted = norm.wants_statistics
    halves = [
        channel_sums([target[rows] for target in targets], mask[rows])
        for rows in (slice(0, 3), slice(3, 4))
    ]
    norm.measure(halves)
    assert (wanted, norm.wants_statistics) == (True, False)
    for normed in norm(targets):
        frames = normed[mask]
        torch.testing.assert_close(frames.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(frames.var(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_channel_statistics_travel_with_the_state_dict() -> None:
    """A checkpoint has them, and nothing is measured again."""
    targets, mask = masked_example()
    config = ObjectiveConfig(target_norm="channel")
    measured, loaded = TargetNorm(config, 2, 3), TargetNorm(config, 2, 3)
    measured.measure([channel_sums(targets, mask)])
    loaded.load_state_dict(measured.state_dict())
    assert not loaded.wants_statistics
    for mine, theirs in zip(loaded(targets), measured(targets), strict=True):
        assert torch.equal(mine, theirs)


def test_a_channel_that_never_varies_is_not_blown_up() -> None:
    """Its rounding noise carries nothing."""
    norm = TargetNorm(ObjectiveConfig(target_norm="channel"), 1, 1)
    target = 7.3 + 1e-6 * torch.randn(1, 50, 1)
    norm.measure([channel_sums([target], torch.ones(1, 50, dtype=torch.bool))])
    assert norm([target])[0].abs().max() < 0.01


@pytest.mark.parametrize("kind", ["none", "layer_norm"])
def test_norms_without_statistics_have_none(kind: str) -> None:
    """Nothing is measured and nothing is saved."""
    norm = TargetNorm(ObjectiveConfig(target_norm=kind), 2, 3)  # type: ignore[arg-type]
    targets, _ = masked_example()
    assert not norm.wants_statistics
    assert not norm.state_dict()
    normed = norm(targets)
    if kind == "none":
        assert all(torch.equal(mine, target) for mine, target in zip(normed, targets, strict=True))
    else:
        for mine in normed:
            torch.testing.assert_close(mine.mean(-1), torch.zeros(4, 9), atol=1e-5, rtol=0)

"""What models cost by their configurations, against the paper and against forward passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperModel,
)

from interstack.distillation.muon import newton_schulz_flops, orthogonalise
from interstack.distillation.optimizer import OptimizerConfig, OptimizerKind, make_optimizer
from interstack.models.config import StudentConfig, student_hubert_config
from interstack.models.flops import forward_macs
from interstack.models.student import Student
from interstack.planning.costs import student_costs
from tests.models.families import DATA2VEC, LARGE, TRANSFORMER, WIDTH

SECONDS = 8


@pytest.mark.parametrize(("depth", "millions"), [(3, 10.90), (6, 16.23), (9, 21.55), (12, 26.87)])
def test_the_papers_student_has_the_papers_parameters(depth: int, millions: float) -> None:
    """Of the model that is exported; the heads count only among what is trained."""
    costs = student_costs(StudentConfig(), depth, HubertConfig(), 3, 768, 10.0)
    assert round(costs.num_parameters / 1e6, 2) == millions
    assert costs.num_trained > costs.num_parameters
    assert costs.optimizer_mebibytes == pytest.approx(8 * costs.num_trained / 2**20)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_optimizers_state_has_the_predicted_size(kind: OptimizerKind) -> None:
    """Every number that a step leaves behind, but for AdamW's counts of steps."""
    small = StudentConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4)
    student = Student(student_hubert_config(small, 2), (1, 2), 24)
    prefix = "model.encoder.layers."
    optimizer = make_optimizer(student.named_parameters(), OptimizerConfig(kind=kind), prefix)
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    tensors = [each for state in optimizer.state.values() for each in state.values()]
    costs = student_costs(small, 2, HubertConfig(), 2, 24, 10.0, kind)
    held = sum(4 * each.numel() for each in tensors if each.ndim)
    assert costs.optimizer_mebibytes == held / 2**20
    matrices = 4 * newton_schulz_flops(32, 32) + 2 * newton_schulz_flops(32, 64)
    assert costs.optimizer_gigaflops == (2e-9 * matrices if kind == "muon" else 0.0)


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_the_formula_of_muons_iteration_agrees_with_counted_operations(
    shape: tuple[int, int],
) -> None:
    """Square, wide and tall."""
    with FlopCounterMode(display=False) as counter:
        orthogonalise(torch.randn(3, *shape))
    assert counter.get_total_flops() == 3 * newton_schulz_flops(*shape)


def test_a_shared_front_end_costs_the_student_nothing() -> None:
    """Neither operations nor moments: it is the teacher's, and frozen."""
    own, shared = (
        student_costs(StudentConfig(front_end=front_end), 3, HubertConfig(), 3, 768, 10.0)
        for front_end in ("own", "shared")
    )
    assert shared.gigamacs_per_second < 0.5 * own.gigamacs_per_second
    assert shared.num_trained < own.num_trained


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (HubertConfig(**TRANSFORMER), HubertModel),
        (HubertConfig(**LARGE), HubertModel),
        (Wav2Vec2Config(**LARGE), Wav2Vec2Model),
        (WavLMConfig(**TRANSFORMER), WavLMModel),
        (Data2VecAudioConfig(**DATA2VEC), Data2VecAudioModel),
    ],
)
def test_macs_are_those_of_a_forward_pass(config: Any, model: Any) -> None:  # noqa: ANN401
    """Two floating-point operations are one multiply-accumulate; no random number is drawn."""
    state = torch.get_rng_state()
    macs = forward_macs(config, config.num_hidden_layers, SECONDS)
    assert torch.equal(torch.get_rng_state(), state)
    config._attn_implementation = "eager"  # whose products the counter sees
    network = model(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = network.feature_extractor(torch.randn(1, SECONDS * 16_000))
    assert features.shape[-1] > 1
    assert macs.front_end == counter.get_total_flops() / 2 / SECONDS
    with torch.no_grad(), counter:
        network(torch.randn(1, SECONDS * 16_000))
    assert sum(macs) == pytest.approx(counter.get_total_flops() / 2 / SECONDS)
    assert macs.gigamacs == sum(macs) / 1e9


def test_macs_of_hubert_base_are_those_of_its_matrices() -> None:
    """By hand: convolutions, projection, positions, and 12 layers with attention over 10 s."""
    macs = forward_macs(HubertConfig(), 12, 10.0)
    convolutions = 3200 * 10 * 512 + (1600 + 800 + 400 + 200) * 3 * 512**2
    convolutions += (100 + 50) * 2 * 512**2
    assert macs.front_end == pytest.approx(convolutions, rel=1e-3)
    layer = 4 * 768**2 + 2 * 768 * 3072 + 2 * 768 * 500
    matrices = 50 * (512 * 768 + 128 * 48 * 768 + 12 * layer)
    assert macs.encoder == pytest.approx(matrices, rel=5e-3)


def test_macs_of_whisper_are_of_the_padded_utterance() -> None:
    """At the one length that Whisper has."""
    config = WhisperConfig(
        d_model=WIDTH,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        vocab_size=8,
        max_source_positions=50 * SECONDS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        attn_implementation="eager",
    )
    encoder = WhisperModel(config).encoder.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(torch.randn(1, config.num_mel_bins, 100 * SECONDS))
    counted = counter.get_total_flops() / 2 / SECONDS
    macs = forward_macs(config, 3, SECONDS)
    assert sum(macs) == counted
    assert macs.front_end == 3 * WIDTH * (100 * config.num_mel_bins + 50 * WIDTH)
    assert sum(forward_macs(config, 3, SECONDS / 4, pad_to_30s=True)) == 4 * counted
    assert sum(forward_macs(config, 3, SECONDS / 2)) < counted

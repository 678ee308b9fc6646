"""Students that cost next to nothing, without a run behind them."""

from __future__ import annotations

import torch
from transformers import HubertConfig

from interstack.models.student import Student

PUBLISHED = (5, 2, 2, 2, 2, 2, 2)
"""Strides of the published front ends: 320 samples a frame."""


def small_student(pre_ln: bool = False, stride: tuple[int, ...] = PUBLISHED) -> Student:
    """A student of two layers whose every weight is random, also norms'."""
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[8] * 7,
        conv_stride=list(stride),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        do_stable_layer_norm=pre_ln,
    )
    student = Student(config, [2], 8)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student.eval()

"""An upstream and data that all tests of SUPERB read and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import HubertConfig

from interstack.export.huggingface import export_student
from interstack.models.student import Student
from tests.superb.small_sets import make_all


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every corpus, small, in its true layout."""
    root = tmp_path_factory.mktemp("corpora")
    make_all(root)
    return root


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a student that costs next to nothing."""
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("upstreams") / "student"
    export_student(Student(config, [2], 8), directory)
    return directory

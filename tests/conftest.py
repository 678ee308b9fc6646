"""What tests of several packages share: seeds, real clips, a small teacher's directory."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor
from transformers import HubertConfig, HubertModel

from interstack.cli import _log_to_terminal
from tests.models.families import read_speech

# No deadline: how long an example takes is the machine's affair. The same examples every time.
settings.register_profile("interstack", deadline=None, derandomize=True)
settings.load_profile("interstack")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, in whichever order they run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _log_to_terminal_and_caplog() -> None:
    """Let the log go where the command line lets it go, and to caplog, whatever ran before."""
    _log_to_terminal()
    logger = logging.getLogger("interstack")
    logger.setLevel(logging.INFO)
    logger.propagate = True


@pytest.fixture
def clips() -> list[Tensor]:
    """Real speech of three lengths, the longest in the middle."""
    return read_speech(1.1, 2.0, 0.7)


@pytest.fixture(scope="session")
def teacher_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HuBERT of 4 layers, 16 wide, random and so small that it costs next to nothing."""
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    torch.manual_seed(1)
    model = HubertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    directory = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(directory)
    return directory

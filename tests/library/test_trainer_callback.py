"""StackingTrainerCallback: what it refuses, and models of transformers that it grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from interstack import StackingTrainerCallback
from interstack.errors import ConfigurationError


def llama() -> LlamaForCausalLM:
    """A decoder that nobody would want to talk to."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def trainer_of(model: Any, directory: Path, **settings: Any) -> Trainer:  # noqa: ANN401
    """A quiet Trainer for six steps."""
    own = {key: settings.pop(key) for key in ("optimizers", "model_init") if key in settings}
    arguments: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "save_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    text = torch.arange(8)
    return Trainer(
        model,
        TrainingArguments(str(directory), **arguments | settings),
        train_dataset=[{"input_ids": text + row, "labels": text + row} for row in range(6)],  # type: ignore[arg-type]
        **own,
    )


def test_a_model_of_transformers_grows_with_its_configuration(tmp_path: Path) -> None:
    """Its layers know their index, and what is saved is loaded at its depth."""
    trainer = trainer_of(llama(), tmp_path)
    trainer.add_callback(StackingTrainerCallback(trainer, "model.layers", (2, 4)))
    trainer.train()
    model: Any = trainer.model
    assert model.config.num_hidden_layers == 4
    assert [each.self_attn.layer_idx for each in model.model.layers] == [0, 1, 2, 3]
    prompt = torch.tensor([[2, 3]])
    written = model.eval().generate(prompt, max_new_tokens=4, do_sample=False)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-6").eval()
    again = loaded.generate(prompt, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(written, again)


def test_a_run_is_refused_with_another_schedule(tmp_path: Path) -> None:
    """Resumed at the same depth, with both schedules in the message."""
    trainer = trainer_of(llama(), tmp_path)
    trainer.add_callback(StackingTrainerCallback(trainer, "model.layers", (2, 4)))
    trainer.train()
    other = trainer_of(llama(), tmp_path)
    other.add_callback(
        StackingTrainerCallback(other, "model.layers", (2, 4), optimizer_state="clone")
    )
    with pytest.raises(ConfigurationError, match=r"(?s)state reset.*resumed with.*state clone"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_rewarming_resumes(tmp_path: Path) -> None:
    """The step of the last growth follows from the schedule; the weights are the same."""
    growth: dict[str, Any] = {"learning_rate": "rewarm", "rewarm_steps": 3}
    ends = []
    for resume in (None, str(tmp_path / "checkpoint-4")):
        trainer = trainer_of(llama(), tmp_path)
        trainer.add_callback(StackingTrainerCallback(trainer, "model.layers", (2, 4), **growth))
        trainer.train(resume_from_checkpoint=resume)
        ends.append([each.clone() for each in trainer.model.parameters()])  # type: ignore[union-attr]
    plain = trainer_of(llama(), tmp_path / "plain")
    plain.add_callback(StackingTrainerCallback(plain, "model.layers", (2, 4)))
    plain.train()
    assert all(map(torch.equal, *ends))
    assert not all(map(torch.equal, ends[0], plain.model.parameters()))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "model.layer"}, "LlamaModel has no module 'layer': give one of model.layers"),
        ({"depths": (3, 4)}, "begin with 3 layers, but model.layers has 2"),
        ({"operator": "random"}, "LlamaRMSNorm, has parameters and no reset_parameters"),
    ],
)
def test_layers_that_cannot_grow_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """When the callback is made."""
    trainer = trainer_of(llama(), tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        StackingTrainerCallback(trainer, **{"layers": "model.layers", "depths": (2, 4)} | settings)


def test_trainers_that_cannot_follow_are_refused(tmp_path: Path) -> None:
    """Those that do not make optimizer and model themselves, and the best of all stages."""
    model = llama()
    given = (torch.optim.SGD(model.parameters(), lr=0.1), None)
    with pytest.raises(ConfigurationError, match="was given an optimizer"):
        StackingTrainerCallback(trainer_of(model, tmp_path, optimizers=given), "model.layers")
    with pytest.raises(ConfigurationError, match="has model_init"):
        StackingTrainerCallback(trainer_of(None, tmp_path, model_init=llama), "model.layers")
    best = trainer_of(llama(), tmp_path)
    best.args.load_best_model_at_end = True
    best.add_callback(StackingTrainerCallback(best, "model.layers", (2, 4)))
    with pytest.raises(ConfigurationError, match="load_best_model_at_end is True"):
        best.train()

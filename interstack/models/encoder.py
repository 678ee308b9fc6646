"""Hidden states of a transformers speech encoder; no utterance's depend on its batch.

transformers' own forward does three things that must not happen here: it writes zeros into its
input, it always runs every layer, and in data2vec-audio padding leaks through the stacked
positional convolutions.

The last hidden state of a pre-LN encoder (`do_stable_layer_norm`: HuBERT Large, WavLM Large) is the
encoder's output, after its final layer norm: the state that `last_hidden_state`, transformers 4,
fairseq and SUPERB's published rows mean. transformers 5 returns it as `hidden_states[-1]` only
where the config sets `tie_last_hidden_states`; see `tie_last_hidden_state`.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PretrainedConfig
from transformers.masking_utils import create_bidirectional_mask


def project(feature_projection: nn.Module, features: Tensor) -> Tensor:
    """Project front-end features to the encoder's width.

    Args:
        feature_projection: That of a HuBERT, wav2vec 2.0, WavLM or data2vec-audio model.
        features: (batch, channels, frames).

    Returns:
        (batch, frames, width).
    """
    projected = feature_projection(features.transpose(1, 2))
    # HuBERT returns the projection alone; the others add what their quantisers use.
    return cast(Tensor, projected[0] if isinstance(projected, tuple) else projected)


def encode(
    encoder: nn.Module, projected: Tensor, mask: Tensor, *, num_layers: int | None = None
) -> list[Tensor]:
    """Return hidden states as transformers' `output_hidden_states`, the last one normed.

    Layer drop is not applied: distillation needs every layer.

    Args:
        encoder: That of a HuBERT, wav2vec 2.0, WavLM or data2vec-audio model; plain or stable
            layer norm.
        projected: (batch, frames, width), from `project`.
        mask: (batch, frames) bool, True = valid.
        num_layers: Stop after so many layers; all by default.

    Returns:
        num_layers + 1 tensors (batch, frames, width): 0 is the input of the first layer, k the
        output of layer k. Where that is the last of the `num_hidden_layers` that the encoder's
        config names, it has gone through the final layer norm of a pre-LN encoder. Frames past an
        utterance's end are finite and meaningless.
    """
    module: Any = encoder  # the families share attributes, but no type
    hidden = projected.masked_fill(~mask[..., None], 0.0)
    hidden = hidden + _positions(module.pos_conv_embed, hidden, mask).to(hidden.dtype)
    pre_ln = type(encoder).__name__.endswith("StableLayerNorm")
    if not pre_ln:
        hidden = module.layer_norm(hidden)
    hidden = module.dropout(hidden)

    layers = list(module.layers)[:num_layers]
    attended = attended_frames(mask)
    hidden_states = [hidden]
    if module.config.model_type == "wavlm":
        hidden_states += _run_wavlm(layers, hidden, attended)
    else:
        layer_mask = attention_mask(module.config, hidden, attended)
        for layer in layers:
            hidden_states.append(layer(hidden_states[-1], attention_mask=layer_mask))
    if pre_ln and len(layers) == module.config.num_hidden_layers:
        hidden_states[-1] = module.layer_norm(hidden_states[-1])
    return hidden_states


def tie_last_hidden_state(config: PretrainedConfig) -> None:
    """Make transformers return a pre-LN model's last hidden state as `encode` does.

    transformers 5 collects the layers' outputs, so that `hidden_states[-1]` lacks the final layer
    norm unless the config says otherwise; `save_pretrained` keeps the setting. Post-LN models have
    no such norm, and their config stays as it is.

    Args:
        config: Config of a HuBERT, wav2vec 2.0 or WavLM model; changed in place.
    """
    # With an adapter `last_hidden_state` is the adapter's output, which has other frames.
    if getattr(config, "do_stable_layer_norm", False) and not getattr(config, "add_adapter", False):
        config.tie_last_hidden_states = True


def attended_frames(mask: Tensor) -> Tensor:
    """Return the mask with each first frame set: with no key at all, a query would give NaN.

    Args:
        mask: (batch, frames) bool, True = valid.
    """
    return mask | (torch.arange(mask.shape[1], device=mask.device) == 0)


def attention_mask(config: PretrainedConfig, hidden: Tensor, mask: Tensor) -> Tensor | None:
    """Return the mask that a transformers layer expects for the attention its config names.

    Args:
        config: Config of the model that the layer belongs to.
        hidden: (batch, frames, width), the layer's input.
        mask: (batch, frames) bool, True = attend.
    """
    if config._attn_implementation == "sdpa":
        # As create_bidirectional_mask, but without reading the values, which would stall a GPU.
        return mask[:, None, None, :]
    prepared = create_bidirectional_mask(config=config, inputs_embeds=hidden, attention_mask=mask)
    return cast("Tensor | None", prepared)


def _positions(pos_conv: Any, hidden: Tensor, mask: Tensor) -> Tensor:  # noqa: ANN401 - as above
    """Return convolutional positions: past its end an utterance has zeros, as it would alone."""
    padding = ~mask[:, None]
    stacked = getattr(pos_conv, "layers", None)  # data2vec-audio's
    batch_norm: Any = getattr(pos_conv, "batch_norm", None)  # an option of HuBERT's
    if stacked is None and batch_norm is None:
        return _convolve(pos_conv, hidden)
    hidden = hidden.transpose(1, 2)
    if stacked is not None:
        for layer in stacked:
            hidden = _convolve(layer, hidden.masked_fill(padding, 0.0))
    else:
        hidden = batch_norm(hidden).masked_fill(padding, 0.0)
        hidden = pos_conv.activation(pos_conv.padding(_convolve(pos_conv.conv, hidden)))
    return hidden.transpose(1, 2)


def _convolve(module: nn.Module, hidden: Tensor) -> Tensor:
    """Run a grouped convolution, and what follows it in its module; on a CPU in float32.

    oneDNN 3.12 computes the forward pass in bfloat16 wrongly on CPUs with AMX where the kernel is
    even and a group has fewer than 16 channels, as in small students.

    Args:
        module: With the convolution in it.
        hidden: Its input.
    """
    if hidden.device.type != "cpu":
        return cast(Tensor, module(hidden))
    with torch.autocast("cpu", enabled=False):
        if next(module.parameters()).dtype == torch.float32:
            return cast(Tensor, module(hidden.float()))
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        weights = {name: each.float() for name, each in state.items()}
        found: Tensor = functional_call(module, weights, (hidden.float(),))
        return found.to(hidden.dtype)


def _run_wavlm(layers: list[nn.Module], hidden: Tensor, attended: Tensor) -> list[Tensor]:
    """Return the outputs of WavLM's layers, which share the first one's position bias."""
    hidden_states = []
    position_bias = None
    with warnings.catch_warnings():
        # WavLM gives torch a boolean padding mask beside a float bias; torch converts it and warns.
        warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
        for layer in layers:
            hidden, position_bias = layer(
                hidden, attention_mask=attended, position_bias=position_bias
            )
            hidden_states.append(hidden)
    return hidden_states

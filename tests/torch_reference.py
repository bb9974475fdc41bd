"""The same model in transformers and PyTorch, with eager attention, from a dict of tensors."""

import numpy as np
import torch
import transformers
from transformers import GPT2Config
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from npgpt2.checkpoints.checkpoint import stored_name


def with_head_mask(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Eager attention with the factor on each head that transformers had until version 5."""
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = torch.softmax(weights, -1)
    if not module.is_cross_attention:
        weights = weights * module.config.npgpt2_head_mask[module.layer_idx][None, :, None, None]
    return (weights @ value).transpose(1, 2), weights


ALL_ATTENTION_FUNCTIONS.register("with_head_mask", with_head_mask)
ALL_MASK_ATTENTION_FUNCTIONS.register("with_head_mask", eager_mask)


def build(config, tensors, dtype):
    """The class that the config names, with these parameters."""
    settings = config.to_dict() | {"attn_implementation": "eager"}
    settings.pop("pruned_heads")
    kind = getattr(transformers, config.architectures[0])
    model = kind(GPT2Config(**settings)).to(dtype).eval()
    state = {stored_name(name): torch.tensor(array) for name, array in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config.tie_word_embeddings else set())
    model.tie_weights()
    return model.to(dtype)


def run_head(config, tensors, inputs, dtype):
    """Outputs of a model with another head, by name. The mask determines positions, as in ours."""
    model = build(config, tensors, dtype)
    given = {name: torch.tensor(value) for name, value in inputs.items()}
    if "attention_mask" in given:
        given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(0)
    with torch.no_grad():
        out = model(**given)
    return {k: v.numpy() for k, v in out.items() if k.endswith("logits")}


def run(config, tensors, inputs, dtype):
    """Outputs by name, as NumPy arrays. The mask determines positions, as in generate()."""
    model = build(config, tensors, dtype)
    given = {
        name: torch.tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in inputs.items()
    }
    given = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v
             for k, v in given.items()}  # fmt: skip
    labels, head_mask = given.pop("labels", None), given.pop("head_mask", None)
    if head_mask is not None:
        model.config.npgpt2_head_mask = head_mask
        model.set_attn_implementation("with_head_mask")
    if "position_ids" in given:  # without a mask transformers takes a step back for a new text
        given.setdefault("attention_mask", torch.ones_like(given["position_ids"]))
    if "attention_mask" in given and "position_ids" not in given:
        given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(0)
    with torch.no_grad():
        out = model(**given, use_cache=False, output_attentions=True, output_hidden_states=True)
    named = {"logits": out.logits, "last_hidden_state": out.hidden_states[-1]}
    if labels is not None:  # transformers' own loss casts to float32
        named["loss"] = torch.nn.functional.cross_entropy(
            out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
    for field in ("hidden_states", "attentions", "cross_attentions"):
        for i, array in enumerate(out.get(field) or ()):
            named[f"{field}.{i}"] = array
    return {name: value.numpy() for name, value in named.items()}

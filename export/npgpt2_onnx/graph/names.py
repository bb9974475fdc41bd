"""The names of an exported GPT-2's inputs, outputs and axes, as its clients expect them.

optimum's ORTModelForCausalLM, onnxruntime-genai and transformers.js rely on these names and their
order. The axis names are part of the contract.

Axes: B batch, T new tokens, P past, H heads, D head_dim, V vocabulary, E tokens of an encoder.
"""

KINDS = {"portable": "", "gqa": "_gqa", "mha": "_mha"}  # kind of graph, and its file name's suffix

INPUT_IDS = "input_ids"  # (B, T) int64
ATTENTION_MASK = "attention_mask"  # (B, P + T) int64
POSITION_IDS = "position_ids"  # (B, T) int64
LOGITS = "logits"  # (B, T, V), the first output

LAST_HIDDEN = "ln_f"  # (B, T, C), inside every graph: the head's input

# Of gqa and mha graphs: an input with a default, which clients do not see.
ALL_LOGITS = "all_logits"  # (1,) int64; 0, the default: only each row's last position

# Of models with cross-attention, after the others.
ENCODER_MASK = "encoder_attention_mask"  # (B, E) int64

# Of models with another head: outputs, and the token that represents each choice.
START_LOGITS, END_LOGITS = "start_logits", "end_logits"  # (B, T)
MC_LOGITS = "mc_logits"  # (B, N)
MC_TOKEN_IDS = "mc_token_ids"  # (B, N) int64

# The name of the node that fails on wrong padding. ONNX Runtime's message shows it.
RIGHT_ONLY = "padding goes on the right of a prompt - model.onnx takes any"

BATCH, NEW, PAST = "batch_size", "sequence_length", "past_sequence_length"
TOTAL = f"{PAST} + {NEW}"
ENCODER = "encoder_sequence_length"
CHOICES = "num_choices"


def past(layer: int) -> tuple[str, str]:
    """Return the names of a layer's inputs (B, H, P, D): key and value before the call.

    >>> past(0)
    ('past_key_values.0.key', 'past_key_values.0.value')
    """
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present(layer: int) -> tuple[str, str]:
    """Return the names of a layer's outputs (B, H, P + T, D): key and value after the call.

    >>> present(11)
    ('present.11.key', 'present.11.value')
    """
    return f"present.{layer}.key", f"present.{layer}.value"


def cross(layer: int) -> tuple[str, str]:
    """Return the names of a layer's inputs (B, H, E, D): key and value of the encoder.

    >>> cross(0)
    ('past_key_values.0.encoder.key', 'past_key_values.0.encoder.value')
    """
    return f"past_key_values.{layer}.encoder.key", f"past_key_values.{layer}.encoder.value"

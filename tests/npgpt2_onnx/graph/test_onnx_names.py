"""The cache's views are what an ONNX graph's past inputs expect."""

import numpy as np
import pytest

from npgpt2_onnx.graph import names


def test_the_cache_feeds_an_onnx_graph(small):
    """A graph with the past inputs of an export, which appends one token to each, is fed with the
    cache and gives back what the cache then holds."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    model = small("float32")
    cache = model(np.array([[1, 2, 3], [4, 5, 6]])).past_key_values
    nodes, inputs, outputs = [], [], []
    for layer in range(3):
        for past, present in zip(names.past(layer), names.present(layer), strict=True):
            shape = [names.BATCH, 3, names.PAST, 4]
            inputs.append(helper.make_tensor_value_info(past, floats, shape))
            outputs.append(helper.make_tensor_value_info(present, floats, [*shape[:2], None, 4]))
            nodes.append(helper.make_node("Concat", [past, past], [present], axis=2))
    graph = helper.make_model(
        helper.make_graph(nodes, "past", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {
        name: array
        for layer in range(3)
        for name, array in zip(names.past(layer), cache[layer], strict=True)
    }
    assert [i.name for i in session.get_inputs()] == list(feeds)
    for name, array in zip(feeds, session.run(None, feeds), strict=True):
        np.testing.assert_array_equal(array, np.concatenate([feeds[name]] * 2, 2))


def test_names_are_the_clients():
    assert (names.INPUT_IDS, names.ATTENTION_MASK, names.POSITION_IDS) == (
        "input_ids", "attention_mask", "position_ids",
    )  # fmt: skip
    assert names.TOTAL == "past_sequence_length + sequence_length"
    assert (names.LOGITS, names.NEW) == ("logits", "sequence_length")

"""GPT-2 as an ONNX graph: nodes in the order of `npgpt2/model/`, inputs, outputs, precisions.

Nothing is read from a disk, written or run.
"""

"""GPT-2 as an ONNX graph, parallel to `npgpt2/model/`; `language_model` and `heads` declare its
inputs and outputs. Precisions, and the location of each weight.

It reads, writes and runs nothing.
"""

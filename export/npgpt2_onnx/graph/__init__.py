"""GPT-2 as an ONNX graph, line by line beside `npgpt2/model/`; `language_model` and `heads` declare
its inputs and outputs. Precisions, and where each weight lies.

Nothing is read from a disk, written or run.
"""

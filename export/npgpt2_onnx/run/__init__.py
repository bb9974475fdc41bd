"""Check an exported graph's metadata and run it with ONNX Runtime, as a model that generates.

It needs no checkpoint and builds no graph of a model.
"""

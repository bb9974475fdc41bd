"""An exported graph in use: its metadata checked, run by ONNX Runtime, as a model that generates.

It needs no checkpoint and builds no graph of a model.
"""

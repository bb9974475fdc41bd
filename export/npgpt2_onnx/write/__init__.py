"""A checkpoint → a folder that ONNX clients load, or a static site; verified before it appears.

What a graph contains is decided in `graph/`.
"""

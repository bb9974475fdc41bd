"""Export a checkpoint to a folder for ONNX clients or to a static site, verified before it appears.

`graph/` decides what a graph contains.
"""

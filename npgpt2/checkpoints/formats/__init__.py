"""One file for each format of weights; `find` detects the format and maps its names to ours.

Whether the tensors are those of a GPT-2 is checked in `checkpoints/`.
"""

"""One file for each format of weights; `find` recognises which it is, and maps its names to ours.

Whether the tensors are those of a GPT-2 is checked in `checkpoints/`.
"""

"""Files of rows, split into parts for the processes of one machine or of a Ray cluster.

Generating, scoring and embedding themselves are in `generation/`.
"""

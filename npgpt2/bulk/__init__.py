"""Files of rows, split into parts for the processes of one machine or of a Ray cluster.

The code that generates, scores and embeds is in `generation/`.
"""

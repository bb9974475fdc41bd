"""Generating and scoring text: options, sampling filters, beams, speculation, batching, perplexity.

It is given logits and a tokenizer: it opens no file and does not know which engine computes.
"""

"""Generate and score text: options, sampling filters, beams, prompt lookup, batching, perplexity.

It takes logits and a tokenizer. It opens no file and does not depend on the engine.
"""

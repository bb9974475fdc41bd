"""The files that GPT-2s come in, each read without the library that wrote it."""

"""Bulk work: files of rows, in parts, on every core of one machine or of many. `npgpt2 batch`."""

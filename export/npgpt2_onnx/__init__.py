"""The ONNX side of npgpt2: so far the names of an exported graph's inputs and outputs."""

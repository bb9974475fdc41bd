"""Which packages are loaded, and when. Each test uses its own process."""

import subprocess
import sys

import pytest

HEAVY = ["tiktoken", "onnx", "onnxruntime", "huggingface_hub", "tokenizers", "torch", "tqdm"]


def loaded(code):
    """The heavy packages, and numpy, that a program has loaded at its end."""
    names = [*HEAVY, "numpy"]
    report = f"\nimport sys\nprint([n for n in {names} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_the_library_loads_numpy_and_nothing_heavier():
    assert loaded("from npgpt2 import GPT2, GPT2Config, KVCache, load_tokenizer") == "['numpy']"


def test_a_forward_pass_and_a_local_folder_need_nothing_heavier():
    code = (
        "from npgpt2 import GPT2\n"
        "model = GPT2.from_pretrained('tests/data/tiny')\n"
        "model.generate([1, 2, 3], max_new_tokens=2)"
    )
    assert loaded(code) == "['numpy', 'tiktoken']" or loaded(code) == "['tiktoken', 'numpy']"


def test_help_does_not_even_load_numpy():
    code = (
        "import npgpt2.cli\ntry: npgpt2.cli.main(['generate', '--help'])\nexcept SystemExit: pass"
    )
    assert loaded(code) == "[]"


def test_the_onnx_names_load_nothing():
    assert loaded("import npgpt2_onnx.graph.names") == "[]"


def test_an_unknown_name_is_an_attribute_error():
    import npgpt2

    with pytest.raises(AttributeError, match="no attribute 'GPT3'"):
        _ = npgpt2.GPT3
    assert "GPT2" in dir(npgpt2)

"""config.pbtxt against the graph beside it, as Triton's onnxruntime backend compares them."""

import json
import re
import shutil

import numpy as np
import onnxruntime as ort
import pytest
from cases import SMALL, formula_tensors
from safetensors.numpy import save_file

from npgpt2 import GPT2Config
from npgpt2_onnx import export

TYPES = {"tensor(int64)": "INT64", "tensor(float)": "FP32", "tensor(float16)": "FP16"}
ENTRY = re.compile(r'\{ name: "([^"]+)" data_type: TYPE_(\w+) dims: \[([^]]*)\] \}')


@pytest.fixture
def checkpoint(tiny, tmp_path):
    """A function: switches of the config → a checkpoint's folder; without any, the tiny one."""

    def make(**switches):
        if not switches:
            return tiny
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        config = GPT2Config(**SMALL | switches)
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        tensors = {k: v.astype(np.float32) for k, v in formula_tensors(config).items()}
        save_file(tensors, folder / "model.safetensors")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny / name, folder)
        return folder

    return make


def parsed(text):
    """config.pbtxt → its plain fields, and (name, type, dims) of its inputs and its outputs."""
    fields = dict(re.findall(r'^(\w+): "?([^"\n]*)"?$', text, re.MULTILINE))
    lists = dict(re.findall(r"^(\w+) \[\n(.*?)\n\]$", text, re.MULTILINE | re.DOTALL))
    tensors = {
        part: [
            (name, dtype, [int(n) for n in dims.split(",")])
            for name, dtype, dims in ENTRY.findall(body)
        ]
        for part, body in lists.items()
    }
    return fields, tensors


def declared(values):
    """The same of a session's inputs or outputs; an axis that varies is −1."""
    return [
        (value.name, TYPES[value.type], [n if isinstance(n, int) else -1 for n in value.shape])
        for value in values
    ]


@pytest.mark.parametrize(
    ("switches", "options"),
    [
        ({}, {"precisions": ["fp32", "fp16", "int8", "int4"]}),
        ({}, {"attentions": True}),
        ({"pruned_heads": {"1": [0, 2]}}, {}),
        ({"add_cross_attention": True}, {}),
    ],
    ids=["precisions", "attentions", "pruned heads", "cross-attention"],
)
def test_config_and_graph_agree(checkpoint, tmp_path, switches, options):
    """Of inputs the backend wants each, and no other; an output that is not named is not served."""
    repository = tmp_path / "models"
    export(checkpoint(**switches), tmp_path / "out", triton=repository, **options)
    models = sorted(repository.iterdir())
    assert len(models) == len(options.get("precisions", ["fp32"]))
    for model in models:
        fields, tensors = parsed((model / "config.pbtxt").read_text(encoding="utf-8"))
        assert fields == {"name": model.name, "backend": "onnxruntime", "max_batch_size": "0"}
        session = ort.InferenceSession(model / "1" / "model.onnx")
        assert tensors["input"] == declared(session.get_inputs())
        assert tensors["output"] == declared(session.get_outputs())

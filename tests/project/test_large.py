"""The 124M shape, and the README's claims about its sizes. Takes minutes and gigabytes."""

import itertools
import sys
from pathlib import Path

import pytest
from command_line import runner
from safetensors.numpy import save_file

from npgpt2 import GPT2
from npgpt2.golden.cases import CASES, Subject
from npgpt2_onnx import OnnxModel

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks.numpy_vs_torch import make_checkpoint

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint with random weights and a vocabulary of 50,257."""
    folder = tmp_path_factory.mktemp("large") / "checkpoint"
    folder.mkdir()
    make_checkpoint(folder)
    return folder


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_golden_folder_is_small_and_the_model_agrees_with_it(checkpoint, tmp_path, capsys):
    npgpt2, folder, dump = runner(capsys), tmp_path / "golden", {}
    assert npgpt2("golden", "write", folder, "--model", checkpoint)[0] == 0
    assert size(folder) < 3e6
    model = GPT2.from_pretrained(checkpoint)
    CASES["eight"].compute(Subject(model), lambda name, a: dump.update({f"eight/{name}": a.copy()}))
    save_file(dump, tmp_path / "dump")
    code, out, _ = npgpt2("golden", "check", tmp_path / "dump", "--against", folder)
    assert code == 0, out
    assert f"{len(dump)} of " in out


def test_every_graph_is_proved_and_writes_the_same_text(checkpoint, tmp_path, capsys):
    npgpt2, folder = runner(capsys), tmp_path / "onnx"
    options = itertools.product(["--precision"], ["fp32", "fp16", "int8", "int4"])
    code, _, err = npgpt2(
        "export", checkpoint, "-o", folder, "--graph", "all", *itertools.chain(*options)
    )
    assert code == 0, err
    data = (folder / "onnx" / "model.onnx_data").stat().st_size
    assert data < 1.006 * (checkpoint / "model.safetensors").stat().st_size
    ids, greedy = [[464, 3616, 286, 1204, 318]], {"max_new_tokens": 24, "temperature": 0}
    [ours] = GPT2.from_pretrained(checkpoint).generate(ids, **greedy)
    [theirs] = OnnxModel.from_pretrained(folder).generate(ids, **greedy)
    assert ours.ids == theirs.ids
    assert len(ours.ids) == 24


def test_shared_weights_take_no_room(checkpoint, capsys):
    before = size(checkpoint)
    assert runner(capsys)("export", checkpoint, "--share-weights")[0] == 0
    assert size(checkpoint) - before < 150_000 + 100_000  # graphs, and what clients want beside

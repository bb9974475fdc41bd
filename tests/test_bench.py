"""What `npgpt2 bench` prints; not how fast this machine is."""

import json
import re

import numpy as np
import pytest
from command_line import runner

from npgpt2 import GPT2, GPT2Config
from npgpt2.base.errors import FileError
from npgpt2.bench import bench, operations
from npgpt2.engines import ModelSpec
from npgpt2_onnx import export


@pytest.fixture
def npgpt2(capsys):
    return runner(capsys)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    return export(tiny, folder, precisions=["fp32", "int8"], proof=False)


@pytest.fixture(scope="module")
def report(tiny, exported):
    variants = [ModelSpec(str(tiny)), ModelSpec(str(exported), "onnx", precision="int8")]
    return bench(variants, batches=[1, 3], contexts=[5, 100], threads=1, rounds=1)


def test_a_report_has_every_point_of_every_engine(report):
    assert [(e["engine"], e["precision"]) for e in report["engines"]] == [
        ("numpy", "fp32"),
        ("onnx", "int8"),
    ]
    for engine in report["engines"]:
        assert 0 < engine["load"] < engine["first_token"]
        assert 10e6 < engine["memory"] < 1e9
        for kind in ("prefill", "decode"):
            points = [(cell["batch"], cell["context"]) for cell in engine[kind]]
            assert points == [(1, 5), (1, 100), (3, 5), (3, 100)]
            assert all(cell["tokens_per_second"] > 0 for cell in engine[kind])
            assert all(cell["of_limit"] > 0 for cell in engine[kind])
    # Bytes and operations a second of any machine, be it a busy one: no unit is off.
    assert 1e8 < report["limits"]["bandwidth"] < 1e13
    assert 1e8 < report["limits"]["arithmetic"] < 1e15


def test_the_limit_is_reading_the_weights_and_the_cache_once_a_step(report, tiny):
    """A step of the tiny model: 190,000 weights of four bytes, without wpe; a cache of 3 layers."""
    model = GPT2.from_pretrained(tiny)
    weights = 4 * (model.num_parameters - 128 * 64)
    cache = 2 * 3 * 100 * 3 * 64 * 4
    cell = next(c for c in report["engines"][0]["decode"] if (c["batch"], c["context"]) == (3, 100))
    seconds = 3 / cell["tokens_per_second"]
    least = max(
        (weights + cache) / report["limits"]["bandwidth"],
        operations(model.config, 3, 1, 100) / report["limits"]["arithmetic"],
    )
    assert cell["of_limit"] == pytest.approx(least / seconds, rel=1e-9)


def test_operations_are_counted_as_the_model_multiplies():
    """The matrix products that one small model's last logits need, block by block."""
    config = GPT2Config(vocab_size=11, n_positions=9, n_embd=8, n_layer=2, n_head=2)
    for batch, tokens, past in ((1, 1, 0), (2, 1, 7), (3, 5, 0), (1, 3, 4)):
        seen = sum(past + i + 1 for i in range(tokens))
        first = tokens * (8 * 24 + 8 * 8 + 2 * 8 * 32) + 2 * 8 * seen
        keys, query = tokens * 8 * 16, 8 * 8
        last = keys + query + 2 * 8 * (past + tokens) + 8 * 8 + 2 * 8 * 32
        expected = batch * (first + last + 8 * 11)
        assert operations(config, batch, tokens, past) == 2 * expected


def test_a_process_that_fails_says_why(tmp_path, tiny):
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    with pytest.raises(
        FileError, match=r"^numpy: could not be measured \(FileError: .*no such file"
    ):
        bench([ModelSpec(str(tmp_path))], contexts=[4], rounds=1)


def test_on_the_command_line(npgpt2, exported, tmp_path):
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    picture = tmp_path / "b.png"
    code, out, err = npgpt2(
        "bench", "--model", exported, "--engine", "onnx", "--rounds", "1", "--batch", "2",
        "--plot", picture,
    )  # fmt: skip
    assert code == 0, err
    limits = r"^limits: memory reads [\d.]+ GB/s, float32 matrix products \d+ GFLOP/s$"
    assert re.search(limits, out, re.M)
    for precision in ("fp32", "int8"):
        assert re.search(rf"^onnx {precision} +[\d.]+ s +[\d.]+ s +\d+ MB$", out, re.M)
        for context in (32, 112):
            points = re.findall(rf"^onnx {precision} +2 +{context} +[\d,]+ +\d+%$", out, re.M)
            assert len(points) == 2  # prefill and decode
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_as_json(npgpt2, tiny):
    command = ("bench", "--model", tiny, "--engine", "numpy", "--rounds", "1", "--context", "8")
    code, out, _ = npgpt2(*command, "--batch", "1", "2", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["rounds"] == 1
    assert [cell["batch"] for cell in report["engines"][0]["decode"]] == [1, 2]
    assert report["machine"]["numpy"] == np.__version__


def test_graphs_that_are_not_there_are_made_for_the_while(npgpt2, tiny, tmp_path):
    before = sorted(tiny.rglob("*"))
    code, out, err = npgpt2(
        "bench", "--model", tiny, "--rounds", "1", "--context", "8", "--precision", "int4"
    )
    assert code == 0, err
    assert "has no graph in int4: exporting to a temporary folder" in err
    assert "numpy fp32" in out
    assert "onnx int4" in out
    assert sorted(tiny.rglob("*")) == before


@pytest.mark.parametrize(("flags", "code", "text"), [
    (["--context", "113"], 2, "--context: got 113, expected 1 to 112"),
    (["--batch", "0"], 2, "--batch: got 0, expected 1 to 4096"),
    (["--rounds", "0"], 2, "--rounds: got 0, expected 1 to 1000"),
    (["--threads", "-1"], 2, "--threads: got -1, expected 1 to 1024"),
    (["--engine", "numpy", "--precision", "int8"], 2, "--precision: belongs to the onnx engine"),
    (["--plot", "/nowhere/at/all.png"], 4, "its folder does not exist"),
])  # fmt: skip
def test_wrong_options_before_anything_takes_long(npgpt2, tiny, flags, code, text):
    got, out, err = npgpt2("bench", "--model", tiny, *flags)
    assert (got, out) == (code, "")
    assert text in err
    assert "exporting" not in err

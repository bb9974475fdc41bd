"""What a graph says of the ONNX Runtime that it needs, against what was measured; who heeds it."""

import json
import re
import shutil
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from command_line import runner
from families import FAMILIES, OPSETS, proto
from onnx_cases import metadata

from npgpt2.base.errors import CheckpointError, FileError
from npgpt2_onnx import OnnxModel, export
from npgpt2_onnx.graph import versions as rule
from npgpt2_onnx.graph.versions import AT_LEAST, at_least, numbers
from npgpt2_onnx.run.exported import Exported
from npgpt2_onnx.run.session import Session, choose, graphs_in, loads

TABLE = json.loads((Path(__file__).parents[2] / "data" / "onnxruntime.json").read_text())
HERE, NEWEST = (numbers(version) for version in (ort.__version__, TABLE["versions"][-1]))


@pytest.fixture
def npgpt2(capsys):
    return runner(capsys)


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """The tiny model in two precisions and two kinds."""
    out = tmp_path_factory.mktemp("runtimes") / "out"
    return export(tiny, out, precisions=["fp32", "int8"], proof=False)


@pytest.fixture
def folder(exported, tmp_path, monkeypatch):
    """A function: what graphs are to say they need, by file → such a folder, under onnxruntime
    1.22.0."""
    monkeypatch.setattr(ort, "__version__", "1.22.0")

    def make(**said):
        out = shutil.copytree(exported, tmp_path / "out")
        for path in (out / "onnx").glob("*.onnx"):
            say(path, said.get(path.stem, "1.19"))
        return out

    return make


def say(path, version):
    """Let a graph ask for a version; None: for none, as older exports."""
    model = onnx.load(path, load_external_data=False)
    entries = {e.key: e.value for e in model.metadata_props if e.key != AT_LEAST}
    onnx.helper.set_model_props(model, entries | ({} if version is None else {AT_LEAST: version}))
    path.write_bytes(model.SerializeToString())


# ── the rule ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("opset", OPSETS)
def test_a_graph_asks_for_what_was_measured(opset):
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"the onnx that is installed has no opset {opset}")
    said = {name: at_least(proto(family, opset)) for name, family in FAMILIES.items()}
    assert said == {name: TABLE["least"][name][str(opset)] for name in FAMILIES}


def test_the_table_is_whole_and_the_rule_has_nothing_that_it_does_not_show():
    assert TABLE["least"].keys() == FAMILIES.keys()
    least = {v for row in TABLE["least"].values() for v in row.values()}
    assert {*rule.OPSETS.values(), *rule.OPERATORS.values()} == least
    assert min(least, key=numbers) == TABLE["versions"][0].rpartition(".")[0]


@pytest.mark.parametrize("opset", OPSETS)
def test_the_opsets_of_this_onnxruntime(opset):
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"the onnx that is installed has no opset {opset}")
    assert loads(opset) == (numbers(TABLE["least"]["portable-fp32"][str(opset)]) <= HERE)


def test_every_graph_says_it_and_an_opset_of_tomorrow_nothing(exported):
    said = {path.name: metadata(path)[AT_LEAST] for path in graphs_in(exported).values()}
    least = {name: row[str(17)] for name, row in TABLE["least"].items()}
    assert said == {
        "model.onnx": least["portable-fp32"], "model_gqa.onnx": least["gqa-fp32"],
        "model_quantized.onnx": least["portable-int8"],
        "model_quantized_gqa.onnx": least["gqa-int8"],
    }  # fmt: skip
    tomorrow = onnx.load(exported / "onnx" / "model.onnx", load_external_data=False)
    tomorrow.opset_import[0].version = OPSETS[-1] + 1
    assert at_least(tomorrow) is None


def test_versions():
    order = ["", "1.9", "1.22", "1.22.0", "1.22.1", "1.31.1", "1.32.0.dev20261101", "2.0"]
    assert sorted(order, key=numbers) == order
    assert numbers("1.32.0+cu12") == numbers("1.32.0rc1") == (1, 32, 0)
    assert numbers("latest") == ()
    assert numbers("9" + ".1" * 100_000) == (9, 1, 1, 1)


# ── who heeds it ─────────────────────────────────────────────────────────────────────────────────


def test_the_best_graph_that_this_onnxruntime_loads(folder):
    out = folder(model_gqa="1.24")
    told = (
        r"model_gqa\.onnx: needs onnxruntime 1\.24 or later, this is 1\.22\.0: "
        r"using model\.onnx\. Run: pip install 'onnxruntime>=1\.24'$"
    )
    with pytest.warns(UserWarning, match=told) as said:
        assert choose(out, "cpu") == ("fp32", "portable", out / "onnx" / "model.onnx")
    assert len(said) == 1
    with pytest.warns(UserWarning, match=told):
        model = OnnxModel.from_pretrained(out)
    assert model.session.kind == "portable"
    assert choose(out, "cpu", "int8")[1] == "gqa"


@pytest.mark.parametrize("said", ["1.22", "1.22.0", "1.9", "1", None, "soon", ""])
def test_what_is_old_enough_or_unknown_is_taken(folder, said):
    out = folder(model_gqa=said)
    assert choose(out, "cpu")[1] == "gqa"
    assert Session(out / "onnx" / "model_gqa.onnx").kind == "gqa"


@pytest.mark.parametrize("here", ["1.32.0", "1.32.0.dev20261101", "1.33.0", "2.0.0"])
def test_newer_versions_have_it(folder, monkeypatch, here):
    out = folder(model_gqa="1.32")
    monkeypatch.setattr(ort, "__version__", here)
    assert choose(out, "cpu")[1] == "gqa"


def test_another_precision_where_none_was_asked_for(folder):
    out = folder(model="1.24", model_gqa="1.25")
    with pytest.warns(UserWarning, match=r"model_gqa\.onnx: .*: using model_quantized_gqa\.onnx"):
        assert choose(out, "cpu")[:2] == ("int8", "gqa")
    told = (
        r"model\.onnx: needs onnxruntime 1\.24 or later, this is 1\.22\.0\. "
        r"Run: pip install 'onnxruntime>=1\.24', or export with a lower --opset$"
    )
    with pytest.raises(CheckpointError, match=told):  # the least that would do
        choose(out, "cpu", "fp32")


def test_none_that_it_loads(folder):
    names = ("model", "model_gqa", "model_quantized", "model_quantized_gqa")
    out = folder(**dict.fromkeys(names, "1.30"))
    with pytest.raises(CheckpointError, match=r"needs onnxruntime 1\.30 or later"):
        choose(out, "cpu")


def test_a_graph_that_is_named(folder):
    path = folder(model="1.24.1") / "onnx" / "model.onnx"
    assert Exported.open(path).at_least == "1.24.1"
    told = rf"{re.escape(str(path))}: needs onnxruntime 1\.24\.1 or later, this is 1\.22\.0\. Run"
    with pytest.raises(CheckpointError, match=told):
        Session(path)


@pytest.mark.parametrize(
    ("name", "here", "asked", "helps"),
    [
        ("model", "1.22.0", "1.23", True),
        ("model_gqa", "1.20.1", "1.23", True),
        ("model_gqa", "1.19.2", "1.23", False),  # GroupQueryAttention needs 1.20 in any opset
        ("model_gqa", "1.19.2", "1.20", False),
        ("model_quantized", "1.21.1", "1.22", False),
        ("model_quantized", "1.21.1", "1.24", False),
    ],
)
def test_a_lower_opset_is_named_where_it_helps(folder, monkeypatch, name, here, asked, helps):
    path = folder(**{name: asked}) / "onnx" / f"{name}.onnx"
    monkeypatch.setattr(ort, "__version__", here)
    with pytest.raises(CheckpointError) as caught:
        Session(path)
    told = str(caught.value)
    assert f"needs onnxruntime {asked} or later, this is {here}. Run: pip install" in told
    assert told.endswith(", or export with a lower --opset") == helps


def test_only_a_version_is_repeated_from_a_file(folder):
    path = folder(model="9.9'; rm -r ~\n" + "9" * 10000) / "onnx" / "model.onnx"
    with pytest.raises(CheckpointError) as caught:
        Session(path)
    assert str(caught.value).endswith("onnxruntime>=9.9'")
    assert "rm" not in str(caught.value)


def test_a_device_that_no_graph_runs_on_is_still_told(folder):
    out = folder(model="1.24")
    for path in (out / "onnx").glob("*_quantized*"):
        path.unlink()
    (out / "onnx" / "model.onnx").unlink()
    with pytest.raises(FileError, match="its fp32 graphs do not run on cuda"):
        choose(out, "cuda")


def test_another_precision_where_the_device_does_not_run_the_first(folder):
    out = folder(model_quantized="1.24")
    for kind in ("", "_quantized_gqa"):
        (out / "onnx" / f"model{kind}.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"model_quantized\.onnx: needs onnxruntime 1\.24"):
        choose(out, "cuda")
    say(out / "onnx" / "model_quantized.onnx", "1.22")
    assert choose(out, "cuda")[:2] == ("int8", "portable")
    with pytest.raises(FileError, match="its fp32 graphs do not run on cuda"):
        choose(out, "cuda", "fp32")
    path = out / "onnx" / "model_quantized.onnx"
    path.rename(path.with_name("model_quantized_gqa.onnx"))
    with pytest.raises(FileError, match="its fp32, int8 graphs do not run on cuda"):
        choose(out, "cuda")


def test_the_command_says_it_in_a_line(folder, npgpt2):
    out = folder(model_gqa="1.24", model_quantized="1.30", model_quantized_gqa="1.30")
    args = ("generate", "O Romeo, ", "--model", out, "--engine", "onnx", "--max-new-tokens", "2")
    code, text, told = npgpt2(*args, "--temperature", "0")
    assert (code, bool(text)) == (0, True)
    assert told.splitlines()[0] == (
        f"npgpt2: warning: {out}/onnx/model_gqa.onnx: needs onnxruntime 1.24 or later, this is "
        "1.22.0: using model.onnx. Run: pip install 'onnxruntime>=1.24'"
    )
    code, text, told = npgpt2(*args, "--precision", "int8")
    assert (code, text, told.count("\n")) == (3, "", 1)
    assert "needs onnxruntime 1.30 or later, this is 1.22.0. Run: pip install" in told
    code, _, told = npgpt2("verify", out)
    assert code == 3
    assert "needs onnxruntime 1.24 or later" in told

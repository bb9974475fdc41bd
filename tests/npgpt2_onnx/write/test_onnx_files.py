"""The folder of an export: what is in it, what it may replace, and what is left when it fails."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import uncovered
from patience import FOREVER, PATIENCE, bounded, watched, within
from safetensors.numpy import load_file, save_file

from npgpt2 import GPT2, load_tokenizer
from npgpt2.base.errors import CheckFailed, FileError, NpGPT2Error, OptionError, WeightsWarning
from npgpt2_onnx import OnnxModel, Session, export
from npgpt2_onnx.run.exported import Exported
from npgpt2_onnx.run.session import graphs_in
from npgpt2_onnx.write import save
from npgpt2_onnx.write.verify import check_weights, verify

TINY = Path(__file__).parents[2] / "data" / "tiny"
WEIGHTS = "model.safetensors"
IDS = np.array([[84, 258, 346, 299, 11, 7]])
SMALL_FILES = {
    "config.json", "generation_config.json", "genai_config.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json", "merges.txt",
}  # fmt: skip
DEFAULT = {
    *SMALL_FILES, "onnx/model.onnx", "onnx/model_gqa.onnx", "onnx/model.onnx_data",
}  # fmt: skip
SUFFIX = {"fp32": "", "fp16": "_fp16", "int8": "_quantized", "int4": "_q4"}


# ── what the tests are made of ───────────────────────────────────────────────────────────────────


@pytest.fixture(autouse=True)
def _no_hang():
    with bounded():
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The tiny checkpoint, exported. Only to be read."""
    return export(TINY, tmp_path_factory.mktemp("exported") / "out")


@pytest.fixture(scope="session")
def all_kinds(tmp_path_factory):
    """It in every precision and kind of graph. Only to be read."""
    return export(
        TINY, tmp_path_factory.mktemp("all") / "out", precisions=list(SUFFIX),
        graphs=["portable", "gqa", "mha"], attentions=True,
    )  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the tiny checkpoint, to be changed."""
    shutil.copytree(TINY, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the export, to be damaged."""
    shutil.copytree(exported, tmp_path / "copy")
    return tmp_path / "copy"


def content(folder):
    """Every file below a folder: its name and bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def beside(path):
    return sorted(other.name for other in path.parent.iterdir())


def tensors():
    return load_file(TINY / WEIGHTS)


def stored(tensors, dtype):
    """A safetensors file; NumPy has no bfloat16, whose bits are a float32's upper half."""
    header, data = {}, b""
    for name, array in tensors.items():
        if dtype == "BF16":
            blob = (np.ascontiguousarray(array).view("<u4") >> 16).astype("<u2").tobytes()
        else:
            blob = array.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": array.shape,
                        "data_offsets": (len(data), len(data) + len(blob))}  # fmt: skip
        data += blob
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def edit_json(path, **changes):
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, **changes}))


def edit_graph(path, change):
    """Change a graph with the onnx library; its weights stay where they are."""
    model = onnx.load(path, load_external_data=False)
    change(model)
    onnx.save(model, path)


def metadata(path):
    model = onnx.load(path, load_external_data=False)
    return {entry.key: entry.value for entry in model.metadata_props}


def set_metadata(key, value):
    def change(model):
        for entry in list(model.metadata_props):
            if entry.key == key:
                model.metadata_props.remove(entry)
        if value is not None:
            model.metadata_props.add(key=key, value=value)

    return change


def set_config(**changes):
    def change(model):
        [entry] = (e for e in model.metadata_props if e.key == "config")
        entry.value = json.dumps({**json.loads(entry.value), **changes})

    return change


def set_external(name, key, value):
    """Where one initializer's numbers lie."""

    def change(model):
        [proto] = (p for p in model.graph.initializer if p.name == name)
        [entry] = (e for e in proto.external_data if e.key == key)
        entry.value = value(entry.value) if callable(value) else value

    return change


def assert_computes_as_numpy(folder, source):
    """Every float32 graph, to the last digits that float32 allows."""
    want = GPT2.from_pretrained(source)(IDS).logits
    for path in graphs_in(folder).values():
        got, _ = Session(path).forward(IDS)
        assert np.abs(got - want).max() <= 5e-6 * np.abs(want).max(), path


# ── what is in it ────────────────────────────────────────────────────────────────────────────────


def test_the_files_of_the_default(exported):
    assert set(content(exported)) == DEFAULT
    assert beside(exported) == ["out"]


def test_the_files_of_all_precisions_and_graphs(all_kinds):
    graphs = {f"onnx/model{s}{k}.onnx" for s in SUFFIX.values() for k in ("", "_gqa", "_mha")}
    data = {f"onnx/model{s}.onnx_data" for s in SUFFIX.values()}
    assert set(content(all_kinds)) == SMALL_FILES | graphs | data


@pytest.mark.parametrize("precision", SUFFIX)
@pytest.mark.parametrize("kind", ["portable", "gqa", "mha"])
def test_the_files_of_one(tmp_path, precision, kind):
    folder = export(TINY, tmp_path / "out", precisions=precision, graphs=[kind])
    stem = f"onnx/model{SUFFIX[precision]}"
    graph = stem + {"portable": "", "gqa": "_gqa", "mha": "_mha"}[kind] + ".onnx"
    assert set(content(folder)) == SMALL_FILES | {graph, f"{stem}.onnx_data"}
    genai = json.loads((folder / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["filename"] == graph
    assert genai["search"]["past_present_share_buffer"] == (kind == "gqa")


def test_no_links(all_kinds):
    for path in all_kinds.rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or path.stat().st_nlink == 1


def test_twice_gives_the_same_bytes(exported, tmp_path):
    again = export(str(TINY), str(tmp_path / "again"))
    assert content(again) == content(exported)
    assert content(export(TINY, again, force=True)) == content(exported)


def test_precisions_and_graphs_named_twice(exported, tmp_path):
    twice = export(TINY, tmp_path / "x", precisions=["fp32"] * 3, graphs=["gqa", "portable", "gqa"])
    assert set(content(twice)) == DEFAULT
    assert content(twice)["onnx/model.onnx_data"] == content(exported)["onnx/model.onnx_data"]


def test_config_json_keeps_the_checkpoints_own_keys(checkpoint, tmp_path):
    edit_json(checkpoint / "config.json", my_key={"ü": [1, None]}, n_ctx=128)
    folder = export(checkpoint, tmp_path / "out", precisions=["fp32", "int4"], graphs=["portable"])
    before = json.loads((checkpoint / "config.json").read_text())
    after = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    js = after.pop("transformers.js_config")
    assert after == before
    files = js["use_external_data_format"]
    assert files == {"model.onnx": 1, "model_q4.onnx": 1}
    for name in files:
        assert (folder / "onnx" / name).exists()
        assert (folder / "onnx" / f"{name}_data").exists()


def test_config_json_keeps_what_it_told_transformers_js(checkpoint, tmp_path):
    edit_json(checkpoint / "config.json", **{"transformers.js_config": {"dtype": "q4"}})
    folder = export(checkpoint, tmp_path / "out")
    found = json.loads((folder / "config.json").read_text())["transformers.js_config"]
    assert found["dtype"] == "q4"
    assert "use_external_data_format" in found


def test_generation_config_json(checkpoint, tmp_path):
    path = checkpoint / "generation_config.json"
    path.write_text('{"eos_token_id": [0, 7],\r\n "temperature": 0.7}')
    folder = export(checkpoint, tmp_path / "a")
    assert (folder / path.name).read_bytes() == path.read_bytes()
    genai = json.loads((folder / "genai_config.json").read_text())
    assert genai["model"]["eos_token_id"] == [0, 7]
    path.unlink()
    folder = export(checkpoint, tmp_path / "b")
    made = json.loads((folder / path.name).read_text())
    assert made == {"bos_token_id": 0, "eos_token_id": 0}


def test_genai_config_json(exported):
    found = json.loads((exported / "genai_config.json").read_text())
    model, decoder = found["model"], found["model"]["decoder"]
    assert (model["type"], model["pad_token_id"], model["context_length"]) == ("decoder", -1, 128)
    assert (model["vocab_size"], model["bos_token_id"], model["eos_token_id"]) == (512, 0, 0)
    sizes = ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers")
    assert [decoder[name] for name in sizes] == [16, 64, 4, 3]
    graph = onnx.load(exported / decoder["filename"], load_external_data=False).graph
    for side, there in (("inputs", graph.input), ("outputs", graph.output)):
        names = {n % i if "%d" in n else n for n in decoder[side].values() for i in range(3)}
        assert names == {value.name for value in there} - {"all_logits"}


def test_it_says_where_it_came_from(exported):
    digest = hashlib.sha256((TINY / WEIGHTS).read_bytes()).hexdigest()
    for (precision, kind), path in graphs_in(exported).items():
        about = metadata(path)
        assert json.loads(about["checkpoint_sha256"]) == {WEIGHTS: digest}
        assert (about["precision"], about["graph"]) == (precision, kind)
        assert json.loads(about["config"])["n_embd"] == 64


# ── vocabularies ─────────────────────────────────────────────────────────────────────────────────

HARD = [
    "", " ", "  \n\n  x", "a  b   c    ", "\t\ttabs\r\n", "it's we'll I'VE 'tis don't’s",
    "naïve café ﬁ Ⅷ ½ x² ٣٤", "汉字かなカナ한글", "مرحبا שלום", "👩‍👩‍👧‍👦 🇨🇭",
    "\u200d\ufeff\u00a0\u3000\u2028x", "\x00\x01\x7f\x85", "e\u0301 \u0600", "3.14 1,000",
    "<|endoftext|>a <|endoftext|>", "<|endoftext", "Ġ Ċ ġ", "a" * 300, " " * 300 + "x",
    "\U0010ffff", "The king, and queen; the KING'S!",
]  # fmt: skip


def keep_vocabulary(folder, *names):
    """Leave a checkpoint only these files of its vocabulary."""
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        if name not in names:
            (folder / name).unlink()
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("tokenizer.json",),
        ("tokenizer.json", "tokenizer_config.json"),
        ("vocab.json", "merges.txt"),
        ("vocab.json", "merges.txt", "tokenizer_config.json"),
    ],
    ids="+".join,
)
def test_a_vocabulary_comes_along(checkpoint, tmp_path, names):
    tokenizers = pytest.importorskip("tokenizers", reason="the extra 'tokenizers' is not installed")
    folder = export(keep_vocabulary(checkpoint, *names), tmp_path / "out", graphs=["gqa"])
    for name in names:
        assert (folder / name).read_bytes() == (checkpoint / name).read_bytes()
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours, exported = load_tokenizer(checkpoint), load_tokenizer(folder)
    for text in HARD:
        ids = ours.encode(text)
        assert exported.encode(text) == ids, text
        assert library.encode(text).ids == ids, text
        assert library.decode(ids, skip_special_tokens=False) == ours.decode(ids)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|endoftext|>"


def test_gpt2s_own_vocabulary(shared, tmp_path):
    """tokenizer.json is made of vocab.json and merges.txt: id for id as ours."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra 'tokenizers' is not installed")
    from npgpt2_onnx.write.clients import tokenizer_json

    vocabulary = shared("gpt2-vocabulary")
    library = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(vocabulary)))
    ours = load_tokenizer(vocabulary)
    for text in HARD:
        assert library.encode(text).ids == ours.encode(text), text
    assert library.encode("<|endoftext|>").ids == [50256]


def test_the_context_is_told_to_the_tokenizer(checkpoint, tmp_path):
    folder = export(keep_vocabulary(checkpoint, "vocab.json", "merges.txt"), tmp_path / "out")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 128  # as n_positions


def test_tokens_that_were_added(checkpoint, tmp_path):
    keep_vocabulary(checkpoint, "vocab.json", "merges.txt")
    edit_json(checkpoint / "added_tokens.json", **{"<|user|>": 512})
    folder = export(checkpoint, tmp_path / "out")
    text = "a<|user|> b<|endoftext|>"
    assert 512 in load_tokenizer(checkpoint).encode(text)
    assert load_tokenizer(folder).encode(text) == load_tokenizer(checkpoint).encode(text)


def test_a_space_before_the_first_word(checkpoint, tmp_path):
    keep_vocabulary(checkpoint, "vocab.json", "merges.txt")
    edit_json(checkpoint / "tokenizer_config.json", add_prefix_space=True)
    folder = export(checkpoint, tmp_path / "out")
    for text in HARD:
        assert load_tokenizer(folder).encode(text) == load_tokenizer(checkpoint).encode(text), text


def test_no_token_is_invented(checkpoint, tmp_path):
    """A client would add it to the vocabulary, with an id that the model has not."""
    keep_vocabulary(checkpoint, "vocab.json", "merges.txt")
    vocab = json.loads((checkpoint / "vocab.json").read_text())
    vocab["<|end|>"] = vocab.pop("<|endoftext|>")
    (checkpoint / "vocab.json").write_text(json.dumps(vocab))
    folder = export(checkpoint, tmp_path / "out")
    assert "<|endoftext|>" not in (folder / "tokenizer_config.json").read_text()


def test_berts_vocabulary(checkpoint, tmp_path):
    pytest.importorskip("tokenizers", reason="the extra 'tokenizers' is not installed")
    keep_vocabulary(checkpoint)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##s"]
    (checkpoint / "vocab.txt").write_text("\n".join(words) + "\n")
    folder = export(checkpoint, tmp_path / "out")
    assert load_tokenizer(folder).encode("a as") == load_tokenizer(checkpoint).encode("a as")


def test_no_vocabulary(checkpoint, tmp_path):
    """The graphs are right without one."""
    folder = export(keep_vocabulary(checkpoint), tmp_path / "out")
    assert not {name for name in content(folder) if name.startswith(("tok", "voc", "mer"))}
    assert_computes_as_numpy(folder, checkpoint)
    with pytest.raises(FileError, match="has no vocabulary"):
        OnnxModel.from_pretrained(folder).encode("a")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("vocab.json", b"{", "vocab.json: not JSON"),
        ("merges.txt", b"#version: 0.2\na b c\n", "merges.txt: line 2"),
        ("merges.txt", b"\xff\xfe", "merges.txt: not UTF-8 at byte 0"),
        ("merges.txt", None, "merges.txt: No such file or directory"),
    ],
)
def test_a_damaged_vocabulary(checkpoint, tmp_path, name, data, words):
    keep_vocabulary(checkpoint, "vocab.json", "merges.txt")
    if data is None:
        (checkpoint / name).unlink()
    else:
        (checkpoint / name).write_bytes(data)
    with pytest.raises(NpGPT2Error, match=words):
        export(checkpoint, tmp_path / "out")
    assert beside(tmp_path / "out") == ["model"]


# ── checkpoints of all kinds ─────────────────────────────────────────────────────────────────────


def shards(folder):
    (folder / WEIGHTS).unlink()
    all_of_them, where = tensors(), {}
    for i, file in enumerate(("one.safetensors", "two.safetensors", "three.safetensors")):
        part = {name: all_of_them[name] for name in list(all_of_them)[i::3]}
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    edit_json(folder / f"{WEIGHTS}.index.json", weight_map=where)


def heads(scale, tied=True, keep=True):
    """A checkpoint with an lm_head.weight: wte's, scaled."""

    def change(folder):
        stored_ = tensors()
        [wte] = (name for name in stored_ if name.endswith("wte.weight"))
        stored_["lm_head.weight"] = stored_[wte] * np.float32(scale)
        if not keep:
            del stored_[wte]
        save_file(stored_, folder / WEIGHTS)
        edit_json(folder / "config.json", tie_word_embeddings=tied)

    return change


def dtypes(dtype):
    return lambda folder: (folder / WEIGHTS).write_bytes(stored(tensors(), dtype))


def odd_start(folder):
    """Tensors whose numbers lie at odd bytes: legal."""
    data = stored(tensors(), "F32")
    length = int.from_bytes(data[:8], "little")
    pad = 1 + -length % 2
    text = (length + pad).to_bytes(8, "little") + data[8 : 8 + length] + b" " * pad
    (folder / WEIGHTS).write_bytes(text + data[8 + length :])


def mask_buffers(folder):
    more = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 128, 128), np.float32)) for i in range(3)}
    save_file(tensors() | more, folder / WEIGHTS)


def links(folder):
    """As the hub's cache has it."""
    folder.rename(folder.with_name("blobs"))
    folder.mkdir()
    for path in folder.with_name("blobs").iterdir():
        (folder / path.name).symlink_to(path)


CHECKPOINTS = {
    "float16": dtypes("F16"),
    "bfloat16": dtypes("BF16"),
    "float64": dtypes("F64"),
    "shards": shards,
    "its own head": heads(1.5),
    "its own head, untied": heads(1.5, tied=False),
    "the same head twice": heads(1),
    "only a head": heads(1, keep=False),
    "numbers at odd bytes": odd_start,
    "mask buffers": mask_buffers,
    "links": links,
}


@pytest.mark.parametrize("change", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint(checkpoint, tmp_path, change):
    change(checkpoint)
    folder = export(checkpoint, tmp_path / "out", graphs=["portable", "gqa"])
    assert_computes_as_numpy(folder, checkpoint)
    model = GPT2.from_pretrained(checkpoint)
    for row in check_weights(Exported.open(graphs_in(folder)["fp32", "gqa"]), model):
        assert row.error == 0, row
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] == model.config.tie_word_embeddings
    for path in folder.rglob("*"):
        assert not path.is_symlink()


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("precision", SUFFIX)
def test_weights_that_are_no_numbers(checkpoint, tmp_path, number, precision):
    """Nothing can be proved with them; the tensor is named."""
    weights = tensors()
    [name] = (name for name in weights if name.endswith("h.1.mlp.c_fc.weight"))
    weights[name][3, 4] = number
    save_file(weights, checkpoint / WEIGHTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", WeightsWarning)
        with pytest.raises(NpGPT2Error, match=r"h\.1\.mlp\.c_fc\.weight"):
            export(checkpoint, tmp_path / "out", precisions=precision)
    assert beside(tmp_path / "out") == ["model"]


def test_weights_that_float16_does_not_hold(checkpoint, tmp_path):
    weights = tensors()
    [name] = (name for name in weights if name.endswith("h.1.mlp.c_fc.weight"))
    weights[name][3, 4] = 1e6
    save_file(weights, checkpoint / WEIGHTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(NpGPT2Error, match=r"h\.1\.mlp\.c_fc\.weight"):
            export(checkpoint, tmp_path / "out", precisions="fp16")
    assert beside(tmp_path / "out") == ["model"]


def test_weights_of_zero(checkpoint, tmp_path):
    save_file({n: np.zeros_like(a) for n, a in tensors().items()}, checkpoint / WEIGHTS)
    folder = export(checkpoint, tmp_path / "out", precisions=list(SUFFIX))
    assert all(row.good for row in verify(graphs_in(folder), quick=True))


# ── what it may replace ──────────────────────────────────────────────────────────────────────────


def test_an_export_is_replaced_only_by_force(exported, copy):
    before = content(copy)
    with pytest.raises(
        FileError, match=r"copy: already exists.*To replace it, use --force or force=True"
    ):
        export(TINY, copy, precisions="int8")
    assert content(copy) == before
    export(TINY, copy, precisions="int8", force=True)
    assert set(content(copy)) == {
        *SMALL_FILES, "onnx/model_quantized.onnx", "onnx/model_quantized_gqa.onnx",
        "onnx/model_quantized.onnx_data",
    }  # fmt: skip
    assert beside(copy) == ["copy"]


def wrong_graph(monkeypatch):
    """A graph whose arithmetic is off: an epsilon."""
    build = save.build

    def wrong(*args):
        model = build(*args)
        node = next(n for n in model.graph.node if "LayerNorm" in n.op_type)
        [epsilon] = (a for a in node.attribute if a.name == "epsilon")
        epsilon.f = 1e-2
        return model

    monkeypatch.setattr(save, "build", wrong)


def wrong_weights(monkeypatch):
    """A number that is off in the file of weights."""
    write = save.write

    def wrong(file, *args):
        write(file, *args)
        file.seek(70_000)
        file.write(b"\x40")

    monkeypatch.setattr(save, "write", wrong)


def broken_graph(monkeypatch):
    """A graph that ONNX Runtime does not load."""
    build = save.build

    def wrong(*args):
        model = build(*args)
        model.graph.node[0].op_type = "NoSuchOperator"
        return model

    monkeypatch.setattr(save, "build", wrong)


@pytest.mark.parametrize("kind", ["portable", "gqa", "mha"])
@pytest.mark.parametrize("wrong", [wrong_graph, wrong_weights, broken_graph])
def test_one_that_fails_its_proof_leaves_everything_as_it_was(
    checkpoint, copy, tmp_path, monkeypatch, wrong, kind
):
    before, stamps = content(copy), {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
    wrong(monkeypatch)
    for target, force in ((copy, True), (tmp_path / "new", False)):
        with pytest.raises(NpGPT2Error, match=r"model.*\.onnx") as caught:
            export(TINY, target, graphs=[kind], force=force)
        assert isinstance(caught.value, CheckFailed) == (wrong is not broken_graph)
    assert content(copy) == before
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == stamps
    if wrong is not wrong_weights:
        with pytest.raises(NpGPT2Error):
            export(checkpoint, share_weights=True, graphs=[kind])
    assert content(checkpoint) == content(TINY)
    assert beside(copy) == ["copy", "model"]
    export(TINY, tmp_path / "new", graphs=[kind], proof=False)  # as asked
    assert beside(copy) == ["copy", "model", "new"]


def add(name, data="mine"):
    def change(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(data)

    return change


def only(name):
    def change(folder):
        shutil.rmtree(folder)
        folder.mkdir()
        add(name)(folder)

    return change


# Folders that hold what no export writes: --force would delete it.
PRECIOUS = {
    "no export": only("thesis.txt"),
    "no export, an empty graph": only("onnx/other.onnx"),
    "a checkpoint": add(WEIGHTS),
    "shards": add(f"{WEIGHTS}.index.json"),
    "PyTorch's weights": add("pytorch_model.bin"),
    "TensorFlow's weights": add("tf_model.h5"),
    "notes": add("notes.txt"),
    "a hidden file": add(".git/HEAD"),
    "notes beside the graphs": add("onnx/notes.txt"),
    "another's graph": add("onnx/decoder_model_merged.onnx"),
    "a checkpoint in a folder": lambda folder: shutil.copytree(TINY, folder / "model"),
}


@pytest.mark.parametrize("change", PRECIOUS.values(), ids=PRECIOUS)
def test_what_no_export_wrote_is_not_deleted(copy, change):
    change(copy)
    before = content(copy)
    with pytest.raises(FileError, match="copy: "):
        export(TINY, copy, force=True)
    assert content(copy) == before
    assert beside(copy) == ["copy"]


def test_a_refusal_does_not_advise_what_was_given(copy):
    """With --force already given, 'To replace it, use --force or force=True' is no way out."""
    add(WEIGHTS)(copy)
    with pytest.raises(FileError) as caught:
        export(TINY, copy, force=True)
    assert "To replace it, use --force or force=True" not in str(caught.value)


def test_the_source_inside_the_target(copy):
    """Replacing the one would delete the other."""
    source = copy / "model"
    shutil.copytree(TINY, source)
    with pytest.raises(FileError):
        export(source, copy, force=True)
    assert content(source) == content(TINY)


KINDS = {
    "a file": Path.touch,
    "a FIFO": os.mkfifo,
    "a link to an export": lambda path: path.symlink_to("copy"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_what_is_no_folder_is_not_replaced(copy, tmp_path, make):
    before = content(copy)
    make(tmp_path / "out")
    for force in (False, True):
        with pytest.raises(
            FileError, match="out: is not a folder, expected a folder or a new path"
        ):
            export(TINY, tmp_path / "out", force=force)
    assert content(copy) == before
    assert beside(copy) == ["copy", "out"]


def test_onto_the_checkpoint_itself(checkpoint, monkeypatch):
    checkpoint.with_name("link").symlink_to("model")
    monkeypatch.chdir(checkpoint)
    before = content(checkpoint)
    for target in (checkpoint, ".", f"{checkpoint}/", "../model/../link", checkpoint / "x" / ".."):
        for force in (False, True):
            with pytest.raises(FileError, match=r"is the checkpoint itself.*--share-weights"):
                export(checkpoint, target, force=force)
    assert content(checkpoint) == before
    assert beside(checkpoint) == ["link", "model"]


@pytest.mark.parametrize("out", ["", None])
def test_no_folder_was_named(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NpGPT2Error, match=r"out|no folder"):
        export(TINY, out)
    assert os.listdir(tmp_path) == []
    assert os.path.samefile(tmp_path, ".")


# ── faults ───────────────────────────────────────────────────────────────────────────────────────

Usage = namedtuple("Usage", "total used free")


def test_a_disk_without_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 0, 10_000))
    with pytest.raises(FileError) as caught:
        export(TINY, tmp_path / "to" / "come", precisions=["fp32", "int8"])
    needed = 779_008 + 233_216  # as the files of weights have it
    assert str(caught.value) == f"{tmp_path}: no space: needs {needed:,} bytes, free 10,000"
    assert beside(tmp_path / "x") == []


DRIVER = """
import os, resource, signal, sys, threading, time
from pathlib import Path
from npgpt2 import cli; from npgpt2.base import files
from npgpt2_onnx.write import save

def wait(after):
    def slow(*args, **options):
        found = after(*args, **options)
        print("ready", file=sys.stderr, flush=True)
        time.sleep(forever)
        return found
    return slow

class Endless:
    __enter__, __exit__ = lambda self: self, lambda *_: None
    def read(self, size):
        if done.is_set() and not said.is_set():
            said.set()
            print("ready", file=sys.stderr, flush=True)
        time.sleep(0.001)
        return b"x"

forever, fault, *argv = int(sys.argv[1]), *sys.argv[2:]
if fault == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size, *argv = argv
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size),) * 2)
elif fault == "write":  # of the weights
    save.write = wait(save.write)
elif fault == "hash":
    done, said, write, opened = threading.Event(), threading.Event(), save.write, Path.open
    save.write = lambda *args: (write(*args), done.set())
    aside = lambda: threading.current_thread() is not threading.main_thread()
    Path.open = lambda *args, **how: Endless() if aside() else opened(*args, **how)
elif fault == "prove":
    save.verify = wait(save.verify)
elif fault == "rename":
    Path.rename = wait(Path.rename)
elif fault == "nobody" and os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
sys.exit(cli.main(argv))
"""


def drive(*args, **options):
    """The command in a process of its own, with a fault."""
    env = uncovered()
    argv = [sys.executable, "-c", DRIVER, *map(str, [FOREVER, *args])]
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, env=env, **options)
    return watched(process)


@pytest.mark.parametrize("size", [0, 1_000, 300_000, 779_000])
def test_a_disk_that_is_full(copy, size):
    """As a limit on the size of files: nothing at all, small files, weights."""
    before = content(copy)
    with drive("limit", size, "export", TINY, "-o", copy, "--force") as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (4, "")
    assert err.startswith("npgpt2: error: ")
    assert err.endswith("File too large\n")
    assert err.count("\n") == 1
    assert content(copy) == before
    assert beside(copy) == ["copy"]


ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.name)
@pytest.mark.parametrize("when", ["write", "prove", "rename"])
def test_an_end_in_the_middle(copy, end, when):
    before = content(copy)
    with drive(when, "export", TINY, "-o", copy, "--force", "--precision", "int8") as process:
        assert process.stderr.readline() == "ready\n"
        process.send_signal(end)
        out, err = process.communicate()
    assert (out, err.strip()) == ("", "")
    if end != signal.SIGHUP:  # whose ending by the system is as good
        assert process.returncode == ENDS[end]
    assert content(copy) == before
    assert beside(copy) == ["copy"]


def test_control_c_does_not_wait_for_what_nobody_wants(copy):
    """The hash of the checkpoint: seconds for a large one, and here of one that has no end."""
    with drive("hash", "export", TINY, "-o", copy, "--force") as process:
        assert process.stderr.readline() == "ready\n"  # all is written, and the hash waited for
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130


@pytest.mark.parametrize("when", ["write", "rename"])
def test_a_kill_and_a_second_writer(exported, copy, when):
    before = content(copy)
    with drive(when, "export", TINY, "-o", copy, "--force") as process:
        assert process.stderr.readline() == "ready\n"
        if when == "write":
            with pytest.raises(FileError, match=f"process {process.pid} is writing there"):
                export(TINY, copy, force=True)
        process.send_signal(signal.SIGKILL)
    if when == "write":
        assert content(copy) == before
    with pytest.raises(FileError, match="copy: already exists"):
        export(TINY, copy)
    assert content(copy) == before
    export(TINY, copy, force=True)
    assert content(copy) == content(exported)
    assert beside(copy) == ["copy"]


def test_a_folder_one_may_not_write_in(exported):
    """Root may: then it is another user who tries. pytest's own folders are hidden from others."""
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        shutil.copytree(TINY, top / "model")
        shutil.copytree(exported, top / "parent" / "copy")
        before = content(top)
        for folder, mode in ((top, 0o755), (top / "parent", 0o555), (top / "model", 0o555)):
            folder.chmod(mode)
        for argv in (
            [top / "model", "-o", top / "parent" / "copy", "--force"],
            [top / "model", "-o", top / "parent" / "new"],
            [top / "model", "-o", top / "parent" / "new" / "deep"],
            [top / "model", "--share-weights"],
        ):
            with drive("nobody", "export", *argv) as process:
                out, err = process.communicate()
            assert (process.returncode, out) == (4, "")
            assert err.startswith(f"npgpt2: error: {top}")
            assert "Permission denied" in err
            assert err.count("\n") == 1
        for folder in (top / "parent", top / "model"):
            folder.chmod(0o755)
        assert content(top) == before
        assert beside(top / "x") == ["model", "parent"]


@pytest.mark.parametrize("share", [False, True])
def test_files_are_on_the_disk(checkpoint, tmp_path, monkeypatch, share):
    synced = set()

    def record(handle, real=os.fsync):
        synced.add(os.fstat(handle).st_ino)
        real(handle)

    monkeypatch.setattr(os, "fsync", record)
    folder = export(checkpoint, None if share else tmp_path / "out", share_weights=share)
    made = [path for path in folder.rglob("*") if not (share and (TINY / path.name).exists())]
    assert len(made) == 3 if share else len(made) == 11
    for path in (folder, *made):
        assert path.stat().st_ino in synced, path


# ── weights that are shared with the checkpoint ──────────────────────────────────────────────────

SHARED_FILES = {"model.onnx", "model_gqa.onnx", "model_mha.onnx", "genai_config.json"}


@pytest.mark.parametrize(
    "change",
    [
        None,
        shards,
        heads(1.5),
        heads(1),
        heads(1, keep=False),
        odd_start,
        mask_buffers,
        lambda folder: keep_vocabulary(folder),
    ],
    ids=["as it is", "shards", "its own head", "the same head twice", "only a head",
         "numbers at odd bytes", "mask buffers", "no vocabulary"],
)  # fmt: skip
def test_shared_weights(checkpoint, change):
    if change:
        change(checkpoint)
    before = content(checkpoint)
    folder = export(checkpoint, share_weights=True, graphs=["portable", "gqa", "mha"])
    after = content(checkpoint)
    assert folder == checkpoint
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == SHARED_FILES
    assert sum(len(after[name]) for name in SHARED_FILES) < 1_000_000
    assert_computes_as_numpy(checkpoint, checkpoint)
    genai = json.loads((checkpoint / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["filename"] == "model_gqa.onnx"


def test_shared_weights_and_the_folder_named_as_well(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    export(checkpoint, ".", share_weights=True, graphs="portable")
    export(".", checkpoint, share_weights=True, graphs="portable", force=True)
    assert content(checkpoint).keys() - content(TINY).keys() == {"model.onnx", "genai_config.json"}


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (dtypes("F16"), {}, "is F16 in the checkpoint, expected F32. Leave --share-weights out"),
        (dtypes("BF16"), {}, "is BF16 in the checkpoint"),
        (dtypes("F64"), {}, "is F64 in the checkpoint"),
        (links, {}, r"model\.safetensors is a link .* Copy the folder first"),
        (None, {"precisions": "fp16"}, "weights are float32. Leave --precision out"),
        (None, {"precisions": ["fp32", "int4"]}, "weights are float32"),
        (None, {"out": "elsewhere"}, "got elsewhere, expected .*model"),
        (None, {"out": ""}, "out|got"),
    ],
)
def test_weights_that_cannot_be_shared(checkpoint, tmp_path, monkeypatch, change, options, words):
    monkeypatch.chdir(tmp_path)
    if change:
        change(checkpoint)
    before = content(tmp_path)
    with pytest.raises(OptionError, match=words):
        export(checkpoint, share_weights=True, **options)
    assert content(tmp_path) == before


def test_graphs_that_are_there_are_replaced_only_by_force(checkpoint):
    export(checkpoint, share_weights=True, graphs="portable")
    before = content(checkpoint)
    with pytest.raises(
        FileError, match=r"model\.onnx: already exists\. To replace it, use --force or force=True"
    ):
        export(checkpoint, share_weights=True)
    assert content(checkpoint) == before
    export(checkpoint, share_weights=True, graphs="portable", force=True)
    assert content(checkpoint) == before


def test_a_failure_in_the_middle_of_shared_graphs(checkpoint):
    """A folder in the place of one: no other is replaced first."""
    (checkpoint / "model.onnx").write_bytes(b"old")
    (checkpoint / "model_gqa.onnx").mkdir()
    with pytest.raises(FileError, match=r"model_gqa\.onnx"):
        export(checkpoint, share_weights=True, force=True)
    assert content(checkpoint) == {**content(TINY), "model.onnx": b"old"}


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=lambda end: end.name)
def test_an_end_in_the_middle_of_shared_graphs(checkpoint, end):
    with drive("prove", "export", checkpoint, "--share-weights") as process:
        assert process.stderr.readline() == "ready\n"
        process.send_signal(end)
        out, err = process.communicate()
    assert (process.returncode, out, err.strip()) == (ENDS[end], "", "")
    assert content(checkpoint) == content(TINY)


@pytest.mark.parametrize("what", ["other offsets", "other size", "gone"])
def test_a_checkpoint_that_changed_under_its_graphs(checkpoint, what):
    """Saved again in another order, every tensor lies elsewhere: the graphs would read anything."""
    export(checkpoint, share_weights=True)
    path = checkpoint / WEIGHTS
    if what == "other offsets":
        weights = tensors()
        path.write_bytes(stored({name: weights[name] for name in reversed(weights)}, "F32"))
    elif what == "other size":
        path.write_bytes(stored(tensors(), "F16"))
    else:
        path.unlink()
    with pytest.raises(NpGPT2Error, match=WEIGHTS):
        OnnxModel.from_pretrained(checkpoint)


def test_another_tools_graphs_in_the_checkpoints_folder(checkpoint, tmp_path):
    """Many a repository has an onnx folder of its own: what was just exported is meant."""
    (checkpoint / "onnx").mkdir()
    one = onnx.helper.make_tensor_value_info
    x, y = (one(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    theirs = checkpoint / "onnx" / "model.onnx"
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), theirs)
    before = theirs.read_bytes()
    export(checkpoint, share_weights=True, triton=tmp_path / "triton")
    assert theirs.read_bytes() == before
    served = tmp_path / "triton" / "gpt2" / "1" / "model.onnx"
    assert served.read_bytes() == (checkpoint / "model.onnx").read_bytes()
    with suppress(NpGPT2Error):  # that it is another's is as good an answer
        assert all(row.good for row in verify(graphs_in(checkpoint)))


# ── Triton ───────────────────────────────────────────────────────────────────────────────────────


def test_triton(exported, tmp_path):
    models = tmp_path / "models"
    export(TINY, tmp_path / "out", precisions=["fp32", "int4"], triton=models)
    assert set(content(models)) == {
        "gpt2/config.pbtxt", "gpt2/1/model.onnx", "gpt2/1/model.onnx_data",
        "gpt2_q4/config.pbtxt", "gpt2_q4/1/model.onnx", "gpt2_q4/1/model_q4.onnx_data",
    }  # fmt: skip
    got, _ = Session(models / "gpt2" / "1" / "model.onnx").forward(IDS)
    want = GPT2.from_pretrained(TINY)(IDS).logits
    assert np.abs(got - want).max() <= 5e-6 * np.abs(want).max()
    text = (models / "gpt2" / "config.pbtxt").read_text()
    session = Session(models / "gpt2" / "1" / "model.onnx").ort
    for value in (*session.get_inputs(), *session.get_outputs()):
        assert f'name: "{value.name}"' in text
    assert "max_batch_size: 0" in text


def test_triton_beside_shared_weights(checkpoint, tmp_path):
    export(checkpoint, share_weights=True, triton=tmp_path / "models")
    Session(tmp_path / "models" / "gpt2" / "1" / "model.onnx").forward(IDS)


def test_a_triton_model_that_is_there(tmp_path):
    """Asked before the export, which may take minutes, is written."""
    models = tmp_path / "models"
    export(TINY, tmp_path / "one", triton=models)
    before = content(models)
    with pytest.raises(FileError, match="gpt2: already exists"):
        export(TINY, tmp_path / "two", triton=models)
    assert content(models) == before
    assert beside(models) == ["models", "one"]
    export(TINY, tmp_path / "two", triton=models, force=True)
    assert content(models) == before


def test_other_versions_of_a_triton_model_stay(tmp_path):
    models = tmp_path / "models"
    export(TINY, tmp_path / "one", triton=models)
    (models / "gpt2" / "2").mkdir()
    (models / "gpt2" / "2" / "model.onnx").write_bytes(b"theirs")
    with suppress(FileError):
        export(TINY, tmp_path / "one", triton=models, force=True)
    assert (models / "gpt2" / "2" / "model.onnx").read_bytes() == b"theirs"


# ── folders that are damaged ─────────────────────────────────────────────────────────────────────


def data(change):
    """Damage of the file of weights."""
    return lambda folder: change(folder / "onnx" / "model.onnx_data")


def graphs(change):
    """Damage of both graphs."""

    def both(folder):
        for path in (folder / "onnx").glob("*.onnx"):
            change(path)

    return both


def edited(change):
    return graphs(lambda path: edit_graph(path, change))


def cut(size):
    return lambda path: os.truncate(path, size)


def replaced(make):
    def change(path):
        path.unlink()
        make(path)

    return change


def written(text):
    return lambda path: path.write_bytes(text)


LINE = "onnx/model.*onnx"
DAMAGES = {
    "no data": (data(Path.unlink), LINE),
    "data cut off": (data(cut(700_000)), LINE),
    "empty data": (data(cut(0)), LINE),
    "a folder for data": (data(replaced(Path.mkdir)), LINE),
    "a FIFO for data": (data(replaced(os.mkfifo)), LINE),
    "an empty graph": (graphs(cut(0)), LINE),
    "half a graph": (graphs(cut(9_000)), LINE),
    "noise": (graphs(written(np.random.default_rng(0).bytes(5_000))), LINE),
    "a text": (graphs(written(b"hello world, this is text\n")), LINE),
    "a web page": (graphs(written(b"<!DOCTYPE html><html></html>")), LINE),
    "a Git LFS pointer": (graphs(written(b"version https://git-lfs.github.com/spec/v1\n")), LINE),
    "no metadata": (edited(lambda model: model.ClearField("metadata_props")), LINE),
    "no config": (edited(set_metadata("config", None)), LINE),
    "no precision": (edited(set_metadata("precision", None)), LINE),
    "no kind": (edited(set_metadata("graph", None)), LINE),
    "an unknown precision": (edited(set_metadata("precision", "fp99")), LINE),
    "an unknown kind": (edited(set_metadata("graph", "foo")), LINE),
    "another precision": (edited(set_metadata("precision", "fp16")), LINE),
    "a config that is no JSON": (edited(set_metadata("config", "{")), LINE),
    "a config that is a list": (edited(set_metadata("config", "[]")), LINE),
    "a config that is null": (edited(set_metadata("config", "null")), LINE),
    "more layers": (edited(set_config(n_layer=4)), LINE),
    "fewer layers": (edited(set_config(n_layer=2)), LINE),
    "other heads": (edited(set_config(n_head=8)), LINE),
    "past the end": (edited(set_external("wte.weight", "offset", "100000000")), LINE),
    "before the beginning": (edited(set_external("wte.weight", "offset", "-4096")), LINE),
    "no offset": (edited(set_external("wte.weight", "offset", "x")), LINE),
    "another length": (edited(set_external("wte.weight", "length", "5")), LINE),
    "data elsewhere": (edited(set_external("wte.weight", "location", "../config.json")), LINE),
    "data at the root": (edited(set_external("wte.weight", "location", "/etc/hostname")), LINE),
    "data of another name": (edited(set_external("wte.weight", "location", "none")), LINE),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder(copy, capfd, damage, words):
    """One of our exceptions, at once, and nothing else on standard error."""
    damage(copy)
    for use in (
        lambda: verify(graphs_in(copy)),
        lambda: OnnxModel.from_pretrained(copy).generate("KING", max_new_tokens=3, temperature=0),
    ):

        def refused(use=use):
            with pytest.raises(NpGPT2Error, match=words):
                use()

        within(2, refused)
    assert capfd.readouterr() == ("", "")


# A loop over a billion takes more of the processor than it gets here.
LAYERS = """
import resource, sys
from npgpt2.base.errors import NpGPT2Error
from npgpt2_onnx import OnnxModel
from npgpt2_onnx.run.session import graphs_in
from npgpt2_onnx.write.verify import verify
resource.setrlimit(resource.RLIMIT_AS, (6 << 30,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
try:
    if sys.argv[2] == "verify":
        verify(graphs_in(__import__("pathlib").Path(sys.argv[1])))
    else:
        OnnxModel.from_pretrained(sys.argv[1]).generate("KING", max_new_tokens=2)
except NpGPT2Error as error:
    print(error)
"""


@pytest.mark.parametrize("use", ["verify", "generate"])
def test_a_graph_that_claims_a_billion_layers(copy, use):
    edited(set_config(n_layer=10**9))(copy)
    argv = [sys.executable, "-c", LAYERS, copy, use]
    env = uncovered()
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=PATIENCE)
    assert "onnx/model" in done.stdout, (done.returncode, done.stderr)


def test_folders_without_graphs(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (checkpoint, tmp_path / "empty"):
        with pytest.raises(FileError, match=r"has no ONNX graph.* npgpt2 export MODEL"):
            OnnxModel.from_pretrained(folder)


def test_a_folder_that_is_not_there(tmp_path, exported):
    with pytest.raises(FileError, match="none: no such folder"):
        OnnxModel.from_pretrained(tmp_path / "none")
    with pytest.raises(FileError, match=r"model\.onnx: is a file"):
        OnnxModel.from_pretrained(exported / "onnx" / "model.onnx")


def test_a_graph_that_is_no_file(copy):
    """What is not a regular file is as if it were not there."""
    for path in (copy / "onnx").glob("*.onnx"):
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(FileError, match="has no ONNX graph"):
        OnnxModel.from_pretrained(copy)


# ── the optimized graph that is kept ─────────────────────────────────────────────────────────────


def greedy(folder, **options):
    model = OnnxModel.from_pretrained(folder, **options)
    [text] = model.generate("KING", max_new_tokens=8, temperature=0)
    return text.text


@pytest.mark.parametrize("precision", SUFFIX)
def test_an_optimized_graph_opens_again(all_kinds, tmp_path, precision):
    want = greedy(all_kinds, precision=precision)
    for _ in range(3):
        assert greedy(all_kinds, precision=precision, cache_dir=tmp_path / "cache") == want
    assert len(list((tmp_path / "cache").rglob("*.onnx"))) == 1
    assert not list((tmp_path / "cache").rglob(".*"))


@pytest.mark.parametrize(
    "damage", [cut(0), cut(100), written(b"text")], ids=["empty", "cut", "text"]
)
def test_a_damaged_optimized_graph_is_made_again(exported, tmp_path, damage):
    want = greedy(exported, cache_dir=tmp_path)
    for path in tmp_path.rglob("*.onnx"):
        damage(path)
    assert greedy(exported, cache_dir=tmp_path) == want


def test_an_optimized_graph_of_weights_that_changed(copy, tmp_path):
    """Other weights, another graph."""
    cache = tmp_path / "cache"
    before = greedy(copy, cache_dir=cache)
    with (copy / "onnx" / "model.onnx_data").open("r+b") as file:
        file.seek(0)
        file.write(np.random.default_rng(0).normal(size=32_768).astype("<f4").tobytes())
    changed = greedy(copy)
    assert changed != before
    assert greedy(copy, cache_dir=cache) == changed


def test_a_folder_for_optimized_graphs_that_cannot_be(exported, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FileError, match=f"{folder}: "):
            greedy(exported, cache_dir=folder)

"""The site in which a GPT-2 runs in the browser: what lies in it, and what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cases import SMALL
from onnx_cases import save
from web_packages import FILES, install

from npgpt2 import GPT2, GPT2Config
from npgpt2.base.errors import (
    CheckFailed,
    ConfigError,
    FileError,
    MissingPackage,
    OptionError,
    TokenizerError,
)
from npgpt2.model.params import named_parameters
from npgpt2.model.taps import tap_names
from npgpt2.tokenizer.load import load_tokenizer
from npgpt2_onnx.run.session import Session
from npgpt2_onnx.write import site as module
from npgpt2_onnx.write.site import site

INSTALL = "npm install onnxruntime-web@1.30.0 @huggingface/tokenizers@0.2.0"
FETCHED = {"worker.mjs": b"// worker\n", **FILES}
MODEL = {f"model/{name}" for name in (
    "model.onnx", "model.onnx_data", "lens.onnx", "config.json", "tokenizer.json",
    "tokenizer_config.json", "pieces.json",
)}  # fmt: skip


@pytest.fixture(autouse=True)
def _worker(tmp_path, monkeypatch):
    """A worker that does nothing."""
    web = tmp_path / "web"
    web.mkdir()
    (web / "worker.mjs").write_bytes(FETCHED["worker.mjs"])
    monkeypatch.setattr(module, "WEB", web)


@pytest.fixture
def modules(tmp_path):
    """npm's folder, with the two packages as far as a site needs them."""
    return install(tmp_path / "npm" / "node_modules")


def page(config):
    return f"<!doctype html>\n<p>{config.n_layer} layers – </p>\n"


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
            if p.is_file()}  # fmt: skip


@pytest.fixture
def made(tiny, tmp_path, modules):
    return site(tiny, tmp_path / "site", page, node_modules=modules)


# ── what lies in it ──────────────────────────────────────────────────────────────────────────────


def test_the_files(made, tmp_path):
    assert made == tmp_path / "site"
    found = files(made)
    own = {"index.html", "site.json", "vendor/LICENSES.txt"}
    assert found.keys() == {*FETCHED, *MODEL, *own}
    assert {name: found[name] for name in FETCHED} == FETCHED
    assert found["index.html"].decode() == "<!doctype html>\n<p>3 layers – </p>\n"
    fetched = [name for name in (*FETCHED, *MODEL) if not name.endswith(".mjs")]
    sizes = {name: len(found[name]) for name in fetched}
    about = json.loads(found["site.json"])
    assert about == {"bytes": sum(sizes.values()), "files": sizes}


def test_the_graph_puts_out_every_tap(made, model):
    session = Session(made / "model" / "model.onnx")
    outputs = [value.name for value in session.ort.get_outputs()]
    assert outputs[0] == "logits"
    assert outputs[1 + 2 * 3 :] == [tap.name for tap in tap_names(model.config)[:-1]]
    domains = {d.domain for d in onnx.load(session.path, load_external_data=False).opset_import}
    assert domains == {""}  # browsers have these operators


def test_the_lens_reads_the_graphs_weights(made, model):
    shown = {}
    logits = model([[5, 6, 7]], tap=lambda name, x: shown.update({name: x.copy()})).logits[0]
    lens = ort.InferenceSession(made / "model" / "lens.onnx")
    _, ids = lens.run(["probs", "ids"], {"hidden": shown["h.2.resid_mlp"][0]})
    np.testing.assert_array_equal(ids, np.argsort(-logits, -1)[:, : module.LENS])


def test_the_vocabulary_is_the_models(made, tiny):
    text = "O Romeo, <|endoftext|>"
    assert load_tokenizer(made / "model").encode(text) == load_tokenizer(tiny).encode(text)


def test_every_token_has_its_piece(made, tiny):
    pieces, vocabulary = (
        json.loads((made / "model/pieces.json").read_text("utf-8")),
        load_tokenizer(tiny),
    )
    assert len(pieces) == 512
    for token, piece in enumerate(pieces):
        data = piece.encode() if isinstance(piece, str) else bytes(piece)
        assert data == vocabulary.token_bytes(token)
    assert {type(piece) for piece in pieces} == {str, list}


def test_rows_that_stand_for_no_token(tiny, tmp_path, modules):
    config = json.loads((tiny / "config.json").read_text()) | {"vocab_size": 520}
    tensors = {k: v.copy() for k, v in named_parameters(GPT2.from_pretrained(tiny).params)}
    tensors["wte.weight"] = np.pad(tensors["wte.weight"], ((0, 8), (0, 0)))
    source = save(GPT2Config.from_dict(config), tmp_path / "padded", tensors)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tiny / name, source)
    made = site(source, tmp_path / "site", page, node_modules=modules)
    pieces = json.loads((made / "model/pieces.json").read_text("utf-8"))
    assert pieces[511:] == [load_tokenizer(tiny).decode([511]), *[None] * 8]


def test_a_damaged_vocabulary(tiny, tmp_path, modules):
    shutil.copytree(tiny, folder := tmp_path / "bad")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"bad"):
        site(folder, tmp_path / "out", page, node_modules=modules)
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_of_two_files_becomes_one(tiny, tmp_path, modules):
    folder = tmp_path / "old"
    shutil.copytree(tiny, folder)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    assert (folder / "vocab.json").exists()
    made = site(folder, tmp_path / "site", page, node_modules=modules)
    assert {name for name in files(made) if name.startswith("model/")} == MODEL


def test_the_licenses(made):
    first, second = (made / "vendor/LICENSES.txt").read_text("utf-8").split("─" * 80)
    assert first.startswith(
        "onnxruntime-web 1.30.0, MIT: ort.wasm.bundle.min.mjs, ort-wasm-simd-threaded.wasm\n\n"
        "MIT License\n\nCopyright (c) Microsoft Corporation\n\nPermission is hereby granted, "
    )
    assert second == (
        "\n\n@huggingface/tokenizers 0.2.0, Apache-2.0: tokenizers.min.mjs\n\n"
        "Apache License\n  Version 2.0\n"
    )


def test_the_licence_is_onnxruntimes_own():
    text = Path(ort.__file__).with_name("LICENSE")
    if not text.exists():
        pytest.skip("this onnxruntime came without its licence")
    assert module.MIT.startswith(text.read_text("utf-8").replace("\r\n", "\n").strip())


def test_the_same_bytes_each_time(made, tiny, tmp_path, modules):
    again = site(tiny, tmp_path / "again", page, node_modules=modules)
    assert files(again) == files(made)


# ── where the libraries come from ────────────────────────────────────────────────────────────────


def test_the_nearest_node_modules(tiny, tmp_path, monkeypatch):
    install(tmp_path / "a" / "node_modules")
    inner = tmp_path / "a" / "b" / "c"
    inner.mkdir(parents=True)
    (tmp_path / "a" / "b" / "node_modules" / "other").mkdir(parents=True)  # is passed by
    model = tiny.resolve()
    monkeypatch.chdir(inner)
    assert site(model, "out", page) == Path("out")
    assert set(FETCHED) <= files(Path("out")).keys()


def test_no_node_modules(tiny, tmp_path, monkeypatch):
    model = tiny.resolve()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingPackage) as missing:
        site(model, "out", page)
    assert str(missing.value) == (
        f"{tmp_path}/node_modules/onnxruntime-web/package.json: no such file, expected the package "
        f"onnxruntime-web@1.30.0. Run: {INSTALL}, or give the folder that has it with "
        "--node-modules"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "file",
    [
        "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
        "onnxruntime-web/package.json",
        "@huggingface/tokenizers/dist/tokenizers.min.mjs",
        "@huggingface/tokenizers/LICENSE",
    ],
)
def test_a_package_without_a_file(tiny, tmp_path, modules, file):
    (modules / file).unlink()
    with pytest.raises(MissingPackage) as missing:
        site(tiny, tmp_path / "out", page, node_modules=modules)
    web = file.startswith("onnxruntime-web/")
    package = "onnxruntime-web@1.30.0" if web else "@huggingface/tokenizers@0.2.0"
    assert str(missing.value) == (
        f"{modules / file}: no such file, expected the package {package}. "
        f"Run: {INSTALL}, or give the folder that has it with --node-modules"
    )
    assert not (tmp_path / "out").exists()


# ── models that it cannot show ───────────────────────────────────────────────────────────────────


def small(folder, **switches):
    return save(GPT2Config(**SMALL | {"eos_token_id": None} | switches), folder)


def test_other_models(tmp_path, modules):
    out = tmp_path / "out"
    source = small(tmp_path / "labels", architectures=("GPT2ForTokenClassification",))
    with pytest.raises(ConfigError) as refused:
        site(source, out, page, node_modules=modules)
    assert str(refused.value) == (
        f"{source}: is a GPT2ForTokenClassification, expected a language model: the page generates "
        "text. 'npgpt2 classify' runs it"
    )
    source = small(tmp_path / "encoder", add_cross_attention=True)
    with pytest.raises(ConfigError) as refused:
        site(source, out, page, node_modules=modules)
    assert str(refused.value) == (
        f"{source}: attends to an encoder, expected a model without one: the page has no encoder"
    )
    source = small(tmp_path / "bert")
    for vocabulary in (None, "vocab.txt", "spiece.model"):
        if vocabulary:
            (source / vocabulary).write_text("[UNK]\n[CLS]\n[SEP]\n")
        with pytest.raises(TokenizerError) as no_text:
            site(source, out, page, node_modules=modules)
        assert str(no_text.value) == (
            f"{source}: has no tokenizer.json and no vocab.json, expected one of them: the page "
            "needs it to tokenize text"
        )
    with pytest.raises(OptionError) as empty:
        site(source, "", page, node_modules=modules)
    assert str(empty.value) == "out: got '', expected a folder"
    assert not out.exists()


# ── whole, or not at all ─────────────────────────────────────────────────────────────────────────


def test_a_site_is_replaced_with_force_only(made, tiny, modules):
    before = files(made)
    with pytest.raises(FileError) as there:
        site(tiny, made, page, node_modules=modules)
    assert str(there.value) == (
        f"{made}: already exists, expected a new folder. To replace it, use --force or force=True"
    )
    assert files(made) == before
    site(tiny, made, lambda config: "new", node_modules=modules, force=True)
    assert files(made) == before | {"index.html": b"new"}


@pytest.mark.parametrize("mine", ["notes.txt", "model/notes.txt", "vendor/lib.mjs", ".git/config"])
def test_what_is_somebodys_is_never_replaced(made, tiny, modules, mine):
    (made / mine).parent.mkdir(exist_ok=True)
    (made / mine).write_text("mine")
    before = files(made)
    with pytest.raises(FileError) as there:
        site(tiny, made, page, node_modules=modules, force=True)
    held = ".git" if mine.startswith(".git") else mine
    assert str(there.value) == (
        f"{made}: already exists and contains {held}, expected only a site. "
        "It is not replaced. Choose another folder"
    )
    assert files(made) == before


def test_an_empty_folder_is_filled(tiny, tmp_path, modules):
    (tmp_path / "out").mkdir()
    site(tiny, tmp_path / "out", page, node_modules=modules)
    assert (tmp_path / "out" / "index.html").exists()


def fails(problem):
    def raising(*args, **kwargs):
        raise problem

    return raising


@pytest.mark.parametrize("step", ["export", "build_lens", "check_lens", "_licenses", "_manifest"])
@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left_of_what_fails(tiny, tmp_path, modules, monkeypatch, step, there):
    out = tmp_path / "below" / "out"
    if there:
        site(tiny, out, page, node_modules=modules)
    before = files(tmp_path)
    monkeypatch.setattr(module, step, fails(CheckFailed("no")))
    with pytest.raises(CheckFailed, match=r"^no$"):
        site(tiny, out, page, node_modules=modules, force=True)
    assert files(tmp_path) == before
    assert os.listdir(tmp_path / "below") == ["out"] * there


def test_a_page_that_cannot_be_made(tiny, tmp_path, modules):
    with pytest.raises(ZeroDivisionError):
        site(tiny, tmp_path / "out", fails(ZeroDivisionError()), node_modules=modules)
    assert not (tmp_path / "out").exists()


def test_an_asset_that_is_missing(tiny, tmp_path, modules):
    asset = tmp_path / "web" / "worker.mjs"
    asset.unlink()
    with pytest.raises(FileError) as missing:
        site(tiny, tmp_path / "out", page, node_modules=modules)
    assert str(missing.value) == f"{asset}: No such file or directory"
    assert not (tmp_path / "out").exists()


def test_a_lens_that_says_something_else(tiny, tmp_path, modules, monkeypatch):
    """The proof is of the file that is shipped."""
    real = module.build_lens

    def wrong(config, precision, tensors, *rest):
        moved = replace(tensors["ln_f.bias"], offset=0)
        return real(config, precision, tensors | {"ln_f.bias": moved}, *rest)

    monkeypatch.setattr(module, "build_lens", wrong)
    with pytest.raises(CheckFailed, match=r"^lens\.onnx: the probabilit.* Nothing was written$"):
        site(tiny, tmp_path / "out", page, node_modules=modules)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_numbers(tiny, tmp_path, modules):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny, folder := tmp_path / "bad")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("ln_f.bias"))
    tensors[name][0] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckFailed, match="has NaN"), pytest.warns():
        site(folder, tmp_path / "out", page, node_modules=modules)
    assert not (tmp_path / "out").exists()


def test_the_embedded_model(tmp_path, modules):
    made = site("shakespeare", tmp_path / "site", page, node_modules=modules)
    model = GPT2.from_pretrained("shakespeare")
    session = Session(made / "model" / "model.onnx")
    assert session.config == model.config


def test_open_serves_it_to_this_machine(tiny, modules, tmp_path):
    """Until Ctrl-C; `true` stands in for a browser."""
    argv = [sys.executable, "-m", "npgpt2", "explain", "--live", tiny, "-o", tmp_path / "site",
            "--node-modules", modules, "--open"]  # fmt: skip
    with subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env=os.environ | {"BROWSER": "true"}) as process:  # fmt: skip
        [address] = re.findall(r"http://127\.0\.0\.1:\d+/", process.stderr.readline())
        for name, kind in (("site.json", "application/json"), ("worker.mjs", "text/javascript")):
            with urllib.request.urlopen(address + name) as answer:
                assert answer.read() == (tmp_path / "site" / name).read_bytes()
                assert answer.headers["content-type"] == kind
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr.read() == "\n"
        assert "model/model.onnx" in process.stdout.read()

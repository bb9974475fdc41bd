"""`npgpt2 golden` as people type it; ports in other languages; llm.c's files."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from npgpt2 import GPT2, GPT2Config
from npgpt2.base.errors import ConfigError, FileError
from npgpt2.golden.cases import CASES, Subject
from npgpt2.golden.folder import load_golden
from npgpt2.golden.llmc import LEARNING_RATE, MODEL, STATE, padded, require_plain, write_llmc
from npgpt2.model.params import named_parameters
from npgpt2.train import gradients

TINY, KEPT = Path("tests/data/tiny"), Path("tests/data/golden")
PORTS = Path("tests/ports").absolute()


@pytest.fixture(scope="module")
def npgpt2():
    """A function: arguments → (exit code, standard output, standard error)."""

    def run(*arguments):
        done = subprocess.run([sys.executable, "-m", "npgpt2", *map(str, arguments)],
                              capture_output=True, text=True)  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """A dump that agrees."""
    shown = {}
    model = GPT2.from_pretrained(TINY)
    CASES["eight"].compute(Subject(model), lambda n, a: shown.__setitem__(f"eight/{n}", a.copy()))
    path = tmp_path_factory.mktemp("dump") / "port.safetensors"
    save_file({name: np.ascontiguousarray(a) for name, a in shown.items()}, path)
    return path


def test_the_exit_code_is_the_verdict_whoever_reads(dump, tmp_path):
    """`golden check … | head -1` of a port that is wrong is no success, and the page is written."""
    from safetensors.numpy import load_file

    wrong = {name: a + 1 if name == "eight/ln_f" else a for name, a in load_file(dump).items()}
    save_file(wrong, tmp_path / "wrong.safetensors")
    for path, code in ((dump, 0), (tmp_path / "wrong.safetensors", 1)):
        page = tmp_path / "page.html"
        read, write = os.pipe()
        os.close(read)  # nobody reads
        with os.fdopen(write, "w") as out:
            command = [sys.executable, "-m", "npgpt2", "golden", "check", str(path)]
            done = subprocess.run(
                [*command, "--against", str(KEPT), "--all", "--html", str(page)],
                stdout=out, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "<h1>" in page.read_text()
        page.unlink()


def test_what_is_kept_is_what_is_written(tmp_path):
    """Byte by byte, where NumPy and its BLAS are those that wrote it; else within the bounds."""
    command = [sys.executable, "-m", "npgpt2", "golden", "write", tmp_path / "g", "--slices"]
    kept, kernel = load_golden(KEPT), {"OPENBLAS_NUM_THREADS": "1"}
    if np.__version__ == kept.manifest["made_by"]["numpy"]:  # 2.5.5's Haswell kernel crashes
        kernel["OPENBLAS_CORETYPE"] = "Haswell"  # as they were written
    subprocess.run([*command, "--model", TINY], check=True, env=os.environ | kernel)
    new = load_golden(tmp_path / "g")
    made_alike = kept.manifest["made_by"] == new.manifest["made_by"]
    if made_alike:
        for path in KEPT.rglob("*"):
            if path.is_file():
                name = path.relative_to(KEPT)
                assert (tmp_path / "g" / name).read_bytes() == path.read_bytes(), name
    assert list(kept.references) == list(new.references)
    for name, r in kept.references.items():
        other = new.references[name]
        assert (other.shape, other.dtype, other.stride) == (r.shape, r.dtype, r.stride)
        np.testing.assert_allclose(other.double, r.double, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(other.single, r.double, rtol=r.rtol, atol=r.atol)
    if not made_alike:
        pytest.skip("held within bounds, not byte by byte: another NumPy or BLAS wrote them")


def test_what_is_kept_is_small():
    assert sum(p.stat().st_size for p in KEPT.rglob("*") if p.is_file()) <= 1_000_000


def test_a_port_that_agrees(npgpt2, dump):
    code, out, err = npgpt2("golden", "check", dump, "--against", KEPT)
    assert (code, err) == (0, "")
    assert out.startswith("39 of 39 tensors agree; ")


def test_a_port_that_does_not(npgpt2, dump, tmp_path):
    from safetensors.numpy import load_file

    tensors = load_file(dump)
    shown = {}
    model = GPT2.from_pretrained(TINY)
    object.__setattr__(model.config, "activation_function", "gelu")
    CASES["eight"].compute(Subject(model), lambda n, a: shown.__setitem__(f"eight/{n}", a.copy()))
    save_file({n: np.ascontiguousarray(a) for n, a in (tensors | shown).items()}, tmp_path / "p.st")
    page = tmp_path / "page.html"
    code, out, err = npgpt2(
        "golden", "check", tmp_path / "p.st", "--against", KEPT, "--html", page, "--all"
    )
    assert code == 1
    assert "12 of 39 tensors agree" in out
    assert "first difference, in the order of computation: eight/h.0.mlp.act" in out
    assert "likely cause (case eight): your GELU is the erf form: GPT-2 uses the tanh form" in out
    assert "this explains all 27 tensors from there on" in out
    assert len(re.findall("^DIFFERS  eight/", out, re.MULTILINE)) == 27
    assert err == f"npgpt2: the report as a page: {page}\n"
    text = page.read_text(encoding="utf-8")
    assert "erf form" in text
    assert len(re.findall(r'<td class="r\d first"', text)) == 1
    assert not re.search(r"https?:|\sstyle=", text)  # nothing from elsewhere, nothing refused
    assert "default-src 'none'" in text


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["check", "none.npz", "--against", KEPT], 4, "none.npz: No such file"),
    (["check", TINY, "--against", KEPT], 3, "tiny: has no index.tsv, expected one with the col"),
    (["check", TINY / "model.safetensors", "--against", KEPT], 3, "such as eight/h.0.attn.c_attn"),
    (["check", TINY / "model.safetensors", "--against", TINY], 4, "tiny: is not a golden folder"),
    (["check", "a.npz"], 2, "the following arguments are required: --against"),
    (["write", "g", "--cases", "nine", "--model", TINY], 2, "--cases: got 'nine', expected one"),
    (["write", "g", "--full", "--slices"], 2, "--slices: not allowed with argument --full"),
    (["write", TINY, "--cases", "one", "--model", TINY], 4, "tiny: exists and is not a golden"),
    (["llmc", "g", "--model", TINY, "--batch", "0"], 2, "--batch: got 0, expected 1 or"),
    (["llmc", "g", "--model", TINY, "--length", "129"], 2, "--length: got 129, expected 1 to 12"),
    ([], 2, "the following arguments are required: ACTION"),
    (["wrote"], 2, "ACTION: got 'wrote', expected one of"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(npgpt2, arguments, code, words):
    got, out, err = npgpt2("golden", *arguments)
    assert (got, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1
    assert err.startswith("npgpt2: error: ")


def test_list(npgpt2):
    code, out, _ = npgpt2("golden", "list", "--model", TINY)
    assert code == 0
    assert re.search(r"\Aname .*\neight/input_ids +B × T +1x8 +the input: token ids", out)
    assert re.search(r"^eight/h\.2\.attn\.probs +B × H × T × S +1x4x8x8 ", out, re.MULTILINE)
    assert all(re.search(rf"^  {case} ", out, re.MULTILINE) for case in CASES)


# ── ports ────────────────────────────────────────────────────────────────────────────────────────

READERS = {
    "c": ("cc", ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "read.c", "-o", "{out}"], ["{out}"]),
    "rust": ("rustc", ["rustc", "-O", "--edition", "2021", "-D", "warnings", "read.rs", "-o",
                       "{out}"], ["{out}"]),
    "go": ("go", ["go", "build", "-o", "{out}", "read.go"], ["{out}"]),
    "javascript": ("node", None, ["node", "read.mjs"]),
}  # fmt: skip


@pytest.mark.parametrize("language", READERS)
def test_a_reader(language, tmp_path):
    tool, build, call = READERS[language]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")

    def filled(command):
        return [part.format(out=tmp_path / "read") for part in command]

    def read():
        command = [*filled(call), tmp_path / "g"]
        return subprocess.run(command, cwd=PORTS, capture_output=True, text=True)

    if build:
        subprocess.run(filled(build), cwd=PORTS, check=True)
    shutil.copytree(KEPT, tmp_path / "g")
    done = read()
    first, last = done.stdout.splitlines()
    r = load_golden(KEPT).references["eight/logits"]
    assert first.startswith("eight/logits 1x8x512 ")
    assert float(first.split()[-1]) == pytest.approx(float(r.single[0]), rel=1e-5)
    assert last == f"{len(load_golden(KEPT).references)} tensors, every sha256 is right"
    path = tmp_path / "g" / "raw" / "eight.bin"
    raw = bytearray(path.read_bytes())
    raw[70] ^= 1  # behind the ids, which are 32 bytes and padding
    path.write_bytes(raw)
    done = read()
    assert done.returncode != 0
    assert "sha256 differs" in done.stderr


def test_readers_are_short():
    for path in PORTS.glob("read.*"):
        assert len(path.read_text().splitlines()) < 100


@pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed")
@pytest.mark.parametrize("mistake", ["", "ERF_GELU"])
def test_a_gpt2_in_c(npgpt2, mistake, tmp_path):
    define = [f"-D{mistake}"] if mistake else []
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", *define, "gpt2.c", "-lm", "-o",
                    tmp_path / "gpt2"], cwd=PORTS, check=True)  # fmt: skip
    write_llmc(tmp_path / "llmc", GPT2.from_pretrained(TINY), 1, 8)
    (tmp_path / "dump").mkdir()
    subprocess.run([tmp_path / "gpt2", tmp_path / "llmc" / MODEL, KEPT, tmp_path / "dump"],
                   check=True)  # fmt: skip
    code, out, _ = npgpt2("golden", "check", tmp_path / "dump", "--against", KEPT)
    if mistake:
        assert code == 1
        assert "your GELU is the erf form" in out
    else:
        assert code == 0
        assert out.startswith("38 of 38 tensors agree")


# ── llm.c ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def llmc(tmp_path_factory):
    """llm.c's files of a model whose vocabulary needs padding, and its losses."""
    model = GPT2.from_pretrained(TINY).resize_token_embeddings(500)
    folder, losses = write_llmc(tmp_path_factory.mktemp("llmc") / "f", model, 2, 8)
    return model, folder, losses


def test_the_models_file(llmc):
    model, folder, _ = llmc
    raw = (folder / MODEL).read_bytes()
    header, numbers = np.frombuffer(raw, "<i4", 256), np.frombuffer(raw, "<f4", offset=1024)
    assert header[:8].tolist() == [20240326, 3, 128, 500, 3, 4, 64, 512]
    assert not header[8:].any()
    wte = numbers[: 512 * 64].reshape(512, 64)
    np.testing.assert_array_equal(wte[:500], model.params.wte.weight)
    assert not wte[500:].any()
    assert numbers.size == sum(a.size for _, a in named_parameters(model.params)) + 12 * 64
    # c_attn's weights are the third of what is stacked over layers, (out, in).
    at = (512 + 128) * 64 + 3 * 64 * 2
    second = numbers[at + 192 * 64 : at + 2 * 192 * 64].reshape(192, 64)
    np.testing.assert_array_equal(second, model.params.h[1].attn.c_attn.weight.T)
    np.testing.assert_array_equal(numbers[-64:], model.params.ln_f.bias)


def test_the_states_file(llmc):
    model, folder, losses = llmc
    raw = (folder / STATE).read_bytes()
    assert np.frombuffer(raw, "<i4", 256)[:4].tolist() == [20240327, 2, 2, 8]
    x, y = np.frombuffer(raw, "<i4", 32, 1024).reshape(2, 2, 8)
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    at = 1024 + 32 * 4
    logits = np.frombuffer(raw, "<f4", 2 * 8 * 500, at).reshape(2, 8, 500)
    np.testing.assert_allclose(logits, model(x).logits, rtol=1e-5, atol=1e-4)
    at += logits.nbytes
    assert np.frombuffer(raw, "<f4", 1, at)[0] == pytest.approx(losses[0])
    d = np.frombuffer(raw, "<f4", offset=at + 4)
    assert d.size * 4 == (folder / MODEL).stat().st_size - 1024
    both = np.concatenate([x, y[:, -1:]], 1)
    loss, tree = gradients(model, both)
    assert loss == pytest.approx(losses[0], rel=1e-6)
    np.testing.assert_allclose(d[: 500 * 64].reshape(500, 64), tree.wte.weight, atol=1e-5)
    np.testing.assert_allclose(d[-128:-64], tree.ln_f.weight, atol=1e-6)


def test_ten_losses_of_its_adamw(llmc):
    """By formula, in float64: weight decay on every tensor."""
    model, folder, losses = llmc
    raw = (folder / STATE).read_bytes()
    x, y = np.frombuffer(raw, "<i4", 32, 1024).reshape(2, 2, 8)
    ids = np.concatenate([x, y[:, -1:]], 1)
    from npgpt2.model.params import build_tree

    p = {name: a.astype(np.float64) for name, a in named_parameters(model.params)}
    m, v = ({name: np.zeros_like(a) for name, a in p.items()} for _ in "mv")
    for t in range(1, 11):
        loss, tree = gradients(GPT2(model.config, build_tree(p)), ids)
        assert loss == pytest.approx(losses[t - 1], abs=2e-5)
        for name, g in named_parameters(tree):
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g * g
            step = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-8)
            p[name] = p[name] - LEARNING_RATE * (step + 0.01 * p[name])
    assert losses[9] < losses[0]


def test_each_loss_has_a_label(npgpt2, tmp_path):
    arguments = ("--model", TINY, "--batch", 1, "--length", 8)
    code, out, err = npgpt2("golden", "llmc", tmp_path / "l", *arguments)
    assert code == 0
    _, losses = write_llmc(tmp_path / "f", GPT2.from_pretrained(TINY), 1, 8)
    assert out == "".join(f"loss of step {n}: {x:.6f}\n" for n, x in enumerate(losses, 1))
    assert err.endswith("replace expected_losses in test_gpt2.c by the losses above\n")


def test_padding():
    assert [padded(n) for n in (1, 128, 129, 50257)] == [128, 128, 256, 50304]


def test_what_llmc_does_not_have(npgpt2, tmp_path):
    shutil.copytree(TINY, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {
        "activation_function": "gelu"}))  # fmt: skip
    code, _, err = npgpt2("golden", "llmc", tmp_path / "l", "--model", tmp_path / "m")
    assert code == 3
    assert "activation_function: llm.c supports OpenAI's GPT-2 architecture only" in err
    assert not (tmp_path / "l").exists()


# ── mutants that lived ───────────────────────────────────────────────────────────────────────────


def test_names_that_are_not_known_are_said_and_are_no_success(npgpt2, dump, tmp_path):
    from safetensors.numpy import load_file

    one = np.ones(1, np.float32)
    tensors = load_file(dump)
    tensors["eight/logits"] = tensors["eight/logits"][0]
    save_file(tensors | {"eight/h.0.ln1": one, "<script>\x1b[2J": one}, tmp_path / "p.safetensors")
    page = tmp_path / "page.html"
    code, out, _ = npgpt2(
        "golden", "check", tmp_path / "p.safetensors", "--against", KEPT, "--html", page
    )
    assert code == 1
    assert out.startswith("39 of 39 tensors agree; ")
    assert "unknown: eight/h.0.ln1, did you mean eight/h.0.ln_1?" in out
    assert "unknown: <script>\\x1b[2J" in out
    assert "read as: shape 8x512 (1)" in out
    assert "the folder keeps 32 values of a tensor" in out
    text = page.read_text(encoding="utf-8")
    assert "<script>" not in text
    cells = re.findall(r'<td class="([gr])\d', text)
    assert (cells.count("g"), cells.count("r")) == (39, 0)


def test_write_full_and_by_force(npgpt2, tmp_path):
    command = ("golden", "write", tmp_path / "g", "--model", TINY, "--cases", "one")
    for more, whole in (("--slices",), False), (("--full", "--force"), True):
        assert npgpt2(*command, *more)[0] == 0
        strides = {r.stride for r in load_golden(tmp_path / "g").references.values()}
        assert (strides == {1}) is whole


def test_llmc_replaces_nothing(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "thesis.txt").write_text("mine")
    with pytest.raises(FileError, match="already exists"):
        write_llmc(tmp_path / "f", GPT2.from_pretrained(TINY), 1, 8)
    assert (tmp_path / "f" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(("field", "value"), [
    ("activation_function", "gelu"), ("n_inner", 100), ("layer_norm_epsilon", 1e-6),
    ("scale_attn_weights", False), ("scale_attn_by_inverse_layer_idx", True),
    ("tie_word_embeddings", False),
])  # fmt: skip
def test_llmc_has_openais_gpt2_only(field, value):
    require_plain(GPT2Config())
    with pytest.raises(ConfigError, match=f"^{field}: llm.c supports"):
        require_plain(GPT2Config(**{field: value}))

"""export, verify and the onnx engine, as typed: exit codes, results, notes, errors in one line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import runner, uncovered
from patience import FOREVER, PATIENCE, bounded, watched, within

from npgpt2 import GPT2, load_tokenizer
from npgpt2_onnx import Session, export
from npgpt2_onnx.run.session import loads
from npgpt2_onnx.write import save

TINY = Path(__file__).parents[2] / "data" / "tiny"
NPGPT2 = [sys.executable, "-m", "npgpt2"]
PIPE = subprocess.PIPE
PRECISIONS = {"fp32": "", "fp16": "_fp16", "int8": "_quantized", "int4": "_q4"}
KINDS = {"portable": "", "gqa": "_gqa", "mha": "_mha"}


@pytest.fixture(autouse=True)
def _signals():
    """A command sets its own; and what waits for ever fails."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGHUP)]
    with bounded():
        yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture
def npgpt2(capfd):
    """A function: arguments → exit code, standard output, standard error (ONNX Runtime's too)."""
    return runner(capfd)


@pytest.fixture
def refused(npgpt2):
    """A function: arguments are refused with this code and these words, in one line."""

    def check(code, words, *args):
        got, out, err = within(2, lambda: npgpt2(*args))
        assert (got, out) == (code, ""), err
        lines = [line for line in err.splitlines() if not NOTE.match(line)]
        assert len(lines) == 1, err
        assert lines[0].startswith("npgpt2: error: ")
        assert re.search(words, lines[0]), err
        assert "This is a bug" not in err
        return lines[0]

    return check


NOTE = re.compile(
    r"npgpt2: (\S+\.onnx \(\w+\) on \w+|reading the file|no --model given: |warning: )"
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The tiny checkpoint, exported. Only to be read."""
    return export(TINY, tmp_path_factory.mktemp("cli") / "out")


@pytest.fixture(scope="session")
def precisions(tmp_path_factory):
    """It in all precisions. Only to be read."""
    out = tmp_path_factory.mktemp("cli") / "all"
    return export(TINY, out, precisions=list(PRECISIONS), graphs="gqa")


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the export, to be damaged."""
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    lines = ["KING:\nThe king is dead, long live the king.\n", "O Romeo, wherefore art thou?\n"]
    path.write_text("".join(lines * 12))
    return path


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def content(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit(path, change):
    """Change a graph with the onnx library; its weights stay where they are."""
    model = onnx.load(path, load_external_data=False)
    change(model)
    onnx.save(model, path)


def shifted(name, by):
    """An initializer that reads from elsewhere."""

    def change(model):
        [proto] = (p for p in model.graph.initializer if p.name == name)
        [entry] = (e for e in proto.external_data if e.key == "offset")
        entry.value = str(int(entry.value) + by)

    return change


def attribute(name, value):
    """Another number in the first node that has it."""

    def change(model):
        found = (a for node in model.graph.node for a in node.attribute if a.name == name)
        next(found).f = value

    return change


# ── export ───────────────────────────────────────────────────────────────────────────────────────


def test_export(npgpt2, tmp_path):
    code, out, err = npgpt2("export", TINY, "-o", tmp_path / "out")
    assert code == 0
    head, *rows = out.splitlines()
    assert head.split() == ["in", str(tmp_path / "out"), "bytes"]
    for row in rows:
        name, size = row.split()
        assert (tmp_path / "out" / name).stat().st_size == int(size.replace(",", ""))
    assert re.fullmatch(r"npgpt2: verified against NumPy, \d+\.\d s\n", err)
    assert os.listdir(tmp_path) == ["out"]


def test_export_lists_all_that_it_wrote(npgpt2, tmp_path):
    _, out, _ = npgpt2("export", TINY, "-o", tmp_path / "out")
    assert {line.split()[0] for line in out.splitlines()[1:]} == files(tmp_path / "out")


def test_export_takes_every_option(npgpt2, tmp_path):
    code, _, err = npgpt2(
        "export", TINY, "-o", tmp_path / "out", "--precision", "fp32", "--precision", "int4",
        "--precision", "int8", "--precision", "fp16", "--graph", "all", "--attentions", "--opset",
        "23", "--triton", tmp_path / "models", "--force", "--no-verify", "--revision", "main",
    )  # fmt: skip
    assert code == 0
    assert re.fullmatch(r"npgpt2: not verified, \d+\.\d s\n", err)
    stems = [f"onnx/model{suffix}" for suffix in PRECISIONS.values()]
    made = {f for f in files(tmp_path / "out") if f.startswith("onnx/")}
    assert made == {f"{s}{k}.onnx" for s in stems for k in KINDS.values()} | {
        f"{s}.onnx_data" for s in stems
    }
    portable = onnx.load(tmp_path / "out" / "onnx" / "model.onnx", load_external_data=False)
    assert sum(o.name.endswith("probs") for o in portable.graph.output) == 3  # by layer
    assert [o.version for o in portable.opset_import if not o.domain] == [23]
    served = {p.name for p in (tmp_path / "models").iterdir()}
    assert served == {f"gpt2{suffix}" for suffix in PRECISIONS.values()}


@pytest.mark.parametrize(
    ("args", "graphs"),
    [
        ([], {"model.onnx", "model_gqa.onnx"}),
        (["--graph", "portable"], {"model.onnx"}),
        (["--graph", "gqa"], {"model_gqa.onnx"}),
        (["--graph", "mha"], {"model_mha.onnx"}),
        (["--graph", "mha", "--graph", "gqa"], {"model_mha.onnx", "model_gqa.onnx"}),
        (["--graph", "gqa", "--graph", "all"], {"model.onnx", "model_gqa.onnx", "model_mha.onnx"}),
        (["--precision", "int8", "--graph", "gqa"], {"model_quantized_gqa.onnx"}),
        (["--precision", "fp16"], {"model_fp16.onnx", "model_fp16_gqa.onnx"}),
    ],
    ids=lambda names: " ".join(sorted(names) if isinstance(names, set) else names),
)
def test_export_makes_what_was_asked(npgpt2, tmp_path, args, graphs):
    assert npgpt2("export", TINY, "-o", tmp_path / "out", *args)[0] == 0
    assert {f.name for f in (tmp_path / "out" / "onnx").glob("*.onnx")} == graphs


def test_export_says_when_it_needs_a_folder(npgpt2):
    _, out, _ = npgpt2("export", "--help")
    assert "--out DIR folder to write; required unless --share-weights" in " ".join(out.split())


@pytest.mark.parametrize("opset", [17, 18, 20, 21, 23, 24])
def test_export_in_every_opset(npgpt2, tmp_path, opset):
    if not loads(opset):
        pytest.skip(f"this onnxruntime does not load opset {opset}")
    code, _, err = npgpt2("export", TINY, "-o", tmp_path / "out", "--opset", opset)
    assert code == 0, err
    assert "verified" in err


@pytest.mark.parametrize("name", ["with space", "ünï 漢 🙂", "~x", "x" * 240, "a/b/c", "./x/"])
def test_export_into_folders_of_odd_names(npgpt2, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    code, out, err = npgpt2("export", TINY, "-o", name)
    assert code == 0, err
    assert (tmp_path / name / "onnx" / "model.onnx").exists()
    code, out, _ = npgpt2("generate", "KING", "--model", name, "--engine", "onnx", *GREEDY)
    assert (code, out) == (0, "HAM:\nIt is\n")


def test_a_name_does_not_write_to_the_terminal(npgpt2, tmp_path):
    """Rows are rows, and what a name holds is text."""
    _, out, _ = npgpt2("export", TINY, "-o", tmp_path / "a\n\x1b[2Jb")
    assert "\x1b" not in out
    assert all(re.search(r"(bytes|[\d,]+)$", line) for line in out.splitlines())


MODEL = str(TINY)
USAGE = {
    "no model": (["-o", "out"], "the following arguments are required: MODEL"),
    "no folder": ([MODEL], "--out: got none, expected the folder to write. Give -o DIR"),
    "an empty folder": ([MODEL, "-o", ""], "--out: "),
    "an option for a folder": ([MODEL, "-o", "--force"], "-o/--out: expected one argument"),
    "two models": ([MODEL, MODEL, "-o", "out"], "unrecognized arguments: "),
    "opset 16": ([MODEL, "-o", "out", "--opset", "16"], "--opset: got 16, expected .* from 17 to"),
    "opset 99": ([MODEL, "-o", "out", "--opset", "99"], "--opset: got 99, expected .* from 17 to"),
    "opset -1": ([MODEL, "-o", "out", "--opset", "-1"], "--opset: got -1, expected"),
    "opset true": ([MODEL, "-o", "out", "--opset", "true"], "--opset: got 'true', expected an int"),
    "opset 17.0": ([MODEL, "-o", "out", "--opset", "17.0"], "--opset: got '17.0', expected an int"),
    "precision": ([MODEL, "-o", "out", "--precision", "fp31"], "--precision: got 'fp31'"),
    "FP32": (
        [MODEL, "-o", "out", "--precision", "FP32"],
        "--precision: got 'FP32', expected one of",
    ),
    "two in one": ([MODEL, "-o", "out", "--precision", "fp32,int8"], "--precision: got '"),
    "graph": ([MODEL, "-o", "out", "--graph", "al"], "--graph: got 'al', expected one of"),
    "shortened": ([MODEL, "-o", "out", "--prec", "fp32"], "unrecognized arguments: --prec"),
    "attentions": (
        [MODEL, "-o", "out", "--attentions", "--graph", "gqa"],
        "--attentions: .*portable graph.* Add --graph portable",
    ),
    "triton": (
        [MODEL, "-o", "out", "--triton", "models", "--graph", "mha"],
        "--triton: .*portable graph.* Add --graph portable",
    ),
    "empty triton": ([MODEL, "-o", "out", "--triton", ""], "--triton: "),
    "shared elsewhere": (
        [MODEL, "-o", "out", "--share-weights"],
        "--share-weights: .*got out, exp",
    ),
    "shared in halves": (
        [MODEL, "--share-weights", "--precision", "fp16"],
        "--share-weights: the checkpoint's weights are float32. Leave --precision out",
    ),
}


@pytest.mark.parametrize(("args", "words"), USAGE.values(), ids=USAGE)
def test_export_usage(refused, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    refused(2, f"error: {words}", "export", *args)
    assert os.listdir(tmp_path) == []
    assert os.path.samefile(".", tmp_path)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["/none", "-o", "out"], 4, "error: /none: no such folder. Expected a checkpoint folder"),
        (["", "-o", "out"], 4, "error: '': no such folder"),
        (["file", "-o", "out"], 4, "error: file: is a file, expected a folder with config.json"),
        (["empty", "-o", "out"], 4, "error: empty/config.json: no such file, expected it next to"),
        ([MODEL, "-o", "file"], 4, "file: is not a folder, expected a folder or a new path"),
        ([MODEL, "-o", "file/below"], 4, "file.*: (File exists|Not a directory)"),
        ([MODEL, "-o", "/"], 4, "error: /: "),
        ([MODEL, "-o", "x" * 300], 4, "xx.*: File name too long"),
        ([MODEL, "-o", "x" * 5000], 4, "xx.*: File name too long"),
        ([MODEL, "-o", ".."], 4, "already exists"),
        ([MODEL, "-o", MODEL], 4, "is the checkpoint itself.* use --share-weights"),
        ([MODEL, "-o", "full"], 4, "full: already exists, expected a new folder. To replace"),
        ([MODEL, "-o", "full", "--force"], 4, "full: already exists and contains "),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_export_refuses(refused, tmp_path, monkeypatch, args, code, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    refused(code, words, "export", *args)
    assert files(tmp_path) == {"file", "full/mine"}
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "full"]


def test_a_hint_fits_the_command(refused, folder, tmp_path):
    """An exported folder where a checkpoint is wanted, by commands that have no --engine."""
    for argv in (
        ("export", folder, "-o", tmp_path / "out"),
        ("inspect", "--model", folder),
        ("verify", folder, "--against", folder),
    ):
        line = refused(4, r"model\.safetensors: no such file", *argv)
        assert "--engine" not in line
    assert os.listdir(tmp_path) == []


def test_export_that_fails_its_proof(refused, npgpt2, copy, tmp_path, monkeypatch):
    build, before = save.build, content(copy)

    def wrong(*args):
        model = build(*args)
        attribute("epsilon", 1e-2)(model)
        return model

    monkeypatch.setattr(save, "build", wrong)
    words = r"error: model.*\.onnx: .* logits differ by .*, expected at most"
    refused(1, words, "export", TINY, "-o", copy, "--force")
    refused(1, words, "export", TINY, "-o", tmp_path / "new")
    assert content(copy) == before
    assert os.listdir(tmp_path) == ["copy"]
    assert npgpt2("export", TINY, "-o", tmp_path / "new", "--no-verify")[0] == 0
    assert npgpt2("verify", tmp_path / "new")[0] == 1


def test_export_of_weights_that_are_no_numbers(refused, tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(np.nan).tobytes())
    refused(1, r"error: .*wte\.weight", "export", tmp_path / "model", "-o", tmp_path / "out")
    assert os.listdir(tmp_path) == ["model"]


def test_export_with_shared_weights(npgpt2, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    code, out, err = npgpt2("export", model, "--share-weights")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()[1:]} >= {"model.onnx", "model_gqa.onnx"}
    assert "verified against NumPy" in err
    argv = ("generate", "KING", "--model", model, *GREEDY)
    assert npgpt2(*argv, "--engine", "onnx")[1] == npgpt2(*argv)[1]
    code, _, err = npgpt2("export", model, "--share-weights")
    assert (code, err.count("\n")) == (4, 1)
    assert npgpt2("export", model, "--share-weights", "--force")[0] == 0
    assert npgpt2("verify", model, "--against", model)[0] == 0


# ── verify ───────────────────────────────────────────────────────────────────────────────────────


def test_verify(npgpt2, folder):
    code, out, err = npgpt2("verify", folder)
    assert (code, err) == (0, "npgpt2: all within bounds\n")
    about, head, *rows = out.splitlines()
    assert about == (
        "difference from NumPy with the same rounded weights: checks the graph, not the precision; "
        "--text FILE measures that"
    )
    assert head.split() == ["graph", "case", "logits", "keys,", "values", "bound"]
    assert {row.split()[0] for row in rows} == {"model.onnx", "model_gqa.onnx"}
    for case in ("prompt, then steps", "empty past again", "chunks", "batch", "batch padded right"):
        assert sum(f"  {case}  " in row for row in rows) == 2, case
    for row in rows:
        logits, presents, bound = map(float, row.split()[-3:])
        assert max(logits, presents) <= bound == 5e-6


def test_verify_all_precisions(npgpt2, precisions):
    code, out, _ = npgpt2("verify", precisions, "--against", TINY)
    assert code == 0
    assert "OVER" not in out
    for suffix in PRECISIONS.values():
        assert sum(row.startswith(f"model{suffix}_gqa.onnx") for row in out.splitlines()) > 5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.onnx", attribute("epsilon", 1e-2)),
        ("model_gqa.onnx", attribute("epsilon", 1e-2)),
        ("model_gqa.onnx", attribute("scale", 0.26)),
        ("model_gqa.onnx", shifted("h.1.ln_1.bias", 256)),
        ("model_gqa.onnx", shifted("wte.weight", 4096)),
        ("model.onnx", shifted("h.1.ln_1.bias", 256)),
    ],
)
def test_verify_names_the_graph_that_is_wrong(npgpt2, copy, name, change):
    edit(copy / "onnx" / name, change)
    code, out, err = npgpt2("verify", copy)
    assert (code, err) == (1, "npgpt2: NOT all within bounds\n")
    assert {row.split()[0] for row in out.splitlines() if row.endswith("OVER THE BOUND")} == {name}


def test_verify_against_the_checkpoint(npgpt2, copy):
    """A wrong weight: the graphs do what NumPy does with it; only the checkpoint knows better."""
    with (copy / "onnx" / "model.onnx_data").open("r+b") as file:
        file.seek(200_002)
        byte = file.read(1)[0] ^ 0x01
        file.seek(200_002)
        file.write(bytes([byte]))
    assert npgpt2("verify", copy)[0] == 0
    code, out, err = npgpt2("verify", copy, "--against", TINY)
    assert (code, err) == (1, "npgpt2: NOT all within bounds\n")
    lines = [line for line in out.splitlines() if "h.0.attn.c_attn.weight" in line]
    assert len(lines) == 2  # for each graph
    assert all(line.endswith("OVER THE BOUND") for line in lines)


def test_verify_marks_only_what_is_wrong(npgpt2, precisions, tmp_path):
    shutil.copytree(precisions, tmp_path / "copy")
    edit(tmp_path / "copy" / "onnx" / "model_fp16_gqa.onnx", shifted("h.1.ln_1.bias", 256))
    _, out, _ = npgpt2("verify", tmp_path / "copy", "--against", TINY)
    marked = {line.split()[0].strip(":") for line in out.splitlines() if "OVER" in line}
    assert marked == {"model_fp16_gqa.onnx"}


def test_verify_against_another_checkpoint(npgpt2, folder, shared):
    code, out, err = npgpt2("verify", folder, "--against", shared("checkpoints/shakespeare-3m"))
    assert (code, err) == (1, "npgpt2: NOT all within bounds\n")
    assert "OVER THE BOUND" in out


def quality(out):
    """graph → perplexity, change, KL, top-1 agreement."""
    rows = out[out.index("perplexity") :].splitlines()[1:]
    return {r.split()[0]: [float(v.rstrip("%")) for v in r.split()[1:5]] for r in rows}


def perplexity(text, size):
    """NumPy's, in windows that do not overlap."""
    model, ids = GPT2.from_pretrained(TINY), load_tokenizer(TINY).encode(text)
    windows = np.array(ids[: len(ids) // size * size]).reshape(-1, 1, size)
    return np.exp(np.mean([float(model(window, labels=window).loss) for window in windows]))


def test_verify_on_a_text(npgpt2, precisions, text):
    code, out, err = npgpt2("verify", precisions, "--text", text)
    about, second = (line for line in out.splitlines() if line.startswith("difference from NumPy"))
    assert about.endswith(" weights: checks the graph, not the precision")
    assert second.endswith(" in float32: measures the precision")
    score = "; 'npgpt2 score' uses overlapping windows, so its perplexity differs\n"
    assert err.startswith(f"npgpt2: perplexity in windows of 128 tokens without overlap{score}")
    found = quality(out)
    assert len(found) == 4
    assert code == ("OVER THE BOUND" in out)
    fp32, fp16, int4 = (found[f"model{PRECISIONS[p]}_gqa.onnx"] for p in ("fp32", "fp16", "int4"))
    assert fp32[0] == pytest.approx(perplexity(text.read_text(), 128), rel=1e-4)
    assert abs(fp32[1]) < 1e-4
    assert fp32[2] < 1e-9
    assert fp32[3] == 100
    assert fp32[2] < fp16[2] < int4[2]
    assert int4[0] > fp32[0]
    _, out, err = npgpt2("verify", precisions, "--text", text, "--window", "16")
    assert err.startswith(f"npgpt2: perplexity in windows of 16 tokens without overlap{score}")
    narrow = quality(out)
    assert narrow["model_gqa.onnx"][0] == pytest.approx(perplexity(text.read_text(), 16), rel=1e-4)


def test_verify_on_a_text_of_one_window(npgpt2, folder, text):
    """There `score` has the same window, and the same perplexity."""
    text.write_text("The king is dead, long live the king.\n")
    _, out, err = npgpt2("verify", folder, "--text", text)
    count = len(load_tokenizer(TINY).encode(text.read_text()))
    assert err.startswith(f"npgpt2: perplexity in windows of {count} tokens without overlap\n")
    scored = json.loads(npgpt2("score", text, "--model", TINY, "--json")[1])
    assert quality(out)["model_gqa.onnx"][0] == pytest.approx(scored["perplexity"], rel=1e-4)


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (None, 4, r"text\.txt: No such file or directory"),
        (b"", 3, r"text.*: has 0 tokens, expected at least two"),
        (b"a", 3, r"text.*: has 1 tokens?, expected at least two"),
        (b"ab\xff", 3, r"text\.txt: not UTF-8 at byte 2, expected text\. Convert it"),
    ],
)
def test_verify_on_what_is_no_text(npgpt2, folder, text, data, code, words):
    """Told at once, and not after minutes of proofs."""
    if data is None:
        text.unlink()
    else:
        text.write_bytes(data)
    got, out, err = npgpt2("verify", folder, "--text", text)
    assert got == code
    assert re.fullmatch(f"npgpt2: error: .*{words}.*\n", err)
    assert out == ""


def test_verify_on_a_folder_for_a_text(npgpt2, folder):
    code, _, err = npgpt2("verify", folder, "--text", folder)
    assert code == 4
    assert err.endswith("Is a directory\n")


@pytest.mark.parametrize("window", ["0", "-5", "1", "129", "1000000", "x"])
def test_verify_windows_that_cannot_be(npgpt2, folder, text, window):
    code, out, err = npgpt2("verify", folder, "--text", text, "--window", window)
    assert (code, out) == (2, "")
    assert err.startswith("npgpt2: error: --window: got ")
    assert err.count("\n") == 1


def test_verify_says_which_bound_a_text_exceeds(npgpt2, tmp_path):
    folder = export(TINY, tmp_path / "out", precisions="int4", graphs="gqa")
    (tmp_path / "text").write_text("the king is dead and gone, he lives no more")
    code, out, err = npgpt2("verify", folder, "--text", tmp_path / "text", "--against", TINY)
    assert (code, "OVER THE BOUND" in out) == (1, True)
    assert "bounds of int4: perplexity +1.00%, KL 1e-02 nats, top-1 0.0%. A longer text" in err


def test_verify_on_a_text_needs_something_to_compare_with(npgpt2, tmp_path, text):
    folder = export(TINY, tmp_path / "out", precisions="int8", graphs="gqa")
    code, out, err = npgpt2("verify", folder, "--text", text)
    assert (code, out) == (4, "")  # before anything is computed
    assert "has no fp32 graph to compare with. Give the checkpoint: --against MODEL" in err
    code, out, _ = npgpt2("verify", folder, "--text", text, "--against", TINY)
    assert quality(out).keys() == {"model_quantized_gqa.onnx"}


def test_verify_of_what_is_no_export(refused, folder, tmp_path):
    hint = "has no ONNX graph.* npgpt2 export MODEL -o DIR"
    refused(4, f"{TINY}: {hint}", "verify", TINY)
    refused(4, f"{tmp_path}: {hint}", "verify", tmp_path)
    refused(2, "required: DIR", "verify")
    refused(4, "/none: no such folder", "verify", tmp_path / "none")
    refused(4, r"model\.onnx: is a file", "verify", folder / "onnx" / "model.onnx")
    refused(4, "no such folder", "verify", "")
    refused(4, "/none: no such folder", "verify", folder, "--against", tmp_path / "none")


def weights(change):
    return lambda folder: change(folder / "onnx" / "model.onnx_data")


def both(change):
    def all_of_them(folder):
        for path in (folder / "onnx").glob("*.onnx"):
            change(path)

    return all_of_them


DAMAGES = {
    "no data": weights(Path.unlink),
    "data cut off": weights(lambda path: os.truncate(path, 700_000)),
    "empty data": weights(lambda path: os.truncate(path, 0)),
    "an empty graph": both(lambda path: os.truncate(path, 0)),
    "half a graph": both(lambda path: os.truncate(path, 9_000)),
    "noise": both(lambda path: path.write_bytes(np.random.default_rng(1).bytes(9_000))),
    "a text": both(lambda path: path.write_text("This is no graph.\n")),
    "another's graph": both(lambda path: edit(path, lambda m: m.ClearField("metadata_props"))),
    "past the end": both(lambda path: edit(path, shifted("wte.weight", 10**9))),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder(npgpt2, copy, damage):
    """One line that names the file, at once."""
    damage(copy)
    for argv in (
        ("verify", copy),
        ("verify", copy, "--against", TINY),
        ("generate", "KING", "--model", copy, "--engine", "onnx", *GREEDY),
        ("score", "KING LEAR", "--model", copy, "--engine", "onnx"),
    ):
        code, out, err = within(2, lambda argv=argv: npgpt2(*argv))
        assert code in (3, 4), err
        assert out == ""
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith(f"npgpt2: error: {copy}/onnx/model")
        assert "This is a bug" not in err


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_line_says_what_to_do(npgpt2, copy, damage):
    """In this project's words: not a C++ source file, and not the inside of a protobuf."""
    damage(copy)
    err = npgpt2("verify", copy)[2]
    assert not re.search(r"\.cc:|\.h:|onnxruntime::|\[ONNXRuntimeError\]", err)
    assert re.search(r"[Ee]xport it|[Ee]xport again|npgpt2 export|[Cc]opy|[Dd]ownload", err)


# ── the onnx engine ──────────────────────────────────────────────────────────────────────────────

GREEDY = ("--temperature", "0", "--max-new-tokens", "8")


@pytest.mark.parametrize(
    "args",
    [
        ["--temperature", "0", "--max-new-tokens", "40"],
        ["--temperature", "0", "--max-new-tokens", "1000"],
        ["--temperature", "0", "--no-cache", "--max-new-tokens", "20"],
        ["--num-beams", "3", "--max-new-tokens", "12"],
        ["--seed", "7", "--max-new-tokens", "30"],
        ["--seed", "7", "--num-samples", "3", "--max-new-tokens", "12", "--json"],
        ["--temperature", "0", "--stop", "\n"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("prompt", ["KING", "O Romeo, "])
def test_generate_writes_what_numpy_writes(npgpt2, folder, args, prompt):
    code, out, _ = npgpt2("generate", prompt, "--model", TINY, *args)
    assert code == 0
    code, ours, err = npgpt2("generate", prompt, "--model", folder, "--engine", "onnx", *args)
    assert (code, ours) == (0, out)
    assert err.startswith("npgpt2: model_gqa.onnx (fp32) on CPUExecutionProvider\n")


@pytest.mark.parametrize("kind", KINDS)
def test_generate_with_each_kind_of_graph(npgpt2, tmp_path, kind):
    folder = export(TINY, tmp_path / "out", graphs=kind)
    code, out, err = npgpt2("generate", "KING", "--model", folder, "--engine", "onnx", *GREEDY)
    assert (code, out) == (0, "HAM:\nIt is\n")
    assert f"model{KINDS[kind]}.onnx" in err


@pytest.mark.parametrize("precision", PRECISIONS)
def test_generate_in_a_precision(npgpt2, precisions, precision):
    argv = ("--model", precisions, "--engine", "onnx", "--precision", precision, "--device", "cpu")
    code, out, err = npgpt2("generate", "KING", *argv, "--threads", "1", *GREEDY)
    assert code == 0
    assert len(out) > 3
    assert f"({precision}) on CPU" in err


def test_score(npgpt2, folder, text):
    for what in ("The king is dead", text):
        ours = json.loads(npgpt2("score", what, "--model", folder, "--engine", "onnx", "--json")[1])
        numpy = json.loads(npgpt2("score", what, "--model", TINY, "--json")[1])
        assert ours["ids"] == numpy["ids"]
        assert ours["perplexity"] == pytest.approx(numpy["perplexity"], rel=1e-5)
        np.testing.assert_allclose(ours["logprobs"][1:], numpy["logprobs"][1:], atol=1e-4)


def test_the_graph_that_is_kept(npgpt2, folder, tmp_path):
    argv = ("generate", "KING", "--model", folder, "--engine", "onnx", *GREEDY)
    for _ in range(2):
        code, out, err = npgpt2(*argv, "--graph-cache", tmp_path / "cache")
        assert (code, out) == (0, "HAM:\nIt is\n"), err


def test_the_engine_is_the_one_for_what_the_folder_holds(npgpt2, folder, tmp_path):
    """And the line about the graph says so. Where a checkpoint lies beside graphs it is NumPy."""
    argv = ("generate", "KING", *GREEDY, "--model")
    told = npgpt2(*argv, folder, "--engine", "onnx")
    assert told[1] == npgpt2(*argv, folder)[1] == npgpt2(*argv, folder, "--precision", "fp32")[1]
    assert "(fp32) on CPU" in npgpt2(*argv, folder)[2]
    assert npgpt2("inspect", "--model", TINY)[0] == 0
    both = tmp_path / "both"
    shutil.copytree(TINY, both)
    assert npgpt2("export", both, "--share-weights")[0] == 0
    code, out, err = npgpt2(*argv, both)
    assert (code, out) == (0, told[1])
    assert "on CPU" not in err


ENGINE = {
    "device": (["--device", "cpu"], "--device: works with the onnx engine only. Add --engine onnx"),
    "precision": (["--precision", "fp32"], "--precision: works with the onnx engine only"),
    "threads": (["--threads", "2"], "--threads: works with the onnx engine only"),
    "graph cache": (["--graph-cache", "x"], "--graph-cache: works with the onnx engine only"),
    "dtype": (["--engine", "onnx", "--dtype", "float64"], "--dtype: works with the NumPy eng"),
    "strict": (["--engine", "onnx", "--strict"], "--strict: works with the NumPy engine"),
    "engine": (["--engine", "torch"], "--engine: got 'torch', expected one of"),
    "no such device": (
        ["--engine", "onnx", "--device", "tpu"],
        "--device: got 'tpu', expected one of",
    ),
    "no such precision": (["--engine", "onnx", "--precision", "x"], "--precision: got '"),
    "threads 0": (["--engine", "onnx", "--threads", "0"], "--threads: got 0, expected an integer"),
    "threads -1": (["--engine", "onnx", "--threads", "-1"], "--threads: got -1, expected an inte"),
    "threads x": (["--engine", "onnx", "--threads", "x"], "--threads: got 'x', expected an int"),
    "threads 1.5": (["--engine", "onnx", "--threads", "1.5"], "--threads: got '1.5', expected a"),
    "threads 1e9": (["--engine", "onnx", "--threads", "1000000000"], "--threads: got 1000000000"),
    "an empty cache": (["--engine", "onnx", "--graph-cache", ""], "--graph-cache: "),
}


@pytest.mark.parametrize(("args", "words"), ENGINE.values(), ids=ENGINE)
@pytest.mark.parametrize("command", ["generate", "score"])
def test_engine_usage(refused, folder, tmp_path, monkeypatch, command, args, words):
    monkeypatch.chdir(tmp_path)
    model = folder if "onnx" in args else TINY
    refused(2, f"error: {words}", command, "KING LEAR", "--model", model, *args)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["generate", "score"])
def test_the_wrong_folder_for_an_engine(refused, folder, tmp_path, command):
    onnx_engine = ("--engine", "onnx")
    argv = (command, "KING LEAR", "--model")
    refused(4, "It has ONNX graphs: --engine onnx runs them", *argv, folder, "--engine", "numpy")
    refused(4, "has no ONNX graph.* npgpt2 export MODEL -o DIR", *argv, TINY, *onnx_engine)
    refused(4, "has no ONNX graph", *argv, tmp_path, *onnx_engine)
    refused(4, "no such folder", *argv, tmp_path / "none", *onnx_engine)
    refused(4, "onnx: (is a file|Name)", *argv, folder / "onnx" / "model.onnx", *onnx_engine)
    refused(4, "shakespeare: has no ONNX graph", command, "KING LEAR", *onnx_engine)
    words = "has no graph in int8, only in fp32. Export it with --precision int8"
    refused(4, words, *argv, folder, *onnx_engine, "--precision", "int8")
    # The folder inside: what is wanted stands above it.
    assert folder.name in refused(4, "has no vocabulary", *argv, folder / "onnx", *onnx_engine)


@pytest.mark.parametrize("command", ["generate", "score"])
def test_cuda_where_there_is_none(refused, folder, command):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    words = "error: cuda: this onnxruntime .* has only .*CPUExecutionProvider.*onnxruntime-gpu"
    argv = (command, "KING LEAR", "--model", folder, "--engine", "onnx", "--device", "cuda")
    refused(4, words, *argv)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "prompt: is empty"),
        ("a" * 300, "longer than the context|> 128"),
        ("ab\udcff", "PROMPT: not UTF-8 at byte 2"),
    ],
)
def test_prompts_that_cannot_be(refused, folder, prompt, words):
    refused(3, words, "generate", prompt, "--model", folder, "--engine", "onnx", *GREEDY)


def test_a_graph_that_is_open_twice(folder):
    """Two sessions share no state."""
    one, two = (Session(folder / "onnx" / "model.onnx") for _ in range(2))
    ids = np.array([[1, 2, 3]])
    np.testing.assert_array_equal(one.forward(ids)[0], two.forward(ids)[0])


# ── the process: pipes and signals ───────────────────────────────────────────────────────────────


def shell(script, *argv, **options):
    """A shell script in which "$@" is the command."""
    env = uncovered()
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}", "sh", *NPGPT2, *map(str, argv)],
        capture_output=True, text=True, env=env, timeout=PATIENCE, **options,
    )  # fmt: skip


@pytest.mark.parametrize("script", ['"$@" | head -1', '"$@" | true'])
def test_a_reader_that_goes(folder, tmp_path, script):
    done = shell(script, "export", TINY, "-o", tmp_path / "out")
    assert done.returncode == 0
    assert done.stdout.count("\n") == ("head" in script)
    assert re.fullmatch(r"(npgpt2: verified against NumPy, [\d.]+ s\n)?", done.stderr)
    assert (tmp_path / "out" / "onnx" / "model.onnx").exists()
    done = shell(script, "verify", folder)
    assert done.returncode == 0
    assert done.stdout.count("\n") == ("head" in script)


def test_streams_that_are_closed(folder, tmp_path):
    done = shell('exec "$@" >&-', "export", TINY, "-o", tmp_path / "out")
    words = "npgpt2: error: standard output: is closed, expected a file, pipe or terminal\n"
    assert (done.returncode, done.stderr) == (4, words)
    assert os.listdir(tmp_path) == []
    done = shell('exec "$@" >&-', "verify", folder)
    assert (done.returncode, done.stderr) == (4, words)
    done = shell('exec "$@" 2>&- <&-', "export", TINY, "-o", tmp_path / "out")
    assert (done.returncode, done.stdout.count("\n") > 3) == (0, True)
    assert (tmp_path / "out" / "onnx" / "model.onnx").exists()


def test_a_verdict_survives_a_reader_that_goes(copy):
    """A wrong graph is exit code 1, also where nobody reads the table."""
    edit(copy / "onnx" / "model.onnx", attribute("epsilon", 1e-2))
    assert shell('"$@" > /dev/null', "verify", copy).returncode == 1


VERIFY = """
import sys, time
from npgpt2 import cli
from npgpt2_onnx.write import verify
compare, forever = verify.compare, int(sys.argv.pop(1))
def slow(*args):
    print("ready", file=sys.stderr, flush=True)
    time.sleep(forever)
    return compare(*args)
verify.compare = slow
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(cli.main(sys.argv[1:]))
"""


def test_control_c_while_it_verifies(folder):
    argv = [sys.executable, "-c", VERIFY, str(FOREVER), "verify", str(folder)]
    env = uncovered()
    streams = {"stdout": PIPE, "stderr": PIPE, "text": True}
    with watched(subprocess.Popen(argv, **streams, env=env)) as process:
        assert process.stderr.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "\n")

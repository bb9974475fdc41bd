"""The commands, as typed: what goes to standard output and what to standard error."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from patience import watched

from npgpt2 import GPT2, GenerationOptions
from npgpt2.base.blas import NEEDED, choose_kernel
from npgpt2.cli import COMMANDS, build_parser, main
from npgpt2.cli.inspect import parse_index
from npgpt2.cli.output import progress

MODEL = ["--model", "tests/data/tiny"]


@pytest.fixture
def npgpt2(capsys):
    """A function: arguments → (exit code, standard output, standard error)."""

    def call(*args):
        try:
            code = main([*args])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# ── generate ─────────────────────────────────────────────────────────────────────────────────────


def test_generate_writes_the_text_and_nothing_else_to_standard_output(npgpt2, model):
    code, out, err = npgpt2("generate", "O Romeo, ", *MODEL, "--temperature", "0")
    assert code == 0
    [text] = model.generate("O Romeo, ", temperature=0)
    assert out == text.text + "\n"
    assert "100 tokens" in err
    assert "--max-new-tokens reached" in err


def test_generate_says_its_seed_so_that_it_can_be_repeated(npgpt2):
    _, out, err = npgpt2("generate", "KING", *MODEL, "--max-new-tokens", "20")
    seed = err.rsplit("seed ", 1)[1].strip()
    _, again, _ = npgpt2("generate", "KING", *MODEL, "--max-new-tokens", "20", "--seed", seed)
    assert again == out


def test_generate_takes_every_option(npgpt2, model):
    code, out, _ = npgpt2(
        "generate", "O Romeo, ", *MODEL, "--json", "--seed", "3", "--top-k", "9", "--top-p", "0.9",
        "--min-p", "0.01", "--temperature", "1.1", "--repetition-penalty", "1.2", "--num-samples",
        "2", "--max-new-tokens", "12", "--stop", "∎", "--stop", "th", "--dtype", "float64",
        "--strict",
    )  # fmt: skip
    found = json.loads(out)
    texts = GPT2.from_pretrained("tests/data/tiny", dtype="float64").generate(
        "O Romeo, ", seed=3, top_k=9, top_p=0.9, min_p=0.01, temperature=1.1,
        repetition_penalty=1.2, num_samples=2, max_new_tokens=12, stop=("∎", "th"),
    )  # fmt: skip
    assert code == 0
    assert (found["prompt"], found["seed"]) == ("O Romeo, ", 3)
    assert found["prompt_ids"] == texts[0].prompt_ids
    assert found["samples"] == [
        {"text": t.text, "ids": t.ids, "finish_reason": t.finish_reason} for t in texts
    ]


def test_generate_beams_and_several_samples(npgpt2, model):
    _, out, _ = npgpt2("generate", "KING", *MODEL, "--num-beams", "3", "--max-new-tokens", "9")
    assert out == model.generate("KING", num_beams=3, max_new_tokens=9)[0].text + "\n"
    _, out, _ = npgpt2("generate", "KING", *MODEL, "--num-samples", "2", "--seed", "1")
    one, two = model.generate("KING", num_samples=2, seed=1)
    assert out == f"── 1 of 2 ──\n{one}\n── 2 of 2 ──\n{two}\n"


def test_generate_without_a_cache_writes_the_same(npgpt2):
    args = ("generate", "KING", *MODEL, "--seed", "4", "--max-new-tokens", "30")
    assert npgpt2(*args)[1] == npgpt2(*args, "--no-cache")[1]


def test_generate_says_that_the_context_is_full(npgpt2):
    _, _, err = npgpt2("generate", "KING", *MODEL, "--max-new-tokens", "1000", "--temperature", "0")
    assert "the context is full (128 tokens)" in err


def test_a_prompt_from_standard_input_loses_one_newline(npgpt2, monkeypatch):
    args = (*MODEL, "--temperature", "0", "--json")
    for data, prompt in ((b"KING\n", "KING"), (b"KING\n\n", "KING\n"), ("Ö".encode(), "Ö")):
        stdin(monkeypatch, data)
        assert json.loads(npgpt2("generate", "-", *args)[1])["prompt"] == prompt


def test_text_streams_as_it_is_made():
    """The first piece is there before the second token is chosen: each waits for a line."""
    code = (
        "import sys, npgpt2.generation.generate as g\n"
        "pick = g.GenerationOptions.next_token\n"
        "def told(*args):\n    sys.stdin.readline()\n    return pick(*args)\n"
        "g.GenerationOptions.next_token = told\n"
        "from npgpt2.cli import main\n"
        "main(['generate', 'KING', '--model', 'tests/data/tiny', '--max-new-tokens', '25'])"
    )
    env, pipe = os.environ.copy(), subprocess.PIPE
    env.pop("PYTHONUNBUFFERED", None)  # with which everything streams
    with watched(
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            env=env,
        )
    ) as process:
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        process.stdin.close()
        assert process.stdout.read()
    assert process.returncode == 0


def test_the_default_model_is_the_environments_or_the_embedded_one(npgpt2, monkeypatch):
    code, out, err = npgpt2("tokenize", "KING", "--json")
    assert code == 0
    assert err == "npgpt2: no --model given: using shakespeare, which is part of this package\n"
    embedded = out
    assert npgpt2("tokenize", "KING", "--json", "--model", "shakespeare") == (0, embedded, "")
    monkeypatch.setenv("NPGPT2_MODEL", "tests/data/tiny")
    code, out, err = npgpt2("tokenize", "KING", "--json")
    assert (code, err) == (0, "")
    assert out != embedded


def test_the_embedded_model_is_not_a_folder_of_its_name(npgpt2, monkeypatch, tmp_path):
    (tmp_path / "shakespeare").mkdir()
    monkeypatch.chdir(tmp_path)
    assert npgpt2("tokenize", "KING")[0] == 0
    code, _, err = npgpt2("tokenize", "KING", "--revision", "main")
    assert code == 2
    assert "--revision: needs a model on the hub. Name it with --model" in err


def test_without_arguments_and_without_network_it_writes(npgpt2, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)  # from any folder
    code, out, err = npgpt2("generate")
    assert code == 0
    assert len(out) > 50
    assert "using shakespeare" in err
    seeded = npgpt2("generate", "--seed", "7")
    assert seeded[:2] == npgpt2("generate", "\n", "--seed", "7", "--model", "shakespeare")[:2]


# ── the other commands ───────────────────────────────────────────────────────────────────────────


def test_tokenize(npgpt2, monkeypatch):
    _, out, _ = npgpt2("tokenize", "O Romeo, ", *MODEL)
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["427", "ĠR", "20", "52"]
    assert lines[-1] == ["6", "tokens,", "9", "bytes"]
    _, out, _ = npgpt2("tokenize", "Ö<|endoftext|>", *MODEL, "--json")
    found = json.loads(out)
    assert found["ids"][-1] == 0
    assert found["bytes"][0] == "c3"
    assert len(found["ids"]) == len(found["pieces"]) == len(found["bytes"])
    _, out, _ = npgpt2("tokenize", "<|endoftext|>", *MODEL, "--json", "--plain")
    assert 0 not in json.loads(out)["ids"]
    stdin(monkeypatch, b"a\n")
    assert json.loads(npgpt2("tokenize", "-", *MODEL, "--json")[1])["pieces"] == ["a", "Ċ"]
    assert npgpt2("tokenize", "", *MODEL)[1] == "0 tokens, 0 bytes\n"


def test_inspect_lists_every_parameter(npgpt2, model):
    _, out, _ = npgpt2("inspect", *MODEL)
    lines = out.splitlines()
    assert lines[1].split() == ["wte.weight", "512", "×", "64", "F32", "131,072"]
    assert len(lines) == 1 + 40 + 1
    assert f"40 tensors, {model.num_parameters:,} parameters" in lines[-1]
    assert "lm_head is tied to wte" in lines[-1]


@pytest.mark.parametrize("name", ["transformer.wte.weight[:5]", "wte.weight[:5, :]"])
def test_inspect_a_slice(npgpt2, model, name):
    _, out, _ = npgpt2("inspect", name, *MODEL)
    head, _, numbers = out.partition("\n")
    assert head == f"{name}  5 × 64  float32"
    found = np.array(numbers.replace("[", " ").replace("]", " ").split(), float)
    np.testing.assert_allclose(found, model.params.wte.weight[:5].ravel(), atol=1e-8)


def test_inspect_one_number_and_a_whole_tensor(npgpt2, model):
    _, out, _ = npgpt2("inspect", "h.2.ln_1.bias[-1]", *MODEL)
    assert out.startswith("h.2.ln_1.bias[-1]  scalar  float32\n")
    assert float(out.split()[-1]) == pytest.approx(model.params.h[2].ln_1.bias[-1], abs=1e-8)
    assert npgpt2("inspect", "ln_f.weight", *MODEL)[1].startswith("ln_f.weight  64  float32\n")


def test_inspect_a_prompt(npgpt2, model):
    _, out, _ = npgpt2("inspect", "--prompt", "The king", *MODEL)
    lines = out.splitlines()
    assert lines[1].split()[:3] == ["0", "353", "The"]
    assert f"{model.params.wte.weight[353, 0]:+.4f}" in lines[1]
    assert f"{model.params.wpe.weight[0, 0]:+.4f}" in lines[1]
    assert "  layer 2: key (1, 4, 3, 16), value (1, 4, 3, 16), float32, 1,536 bytes" in lines


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["wte.wieght"], 3, "Did you mean wte.weight?"),
        (["lm_head.weight"], 3, "The head is tied to wte. Use wte.weight"),
        (["wte.weight[5"], 2, "TENSOR: got 'wte.weight[5'"),
        (["wte.weight[600]"], 2, "index 600 is out of bounds"),
        (["wte.weight[1:2:3:4]"], 2, "too many colons"),
        (["wte.weight", "--prompt", "x"], 2, "expected one of the two"),
    ],
)
def test_inspect_what_is_not_there(npgpt2, args, code, words):
    found, out, err = npgpt2("inspect", *args, *MODEL)
    assert (found, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1


def test_a_slice_is_parsed_and_never_run():
    assert parse_index("1,-2") == (1, -2)
    for text in ("__import__", "1.5", ""):
        with pytest.raises(ValueError, match="invalid literal"):
            parse_index(text)


def test_score(npgpt2, model, tmp_path):
    _, out, err = npgpt2("score", "The king is dead", *MODEL)
    score = model.score("The king is dead")
    assert f"5 of 6 tokens scored, perplexity {score.perplexity:.4f}" in out
    assert f"{score.logprobs[1]:.4f}" in out.splitlines()[2]
    assert err == ""
    path = tmp_path / "text"
    path.write_text("The king is dead. " * 60)
    _, out, err = npgpt2("score", str(path), *MODEL, "--stride", "64")
    assert out.count("\n") == 1  # too long to list
    assert "reading the file" in err
    _, out, _ = npgpt2("score", str(path), *MODEL, "--stride", "64", "--json")
    found = json.loads(out)
    assert found["logprobs"][0] is None
    assert found["perplexity"] == pytest.approx(np.exp(-np.mean(found["logprobs"][1:])))
    assert found["tokens"] == len(found["ids"]) - 1


@pytest.mark.parametrize("command", ["score", "tokenize"])
def test_a_text_a_file_and_standard_input_are_the_same(npgpt2, command, monkeypatch, tmp_path):
    path, text = tmp_path / "text", "O Romeo, Romeo"
    path.write_text(text)
    stdin(monkeypatch, text.encode())
    shown = [npgpt2(command, given, *MODEL, "--json")[1] for given in (text, str(path), "-")]
    assert shown[0] == shown[1] == shown[2] != ""


@pytest.mark.parametrize("command", ["score", "tokenize"])
@pytest.mark.parametrize("name", ["none.txt", "./none", "/some/book"])
def test_a_name_of_no_file_is_not_taken_as_text(npgpt2, command, name):
    code, out, err = npgpt2(command, name, *MODEL)
    assert (code, out) == (4, "")
    assert err.startswith(f"npgpt2: error: {name}: no such file")


def test_info(npgpt2):
    _, out, _ = npgpt2("info")
    for words in ("npgpt2 0.1.0", f"numpy {np.__version__}", "BLAS: ", " threads", "cores",
                  "$NPGPT2_MODEL: not set", "weights/shakespeare", "in its cache"):  # fmt: skip
        assert words in out


# ── all of them ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", [module.__name__.rpartition(".")[2] for module in COMMANDS])
def test_help_shows_an_example_that_parses(npgpt2, command):
    code, out, _ = npgpt2(command, "--help")
    assert code == 0
    examples = [line.strip() for line in out.splitlines() if line.strip().startswith("npgpt2 ")]
    assert examples
    for example in examples:
        words = shlex.split(example.split(" < ")[0])
        assert build_parser().parse_args(words[1:]).command == command


@pytest.mark.parametrize(
    "words",
    [
        ("DIR", "--precision", "int8", "int4"),
        ("--precision", "int8", "int4", "DIR"),
        ("--precision", "int8", "DIR", "--precision", "int4"),
        ("--precision=int8", "int4", "DIR"),
        ("--graph", "gqa", "--precision", "int8", "int4", "--", "DIR"),
    ],
)
def test_an_option_of_several_values(words):
    """After one flag or each after its own; what follows them is not swallowed."""
    args = build_parser().parse_args(["export", *words])
    assert (args.precision, args.model) == (["int8", "int4"], "DIR")


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("--temp=0", "--temp=0. Did you mean --temperature?"),
        ("--max-tokens", "--max-tokens. Did you mean --max-new-tokens?"),
        ("--colour", "--colour"),
        ("Romeo", "Romeo: give one text, in quotes"),
    ],
)
def test_an_unknown_word_is_told_the_nearest_flag(npgpt2, word, words):
    code, out, err = npgpt2("generate", "O", word)
    assert (code, out) == (2, "")
    end = "" if words.endswith("?") else "."
    assert err == (
        f"npgpt2: error: unrecognized arguments: {words}{end} See 'npgpt2 generate --help'\n"
    )


def test_an_option_of_texts_takes_one_each():
    args = build_parser().parse_args(["generate", "--stop", "a", "b", "--stop", "c"])
    assert (args.stop, args.prompt) == (["a", "c"], "b")


def test_help_states_the_defaults_that_hold(npgpt2):
    out, options = " ".join(npgpt2("generate", "--help")[1].split()), GenerationOptions()
    for name in ("temperature", "top_p", "max_new_tokens", "num_samples", "repetition_penalty"):
        flag = f"--{name.replace('_', '-')}"
        text = out.split(f"{flag} ", 2)[2].split("--")[0]
        assert f"(default: {getattr(options, name):g})" in text, flag
    assert (options.top_k, options.min_p, options.seed) == (None, None, None)


def test_version_and_nothing(npgpt2):
    assert npgpt2("--version")[:2] == (0, "npgpt2 0.1.0\n")
    code, _, err = npgpt2()
    assert code == 2
    assert err.startswith("npgpt2: error: ")
    assert err.count("\n") == 1


@pytest.fixture
def clock(monkeypatch):
    """A list whose only number is what the clock says."""
    now = [0.0]
    monkeypatch.setattr("npgpt2.cli.output.time.monotonic", lambda: now[0])
    return now


def taking(seconds, items, clock):
    """Items that take so long each, to make and to work on."""
    for item in items:
        clock[0] += seconds
        yield item


def lines(items, seconds, clock, capsys, *args, **options):
    """What is said while each item takes so many seconds."""
    for _ in progress(items, *args, **options):
        clock[0] += seconds
    return capsys.readouterr().err.splitlines()


def test_a_bar_for_what_takes_over_two_seconds(capsys, monkeypatch, clock):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert lines(range(6), 0.3, clock, capsys, "reading") == []
    drawn = lines(range(6), 1, clock, capsys, "re\nading")
    assert any(r"re\nading:  50%" in line for line in drawn)


def test_a_terminal_that_says_it_has_no_columns_has_a_bar(monkeypatch, clock):
    """As some of containers and of CI do: tqdm drew nothing there."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    assert os.get_terminal_size(theirs).columns == 0
    with os.fdopen(theirs, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        for _ in progress(range(6), "reading"):
            clock[0] += 1
        screen.flush()
        os.set_blocking(ours, False)
        data = os.read(ours, 10_000).decode()
    os.close(ours)
    assert re.search(r"\rreading:  50%\|█+ +\| 3/6 ", data)
    assert max(map(len, data.split("\r"))) <= 80


def test_a_log_has_a_line_each_half_minute(capsys, clock):
    assert lines(range(29), 1, clock, capsys, "reading") == []
    clock[0] = 1e6
    assert lines(range(1000), 0.5, clock, capsys, "reading")[:3] == [
        "npgpt2: reading: 60 of 1,000 (6 %), about 8 min left",
        "npgpt2: reading: 120 of 1,000 (12 %), about 7 min left",
        "npgpt2: reading: 180 of 1,000 (18 %), about 7 min left",
    ]
    assert lines(range(7), 11, clock, capsys, "scoring", 700, lambda _: 100, " rows") == [
        "npgpt2: scoring: 300 of 700 rows (43 %), about 44 s left",
        "npgpt2: scoring: 600 of 700 rows (86 %), about 11 s left",
    ]


def test_long_items_are_a_line_each(capsys, clock):
    assert lines("abc", 40_000, clock, capsys, "verifying") == [
        "npgpt2: verifying: 1 of 3 (33 %), about 22 h left",
        "npgpt2: verifying: 2 of 3 (67 %), about 11 h left",
        "npgpt2: verifying: 3 of 3 (100 %)",
    ]
    waiting = taking(1, range(65), clock)  # for the first that counts
    assert lines(waiting, 0, clock, capsys, "writing", 9, lambda item: item // 60) == [
        "npgpt2: writing: 0 of 9 (0 %)",
        "npgpt2: writing: 0 of 9 (0 %)",
    ]
    assert lines(taking(31, "ab", clock), 0, clock, capsys, "reading") == [
        "npgpt2: reading: 0",
        "npgpt2: reading: 2",
    ]


def test_a_log_that_nobody_reads_any_more(monkeypatch, clock):
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w") as log:
        monkeypatch.setattr(sys, "stderr", log)
        for _ in progress(range(6), "reading"):
            clock[0] += 40
    assert clock[0] == 240


def test_a_terminal_without_tqdm_has_lines(capsys, monkeypatch, clock):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert lines(range(6), 0.3, clock, capsys, "reading") == []
    assert lines(range(20), 2, clock, capsys, "reading") == [
        "npgpt2: reading … (pip install 'npgpt2[progress]' shows a bar)",
        "npgpt2: reading: 15 of 20 (75 %), about 10 s left",
    ]


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("AuthenticAMD", NEEDED | {"sse"}, "SkylakeX"),
        ("AuthenticAMD", NEEDED - {"avx512dq"}, None),
        ("GenuineIntel", NEEDED, None),
    ],
)
def test_the_blas_kernel_is_named_only_where_the_processor_has_it(
    tmp_path, monkeypatch, vendor, flags, expected
):
    cpuinfo = tmp_path / "cpuinfo"
    core = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {' '.join(flags)}\n"
    cpuinfo.write_text(core + "\n" + core)
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.delitem(sys.modules, "numpy")
    assert choose_kernel(cpuinfo) == expected
    assert os.environ.get("OPENBLAS_CORETYPE") == expected
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert choose_kernel(cpuinfo) is None
    assert choose_kernel(tmp_path / "none") is None

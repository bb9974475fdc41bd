"""`npgpt2 batch`: every row once, in order, whatever happens in the night."""

import json
import os
import pickle
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from patience import PATIENCE, until
from rows import MERCY, OPTIONS, TINY, batch, parts_in, prompts, results, write_lines

from npgpt2 import GPT2, cli
from npgpt2.base import errors
from npgpt2.base.errors import FileError
from npgpt2.bulk import parts as parts_module
from npgpt2.bulk.folder import MANIFEST
from npgpt2.bulk.parts import Row, parts_of, rows_of
from npgpt2.generation.scoring import Window, batches, token_logprobs
from npgpt2_onnx import export

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def truth():
    return GPT2.from_pretrained(TINY)


# ── what is found ────────────────────────────────────────────────────────────────────────────────


def test_texts_are_those_of_generate_whoever_works(tmp_path, truth):
    """Row r is sample r of the seed: on one worker or two, in one part or in several."""
    source = write_lines(tmp_path / "in.jsonl", prompts(300))
    options = ["--task", "generate", "--seed", 7, "--max-new-tokens", 6, "--temperature", 1]
    batch(source, "-o", tmp_path / "one", *options, "--workers", 1)
    batch(source, "-o", tmp_path / "two", *options, "--workers", 2)
    found = results(tmp_path / "one")
    assert found == results(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("part-*"))) == 5
    assert [row["row"] for row in found] == list(range(300))
    assert [row["id"] for row in found] == [f"row {n}" for n in range(300)]
    rows = list(prompts(300))
    for n in (0, 1, 17, 299):
        want = truth.generate(rows[n]["prompt"], seed=7, max_new_tokens=6, temperature=1,
                              num_samples=n + 1)[n]  # fmt: skip
        assert (found[n]["text"], found[n]["ids"]) == (want.text, want.ids)
        assert found[n]["finish_reason"] == want.finish_reason
    assert len({row["text"] for row in found}) > 250


def test_scores_and_embeddings_are_those_of_one_at_a_time(tmp_path, truth):
    rows = [*prompts(20), {"id": 5, "text": MERCY * 5}, {"text": truth.encode(MERCY)}, MERCY]
    source = write_lines(tmp_path / "in.jsonl", rows)
    texts = [row if isinstance(row, str) else row.get("prompt", row.get("text")) for row in rows]
    batch(source, "-o", tmp_path / "scores", "--task", "score", "--workers", 1, code=1)
    for found, text in zip(results(tmp_path / "scores"), texts, strict=True):
        if len(truth.ids(text)) < 2:
            assert found["error"].startswith("text: has 1 token, expected at least two")
            continue
        score = truth.score(text)
        assert found["tokens"] == score.tokens
        for name in ("nats", "perplexity", "bits_per_byte"):
            assert found[name] == pytest.approx(getattr(score, name), rel=1e-5)
    said = batch(source, "-o", tmp_path / "embeds", "--task", "embed", "--workers", 1, code=1)
    assert "1 of 23 rows failed" in said  # the text of 5 times as many tokens
    for found, text in zip(results(tmp_path / "embeds"), texts, strict=True):
        if "error" in found:
            assert found["error"].startswith("prompt: is longer than the context: ")
            continue
        assert found["embedding"] == pytest.approx(truth.embed(text), abs=1e-4)
        assert found["tokens"] == len(truth.encode(text))


def test_on_an_exported_folder(tmp_path, truth):
    out = export(TINY, tmp_path / "tiny")
    source = write_lines(tmp_path / "in.jsonl", prompts(12))
    for task in ("generate", "score", "embed"):
        engine = ["--engine", "onnx", "--model", str(out), "--workers", 1]
        options = ["--temperature", "0"] if task == "generate" else []
        batch(source, "-o", tmp_path / task, "--task", task, *engine, *options,
              code=int(task == "score"))  # fmt: skip
    for row, asked in zip(results(tmp_path / "generate"), prompts(12), strict=True):
        assert row["text"] == truth.generate(asked["prompt"], temperature=0)[0].text
    for row, asked in zip(results(tmp_path / "embed"), prompts(12), strict=True):
        assert row["embedding"] == pytest.approx(truth.embed(asked["prompt"]), abs=1e-4)


def test_parquet_in_and_out(tmp_path, truth):
    """Row groups of other sizes than parts; ids keep their kind."""
    rows = list(prompts(700))
    table = pyarrow.table({
        "id": pyarrow.array(range(1000, 1700), pyarrow.int64()),
        "other": [1.5] * 700, "text": [row["prompt"] for row in rows],
    })  # fmt: skip
    source = tmp_path / "in.parquet"
    parquet.write_table(table, source, row_group_size=300)
    batch(source, "-o", tmp_path / "out", "--task", "embed")
    files = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert len(files) == 12  # 4 × 64 + 44, 4 × 64 + 44, 64 + 36
    found = pyarrow.concat_tables([parquet.read_table(file) for file in files])
    assert found["row"].to_pylist() == list(range(700))
    assert found["id"].to_pylist() == list(range(1000, 1700))
    assert found.schema.field("id").type == pyarrow.int64()
    assert found["error"].null_count == 700
    for n in (0, 63, 64, 299, 300, 699):
        want = truth.embed(rows[n]["prompt"])
        assert found["embedding"][n].as_py() == pytest.approx(want, abs=1e-4)
    batch(source, "-o", tmp_path / "lines", "--task", "embed", "--format", "jsonl")
    assert [row["id"] for row in results(tmp_path / "lines")] == list(range(1000, 1700))


def test_errors_and_ids_of_text_in_parquet(tmp_path):
    table = pyarrow.table({"id": ["a", None, "c"], "prompt": ["KING", None, ""]})
    parquet.write_table(table, tmp_path / "in.parquet")
    batch(tmp_path / "in.parquet", "-o", tmp_path / "out", "--task", "generate", code=1)
    [file] = (tmp_path / "out").glob("part-*.parquet")
    found = parquet.read_table(file).to_pylist()
    assert [row["id"] for row in found] == ["a", None, "c"]
    assert [row["error"] for row in found] == [
        None, "prompt: got null, expected text or ids",
        "prompt: is empty, expected at least one token. For a text without a prompt give "
        "'<|endoftext|>'",
    ]  # fmt: skip
    assert found[0]["text"]
    assert found[1]["text"] is None


def test_ids_that_parquet_has_no_place_for(tmp_path):
    """A lone surrogate; a whole number of 64 bits."""
    rows = [{"id": "\ud800", "prompt": "KING"}, {"id": 5, "prompt": "KING"}]
    source = write_lines(tmp_path / "in.jsonl", rows)
    batch(source, "-o", tmp_path / "out", "--task", "embed", "--format", "parquet")
    [file] = (tmp_path / "out").glob("part-*.parquet")
    assert parquet.read_table(file)["id"].to_pylist() == ["\\ud800", "5"]
    ids = pyarrow.array([2**64 - 1], pyarrow.uint64())
    parquet.write_table(pyarrow.table({"id": ids, "text": ["KING"]}), tmp_path / "in.parquet")
    batch(tmp_path / "in.parquet", "-o", tmp_path / "large", "--task", "embed")
    [file] = (tmp_path / "large").glob("part-*.parquet")
    assert parquet.read_table(file)["id"].to_pylist() == [str(2**64 - 1)]


def test_a_folder_of_both(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [row["prompt"] for row in prompts(9)]
    write_lines(folder / "a.jsonl", rows[:5])
    parquet.write_table(pyarrow.table({"prompt": rows[5:]}), folder / "b.parquet")
    (folder / "notes.txt").write_text("none of these")
    (folder / ".hidden.jsonl").write_text("{")
    batch(folder, "-o", tmp_path / "out", "--task", "embed")
    assert [row["row"] for row in results(tmp_path / "out")] == list(range(9))
    assert all("id" not in row for row in results(tmp_path / "out"))


BAD = [
    (b"{bad", "line: is not JSON (Expecting property name enclosed in double quotes: "
              "line 1 column 2 (char 1))"),
    (b"\xff\xfe", "line: not UTF-8 at byte 0"),
    (b"[" * 100_000, "line: is not JSON (nested too deep)"),
    (b'{"prompt": ' + b"1" * 5000 + b"}", None),
    (b"{}", 'prompt: is missing, expected a field "prompt" or "text"'),
    (b"null", "line: got null, expected text or ids"),
    (b"5", "line: got a int, expected text or ids"),
    (b'{"prompt": null}', "prompt: got null, expected text or ids"),
    (b'{"text": {"a": 1}}', "text: got a dict, expected text or ids"),
    (b'{"prompt": [1, 2.5]}', "prompt: got a list, expected text or ids"),
    (b'{"prompt": [true]}', "prompt: got a list, expected text or ids"),
    (b'{"prompt": [512]}', "prompt: has the id 512, expected 0 to 511"),
    (b'{"prompt": [-1]}', "prompt: has the id -1, expected 0 to 511"),
    (b'{"prompt": []}', "prompt: is empty, expected at least one token. For a text without a "
                        "prompt give '<|endoftext|>'"),
    (b'{"prompt": ""}', "prompt: is empty, expected at least one token. For a text without a "
                        "prompt give '<|endoftext|>'"),
    (b'{"prompt": "\\ud800"}', "text: a lone surrogate (U+D800) at character 0, expected Unicode"),
    (b'{"prompt": [' + b"5, " * 128 + b"5]}",
     "prompt: is longer than the context: 129 > 128 tokens. Shorten it"),
    (b'{"id": ["a"], "prompt": "KING"}', "id: got a list, expected text or a number"),
    (b'{"id": NaN, "prompt": "KING"}', "id: got nan, expected text or a number"),
]  # fmt: skip


def test_a_bad_line_is_that_lines_error(tmp_path):
    """Between good ones, which do not notice."""
    lines = []
    for bad, _ in BAD:
        lines += [b'{"id": "good", "prompt": "KING"}', bad]
    (tmp_path / "in.jsonl").write_bytes(
        b"\xef\xbb\xbf" + b"\n".join(lines) + b"\r\n\n  \n" + lines[0]
    )
    out = tmp_path / "out"
    said = batch(tmp_path / "in.jsonl", "-o", out, "--task", "generate", "--temperature", 0, code=1)
    assert said.splitlines()[-1] == (
        f"npgpt2: error: {out}: {len(BAD)} of {2 * len(BAD) + 3} rows failed: see their "
        "field 'error'. The others are done"
    )
    found = results(out)
    good, bad = [row for row in found if "id" in row], [row for row in found if "id" not in row]
    assert len({row["text"] for row in good}) == 1
    assert [row["row"] for row in good] == [*range(0, 2 * len(BAD), 2), 2 * len(BAD) + 2]
    assert [row["row"] for row in bad] == list(range(1, 2 * len(BAD), 2))
    for row, (_, message) in zip(bad, BAD, strict=True):
        if message is not None:
            assert row == {"row": row["row"], "error": message}
        assert row["error"]


def test_rows_that_a_model_fails_over_fail_alone(tmp_path, truth):
    """NaN for one token: rows with it have an error, those of their batch do not."""
    from npgpt2.checkpoints.checkpoint import save

    folder = tmp_path / "nan"
    folder.mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"):
        if Path(TINY, name).exists():
            (folder / name).write_bytes(Path(TINY, name).read_bytes())
    wte = truth.params.wte.weight.copy()
    wpe = truth.params.wpe.weight.copy()
    wpe[5] = np.nan  # who is longer than five tokens
    params = truth.params._replace(
        wte=truth.params.wte._replace(weight=wte), wpe=truth.params.wpe._replace(weight=wpe)
    )
    save(folder, truth.config, params)
    rows = [[5, 6, 7], [5] * 9, [8, 9], [5] * 8]
    source = write_lines(tmp_path / "in.jsonl", rows)
    for task in ("generate", "score", "embed"):
        options = ["--max-new-tokens", 2, "--temperature", 0] if task == "generate" else []
        said = batch(source, "-o", tmp_path / task, "--task", task, "--model", folder, *options,
                     code=1)  # fmt: skip
        assert "2 of 4 rows failed" in said
        errors = [row.get("error") for row in results(tmp_path / task)]
        what = "hidden states" if task == "embed" else "logits"
        nan = f"{what}: NaN or infinity. The weights have them, or values overflow"
        assert errors == [None, nan, None, nan]


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("size", [1, 40, 1 << 20])
def test_parts_are_every_line_once(tmp_path, monkeypatch, chunk, size, end):
    monkeypatch.setattr(parts_module, "CHUNK", chunk)
    monkeypatch.setattr(parts_module, "BYTES", size)
    for count in (0, 1, 3, 4, 5, 8, 23):
        lines = [json.dumps(f"{n}" * (n % 5)).encode() for n in range(count)]
        (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + (end if lines else b""))
        found = list(parts_of([tmp_path / "in.jsonl"], 4))
        assert [part.number for part in found] == list(range(len(found)))
        assert all(1 <= part.rows <= 4 for part in found)
        assert sum(part.rows for part in found) == count
        rows = [row for part in found for row in rows_of(part)]
        assert rows == [Row(n, None, f"{n}" * (n % 5)) for n in range(count)]
        if size == 1:
            assert all(part.rows == 1 for part in found)


def test_a_line_without_end_takes_no_memory(tmp_path):
    """400 MB between two good lines."""
    path = tmp_path / "in.jsonl"
    with path.open("wb") as file:
        file.write(b'"KING"\n')
        for _ in range(400):
            file.write(b" " * (1 << 20))
        file.write(b'\n"KING"\n')
    # From a small process: what it holds as it forks counts as its child's, too.
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run([sys.executable, '-m', 'npgpt2', 'batch', *sys.argv[1:]])\n"
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    told = [path, "-o", tmp_path / "out", "--task", "embed", "--model", TINY, "--workers", "1"]
    done = subprocess.run([sys.executable, "-c", code, *told], capture_output=True, text=True)
    returned, kilobytes = map(int, done.stdout.split())
    assert returned == 1, done.stderr
    assert kilobytes < 256 << 10  # the larger of the command and its worker
    first, long, last = results(tmp_path / "out")
    assert long["error"] == "line: is longer than 16,777,216 bytes"
    assert first["embedding"] == last["embedding"]


def test_a_file_that_changes_in_between(tmp_path):
    path = write_lines(tmp_path / "in.jsonl", ["a"] * 6)
    first, second = parts_of([path], 4)
    write_lines(path, ["a"] * 5)
    assert len(rows_of(first)) == 4
    with pytest.raises(FileError, match="has changed since its rows were counted"):
        rows_of(second)


def test_windows_of_about_one_length_are_computed_together():
    lengths = [3, 90, 4, 88, 5, 40, 3]
    todo = [(n, Window(0, 1, length)) for n, length in enumerate(lengths)]
    found = [[lengths[n] for n, _ in batch] for batch in batches(todo, 180)]
    assert found == [[90, 88], [40, 5, 4, 3], [3]]
    assert [len(batch) for batch in batches(todo, 0)] == [1] * 7
    asked = []

    def logits_of(ids):
        asked.append(ids.shape)
        return np.zeros((*ids.shape, 10))

    texts = [np.arange(length) % 10 for length in lengths]
    scores = token_logprobs(logits_of, texts, 100, together=180)
    assert asked == [(2, 89), (4, 39), (1, 2)]
    for score, length in zip(scores, lengths, strict=True):
        assert score[1:] == pytest.approx(np.full(length - 1, -np.log(10)))


# ── the night ────────────────────────────────────────────────────────────────────────────────────


def start(*arguments):
    command = [sys.executable, "-m", "npgpt2", "batch", *map(str, arguments), "--model", TINY]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def children(process):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process.pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def await_more_parts(out, process):
    before = parts_in(out)
    until(lambda: parts_in(out) > before or process.poll() is not None)


def await_end(processes):
    until(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))


PARTS = 32


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Rows for 32 parts, and what an undisturbed run finds."""
    folder = tmp_path_factory.mktemp("night")
    source = write_lines(folder / "in.jsonl", prompts(2000))
    batch(source, "-o", folder / "whole", *OPTIONS)
    return source, results(folder / "whole")


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_every_row_is_there_once(tmp_path, night):
    source, want = night
    out, chosen, kills = tmp_path / "out", random.Random(0), 0
    while kills < 3 or parts_in(out) < PARTS:
        if parts_in(out) == PARTS:
            shutil.rmtree(out)  # it was quicker than the kills, or this process slower
        process = start(source, "-o", out, *OPTIONS, "--resume")
        workers = []
        try:
            await_more_parts(out, process)
            time.sleep(chosen.random())
            workers = children(process)
        finally:
            process.kill()
            said = process.communicate()[1]
        assert process.returncode in (-9, 0), said
        kills += process.returncode == -9
        await_end(workers)  # they do not outlive it
    said = batch(source, "-o", out, *OPTIONS, "--resume")
    assert f"npgpt2: {PARTS} of {PARTS} parts are done already\n" in said
    assert results(out) == want
    names = {path.name for path in out.iterdir()}
    assert names == {MANIFEST, *(f"part-{n:08d}.jsonl" for n in range(PARTS))}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_told_to_end_it_leaves_nothing_running(tmp_path, night, number, code):
    source, want = night
    out = tmp_path / "out"
    process = start(source, "-o", out, *OPTIONS)
    until(lambda: parts_in(out) > 0)
    workers = children(process)
    process.send_signal(number)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == code, said
    assert "Traceback" not in said
    if number == signal.SIGINT:
        assert re.search(r"npgpt2: \d+ of 32 parts are done\. Resume with --resume\n", said)
    assert len(workers) >= 2
    await_end(workers)
    assert not list(out.glob(".*"))
    batch(source, "-o", out, *OPTIONS, "--resume")
    assert results(out) == want


def test_a_worker_that_dies_is_replaced(tmp_path, night):
    source, want = night
    out = tmp_path / "out"
    process = start(source, "-o", out, *OPTIONS)
    until(lambda: parts_in(out) > 0)
    killed = [pid for pid in children(process) if b"spawn_main" in
              Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip
    os.kill(killed[0], signal.SIGKILL)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, said
    assert results(out) == want


def test_a_part_that_kills_every_worker_ends_the_run(tmp_path):
    """With what to look at, in place of going on for ever."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if any('spawn_main' in a for a in sys.orig_argv): os.kill(os.getpid(), 9)\n"
    )
    source = write_lines(tmp_path / "in.jsonl", ["KING"])
    done = subprocess.run(
        [sys.executable, "-m", "npgpt2", "batch", source, "-o", tmp_path / "out", "--task", "embed",
         "--model", TINY],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1] == (
        f"npgpt2: error: {source}: a worker died 3 times, at or near rows 0 to 0. If memory "
        "is short, try --workers 1"
    )


def test_every_error_of_ours_comes_home_from_a_worker():
    """As it was raised: a class that cannot be pickled would bring the pool down instead."""
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.NpGPT2Error):
            one = error("dtype", "got 5") if error is errors.OptionError else error("wte: got 5")
            back = pickle.loads(pickle.dumps(one))
            assert (type(back), str(back), vars(back)) == (error, str(one), vars(one))


# ── what is wrong from the beginning ─────────────────────────────────────────────────────────────


@pytest.fixture
def run(capsys):
    """`npgpt2 batch ARGUMENTS` in this process: code, and the last line on standard error."""

    def call(*arguments):
        try:
            code = cli.main(["batch", *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err.splitlines()[-1]

    return call


def test_rows_from_standard_input(tmp_path, run, monkeypatch):
    """Kept in the run's folder, so that the run can be resumed; then the input is not read."""
    source = write_lines(tmp_path / "in.jsonl", ["the king", "O Romeo, Romeo"] * 40)
    options = ("--task", "score", "--model", TINY, "--workers", 1)
    assert run(source, "-o", tmp_path / "file", *options)[0] == 0
    with source.open() as rows:
        monkeypatch.setattr(sys, "stdin", rows)
        assert run("-", "-o", tmp_path / "out", *options)[0] == 0
    assert results(tmp_path / "out") == results(tmp_path / "file")
    (tmp_path / "out" / "part-00000001.jsonl").unlink()
    monkeypatch.setattr(sys, "stdin", None)
    for wrong in (("--model", tmp_path / "nowhere"), ("--seed", 1)):  # before the input is read
        assert run("-", "-o", tmp_path / "none", *options, *wrong)[0] != 0
        assert not (tmp_path / "none").exists()
    assert run("-", "-o", tmp_path / "out", *options, "--resume")[0] == 0
    assert results(tmp_path / "out") == results(tmp_path / "file")
    code, last = run("-", "-o", tmp_path / "none", *options)
    assert (code, last) == (4, "npgpt2: error: standard input: is closed, expected text")


def test_wrong_commands(tmp_path, run):
    source = write_lines(tmp_path / "in.jsonl", ["KING"])
    other = tmp_path / "in.csv"
    other.write_text("a,b\n")
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "theirs").write_text("x")
    parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    kinds = ".jsonl, .ndjson, .parquet or a folder of these"
    out = tmp_path / "out"
    for arguments, code, said in [
        ([source, "--task", "score"], 2,
         "the following arguments are required: -o/--out. See 'npgpt2 batch --help'"),
        ([source, "-o", out], 2,
         "the following arguments are required: --task. See 'npgpt2 batch --help'"),
        ([source, "-o", "", "--task", "score"], 2, "--out: got '', expected a folder"),
        ([source, "-o", out, "--task", "score", "--workers", 0], 2,
         "--workers: got 0, expected 1 to 4,096"),
        ([source, "-o", out, "--task", "score", "--seed", 1], 2,
         "--seed: works with --task generate only. Leave it out"),
        ([source, "-o", out, "--task", "generate", "--top-p", 2], 2,
         "--top-p: got 2.0, expected a number above 0 and up to 1"),
        ([tmp_path / "no.jsonl", "-o", out, "--task", "score"], 4,
         f"{tmp_path}/no.jsonl: No such file or directory"),
        ([other, "-o", out, "--task", "score"], 4, f"{other}: ends in '.csv', expected {kinds}"),
        ([empty, "-o", out, "--task", "score"], 4,
         f"{empty}: has no such file, expected {kinds}"),
        ([tmp_path / "none.parquet", "-o", out, "--task", "score"], 4,
         f"{tmp_path}/none.parquet: got columns a, expected prompt or text"),
        ([tmp_path / "broken.parquet", "-o", out, "--task", "score"], 4, None),
        ([source, "-o", full, "--task", "score"], 4,
         f"{full}: has other files, expected a batch run or none. Name another"),
        ([source, "-o", source, "--task", "score"], 4, None),
        ([source, "-o", out, "--task", "score", "--model", tmp_path / "nowhere"], 4, None),
        ([source, "-o", out, "--task", "embed", "--engine", "onnx", "--model", TINY], 4, None),
    ]:  # fmt: skip
        got, last = run(*arguments)
        assert got == code, last
        assert last.startswith("npgpt2: error: ")
        if said is not None:
            assert last == f"npgpt2: error: {said}"


def test_a_run_goes_on_with_what_it_began_with(tmp_path, run):
    source = write_lines(tmp_path / "in.jsonl", ["KING"])
    out = tmp_path / "out"
    asked = [source, "-o", out, "--task", "generate", "--model", TINY]
    batch(*asked[:-2], "--seed", 5)
    for more, said in [
        ([], f"{out}: exists. Resume it with --resume, or name another folder"),
        (["--resume", "--seed", 6],
         f"{out}: got seed 6, expected 5 as at the start of the run. Use the same value, "
         "or another folder"),
        (["--resume", "--top-k", 6],
         f"{out}: got top_k 6, expected None as at the start of the run. Use the same "
         "value, or another folder"),
        (["--resume", "--format", "parquet"],
         f"{out}: got format 'parquet', expected 'jsonl' as at the start of the run. Use the "
         "same value, or another folder"),
    ]:  # fmt: skip
        assert run(*asked, *more) == (4, f"npgpt2: error: {said}")
    code, last = run(*asked, "--resume")  # the seed that it began with
    assert (code, last) == (0, f"npgpt2: 1 row in 1 part in {out}")
    write_lines(source, ["KINGS"])
    assert run(*asked, "--resume") == (
        4, f"npgpt2: error: {out}: the input has changed since this run began. Start a new run"
    )  # fmt: skip
    about = json.loads((out / MANIFEST).read_text())
    write_lines(source, ["KING"])
    os.utime(source, ns=(about["inputs"][0][2],) * 2)
    (out / MANIFEST).write_text(json.dumps(about | {"parts": 2}))
    assert run(*asked, "--resume") == (
        4, f"npgpt2: error: {out}: got 1 parts, expected 2 as at the start of the run, by another "
        "version. Use another folder"
    )  # fmt: skip
    (out / MANIFEST).write_text('{"schema": "npgpt2.batch/9"}')
    assert run(*asked, "--resume") == (
        4, f"npgpt2: error: {out / MANIFEST}: has schema 'npgpt2.batch/9', expected npgpt2.batch/1"
    )  # fmt: skip


def test_parts_are_cut_as_they_were_when_the_run_began(tmp_path, run):
    """By a version that takes other sizes."""
    source = write_lines(tmp_path / "in.jsonl", prompts(20))
    out = tmp_path / "out"
    asked = [source, "-o", out, "--task", "embed", "--model", TINY]
    batch(*asked[:-2])
    want = results(out)
    about = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(about | {"most": 7, "parts": 3}))
    (out / "part-00000000.jsonl").write_text("".join(json.dumps(r) + "\n" for r in want[:7]))
    assert run(*asked, "--resume")[0] == 0
    assert [row["id"] for row in results(out)] == [row["id"] for row in want]
    assert parts_in(out) == 3


def test_killed_before_it_had_begun(tmp_path, run):
    source, out = write_lines(tmp_path / "in.jsonl", prompts(5)), tmp_path / "out"
    out.mkdir()
    (out / f".{MANIFEST}.new").write_text("{")
    (out / "pid").write_text("5")
    code, last = run(source, "-o", out, "--task", "embed", "--model", TINY, "--resume")
    assert code == 0, last
    assert {path.name for path in out.iterdir()} == {MANIFEST, "part-00000000.jsonl"}


def test_parquet_without_its_library(tmp_path, run, monkeypatch):
    source = write_lines(tmp_path / "in.jsonl", ["KING"])
    parquet.write_table(pyarrow.table({"text": ["KING"]}), tmp_path / "in.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for file, more in ((source, ["--format", "parquet"]), (tmp_path / "in.parquet", [])):
        assert run(file, "-o", tmp_path / "out", "--task", "embed", "--model", TINY, *more) == (
            4, "npgpt2: error: parquet: needs pyarrow. Run: pip install 'npgpt2[batch]'"
        )  # fmt: skip


def test_two_at_once(tmp_path, run, night):
    source, _ = night
    out = tmp_path / "out"
    process = start(source, "-o", out, *OPTIONS)
    try:
        until(lambda: parts_in(out) > 0)
        code, last = run(source, "-o", out, *OPTIONS, "--resume", "--model", TINY)
        assert code == 4
        assert last == (
            f"npgpt2: error: {out}: process {process.pid} is writing there. Wait for it, or end it"
        )
    finally:
        process.kill()
        process.communicate()


def test_an_empty_file_is_done_at_once(tmp_path, run):
    (tmp_path / "in.jsonl").write_text("")
    out = tmp_path / "out"
    code, last = run(tmp_path / "in.jsonl", "-o", out, "--task", "score", "--model", TINY)
    assert (code, last) == (0, f"npgpt2: 0 rows in 0 parts in {out}")


def test_a_terminal_sees_rows_a_second_and_the_time_left(tmp_path, night):
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    source, _ = night
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "npgpt2", "batch", source, "-o", tmp_path / "out",
               *map(str, OPTIONS), "--model", TINY]  # fmt: skip
    process = subprocess.Popen(command, stderr=writer)
    os.close(writer)
    data = b""
    try:
        while True:
            data += os.read(reader, 4096)
    except OSError:  # the end of a terminal
        pass
    os.close(reader)
    assert process.wait(PATIENCE) == 0
    shown = re.findall(rb"generate: .*?\| (\d+)/2000 \[\d+:\d+<\d+:\d+, +[\d.]+ rows/s\]", data)
    assert len(set(shown)) > 1, data

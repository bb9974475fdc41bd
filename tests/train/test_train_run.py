"""npgpt2 train as a person meets it: runs that are killed, full disks, bad options, terminals."""

import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from command_line import runner, uncovered
from patience import FOREVER, PATIENCE, bounded, watched
from safetensors.numpy import load_file, save_file

from npgpt2 import GPT2, GPT2Config
from npgpt2.base.errors import FileBusy, FileError, MissingPackage, OptionError, TrainingError
from npgpt2.base.files import held, replaced
from npgpt2.checkpoints.checkpoint import save
from npgpt2.model.params import named_parameters
from npgpt2.train import Callback, Settings, train
from npgpt2.train.loop import Training
from npgpt2.train.state import Arrays, save_state

TINY = Path(__file__).parents[1] / "data" / "tiny"
NPGPT2 = [sys.executable, "-m", "npgpt2"]
PIPE = subprocess.PIPE
WHO, VERBS, WHAT = ("The king", "A queen", "Her son"), ("saw", "lost", "found"), ("a crown", "gold")
TEXT = "".join(
    f"{who} {verb} {what} in May {year}.\n"
    for year, who, verb, what in product(range(1590, 1596), WHO, VERBS, WHAT)
)
SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 300}
SMALL = {**SHAPE, "batch_size": 4, "threads": 1}
ALL_ON = {**SMALL, "accumulate": 2, "ema": 0.9, "eval_every": 3, "save_every": 4, "seed": 1}


@pytest.fixture(autouse=True)
def _bounded():
    """What waits for ever fails."""
    with bounded():
        yield


@pytest.fixture
def npgpt2(capsys):
    """A function: arguments → exit code, standard output, standard error."""
    return runner(capsys)


@pytest.fixture
def run(npgpt2):
    """A function: `npgpt2 train` with these arguments does it; returns standard error."""

    def call(*args):
        code, _, err = npgpt2("train", *args)
        assert code == 0, err
        return err

    return call


@pytest.fixture
def refused(npgpt2):
    """A function: `npgpt2 train` is refused with this code and these words, in one line."""

    def check(code, words, *args):
        got, out, err = npgpt2("train", *args)
        assert (got, out) == (code, ""), err
        lines = [line for line in err.splitlines() if not NOTE.match(line)]
        assert len(lines) == 1, err
        assert lines[0].startswith("npgpt2: error: ")
        assert words in lines[0]
        assert "This is a bug" not in err
        return lines[0]

    return check


NOTE = re.compile(r"npgpt2: (warning: |  |step [\d,]+: |resuming after |[\d,]+ parameters; )")


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def finished(text, tmp_path_factory):
    """A run of 12 steps with everything on. Only to be read."""
    return train([text], tmp_path_factory.mktemp("finished") / "run", **ALL_ON, steps=12)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def killed(copy):
    """As if it had been killed before its last checkpoint: the log is further than the state."""
    shutil.rmtree(copy / "checkpoint-12")
    return copy


def flags(settings):
    """As options of the command line."""
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in settings.items()]
    return [word for flag, value in pairs for word in ([flag] if value is True else [flag, value])]


def content(folder):
    """Every file, and what is in it. Of state.json the time that was spent is left out."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    found = {name: path.read_bytes() for name, path in sorted(files.items())}
    for name in found:
        if name.endswith("state.json"):
            found[name] = {k: v for k, v in json.loads(found[name]).items() if k != "seconds"}
    return found


def differing(one, other, but=()):
    """The files that two folders do not share to the last byte."""
    one, other = content(one), content(other)
    names = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    return sorted(name for name in names if not name.startswith(tuple(but)))


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path, at=0.5):
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1
    path.write_bytes(data)


def tensors(path):
    return load_file(path / "model.safetensors")


def poison(run, name, value):
    """Write the newest checkpoint again with another weight."""
    was = Training(run, Callback())
    dict(named_parameters(was.arrays.params.tree))[name][...] = value
    save_state(run, was.config, was.arrays, was.state)


def reshape(run, **shape):
    """Write the newest checkpoint again with a model of another shape."""
    was = Training(run, Callback())
    other = GPT2.from_random(replace(was.config, **shape))
    save_state(run, was.config, Arrays.of(other.params, was.settings), was.state)


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().split("\n") if line]


# ── other processes ──────────────────────────────────────────────────────────────────────────────


SLOW = """
import signal, sys, time
from itertools import count
from npgpt2 import cli
from npgpt2.train.loop import Training
step, number = Training._step, count(1)
seconds, held = float(sys.argv[1]), int(sys.argv[2])
def slow(*args):
    print("step", flush=True)
    if next(number) == held:
        sys.stdin.readline()
    time.sleep(seconds)
    return step(*args)
Training._step = slow
sys.exit(cli.main(sys.argv[3:]))
"""


@contextmanager
def slow(seconds, *args, held=0, **options):
    """`npgpt2 train` in a process of its own, at its first step, of which each takes a while.

    Or at the step number `held`, which waits until standard input is closed.
    """
    argv = [sys.executable, "-c", SLOW, str(seconds), str(held), "train", *map(str, args)]
    streams = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, "text": True, "env": uncovered()}
    with watched(subprocess.Popen(argv, **streams | options)) as process:
        try:
            for _ in range(held or 1):
                line = process.stdout.readline()
                assert line == "step\n", process.stderr and process.stderr.read()
            yield process
        finally:
            process.kill()


def shell(script, *args):
    """Run a bash script in which "$@" is the command."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}", "sh", *NPGPT2, "train", *map(str, args)],
        capture_output=True, text=True, env=uncovered(), timeout=PATIENCE,
    )  # fmt: skip


# ── what a run makes ─────────────────────────────────────────────────────────────────────────────


def test_a_run_leaves_a_model_its_log_a_picture_and_two_checkpoints(finished):
    names = {path.name for path in finished.iterdir()}
    vocabulary = {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"}
    model = {"config.json", "generation_config.json", "model.safetensors", *vocabulary}
    run = {"training.json", "train.npy", "val.npy", "log.jsonl", "loss.png"}
    assert names == model | run | {"checkpoint-8", "checkpoint-12"}
    inside = {path.name for path in (finished / "checkpoint-8").iterdir()}
    assert inside == model | {"optimizer.safetensors", "state.json"}
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert {path.name for path in finished.parent.iterdir()} == {"run"}


def test_the_log_has_a_line_for_each_step_and_validation(finished):
    lines = log(finished)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    checks = [line for line in lines if "validation" in line]
    assert [line["step"] for line in checks] == [3, 6, 9, 12]
    assert all(line.keys() == {"step", "loss", "norm", "lr"} for line in lines if "loss" in line)
    assert all(line.keys() == {"step", "validation", "bits_per_byte", "sample"} for line in checks)


def test_the_command_says_what_happens(npgpt2, text, finished, tmp_path):
    code, out, err = npgpt2("train", text, "-o", tmp_path / "out", *flags(ALL_ON), "--steps", 12)
    assert code == 0
    assert differing(tmp_path / "out", finished) == []
    assert str(tmp_path / "out") in out
    assert out.count("\n") == 1
    notes = err.splitlines()
    assert re.match(r"npgpt2: [\d,]+ parameters; tokens: [\d,]+ \(train\), \d+ \(val\)", notes[0])
    best = min(line["validation"] for line in log(finished) if "validation" in line)
    assert f"validation loss {best:.4f}, " in err
    assert len(re.findall(r"^npgpt2: step \d+: validation loss .* bits per byte$", err, re.M)) == 4
    assert all(note.startswith("npgpt2: ") for note in notes)
    assert f"npgpt2 generate --model {tmp_path / 'out'}" in notes[-1]


def test_the_model_is_the_one_of_the_lowest_validation_loss(finished):
    """Of a run whose validation loss falls to the end: the running mean of the last step."""
    moments = load_file(finished / "checkpoint-12" / "optimizer.safetensors")
    for name, array in tensors(finished).items():
        mean = moments[f"ema.{name.removeprefix('transformer.')}"]
        assert np.array_equal(array, mean), name


def test_a_validation_that_is_worse_does_not_replace_the_model(run, text, tmp_path):
    options = {**SMALL, "steps": 9, "eval_every": 1, "lr": 3.0, "warmup": 9}
    run(text, "-o", tmp_path / "out", *flags(options))
    checks = [line["validation"] for line in log(tmp_path / "out") if "validation" in line]
    assert min(checks) < checks[-1]
    ids = np.load(tmp_path / "out" / "val.npy")[:16][None].astype(int)
    model, last = (GPT2.from_pretrained(tmp_path / "out" / name) for name in (".", "checkpoint-9"))
    assert model(ids, labels=ids).loss != last(ids, labels=ids).loss


def test_without_validation_the_model_is_the_newest(run, text, tmp_path):
    err = run(text, "-o", tmp_path / "out", *flags(SMALL), "--steps", 3, "--val-fraction", 0)
    assert "validation loss" not in err
    assert not (tmp_path / "out" / "val.npy").exists()
    assert [sorted(line) for line in log(tmp_path / "out")] == [["loss", "lr", "norm", "step"]] * 3
    one, other = (tensors(tmp_path / "out" / name) for name in (".", "checkpoint-3"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_half_writes_float16_and_computes_in_float32(run, text, tmp_path):
    run(text, "-o", tmp_path / "out", *flags(SMALL), "--steps", 3, "--half")
    found, state = tensors(tmp_path / "out"), tensors(tmp_path / "out" / "checkpoint-3")
    assert {array.dtype for array in found.values()} == {np.dtype(np.float16)}
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert all(np.array_equal(found[name], state[name].astype(np.float16)) for name in found)


def test_checkpointing_and_the_folder_make_no_difference_to_the_bits(run, text, finished, tmp_path):
    out = tmp_path / "other name"
    run(text, "-o", out, *flags(ALL_ON), "--steps", 12, "--gradient-checkpointing")
    assert differing(out, finished, but=["training.json"]) == []


def test_another_seed_is_another_run(run, text, finished, tmp_path):
    run(text, "-o", tmp_path / "out", *flags(ALL_ON | {"seed": 2}), "--steps", 1)
    assert log(tmp_path / "out")[0] != log(finished)[0]


def test_the_largest_seed(run, text, tmp_path):
    run(text, "-o", tmp_path / "out", *flags(SMALL), "--steps", 2, "--seed", 2**64 - 1)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_modes_follow_the_umask(run, text, tmp_path, umask):
    before = os.umask(umask)
    try:
        run(text, "-o", tmp_path / "out", *flags(SMALL), "--steps", 2, "--half")
    finally:
        os.umask(before)
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        mode = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == mode & ~umask, path


def test_transformers_loads_the_folder_and_gives_the_same_logits(finished):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        theirs = pytest.importorskip("transformers", reason="transformers is not installed")
        for folder in (finished, finished / "checkpoint-12"):
            peer = theirs.AutoModelForCausalLM.from_pretrained(folder)
            peer_tokens = theirs.AutoTokenizer.from_pretrained(folder)
            model = GPT2.from_pretrained(folder)
            ids = model.tokenizer.encode("The king lost gold in 1590.")[:16]
            assert peer_tokens("The king lost gold in 1590.")["input_ids"][:16] == ids
            assert peer_tokens.eos_token_id == model.config.eos_token_id == 0
            with torch.no_grad():
                expected = peer.eval()(torch.tensor([ids])).logits.numpy()
            assert np.abs(model([ids]).logits - expected).max() <= 2e-6 * np.abs(expected).max()


def test_the_other_commands_take_the_folder(npgpt2, finished, tmp_path):
    out = ["-o", tmp_path / "onnx", "--graph", "portable"]
    assert npgpt2("export", finished, *out)[0] == 0
    code, text, _ = npgpt2("generate", "The", "--model", finished, "--seed", "1")
    assert (code, text.startswith("\n")) == (0, False)
    assert npgpt2("inspect", "--model", finished / "checkpoint-12")[0] == 0


@pytest.mark.slow
def test_the_smallest_corpus_is_learnt_by_heart(shared, tmp_path):
    """20 sentences, each completed from its first two words."""
    corpus = shared("seed-corpus/lang.txt")
    out = train(
        [corpus], tmp_path / "out", n_layer=2, n_head=4, n_embd=64, n_positions=80, vocab_size=300,
        batch_size=8, steps=600, lr=3e-3, dropout=0.0, ema=0.95, val_fraction=0.0,
    )  # fmt: skip
    model, sentences = GPT2.from_pretrained(out), corpus.read_text().splitlines()
    for sentence in sentences:
        begin = " ".join(sentence.split()[:2])
        [more] = model.generate(begin, temperature=0, max_new_tokens=70, stop="\n")
        either = [s for s in sentences if s.startswith(begin)]
        assert begin + more.text in (either if begin == "I am" else [sentence])


# ── in Python ────────────────────────────────────────────────────────────────────────────────────


class Recorder(Callback):
    """Hears everything; asks to stop after a step."""

    def __init__(self, stop=None):
        self.heard, self.stop = [], stop

    def note(self, text):
        self.heard.append(("note", text))

    def begins(self, done, steps, tokens):
        self.heard.append(("begins", done, steps, tokens))

    def step(self, line):
        self.heard.append(("step", line))

    def validated(self, line):
        self.heard.append(("validated", line))

    def stopped(self):
        steps = [line["step"] for what, line, *_ in self.heard if what == "step"]
        return steps[-1] == self.stop

    def progress(self, loop, what, total=None):
        self.heard.append(("progress", what))
        return loop


def test_python_hears_of_everything_and_nothing_is_printed(text, tmp_path, capfd):
    ear = Recorder()
    assert train([str(text)], tmp_path / "out", callback=ear, **ALL_ON, steps=6) == tmp_path / "out"
    assert capfd.readouterr() == ("", "")
    kinds = [kind for kind, *_ in ear.heard]
    assert kinds[kinds.index("begins") :] == ["begins", *["step", "step", "step", "validated"] * 2]
    assert ("begins", 0, 6, 2 * 4 * 16) in ear.heard
    assert [h[1] for h in ear.heard if h[0] in ("step", "validated")] == log(tmp_path / "out")
    assert sum(kind == "note" for kind in kinds) == 1
    assert ("progress", "reading") in ear.heard


def test_python_is_silent_without_a_callback(text, tmp_path, capfd):
    train([text], tmp_path / "out", **SMALL, steps=2)
    assert capfd.readouterr() == ("", "")


def test_a_callback_stops_a_run_that_goes_on_later(text, finished, tmp_path):
    out = tmp_path / "out"
    train([text], out, callback=Recorder(stop=5), **ALL_ON, steps=12)
    assert {p.name for p in out.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-5"}
    assert len(log(out)) == 5 + 1
    ear = Recorder()
    train([], out, resume=True, callback=ear)
    assert ear.heard[0] == ("begins", 5, 12, 128)
    assert differing(out, finished) == []


def test_a_run_that_goes_on_remembers_its_best_validation(text, tmp_path):
    """It is at the first steps here, and the model must stay the one of then."""
    options = {**SMALL, "steps": 9, "eval_every": 1, "lr": 3.0, "warmup": 9}
    whole, out = train([text], tmp_path / "whole", **options), tmp_path / "out"
    train([text], out, callback=Recorder(stop=7), **options)
    train([], out, resume=True)
    assert differing(out, whole, but=["checkpoint-7", "checkpoint-0"]) == []


def test_the_summary_is_of_all_sittings(npgpt2, text, tmp_path):
    """The best validation was in the first one."""
    options = {**SMALL, "steps": 9, "eval_every": 1, "lr": 3.0, "warmup": 9}
    out = train([text], tmp_path / "out", callback=Recorder(stop=7), **options)
    checks = [line for line in log(out) if "validation" in line]
    best = min(checks, key=lambda line: line["validation"])["step"]
    assert best < 7
    for _ in range(2):  # the second time there is nothing left to do
        code, said, _ = npgpt2("train", "-o", out, "--resume")
        assert code == 0
        assert f"9 steps; best step {best}: validation loss " in said


def test_a_run_that_stops_before_its_first_validation_has_a_model(text, tmp_path):
    out = train([text], tmp_path / "out", callback=Recorder(stop=1), **SMALL, steps=5)
    assert GPT2.from_pretrained(out).config.n_embd == 16


def test_batches_that_are_accumulated_are_one_larger_batch(text, tmp_path):
    """With the same dropout: it is drawn by the row's number in the step."""
    one = train([text], tmp_path / "one", **SMALL, steps=4)
    two = train([text], tmp_path / "two", **SMALL | {"batch_size": 2, "accumulate": 2}, steps=4)
    losses = [[line["loss"] for line in log(out) if "loss" in line] for out in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_python_gets_errors_of_its_own_kind(text, finished, tmp_path):
    with pytest.raises(OptionError, match="steps"):
        train([text], tmp_path / "out", steps=0)
    with pytest.raises(OptionError, match="CORPUS"):
        train([], tmp_path / "out")
    with pytest.raises(FileError, match="already contains a run"):
        train([text], finished)
    with pytest.raises(TrainingError, match="seed was 1 and is 2"):
        train([], finished, resume=True, seed=2)
    with pytest.raises(TypeError, match="nonsense"):
        train([text], tmp_path / "out", nonsense=1)
    with pytest.raises(TypeError, match="nonsense"):
        train([], finished, resume=True, nonsense=1)
    assert list(tmp_path.iterdir()) == []


# ── killed ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_that_is_killed_again_and_again_gives_the_same_files(text, tmp_path, threads):
    options = {**ALL_ON, "steps": 40, "eval_every": 7, "save_every": 5, "threads": threads}
    whole = train([text], tmp_path / "whole", **options)
    out, moments = tmp_path / "out", random.Random(threads)
    kills, args = 0, [text, "-o", out, *flags(options)]
    while kills < 4:
        with slow(0.02, *args) as process:
            for _ in range(moments.randrange(9)):
                process.stdout.readline()
            time.sleep(moments.uniform(0, 0.05))
            process.kill()
        kills, args = kills + 1, ["-o", out, "--resume"]
        if process.returncode == 0:  # the kill came too late
            shutil.rmtree(out)
            kills, args = 0, [text, "-o", out, *flags(options)]
    train([], out, resume=True)
    assert differing(out, whole) == []


# Each sitting is a child that kills itself at its n-th file operation.
KILLED = """
import os, random, signal, sys, warnings
warnings.simplefilter("error")
from matplotlib.figure import Figure
from npgpt2.train import train
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree"}
def sitting(out, die_at):
    seen = 0
    def hook(event, args):
        nonlocal seen
        if event in WRITES or event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
            seen += 1
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    train([], out, resume=True)
    os._exit(0)
out, moments, kills = sys.argv[1], random.Random(int(sys.argv[2])), 0
for _ in range(100):
    die_at, child = moments.randint(1, 90), os.fork()
    if not child:
        sitting(out, die_at)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        print(kills, os.WEXITSTATUS(status))
        break
    kills += 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_run_that_is_killed_in_the_midst_of_writing_gives_the_same_files(
    text, finished, tmp_path, seed
):
    out = tmp_path / "out"
    train([text], out, callback=Recorder(stop=1), **ALL_ON, steps=12)
    argv = [sys.executable, "-c", KILLED, str(out), str(seed)]
    done = subprocess.run(argv, capture_output=True, text=True, env=uncovered(), timeout=PATIENCE)
    kills, code = map(int, done.stdout.split())
    assert (code, kills > 2) == (0, True), done.stderr
    assert differing(out, finished) == []


def test_a_run_that_is_killed_after_its_last_checkpoint_lacks_nothing(run, finished, copy):
    """Between the checkpoint and what is written and removed after it."""
    (copy / "loss.png").unlink()
    (copy / "checkpoint-4").mkdir()  # half removed
    (copy / "checkpoint-4" / "state.json").touch()
    run("-o", copy, "--resume")
    assert differing(copy, finished) == []


def test_what_a_killed_run_left_does_not_stay(run, finished, killed):
    """It was told to stop at step 10, and killed while it saved: no run saves there again."""
    (killed / ".checkpoint-10.new").mkdir()
    (killed / ".checkpoint-10.new" / "model.safetensors").write_bytes(b"half")
    (killed / ".loss.png.new").write_bytes(b"half")
    (killed / "pid").write_text("1")
    run("-o", killed, "--resume")
    assert differing(killed, finished) == []


WAITS = """
import sys, time
from npgpt2 import cli
from npgpt2.train import prepare
forever = int(sys.argv.pop(1))
def wait(*args):
    print("ready", flush=True)
    time.sleep(forever)
prepare.save_state = wait
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_kill_while_it_prepares_leaves_nothing_there(run, text, finished, tmp_path):
    args = ["train", text, "-o", tmp_path / "out", *flags(ALL_ON), "--steps", 12]
    argv = [sys.executable, "-c", WAITS, *map(str, [FOREVER, *args])]
    with watched(subprocess.Popen(argv, stdout=PIPE, text=True, env=uncovered())) as process:
        assert process.stdout.readline() == "ready\n"
        process.kill()
    assert not (tmp_path / "out").exists()
    run(*args[1:])
    assert differing(tmp_path / "out", finished) == []
    assert os.listdir(tmp_path) == ["out"]


def test_control_c_while_it_prepares_ends_at_once_and_leaves_nothing(text, tmp_path):
    """There is no step to wait for yet, and a large corpus takes minutes."""
    args = ["train", text, "-o", tmp_path / "out", *flags(ALL_ON), "--steps", 12]
    argv = [sys.executable, "-c", WAITS, *map(str, [FOREVER, *args])]
    streams = {"stdout": PIPE, "stderr": PIPE, "text": True, "env": uncovered()}
    with watched(subprocess.Popen(argv, **streams)) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == []


def test_a_finished_run_that_is_resumed_stays_as_it_is(run, finished, copy):
    assert "12 of 12" in run("-o", copy, "--resume")
    assert differing(copy, finished) == []


# ── told to stop ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_the_command_that_is_named_goes_on(npgpt2, text, tmp_path, number):
    options = {**ALL_ON, "steps": 30, "save_every": 1000}
    whole = train([text], tmp_path / "whole", **options)
    out = tmp_path / 'it\'s "my" run'
    with slow(0, text, "-o", out, *flags(options), held=7) as process:
        process.send_signal(getattr(signal, number))
        _, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    step, command = re.search(
        r"saved after step (\d+) of 30\b.*?(npgpt2 train .*--resume)$", err, re.M | re.S
    ).groups()
    assert (out / f"checkpoint-{step}").is_dir()
    assert len([line for line in log(out) if "loss" in line]) == int(step)
    words = shlex.split(command)
    assert words == ["npgpt2", "train", "-o", str(out), "--resume"]
    code, _, err = npgpt2(*words[1:])
    assert code == 0
    assert f"resuming after step {step} of 30" in err
    assert differing(out, whole, but=[f"checkpoint-{step}", "checkpoint-0"]) == []


def test_a_second_control_c_ends_at_once(run, text, finished, tmp_path):
    out = tmp_path / "out"
    with slow(FOREVER, text, "-o", out, *flags(ALL_ON), "--steps", 12) as process:
        process.send_signal(signal.SIGINT)
        while "Ctrl-C" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    run("-o", out, "--resume")
    assert differing(out, finished) == []


def test_a_second_request_to_end_is_no_reason_to_lose_the_step(text, tmp_path):
    """A shell that goes sends SIGHUP, and a system that goes down SIGTERM after it."""
    out = tmp_path / "out"
    with slow(0, text, "-o", out, *flags(ALL_ON), "--steps", 12, held=1) as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 130
    assert (out / "checkpoint-1").is_dir()


def test_nohup_is_respected(text, tmp_path):
    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    args = [text, "-o", tmp_path / "out", *flags(SMALL), "--steps", 6]
    with slow(0, *args, held=1, preexec_fn=ignore) as process:
        process.send_signal(signal.SIGHUP)
        _, err = process.communicate()
    assert (process.returncode, (tmp_path / "out" / "checkpoint-6").is_dir()) == (0, True), err


def test_signals_are_as_before_when_a_run_is_over(run, text, tmp_path):
    names = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(name) for name in names]
    run(text, "-o", tmp_path / "out", *flags(SMALL), "--steps", 1)
    assert [signal.getsignal(name) for name in names] == before


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("script", ['"$@" 2>&-', '"$@" | head -1', '"$@" 2>&1 | true'])
def test_a_run_goes_on_when_nobody_reads(text, finished, tmp_path, script):
    done = shell(script, text, "-o", tmp_path / "out", *flags(ALL_ON), "--steps", 12)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert differing(tmp_path / "out", finished) == []


def test_a_signal_saves_also_when_the_terminal_has_gone(text, tmp_path):
    reader, writer = os.pipe()
    args = [text, "-o", tmp_path / "out", *flags(ALL_ON), "--steps", 100]
    with slow(0, *args, held=1, stderr=writer) as process:
        os.close(writer)
        os.close(reader)
        process.send_signal(signal.SIGHUP)
        process.communicate()
    assert process.returncode == 130
    [newest] = (p for p in (tmp_path / "out").glob("checkpoint-*") if p.name != "checkpoint-0")
    assert (newest / "state.json").exists()


def screen(data):
    """What stands on a terminal after these bytes: carriage returns overwrite."""
    lines = []
    for line in re.sub("\x1b\\[[0-9;]*[A-Za-z]", "", data).split("\n"):
        shown = ""
        for part in line.removesuffix("\r").split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return [line for line in lines if line]


def on_a_terminal(*args, stop=False):
    """All that a run writes to a terminal, and its exit code."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "rows", "40", "cols", "120"], stdin=theirs, check=True)
    data = b""
    with slow(0.06, *args, held=6 * stop, stderr=theirs) as process:
        os.close(theirs)
        if stop:
            process.send_signal(signal.SIGINT)
            process.stdin.close()
        while True:
            try:
                data += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
        process.wait()
    os.close(ours)
    return data.decode(), process.returncode


def test_a_terminal_has_a_bar_that_notes_do_not_break(text, tmp_path):
    options = {**SMALL, "steps": 20, "eval_every": 5}
    data, code = on_a_terminal(text, "-o", tmp_path / "out", *flags(options))
    assert code == 0
    bar = re.findall(r"\rstep \d+/20: .*?\[[\d:]+<[\d:]+, +[\d.]+k? tokens/s, loss \d\.\d+\]", data)
    assert len(bar) >= 3
    lines = screen(data)
    assert all(line.startswith("npgpt2: ") for line in lines), lines
    assert sum("validation loss" in line for line in lines) == 4


def test_control_c_on_a_terminal_does_not_break_the_bar(text, tmp_path):
    options = {**SMALL, "steps": 100}
    data, code = on_a_terminal(text, "-o", tmp_path / "out", *flags(options), stop=True)
    assert code == 130
    lines = [line.removeprefix("^C") for line in screen(data)]
    assert all(line.startswith("npgpt2: ") for line in lines), lines


def test_a_file_gets_no_bar(run, text, tmp_path):
    err = run(text, "-o", tmp_path / "out", *flags(SMALL), "--steps", 3)
    assert "\r" not in err
    assert "tokens/s" not in err


# ── going on ─────────────────────────────────────────────────────────────────────────────────────


def test_going_on_with_the_corpus_given_again(run, refused, text, finished, killed, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(TEXT + "More.\n")
    line = refused(3, "resumed with other settings", other, "-o", killed, "--resume")
    assert ": the corpus is another text. " in line
    run(text, "-o", killed, "--resume")
    assert differing(killed, finished) == []


def test_going_on_with_the_same_settings_given_again(run, text, finished, killed):
    run(text, "-o", killed, "--resume", *flags(ALL_ON), "--steps", 12)
    assert differing(killed, finished) == []


def test_going_on_with_other_settings_names_all_of_them(refused, killed):
    before = content(killed)
    line = refused(
        3, f"{killed}: resumed with other settings", "-o", killed, "--resume", "--lr", "0.1",
        "--steps", "13", "--threads", "2", "--batch-size", "4", "--half", "--freeze-embeddings",
    )  # fmt: skip
    for words in ("lr was None and is 0.1", "steps was 12 and is 13", "threads was 1 and is 2",
                  "half was False and is True", "freeze_embeddings was False"):  # fmt: skip
        assert words in line
    assert "batch_size" not in line
    assert content(killed) == before


def test_nothing_to_go_on_with(refused, text, finished, tmp_path):
    out = tmp_path / "out"
    words = f"{out}: has no training.json, expected a run. Leave out --resume to start one"
    refused(4, words, "-o", out, "--resume")
    out.mkdir()
    refused(4, words, "-o", out, "--resume")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == []


def test_a_folder_that_is_there_is_left_alone(refused, text, finished, copy, tmp_path):
    words = f"{copy}: already contains a run, expected a new folder. Add --resume to continue it"
    refused(4, words, text, "-o", copy, *flags(SMALL))
    assert differing(copy, finished) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    for name in ("full", "file"):
        refused(4, f"{name}: already exists, expected a new folder", text, "-o", tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["copy", "file", "full"]
    assert os.listdir(tmp_path / "full") == ["mine"]


def test_an_empty_folder_is_as_good_as_none(run, text, tmp_path):
    (tmp_path / "out").mkdir()
    run(text, "-o", tmp_path / "out", *flags(SMALL), "--steps", 1)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_link_to_a_run_is_followed_and_stays(run, finished, killed, tmp_path):
    (tmp_path / "link").symlink_to(killed)
    run("-o", tmp_path / "link", "--resume")
    assert (tmp_path / "link").is_symlink()
    assert differing(killed, finished) == []


def test_one_process_at_a_time_and_the_other_is_told_which(refused, run, finished, killed):
    before = content(killed)
    with held(killed):
        line = refused(4, "is writing there", "-o", killed, "--resume")
        assert f"process {os.getpid()} is" in line
        with pytest.raises(FileBusy):
            train([], killed, resume=True)
        assert (killed / "pid").exists()
    assert content(killed) == before
    run("-o", killed, "--resume")
    assert differing(killed, finished) == []


def test_two_that_begin_the_same_run(refused, text, tmp_path):
    out = tmp_path / "out"
    with slow(0.1, text, "-o", out, *flags(SMALL), "--steps", 1000) as process:
        refused(4, "already contains a run", text, "-o", out, *flags(SMALL))
        refused(4, f"process {process.pid} is writing there", "-o", out, "--resume")


# ── damage ───────────────────────────────────────────────────────────────────────────────────────


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def other_step(path):
    path.write_text(path.read_text().replace('"step": 12', '"step": 11'))


def other_best(path):
    path.write_text(re.sub('"best": [0-9]', '"best": 1', path.read_text()))


def no_sums(path):
    edit_json(path, sha256={})


FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
DAMAGES = {f"{name} {do.__name__}": (name, do) for name in FILES for do in (truncate, flip, empty)}
DAMAGES |= {f"{name} missing": (name, Path.unlink) for name in FILES} | {
    "other step": ("state.json", other_step),
    "other best": ("state.json", other_best),
    "no sums": ("state.json", no_sums),
    "sums null": ("state.json", lambda path: edit_json(path, sha256=None)),
    "step text": ("state.json", lambda path: edit_json(path, step="12")),
    "not JSON": ("state.json", lambda path: path.write_text("not JSON")),
    "a list": ("state.json", lambda path: path.write_text("[]")),
    "nothing in it": ("state.json", lambda path: path.write_text("{}")),
    "a folder": ("model.safetensors", lambda path: (path.unlink(), path.mkdir())),
    "narrower": ("", lambda path: reshape(path.parent, n_embd=8)),
    "fit to be broadcast": ("", lambda path: reshape(path.parent, vocab_size=1)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, finished, copy, name, damage):
    damage(copy / "checkpoint-12" / name)
    err = run("-o", copy, "--resume")
    [line] = [line for line in err.splitlines() if "warning" in line]
    assert line.startswith(f"npgpt2: warning: {copy / 'checkpoint-12'}")
    assert "Using the checkpoint before" in line
    assert "resuming after step 8 of 12" in err
    assert differing(copy, finished) == []


def test_no_sound_checkpoint(refused, copy):
    truncate(copy / "checkpoint-12" / "model.safetensors")
    (copy / "checkpoint-8" / "state.json").unlink()
    before = content(copy)
    words = f"{copy}: has no intact checkpoint to resume from. Start again"
    refused(3, words, "-o", copy, "--resume")
    shutil.rmtree(copy / "checkpoint-8")
    shutil.rmtree(copy / "checkpoint-12")
    refused(3, words, "-o", copy, "--resume")
    assert {n: before[n] for n in content(copy)} == content(copy)


def test_what_is_damaged_does_not_push_out_what_is_sound(text, copy):
    """Checkpoint 12 is damaged; the run goes on from 8 and stops at 9: 8 and 9 are the newest."""
    flip(copy / "checkpoint-12" / "model.safetensors")
    with pytest.warns(UserWarning, match="is damaged"):
        train([], copy, resume=True, callback=Recorder(stop=9))
    truncate(copy / "checkpoint-9" / "state.json")
    ear = Recorder()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        train([], copy, resume=True, callback=ear)
    assert ear.heard[0] == ("begins", 8, 12, 128)


@pytest.mark.parametrize(
    ("name", "code"),
    [("training.json", 3), ("config.json", 3), ("train.npy", 3), ("val.npy", 3)],
)
@pytest.mark.parametrize("damage", [truncate, empty])
def test_the_runs_own_files_when_damaged(refused, killed, name, code, damage):
    damage(killed / name)
    before = content(killed)
    refused(code, f"{killed / name}: ", "-o", killed, "--resume")
    assert content(killed) == before


@pytest.mark.parametrize("name", ["config.json", "train.npy", "val.npy"])
def test_the_runs_own_files_when_missing(refused, killed, name):
    (killed / name).unlink()
    refused(4, f"{killed / name}: No such file", "-o", killed, "--resume")


@pytest.mark.parametrize("end", [b'{"step": 9, "lo', b'{"step": 9, "sample": "\xe2\x82', b"\0" * 9])
def test_a_log_that_ends_in_the_midst_of_a_line(run, finished, killed, end):
    with (killed / "log.jsonl").open("ab") as file:
        file.write(end)
    run("-o", killed, "--resume")
    assert differing(killed, finished) == []


def test_a_log_that_is_cut_short_or_gone(run, finished, killed):
    (killed / "log.jsonl").unlink()
    run("-o", killed, "--resume")
    assert [line["step"] for line in log(killed) if "loss" in line] == [9, 10, 11, 12]
    assert differing(killed, finished, but=["log.jsonl", "loss.png"]) == []


def test_a_sample_with_signs_that_end_lines_elsewhere(run, tmp_path):
    """U+2028, U+0085: Python's splitlines sees lines there, JSON's lines end with a newline."""
    corpus = tmp_path / "lines.txt"
    corpus.write_text("a\u2028b\x85" * 400)
    options = {**SHAPE, "n_positions": 32, "vocab_size": 257, "lr": 0.05, "steps": 30}
    out = tmp_path / "out"
    run(corpus, "-o", out, *flags(options | {"eval_every": 10, "save_every": 10, "threads": 1}))
    assert any("\u2028" in line["sample"] for line in log(out) if "sample" in line)
    assert "30 of 30" in run("-o", out, "--resume")


# ── a full disk ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def room(size):
    """No file may grow beyond it: what a full disk is to a program, without one.

    Python ignores SIGXFSZ, so that a write fails with an error.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    with pytest.raises(ZeroDivisionError), replaced(path) as work:
        assert work.write_text("half") / 0
    with room(2), pytest.raises(FileError, match=f"^{path}: File too large$"):  # noqa: SIM117
        with replaced(path) as work:
            work.write_text("more")
    assert (os.listdir(tmp_path), path.read_text()) == (["file"], "old")
    with replaced(path) as work:
        work.write_text("new")
    assert (os.listdir(tmp_path), path.read_text()) == (["file"], "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 500, 5_000, 20_000, 50_000])
def test_a_disk_that_is_full_while_it_prepares(run, refused, text, finished, tmp_path, size):
    args = [text, "-o", tmp_path / "out", *flags(ALL_ON), "--steps", 12]
    with room(size):
        refused(4, "File too large", *args)
    assert os.listdir(tmp_path) == []
    run(*args)
    assert differing(tmp_path / "out", finished) == []


@pytest.mark.parametrize("size", [0, 20_000, 50_000])
def test_a_disk_that_is_full_while_it_saves(run, refused, finished, killed, size):
    before = content(killed / "checkpoint-8")
    with room(size):
        refused(4, "File too large", "-o", killed, "--resume")
    assert content(killed / "checkpoint-8") == before
    assert not list(killed.glob(".*"))
    run("-o", killed, "--resume")
    assert differing(killed, finished) == []


def test_a_disk_that_is_full_while_it_logs(run, refused, finished, killed):
    path = killed / "log.jsonl"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(first + " " * 200_000 + "\n" + rest)
    lines = log(killed)
    kept = sum(len(json.dumps(x, ensure_ascii=False).encode()) + 1 for x in lines if x["step"] < 9)
    with room(200_000 + kept + 30):
        refused(4, f"{path}: File too large", "-o", killed, "--resume")
    run("-o", killed, "--resume")
    assert log(killed) == log(finished)
    assert differing(killed, finished, but=["log.jsonl"]) == []


def test_a_disk_without_room_for_a_checkpoint(refused, finished, killed, monkeypatch):
    usage = shutil.disk_usage(killed)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    line = refused(4, "no space: needs ", "-o", killed, "--resume")
    assert "free 1,000" in line
    assert content(killed / "checkpoint-8") == content(finished / "checkpoint-8")


# ── a loss that is no number ─────────────────────────────────────────────────────────────────────


def test_a_learning_rate_beyond_measure(refused, text, tmp_path):
    out = tmp_path / "out"
    line = refused(3, "step 2: the loss is nan, first in h.0.", text, "-o", out, *flags(SMALL),
                   "--steps", 9, "--lr", "1e30")  # fmt: skip
    assert f"{out / 'checkpoint-0'} is kept; try a lower --lr" in line
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-0"]
    assert all(np.isfinite(array).all() for array in tensors(out / "checkpoint-0").values())
    refused(3, "step 2: the loss is nan", "-o", out, "--resume")


def test_a_loss_that_is_no_number_in_the_validation(refused, text, tmp_path):
    """The last step breaks the weights, and no other step would tell."""
    out = tmp_path / "out"
    args = [*flags(SMALL), "--steps", 1, "--lr", "1e30"]
    line = refused(3, "step 1: the validation loss is ", text, "-o", out, *args)
    assert f"{out / 'checkpoint-0'} is kept" in line
    assert not (out / "model.safetensors").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["wte.weight", "h.0.mlp.c_fc.weight", "ln_f.bias"])
def test_a_poisoned_weight_is_named(refused, killed, name, value):
    poison(killed, name, value)
    before = content(killed)
    line = refused(3, f"first in {name}, expected a finite number", "-o", killed, "--resume")
    assert "step 9: the loss is nan" in line
    assert f"{killed / 'checkpoint-8'} is kept" in line
    after = content(killed)
    assert {n for n in before if before[n] != after[n]} <= {"log.jsonl"}
    assert not (killed / "checkpoint-9").exists()


def test_a_gradient_that_is_no_number_is_named(text, tmp_path, monkeypatch):
    """Weights and loss are finite, and the way back overflows."""
    add = Training._step.__globals__["Gradients"].add

    def broken(self, *args):
        nats = add(self, *args)
        self._sums[0].tree.h[0].ln_2.weight[3] = np.inf
        return nats

    monkeypatch.setattr("npgpt2.train.loop.Gradients.add", broken)
    with pytest.raises(
        TrainingError,
        match=r"step 1: the gradient norm is inf, first in "
        r"the gradient of h\.0\.ln_2\.weight, expected",
    ):
        train([text], tmp_path / "out", **SMALL, steps=3)


# ── options ──────────────────────────────────────────────────────────────────────────────────────


WHOLE = "expected an integer from {} to {}"
COUNT = WHOLE.format(1, 2**31 - 1)
BAD = {
    "--vocab-size 0": "--vocab-size: got 0, expected an integer from 257 to 1048576",
    "--vocab-size 256": "--vocab-size: got 256, expected an integer from 257 to 1048576",
    "--vocab-size 1048577": "--vocab-size: got 1048577, expected an integer from 257 to 1048576",
    "--n-layer 0": f"--n-layer: got 0, {COUNT}",
    "--n-head -1": f"--n-head: got -1, {COUNT}",
    "--n-embd 0": f"--n-embd: got 0, {COUNT}",
    "--n-positions 0": f"--n-positions: got 0, {COUNT}",
    "--n-embd 15": "n_embd: got 15, expected a multiple of n_head (2)",
    "--window 0": f"--window: got 0, {COUNT}",
    "--window 17": "--window: got 17, expected at most 16 tokens",
    "--batch-size 0": f"--batch-size: got 0, {COUNT}",
    "--batch-size 2147483648": f"--batch-size: got 2147483648, {COUNT}",
    "--accumulate 0": f"--accumulate: got 0, {COUNT}",
    "--steps 0": f"--steps: got 0, {COUNT}",
    "--epochs 0": "--epochs: got 0.0, expected a number above 0",
    "--epochs -1": "--epochs: got -1.0, expected a number above 0",
    "--epochs nan": "--epochs: got nan, expected a number above 0",
    "--epochs inf": "--epochs: got inf, expected a number above 0",
    "--epochs 1e308": "--epochs: got 1e+308",
    "--epochs 1 --steps 1": "--epochs: given together with steps, expected one of the two",
    "--lr 0": "--lr: got 0.0, expected a number above 0",
    "--lr inf": "--lr: got inf, expected a number above 0",
    "--warmup -1": f"--warmup: got -1, {WHOLE.format(0, 2**31 - 1)}",
    "--weight-decay -0.1": "--weight-decay: got -0.1, expected a number from 0",
    "--beta1 1": "--beta1: got 1.0, expected a number from 0 to below 1",
    "--beta2 -0.5": "--beta2: got -0.5, expected a number from 0 to below 1",
    "--clip 0": "--clip: got 0.0, expected a number above 0",
    "--dropout 1.5": "--dropout: got 1.5, expected a number from 0 to ",
    "--dropout nan": "--dropout: got nan, expected a number from 0 to ",
    "--ema 1": "--ema: got 1.0, expected a number from 0 to below 1",
    "--val-fraction 1": "--val-fraction: got 1.0, expected a number from 0 to below 1",
    "--val-fraction -0.1": "--val-fraction: got -0.1, expected a number from 0 to below 1",
    "--eval-every 0": f"--eval-every: got 0, {COUNT}",
    "--save-every 0": f"--save-every: got 0, {COUNT}",
    "--threads 0": f"--threads: got 0, {COUNT}",
    "--seed -1": f"--seed: got -1, {WHOLE.format(0, 2**64 - 1)}",
    "--seed 18446744073709551616": f"--seed: got {2**64}, {WHOLE.format(0, 2**64 - 1)}",
    "--init m": "--vocab-size: given together with init (m), which has its own. Leave it out",
    "--tokenizer m": "--vocab-size: given together with tokenizer, which has its own",
    "--schedule linear": "--schedule: got 'linear', expected one of",
    "--steps 1.5": "--steps: got '1.5', expected an integer. See 'npgpt2 train --help'",
    "--lr fast": "--lr: got 'fast', expected a number. See 'npgpt2 train --help'",
    "--step 5": "unrecognized arguments: --step 5",
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_option_is_refused_and_nothing_is_made(refused, text, tmp_path, words):
    code = 3 if words == "--n-embd 15" else 2
    args = [text, "-o", tmp_path / "out", *flags(SHAPE), *words.split()]
    refused(code, f"npgpt2: error: {BAD[words]}", *args)
    assert os.listdir(tmp_path) == []


def test_a_bad_option_makes_no_folders_above_either(refused, text, tmp_path):
    refused(2, "--steps: got 0", text, "-o", tmp_path / "a" / "b" / "out", "--steps", 0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["--init", "--tokenizer"])
def test_an_empty_name_is_not_taken_for_none(refused, text, tmp_path, name):
    """As `--init "$UNSET"` gives it."""
    refused(4, "'': no such folder", text, "-o", tmp_path / "out", "--steps", 1, name, "")
    assert os.listdir(tmp_path) == []


def test_a_run_needs_a_name(refused, text):
    refused(2, "--out: got an empty name, expected a folder to", text, "-o", "", "--steps", 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", True), ("steps", 1.0), ("lr", "1"), ("seed", None), ("schedule", None),
     ("threads", "2"), ("ema", True), ("clip", None), ("half", 1), ("init", 5)],
)  # fmt: skip
def test_settings_refuse_other_types(name, value):
    with pytest.raises(OptionError, match=f"^{name}: got {value!r}, expected "):
        Settings(**{name: value})


def test_settings_are_read_back_as_they_were_said():
    settings = Settings(steps=3, lr=0.1, half=True)
    assert Settings(**json.loads(json.dumps(settings.to_dict()))) == settings


def test_the_smallest_run_that_there_is(run, text, tmp_path):
    options = {"n_layer": 1, "n_head": 1, "n_embd": 1, "n_positions": 1, "batch_size": 1}
    err = run(text, "-o", tmp_path / "out", *flags(options), "--steps", 1, "--threads", 3)
    assert "step 1: validation loss" in err


def test_a_part_of_an_epoch_is_one_step_at_least(run, text, tmp_path):
    run(text, "-o", tmp_path / "out", *flags(SMALL), "--epochs", "0.001")
    assert len([line for line in log(tmp_path / "out") if "loss" in line]) == 1


def test_epochs_are_counted_in_windows(run, text, tmp_path):
    run(text, "-o", tmp_path / "out", *flags(SMALL), "--epochs", "0.5", "--accumulate", 3)
    tokens = len(np.load(tmp_path / "out" / "train.npy"))
    steps = -(-0.5 * -(-tokens // 16) // (4 * 3))
    assert [line["step"] for line in log(tmp_path / "out") if "loss" in line][-1] == steps


# ── text ─────────────────────────────────────────────────────────────────────────────────────────


CORPORA = {
    "nothing": (b"", 3, "the corpus has no text, expected some. Give other files"),
    "white space": (b" \n\t\n", 3, "the corpus has no text, expected some. Give other files"),
    "short": (b"One two.", 3, "tokens, expected at least 17, one window and the next token"),
    "latin-1": (b"caf\xe9 au lait", 3, "{}: not UTF-8 at byte 3, expected text. Convert it first"),
    "late": (b"ab" * 70_000 + b"\xff", 3, "{}: not UTF-8 at byte 140000, expected text"),
    "cut": (b"abc\xe2\x82", 3, "{}: not UTF-8 at byte 3, expected text"),
}


@pytest.mark.parametrize(("data", "code", "words"), CORPORA.values(), ids=CORPORA)
def test_text_that_cannot_be_learnt(refused, tmp_path, data, code, words):
    path = tmp_path / "in.txt"
    path.write_bytes(data)
    refused(code, words.format(path), path, "-o", tmp_path / "out", *flags(SHAPE))
    assert os.listdir(tmp_path) == ["in.txt"]


def test_validation_text_that_is_too_short(refused, text, tmp_path):
    args = [text, "-o", tmp_path / "out", *flags(SHAPE), "--val-fraction", "0.0001"]
    refused(3, "tokens, expected at least two. Give more text, or a larger --val-fraction", *args)


def test_files_that_are_no_text(refused, text, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    out = ["-o", tmp_path / "out", *flags(SHAPE)]
    refused(2, "CORPUS: got no file, expected text files or folders of text files", *out)
    refused(4, "none.txt: No such file or directory", tmp_path / "none.txt", *out)
    refused(4, "pipe: is not a regular file, expected a file", tmp_path / "pipe", *out)
    refused(4, "folder: has no *.txt file, expected at least one", tmp_path / "folder", *out)
    refused(4, "none.txt: No such file or directory", text, tmp_path / "none.txt", *out)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def test_a_run_among_its_own_texts_goes_on(run, refused, text, tmp_path):
    """OUT/merges.txt is no text of the corpus."""
    shutil.copy(text, tmp_path / "text.txt")
    run(tmp_path, "-o", tmp_path / "out", *flags(SMALL), "--steps", 2)
    run(tmp_path, "-o", tmp_path / "out", "--resume")


# ── from a checkpoint ────────────────────────────────────────────────────────────────────────────


TUNE = ["--init", TINY, "--batch-size", 4, "--window", 32, "--threads", 1]


def test_fine_tuning_learns_and_keeps_config_and_vocabulary(run, text, tmp_path):
    out = tmp_path / "out"
    run(text, "-o", out, *TUNE, "--steps", 20, "--lr", "1e-3", "--val-fraction", "0.2")
    lines = log(out)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-3:]) < losses[0] - 0.3
    theirs, ours = (json.loads((path / "config.json").read_text()) for path in (TINY, out))
    assert [name for name in ours.keys() & theirs if ours[name] != theirs[name]] == []
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (TINY / name).read_bytes()
    assert tensors(out).keys() == tensors(TINY).keys()
    assert json.loads((out / "training.json").read_text())["settings"]["init"] == str(TINY)


def test_fine_tuning_begins_with_the_checkpoints_weights(text, tmp_path):
    out = train([text], tmp_path / "out", init=str(TINY), steps=1, window=128, lr=1e-30)
    one, other = GPT2.from_pretrained(TINY), GPT2.from_pretrained(out)
    assert np.abs(one([[84, 258, 346]]).logits - other([[84, 258, 346]]).logits).max() < 1e-5
    ids = np.load(out / "val.npy").astype(int)
    expected = one(ids[None, :128], labels=ids[None, :128]).loss
    [check] = [line["validation"] for line in log(out) if "validation" in line]
    assert abs(check - expected) < 0.5


@pytest.mark.parametrize(("given", "expected"), [([], 0.0), (["--dropout", "0.25"], 0.25)])
def test_dropout_is_the_checkpoints_unless_it_is_said(run, text, tmp_path, given, expected):
    run(text, "-o", tmp_path / "out", *TUNE, "--steps", 1, *given)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {config[f"{kind}_pdrop"] for kind in ("embd", "attn", "resid")} == {expected}


def test_a_run_is_a_checkpoint_to_fine_tune_from(run, text, finished, tmp_path):
    run(text, "-o", tmp_path / "out", "--init", finished, "--steps", 2, "--batch-size", 4)
    assert len(log(tmp_path / "out")) == 3


def test_a_frozen_embedding_stays_and_the_rest_learns(run, text, tmp_path):
    out = tmp_path / "out"
    run(text, "-o", out, *TUNE, "--steps", 3, "--freeze-embeddings", "--ema", "0.5")
    before, after, state = tensors(TINY), tensors(out), tensors(out / "checkpoint-3")
    for name in before:
        still = name in ("transformer.wte.weight", "transformer.wpe.weight")
        assert np.array_equal(before[name], after[name]) == still, name
        assert np.array_equal(before[name], state[name]) == still, name


def test_a_frozen_embedding_from_nothing(run, text, tmp_path):
    out = tmp_path / "out"
    run(text, "-o", out, *flags(SMALL), "--steps", 3, "--freeze-embeddings", "--save-every", 3)
    first, last = tensors(out / "checkpoint-0"), tensors(out / "checkpoint-3")
    still = {name for name in first if np.array_equal(first[name], last[name])}
    assert still == {"transformer.wte.weight", "transformer.wpe.weight"}


def test_a_vocabulary_of_a_checkpoint(run, text, tmp_path):
    out, shape = tmp_path / "out", {k: v for k, v in SMALL.items() if k != "vocab_size"}
    run(text, "-o", out, "--tokenizer", TINY, *flags(shape), "--steps", 1)
    assert (out / "vocab.json").read_bytes() == (TINY / "vocab.json").read_bytes()
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 512


@pytest.fixture
def other(tmp_path):
    """A function: config → a checkpoint with random weights and the tiny one's vocabulary."""

    def make(**values):
        folder = tmp_path / "other"
        shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("model.*", "*config.json"))
        shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 512}
        config = GPT2Config(**shape | {"bos_token_id": 0, "eos_token_id": 0} | values)
        save(folder, config, GPT2.from_random(config).params)
        return folder

    return make


def test_a_vocabulary_that_does_not_fit_the_model(refused, text, other, tmp_path):
    folder = other(vocab_size=500)
    words = f"{folder}: the vocabulary has 512 tokens, expected at most 500, the vocab_size of the"
    refused(3, words, text, "-o", tmp_path / "out", "--init", folder)
    assert os.listdir(tmp_path) == ["other"]


def test_a_vocabulary_smaller_than_the_model_fits(run, text, other, tmp_path):
    run(text, "-o", tmp_path / "out", "--init", other(vocab_size=520), "--steps", 1)


def test_a_model_with_cross_attention_is_refused(refused, text, other, tmp_path):
    folder = other(add_cross_attention=True)
    words = f"{folder}: has cross-attention, which needs an encoder. Expected a plain GPT-2"
    refused(3, words, text, "-o", tmp_path / "out", "--init", folder)


def test_a_head_of_its_own_and_frozen_embeddings(run, text, other, tmp_path):
    folder, out = other(tie_word_embeddings=False), tmp_path / "out"
    run(text, "-o", out, "--init", folder, "--steps", 2, "--freeze-embeddings")
    before, after = tensors(folder), tensors(out)
    assert not np.array_equal(before["lm_head.weight"], after["lm_head.weight"])
    assert np.array_equal(before["transformer.wte.weight"], after["transformer.wte.weight"])


def test_weights_that_are_no_numbers_are_not_trained(refused, text, other, tmp_path):
    folder = other()
    stored = tensors(folder)
    stored["transformer.ln_f.bias"][3] = np.nan
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    words = "ln_f.bias has 1 NaN or infinite values of 16, expected finite weights"
    refused(3, words, text, "-o", tmp_path / "out", "--init", folder)


def test_no_checkpoint(refused, text, tmp_path):
    for name in ("--init", "--tokenizer"):
        args = [text, "-o", tmp_path / "out", name, tmp_path / "none"]
        refused(4, f"{tmp_path / 'none'}: no such folder", *args)
    assert os.listdir(tmp_path) == []


# ── packages that are not installed ──────────────────────────────────────────────────────────────


@pytest.fixture
def without(monkeypatch):
    """A function: importing these packages fails from now on."""

    def block(*names):
        for name in names:
            for module in [m for m in sys.modules if m.startswith(f"{name}.")] + [name]:
                monkeypatch.setitem(sys.modules, module, None)

    return block


def test_without_matplotlib_there_is_no_picture(run, text, finished, tmp_path, without):
    without("matplotlib")
    err = run(text, "-o", tmp_path / "out", *flags(ALL_ON), "--steps", 12)
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "loss.png").exists()
    assert differing(tmp_path / "out", finished, but=["loss.png"]) == []


def test_standard_input_is_no_corpus(refused, tmp_path):
    refused(2, "CORPUS: got -, expected files or folders", "-", "-o", tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_without_threadpoolctl_one_thread_works(run, refused, text, finished, tmp_path, without):
    without("threadpoolctl")
    args = [text, "-o", tmp_path / "out", *flags(ALL_ON), "--steps", 12]
    refused(4, "pip install 'npgpt2[train]'", *args, "--threads", 2)
    assert os.listdir(tmp_path) == []  # or what is said next would not help
    at = args.index("--threads")
    err = run(*args[:at], *args[at + 2 :])
    assert "threadpoolctl is not installed: training on one thread" in err
    assert differing(tmp_path / "out", finished) == []


def test_without_tokenizers_a_vocabulary_can_be_taken(run, refused, text, tmp_path, without):
    without("tokenizers")
    shape = {k: v for k, v in SMALL.items() if k != "vocab_size"}
    args = [text, "-o", tmp_path / "out", *flags(shape), "--steps", 1]
    refused(4, "needs the package tokenizers. Run: pip install 'npgpt2[train]'", *args)
    assert os.listdir(tmp_path) == []
    run(*args, "--tokenizer", TINY)


def test_without_tqdm_a_terminal_is_told(run, text, tmp_path, without, monkeypatch):
    without("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    err = run(text, "-o", tmp_path / "out", *flags(SMALL), "--steps", 2)
    assert "pip install 'npgpt2[progress]'" in err
    assert "step 2: validation loss" in err


def test_python_says_what_is_missing(text, tmp_path, without):
    without("tokenizers")
    with pytest.raises(MissingPackage, match=r"npgpt2\[train\]"):
        train([text], tmp_path / "out", steps=1)


# ── help ─────────────────────────────────────────────────────────────────────────────────────────


def test_help_names_every_setting_with_its_default(npgpt2):
    help_text = " ".join(npgpt2("train", "--help")[1].split())
    options = help_text.split(" --")
    for field in fields(Settings):
        flag = field.name.replace("_", "-")
        assert any(part.split()[0].rstrip("]") == flag for part in options), flag
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            if field.name == "threads":
                continue  # of the command: one for each core
            assert re.search(rf"--{flag} \w+ [^-]*?\(default: {field.default:g}\b", help_text), flag

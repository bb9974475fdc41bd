"""Models by name: the real huggingface_hub against a small hub on this machine.

The library reads its environment when it is imported, so it runs in processes of its own.
"""

import hashlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from foreign_files import state, torch_zip
from patience import FOREVER, PATIENCE, until, watched
from safetensors.numpy import load, load_file, save

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None,
    reason="huggingface_hub is not installed: pip install 'npgpt2[hub]'",
)

GPT2 = "openai-community/gpt2"
FRIEND = "hf_friend"  # the token that may read everything
SINGLE, WTE = "model.safetensors", "transformer.wte.weight"
PIECE = 64 * 1024


# ── the hub ──────────────────────────────────────────────────────────────────────────────────────


class Repo(NamedTuple):
    commits: dict  # commit → {path: bytes}
    refs: dict  # branch or tag → commit


class Request(NamedTuple):
    method: str
    path: str
    token: str | None
    range: str | None


class Hub(ThreadingHTTPServer):
    """As much of the hub as a download asks for; `seen` keeps what was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos, self.seen = {}, []
        self.moved = {"gpt2": GPT2}
        self.private, self.gated, self.walled = set(), set(), set()
        self.broken, self.silent, self.login_page = set(), set(), set()
        self.without_sums = set()
        self.damaged = {}  # file → bytes that are sent in place of its own, so many times
        self.cut = set()  # files whose next transfer breaks off in the middle
        self.held = set()  # files whose transfer stops in the middle, until:
        self.go_on = threading.Event()
        self.holds = threading.Event()  # a transfer stands there

    def push(self, name, files, *refs):
        """A commit; `refs` beside main point to it as well."""
        repo = self.repos.setdefault(name, Repo({}, {}))
        commit = hashlib.sha1(f"{name} {len(repo.commits)}".encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.refs.update(dict.fromkeys(("main", *refs), commit))
        return commit

    def fetched(self):
        """The files that were sent since the last call, and forget what was asked."""
        asked, self.seen = self.seen, []
        return sorted(unquote(r.path).rpartition("/")[2] for r in asked if is_download(r))

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is what some tests are about


def is_download(request):
    return request.method == "GET" and "/resolve/" in request.path


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self):
        url, headers = urlsplit(self.path), self.headers
        token = (headers["Authorization"] or "").removeprefix("Bearer ") or None
        self.server.seen.append(Request(self.command, url.path, token, headers["Range"]))
        api = re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+))?", url.path)
        file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", url.path)
        if not api and not file:
            return self.refuse(404, "", "Not Found")
        name = (api or file)[1]
        if name in self.server.moved:
            self.send_response(307)
            self.send_header("Location", self.path.replace(name, self.server.moved[name], 1))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if name in self.server.silent:
            return self.server.go_on.wait()
        if name in self.server.broken:
            return self.refuse(503, "", "Service Unavailable")
        if name in self.server.login_page:
            return self.answer(b"<html>Welcome to our hotel!</html>", {"Content-Type": "text/html"})
        if token not in (None, FRIEND):
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if name not in self.server.repos or (name in self.server.private and token != FRIEND):
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        repo = self.server.repos[name]
        revision = unquote((api[3] if api else file[2]) or "main")
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repo.commits[commit]
        if api:
            return self.tell(name, commit, files, api[2])
        if name in self.server.gated and token != FRIEND:
            return self.refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        if name in self.server.walled:
            return self.refuse(403, "", "Not from your country")
        if unquote(file[3]) not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        return self.send_file(unquote(file[3]), files[unquote(file[3])], commit)

    do_HEAD = do_GET

    def tell(self, name, commit, files, what):
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": etag(path, data)}
            for path, data in files.items()
        ]
        siblings = [{"rfilename": path} for path in files]
        if "blobs=" in urlsplit(self.path).query and name not in self.server.without_sums:
            siblings = [sibling(path, data) for path, data in files.items()]
        about = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": []}
        reply = entries if what == "tree" else about | {"siblings": siblings}
        self.answer(json.dumps(reply).encode(), {"Content-Type": "application/json"})

    def send_file(self, path, data, commit):
        start, code = 0, 200
        if self.command == "GET" and self.server.damaged.get(path):
            data = self.server.damaged[path].pop()
        tag = f'"{etag(path, data)}"'
        headers = {"ETag": tag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if is_large(path):  # large files have these two, of what they point to
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": tag}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or ""):
            start, code = int(asked[1]), 206
            end = int(asked[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data = data[: end + 1]
        name = path.rpartition("/")[2]
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{name}; filename=\"{name}\";"
        self.answer(data[start:], headers, code, path)

    def answer(self, data, headers, code=200, path=None):
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(data) // 2
        for at in range(0, len(data), PIECE):
            if at >= half and path in self.server.cut:
                self.server.cut.remove(path)
                self.close_connection = True
                return
            if at >= half and path in self.server.held:
                self.server.holds.set()
                self.server.go_on.wait()
            self.wfile.write(data[at : at + PIECE])

    def refuse(self, status, code, message):
        body = json.dumps({"error": message}).encode()
        known = {"X-Error-Code": code} if code else {}
        self.answer(body, {"X-Error-Message": message, **known}, status)

    def log_message(self, *args):
        pass


def is_large(path):
    return path.endswith((".safetensors", ".bin"))


def sibling(path, data):
    """A file as the hub tells of it when it is asked for sums."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    about = {"rfilename": path, "size": len(data), "blobId": blob}
    if is_large(path):
        sha256 = hashlib.sha256(data).hexdigest()
        about["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 134}
    return about


def etag(path, data):
    about = sibling(path, data)
    return about["lfs"]["sha256"] if "lfs" in about else about["blobId"]


@pytest.fixture(scope="session")
def files(tiny):
    """What OpenAI's repository has: the checkpoint, and the weights for other programs."""
    others = ["README.md", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "64.tflite"]
    others += ["rust_model.ot", "onnx/decoder_model.onnx", "onnx/config.json"]
    return {path.name: path.read_bytes() for path in tiny.iterdir()} | dict.fromkeys(others, b"-")


@pytest.fixture
def hub(files):
    with Hub() as server:
        server.push(GPT2, files)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


# ── a process that asks it ───────────────────────────────────────────────────────────────────────

# Each line on standard input is a list of arguments for resolve. Each answer is a line as well.
RESOLVE = """
import json, sys
from npgpt2.checkpoints.hub import resolve
for line in sys.stdin:
    try:
        answer = {"folder": str(resolve(*json.loads(line))), "error": None}
    except Exception as error:
        answer = {"folder": None, "error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
"""

# Each line is a command line. The library's own log, if it writes one, stays on standard error.
COMMANDS = """
import contextlib, io, json, sys
from npgpt2.cli import main
for line in sys.stdin:
    with contextlib.redirect_stderr(io.StringIO()) as text:
        code = main(json.loads(line))
    print(json.dumps([code, text.getvalue()]), flush=True)
"""


class User:
    """Someone with a cache of their own, in a folder where nothing is called gpt2."""

    def __init__(self, hub, home):
        self.home = home
        ours = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_", "TQDM_", "NPGPT2_")
        proxies = ("http_proxy", "https_proxy", "all_proxy")
        self.env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(ours) and key.lower() not in proxies
        } | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # However slow this machine is: the hub answers, but where a test makes it silent.
            "HF_HUB_ETAG_TIMEOUT": str(FOREVER),
            "HF_HUB_DOWNLOAD_TIMEOUT": str(FOREVER),
        }

    def start(self, *arguments, **env):
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=self.env | env,
            cwd=self.home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def run(self, *arguments, given="", **env):
        """Exit code, standard output, standard error."""
        with watched(self.start(*arguments, **env)) as process:
            out, err = process.communicate(given)
        return process.returncode, out, err

    def lines(self, program, cases, **env):
        """What a program answers to each case, and its standard error."""
        given = "".join(json.dumps(case) + "\n" for case in cases)
        code, out, err = self.run("-c", program, given=given, **env)
        assert code == 0, err
        return [json.loads(line) for line in out.splitlines()], err

    def resolve(self, *cases, **env):
        """Per case (name, revision, token) its folder and the error."""
        answers, _ = self.lines(RESOLVE, cases, **env)
        return answers

    def folder(self, *case, **env):
        (answer,) = self.resolve(case, **env)
        assert answer["error"] is None
        return self.home / answer["folder"]

    def cli(self, *arguments, **env):
        return self.run("-m", "npgpt2", *arguments, **env)


@pytest.fixture
def user(hub, tmp_path):
    return User(hub, tmp_path)


OFFLINE = {"HF_HUB_OFFLINE": "1"}
IMPATIENT = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
GREEDY = ("generate", "O Romeo, ", "--temperature", "0", "--max-new-tokens", "5", "--model")


# ── fetching ─────────────────────────────────────────────────────────────────────────────────────


def test_a_name_is_fetched_once_and_then_needs_no_network(hub, user, tiny):
    code, out, err = user.cli(*GREEDY, "gpt2")
    assert code == 0, err
    assert out == user.cli(*GREEDY, str(tiny))[1]
    assert len(out) > 2
    assert err.startswith("npgpt2: loaded in ")  # a bar is for a terminal: nothing else is here
    assert hub.fetched() == sorted(path.name for path in tiny.iterdir())  # and no one else's

    assert user.cli(*GREEDY, "gpt2")[:2] == (0, out)
    assert len(hub.seen) < 5  # is there a newer one? With a redirect of each question
    assert hub.fetched() == []
    assert user.cli(*GREEDY, "gpt2", **OFFLINE)[:2] == (0, out)
    assert hub.seen == []


@pytest.mark.parametrize(("online", "offline"), [("gpt2", GPT2), (GPT2, "gpt2")])
def test_either_name_of_gpt2_finds_what_the_other_fetched(hub, user, online, offline):
    folder = user.folder(online)
    hub.seen.clear()
    known, other, none = user.resolve([online], [offline], ["gpt2-medium"], **OFFLINE)
    assert known["folder"] == other["folder"] == str(folder)
    assert none["error"].startswith("FileError: gpt2-medium: no such folder, and not in the hub's")
    assert hub.seen == []


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals on Windows")
@pytest.mark.parametrize("words", [(*GREEDY, "gpt2"), ("fetch", "gpt2", "-o", "mine")])
def test_on_a_terminal_a_bar_shows_the_download(hub, user, words):
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    command = [sys.executable, "-m", "npgpt2", *words]
    with subprocess.Popen(
        command, env=user.env, cwd=user.home, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        screen = b""
        try:
            while piece := os.read(ours, PIECE):
                screen += piece
        except OSError:  # so Linux says that the other side is closed
            pass
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert re.search(r"model\.safetensors: +100%.* 768k/768k \[", screen.decode())
    assert len(out) > 2
    assert b"%" not in out


def test_tokens_need_no_weights(hub, user):
    assert user.cli("tokenize", "KING", "--model", "gpt2")[0] == 0
    assert SINGLE not in hub.fetched()
    assert user.cli("tokenize", "KING", "--model", "gpt2", **OFFLINE)[0] == 0
    assert user.cli(*GREEDY, "gpt2", **OFFLINE)[0] == 4  # not there yet
    assert user.cli(*GREEDY, "gpt2")[0] == 0
    assert hub.fetched() == [SINGLE]


def test_revisions(hub, user, files):
    old = hub.repos[GPT2].refs["main"]
    hub.repos[GPT2].refs["v1"] = old
    shifted = load(files[SINGLE])
    shifted[WTE] = shifted[WTE] + 1
    new = hub.push(GPT2, files | {SINGLE: save(shifted)}, "refs/pr/7")

    main, tag, pull, commit = user.resolve(
        ["gpt2"], ["gpt2", "v1"], ["gpt2", "refs/pr/7"], [GPT2, old]
    )
    assert [folder_name(a) for a in (main, tag, pull, commit)] == [new, old, new, old]
    assert hub.fetched().count("config.json") == 2  # once under each name: the files are the same
    weights = [load_file(user.home / a["folder"] / "model.safetensors") for a in (main, tag)]
    np.testing.assert_array_equal(weights[0][WTE], weights[1][WTE] + 1)

    hub.seen.clear()
    assert folder_name(*user.resolve([GPT2, old])) == old
    assert hub.seen == []  # a commit never changes
    tag, commit, other = user.resolve(["gpt2", "v1"], ["gpt2", new], ["gpt2", "v2"], **OFFLINE)
    assert [folder_name(tag), folder_name(commit)] == [old, new]
    assert "not in the hub's cache" in other["error"]
    code, out, _ = user.cli("inspect", "wte.weight[0, 0]", "--model", "gpt2", "--revision", "v1")
    assert code == 0
    assert float(out.split()[-1]) == pytest.approx(weights[1][WTE][0, 0], abs=1e-6)


def folder_name(answer):
    assert answer["error"] is None
    return os.path.basename(answer["folder"])


def test_a_new_commit_is_noticed_and_only_its_changes_are_fetched(hub, user, files):
    user.folder("gpt2")
    hub.fetched()
    new = hub.push(GPT2, files | {"generation_config.json": b"{}"})
    assert user.folder("gpt2").name == new
    assert hub.fetched() == ["generation_config.json"]


def test_where_the_cache_is(hub, user, tmp_path):
    assert tmp_path / "hf" / "hub" in user.folder("gpt2").parents
    here = user.folder("gpt2", HF_HUB_CACHE=str(tmp_path / "elsewhere"))
    assert here.is_relative_to(tmp_path / "elsewhere")


def test_a_folder_comes_before_a_name(hub, user, tiny):
    (user.home / "gpt2").mkdir()
    (user.home / "distilgpt2").write_text("")
    folder, file, none, path, empty = user.resolve(
        ["gpt2"], ["distilgpt2"], ["../gpt2-medium"], ["a/b/c"], [""]
    )
    assert folder["folder"] == "gpt2"
    assert file["error"] == (
        "FileError: distilgpt2: is a file, expected a folder with config.json. Convert a file of "
        "nanoGPT or llm.c with 'npgpt2 convert'"
    )
    rest = "no such folder. Expected a checkpoint folder or a hub name"
    assert none["error"] == f"FileError: ../gpt2-medium: {rest}"
    assert path["error"] == f"FileError: a/b/c: {rest}"
    assert empty["error"] == f"FileError: '': {rest}"
    assert hub.seen == []


# ── weights in several files ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def sharded(files):
    """The checkpoint in two files, of names that only the index knows."""
    tensors = load(files[SINGLE])
    names, half = sorted(tensors), len(tensors) // 2
    parts = {"first[1].safetensors": names[:half], "second.part": names[half:]}
    where = {name: file for file, held in parts.items() for name in held}
    index = json.dumps({"metadata": {}, "weight_map": where}).encode()
    unused = {"model-00001-of-00002.safetensors": b"-", "consolidated.safetensors": b"-"}
    shards = {file: save({n: tensors[n] for n in held}) for file, held in parts.items()}
    rest = {path: data for path, data in files.items() if path != SINGLE}
    return rest | unused | shards | {f"{SINGLE}.index.json": index}


def test_shards_are_those_of_the_index(hub, user, sharded):
    hub.push("someone/sharded", sharded)
    command = (*GREEDY, "someone/sharded")
    code, out, err = user.cli(*command)
    assert code == 0, err
    assert [f for f in hub.fetched() if "config" not in f and "json" not in f] == [
        "first[1].safetensors",
        "merges.txt",
        "second.part",
    ]
    assert user.cli(*command, **OFFLINE)[:2] == (0, out)


def test_where_there_is_one_file_too_it_is_taken_alone(hub, user, sharded, files):
    hub.push("someone/both", sharded | files)
    user.folder("someone/both")
    assert [f for f in hub.fetched() if f.endswith(("safetensors", "part"))] == [SINGLE]


def test_an_index_that_is_damaged_is_told_when_it_is_opened(hub, user, sharded):
    damaged = [b"{", b"[]", b'{"weight_map": 3}', b'{"weight_map": {"a": 1}}']
    for number, data in enumerate(damaged):
        hub.push(f"someone/damaged-{number}", sharded | {f"{SINGLE}.index.json": data})
    commands = [["inspect", "--model", f"someone/damaged-{i}"] for i in range(len(damaged))]
    for code, err in user.lines(COMMANDS, commands)[0]:
        assert code == 3
        assert re.fullmatch(r"npgpt2: error: .*model\.safetensors\.index\.json: .*\n", err)


# ── weights as PyTorch wrote them ────────────────────────────────────────────────────────────────


@pytest.fixture
def pickled(files):
    """The checkpoint as it was published before there were safetensors."""
    rest = {path: data for path, data in files.items() if path != SINGLE}
    return rest | {"pytorch_model.bin": torch_zip(*state(load(files[SINGLE])))}


def test_a_model_that_has_only_what_pytorch_wrote(hub, user, pickled, tiny):
    hub.push("someone/old", pickled)
    code, out, err = user.cli(*GREEDY, "someone/old")
    assert (code, out) == (0, user.cli(*GREEDY, str(tiny))[1]), err
    assert "pytorch_model.bin" in hub.fetched()
    assert user.cli(*GREEDY, "someone/old", **OFFLINE)[:2] == (0, out)


def test_its_shards_are_those_of_the_index(hub, user, pickled, files, tiny):
    tensors = load(files[SINGLE])
    names, half = sorted(tensors), len(tensors) // 2
    parts = {"one.bin": names[:half], "two.bin": names[half:]}
    where = {name: file for file, held in parts.items() for name in held}
    shards = {f: torch_zip(*state({n: tensors[n] for n in held})) for f, held in parts.items()}
    del pickled["pytorch_model.bin"]
    index = {"pytorch_model.bin.index.json": json.dumps({"weight_map": where}).encode()}
    hub.push("someone/shards", pickled | shards | index)
    code, out, err = user.cli(*GREEDY, "someone/shards")
    assert (code, out) == (0, user.cli(*GREEDY, str(tiny))[1]), err
    assert {"one.bin", "two.bin"} <= set(hub.fetched())


# ── fetch ────────────────────────────────────────────────────────────────────────────────────────


def test_fetch_into_the_cache(hub, user):
    code, out, err = user.cli("fetch", "gpt2")
    assert code == 0, err
    assert re.fullmatch(r"npgpt2: \d+ files, [\d,]+ bytes: sizes and checksums match .*\n", err)
    hub.seen.clear()
    (answer,) = user.resolve(["gpt2"], **OFFLINE)
    assert answer["folder"] == out.strip()


def test_fetch_into_a_folder_of_its_own(hub, user, tiny, files):
    code, out, err = user.cli("fetch", "gpt2", "-o", "weights/gpt2")
    assert (code, out) == (0, "weights/gpt2\n"), err
    folder = user.home / out.strip()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in tiny.iterdir()
    }
    assert not any(path.is_symlink() for path in folder.iterdir())
    hub.fetched()
    assert user.cli("fetch", "gpt2", "-o", "weights/gpt2")[0] == 0
    assert hub.fetched() == []  # all of it is there, and is right
    assert user.cli("generate", "KING", "--model", "weights/gpt2", **OFFLINE)[0] == 0


def test_fetch_replaces_nothing_unless_it_is_told_to(hub, user, files):
    folder = user.home / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    code, out, err = user.cli("fetch", "gpt2", "-o", "mine")
    size = len(files["config.json"])
    assert (code, out) == (4, "")
    assert err == (
        f"npgpt2: error: mine/config.json: has 2 bytes, expected the hub's {size}. "
        "Choose another folder, or --force to replace it\n"
    )
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert user.cli("fetch", "gpt2", "-o", "mine", "--force")[0] == 0
    assert (folder / "config.json").read_bytes() == files["config.json"]


NPGPT2 = ["-m", "npgpt2"]
WINDOWS = [
    str(Path(__file__).parents[1] / "windows.py")
]  # no file that is open is moved or removed


@pytest.mark.parametrize(
    ("how", "out"), [(NPGPT2, []), (NPGPT2, ["-o", "mine"]), (WINDOWS, ["-o", "mine"])]
)
def test_fetch_asks_once_more_for_what_was_damaged(hub, user, files, how, out):
    wrong = bytes(len(files[SINGLE]))
    hub.damaged[SINGLE] = [wrong]
    code, folder, err = user.run(*how, "fetch", "gpt2", *out)
    assert code == 0, err
    assert (user.home / folder.strip() / SINGLE).read_bytes() == files[SINGLE]
    # The small files have sums too.
    hub.push(GPT2, files | {"merges.txt": b"#version: 0.2\n"})
    hub.damaged["merges.txt"] = [b"#version: 0.3\n"] * 2
    code, _, err = user.run(*how, "fetch", "gpt2", *out, "--force")
    assert code == 4
    assert re.search(
        r"npgpt2: error: gpt2: merges\.txt git's sha1 is \w+…, expected the hub's \w+…\. Try .*\n$",
        err,
    )


@pytest.mark.parametrize("out", [[], ["-o", "mine"]])
def test_fetch_goes_on_where_it_was_killed(hub, user, files, out):
    large = np.random.default_rng(0).bytes(24 << 20)  # the library writes 10 MiB at a time
    hub.push("someone/large", files | {SINGLE: large})
    hub.held.add(SINGLE)
    with watched(user.start("-m", "npgpt2", "fetch", "someone/large", *out)) as process:
        until(lambda: any(p.stat().st_size > 9 << 20 for p in user.home.rglob(".*.part")))
        process.kill()
        process.communicate()
    assert not (user.home / "mine" / "config.json").exists()  # half a model says so
    hub.held.clear()
    hub.seen.clear()
    code, folder, err = user.cli("fetch", "someone/large", *out)
    assert code == 0, err
    assert (user.home / folder.strip() / SINGLE).read_bytes() == large
    asked = [r.range for r in hub.seen if is_download(r) and r.path.endswith(SINGLE)]
    assert asked == [f"bytes={10 << 20}-"]


def test_what_fetch_says_when_it_cannot(hub, user, nowhere):
    (user.home / "file").write_text("")
    at = f"the hub at {hub.url}"
    hub.broken.add("someone/broken")
    hub.push("someone/mirrored", {"config.json": b"{}", SINGLE: b""})
    hub.without_sums.add("someone/mirrored")
    cases = {
        ("someone/mirrored",): f"someone/mirrored: {at} sent no size or checksum of config.json, "
        "expected both. Use '--model someone/mirrored' to load it unchecked",
        ("no-such-model",): "no-such-model: no such model on the hub. Check the name, or set "
        "HF_TOKEN if the model is private",
        ("../gpt2",): "'../gpt2': is not a hub name, expected one such as gpt2 or user/model",
        ("someone/broken",): f"someone/broken: {at} answered 503 (Service Unavailable), expected "
        "the model. Try again later",
        ("gpt2", "-o", "file"): "file: is not a folder, expected a folder or a new path",
        ("gpt2", "--revision", "v9"): "gpt2: has no revision 'v9' on the hub, expected a branch, "
        "tag or commit. Its page on the hub lists them",
    }
    answers, _ = user.lines(COMMANDS, [["fetch", *case] for case in cases])
    for (code, err), text in zip(answers, cases.values(), strict=True):
        assert (code, err) == (4, f"npgpt2: error: {text}\n")
    user.folder("gpt2")  # it is in the cache; but nothing can be checked without the hub
    code, _, err = user.cli("fetch", "gpt2", **OFFLINE)
    assert (code, err) == (
        4,
        "npgpt2: error: gpt2: HF_HUB_OFFLINE is set, but this needs the hub. "
        "Unset HF_HUB_OFFLINE to download it\n",
    )
    code, _, err = user.cli("fetch", "gpt2", HF_ENDPOINT=nowhere)
    assert code == 4
    assert re.fullmatch(
        rf"npgpt2: error: gpt2: the hub at {nowhere} failed \(\w+: .+\)\. Check the .*\n", err
    )
    code, _, err = user.cli("fetch", "shakespeare")
    assert (code, err.partition(". See")[0]) == (
        2, "npgpt2: error: NAME: shakespeare is part of this package: no download is needed\n"
    )  # fmt: skip


def test_an_index_leads_nowhere_else(hub, user, sharded):
    index = json.loads(sharded[f"{SINGLE}.index.json"])
    where = {"wte.weight": "../outside", "wpe.weight": "a/inside"} | index["weight_map"]
    evil = {f"{SINGLE}.index.json": json.dumps({"weight_map": where}).encode()}
    hub.push("someone/evil", sharded | evil | {"../outside": b"-", "a/inside": b"-"})
    for out in (["-o", "top/mine"], []):
        code, _, err = user.cli("fetch", "someone/evil", *out)
        assert code == 3
        assert "names the shard '../outside', expected a file in the same folder" in err
    assert not list(user.home.rglob("outside"))
    assert not list(user.home.rglob("inside"))
    assert not (user.home / "top" / "mine" / "config.json").exists()  # it is not whole


def test_an_index_of_shards_that_the_hub_has_not(hub, user, sharded):
    del sharded["second.part"]
    hub.push("someone/half", sharded)
    for out in (["-o", "mine"], []):
        code, _, err = user.cli("fetch", "someone/half", *out)
        assert (code, err) == (
            4,
            f"npgpt2: error: someone/half: {SINGLE}.index.json names second.part, but the hub has "
            "no such file. Tell the model's owner\n",
        )
    assert not (user.home / "mine" / "config.json").exists()


def test_what_changes_is_no_checkpoint_until_it_is_whole(hub, user, files):
    assert user.cli("fetch", "gpt2", "-o", "mine")[0] == 0
    shifted = load(files[SINGLE])
    shifted[WTE] = shifted[WTE] + 1
    hub.push(GPT2, files | {SINGLE: save(shifted)})
    hub.held.add(SINGLE)
    with watched(user.start("-m", "npgpt2", "fetch", "gpt2", "-o", "mine", "--force")) as process:
        until(lambda: any(is_download(r) and r.path.endswith(SINGLE) for r in hub.seen[-9:]))
        until(lambda: not (user.home / "mine" / "config.json").exists())
        process.kill()
        process.communicate()
    hub.held.clear()
    assert not (user.home / "mine" / "config.json").exists()
    assert user.cli("fetch", "gpt2", "-o", "mine", "--force")[0] == 0
    assert (user.home / "mine" / "config.json").exists()
    assert (user.home / "mine" / SINGLE).read_bytes() == save(shifted)


def test_a_cache_without_links_is_checked_as_well(hub, user):
    folder = user.folder("gpt2")
    weights = folder / SINGLE
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[:-1] + b"x")
    code, _, err = user.cli("fetch", "gpt2")
    assert code == 4
    assert re.fullmatch(rf"npgpt2: error: .*{SINGLE}: sha256 is .*\. Remove it and fetch .*\n", err)
    weights.unlink()
    assert user.cli("fetch", "gpt2")[0] == 0


# ── interruptions ────────────────────────────────────────────────────────────────────────────────


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, user, files):
    large = np.random.default_rng(0).bytes(24 << 20)  # the library writes 10 MiB at a time
    hub.push("someone/large", files | {SINGLE: large})
    hub.cut.add(SINGLE)
    answers = user.resolve(["someone/large"], ["someone/large"])
    assert answers[0]["error"] is None or "failed" in answers[0]["error"]  # older ones give up once
    asked = [r.range for r in hub.seen if is_download(r) and r.path.endswith(SINGLE)]
    assert asked == [None, f"bytes={10 << 20}-"]
    assert (user.home / answers[1]["folder"] / SINGLE).read_bytes() == large


def start_and_hold(hub, user):
    """A download that has got all files but half of the last one."""
    hub.held.add(SINGLE)
    process = user.start("-m", "npgpt2", *GREEDY, "gpt2")
    until(lambda: any(is_download(r) and r.path.endswith(SINGLE) for r in hub.seen))
    return process


def test_after_a_crash_the_download_goes_on(hub, user):
    with watched(start_and_hold(hub, user)) as process:
        process.kill()
        process.communicate()
    hub.held.clear()
    (answer,) = user.resolve(["gpt2"], **OFFLINE)
    assert "not in the hub's cache" in answer["error"]  # half a model is none
    hub.fetched()
    code, out, err = user.cli(*GREEDY, "gpt2")
    assert code == 0, err
    assert hub.fetched() == [SINGLE]
    assert user.cli(*GREEDY, "gpt2", **OFFLINE)[:2] == (0, out)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process on Windows")
def test_ctrl_c_stops_a_download_at_once(hub, user, files):
    """In the middle of the transfer: half the file is more than what lies between the two ends."""
    hub.push(GPT2, files | {SINGLE: bytes(64 << 20)})
    with watched(start_and_hold(hub, user)) as process:
        assert hub.holds.wait(PATIENCE)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "\n")


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────


def test_a_token_opens_private_and_gated_models(hub, user, files, tiny):
    hub.push("someone/private", files)
    hub.push("someone/gated", files)
    hub.private.add("someone/private")
    hub.gated.add("someone/gated")
    private, gated, wrong = user.resolve(
        ["someone/private"], ["someone/gated"], ["someone/private", None, "hf_stranger"]
    )
    assert private["error"] == (
        "FileError: someone/private: no such folder, and no such model on the hub. "
        "Check the name, or set HF_TOKEN if the model is private"
    )
    assert gated["error"] == (
        "FileError: someone/gated: is gated, expected a token with access. "
        "Request access on its page on the hub, then set HF_TOKEN"
    )
    assert wrong["error"] == (
        f"FileError: someone/private: the hub at {hub.url} answered 401 (Invalid credentials in "
        "Authorization header), expected the model. Set HF_TOKEN to a token with access"
    )
    hub.seen.clear()
    (private,) = user.resolve(["someone/private", None, FRIEND])
    assert {r.token for r in hub.seen} == {FRIEND}
    hub.seen.clear()
    gated, alias = user.resolve(["someone/gated"], ["gpt2"], HF_TOKEN=FRIEND)
    assert {r.token for r in hub.seen} == {FRIEND}  # through redirects, too
    for answer in (private, gated, alias):
        assert (user.home / answer["folder"] / "config.json").exists()
    # Once fetched they serve, whoever asks, as in transformers.
    assert user.resolve(["someone/private"])[0]["folder"] == private["folder"]


def test_the_class_passes_revision_and_token_on(hub, user, files):
    hub.push("someone/private", files, "v1")
    hub.private.add("someone/private")
    code, out, err = user.run(
        "-W", "error", "-c",
        "from npgpt2 import GPT2\n"
        f"model = GPT2.from_pretrained('someone/private', revision='v1', token='{FRIEND}')\n"
        "print(model.folder.name, model.config.n_layer)",
    )  # fmt: skip
    assert code == 0, err
    assert out.split() == [hub.repos["someone/private"].refs["v1"], "3"]


# ── failures ─────────────────────────────────────────────────────────────────────────────────────


def test_each_failure_is_one_line(hub, user, files):
    weights = ("safetensors", "pytorch_model.bin")
    others = {name: data for name, data in files.items() if not name.endswith(weights)}
    hub.push("someone/flax", others)
    hub.push("someone/words", {"README.md": b"-"})
    hub.push("someone/secret", files)
    hub.private.add("someone/secret")
    hub.push("someone/walled", files)
    hub.walled.add("someone/walled")
    hub.broken.add("someone/broken")
    hub.silent.add("someone/silent")
    hub.login_page.add("someone/hotel")
    at = re.escape(f"the hub at {hub.url}")
    cases = {
        ("someone/none",): r"someone/none: no such folder, and no such model on the hub\. Check.*",
        ("someone/secret",): r"someone/secret: no such folder, and no such model .* is private",
        ("gpt2", "--revision", "v9"): r"gpt2: has no revision 'v9' on the hub, expected a branch.*",
        ("bad--name",): r"bad--name: not a hub name \(.*",
        (
            "someone/words",
        ): r"someone/words: has no config\.json on the hub, expected a transformers checkpoint.*",
        ("someone/flax",): r"someone/flax: has no model\.safetensors and no .*, only flax_.*",
        ("someone/broken",): rf"someone/broken: {at} answered 503 \(Service Unavailable\), .*",
        ("someone/walled",): rf"someone/walled: {at} answered 403 \(Not from your country\), .*",
        ("someone/hotel",): rf"someone/hotel: .*{at} failed \(JSONDecodeError: .*",
    }
    silent = {("someone/silent",): rf"someone/silent: .*{at} failed \(\w*Timeout: .*"}
    for some, env in ((cases, {}), (silent, IMPATIENT)):
        hub.seen.clear()
        commands = [["inspect", "--model", *case] for case in some]
        answers, log = user.lines(COMMANDS, commands, **env)
        assert log == ""
        for (code, err), text in zip(answers, some.values(), strict=True):
            assert code == 4
            assert re.fullmatch(rf"npgpt2: error: {text}\n", err)
        asked = [request.path for request in hub.seen]
        assert len(set(asked)) == len(asked)  # nothing again and again


@pytest.fixture
def nowhere():
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


# A command that tells of each connection that is tried to this machine.
CONNECTS = """
import sys
from npgpt2.cli import main
def hear(event, args):
    if event == "socket.connect" and "127.0.0.1" in args[1]:
        print("connects")
sys.addaudithook(hear)
sys.exit(main(sys.argv[1:]))
"""


def test_a_hub_that_is_not_there(user, nowhere):
    for endpoint in (nowhere, "127.0.0.1"):
        code, out, err = user.run("-c", CONNECTS, "inspect", "--model", "gpt2",
                                  HF_ENDPOINT=endpoint)  # fmt: skip
        connects = ["connects"] * (endpoint == nowhere)
        assert (code, out.split()) == (4, connects)  # once, and not again and again
        assert re.fullmatch(
            "npgpt2: error: gpt2: no such folder, not in the hub's cache, and the hub at "
            rf"{re.escape(endpoint)} failed \(\w+: .+\)\. Check the network, .*\n",
            err,
        )


@pytest.mark.slow
def test_a_hub_that_fails_is_no_matter_for_what_is_in_the_cache(hub, user, nowhere):
    folder = str(user.folder("gpt2"))
    for endpoint in (nowhere, "127.0.0.1"):
        for answer in user.resolve(["gpt2"], [GPT2], HF_ENDPOINT=endpoint):
            assert answer["folder"] == folder
    hub.moved.clear()
    for ill in (hub.broken, hub.silent, hub.login_page, hub.private):
        ill |= {"gpt2", GPT2}
        hub.seen.clear()
        (answer,) = user.resolve(["gpt2"], **IMPATIENT if ill is hub.silent else {})
        assert answer["folder"] == folder
        assert len(hub.seen) == 1  # and not again and again
        ill.clear()
    hub.repos.clear()
    assert user.resolve(["gpt2"])[0]["folder"] == folder


def test_a_part_that_transformers_fetched_is_enough_if_it_is_config_and_weights(hub, user):
    fetch = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:]))
"""
    hub.push("someone/other", hub.repos[GPT2].commits[hub.repos[GPT2].refs["main"]])
    _, some, _ = user.run("-c", fetch, GPT2, "config.json", "model.safetensors")
    user.run("-c", fetch, "someone/other", "config.json", "tokenizer.json")
    enough, too_little = user.resolve(["gpt2"], ["someone/other"], **OFFLINE)
    assert enough["folder"] == some.strip()
    assert "not in the hub's cache" in too_little["error"]


def test_a_cache_that_cannot_be_written(hub, user):
    (user.home / "file").write_text("")
    code, out, err = user.cli("inspect", "--model", "gpt2", HF_HOME=str(user.home / "file"))
    assert (code, out) == (4, "")
    assert re.fullmatch(
        r"npgpt2: error: .*file.*: .+, expected to write gpt2 there\. Set HF_HOME to another .*",
        err.splitlines()[-1],
    )


def test_without_the_library_the_extra_is_named(user, tiny):
    program = """
import sys
sys.modules["huggingface_hub"] = None
from npgpt2.cli import main
sys.exit(main(sys.argv[1:]))
"""
    code, out, err = user.run("-c", program, *GREEDY, "gpt2")
    assert (code, out) == (4, "")
    assert err == (
        "npgpt2: error: gpt2: no such folder, and a hub name needs huggingface_hub. "
        "Run: pip install 'npgpt2[hub]'\n"
    )
    assert user.run("-c", program, *GREEDY, str(tiny))[0] == 0

"""Bulk work and the server on a Ray cluster: several node processes on this machine.

They are skipped where Ray is not installed; with REQUIRE_RAY set they fail there.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys

import pytest
from patience import PATIENCE, until
from rows import OPTIONS, TINY, batch, parts_in, prompts, results, write_lines
from server import free_port

from npgpt2 import GPT2
from npgpt2.bulk.folder import MANIFEST

if "REQUIRE_RAY" not in os.environ:
    pytest.skip("REQUIRE_RAY is not set: a cluster takes all of a machine", allow_module_level=True)
try:
    import importlib.metadata

    importlib.metadata.version("ray")
except importlib.metadata.PackageNotFoundError:
    if "REQUIRE_RAY" in os.environ:
        raise
    pytest.skip("ray is not here", allow_module_level=True)

ENV = os.environ | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


ON_RAY = [*map(str, OPTIONS[:-2]), "--model", TINY]  # as many workers as there are processors


class Node:
    """A node process of a cluster, in a session of its own: it can be lost as a machine is."""

    def __init__(self, number, *arguments):
        ray = os.path.join(os.path.dirname(sys.executable), "ray")
        own = [f"--node-ip-address=127.0.0.{number}", "--object-store-memory=100000000",
               f"--dashboard-agent-listen-port={free_port()}"]  # fmt: skip
        self.process = subprocess.Popen(
            [ray, "start", "--block", "--disable-usage-stats", *own, *arguments],
            env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def lose(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def asked(address, what):
    """What the cluster says of itself, as a whole number."""
    code = (
        "import ray, sys\n"
        f"ray.init({address!r}, log_to_driver=False, logging_level='ERROR')\n"
        f"print(int({what}))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    return int(done.stdout or -1)


def nodes_of(address):
    """How many the cluster knows to live."""
    return asked(address, "sum(n['Alive'] for n in ray.nodes())")


def is_open(host, port):
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), 1).close()
        return True


def await_nodes(address, count):
    until(lambda: nodes_of(address) == count)


@pytest.fixture(scope="module")
def cluster():
    """An address, and three nodes that work; the head does not."""
    port = free_port()
    address = f"127.0.0.2:{port}"  # each has an address of its own, and all are this machine's
    nodes = [Node(2, "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false")]
    try:
        until(lambda: is_open("127.0.0.2", port))
        for n in (3, 4, 5):  # one after another: they choose names of sockets in one folder
            nodes.append(Node(n, f"--address={address}", "--num-cpus=1"))
            await_nodes(address, len(nodes))
        yield address, nodes[1:]
    finally:
        for node in nodes:
            node.lose()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Rows, and what one process finds."""
    folder = tmp_path_factory.mktemp("ray")
    source = write_lines(folder / "in.jsonl", prompts(1500))
    batch(source, "-o", folder / "whole", *OPTIONS)
    return source, results(folder / "whole")


def test_a_lost_node_loses_nothing(cluster, work, tmp_path):
    """In the middle, without a word. Every row is there once, and is what one process finds."""
    (address, nodes), (source, want) = cluster, work
    out = tmp_path / "out"
    command = [sys.executable, "-m", "npgpt2", "batch", str(source), "-o", str(out), *ON_RAY,
               "--ray", address]  # fmt: skip
    process = subprocess.Popen(
        command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: parts_in(out) >= 3 or process.poll() is not None)
    nodes[0].lose()
    before = parts_in(out)
    found, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert found == ""
    assert said.splitlines()[-1].startswith("npgpt2: 1,500 rows in 24 parts in "), said
    assert "Traceback" not in said
    assert 3 <= before < 24, before  # it was in the middle
    assert results(out) == want
    await_nodes(address, 3)


def test_killed_on_a_cluster_and_resumed(cluster, work, tmp_path):
    (address, _), (source, want) = cluster, work
    out = tmp_path / "out"
    command = [sys.executable, "-m", "npgpt2", "batch", str(source), "-o", str(out), *ON_RAY,
               "--ray", address]  # fmt: skip
    process = subprocess.Popen(command, env=ENV, stderr=subprocess.DEVNULL)
    until(lambda: parts_in(out) >= 2 or process.poll() is not None)
    process.kill()
    process.wait()
    free = "ray.available_resources().get('CPU', 0) == ray.cluster_resources()['CPU']"
    until(lambda: asked(address, free) == 1)  # the cluster has heard that its driver is gone
    assert parts_in(out) < 24
    batch(source, "-o", out, *OPTIONS, "--resume")  # by processes of this machine: the same rows
    assert results(out) == want


def test_what_a_worker_fails_with_is_said_in_one_line(cluster, work, tmp_path):
    """Its input goes away when it has been counted."""
    address, _ = cluster
    source = write_lines(tmp_path / "in.jsonl", prompts(400))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "npgpt2", "batch", source, "-o", out, *ON_RAY, "--ray", address],
        env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: (out / MANIFEST).exists())
    source.unlink()
    found, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 4
    assert found == ""
    assert said == f"npgpt2: error: {source}: No such file or directory\n"


def test_no_cluster_there(work, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    said = batch(work[0], "-o", tmp_path / "out", "--task", "embed", "--ray", address, code=4,
                 env=ENV)  # fmt: skip
    assert said.splitlines()[-1].startswith(
        f"npgpt2: error: --ray: got '{address}', but no cluster answers there"
    )
    assert not (tmp_path / "out").exists()  # what is said right the next time is not in its way


SERVE = """
import sys, time
import ray
from ray import serve
from npgpt2.serve import app

ray.init({address!r}, log_to_driver=False, logging_level="ERROR")
serve.start(http_options={{"host": "127.0.0.1", "port": {port}}})
chosen = {{"model": {model!r}, "replicas": 2, "slots": "2", "api_key_file": {keys!r}}}
serve.run(app(chosen), name="npgpt2")
print("up", flush=True)
sys.stdin.read()
serve.shutdown()
"""


def test_the_same_server_on_several_machines(cluster, tmp_path):
    """Two replicas behind Ray Serve: OpenAI's client, streaming and not."""
    openai = pytest.importorskip("openai")
    address, port = cluster[0], free_port()
    (tmp_path / "keys").write_text("sk-one\n")
    keys, model = str(tmp_path / "keys"), os.path.abspath(TINY)
    code = SERVE.format(address=address, port=port, model=model, keys=keys)
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "up\n", process.stderr.read()
        model = GPT2.from_pretrained(TINY)
        [want] = model.generate("O Romeo, ", seed=5, temperature=1, top_p=1, max_new_tokens=20)
        base = f"http://127.0.0.1:{port}/v1"
        asked = {"model": "tiny", "prompt": "O Romeo, ", "seed": 5, "max_tokens": 20}
        with openai.OpenAI(base_url=base, api_key="sk-one") as client:
            for _ in range(6):  # whichever replica answers
                assert client.completions.create(**asked).choices[0].text == want.text
            parts = client.completions.create(**asked, stream=True)
            assert "".join(part.choices[0].text for part in parts) == want.text
            with pytest.raises(openai.BadRequestError):
                client.completions.create(model="tiny", prompt="a", n=0)
        with (
            openai.OpenAI(base_url=base, api_key="sk-two") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
            process.communicate("", timeout=PATIENCE)
        process.kill()
        process.communicate()

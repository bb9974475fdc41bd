"""A server in its own process, on a local port, and requests to it."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from patience import PATIENCE, until

# What a program does before it serves: so tests make a model slow, hold it until `go_on`, or make
# patience short.
BEFORE = {
    "": "",
    "slow": """
        import time
        from npgpt2.generation.slots import Slots
        step, prefill = Slots.step, Slots.prefill
        def slowly(f):
            def slow(*args):
                time.sleep(0.5)
                return f(*args)
            return slow
        Slots.step, Slots.prefill = slowly(step), slowly(prefill)
    """,
    "held": """
        from npgpt2.generation.slots import Slots
        Slots.step, Slots.prefill = held(Slots.step), held(Slots.prefill)
    """,
    "halfway": """
        from itertools import count
        from npgpt2.generation.slots import Slots
        step, held_step, number = Slots.step, held(Slots.step), count()
        Slots.step = lambda *args: (step if next(number) < 10 else held_step)(*args)
    """,
    "loading": """
        import npgpt2.serve.server as server
        from npgpt2 import GPT2
        GPT2.from_pretrained = held(GPT2.from_pretrained)
        listen = server.listen
        def told(*args):
            found = listen(*args)
            print(" at http://127.0.0.1:%d" % found.getsockname()[1], file=sys.stderr, flush=True)
            return found
        server.listen = told
    """,
    "held embeddings": """
        from npgpt2 import GPT2
        GPT2.embed = held(GPT2.embed)
    """,
    # Short, but not for those who are served meanwhile: a busy machine makes them slow.
    "impatient": """
        import npgpt2.serve.api as app, npgpt2.serve.server as server
        app.BODY_SECONDS = server.HEAD_SECONDS = server.UNREAD_SECONDS = 2
    """,
    "patient": """
        import npgpt2.serve.server as server
        server.HEAD_SECONDS = 86_400
    """,
    "broken": """
        from npgpt2.generation.slots import Slots
        step = Slots.step
        def fails(self, ids):
            if 77 in ids:
                raise ZeroDivisionError("a secret prompt")
            return step(self, ids)
        Slots.step = fails
    """,
}
HELD = """
import os, sys, time
def held(f):
    def waits(*args, **options):
        open(os.environ["GO_ON"] + " begun", "w").close()
        while not os.path.exists(os.environ["GO_ON"]):
            time.sleep(0.02)
        return f(*args, **options)
    return waits
"""


class Served:
    """A running server. `log` has its standard error."""

    def __init__(self, process, sign):
        self.process, self._sign, self._lines = process, sign, []
        self.port, self._told = None, threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stderr:
            self._lines.append(line)
            found = re.search(r" at http://[\d.:\[\]]*:(\d+)", line)
            if found:
                self.port = int(found[1])
                self._told.set()
        self._told.set()

    @property
    def log(self):
        return "".join(self._lines)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def ready(self):
        assert self._told.wait(PATIENCE)
        assert self.port, self.log
        return self

    def begun(self):
        """Wait until the blocked work has begun."""
        until(Path(f"{self._sign} begun").exists)

    def go_on(self):
        """Let the blocked work continue."""
        self._sign.touch()

    def request(self, method, path, body=None, headers=None, timeout=PATIENCE):
        """Return (status, headers, the JSON or text of the response)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            sent = {} if body is None else {"Content-Type": "application/json"}
            data = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, data, sent | (headers or {}))
            response = connection.getresponse()
            text = response.read().decode()
            is_json = response.headers.get_content_type() == "application/json"
            return response.status, response.headers, json.loads(text) if is_json else text

    def complete(self, prompt, **options):
        status, _, answer = self.request("POST", "/v1/completions", {"prompt": prompt, **options})
        assert status == 200, answer
        return answer

    def metric(self, name):
        _, _, text = self.request("GET", "/metrics")
        return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])

    def socket(self, data=b""):
        """Open a connection and send these bytes."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.sendall(data)
        return connection

    def ends(self):
        """The local end of each connection, by the other port: (state, bytes not yet read).

        From the kernel's list; state 1 is open on both sides, 8 only on this one.
        """
        found = {}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, here, there, state, queues = line.split()[:5]
            if here.endswith(f":{self.port:04X}"):
                unread = int(queues.partition(":")[2], 16)
                found[int(there.rpartition(":")[2], 16)] = int(state, 16), unread
        return found

    def connections(self):
        return sum(state == 1 for state, _ in self.ends().values())

    def leave(self, connection):
        """Close a connection and wait until the server has noticed."""
        port = connection.getsockname()[1]
        connection.close()
        until(lambda: port not in self.ends())

    def stream(self, prompt, **options):
        """A connection on which a response has begun to stream."""
        body = json.dumps({"prompt": prompt, "stream": True, **options}).encode()
        connection = self.socket(post(body))
        until(lambda: b"data: " in peeked(connection))
        return connection


def peeked(connection):
    return connection.recv(1 << 16, socket.MSG_PEEK)


def post(body, path="/v1/completions", headers=b""):
    return (
        b"POST " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s"
        % (len(body), headers, body)
    )  # fmt: skip


def answered(connection):
    """Everything that the server sends until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := connection.recv(1 << 16):
            data += more
    return data


@contextlib.contextmanager
def served(*arguments, before=""):
    """Run `npgpt2 serve ARGUMENTS` until the block ends."""
    code = "\n".join(line[8:] for line in BEFORE[before].splitlines())
    code = f"{HELD}{code}\nfrom npgpt2.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", "--port", "0", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        sign = Path(folder, "go on")
        env = os.environ | {"GO_ON": str(sign)}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        server = Served(process, sign)
        try:
            yield server.ready()
        finally:
            server.go_on()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            finally:
                process.stderr.close()


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])

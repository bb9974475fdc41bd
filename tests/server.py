"""A server in a process of its own, on a port of this machine alone, and requests to it."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

# What a program does before it serves: so tests make a model slow, or patience short.
BEFORE = {
    "": "",
    "slow": """
        import time
        from npgpt2.slots import Slots
        step, prefill = Slots.step, Slots.prefill
        def slowly(f):
            def slow(*args):
                time.sleep(0.05)
                return f(*args)
            return slow
        Slots.step, Slots.prefill = slowly(step), slowly(prefill)
    """,
    "loading": """
        import os, time
        from npgpt2 import GPT2
        load = GPT2.from_pretrained
        def late(*args, **options):
            while not os.path.exists(os.environ["LOAD_WHEN"]):
                time.sleep(0.02)
            return load(*args, **options)
        GPT2.from_pretrained = late
    """,
    "impatient": """
        import npgpt2.serve.api as app, npgpt2.serve.server as server
        app.BODY_SECONDS = server.HEAD_SECONDS = server.UNREAD_SECONDS = 0.7
    """,
    "slow embeddings": """
        import time
        from npgpt2 import GPT2
        embed = GPT2.embed
        GPT2.embed = lambda *args: (time.sleep(1), embed(*args))[1]
    """,
    "broken": """
        from npgpt2.slots import Slots
        step = Slots.step
        def fails(self, ids):
            if 77 in ids:
                raise ZeroDivisionError("a secret prompt")
            return step(self, ids)
        Slots.step = fails
    """,
}


class Served:
    """A running server. `log` is what it has said on standard error."""

    def __init__(self, process):
        self.process, self._lines = process, []
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
        assert self._told.wait(60)
        assert self.port, self.log
        return self

    def request(self, method, path, body=None, headers=None, timeout=60):
        """(status, headers, the JSON or text of the answer)."""
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
        """A connection, with these bytes sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(data)
        return connection

    def stream(self, prompt, **options):
        """A connection over which an answer has begun to stream."""
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
    """All that is sent until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := connection.recv(1 << 16):
            data += more
    return data


@contextlib.contextmanager
def served(*arguments, before="", port="0", wait=True, env=None):
    """`npgpt2 serve ARGUMENTS`, ended when the block ends."""
    code = "\n".join(line[8:] for line in BEFORE[before].splitlines())
    code += "\nimport sys\nfrom npgpt2.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", "--port", port, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    server = Served(process)
    try:
        yield server.ready() if wait else server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            process.stderr.close()


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def until(condition, seconds=10.0):
    """Wait for it; returns how long it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds
        time.sleep(0.01)
    return time.monotonic() - begun

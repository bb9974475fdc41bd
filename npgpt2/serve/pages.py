"""The two pages of a server: one to try it, one that says what it takes."""

import html
import json
from pathlib import Path
from typing import Any

from npgpt2.base.document import document
from npgpt2.serve.protocol import CompletionRequest, EmbeddingRequest

WEB = Path(__file__).parent / "web"

FRONT = """<main>
<h1>{name}</h1>
<form id="form">
<label>Text to go on from <textarea id="prompt" autofocus>O Romeo, </textarea></label>
<div class="options">
<label>tokens <input id="max_tokens" type="number" min="1" value="100" inputmode="numeric"></label>
<label>temperature <input id="temperature" type="number" min="0" step="0.1" value="0.8"
 inputmode="decimal"></label>
<label>top-p <input id="top_p" type="number" min="0.05" max="1" step="0.05" value="0.95"
 inputmode="decimal"></label>
<label>seed <input id="seed" type="number" min="0" placeholder="any" inputmode="numeric"></label>
</div>
<div class="buttons"><button id="write">Write</button>
<button id="stop" type="button" disabled>Stop</button></div>
</form>
<pre id="answer"></pre>
<p class="faint" id="state" role="status"></p>
<p class="faint"><a href="docs">What the server takes</a></p>
</main>"""

DOCS = """<h1>{name}: what the server takes</h1>
<p>OpenAI's completions API, for its own clients. With keys every path but <code>/livez</code> wants
<code>Authorization: Bearer KEY</code>.</p>
<pre>from openai import OpenAI

client = OpenAI(base_url="{base}/v1", api_key="any, where no keys were set")
answer = client.completions.create(model={quoted}, prompt="O Romeo, ", max_tokens=40, seed=7)
print(answer.choices[0].text)</pre>
<pre>curl {base}/v1/completions -H 'Content-Type: application/json' \\
  -d '{{"prompt": "O Romeo, ", "max_tokens": 40, "stream": true}}'</pre>
{requests}
<h2>The others</h2>
<table>{paths}</table>
<h2>Errors</h2>
<p>OpenAI's object: <code>{{"error": {{"message", "type", "param", "code"}}}}</code>;
<code>param</code> is the field that is wrong.</p>
<table>{errors}</table>"""

PATHS = {
    "GET /v1/models": "the one model, by the name to ask for",
    "GET /livez": "200 while the process lives; needs no key",
    "GET /readyz": "200 when the model is there; 503 while it is loaded, or the server drains",
    "GET /metrics": "Prometheus text",
    "GET /": "a page to try it",
}
ERRORS = {
    "400": "a field out of its range, unknown, or of another type; JSON that is none",
    "401, 403": "no key of this server; a Host that is not its name",
    "404, 405": "another model's name; no such path; another method",
    "408, 411, 413, 415, 431": "a request too slow, without a length, too long, not JSON, with too "
    "many headers",
    "429": "the queue is full; Retry-After says for how many seconds",
    "503": "the model is being loaded, or the server drains",
}
STYLE = "table { border-collapse: collapse } td { border-top: 1px solid var(--line); padding: .3rem\
 .8rem .3rem 0; vertical-align: top }"


def front_page(name: str) -> str:
    style, script = ((WEB / f"front.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    body = FRONT.format(name=html.escape(name))
    return document(f"npgpt2: {name}", body, style, script, fetches=True)


def docs_page(name: str, base: str) -> str:
    """`base` is where the server is, as who asks knows it: http://HOST:PORT."""
    requests = "".join(map(_request, (CompletionRequest, EmbeddingRequest)))
    paths, errors = (
        _rows((f"<code>{path}</code>", html.escape(text)) for path, text in table.items())
        for table in (PATHS, ERRORS)
    )
    quoted = html.escape(json.dumps(name, ensure_ascii=False))
    body = DOCS.format(
        name=html.escape(name),
        base=html.escape(base),
        quoted=quoted,
        requests=requests,
        paths=paths,
        errors=errors,
    )
    return document(f"npgpt2: {name}: API", body, STYLE)


def _request(kind: type[Any]) -> str:
    """A request's fields, from what checks them."""
    title, _, about = " ".join((kind.__doc__ or "").split()).partition(": ")
    rows = []
    for field, schema in kind.model_json_schema()["properties"].items():
        default = schema.get("default")
        shown = "" if default is None else f" = {json.dumps(default)}"
        text = html.escape(schema.get("description", "")).replace("`", "")
        rows.append((f"<code>{field}{html.escape(shown)}</code>", text))
    title = html.escape(title.replace("`", ""))
    return f"<h2>{title}</h2>\n<p>{html.escape(about)}</p>\n<table>{_rows(rows)}</table>\n"


def _rows(rows: Any) -> str:
    return "".join(f"<tr><td>{left}<td>{right}" for left, right in rows)

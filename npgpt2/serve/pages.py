"""The two pages of a server: one to try the model, one that documents the API."""

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
<label>Prompt <textarea id="prompt" autofocus>O Romeo,</textarea></label>
<div class="options">
<label>tokens <input id="max_tokens" type="number" min="1" value="100" inputmode="numeric"></label>
<label>temperature <input id="temperature" type="number" min="0" step="0.1" value="0.8"
 inputmode="decimal"></label>
<label>top-p <input id="top_p" type="number" min="0.05" max="1" step="0.05" value="0.95"
 inputmode="decimal"></label>
<label>seed <input id="seed" type="number" min="0" placeholder="any" inputmode="numeric"></label>
</div>
<div class="buttons"><button id="write">Generate</button>
<button id="stop" type="button" disabled>Stop</button></div>
</form>
<pre id="answer"></pre>
<p class="faint" id="state" role="status"></p>
<p class="faint"><a href="docs">API documentation</a></p>
</main>"""

DOCS = """<h1>{name}: API</h1>
<p>OpenAI's completions API; OpenAI's clients work with it. If the server has keys, every path but
<code>/livez</code> needs <code>Authorization: Bearer KEY</code>.</p>
<pre>from openai import OpenAI

client = OpenAI(base_url="{base}/v1", api_key="any text if the server has no keys")
answer = client.completions.create(model={quoted}, prompt="O Romeo,", max_tokens=40, seed=7)
print(answer.choices[0].text)</pre>
<pre>curl {base}/v1/completions -H 'Content-Type: application/json' \\
  -d '{{"prompt": "O Romeo,", "max_tokens": 40, "stream": true}}'</pre>
{requests}
<h2>Other paths</h2>
<table>{paths}</table>
<h2>Errors</h2>
<p>OpenAI's format: <code>{{"error": {{"message", "type", "param", "code"}}}}</code>;
<code>param</code> is the wrong field.</p>
<table>{errors}</table>"""

PATHS = {
    "GET /v1/models": "the model and its name",
    "GET /livez": "200 while the process is alive; needs no key",
    "GET /readyz": "200 when the model is ready; 503 while it loads or the server shuts down",
    "GET /metrics": "metrics in Prometheus format",
    "GET /": "a page to try the model",
}
ERRORS = {
    "400": "a field is unknown, out of range or of the wrong type; the body is not JSON",
    "401, 403": "no valid key; a Host that is not a name of this server",
    "404, 405": "another model's name or no such path; a wrong method",
    "408, 411, 413, 415, 431": "a request that is too slow or too long, has no length or too many "
    "headers, or is not JSON",
    "429": "the queue is full; Retry-After says after how many seconds to try again",
    "503": "the model is being loaded, or the server shuts down",
}
STYLE = "table { border-collapse: collapse } td { border-top: 1px solid var(--line); padding: .3rem\
 .8rem .3rem 0; vertical-align: top }"


def front_page(name: str) -> str:
    style, script = ((WEB / f"front.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    body = FRONT.format(name=html.escape(name))
    return document(f"npgpt2: {name}", body, style, script, fetches=True)


def docs_page(name: str, base: str) -> str:
    """`base` is the URL of the server as the client sees it: http://HOST:PORT."""
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
    """The documentation of a request, from its pydantic model."""
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

"""A `Record` as one HTML file, and the same page for a model that runs in the browser.

The page's scripts lie in `web/`, each one idea; they are put into the file one behind the other,
as one module. Nothing in them makes markup of a text.
"""

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npgpt2.base.document import document
from npgpt2.generation.options import GenerationOptions
from npgpt2.model.config import GPT2Config
from npgpt2.pictures.record import Record, about_model

WEB = Path(__file__).parent / "web"
# In the order in which they build on each other.
SCRIPTS = ("elements", "words", "numbers", "sampling", "heatmap", "tokens", "blocks", "attention",
           "across", "choice", "memory", "page")  # fmt: skip


def explain_page(record: Record) -> str:
    """The page of one prompt: everything in one file, nothing asked of anywhere."""
    packed = base64.b64encode(record.packed()).decode()
    data = {"about": record.about, "packed": packed}
    return _page(record.about["model"]["name"], data, "open_record")


def live_page(config: GPT2Config, name: str, prompt: str, options: GenerationOptions) -> str:
    """The page of a site, whose worker runs the model that lies beside it.

    Args:
        name: of the model.
        prompt, options: what the page begins with.
    """
    model = about_model(config, name) | {"eos": sorted(config.eos_token_ids)}
    data = {"about": {"model": model}, "prompt": prompt, "options": asdict(options)}
    return _page(name, data, "thought", "live", "open_live", worker=True)


def _page(name: str, data: dict[str, Any], *last: str, worker: bool = False) -> str:
    # A "<" in the data could end the element that holds it; JSON knows another way to write it.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    body = (
        '<div id="live"></div>\n<div id="page"></div>\n<noscript><p>This page draws its pictures '
        "by JavaScript, which is switched off here.</p></noscript>\n"
        f'<script type="application/json" id="data">{text}</script>'
    )
    script = "\n".join((WEB / f"{part}.js").read_text("utf-8") for part in (*SCRIPTS, *last))
    style = (WEB / "explain.css").read_text("utf-8")
    return document(f"{name}: how a GPT-2 goes on with a text", body, style, script, worker=worker)

"""A `Record` as one HTML file, and the same page for a model that runs in the browser.

The page's scripts are in `web/`, one topic per file. The page contains them, joined into one
JavaScript module. None of them parses a text as markup.
"""

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npgpt2.base.document import Page, document
from npgpt2.generation.options import GenerationOptions
from npgpt2.model.config import GPT2Config
from npgpt2.pictures.record import Record, about_model

WEB = Path(__file__).parent / "web"
# In order: each may use those before it.
SCRIPTS = ("elements", "words", "numbers", "sampling", "heatmap", "tokens", "blocks", "attention",
           "across", "choice", "memory", "page")  # fmt: skip


def explain_page(record: Record) -> Page:
    """The page of one prompt: one HTML file that sends no request."""
    packed = base64.b64encode(record.packed()).decode()
    data = {"about": record.about, "packed": packed}
    return _page(record.about["model"]["name"], data, "open_record")


def live_page(config: GPT2Config, name: str, prompt: str, options: GenerationOptions) -> Page:
    """The page of a live site: a worker runs the model, whose files are next to the page.

    Args:
        name: name of the model.
        prompt, options: initial prompt and generation options.
    """
    model = about_model(config, name) | {"eos": sorted(config.eos_token_ids)}
    data = {"about": {"model": model}, "prompt": prompt, "options": asdict(options)}
    return _page(name, data, "thought", "live", "open_live", worker=True)


def _page(name: str, data: dict[str, Any], *last: str, worker: bool = False) -> Page:
    # A "<" in the data could end the element that contains it, so JSON's \u escape replaces it.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    body = (
        '<div id="live"></div>\n<div id="page"></div>\n<noscript><p>This page needs '
        "JavaScript, which is disabled in this browser.</p></noscript>\n"
        f'<script type="application/json" id="data">{text}</script>'
    )
    script = "\n".join((WEB / f"{part}.js").read_text("utf-8") for part in (*SCRIPTS, *last))
    style = (WEB / "explain.css").read_text("utf-8")
    return document(f"{name}: how GPT-2 continues a text", body, style, script, worker=worker)

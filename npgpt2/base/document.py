"""A self-contained HTML file: it loads nothing from elsewhere, and its texts are not markup.

Its Content-Security-Policy allows only its own style and script, by their sha256; a browser runs no
script that a text contains. (https://www.w3.org/TR/CSP3/)
"""

import base64
import hashlib
import html
from pathlib import Path

from npgpt2.base.files import named_errors, output, require_parent, write_text

STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#fdfdfc, #16181c);
  --raised: light-dark(#f1f1ee, #22252b); --ink: light-dark(#1b1b1a, #e8e6e3);
  --faint: light-dark(#63635e, #a09f9b); --line: light-dark(#d4d3cd, #3a3d44);
  --accent: light-dark(#0b5cad, #7cb8f5) }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .5rem 0 }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
code, pre, .text { font-family: ui-monospace, monospace }
pre { white-space: pre-wrap; background: var(--raised); padding: 1rem; border-radius: 4px }
.faint { color: var(--faint) }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px }
"""


class Page(str):
    """The text of an HTML file that needs no other: save it, or look at it in a notebook.

    >>> document("title", "<p>body</p>")
    Page(1,205 characters. save(path) writes it)
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Page({len(self):,} characters. save(path) writes it)"

    def _repr_html_(self) -> str:
        """In a notebook: the page in a frame. It has no access to the notebook."""
        return (
            f'<iframe srcdoc="{html.escape(str(self))}" sandbox="allow-scripts" '
            'style="width: 100%; height: 30em; border: 1px solid #8888; resize: vertical"></iframe>'
        )

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, which appears as a whole; return its path.

        Raises:
            FileError: the file cannot be written.
        """
        file = Path(path)
        require_parent(file)
        with named_errors(file), output(file) as work:
            write_text(work, self)
        return file


def document(
    title: str,
    body: str,
    style: str = "",
    script: str = "",
    worker: bool = False,
    fetches: bool = False,
) -> Page:
    """The text of an HTML file.

    Args:
        title: plain text.
        body: markup. The caller escapes text from prompts and files with `html.escape`.
        style: CSS after `STYLE`. (The policy refuses attributes named `style`.)
        script: one JavaScript module, run after the body is parsed.
        worker: allow the script to start a worker from the server of the page.
        fetches: allow the script to send requests to the server of the page.

    >>> page = document("a < b", "<p>1</p>")
    >>> "<title>a &lt; b</title>" in page, "default-src 'none'" in page
    (True, True)
    """
    style = STYLE + style
    rules = [
        "default-src 'none'", f"style-src {_digest(style)}", "base-uri 'none'", "form-action 'none'"
    ]  # fmt: skip
    if script:
        rules += [f"script-src {_digest(script)}", "require-trusted-types-for 'script'"]
        rules += ["worker-src 'self'"] if worker else []
        rules += ["connect-src 'self'"] if fetches else []
        script = f'<script type="module">{script}</script>\n'
    return Page(
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(rules)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n"
        f"<body>\n{body}\n{script}</body>\n</html>\n"
    )


def _digest(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"

"""A text as a page, token by token: coloured by each token's surprise, or by token boundaries.

A token may be only a part of a character (of 字, of 👑). The pages draw groups: the fewest tokens
that form whole characters.
"""

import html
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from npgpt2.base.document import Page, document
from npgpt2.base.errors import printable
from npgpt2.tokenizer.interface import Tokenizer

if TYPE_CHECKING:
    from npgpt2.generation.scoring import Score

STEPS = 13  # steps of the colour ramp, 1 bit each; the last also stands for more bits
TINTS = 4  # colours of the tokens page; neighbours differ
LISTED = 20  # most surprising groups in the table
AFRESH = 16  # groups per decoder: some decoders decode everything again for each token
PARAGRAPH = 500  # least groups per block of text: browsers take 30 s for a block of 100,000
BEFORE, AFTER = 32, 20  # characters of context

# First and last colour, light and dark theme. Text has a contrast of 4.5 : 1 on every step.
LIGHT, DARK = ("#fdf5e9", "#d8691c"), ("#211d19", "#9c4a06")
# Colour-blind-safe colours, pale and dark (https://sronpersonalpages.nl/~pault/).
PALE, DEEP = ("#bbccee", "#eeeebb", "#ffcccc", "#cceeff"), (
    "#222255", "#5c5c2e", "#663333", "#225555",
)  # fmt: skip

# HTML drops control characters, so their Unicode symbols replace them. It keeps a carriage return
# as &#13;. Tabs and newlines stay.
SHOWN: dict[int, int | str] = {code: 0x2400 + code for code in range(32)}
SHOWN |= {ord("\t"): "\t", ord("\n"): "\n", ord("\r"): "&#13;", 127: 0x2421}
ON_ONE_LINE = str.maketrans({"\n": "⏎", "\r": "␍", "\t": " "})

STYLE = """
.text { white-space: pre-wrap; line-height: 1.9; padding: 1rem 0; border: solid var(--line);
  border-width: 1px 0; print-color-adjust: exact }
.text div { padding-top: .5em; unicode-bidi: plaintext; content-visibility: auto;
  contain-intrinsic-size: auto 60rem }
i { font-style: normal; border-radius: 3px; padding: .15em 0; box-decoration-break: clone;
  -webkit-box-decoration-break: clone }
.n::before, .z::before { content: "⏎"; content: "⏎" / ""; color: var(--faint) }
.z::before { content: "·"; content: "·" / "" }
.legend { display: flex; flex-wrap: wrap; gap: .15rem; align-items: baseline }
.legend i { padding: .15em .5em; min-width: 2em; text-align: center }
"""


class Group(NamedTuple):
    """The fewest tokens that form whole characters: index of the first, their ids, their text.

    The text is empty if the tokens add none; some vocabularies have such tokens.
    """

    start: int
    ids: tuple[int, ...]
    text: str

    def of(self, numbers: Sequence[float]) -> list[float]:
        """From one number per token of the text, the numbers of this group."""
        return list(numbers[self.start : self.start + len(self.ids)])


def groups(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[Group]:
    """Tokens → groups, in order. Their texts, joined, are the decoded text.

    >>> from npgpt2.tokenizer.load import load_tokenizer
    >>> known = load_tokenizer("tests/data/tiny")
    >>> list(groups(known.encode("字 king"), known))[:2]
    [Group(start=0, ids=(162, 256, 246), text='字'), Group(start=3, ids=(346,), text=' k')]
    """
    decoder, begun, closed = tokenizer.decoder(), 0, 0
    data, text = b"", ""
    for at, token in enumerate(ids):
        data += tokenizer.token_bytes(token)
        text += decoder.push(token)
        if not _is_whole(data, text):
            continue
        yield Group(begun, tuple(ids[begun : at + 1]), text)
        closed += 1
        if closed % AFRESH == 0:
            decoder = tokenizer.decoder()
            for before in ids[begun : at + 1]:  # else the next word would lose its space
                decoder.push(before)
        data, text, begun = b"", "", at + 1
    if begun < len(ids):
        yield Group(begun, tuple(ids[begun:]), text + decoder.finish())


def _is_whole(data: bytes, text: str) -> bool:
    """Whether the tokens end at the end of a character. `text`: what the decoder has returned."""
    try:
        whole = data.decode()
    except UnicodeDecodeError:
        return False
    # Libraries decode part of a character to U+FFFD; a decoder holds that back.
    return bool(text) or "\ufffd" not in whole


# ── surprise ─────────────────────────────────────────────────────────────────────────────────────


def surprise_page(score: "Score", tokenizer: Tokenizer, model: str) -> Page:
    """A scored text, coloured by surprise: −log₂ of the probability that the model gave a token.

    Args:
        model: name of the model, for the title.

    >>> from npgpt2 import GPT2
    >>> model = GPT2.from_pretrained("tests/data/tiny")
    >>> page = surprise_page(model.score("the king"), model.tokenizer, "tiny")
    >>> '<i class=s1 title="ing, id 299: -0.7491 nats, 47.3 %, 1.08 bits">ing</i>' in page
    True
    """
    logprobs: list[float] = score.logprobs.tolist()
    parts = list(groups(score.ids.tolist(), tokenizer))
    text = _paragraphs(parts, (_surprise(part, logprobs, tokenizer) for part in parts))
    return document(
        f"score: {model}",
        f"<h1>How much each token surprises {html.escape(model)}</h1>\n"
        f"<p>perplexity {score.perplexity:.4f}, {score.bits_per_byte:.4f} bits per byte; "
        f"{score.tokens:,} of {len(logprobs):,} tokens scored</p>\n{_ramp_legend()}"
        f"{text}{_most_surprising(parts, logprobs)}",
        STYLE + _ramp_style() + TABLE,
    )


TABLE = """
.u { outline: 1px dashed var(--faint); outline-offset: -1px }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: baseline }
th { font-weight: normal; color: var(--faint) }
td:nth-child(-n+2), th { white-space: nowrap }
bdi { white-space: pre-wrap; font-family: ui-monospace, monospace }
td:nth-child(-n+2) { font-variant-numeric: tabular-nums }
"""


def _surprise(part: Group, logprobs: Sequence[float], tokenizer: Tokenizer) -> str:
    mine = part.of(logprobs)
    lines = [
        f"{_named(token, tokenizer)}: {_in_words(p, first=part.start + i == 0)}"
        for i, (token, p) in enumerate(zip(part.ids, mine, strict=True))
    ]
    if len(lines) > 1:
        lines.append(f"together {_bits(mine):.2f} bits")
    return _element(part, _step(mine), lines)


def _in_words(logprob: float, first: bool) -> str:
    if math.isnan(logprob):
        where = "" if first else " in its window"
        return f"not scored, no token before it{where}"
    return f"{logprob:.4f} nats, {_percent(logprob)}, {_bits([logprob]):.2f} bits"


def _percent(logprob: float) -> str:
    return f"{100 * math.exp(logprob):.3g} %"


def _bits(logprobs: Sequence[float]) -> float:
    """The surprise of a sequence of tokens: the sum over the scored ones.

    >>> _bits([math.log(0.5), math.log(0.125), math.nan])
    4.0
    """
    return sum((-p for p in logprobs if not math.isnan(p)), 0.0) / math.log(2)


def _step(logprobs: Sequence[float]) -> str:
    """The CSS class of a colour; "u" if no token was scored."""
    if all(map(math.isnan, logprobs)):
        return "u"
    return f"s{int(min(max(_bits(logprobs), 0.0), STEPS - 1))}"


def ramp(ends: tuple[str, str]) -> list[str]:
    """Colours from one to another, in `STEPS` even steps.

    >>> ramp(("#000000", "#0c180c"))[:3]
    ['#000000', '#010201', '#020402']
    """
    low, high = ([int(end[at : at + 2], 16) for at in (1, 3, 5)] for end in ends)
    return [
        "#" + "".join(f"{round(a + (b - a) * n / (STEPS - 1)):02x}"
                      for a, b in zip(low, high, strict=True))
        for n in range(STEPS)
    ]  # fmt: skip


def _ramp_style() -> str:
    colours = zip(ramp(LIGHT), ramp(DARK), strict=True)
    return "".join(
        f".s{n} {{ background: light-dark({light}, {dark}) }}\n"
        for n, (light, dark) in enumerate(colours)
    )


def _ramp_legend() -> str:
    steps = "".join(f"<i class=s{n}>{n}</i>" for n in range(STEPS - 1))
    return (
        f'<p class="legend">bits: {steps}<i class=s{STEPS - 1}>{STEPS - 1}+</i> '
        "<i class=u>not scored</i></p>\n"
        '<p class="faint">0 bits: probability 1. 1 bit: 1 in 2. 10 bits: 1 in 1,024. '
        "Point at a token for its log-probability.</p>\n"
    )


def _most_surprising(parts: Sequence[Group], logprobs: Sequence[float]) -> str:
    """A table of the `LISTED` most surprising groups, the most surprising first."""
    scored = [at for at, part in enumerate(parts) if _step(part.of(logprobs)) != "u"]
    scored.sort(key=lambda at: -_bits(parts[at].of(logprobs)))
    rows = "".join(_row(parts, at, parts[at].of(logprobs)) for at in scored[:LISTED])
    return (
        "<h2>Most surprising tokens</h2>\n<table><thead><tr><th>bits</th><th>probability</th>"
        f"<th>in context</th></tr></thead>\n<tbody>{rows}</tbody></table>"
    )


def _row(parts: Sequence[Group], at: int, logprobs: Sequence[float]) -> str:
    """One group within its line of the text. A line has one reading direction."""
    before = "".join(part.text for part in parts[max(0, at - BEFORE) : at])
    after = "".join(part.text for part in parts[at + 1 : at + 1 + AFTER])
    told, itself, then = (
        _markup(text.translate(ON_ONE_LINE))
        for text in (
            before.rpartition("\n")[2][-BEFORE:],
            _visible(parts[at].text),
            "" if "\n" in parts[at].text else after.partition("\n")[0][:AFTER],
        )
    )
    scored = [p for p in logprobs if not math.isnan(p)]
    return (
        f"<tr><td>{_bits(logprobs):.2f}</td><td>{_percent(sum(scored))}</td>"
        f"<td><bdi>{told}<i class={_step(logprobs)}>{itself}</i>{then}</bdi></td></tr>\n"
    )


def _visible(text: str) -> str:
    """Text, or its code points if it has no width.

    >>> _visible("king"), _visible("\u200d")
    ('king', 'U+200D')
    """
    if all(unicodedata.category(c) in ("Cf", "Mn", "Me") for c in text):
        return " ".join(f"U+{ord(c):04X}" for c in text)
    return text


# ── token boundaries ─────────────────────────────────────────────────────────────────────────────


def tokens_page(text: str, ids: Sequence[int], tokenizer: Tokenizer, model: str) -> Page:
    """A text with the boundaries of its tokens.

    Args:
        ids: token ids of the text.
        model: name of the model that has this vocabulary, for the title.

    >>> from npgpt2.tokenizer.load import load_tokenizer
    >>> known = load_tokenizer("tests/data/tiny")
    >>> page = tokens_page("the king", known.encode("the king"), known, "tiny")
    >>> "4 tokens, 8 characters, 8 bytes; 2.00 bytes per token" in page
    True
    >>> '<i class=t3 title="ing, id 299: 69 6e 67">ing</i>' in page
    True
    """
    special = {token for token in set(ids) if _is_special(token, tokenizer)}
    parts = list(groups(ids, tokenizer))
    elements = (_borders(part, n, special, tokenizer) for n, part in enumerate(parts))
    size = len(text.encode())
    each = f"; {size / len(ids):.2f} bytes per token" if ids else ""
    return document(
        f"tokens: {model}",
        f"<h1>Tokens in the vocabulary of {html.escape(model)}</h1>\n"
        f"<p>{len(ids):,} tokens, {len(text):,} characters, {size:,} bytes{each}</p>\n"
        f"{_borders_legend()}{_paragraphs(parts, elements)}",
        STYLE + _tints() + BORDERS,
    )


# A border or a number that takes space would separate joined Arabic letters. A shadow and a number
# above the line do not.
BORDERS = """
.text i { box-shadow: inset 0 0 0 1px light-dark(#00000060, #ffffff60) }
.x { text-decoration: underline wavy; text-underline-offset: .25em; font-weight: bold }
[data-n] { position: relative }
[data-n]::after { content: attr(data-n); content: attr(data-n) / ""; position: absolute;
  top: -.85em; inset-inline-end: 0; font-size: .6em; line-height: 1; color: var(--faint) }
"""


def _borders(part: Group, number: int, special: set[int], tokenizer: Tokenizer) -> str:
    lines = [
        f"{_named(token, tokenizer)}: {tokenizer.token_bytes(token).hex(' ')}"
        + (" (special)" if token in special else "")
        for token in part.ids
    ]
    return _element(part, f"t{number % TINTS}", lines, special=not special.isdisjoint(part.ids))


def _is_special(token: int, tokenizer: Tokenizer) -> bool:
    """Whether the token is special: its text encodes to it only with `special=True`.

    >>> from npgpt2.tokenizer.load import load_tokenizer
    >>> known = load_tokenizer("tests/data/tiny")
    >>> [_is_special(token, known) for token in (0, 299)]
    [True, False]
    """
    piece = tokenizer.piece(token)
    return tokenizer.encode(piece) == [token] != tokenizer.encode(piece, special=False)


def _tints() -> str:
    return "".join(
        f".t{n} {{ background: light-dark({PALE[n]}, {DEEP[n]}) }}\n" for n in range(TINTS)
    )


def _borders_legend() -> str:
    return (
        '<p class="faint">A change of colour is a token boundary. A small number: this many tokens '
        "form the characters together. A wavy line: a special token. "
        "Point at a token for its id and bytes.</p>\n"
    )


# ── for both pages ───────────────────────────────────────────────────────────────────────────────


def _paragraphs(parts: Sequence[Group], elements: Iterable[str]) -> str:
    """The whole text as blocks, each of which ends with a newline. One element per group."""
    blocks, count = [""], 0
    for part, element in zip(parts, elements, strict=True):
        blocks[-1] += element
        count += 1
        if count >= PARAGRAPH and part.text.endswith("\n"):
            blocks.append("")
            count = 0
    inner = "".join(f"<div>{block}</div>" for block in blocks if block)
    return f'<div class="text" dir="auto">{inner}</div>\n'


def _element(part: Group, colour: str, lines: Sequence[str], special: bool = False) -> str:
    """The markup of one group, kept short: a text may have 100,000 groups."""
    marks = {"n": "\n" in part.text, "z": not part.text, "x": special}
    classes = " ".join([colour, *(name for name, there in marks.items() if there)])
    classes = f'"{classes}"' if " " in classes else classes
    count = f" data-n={len(part.ids)}" if len(part.ids) > 1 and colour.startswith("t") else ""
    title = html.escape("\n".join(lines))
    return f'<i class={classes}{count} title="{title}">{_markup(part.text)}</i>'


def _named(token: int, tokenizer: Tokenizer) -> str:
    return f"{_isolated(printable(tokenizer.piece(token)))}, id {token}"


def _isolated(text: str) -> str:
    """Right-to-left text between Unicode isolates, so that it does not reorder what follows.

    >>> _isolated("king"), _isolated("ملك") == "\\u2068ملك\\u2069"
    ('king', True)
    """
    if text.isascii() or not any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in text):
        return text
    return f"\u2068{text}\u2069"


def _markup(text: str) -> str:
    """Escape a text for HTML, so that every character shows.

    >>> _markup("<b>\\0\\r\\n")
    '&lt;b&gt;␀&#13;\\n'
    """
    return html.escape(text).translate(SHOWN)

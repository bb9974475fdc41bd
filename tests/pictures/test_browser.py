"""Both pages in a real Chromium: what a person sees, clicks and types, compared with the model.

See `browser`. The live page needs WEB_MODULES as well: npm's folder with onnxruntime-web and
@huggingface/tokenizers.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import server as api
from browser import missing, picture
from onnx_cases import save
from patience import until

from npgpt2 import GPT2, GenerationOptions, GPT2Config, cli, load_tokenizer
from npgpt2.checkpoints.hub import embedded
from npgpt2.generation import sampling
from npgpt2.model.ops import softmax
from npgpt2.model.params import named_parameters
from npgpt2.pictures.explain import SCRIPTS, WEB, explain_page
from npgpt2.pictures.record import lens_logits, record, sizes
from npgpt2.tokenizer.files import copy_vocabulary

PROMPT = "O Romeo, Romeo! wherefore art"
OPTIONS = GenerationOptions(seed=0, max_new_tokens=12)


@pytest.fixture(scope="module")
def found():
    """The embedded model, and its record of the prompt."""
    model = GPT2.from_pretrained("shakespeare")
    return model, record(model, PROMPT, OPTIONS, "shakespeare")


@pytest.fixture(scope="module")
def file(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explain.html"
    path.write_text(explain_page(found[1]), encoding="utf-8")
    return path


@pytest.fixture
def page(watched, file):
    page = watched.open(file.as_uri())
    page.wait_for_selector("main")
    yield page
    assert watched.requests == [file.as_uri()]


def shown(text):
    """The number in a text of the page, and half of its last digit."""
    digits = text.replace("−", "-").removesuffix(" %").replace(",", "")
    scale = 100 if text.endswith("%") else 1
    decimals = len(digits.partition(".")[2])
    return float(digits) / scale, 0.5 * 10**-decimals / scale * (1 + 1e-6)


def holds(text, wanted):
    number, half = shown(text)
    assert abs(number - wanted) <= half, (text, wanted)


def spelled(model, token):
    """A piece as the page shows it."""
    text = model.tokenizer.token_bytes(int(token)).decode()
    return text.translate(str.maketrans({" ": "·", "\n": "⏎"}))


def step(page, title):
    return page.locator(".step", has=page.get_by_role("heading", name=title, exact=True))


def read_map(page, figure, row, column):
    """Point at a cell of a map; the words under it."""
    canvas = figure.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    rows, columns = (int(canvas.get_attribute(side)) for side in ("height", "width"))
    page.mouse.move(
        box["x"] + box["width"] * (column + 0.5) / columns,
        box["y"] + box["height"] * (row + 0.5) / rows,
    )
    return figure.locator(".readout").inner_text()


# ── the page of one prompt ───────────────────────────────────────────────────────────────────────


def test_numbers_under_the_pointer(page, found):
    """A cell of every map on the page: the model's own number, to the digits shown."""
    model, kept = found
    taps = {}
    model([kept.about["ids"]], tap=lambda name, array: taps.__setitem__(name, array[0].copy()))
    page.locator("nav select").nth(1).select_option("2")
    page.locator("nav select").nth(2).select_option("5")
    d, seen, parts = model.config.head_dim, 0, set()
    for figure in page.locator("figure", has=page.locator("figcaption code")).all():
        name, _, part = figure.locator("figcaption code").inner_text().partition("[:, ")
        first = int(part.split(":")[0]) if part else 0
        parts.add(part)
        for row, column in ((0, 3), (len(kept.about["ids"]) - 1, d - 2)):
            words = read_map(page, figure, row, column)
            assert words.startswith(f"token {row} “")
            assert f"”, dimension {first + column}: " in words
            holds(words.rpartition(": ")[2], taps[name][row, first + column])
            seen += 1
    assert parts == {"", "160:192]", "416:448]", "672:704]"}  # of q and heads, k, v: head 5
    assert seen == 2 * (3 + 10 + 1)  # embeddings, the block (c_attn three times), ln_f


def test_scores_on_their_way_to_probabilities(page, found):
    model, kept = found
    taps = {}
    model([kept.about["ids"]], tap=lambda name, array: taps.__setitem__(name, array[0].copy()))
    page.locator("nav select").nth(1).select_option("4")
    page.locator("nav select").nth(2).select_option("3")
    q, k, _ = taps["h.4.attn.c_attn"].reshape(-1, 3, 8, 32).transpose(1, 2, 0, 3)[:, 3]
    scores, probs = q @ k.T, taps["h.4.attn.probs"][3]
    figures = step(page, "Scores → probabilities").locator("figure")
    for row, column in ((5, 2), (2, 5), (7, 7)):
        raw, scaled, masked, soft = (
            read_map(page, figures.nth(n), row, column).rpartition(": ")[2] for n in range(4)
        )
        holds(raw, scores[row, column])
        holds(scaled, scores[row, column] * 32**-0.5)
        assert masked == (scaled if column <= row else "−∞")
        holds(soft, probs[row, column])
    large = step(page, "Attention: head 3")
    holds(read_map(page, large.locator("figure"), 7, 1).rpartition(": ")[2], probs[7, 1])
    last = large.locator(".share").all_text_contents()
    for text, wanted in zip(last, probs[-1], strict=True):
        holds(text, wanted)
    large.locator(".name").nth(4).hover()
    for text, wanted in zip(
        large.locator(".share").all_text_contents()[:5], probs[4], strict=False
    ):
        holds(text, wanted)
    page.keyboard.press("m")
    mean = step(page, "Attention: mean over all heads")
    for text, wanted in zip(
        mean.locator(".share").all_text_contents(), taps["h.4.attn.probs"].mean(0)[-1], strict=True
    ):
        holds(text, wanted)


def test_neurons_sizes_weights_and_cache(page, found):
    model, kept = found
    ids = kept.about["ids"]
    taps = {}
    model([ids], tap=lambda name, array: taps.__setitem__(name, array[0].copy()))
    page.locator("nav select").nth(1).select_option("1")
    act, before = taps["h.1.mlp.act"][-1], taps["h.1.mlp.c_fc"][-1]
    rows = step(page, "MLP").locator(".bar")
    best = np.argsort(-np.abs(act), kind="stable")[:12]
    for row, neuron in zip(rows.all(), best, strict=True):
        assert row.locator(".what").inner_text() == f"neuron {neuron:,}"
        was, became = row.locator(".much").inner_text().split(" → ")
        holds(was, before[neuron])
        holds(became, act[neuron])
    section = step(page, "Size of the residual stream")
    section.locator("summary").click()
    for row, name in zip(section.locator(".bar").all(), sizes(range(6)), strict=True):
        assert row.locator(".what").inner_text() == name
        holds(row.locator(".much").inner_text(), np.linalg.norm(taps[name][-1].astype("f8")))
    points = section.locator("path.thick").get_attribute("d").lstrip("M").split("L")
    heights = [float(point.split()[1]) for point in points]
    lengths = [np.linalg.norm(taps[n][-1].astype("f8")) for n in sizes(range(6))[::2]]
    slope, start = np.polyfit(np.log(lengths), heights, 1)
    assert slope < -10  # upwards, by the logarithm
    assert np.abs(slope * np.log(lengths) + start - heights).max() < 0.3
    key = step(page, "Where the parameters are").locator(".key").inner_text()
    assert "attention: 1,579,008 (29.63 %)" in key
    assert sum(int(n.replace(",", "")) for n in re.findall(r": ([\d,]+)", key)) == 5_328_896
    cache = step(page, "KV cache")
    tokens = len(ids) + 11  # the last that was written was never read
    assert f"{tokens} tokens × 12,288 bytes = {tokens * 12288:,} bytes" in cache.inner_text()
    assert f"positions are full, the cache takes {256 * 12288:,} bytes" in cache.inner_text()
    slider = cache.locator("input")
    slider.focus()
    page.keyboard.press("Home")
    assert "1 tokens × 12,288 bytes = 12,288 bytes" in cache.inner_text()
    assert cache.locator("g.read").count() == 1


def test_what_each_block_would_say(page, found):
    model, kept = found
    section = step(page, "What each block would predict")
    probs = softmax(model([kept.about["ids"]]).logits[0].astype("f8"))
    ids, lens = (kept.arrays[f"lens.{name}"].numbers for name in ("ids", "probs"))
    rows = section.locator(".lens:not(.listed) tbody tr")
    assert rows.count() == 7
    for stop in range(7):
        cells = rows.nth(stop).locator("td")
        assert cells.all_inner_texts() == [spelled(model, i) for i in ids[stop, :, 0]]
    last = rows.last.locator("td")
    for t, cell in enumerate(last.all()):
        cell.hover()
        lines = page.locator("#tip div").all_inner_texts()
        best = np.argsort(-probs[t], kind="stable")[:5]
        for line, token in zip(lines, best, strict=True):
            name, p, _ = line.rsplit(" ", 2)
            assert name == spelled(model, token)
            holds(f"{p} %", probs[t, token])
    section.locator("summary").click()
    for stop, row in enumerate(section.locator(".listed tr").all()):
        wanted = [f"{spelled(model, i)} {p / 100:.2f} %"
                  for i, p in zip(ids[stop, -1], lens[stop, -1], strict=True)]  # fmt: skip
        assert row.locator("td").all_inner_texts() == wanted
    last.nth(2).click()
    assert page.locator("nav select").first.input_value() == "2"


SETTINGS = [
    {"temperature": 1.37},
    {"temperature": 0.25, "top-p": 0.5},
    {"top-k": 3, "top-p": 1},
    {"min-p": 0.4},
    {"temperature": 2, "top-k": 6, "top-p": 0.7, "min-p": 0.05, "uniform": 0.9},
    {"temperature": 0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_sliders(page, found, settings):
    """Moved, they change the numbers to those of sampling.py, and the token that is drawn."""
    _, kept = found
    section = step(page, "Logits → probabilities → next token")
    for name, value in settings.items():
        section.locator(f"input[name={name.replace('-', '_')}]").evaluate(
            "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')) }",
            str(value),
        )
    chosen = {"temperature": 0.8, "top-k": None, "top-p": 0.95, "min-p": None,
              "uniform": kept.about["written"]["uniforms"][0]} | settings  # fmt: skip
    ks = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]
    k = None if chosen["top-k"] is None else ks[chosen["top-k"]]
    options = GenerationOptions(
        temperature=chosen["temperature"], top_k=k, top_p=chosen["top-p"], min_p=chosen["min-p"]
    )
    logits = kept.arrays["last"].numbers
    token = options.next_token(logits, [], iter([chosen["uniform"]]))
    assert f"(id {token})." in section.locator(".verdict").inner_text()
    wide = logits.astype("f8")
    if options.greedy:
        wanted = np.eye(len(wide))[token]
    else:
        wide = sampling.temperature(wide, options.temperature)
        wide = wide if k is None else sampling.top_k(wide, k)
        wide = sampling.top_p(wide, options.top_p)
        wide = wide if options.min_p is None else sampling.min_p(wide, options.min_p)
        wanted = softmax(wide)
    rows = section.locator(".bar")
    assert rows.count() >= 20
    for row in rows.all():
        logit, p = row.locator(".much").inner_text().split(" → ")
        holds(logit, logits[int(row.get_attribute("data-id"))])
        holds(p, wanted[int(row.get_attribute("data-id"))])
    assert f"{(wanted > 0).sum():,} of 2,048" in section.locator(".verdict").inner_text()
    assert rows.and_(page.locator(".taken")).get_attribute("data-id") == str(token)


def test_sampling_is_sampling(chromium):
    """web/sampling.js beside sampling.py, on 300 distributions with ties and with -inf."""
    page = chromium.new_page()
    page.add_script_tag(content=(WEB / "sampling.js").read_text("utf-8"))
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(300):
        logits = rng.normal(0, 4, int(rng.integers(1, 60))).astype("f4")
        logits = np.round(logits, 1) if rng.random() < 0.5 else logits
        options = {
            "temperature": float(rng.choice([0.0, 0.01, 0.7, 1.0, 5.0])),
            "top_k": rng.choice([None, 1, 3, 100]),
            "top_p": rng.choice([None, 1.0, 0.9, 0.3]),
            "min_p": rng.choice([None, 0.2, 1.0]),
        }
        cases.append({"logits": logits.tolist(), "options": options, "uniform": rng.random()})
    answers = page.evaluate(
        """(cases) => cases.map(({logits, options, uniform}) => {
            const probs = chances(Float64Array.from(logits), options);
            return [Array.from(probs), draw(probs, uniform)];
        })""",
        cases,
    )
    for case, (probs, token) in zip(cases, answers, strict=True):
        options = GenerationOptions(**case["options"])
        logits = np.array(case["logits"])
        assert token == options.next_token(logits, [], iter([case["uniform"]]))
        if options.greedy:
            continue
        wide = sampling.temperature(logits, options.temperature)
        for name in ("top_k", "top_p", "min_p"):
            value = getattr(options, name)
            wide = wide if value is None else getattr(sampling, name)(wide, value)
        wanted = softmax(wide)
        assert ((np.array(probs) == 0) == (wanted == 0)).all()
        np.testing.assert_allclose(probs, wanted, rtol=1e-12, atol=0)
    page.close()


def test_a_head_is_chosen(page):
    """By a click and by keys; everything follows."""
    heads = page.locator(".heads button")
    assert heads.count() == 48
    page.get_by_label("block 3, head 6").click()
    assert page.get_by_label("block 3, head 6").get_attribute("aria-pressed") == "true"
    selects = [select.input_value() for select in page.locator("nav select").all()]
    assert selects[1:] == ["3", "6"]
    assert step(page, "Attention: head 6").count() == 1
    assert "h.3.attn.c_attn.weight 256 × 768" in page.locator("main").inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.ariaLabel") == "block 4, head 5"
    page.locator("h1").click()  # the focus is on nothing that wants the keys itself
    page.evaluate("document.activeElement.blur()")
    for key in ("[", ".", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    selects = [select.input_value() for select in page.locator("nav select").all()]
    assert selects == ["5", "3", "6"]
    canvas = step(page, "LayerNorm h.3.ln_1").locator(".field canvas")
    canvas.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    words = step(page, "LayerNorm h.3.ln_1").locator(".readout").inner_text()
    assert words.startswith("token 6 ")
    assert "dimension 2: " in words


def test_what_was_written(page, found):
    _, kept = found
    section = step(page, "Generated text")
    tokens = section.locator(".token")
    assert tokens.count() == 12
    tokens.nth(5).click()
    rows = section.locator(".bars .bar")
    wanted = kept.arrays["written.probs"].numbers[5] / 1e4
    for row, p in zip(rows.all()[:20], wanted, strict=True):
        assert row.locator(".much").inner_text() == f"{100 * p:.2f} %"
    assert section.locator(".bars .taken").count() == 1
    tokens.nth(5).focus()
    assert page.locator("#tip").is_visible()


def test_in_two_languages(page):
    page.get_by_role("button", name="中文").click()
    assert page.locator("h1").inner_text() == "GPT-2 如何续写文本"
    assert page.evaluate("document.documentElement.lang") == "zh"
    assert "undefined" not in page.locator("body").inner_text()
    picture(page, "chinese")
    page.get_by_role("button", name="English").click()
    assert page.locator("h1").inner_text() == "How GPT-2 continues a text"


def test_both_languages_say_the_same(chromium):
    page = chromium.new_page()
    page.add_script_tag(content=(WEB / "words.js").read_text("utf-8"))
    words = page.evaluate("WORDS")
    gaps = {
        language: {key: sorted(re.findall(r"\{\w+\}", text)) for key, text in texts.items()}
        for language, texts in words.items()
    }
    assert gaps["en"] == gaps["zh"]
    used = set()
    for path in WEB.glob("*.*js"):
        used |= set(re.findall(r'(?:say|Said)\("(\w+)"', path.read_text("utf-8")))
    assert used <= words["en"].keys()
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1100, "dark"), (360, "light")])
def test_on_every_screen(watched, file, width, scheme):
    page = watched.open(file.as_uri(), width, scheme)
    page.wait_for_selector("main")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(253, 253, 252)", "dark": "rgb(22, 24, 28)"}[scheme]
    picture(page, f"page-{width}-{scheme}")
    page.get_by_role("button", name="Light or dark").click()
    other = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert other != background


def test_texts_are_no_markup(watched, tmp_path, model):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)> שלום 很久以前。\x00"
    path = tmp_path / "evil.html"
    path.write_text(explain_page(record(model, evil, OPTIONS, "<i>x</i>")), encoding="utf-8")
    page = watched.open(path.as_uri(), 360)
    page.wait_for_selector("main")
    assert page.locator("blockquote").first.evaluate("element => element.textContent") == evil
    assert page.locator("script").count() == 2
    assert page.locator("img, i:not([class]):not([style])").count() == 0
    assert "<i>x</i>" in page.title()
    assert page.locator(".token bdi").nth(30).is_visible()
    assert "\u2068很\u2069\u2066‹" in "".join(page.locator(".token bdi").all_inner_texts())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert watched.requests == [path.as_uri()]
    picture(page, "evil")


def test_without_javascript(watched, file):
    page = watched.open(file.as_uri(), java_script_enabled=False)
    assert "which is disabled in this browser" in page.locator("body").inner_text()


def test_a_page_of_the_124m_shape_within_a_second(watched, tmp_path):
    """From the opening to the last of the page drawn, the page's thread takes less than a second of
    the processor: the best of 3."""
    model = GPT2.from_random(GPT2Config())

    class Words:
        def encode(self, text, special=True):
            return np.random.default_rng(0).integers(0, 50257, 24).tolist()

        def token_bytes(self, token):
            return f" w{token}".encode()

    model.__dict__ |= {"tokenizer": Words(), "has_vocabulary": True}
    path = tmp_path / "gpt2.html"
    path.write_text(explain_page(record(model, "words", OPTIONS, "gpt2")), encoding="utf-8")
    (tmp_path / "empty.html").write_text("<!doctype html><link rel=icon href=data:,>")
    times = []
    for _ in range(3):
        page = watched.open(path.with_name("empty.html").as_uri())
        counts = page.context.new_cdp_session(page)
        counts.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(path.as_uri())
        page.wait_for_function("() => performance.getEntriesByName('drawn').length")
        found = counts.send("Performance.getMetrics")["metrics"]
        times.append({metric["name"]: metric["value"] for metric in found}["ThreadTime"])
    print(f"drawn after {times} s of the processor")
    assert min(times) < 1


def pixels(page, canvas):
    """(rows, columns, 3) colours of a canvas."""
    flat = canvas.evaluate(
        "c => [c.height, c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    return np.array(flat[2:]).reshape(*flat[:2], 4)[..., :3]


def coloured(share):
    """The light scheme's colour of a share from −1 to 1, by its own three points each way."""
    up, down = ([107, 168, 218], [8, 48, 107]), ([240, 163, 75], [110, 50, 0])
    middle, end = up if share >= 0 else down
    points = np.array([[253, 253, 252], middle, end])
    return [np.interp(min(abs(share), 1.0), [0, 0.5, 1], points[:, i]) for i in range(3)]


def test_colours_are_the_numbers(page, found):
    _, kept = found
    probs = kept.arrays["h.4.attn.probs"].numbers[2] / 1e4
    drawn = pixels(page, page.get_by_label("block 4, head 2").locator("canvas"))
    for row, column in ((0, 0), (7, 3), (3, 7), (6, 1), (5, 5)):
        wanted = coloured(probs[row, column] ** 0.5)
        assert np.abs(drawn[row, column] - wanted).max() <= 2
    embed = page.locator("figure", has=page.get_by_text("embed", exact=True)).first
    x = kept.arrays["embed"].numbers.astype("f8")
    drawn = pixels(page, embed.locator(".field canvas"))
    assert drawn.shape == (8, 256, 3)
    low, high = np.unravel_index([x.argmin(), x.argmax()], x.shape)  # of the rows, of the columns
    for (row, column), share in zip(zip(low, high, strict=True), (-1, 1), strict=True):
        assert np.abs(drawn[row, column] - coloured(share)).max() <= 2
    brightness = drawn.sum(-1)
    near = np.abs(x) < np.abs(x).max() / 50
    assert brightness[near].min() > brightness[~near].mean()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("() => getComputedStyle(document.body).backgroundColor.endsWith('28)')")
    dark = pixels(page, page.get_by_label("block 4, head 2").locator("canvas"))
    assert (dark[3, 7] == [22, 24, 28]).all()


def test_what_answers_to_pointer_and_keys(page, found):
    model, kept = found
    page.locator("nav select").nth(1).select_option("4")
    page.locator("nav select").nth(2).select_option("2")
    probs = kept.arrays["h.4.attn.probs"].numbers[2] / 1e4
    arcs = step(page, "Attention: head 2").locator(".arcs path")
    assert arcs.count() == (probs[-1] >= 0.005).sum()
    token = page.locator("main .token:not(.written)").nth(3)
    token.focus()
    given = kept.arrays["given"].numbers[2] / 100
    assert f"the model gave it a probability of {given:.2f} %" in page.locator("#tip").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    token.hover()
    assert page.locator("#tip").is_visible()
    page.mouse.move(0, 0)
    assert page.locator("#tip").is_hidden()
    page.locator("rect.attn[data-layer='1']").first.click()
    assert page.locator("nav select").nth(1).input_value() == "1"
    page.locator("nav select").first.select_option("7")
    token = page.locator("main .token[aria-pressed=true]").first
    token.focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.innerText").startswith("fore")
    canvas = step(page, "LayerNorm h.1.ln_2").locator(".field canvas")
    canvas.focus()
    page.keyboard.press("]")
    assert page.evaluate("document.activeElement.ariaLabel") == "h.2.ln_2, 8 × 256"
    names = step(page, "Generated text").locator(".bars .what").all_inner_texts()
    best = kept.arrays["written.ids"].numbers[0]
    assert [n.strip("▸ ") for n in names[:20]] == [spelled(model, i) for i in best]


def test_a_model_of_another_kind(watched, small, tmp_path):
    """Its own head, pruned heads, and numbers that no 32 bits hold with decimals."""
    model = small("float32", tie_word_embeddings=False, pruned_heads={1: [0]})
    model.params.wpe.weight[:] *= 1e11
    model.__dict__ |= {"tokenizer": Letters(), "has_vocabulary": True}
    path = tmp_path / "page.html"
    path.write_text(explain_page(record(model, "romeo", OPTIONS, "small")), encoding="utf-8")
    page = watched.open(path.as_uri())
    page.wait_for_selector("main")
    assert "lm_head.weight 23 × 12" in step(page, "What each block would predict").inner_text()
    page.locator("nav select").nth(1).select_option("1")
    assert page.locator("figcaption code").all_inner_texts()[4:7] == [
        f"h.1.attn.c_attn[:, {i}:{i + 4}]" for i in page_columns(page)
    ]


def page_columns(page):
    """Where q, k and v of the chosen head begin in a block with two heads of four numbers."""
    head = int(page.locator("nav select").nth(2).input_value())
    return [n * 8 + head * 4 for n in range(3)]


class Letters:
    """A vocabulary without files: an id is a letter."""

    def encode(self, text, special=True):
        return [ord(letter) % 11 for letter in text]

    def token_bytes(self, token):
        return bytes([token + 97])


def test_a_browser_that_is_too_old(watched, file):
    page = watched.open(file.as_uri(), before="delete globalThis.DecompressionStream")
    page.get_by_text("This browser is too old for this page").wait_for()


@pytest.fixture(scope="module")
def scripts(chromium):
    """A page with all scripts, whose functions can be called."""
    page = chromium.new_page()
    for name in (*SCRIPTS, "thought"):
        page.add_script_tag(content=(WEB / f"{name}.js").read_text("utf-8"))
    yield page
    page.close()


def test_a_live_pages_tables_are_a_records(scripts, small):
    """From the same taps: of pruned heads, too."""
    model = small("float32", pruned_heads={0: [1], 2: [0, 2]}, tie_word_embeddings=False)
    model.__dict__ |= {"tokenizer": Letters(), "has_vocabulary": True}
    kept = record(model, "romeo", OPTIONS, "small")
    taps, ids = {}, kept.about["ids"]
    logits = model([ids], tap=lambda n, a: taps.__setitem__(n, a.copy())).logits
    taps.pop("logits")
    given = {n: {"data": a.ravel().tolist(), "dims": a.shape} for n, a in taps.items()}
    lens = {n: kept.arrays[f"lens.{n}"].numbers.ravel().tolist() for n in ("ids", "probs")}
    lens["dims"] = kept.arrays["lens.ids"].numbers.shape
    tables = scripts.evaluate(
        """({model, ids, taps, lens, logits}) => {
            for (const tap of Object.values(taps)) tap.data = Float32Array.from(tap.data);
            const tables = tablesOf(model, ids, taps, lens, Float32Array.from(logits));
            return Object.fromEntries(Object.entries(tables).map(([name, table]) =>
                [name, [Array.from(table.data), table.shape, table.decimals]]));
        }""",
        {"model": kept.about["model"], "ids": ids, "taps": given, "lens": lens,
         "logits": logits.ravel().tolist()},
    )  # fmt: skip
    written = {"last", "written.ids", "written.probs", "written.chosen"}
    assert tables.keys() == kept.arrays.keys() - written
    for name, (data, shape, decimals) in tables.items():
        numbers, digits = kept.arrays[name]
        wanted = numbers / 10.0**digits
        got = np.array(data).reshape(shape) / (1e4 if name == "lens.probs" else 1)
        assert got.shape == wanted.shape, name
        bound = 0.51 * 10.0**-digits + 1e-6 * np.abs(wanted).max()
        assert np.abs(got - wanted).max() <= bound, name
        assert 0 <= decimals <= 9


def test_a_live_page_writes_as_a_record_does(scripts, small):
    """From the same logits and random numbers: to an end of text, a full context, a length."""
    ends = set()
    for seed in range(12):
        model = small("float32", eos_token_id=[3, 7], n_positions=16)
        model.__dict__ |= {"tokenizer": Letters(), "has_vocabulary": True}
        options = GenerationOptions(seed=seed, max_new_tokens=9 if seed % 2 else 30, top_k=9)
        kept = record(model, "romeo", options, "small")
        written, ids = kept.about["written"], kept.about["ids"]
        step = model.stepper()
        logits = [step(np.array([ids]))[0]]
        logits += [step(np.array([[token]]))[0] for token in written["ids"][: 15 - len(ids)]]
        answer = scripts.evaluate(
            """async ({logits, ids, options, uniforms}) => {
                const all = logits.map((row) => Float32Array.from(row));
                const model = { ask: async () => all[++asked] };
                let asked = 0;
                const { about, tables } = await continued(model, { n_positions: 16, eos: [3, 7] }, {
                    last: all[0], ids, many: options.max_new_tokens, settings: options, uniforms,
                    stale: () => false, told: () => {},
                });
                return [about, tables["written.probs"].shape, tables["written.chosen"].data];
            }""",
            {"logits": [row.tolist() for row in logits], "ids": ids,
             "options": {**kept.about["options"], "max_new_tokens": options.max_new_tokens},
             "uniforms": written["uniforms"]},
        )  # fmt: skip
        about, shape, chosen = answer
        assert about == {"ids": written["ids"], "finish": written["finish"]}
        assert tuple(shape) == kept.arrays["written.probs"].numbers.shape
        np.testing.assert_allclose(
            chosen, kept.arrays["written.chosen"].numbers / 1e4, atol=0.51e-4
        )
        ends.add(written["finish"])
    assert ends == {"eos", "context", "length"}


# ── the live page ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    modules = os.environ.get("WEB_MODULES") or missing("WEB_MODULES")
    folder = tmp_path_factory.mktemp("live") / "site"
    argv = ["explain", "--live", "shakespeare", "-o", folder, "--node-modules", modules, PROMPT]
    assert cli.main([str(arg) for arg in argv]) == 0
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(site, tmp_path):
    """The site as a static host sends it: a copy, whose files a test may damage."""
    copy = tmp_path / "site"
    shutil.copytree(site, copy)
    with serving(copy) as url:
        yield copy, url


@contextmanager
def serving(folder):
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_it_thinks_in_the_browser(watched, served, found):
    """Its numbers are NumPy's; typed at, it thinks again; nothing is asked of anywhere else."""
    model, _ = found
    _, url = served
    page = watched.open(url)
    page.wait_for_selector("main")
    page.locator("nav select").nth(1).select_option("0")
    for prompt in (PROMPT, "To be, or 很 not", "\n"):
        if prompt != PROMPT:
            page.locator("textarea").fill(prompt)
            page.wait_for_function(
                "text => document.querySelector('main blockquote')?.textContent === text",
                arg=prompt,
            )
        ids = load_tokenizer(embedded()).encode(prompt)
        tokens = page.locator("main .token:not(.written) small").all_inner_texts()
        assert [int(text) for text in tokens] == ids
        taps = {}
        logits = model([ids], tap=lambda n, a: taps.__setitem__(n, a[0].copy())).logits[0, -1]  # noqa: B023
        probs = softmax(sampling.top_p(sampling.temperature(logits.astype("f8"), 0.8), 0.95))
        for row in step(page, "Logits → probabilities → next token").locator(".bar").all():
            number, half = shown(row.locator(".much").inner_text().split(" → ")[1])
            assert abs(number - probs[int(row.get_attribute("data-id"))]) < half + 1e-4
        for name in ("embed", "h.0.ln_1", "h.0.resid_mlp", "ln_f"):
            figure = page.locator("figure", has=page.get_by_text(name, exact=True)).first
            number, half = shown(read_map(page, figure, 0, 3).rpartition(": ")[2])
            wanted = taps[name][0, 3]
            assert abs(number - wanted) <= half + 1e-4 * abs(taps[name]).max()
        end = (
            step(page, "What each block would predict").locator("tbody tr").last.locator("td").last
        )
        end.hover()
        line = page.locator("#tip div").first.inner_text()
        wanted = softmax(logits.astype("f8")).max()
        assert abs(shown(line.rpartition(" ")[0].rpartition(" ")[2] + " %")[0] - wanted) < 2e-4
        hidden = model([ids], output_hidden_states=True).hidden_states[:-1]
        stops = [lens_logits(model, x[0, -1:]).argmax() for x in hidden]
        rows = step(page, "What each block would predict").locator(".lens:not(.listed) tbody tr")
        said = [row.locator("td").last.inner_text() for row in rows.all()]
        assert said == [spelled(model, i) for i in (*stops, logits.argmax())]
        written = step(page, "Generated text").locator(".token")
        assert written.count() == 20
        drawn = step(page, "Logits → probabilities → next token").locator(".verdict strong")
        assert drawn.inner_text() == written.first.inner_text()
    assert {re.match(r"https?://[^/]+/", address)[0] for address in watched.requests} == {url}
    picture(page, "live")


def test_it_writes_what_generate_writes(watched, served, found):
    """Greedy: the same text as NumPy's, token for token, over the browser's own cache."""
    model, _ = found
    _, url = served
    page = watched.open(url)
    page.wait_for_selector("main")
    section = step(page, "Logits → probabilities → next token")
    section.locator("input[name=temperature]").evaluate(
        "input => { input.value = 0; input.dispatchEvent(new Event('input')) }"
    )
    page.locator("#live input[type=number]").fill("30")
    page.wait_for_function("() => document.querySelectorAll('.written').length === 30")
    [text] = model.generate(PROMPT, temperature=0, max_new_tokens=30)
    assert page.locator(".written").all_inner_texts() == [spelled(model, i) for i in text.ids]


def test_a_model_with_pruned_heads(watched, tmp_path, tiny):
    modules = os.environ.get("WEB_MODULES") or missing("WEB_MODULES")
    model = GPT2.from_pretrained(tiny).prune_heads({1: [0, 3]})
    save(model.config, tmp_path / "model", dict(named_parameters(model.params)))
    copy_vocabulary(tiny, tmp_path / "model")
    argv = ["explain", "--live", tmp_path / "model", "-o", tmp_path / "site",
            "--node-modules", modules, "--temperature", "0", "the king"]  # fmt: skip
    assert cli.main([str(arg) for arg in argv]) == 0
    with serving(tmp_path / "site") as url:
        page = watched.open(url)
        page.wait_for_selector("main")
        assert page.locator(".heads > div").nth(1).locator("button").count() == 2
        [text] = model.generate("the king", temperature=0, max_new_tokens=20)
        assert page.locator(".written").all_inner_texts() == [spelled(model, i) for i in text.ids]


def test_words_in_the_place_of_a_model(watched, served, site):
    copy, url = served
    page = watched.open(url, before="delete globalThis.WebAssembly")
    page.get_by_text("This browser has no WebAssembly").wait_for()
    assert page.locator("progress").count() == 0
    page = watched.open((site / "index.html").as_uri())
    page.get_by_text(
        "Browsers do not let a page that was opened from a file run a model."
    ).wait_for()
    page = watched.open(url)
    page.wait_for_selector("main")
    page.locator("textarea").fill("")
    page.get_by_text("The prompt is empty. Type some text.").wait_for()
    page.locator("textarea").fill("a " * 400)
    page.get_by_text(
        re.compile(r"The prompt is too long: got \d+ tokens, expected 256 at most.")
    ).wait_for()
    page.get_by_role("button", name="中文").click()
    assert page.get_by_role("button", name="重新生成").count() == 1
    for name, size, words in (
        ("model/model.onnx_data", 1_000_000, "ended after 1000000 of"),
        ("model/lens.onnx", None, "was not found next to this page (HTTP status 404)."),
        ("vendor/tokenizers.min.mjs", None, None),
    ):
        damaged, whole = copy / name, (copy / name).read_bytes()
        damaged.unlink()
        if size is not None:
            damaged.write_bytes(whole[:size])
        page = watched.open(url)
        page.get_by_text(f"{name} {words}" if words else "worker.mjs, or one of the two").wait_for()
        damaged.write_bytes(whole)
    watched.faults = [fault for fault in watched.faults if "404" not in fault]


def test_a_newer_text_ends_the_writing(watched, served):
    """Of the older one no more than a step is asked for."""
    _, url = served
    count = """
        globalThis.calls = [];
        const [Other, wait] = [Worker, setTimeout]; // no pause is waited for in typing
        globalThis.Worker = class extends Other {
          postMessage(message) {
            super.postMessage(message);
            if (calls.push(message.call) === globalThis.interrupted) { // whoever is slower
              const text = document.querySelector("textarea");
              text.value = "QUEEN";
              text.dispatchEvent(new Event("input", { bubbles: true }));
            }
          }
        };
        globalThis.setTimeout = (call, time) => wait(call, Math.min(time, 20));
    """
    page = watched.open(url, before=count)
    page.wait_for_selector("main")
    page.locator("#live input[type=number]").fill("200")
    page.wait_for_function("() => document.querySelectorAll('.written').length === 200")
    page.evaluate("calls.length = 0; globalThis.interrupted = 10")
    page.locator("textarea").fill("KING")
    page.wait_for_function(
        "() => document.querySelectorAll('.written').length === 200"
        " && document.querySelector('main blockquote').textContent === 'QUEEN'"
    )
    assert page.locator("#live blockquote").inner_text().startswith("QUEEN")
    calls = page.evaluate("calls")
    assert calls.count("read") == 2
    last = len(calls) - 1 - calls[::-1].index("read")
    assert calls[last:].count("step") == 199
    assert calls[:last].count("step") < 199  # it was ended


def test_a_bar_while_it_loads(watched, served):
    _, url = served
    page = watched.open(
        url,
        before="""
        globalThis.bars = [];
        new MutationObserver(() => {
          const bar = document.querySelector("progress");
          if (bar && bar.max === 1 && bar.hasAttribute("value")) globalThis.bars.push(bar.value);
        }).observe(document, { subtree: true, childList: true, attributes: true });
        """,
    )
    page.wait_for_selector("main")
    bars = page.evaluate("globalThis.bars")
    loading = bars[: bars.index(1) + 1]
    assert any(0 < share < 1 for share in loading)
    assert loading == sorted(loading)
    assert page.locator("progress").is_hidden()


# ── the page of a server ─────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("uvicorn")
    with api.served("--model", "tests/data/tiny") as running:
        yield running


@pytest.fixture
def halfway():
    """A server that writes ten tokens, and no more until it is told to go on."""
    pytest.importorskip("uvicorn")
    with api.served("--model", "tests/data/tiny", before="halfway") as running:
        yield running


def test_the_servers_page_writes_while_one_looks_on_a_phone(watched, halfway):
    page = watched.open(halfway.url, width=375, has_touch=True, is_mobile=True)
    page.fill("#prompt", "O Romeo, ")
    page.fill("#max_tokens", "30")
    page.fill("#seed", "7")
    page.get_by_role("button", name="Generate").tap()
    until(lambda: len(page.inner_text("#answer")) > len("O Romeo, ") + 5)
    assert "tokens in" not in page.inner_text("#state")  # the rest is yet to be written
    halfway.go_on()
    page.wait_for_selector("#state:has-text('tokens in')")
    model = GPT2.from_pretrained("tests/data/tiny")
    [want] = model.generate("O Romeo, ", seed=7, max_new_tokens=30)  # the same defaults
    assert page.text_content("#answer") == "O Romeo, " + want.text
    assert re.fullmatch(
        r"30 tokens in \d+\.\d s: the token limit is reached", page.inner_text("#state")
    )
    assert page.evaluate_handle("document.documentElement.scrollWidth").json_value() == 375
    assert page.get_by_role("button", name="Stop").is_disabled()
    picture(page, "server-phone", 700)


def test_stopping_frees_the_slot_and_errors_are_shown(watched, halfway):
    page = watched.open(halfway.url)
    page.fill("#max_tokens", "120")
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector("#state:has-text('generating')")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector("#state:has-text('stopped')")
    until(lambda: halfway.metric("npgpt2_texts_held") == 0)
    halfway.go_on()
    until(lambda: halfway.metric("npgpt2_slots_taken") == 0)
    assert halfway.metric("npgpt2_completion_tokens_total") < 120
    page.fill("#prompt", "<|endoftext|>" * 200)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#state:has-text('longer than the context: 200 > 128 tokens')")
    watched.faults[:] = [fault for fault in watched.faults if "400 (Bad Request)" not in fault]


def test_a_browser_asks_for_the_key_once(watched, tmp_path):
    pytest.importorskip("uvicorn")
    (tmp_path / "keys").write_text("sk-first\n")
    with api.served(
        "--model", "tests/data/tiny", "--api-key-file", str(tmp_path / "keys")
    ) as running:
        key = {"username": "any", "password": "sk-first"}
        page = watched.open(running.url, http_credentials=key)
        page.get_by_role("button", name="Generate").click()
        page.wait_for_selector("#state:has-text('tokens in')")
    watched.faults[:] = [fault for fault in watched.faults if "401" not in fault]


def test_what_the_server_takes_is_told_from_what_checks_it(watched, server):
    from npgpt2.serve.protocol import CompletionRequest, EmbeddingRequest

    page = watched.open(server.url)
    page.get_by_text("API documentation").click()
    text = page.inner_text("body")
    for name in [*CompletionRequest.model_fields, *EmbeddingRequest.model_fields]:
        assert name in text
    assert f"curl {server.url}/v1/completions" in text
    assert 'model="tiny"' in text
    picture(page, "server-docs", 1500)

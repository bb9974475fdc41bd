"""Both pages in a real Chromium: what a person sees, clicks and types, held against the model.

Needs playwright and Chromium (and for the live page, WEB_MODULES: npm's folder with
onnxruntime-web and @huggingface/tokenizers). They are skipped where these are not; with
REQUIRE_BROWSER set they fail there. With SCREENSHOTS=DIR pictures of the pages are kept.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from npgpt2 import GPT2, GenerationOptions, GPT2Config, cli, load_tokenizer, sampling
from npgpt2.hub import embedded
from npgpt2.ops import softmax
from npgpt2.pictures.explain import WEB, explain_page
from npgpt2.pictures.record import record, sizes

PROMPT = "O Romeo, Romeo! wherefore art"
OPTIONS = GenerationOptions(seed=0, max_new_tokens=12)
REQUIRED = "REQUIRE_BROWSER" in os.environ


def missing(what):
    if REQUIRED:
        pytest.fail(f"{what} is not here")
    pytest.skip(f"{what} is not here")


@pytest.fixture(scope="module")
def chromium():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright")
    path = shutil.which("chromium") or missing("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """Opens pages, and hears of every error and of every request that they make."""

    def __init__(self, browser):
        self.browser, self.contexts = browser, []
        self.faults, self.requests = [], []

    def open(self, url, width=1100, scheme="light", before=None, **options):
        context = self.browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.faults.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        if before:
            page.add_init_script(before)
        page.goto(url)
        return page


@pytest.fixture
def watched(chromium):
    watched = Watched(chromium)
    yield watched
    for context in watched.contexts:
        context.close()
    assert watched.faults == []


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


def picture(page, name):
    if "SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{name}.png", full_page=True)


def shown(text):
    """The number in a text of the page, and half of its last digit."""
    digits = text.replace("−", "-").removesuffix(" %").replace(",", "")
    scale = 100 if text.endswith("%") else 1
    decimals = len(digits.partition(".")[2])
    return float(digits) / scale, 0.5 * 10**-decimals / scale * (1 + 1e-6)


def holds(text, wanted):
    number, half = shown(text)
    assert abs(number - wanted) <= half, (text, wanted)


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
    d, seen = model.config.head_dim, 0
    for figure in page.locator("figure", has=page.locator("figcaption code")).all():
        name = figure.locator("figcaption code").inner_text()
        for row, column in ((0, 3), (len(kept.about["ids"]) - 1, d - 2)):
            words = read_map(page, figure, row, column)
            head = {"h.2.attn.heads": 5 * d}
            part = 5 * d + 256 * ("QKV".index(figure.locator("xpath=..").inner_text()[0])) if (
                name == "h.2.attn.c_attn") else 0  # fmt: skip
            where = column + head.get(name, part)
            assert words.startswith(f"token {row} ")
            assert f", dimension {column}: " in words
            holds(words.rpartition(": ")[2], taps[name][row, where])
            seen += 1
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
    mean = step(page, "Attention: the mean over all heads")
    for text, wanted in zip(
        mean.locator(".share").all_text_contents(), taps["h.4.attn.probs"].mean(0)[-1], strict=True
    ):
        holds(text, wanted)


def test_neurons_sizes_weights_and_cache(page, found):
    model, kept = found
    ids = kept.about["ids"]
    taps = {}
    model([ids], tap=lambda name, array: taps.__setitem__(name, array[0].copy()))
    page.keyboard.press("]")
    act, before = taps["h.1.mlp.act"][-1], taps["h.1.mlp.c_fc"][-1]
    rows = step(page, "MLP").locator(".bar")
    best = np.argsort(-np.abs(act), kind="stable")[:12]
    for row, neuron in zip(rows.all(), best, strict=True):
        assert row.locator(".what").inner_text() == f"neuron {neuron:,}"
        was, became = row.locator(".much").inner_text().split(" → ")
        holds(was, before[neuron])
        holds(became, act[neuron])
    section = step(page, "The size of the stream")
    section.locator("summary").click()
    for row, name in zip(section.locator(".bar").all(), sizes(range(6)), strict=True):
        assert row.locator(".what").inner_text() == name
        holds(row.locator(".much").inner_text(), np.linalg.norm(taps[name][-1].astype("f8")))
    key = step(page, "Where the weights are").locator(".key").inner_text()
    assert "attention: 1,579,008 (29.63 %)" in key
    assert sum(int(n.replace(",", "")) for n in re.findall(r": ([\d,]+)", key)) == 5_328_896
    cache = step(page, "Keys and values that are kept")
    tokens = len(ids) + 11  # the last that was written was never read
    assert f"{tokens} tokens × 12,288 bytes = {tokens * 12288:,} bytes" in cache.inner_text()
    assert f"positions full they take {256 * 12288:,} bytes" in cache.inner_text()
    slider = cache.locator("input")
    slider.focus()
    page.keyboard.press("Home")
    assert "1 tokens × 12,288 bytes = 12,288 bytes" in cache.inner_text()
    assert cache.locator("g.read").count() == 1


def test_what_each_block_would_say(page, found):
    model, kept = found
    section = step(page, "What each block would say")
    probs = softmax(model([kept.about["ids"]]).logits[0].astype("f8"))
    last = section.locator("tbody tr").last.locator("td")
    for t, cell in enumerate(last.all()):
        cell.hover()
        lines = page.locator("#tip div").all_inner_texts()
        for line, wanted in zip(lines, -np.sort(-probs[t])[:5], strict=True):
            holds(line.rpartition(" ")[0].rpartition(" ")[2] + " %", wanted)
    assert section.locator("tbody tr").count() == 7
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
    section = step(page, "Logits → probabilities → a token")
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
    assert "transformer.h.3.attn.c_attn.weight 256 × 768" in page.locator("main").inner_text()
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
    section = step(page, "The text it wrote")
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
    assert page.locator("h1").inner_text() == "GPT-2 怎样续写一段文字"
    assert page.evaluate("document.documentElement.lang") == "zh"
    assert "undefined" not in page.locator("body").inner_text()
    picture(page, "chinese")
    page.get_by_role("button", name="English").click()
    assert page.locator("h1").inner_text() == "How a GPT-2 goes on with a text"


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
    assert page.locator("blockquote").evaluate("element => element.textContent") == evil
    assert page.locator("script").count() == 2
    assert page.locator("img, i:not([class]):not([style])").count() == 0
    assert "<i>x</i>" in page.title()
    assert page.locator(".token bdi").nth(30).is_visible()
    assert "很‹" in "".join(page.locator(".token bdi").all_inner_texts())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert watched.requests == [path.as_uri()]
    picture(page, "evil")


def test_without_javascript(watched, file):
    page = watched.open(file.as_uri(), java_script_enabled=False)
    assert "which is switched off here" in page.locator("body").inner_text()


def test_a_page_of_the_124m_shape_within_a_second(watched, tmp_path):
    """From the opening to the last of the page drawn, by the browser's own clock: the best of 3."""
    model = GPT2.from_random(GPT2Config())

    class Words:
        def encode(self, text, special=True):
            return np.random.default_rng(0).integers(0, 50257, 24).tolist()

        def token_bytes(self, token):
            return f" w{token}".encode()

    model.__dict__ |= {"tokenizer": Words(), "has_vocabulary": True}
    path = tmp_path / "gpt2.html"
    path.write_text(explain_page(record(model, "words", OPTIONS, "gpt2")), encoding="utf-8")
    times = []
    for _ in range(3):
        page = watched.open(path.as_uri())
        page.wait_for_selector("main")
        times.append(page.evaluate("performance.getEntriesByName('drawn')[0].startTime"))
    print(f"drawn after {times} ms")
    assert min(times) < 1000


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
    handler = functools.partial(Quiet, directory=str(copy))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield copy, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_it_thinks_in_the_browser(watched, served, found):
    """Its numbers are NumPy's; typed at, it thinks again; nothing is asked of anywhere else."""
    model, _ = found
    _, url = served
    page = watched.open(url)
    page.wait_for_selector("main", timeout=30_000)
    for prompt in (PROMPT, "To be, or 很 not", "\n"):
        if prompt != PROMPT:
            page.locator("textarea").fill(prompt)
            page.wait_for_function(
                "text => document.querySelector('blockquote')?.textContent === text", arg=prompt
            )
        ids = load_tokenizer(embedded()).encode(prompt)
        tokens = page.locator("main .token:not(.written) small").all_inner_texts()
        assert [int(text) for text in tokens] == ids
        taps = {}
        logits = model([ids], tap=lambda n, a: taps.__setitem__(n, a[0].copy())).logits[0, -1]  # noqa: B023
        probs = softmax(sampling.top_p(sampling.temperature(logits.astype("f8"), 0.8), 0.95))
        for row in step(page, "Logits → probabilities → a token").locator(".bar").all():
            number, half = shown(row.locator(".much").inner_text().split(" → ")[1])
            assert abs(number - probs[int(row.get_attribute("data-id"))]) < half + 1e-4
        for name in ("embed", "h.0.ln_1", "h.0.resid_mlp", "ln_f"):
            figure = page.locator("figure", has=page.get_by_text(name, exact=True)).first
            number, half = shown(read_map(page, figure, 0, 3).rpartition(": ")[2])
            wanted = taps[name][0, 3]
            assert abs(number - wanted) <= half + 1e-4 * abs(taps[name]).max()
        end = step(page, "What each block would say").locator("tbody tr").last.locator("td").last
        end.hover()
        line = page.locator("#tip div").first.inner_text()
        wanted = softmax(logits.astype("f8")).max()
        assert abs(shown(line.rpartition(" ")[0].rpartition(" ")[2] + " %")[0] - wanted) < 2e-4
        assert step(page, "The text it wrote").locator(".token").count() == 20
    assert {re.match(r"https?://[^/]+/", address)[0] for address in watched.requests} == {url}
    picture(page, "live")


def test_it_writes_what_generate_writes(watched, served, found):
    """Greedy: the same text as NumPy's, token for token, over the browser's own cache."""
    model, _ = found
    _, url = served
    page = watched.open(url)
    page.wait_for_selector("main", timeout=30_000)
    section = step(page, "Logits → probabilities → a token")
    section.locator("input[name=temperature]").evaluate(
        "input => { input.value = 0; input.dispatchEvent(new Event('input')) }"
    )
    page.locator("#live input[type=number]").fill("30")
    page.wait_for_function("() => document.querySelectorAll('.written').length === 30")
    [text] = model.generate(PROMPT, temperature=0, max_new_tokens=30)
    pieces = [load_tokenizer(embedded()).decode([i]) for i in text.ids]
    marks = str.maketrans({" ": "·", "\n": "⏎"})
    assert page.locator(".written").all_inner_texts() == [p.translate(marks) for p in pieces]


def test_words_in_the_place_of_a_model(watched, served, site):
    copy, url = served
    page = watched.open(url, before="delete globalThis.WebAssembly")
    page.get_by_text("This browser has no WebAssembly").wait_for()
    assert page.locator("progress").count() == 0
    page = watched.open((site / "index.html").as_uri())
    page.get_by_text("A browser lets no page run a model from a file.").wait_for()
    page = watched.open(url)
    page.wait_for_selector("main", timeout=30_000)
    page.locator("textarea").fill("")
    page.get_by_text("Write something: there is no text.").wait_for()
    page.locator("textarea").fill("a " * 400)
    page.get_by_text(re.compile(r"The text is too long: \d+ tokens, at most 256.")).wait_for()
    page.get_by_role("button", name="中文").click()
    assert page.get_by_role("button", name="重写一次").count() == 1
    with (copy / "model" / "model.onnx_data").open("r+b") as file:
        file.truncate(1_000_000)
    page = watched.open(url)
    page.get_by_text("model/model.onnx_data came to an end after 1000000 of").wait_for()
    (copy / "model" / "lens.onnx").unlink()
    page = watched.open(url)
    page.get_by_text("model/lens.onnx is not beside this page (the server said 404).").wait_for()
    watched.faults = [fault for fault in watched.faults if "404" not in fault]


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
    page.wait_for_selector("main", timeout=30_000)
    bars = page.evaluate("globalThis.bars")
    loading = bars[: bars.index(1) + 1]
    assert len(loading) > 5
    assert loading == sorted(loading)
    assert page.locator("progress").is_hidden()

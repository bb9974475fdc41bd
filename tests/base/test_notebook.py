"""What objects show of themselves: in a line, and in a notebook."""

import base64
import html
import pydoc
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

import npgpt2.cli
from npgpt2 import GPT2
from npgpt2.base import notebook
from npgpt2.base.document import Page, document
from npgpt2.generation.language_model import Completion
from npgpt2.model.params import named_parameters


@pytest.fixture
def output(model):
    return model([model.encode("the king")], output_attentions=True, output_hidden_states=True)


def test_a_line_each(model, output):
    """None of them prints arrays."""
    block = model.params.h[0]
    nodes = (model.params, block, block.attn, block.attn.c_attn, model.params.wte)
    shown = [repr(x) for x in (model, model.tokenizer, output, model.score("the king"), *nodes)]
    assert all("\n" not in line and len(line) < 300 for line in shown), shown
    assert shown[-5:] == [
        "Params(wte, wpe, h, ln_f: 40 tensors, 191,040 parameters)",
        "Block(ln_1, attn, ln_2, mlp: 12 tensors, 49,984 parameters)",
        "Attention(c_attn, c_proj: 4 tensors, 16,640 parameters)",
        "Linear(weight (64, 192) float32, bias (192,) float32)",
        "Embedding(weight (512, 64) float32)",
    ]
    assert "attentions=3 × (1, 4, 4, 4) float32" in shown[2]


def test_parameters_as_a_table(model):
    for shown in (model._repr_html_(), model.params._repr_html_()):
        rows = re.findall(
            r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", shown
        )
        assert [row[0] for row in rows] == [name for name, _ in named_parameters(model.params)]
        wte = model.params.wte.weight
        assert rows[0][1:] == ("(512, 64) float32", "32,768", f"{wte.std():.4f}")


def pixels(address):
    """A picture's address → its palette entries, as they lie in the PNG."""
    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    parts, at = {}, 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            kind + body
        )
        parts[kind] = body
        at += 12 + size
    width, height = struct.unpack(">II", parts[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(parts[b"IDAT"]), "u1").reshape(height, width + 1)
    assert not lines[:, 0].any()  # no filter
    return lines[:, 1:]


def test_attention_as_maps(output):
    addresses = re.findall(r'src="(.*?)"', output._repr_html_())
    assert len(addresses) == 3 * 4
    for n, address in enumerate(addresses):
        layer, head = divmod(n, 4)
        expected = output.attentions[layer][0, head] * 255
        assert np.abs(pixels(address) - expected).max() <= 0.5 + 1e-3


def test_a_large_map_is_drawn_smaller_and_what_is_no_number_as_none():
    shares = np.full((1, 600, 600), 0.5, "f4")
    shares[0, 0, 0] = np.nan
    [address] = re.findall(r'src="(.*?)"', notebook.maps("title", ["name"], [shares]))
    cells = pixels(address)
    assert cells.shape == (200, 200)
    assert (cells[0, 0], cells[1, 1]) == (0, 128)


def test_nothing_to_draw_is_no_picture(model):
    assert model([model.encode("the king")])._repr_html_() is None
    assert GPT2(model.config, model.params).score([1, 2, 3])._repr_html_() is None


def test_texts_are_no_markup():
    shown = Completion("<script>1</script>", [1], "<b>", [2])._repr_html_()
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "&lt;script&gt;1&lt;/script&gt;" in shown
    assert "<i>" not in notebook.table("<i>", ["<i>"], [["<i>"]])


def test_pages(model, tmp_path):
    """Each as the command writes it; a notebook shows it in a frame of its own."""
    text = "the king"
    pages = model.explain(text), model.score(text).page("tiny"), model.show_tokens(text)
    commands = ("explain", text, "-o"), ("score", text, "--html"), ("tokenize", text, "--html")
    for page, command in zip(pages, commands, strict=True):
        path = tmp_path / "page.html"
        assert npgpt2.cli.main([*command, str(path), "--model", str(model.folder)]) == 0
        assert page == path.read_text("utf-8")
        frame = re.fullmatch(
            r'<iframe srcdoc="(.*?)" sandbox="allow-scripts" .*', page._repr_html_(), re.S
        )
        assert html.unescape(frame[1]) == page
        assert re.fullmatch(r"Page\([\d,]+ characters\. save\(path\) writes it\)", repr(page))


def test_tokens_of_ids_are_those_of_their_text(model):
    ids = model.encode("the king")
    assert model.show_tokens(ids) == model.show_tokens("the king")
    with pytest.raises(npgpt2.NpGPT2Error, match="has the id 512, expected 0 to 511"):
        model.show_tokens([512])


def test_a_page_of_several_texts_is_refused(model):
    for name in ("num_beams", "num_samples"):
        with pytest.raises(npgpt2.NpGPT2Error, match=f"{name}: does not apply"):
            model.explain("the king", **{name: 2})


def test_a_model_of_the_hub_has_its_name(model):
    folder = Path("/cache/models--openai-community--gpt2/snapshots/607a30d783dfa663")
    assert repr(GPT2(model.config, model.params, folder)).startswith("GPT2(openai-community/gpt2: ")


def test_a_page_is_saved_whole_or_not(tmp_path):
    page = document("title", "<p>text</p>")
    assert isinstance(page, Page)
    assert page.save(tmp_path / "page.html").read_text("utf-8") == page
    with pytest.raises(npgpt2.NpGPT2Error, match=r"none/page\.html: its folder does not exist"):
        page.save(tmp_path / "none" / "page.html")
    with pytest.raises(npgpt2.NpGPT2Error, match="Is a directory"):
        page.save(tmp_path)


def test_weights_as_a_picture(model, tmp_path):
    pytest.importorskip("matplotlib")
    assert model.plot_weights(tmp_path / "weights.png").read_bytes()[:4] == b"\x89PNG"


def test_help_begins_with_what_there_is():
    text = pydoc.plain(pydoc.render_doc(npgpt2)).partition("PACKAGE CONTENTS")[0]
    for name in (
        "from_pretrained",
        "generate",
        "score",
        "explain",
        "params.h[0].attn.c_attn.weight",
    ):
        assert name in text
    assert len(text.splitlines()) < 25
    call = pydoc.plain(pydoc.render_doc(GPT2.__call__))
    assert len(call.splitlines()[2]) < 1000  # the signature: ArrayLike is not spelled out

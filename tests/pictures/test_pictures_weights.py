"""The weights as a picture: what is measured is what NumPy says, and a PNG comes of it."""

import re
import struct
import sys

import numpy as np
import pytest
from cases import HEAD_CASES, SMALL, formula_tensors
from command_line import runner

from npgpt2 import GPT2Config
from npgpt2.base.errors import CheckpointError, WeightsWarning
from npgpt2.checkpoints.checkpoint import Checkpoint, save
from npgpt2.model.params import build_tree, param_shapes
from npgpt2.pictures import weights
from npgpt2.pictures.weights import DRAWN, LEVELS, draw_all, draw_one, farthest, spread, spreads

pytest.importorskip("matplotlib", reason="the picture needs matplotlib")


@pytest.fixture
def npgpt2(capsys):
    return runner(capsys)


@pytest.fixture
def checkpoint(tmp_path):
    """A function: config's fields → a checkpoint of it; `change` is handed its tensors first."""

    def make(change=lambda tensors: None, **fields):
        config = GPT2Config(**SMALL | fields)
        tensors = {name: x.astype(np.float32) for name, x in formula_tensors(config).items()}
        change(tensors)
        folder = tmp_path / "model"
        folder.mkdir()
        save(folder, config, build_tree(tensors))
        return folder

    return make


def png_size(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", data[16:24])


# ── what is measured ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("piece", [7, 1 << 22])
def test_the_numbers_are_numpys(monkeypatch, dtype, piece):
    monkeypatch.setattr(weights, "PIECE", piece)
    x = np.random.default_rng(0).standard_normal((37, 29)).astype(dtype)
    found = spread("x", x)
    wide = x.astype(np.float64)
    assert found.mean == pytest.approx(wide.mean(), rel=1e-12)
    assert found.std == pytest.approx(wide.std(), rel=1e-12)
    ordered = np.sort(x, axis=None)
    expected = [ordered[int(np.ceil(x.size * level / 100)) - 1] for level in LEVELS]
    assert found.quantiles.tolist() == expected
    bins = len(found.counts)
    assert found.counts.tolist() == np.histogram(wide, bins)[0].tolist()
    np.testing.assert_allclose(found.edges, np.histogram(wide, bins)[1], rtol=1e-12)
    assert (found.lost, found.far, found.outliers) == (0, 0, [])


@pytest.mark.parametrize("piece", [7, 1 << 22])
def test_outliers_that_were_put_in_are_found(monkeypatch, piece):
    monkeypatch.setattr(weights, "PIECE", piece)
    x = np.random.default_rng(1).standard_normal((50, 40)).astype(np.float32)
    x[3, 5], x[49, 39], x[0, 0] = 30.0, -50.0, 20.0
    found = spread("x", x)
    assert found.far == 3
    assert [(o.tensor, o.place, o.value) for o in found.outliers] == [
        ("x", (49, 39), -50.0),
        ("x", (3, 5), 30.0),
        ("x", (0, 0), 20.0),
    ]
    for outlier in found.outliers:
        expected = abs(outlier.value - x.mean(dtype=float)) / x.std(dtype=float)
        assert outlier.deviations == pytest.approx(expected, rel=1e-9)


def test_six_deviations_are_the_border():
    x = np.zeros(1000)
    x[::2] = 1.0
    std = 0.5
    for value, far in ((0.5 + 5.9 * std, 0), (0.5 + 6.2 * std, 1)):
        x[1] = value
        assert spread("x", x).far == far


def test_of_many_outliers_the_farthest_are_kept():
    x = np.zeros(100_000)
    x[:500] = np.arange(1000.0, 1500.0)
    found = spread("x", x)
    assert found.far == 500
    assert [o.value for o in found.outliers] == list(np.arange(1499.0, 1499.0 - DRAWN, -1))


def test_nan_and_infinity_are_left_out_and_counted():
    x = np.random.default_rng(2).standard_normal((8, 9))
    sound = x.copy()
    sound[1, 2] = sound[3, 4] = sound[5, 6] = 0.0
    x[1, 2], x[3, 4], x[5, 6] = np.nan, np.inf, -np.inf
    found, finite = spread("x", x), x[np.isfinite(x)]
    assert found.lost == 3
    assert found.mean == pytest.approx(finite.mean())
    assert found.std == pytest.approx(finite.std())
    assert found.counts.sum() == 69
    assert found.outliers == []


def test_no_number_that_is_finite():
    found = spread("x", np.full((2, 3), np.nan, np.float32))
    assert (found.lost, found.far, int(found.counts.sum())) == (6, 0, 0)
    assert np.isnan([found.mean, found.std, *found.quantiles]).all()


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e30])
def test_numbers_that_are_all_the_same_have_no_outliers(value):
    found = spread("x", np.full(1000, value, np.float32))
    assert found.far == 0
    assert found.counts.max() == found.counts.sum() == 1000
    assert spread("x", np.float32(value).reshape(())).quantiles.tolist() == [np.float32(value)] * 7


def test_every_tensor_in_the_order_of_the_datas_flow(tiny, model):
    found = spreads(Checkpoint.open(tiny))
    assert [one.name for one in found] == list(param_shapes(model.config))
    weight = model.params.h[1].mlp.c_fc.weight.astype(np.float64)
    one = next(one for one in found if one.name == "h.1.mlp.c_fc.weight")
    assert (one.mean, one.std) == pytest.approx((weight.mean(), weight.std()), rel=1e-9)


def test_the_farthest_of_all_tensors():
    a, b = np.zeros(1000), np.zeros(500)
    a[1], b[2] = 1.0, 1.0
    b[3] = -1.0
    found = farthest([spread("a", a), spread("b", b)], 2)
    assert [(o.tensor, o.place) for o in found] == [("a", (1,)), ("b", (2,))]


def test_nan_is_a_warning_or_with_strict_an_error(checkpoint):
    def damage(tensors):
        tensors["h.1.ln_1.bias"][4] = np.nan

    opened = Checkpoint.open(checkpoint(damage))
    words = "h.1.ln_1.bias has 1 NaN or infinite values of 12"
    with pytest.warns(WeightsWarning, match=words):
        found = spreads(opened)
    assert sum(one.lost for one in found) == 1
    with pytest.raises(CheckpointError, match=f"{words}, expected finite weights. Download"):
        spreads(opened, strict=True)


# ── what is drawn ────────────────────────────────────────────────────────────────────────────────


def drawn(folder, path, monkeypatch, dtype="float32"):
    """The figure, as it was when it was written."""
    kept = []
    saved = weights._save
    monkeypatch.setattr(weights, "_save", lambda figure, p: (kept.append(figure), saved(figure, p)))
    draw_all(spreads(Checkpoint.open(folder), dtype), "the model", path)
    return kept[0]


def test_a_panel_for_each_kind(tiny, tmp_path, monkeypatch):
    figure = drawn(tiny, tmp_path / "w.png", monkeypatch)
    assert png_size(tmp_path / "w.png") == (1600, 1140)
    titles = [axes.get_title().split(":")[0] for axes in figure.axes if axes.axison]
    assert titles == [
        "wte.weight", "wpe.weight", "ln_1.weight", "ln_1.bias", "attn.c_attn.weight",
        "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias",
        "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias", "ln_f.weight",
        "ln_f.bias",
    ]  # fmt: skip
    assert figure.get_suptitle() == "the model: 191,040 parameters in 40 tensors"
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "percentiles 0.1 to 99.9" in words
    assert "median" in words


def test_bands_and_dots_are_where_the_numbers_are(checkpoint, tmp_path, monkeypatch):
    def put_in(tensors):
        tensors["h.1.mlp.c_fc.weight"][11, 47] = 9.0

    folder = checkpoint(put_in)
    figure = drawn(folder, tmp_path / "w.png", monkeypatch)
    axes = next(axes for axes in figure.axes if axes.get_title().startswith("mlp.c_fc.weight"))
    assert axes.get_title() == "mlp.c_fc.weight: 1 outlier"
    dots = [dot for one in axes.collections for dot in one.get_offsets().tolist()
            if type(one).__name__ == "PathCollection"]  # fmt: skip
    assert dots == [[pytest.approx(1.4, abs=0.01), 9.0]]  # at the end of layer 1
    params = Checkpoint.open(folder).read()
    wide = next(patch for patch in axes.patches)  # 0.1 to 99.9 %
    values, _, baseline = wide.get_data()
    for layer, block in enumerate(params.h):
        ordered = np.sort(block.mlp.c_fc.weight, axis=None)
        assert values[layer] == ordered[int(np.ceil(ordered.size * 0.999)) - 1]
        assert baseline[layer] == ordered[0]


@pytest.mark.slow
@pytest.mark.parametrize("fields", [
    *(fields for fields, _ in HEAD_CASES.values()),
    {"add_cross_attention": True, "n_layer": 1},
    {"pruned_heads": {1: (0, 2)}, "tie_word_embeddings": False},
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_head_and_pruned_heads(checkpoint, tmp_path, monkeypatch, fields, dtype):
    folder = checkpoint(**fields)
    figure = drawn(folder, tmp_path / "w.png", monkeypatch, dtype)
    shapes = param_shapes(Checkpoint.open(folder).config)
    kinds = list(dict.fromkeys(re.sub(r"^h\.\d+\.", "", name) for name in shapes))
    titles = [axes.get_title().split(":")[0] for axes in figure.axes if axes.axison]
    assert titles == kinds
    rows = -(-len(kinds) // 4)
    assert png_size(tmp_path / "w.png") == (1600, 250 * rows + 140)


def test_nan_is_said_in_the_title(checkpoint, tmp_path, monkeypatch):
    def damage(tensors):
        tensors["h.2.ln_1.bias"][:] = np.nan
        tensors["h.0.ln_1.bias"][3] = np.inf
        tensors["ln_f.weight"][:] = np.nan

    folder = checkpoint(damage)
    with pytest.warns(WeightsWarning):
        figure = drawn(folder, tmp_path / "w.png", monkeypatch)
    titles = [axes.get_title() for axes in figure.axes]
    assert "ln_1.bias\nwithout 13 NaN or infinite" in titles
    assert "ln_f.weight\nwithout 12 NaN or infinite" in titles


@pytest.mark.parametrize("array", [
    np.arange(12.0).reshape(3, 4), np.float32(3).reshape(()), np.full(5, np.nan), np.ones(3),
    np.array([1.0, -1.0] * 99) * 1e308, np.array([1.0, -1.0]) * 3e38, np.array([0.0, 5e-324]),
    np.array([1.0, 1 + 2.0**-52]),
])  # fmt: skip
def test_one_tensor(tmp_path, array):
    draw_one(spread("x", array), "x", tmp_path / "x.png")
    assert png_size(tmp_path / "x.png") == (1000, 500)


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def test_beside_what_inspect_prints(npgpt2, tiny, tmp_path):
    usual = npgpt2("inspect", "--model", tiny)[1]
    code, out, err = npgpt2("inspect", "--model", tiny, "--plot", tmp_path / "w.png")
    assert code == 0
    assert out.startswith(usual + "\n")
    assert err == f"npgpt2: distribution of the values: {tmp_path / 'w.png'}\n"
    head, *rows = out.removeprefix(usual + "\n").splitlines()
    assert head.split("  ")[0] == "outlier"
    expected = farthest(spreads(Checkpoint.open(tiny)))
    assert len(rows) == len(expected) == 10
    for row, o in zip(rows, expected, strict=True):
        place = ", ".join(map(str, o.place))
        assert re.split(r"  +", row) == [
            o.tensor, f"[{place}]", f"{o.value:.6g}", f"{o.deviations:.2f}",
        ]  # fmt: skip
    assert png_size(tmp_path / "w.png") == (1600, 1140)


def test_beside_a_tensors_numbers(npgpt2, tiny, tmp_path):
    name = "transformer.wpe.weight[100:]"
    usual = npgpt2("inspect", name, "--model", tiny)[1]
    code, out, err = npgpt2("inspect", name, "--model", tiny, "--plot", tmp_path / "w.png")
    assert code == 0, err
    assert out.startswith(usual + "\n")
    rows = out.removeprefix(usual + "\n").splitlines()
    array = Checkpoint.open(tiny).read().wpe.weight[100:]
    first = spread(name, array).outliers[0]
    assert rows[1].split("  ")[0] == name
    assert f"[{first.place[0]}, {first.place[1]}]" in rows[1]
    assert png_size(tmp_path / "w.png") == (1000, 500)
    code, out, _ = npgpt2("inspect", "ln_f.bias[3]", "--model", tiny, "--plot", tmp_path / "w.png")
    assert code == 0
    assert out.endswith("\n\nno outliers: no value is beyond 6 standard deviations\n")


@pytest.mark.parametrize(("words", "code", "text"), [
    (["--prompt", "x", "--plot", "w.png"], 2,
     "--plot: draws weights, got --prompt as well. Leave one out"),
    (["--plot", ""], 2, "--plot: got '', expected the name of a file to write"),
    (["--plot", "no/w.png"], 4, "no/w.png: its folder does not exist, expected one to write to"),
    (["--plot", "."], 4, ".: is a folder, expected the name of a file to write"),
    (["wte.weight[3:3]", "--plot", "w.png"], 2,
     "--plot: got wte.weight[3:3], which is empty, expected values"),
    (["wte.wight", "--plot", "w.png"], 3,
     "wte.wight: no parameter 'wte.wight' in the checkpoint. Did you mean wte.weight?"),
])  # fmt: skip
def test_refused_in_one_line(npgpt2, tiny, tmp_path, monkeypatch, words, code, text):
    monkeypatch.chdir(tmp_path)
    got = npgpt2("inspect", *words, "--model", tiny)
    assert got == (code, "", f"npgpt2: error: {text}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_without_matplotlib(npgpt2, tiny, tmp_path, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    got = npgpt2(command, "--model", tiny, "--plot", tmp_path / "w.png")
    text = "--plot: needs matplotlib. Run: pip install 'npgpt2[plot]'"
    assert got == (4, "", f"npgpt2: error: {text}\n")


def test_what_was_there_stays_when_writing_fails(npgpt2, tiny, tmp_path, monkeypatch):
    (tmp_path / "w.png").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("npgpt2.base.files.fsync", full)
    code, out, err = npgpt2("inspect", "--model", tiny, "--plot", tmp_path / "w.png")
    assert (code, out) == (4, "")
    assert err == f"npgpt2: error: {tmp_path / 'w.png'}: No space left on device\n"
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("w.png", "old")]

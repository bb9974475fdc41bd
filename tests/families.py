"""Families of exported graphs, with one or two small models each: all that `export` can write.

`data/make_onnxruntime_table.py` runs them in every release of ONNX Runtime. `test_onnx_runtimes.py`
compares the version in each graph's metadata with the results.
"""

from typing import NamedTuple

from cases import HEAD_CASES, formula_tensors
from onnx_cases import save

from npgpt2 import GPT2, GPT2Config
from npgpt2_onnx import export
from npgpt2_onnx.graph.heads import build_head
from npgpt2_onnx.graph.language_model import OPSET, build, inside, states_and_maps
from npgpt2_onnx.graph.layout import layout
from npgpt2_onnx.graph.lens import build_lens
from npgpt2_onnx.graph.names import KINDS
from npgpt2_onnx.graph.precision import PRECISIONS
from npgpt2_onnx.run.session import Session, graphs_in
from npgpt2_onnx.write.verify import check_lens, compare, compare_head, reference

SMALL = {
    "vocab_size": 23, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
WIDE = SMALL | {"n_embd": 128, "n_head": 4}  # in larger blocks, and whole ones
OPSETS = range(OPSET, 29)


class Family(NamedTuple):
    kind: str  # of KINDS, or "lens"
    precision: str
    models: tuple[dict, ...] = (SMALL,)
    shown: bool = False  # with its inside as outputs

    @property
    def configs(self):
        return [GPT2Config(**SMALL | switches) for switches in self.models]


FAMILIES = {
    **{f"{kind}-{p}": Family(kind, p, (SMALL, WIDE)) for kind in KINDS for p in PRECISIONS},
    **{f"{kind}-fp32-shown": Family(kind, "fp32", shown=True) for kind in KINDS},
    **{
        f"{kind}-fp32-encoder": Family(kind, "fp32", ({"add_cross_attention": True},))
        for kind in KINDS
    },
    "portable-fp32-activations": Family(
        "portable", "fp32",
        tuple({"activation_function": act} for act in ("gelu", "quick_gelu", "relu", "tanh")),
    ),
    **{
        f"{case}-{p}": Family("portable", p, (HEAD_CASES[case][0],))
        for case in ("sequences", "tokens", "answers", "choices")
        for p in ("fp32", "int8")
    },
    "lens-fp32": Family("lens", "fp32"),  # the only one that is written
}  # fmt: skip


def proto(family, opset):
    """A family's graph as exported, without weights."""
    config, precision = family.configs[0], PRECISIONS[family.precision]
    where = layout(config, precision, f"model{precision.suffix}.onnx_data")
    if family.kind == "lens":
        return build_lens(config, precision, where, opset)
    if config.head != "lm_head":
        return build_head(config, precision, where, opset)
    shown = inside(config) if family.kind == "portable" else states_and_maps(config, family.kind)
    return build(config, precision, family.kind, where, opset, shown if family.shown else ())


def write(family, opset, folder):
    """Write the graphs with their weights, each model in its own folder. Twice does no harm."""
    for i, config in enumerate(family.configs):
        out = folder / str(i)
        if out.exists():
            continue
        kind = "portable" if family.kind == "lens" else family.kind
        kinds = [kind, *(["portable"] if family.shown and kind != "portable" else [])]
        inner = {"taps" if kind == "portable" else "attentions": True} if family.shown else {}
        source = save(config, folder / f"checkpoint {i}", formula_tensors(config))
        export(
            source, out, precisions=[family.precision], graphs=kinds, opset=opset, proof=False,
            **inner,
        )  # fmt: skip
        if family.kind == "lens":
            (out / "onnx" / "lens.onnx").write_bytes(proto(family, opset).SerializeToString())


def wrong(family, folder):
    """Describe what is wrong with these graphs here; '' if nothing is.

    Raises:
        NpGPT2Error: a graph does not open or does not run.
    """
    for i in range(len(family.models)):
        path = graphs_in(folder / str(i))[
            family.precision, "portable" if family.kind == "lens" else family.kind
        ]
        session = Session(path, threads=1)
        model = reference(session.graph)
        if family.kind == "lens":
            check_lens(path.with_name("lens.onnx"), model)
            continue
        rows = (compare if isinstance(model, GPT2) else compare_head)(session, model)
        bad = [row.case for row in rows if not row.good]
        if bad:
            return f"other numbers than NumPy's: {bad[0]}"
    return ""

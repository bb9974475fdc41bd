"""GPT-2 in NumPy: `from npgpt2 import GPT2`.

    model = GPT2.from_pretrained("shakespeare")   or a checkpoint folder, or a name on the hub
    model.generate("O Romeo,")                    text; `stream` yields it piece by piece
    model.score("To be, or not to be")            log-probabilities, perplexity
    model([model.encode("O Romeo,")])             one forward pass: logits, attention maps, …
    model.explain("O Romeo,").save("page.html")   each step as a page
    model.params.h[0].attn.c_attn.weight          a parameter, by its checkpoint name

`GPT2WithHead` is a classifier, `npgpt2.train` trains, `npgpt2.golden` checks ports, `npgpt2_onnx`
exports. Everything raised on purpose is an `NpGPT2Error`.
"""

# Names are imported on first use. So the command line can set up the process before NumPy loads
# (the BLAS kernel, see `npgpt2.base.blas`), and `npgpt2 --help` answers at once.

TYPE_CHECKING = False  # true for type checkers; `typing` is not imported, see `__main__.py`
if TYPE_CHECKING:
    from typing import Any

    from npgpt2.base.errors import NpGPT2Error as NpGPT2Error
    from npgpt2.generation.options import GenerationOptions as GenerationOptions
    from npgpt2.gpt2 import GPT2 as GPT2
    from npgpt2.gpt2 import GPT2Output as GPT2Output
    from npgpt2.heads import GPT2WithHead as GPT2WithHead
    from npgpt2.model.cache import KVCache as KVCache
    from npgpt2.model.config import GPT2Config as GPT2Config
    from npgpt2.tokenizer.load import load_tokenizer as load_tokenizer

__version__ = "0.1.0"

_HOMES = {
    "GPT2": "gpt2",
    "GPT2Config": "model.config",
    "GPT2Output": "gpt2",
    "GPT2WithHead": "heads",
    "GenerationOptions": "generation.options",
    "KVCache": "model.cache",
    "NpGPT2Error": "base.errors",
    "load_tokenizer": "tokenizer.load",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> "Any":
    if name not in _HOMES:
        raise AttributeError(f"module 'npgpt2' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"npgpt2.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Training with NumPy: operations with their backward pass, AdamW, runs that resume after a kill.

The result is an ordinary checkpoint. Only `golden/` and the command line import this folder.

>>> from npgpt2.train import gradients, train
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npgpt2.train.callback import Callback as Callback
    from npgpt2.train.loop import train as train
    from npgpt2.train.loss import gradients as gradients
    from npgpt2.train.settings import Settings as Settings

_HOMES = {"Callback": "callback", "Settings": "settings", "gradients": "loss", "train": "loop"}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'npgpt2.train' has no attribute {name!r}")
    return getattr(import_module(f"npgpt2.train.{_HOMES[name]}"), name)

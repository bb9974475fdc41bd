"""Training with nothing but NumPy: forward and backward twins, AdamW, and a run that can be killed.

>>> from npgpt2.train import gradients, train
"""

from npgpt2.train.gradients import gradients
from npgpt2.train.listener import Listener
from npgpt2.train.loop import train
from npgpt2.train.settings import Settings

__all__ = ["Listener", "Settings", "gradients", "train"]

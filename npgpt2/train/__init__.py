"""Training with NumPy: operations with their backward pass, AdamW, runs that resume after a kill.

The result is an ordinary checkpoint. Only `golden/` and the command line import this room.

>>> from npgpt2.train import gradients, train
"""

from npgpt2.train.gradients import gradients
from npgpt2.train.listener import Listener
from npgpt2.train.loop import train
from npgpt2.train.settings import Settings

__all__ = ["Listener", "Settings", "gradients", "train"]

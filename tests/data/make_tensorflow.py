"""Write `tensorflow/`: a GPT-2 saved by TensorFlow itself, as OpenAI saved theirs.

    pip install tensorflow-cpu==2.21.0
    python tests/data/make_tensorflow.py

The weights are those of `tests/cases.py`'s formula.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from cases import FROM_TENSORFLOW, formula_tensors  # noqa: E402
from foreign_files import openai_names  # noqa: E402


def main() -> None:
    folder = HERE / "tensorflow"
    folder.mkdir(exist_ok=True)
    arrays = openai_names(formula_tensors(FROM_TENSORFLOW))
    tf.compat.v1.disable_eager_execution()
    with tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.get_variable(name, initializer=array.astype(np.float32))
            for name, array in arrays.items()
        ]
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(variables).save(
            session, str(folder / "model.ckpt"), write_meta_graph=False
        )
    (folder / "checkpoint").unlink()  # names the folder that it was made in
    names = {"vocab_size": "n_vocab", "n_positions": "n_ctx"}
    same = ("n_embd", "n_head", "n_layer")
    values = {theirs: getattr(FROM_TENSORFLOW, ours) for ours, theirs in names.items()}
    values |= {name: getattr(FROM_TENSORFLOW, name) for name in same}
    (folder / "hparams.json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main()

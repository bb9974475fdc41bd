"""Train `tests/data/tiny`: a GPT-2 small enough for git, with trained (not random) weights.

    pip install torch==2.13.0 transformers==5.23.0 tokenizers
    python tests/data/make_tiny.py CORPUS.txt        # a few minutes on two cores

The corpus used was Tiny Shakespeare (1,115,394 bytes, public domain), first 90 %. Trained weights
are what makes this checkpoint a good witness: LayerNorm gains far from one, biases far from zero,
attention that looks somewhere. Running it again gives another model, and then `make_expected.py`
has to be run as well.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

STEPS, BATCH, LEARNING_RATE = 6000, 32, 3e-3


def main() -> None:
    corpus = Path(sys.argv[1])
    folder = Path(__file__).parent / "tiny"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    torch.manual_seed(0)

    bpe = ByteLevelBPETokenizer()
    bpe.train([str(corpus)], vocab_size=512, special_tokens=["<|endoftext|>"])
    bpe.save_model(str(folder))
    tokenizer = GPT2TokenizerFast(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")
    )
    text = corpus.read_text(encoding="utf-8")
    ids = torch.tensor(bpe.encode(text[: int(0.9 * len(text))]).ids)

    config = GPT2Config(
        vocab_size=512, n_positions=128, n_embd=64, n_layer=3, n_head=4,
        bos_token_id=0, eos_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / 200)
            group["lr"] = LEARNING_RATE * warm * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        starts = torch.randint(0, len(ids) - 129, (BATCH,)).tolist()
        batch = torch.stack([ids[s : s + 128] for s in starts])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 500 == 0 or step == STEPS - 1:
            print(step, round(loss.item(), 4), flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("name_or_path", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()

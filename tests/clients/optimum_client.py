"""optimum's ORTModelForCausalLM: `optimum_client.py FOLDER EXPECTED.json`, batches padded left."""

import sys

from checks import hold
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

folder, expected = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
tokenizer.pad_token = tokenizer.eos_token


def decode(ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


for client, options in {
    "optimum": {},
    "optimum, IO binding": {"use_io_binding": True},
    "optimum, by file name": {"file_name": "model_quantized.onnx"},
}.items():
    model = ORTModelForCausalLM.from_pretrained(folder, **options)
    if not model.can_use_cache:
        sys.exit(f"{client}: {model.path} is taken for a model without a cache")

    def run(case, model=model):
        batch = tokenizer(case["prompts"], padding=True, return_tensors="pt")
        prompts = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        ]
        out = model.generate(
            **batch,
            max_new_tokens=case["new"],
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        return prompts, out[:, batch.input_ids.shape[1] :].tolist()

    hold(client, model.path.name, expected, run, decode)

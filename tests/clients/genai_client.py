"""onnxruntime-genai: `genai_client.py FOLDER EXPECTED.json`, the graph of genai_config.json."""

import json
import sys
from pathlib import Path

import onnxruntime_genai as og
from checks import hold

folder, expected = sys.argv[1:]
decoder = json.loads((Path(folder) / "genai_config.json").read_text())["model"]["decoder"]
model = og.Model(folder)
tokenizer = og.Tokenizer(model)


def run(case):
    prompts = [tokenizer.encode(prompt).tolist() for prompt in case["prompts"]]
    longest = max(map(len, prompts))
    params = og.GeneratorParams(model)
    params.set_search_options(batch_size=len(prompts), max_length=longest + case["new"])
    generator = og.Generator(model, params)
    generator.append_tokens(tokenizer.encode_batch(case["prompts"]))  # padded right
    while not generator.is_done():
        generator.generate_next_token()
    rows = [generator.get_sequence(i).tolist() for i in range(len(prompts))]
    return prompts, [row[longest:] for row in rows]


hold("onnxruntime-genai", Path(decoder["filename"]).name, expected, run, tokenizer.decode)

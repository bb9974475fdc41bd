// The model in the browser: the exported graph, which outputs every intermediate array.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import { Tokenizer } from "./vendor/tokenizers.min.mjs";

let graph, lens, tokenizer, config, past;

const calls = { load, read, step };

onmessage = async ({ data: { id, call, args } }) => {
  try {
    postMessage({ id, answer: await calls[call](...args) });
  } catch (error) {
    postMessage({ id, error: error.said ?? ["failed", { why: error.message || String(error) }] });
  }
};

/** An error that the page shows: a key of its texts, and the values for its placeholders. */
class Said extends Error {
  constructor(...said) {
    super(said[0]);
    this.said = said;
  }
}

/** Load all files and report progress; returns the piece of every token. */
async function load() {
  const { bytes: total, files: sizes } = await (await fetched("site.json")).json();
  const loaded = {};
  const heard = (name) => (bytes) => {
    loaded[name] = bytes;
    postMessage({ loading: Object.values(loaded).reduce((sum, size) => sum + size, 0), total });
  };
  const files = Object.fromEntries(
    await Promise.all(
      Object.keys(sizes).map(async (name) => [name, await bytesOf(name, sizes[name], heard(name))]),
    ),
  );
  const json = (name) => JSON.parse(new TextDecoder().decode(files[`model/${name}`]));
  config = json("config.json");
  tokenizer = new Tokenizer(json("tokenizer.json"), json("tokenizer_config.json"));
  ort.env.wasm.wasmBinary = files["vendor/ort-wasm-simd-threaded.wasm"].buffer;
  ort.env.wasm.numThreads = 1; // more threads need headers that static hosts seldom send
  const options = {
    executionProviders: ["wasm"],
    externalData: [{ path: "model.onnx_data", data: files["model/model.onnx_data"] }],
  };
  graph = await ort.InferenceSession.create(files["model/model.onnx"], options);
  lens = await ort.InferenceSession.create(files["model/lens.onnx"], options);
  return json("pieces.json");
}

async function fetched(name) {
  const response = await fetch(name).catch(() => {
    throw new Said("broken", { name });
  });
  if (!response.ok) throw new Said("not_there", { name, status: response.status });
  return response;
}

async function bytesOf(name, size, heard) {
  const reader = (await fetched(name)).body.getReader();
  const bytes = new Uint8Array(size);
  let at = 0;
  const next = () =>
    reader.read().catch(() => {
      throw new Said("broken", { name });
    });
  for (let part = await next(); !part.done; part = await next()) {
    if (at + part.value.length > size) throw new Said("another_size", { name, size });
    bytes.set(part.value, at);
    heard((at += part.value.length));
  }
  if (at < size) throw new Said("cut_off", { name, at, size });
  return bytes;
}

/** Run a text through the model; returns ids, intermediate arrays, logit lens and logits. */
async function read(text) {
  const { ids } = tokenizer.encode(text, { add_special_tokens: false });
  const most = Math.min(config.n_positions, 256);
  if (!ids.length) throw new Said("no_text");
  if (ids.length > most) throw new Said("long_text", { tokens: ids.length, most });
  past = Object.fromEntries(
    graph.inputNames
      .filter((name) => name.startsWith("past_key_values."))
      .map((name) => [name, empty(name)]),
  );
  const { logits, ...taps } = await run(ids);
  const outputs = Array.from({ length: config.n_layer }, (_, layer) => `h.${layer}.resid_mlp`);
  const states = ["embed", ...outputs].map((name) => taps[name].data);
  const width = config.n_embd;
  const hidden = new Float32Array(states.length * ids.length * width);
  states.forEach((state, i) => hidden.set(state, i * ids.length * width));
  const said = await lens.run({
    hidden: new ort.Tensor("float32", hidden, [states.length * ids.length, width]),
  });
  return {
    ids,
    taps,
    logits: logits.data,
    lens: {
      ids: Int32Array.from(said.ids.data, Number),
      probs: said.probs.data,
      dims: [states.length, ids.length, said.ids.dims[1]],
    },
  };
}

/** Run one more token; returns the logits for the next. */
async function step(id) {
  const { logits } = await run([id]);
  return logits.data;
}

function empty(name) {
  const layer = Number(name.split(".")[1]);
  const pruned = config.pruned_heads?.[layer]?.length ?? 0;
  return new ort.Tensor("float32", new Float32Array(0), [
    1,
    config.n_head - pruned,
    0,
    config.n_embd / config.n_head,
  ]);
}

async function run(ids) {
  const mine = past; // of this text, even if another text starts meanwhile
  const before = mine["past_key_values.0.key"].dims[2];
  const whole = (values) =>
    new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const outputs = await graph.run({
    input_ids: whole(ids),
    attention_mask: whole(new Array(before + ids.length).fill(1)),
    position_ids: whole(ids.map((_, i) => before + i)),
    ...mine,
  });
  const shown = {};
  for (const [name, tensor] of Object.entries(outputs)) {
    if (name.startsWith("present.")) mine[name.replace("present.", "past_key_values.")] = tensor;
    else shown[name] = { data: tensor.data, dims: tensor.dims };
  }
  return shown;
}

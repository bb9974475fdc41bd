// Run the model in the browser and build the same record as record.py.

const STEPS = 100; // display steps in an array's typical value; here they cost no space

async function thought(model, { about, pieces, text, settings, uniforms, ...how }) {
  const { ids, taps, lens, logits } = await model.ask("read", text);
  const tables = tablesOf(about.model, ids, taps, lens, logits);
  const last = logits.subarray(logits.length - about.model.vocab_size);
  const written = await continued(model, about.model, { last, ids, settings, uniforms, ...how });
  Object.assign(tables, written.tables);
  const all = { ...about, prompt: text, ids, pieces, written: written.about };
  return { about: all, tables };
}

/** All tables that the page shows for the prompt. */
function tablesOf(model, ids, taps, lens, logits) {
  const tables = {};
  for (const [name, { data, dims }] of Object.entries(taps)) {
    const digits = name.endsWith(".probs") ? 4 : decimals(data);
    tables[name] = new Table(data, dims.slice(1), digits);
  }
  for (const layer of range(model.n_layer)) {
    addScores(tables, model, layer);
    addMean(tables, layer);
    addNeurons(tables, layer);
  }
  const names = sizeNames(model.n_layer);
  const sizes = names.flatMap((name) => rowsOf(tables[name]).map((row) => Math.hypot(...row)));
  tables.sizes = new Table(sizes, [names.length, ids.length], decimals(sizes));
  tables["lens.ids"] = new Table(lens.ids, lens.dims);
  tables["lens.probs"] = new Table(lens.probs, lens.dims, 4);
  const rows = rowsOf(new Table(logits, [ids.length, model.vocab_size]));
  const given = ids.slice(1).map((id, i) => softmax(Float64Array.from(rows[i]))[id]);
  tables.given = new Table(given, [given.length], 4);
  return tables;
}

function rowsOf({ data, shape: [length, width] }) {
  return range(length).map((row) => data.subarray(row * width, (row + 1) * width));
}

/** Decimals as in `kept` of record.py, here from a sample of the values. */
function decimals(data) {
  const stride = Math.max(1, Math.floor(data.length / 2000));
  const some = Float64Array.from(data.filter((_, i) => i % stride === 0), Math.abs).sort();
  const middle = some[Math.floor(some.length / 2)] / 0.6745;
  return middle ? clamp(Math.ceil(Math.log10(STEPS / middle)), 9) : 2;
}

/** q · k of each head, raw and scaled: the graph computes them but does not output them. */
function addScores(tables, model, layer) {
  const { data: qkv, shape: [length] } = tables[`h.${layer}.attn.c_attn`];
  const [heads, d] = [model.heads[layer], model.head_dim];
  const scores = new Float32Array(heads * length * length);
  for (let h = 0, i = 0; h < heads; h++) {
    for (let r = 0; r < length; r++) {
      for (let c = 0; c < length; c++, i++) {
        const [q, k] = [(3 * r * heads + h) * d, ((3 * c + 1) * heads + h) * d];
        for (let n = 0; n < d; n++) scores[i] += qkv[q + n] * qkv[k + n];
      }
    }
  }
  const scaled = scores.map((score) => score * model.scales[layer]);
  const shape = [heads, length, length];
  tables[`h.${layer}.attn.scores`] = new Table(scores, shape, decimals(scores));
  tables[`h.${layer}.attn.scaled`] = new Table(scaled, shape, decimals(scaled));
}

/** The mean of the attention probabilities over the heads. */
function addMean(tables, layer) {
  const { data, shape: [heads, length] } = tables[`h.${layer}.attn.probs`];
  const mean = new Float32Array(length * length);
  data.forEach((p, i) => (mean[i % mean.length] += p / heads));
  tables[`h.${layer}.attn.mean`] = new Table(mean, [length, length], 4);
}

/** Replace all neurons by the strongest of each token. */
function addNeurons(tables, layer, most = 12) {
  const [before, after] = ["c_fc", "act"].map((name) => rowsOf(tables[`h.${layer}.mlp.${name}`]));
  const ids = after.map((row) => ranked(row.map(Math.abs), most));
  const shape = [ids.length, ids[0].length];
  const some = (rows) => ids.flatMap((row, t) => row.map((n) => rows[t][n]));
  const table = (numbers) => new Table(numbers, shape, decimals(numbers));
  tables[`h.${layer}.mlp.neurons`] = new Table(ids.flat(), shape);
  tables[`h.${layer}.mlp.c_fc`] = table(some(before));
  tables[`h.${layer}.mlp.act`] = table(some(after));
}

/** Generate one token per step, as `npgpt2.generation.generate.write` does. */
async function continued(model, { n_positions, eos }, how) {
  const { ids, many, settings, uniforms, stale, told } = how;
  const [likely, probabilities, written, chosen] = [[], [], [], []];
  let [logits, finish] = [how.last, null];
  while (!finish) {
    const raw = softmax(Float64Array.from(logits));
    const best = ranked(raw, SHOWN);
    likely.push(best);
    probabilities.push(best.map((id) => raw[id]));
    const probs = chances(Float64Array.from(logits), settings);
    const greedy = settings.temperature === 0;
    const token = greedy ? best[0] : draw(probs, uniforms[written.length]);
    if (eos.includes(token)) finish = "eos";
    else if (many < 1) finish = "length";
    if (finish) break;
    written.push(token);
    chosen.push(raw[token]);
    if (ids.length + written.length >= n_positions) finish = "context";
    else if (written.length >= many || stale()) finish = "length";
    else {
      told(written.length / many);
      logits = await model.ask("step", token);
    }
  }
  const shape = [likely.length, likely[0].length];
  const tables = {
    last: new Table(how.last, [how.last.length]),
    "written.ids": new Table(likely.flat(), shape),
    "written.probs": new Table(probabilities.flat(), shape, 4),
    "written.chosen": new Table(chosen, [chosen.length], 4),
  };
  return { about: { ids: written, finish }, tables };
}

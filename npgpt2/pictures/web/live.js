// The page of a model that runs here: type, and it thinks again. The model is in worker.mjs.

const LIVE_DIGITS = 100; // steps in an array's usual size that are shown: here they cost no room

/** Asks the worker; each call is answered in its turn. */
class Model {
  constructor(heard) {
    const name = "worker.mjs";
    const policy = globalThis.trustedTypes?.createPolicy("worker", { createScriptURL: (url) => url });
    this.worker = new Worker(policy ? policy.createScriptURL(name) : name, { type: "module" });
    this.waiting = [];
    this.worker.onmessage = ({ data }) => (data.loading ? heard(data) : this.answered(data));
    this.worker.onerror = ({ message }) => this.answered({ error: ["failed", { why: message || "worker.mjs" }] });
  }

  ask(call, ...args) {
    return new Promise((resolve, reject) => {
      this.waiting.push({ resolve, reject });
      this.worker.postMessage({ call, args });
    });
  }

  answered({ error, answer }) {
    const { resolve, reject } = this.waiting.shift() ?? {};
    if (error) reject?.(new Error(say(...error)));
    else resolve?.(answer);
  }
}

async function openLive({ about, prompt, options }) {
  const form = liveForm(prompt, options.max_new_tokens);
  const stop = missing();
  if (stop) return form.sorry(stop);
  const model = new Model(({ loading, total }) => {
    form.bar(loading / total, say("loading", { loaded: megabytes(loading), total: megabytes(total) }));
  });
  let pieces;
  try {
    pieces = await model.ask("load");
  } catch (error) {
    return form.sorry(error.message);
  }

  const { temperature, top_k, top_p, min_p } = options;
  const settings = { temperature, top_k, top_p, min_p };
  let [uniforms, turn, shown] = [fresh(), 0, null];
  async function think() {
    const mine = ++turn;
    const stale = () => mine !== turn;
    const told = (share) => stale() || form.bar(share);
    try {
      told();
      const record = await thought(model, { about, pieces, settings, uniforms, stale, told, ...form.asked() });
      if (stale()) return;
      if (!shown || state.token === shown.about.ids.length - 1) state.token = record.about.ids.length - 1;
      shown = record;
      drawPage(record);
      form.ready("");
    } catch (error) {
      if (!stale()) form.ready(error.message);
    }
  }
  form.listen(think, () => (uniforms = fresh()));
  listenToKeys(() => shown);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shown && drawPage(shown));
  await think();
}

/** Where a text is typed, and what is said of the model's work. */
function liveForm(prompt, count) {
  const [title, words, label, status] = ["h1", "p", "span", "p"].map((tag) => of(tag));
  status.setAttribute("role", "status");
  const bar = of("progress");
  const text = of("textarea", { rows: 2, spellcheck: "false", disabled: true });
  const length = of("input", { type: "number", min: 0, max: 200, value: count });
  const again = of("button", { type: "button", disabled: true });
  text.value = prompt;
  function speaks() {
    [title.textContent, words.textContent, label.textContent, again.textContent] =
      ["title", "live_words", "new_tokens", "again"].map((key) => say(key));
    text.setAttribute("aria-label", say("your_text"));
  }
  speaks();
  document.addEventListener("spoken", speaks);
  document.getElementById("live").append(title, words, text,
    of("div", { class: "tools" }, of("label", {}, label, " ", length), again, bar), status);
  return {
    asked: () => ({ text: text.value, count: clamp(Math.floor(Number(length.value)) || 0, 200) }),
    /** A share of the work, or none that is known. */
    bar(share, said = "") {
      if (!bar.isConnected) return; // files still come in after the one that failed
      bar.hidden = false;
      if (share === undefined) bar.removeAttribute("value");
      else bar.value = share;
      status.textContent = said;
    },
    ready(said) {
      bar.hidden = true;
      status.textContent = said;
    },
    sorry(said) {
      bar.remove();
      status.textContent = said;
    },
    listen(think, redraw) {
      let timer;
      const soon = () => (clearTimeout(timer), (timer = setTimeout(think, 250)));
      for (const input of [text, length]) input.addEventListener("input", soon);
      again.addEventListener("click", () => (redraw(), think()));
      text.disabled = again.disabled = false;
    },
  };
}

/** Why a model cannot run here; undefined where it can. */
function missing() {
  if (location.protocol === "file:") return say("no_server");
  if (typeof WebAssembly === "undefined") return say("no_wasm");
  // v128.const: a module of one function with an instruction of WebAssembly SIMD
  const simd = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 10, 9, 1, 7, 0, 65, 0, 253, 15, 26, 11];
  return WebAssembly.validate(new Uint8Array(simd)) ? undefined : say("no_simd");
}

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}

/** So many random numbers that typing on changes none of them. */
function fresh() {
  return Array.from(crypto.getRandomValues(new Uint32Array(256)), (number) => number / 2 ** 32);
}

/** A record of what the model makes of a text, as record.py makes one. */
async function thought(model, { about, pieces, text, settings, uniforms, ...how }) {
  const { ids, taps, lens, logits } = await model.ask("read", text);
  const tables = tablesOf(about.model, ids, taps, lens, logits);
  const last = logits.subarray(logits.length - about.model.vocab_size);
  const written = await continued(model, about.model, { last, ids, settings, uniforms, ...how });
  Object.assign(tables, written.tables);
  return { about: { ...about, prompt: text, ids, pieces, options: settings, written: written.about }, tables, settings };
}

/** Every table that the page shows. */
function tablesOf(model, ids, taps, lens, logits) {
  const length = ids.length;
  const tables = {};
  for (const [name, { data, dims }] of Object.entries(taps)) {
    const exact = name.endsWith(".probs");
    tables[name] = new Table(data, dims.slice(1), exact ? 4 : decimals(data));
  }
  for (let layer = 0; layer < model.n_layer; layer++) {
    addScores(tables, model, layer, length);
    addMean(tables, layer, length);
    addNeurons(tables, layer, length);
  }
  const names = ["embed"];
  for (let layer = 0; layer < model.n_layer; layer++) {
    names.push(...["attn.c_proj", "resid_attn", "mlp.c_proj", "resid_mlp"].map((part) => `h.${layer}.${part}`));
  }
  const sizes = Float64Array.from(names.flatMap((name) => rowsOf(tables[name]).map((row) => Math.hypot(...row))));
  tables.sizes = new Table(sizes, [names.length, length], decimals(sizes));
  tables["lens.ids"] = new Table(lens.ids, lens.dims);
  tables["lens.probs"] = new Table(lens.probs, lens.dims, 4);
  const given = ids.slice(1).map((id, i) => softmax(Float64Array.from(rowOf(logits, i, model.vocab_size)))[id]);
  tables.given = new Table(given, [length - 1], 4);
  return tables;
}

function rowOf(data, row, width) {
  return data.subarray(row * width, (row + 1) * width);
}

function rowsOf({ data, shape: [length, width] }) {
  return Array.from({ length }, (_, row) => rowOf(data, row, width));
}

/** As `kept` of record.py: from what is usual, here in a sample. */
function decimals(data) {
  const stride = Math.max(1, Math.floor(data.length / 2000));
  const some = data.filter((_, i) => i % stride === 0).map(Math.abs).sort();
  const middle = some[Math.floor(some.length / 2)] / 0.6745;
  return middle ? clamp(Math.ceil(Math.log10(LIVE_DIGITS / middle)), 9) : 2;
}

/** q · k of each head, and the same scaled: the graph does both, and softmax, unseen. */
function addScores(tables, model, layer, length) {
  const qkv = tables[`h.${layer}.attn.c_attn`].data;
  const [heads, d] = [model.heads[layer], model.head_dim];
  const width = heads * d;
  const scores = new Float32Array(heads * length * length);
  let i = 0;
  for (let h = 0; h < heads; h++) {
    for (let r = 0; r < length; r++) {
      for (let c = 0; c < length; c++) {
        const [q, k] = [r * 3 * width + h * d, c * 3 * width + width + h * d];
        let sum = 0;
        for (let n = 0; n < d; n++) sum += qkv[q + n] * qkv[k + n];
        scores[i++] = sum;
      }
    }
  }
  const scaled = scores.map((score) => score * model.scales[layer]);
  tables[`h.${layer}.attn.scores`] = new Table(scores, [heads, length, length], decimals(scores));
  tables[`h.${layer}.attn.scaled`] = new Table(scaled, [heads, length, length], decimals(scaled));
}

/** Attention, the mean over heads. */
function addMean(tables, layer, length) {
  const { data, shape: [heads] } = tables[`h.${layer}.attn.probs`];
  const mean = new Float32Array(length * length);
  data.forEach((p, i) => (mean[i % mean.length] += p / heads));
  tables[`h.${layer}.attn.mean`] = new Table(mean, [length, length], 4);
}

/** The strongest neurons of each token, in the place of all. */
function addNeurons(tables, layer, length, most = 12) {
  const [before, after] = ["c_fc", "act"].map((name) => tables[`h.${layer}.mlp.${name}`]);
  const width = after.shape[1];
  const ids = rowsOf(after).map((row) => Array.from(row.keys()).sort((a, b) => Math.abs(row[b]) - Math.abs(row[a])).slice(0, most));
  const some = ({ data }) => Float32Array.from(ids.flatMap((row, t) => row.map((n) => data[t * width + n])));
  const table = (data) => new Table(data, [length, ids[0].length], decimals(data));
  tables[`h.${layer}.mlp.neurons`] = new Table(ids.flat(), [length, ids[0].length]);
  tables[`h.${layer}.mlp.c_fc`] = table(some(before));
  tables[`h.${layer}.mlp.act`] = table(some(after));
}

/** Writes on, a token a step, as `npgpt2.generate.write` does. */
async function continued(model, { n_positions, eos }, { last, ids, count, settings, uniforms, stale, told }) {
  const [likely, probabilities, written, chosen] = [[], [], [], []];
  let logits = last;
  let finish = null;
  while (!finish) {
    const raw = softmax(Float64Array.from(logits));
    const best = Array.from(raw.keys()).sort((a, b) => raw[b] - raw[a] || a - b).slice(0, 20);
    likely.push(...best);
    probabilities.push(...best.map((id) => raw[id]));
    const probs = chances(Float64Array.from(logits), settings);
    const token = settings.temperature > 0 ? draw(probs, uniforms[written.length]) : best[0];
    if (eos.includes(token)) finish = "eos";
    else if (count < 1) finish = "length";
    else {
      written.push(token);
      chosen.push(raw[token]);
      if (ids.length + written.length >= n_positions) finish = "context";
      else if (written.length >= count) finish = "length";
      else if (stale()) finish = "length"; // a newer text is waiting: nobody will see this one
      else {
        told(written.length / count);
        logits = await model.ask("step", token);
      }
    }
  }
  const steps = likely.length / 20;
  return {
    about: { ids: written, finish, uniforms: settings.temperature > 0 ? uniforms : null },
    tables: {
      last: new Table(last, [last.length]),
      "written.ids": new Table(likely, [steps, 20]),
      "written.probs": new Table(probabilities, [steps, 20], 4),
      "written.chosen": new Table(chosen, [chosen.length], 4),
    },
  };
}

// The live page: the model (in worker.mjs) runs again when the user types.

/** Sends requests to the worker. */
class Model {
  constructor(heard) {
    const makes = { createScriptURL: (url) => url }; // the page's security policy requires one
    const policy = globalThis.trustedTypes?.createPolicy("worker", makes) ?? makes;
    this.worker = new Worker(policy.createScriptURL("worker.mjs"), { type: "module" });
    this.waiting = new Map();
    this.worker.onmessage = ({ data }) => ("loading" in data ? heard(data) : this.answered(data));
    this.worker.onerror = ({ message }) => {
      const error = message ? ["failed", { why: message }] : ["no_worker"];
      for (const id of this.waiting.keys()) this.answered({ id, error });
    };
  }

  ask(call, ...args) {
    const id = (this.asked = (this.asked ?? 0) + 1);
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, call, args });
    });
  }

  answered({ id, error, answer }) {
    const { resolve, reject } = this.waiting.get(id);
    this.waiting.delete(id);
    if (error) reject(Object.assign(new Error(error[0]), { said: error }));
    else resolve(answer);
  }
}

async function openLive({ about, prompt, options }) {
  const form = liveForm(prompt, options.max_new_tokens);
  const stop = missing();
  if (stop) return form.sorry(stop);
  const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
  const model = new Model(({ loading, total }) => {
    const sizes = { loaded: megabytes(loading), total: megabytes(total) };
    form.bar(loading / total, ["loading", sizes]);
  });
  let pieces;
  try {
    pieces = await model.ask("load");
  } catch (error) {
    return form.sorry(error.said);
  }

  const { temperature, top_k, top_p, min_p } = options;
  const settings = { temperature, top_k, top_p, min_p };
  let [uniforms, turn, shown] = [fresh(), 0, null];
  async function think() {
    const mine = ++turn;
    const stale = () => mine !== turn; // a newer run has started: drop this one
    const told = (share) => stale() || form.bar(share, ["thinking"]);
    const how = { about, pieces, settings: { ...settings }, uniforms, stale, told };
    try {
      told();
      const record = await thought(model, { ...how, ...form.asked() });
      if (stale()) return;
      settings.uniform = uniforms[0]; // for the token that the page samples
      record.settings = settings; // its sliders change the next run
      if (!shown) Object.assign(state, telling(record));
      const atEnd = !shown || state.token === shown.about.ids.length - 1;
      if (atEnd) state.token = record.about.ids.length - 1;
      shown = record;
      drawPage(record);
      form.ready(record);
    } catch (error) {
      if (!stale()) form.failed(error.said ?? ["failed", { why: error.message }]);
    }
  }
  form.listen(think, () => (uniforms = fresh()));
  listenToKeys(() => shown);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", () => shown && drawPage(shown));
  await think();
}

/** The form for the prompt, with progress and status of the run. */
function liveForm(prompt, many) {
  const texts = { title: of("h1"), live_words: of("p"), new_tokens: of("span") };
  texts.again = of("button", { type: "button", disabled: true });
  const text = of("textarea", { rows: 2, spellcheck: "false", disabled: true });
  const length = of("input", { type: "number", min: 0, max: 200, value: many });
  const bar = of("progress");
  const status = of("p", { role: "status" });
  const wrote = of("blockquote", { dir: "auto", hidden: true });
  let said; // the status: arguments of `say`
  text.value = prompt;
  function speaks() {
    for (const [key, element] of Object.entries(texts)) element.textContent = say(key);
    text.setAttribute("aria-label", say("your_text"));
    bar.setAttribute("aria-label", say("progress"));
    status.textContent = said ? say(...said) : "";
  }
  function tell(words, isFault) {
    said = words;
    status.textContent = said ? say(...said) : "";
    status.classList.toggle("fault", Boolean(isFault));
  }
  speaks();
  document.addEventListener("spoken", speaks);
  const label = of("label", {}, texts.new_tokens, " ", length);
  const tools = of("div", { class: "tools" }, label, texts.again, bar);
  const place = document.getElementById("live");
  place.append(texts.title, texts.live_words, text, tools, status, wrote);
  const page = document.getElementById("page");
  return {
    asked: () => ({ text: text.value, many: clamp(Math.floor(Number(length.value)) || 0, 200) }),
    /** Show progress: a share from 0 to 1, or undefined if it is unknown. */
    bar(share, words) {
      if (!bar.isConnected) return; // other files may still arrive after one failed
      bar.hidden = false;
      if (share === undefined) bar.removeAttribute("value");
      else bar.value = share;
      page.classList.add("stale");
      tell(words);
    },
    ready({ about }) {
      bar.hidden = true;
      wrote.hidden = false;
      wrote.replaceChildren(about.prompt, of("b", {}, textOf(about.written.ids, about.pieces)));
      page.classList.remove("stale");
      tell();
    },
    failed(words) {
      bar.hidden = true;
      tell(words, true);
    },
    sorry(words) {
      bar.remove();
      tell(words, true);
    },
    listen(think, redraw) {
      let timer;
      const soon = () => (clearTimeout(timer), (timer = setTimeout(think, 250)));
      for (const input of [text, length]) input.addEventListener("input", soon);
      length.addEventListener("change", () => (length.value = this.asked().many));
      texts.again.addEventListener("click", () => (redraw(), think()));
      text.disabled = texts.again.disabled = false;
    },
  };
}

/** Why a model cannot run here, as a key of the texts; undefined if it can. */
function missing() {
  if (location.protocol === "file:") return ["no_server"];
  if (typeof WebAssembly === "undefined") return ["no_wasm"];
  // A WebAssembly module whose one function uses SIMD: i8x16.splat, i8x16.popcnt.
  const head = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0];
  const body = [10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
  return WebAssembly.validate(new Uint8Array([...head, ...body])) ? undefined : ["no_simd"];
}

/** One random number per generated token; they stay the same while the user types. */
function fresh() {
  return Array.from(crypto.getRandomValues(new Uint32Array(256)), (number) => number / 2 ** 32);
}

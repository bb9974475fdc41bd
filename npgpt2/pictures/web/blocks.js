// The way of the data: embeddings, then the block that is chosen, each array in its turn.

/** One step: what happens, which parameters do it, what comes out. */
function step(record, title, words, parameters, ...drawn) {
  const shapes = new Map(record.about.model.parameters);
  const names = parameters.map((name) => of("li", {}, of("code", {}, name), ` ${shapes.get(name)?.join(" × ") ?? ""}`));
  return of("section", { class: "step" },
    of("h3", {}, title), of("p", {}, words), names.length > 0 && of("ul", { class: "parameters" }, names), ...drawn);
}

/** An array (T, columns) as a map, or some of its columns. */
function strip(record, name, from = 0, columns = record.tables[name].shape[1]) {
  const table = record.tables[name];
  const map = {
    rows: rowNames(record), columns, signed: true,
    at: (r, c) => table.at(r, from + c),
    says: (r, c) => `${say("token")} ${r} ${rowNames(record)[r]}, ${say("dimension")} ${c}: ${table.text(r, from + c)}`,
    label: `${name}, ${table.shape[0]} × ${columns}`,
  };
  const shape = `(${table.shape[0]} × ${columns})`;
  return of("figure", {}, of("figcaption", {}, of("code", {}, name), ` ${shape}`), heatmap(map));
}

function embeddings(record) {
  const figures = of("div", { class: "three" });
  kept(() => figures.replaceChildren(strip(record, "wte"), strip(record, "wpe"), strip(record, "embed")));
  return step(record, say("embed"), say("embed_words"), ["transformer.wte.weight", "transformer.wpe.weight"], figures);
}

/** Every head of every block as a small map: choose one. */
function headGrid(record) {
  const { n_layer, heads } = record.about.model;
  const length = record.about.ids.length;
  const rows = Array.from({ length: n_layer }, (_, layer) =>
    Array.from({ length: heads[layer] }, (_, head) => {
      const canvas = of("canvas", { width: length, height: length });
      const table = record.tables[`h.${layer}.attn.probs`];
      paint(canvas, { rows: record.about.ids, columns: length, at: (r, c) => table.at(head, r, c) }, 1);
      return of("button", {
        type: "button", tabindex: -1, class: "small", "aria-label": `${say("block")} ${layer}, ${say("head")} ${head}`,
        onclick: () => choose({ layer, head }),
      }, canvas);
    }));
  const grid = of("div", { class: "heads", role: "group", "aria-label": say("all_heads"),
    onkeydown: arrows((dx, dy) => {
      const layer = clamp(state.layer + dy, n_layer - 1);
      choose({ layer, head: clamp(Math.max(0, state.head) + dx, heads[layer] - 1) });
      rows[state.layer][state.head].focus();
    }) },
  rows.map((row, layer) => of("div", {}, of("span", { class: "faint" }, layer), row)));
  kept(() => rows.forEach((row, layer) => row.forEach((button, head) => {
    const here = layer === state.layer && head === headOf(record);
    button.setAttribute("aria-pressed", here);
    button.tabIndex = layer === state.layer && head === Math.max(0, headOf(record)) ? 0 : -1;
  })));
  return step(record, say("all_heads"), say("all_heads_words"), [], grid, legend({ unit: whole }, 1));
}

/** The head that is shown: −1 is the mean of all. (Pruned blocks have fewer.) */
function headOf(record) {
  return Math.min(state.head, record.about.model.heads[state.layer] - 1);
}

function block(record) {
  const place = of("div");
  kept(() => place.replaceChildren(...stepsOf(record, state.layer, headOf(record))));
  return place;
}

function stepsOf(record, layer, head) {
  const { head_dim, heads, n_embd, activation_function } = record.about.model;
  const at = `h.${layer}.`;
  const of_ = (...names) => names.flatMap((name) => [`transformer.${at}${name}.weight`, `transformer.${at}${name}.bias`]);
  const width = heads[layer] * head_dim;
  const one = head >= 0;
  const part = (n) => strip(record, `${at}attn.c_attn`, n * width + head * head_dim, head_dim);
  const titled = (title, figure) => of("div", {}, of("h4", {}, title), figure);
  return [
    step(record, `LayerNorm ${at}ln_1`, say("ln_1"), of_("ln_1"), strip(record, `${at}ln_1`)),
    step(record, say("qkv"), say("qkv_words", { head_dim, heads: heads[layer], n_embd }), of_("attn.c_attn"),
      one ? of("div", { class: "three" }, titled(say("queries"), part(0)), titled(say("keys_of"), part(1)), titled(say("values"), part(2)))
        : of("p", { class: "faint" }, say("one_head"))),
    step(record, say("scores"), say("scores_words", { scale: brief(record.about.model.scales[layer]) }), [],
      one ? scoreMaps(record, layer, head) : of("p", { class: "faint" }, say("one_head"))),
    step(record, one ? `${say("attention")}: ${say("head")} ${head}` : say("mean"), say("attention_words"), [], attentionLarge(record, layer, head)),
    step(record, say("weighted"), say("weighted_words"), [],
      one ? strip(record, `${at}attn.heads`, head * head_dim, head_dim) : strip(record, `${at}attn.heads`)),
    step(record, say("projection"), say("projection_words"), of_("attn.c_proj"),
      strip(record, `${at}attn.c_proj`), strip(record, `${at}resid_attn`)),
    step(record, `LayerNorm ${at}ln_2`, say("ln_2"), of_("ln_2"), strip(record, `${at}ln_2`)),
    step(record, "MLP", say("mlp_words", { wide: count(record.about.model.mlp_width), act: activation_function }),
      of_("mlp.c_fc", "mlp.c_proj"), neurons(record, layer), strip(record, `${at}mlp.c_proj`), strip(record, `${at}resid_mlp`)),
  ];
}

/** Scores on their way to probabilities. */
function scoreMaps(record, layer, head) {
  const at = `h.${layer}.attn.`;
  const { scores, scaled, probs } = Object.fromEntries(["scores", "scaled", "probs"].map((n) => [n, record.tables[at + n]]));
  const hidden = (r, c) => c > r;
  const maps = [
    [say("raw"), { at: (r, c) => scores.at(head, r, c), text: (r, c) => scores.text(head, r, c), signed: true }],
    [say("scaled"), { at: (r, c) => scaled.at(head, r, c), text: (r, c) => scaled.text(head, r, c), signed: true }],
    [say("masked"), { at: (r, c) => (hidden(r, c) ? null : scaled.at(head, r, c)), text: (r, c) => (hidden(r, c) ? "−∞" : scaled.text(head, r, c)), signed: true }],
    ["softmax", { at: (r, c) => probs.at(head, r, c), text: (r, c) => percent(probs.at(head, r, c)), top: 1, unit: whole }],
  ];
  return of("div", { class: "four" }, maps.map(([title, map]) => of("figure", {}, of("figcaption", {}, title), square(record, { ...map, size: 180 }, title))));
}

/** A map (T × T): rows look at columns. */
function square(record, map, label) {
  const names = rowNames(record);
  return heatmap({
    ...map, label, rows: names, columns: names.length,
    says: (r, c) => `${names[r]} → ${names[c]}: ${map.text(r, c)}`,
  });
}

/** One head's attention, or the mean over the block's: its map, and arcs. */
function attentionLarge(record, layer, head) {
  const [probs, mean] = ["probs", "mean"].map((name) => record.tables[`h.${layer}.attn.${name}`]);
  const at = (r, c) => (head >= 0 ? probs.at(head, r, c) : mean.at(r, c));
  const map = square(record, { at, text: (r, c) => percent(at(r, c)), top: 1, unit: whole }, say("attention"));
  return of("div", { class: "large" }, of("figure", {}, map), arcs(record, at));
}

/** Arcs from a token to those that it looks at; of the pointer's token, else of the chosen one. */
function arcs(record, at) {
  const names = rowNames(record);
  const [height, left, reach] = [22, 205, 150];
  const lines = svg("g");
  const texts = names.map((_, i) => svg("text", { x: left - 8, y: i * height + 15, class: "share" }));
  const bars = names.map((_, i) => svg("rect", { x: 130, y: i * height + 3, height: height - 6, class: "bar" }));
  const labels = names.map((name, i) => svg("text", {
    x: 122, y: i * height + 15, class: "name",
    onpointerenter: () => draw(i), onclick: () => choose({ token: i }),
  }, [...name].slice(0, 14).join("")));
  function draw(from) {
    labels.forEach((label, i) => label.classList.toggle("from", i === from));
    lines.replaceChildren();
    names.forEach((_, to) => {
      const p = at(from, to);
      texts[to].textContent = to <= from ? percent(p) : "";
      bars[to].setAttribute("width", to <= from ? 75 * p : 0);
      if (to > from || p < 0.005) return;
      const [a, b] = [from * height + 11, to * height + 11];
      const bulge = left + 14 + ((4 / 3) * reach * (a - b)) / (names.length * height);
      const d = to === from ? `M${left} ${a - 4} a7 7 0 1 1 0 8` : `M${left} ${a} C${bulge} ${a} ${bulge} ${b} ${left} ${b}`;
      lines.append(svg("path", { d, "stroke-width": 0.75 + 6 * p, "stroke-opacity": 0.25 + 0.75 * p }));
    });
  }
  draw(state.token);
  const tall = names.length * height;
  return of("div", { class: "arcs" }, of("p", { class: "faint" }, say("arcs_words")),
    svg("svg", { viewBox: `0 0 ${left + reach + 30} ${tall}`, width: left + reach + 30, height: tall, role: "img",
      "aria-label": say("attention"), onpointerleave: () => draw(state.token) }, bars, labels, texts, lines));
}

/** The neurons that fire most for the chosen token. */
function neurons(record, layer) {
  const [ids, before, after] = ["neurons", "c_fc", "act"].map((name) => record.tables[`h.${layer}.mlp.${name}`]);
  const token = state.token;
  const most = Math.max(...ids.data.map((_, i) => Math.abs(after.data[i] / after.unit))) || 1;
  const rows = Array.from({ length: ids.shape[1] }, (_, k) => bar(
    `${say("neuron")} ${count(ids.at(token, k))}`, after.at(token, k) / most,
    `${before.text(token, k)} → ${after.text(token, k)}`));
  return of("figure", {}, of("figcaption", {}, say("neurons", { token: rowNames(record)[token] })), of("div", { class: "bars" }, rows));
}

/** A line with a name, a bar from −1 to 1, and words. */
function bar(name, share, words, more = {}) {
  const inner = of("i", { class: share < 0 ? "below" : "" });
  inner.style.width = `${100 * Math.min(1, Math.abs(share))}%`;
  return of("div", { class: "bar", ...more }, of("span", { class: "what" }, name), of("span", { class: "track" }, inner), of("span", { class: "much" }, words));
}

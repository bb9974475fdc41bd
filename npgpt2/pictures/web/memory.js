// Memory: the parameters by part, and the KV cache, which grows with each token.

const PARTS = { wte: "wte", wpe: "wpe", attn: "attn", crossattention: "attn", mlp: "mlp" };

function partOf(name) {
  if (/\bln_/.test(name)) return "ln";
  return PARTS[name.split(".").find((part) => PARTS[part])] ?? "head";
}

/** Parameters as areas: one column for each block, and one for each part outside the blocks. */
function weightAreas(record) {
  const product = (shape) => shape.reduce((a, b) => a * b, 1);
  const sum = (entries) => entries.reduce((all, { size }) => all + size, 0);
  const weights = record.about.model.parameters.map(([name, shape]) => {
    const [, block] = /\b(h\.\d+)\./.exec(name) ?? [];
    const column = block ?? name.split(".").at(-2);
    return { name, size: product(shape), column, part: partOf(name), layer: block?.slice(2) };
  });
  const total = sum(weights);
  const share = (size) => `${count(size)} (${percent(size / total)})`;
  const [width, height] = [720, 220];
  const [drawn, x] = [[], { next: 0 }];
  for (const column of new Set(weights.map((weight) => weight.column))) {
    const mine = weights.filter((weight) => weight.column === column);
    const broad = (width * sum(mine)) / total;
    let y = 0;
    for (const { name, size, part, layer } of mine) {
      const high = (height * size) / sum(mine);
      const onclick = () => layer && choose({ layer: Number(layer) });
      const about = { class: `part ${part}`, "data-layer": layer, onclick };
      const rect = svg("rect", { x: x.next, y, width: broad, height: high, ...about });
      hint(rect, () => [of("code", {}, name), of("div", {}, share(size))]);
      drawn.push(rect);
      y += high;
    }
    const middle = { x: x.next + broad / 2, y: height + 15, class: "tick middle" };
    if (broad > 40) drawn.push(svg("text", middle, column));
    x.next += broad;
  }
  const chart = drawing(width, height + 20, say("weights"), drawn);
  follow(chart, ["layer"], () => {
    const here = String(state.layer);
    for (const rect of drawn) rect.classList.toggle("here", rect.dataset.layer === here);
  });
  const key = [...new Set(weights.map(({ part }) => part))].map((part) => {
    const size = sum(weights.filter((weight) => weight.part === part));
    const square = of("i", { class: `part ${part}` });
    return of("li", {}, square, `${say(`part_${part}`)}: ${share(size)}`);
  });
  const words = say("weights_words", { total: count(total) });
  const picture = wide(chart, say("weights"));
  return step(record, say("weights"), words, [], picture, of("ul", { class: "key" }, key));
}

/** The KV cache: the prompt's columns at once, then one for each generated token. */
function cacheGrowth(record) {
  const { n_layer, heads, head_dim, n_positions, itemsize } = record.about.model;
  const prompt = record.about.ids.length;
  const all = prompt + record.tables["written.ids"].shape[0] - 1; // the first step reads the prompt
  const bytes = heads.reduce((sum, h) => sum + 2 * itemsize * h * head_dim, 0);
  const [left, each, high] = [34, between(4, 680 / all, 16), between(4, 240 / n_layer, 14)];
  const slot = (t, layer) => {
    const [x, y] = [left + t * each, layer * high];
    return svg("rect", { x, y, width: each - 1, height: high - 1, class: "slot" });
  };
  const columns = range(all).map((t) => svg("g", {}, heads.map((_, layer) => slot(t, layer))));
  const names = heads.map((_, layer) => high >= 9 &&
    svg("text", { x: left - 6, y: layer * high + 12 }, `h.${layer}`));
  const size = { width: left + all * each, height: n_layer * high + 2 };
  const about = { role: "img", "aria-label": say("cache") };
  const picture = wide(svg("svg", { ...size, ...about }, names, columns), say("cache"));

  const words = of("output");
  const oninput = () => show(Number(input.value));
  const label = say("tokens");
  const input = of("input", { type: "range", min: 1, max: all, "aria-label": label, oninput });
  input.value = all;
  function show(tokens) {
    const kind = (t) => (t >= tokens ? "" : t < prompt ? "read" : "wrote");
    columns.forEach((column, t) => column.setAttribute("class", kind(t)));
    const size = { each: count(bytes), bytes: count(tokens * bytes) };
    words.textContent = say("cache_now", { tokens, ...size });
  }
  show(all);
  const key = ["read", "wrote"].map((kind) =>
    of("li", {}, of("i", { class: kind }), say(`cache_${kind}`)));
  const most = { n_positions: count(n_positions), full: count(n_positions * bytes) };
  const full = { n_layer, bits: 8 * itemsize, ...most };
  const time = of("label", { class: "time" }, input, words);
  return step(record, say("cache"), say("cache_words", full), [], picture, time,
    of("ul", { class: "key" }, key));
}

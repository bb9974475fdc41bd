// Where the numbers are: weights by part, and the cache that grows with each token.

const PARTS = ["wte", "wpe", "attn", "mlp", "ln", "head"];

function partOf(name) {
  if (name.startsWith("lm_head")) return "head";
  if (/(^|\.)ln_/.test(name)) return "ln";
  return PARTS.find((part) => name.split(".").includes(part)) ?? (name.includes("crossattention") ? "attn" : "head");
}

/** Parameters as areas: a column for what stands before the blocks, then one for each block. */
function weightAreas(record) {
  const { parameters, n_layer } = record.about.model;
  const sizes = parameters.map(([name, shape]) => ({ name, size: shape.reduce((a, b) => a * b, 1) }));
  const total = sizes.reduce((sum, { size }) => sum + size, 0);
  const layerOf = ({ name }) => Number(/\bh\.(\d+)\./.exec(name)?.[1] ?? -1);
  const columns = new Map();
  for (const entry of sizes) {
    const layer = layerOf(entry);
    const column = layer < 0 ? entry.name.split(".").slice(0, -1).join(".") : `h.${layer}`;
    columns.set(column, [...(columns.get(column) ?? []), entry]);
  }
  const [width, height] = [720, 220];
  let x = 0;
  const rects = [];
  for (const [column, entries] of columns) {
    const all = entries.reduce((sum, { size }) => sum + size, 0);
    const wide = (width * all) / total;
    let y = 0;
    for (const entry of entries) {
      const high = (height * entry.size) / all;
      const layer = layerOf(entry);
      const rect = svg("rect", { x: x.toFixed(2), y: y.toFixed(2), width: wide.toFixed(2), height: high.toFixed(2),
        class: `part ${partOf(entry.name)}`, "data-layer": layer, onclick: () => layer >= 0 && choose({ layer }) });
      hint(rect, () => [of("code", {}, entry.name), of("div", {}, `${count(entry.size)} = ${percent(entry.size / total)}`)]);
      rects.push(rect);
      y += high;
    }
    if (wide > 40) rects.push(svg("text", { x: x + wide / 2, y: height + 15, class: "tick middle" }, column.replace("transformer.", "")));
    x += wide;
  }
  const sums = PARTS.map((part) => [part, sizes.filter(({ name }) => partOf(name) === part).reduce((sum, { size }) => sum + size, 0)]).filter(([, sum]) => sum);
  kept(() => rects.forEach((rect) => rect.classList.toggle("here", rect.dataset.layer === String(state.layer))));
  return step(record, say("weights"), say("weights_words", { total: count(total), layers: n_layer }), [],
    svg("svg", { viewBox: `0 0 ${width} ${height + 20}`, class: "chart", role: "img", "aria-label": say("weights") }, rects),
    of("ul", { class: "key" }, sums.map(([part, sum]) => of("li", {}, of("i", { class: `part ${part}` }), `${say(`part_${part}`)}: ${count(sum)} (${percent(sum / total)})`))));
}

/** Keys and values, a column a token: the prompt's all at once, then one for each that is written. */
function cacheGrowth(record) {
  const { n_layer, heads, head_dim, n_positions } = record.about.model;
  const prompt = record.about.ids.length;
  const all = prompt + record.tables["written.ids"].shape[0] - 1; // the first step read the prompt
  const bytes = heads.reduce((sum, h) => sum + 2 * 4 * h * head_dim, 0);
  const [size, left] = [Math.max(4, Math.min(16, 680 / all)), 34];
  const high = Math.max(4, Math.min(14, 240 / n_layer));
  const cells = Array.from({ length: all }, (_, t) => svg("g", {}, heads.map((_, layer) =>
    svg("rect", { x: left + t * size, y: layer * high, width: size - 1, height: high - 1, class: "slot" }))));
  const words = of("output");
  const input = of("input", { type: "range", min: 1, max: all, step: 1, "aria-label": say("tokens"), oninput: () => show(Number(input.value)) });
  input.value = all;
  function show(tokens) {
    cells.forEach((cell, t) => cell.setAttribute("class", t >= tokens ? "" : t < prompt ? "read" : "wrote"));
    words.textContent = say("cache_now", { tokens, bytes: count(tokens * bytes), each: count(bytes) });
  }
  show(all);
  return step(record, say("cache"), say("cache_words", { n_layer, n_positions: count(n_positions), full: count(n_positions * bytes) }), [],
    of("div", { class: "wide" }, svg("svg", { width: left + all * size, height: n_layer * high + 2, role: "img", "aria-label": say("cache") },
      heads.map((_, layer) => svg("text", { x: left - 6, y: layer * high + Math.min(12, high), class: "tick" }, high < 9 ? "" : `h.${layer}`)), cells)),
    of("label", { class: "time" }, input, words),
    of("ul", { class: "key" }, of("li", {}, of("i", { class: "read" }), say("cache_read")), of("li", {}, of("i", { class: "wrote" }), say("cache_wrote"))));
}

// What is seen across all blocks: what each would say, and how the stream grows.

/** The logit lens: the most probable tokens, had the model stopped there. */
function lens(record) {
  const [ids, probs] = [record.tables["lens.ids"], record.tables["lens.probs"]];
  const [stops, length, most] = ids.shape;
  const names = rowNames(record);
  const place = (stop) => (stop === 0 ? "embed" : stop === stops - 1 ? say("last_block") : `h.${stop - 1}`);
  const cells = Array.from({ length: stops }, (_, stop) => Array.from({ length }, (_, t) => {
    const { background, text } = shade(probs.at(stop, t, 0));
    const cell = of("td", { tabindex: -1, onclick: () => choose({ token: t, layer: clamp(stop - 1, stops - 2) }) }, named(record, ids.at(stop, t, 0)));
    [cell.style.background, cell.style.color] = [background, text];
    hint(cell, () => [of("b", {}, `${place(stop)}, ${names[t]}`), ...Array.from({ length: most }, (_, k) =>
      of("div", {}, named(record, ids.at(stop, t, k)), ` ${percent(probs.at(stop, t, k))}`))]);
    return cell;
  }));
  let [stop, t] = [stops - 1, state.token];
  cells[stop][t].tabIndex = 0;
  const table = of("table", { class: "lens", onkeydown: arrows((dx, dy) => {
    cells[stop][t].tabIndex = -1;
    [stop, t] = [clamp(stop + dy, stops - 1), clamp(t + dx, length - 1)];
    cells[stop][t].tabIndex = 0;
    cells[stop][t].focus();
  }) },
  of("thead", {}, of("tr", {}, of("th"), names.map((name) => of("th", { scope: "col" }, of("bdi", {}, name))))),
  of("tbody", {}, cells.map((row, i) => of("tr", {}, of("th", { scope: "row" }, place(i)), row))));
  kept(() => cells.forEach((row) => row.forEach((cell, i) => cell.classList.toggle("here", i === state.token))));
  return step(record, say("lens"), say("lens_words"), ["transformer.ln_f.weight", headName(record)],
    of("div", { class: "wide", tabindex: 0, role: "region", "aria-label": say("lens") }, table), legend({ unit: whole }, 1));
}

function headName({ about }) {
  const own = about.model.parameters.some(([name]) => name === "lm_head.weight");
  return own ? "lm_head.weight" : "transformer.wte.weight";
}

/** Euclidean lengths: the stream after every addition, and what was added. */
function streamSizes(record) {
  const table = record.tables.sizes;
  const layers = record.about.model.n_layer;
  const tokens = record.about.ids.map((_, i) => i);
  const stream = [0, ...Array.from({ length: 2 * layers }, (_, i) => 2 * i + 2)];
  const values = stream.flatMap((row) => tokens.map((t) => table.at(row, t)));
  const low = 10 ** Math.floor(Math.log10(Math.max(1e-9, Math.min(...values))));
  const high = 10 ** Math.ceil(Math.log10(Math.max(...values) * 1.0001));
  const [width, height, left, foot] = [720, 260, 46, 24];
  const x = (i) => left + (i * (width - left - 10)) / (stream.length - 1);
  const y = (value) => 8 + ((height - foot - 8) * Math.log(high / Math.max(value, low))) / Math.log(high / low);
  const line = (t) => `M${stream.map((row, i) => `${x(i).toFixed(1)} ${y(table.at(row, t)).toFixed(1)}`).join("L")}`;
  const ticks = [];
  for (let tick = low; tick <= high * 1.001; tick *= 10) ticks.push(tick);
  const paths = tokens.map((t) => svg("path", { d: line(t), class: "thin" }));
  const chosen = svg("path", { class: "thick" });
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": say("sizes") },
    ticks.map((tick) => [svg("line", { x1: left, x2: width - 10, y1: y(tick), y2: y(tick), class: "rule" }), svg("text", { x: left - 6, y: y(tick) + 4, class: "tick" }, brief(tick))]),
    svg("text", { x: x(0), y: height - 6, class: "tick middle" }, "embed"),
    Array.from({ length: layers }, (_, i) => svg("text", { x: x(2 * i + 2), y: height - 6, class: "tick middle" }, layers > 16 && i % 4 ? "" : `h.${i}`)),
    paths, chosen);
  const bars = of("div", { class: "sizes" });
  kept(() => {
    chosen.setAttribute("d", line(state.token));
    const most = Math.max(...Array.from({ length: 4 * layers + 1 }, (_, row) => table.at(row, state.token)));
    const row = (name, i) => bar(name, table.at(i, state.token) / most, table.text(i, state.token));
    bars.replaceChildren(row("embed", 0), ...Array.from({ length: layers }, (_, i) => [
      row(`h.${i}.attn.c_proj`, 4 * i + 1), row(`h.${i}.resid_attn`, 4 * i + 2),
      row(`h.${i}.mlp.c_proj`, 4 * i + 3), row(`h.${i}.resid_mlp`, 4 * i + 4)]).flat());
  });
  return step(record, say("sizes"), say("sizes_words"), [], chart, of("details", {}, of("summary", {}, say("in_numbers")), bars));
}

// Across all blocks: what each would predict, and how the residual stream grows.

/** The logit lens: the most probable tokens if the model stopped after each block. */
function lens(record) {
  const [ids, probs] = [record.tables["lens.ids"], record.tables["lens.probs"]];
  const [stops, length, most] = ids.shape;
  const names = rowNames(record);
  const middle = (stop) => (stop === stops - 1 ? say("last_block") : `h.${stop - 1}`);
  const place = (stop) => (stop === 0 ? "embed" : middle(stop));
  const said = (...at) => [named(record, ids.at(...at)), ` ${percent(probs.at(...at))}`];

  const cells = range(stops).map((stop) => range(length).map((t) => {
    const onclick = () => choose({ token: t, layer: clamp(stop - 1, stops - 2) });
    const cell = of("td", { onclick }, named(record, ids.at(stop, t, 0)));
    [cell.style.background, cell.style.color] = shade(probs.at(stop, t, 0));
    const title = of("b", {}, `${place(stop)}, ${names[t]}`);
    hint(cell, () => [title, ...range(most).map((k) => of("div", {}, said(stop, t, k)))]);
    return cell;
  }));
  const heads = names.map((name) => of("th", { scope: "col" }, of("bdi", {}, name)));
  const line = (stop, row) => of("tr", {}, of("th", { scope: "row" }, place(stop)), row);
  const table = of("table", { class: "lens", onkeydown: roving(cells, stops - 1, state.token) },
    of("thead", {}, of("tr", {}, of("th"), heads)),
    of("tbody", {}, cells.map((row, stop) => line(stop, row))));
  const moving = wide(table, say("lens"));
  follow(table, ["token"], () => {
    const mark = (cell, t) => cell.classList.toggle("here", t === state.token);
    for (const row of cells) row.forEach(mark);
    reveal(moving, cells[0][state.token]);
  });

  const listed = of("table", { class: "lens listed" });
  follow(listed, ["token"], () => {
    const row = (stop) => range(most).map((k) => of("td", {}, said(stop, state.token, k)));
    listed.replaceChildren(...range(stops).map((stop) => line(stop, row(stop))));
  });
  return step(record, say("lens"), say("lens_words"), ["ln_f.weight", headName(record)],
    moving, legend({ unit: whole }, 1),
    of("details", {}, of("summary", {}, say("lens_numbers")), wide(listed, say("lens_numbers"))));
}

/** Tab reaches one element of these rows; the arrow keys reach the others from there. */
function roving(cells, row, column) {
  for (const cell of cells.flat()) cell.tabIndex = -1;
  cells[row][column].tabIndex = 0;
  return arrows((dx, dy) => {
    cells[row][column].tabIndex = -1;
    [row, column] = [clamp(row + dy, cells.length - 1), clamp(column + dx, cells[0].length - 1)];
    cells[row][column].tabIndex = 0;
    cells[row][column].focus();
  });
}

/** A container that scrolls if its content is wider than the page. */
function wide(inner, label) {
  return of("div", { class: "wide", tabindex: 0, role: "region", "aria-label": label }, inner);
}

function headName({ about }) {
  const own = about.model.parameters.some(([name]) => name === "lm_head.weight");
  return own ? "lm_head.weight" : "wte.weight";
}

/** Euclidean norms of the stream after every addition, and of what was added. */
function streamSizes(record) {
  const table = record.tables.sizes;
  const names = sizeNames(record.about.model.n_layer);
  const numbers = of("div");
  follow(numbers, ["token"], () => {
    const most = Math.max(...names.map((_, i) => table.at(i, state.token)));
    numbers.replaceChildren(...names.map((name, i) =>
      bar(name, table.at(i, state.token) / most, table.text(i, state.token))));
  });
  const chart = wide(sizeChart(record, names), say("sizes"));
  const details = of("details", {}, of("summary", {}, say("in_numbers")), numbers);
  return step(record, say("sizes"), say("sizes_words"), [], chart, details);
}

/** The arrays whose norms `sizes` stores, in the order of the forward pass. */
function sizeNames(layers) {
  const parts = ["attn.c_proj", "resid_attn", "mlp.c_proj", "resid_mlp"];
  return ["embed", ...range(layers).flatMap((i) => parts.map((part) => `h.${i}.${part}`))];
}

/** One line for each token, a thick one for the selected; norms on a logarithmic scale. */
function sizeChart(record, names) {
  const table = record.tables.sizes;
  const stream = range(names.length).filter((i) => i % 2 === 0); // without what is added
  const tokens = range(record.about.ids.length);
  const values = stream.flatMap((i) => tokens.map((t) => table.at(i, t)));
  const low = Math.floor(Math.log10(Math.max(1e-9, Math.min(...values))));
  const high = Math.ceil(Math.log10(Math.max(...values) * 1.0001));
  const [width, height, left, foot] = [720, 260, 46, 24];
  const x = (n) => left + (n * (width - left - 10)) / (stream.length - 1);
  const down = (value) => (high - Math.max(Math.log10(value), low)) / (high - low);
  const y = (value) => 8 + (height - foot - 8) * down(value);
  const point = (i, n, t) => `${x(n).toFixed(1)} ${y(table.at(i, t)).toFixed(1)}`;
  const line = (t) => `M${stream.map((i, n) => point(i, n, t)).join("L")}`;
  const rules = range(high - low + 1).map((n) => 10 ** (low + n)).map((tick) => [
    svg("line", { x1: left, x2: width - 10, y1: y(tick), y2: y(tick), class: "rule" }),
    svg("text", { x: left - 6, y: y(tick) + 4, class: "tick" }, brief(tick)),
  ]);
  const every = stream.length > 33 ? 8 : 2; // halves of a block
  const name = (i) => names[i].replace(".resid_mlp", "");
  const marks = stream.map((i, n) => n % every === 0 &&
    svg("text", { x: x(n), y: height - 6, class: "tick middle" }, name(i)));
  const thin = tokens.map((t) => svg("path", { d: line(t), class: "thin" }));
  const thick = svg("path", { class: "thick" });
  const chart = drawing(width, height, say("sizes"), rules, marks, thin, thick);
  follow(chart, ["token"], () => thick.setAttribute("d", line(state.token)));
  return chart;
}

/** A drawing as wide as the page. On narrow screens the caller puts it into `wide`. */
function drawing(width, height, label, ...shapes) {
  const viewBox = `0 0 ${width} ${height}`;
  return svg("svg", { viewBox, class: "chart", role: "img", "aria-label": label }, shapes);
}

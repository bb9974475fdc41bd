// Attention: every head as a small map, and the selected one as a large map.

/** Every head of every block as a small map; a click selects one. */
function headGrid(record) {
  const { n_layer, heads } = record.about.model;
  const rows = range(n_layer).map((layer) =>
    range(heads[layer]).map((head) => smallMap(record, layer, head)),
  );
  const lines = rows.map((row, layer) => of("div", {}, of("span", { class: "faint" }, layer), row));
  const move = arrows((dx, dy) => {
    const layer = clamp(state.layer + dy, n_layer - 1);
    choose({ layer, head: clamp(Math.max(0, state.head) + dx, heads[layer] - 1) });
    rows[state.layer][state.head].focus();
  });
  const label = say("all_heads");
  const about = { class: "heads", role: "group", "aria-label": label, onkeydown: move };
  const grid = of("div", about, lines);
  follow(grid, ["layer", "head"], () => {
    const reached = Math.max(0, headOf(record)); // the one button that Tab reaches
    rows.forEach((row, layer) =>
      row.forEach((button, head) => {
        const here = layer === state.layer;
        button.setAttribute("aria-pressed", here && head === headOf(record));
        button.tabIndex = here && head === reached ? 0 : -1;
      }),
    );
  });
  const key = legend({ unit: whole, root: true }, 1);
  return step(record, label, say("all_heads_words"), [], grid, key);
}

function smallMap(record, layer, head) {
  const rows = record.about.ids;
  const probs = record.tables[`h.${layer}.attn.probs`];
  const canvas = of("canvas", { width: rows.length, height: rows.length });
  const at = (r, c) => probs.at(head, r, c);
  paint(canvas, { rows, columns: rows.length, at, root: true }, 1);
  const label = `${say("layer")} ${layer}, ${say("head")} ${head}`;
  const onclick = () => choose({ layer, head });
  const id = `head-${layer}-${head}`;
  const about = { id, type: "button", class: "small", title: label, "aria-label": label, onclick };
  return of("button", about, canvas);
}

/** The steps from scores to probabilities, as four maps. */
function scoreMaps(record, layer, head) {
  const at = `h.${layer}.attn.`;
  const [scores, scaled, probs] = ["scores", "scaled", "probs"].map((n) => record.tables[at + n]);
  const read = (table) => ({
    signed: true,
    at: (r, c) => table.at(head, r, c),
    text: (r, c) => table.text(head, r, c),
  });
  const rows = record.about.ids;
  const seen = read(scaled);
  const masked = {
    signed: true,
    top: usual({ rows, columns: rows.length, at: seen.at }),
    at: (r, c) => (c > r ? null : seen.at(r, c)),
    text: (r, c) => (c > r ? "−∞" : seen.text(r, c)),
  };
  const maps = [
    [say("raw"), read(scores)], [say("scaled"), seen], [say("masked"), masked],
    [`softmax: ${at}probs`, chancesOf((r, c) => probs.at(head, r, c))],
  ];
  const t = rows.length;
  const figures = maps.map(([title, map]) =>
    of("figure", {}, of("figcaption", {}, `${title} (${t} × ${t})`),
      square(record, { ...map, size: 180 }, title)),
  );
  return of("div", { class: "four" }, figures);
}

/** A map of probabilities. */
function chancesOf(at) {
  return { at, text: (r, c) => percent(at(r, c)), top: 1, root: true, unit: whole };
}

/** A map (T × T): rows attend to columns. */
function square(record, map, label) {
  const names = rowNames(record);
  const says = (r, c) => `“${names[r]}” → “${names[c]}”: ${map.text(r, c)}`;
  return heatmap({ ...map, label, rows: names, columns: names.length, says });
}

/** The attention of one head, or the mean over the block's heads: a map, and arcs. */
function attentionLarge(record, layer, head) {
  const [probs, mean] = ["probs", "mean"].map((name) => record.tables[`h.${layer}.attn.${name}`]);
  const at = (r, c) => (head >= 0 ? probs.at(head, r, c) : mean.at(r, c));
  const [picture, draw] = arcs(record, at);
  const map = square(record, { ...chancesOf(at), pointed: draw }, say("attention"));
  return of("div", { class: "large" }, of("figure", {}, map), picture);
}

const [LINE, LEFT, REACH] = [22, 245, 150]; // pixels: height of a line, start of the arcs, their width

/** [Arcs from the selected token to the tokens it attends to, function that draws another's]. */
function arcs(record, at) {
  const names = rowNames(record);
  const tall = names.length * LINE;
  const each = (tag, attributes, text) =>
    names.map((name, i) => svg(tag, attributes(i), text ? [...name].slice(0, 14).join("") : null));
  const labels = each("text", (i) => ({
    x: 122, y: i * LINE + 15, class: "name",
    onpointerenter: () => draw(i), onclick: () => choose({ token: i }),
  }), true);
  const bars = each("rect", (i) => ({ x: 130, y: i * LINE + 3, height: LINE - 6, class: "bar" }));
  const texts = each("text", (i) => ({ x: LEFT - 8, y: i * LINE + 15, class: "share" }));
  const lines = svg("g");
  function draw(from) {
    labels.forEach((label, i) => label.classList.toggle("from", i === from));
    names.forEach((_, to) => {
      texts[to].textContent = to <= from ? percent(at(from, to)) : "";
      bars[to].setAttribute("width", to <= from ? 45 * at(from, to) : 0);
    });
    const seen = range(from + 1).filter((to) => at(from, to) >= 0.005);
    lines.replaceChildren(...seen.map((to) => arc(from, to, at(from, to), tall)));
  }
  const [width, back] = [LEFT + REACH + 30, () => draw(state.token)];
  const picture = svg("svg", {
    viewBox: `0 0 ${width} ${tall}`, width, height: tall, role: "img",
    "aria-label": say("attention"), onpointerleave: back,
  }, bars, labels, texts, lines);
  const words = of("p", { class: "faint" }, say("arcs_words"));
  const place = of("div", { class: "arcs" }, words, picture);
  follow(place, ["token"], () => {
    back();
    reveal(place, labels[state.token]);
  });
  return [place, draw];
}

function arc(from, to, p, tall) {
  const [a, b] = [from * LINE + 11, to * LINE + 11];
  const bulge = LEFT + 14 + ((4 / 3) * REACH * (a - b)) / tall;
  const d = to === from
    ? `M${LEFT} ${a - 4} a7 7 0 1 1 0 8`
    : `M${LEFT} ${a} C${bulge} ${a} ${bulge} ${b} ${LEFT} ${b}`;
  return svg("path", { d, "stroke-width": 0.75 + 6 * p, "stroke-opacity": 0.25 + 0.75 * p });
}

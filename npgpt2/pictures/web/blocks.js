// The forward pass: embeddings, then each array of the selected block in order.

/** One step of the page: title, text, parameters with their shapes, and pictures. */
function step(record, title, words, parameters, ...drawn) {
  const shapes = new Map(record.about.model.parameters);
  const lines = parameters.map((name) =>
    of("li", {}, of("code", {}, name), ` ${shapes.get(name)?.join(" × ") ?? ""}`),
  );
  const names = lines.length > 0 && of("ul", { class: "parameters" }, lines);
  return of("section", { class: "step" }, of("h3", {}, title), of("p", {}, words), names, drawn);
}

/** An array (T, columns), or some of its columns, as a heatmap. */
function strip(record, name, from = 0, columns = record.tables[name].shape[1]) {
  const table = record.tables[name];
  const rows = rowNames(record);
  const [token, dimension] = [say("token"), say("dimension")];
  const place = (r, c) => `${token} ${r} “${rows[r]}”, ${dimension} ${from + c}`;
  const says = (r, c) => `${place(r, c)}: ${table.text(r, from + c)}`;
  const at = (r, c) => table.at(r, from + c);
  const shape = `${rows.length} × ${columns}`;
  const slice = columns < table.shape[1] ? `${name}[:, ${from}:${from + columns}]` : name;
  const map = heatmap({ rows, columns, signed: true, at, says, label: `${slice}, ${shape}` });
  return of("figure", {}, of("figcaption", {}, of("code", {}, slice), ` (${shape})`), map);
}

function embeddings(record) {
  const names = ["wte.weight", "wpe.weight"];
  const strips = ["wte", "wpe", "embed"].map((name) => strip(record, name));
  const three = of("div", { class: "three" }, strips);
  return step(record, say("embed"), say("embed_words"), names, three);
}

/** The inside of the selected block. */
function block(record) {
  const place = of("div");
  const maps = () => [...place.querySelectorAll("canvas[tabindex]")];
  follow(place, ["layer", "head"], () => {
    const held = maps().indexOf(document.activeElement); // to restore the focus
    const title = of("h2", {}, `${say("layer")} ${state.layer}`);
    const words = of("p", {}, say("one_block_words", { last: record.about.model.n_layer - 1 }));
    place.replaceChildren(title, words, ...stepsOf(record, state.layer, headOf(record)));
    maps()[held]?.focus({ preventScroll: true });
  });
  return place;
}

/** The head that is shown; −1 is the mean over all. (Pruned blocks have fewer heads.) */
function headOf(record) {
  return Math.min(state.head, record.about.model.heads[state.layer] - 1);
}

/** The steps of `block` in npgpt2/model/forward.py, in the same order. */
function stepsOf(record, layer, head) {
  const { model } = record.about;
  const one = head >= 0;
  const [d, heads] = [model.head_dim, model.heads[layer]];
  const show = (name, from, columns) => strip(record, `h.${layer}.${name}`, from, columns);
  const does = (title, words, parts, ...drawn) =>
    step(record, title, words, parts.flatMap((part) => parametersOf(layer, part)), ...drawn);
  const columns = (title, n) =>
    of("div", {}, of("h4", {}, say(title)), show("attn.c_attn", (n * heads + head) * d, d));
  const chooseOne = of("p", { class: "faint" }, say("one_head"));
  const qkv = ["queries", "keys_of", "values"];
  const wide = count(model.mlp_width);
  return [
    does(`LayerNorm h.${layer}.ln_1`, say("ln_1"), ["ln_1"], show("ln_1")),
    does(say("qkv"), say("qkv_words", { ...model, heads }), ["attn.c_attn"],
      one ? of("div", { class: "three" }, qkv.map(columns)) : chooseOne),
    does(say("scores"), say("scores_words", { scale: scaleOf(model, layer) }), [],
      one ? scoreMaps(record, layer, head) : chooseOne.cloneNode(true)),
    does(one ? `${say("attention")}: ${say("head")} ${head}` : say("mean"),
      say("attention_words"), [], attentionLarge(record, layer, head)),
    does(say("weighted"), say("weighted_words"), [],
      one ? show("attn.heads", head * d, d) : show("attn.heads")),
    does(say("projection"), say("projection_words"), ["attn.c_proj"],
      show("attn.c_proj"), show("resid_attn")),
    does(`LayerNorm h.${layer}.ln_2`, say("ln_2"), ["ln_2"], show("ln_2")),
    does("MLP", say("mlp_words", { wide, act: model.activation_function }),
      ["mlp.c_fc", "mlp.c_proj"], neurons(record, layer), show("mlp.c_proj"), show("resid_mlp")),
  ];
}

/** The attention scale as text: usually 1/√D. */
function scaleOf({ scales, head_dim }, layer) {
  const usual = Math.abs(scales[layer] * Math.sqrt(head_dim) - 1) < 1e-9;
  const scale = brief(scales[layer], 4);
  return usual ? `1/√${head_dim} = ${scale}` : scale;
}

function parametersOf(layer, part) {
  return ["weight", "bias"].map((kind) => `h.${layer}.${part}.${kind}`);
}

/** The neurons with the largest activations for the selected token. */
function neurons(record, layer) {
  const [ids, before, after] = ["neurons", "c_fc", "act"].map(
    (name) => record.tables[`h.${layer}.mlp.${name}`],
  );
  const [length, many] = ids.shape;
  const each = range(many).map((k) => k);
  const most = Math.max(...range(length).map((t) => Math.abs(after.at(t, 0)))) || 1;
  const [caption, bars] = [of("figcaption"), of("div", { class: "bars" })];
  const figure = of("figure", {}, caption, bars);
  follow(figure, ["token"], () => {
    const t = state.token;
    caption.textContent = say("neurons", { token: rowNames(record)[t] });
    bars.replaceChildren(
      ...each.map((k) =>
        bar(
          `${say("neuron")} ${count(ids.at(t, k))}`,
          after.at(t, k) / most,
          `${before.text(t, k)} → ${after.text(t, k)}`,
        ),
      ),
    );
  });
  return figure;
}

/** A line with a name, a bar from −1 to 1, and a text. */
function bar(name, share, words, more = {}) {
  const inner = of("i", { class: share < 0 ? "below" : "" });
  inner.style.width = `${100 * Math.min(1, Math.abs(share))}%`;
  return of(
    "div",
    { class: "bar", ...more },
    of("span", { class: "what" }, name),
    of("span", { class: "track" }, inner),
    of("span", { class: "much" }, words),
  );
}

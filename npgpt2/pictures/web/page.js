// The page: its parts in the order of the forward pass, and the controls for all of them.

/** Draw everything: for a new record, another language or other colours. */
function drawPage(record) {
  const held = document.activeElement?.id; // to restore the focus
  parts.clear();
  state.token = clamp(state.token, record.about.ids.length - 1);
  document.documentElement.lang = language;
  document.title = `${record.about.model.name}: ${say("title")}`;
  const sections = [
    ["text", step(record, say("text"), say("text_words"), [], ...tokenRow(record))],
    ["embed", embeddings(record)],
    ["all_heads", headGrid(record)],
    ["one_block", block(record)],
    ["final", lastNorm(record)],
    ["choice", distribution(record)],
    ["written", continuation(record)],
    ["lens", lens(record)],
    ["sizes", streamSizes(record)],
    ["weights", weightAreas(record)],
    ["cache", cacheGrowth(record)],
  ];
  sections.forEach(([key, section]) => (section.id = key));
  const links = sections.map(([key]) => of("a", { href: `#${key}` }, say(key)));
  const drawn = sections.map(([, section]) => section);
  const tip = of("div", { id: "tip", role: "tooltip", hidden: true });
  const page = document.getElementById("page");
  page.replaceChildren(header(record), chooser(record, links), of("main", {}, drawn), tip);
  if (held) document.getElementById(held)?.focus();
}

function header(record) {
  const { model } = record.about;
  const sizes = model.parameters.map(([, shape]) => shape.reduce((a, b) => a * b, 1));
  const parameters = count(sizes.reduce((a, b) => a + b, 0));
  const words = say("model", { ...model, parameters, vocab_size: count(model.vocab_size) });
  const help = of("p", { class: "faint", hidden: true }, say("keys_words"));
  const button = (id, onclick) => of("button", { type: "button", id, onclick }, say(id));
  const tools = [
    button("other", () => speak(record)), button("theme", () => turn(record)),
    button("keys", () => (help.hidden = !help.hidden)), help,
  ];
  return of("header", {}, of("h1", {}, say("title")), of("p", { class: "faint" }, words),
    of("p", {}, say("intro")), of("div", { class: "tools" }, tools));
}

function lastNorm(record) {
  const names = ["ln_f.weight", "ln_f.bias"];
  return step(record, say("final"), say("final_words"), names, strip(record, "ln_f"));
}

function speak(record) {
  language = language === "en" ? "zh" : "en";
  drawPage(record);
  document.dispatchEvent(new Event("spoken"));
}

function turn(record) {
  document.documentElement.style.colorScheme = isDark() ? "light" : "dark";
  drawPage(record);
}

/** The menus for token, block and head, and links to each part: always visible. */
function chooser(record, links) {
  const heads = record.about.model.heads;
  const names = rowNames(record);
  const menu = (key, values, name) => {
    const onchange = () => choose({ [key]: Number(select.value) });
    const options = values.map((value) => of("option", { value }, name(value)));
    const select = of("select", { id: `choose-${key}`, "aria-label": say(key), onchange }, options);
    return select;
  };
  const token = menu("token", range(names.length), (i) => `${i} ${names[i]}`);
  const layer = menu("layer", range(heads.length), (i) => `${say("layer")} ${i}`);
  const head = menu("head", [-1, ...range(Math.max(...heads))], (i) =>
    i < 0 ? say("mean_short") : `${say("head")} ${i}`);
  const nav = of("nav", { "aria-label": say("shown") },
    of("div", {}, token, layer, head), of("div", { class: "parts" }, links));
  follow(nav, ["token", "layer", "head"], () => {
    [token.value, layer.value, head.value] = [state.token, state.layer, headOf(record)];
  });
  return nav;
}

/** Keyboard shortcuts, except where an input element needs the keys itself. */
function listenToKeys(current) {
  document.addEventListener("keydown", (event) => {
    const record = current();
    const busy = event.ctrlKey || event.altKey || event.metaKey;
    if (!record || busy || event.target.closest("input, select, textarea")) return;
    const { n_layer, heads } = record.about.model;
    const last = record.about.ids.length - 1;
    const moves = {
      ArrowLeft: () => choose({ token: clamp(state.token - 1, last) }),
      ArrowRight: () => choose({ token: clamp(state.token + 1, last) }),
      "[": () => choose({ layer: clamp(state.layer - 1, n_layer - 1) }),
      "]": () => choose({ layer: clamp(state.layer + 1, n_layer - 1) }),
      ",": () => choose({ head: Math.max(-1, headOf(record) - 1) }),
      ".": () => choose({ head: clamp(headOf(record) + 1, heads[state.layer] - 1) }),
      m: () => choose({ head: headOf(record) < 0 ? 0 : -1 }),
      l: () => speak(record),
      d: () => turn(record),
      Escape: () => (document.getElementById("tip").hidden = true),
    };
    moves[event.key]?.();
  });
}

/** The initial block and head: its tokens attend most to others than the first and themselves. */
function telling({ about, tables }) {
  const { heads } = about.model;
  const found = { layer: 0, head: 0, most: 0 };
  heads.forEach((many, layer) => range(many).forEach((head) => {
    const { data, shape: [, t] } = tables[`h.${layer}.attn.probs`];
    const row = (i) => data.subarray((head * t + i) * t + 1, (head * t + i) * t + i);
    const most = range(t).reduce((sum, i) => sum + row(i).reduce((a, b) => Math.max(a, b), 0), 0);
    if (most > found.most) Object.assign(found, { layer, head, most });
  }));
  return { layer: found.layer, head: found.head };
}

/** The page of one prompt, whose record is in the file. */
async function openRecord({ about, packed }) {
  if (typeof DecompressionStream === "undefined") {
    document.getElementById("page").append(of("p", {}, say("no_inflating")));
    return;
  }
  const uniform = about.written.uniforms?.[0] ?? 0.5;
  const settings = { ...about.options, uniform }; // what the sliders move
  const record = { about, settings, tables: await unpack(packed, about.arrays) };
  Object.assign(state, telling(record), { token: about.ids.length - 1 });
  drawPage(record);
  performance.mark("drawn");
  listenToKeys(() => record);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawPage(record));
}

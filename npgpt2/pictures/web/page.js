// The page: its parts in the order of the data's flow, and what reaches all of them.

/** Everything again: another record, another language, other colours. */
function drawPage(record) {
  listeners.clear();
  state.token = clamp(state.token, record.about.ids.length - 1);
  document.documentElement.lang = language;
  document.title = `${record.about.model.name}: ${say("title")}`;
  const { model } = record.about;
  const total = model.parameters.reduce((sum, [, shape]) => sum + shape.reduce((a, b) => a * b, 1), 0);
  const parts = [
    ["text", step(record, say("text"), say("text_words"), [], ...tokenRow(record))],
    ["embed", embeddings(record)], ["all_heads", headGrid(record)], ["one_block", block(record)],
    ["final", lastNorm(record)], ["choice", distribution(record)], ["written", continuation(record)],
    ["lens", lens(record)], ["sizes", streamSizes(record)], ["weights", weightAreas(record)], ["cache", cacheGrowth(record)],
  ];
  parts.forEach(([key, part]) => (part.id = key));
  document.getElementById("page").replaceChildren(
    of("header", {}, of("h1", {}, say("title")),
      of("p", { class: "faint" }, say("model", { ...model, parameters: count(total), vocab_size: count(model.vocab_size) })),
      tools(record)),
    chooser(record, parts.map(([key]) => of("a", { href: `#${key}` }, say(key)))),
    of("main", {}, parts.map(([, part]) => part)),
    of("div", { id: "tip", role: "tooltip", hidden: true }));
}

function lastNorm(record) {
  const place = of("div");
  const names = ["transformer.ln_f.weight", "transformer.ln_f.bias"];
  kept(() => place.replaceChildren(step(record, say("final"), say("final_words"), names, strip(record, "ln_f"))));
  return place;
}

function tools(record) {
  const help = of("p", { class: "faint", hidden: true }, say("keys_words"));
  return of("div", { class: "tools" },
    of("button", { type: "button", onclick: () => speak(record) }, say("other")),
    of("button", { type: "button", onclick: () => turn(record) }, say("theme")),
    of("button", { type: "button", onclick: () => (help.hidden = !help.hidden) }, say("keys")), help);
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

/** Token, block and head, and the way to each part: always in sight. */
function chooser(record, links) {
  const { model, ids } = record.about;
  const names = rowNames(record);
  const menu = (label, options, pick) => {
    const select = of("select", { "aria-label": label, onchange: () => pick(Number(select.value)) });
    select.replaceChildren(...options.map(([value, name]) => of("option", { value }, name)));
    return select;
  };
  const token = menu(say("token"), ids.map((_, i) => [i, `${i} ${names[i]}`]), (value) => choose({ token: value }));
  const layer = menu(say("block"), model.heads.map((_, i) => [i, `${say("block")} ${i}`]), (value) => choose({ layer: value }));
  const heads = Math.max(...model.heads);
  const head = menu(say("head"), [[-1, say("mean_short")], ...Array.from({ length: heads }, (_, i) => [i, `${say("head")} ${i}`])], (value) => choose({ head: value }));
  kept(() => [token.value, layer.value, head.value] = [state.token, state.layer, headOf(record)]);
  return of("nav", { "aria-label": say("shown") }, of("div", {}, token, layer, head), of("div", { class: "parts" }, links));
}

/** Keys that are heard wherever no element needs them itself. */
function listenToKeys(current) {
  document.addEventListener("keydown", (event) => {
    const record = current();
    if (!record || event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select, textarea")) return;
    const { n_layer, heads } = record.about.model;
    const moves = {
      ArrowLeft: () => choose({ token: clamp(state.token - 1, record.about.ids.length - 1) }),
      ArrowRight: () => choose({ token: clamp(state.token + 1, record.about.ids.length - 1) }),
      "[": () => choose({ layer: clamp(state.layer - 1, n_layer - 1) }),
      "]": () => choose({ layer: clamp(state.layer + 1, n_layer - 1) }),
      ",": () => choose({ head: Math.max(-1, headOf(record) - 1) }),
      ".": () => choose({ head: clamp(headOf(record) + 1, heads[state.layer] - 1) }),
      m: () => choose({ head: -1 }),
      l: () => speak(record),
      d: () => turn(record),
      Escape: () => (document.getElementById("tip").hidden = true),
    };
    if (moves[event.key]) moves[event.key]();
  });
}

/** The page of one prompt, which the file brings along. */
async function openRecord({ about, packed }) {
  const record = { about, tables: await unpack(packed, about.arrays) };
  state.token = about.ids.length - 1;
  drawPage(record);
  performance.mark("drawn");
  listenToKeys(() => record);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawPage(record));
}
